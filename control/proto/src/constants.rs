//! Every limit and timer of the protocol on one screen.
//!
//! Sources: the WireGuard paper, section 6 ("Timers & Stateless UX"), and the kernel's `messages.h`,
//! `cookie.c` and `ratelimiter.c` where the paper leaves a number open.

use std::time::Duration;

/// A session asks for its successor after this many messages (paper 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A session carries no message with this counter or a higher one (paper 6.1).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// With AES-256-GCM, a session asks for its successor after this many blocks. A block is 16 bytes of plaintext, and
/// each message counts as one more. Full-size packets at 40 Gbit/s reach the limit within two minutes, before
/// [`REKEY_AFTER_TIME`].
pub const REKEY_AFTER_BLOCKS: u64 = 1 << 35;
/// With AES-256-GCM, a session seals no more blocks than this: an attacker who sees all of them has an advantage of
/// less than 2^-57 (draft-irtf-cfrg-aead-limits, section 5.1.1).
pub const REJECT_AFTER_BLOCKS: u64 = 1 << 36;
/// The initiator of a session asks for its successor once the session is this old (paper 6.2).
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A session older than this neither sends nor receives (paper 6.2).
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// An unanswered initiation is repeated after this time (paper 6.4).
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound of the random time added to [`REKEY_TIMEOUT`], so that two peers do not stay in lockstep.
pub const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(333);
/// A handshake is given up after this time (paper 6.4).
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Data received is answered within this time, with an empty packet if need be (paper 6.5).
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The secret behind our cookies changes at this age (paper 5.4.7).
pub const COOKIE_SECRET_LIFETIME: Duration = Duration::from_secs(120);
/// A received cookie is used for this much less than the secret's lifetime, to allow for the time it spent in transit.
pub const COOKIE_LATENCY: Duration = Duration::from_secs(5);

/// Of two initiations from one peer closer together than this, only the first is answered (kernel: 50 a second).
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// On a new path, an initiation that has gone unanswered for this long is sent again: a long round trip, and much more
/// than [`INITIATION_INTERVAL`].
pub const INITIATION_PATIENCE: Duration = Duration::from_millis(300);
/// For a peer that sends on a session we do not have, we start a handshake at most once in this time.
pub const CALL_INTERVAL: Duration = Duration::from_secs(1);
/// Initiation timestamps are rounded down to this many nanoseconds, so that they do not serve as a precise clock. The
/// largest power of two below [`INITIATION_INTERVAL`], as in the kernel.
pub const TIMESTAMP_GRANULARITY: u32 = 1 << 24;

/// Handshakes per second that one source may ask for while the gateway is under load.
pub const SOURCE_HANDSHAKES_PER_SECOND: u32 = 20;
/// Handshakes that one source may ask for at once while the gateway is under load.
pub const SOURCE_HANDSHAKE_BURST: u32 = 5;
/// A sustained rate of handshakes per second, from all sources, above which the gateway is under load. At 100 to 200 µs
/// each this is a tenth of a core.
pub const LOAD_HANDSHAKES_PER_SECOND: u32 = 500;
/// A burst of handshakes, from all sources, that does not yet count as load: all sites of a hub coming back at once.
pub const LOAD_BURST: u32 = 512;
/// The gateway remains under load for this long after the rate has fallen.
pub const LOAD_HOLD: Duration = Duration::from_secs(1);

/// The durations and counts that decide when things happen; the defaults are the protocol's own.
///
/// Only tests have a reason for other values: a peer with the real ones must still interoperate, and shorter ones cause
/// needless handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// See [`REKEY_AFTER_MESSAGES`].
    pub rekey_after_messages: u64,
    /// See [`REJECT_AFTER_MESSAGES`].
    pub reject_after_messages: u64,
    /// See [`REKEY_AFTER_BLOCKS`].
    pub rekey_after_blocks: u64,
    /// See [`REJECT_AFTER_BLOCKS`].
    pub reject_after_blocks: u64,
    /// See [`REKEY_AFTER_TIME`].
    pub rekey_after_time: Duration,
    /// See [`REJECT_AFTER_TIME`].
    pub reject_after_time: Duration,
    /// See [`REKEY_TIMEOUT`].
    pub rekey_timeout: Duration,
    /// See [`REKEY_TIMEOUT_JITTER`].
    pub rekey_timeout_jitter: Duration,
    /// See [`REKEY_ATTEMPT_TIME`].
    pub rekey_attempt_time: Duration,
    /// See [`KEEPALIVE_TIMEOUT`].
    pub keepalive_timeout: Duration,
    /// See [`COOKIE_SECRET_LIFETIME`].
    pub cookie_secret_lifetime: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            rekey_after_messages: REKEY_AFTER_MESSAGES,
            reject_after_messages: REJECT_AFTER_MESSAGES,
            rekey_after_blocks: REKEY_AFTER_BLOCKS,
            reject_after_blocks: REJECT_AFTER_BLOCKS,
            rekey_after_time: REKEY_AFTER_TIME,
            reject_after_time: REJECT_AFTER_TIME,
            rekey_timeout: REKEY_TIMEOUT,
            rekey_timeout_jitter: REKEY_TIMEOUT_JITTER,
            rekey_attempt_time: REKEY_ATTEMPT_TIME,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            cookie_secret_lifetime: COOKIE_SECRET_LIFETIME,
        }
    }
}

impl Timings {
    /// Age at which an initiator that only receives asks for the next session (165 s), so that the session exists
    /// before the keepalives it owes would be refused (paper 6.2).
    #[must_use]
    pub fn rekey_on_receive(&self) -> Duration {
        self.reject_after_time.saturating_sub(self.keepalive_timeout + self.rekey_timeout)
    }

    /// Age at which the responder asks for the next session because the initiator has not (170 s). The protocol lets
    /// either side initiate at any time; without this, traffic would pause at 180 s.
    #[must_use]
    pub fn responder_rekey(&self) -> Duration {
        self.reject_after_time.saturating_sub(2 * self.rekey_timeout)
    }

    /// How long data may go unanswered before a new handshake is tried (15 s, paper 6.5).
    #[must_use]
    pub fn unanswered(&self) -> Duration {
        self.keepalive_timeout + self.rekey_timeout
    }

    /// How long a received cookie is used (115 s).
    #[must_use]
    pub fn cookie_use(&self) -> Duration {
        self.cookie_secret_lifetime.saturating_sub(COOKIE_LATENCY)
    }
}
