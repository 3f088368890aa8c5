//! What to change on the firewall or in the profile, for each shortcoming.

use penstock_proto::path::PathTimings;
use serde::{Deserialize, Serialize};

use super::{Family, NatClass, Reachable, Report};
use crate::port_mapping::is_public;

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Advice {
    /// The subject, for programs.
    pub subject: Subject,
    /// For people: what is wrong and what to change.
    pub text: String,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// TCP to the coordinator does not work.
    Coordinator,
    /// UDP does not pass.
    UdpBlocked,
    /// The NAT has endpoint-dependent mapping.
    Mapping,
    /// Only known endpoints are let in.
    Filtering,
    /// The router that maps ports is behind a NAT itself.
    DoubleNat,
    /// The NAT forgets a mapping sooner than it is renewed.
    MappingLifetime,
    /// The STUN server could not measure everything, or has not yet.
    Unmeasured,
}

pub(super) fn advice(report: &Report) -> Vec<Advice> {
    let parts =
        [coordinator(report), udp(report), nat(report), double_nat(report), lifetime(report), unmeasured(report)];
    let parts = parts.into_iter().flatten();
    parts.map(|(subject, text)| Advice { subject, text }).collect()
}

fn coordinator(report: &Report) -> Option<(Subject, String)> {
    let coordinator = report.coordinator.as_ref().filter(|coordinator| !coordinator.reachable)?;
    let problem = coordinator.problem.as_deref().unwrap_or("it does not answer");
    let address = &coordinator.address;
    let text = match &coordinator.proxy {
        Some(proxy) => format!(
            "There is no connection to the coordinator through the proxy {proxy}: {problem}. \
             Let the proxy connect (HTTP CONNECT) to {address}."
        ),
        None => format!(
            "There is no connection to the coordinator: {problem}. Let TCP out to {address}, \
             or name an HTTP proxy in HTTPS_PROXY."
        ),
    };
    Some((Subject::Coordinator, text))
}

fn udp(report: &Report) -> Option<(Subject, String)> {
    (report.nat_type == NatClass::UdpBlocked).then(|| {
        let text = "No UDP answer came back. Let UDP out to any address and port, and the answers to it in; no port \
                    has to be forwarded. Until then all traffic is relayed over TLS on TCP port 443, which is slower.";
        (Subject::UdpBlocked, text.to_owned())
    })
}

fn nat(report: &Report) -> Option<(Subject, String)> {
    if matches!(report.reachable, Reachable::Open | Reachable::Mapped) && report.nat_type != NatClass::Symmetric {
        return None;
    }
    let forward = forward(report);
    match report.nat_type {
        NatClass::Symmetric if report.reachable == Reachable::Mapped => None,
        NatClass::Symmetric => Some((
            Subject::Mapping,
            format!(
                "The NAT uses a different port for every destination (endpoint-dependent mapping), so peers behind \
                 port-restricted and symmetric NATs are relayed. Any one of these ends that: endpoint-independent \
                 mapping (in nftables and iptables no \"random\" in the masquerade or SNAT rule, elsewhere \"full \
                 cone\", \"endpoint-independent\" or \"static port\"); or {forward}, leaving as that port too; or \
                 PCP, NAT-PMP or UPnP IGD on the router."
            ),
        )),
        NatClass::Firewall => Some((
            Subject::Filtering,
            format!(
                "The firewall lets in only answers, so peers behind symmetric NATs are relayed. To reach these too, \
                 let UDP {} in.",
                port(report)
            ),
        )),
        NatClass::PortRestricted => Some((
            Subject::Filtering,
            format!(
                "The NAT accepts only endpoints it has sent to, so peers behind symmetric NATs are relayed; all \
                 others are reached directly and nothing has to be changed for them. To reach these too, {forward}, \
                 or turn on PCP, NAT-PMP or UPnP IGD on the router."
            ),
        )),
        _ => None,
    }
}

fn double_nat(report: &Report) -> Option<(Subject, String)> {
    let external = report.port_mapping.as_ref()?.external?;
    (!is_public(external.address.ip())).then(|| {
        let text = format!(
            "The router maps a port by {}, but its own address {} is private: it is behind another NAT. Put it \
             into bridge mode, or forward UDP {} on the outer one too.",
            external.protocol,
            external.address.ip(),
            external.address.port()
        );
        (Subject::DoubleNat, text)
    })
}

fn lifetime(report: &Report) -> Option<(Subject, String)> {
    let keepalive = PathTimings::default().keepalive.as_secs();
    let of = |family: Option<Family>| family?.mapping_lifetime?.to.filter(|to| *to <= keepalive);
    let to = of(report.ipv4).or(of(report.ipv6))?;
    let text = format!(
        "The NAT forgets a mapping within {to} s of silence, and an idle gateway sends only every {keepalive} s, so \
         peers can no longer reach it. Let UDP flows live longer on the router: two minutes at least (RFC 4787); in \
         Linux that is net.netfilter.nf_conntrack_udp_timeout_stream."
    );
    Some((Subject::MappingLifetime, text))
}

fn unmeasured(report: &Report) -> Option<(Subject, String)> {
    if report.measuring {
        let text = "The gateway is still measuring: ask again in a few seconds.";
        return Some((Subject::Unmeasured, text.to_owned()));
    }
    let family = report.ipv4.or(report.ipv6)?;
    (report.nat_type == NatClass::Unknown && family.nat.reflexive.is_some()).then(|| {
        let change = if report.running {
            "have the coordinator listen at two (UdpListen)"
        } else {
            "name a server that has two, with --stun"
        };
        let what =
            if family.nat.nat_type().mapping.is_some() { "who is let in" } else { "how the NAT maps and filters" };
        let text = format!("The STUN server has only one address, so it cannot tell {what}: {change}.");
        (Subject::Unmeasured, text)
    })
}

fn port(report: &Report) -> String {
    if report.pinned {
        format!("port {}", report.local_port)
    } else {
        "LocalPort, which must be pinned for that (LocalPort=47100),".into()
    }
}

fn forward(report: &Report) -> String {
    if report.pinned {
        format!("forward UDP port {} to this gateway", report.local_port)
    } else {
        "pin LocalPort in the profile (LocalPort=47100) and forward that UDP port to this gateway".into()
    }
}
