//! How each interface is driven: as the profile asks, as far as it exists, can be driven so, and was seen to work.

pub(super) mod proving;

use std::borrow::Cow;
use std::io;
use std::time::Instant;

use anyhow::{Result, anyhow};
use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports::INNER_MAX;
use penstock_dataplane::ports::xdp::Checksums;
use penstock_dataplane::steer::{AttachError, AttachMode, XdpMode};

use super::modes::{Device, ModeSetting, Plan, loses, plan};
use super::offloads::uncut;
use super::proof::Proof;
use crate::gateway::bypass::Bypassed;
use crate::ground::Network;
use crate::netlink::Interface;
use crate::problem::{Problem, Problems, Severity};
use crate::profile::Profile;

/// What encapsulation takes from the WAN's MTU: outer IPv6 (40) and UDP (8), WireGuard's header (16) and tag (16).
const OVERHEAD: u16 = 80;
/// The inside is never smaller, because IPv6 needs it (RFC 8200, section 5): outer packets are fragmented instead.
const SMALLEST_MTU: u16 = 1280;
/// What to do about an interface in a VRF.
const IN_A_VRF: &str = "take it out of the VRF, or leak routes between it and the main table; for the WAN also set \
                        net.ipv4.udp_l3mdev_accept=1";
/// The WAN's MTU as long as the interface does not exist: Ethernet's.
const USUAL_WAN_MTU: u16 = 1500;

/// An interface, and how it is driven.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The interface's name in the profile.
    pub name: String,
    /// The interface, if there is one of this name.
    pub interface: Option<Interface>,
    /// What is known about the device.
    device: Option<Device>,
    /// How it is driven.
    plan: Plan,
    setting: ModeSetting,
    /// A rule of the kernel's that AF_XDP would bypass.
    bypassed: Option<String>,
    /// Whether AF_XDP was seen to carry what it is given.
    proof: Proof,
    /// What AF_XDP was given up for, as long as it is.
    obstacle: Option<Obstacle>,
}

/// What kept AF_XDP from an interface whose device should be able to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Another XDP program; whether it was seen since.
    Program { seen: bool },
    /// Another error, which a change of the interface may remove.
    Error,
}

impl Drive {
    fn new(name: &str, setting: ModeSetting) -> Self {
        let plan = Plan::Socket(missing(name));
        let proof = Proof::default();
        let (interface, device, bypassed, obstacle) = (None, None, None, None);
        Self { name: name.to_owned(), interface, device, plan, setting, bypassed, proof, obstacle }
    }

    /// Plans anew how to drive it: as well as its device can, unless a rule or a proof speaks against it.
    fn renew_plan(&mut self) {
        self.obstacle = None;
        self.plan = self.planned();
    }

    fn planned(&self) -> Plan {
        let Some(device) = &self.device else { return Plan::Socket(missing(&self.name)) };
        let plan = plan(self.setting, device, self.bypassed.as_deref());
        match self.proof.fallen() {
            Some(fallen) => proving::fall(plan, fallen),
            None => plan,
        }
    }

    /// Sets which rule AF_XDP would bypass, if any. Returns whether the ports have to be replaced.
    fn set_bypassed(&mut self, rule: Option<&String>) -> bool {
        if self.bypassed.as_ref() == rule {
            return false;
        }
        let was_xdp = self.xdp();
        self.bypassed = rule.cloned();
        if self.setting == ModeSetting::Auto {
            self.renew_plan();
        }
        was_xdp != self.xdp()
    }

    /// Whether AF_XDP would drive it if there were no rules.
    fn heeds_rules(&self) -> bool {
        self.device.as_ref().is_some_and(|device| matches!(plan(self.setting, device, None), Plan::Xdp { .. }))
    }

    /// Follows changes of the interface. Returns whether its ports have to be replaced.
    fn follow(&mut self, network: &Network) -> bool {
        let now = network.named(&self.name).cloned();
        if now == self.interface {
            return false;
        }
        let was_xdp = self.xdp();
        let same_device = match (&self.interface, &now) {
            (Some(before), Some(now)) if self.obstacle.is_some() => *now == Interface { up: now.up, ..before.clone() },
            (Some(before), Some(now)) => {
                let ethernet = before.mac.is_some() == now.mac.is_some();
                ethernet && (before.index, before.queues) == (now.index, now.queues)
            }
            _ => false,
        };
        match (&self.interface, &now) {
            (Some(_), None) => tracing::warn!("interface {} is gone; the gateway waits for it", self.name),
            (None, Some(_)) => tracing::info!("interface {} is there", self.name),
            (Some(before), Some(now)) if before.index != now.index => {
                tracing::info!("interface {} was replaced", self.name);
            }
            _ => {}
        }
        self.interface = now;
        if same_device {
            if self.interface.as_ref().is_some_and(|interface| interface.up) {
                self.proof.handle_link_event(Millis::now());
            }
            return false;
        }
        self.proof = Proof::default();
        self.device = self.interface.as_ref().map(Device::of);
        self.renew_plan();
        was_xdp || self.xdp()
    }

    /// Notes whether another XDP program is in the way. When it is gone, AF_XDP is to be tried again; returns whether
    /// it is so.
    fn note_program(&mut self, attached: bool) -> bool {
        match &mut self.obstacle {
            Some(Obstacle::Program { seen }) if attached => *seen = true,
            Some(Obstacle::Program { seen: true }) => {
                tracing::info!("{}: the other XDP program is gone; AF_XDP is tried again", self.name);
                self.renew_plan();
                return true;
            }
            _ => {}
        }
        false
    }

    /// Whether AF_XDP drives it.
    pub fn xdp(&self) -> bool {
        matches!(self.plan, Plan::Xdp { .. })
    }

    /// Whether the profile requires AF_XDP.
    pub(super) fn is_required(&self) -> bool {
        matches!(self.plan, Plan::Xdp { optional: false, .. })
    }

    /// Why it is driven in this way.
    pub fn reason(&self) -> &str {
        match &self.plan {
            Plan::Socket(reason) | Plan::Xdp { reason, .. } => reason,
        }
    }

    /// Whether its card is known to spoil trains of datagrams.
    pub fn spoils_trains(&self) -> bool {
        self.device.as_ref().is_some_and(Device::spoils_trains)
    }

    /// Its index, as long as it exists.
    pub fn index(&self) -> Option<u32> {
        self.interface.as_ref().map(|interface| interface.index)
    }

    /// The interface that a program is to be attached to, and the mode.
    pub(super) fn attachment(&self) -> Option<(&Interface, AttachMode)> {
        match (&self.interface, &self.plan) {
            (Some(interface), Plan::Xdp { attach, .. }) => Some((interface, *attach)),
            _ => None,
        }
    }

    /// Refuses AF_XDP if the interface's frames would be lost.
    pub(super) fn refuse(&mut self, strict: bool) -> Result<()> {
        match self.device.as_ref().filter(|_| self.xdp()).and_then(loses) {
            Some(reason) => self.fall_back(anyhow!("{reason}"), strict),
            None => Ok(()),
        }
    }

    /// Counts the queues again. Returns whether their number has changed.
    fn recount(&mut self) -> bool {
        let now = self.interface.as_ref().filter(|_| self.xdp()).map(Device::of);
        match (&mut self.device, now) {
            (Some(device), Some(now)) => std::mem::replace(&mut device.queues, now.queues) != now.queues,
            _ => false,
        }
    }

    /// The state of its frames' checksums: generic XDP runs after receive offload, which leaves partial ones.
    pub(super) fn checksums(&self, mode: XdpMode) -> Checksums {
        let from_wire = self.device.as_ref().is_some_and(Device::is_wired);
        if from_wire && mode == XdpMode::Native { Checksums::Complete } else { Checksums::MaybePartial }
    }

    /// This worker's share of that many queues.
    pub(super) fn queues_of(&self, worker: u32, workers: u32) -> impl Iterator<Item = u32> + use<> {
        (worker..self.queues()).step_by(workers.max(1) as usize)
    }

    fn queues(&self) -> u32 {
        self.device.as_ref().map_or(0, |device| device.queues)
    }

    /// Gives up AF_XDP, if that is allowed: always, except at a start with a profile that requires it. If the interface
    /// is gone or renamed, it is looked for again.
    pub(super) fn fall_back(&mut self, error: anyhow::Error, strict: bool) -> Result<()> {
        match self.plan {
            Plan::Xdp { .. } if !strict && is_gone(&error) => {
                tracing::warn!("{}: {error:#}", self.name);
                (self.interface, self.device) = (None, None);
                self.renew_plan();
                Ok(())
            }
            Plan::Xdp { optional, .. } if optional || !strict => {
                tracing::warn!("{}: AF_XDP is not possible ({error:#}); sockets instead", self.name);
                self.plan = Plan::Socket(format!("AF_XDP is not possible on {}: {error:#}", self.name));
                let occupied = matches!(error.downcast_ref(), Some(AttachError::Busy { .. }));
                self.obstacle = Some(if occupied { Obstacle::Program { seen: false } } else { Obstacle::Error });
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// What is wrong with it: it is missing or down, or not driven as the profile requires.
    fn problem(&self) -> Option<(String, Cow<'static, str>, Severity)> {
        let (sentence, what_to_do) = match &self.interface {
            None if self.name.is_empty() => return None,
            None => (missing(&self.name), "connect or create it, or correct its name in the profile"),
            Some(interface) if !interface.up => {
                let what_to_do = format!("bring it up: ip link set dev {} up", self.name);
                return Some((format!("interface {} is down", self.name), what_to_do.into(), Severity::Error));
            }
            Some(interface) => match self.lost() {
                Some(lost) => lost,
                None if self.setting == ModeSetting::Xdp && !self.xdp() => {
                    (self.reason().to_owned(), "fix what is named, or set the mode to auto")
                }
                None => {
                    let other = self.belongs(interface).or_else(|| self.bypasses());
                    return other.map(|(sentence, what_to_do, severity)| (sentence, what_to_do.into(), severity));
                }
            },
        };
        Some((sentence, what_to_do.into(), Severity::Error))
    }

    /// The problem that it is a port of another device.
    fn belongs(&self, interface: &Interface) -> Option<(String, &'static str, Severity)> {
        let name = &self.name;
        let (sentence, what_to_do) = match interface.port_of.as_deref()? {
            "vrf" => (
                format!(
                    "{name} belongs to a VRF: what comes in there reaches neither the tunnel's sockets nor the routes into \
                     the tunnel, and the tunnel's packets follow the routes of the main table, unless you provide for it"
                ),
                IN_A_VRF,
            ),
            kind => (
                format!(
                    "{name} is a port of another device ({kind}): to the kernel, what comes in there has come in by that \
                     device, whose addresses and rules apply, while AF_XDP bypasses them"
                ),
                "name the other device in the profile instead of its port",
            ),
        };
        Some((sentence, what_to_do, Severity::Warning))
    }

    /// The problem that AF_XDP bypasses a rule or carries little, because the profile demands AF_XDP.
    fn bypasses(&self) -> Option<(String, &'static str, Severity)> {
        if let Some(rule) = self.bypassed.as_ref().filter(|_| self.xdp()) {
            let sentence = format!("what AF_XDP carries on {} bypasses {rule}", self.name);
            let what_to_do = "set the mode to auto, or express the rule in Firewall and remove it";
            return Some((sentence, what_to_do, Severity::Warning));
        }
        if self.proof.comes_uncut() {
            let what_to_do = "set the mode to auto, unless tx-udp-segmentation and tx-gso-list are off at that end";
            return Some((uncut(&self.name), what_to_do, Severity::Warning));
        }
        Some((self.missed()?, "set the mode to auto, which then takes sockets", Severity::Warning))
    }
}

/// Whether it is the kernel's error that there is no such interface. The notification may come later than the error, and
/// when the interface is back by then, nothing seems to have changed.
fn is_gone(error: &anyhow::Error) -> bool {
    errno(error) == Some(libc::ENODEV) || matches!(error.downcast_ref(), Some(AttachError::NoInterface { .. }))
}

/// The kernel's error in it, if there is one.
pub(super) fn errno(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error)
}

/// The interface that AF_XDP ports are bound to, if there are such ports.
fn ports(drive: &Drive) -> Option<String> {
    drive.xdp().then(|| drive.name.clone())
}

pub(super) fn missing(name: &str) -> String {
    format!("there is no interface {name}")
}

/// The WAN and the LAN interfaces.
#[derive(Clone, Debug)]
pub struct Drives {
    /// The side of the other sites.
    pub wan: Drive,
    /// The side of this site.
    pub lan: Vec<Drive>,
    /// Why frames are copied although the drivers need not, if they are.
    pub copies: Option<String>,
    problems: Problems,
}

impl Drives {
    /// The profile's interfaces, before they were looked up.
    pub fn of(profile: &Profile) -> Self {
        let lan = profile.lan.interfaces.iter().map(|name| Drive::new(name, profile.lan.mode.into()));
        Self {
            wan: Drive::new(&profile.wan.interface, profile.wan.mode.into()),
            lan: lan.collect(),
            copies: None,
            problems: Problems::default(),
        }
    }

    /// No interfaces of its own: the kernel carries the tunnel through whatever interface its routes use.
    pub fn none() -> Self {
        let any = Plan::Socket("the kernel's routes lead to the peers".to_owned());
        let wan = Drive { plan: any, ..Drive::new("", ModeSetting::Socket) };
        Self { wan, lan: Vec::new(), copies: None, problems: Problems::default() }
    }

    /// Takes up another profile. An interface that is driven as before stays as it is. Returns whether ports have to be
    /// replaced.
    pub fn reload(&mut self, profile: &Profile, network: &Network) -> bool {
        let Self { wan, lan, copies, problems } = std::mem::replace(self, Self::of(profile));
        let before = (ports(&wan), lan.iter().flat_map(ports).collect::<Vec<_>>());
        let same = |new: &mut Drive, old: &Drive| {
            if (&new.name, new.setting) == (&old.name, old.setting) {
                new.clone_from(old);
            }
        };
        same(&mut self.wan, &wan);
        self.lan.iter_mut().for_each(|new| lan.iter().for_each(|old| same(new, old)));
        (self.copies, self.problems) = (copies, problems);
        self.problems.solved_all_but(&self.all().map(|drive| drive.name.clone()).collect());
        let followed = self.follow(network);
        followed || before != (ports(&self.wan), self.lan.iter().flat_map(ports).collect())
    }

    /// Follows changes of the interfaces. Returns whether ports have to be replaced.
    pub fn follow(&mut self, network: &Network) -> bool {
        let stale = self.all_mut().fold(false, |stale, drive| drive.follow(network) | stale);
        self.note_problems();
        stale
    }

    fn note_problems(&mut self) {
        let now = Instant::now();
        for drive in std::iter::once(&self.wan).chain(&self.lan) {
            match drive.problem() {
                Some((sentence, what_to_do, Severity::Error)) => {
                    self.problems.note(now, &drive.name, &sentence, &what_to_do);
                }
                Some((sentence, what_to_do, Severity::Warning)) => {
                    self.problems.warn(now, &drive.name, &sentence, &what_to_do);
                }
                None => self.problems.solved(&drive.name),
            }
        }
    }

    /// Logs how each interface is driven, and why.
    pub fn announce(&mut self) {
        self.note_problems();
        for drive in self.all().filter(|drive| drive.interface.is_some()) {
            let how = if drive.xdp() { "AF_XDP" } else { "sockets" };
            tracing::info!("{}: {how}, because {}", drive.name, drive.reason());
        }
    }

    /// What is wrong with them.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }

    /// The MTU of the WAN interface.
    pub fn link_mtu(&self) -> u16 {
        self.wan.interface.as_ref().map_or(USUAL_WAN_MTU, Interface::largest_packet)
    }

    /// The largest inner packet on any path: `pinned`, or else what the WAN allows.
    pub fn tunnel_mtu(&self, pinned: Option<u16>) -> u16 {
        tunnel_mtu(pinned, self.link_mtu())
    }

    /// Sets the rules that AF_XDP would bypass. Returns whether ports have to be replaced.
    pub fn set_bypassed(&mut self, bypassed: &Bypassed) -> bool {
        let stale = self.all_mut().fold(false, |stale, drive| {
            let rule = bypassed.get(&drive.name);
            drive.set_bypassed(rule) | stale
        });
        self.note_problems();
        stale
    }

    /// Whether rules that AF_XDP would bypass matter to any interface.
    pub fn heed_rules(&self) -> bool {
        self.all().any(Drive::heeds_rules)
    }

    /// Whether any interface is driven by AF_XDP.
    pub fn any_xdp(&self) -> bool {
        self.all().any(Drive::xdp)
    }

    /// The indices of the existing LAN interfaces.
    pub fn lan_indices(&self) -> Vec<u32> {
        self.lan.iter().filter_map(Drive::index).collect()
    }

    /// The indices of those that AF_XDP drives.
    pub fn lan_xdp(&self) -> Vec<u32> {
        self.lan.iter().filter(|drive| drive.xdp()).filter_map(Drive::index).collect()
    }

    /// Counts the queues of interfaces driven by AF_XDP again. Returns whether any number has changed.
    pub fn recount(&mut self) -> bool {
        self.all_mut().fold(false, |changed, drive| drive.recount() | changed)
    }

    /// The most receive queues of an interface driven by AF_XDP.
    pub fn queues(&self) -> u32 {
        self.all().filter(|drive| drive.xdp()).map(Drive::queues).max().unwrap_or(0)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Drive> {
        std::iter::once(&self.wan).chain(&self.lan)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Drive> {
        std::iter::once(&mut self.wan).chain(&mut self.lan)
    }

    pub(super) fn xdp_ports(&self, worker: u32, workers: u32) -> u32 {
        self.all().filter(|d| d.xdp()).map(|d| d.queues_of(worker, workers).count() as u32).sum()
    }
}

fn tunnel_mtu(pinned: Option<u16>, wan: u16) -> u16 {
    pinned.unwrap_or_else(|| wan.saturating_sub(OVERHEAD).max(SMALLEST_MTU)).min(INNER_MAX as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ground::Interest;

    fn drive(setting: ModeSetting, up: bool) -> Drive {
        let (name, mac, kind, port_of) = ("eth1".to_owned(), Some([2; 6]), None, None);
        let mut drive = Drive::new(&name, setting);
        drive.interface = Some(Interface { index: 2, name, mac, mtu: 1500, up, kind, port_of, queues: 1 });
        drive.device = drive.interface.as_ref().map(Device::of);
        drive.renew_plan();
        drive
    }

    /// Renamed while its ports were bound, and back before the notification is read.
    #[test]
    fn an_interface_that_was_gone_for_a_moment_is_not_given_up() {
        let fallen = |errno| {
            let mut drive = drive(ModeSetting::Xdp, true);
            let error = io::Error::from_raw_os_error(errno);
            drive.fall_back(anyhow::Error::new(error).context("cannot bind"), false).unwrap();
            drive
        };
        assert_eq!(fallen(libc::ENODEV).interface, None, "it will be news that it is there");
        assert_eq!(fallen(libc::ENODEV).reason(), "there is no interface eth1");
        assert_eq!(fallen(libc::EOPNOTSUPP).index(), Some(2));
    }

    /// What was given up for an error is tried again when the interface has changed, but not whenever its link flaps.
    #[test]
    fn a_change_of_the_interface_may_remove_an_obstacle() {
        let mut drive = drive(ModeSetting::Xdp, true);
        drive.fall_back(io::Error::from_raw_os_error(libc::ERANGE).into(), false).unwrap();
        let mut network = Network::empty(Interest { table: 47100, lan: BTreeSet::new() });
        let mut changed_by = |change: fn(&mut Interface)| {
            let mut interface = drive.interface.clone().unwrap();
            change(&mut interface);
            network.interfaces.insert(2, interface);
            (drive.follow(&network), drive.xdp())
        };
        assert_eq!(changed_by(|interface| interface.up = false), (false, false));
        assert_eq!(changed_by(|interface| interface.up = true), (false, false));
        assert_eq!(changed_by(|interface| interface.mtu = 1400), (true, true));
        assert_eq!(changed_by(|interface| interface.mtu = 1300), (false, true), "nothing stands in the way");
    }

    /// Another program was seen, and is gone.
    #[test]
    fn another_program_is_in_the_way_only_as_long_as_it_is_there() {
        let mut drive = drive(ModeSetting::Xdp, true);
        let (interface, owner) = ("eth1".to_owned(), "somebody".to_owned());
        drive.fall_back(AttachError::Busy { interface, owner }.into(), false).unwrap();
        assert!(!drive.note_program(false) && !drive.xdp(), "it was never seen");
        assert!(!drive.note_program(true) && !drive.xdp());
        assert!(drive.note_program(false) && drive.xdp());
        assert!(!drive.note_program(false), "once");
    }

    #[test]
    fn an_interface_that_is_down_is_named_in_the_command_that_brings_it_up() {
        let drive = drive(ModeSetting::Auto, false);
        let (sentence, what_to_do, _) = drive.problem().unwrap();
        assert_eq!(sentence, "interface eth1 is down");
        assert_eq!(what_to_do, "bring it up: ip link set dev eth1 up");
    }

    #[test]
    fn the_tunnel_leaves_room_for_its_headers() {
        assert_eq!(tunnel_mtu(None, 1500), 1420);
        assert_eq!(tunnel_mtu(Some(1300), 1500), 1300);
        assert_eq!(tunnel_mtu(None, 65535), INNER_MAX as u16, "no port carries more");
        assert_eq!(tunnel_mtu(None, 600), 1280, "a WAN that is too small fragments");
    }
}
