//! What a generator sends.

use std::net::IpAddr;

use super::{ETHERNET_LEN, Mac, Mix, TTL, UDP, UDP_LEN, fold, pseudo_header_sum, sum};
use crate::traffic::payload::{self, STAMP_LEN, Stamp};

/// Ethernet, IPv6 and UDP.
const LONGEST_HEADERS: usize = ETHERNET_LEN + 40 + UDP_LEN;

/// All packets of a generator: which size and flow packet n has, and its bytes.
#[derive(Debug, Clone)]
pub struct Template {
    mix: Mix,
    flows: u64,
    /// For each place in the mix, the index of its size's first headers; each size has one set of headers per flow.
    places: Vec<usize>,
    headers: Vec<Headers>,
    headers_len: usize,
    /// The number of packets after which the combinations of size and flow repeat.
    period: u64,
}

/// The fields of a [`Template`] that are alike in all its packets, or count up from here.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination: the next hop.
    pub destination_mac: Mac,
    /// IP source.
    pub source: IpAddr,
    /// IP destination, of the same family.
    pub destination: IpAddr,
    /// UDP source port of the first flow; flow n uses this plus n.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
}

/// How many flows there are and how they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flows {
    /// Each has a source port of its own.
    pub count: u16,
    /// This many source and as many destination addresses are taken in turn, counted up from the first.
    pub hosts: u16,
}

/// Why a packet cannot be built, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(String);

/// The headers of one size and flow.
#[derive(Debug, Clone, Copy)]
struct Headers {
    bytes: [u8; LONGEST_HEADERS],
    frame_len: usize,
    /// IPv6 only: the ones' complement sum over all but the stamp's numbers. Over IPv4 the checksum is 0, "none".
    checksum_base: Option<u32>,
}

impl Template {
    /// Longest IP packet: what a frame of the UMEM holds.
    pub const LONGEST: usize = crate::traffic::socket::FRAME_ROOM - ETHERNET_LEN;

    /// The packets of a mix in some flows.
    pub fn new(addresses: &Addresses, mix: &Mix, flows: Flows) -> Result<Template, BuildError> {
        let least = Self::shortest(addresses.source);
        for &size in mix.sizes() {
            if size < least {
                return Err(BuildError(format!("an IP packet of {size} bytes is too short, the least is {least}")));
            }
            if size > Self::LONGEST {
                let most = Self::LONGEST;
                return Err(BuildError(format!("an IP packet of {size} bytes is too long, the most is {most}")));
            }
        }
        let first = addresses.source_port;
        if flows.count == 0 || first.checked_add(flows.count - 1).is_none() {
            return Err(BuildError(format!(
                "{} flows from source port {first} on do not fit into 65535 ports",
                flows.count
            )));
        }
        if flows.hosts == 0 {
            return Err(hosts(0));
        }

        let mut sizes: Vec<usize> = mix.sizes().to_vec();
        sizes.sort_unstable();
        sizes.dedup();
        let mut headers = Vec::with_capacity(sizes.len() * usize::from(flows.count));
        for &size in &sizes {
            for flow in 0..flows.count {
                headers.push(Headers::new(addresses, size, flow, flow % flows.hosts)?);
            }
        }
        let place = |size: &usize| sizes.partition_point(|s| s < size) * usize::from(flows.count);
        let count = u64::from(flows.count);
        Ok(Template {
            mix: mix.clone(),
            flows: count,
            places: mix.sizes().iter().map(place).collect(),
            headers,
            headers_len: least - STAMP_LEN + ETHERNET_LEN,
            period: least_common_multiple(mix.sizes().len() as u64, count),
        })
    }

    /// Bytes of the shortest IP packet that has room for the stamp, in the family of this address.
    pub fn shortest(address: IpAddr) -> usize {
        (if address.is_ipv4() { 20 } else { 40 }) + UDP_LEN + STAMP_LEN
    }

    /// The mix.
    pub fn mix(&self) -> &Mix {
        &self.mix
    }

    /// Bytes of these IP packets.
    pub fn bytes(&self, first: u64, count: u64) -> u64 {
        self.bytes_before(first + count) - self.bytes_before(first)
    }

    fn bytes_before(&self, end: u64) -> u64 {
        let sizes = self.mix.sizes();
        let in_period = sizes.iter().sum::<usize>() as u64 * (self.period / sizes.len() as u64);
        let rest = end / self.period * self.period..end;
        end / self.period * in_period + rest.map(|n| sizes[self.place(n)] as u64).sum::<u64>()
    }

    /// Fills a frame with all that stays the same.
    pub fn prepare(&self, frame: &mut [u8]) {
        payload::write_pattern(&mut frame[self.headers_len..]);
    }

    /// Makes a prepared frame the packet of this stamp; returns the frame's length.
    #[inline]
    pub fn write(&self, frame: &mut [u8], stamp: Stamp) -> usize {
        let flow = if self.flows == 1 { 0 } else { (stamp.sequence % self.flows) as usize };
        let headers = &self.headers[self.places[self.place(stamp.sequence)] + flow];
        let (place, payload) = frame.split_at_mut(self.headers_len);
        place.copy_from_slice(&headers.bytes[..self.headers_len]);
        stamp.write(payload);
        if let Some(base) = headers.checksum_base {
            // The stamp's numbers stand behind its magic, at an even offset.
            let checksum = match !fold(base + sum(&payload[4..STAMP_LEN])) {
                0 => 0xffff,
                checksum => checksum,
            };
            place[self.headers_len - 2..].copy_from_slice(&checksum.to_be_bytes());
        }
        headers.frame_len
    }

    /// Which place of the mix a packet has. It shifts by one per period, so that every flow gets every size.
    #[inline]
    fn place(&self, n: u64) -> usize {
        match self.places.len() as u64 {
            1 => 0,
            len => ((n + n / self.period) % len) as usize,
        }
    }
}

impl Headers {
    fn new(addresses: &Addresses, size: usize, flow: u16, host: u16) -> Result<Headers, BuildError> {
        let mut frame = vec![0; ETHERNET_LEN + size];
        let (ethernet, packet) = frame.split_at_mut(ETHERNET_LEN);
        ethernet[0..6].copy_from_slice(&addresses.destination_mac.0);
        ethernet[6..12].copy_from_slice(&addresses.source_mac.0);
        let (header, datagram) = match (addresses.source, addresses.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet[12..14].copy_from_slice(&[0x08, 0x00]);
                let (header, datagram) = packet.split_at_mut(20);
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(size as u16).to_be_bytes());
                header[6] = 0x40; // don't fragment
                header[8] = TTL;
                header[9] = UDP;
                header[12..16].copy_from_slice(&count_up(source.octets(), host)?);
                header[16..20].copy_from_slice(&count_up(destination.octets(), host)?);
                let checksum = !fold(sum(header));
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                (header, datagram)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet[12..14].copy_from_slice(&[0x86, 0xdd]);
                let (header, datagram) = packet.split_at_mut(40);
                header[0] = 0x60;
                header[4..6].copy_from_slice(&((size - 40) as u16).to_be_bytes());
                header[6] = UDP;
                header[7] = TTL;
                header[8..24].copy_from_slice(&count_up(source.octets(), host)?);
                header[24..40].copy_from_slice(&count_up(destination.octets(), host)?);
                (header, datagram)
            }
            _ => return Err(BuildError("source and destination must be of the same address family".into())),
        };
        let datagram_len = datagram.len() as u16;
        datagram[0..2].copy_from_slice(&(addresses.source_port + flow).to_be_bytes());
        datagram[2..4].copy_from_slice(&addresses.destination_port.to_be_bytes());
        datagram[4..6].copy_from_slice(&datagram_len.to_be_bytes());
        payload::write_pattern(&mut datagram[UDP_LEN..]);
        Stamp { sequence: 0, sent_at: 0 }.write(&mut datagram[UDP_LEN..]);
        let is_v6 = addresses.source.is_ipv6();
        let checksum_base = is_v6.then(|| pseudo_header_sum(&header[8..40], datagram_len) + sum(datagram));
        let mut bytes = [0; LONGEST_HEADERS];
        let headers_len = ETHERNET_LEN + header.len() + UDP_LEN;
        bytes[..headers_len].copy_from_slice(&frame[..headers_len]);
        Ok(Headers { bytes, frame_len: frame.len(), checksum_base })
    }
}

/// The address `host` places after this one; only its last 16 bits may count up.
fn count_up<const N: usize>(mut octets: [u8; N], host: u16) -> Result<[u8; N], BuildError> {
    let last = u16::from_be_bytes([octets[N - 2], octets[N - 1]]);
    let counted = last.checked_add(host).ok_or_else(|| hosts(host.saturating_add(1)))?;
    octets[N - 2..].copy_from_slice(&counted.to_be_bytes());
    Ok(octets)
}

fn hosts(count: u16) -> BuildError {
    BuildError(format!("{count} hosts from the given addresses on do not fit into their last 16 bits"))
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}
