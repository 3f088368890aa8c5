//! What is behind the headers of IP: the transport protocol, behind IPv6's extension headers, and whether the packet is
//! a fragment. Packets come from strangers, and quoted packets may end anywhere.

use crate::inner::{HOP_BY_HOP, ICMP, ICMPV6, TCP, UDP};

/// What is behind the IP headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport<'p> {
    pub(crate) protocol: u8,
    /// From the beginning of its header.
    pub(crate) payload: &'p [u8],
    /// Set if the packet is a fragment.
    pub(crate) fragment: Option<Fragment>,
    /// Where a routing header of IPv6 leads in the end, if the packet has not been there yet: the checksum is that of a
    /// packet to this address (RFC 8200, section 8.1).
    pub(crate) last_destination: Option<&'p [u8; 16]>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    /// In units of eight bytes.
    pub(crate) offset: u16,
}

impl Transport<'_> {
    /// Whether its header is present: not in a fragment other than the first.
    #[inline]
    pub(crate) fn begins(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }

    /// Whether it is an ICMP error about a packet of this IP version. Possible errors count too: ICMP without its type,
    /// as in a fragment other than the first, and unknown types.
    #[inline]
    pub(crate) fn may_be_icmp_error(&self, v6: bool) -> bool {
        let kind = self.payload.first().filter(|_| self.begins());
        match (self.protocol, v6, kind) {
            (ICMP, false, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12 | 19..),
            (ICMPV6, true, Some(kind)) => *kind < 128,
            (ICMP, false, None) | (ICMPV6, true, None) => true,
            _ => false,
        }
    }
}

/// Reads the headers behind the first `header` bytes, which the packet has; `None` if they are truncated.
#[inline(always)]
pub(crate) fn transport(packet: &[u8], header: usize) -> Option<Transport<'_>> {
    let payload = packet.get(header..)?;
    if packet[0] >> 4 == 6 {
        return match packet[6] {
            protocol @ (TCP | UDP | ICMPV6) => {
                Some(Transport { protocol, payload, fragment: None, last_destination: None })
            }
            next => behind_extensions(payload, next),
        };
    }
    let word = u16::from_be_bytes([packet[6], packet[7]]);
    // More fragments, or an offset.
    let fragment = (word & 0x3fff != 0).then_some(Fragment { offset: word & 0x1fff });
    Some(Transport { protocol: packet[9], payload, fragment, last_destination: None })
}

/// Goes over IPv6's extension headers (RFC 8200, section 4): all of them, as the kernel and hosts do. Each takes at
/// least eight bytes, so the packet's length is the limit.
#[inline(never)]
fn behind_extensions(mut payload: &[u8], mut protocol: u8) -> Option<Transport<'_>> {
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;

    let mut fragment = None;
    let mut last_destination = None;
    loop {
        // Of segment routing (RFC 8754) and mobile hosts (RFC 6275): in both it is the header's first address.
        if let (ROUTING, [_, 2..=255, 2 | 4, 1..=255, _, _, _, _, addresses @ ..]) = (protocol, payload) {
            last_destination = last_destination.or(addresses.first_chunk());
        }
        let len = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => usize::from(*payload.get(1)?) * 8 + 8,
            FRAGMENT => {
                let h: &[u8; 8] = payload.first_chunk()?;
                let word = u16::from_be_bytes([h[2], h[3]]);
                // Neither an offset nor more to come: the whole packet (RFC 6946).
                if word & 0xfff9 != 0 {
                    fragment = Some(Fragment { offset: word >> 3 });
                }
                8
            }
            _ => return Some(Transport { protocol, payload, fragment, last_destination }),
        };
        protocol = *payload.first()?;
        payload = payload.get(len..)?;
        // A fragment with an offset has no further headers: it begins in the middle of the packet.
        if fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Some(Transport { protocol, payload, fragment, last_destination });
        }
    }
}
