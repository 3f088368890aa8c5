//! The kinds of packets that AF_XDP carries, or that start a flow, and which conditions hold for them.

use std::collections::BTreeSet;

use ipnet::IpNet;
use penstock_dataplane::filter::Direction;

use super::protocols::{TCP, UDP};
use super::{Base, Condition, Hook, What};

/// Packets between a LAN interface and the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside<'a> {
    /// The LAN interface.
    pub lan: &'a str,
    /// The tunnel's interface.
    pub tunnel: &'a str,
    /// This site's prefixes.
    pub own: &'a BTreeSet<IpNet>,
    /// Those of the other sites.
    pub remote: &'a BTreeSet<IpNet>,
}

/// The tunnel's own packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The WAN interface.
    pub wan: String,
    /// The tunnel's UDP port here.
    pub port: u16,
    /// Our addresses on the WAN.
    pub addresses: BTreeSet<IpNet>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Always,
    Maybe,
    Never,
}

impl Holds {
    fn not(self) -> Self {
        match self {
            Self::Always => Self::Never,
            Self::Maybe => Self::Maybe,
            Self::Never => Self::Always,
        }
    }

    fn sure(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }
}

/// Packets of one kind, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packets {
    input: Option<String>,
    output: Option<String>,
    ipv6: bool,
    /// Empty for any source.
    sources: Vec<IpNet>,
    destinations: Vec<IpNet>,
    /// What is known about the flow; `None`: nothing.
    flow: Option<Flow>,
    /// For packets that the kernel gets first, with any destination: only rules that send them to one of these places
    /// matter, because AF_XDP then gets the answers.
    pub(super) sent_to: Option<Target>,
}

/// Where packets that were for somewhere else are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The addresses: none for this host, `None` if they are unknown.
    pub addresses: Option<Vec<IpNet>>,
    /// The ports; `None`: unchanged.
    pub ports: Option<Vec<(u16, u16)>>,
}

impl Target {
    /// Whether a rule's target may be one of these places. Places with a port are only those whose port is changed to
    /// it.
    pub fn meets(&self, rule: &Self) -> bool {
        let common = |a: &[IpNet], b: &[IpNet]| a.iter().any(|a| b.iter().any(|b| a.contains(b) || b.contains(a)));
        let addresses = match (&self.addresses, &rule.addresses) {
            // On this host, only the tunnel's port is such a place.
            (_, Some(targets)) if targets.is_empty() => self.ports.is_some(),
            (Some(places), Some(targets)) => common(places, targets),
            _ => true,
        };
        let ports = self.ports.as_ref().is_none_or(|places| {
            let within = |(first, last): &(u16, u16)| places.iter().any(|(a, b)| first <= b && last >= a);
            rule.ports.as_ref().is_some_and(|targets| targets.iter().any(within))
        });
        addresses && ports
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    source: Option<u16>,
    destination: Option<u16>,
    /// As connection tracking calls it.
    state: &'static str,
}

impl Inside<'_> {
    pub(super) fn packets(&self) -> Vec<Packets> {
        let mut all = self.packets_with(None);
        // A default route leads to networks here as well, so nothing follows from a target inside it.
        let calls = all.iter().map(|packets| Packets {
            output: None,
            destinations: Vec::new(),
            sent_to: Some(Target {
                addresses: Some(packets.destinations.iter().filter(|to| to.prefix_len() > 0).copied().collect()),
                ports: None,
            }),
            ..packets.clone()
        });
        let calls: Vec<Packets> = calls.collect();
        all.extend(calls);
        all
    }

    /// The first packets of TCP connections in this direction.
    pub(super) fn connections(&self, direction: Direction) -> Vec<Packets> {
        let input = if direction == Direction::Out { self.lan } else { self.tunnel };
        let flow = Flow { protocol: TCP, source: None, destination: None, state: "new" };
        let mut packets = self.packets_with(Some(flow));
        packets.retain(|packets| packets.input.as_deref() == Some(input));
        packets
    }

    fn packets_with(&self, flow: Option<Flow>) -> Vec<Packets> {
        let of = |prefixes: &BTreeSet<IpNet>, ipv6: bool| -> Vec<IpNet> {
            prefixes.iter().filter(|prefix| prefix.addr().is_ipv6() == ipv6).copied().collect()
        };
        let mut all = Vec::new();
        for ipv6 in [false, true] {
            let (own, remote) = (of(self.own, ipv6), of(self.remote, ipv6));
            if remote.is_empty() {
                continue;
            }
            for (input, output, sources, destinations) in
                [(self.lan, self.tunnel, &own, &remote), (self.tunnel, self.lan, &remote, &own)]
            {
                all.push(Packets {
                    input: Some(input.to_owned()),
                    output: Some(output.to_owned()),
                    ipv6,
                    sources: sources.clone(),
                    destinations: destinations.clone(),
                    flow,
                    sent_to: None,
                });
            }
        }
        all
    }
}

impl Outside {
    /// Data of a connection that the handshake has established, and packets to other ports that may be sent to ours.
    pub(super) fn packets(&self) -> Vec<Packets> {
        let mut all = self.packets_in("established");
        let elsewhere = self.calls().into_iter().map(|packets| Packets {
            sent_to: Some(Target {
                addresses: Some(packets.destinations.clone()),
                ports: Some(vec![(self.port, self.port)]),
            }),
            destinations: Vec::new(),
            flow: packets.flow.map(|flow| Flow { destination: None, ..flow }),
            ..packets
        });
        all.extend(elsewhere);
        all
    }

    /// The first handshakes that arrive.
    pub(super) fn calls(&self) -> Vec<Packets> {
        let mut packets = self.packets_in("new");
        packets.retain(|packets| packets.input.is_some());
        packets
    }

    fn packets_in(&self, state: &'static str) -> Vec<Packets> {
        let flow = |source, destination| Some(Flow { protocol: UDP, source, destination, state });
        let mut all = Vec::new();
        for ipv6 in [false, true] {
            let own: Vec<IpNet> = self.addresses.iter().filter(|a| a.addr().is_ipv6() == ipv6).copied().collect();
            if own.is_empty() {
                continue;
            }
            all.push(Packets {
                input: Some(self.wan.clone()),
                output: None,
                ipv6,
                sources: Vec::new(),
                destinations: own.clone(),
                flow: flow(None, Some(self.port)),
                sent_to: None,
            });
            all.push(Packets {
                input: None,
                output: Some(self.wan.clone()),
                ipv6,
                sources: own,
                destinations: Vec::new(),
                flow: flow(Some(self.port), None),
                sent_to: None,
            });
        }
        all
    }
}

impl Packets {
    /// Whether they are the host's own, and there is one address only that they can have.
    pub(super) fn have_the_address_of_their_interface(&self) -> bool {
        self.input.is_none() && matches!(self.sources.as_slice(), [only] if only.prefix_len() == only.max_prefix_len())
    }

    /// Whether these packets pass through a base chain.
    pub(super) fn passes(&self, base: &Base, families: [bool; 2]) -> bool {
        let forwarded = self.input.is_some() && self.output.is_some();
        let by = |interface: &Option<String>| {
            interface.is_some() && base.device.as_ref().is_none_or(|device| Some(device) == interface.as_ref())
        };
        let here = match base.hook {
            Hook::Forward => forwarded,
            Hook::Prerouting => self.input.is_some(),
            Hook::Postrouting => self.output.is_some(),
            Hook::Input => self.output.is_none() && self.sent_to.is_none(),
            Hook::Output => self.input.is_none(),
            Hook::Ingress => by(&self.input),
            Hook::Egress => by(&self.output),
        };
        here && families[usize::from(self.ipv6)]
    }

    /// Whether all of these hold.
    pub(super) fn hold(&self, conditions: &[Condition]) -> Holds {
        let mut all = Holds::Always;
        for Condition { what, not } in conditions {
            let holds = self.holds(what);
            match if *not { holds.not() } else { holds } {
                Holds::Never => return Holds::Never,
                Holds::Maybe => all = Holds::Maybe,
                Holds::Always => {}
            }
        }
        all
    }

    fn holds(&self, what: &What) -> Holds {
        match what {
            What::Input(names) => by(self.input.as_deref(), names),
            What::Output(names) => by(self.output.as_deref(), names),
            What::Source(prefixes) => self.within(&self.sources, prefixes),
            What::Destination(prefixes) => self.within(&self.destinations, prefixes),
            What::Ipv6(ipv6) => Holds::sure(self.ipv6 == *ipv6),
            What::Protocol(numbers) => match self.flow {
                Some(flow) => Holds::sure(numbers.contains(&flow.protocol)),
                None => Holds::Maybe,
            },
            What::SourcePort(ranges) => within_ports(self.flow.and_then(|flow| flow.source), ranges),
            What::DestinationPort(ranges) => within_ports(self.flow.and_then(|flow| flow.destination), ranges),
            What::Connection(states) => match self.flow {
                Some(flow) => Holds::sure(states.iter().any(|state| state == flow.state)),
                None => Holds::Maybe,
            },
            // What is forwarded is not for this host.
            What::Local => match (&self.input, &self.output) {
                (Some(_), Some(_)) => Holds::Never,
                (Some(_), None) if self.sent_to.is_none() => Holds::Always,
                _ => Holds::Maybe,
            },
            What::Unknown => Holds::Maybe,
        }
    }

    fn within(&self, packets: &[IpNet], prefixes: &[IpNet]) -> Holds {
        let prefixes: Vec<&IpNet> = prefixes.iter().filter(|prefix| prefix.addr().is_ipv6() == self.ipv6).collect();
        if prefixes.is_empty() {
            return Holds::Never;
        }
        if packets.is_empty() {
            return if prefixes.iter().any(|prefix| prefix.prefix_len() == 0) { Holds::Always } else { Holds::Maybe };
        }
        let inside = |packet: &&IpNet| prefixes.iter().any(|prefix| prefix.contains(*packet));
        let meets =
            |packet: &&IpNet| prefixes.iter().any(|prefix| prefix.contains(*packet) || packet.contains(*prefix));
        match (packets.iter().all(|packet| inside(&packet)), packets.iter().any(|packet| meets(&packet))) {
            (true, _) => Holds::Always,
            (false, true) => Holds::Maybe,
            (false, false) => Holds::Never,
        }
    }
}

/// Whether packets of this interface match one of these names.
fn by(interface: Option<&str>, names: &[String]) -> Holds {
    let Some(interface) = interface else { return Holds::Never };
    let matches = |name: &String| match name.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => name == interface,
    };
    Holds::sure(names.iter().any(matches))
}

fn within_ports(port: Option<u16>, ranges: &[(u16, u16)]) -> Holds {
    match port {
        Some(port) => Holds::sure(ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))),
        None => Holds::Maybe,
    }
}
