//! Network news: what kind of thing has changed, so that it can be read again.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::NetlinkPayload;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use super::news::filter::Concerns;
use super::news::{self, News};
use super::socket::messages;

/// `rtnetlink(7)`, RTMGRP_*: link, neigh, and address, route and rule of both IP versions.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;
/// RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF: forwarding and similar settings were changed.
const SYSCTL_GROUPS: u32 = 1 << 23 | 1 << 24;
/// `linux/rtnetlink.h`, RTM_NEWNETCONF.
const NEW_NETCONF: u16 = 80;
/// Names of gateways' tables in the packet filter begin with this.
pub const FILTER_PREFIX: &str = "penstock-";

/// A socket that reports changes.
pub struct Monitor {
    /// A duplicate of the descriptor, for tokio.
    readable: AsyncFd<OwnedFd>,
    socket: Socket,
    /// The packet filter's news; `None` where the kernel has no nftables.
    filter: Option<(AsyncFd<OwnedFd>, Socket)>,
}

impl Monitor {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS | SYSCTL_GROUPS))?;
        socket.set_non_blocking(true)?;
        // Neighbour news comes in long bursts; when some is lost, everything is read again.
        socket.set_rx_buf_sz(1i32 << 20)?;
        let filter = match news::filter::open() {
            Ok(socket) => Some((crate::readable::watch(&socket)?, socket)),
            Err(e) => {
                tracing::debug!("changes of the packet filter cannot be received: {e}");
                None
            }
        };
        Ok(Self { readable: crate::readable::watch(&socket)?, socket, filter })
    }

    /// Waits for news, and returns all that there is, in order. Cancel safe.
    ///
    /// # Errors
    /// A socket is broken.
    pub async fn news(&self) -> io::Result<Vec<News>> {
        loop {
            let filter = async {
                match &self.filter {
                    Some((readable, _)) => readable.readable().await,
                    None => std::future::pending().await,
                }
            };
            let mut all = Vec::new();
            tokio::select! {
                ready = self.readable.readable() => {
                    self.drain(&mut all)?;
                    ready?.clear_ready();
                }
                ready = filter => {
                    let changed = self.filter_changed()?;
                    all.extend(changed.ours.then_some(News::Filter));
                    all.extend(changed.others.then_some(News::OtherFilter));
                    all.extend(changed.elements.then_some(News::OtherElements));
                    ready?.clear_ready();
                }
            }
            if !all.is_empty() {
                return Ok(all);
            }
        }
    }

    fn drain(&self, all: &mut Vec<News>) -> io::Result<()> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    if datagram.get(4..6) == Some(&NEW_NETCONF.to_ne_bytes()) {
                        all.push(News::Sysctl);
                        continue;
                    }
                    for message in messages(&datagram) {
                        if let NetlinkPayload::InnerMessage(inner) = message.payload {
                            all.extend(News::from_message(inner, message.header.flags));
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => all.push(News::Lost),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn filter_changed(&self) -> io::Result<Concerns> {
        let mut changed = Concerns::default();
        let Some((_, socket)) = &self.filter else { return Ok(changed) };
        loop {
            match socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let told = news::filter::concerns(&datagram, FILTER_PREFIX);
                    changed.ours |= told.ours;
                    changed.others |= told.others;
                    changed.elements |= told.elements;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    changed = Concerns { ours: true, others: true, elements: true };
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}
