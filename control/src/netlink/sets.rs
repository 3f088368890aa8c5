//! Named sets of the packet filter (`linux/netfilter/nf_tables.h`).

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::generic::attribute;
use super::news::filter::split;

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETSETELEM.
const GET_ELEMENTS: u16 = 10 << 8 | 13;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
/// NLM_F_REQUEST and NLM_F_DUMP.
const FLAGS: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// Whether the elements of a set or map take at most this many bytes of messages. No more than these are read.
///
/// # Errors
/// There is no such set, or no such family.
pub fn set_fits(family: &str, table: &str, set: &str, most: usize) -> io::Result<bool> {
    let family = match family {
        "inet" => 1,
        "ip" => libc::AF_INET as u8,
        "netdev" => 5,
        "ip6" => libc::AF_INET6 as u8,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let name = |kind, name: &str| attribute(kind, &[name.as_bytes(), b"\0"].concat());
    let body = [vec![family, 0, 0, 0], name(LIST_TABLE, table), name(LIST_SET, set)].concat();
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend(GET_ELEMENTS.to_ne_bytes());
    request.extend(FLAGS.to_ne_bytes());
    request.extend([1, 0, 0, 0, 0, 0, 0, 0]); // sequence, port
    request.extend(body);

    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut read = 0;
    while read <= most {
        let (datagram, _) = socket.recv_from_full()?;
        read += datagram.len();
        let mut rest = &datagram[..];
        while let Some((message, next)) = split(rest) {
            let code = message[HEADER..].first_chunk().copied().map(i32::from_ne_bytes).unwrap_or_default();
            match u16::from_ne_bytes([message[4], message[5]]) {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                _ => rest = next,
            }
        }
    }
    Ok(false)
}
