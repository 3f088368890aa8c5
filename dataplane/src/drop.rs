//! Why packets are dropped, and how many: a counter for every reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::work;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident = $name:literal,)+) => {
        /// The reason for which a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $reason,)+
        }

        impl DropReason {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$reason,)+];

            /// The name by which `status` and the metrics show it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$reason => $name,)+
                }
            }
        }
    };
}

reasons! {
    /// WAN: shorter than any WireGuard message, or a data message too short for its tag.
    Truncated = "truncated",
    /// A packet larger than a frame.
    Oversized = "oversized",
    /// WAN: no session has this receiver index.
    UnknownSession = "unknown-session",
    /// The session is older or has carried more messages than WireGuard allows.
    ExpiredSession = "expired-session",
    /// WAN: the AEAD did not verify.
    BadTag = "bad-tag",
    /// WAN: the counter was seen before, or is too old for the window.
    Replayed = "replayed",
    /// The inner packet is neither a sound IPv4 nor a sound IPv6 packet.
    BadInner = "bad-inner",
    /// WAN: the inner source is not among the peer's allowed IPs.
    SpoofedSource = "spoofed-source",
    /// WAN: the inner destination is neither this site's nor the gateway's own, and other sites may not pass through.
    Transit = "transit",
    /// The firewall's rules, or what a coordinator lets the peer reach, do not accept it.
    FilterDenied = "filter-denied",
    /// Firewall: a later fragment without an accepted flow, or a first one with a truncated transport header.
    FilterFragment = "filter-fragment",
    /// Firewall: a new flow, when there are too many.
    FilterFull = "filter-full",
    /// Firewall: the headers behind IP's are truncated, or there are too many.
    FilterMalformed = "filter-malformed",
    /// RFC 6040: congestion experienced in the outer header of a packet whose inner header cannot carry it.
    Congestion = "congestion",
    /// LAN: no peer's allowed IPs hold the destination.
    NoPeer = "no-peer",
    /// LAN: no peer's allowed IPs hold the destination, which is a multicast group: the kernel announces itself to some
    /// groups whenever the tun device comes up.
    NoPeerMulticast = "no-peer-multicast",
    /// LAN: the peer has no endpoint to send to.
    NoEndpoint = "no-endpoint",
    /// TTL or hop limit ran out.
    HopLimit = "hop-limit",
    /// Larger than the tunnel's MTU; the sender was told where required.
    TooBig = "too-big",
    /// `WanRate`: too many packets waited, and this was one of the flow with the most; or the worker stopped.
    ShaperFull = "shaper-full",
    /// The queue to the slow path was full.
    SlowPathFull = "slow-path-full",
    /// No free frame.
    NoFrame = "no-frame",
    /// The device's transmit queue was full.
    TransmitFull = "transmit-full",
    /// The device refused the packet.
    TransmitError = "transmit-error",
    /// AF_XDP, lost by the kernel: the receive ring was full, since the worker did not take packets in time.
    RingFull = "xdp-ring-full",
    /// AF_XDP, lost by the kernel: no free frame was in the fill ring, since the worker did not give any back in time.
    /// For a zero-copy socket, the driver's failed attempts, of which there may be fewer than lost packets.
    FillRingEmpty = "xdp-fill-ring-empty",
    /// AF_XDP, lost by the kernel: it did not fit a frame, or the socket refused it.
    SocketRefused = "xdp-refused",
    /// AF_XDP, lost by the kernel: a descriptor of ours was not valid.
    InvalidDescriptor = "xdp-invalid-descriptor",
    /// TUN or LAN: headers or checksum offload that do not fit the packet.
    BadOffload = "bad-offload",
}

/// A worker's drop counters. One thread adds, any may read.
#[derive(Debug)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one packet.
    #[inline]
    pub fn count(&self, reason: DropReason) {
        self.count_many(reason, 1);
    }

    /// Counts several packets.
    #[inline]
    pub fn count_many(&self, reason: DropReason, packets: u64) {
        work::add(&self.0[reason as usize], packets);
    }

    /// How many packets were dropped for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }
}
