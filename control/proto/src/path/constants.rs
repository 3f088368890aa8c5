//! Every limit and timer of the path agent on one screen.

use std::time::Duration;

/// Candidates that a peer may signal; further ones are ignored (the coordinator lets no more through).
pub const MAX_CANDIDATES: usize = crate::coordination::limits::CANDIDATES_LIMIT;
/// Peer-reflexive candidates kept per peer: one per NAT that it may come out of, and a spare.
pub const MAX_PEER_REFLEXIVE: usize = 4;
/// Relays that are kept alive; further ones are ignored.
pub const MAX_RELAYS: usize = 4;
/// Transactions of one candidate that may still be answered: those of 3 s at the fastest rate.
pub const MAX_OUTSTANDING: usize = 16;
/// Pings of one peer that are remembered so that copies are not answered. A copy of an older one gets an answer of its
/// own size, or becomes one of [`MAX_PEER_REFLEXIVE`] candidates that nobody answers from.
pub const REPLAY_MEMORY: usize = 256;

/// Pings per second for all peers together: a thousand busy peers, and as many again for their rounds.
pub const PINGS_PER_SECOND: u32 = 2000;
/// Pings that may be sent at once. Rounds may use half of them; keeping a chosen path alive may use all.
pub const PING_BURST: u32 = 2000;

/// Pings per second to one address that does not answer, from all peers' candidates together: a birthday attempt and
/// the rounds of two dozen peers.
pub const TARGET_PINGS_PER_SECOND: u32 = 200;
/// Such pings at once.
pub const TARGET_BURST: u32 = 1000;
/// Rounds in a row that a peer may cause by changing its addresses or by starting rounds itself; after that, one per
/// [`PathTimings::round_interval`].
pub const ROUND_BURST: u32 = 8;

/// Probes per second from one address that is nobody's candidate. Each costs 1 µs.
pub const STRANGER_PROBES_PER_SECOND: u32 = 200;
/// Such probes at once.
pub const STRANGER_BURST: u32 = 200;

/// Sized pings of one peer that are answered per second: the rounds of a trial, with some to spare.
pub const SIZED_ANSWERS_PER_SECOND: u32 = 100;
/// Such answers at once.
pub const SIZED_ANSWER_BURST: u32 = 100;

/// Hops that the first probe to a NAT may take: through our own NAT, which it opens, but not as far as the peer's,
/// which must not see it this early (`conntrack` would then map the peer's answer to a different port).
pub const OPENING_TTL: u8 = 2;

/// Extra sockets on the side whose NAT has endpoint-dependent mapping. With [`BIRTHDAY_PROBES`], at least one of the
/// 64,512 ports above 1023 is hit with probability 1 − (1 − 256/64512)^1024 = 98.3 %. From the tunnel's single socket
/// it would be 1.6 %; and a sweep of all ports would take 64,512 probes, 11 minutes at this rate, and as many entries
/// in the other side's NAT, so that is not done.
pub const BIRTHDAY_SOCKETS: u16 = 256;
/// Probes that the other side sends, each to a different random port.
pub const BIRTHDAY_PROBES: u16 = 1024;

/// When things happen. Only tests and configurations for unusual networks have a reason for other values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathTimings {
    /// How often an idle path is probed, to keep mappings alive that live 30 s.
    pub keepalive: Duration,
    /// How often a path with traffic is probed.
    pub active: Duration,
    /// How long after something was sent a path still counts as having traffic.
    pub active_hold: Duration,
    /// The least time between two pings while answers are missing.
    pub retry: Duration,
    /// The longest such time, whatever the round trip: it bounds the time until a death is detected.
    pub retry_max: Duration,
    /// Unanswered pings in a row after which a path is dead.
    pub dead_after: u32,
    /// How often a dead relay is tried.
    pub relay_retry: Duration,
    /// Time between the probes of a round to each candidate.
    pub check: Duration,
    /// A round sends checks for this long.
    pub checking: Duration,
    /// How long a round waits to hear that the peer has opened its NAT too, when a relay can tell it.
    pub opening: Duration,
    /// The same without a relay.
    pub opening_without_relay: Duration,
    /// Time between the probes of two rounds. It is longer than the 30 s for which `conntrack` remembers what it has
    /// seen in one direction only, so that a NAT that saw a probe too early has forgotten it.
    pub round_interval: Duration,
    /// The longest interval; it doubles up to this.
    pub round_interval_max: Duration,
    /// Time between two probes of a birthday attempt: 100 a second.
    pub birthday_pace: Duration,
    /// How long extra sockets stay open for a hit: the time for all probes, and 2 s.
    pub birthday_hold: Duration,
    /// Time after which a birthday attempt may be repeated, whatever has changed meanwhile; it doubles if nothing has.
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
