//! Every limit and timer of path MTU discovery on one screen. Sizes are of whole outer IP packets, in bytes.

use std::time::Duration;

/// What every path is assumed to carry (BASE_PLPMTU of RFC 8899, section 5.1.2): the smallest MTU of IPv6.
pub const BASE: u16 = 1280;
/// The smallest MTU inside the tunnel, unless a smaller one is pinned, because IPv6 runs inside (RFC 8200, section 5).
pub const SMALLEST_INNER: u16 = 1280;
/// The sizes of known kinds of links, all tried at once: IPv6's minimum; the least that carries [`SMALLEST_INNER`] over
/// IPv6; tunnels; WireGuard in WireGuard; PPPoE over L2TP; 6in4 and GRE; PPPoE; Ethernet; jumbo frames.
pub const LADDER: [u16; 9] = [BASE, 1360, 1400, 1420, 1452, 1480, 1492, 1500, 9000];
/// Between two steps of the ladder, the size is found to within this many bytes: WireGuard's padding.
pub const GRAIN: u16 = 16;

/// A size that goes unanswered this many times is too large (MAX_PROBES of RFC 8899).
pub const CLIMB_ROUNDS: u8 = 3;
/// How many times the smallest probe is sent before the receiver is assumed not to know such probes.
pub const ASK_ROUNDS: u8 = 6;
/// How many times the size in use may go unanswered before it is given up. With 10 % loss in each direction that
/// happens once in half an hour for no reason, and then only by one step of the ladder until the next [`RAISE`].
pub const VERIFY_ROUNDS: u8 = 5;

/// How often the size in use is confirmed while data flows. Together with the rounds, a path that shrinks is noticed
/// within 2 s at round trips of up to 300 ms.
pub const CONFIRM: Duration = Duration::from_millis(500);
/// How often a larger size is tried while data flows (PMTU_RAISE_TIMER, 600 s in RFC 8899, which is too long for
/// somebody who has just repaired a link), and how often a receiver that did not answer is asked again.
pub const RAISE: Duration = Duration::from_secs(30);
/// A question during which the path was silent is repeated after this time.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a validated ICMP message counts where nothing can be probed (RFC 8201, section 4).
pub const HINT_LIFETIME: Duration = Duration::from_secs(600);
/// ICMP messages make us verify a path at once, but no more often than this.
pub const HINT_PACE: Duration = Duration::from_secs(1);

/// The least time that an answer is waited for, whatever the round trip was.
pub const WAIT_MIN: Duration = Duration::from_millis(150);
/// The most time that an answer is waited for.
pub const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long to wait while no round trip is known.
pub const WAIT_UNKNOWN: Duration = Duration::from_millis(300);
/// Answers that come later than this say nothing about the present path.
pub const ANSWER_LIFETIME: Duration = Duration::from_secs(5);
/// Probes of one path that may still be answered: two trials with all their rounds.
pub const MAX_OUTSTANDING: usize = 96;

/// Bytes of probes per second on one path. Confirming 9000 bytes takes 18,000, confirming 1500 takes 3,000.
pub const PATH_BYTES_PER_SECOND: u32 = 32_000;
/// Burst of the above. Searching for larger sizes may use half of it, confirming all.
pub const PATH_BURST: u32 = 128_000;
/// Bytes of probes per second on all paths together: a thousand busy ones of 1500 bytes, and a quarter as much for
/// searching.
pub const TOTAL_BYTES_PER_SECOND: u32 = 4_000_000;
/// Burst of the above.
pub const TOTAL_BURST: u32 = 2_000_000;
/// How long a round is put off when the limits leave no room for it.
pub const DEFER: Duration = Duration::from_millis(100);

/// The most links that may be set; further ones are ignored.
pub const MAX_LINKS: usize = 256;
