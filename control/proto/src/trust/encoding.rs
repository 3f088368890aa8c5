//! The canonical binary form of what is signed. A value has exactly one form, and other forms are refused, so that
//! signing a value and signing its bytes are the same thing.
//!
//! Integers are big-endian. A list is its length and its elements, strictly ascending. An optional value is a byte 0,
//! or a byte 1 and the value.

use std::net::IpAddr;

use ipnet::IpNet;

pub(super) use crate::coordination::Base64;

use super::statement::{Serial, Subnets, Tags};
use super::time::{LeaseLength, UnixTime, Validity};
use crate::coordination::{Name, SiteKey};

/// The bytes are not a canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads what [`Writer`] wrote.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn serial(&mut self) -> Result<Serial, Malformed> {
        self.u64().map(Serial)
    }

    pub fn key<K: From<[u8; 32]>>(&mut self) -> Result<K, Malformed> {
        self.array::<32>().map(K::from)
    }

    pub fn length_of_lease(&mut self) -> Result<LeaseLength, Malformed> {
        self.u32().map(LeaseLength::from)
    }

    pub fn validity(&mut self) -> Result<Validity, Malformed> {
        let (from, until) = (self.optional_time()?, self.optional_time()?);
        Validity::new(from, until).map_err(|_| Malformed)
    }

    pub fn name(&mut self) -> Result<Name, Malformed> {
        let length = self.u8()?;
        let text = std::str::from_utf8(self.bytes(length.into())?).map_err(|_| Malformed)?;
        text.parse().map_err(|_| Malformed)
    }

    pub fn tags(&mut self) -> Result<Tags, Malformed> {
        let count = self.u8()?;
        let tags = self.ascending(count.into(), Self::name)?;
        Tags::new(tags).map_err(|_| Malformed)
    }

    pub fn subnets(&mut self) -> Result<Subnets, Malformed> {
        let count = self.u8()?;
        let subnets = self.ascending(count.into(), Self::prefix)?;
        Subnets::new(subnets).map_err(|_| Malformed)
    }

    /// The caller limits the count.
    pub fn ascending<T: Ord>(
        &mut self,
        count: usize,
        read: impl Fn(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let mut elements: Vec<T> = Vec::new();
        for _ in 0..count {
            let element = read(self)?;
            if elements.last().is_some_and(|last| *last >= element) {
                return Err(Malformed);
            }
            elements.push(element);
        }
        Ok(elements)
    }

    fn optional_time(&mut self) -> Result<Option<UnixTime>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            1 => Ok(Some(UnixTime(self.u64()?))),
            _ => Err(Malformed),
        }
    }

    fn prefix(&mut self) -> Result<IpNet, Malformed> {
        let address = match self.u8()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(Malformed),
        };
        IpNet::new(address, self.u8()?).map_err(|_| Malformed)
    }
}

/// Writes the canonical form.
#[derive(Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn u8(&mut self, number: u8) {
        self.0.push(number);
    }

    pub fn u32(&mut self, number: u32) {
        self.bytes(&number.to_be_bytes());
    }

    pub fn u64(&mut self, number: u64) {
        self.bytes(&number.to_be_bytes());
    }

    pub fn serial(&mut self, serial: Serial) {
        self.u64(serial.0);
    }

    pub fn site_key(&mut self, key: &SiteKey) {
        self.bytes(key.as_bytes());
    }

    pub fn validity(&mut self, validity: &Validity) {
        for time in [validity.from(), validity.until()] {
            self.u8(time.is_some().into());
            time.iter().for_each(|time| self.u64(time.0));
        }
    }

    pub fn name(&mut self, name: &Name) {
        // A name has at most 63 bytes.
        self.u8(name.as_str().len() as u8);
        self.bytes(name.as_str().as_bytes());
    }

    pub fn tags(&mut self, tags: &Tags) {
        // Their limit is below 256.
        self.u8(tags.iter().len() as u8);
        tags.iter().for_each(|tag| self.name(tag));
    }

    pub fn subnets(&mut self, subnets: &Subnets) {
        // Their limit is below 256.
        self.u8(subnets.iter().len() as u8);
        for subnet in subnets.iter() {
            match subnet.addr() {
                IpAddr::V4(address) => {
                    self.u8(4);
                    self.bytes(&address.octets());
                }
                IpAddr::V6(address) => {
                    self.u8(6);
                    self.bytes(&address.octets());
                }
            }
            self.u8(subnet.prefix_len());
        }
    }
}
