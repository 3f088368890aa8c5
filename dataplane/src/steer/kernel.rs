//! What the kernel says about an interface, a program and our rights: the facts behind an
//! [`AttachError`](super::AttachError). It is asked only when something failed.

use std::fs;

use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, loaded_programs};
use aya::util::KernelVersion;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::{CapabilitySet, capabilities};

/// Linux capabilities.
const REQUIRED: [(&str, CapabilitySet); 2] =
    [("CAP_BPF", CapabilitySet::BPF), ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN)];

/// Whether eBPF programs of traffic control process what an interface receives, or sends (tcx, since Linux 6.6).
pub fn has_tcx_programs(interface: &str, received: bool) -> bool {
    let side = if received { TcAttachType::Ingress } else { TcAttachType::Egress };
    SchedClassifier::query_tcx(interface, side).is_ok_and(|(_, programs)| !programs.is_empty())
}

/// What an interface's RTM_GETLINK says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkState {
    /// Bytes.
    pub(super) mtu: u32,
    /// The id of the attached XDP program.
    pub(super) xdp_program: Option<u32>,
}

impl LinkState {
    /// Asks rtnetlink in the calling thread's network namespace. ENODEV: no such interface.
    pub(super) fn query(ifindex: u32) -> Result<Self, Errno> {
        const RTM_GETLINK: u16 = 18;
        const NLM_F_REQUEST: u16 = 1;
        const NLMSG_ERROR: u16 = 2;

        let mut request = Vec::with_capacity(NLMSG_HEADER_LEN + IFINFOMSG_LEN);
        request.extend(((NLMSG_HEADER_LEN + IFINFOMSG_LEN) as u32).to_ne_bytes());
        request.extend(RTM_GETLINK.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend([0; 8]); // sequence number, port id
        request.extend([0; 4]); // family, padding, type
        request.extend(ifindex.to_ne_bytes());
        request.extend([0; 8]); // flags, change mask

        // No protocol is number 0, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        send(&socket, &request, SendFlags::empty())?;
        let mut reply = vec![0; 64 * 1024];
        let (len, _) = recv(&socket, &mut *reply, RecvFlags::empty())?;
        let reply = &reply[..len];

        let kind = reply.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        if kind == Some(NLMSG_ERROR) {
            let code = reply.get(NLMSG_HEADER_LEN..).and_then(u32_at).unwrap_or_default();
            return Err(Errno::from_raw_os_error((code as i32).saturating_neg()));
        }
        Ok(Self::parse(reply.get(NLMSG_HEADER_LEN + IFINFOMSG_LEN..).unwrap_or_default()))
    }

    /// Reads the attributes of an RTM_NEWLINK (`include/uapi/linux/if_link.h`).
    fn parse(attributes: &[u8]) -> Self {
        const IFLA_MTU: u16 = 4;
        const IFLA_XDP: u16 = 43;
        const IFLA_XDP_PROG_ID: u16 = 4;

        let mut state = Self::default();
        for (kind, value) in Attributes(attributes) {
            match kind {
                IFLA_MTU => state.mtu = u32_at(value).unwrap_or_default(),
                IFLA_XDP => {
                    state.xdp_program = Attributes(value)
                        .find(|(kind, _)| *kind == IFLA_XDP_PROG_ID)
                        .and_then(|(_, value)| u32_at(value));
                }
                _ => {}
            }
        }
        state
    }
}

const NLMSG_HEADER_LEN: usize = 16;
const IFINFOMSG_LEN: usize = 16;

/// Netlink attributes: length and type (two bytes each, host order), value, padding to four bytes.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const TYPE_MASK: u16 = 0x3fff;
        let &[a, b, c, d] = self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, value))
    }
}

fn u32_at(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Names the owner of an attached program, as far as the program's name reveals it. Only CAP_SYS_ADMIN sees the names
/// of other processes' programs.
pub(super) fn owner(program: Option<u32>) -> String {
    let Some(id) = program else {
        return "another XDP program".to_owned();
    };
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned));
    let owner = match name.as_deref() {
        None | Some("") => return format!("another XDP program (id {id})"),
        Some("xdp_dispatcher") => ", libxdp's dispatcher",
        Some("xsk_def_prog") => ", libxdp's program of another AF_XDP application",
        Some(penstock_wire::WAN_PROGRAM | penstock_wire::LAN_PROGRAM) => ", of another Penstock",
        Some(_) => "",
    };
    format!("the XDP program {} (id {id}){owner}", name.unwrap_or_default())
}

/// Why EPERM, in words.
pub(super) fn forbidden_because() -> String {
    match missing_capabilities().as_slice() {
        [] => "the process has the capabilities, but not in the initial user namespace, or the kernel is \
               locked down"
            .to_owned(),
        [one] => format!("{one} is missing"),
        more => format!("{} are missing", more.join(" and ")),
    }
}

/// Which of the required capabilities the calling thread lacks.
pub(super) fn missing_capabilities() -> Vec<&'static str> {
    missing_from(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective))
}

fn missing_from(effective: CapabilitySet) -> Vec<&'static str> {
    // CAP_SYS_ADMIN includes CAP_BPF, and stands for CAP_NET_ADMIN where bpf(2) asks for it.
    let lacks = |capability| !effective.intersects(capability | CapabilitySet::SYS_ADMIN);
    REQUIRED.iter().filter(|(_, capability)| lacks(*capability)).map(|(name, _)| *name).collect()
}

/// Whether the kernel lacks `bpf_xdp_get_buff_len`, the newest function that the programs use.
pub(super) fn kernel_is_too_old() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 18, 0))
}

/// What `uname -r` says.
pub(super) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_missing_capabilities() {
        use CapabilitySet as Set;
        assert_eq!(missing_from(Set::empty()), ["CAP_BPF", "CAP_NET_ADMIN"]);
        assert_eq!(missing_from(Set::BPF), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_from(Set::NET_ADMIN), ["CAP_BPF"]);
        assert!(missing_from(Set::NET_ADMIN | Set::BPF).is_empty());
        assert!(missing_from(Set::SYS_ADMIN).is_empty());
        assert_eq!(missing_from(Set::NET_RAW), ["CAP_BPF", "CAP_NET_ADMIN"]);
    }

    #[test]
    fn reads_the_loopback_interface() {
        assert_eq!(LinkState::query(1), Ok(LinkState { mtu: 65_536, xdp_program: None }));
        assert_eq!(LinkState::query(0x7fff_fff0), Err(Errno::NODEV));
    }

    #[test]
    fn cut_attributes_end_the_reading() {
        let attributes = [8, 0, 4, 0, 0xdc, 5, 0, 0, 12, 0, 43, 0x80, 8, 0, 4, 0, 7, 0, 0, 0];
        let whole = LinkState { mtu: 1500, xdp_program: Some(7) };
        assert_eq!(LinkState::parse(&attributes), whole);
        for len in 0..attributes.len() {
            assert_ne!(LinkState::parse(&attributes[..len]), whole);
        }
    }
}
