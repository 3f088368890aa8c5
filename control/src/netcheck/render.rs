//! The report in plain words, with the terms of RFC 4787.

use std::fmt::Write;

use penstock_proto::coordination::Dependence;
use penstock_proto::stun::NatReport;

use super::{Coordinator, Family, LifetimeProblem, MappingLifetime, NatClass, Reachable, Report};
use crate::port_mapping::Mapping;
use crate::status::PathKind;

/// For people, in lines.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let pinned = if report.pinned { "pinned" } else { "random" };
    let running = if report.running { "; the gateway runs" } else { "" };
    line(&mut text, "UDP port", &format!("{} ({pinned}){running}", report.local_port));
    line(&mut text, "NAT", &report.ipv4.or(report.ipv6).map_or(report.nat_type.to_string(), |family| kind(&family)));
    line(&mut text, "Reachable", reachable(report.reachable));
    line(&mut text, "Port mapping", &report.port_mapping.as_ref().map_or("no router is asked".into(), port_mapping));
    if let Some(at) = &report.coordinator {
        line(&mut text, "Coordinator", &coordinator(at));
    }
    for (title, family) in [("IPv4", &report.ipv4), ("IPv6", &report.ipv6)] {
        match family {
            Some(family) => write_family(&mut text, title, family),
            None => line(&mut text, title, "no route to a STUN server"),
        }
    }
    let _ = writeln!(text, "\nDirect path to a peer behind");
    for to in &report.direct {
        let _ = writeln!(text, "  {:<26}{}", to.nat_type, direct(to.direct));
    }
    if !report.peers.is_empty() {
        let _ = writeln!(text, "\nPeers");
        for peer in &report.peers {
            let _ = write!(text, "  {:<26}{:<26}", peer.name, peer.nat_type);
            let _ = match peer.path {
                Some(path) => writeln!(text, "{:<10}now {}", direct(peer.direct), way(path)),
                None => writeln!(text, "{}", direct(peer.direct)),
            };
        }
    }
    for peer in report.peers.iter().filter(|peer| peer.path.is_some_and(|path| path != PathKind::Direct)) {
        if let (Some(path), Some(reason)) = (peer.path, &peer.reason) {
            let _ = write!(text, "\n{}\n", wrap(&format!("{} is {}: {reason}.", peer.name, way(path))));
        }
    }
    for advice in &report.advice {
        let _ = write!(text, "\n{}\n", wrap(&advice.text));
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{name:<28}{value}");
}

fn write_family(text: &mut String, title: &str, family: &Family) {
    let NatReport { reflexive, mapping, filtering, port_preservation, hairpinning, udp_blocked, .. } = family.nat;
    let _ = writeln!(text, "\n{title}");
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<26}{value}");
    };
    line("NAT", &kind(family));
    if udp_blocked {
        line("UDP", "no STUN server answers: UDP is blocked");
        return;
    }
    line("public address", &reflexive.map_or("unknown".into(), |address| address.to_string()));
    line("mapping", mapping.map_or("not measured", mapping_words));
    line("filtering", filtering.map_or("not measured", filtering_words));
    if family.port_filtering != filtering {
        line("filtering, this port", family.port_filtering.map_or("not measured", filtering_words));
    }
    let preserved = |kept| if kept { "the port is kept" } else { "the port is changed" };
    line("port preservation", port_preservation.map_or("not measured", preserved));
    let hairpins = |yes| if yes { "works" } else { "no: two sites behind this NAT connect by their inner addresses" };
    line("hairpinning", hairpinning.map_or("not measured", hairpins));
    if let Some(lifetime) = &family.mapping_lifetime {
        line("mapping lifetime", &lifetime_words(lifetime));
    }
}

/// The kind of NAT, or what is known if that is not enough for a name.
fn kind(family: &Family) -> String {
    match (family.nat_type, family.nat.translated) {
        (NatClass::Unknown, Some(false)) => "none, though a firewall may let in only answers".to_owned(),
        (NatClass::Unknown, Some(true)) => "there is one, of unknown kind".to_owned(),
        (class, _) => class.to_string(),
    }
}

fn lifetime_words(lifetime: &MappingLifetime) -> String {
    let problem = match *lifetime {
        MappingLifetime { problem: Some(problem), .. } => problem,
        MappingLifetime { from: None | Some(0), to: Some(to), .. } => return format!("less than {to} s of silence"),
        MappingLifetime { from, to: Some(to), .. } => {
            return format!("between {} and {to} s of silence", from.unwrap_or_default());
        }
        MappingLifetime { from, to: None, .. } => {
            return format!("more than {} s of silence", from.unwrap_or_default());
        }
    };
    match problem {
        LifetimeProblem::NoMapping => "no mapping: nothing is translated or filtered".into(),
        LifetimeProblem::UdpBlocked => "not measured: UDP is blocked".into(),
        LifetimeProblem::Unsupported => {
            "not measured: no STUN server answers to another port (RESPONSE-PORT), or the NAT has several addresses"
                .into()
        }
        LifetimeProblem::Unsteady => "not measured: the network was unstable".into(),
        LifetimeProblem::NoServer => "not measured: no route to a STUN server".into(),
    }
}

fn mapping_words(dependence: Dependence) -> &'static str {
    match dependence {
        Dependence::EndpointIndependent => "the same port for all destinations (endpoint-independent mapping)",
        Dependence::AddressDependent => "another port for each address (address-dependent mapping)",
        Dependence::AddressAndPortDependent => {
            "another port for each destination (address- and port-dependent mapping)"
        }
    }
}

fn filtering_words(dependence: Dependence) -> &'static str {
    match dependence {
        Dependence::EndpointIndependent => "anybody is let in (endpoint-independent filtering)",
        Dependence::AddressDependent => "addresses that were sent to are let in (address-dependent filtering)",
        Dependence::AddressAndPortDependent => {
            "only addresses and ports that were sent to are let in (address- and port-dependent filtering)"
        }
    }
}

fn reachable(reachable: Reachable) -> &'static str {
    match reachable {
        Reachable::Open => "yes: the port is open to anybody outside",
        Reachable::Mapped => "yes: the router maps the port",
        Reachable::Closed => "only by those that were sent to",
        Reachable::Blocked => "no: UDP is blocked",
        Reachable::Unknown => "unknown",
    }
}

fn port_mapping(mapping: &Mapping) -> String {
    let found: Vec<String> = mapping.found.iter().map(ToString::to_string).collect();
    match (&mapping.external, found.is_empty()) {
        (_, true) => "the router offers neither PCP nor NAT-PMP nor UPnP IGD".into(),
        (Some(external), _) => {
            format!("{} found; {} leads here by {}", found.join(", "), external.address, external.protocol)
        }
        (None, _) => format!("{} found, but no port was mapped", found.join(", ")),
    }
}

fn coordinator(coordinator: &Coordinator) -> String {
    let Coordinator { address, proxy, reachable, .. } = coordinator;
    let by = proxy.as_ref().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
    if *reachable { format!("TCP to {address}{by} works") } else { format!("no TCP to {address}{by}") }
}

fn direct(works: Option<bool>) -> &'static str {
    match works {
        Some(true) => "works",
        Some(false) => "relayed",
        None => "unknown",
    }
}

fn way(path: PathKind) -> &'static str {
    match path {
        PathKind::Direct => "direct",
        PathKind::Relay => "relayed",
        PathKind::None => "not reached",
    }
}

/// The width of running text, in columns.
const WIDTH: usize = 100;

fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        if column > 0 && column + 1 + word.len() > WIDTH {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out
}
