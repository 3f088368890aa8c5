//! The profile's interfaces.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Port, error, finding, quoted, set_config, warning, without_xdp};
use crate::doctor::facts::{Facts, Link, Running};
use crate::doctor::{Finding, Severity};
use crate::profile::Profile;
use crate::status::Status;

/// Bytes of an outer IPv4 packet around an inner one of the 1280 bytes that IPv6 needs.
const WAN_MTU: u32 = 1340;
/// How many merged packets are worth reporting.
const MERGED_MANY: u64 = 1000;
/// The MTU of Ethernet.
const USUAL_MTU: u32 = 1500;

fn link<'a>(facts: &'a Facts, port: &Port<'_>) -> Option<&'a Link> {
    facts.links.get(port.name)
}

/// Whether AF_XDP is, or may be, used on it: as the gateway decides, on network cards unless the profile says otherwise.
pub(super) fn may_use_xdp(port: &Port<'_>, link: &Link) -> bool {
    port.demands_xdp || port.prefers_xdp && link.interface.kind.is_none() && link.xdp_features != Some(0)
}

/// Whether the running gateway drives it by AF_XDP.
fn is_xdp(status: &Status, port: &Port<'_>) -> bool {
    status.ports.iter().any(|p| p.interface == port.name && p.kind == "xdp")
}

pub(super) fn missing(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    if link(facts, port).is_some() {
        return None;
    }
    let side = if port.wan { "Wan.Interface" } else { "Lan.Interfaces" };
    let command = match facts.default_route.as_ref().filter(|_| port.wan) {
        Some(other) => set_config(facts, &format!("Wan.Interface={}", quoted(other))),
        None => "ip -brief link show".to_owned(),
    };
    error(port.name, format!("{side} names this interface, but it does not exist"), command)
}

pub(super) fn down(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    if link(facts, port)?.interface.up {
        return None;
    }
    error(port.name, "the interface is down", format!("ip link set dev {} up", quoted(port.name)))
}

pub(super) fn without_native_xdp(facts: &Facts, profile: &Profile, port: &Port<'_>) -> Option<Finding> {
    link(facts, port)?.xdp_features.filter(|features| *features == 0 && port.demands_xdp)?;
    warning(
        port.name,
        "its driver has no native XDP, so mode xdp is generic there, which is slower than sockets",
        set_config(facts, without_xdp(profile)),
    )
}

pub(super) fn foreign_program(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    let link = link(facts, port)?;
    let attachment = link.xdp?;
    let ours = match &facts.gateway {
        Running::Unknown => return None,
        Running::No => false,
        Running::Yes(status) => is_xdp(status, port),
    };
    if ours || !may_use_xdp(port, link) {
        return None;
    }
    let severity = if port.demands_xdp { Severity::Error } else { Severity::Warning };
    let mode = if attachment.generic { "xdpgeneric" } else { "xdpdrv" };
    finding(
        severity,
        port.name,
        format!("another XDP program (id {}) is attached, and there can be only one", attachment.program),
        format!("ip link set dev {} {mode} off", quoted(port.name)),
    )
}

fn switched_on(facts: &Facts, port: &Port<'_>, offload: &str) -> bool {
    let offloads = link(facts, port).and_then(|link| link.offloads.as_ref());
    offloads.is_some_and(|offloads| offloads.active.contains(offload) && offloads.switchable.contains(offload))
}

fn switch_off(port: &Port<'_>, offload: &str) -> String {
    format!("ethtool -K {} {offload} off", quoted(port.name))
}

pub(super) fn large_receive(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    if !switched_on(facts, port, "rx-lro") {
        return None;
    }
    let sentence =
        "large receive offload (LRO) merges packets irreversibly, and a gateway must forward them as they came";
    warning(port.name, sentence, switch_off(port, "lro"))
}

pub(super) fn hardware_gro(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    if !switched_on(facts, port, "rx-gro-hw") || !may_use_xdp(port, link(facts, port)?) {
        return None;
    }
    let sentence =
        "GRO in hardware (rx-gro-hw) merges packets before XDP sees them, or keeps native XDP from attaching";
    warning(port.name, sentence, switch_off(port, "rx-gro-hw"))
}

/// A bridge has generic XDP only, behind what its ports have merged.
pub(super) fn merged_below(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    let Running::Yes(status) = &facts.gateway else { return None };
    let link = link(facts, port)?;
    let by_generic_xdp = is_xdp(status, port) && link.xdp.is_some_and(|attachment| attachment.generic);
    let counters = if port.wan { &status.steering.wan } else { &status.steering.lan };
    let merged = counters.get("merged").copied().unwrap_or_default();
    if !by_generic_xdp || merged < MERGED_MANY || link.interface.kind.as_deref() != Some("bridge") {
        return None;
    }
    let sentence = format!(
        "its ports merge received packets (GRO) before XDP sees them: {merged} went to the kernel, which is slower"
    );
    let name = quoted(port.name);
    let command = format!("for port in /sys/class/net/{name}/brif/*; do ethtool -K \"${{port##*/}}\" gro off; done");
    warning(port.name, sentence, command)
}

/// The queues in use, where AF_XDP may be used and more than one worker may run.
fn queues_of_workers(link: &Link, profile: &Profile, port: &Port<'_>) -> Option<u32> {
    let channels = link.channels.filter(|_| profile.workers != 1 && may_use_xdp(port, link))?;
    Some(channels.combined + channels.receive)
}

pub(super) fn few_queues(facts: &Facts, profile: &Profile, port: &Port<'_>) -> Option<Finding> {
    let link = link(facts, port)?;
    let in_use = queues_of_workers(link, profile, port)?;
    let channels = link.channels?;
    let cores = facts.host.cores as u32;
    let workers = if profile.workers == 0 { cores } else { cores.min(profile.workers.into()) };
    let most = channels.combined_most.max(channels.receive_most).min(workers);
    // By default there are as many workers as queues, and any number above one may be intended.
    let enough = if profile.workers == 0 { 2 } else { most };
    if in_use >= enough || most < 2 {
        return None;
    }
    let sentence = match in_use {
        1 => "one receive queue is in use and the device has more, so one core does all the work".to_owned(),
        _ => format!("{in_use} receive queues are in use and the device has more, so some workers have nothing to do"),
    };
    let kind = if channels.combined_most > 1 { "combined" } else { "rx" };
    warning(port.name, sentence, format!("ethtool -L {} {kind} {most}", quoted(port.name)))
}

pub(super) fn queues_without_packets(facts: &Facts, profile: &Profile, port: &Port<'_>) -> Option<Finding> {
    let link = link(facts, port)?;
    let in_use = queues_of_workers(link, profile, port)?;
    let reached = link.spread.queues.len() as u32;
    if reached == 0 || reached >= in_use {
        return None;
    }
    let sentence = format!(
        "its RSS table leads to {reached} of {in_use} receive queues, so the workers of the others get no packets"
    );
    warning(port.name, sentence, format!("ethtool -X {} equal {in_use}", quoted(port.name)))
}

/// On the WAN, where each peer is one flow, the ports only tell apart peers that share an address.
pub(super) fn udp_hashed_by_address(facts: &Facts, profile: &Profile, port: &Port<'_>) -> Option<Finding> {
    let link = link(facts, port).filter(|link| link.spread.udp_by_address)?;
    let sentence = match port.wan {
        false => "its RSS hash of UDP covers only addresses, so all UDP between two hosts arrives on one queue",
        true if share_an_address(facts) => {
            "its RSS hash of UDP covers only addresses, so peers that share an address arrive on one queue"
        }
        true => return None,
    };
    queues_of_workers(link, profile, port).filter(|queues| *queues > 1)?;
    warning(port.name, sentence, format!("ethtool -N {} rx-flow-hash udp4 sdfn", quoted(port.name)))
}

/// Whether peers are reached at several ports of one address.
fn share_an_address(facts: &Facts) -> bool {
    let Running::Yes(status) = &facts.gateway else { return false };
    let endpoints: BTreeSet<SocketAddr> = status.peers.iter().filter_map(|peer| peer.endpoint).collect();
    let addresses: BTreeSet<_> = endpoints.iter().map(SocketAddr::ip).collect();
    addresses.len() < endpoints.len()
}

pub(super) fn small_mtu(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    let interface = &link(facts, port)?.interface;
    if !port.wan || interface.mtu >= WAN_MTU {
        return None;
    }
    // Whether another kind of link takes more than the minimum is not known.
    let mtu = if interface.mac.is_some() { USUAL_MTU } else { WAN_MTU };
    warning(
        port.name,
        format!("its MTU of {} is below {WAN_MTU}, so full packets of the tunnel leave in fragments", interface.mtu),
        format!("ip link set dev {} mtu {mtu}", quoted(port.name)),
    )
}

pub(super) fn forwarding_off(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    // The gateway switches it on itself when it starts, and does not need it where AF_XDP takes the packets.
    let Running::Yes(status) = &facts.gateway else { return None };
    if port.wan || status.lan_mode.mode != "tun" || link(facts, port)?.forwarding? {
        return None;
    }
    error(
        port.name,
        "the kernel does not forward what comes in by this interface, so nothing from the LAN reaches the tunnel",
        format!("sysctl -w net/ipv4/conf/{}/forwarding=1", quoted(port.name)),
    )
}
