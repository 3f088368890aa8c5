//! Every limit and timer of path MTU discovery on one screen. Sizes are of whole outer IP packets, in bytes.

use std::time::Duration;

/// What every path is expected to carry (BASE_PLPMTU of RFC 8899, section 5.1.2): IPv6's smallest link.
pub const BASE: u16 = 1280;
/// The smallest MTU inside the tunnel, unless a smaller one is pinned: IPv6 runs inside (RFC 8200, section 5).
pub const SMALLEST_INNER: u16 = 1280;
/// The sizes of known kinds of links, tried all at once: IPv6's least; the least that carries
/// [`SMALLEST_INNER`] over IPv6; tunnels; WireGuard in WireGuard; PPPoE over L2TP; 6in4 and GRE; PPPoE; Ethernet;
/// jumbo frames.
pub const LADDER: [u16; 9] = [BASE, 1360, 1400, 1420, 1452, 1480, 1492, 1500, 9000];
/// Between two steps of the ladder the size is found to within so much: what WireGuard pads to.
pub const GRAIN: u16 = 16;

/// A size that is not answered so often is too large (MAX_PROBES of RFC 8899).
pub const CLIMB_ROUNDS: u8 = 3;
/// As often the smallest probe is sent until its receiver is taken for one that does not know such probes.
pub const ASK_ROUNDS: u8 = 6;
/// As often the size in use is not answered before it is given up: with 10 % loss each way once in half an hour
/// for no reason, and then only by one step of the ladder until the next [`RAISE`].
pub const VERIFY_ROUNDS: u8 = 5;

/// While data flows, the size in use is confirmed so often. With the rounds, a shrunken path is noticed within
/// 2 s at round trips up to 300 ms.
pub const CONFIRM: Duration = Duration::from_millis(500);
/// While data flows, a larger size is tried so often (PMTU_RAISE_TIMER, which RFC 8899 has at 600 s: too long for
/// who has repaired a link), and a receiver that did not answer is asked again.
pub const RAISE: Duration = Duration::from_secs(30);
/// A question whose path was silent is repeated after so long.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A validated ICMP message counts so long where nothing can be probed (RFC 8201, section 4).
pub const HINT_LIFETIME: Duration = Duration::from_secs(600);
/// ICMP messages make a path be verified at once no more often than this.
pub const HINT_PACE: Duration = Duration::from_secs(1);

/// An answer is waited for at least this long, whatever the round trip was.
pub const WAIT_MIN: Duration = Duration::from_millis(150);
/// And at most this long.
pub const WAIT_MAX: Duration = Duration::from_secs(1);
/// So long, while no round trip is known.
pub const WAIT_UNKNOWN: Duration = Duration::from_millis(300);
/// Answers that come later than this say nothing about the path of today.
pub const ANSWER_LIFETIME: Duration = Duration::from_secs(5);
/// Probes of one path whose answers may still come: two trials with all their rounds.
pub const MAX_OUTSTANDING: usize = 96;

/// Bytes of probes a second on one path. Confirming 9000 bytes takes 18,000, 1500 bytes 3,000.
pub const PATH_BYTES_PER_SECOND: u32 = 32_000;
/// Such bytes at once. Looking for larger sizes may use half of it, confirming all.
pub const PATH_BURST: u32 = 128_000;
/// Bytes of probes a second on all paths together: a thousand busy ones of 1500 bytes, and a quarter as much
/// for searching.
pub const TOTAL_BYTES_PER_SECOND: u32 = 4_000_000;
/// Such bytes at once.
pub const TOTAL_BURST: u32 = 2_000_000;
/// A round that the limits leave no room for is tried again after this time.
pub const DEFER: Duration = Duration::from_millis(100);

/// Links that may be told of; more are ignored.
pub const MAX_LINKS: usize = 256;
