//! One Binding request, repeated until it is answered or given up.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use rand::RngCore;

use super::Query;
use super::message::{Change, Message, TransactionId, decode, encode_request, encode_request_for_port};

/// Time before the first repetition. RFC 8489 (6.2.1) asks for half a second where nothing is known about the path;
/// starting with half of that costs one more small datagram on slow paths.
const RETRANSMISSION_TIMEOUT: Duration = Duration::from_millis(250);
/// The time doubles up to this.
const MAX_RETRANSMISSION_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a request is sent. RFC 8489 sends it 7 times over 39 s; a filtering test that waits for an answer that
/// never comes cannot take so long. With one datagram in ten lost, this misses one answer in 20,000.
const TRANSMISSIONS: u32 = 6;
/// The wait after the last request.
const LAST_WAIT: Duration = Duration::from_millis(750);

/// The state of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Waiting,
    Answered { mapped: SocketAddr, other: Option<SocketAddr> },
    Refused,
    Silence,
}

pub(crate) struct Transaction {
    id: TransactionId,
    to: SocketAddr,
    ask: Ask,
    sent: u32,
    due: Instant,
    pub outcome: Outcome,
}

/// What is asked of the server.
enum Ask {
    AnswerFrom(Change),
    AnswerAt(NonZeroU16),
}

impl Transaction {
    pub fn new(now: Instant, to: SocketAddr, change: Change, rng: &mut impl RngCore) -> Self {
        Self::begin(now, to, Ask::AnswerFrom(change), rng)
    }

    /// The answer is to go to `port` of ours.
    pub fn for_port(now: Instant, to: SocketAddr, port: NonZeroU16, rng: &mut impl RngCore) -> Self {
        Self::begin(now, to, Ask::AnswerAt(port), rng)
    }

    fn begin(now: Instant, to: SocketAddr, ask: Ask, rng: &mut impl RngCore) -> Self {
        let mut id = TransactionId::default();
        rng.fill_bytes(&mut id);
        Self { id, to, ask, sent: 0, due: now, outcome: Outcome::Waiting }
    }

    pub fn to(&self) -> SocketAddr {
        self.to
    }

    pub fn is_mine(&self, transaction: &TransactionId) -> bool {
        self.id == *transaction
    }

    pub fn is_over(&self) -> bool {
        self.outcome != Outcome::Waiting
    }

    pub fn timeout(&self) -> Option<Instant> {
        (!self.is_over()).then_some(self.due)
    }

    /// Takes an answer; other datagrams are left to others. The random transaction id is what tells an answer from a
    /// forgery (RFC 8489, section 6.3.4): the sender's address cannot, since it may be the server's other one.
    pub fn handle(&mut self, datagram: &[u8]) -> bool {
        let outcome = match decode(datagram) {
            Ok(Message::Success { transaction, mapped, other }) if self.is_mine(&transaction) => {
                Outcome::Answered { mapped, other }
            }
            Ok(Message::Error { transaction, .. }) if self.is_mine(&transaction) => Outcome::Refused,
            _ => return false,
        };
        if !self.is_over() {
            self.outcome = outcome;
        }
        true
    }

    /// The request, when it is due.
    pub fn poll(&mut self, now: Instant) -> Option<Query> {
        if self.is_over() || now < self.due {
            return None;
        }
        if self.sent == TRANSMISSIONS {
            self.outcome = Outcome::Silence;
            return None;
        }
        self.sent += 1;
        let wait = (RETRANSMISSION_TIMEOUT * self.sent).min(MAX_RETRANSMISSION_TIMEOUT);
        self.due = now + if self.sent == TRANSMISSIONS { LAST_WAIT } else { wait };
        let bytes = match self.ask {
            Ask::AnswerFrom(change) => encode_request(&self.id, change),
            Ask::AnswerAt(port) => encode_request_for_port(&self.id, port),
        };
        Some(Query { to: self.to, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::message::{encode_error, encode_success};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn begin() -> (Instant, Transaction) {
        let now = Instant::now();
        let to = "192.0.2.1:3478".parse().unwrap();
        (now, Transaction::new(now, to, Change::default(), &mut StdRng::seed_from_u64(1)))
    }

    #[test]
    fn silence_ends_after_three_seconds() {
        let (start, mut transaction) = begin();
        let mut sent = vec![];
        while let Some(at) = transaction.timeout() {
            if transaction.poll(at).is_some() {
                sent.push((at - start).as_millis());
            }
        }
        assert_eq!(sent, [0, 250, 750, 1250, 1750, 2250]);
        assert_eq!(transaction.outcome, Outcome::Silence);
    }

    #[test]
    fn only_its_own_answer_counts_and_only_the_first() {
        let (now, mut transaction) = begin();
        transaction.poll(now);
        let [mapped, other] = ["198.51.100.1:5", "198.51.100.1:6"].map(|at| at.parse().unwrap());
        assert!(!transaction.handle(&encode_success(&[0; 12], mapped, mapped, None)));
        assert!(!transaction.is_over());
        assert!(transaction.handle(&encode_success(&transaction.id.clone(), mapped, mapped, None)));
        assert!(transaction.handle(&encode_success(&transaction.id.clone(), other, other, None)));
        assert_eq!(transaction.outcome, Outcome::Answered { mapped, other: None });
        let (now, mut transaction) = begin();
        transaction.poll(now);
        assert!(transaction.handle(&encode_error(&transaction.id.clone(), 500)));
        assert_eq!(transaction.outcome, Outcome::Refused);
    }
}
