//! The only access to a received frame's bytes, and the Ethernet header.

/// Bytes of an Ethernet header without a tag: two addresses and the EtherType.
pub const ETHERNET_LEN: usize = 14;

const TAG_LEN: usize = 4;
/// The bits of a tag that name its VLAN.
const VLAN: u16 = 0x0fff;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_TAG: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_SERVICE_TAG: [u8; 2] = [0x88, 0xa8];

/// The bytes of a received frame that have not been read yet, from the Ethernet header on.
///
/// The host implements it for slices, the XDP programs for the packet pointers of their context. It is read front to
/// back in steps whose lengths the compiler knows, because without CAP_PERFMON the verifier allows only such lengths to
/// be added to a packet pointer.
pub trait Unread<'a>: Copy {
    /// The next `N` bytes and what follows them; `None` when fewer are left.
    fn take<const N: usize>(self) -> Option<(&'a [u8; N], Self)>;

    /// Whether at least `len` bytes are left.
    fn holds(self, len: usize) -> bool;
}

impl<'a> Unread<'a> for &'a [u8] {
    fn take<const N: usize>(self) -> Option<(&'a [u8; N], Self)> {
        self.split_first_chunk()
    }

    fn holds(self, len: usize) -> bool {
        self.len() >= len
    }
}

/// An Ethernet header, with at most one 802.1Q tag.
pub(crate) struct Ethernet<'a, U> {
    pub(crate) destination: &'a [u8; 6],
    /// The VLAN of the tag; 0 without one, and for a tag that has only a priority (IEEE 802.1Q, section 9.6).
    pub(crate) vlan: u16,
    pub(crate) ethertype: EtherType,
    pub(crate) payload: U,
}

/// What follows the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ipv4,
    Ipv6,
    /// Another 802.1Q tag, or an 802.1ad service tag.
    Tag,
    /// Something else, an IEEE 802.3 length included.
    Other,
}

/// Reads the Ethernet header and one tag if there is one. `None`: the frame ends inside them.
#[inline(always)]
pub(crate) fn parse<'a, U: Unread<'a>>(frame: U) -> Option<Ethernet<'a, U>> {
    let (header, rest) = frame.take::<ETHERNET_LEN>()?;
    let [destination @ .., _, _, _, _, _, _, high, low] = header;
    let ethertype = [*high, *low];
    if ethertype != ETHERTYPE_TAG {
        let ethertype = classify(ethertype);
        return Some(Ethernet { destination, vlan: 0, ethertype, payload: rest });
    }
    let ([control_high, control_low, high, low], payload) = rest.take::<TAG_LEN>()?;
    let vlan = u16::from_be_bytes([*control_high, *control_low]) & VLAN;
    let ethertype = classify([*high, *low]);
    Some(Ethernet { destination, vlan, ethertype, payload })
}

#[inline(always)]
fn classify(ethertype: [u8; 2]) -> EtherType {
    match ethertype {
        ETHERTYPE_IPV4 => EtherType::Ipv4,
        ETHERTYPE_IPV6 => EtherType::Ipv6,
        ETHERTYPE_TAG | ETHERTYPE_SERVICE_TAG => EtherType::Tag,
        _ => EtherType::Other,
    }
}
