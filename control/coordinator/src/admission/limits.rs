//! The limits on clients that have proven nothing yet, on one screen.

use std::time::Duration;

/// Most connections without a proof from unknown sources. Each takes some 50 kB of TLS and HTTP
/// buffers.
pub const STRANGER_SLOTS: usize = 1024;
/// Places in addition to these, for sources from which a site proved itself lately.
pub const KNOWN_SLOTS: usize = 512;
/// For how long a source is known.
pub const KNOWN_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Most sites whose source is remembered; more than there can be at a time.
pub const KNOWN_LIMIT: usize = 32_768;

/// How long a connection has from TCP to its proof, TLS and HTTP included, while no more than half of the slots
/// are taken.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long when all are taken; in between it shrinks with the slots that are left.
pub const PATIENCE_WHEN_FULL: Duration = Duration::from_secs(3);

/// A wrong proof or an invalid enrolment key is answered at once this many times in a row...
pub const FAILURE_BURST: u32 = 10;
/// ...and once more after each of these; others wait for their answer, and hold their slot meanwhile. A right
/// proof never waits.
pub const FAILURE_INTERVAL: Duration = Duration::from_secs(3);
/// Most that an answer waits.
pub const FAILURE_DELAY: Duration = Duration::from_secs(5);

/// Connections of a site in a row, and how long until it may have one more.
pub const RECONNECT_BURST: u32 = 20;
/// See [`RECONNECT_BURST`].
pub const RECONNECT_INTERVAL: Duration = Duration::from_secs(3);
/// Changes of a site's subnets in a row, each a write to the disk and news for its peers.
pub const SUBNET_CHANGE_BURST: u32 = 10;
/// How long until it may change them once more.
pub const SUBNET_CHANGE_INTERVAL: Duration = Duration::from_secs(60);
/// Messages of a site in a row, over however many connections, and how long until it may send one more. It
/// speaks when its addresses change.
pub const MESSAGE_BURST: u32 = 20;
/// See [`MESSAGE_BURST`].
pub const MESSAGE_INTERVAL: Duration = Duration::from_secs(2);

/// Most prefixes whose rates are kept.
pub const PREFIXES: usize = 65_536;

/// A kind of prefix that one party may be given.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// Its length in bits.
    pub length: u8,
    /// How many of its connections weigh as much as one of a single address.
    pub hosts: u32,
}

/// From the one address to the widest prefix that one party is likely to have.
pub const V4: [Level; 2] = [Level { length: 32, hosts: 1 }, Level { length: 24, hosts: 4 }];
/// A host has a whole /64; sites are given a /56 or a /48.
pub const V6: [Level; 3] =
    [Level { length: 64, hosts: 1 }, Level { length: 56, hosts: 2 }, Level { length: 48, hosts: 4 }];

/// How often something may happen, for one address.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// How many times in a row.
    pub burst: u32,
    /// The time after which it may happen once more.
    pub interval: Duration,
}

/// TLS handshakes of one address; a wider prefix has the rate once for each of its [`Level::hosts`].
pub const HANDSHAKES: Rate = Rate { burst: 100, interval: Duration::from_millis(20) };
/// Lines in the log about one address that has proven nothing.
pub const LINES: Rate = Rate { burst: 5, interval: Duration::from_secs(60) };
/// STUN answers to one address that are larger than their question.
pub const LARGER_ANSWERS: Rate = Rate { burst: 10, interval: Duration::from_millis(200) };
/// Wrong proofs of one address.
pub const FAILURES: Rate = Rate { burst: FAILURE_BURST, interval: FAILURE_INTERVAL };
