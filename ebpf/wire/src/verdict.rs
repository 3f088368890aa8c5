//! Steering's possible decisions. Every verdict has a name and a per-CPU counter.

/// Why a frame has no IP header that steering could act on; it passes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// The frame ends inside a header.
    Truncated,
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Of a VLAN, which is a separate interface to the kernel.
    OtherVlan,
    /// More than one VLAN tag, or an 802.1ad service tag.
    DoubleTagged,
    /// The version field, or an IHL below 5, contradicts the EtherType.
    BadVersion,
    /// IPv4 with options.
    Options,
    /// The IP length is below its header's or beyond the end of the frame.
    BadLength,
}

/// Declares a verdict with its names and indices from one list.
macro_rules! verdicts {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All verdicts, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name under which the verdict is counted, in snake case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The verdict's slot in the map [`COUNTERS`](crate::COUNTERS).
            pub const fn index(self) -> u32 {
                self as u32
            }
        }

        impl From<Unparsed> for $name {
            #[inline(always)]
            fn from(reason: Unparsed) -> Self {
                match reason {
                    Unparsed::Truncated => Self::Truncated,
                    Unparsed::NotIp => Self::NotIp,
                    Unparsed::OtherVlan => Self::OtherVlan,
                    Unparsed::DoubleTagged => Self::DoubleTagged,
                    Unparsed::BadVersion => Self::BadVersion,
                    Unparsed::Options => Self::Options,
                    Unparsed::BadLength => Self::BadLength,
                }
            }
        }
    };
}

verdicts! {
    /// What happens to a frame received on the WAN interface. Only `Redirect` takes it out of the
    /// kernel's hands.
    WanVerdict {
        /// Transport data for us: to the receive queue's socket.
        Redirect = "redirect",
        /// Transport data for us, but the receive queue has no socket.
        NoSocket = "no_socket",
        /// The frame ends inside a header.
        Truncated = "truncated",
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip",
        /// Of a VLAN, which is a separate interface to the kernel.
        OtherVlan = "other_vlan",
        /// More than one VLAN tag, or an 802.1ad service tag.
        DoubleTagged = "double_tagged",
        /// The IP version, or an IHL below 5, contradicts the EtherType.
        BadVersion = "bad_version",
        /// IPv4 with options.
        Options = "options",
        /// The IP length contradicts the frame's, or the UDP length the IP packet's.
        BadLength = "bad_length",
        /// Part of a fragmented IPv4 packet.
        Fragment = "fragment",
        /// IPv6 with an extension header, fragments among them.
        Extension = "extension",
        /// A protocol other than UDP.
        NotUdp = "not_udp",
        /// A UDP port other than the tunnel's.
        OtherPort = "other_port",
        /// The tunnel's port at an address that is not ours.
        OtherAddress = "other_address",
        /// Less than the shortest transport message.
        TooShort = "too_short",
        /// Not transport data: handshakes, cookies, STUN, path probes.
        OtherType = "other_type",
    }
}

verdicts! {
    /// What happens to a frame received on a LAN interface. Only the two redirects take it out of
    /// the kernel's hands.
    LanVerdict {
        /// To the receive queue's socket, for a peer whose endpoint is IPv4.
        RedirectOverV4 = "redirect_over_v4",
        /// To the receive queue's socket, for a peer whose endpoint is IPv6.
        RedirectOverV6 = "redirect_over_v6",
        /// For a remote prefix, but the receive queue has no socket.
        NoSocket = "no_socket",
        /// For a remote prefix, but the driver leaves no room in front of the frame.
        NoHeadroom = "no_headroom",
        /// The frame ends inside a header.
        Truncated = "truncated",
        /// Another station's MAC address.
        OtherMac = "other_mac",
        /// Multicast or broadcast, by its MAC or its IP address.
        Multicast = "multicast",
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip",
        /// Of a VLAN, which is a separate interface to the kernel.
        OtherVlan = "other_vlan",
        /// More than one VLAN tag, or an 802.1ad service tag.
        DoubleTagged = "double_tagged",
        /// The IP version, or an IHL below 5, contradicts the EtherType.
        BadVersion = "bad_version",
        /// IPv4 with options.
        Options = "options",
        /// The IP length is below its header's or beyond the end of the frame.
        BadLength = "bad_length",
        /// IPv6 with hop-by-hop options, which every router on the way may have to read.
        HopByHop = "hop_by_hop",
        /// A destination no router forwards to: link-local, loopback, unspecified.
        NotForwardable = "not_forwardable",
        /// No remote prefix covers the destination, or a longer local one does.
        NotRemote = "not_remote",
        /// For a remote prefix, from an address outside this site's subnets.
        OtherSource = "other_source",
        /// For a remote prefix, but longer than the link carries: packets that a receive offload has merged are for the
        /// kernel to split again.
        Merged = "merged",
        /// Part of a fragmented packet: all parts go one way, or the kernel could not reassemble them.
        Fragment = "fragment",
        /// IPv4 longer than the tunnel's MTU that allows fragmentation, which is the kernel's work.
        NeedsFragmenting = "needs_fragmenting",
    }
}
