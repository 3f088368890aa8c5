//! Routing rules, reverse path filters, the tunnel's port, and the paths to peers.

use penstock_proto::pmtu::MtuSource;

use super::{error, quoted, set_config, warning};
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Running, overlap};
use crate::ground::{PROTOCOL, RULE_PRIORITY};
use crate::netlink::{ForeignRule, LOCAL_TABLE, RouteKind};
use crate::profile::{LocalPort, Profile};
use crate::status::{PathMtu, PeerStatus};

const STRICT: u8 = 1;

pub(super) fn port_taken(facts: &Facts) -> Option<Finding> {
    let LocalPort::Pinned(port) = facts.profile.as_ref()?.local_port else { return None };
    let owner = facts.port_owner.as_ref().filter(|_| facts.gateway == Running::No)?;
    let (who, command) = match &owner.process {
        Some((pid, name)) => (format!("{name} (process {pid})"), format!("kill {pid}")),
        None => ("another program".to_owned(), format!("ss -ulnp sport = :{port}")),
    };
    error(format!("UDP port {port}"), format!("{who} has the tunnel's port, bound to {}", owner.address), command)
}

pub(super) fn tunnel_filters_strictly(facts: &Facts) -> Option<Finding> {
    let tunnel = facts.profile.as_ref()?.name.as_str();
    if facts.links.get(tunnel)?.rp_filter? != STRICT {
        return None;
    }
    let sentence = "its reverse path filter is strict, so packets whose return route is not the tunnel are dropped";
    warning(tunnel, sentence, loosen(tunnel))
}

pub(super) fn wan_filters_strictly(facts: &Facts) -> Option<Finding> {
    let wan = facts.profile.as_ref()?.wan.interface.as_str();
    // Where the default route leaves through the WAN, the return path is as the filter expects.
    let other = facts.default_route.as_ref().filter(|name| *name != wan)?;
    if facts.links.get(wan)?.rp_filter? != STRICT {
        return None;
    }
    let sentence = format!(
        "its reverse path filter is strict and the default route leaves by {other}, so packets of peers behind a router are dropped"
    );
    warning(wan, sentence, loosen(wan))
}

/// Peers whose path is too small even for the least that IPv6 needs inside.
pub(super) fn fragmented(facts: &Facts) -> Vec<Finding> {
    let Running::Yes(status) = &facts.gateway else { return Vec::new() };
    let uses_ipv6 = || facts.remote().iter().any(|prefix| prefix.addr().is_ipv6());
    let finding = |peer: &PeerStatus| {
        // Where the link itself is that small, its own finding says so.
        let found = |mtu: &&PathMtu| {
            [MtuSource::Probed, MtuSource::Icmp, MtuSource::Base].map(|s| s.to_string()).contains(&mtu.reason)
        };
        let mtu = peer.mtu.as_ref().filter(|mtu| mtu.fragmented).filter(found)?;
        let address = peer.endpoint?.ip();
        // Without IPv6 inside, packets may be smaller; what the peer sends is padded to multiples of 16 bytes. Where the
        // size is only assumed, the cause has to be looked for.
        let command = if mtu.reason == MtuSource::Base.to_string() || uses_ipv6() {
            format!("tracepath -n {address}")
        } else {
            let overhead = if address.is_ipv4() { 60 } else { 80 };
            set_config(facts, &format!("Mtu={}", mtu.outer.saturating_sub(overhead) / 16 * 16))
        };
        let sentence = format!(
            "the path to {address} carries packets of {} bytes ({}), so full packets of the tunnel leave in fragments",
            mtu.outer, mtu.reason
        );
        warning(&peer.name, sentence, command)
    };
    status.peers.iter().filter_map(finding).collect()
}

/// Loose mode wins over strict, since the higher value of the interface's and `all` counts.
fn loosen(interface: &str) -> String {
    format!("sysctl -w net/ipv4/conf/{}/rp_filter=2", quoted(interface))
}

pub(super) fn rule_catches(facts: &Facts, profile: &Profile, rule: &ForeignRule) -> Option<Finding> {
    if !may_catch(profile, rule) {
        return None;
    }
    let remote = facts.remote();
    let of_family = remote.iter().filter(|prefix| prefix.addr().is_ipv6() == rule.ipv6);
    let caught = of_family.clone().find(|prefix| {
        let meant = match &rule.destination {
            None => true,
            Some(destination) if rule.inverted => !destination.contains(*prefix),
            Some(destination) => overlap(destination, prefix),
        };
        meant && decides(facts, rule, prefix)
    })?;
    let family = if rule.ipv6 { " -6" } else { "" };
    let (what, table) = match rule.table {
        Some(table) => (format!("leads to table {table}"), format!(" table {table}")),
        None => ("drops".to_owned(), String::new()),
    };
    let to = rule.destination.map(|to| format!(" to {to}")).unwrap_or_default();
    let not = if rule.inverted { " not" } else { "" };
    error(
        format!("rule {}", rule.priority),
        format!(
            "it comes before the gateway's ({RULE_PRIORITY}), {what}, and keeps packets for {caught} out of the tunnel"
        ),
        format!("ip{family} rule del{not} priority {}{to}{table}", rule.priority),
    )
}

/// Whether packets from the LAN or from this host can match it before the gateway's rule.
fn may_catch(profile: &Profile, rule: &ForeignRule) -> bool {
    let comes_first = rule.priority < RULE_PRIORITY && rule.protocol != PROTOCOL;
    let elsewhere = rule.table != Some(LOCAL_TABLE) && rule.table != Some(profile.table);
    let ours_only = rule.mark == Some(profile.mark) && !rule.inverted;
    let input = rule.input.as_deref();
    let from_inside = input.is_none_or(|name| name == "lo" || profile.lan.interfaces.iter().any(|lan| lan == name));
    comes_first && elsewhere && !ours_only && from_inside && !rule.bound
}

/// Whether the table that the rule leads to decides on the prefix.
fn decides(facts: &Facts, rule: &ForeignRule, prefix: &ipnet::IpNet) -> bool {
    let Some(table) = rule.table else { return true };
    facts.routes.iter().any(|route| {
        let counts = rule.suppressed.is_none_or(|length| u32::from(route.destination.prefix_len()) > length);
        let whole = route.kind != RouteKind::Throw && route.protocol != PROTOCOL;
        route.table == table && counts && whole && overlap(&route.destination, prefix)
    })
}
