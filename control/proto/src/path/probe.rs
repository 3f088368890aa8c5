//! Probes on the wire: pings and pongs, sealed under a key that only the two sites have.
//!
//! ```text
//!  0      1      2         3   4          12       20       44                         76     92
//!  ├──────┼──────┼─────────┼───┼──────────┼────────┼────────┼──────────────────────────┼──────┼─ ─ ─
//!  │ 0x50 │ kind │ version │ 0 │ receiver │ sender │ nonce  │ 32 bytes, sealed         │ tag  │ padding
//!    1  ping                                                 transaction 8, flags 1, 0 × 3, round 4, digest 4, 0 × 12
//!    2  pong                                                 transaction 8, address 16, port 2, 0 × 6
//!    6  sized ping                                           transaction 8, length 2, digest 8, 0 × 14
//!    7  sized pong                                           transaction 8, length 2, 0 × 22
//! ```
//! A pong is as long as a ping, so the answering side amplifies nothing. The header is authenticated too, so a ping
//! cannot be turned into a pong, and what A sealed for B cannot be sent back to A.
//!
//! Only a sized ping has padding, up to the length that it asks about (see [`crate::pmtu`] and [`Train`]). The padding
//! is random, since a link that compresses would otherwise pass longer probes than data. It is not sealed, but its
//! length and its digest are, so that a ping that was cut, stretched or damaged on the way is refused; older sites send
//! no digest (zeros). Sites and relays that do not know these kinds drop them, and silence tells the sender so.
//!
//! [`Train`]: super::Train

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use blake2::digest::Mac;
use chacha20poly1305::{AeadInPlace, KeyInit, XChaCha20Poly1305};
use rand::RngCore;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::Key;
use crate::noise::{diffie_hellman, hash, keyed_hash};
use crate::relay::DATAGRAM_LIMIT;

/// The length of every probe, in bytes; for a sized ping it is the minimum.
pub const PROBE_LENGTH: usize = 92;
/// The first byte of all our own messages on the tunnel's port, "P".
pub const FIRST_BYTE: u8 = 0x50;

const VERSION: u8 = 1;
const HEADER_LENGTH: usize = 20;
const NONCE_LENGTH: usize = 24;
const BODY_AT: usize = HEADER_LENGTH + NONCE_LENGTH;
const BODY_LENGTH: usize = 32;
const TAG_AT: usize = BODY_AT + BODY_LENGTH;

const LABEL_SITE: &[u8] = b"penstock site v1";
const LABEL_PROBE: &[u8] = b"penstock probe v1";
const LABEL_PADDING: &[u8] = b"penstock padding v1";

/// The first bytes of a digest of a sized ping's padding.
type PaddingDigest = [u8; 8];
/// Where it stands in the body.
const DIGEST: std::ops::Range<usize> = 10..18;

/// Identifies a site on the wire: the first 8 bytes of a labelled BLAKE2s of its public key. It tells the receiver
/// which key to try and a relay where to send; it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub [u8; 8]);

impl SiteId {
    /// The id of the site with this public key.
    #[must_use]
    pub fn of(public_key: &PublicKey) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = hash(&[LABEL_SITE, public_key.as_bytes()]);
        Self([a, b, c, d, e, f, g, h])
    }
}

/// The contents of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// A random number that the pong repeats.
    pub transaction: u64,
    /// The sender's NAT has been opened towards our candidates; this is the digest of those that it knows.
    pub opened: Option<u32>,
    /// The sender holds extra sockets open, and asks us to guess their ports.
    pub birthday: bool,
    /// The sender's datagrams take the path that this ping has taken.
    pub selected: bool,
    /// The round of probing that this ping belongs to.
    pub round: u32,
}

/// The answer to a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// That of the ping.
    pub transaction: u64,
    /// The address that the ping was seen to come from.
    pub seen: SocketAddr,
}

/// Asks whether a datagram of this length arrives whole, or says that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeCheck {
    /// A random number that the answer repeats.
    pub transaction: u64,
    /// The length of the ping's datagram, in bytes.
    pub length: u16,
}

/// A probe's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Kind 1.
    Ping(Ping),
    /// Kind 2.
    Pong(Pong),
    /// Kind 6.
    SizedPing(SizeCheck),
    /// Kind 7.
    SizedPong(SizeCheck),
}

/// Why a datagram is not a probe for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeReject {
    /// Not the first bytes of a probe of this version.
    #[error("not a probe")]
    NotProbe,
    /// Not [`PROBE_LENGTH`] bytes, or a sized ping that is not as long as it says, or longer than we can use.
    #[error("a probe with a wrong length")]
    Length,
    /// For another site.
    #[error("a probe for another site")]
    Receiver,
    /// From a site that is not a peer.
    #[error("a probe from an unknown site")]
    Sender,
    /// The source is nobody's candidate and has used up its share.
    #[error("too many probes from an unknown address")]
    RateLimited,
    /// Forged, damaged or made with another key.
    #[error("a probe that is not authentic")]
    NotAuthentic,
    /// A copy of a ping that we have seen before.
    #[error("a repeated ping")]
    Replay,
    /// A pong that answers no ping of ours, or comes from an address that we did not ping.
    #[error("a pong without a ping")]
    Unasked,
}

/// The key of two sites' probes.
pub(crate) struct ProbeKey(Key);

impl ProbeKey {
    /// `None` when `theirs` is of low order: no secret can be shared with it.
    pub fn new(private: &StaticSecret, ours: &PublicKey, theirs: &PublicKey) -> Option<Self> {
        let secret = diffie_hellman(private, theirs).ok()?;
        let (low, high) = if ours.as_bytes() < theirs.as_bytes() { (ours, theirs) } else { (theirs, ours) };
        let mac = keyed_hash(secret.as_bytes(), &[LABEL_PROBE, low.as_bytes(), high.as_bytes()]);
        let mut key = Key::zero();
        key.as_mut().copy_from_slice(&mac.finalize().into_bytes());
        Some(Self(key))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.as_bytes().into())
    }

    pub fn seal(&self, receiver: SiteId, sender: SiteId, probe: &Probe, rng: &mut dyn RngCore) -> [u8; PROBE_LENGTH] {
        self.seal_body(receiver, sender, probe.kind(), probe.encode(), rng)
    }

    /// A sized ping with its padding.
    pub fn seal_sized(&self, receiver: SiteId, sender: SiteId, ping: SizeCheck, rng: &mut dyn RngCore) -> Vec<u8> {
        let mut out = vec![0; usize::from(ping.length).max(PROBE_LENGTH)];
        let (head, padding) = out.split_at_mut(PROBE_LENGTH);
        rng.fill_bytes(padding);
        let mut body = Probe::SizedPing(ping).encode();
        body[DIGEST].copy_from_slice(&padding_digest(padding));
        head.copy_from_slice(&self.seal_body(receiver, sender, SIZED_PING, body, rng));
        out
    }

    fn seal_body(
        &self,
        receiver: SiteId,
        sender: SiteId,
        kind: u8,
        body: [u8; BODY_LENGTH],
        rng: &mut dyn RngCore,
    ) -> [u8; PROBE_LENGTH] {
        let mut out = [0; PROBE_LENGTH];
        out[..4].copy_from_slice(&[FIRST_BYTE, kind, VERSION, 0]);
        out[4..12].copy_from_slice(&receiver.0);
        out[12..HEADER_LENGTH].copy_from_slice(&sender.0);
        rng.fill_bytes(&mut out[HEADER_LENGTH..BODY_AT]);
        out[BODY_AT..TAG_AT].copy_from_slice(&body);
        let (head, sealed) = out.split_at_mut(BODY_AT);
        let (header, nonce) = head.split_at(HEADER_LENGTH);
        let (body, tag) = sealed.split_at_mut(BODY_LENGTH);
        let computed = self
            .cipher()
            .encrypt_in_place_detached(nonce.into(), header, body)
            .expect("a probe is far below ChaCha20's limit of 256 GiB");
        tag.copy_from_slice(&computed);
        out
    }

    /// # Errors
    /// [`ProbeReject::NotAuthentic`], [`ProbeReject::Length`].
    pub fn open(&self, envelope: &Envelope<'_>) -> Result<Probe, ProbeReject> {
        let bytes = envelope.bytes;
        let mut body = [0; BODY_LENGTH];
        body.copy_from_slice(&bytes[BODY_AT..TAG_AT]);
        self.cipher()
            .decrypt_in_place_detached(
                bytes[HEADER_LENGTH..BODY_AT].into(),
                &bytes[..HEADER_LENGTH],
                &mut body,
                bytes[TAG_AT..].into(),
            )
            .map_err(|_| ProbeReject::NotAuthentic)?;
        match Probe::decode(bytes[1], &body) {
            Probe::SizedPing(ping) if usize::from(ping.length) != PROBE_LENGTH + envelope.padding.len() => {
                Err(ProbeReject::Length)
            }
            Probe::SizedPing(_) if !is_intact(envelope.padding, &body[DIGEST]) => Err(ProbeReject::NotAuthentic),
            probe => Ok(probe),
        }
    }
}

fn padding_digest(padding: &[u8]) -> PaddingDigest {
    let [a, b, c, d, e, f, g, h, ..] = hash(&[LABEL_PADDING, padding]);
    [a, b, c, d, e, f, g, h]
}

/// Whether the padding is that of the sealed digest. Without a digest, nobody can tell.
fn is_intact(padding: &[u8], digest: &[u8]) -> bool {
    digest == PaddingDigest::default() || digest == padding_digest(padding)
}

/// A probe whose header has been parsed.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    bytes: &'a [u8; PROBE_LENGTH],
    padding: &'a [u8],
    /// The site that it claims to be for.
    pub receiver: SiteId,
    /// The site that it claims to be from.
    pub sender: SiteId,
}

impl<'a> Envelope<'a> {
    /// Parses the header, as gateways and relays do. Any bytes may be given.
    ///
    /// # Errors
    /// [`ProbeReject::NotProbe`], [`ProbeReject::Length`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ProbeReject> {
        let longest = match bytes {
            [FIRST_BYTE, PING | PONG | SIZED_PONG, VERSION, 0, ..] => PROBE_LENGTH,
            [FIRST_BYTE, SIZED_PING, VERSION, 0, ..] => DATAGRAM_LIMIT,
            _ => return Err(ProbeReject::NotProbe),
        };
        let split = bytes.split_first_chunk().filter(|_| bytes.len() <= longest);
        let (bytes, padding) = split.ok_or(ProbeReject::Length)?;
        let site = |at: usize| SiteId(std::array::from_fn(|index| bytes[at + index]));
        Ok(Self { bytes, padding, receiver: site(4), sender: site(12) })
    }
}

const PING: u8 = 1;
const PONG: u8 = 2;
// 3 to 5 are the messages of a relay's bindings.
const SIZED_PING: u8 = 6;
const SIZED_PONG: u8 = 7;
const OPENED: u8 = 1;
const BIRTHDAY: u8 = 2;
const SELECTED: u8 = 4;

impl Probe {
    fn kind(&self) -> u8 {
        match self {
            Self::Ping(_) => PING,
            Self::Pong(_) => PONG,
            Self::SizedPing(_) => SIZED_PING,
            Self::SizedPong(_) => SIZED_PONG,
        }
    }

    fn encode(&self) -> [u8; BODY_LENGTH] {
        let mut out = [0; BODY_LENGTH];
        match self {
            Self::Ping(ping) => {
                out[..8].copy_from_slice(&ping.transaction.to_be_bytes());
                let flags = [(ping.opened.is_some(), OPENED), (ping.birthday, BIRTHDAY), (ping.selected, SELECTED)];
                out[8] = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum();
                out[12..16].copy_from_slice(&ping.round.to_be_bytes());
                out[16..20].copy_from_slice(&ping.opened.unwrap_or_default().to_be_bytes());
            }
            Self::Pong(pong) => {
                let ip = match pong.seen.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                out[..8].copy_from_slice(&pong.transaction.to_be_bytes());
                out[8..24].copy_from_slice(&ip.octets());
                out[24..26].copy_from_slice(&pong.seen.port().to_be_bytes());
            }
            Self::SizedPing(sized) | Self::SizedPong(sized) => {
                out[..8].copy_from_slice(&sized.transaction.to_be_bytes());
                out[8..10].copy_from_slice(&sized.length.to_be_bytes());
            }
        }
        out
    }

    /// The rest is zero today and ignored, so that later versions can use it.
    fn decode(kind: u8, body: &[u8; BODY_LENGTH]) -> Self {
        let transaction = u64::from_be_bytes(std::array::from_fn(|index| body[index]));
        let sized = SizeCheck { transaction, length: u16::from_be_bytes([body[8], body[9]]) };
        match kind {
            PING => {
                let round = u32::from_be_bytes(std::array::from_fn(|index| body[12 + index]));
                let digest = u32::from_be_bytes(std::array::from_fn(|index| body[16 + index]));
                let is = |flag| body[8] & flag != 0;
                let opened = is(OPENED).then_some(digest);
                Self::Ping(Ping { transaction, opened, birthday: is(BIRTHDAY), selected: is(SELECTED), round })
            }
            SIZED_PING => Self::SizedPing(sized),
            SIZED_PONG => Self::SizedPong(sized),
            _ => {
                let ip: [u8; 16] = std::array::from_fn(|index| body[8 + index]);
                let ip = IpAddr::from(Ipv6Addr::from(ip)).to_canonical();
                let seen = SocketAddr::new(ip, u16::from_be_bytes([body[24], body[25]]));
                Self::Pong(Pong { transaction, seen })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    struct Pair {
        key: ProbeKey,
        other_key: ProbeKey,
        a: SiteId,
        b: SiteId,
        rng: StdRng,
    }

    fn pair() -> Pair {
        let (a, b) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
        let (a_public, b_public) = (PublicKey::from(&a), PublicKey::from(&b));
        Pair {
            key: ProbeKey::new(&a, &a_public, &b_public).unwrap(),
            other_key: ProbeKey::new(&b, &b_public, &a_public).unwrap(),
            a: SiteId::of(&a_public),
            b: SiteId::of(&b_public),
            rng: StdRng::seed_from_u64(1),
        }
    }

    fn probes() -> Vec<Probe> {
        let seen = ["192.0.2.7:65535", "[2001:db8::7]:1"].map(|at| at.parse().unwrap());
        let ping = Ping { transaction: u64::MAX, opened: Some(9), birthday: false, selected: true, round: 7 };
        let mut probes =
            vec![Probe::Ping(ping), Probe::Ping(Ping { opened: None, birthday: true, selected: false, ..ping })];
        probes.extend(seen.map(|seen| Probe::Pong(Pong { transaction: 3, seen })));
        let sized = SizeCheck { transaction: 4, length: PROBE_LENGTH as u16 };
        probes.extend([Probe::SizedPing(sized), Probe::SizedPong(SizeCheck { length: 9000, ..sized })]);
        probes
    }

    #[test]
    fn both_sites_have_the_same_key() {
        let mut pair = pair();
        for probe in probes() {
            let bytes = pair.key.seal(pair.b, pair.a, &probe, &mut pair.rng);
            let envelope = Envelope::parse(&bytes).unwrap();
            assert_eq!((envelope.receiver, envelope.sender), (pair.b, pair.a));
            assert_eq!(pair.other_key.open(&envelope), Ok(probe));
        }
    }

    #[test]
    fn every_bit_counts_and_every_length_but_one_is_refused() {
        let mut pair = pair();
        let bytes = pair.key.seal(pair.b, pair.a, &probes()[0], &mut pair.rng);
        for bit in 0..PROBE_LENGTH * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let opened = Envelope::parse(&damaged).and_then(|envelope| pair.other_key.open(&envelope));
            assert!(matches!(opened, Err(ProbeReject::NotProbe | ProbeReject::NotAuthentic)), "bit {bit}");
        }
        for length in 0..PROBE_LENGTH {
            let expected = if length < 4 { ProbeReject::NotProbe } else { ProbeReject::Length };
            assert_eq!(Envelope::parse(&bytes[..length]).unwrap_err(), expected);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(Envelope::parse(&longer).unwrap_err(), ProbeReject::Length);
        assert_eq!(Envelope::parse(&vec![FIRST_BYTE; 65_536]).unwrap_err(), ProbeReject::NotProbe);
    }

    #[test]
    fn a_sized_ping_is_as_long_as_it_says_or_refused() {
        let mut pair = pair();
        for (length, received, expected) in [
            (PROBE_LENGTH, PROBE_LENGTH, None),
            (1472, 1472, None),
            (9000, 9000, None),
            (1472, 1471, Some(ProbeReject::Length)),
            (1472, 1473, Some(ProbeReject::Length)),
            (1472, PROBE_LENGTH, Some(ProbeReject::Length)),
            (9001, 9001, Some(ProbeReject::Length)),
            (91, PROBE_LENGTH, Some(ProbeReject::Length)),
        ] {
            let probe = Probe::SizedPing(SizeCheck { transaction: 1, length: length as u16 });
            let mut bytes = pair.key.seal(pair.b, pair.a, &probe, &mut pair.rng).to_vec();
            bytes.resize(received, 0xa5);
            let opened = Envelope::parse(&bytes).and_then(|envelope| pair.other_key.open(&envelope));
            assert_eq!(opened, expected.map_or(Ok(probe), Err), "{length} sent, {received} received");
        }
    }

    #[test]
    fn every_byte_of_the_padding_counts() {
        let mut pair = pair();
        let ping = SizeCheck { transaction: 1, length: 1472 };
        let bytes = pair.key.seal_sized(pair.b, pair.a, ping, &mut pair.rng);
        let open = |bytes: &[u8]| pair.other_key.open(&Envelope::parse(bytes).unwrap());
        assert_eq!(open(&bytes), Ok(Probe::SizedPing(ping)));
        for at in PROBE_LENGTH..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(open(&damaged), Err(ProbeReject::NotAuthentic), "byte {at}");
        }
    }

    #[test]
    fn a_key_of_low_order_gives_no_probe_key() {
        let a = StaticSecret::from([1; 32]);
        assert!(ProbeKey::new(&a, &PublicKey::from(&a), &PublicKey::from([0; 32])).is_none());
    }
}
