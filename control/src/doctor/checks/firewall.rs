//! Rules of the packet filter that certainly drop what the gateway needs. Where a rule may let some of it through, that
//! is taken to be intended.

use penstock_dataplane::filter::Direction;

use super::{Port, error, path, quoted, set_config, warning};
use crate::bypass::{Barrier, Inside, Outside};
use crate::doctor::Finding;
use crate::doctor::facts::Facts;
use crate::profile::{LanMode, LocalPort, Profile};

/// A port that differs at each start is for sites that find each other by a coordinator and need no rule.
pub(super) fn keeps_calls_out(facts: &Facts) -> Option<Finding> {
    let profile = facts.profile.as_ref()?;
    let outside = outside(facts, profile)?;
    let (wan, port) = (&outside.wan, outside.port);
    let barrier = facts.firewall.barrier_wan(&outside)?;
    let sentence = format!("{} drops unsolicited packets to it, so no peer can connect first", barrier.rule);
    let (nft, iptables) = (format!(" udp dport {port}"), format!(" -p udp --dport {port}"));
    let command = let_through(facts, &barrier, wan, None, [&nft, &iptables]);
    warning(format!("UDP port {port}"), sentence, command)
}

/// With AF_XDP nothing is dropped there, and `auto` takes sockets where there is such a rule.
pub(super) fn keeps_the_lan_apart(facts: &Facts, profile: &Profile, port: &Port<'_>) -> Option<Finding> {
    if port.wan || profile.lan.mode == LanMode::Xdp || !facts.links.contains_key(port.name) {
        return None;
    }
    let (lan, tunnel) = (port.name, profile.name.as_str());
    let own = profile.lan.subnets.iter().copied().collect();
    let inside = Inside { lan, tunnel, own: &own, remote: &facts.remote() };
    let directions = [(Direction::Out, [lan, tunnel]), (Direction::In, [tunnel, lan])];
    let barriers = directions
        .map(|(direction, ends)| facts.firewall.barrier_lan(&inside, direction).map(|barrier| (barrier, ends)));
    let command = |(barrier, [from, to]): &(Barrier, [&str; 2])| let_through(facts, barrier, from, Some(to), [""; 2]);
    match &barriers {
        [Some(one), Some(other)] => {
            let mut commands = vec![command(one), command(other)];
            commands.dedup();
            let sentence = format!("{} drops new connections between this interface and the tunnel", one.0.rule);
            error(lan, sentence, commands.join(" && "))
        }
        [Some(one), None] => {
            let sentence = format!("{} drops new connections from this interface into the tunnel", one.0.rule);
            warning(lan, sentence, command(one))
        }
        [None, Some(one)] => {
            let sentence = format!("{} drops new connections from the tunnel to this interface", one.0.rule);
            warning(lan, sentence, command(one))
        }
        [None, None] => None,
    }
}

/// A rule that AF_XDP does not apply, where the profile demands it. `auto` takes sockets there.
pub(super) fn is_bypassed(facts: &Facts, profile: &Profile, port: &Port<'_>) -> Option<Finding> {
    if !port.demands_xdp || !facts.links.contains_key(port.name) {
        return None;
    }
    let (rule, setting) = if port.wan {
        (facts.firewall.concerns_wan(&outside(facts, profile)?)?, "Wan.Mode=auto")
    } else {
        let own = profile.lan.subnets.iter().copied().collect();
        let inside = Inside { lan: port.name, tunnel: profile.name.as_str(), own: &own, remote: &facts.remote() };
        (facts.firewall.concerns_lan(&inside)?, "Lan.Mode=auto")
    };
    let sentence = format!("what AF_XDP carries on it bypasses {rule}; express it in Firewall, or leave AF_XDP");
    warning(port.name, sentence, set_config(facts, setting))
}

/// The tunnel's packets on the WAN, if their port is known.
fn outside(facts: &Facts, profile: &Profile) -> Option<Outside> {
    let LocalPort::Pinned(port) = profile.local_port else { return None };
    Some(Outside { wan: profile.wan.interface.clone(), port, addresses: facts.wan_addresses.clone() })
}

/// The command that accepts packets before the barrier; `[nft, iptables]` is what both look for besides the interfaces.
fn let_through(facts: &Facts, barrier: &Barrier, from: &str, to: Option<&str>, [nft, iptables]: [&str; 2]) -> String {
    let Barrier { table, chain, .. } = barrier;
    let way = |input: &str, output: &str| {
        let to = to.map(|to| format!(" {output} {}", quoted(to))).unwrap_or_default();
        format!("{input} {}{to}", quoted(from))
    };
    match table.split_once(" of ") {
        Some((table, program)) => {
            let table = if table == "filter" { String::new() } else { format!(" -t {}", quoted(table)) };
            format!("{program}{table} -I {} {}{iptables} -j ACCEPT", quoted(chain), way("-i", "-o"))
        }
        // firewalld lets nobody else change its table.
        None if table == "inet firewalld" => {
            format!("penstock firewall --format firewalld --profile {} | sh", path(&facts.file.path))
        }
        None => {
            let [table, chain] = [table, chain].map(|words| words.split(' ').map(quoted).collect::<Vec<_>>().join(" "));
            format!("nft insert rule {table} {chain} {}{nft} accept", way("iifname", "oifname"))
        }
    }
}
