//! What a relay passes on to the sites bound to it: the authority's rollovers, revocations and lease certificate, so
//! that nobody can undo a revocation by keeping a gateway from its coordinator.
//!
//! ```text
//!  ask   0x50 8 1 0 | nonce 8 | digest 16 | offset 4 | 0 …              site → relay, 36 to 1200 bytes
//!  part  0x50 9 1 0 | nonce 8 | digest 16 | total 4 | offset 4 | text … relay → site
//! ```
//! The text is the documents, one per line. A part is never longer than the question for it, so a site that wants long
//! parts asks in long messages. Whoever has the same digest already gets only `total`. Nothing here is secret or
//! proven: the documents are signed, the relay answers only bound sites, and a site takes only what it has asked for.

use std::ops::Range;
use std::time::{Duration, Instant};

use rand::{CryptoRng, RngCore};

use crate::noise::hash;
use crate::path::FIRST_BYTE;
use crate::trust::Document;

/// The longest text: the longest list of revocations and all rollovers. The authority has no more than that.
pub const TEXT_LIMIT: usize = 256 << 10;
/// The length of a question that leaves room for text in its answer, in bytes: short enough for every path.
pub const LONG_ASK: usize = 1_200;
/// How often a relay is asked whether there is anything new.
pub const ASK_EVERY: Duration = Duration::from_secs(15);
/// How long to wait for an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How many times one part is asked for before the rest is put off.
pub const TRIES: u32 = 3;

const VERSION: u8 = 1;
const NONCE: Range<usize> = 4..12;
const DIGEST: Range<usize> = 12..28;
const ASK_OFFSET: Range<usize> = 28..32;
const TOTAL: Range<usize> = 28..32;
const PART_OFFSET: Range<usize> = 32..36;
/// Length of a short question and of an answer without text, whose question must be as long.
const HEADER: usize = 36;

type Digest = [u8; 16];

/// The second byte of each of our messages.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Ask = 8,
    Part = 9,
}

/// The relay's side: what it passes on.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    text: Vec<u8>,
    digest: Digest,
}

impl Board {
    /// Documents that do not fit are left out.
    pub fn new<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Self {
        let mut text = Vec::new();
        for document in documents {
            let line = document.to_string();
            if text.len() + line.len() < TEXT_LIMIT {
                text.extend_from_slice(line.as_bytes());
                text.push(b'\n');
            }
        }
        Self { digest: digest(&text), text }
    }

    /// The answer to a question, never longer than it; `None` if the datagram is not a question.
    pub fn answer(&self, ask: &[u8]) -> Option<Vec<u8>> {
        if ask.len() < HEADER || ask.len() > LONG_ASK || ask[..4] != [FIRST_BYTE, Kind::Ask as u8, VERSION, 0] {
            return None;
        }
        let offset = number(ask, ASK_OFFSET)?;
        let known = ask[DIGEST] == self.digest;
        let rest = if known { &[][..] } else { self.text.get(offset as usize..)? };
        let text = &rest[..rest.len().min(ask.len() - HEADER)];
        let mut part = vec![0; HEADER];
        part[..4].copy_from_slice(&[FIRST_BYTE, Kind::Part as u8, VERSION, 0]);
        part[NONCE].copy_from_slice(&ask[NONCE]);
        part[DIGEST].copy_from_slice(&self.digest);
        part[TOTAL].copy_from_slice(&(self.text.len() as u32).to_be_bytes());
        part[PART_OFFSET].copy_from_slice(&offset.to_be_bytes());
        part.extend_from_slice(text);
        Some(part)
    }
}

/// A site's side, for one relay.
pub struct Gossip {
    /// The digest of what was last received.
    known: Digest,
    /// What has arrived so far of something new.
    fetched: Vec<u8>,
    /// The digest of all of it.
    fetching: Option<Digest>,
    /// What the next answer must contain, while we wait for one.
    nonce: Option<[u8; 8]>,
    tries: u32,
    due: Instant,
    rng: Box<dyn CryptoRng + Send>,
}

impl Gossip {
    /// A site that has received nothing yet.
    pub fn new(now: Instant, rng: impl CryptoRng + Send + 'static) -> Self {
        Self {
            known: digest(&[]),
            fetched: Vec::new(),
            fetching: None,
            nonce: None,
            tries: 0,
            due: now,
            rng: Box::new(rng),
        }
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// The message to be sent to the relay, if one is due.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.due {
            return None;
        }
        self.tries += 1;
        if self.tries > TRIES {
            self.rest(now);
            return None;
        }
        let mut nonce = [0; 8];
        self.rng.fill_bytes(&mut nonce);
        let mut ask = vec![0; if self.fetching.is_some() { LONG_ASK } else { HEADER }];
        ask[..4].copy_from_slice(&[FIRST_BYTE, Kind::Ask as u8, VERSION, 0]);
        ask[NONCE].copy_from_slice(&nonce);
        ask[DIGEST].copy_from_slice(&self.known);
        ask[ASK_OFFSET].copy_from_slice(&(self.fetched.len() as u32).to_be_bytes());
        (self.nonce, self.due) = (Some(nonce), now + ANSWER_TIMEOUT);
        Some(ask)
    }

    /// Takes a datagram from the relay, if it is an answer; returns the documents once they are complete.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Option<Vec<Document>> {
        let header = datagram.get(..HEADER)?;
        if header[..4] != [FIRST_BYTE, Kind::Part as u8, VERSION, 0] || self.nonce? != header[NONCE] {
            return Some(Vec::new()).filter(|_| header[..2] == [FIRST_BYTE, Kind::Part as u8]);
        }
        let (total, offset) = (number(header, TOTAL)? as usize, number(header, PART_OFFSET)? as usize);
        let digest: Digest = header[DIGEST].try_into().ok()?;
        (self.nonce, self.tries) = (None, 0);
        if digest == self.known || total > TEXT_LIMIT {
            self.rest(now);
            return Some(Vec::new());
        }
        if self.fetching != Some(digest) {
            // There is something new, and this part of it was not asked for, or only by chance.
            (self.fetching, self.due) = (Some(digest), now);
            self.fetched.clear();
        } else if offset == self.fetched.len() && datagram.len() > HEADER {
            self.fetched.extend_from_slice(&datagram[HEADER..]);
            self.due = now;
        } else {
            self.rest(now);
            return Some(Vec::new());
        }
        if self.fetched.len() < total {
            return Some(Vec::new());
        }
        let text = std::mem::take(&mut self.fetched);
        self.rest(now);
        if self::digest(&text) != digest {
            return Some(Vec::new());
        }
        self.known = digest;
        // Documents that only a newer relay knows are ignored.
        let text = String::from_utf8(text).unwrap_or_default();
        Some(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Asks nothing more until the next time.
    fn rest(&mut self, now: Instant) {
        self.fetched.clear();
        (self.fetching, self.nonce, self.tries, self.due) = (None, None, 0, now + ASK_EVERY);
    }
}

fn digest(text: &[u8]) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash(&[b"penstock gossip v1", text])[..16]);
    digest
}

fn number(bytes: &[u8], at: Range<usize>) -> Option<u32> {
    bytes.get(at)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::trust::{Authority, SigningKey, UnixTime};

    /// The documents of an authority that has revoked this many sites.
    fn documents(count: u16) -> Vec<Document> {
        let mut authority = Authority::found(SigningKey::generate(&mut StdRng::seed_from_u64(1)));
        let sites = (0..count).map(|number| {
            let mut key = [7; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            key.into()
        });
        authority.revoke(UnixTime(1), sites).unwrap()
    }

    /// Asks until there is nothing left to ask; returns what was received, and how many answers it took. `lose` says by
    /// number which answers are lost.
    fn converse(
        gossip: &mut Gossip,
        board: &Board,
        now: &mut Instant,
        lose: impl Fn(usize) -> bool,
    ) -> (Vec<Document>, usize) {
        let (mut heard, mut answers) = (Vec::new(), 0);
        while gossip.poll_timeout() < *now + ASK_EVERY / 2 {
            *now = gossip.poll_timeout().max(*now);
            let Some(ask) = gossip.poll_transmit(*now) else { continue };
            let answer = board.answer(&ask).unwrap();
            assert!(answer.len() <= ask.len(), "{} for {}", answer.len(), ask.len());
            answers += 1;
            if !lose(answers) {
                heard.extend(gossip.handle_datagram(*now, &answer).unwrap());
            }
        }
        (heard, answers)
    }

    fn gossip(now: Instant) -> Gossip {
        Gossip::new(now, StdRng::seed_from_u64(2))
    }

    #[test]
    fn what_is_new_is_fetched_once_and_known_after() {
        for count in [0, 1, 3, 4_000] {
            let (documents, mut now) = (documents(count), Instant::now());
            let board = Board::new(&documents);
            let mut site = gossip(now);
            let lose = |number: usize| number.is_multiple_of(3);
            assert!(converse(&mut site, &board, &mut now, lose).0 == documents, "{count}");
            now = site.poll_timeout();
            assert_eq!(converse(&mut site, &board, &mut now, |_| false), (vec![], 1), "{count}");
        }
        let (mut now, board) = (Instant::now(), Board::default());
        assert_eq!(converse(&mut gossip(now), &board, &mut now, |_| false).0, []);
    }

    #[test]
    fn a_relay_that_changes_its_mind_or_is_silent_costs_little() {
        let mut now = Instant::now();
        let (old, new) = (documents(500), documents(501));
        let boards = [Board::new(&old), Board::new(&new)];
        let mut site = gossip(now);
        for board in [0, 0, 0, 1, 1] {
            let ask = site.poll_transmit(now).unwrap();
            site.handle_datagram(now, &boards[board].answer(&ask).unwrap());
        }
        assert!(converse(&mut site, &boards[1], &mut now, |_| false).0 == new);
        now = site.poll_timeout();
        let (heard, asks) = converse(&mut site, &boards[0], &mut now, |_| true);
        assert_eq!((heard.len(), asks), (0, TRIES as usize));
    }

    #[test]
    fn only_answers_to_what_was_asked_are_taken() {
        let now = Instant::now();
        let documents = documents(3);
        let board = Board::new(&documents);
        let mut site = gossip(now);
        let ask = site.poll_transmit(now).unwrap();
        let answer = board.answer(&ask).unwrap();
        for at in NONCE {
            let mut forged = answer.clone();
            forged[at] ^= 1;
            assert_eq!(site.handle_datagram(now, &forged), Some(vec![]));
            assert!(site.fetching.is_none());
        }
        for length in 0..HEADER {
            assert_eq!(site.handle_datagram(now, &answer[..length]), None);
            assert_eq!(board.answer(&ask[..length]), None);
        }
        assert_eq!(site.handle_datagram(now, &[0x50; 100]), None, "a probe is not one of ours");
        assert!(site.handle_datagram(now, &answer).is_some() && site.fetching.is_some());
        // An answer that claims to have something and does not deliver it is not believed, and not waited for forever.
        let mut ask = site.poll_transmit(now).unwrap();
        let mut bent = board.answer(&ask).unwrap();
        *bent.last_mut().unwrap() ^= 1;
        assert_eq!(site.handle_datagram(now, &bent), Some(vec![]));
        assert_eq!(site.poll_timeout(), now + ASK_EVERY);
        ask[ASK_OFFSET].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(board.answer(&ask), None);
    }
}
