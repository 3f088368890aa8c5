//! What both sides of the kernel agree on: the steering decision, and the types and names of the
//! BPF maps through which user space feeds it.
//!
//! [`steer_wan`] and [`steer_lan`] are pure: a frame and a configuration go in, a named verdict comes out. The XDP
//! programs in `ebpf/steer` only supply the frame, the map look-ups and the redirect; [`BenchFilter`] is what the
//! benchmark uses in their place. [`IpHeader`] is how all of Penstock reads IP. The crate owns no state, allocates
//! nothing and has no dependencies, so it compiles for the BPF target and the host alike, and what the host tests is
//! what the kernel runs.

#![no_std]
#![forbid(unsafe_code)]

mod bench;
mod frame;
mod ip;
mod maps;
mod steer;
mod verdict;

pub use bench::BenchFilter;
pub use frame::{ETHERNET_LEN, Unread};
pub use ip::IpHeader;
pub use maps::{
    ADDRESS_BITS, AddressKey, BENCH_IP_PROGRAM, BENCH_UDP_PROGRAM, COUNTER_SLOTS, COUNTERS, LAN_CONFIG, LAN_PROGRAM,
    LOCAL, LanConfig, MAX_LOCAL, MAX_PREFIXES, MAX_QUEUES, MAX_SHIFT, OWN_SUBNET, OuterFamily, PREFIXES, REDIRECTED,
    SHIFT_LEN, SOCKETS, STAYS_LOCAL, WAN_CONFIG, WAN_PROGRAM, WanConfig, address_key, ethernet_offset, prefix_bits,
};
pub use steer::{TRANSPORT_MIN_LEN, steer_lan, steer_wan};
pub use verdict::{LanVerdict, Unparsed, WanVerdict};
