//! A gateway's binding at one relay: establishes it, renews it, and notices when the relay is silent.

use std::time::{Duration, Instant};

use x25519_dalek::{PublicKey, StaticSecret};

use super::binding::BindKey;
use super::message::{Answer, BIND_LENGTH, Bind};
use crate::cookie::MacBytes;
use crate::path::SiteId;

/// How often a binding is renewed. This also keeps the NAT's mapping towards the relay alive (RFC 4787: at least two
/// minutes; in practice 30 s).
pub const RENEW_EVERY: Duration = Duration::from_secs(20);
/// How long to wait for an answer at first; it doubles up to [`RENEW_EVERY`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Unanswered renewals after which the relay counts as dead.
pub const SILENT_RENEWALS: u32 = 3;
/// Challenges that are answered at once; after that, the next message waits until it is due.
const CHALLENGES_MAX: u32 = 3;

/// What an answer of the relay has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is a message to be sent: [`RelayClient::poll_transmit`].
    Asked,
    /// The binding holds; the answer came after this time.
    Bound {
        /// The time from the message to its answer.
        round_trip: Duration,
    },
}

/// The gateway's side of a binding.
pub struct RelayClient {
    site: SiteId,
    key: BindKey,
    cookie: MacBytes,
    sent: Option<Instant>,
    due: Instant,
    unanswered: u32,
    challenges: u32,
    bound_until: Option<Instant>,
}

impl RelayClient {
    /// A binding of the site with this private key at the relay with that public key; the first message is due at once.
    /// `None` when the relay's key is of low order.
    #[must_use]
    pub fn new(now: Instant, private_key: &StaticSecret, relay: &PublicKey) -> Option<Self> {
        let site = SiteId::of(&PublicKey::from(private_key));
        Some(Self {
            site,
            key: BindKey::new(private_key, relay, site, relay)?,
            cookie: MacBytes::default(),
            sent: None,
            due: now,
            unanswered: 0,
            challenges: 0,
            bound_until: None,
        })
    }

    /// The message to be sent to the relay, if one is due.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<[u8; BIND_LENGTH]> {
        if now < self.due {
            return None;
        }
        if self.sent.is_none_or(|sent| sent + ANSWER_TIMEOUT <= now) {
            self.challenges = 0;
        }
        self.sent = Some(now);
        self.due = now + (ANSWER_TIMEOUT * 2u32.saturating_pow(self.unanswered.min(8))).min(RENEW_EVERY);
        self.unanswered = self.unanswered.saturating_add(1);
        Some(Bind::write(self.site, &self.cookie, |what| self.key.prove(what)))
    }

    /// When [`RelayClient::poll_transmit`] next has something.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// Takes a datagram from the relay; `None` if it is not an answer of the relay, or not one that we wait for.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Option<Progress> {
        let sent = self.sent?;
        match Answer::read(datagram, self.site)? {
            Answer::Challenge { cookie } => {
                // Anybody could have sent this: it costs us one message, and only while we wait for an answer.
                self.challenges += 1;
                if self.challenges > CHALLENGES_MAX || cookie == self.cookie {
                    return None;
                }
                (self.cookie, self.due, self.unanswered) = (cookie, now, self.unanswered.saturating_sub(1));
                Some(Progress::Asked)
            }
            Answer::Bound { cookie, seconds, proof, proven } => {
                if cookie != self.cookie || !self.key.proves(proven, &proof) {
                    return None;
                }
                let lifetime = Duration::from_secs(u64::from(seconds));
                (self.sent, self.unanswered, self.challenges) = (None, 0, 0);
                (self.due, self.bound_until) = (now + RENEW_EVERY.min(lifetime / 3), Some(now + lifetime));
                Some(Progress::Bound { round_trip: now.duration_since(sent) })
            }
        }
    }

    /// Asks again at once, as after a change of the network.
    pub fn renew(&mut self, now: Instant) {
        (self.due, self.unanswered, self.challenges) = (now, 0, 0);
    }

    /// Whether the relay forwards to us, as far as we know.
    #[must_use]
    pub fn is_bound(&self, now: Instant) -> bool {
        self.bound_until.is_some_and(|until| until > now) && self.unanswered <= SILENT_RENEWALS
    }
}
