//! The messages with which a site binds itself at a relay.
//!
//! ```text
//!  bind       0x50 3 1 0 | site 8 | cookie 16 | proof 16 | 0 × 8     site → relay, 52 bytes
//!  challenge  0x50 4 1 0 | site 8 | cookie 16                        relay → site
//!  bound      0x50 5 1 0 | site 8 | cookie 16 | seconds 2 | proof 16 relay → site
//! ```
//! The first bind message of a site carries a cookie of zeros. Both proofs are keyed BLAKE2s over everything before
//! them, under a key that only the site and the relay have.

use crate::cookie::MacBytes;
use crate::path::{FIRST_BYTE, SiteId};

/// The length of a bind message, in bytes. Both answers are shorter.
pub const BIND_LENGTH: usize = 52;
/// The length of a challenge, in bytes.
pub const CHALLENGE_LENGTH: usize = 28;
/// The length of the answer to a valid bind message, in bytes.
pub const BOUND_LENGTH: usize = 46;

const VERSION: u8 = 1;
const COOKIE_AT: usize = 12;
const BIND_PROOF_AT: usize = 28;
const SECONDS_AT: usize = 28;
const BOUND_PROOF_AT: usize = 30;

/// The second byte of our messages; 1 and 2 are probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bind = 3,
    Challenge = 4,
    Bound = 5,
}

/// A site's request to be reachable through this relay.
pub(super) struct Bind<'a> {
    pub site: SiteId,
    pub cookie: MacBytes,
    pub proof: MacBytes,
    /// The bytes that the proof covers.
    pub proven: &'a [u8],
}

/// The content of an answer.
pub(super) enum Answer<'a> {
    /// Ask again with this cookie.
    Challenge { cookie: MacBytes },
    /// The binding is made, for this many seconds.
    Bound {
        /// The cookie of the bind message.
        cookie: MacBytes,
        seconds: u16,
        proof: MacBytes,
        /// The bytes that the proof covers.
        proven: &'a [u8],
    },
}

impl<'a> Bind<'a> {
    pub fn read(datagram: &'a [u8]) -> Option<Self> {
        let bytes: &[u8; BIND_LENGTH] = datagram.try_into().ok()?;
        (bytes[..4] == [FIRST_BYTE, Kind::Bind as u8, VERSION, 0]).then_some(())?;
        Some(Self {
            site: site(bytes)?,
            cookie: *bytes[COOKIE_AT..].first_chunk()?,
            proof: *bytes[BIND_PROOF_AT..].first_chunk()?,
            proven: &bytes[..BIND_PROOF_AT],
        })
    }

    /// The encoded message; `prove` computes the proof over what it is given.
    pub fn write(site: SiteId, cookie: &MacBytes, prove: impl FnOnce(&[u8]) -> MacBytes) -> [u8; BIND_LENGTH] {
        let mut bytes = [0; BIND_LENGTH];
        begin(&mut bytes, Kind::Bind, site, cookie);
        let proof = prove(&bytes[..BIND_PROOF_AT]);
        bytes[BIND_PROOF_AT..BIND_PROOF_AT + proof.len()].copy_from_slice(&proof);
        bytes
    }
}

pub(super) fn challenge(site: SiteId, cookie: &MacBytes) -> Vec<u8> {
    let mut bytes = vec![0; CHALLENGE_LENGTH];
    begin(&mut bytes, Kind::Challenge, site, cookie);
    bytes
}

pub(super) fn bound(site: SiteId, cookie: &MacBytes, seconds: u16, prove: impl FnOnce(&[u8]) -> MacBytes) -> Vec<u8> {
    let mut bytes = vec![0; BOUND_LENGTH];
    begin(&mut bytes, Kind::Bound, site, cookie);
    bytes[SECONDS_AT..BOUND_PROOF_AT].copy_from_slice(&seconds.to_be_bytes());
    let proof = prove(&bytes[..BOUND_PROOF_AT]);
    bytes[BOUND_PROOF_AT..].copy_from_slice(&proof);
    bytes
}

impl<'a> Answer<'a> {
    /// Reads an answer to `site`.
    pub fn read(datagram: &'a [u8], site: SiteId) -> Option<Self> {
        let kind = datagram.get(1)?;
        let expected = [FIRST_BYTE, *kind, VERSION, 0];
        if datagram[..4.min(datagram.len())] != expected || self::site(datagram) != Some(site) {
            return None;
        }
        let cookie = *datagram.get(COOKIE_AT..)?.first_chunk()?;
        match (*kind, datagram.len()) {
            (kind, CHALLENGE_LENGTH) if kind == Kind::Challenge as u8 => Some(Self::Challenge { cookie }),
            (kind, BOUND_LENGTH) if kind == Kind::Bound as u8 => Some(Self::Bound {
                cookie,
                seconds: u16::from_be_bytes(*datagram[SECONDS_AT..].first_chunk()?),
                proof: *datagram[BOUND_PROOF_AT..].first_chunk()?,
                proven: &datagram[..BOUND_PROOF_AT],
            }),
            _ => None,
        }
    }
}

fn begin(bytes: &mut [u8], kind: Kind, site: SiteId, cookie: &MacBytes) {
    bytes[..4].copy_from_slice(&[FIRST_BYTE, kind as u8, VERSION, 0]);
    bytes[4..COOKIE_AT].copy_from_slice(&site.0);
    bytes[COOKIE_AT..COOKIE_AT + cookie.len()].copy_from_slice(cookie);
}

fn site(bytes: &[u8]) -> Option<SiteId> {
    bytes.get(4..)?.first_chunk().map(|id| SiteId(*id))
}
