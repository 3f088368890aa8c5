//! Requests: lines of `key=value`, ended by an empty line.
//!
//! The order of keys matters: those after `public_key` are that peer's, and stay so after `allowed_ip`. A request with
//! any error changes nothing.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::str;
use std::time::Duration;

use ipnet::IpNet;

use super::{
    ALLOWED_IP_LIMIT, Change, Errno, LINE_LIMIT, Operation, PEER_LIMIT, REQUEST_LIMIT, SetAllowedIp, SetDevice, SetPeer,
};
use crate::key::{KeyError, PresharedKey, PrivateKey, PublicKey};

/// Parses one whole request, with or without its closing empty line.
///
/// # Errors
/// The errno to answer with.
pub fn parse(text: &[u8]) -> Result<Operation, Errno> {
    let mut parser = Parser::default();
    for line in text.strip_suffix(b"\n").unwrap_or(text).split(|&b| b == b'\n') {
        if let Progress::Done(request) = parser.line(line) {
            return request;
        }
    }
    parser.finish()
}

/// A request whose lines are still coming in.
#[derive(Debug, Default)]
pub struct Parser {
    read: usize,
    allowed_ips: usize,
    operation: Option<Operation>,
    fault: Option<Errno>,
}

/// What a line did to the request.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// There is more to come.
    More,
    /// It is complete, and this is it; the parser is ready for the next one. After [`Errno::TooLarge`] it may not
    /// really be complete, so nothing that follows can be understood.
    Done(Result<Operation, Errno>),
}

impl Parser {
    /// Takes a line without its newline. After an error, lines are skipped up to the empty one.
    pub fn line(&mut self, line: &[u8]) -> Progress {
        self.read = self.read.saturating_add(line.len() + 1);
        if self.read > REQUEST_LIMIT {
            self.fault = Some(Errno::TooLarge);
            return Progress::Done(self.finish());
        }
        if line.is_empty() {
            return Progress::Done(self.finish());
        }
        if self.fault.is_none() {
            self.fault = self.take(line).err();
        }
        Progress::More
    }

    fn take(&mut self, line: &[u8]) -> Result<(), Errno> {
        if line.len() > LINE_LIMIT {
            return Err(Errno::Invalid);
        }
        let line = str::from_utf8(line).map_err(|_| Errno::Protocol)?;
        let (key, value) = line.split_once('=').ok_or(Errno::Protocol)?;
        match &mut self.operation {
            None => self.operation = Some(first(key, value)?),
            Some(Operation::Get) => return Err(Errno::Protocol),
            Some(Operation::Set(device)) => set(device, &mut self.allowed_ips, key, value)?,
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Operation, Errno> {
        let request = std::mem::take(self);
        match (request.fault, request.operation) {
            (Some(errno), _) => Err(errno),
            (None, Some(operation)) => Ok(operation),
            (None, None) => Err(Errno::Protocol),
        }
    }
}

fn first(key: &str, value: &str) -> Result<Operation, Errno> {
    match (key, value) {
        ("get", "1") => Ok(Operation::Get),
        ("set", "1") => Ok(Operation::Set(SetDevice::default())),
        ("get" | "set", _) => Err(Errno::Invalid),
        _ => Err(Errno::Protocol),
    }
}

fn set(device: &mut SetDevice, allowed_ips: &mut usize, key: &str, value: &str) -> Result<(), Errno> {
    if key == "public_key" {
        if device.peers.len() == PEER_LIMIT {
            return Err(Errno::TooLarge);
        }
        let public_key = PublicKey::from_hex(value).map_err(|_| Errno::Invalid)?;
        device.peers.push(SetPeer::new(public_key));
        return Ok(());
    }
    if let Some(peer) = device.peers.last_mut() {
        if key == "allowed_ip" {
            *allowed_ips += 1;
            if *allowed_ips > ALLOWED_IP_LIMIT {
                return Err(Errno::TooLarge);
            }
        }
        return set_peer(peer, key, value);
    }
    match key {
        "private_key" => device.private_key = change(PrivateKey::from_hex(value))?,
        "listen_port" => device.listen_port = Some(number(value)?),
        "fwmark" => device.fwmark = Some(fwmark(value)?),
        "replace_peers" => device.replace_peers = flag(value)?,
        _ => return Err(Errno::Protocol),
    }
    Ok(())
}

fn set_peer(peer: &mut SetPeer, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "remove" => peer.remove = flag(value)?,
        "update_only" => peer.update_only = flag(value)?,
        "preshared_key" => peer.preshared_key = change(PresharedKey::from_hex(value))?,
        "endpoint" => peer.endpoint = Some(endpoint(value)?),
        "persistent_keepalive_interval" => {
            peer.persistent_keepalive = match number::<u16>(value)? {
                0 => Change::Clear,
                seconds => Change::To(Duration::from_secs(seconds.into())),
            }
        }
        "replace_allowed_ips" => peer.replace_allowed_ips = flag(value)?,
        "allowed_ip" => peer.allowed_ips.push(allowed_ip(value)?),
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(Errno::Invalid),
        _ => return Err(Errno::Protocol),
    }
    Ok(())
}

impl SetPeer {
    /// A peer with no changes.
    #[must_use]
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: Change::Keep,
            endpoint: None,
            persistent_keepalive: Change::Keep,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

fn change<K>(key: Result<K, KeyError>) -> Result<Change<K>, Errno> {
    match key {
        Ok(key) => Ok(Change::To(key)),
        Err(KeyError::Zero) => Ok(Change::Clear),
        Err(_) => Err(Errno::Invalid),
    }
}

/// The protocol has flags that are set, and none that are not.
fn flag(value: &str) -> Result<bool, Errno> {
    if value == "true" { Ok(true) } else { Err(Errno::Invalid) }
}

fn number<N: str::FromStr>(value: &str) -> Result<N, Errno> {
    // Rust's parser also accepts a sign.
    if !value.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Errno::Invalid);
    }
    value.parse().map_err(|_| Errno::Invalid)
}

fn fwmark(value: &str) -> Result<u32, Errno> {
    match value.strip_prefix("0x") {
        Some(digits) if digits.starts_with('+') => Err(Errno::Invalid),
        Some(digits) => u32::from_str_radix(digits, 16).map_err(|_| Errno::Invalid),
        None => number(value),
    }
}

fn endpoint(value: &str) -> Result<SocketAddr, Errno> {
    let endpoint: SocketAddr = match value.parse() {
        Ok(endpoint) => endpoint,
        Err(_) => in_named_zone(value).ok_or(Errno::Invalid)?,
    };
    if endpoint.port() == 0 || endpoint.ip().is_unspecified() {
        return Err(Errno::Invalid);
    }
    Ok(endpoint)
}

/// `[fe80::1%eth0]:47100`, with the interface's name where Rust accepts only its index. `wg` writes it like this.
fn in_named_zone(value: &str) -> Option<SocketAddr> {
    let (address, port) = value.strip_prefix('[')?.split_once("]:")?;
    let (address, zone) = address.split_once('%')?;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET6, rustix::net::SocketType::DGRAM, None).ok()?;
    let index = rustix::net::netdevice::name_to_index(socket, zone).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, port.parse().ok()?, 0, index).into())
}

fn allowed_ip(value: &str) -> Result<SetAllowedIp, Errno> {
    let (remove, text) = match value.strip_prefix(['-', '+']) {
        Some(text) => (value.starts_with('-'), text),
        None => (false, value),
    };
    let prefix = match text.parse::<IpNet>() {
        Ok(prefix) => prefix.trunc(),
        Err(_) => text.parse::<IpAddr>().map_err(|_| Errno::Invalid)?.into(),
    };
    Ok(SetAllowedIp { prefix, remove })
}
