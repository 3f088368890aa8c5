//! Rules that others have made (`ip rule`), as far as they may decide on the tunnel's packets. AF_XDP bypasses rules,
//! so whatever one may decide on is left to the kernel.
//!
//! Of a rule's conditions only addresses, interface and mark are considered; any other may hold. The packets that
//! workers carry have no mark.

use ipnet::IpNet;

use super::prefixes::all;
use super::{MAIN_PRIORITY, Network, PROTOCOL, RULE_PRIORITY};
use crate::netlink::{ForeignRule, Interface, LOCAL_TABLE, MAIN_TABLE};

impl Network {
    /// Destinations of packets from the tunnel on which a rule may decide before the main table does.
    #[must_use]
    pub fn ruled_from_tunnel(&self) -> Vec<IpNet> {
        let main = [false, true].map(|ipv6| self.main_decides_at(ipv6));
        self.ruled(
            |rule| rule.table != Some(MAIN_TABLE) && rule.priority < main[usize::from(rule.ipv6)],
            |interface| interface.kind.as_deref() == Some("tun"),
        )
    }

    /// Destinations of packets from the LAN on which a rule may decide before the gateway's own does.
    #[must_use]
    pub fn ruled_from_lan(&self) -> Vec<IpNet> {
        let lan = &self.interest().lan;
        self.ruled(|rule| rule.priority < RULE_PRIORITY, |interface| lan.contains(&interface.name))
    }

    fn ruled(&self, comes_first: impl Fn(&ForeignRule) -> bool, brings: impl Fn(&Interface) -> bool) -> Vec<IpNet> {
        let others = self.addresses.iter().filter(|a| self.interface(a.interface).is_some_and(|i| !brings(i)));
        let elsewhere: Vec<IpNet> = others.map(|address| address.network()).collect();
        let means = |rule: &ForeignRule| {
            let input = rule.input.as_ref().is_none_or(|name| self.named(name).is_some_and(&brings));
            let source = rule.source.is_none_or(|source| !elsewhere.iter().any(|network| network.contains(&source)));
            rule.inverted || (input && source && rule.mark.is_none_or(|mark| mark == 0))
        };
        let table = |rule: &ForeignRule| rule.table != Some(LOCAL_TABLE) && rule.table != Some(self.interest().table);
        let rules =
            self.rules_of_others().filter(|rule| !rule.bound && table(rule) && comes_first(rule) && means(rule));
        rules.map(|rule| destinations(&rule)).collect()
    }

    /// The rules that no gateway has made.
    fn rules_of_others(&self) -> impl Iterator<Item = ForeignRule> {
        let of_our_shape = self.rules.iter().map(ForeignRule::from);
        of_our_shape.chain(self.other_rules.iter().cloned()).filter(|rule| rule.protocol != PROTOCOL)
    }

    /// The priority of the first rule with which the main table decides on all packets, except those that would take
    /// its default route.
    fn main_decides_at(&self, ipv6: bool) -> u32 {
        let for_all = |rule: &ForeignRule| {
            let ForeignRule { priority, protocol, .. } = *rule;
            let suppressed = rule.suppressed.filter(|length| *length == 0);
            *rule
                == ForeignRule {
                    ipv6,
                    priority,
                    protocol,
                    suppressed,
                    table: Some(MAIN_TABLE),
                    ..ForeignRule::default()
                }
        };
        let first = self.rules_of_others().filter(for_all).map(|rule| rule.priority).min();
        first.unwrap_or(MAIN_PRIORITY).min(MAIN_PRIORITY)
    }
}

/// The destinations of a rule.
fn destinations(rule: &ForeignRule) -> IpNet {
    rule.destination.filter(|_| !rule.inverted).unwrap_or_else(|| all(rule.ipv6))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    use crate::ground::Interest;
    use crate::netlink::Address;

    /// A gateway with the LAN 10.1.0.0/24, the WAN 192.0.2.0/24 and the tun device p0.
    fn network(rules: &[ForeignRule]) -> Network {
        let mut network = Network::empty(Interest { table: 47100, lan: BTreeSet::from(["lan0".to_owned()]) });
        for (index, name, kind) in [(1, "lan0", "veth"), (2, "wan0", "veth"), (3, "p0", "tun")] {
            network.interfaces.insert(
                index,
                Interface {
                    index,
                    name: name.to_owned(),
                    mac: None,
                    mtu: 1500,
                    up: true,
                    kind: Some(kind.to_owned()),
                    port_of: None,
                    queues: 1,
                },
            );
        }
        for (interface, address) in [(1, "10.1.0.1"), (2, "192.0.2.1")] {
            let address = address.parse().unwrap();
            network.addresses.insert(Address { interface, address, length: 24, global: true });
        }
        network.other_rules = rules.to_vec();
        network
    }

    fn net(text: &str) -> Option<IpNet> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn what_a_rule_may_decide_about_is_found_and_nothing_else() {
        let rule = ForeignRule { priority: 100, table: Some(200), ..ForeignRule::default() };
        let by = |name: &str| Some(name.to_owned());
        let everything = Some("0.0.0.0/0");
        let to = net("10.9.0.0/16");
        for (name, rule, from_tunnel, from_lan) in [
            ("all", rule.clone(), everything, everything),
            ("a prefix", ForeignRule { destination: to, ..rule.clone() }, Some("10.9.0.0/16"), Some("10.9.0.0/16")),
            (
                "all but a prefix",
                ForeignRule { destination: to, inverted: true, ..rule.clone() },
                everything,
                everything,
            ),
            ("that drops, or goes on elsewhere", ForeignRule { table: None, ..rule.clone() }, everything, everything),
            ("from a remote site", ForeignRule { source: net("10.7.0.0/16"), ..rule.clone() }, everything, everything),
            ("from the LAN", ForeignRule { source: net("10.1.0.7/32"), ..rule.clone() }, None, everything),
            ("from the WAN's address", ForeignRule { source: net("192.0.2.1/32"), ..rule.clone() }, None, None),
            ("by the LAN", ForeignRule { input: by("lan0"), ..rule.clone() }, None, everything),
            ("by the tunnel", ForeignRule { input: by("p0"), ..rule.clone() }, everything, None),
            ("of this host", ForeignRule { input: by("lo"), ..rule.clone() }, None, None),
            ("marked", ForeignRule { mark: Some(7), ..rule.clone() }, None, None),
            ("not marked", ForeignRule { mark: Some(7), inverted: true, ..rule.clone() }, everything, everything),
            ("behind ours", ForeignRule { priority: 5000, ..rule.clone() }, everything, None),
            ("behind the main table's", ForeignRule { priority: 32_767, ..rule.clone() }, None, None),
            ("for the main table", ForeignRule { table: Some(MAIN_TABLE), ..rule.clone() }, None, everything),
            ("for our table", ForeignRule { table: Some(47100), ..rule.clone() }, None, None),
            ("a gateway's", ForeignRule { protocol: PROTOCOL, ..rule.clone() }, None, None),
            ("bound", ForeignRule { bound: true, ..rule.clone() }, None, None),
        ] {
            let network = network(&[rule]);
            let found = |prefixes: Vec<IpNet>| prefixes.first().map(ToString::to_string);
            assert_eq!(found(network.ruled_from_tunnel()).as_deref(), from_tunnel, "{name}, from the tunnel");
            assert_eq!(found(network.ruled_from_lan()).as_deref(), from_lan, "{name}, from the LAN");
        }
    }

    /// As set up by wg-quick for a default route: the main table's longer routes come first.
    #[test]
    fn a_rule_behind_the_main_table_s_longer_routes_decides_nothing() {
        let main =
            ForeignRule { priority: 32_764, table: Some(MAIN_TABLE), suppressed: Some(0), ..ForeignRule::default() };
        let rest = ForeignRule {
            priority: 32_765,
            table: Some(51_820),
            mark: Some(51_820),
            inverted: true,
            ..ForeignRule::default()
        };
        assert!(network(&[main.clone(), rest.clone()]).ruled_from_tunnel().is_empty());
        assert!(!network(std::slice::from_ref(&rest)).ruled_from_tunnel().is_empty());
        let v6 = ForeignRule { ipv6: true, ..main };
        assert!(!network(&[v6, rest]).ruled_from_tunnel().is_empty(), "of the other family");
    }
}
