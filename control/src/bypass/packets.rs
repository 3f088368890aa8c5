//! The kinds of packets that AF_XDP carries, and which conditions hold for them.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::protocols::UDP;
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

/// For which packets a condition holds.
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
    /// Empty for any.
    sources: Vec<IpNet>,
    destinations: Vec<IpNet>,
    /// Those of the tunnel on the WAN: UDP by these ports, of a connection that the handshake has established.
    ports: Option<Ports>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    source: Option<u16>,
    destination: Option<u16>,
}

impl Inside<'_> {
    pub(super) fn packets(&self) -> Vec<Packets> {
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
                    ports: None,
                });
            }
        }
        all
    }
}

impl Outside {
    pub(super) fn packets(&self) -> Vec<Packets> {
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
                ports: Some(Ports { source: None, destination: Some(self.port) }),
            });
            all.push(Packets {
                input: None,
                output: Some(self.wan.clone()),
                ipv6,
                sources: own,
                destinations: Vec::new(),
                ports: Some(Ports { source: Some(self.port), destination: None }),
            });
        }
        all
    }
}

impl Packets {
    /// Whether these come through a base chain.
    pub(super) fn passes(&self, base: &Base, families: [bool; 2]) -> bool {
        let forwarded = self.input.is_some() && self.output.is_some();
        let by = |interface: &Option<String>| {
            interface.is_some() && base.device.as_ref().is_none_or(|device| Some(device) == interface.as_ref())
        };
        let here = match base.hook {
            Hook::Forward => forwarded,
            Hook::Prerouting => self.input.is_some(),
            Hook::Postrouting => self.output.is_some(),
            Hook::Input => self.output.is_none(),
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
            What::Protocol(numbers) => match self.ports {
                Some(_) => Holds::sure(numbers.contains(&UDP)),
                None => Holds::Maybe,
            },
            What::SourcePort(ranges) => within_ports(self.ports.and_then(|ports| ports.source), ranges),
            What::DestinationPort(ranges) => within_ports(self.ports.and_then(|ports| ports.destination), ranges),
            What::Connection(states) => match self.ports {
                Some(_) => Holds::sure(states.iter().any(|state| state == "established")),
                None => Holds::Maybe,
            },
            // What is forwarded is not for this host.
            What::Local => match (&self.input, &self.output) {
                (Some(_), Some(_)) => Holds::Never,
                (Some(_), None) => Holds::Always,
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

/// Whether packets by this interface are by one of these names.
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
