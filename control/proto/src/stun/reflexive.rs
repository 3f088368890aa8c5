//! The address at which one STUN server sees us, asked for again and again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::{CryptoRng, RngCore};

use super::Query;
use super::message::Change;
use super::transaction::{Outcome, Transaction};

/// How often the address is asked for. The shortest mappings in the field last 30 s, so this also keeps the mapping
/// alive (RFC 4787, section 4.3 asks for 2 minutes; many NATs give less).
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(25);

/// The server-reflexive address has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The new address; `None` when the server has become silent.
    pub address: Option<SocketAddr>,
}

/// Watches the address at which one server sees the tunnel's port.
pub struct Reflexive {
    server: SocketAddr,
    rng: Box<dyn CryptoRng + Send>,
    transaction: Transaction,
    next: Instant,
    known: Option<Option<SocketAddr>>,
    changed: Option<Changed>,
}

impl Reflexive {
    /// Asks `server` at once.
    pub fn new(now: Instant, server: SocketAddr, rng: impl CryptoRng + Send + 'static) -> Self {
        let mut rng: Box<dyn CryptoRng + Send> = Box::new(rng);
        let transaction = begin(now, server, &mut rng);
        Self { server, rng, transaction, next: now + REFRESH_INTERVAL, known: None, changed: None }
    }

    /// Asks again at once, because the network may have changed. Also to be called when a path dies.
    pub fn refresh(&mut self, now: Instant) {
        self.transaction = begin(now, self.server, &mut self.rng);
        self.next = now + REFRESH_INTERVAL;
    }

    /// The last known address.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.known.flatten()
    }

    /// Takes a datagram; returns whether it was an answer to a request of ours.
    pub fn handle_datagram(&mut self, datagram: &[u8]) -> bool {
        let mine = self.transaction.handle(datagram);
        self.settle();
        mine
    }

    /// Returns the request that is due. Call it until it returns `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Query> {
        if now >= self.next {
            self.refresh(now);
        }
        let query = self.transaction.poll(now);
        self.settle();
        query
    }

    /// The next change of the address.
    pub fn poll_changed(&mut self) -> Option<Changed> {
        self.changed.take()
    }

    /// When [`poll_transmit`](Self::poll_transmit) is next to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.transaction.timeout().map_or(self.next, |at| at.min(self.next))
    }

    fn settle(&mut self) {
        let address = match self.transaction.outcome {
            Outcome::Waiting => return,
            Outcome::Answered { mapped, .. } => Some(mapped),
            Outcome::Refused | Outcome::Silence => None,
        };
        if self.known != Some(address) {
            self.known = Some(address);
            self.changed = Some(Changed { address });
        }
    }
}

fn begin(now: Instant, server: SocketAddr, rng: &mut impl RngCore) -> Transaction {
    Transaction::new(now, server, Change::default(), rng)
}
