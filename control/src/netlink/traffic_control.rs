//! Queueing disciplines and filters (`tc(8)`).

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::Netlink;

/// The direction of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the device.
    Ingress,
    /// To the device.
    Egress,
}

impl Netlink {
    /// The names of the queueing disciplines of an interface.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn queueing_disciplines(&mut self, interface: u32) -> io::Result<Vec<String>> {
        self.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), |message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) if message.header.index == interface as i32 => {
                message.attributes.into_iter().find_map(|attribute| match attribute {
                    TcAttribute::Kind(kind) => Some(kind),
                    _ => None,
                })
            }
            _ => None,
        })
    }

    /// Whether there are filters on what an interface receives or sends.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn has_filters(&mut self, interface: u32, side: Side) -> io::Result<bool> {
        let minor = match side {
            Side::Ingress => TcHandle::MIN_INGRESS,
            Side::Egress => TcHandle::MIN_EGRESS,
        };
        let mut message = TcMessage::default();
        message.header.index = interface as i32;
        message.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
        let found = self.dump(RouteNetlinkMessage::GetTrafficFilter(message), |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(_) => Some(()),
            _ => None,
        });
        match found {
            // There is no queueing discipline that could have filters.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            found => Ok(!found?.is_empty()),
        }
    }
}
