//! How a card spreads received packets over its queues: the indirection table of its hash, and what the hash of UDP
//! covers (`linux/ethtool.h`). By ioctl, since kernels before 6.17 report the latter in no other way.
#![expect(unsafe_code)]

use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType, socket};

use super::facts::Spread;

const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
const UDP_V4_FLOW: u32 = 2;
const RXH_IP_SRC: u32 = 1 << 4;
const RXH_IP_DST: u32 = 1 << 5;
/// The ports.
const RXH_L4: u32 = 3 << 6;

/// Words of `ethtool_rxnfc`, of which the kernel fills in the first four for this request.
const RXNFC_WORDS: usize = 48;
/// More entries than any card's table has.
const TABLE_LIMIT: usize = 4096;

/// How the interface spreads them, as far as its driver says.
pub(super) fn of(interface: &str) -> Spread {
    Spread { queues: table(interface).unwrap_or_default().into_iter().collect(), udp_by_address: by_address(interface) }
}

fn by_address(interface: &str) -> bool {
    let mut request = [0; RXNFC_WORDS];
    request[..2].copy_from_slice(&[ETHTOOL_GRXFH, UDP_V4_FLOW]);
    ask(interface, &mut request) && request[2] & (RXH_IP_SRC | RXH_IP_DST | RXH_L4) == RXH_IP_SRC | RXH_IP_DST
}

/// The queue of each entry.
fn table(interface: &str) -> Option<Vec<u32>> {
    // Without room for entries the kernel reports how many there are.
    let mut request = vec![ETHTOOL_GRXFHINDIR, 0];
    let size = ask(interface, &mut request).then_some(request[1])?;
    let length = usize::try_from(size).ok().filter(|length| (1..=TABLE_LIMIT).contains(length))?;
    request.resize(2 + length, 0);
    ask(interface, &mut request).then(|| request.split_off(2))
}

/// Whether the driver has answered the request, in its place.
fn ask(interface: &str, request: &mut [u32]) -> bool {
    let Ok(socket) = socket(AddressFamily::INET, SocketType::DGRAM, None) else { return false };
    // SAFETY: an all-zero ifreq is valid; it is plain old data.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte of the name ends it.
    if interface.len() >= ifreq.ifr_name.len() {
        return false;
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: both structures live during the call. The kernel writes no more of the request than its command and its
    // size field allow: of a hash's fields a part of `ethtool_rxnfc`, of a table as many entries as it says to have.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_without_a_hash_tell_nothing() {
        for name in ["lo", "does-not-exist", "a name that is far too long"] {
            assert_eq!(of(name), Spread::default(), "{name}");
        }
    }
}
