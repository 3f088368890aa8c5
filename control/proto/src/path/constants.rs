//! Every limit and timer of the path agent on one screen.

use std::time::Duration;

/// Candidates that a peer may signal; more are ignored (the coordinator lets no more pass).
pub const MAX_CANDIDATES: usize = crate::coordination::limits::CANDIDATES_LIMIT;
/// Peer-reflexive candidates kept for a peer: one per NAT that it may come out of, and a spare.
pub const MAX_PEER_REFLEXIVE: usize = 4;
/// Relays that are kept alive; more are ignored.
pub const MAX_RELAYS: usize = 4;
/// Transactions of one candidate that may be answered: at the fastest rate, 3 s of them.
pub const MAX_OUTSTANDING: usize = 16;
/// Pings of one peer that are remembered so that a copy is not answered. A copy of an older one earns an
/// answer of its own size, or one of [`MAX_PEER_REFLEXIVE`] candidates that nobody answers from.
pub const REPLAY_MEMORY: usize = 256;

/// Pings a second, for all peers together: a thousand busy peers, and as many again for their rounds.
pub const PINGS_PER_SECOND: u32 = 2000;
/// Pings that may leave at once. Rounds may use half of it; keeping a chosen path alive may use all.
pub const PING_BURST: u32 = 2000;

/// Pings a second to one address, by all peers' candidates together, as long as it does not answer: a birthday attempt
/// and the rounds of two dozen peers.
pub const TARGET_PINGS_PER_SECOND: u32 = 200;
/// Such pings at once.
pub const TARGET_BURST: u32 = 1000;
/// Rounds in a row that a peer may cause by other addresses, or by rounds that it begins; then one for each
/// [`PathTimings::round_interval`].
pub const ROUND_BURST: u32 = 8;

/// Probes a second from one address that is nobody's candidate. 1 µs each.
pub const STRANGER_PROBES_PER_SECOND: u32 = 200;
/// Such probes at once.
pub const STRANGER_BURST: u32 = 200;

/// Sized pings of one peer that are answered a second: a trial's rounds, and to spare.
pub const SIZED_ANSWERS_PER_SECOND: u32 = 100;
/// Such answers at once.
pub const SIZED_ANSWER_BURST: u32 = 100;

/// Hops that the first probe to a NAT lives: through our own NAT, which thereby opens, and not up to the
/// peer's, which would take an early probe amiss (`conntrack` then maps the peer's answer to another port).
pub const OPENING_TTL: u8 = 2;

/// Extra sockets on the side whose NAT maps endpoint-dependently. With [`BIRTHDAY_PROBES`], of the 64,512
/// ports above 1023 at least one is hit with probability 1 − (1 − 256/64512)^1024 = 98.3 %. From the
/// tunnel's one socket it would be 1.6 %, and a sweep of all ports would take 64,512 probes, 11 minutes
/// at this rate, and as many entries in the other side's NAT: that is not done.
pub const BIRTHDAY_SOCKETS: u16 = 256;
/// Probes that the other side sends, each to another random port.
pub const BIRTHDAY_PROBES: u16 = 1024;

/// When things happen. Only tests and a configuration for odd networks have a reason for other values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathTimings {
    /// An idle path is probed this often, to hold mappings that live 30 s.
    pub keepalive: Duration,
    /// A path with traffic on it is probed this often.
    pub active: Duration,
    /// A path counts as with traffic for this long after something was sent.
    pub active_hold: Duration,
    /// The least time between two pings while answers are missing.
    pub retry: Duration,
    /// The longest such time, whatever the round trip: what bounds the time to detect death.
    pub retry_max: Duration,
    /// Pings in a row without an answer that make a path dead.
    pub dead_after: u32,
    /// A dead relay is tried this often.
    pub relay_retry: Duration,
    /// Probes of a round to each candidate are this far apart.
    pub check: Duration,
    /// A round sends checks for this long.
    pub checking: Duration,
    /// A round waits this long to hear that the peer has opened its NAT too, when a relay can tell it.
    pub opening: Duration,
    /// The same when there is no relay.
    pub opening_without_relay: Duration,
    /// Between the probes of two rounds. Longer than the 30 s that `conntrack` keeps what it has seen in
    /// one direction only, so that a NAT that took a probe amiss has forgotten it.
    pub round_interval: Duration,
    /// The interval doubles up to this one.
    pub round_interval_max: Duration,
    /// Between two probes of a birthday attempt: 100 a second.
    pub birthday_pace: Duration,
    /// Extra sockets are kept open this long for a hit: all probes, and 2 s.
    pub birthday_hold: Duration,
    /// A birthday attempt may be repeated after this time, whatever has changed meanwhile; it doubles if nothing has.
    pub birthday_interval: Duration,
}

impl Default for PathTimings {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(25),
            active: Duration::from_secs(1),
            active_hold: Duration::from_secs(3),
            retry: Duration::from_millis(400),
            retry_max: Duration::from_millis(600),
            dead_after: 6,
            relay_retry: Duration::from_secs(15),
            check: Duration::from_millis(250),
            checking: Duration::from_secs(3),
            opening: Duration::from_secs(3),
            opening_without_relay: Duration::from_secs(1),
            round_interval: Duration::from_secs(35),
            round_interval_max: Duration::from_secs(300),
            birthday_pace: Duration::from_millis(10),
            birthday_hold: Duration::from_millis(12_500),
            birthday_interval: Duration::from_secs(600),
        }
    }
}
