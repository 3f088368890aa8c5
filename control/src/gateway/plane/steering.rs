//! The steering programs and what they are told: our WAN addresses, and which LAN prefixes lead to which family of
//! endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_dataplane::ports::INNER_MAX;
use penstock_dataplane::steer::{
    AttachError, AttachMode, LanConfig, LanSteering, LanVerdict, OuterFamily, SteerError, WanSteering, XdpMode,
};

use super::offloads::SwitchedOff;
use crate::gateway::peers::Peers;
use crate::netlink::Interface;

/// The prefixes in the LAN programs.
pub type Prefixes = BTreeMap<IpNet, Leads>;

/// Where the packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To AF_XDP, with room for this family's headers.
    Tunnel(OuterFamily),
    /// To the kernel, although a shorter prefix leads into the tunnel.
    Kernel,
    /// To this site: to the kernel, and only what comes from there goes to AF_XDP.
    Site,
}

/// The attached programs. Dropping it detaches them.
#[derive(Debug, Default)]
pub struct Steering {
    /// On the WAN, if that is driven by AF_XDP.
    pub wan: Option<Wan>,
    /// On the LAN interfaces that are driven by AF_XDP.
    pub lan: Vec<Lan>,
}

/// What a program has done with its frames since it was attached.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Frames that it was shown.
    pub shown: u64,
    /// Frames that it redirected, by receive queue.
    pub redirected: Vec<u64>,
    /// Frames for the tunnel that it left to the kernel, by verdict.
    pub missed: BTreeMap<&'static str, u64>,
}

/// The verdicts on frames for the tunnel that a ring cannot take, though others of their kind could.
const MISSED: [&str; 4] = [
    LanVerdict::NoSocket.name(),
    LanVerdict::NoHeadroom.name(),
    LanVerdict::Merged.name(),
    LanVerdict::NeedsFragmenting.name(),
];

/// The program on the WAN, and what it was successfully told.
#[derive(Debug)]
pub struct Wan {
    /// The interface.
    pub index: u32,
    /// The program.
    pub program: WanSteering,
    port: u16,
    asked: AttachMode,
    addresses: BTreeSet<IpAddr>,
    /// For as long as the program is attached.
    offloads: SwitchedOff,
}

/// The program on a LAN interface, and what it was told.
#[derive(Debug)]
pub struct Lan {
    /// The interface.
    pub index: u32,
    /// The program.
    pub program: LanSteering,
    /// What it is to be told.
    config: LanConfig,
    asked: AttachMode,
    /// What it was successfully told.
    told: LanConfig,
    prefixes: Prefixes,
    /// For as long as the program is attached.
    offloads: SwitchedOff,
}

impl Wan {
    /// Attaches to an interface.
    ///
    /// # Errors
    /// The driver, or another user of the interface, does not allow it.
    pub fn attach(interface: &Interface, port: u16, asked: AttachMode) -> Result<Self, AttachError> {
        let Interface { name, index, .. } = interface;
        let program = WanSteering::attach(name, *index, port, asked)?;
        let (addresses, offloads) = (BTreeSet::new(), SwitchedOff::default());
        Ok(Self { index: *index, program, port, asked, addresses, offloads })
    }

    /// Has the interface's other end, if it has one, send datagrams one by one.
    ///
    /// # Errors
    /// One sentence: the driver cannot be told.
    pub fn with_offloads(mut self, interface: &Interface, required: bool) -> anyhow::Result<Self> {
        self.offloads.keep_apart(interface, self.program.mode(), required)?;
        Ok(self)
    }

    fn tell(&mut self, wanted: &BTreeSet<IpAddr>, failures: &mut Vec<SteerError>) {
        for address in self.addresses.symmetric_difference(wanted).copied().collect::<Vec<_>>() {
            let is_new = wanted.contains(&address);
            let result = if is_new { self.program.insert_local(address) } else { self.program.remove_local(address) };
            match result {
                Ok(()) if is_new => _ = self.addresses.insert(address),
                Ok(()) => _ = self.addresses.remove(&address),
                Err(e) => failures.push(e),
            }
        }
    }

    /// Whether it is what [`Self::attach`] would produce.
    pub fn fits(&self, interface: &Interface, port: u16, asked: AttachMode) -> bool {
        (self.index, self.port, self.asked) == (interface.index, port, asked)
    }
}

/// The longest IP packet that the ring takes from an interface: with jumbo frames, what a slot of it holds. The kernel
/// tells the senders of longer ones.
fn largest(interface: &Interface) -> u16 {
    interface.largest_packet().min(INNER_MAX as u16)
}

impl Lan {
    /// Attaches to an Ethernet interface with this address.
    ///
    /// # Errors
    /// The driver, or another user of the interface, does not allow it.
    pub fn attach(
        interface: &Interface,
        mac: [u8; 6],
        tunnel_mtu: u16,
        asked: AttachMode,
    ) -> Result<Self, AttachError> {
        let Interface { name, index, .. } = interface;
        let config = LanConfig { mac, tunnel_mtu, link_mtu: largest(interface) };
        let program = LanSteering::attach(name, *index, config, asked)?;
        let (prefixes, offloads) = (Prefixes::new(), SwitchedOff::default());
        Ok(Self { index: *index, program, config, asked, told: config, prefixes, offloads })
    }

    /// Has the interface leave VLAN tags in the frames, and its other end, if it has one, send datagrams one by one.
    ///
    /// # Errors
    /// One sentence: the driver cannot be told.
    pub fn with_offloads(mut self, interface: &Interface, required: bool) -> anyhow::Result<Self> {
        self.offloads.keep_tags(interface)?;
        self.offloads.keep_apart(interface, self.program.mode(), required)?;
        Ok(self)
    }

    /// Whether it is what [`Self::attach`] would produce.
    pub fn fits(&self, interface: &Interface, asked: AttachMode) -> bool {
        (self.index, self.asked) == (interface.index, asked)
    }

    /// Tells it the configuration, if it does not have it. A failure shows at the next [`Steering::tell`].
    fn set_config(&mut self, config: LanConfig) -> Result<(), SteerError> {
        self.config = config;
        if self.told != config {
            self.program.set_config(config)?;
            self.told = config;
        }
        Ok(())
    }

    fn tell(&mut self, wanted: &Prefixes, failures: &mut Vec<SteerError>) {
        failures.extend(self.set_config(self.config).err());
        // Prefixes that stay with the kernel come first, so that a default route cannot catch them even for a moment.
        let mut changes: Vec<_> = wanted.iter().filter(|(p, to)| self.prefixes.get(*p) != Some(*to)).collect();
        changes.sort_by_key(|(_, to)| matches!(to, Leads::Tunnel(_)));
        for (prefix, to) in changes {
            let (address, len) = (prefix.addr(), prefix.prefix_len());
            let result = match to {
                Leads::Tunnel(outer) => self.program.insert_prefix(address, len, *outer),
                Leads::Kernel => self.program.insert_local_prefix(address, len),
                Leads::Site => self.program.insert_own_prefix(address, len),
            };
            match result {
                Ok(()) => _ = self.prefixes.insert(*prefix, *to),
                Err(e) => failures.push(e),
            }
        }
        for prefix in self.prefixes.keys().filter(|p| !wanted.contains_key(*p)).copied().collect::<Vec<_>>() {
            match self.program.remove_prefix(prefix.addr(), prefix.prefix_len()) {
                Ok(()) => _ = self.prefixes.remove(&prefix),
                Err(e) => failures.push(e),
            }
        }
    }
}

impl Steering {
    /// Sets how large packets from the LAN may be.
    pub fn set_tunnel_mtu(&mut self, tunnel_mtu: u16) {
        self.lan.iter_mut().for_each(|lan| _ = lan.set_config(LanConfig { tunnel_mtu, ..lan.config }));
    }

    /// The mode of the program on an interface.
    pub fn mode(&self, index: u32) -> Option<XdpMode> {
        let wan = self.wan.iter().filter(|wan| wan.index == index).map(|wan| wan.program.mode());
        wan.chain(self.lan.iter().filter(|lan| lan.index == index).map(|lan| lan.program.mode())).next()
    }

    /// Attaches the program on an interface again; what it was told stays.
    ///
    /// # Errors
    /// As when it was attached. The program is then no longer attached.
    pub fn attach_again(&mut self, Interface { name, index, .. }: &Interface) -> Result<(), AttachError> {
        if let Some(wan) = self.wan.as_mut().filter(|wan| wan.index == *index) {
            return wan.program.attach_again(name, *index).inspect_err(|_| self.wan = None);
        }
        let Some(at) = self.lan.iter().position(|lan| lan.index == *index) else { return Ok(()) };
        self.lan[at].program.attach_again(name, *index).inspect_err(|_| _ = self.lan.remove(at))
    }

    /// What the program on an interface has done with its frames, the redirected ones for this many receive queues.
    pub fn counted(&self, index: u32, queues: u32) -> Result<Counted, SteerError> {
        let counted = |verdicts: Vec<(&'static str, u64)>, redirected: Vec<u64>| Counted {
            shown: verdicts.iter().map(|(_, frames)| frames).sum(),
            missed: verdicts.into_iter().filter(|(verdict, _)| MISSED.contains(verdict)).collect(),
            redirected,
        };
        if let Some(Wan { program, .. }) = self.wan.as_ref().filter(|wan| wan.index == index) {
            return Ok(counted(program.counters()?, program.redirected(queues)?));
        }
        match self.lan.iter().find(|lan| lan.index == index) {
            Some(Lan { program, .. }) => Ok(counted(program.counters()?, program.redirected(queues)?)),
            None => Ok(counted(Vec::new(), vec![0; queues as usize])),
        }
    }

    /// Follows a change of a LAN interface's MAC address or MTU.
    pub fn follow(&mut self, interface: &Interface) {
        for lan in self.lan.iter_mut().filter(|lan| lan.index == interface.index) {
            let (mac, link_mtu) = (interface.mac.unwrap_or(lan.config.mac), largest(interface));
            let _ = lan.set_config(LanConfig { mac, link_mtu, ..lan.config });
        }
    }

    /// Tells the programs what they do not know yet: our addresses on the WAN, the steered prefixes, and what could not
    /// be told before. Returns what failed. A map that cannot be changed leaves packets to the kernel, or to a worker
    /// that knows better, so nothing leaks.
    pub fn tell(&mut self, addresses: &BTreeSet<IpAddr>, prefixes: &Prefixes) -> Vec<SteerError> {
        let mut failures = Vec::new();
        if let Some(wan) = &mut self.wan {
            wan.tell(addresses, &mut failures);
        }
        self.lan.iter_mut().for_each(|lan| lan.tell(prefixes, &mut failures));
        failures
    }
}

/// The prefixes to steer: those of peers that can be reached, if they are guarded. `kept` are left to the kernel,
/// `ruled` those that other people's rules may decide on, `site` this site's subnets.
pub fn prefixes(
    peers: &Peers,
    is_guarded: impl Fn(&IpNet) -> bool,
    kept: &[IpNet],
    ruled: &[IpNet],
    site: impl IntoIterator<Item = IpNet>,
) -> Prefixes {
    let mut all: Prefixes = site.into_iter().map(|prefix| (prefix, Leads::Site)).collect();
    for prefix in kept.iter().chain(ruled.iter().filter(|prefix| peers.is_remote(**prefix))) {
        all.entry(*prefix).or_insert(Leads::Kernel);
    }
    for (prefix, owner) in peers.allowed_ips() {
        let free = is_guarded(prefix) && !ruled.iter().any(|ruled| ruled.contains(prefix));
        let endpoint = peers.of(owner).and_then(|p| p.endpoint).filter(|_| free);
        let over = endpoint.map(|e| if e.is_ipv4() { OuterFamily::V4 } else { OuterFamily::V6 });
        all.insert(*prefix, over.map_or(Leads::Kernel, Leads::Tunnel));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::peers::tests::peers;

    #[test]
    fn prefixes_follow_the_family_of_the_endpoint() {
        let (_proto, mut peers) = peers(&[7, 8, 9]);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        for (peer, endpoint) in peers.iter_mut().zip(["192.0.2.2:1", "[2001:db8::2]:1"]) {
            peer.endpoint = endpoint.parse().ok();
        }
        let ids: Vec<_> = peers.iter().map(|p| p.id).collect();
        for (prefix, id) in [("fd00:1::/64", ids[0]), ("10.0.0.0/8", ids[1]), ("10.3.0.0/16", ids[2])] {
            peers.allow(net(prefix), id);
        }
        let site = [net("10.101.0.0/24"), net("10.3.0.0/16")];
        let kept = [net("10.101.0.0/24"), net("10.101.0.1/32")];
        let all = prefixes(&peers, |_| true, &kept, &[], site);
        assert_eq!(all[&net("fd00:1::/64")], Leads::Tunnel(OuterFamily::V4));
        assert_eq!(all[&net("10.0.0.0/8")], Leads::Tunnel(OuterFamily::V6));
        assert_eq!(all[&net("10.3.0.0/16")], Leads::Kernel, "nowhere to send it yet: the tun device's packets wait");
        assert_eq!(all[&net("10.101.0.0/24")], Leads::Site);
        assert_eq!(all[&net("10.101.0.1/32")], Leads::Kernel);
        // Other people's rules decide on these.
        let ruled = [net("fd00::/16"), net("10.7.0.0/16"), net("192.0.2.0/24")];
        let all = prefixes(&peers, |_| true, &kept, &ruled, site);
        assert_eq!((all[&net("fd00:1::/64")], all[&net("10.7.0.0/16")]), (Leads::Kernel, Leads::Kernel));
        assert_eq!((all[&net("10.0.0.0/8")], all.get(&ruled[2])), (Leads::Tunnel(OuterFamily::V6), None));
        let all = prefixes(&peers, |prefix| *prefix != net("10.0.0.0/8"), &kept, &[], site);
        assert_eq!(all[&net("10.0.0.0/8")], Leads::Kernel, "nothing would block it when the tunnel is gone");
    }
}
