//! Queueing disciplines and filters (`tc(8)`).

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::Netlink;

/// Where on an interface filters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterPlace {
    /// On what it receives.
    Ingress,
    /// On what it sends.
    Egress,
    /// In the queueing discipline with this handle, where they are to choose a class and may do anything else.
    Discipline(u32),
}

/// A queueing discipline of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discipline {
    /// Its name, such as `fq_codel`.
    pub kind: String,
    /// Its handle; 0 for one that the kernel has made.
    pub handle: u32,
}

impl Netlink {
    /// The queueing disciplines of an interface.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn queueing_disciplines(&mut self, interface: u32) -> io::Result<Vec<Discipline>> {
        self.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), |message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) if message.header.index == interface as i32 => {
                let handle = u32::from(message.header.handle);
                message.attributes.into_iter().find_map(|attribute| match attribute {
                    TcAttribute::Kind(kind) => Some(Discipline { kind, handle }),
                    _ => None,
                })
            }
            _ => None,
        })
    }

    /// Whether there are filters at a place of an interface.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn has_filters(&mut self, interface: u32, place: FilterPlace) -> io::Result<bool> {
        let clsact = |minor| TcHandle { major: TcHandle::CLSACT.major, minor };
        let mut message = TcMessage::default();
        message.header.index = interface as i32;
        message.header.parent = match place {
            FilterPlace::Ingress => clsact(TcHandle::MIN_INGRESS),
            FilterPlace::Egress => clsact(TcHandle::MIN_EGRESS),
            FilterPlace::Discipline(handle) => handle.into(),
        };
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
