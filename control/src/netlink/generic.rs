//! What drivers report about an interface over generic netlink: the families `ethtool` and `netdev`
//! (`linux/ethtool_netlink.h`, `linux/netdev.h`), and offloads that are switched.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_NOMASK: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
const ETHTOOL_A_CHANNELS_RX_MAX: u16 = 2;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
/// The kernel refuses a nested attribute without this flag.
const NLA_F_NESTED: u16 = 0x8000;
/// Nested, and in network byte order.
const ATTRIBUTE_FLAGS: u16 = 0xc000;

/// The offloads of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Those that are on, under the kernel's names: `rx-lro`, `rx-gro-hw`, …
    pub active: BTreeSet<String>,
    /// Those that can be switched on and off.
    pub switchable: BTreeSet<String>,
}

/// The receive queues of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Queues in use that only receive.
    pub receive: u32,
    /// The most such queues that the hardware has.
    pub receive_most: u32,
    /// Queues in use that receive and send.
    pub combined: u32,
    /// The most such queues that the hardware has.
    pub combined_most: u32,
}

/// A socket for these requests, in the namespace in which it was opened.
pub struct Generic {
    socket: Socket,
    sequence: u32,
}

impl Generic {
    /// Opens the socket.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The offloads of an interface.
    ///
    /// # Errors
    /// There is no such interface, or the kernel does not know this request.
    pub fn offloads(&mut self, interface: u32) -> io::Result<Offloads> {
        let answer = self.ethtool(ETHTOOL_MSG_FEATURES_GET, interface, &[])?;
        let names = |kind| find(&answer, kind).map(bit_names).unwrap_or_default();
        Ok(Offloads { active: names(ETHTOOL_A_FEATURES_ACTIVE), switchable: names(ETHTOOL_A_FEATURES_HW) })
    }

    /// Switches these offloads of an interface on or off.
    ///
    /// # Errors
    /// As above, or CAP_NET_ADMIN is missing. A driver that did not do it causes no error: check with
    /// [`Self::offloads`].
    pub fn switch_offloads<'a>(
        &mut self,
        interface: u32,
        names: impl IntoIterator<Item = &'a str>,
        on: bool,
    ) -> io::Result<()> {
        let bit = |name: &str| {
            let mut bit = attribute(ETHTOOL_A_BITSET_BIT_NAME, &[name.as_bytes(), b"\0"].concat());
            if on {
                bit.extend(attribute(ETHTOOL_A_BITSET_BIT_VALUE, &[]));
            }
            attribute(ETHTOOL_A_BITSET_BITS_BIT | NLA_F_NESTED, &bit)
        };
        let bits =
            attribute(ETHTOOL_A_BITSET_BITS | NLA_F_NESTED, &names.into_iter().flat_map(bit).collect::<Vec<u8>>());
        self.ethtool(ETHTOOL_MSG_FEATURES_SET, interface, &attribute(ETHTOOL_A_FEATURES_WANTED | NLA_F_NESTED, &bits))?;
        Ok(())
    }

    /// The receive queues of an interface.
    ///
    /// # Errors
    /// The same, or the driver does not say.
    pub fn channels(&mut self, interface: u32) -> io::Result<Channels> {
        let answer = self.ethtool(ETHTOOL_MSG_CHANNELS_GET, interface, &[])?;
        let number = |kind| find(&answer, kind).and_then(u32_of).unwrap_or_default();
        Ok(Channels {
            receive: number(ETHTOOL_A_CHANNELS_RX_COUNT),
            receive_most: number(ETHTOOL_A_CHANNELS_RX_MAX),
            combined: number(ETHTOOL_A_CHANNELS_COMBINED_COUNT),
            combined_most: number(ETHTOOL_A_CHANNELS_COMBINED_MAX),
        })
    }

    /// What XDP can do on an interface in native mode, as bits of `enum netdev_xdp_act`; 0: there is no native mode.
    ///
    /// # Errors
    /// There is no such interface, or the kernel is older than 6.3.
    pub fn xdp_features(&mut self, interface: u32) -> io::Result<u64> {
        let family = self.family("netdev")?;
        let answer =
            self.ask(family, NETDEV_CMD_DEV_GET, &attribute(NETDEV_A_DEV_IFINDEX, &interface.to_ne_bytes()))?;
        let value = find(&answer, NETDEV_A_DEV_XDP_FEATURES).and_then(|value| value.first_chunk().copied());
        value.map(u64::from_ne_bytes).ok_or(io::ErrorKind::InvalidData.into())
    }

    fn ethtool(&mut self, command: u8, interface: u32, arguments: &[u8]) -> io::Result<Vec<u8>> {
        let family = self.family("ethtool")?;
        let header = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &interface.to_ne_bytes());
        let header = attribute(ETHTOOL_A_HEADER | NLA_F_NESTED, &header);
        self.ask(family, command, &[&header, arguments].concat())
    }

    fn family(&mut self, name: &str) -> io::Result<u16> {
        let name = [name.as_bytes(), b"\0"].concat();
        let answer = self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &attribute(CTRL_ATTR_FAMILY_NAME, &name))?;
        let id = find(&answer, CTRL_ATTR_FAMILY_ID).and_then(|value| value.first_chunk().copied());
        id.map(u16::from_ne_bytes).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Sends a request, and returns the attributes of the answer, which the kernel has ready before `send` returns.
    fn ask(&mut self, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = NLMSG_HEADER + GENL_HEADER + attributes.len();
        let mut request = Vec::with_capacity(length);
        request.extend((length as u32).to_ne_bytes());
        request.extend(family.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]); // port
        request.extend([command, 1, 0, 0]); // version 1, reserved
        request.extend(attributes);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if let Some(answer) = answer(&datagram, self.sequence) {
                return answer.map(<[u8]>::to_vec);
            }
        }
    }
}

/// The attributes of the answer with this sequence number; `None` if the datagram answers something else.
fn answer(datagram: &[u8], sequence: u32) -> Option<io::Result<&[u8]>> {
    let invalid = || Some(Err(io::ErrorKind::InvalidData.into()));
    let Some(header) = datagram.first_chunk::<NLMSG_HEADER>() else { return invalid() };
    if header[8..12] != sequence.to_ne_bytes() {
        return None;
    }
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let Some(body) = datagram.get(NLMSG_HEADER..length) else { return invalid() };
    if u16::from_ne_bytes([header[4], header[5]]) == NLMSG_ERROR {
        let code = u32_of(body).unwrap_or_default() as i32;
        return Some(Err(io::Error::from_raw_os_error(code.saturating_neg())));
    }
    body.get(GENL_HEADER..).map_or_else(invalid, |attributes| Some(Ok(attributes)))
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Attributes: length and kind of two bytes each, the value, padding to four bytes. A truncated one ends the iteration.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !ATTRIBUTE_FLAGS, value))
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The names of the bits that are set. A bit set without a mask lists only these; one with a mask lists others too.
fn bit_names(set: &[u8]) -> BTreeSet<String> {
    let only_set = find(set, ETHTOOL_A_BITSET_NOMASK).is_some();
    let bits = find(set, ETHTOOL_A_BITSET_BITS).unwrap_or_default();
    let is_set = |bit| only_set || find(bit, ETHTOOL_A_BITSET_BIT_VALUE).is_some();
    let name = |bit| find(bit, ETHTOOL_A_BITSET_BIT_NAME);
    let text = |name: &[u8]| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    attributes(bits).filter(|(_, bit)| is_set(bit)).filter_map(|(_, bit)| name(bit).map(text)).collect()
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_tells_its_offloads_and_has_no_native_xdp() {
        let mut generic = Generic::open().unwrap();
        let offloads = generic.offloads(1).unwrap();
        assert!(offloads.active.contains("loopback") && !offloads.switchable.contains("loopback"), "{offloads:?}");
        assert!(offloads.switchable.contains("tx-tcp-segmentation"), "{offloads:?}");
        assert!(!offloads.active.contains("rx-lro"), "{offloads:?}");
        assert_eq!(generic.offloads(0x7fff_fff0).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        // Kernels before 6.3 have no such family.
        assert!(matches!(generic.xdp_features(1), Ok(0) | Err(_)));
    }

    #[test]
    fn cut_answers_are_refused_and_cut_attributes_end_the_reading() {
        let bit = attribute(1, &attribute(ETHTOOL_A_BITSET_BIT_NAME, b"rx-lro\0"));
        let masked = attribute(ETHTOOL_A_BITSET_BITS, &bit);
        assert!(bit_names(&masked).is_empty(), "the bit has no value");
        let set = [attribute(ETHTOOL_A_BITSET_NOMASK, &[]), masked].concat();
        assert_eq!(bit_names(&set), BTreeSet::from(["rx-lro".to_owned()]));
        for length in 0..set.len() - 1 {
            assert!(!bit_names(&set[..length]).contains("rx-lro"), "{length}");
        }
        let mut message = vec![24, 0, 0, 0, 20, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 2, 3, 4];
        assert_eq!(answer(&message, 7).unwrap().unwrap(), [1, 2, 3, 4]);
        assert!(answer(&message, 8).is_none());
        for length in 0..message.len() {
            assert!(answer(&message[..length], 7).is_none_or(|answer| answer.is_err()), "{length}");
        }
        message[0] = 255;
        assert!(answer(&message, 7).unwrap().is_err());
    }
}
