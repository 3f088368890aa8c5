//! Queueing disciplines and filters (`tc(8)`).

use std::io;

use netlink_packet_core::{Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

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
    /// Whether it is `fq` with a highest rate for each flow.
    pub paces: bool,
}

/// The highest rate of a flow in bytes per second (`linux/pkt_sched.h`), and its value if there is none.
const TCA_FQ_FLOW_MAX_RATE: u16 = 7;
const UNLIMITED: [u8; 4] = [0xff; 4];

/// Whether these are options of `fq` that limit the rate of flows.
fn limits_flows(options: &TcOption) -> bool {
    let TcOption::Other(options) = options else { return false };
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    let mut all = NlasIterator::new(&bytes).filter_map(Result::ok);
    all.any(|option| option.kind() == TCA_FQ_FLOW_MAX_RATE && option.value() != UNLIMITED)
}

impl Netlink {
    /// The queueing disciplines of an interface.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn queueing_disciplines(&mut self, interface: u32) -> io::Result<Vec<Discipline>> {
        self.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), |message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) if message.header.index == interface as i32 => {
                let mut discipline =
                    Discipline { kind: String::new(), handle: message.header.handle.into(), paces: false };
                for attribute in message.attributes {
                    match attribute {
                        TcAttribute::Kind(kind) => discipline.kind = kind,
                        TcAttribute::Options(options) => discipline.paces = options.iter().any(limits_flows),
                        _ => {}
                    }
                }
                discipline.paces &= discipline.kind == "fq";
                Some(discipline)
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    #[test]
    fn fq_limits_flows_only_with_a_rate() {
        let options = |rate: [u8; 4]| {
            let one = |kind: u16, value: [u8; 4]| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat();
            TcOption::Other(DefaultNla::new(2, [one(1, [16, 39, 0, 0]), one(TCA_FQ_FLOW_MAX_RATE, rate)].concat()))
        };
        assert!(limits_flows(&options(125_000u32.to_ne_bytes())));
        assert!(!limits_flows(&options(UNLIMITED)));
        assert!(!limits_flows(&TcOption::Other(DefaultNla::new(2, Vec::new()))));
    }
}
