//! How the WAN and the LAN are driven: AF_XDP or the kernel's sockets, and why.

use std::path::Path;

use penstock_dataplane::steer::AttachMode;

use crate::netlink::{Generic, Interface, Offloads};
use crate::profile::{LanMode, WanMode};

/// The profile's setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeSetting {
    /// The fastest that the interface really supports.
    Auto,
    /// AF_XDP, and nothing else.
    Xdp,
    /// Sockets: `udp` on the WAN, `tun` on the LAN.
    Socket,
}

impl From<WanMode> for ModeSetting {
    fn from(mode: WanMode) -> Self {
        match mode {
            WanMode::Auto => Self::Auto,
            WanMode::Xdp => Self::Xdp,
            WanMode::Udp => Self::Socket,
        }
    }
}

impl From<LanMode> for ModeSetting {
    fn from(mode: LanMode) -> Self {
        match mode {
            LanMode::Auto => Self::Auto,
            LanMode::Xdp => Self::Xdp,
            LanMode::Tun => Self::Socket,
        }
    }
}

/// What is known about an interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The kind of software device, if it is one: `veth`, `bridge`, `vlan`, …
    pub kind: Option<String>,
    /// The driver of its hardware.
    pub driver: Option<String>,
    /// Whether it is a virtual card of QEMU's.
    pub emulated: bool,
    /// Whether frames on it begin with an Ethernet header.
    pub ethernet: bool,
    /// Queues that both receive and send.
    pub queues: u32,
}

/// How an interface is to be driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// By sockets, for this reason.
    Socket(String),
    /// By AF_XDP, attached in this way.
    Xdp {
        /// How to attach.
        attach: AttachMode,
        /// Whether sockets may be used when that is impossible.
        optional: bool,
        /// Why.
        reason: String,
    },
}

/// Decides how to drive an interface. `bypassed` is a rule of the kernel's that AF_XDP would bypass.
pub fn plan(setting: ModeSetting, device: &Device, bypassed: Option<&str>) -> Plan {
    let name = &device.name;
    match setting {
        ModeSetting::Socket => Plan::Socket("the profile asks for it".to_owned()),
        ModeSetting::Xdp => {
            Plan::Xdp { attach: AttachMode::Auto, optional: false, reason: "the profile asks for it".to_owned() }
        }
        ModeSetting::Auto if !device.ethernet => Plan::Socket(not_ethernet(name)),
        ModeSetting::Auto => match (&device.kind, &device.driver, bypassed) {
            (Some(kind), ..) => Plan::Socket(format!(
                "{name} is a virtual device ({kind}), where super-packets through sockets beat AF_XDP"
            )),
            (None, Some(_), Some(rule)) => Plan::Socket(format!("AF_XDP would bypass {rule}")),
            (None, Some(driver), None) => Plan::Xdp {
                attach: AttachMode::Native,
                optional: true,
                reason: format!("{name} is a network card with native XDP ({driver})"),
            },
            (None, None, _) => Plan::Socket(format!("{name} has no driver that is known to do native XDP")),
        },
    }
}

/// The vendor of QEMU's cards, where they do not name another one (Red Hat, in sysfs).
const QEMU: &str = "0x1af4";

/// Drivers of cards whose other end is a virtual machine's host, and perhaps a neighbour there.
const PARAVIRTUAL: [&str; 4] = ["virtio_net", "vmxnet3", "xen-netfront", "hv_netvsc"];

/// The name of a virtual device that is taken for a network card, for tests. Release builds have no such switch.
const TEST_CARD: &str = "PENSTOCK_TEST_CARD";

impl Device {
    /// Whether its frames come from a wire, and not from other software on this machine or its host.
    pub fn is_wired(&self) -> bool {
        self.kind.is_none() && self.driver.as_deref().is_some_and(|driver| !PARAVIRTUAL.contains(&driver))
    }

    /// Whether it is known to spoil trains of datagrams: QEMU's igb card does not segment a train, but sends it as
    /// fragments of a single datagram.
    pub fn spoils_trains(&self) -> bool {
        self.emulated && self.driver.as_deref() == Some("igb")
    }

    /// The facts about an interface, as the kernel reports them.
    pub fn of(interface: &Interface) -> Self {
        let sysfs = Path::new("/sys/class/net").join(&interface.name);
        let driver = std::fs::read_link(sysfs.join("device/driver"))
            .ok()
            .and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
        let vendor = std::fs::read_to_string(sysfs.join("device/subsystem_vendor"));
        let queues = queues_in(&sysfs.join("queues"));
        let is_card = cfg!(debug_assertions) && std::env::var(TEST_CARD).is_ok_and(|name| name == interface.name);
        Self {
            name: interface.name.clone(),
            kind: interface.kind.clone().filter(|_| !is_card),
            driver: if is_card { Some("test".to_owned()) } else { driver },
            emulated: vendor.is_ok_and(|vendor| vendor.trim() == QEMU),
            ethernet: interface.mac.is_some() && interface.name != "lo",
            // sysfs may belong to another namespace; netlink reports the maximum number of queues.
            queues: if queues > 0 { queues } else { interface.queues.max(1) },
        }
    }
}

/// The queues of a device according to its folder in sysfs. A socket sends on the queue that it receives from, and what
/// it sends on one that only receives is lost.
fn queues_in(folder: &Path) -> u32 {
    let names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let count = |direction: &str| names.iter().filter(|name| name.starts_with(direction)).count() as u32;
    count("rx-").min(count("tx-"))
}

fn not_ethernet(name: &str) -> String {
    format!("{name} is not an Ethernet device, which AF_XDP needs")
}

/// Why AF_XDP would lose packets on a device although it can be attached there; `None` if it would not.
pub fn loses(device: &Device) -> Option<String> {
    let name = &device.name;
    let merged = |what: &str| {
        Some(format!(
            "{name} is {what}: AF_XDP above it gets frames that the device below has merged, and loses them; use \
             sockets, or name the device below"
        ))
    };
    if !device.ethernet {
        return Some(not_ethernet(name));
    }
    match device.kind.as_deref()? {
        "bond" | "team" => Some(format!(
            "{name} is a bond or team: its frames arrive at its members, and the kernel passes none of them to a \
             socket that is bound to the whole; use sockets"
        )),
        "dummy" => Some(format!("{name} is a dummy device, through which no frames pass; use sockets")),
        "vlan" => merged("a VLAN"),
        "bridge" => merged("a bridge"),
        "macvlan" | "macvtap" => merged("a macvlan"),
        "ipvlan" | "ipvtap" => merged("an ipvlan"),
        kind @ ("vxlan" | "geneve" | "gretap" | "ip6gretap" | "erspan" | "ip6erspan" | "macsec") => {
            merged(&format!("a device of kind {kind}"))
        }
        _ => None,
    }
}

/// Why XDP would lose packets on an interface whose driver did not take the program; `None` if it would not. Offloads
/// that can be switched off are switched off by the kernel when a program is attached.
pub fn merges(interface: &Interface) -> Option<String> {
    let offloads = Generic::open().and_then(|mut generic| generic.offloads(interface.index)).ok()?;
    let offload = merging(&offloads)?;
    Some(format!(
        "the driver of {} merges received packets ({offload}), which XDP cannot split, and it cannot be told not to; \
         use sockets, or a device on which {offload} can be switched off",
        interface.name
    ))
}

/// The offload that merges received packets before XDP sees them, if there is one that cannot be switched off.
fn merging(offloads: &Offloads) -> Option<&'static str> {
    let fixed = |offload: &&str| offloads.active.contains(*offload) && !offloads.switchable.contains(*offload);
    ["rx-gro-hw", "rx-lro"].into_iter().find(fixed)
}

/// How many workers to start: `asked` by the profile (0: as many as fit), `queues` the most receive queues of an
/// interface driven by AF_XDP (0: there is none), `cores` those we may use.
pub fn workers(asked: u32, queues: u32, cores: u32) -> u32 {
    // Without queues to spread over, a single worker keeps both directions of a flow on one core.
    let most = if asked > 0 { asked } else { queues.max(1) };
    most.min(cores).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: Option<&str>, driver: Option<&str>) -> Device {
        Device {
            name: "eth0".to_owned(),
            kind: kind.map(str::to_owned),
            driver: driver.map(str::to_owned),
            emulated: false,
            ethernet: true,
            queues: 4,
        }
    }

    #[test]
    fn auto_takes_xdp_on_network_cards_only() {
        assert!(
            matches!(plan(ModeSetting::Auto, &device(Some("veth"), None), None), Plan::Socket(r) if r.contains("veth"))
        );
        assert!(matches!(plan(ModeSetting::Auto, &device(None, None), None), Plan::Socket(_)));
        assert!(matches!(
            plan(ModeSetting::Auto, &device(None, Some("ice")), None),
            Plan::Xdp { attach: AttachMode::Native, optional: true, .. }
        ));
        let point_to_point = Device { ethernet: false, ..device(None, Some("qmi_wwan")) };
        assert!(matches!(plan(ModeSetting::Auto, &point_to_point, None), Plan::Socket(_)));
    }

    #[test]
    fn auto_leaves_to_the_kernel_what_its_rules_are_for() {
        let plan = plan(ModeSetting::Auto, &device(None, Some("ice")), Some("the policy of chain forward"));
        assert!(matches!(&plan, Plan::Socket(reason) if reason.contains("the policy of chain forward")), "{plan:?}");
    }

    #[test]
    fn a_mode_that_is_asked_for_is_taken() {
        assert!(matches!(
            plan(ModeSetting::Xdp, &device(Some("veth"), None), Some("a rule")),
            Plan::Xdp { attach: AttachMode::Auto, optional: false, .. }
        ));
        assert!(matches!(plan(ModeSetting::Socket, &device(None, Some("ice")), None), Plan::Socket(_)));
    }

    #[test]
    fn frames_of_virtual_devices_come_from_no_wire() {
        for (kind, driver, wired) in [
            (None, Some("ice"), true),
            (None, Some("virtio_net"), false),
            (Some("veth"), None, false),
            (None, None, false),
        ] {
            assert_eq!(device(kind, driver).is_wired(), wired, "{kind:?} {driver:?}");
        }
    }

    #[test]
    fn of_igb_cards_only_the_emulated_ones_spoil_trains() {
        let emulated = |driver| Device { emulated: true, ..device(None, Some(driver)) };
        assert!(emulated("igb").spoils_trains());
        assert!(!device(None, Some("igb")).spoils_trains() && !emulated("virtio_net").spoils_trains());
    }

    #[test]
    fn devices_above_others_are_refused_with_the_reason() {
        for (kind, word) in [
            ("bond", "bond"),
            ("team", "members"),
            ("vlan", "VLAN"),
            ("bridge", "merged"),
            ("dummy", "dummy"),
            ("vxlan", "vxlan"),
        ] {
            let reason = loses(&device(Some(kind), None)).unwrap();
            assert!(reason.starts_with("eth0 is a ") && reason.contains(word), "{reason}");
        }
        let point_to_point = Device { ethernet: false, ..device(Some("gre"), None) };
        assert!(loses(&point_to_point).unwrap().contains("Ethernet"));
        assert_eq!(loses(&device(Some("veth"), None)), None);
        assert_eq!(loses(&device(None, Some("ice"))), None);
    }

    #[test]
    fn offloads_that_merge_packets_for_good_are_told_from_others() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let merging = |active: &[&str], switchable: &[&str]| {
            super::merging(&Offloads { active: names(active), switchable: names(switchable) })
        };
        assert_eq!(merging(&["rx-gro", "rx-checksum", "tx-gso-robust"], &[]), None);
        assert_eq!(merging(&["rx-gro", "rx-gro-hw"], &["rx-gro", "rx-lro"]), Some("rx-gro-hw"));
        assert_eq!(merging(&["rx-lro"], &[]), Some("rx-lro"));
        assert_eq!(merging(&["rx-lro", "rx-gro-hw"], &["rx-lro", "rx-gro-hw"]), None);
    }

    #[test]
    fn one_worker_a_queue_and_one_a_core() {
        assert_eq!(workers(0, 4, 2), 2);
        assert_eq!(workers(0, 1, 2), 1);
        assert_eq!(workers(0, 0, 8), 1);
        assert_eq!(workers(3, 0, 8), 3);
        assert_eq!(workers(3, 1, 2), 2);
        assert_eq!(workers(0, 0, 0), 1);
    }

    #[test]
    fn queues_that_only_receive_are_the_kernel_s() {
        let folder = std::env::temp_dir().join(format!("penstock-queues-{}", std::process::id()));
        for name in ["rx-0", "rx-1", "tx-0"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let counted = queues_in(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!((counted, queues_in(&folder)), (1, 0));
    }
}
