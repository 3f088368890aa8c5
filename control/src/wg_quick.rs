//! `wg-quick`'s files: read to make a profile ([`import`]), written for a peer that runs plain WireGuard ([`export`]).
//!
//! The format is that of wg-quick(8) and wg(8): sections, `Key = Value`, `#` begins a comment. Keys are not
//! case-sensitive, and may be repeated.

pub mod export;
pub mod import;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::profile::{ALLOWED_IP_LIMIT, Endpoint, FILE_LIMIT, PEER_LIMIT};

/// The most hooks and the like in a file.
const EXTRA_LIMIT: usize = 1024;
/// The most addresses of the interface.
const ADDRESS_LIMIT: usize = 64;
/// How many characters of a value are shown in an error.
const SHOWN: usize = 60;

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {sentence}")]
pub struct FileError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub sentence: String,
}

/// The contents of a file.
#[derive(Debug, Default)]
pub struct File {
    /// Our private key.
    pub private_key: Option<PrivateKey>,
    /// The UDP port; 0 for one that the kernel chooses.
    pub listen_port: Option<u16>,
    /// The mark of outer packets; 0 for no mark.
    pub fw_mark: Option<u32>,
    /// The device's addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The device's MTU.
    pub mtu: Option<u32>,
    /// What only wg-quick does, in order.
    pub extras: Vec<Extra>,
    /// The peers.
    pub peers: Vec<Peer>,
}

/// A line that concerns more than WireGuard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// The line, counted from 1.
    pub line: usize,
    /// What it asks for.
    pub kind: ExtraKind,
    /// Its value.
    pub value: String,
}

/// What only wg-quick does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraKind {
    /// A command before the device is up.
    PreUp,
    /// A command when the device is up.
    PostUp,
    /// A command before the device is removed.
    PreDown,
    /// A command when the device has been removed.
    PostDown,
    /// Name servers and search domains.
    Dns,
    /// The routing table, or "off".
    Table,
    /// The file is to be written when the device is removed.
    SaveConfig,
}

impl fmt::Display for ExtraKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => f.write_str("DNS"),
            kind => write!(f, "{kind:?}"),
        }
    }
}

/// A `[Peer]`.
#[derive(Debug)]
pub struct Peer {
    /// The line where the section begins, counted from 1.
    pub line: usize,
    /// Its name according to a comment: `# Name = …`, `# friendly_name = …` or `# Client: …`.
    pub name: Option<String>,
    /// Its public key.
    pub public_key: Option<PublicKey>,
    /// The preshared key, if there is one.
    pub preshared_key: Option<PresharedKey>,
    /// Its endpoint.
    pub endpoint: Option<Endpoint>,
    /// What is sent to it and accepted from it, without host bits.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives; 0 for none.
    pub persistent_keepalive: Option<u16>,
}

/// The section a line belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    None,
    Interface,
    Peer,
}

/// Parses a file.
///
/// # Errors
/// The first error, with its line.
pub fn parse(text: &[u8]) -> Result<File, FileError> {
    let whole = |sentence: &str| FileError { line: 1, sentence: sentence.to_owned() };
    if text.len() as u64 > FILE_LIMIT {
        return Err(whole(&format!("longer than {FILE_LIMIT} bytes, so it is not a wg-quick file")));
    }
    let text = std::str::from_utf8(text).map_err(|_| whole("not UTF-8, so it is not a wg-quick file"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut file = File::default();
    let mut section = Section::None;
    let mut name = None;
    let mut allowed_ips = 0;
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let fail = |sentence: String| FileError { line: number, sentence };
        let (content, comment) = line.split_once('#').unwrap_or((line, ""));
        if let Some(given) = named(comment) {
            // The comment may be above its section or in it.
            match file.peers.last_mut().filter(|peer| section == Section::Peer && peer.name.is_none()) {
                Some(peer) => peer.name = Some(given),
                None => name = Some(given),
            }
        }
        let content = content.trim();
        if content.is_empty() {
            continue;
        }
        if content.eq_ignore_ascii_case("[Interface]") {
            section = Section::Interface;
            name = None;
            continue;
        }
        if content.eq_ignore_ascii_case("[Peer]") {
            if file.peers.len() == PEER_LIMIT {
                return Err(fail(format!("more than {PEER_LIMIT} peers")));
            }
            section = Section::Peer;
            file.peers.push(Peer::new(number, name.take()));
            continue;
        }
        let (key, value) = content
            .split_once('=')
            .ok_or_else(|| fail(format!("{} is neither a section nor KEY = VALUE", shown(content))))?;
        let (key, value) = (key.trim(), value.trim());
        match (section, file.peers.last_mut()) {
            (Section::Interface, _) => file.set(number, key, value).map_err(fail)?,
            (Section::Peer, Some(peer)) => peer.set(key, value, &mut allowed_ips).map_err(fail)?,
            _ => return Err(fail("before the first [Interface] or [Peer]".to_owned())),
        }
    }
    match file.peers.iter().find(|peer| peer.public_key.is_none()) {
        Some(peer) => Err(FileError { line: peer.line, sentence: "this peer has no PublicKey".to_owned() }),
        None => Ok(file),
    }
}

impl File {
    fn set(&mut self, line: usize, key: &str, value: &str) -> Result<(), String> {
        let kind = match key.to_ascii_lowercase().as_str() {
            "privatekey" => return put(&mut self.private_key, secret(key, value)?),
            "listenport" => return put(&mut self.listen_port, number(key, value)?),
            "fwmark" => return put(&mut self.fw_mark, mark(value)?),
            "mtu" => return put(&mut self.mtu, number(key, value)?),
            "address" => {
                self.addresses.extend(list(value).map(|text| prefix(key, text)).collect::<Result<Vec<_>, _>>()?);
                return match self.addresses.len() {
                    0..=ADDRESS_LIMIT => Ok(()),
                    _ => Err(format!("more than {ADDRESS_LIMIT} addresses")),
                };
            }
            "preup" => ExtraKind::PreUp,
            "postup" => ExtraKind::PostUp,
            "predown" => ExtraKind::PreDown,
            "postdown" => ExtraKind::PostDown,
            "dns" => ExtraKind::Dns,
            "table" => ExtraKind::Table,
            "saveconfig" => ExtraKind::SaveConfig,
            _ => return Err(format!("unknown key {} in [Interface]", shown(key))),
        };
        if self.extras.len() == EXTRA_LIMIT {
            return Err(format!("more than {EXTRA_LIMIT} lines that only wg-quick understands"));
        }
        self.extras.push(Extra { line, kind, value: value.to_owned() });
        Ok(())
    }
}

impl Peer {
    fn new(line: usize, name: Option<String>) -> Self {
        Self {
            line,
            name,
            public_key: None,
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        }
    }

    fn set(&mut self, key: &str, value: &str, allowed_ips: &mut usize) -> Result<(), String> {
        match key.to_ascii_lowercase().as_str() {
            "publickey" => put(&mut self.public_key, secret(key, value)?),
            "presharedkey" => put(&mut self.preshared_key, secret(key, value)?),
            "endpoint" => put(&mut self.endpoint, Endpoint::try_from(value.to_owned())?),
            "persistentkeepalive" if value.eq_ignore_ascii_case("off") => put(&mut self.persistent_keepalive, 0),
            "persistentkeepalive" => put(&mut self.persistent_keepalive, number(key, value)?),
            "allowedips" => {
                for text in list(value) {
                    *allowed_ips += 1;
                    if *allowed_ips > ALLOWED_IP_LIMIT {
                        return Err(format!("more than {ALLOWED_IP_LIMIT} allowed IPs"));
                    }
                    self.allowed_ips.push(prefix(key, text)?.trunc());
                }
                Ok(())
            }
            _ => Err(format!("unknown key {} in [Peer]", shown(key))),
        }
    }
}

/// The last value counts, as with `wg`.
fn put<T>(field: &mut Option<T>, value: T) -> Result<(), String> {
    *field = Some(value);
    Ok(())
}

/// A key. What was given instead is not shown: it may be a mistyped key.
fn secret<K: FromStr<Err = crate::key::KeyError>>(key: &str, value: &str) -> Result<K, String> {
    value.parse().map_err(|error| format!("{key}: {error}"))
}

fn number<N: FromStr>(key: &str, value: &str) -> Result<N, String> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let parsed = value.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| format!("{key}: {} is not a valid number", shown(value)))
}

fn mark(value: &str) -> Result<u32, String> {
    if value.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => {
            u32::from_str_radix(digits, 16).map_err(|_| format!("FwMark: {} is not a mark", shown(value)))
        }
        _ => number("FwMark", value),
    }
}

fn prefix(key: &str, text: &str) -> Result<IpNet, String> {
    let prefix = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse());
    prefix.map_err(|_| format!("{key}: {} is not an address or prefix", shown(text)))
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ' ', '\t']).filter(|text| !text.is_empty())
}

/// The name that a comment gives to a peer.
fn named(comment: &str) -> Option<String> {
    let comment = comment.trim_start_matches('#').trim();
    let (key, value) = comment.split_once(['=', ':'])?;
    let known = ["name", "friendly_name", "client"].iter().any(|known| key.trim().eq_ignore_ascii_case(known));
    let value = value.trim();
    (known && !value.is_empty()).then(|| value.to_owned())
}

/// A value from a stranger's file, made safe for a terminal.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(SHOWN).collect();
    let more = if short.len() < value.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

#[cfg(test)]
mod tests;
