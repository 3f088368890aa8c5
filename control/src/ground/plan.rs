//! The difference between what should be and what is, as operations in an order that is safe at each step.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::actual::FilterState;
use super::own::Own;
use super::prefixes::{is_default, without};
use super::sysctls;
use super::{
    Actual, CONFINING_PRIORITIES, Filter, Network, Operation, PROTOCOL, RULE_PRIORITY, SMALLEST_MTU_V6, Sysctl, Tun,
    WAN_RULE_PRIORITY, Wanted, guard_metric, tunnel_metric,
};
use crate::netlink::{Interface, MAIN_TABLE, Route, RouteKind, Rule};

/// What is to be done, and what stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations: first the guard, then the tunnel, then removing what is no longer wanted.
    pub operations: Vec<Operation>,
    /// Obstacles that no operation can remove.
    pub findings: Vec<Finding>,
}

/// A condition that is a problem as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub subject: String,
    /// What is wrong.
    pub sentence: String,
    /// What an administrator can do.
    pub what_to_do: &'static str,
}

/// Compares the two.
#[must_use]
pub fn plan(wanted: &Wanted, actual: &Actual<'_>) -> Plan {
    let mut findings = Vec::new();
    let own = Own::sort_out(wanted, actual.network, &mut findings);
    let device = wanted.tun.as_ref().and_then(|tun| Some((tun, actual.network.interface(tun.index)?)));
    let routes = routes(wanted, &own, device, &mut findings);
    let mut rules = rules(wanted, &own, actual.network);
    rules.extend(confining_rules(wanted, &own));
    let settings = sysctls::wanted(wanted, &own, actual);

    let mut operations = Vec::new();
    let (added, removed) = route_changes(wanted, &routes, actual.network);
    // Removing a `throw` route closes an opening.
    let (openings, removed): (Vec<_>, Vec<_>) = removed.into_iter().partition(|r| r.kind == RouteKind::Throw);
    operations.extend(openings.into_iter().map(Operation::RemoveRoute));
    let (guard, tunnel): (Vec<_>, Vec<_>) = added.into_iter().partition(|r| r.kind == RouteKind::Blackhole);
    operations.extend(guard.into_iter().map(Operation::AddRoute));
    operations.extend(filter(wanted, &own, actual));
    operations.extend(rules.difference(&actual.network.rules).cloned().map(Operation::AddRule));
    if let Some((tun, interface)) = device {
        operations.extend(tun_operations(wanted, tun, interface, actual));
    }
    operations.extend(setting_operations(&settings, actual));
    operations.extend(tunnel.into_iter().map(Operation::AddRoute));

    // A table that is given up is first taken out of the look-ups: between the removal of a tunnel route and that of
    // the blackhole under it, the blackhole would drop what the new table carries.
    operations.extend(surplus_rules(wanted, &rules, actual.network).map(Operation::RemoveRule));
    // The tunnel's routes are removed before the blackholes under them.
    let (blackholes, others): (Vec<_>, Vec<_>) = removed.into_iter().partition(|r| r.kind == RouteKind::Blackhole);
    operations.extend(others.into_iter().chain(blackholes).map(Operation::RemoveRoute));
    operations.extend(restored(wanted, &settings, actual));
    Plan { operations, findings }
}

/// The wanted routes, by table, destination and metric.
fn routes(
    wanted: &Wanted,
    own: &Own,
    device: Option<(&Tun, &Interface)>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<(u32, IpNet, u32), Route> {
    let (best, worst) = (tunnel_metric(&wanted.name), guard_metric(&wanted.name));
    // Of two for the same key, the later one counts.
    let mut all = Vec::new();
    let mut add = |route: Route| all.push(((route.table, route.destination, route.metric), route));
    let too_small = device.is_some_and(|(_, interface)| interface.mtu < SMALLEST_MTU_V6);
    let by_tunnel = |destination: IpNet, of: IpNet| {
        let (tun, _) = device.filter(|_| destination.addr().is_ipv4() || !too_small)?;
        let source = if destination.addr().is_ipv4() { tun.source_v4 } else { tun.source_v6 };
        let route = Route::by(destination, tun.index, None, best, PROTOCOL);
        Some(Route { table: wanted.placement.table, source, mtu: wanted.mtus.get(&of).copied(), ..route })
    };
    let strays = own.strays.iter().map(|stray| (stray, own.guarded.covering(stray)));
    for (prefix, by) in own.guarded.iter().map(|prefix| (prefix, Some(*prefix))).chain(strays) {
        add(Route { table: wanted.placement.table, ..Route::blackhole(*prefix, worst, PROTOCOL) });
        if let Some(by) = by.filter(|by| wanted.tunnelled.contains(by)) {
            by_tunnel(*prefix, by).into_iter().for_each(&mut add);
        }
    }
    for network in own.thrown.union(&own.others) {
        if !own.strays.contains(network) {
            let route = Route::blackhole(*network, best, PROTOCOL);
            add(Route { table: wanted.placement.table, kind: RouteKind::Throw, ..route });
        }
    }
    for subnet in &own.lost {
        add(Route { table: wanted.placement.table, ..Route::blackhole(*subnet, best, PROTOCOL) });
    }
    for prefix in own.guarded.iter().filter(|p| !is_default(p)) {
        // In this order, the gaps inside a prefix follow it.
        let inside = own.gaps.range(*prefix..).take_while(|gap| prefix.contains(*gap)).copied().collect();
        for piece in without(*prefix, &inside) {
            add(Route::blackhole(piece, worst, PROTOCOL));
        }
    }
    if too_small && wanted.tunnelled.iter().any(|p| p.addr().is_ipv6()) {
        findings.push(Finding {
            subject: format!("IPv6 in {}", wanted.name),
            sentence: format!(
                "the tunnel's MTU is below {SMALLEST_MTU_V6}, the minimum for IPv6; remote IPv6 prefixes stay blocked"
            ),
            what_to_do: "raise Mtu in the profile, or the WAN's MTU",
        });
    }
    all.into_iter().collect()
}

/// Routes to add, and routes of ours to remove.
fn route_changes(
    wanted: &Wanted,
    routes: &BTreeMap<(u32, IpNet, u32), Route>,
    network: &Network,
) -> (Vec<Route>, Vec<Route>) {
    let (best, worst) = (tunnel_metric(&wanted.name), guard_metric(&wanted.name));
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    // Both are in the same order, and there may be tens of thousands.
    let mut should = routes.iter().peekable();
    let mut is_there = false;
    for route in network.routes() {
        let key = (route.table, route.destination, route.metric);
        while let Some((_, before)) = should.next_if(|(next, _)| **next < key) {
            added.extend((!std::mem::take(&mut is_there)).then_some(*before));
        }
        match should.peek() {
            // An existing route with the same key will be replaced.
            Some((next, wanted)) if **next == key => is_there |= is(wanted, route),
            _ if route.protocol == PROTOCOL && (route.metric == best || route.metric == worst) => removed.push(*route),
            _ => {}
        }
    }
    for (_, last) in should {
        added.extend((!std::mem::take(&mut is_there)).then_some(*last));
    }
    (added, removed)
}

/// Whether a route is as wanted. The kernel assigns an interface of its own to blackholes and the like.
fn is(should: &Route, route: &Route) -> bool {
    let way = |r: &Route| (r.kind == RouteKind::Unicast).then_some((r.interface, r.gateway, r.source, r.mtu));
    should.kind == route.kind && should.protocol == route.protocol && way(should) == way(route)
}

/// The wanted rules.
fn rules(wanted: &Wanted, own: &Own, network: &Network) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for ipv6 in [false, true] {
        if !own.guarded.lacks(ipv6) {
            rules.insert(rule(wanted, ipv6));
        }
    }
    let wan = network.named(&wanted.placement.wan).map(|interface| interface.index);
    for address in wan.into_iter().flat_map(|index| network.addresses_of(index)).filter(|a| a.global) {
        let ipv6 = address.address.is_ipv6();
        // The reverse path of a neighbour's ARP request is looked up too, without a mark.
        let link = address.network();
        let overlaps = |p: &IpNet| is_default(p) || p.contains(&link) || link.contains(p);
        if own.guarded.iter().any(|p| p.addr().is_ipv6() == ipv6 && overlaps(p)) {
            rules.insert(Rule {
                priority: WAN_RULE_PRIORITY,
                from: Some(address.address),
                input: Some("lo".to_owned()),
                unmarked: None,
                table: Some(MAIN_TABLE),
                ..rule(wanted, ipv6)
            });
        }
    }
    rules
}

fn rule(wanted: &Wanted, ipv6: bool) -> Rule {
    Rule {
        ipv6,
        priority: RULE_PRIORITY,
        from: None,
        input: None,
        unmarked: Some(wanted.placement.mark),
        table: Some(wanted.placement.table),
        without_default: false,
        protocol: PROTOCOL,
    }
}

/// The rules that keep what comes from the tunnel off the main table's default route: without them, it would leave by
/// the WAN when the LAN interface is gone. They come last, so that other people's rules decide before.
fn confining_rules(wanted: &Wanted, own: &Own) -> BTreeSet<Rule> {
    if !wanted.forward || !is_confined(wanted) {
        return BTreeSet::new();
    }
    let versions =
        [false, true].into_iter().filter(|ipv6| !own.guarded.lacks(*ipv6) && !own.default_by_lan[usize::from(*ipv6)]);
    let both = versions.flat_map(|ipv6| {
        let rule = Rule { unmarked: None, input: Some(wanted.name.to_string()), ..rule(wanted, ipv6) };
        let [main, drops] = CONFINING_PRIORITIES;
        [
            Rule { priority: main, table: Some(MAIN_TABLE), without_default: true, ..rule.clone() },
            Rule { priority: drops, table: None, ..rule },
        ]
    });
    both.collect()
}

/// Whether packets from the tunnel may go only to this site. Where no LAN interface is named, the kernel's routes alone
/// say where this site is.
fn is_confined(wanted: &Wanted) -> bool {
    !wanted.placement.transit && !wanted.placement.lan.is_empty()
}

/// Rules of ours that are no longer needed. Gateways in one namespace may share them: a rule stays as long as its table
/// has routes of another gateway.
fn surplus_rules<'a>(
    wanted: &'a Wanted,
    rules: &'a BTreeSet<Rule>,
    network: &'a Network,
) -> impl Iterator<Item = Rule> + 'a {
    let metrics = [tunnel_metric(&wanted.name), guard_metric(&wanted.name)];
    let others = move |table: Option<u32>, ipv6: bool| {
        network
            .routes()
            .filter(|r| r.table != MAIN_TABLE && r.protocol == PROTOCOL && !metrics.contains(&r.metric))
            .filter(|r| table.is_none_or(|table| r.table == table))
            .any(|r| r.destination.addr().is_ipv6() == ipv6)
    };
    let needless = move |rule: &Rule| match rule.from {
        None if rule.input.is_some() => rule.input.as_deref() == Some(wanted.name.as_str()),
        None => rule.priority == RULE_PRIORITY && rule.unmarked.is_some() && !others(rule.table, rule.ipv6),
        Some(from) if rule.priority == WAN_RULE_PRIORITY => {
            !network.addresses.iter().any(|a| a.address == from) || !others(None, rule.ipv6)
        }
        Some(_) => false,
    };
    network.rules.difference(rules).filter(|rule| rule.protocol == PROTOCOL).filter(move |r| needless(r)).cloned()
}

/// The change of the packet filter.
fn filter(wanted: &Wanted, own: &Own, actual: &Actual<'_>) -> Option<Operation> {
    if own.guarded.lacks(false) && own.guarded.lacks(true) {
        return (*actual.filter != FilterState::Absent).then(|| Operation::RemoveFilter(wanted.name.clone()));
    }
    let all: Vec<IpNet> = own.guarded.iter().copied().collect();
    let sources: Vec<IpNet> = all.iter().filter(|p| !is_default(p)).copied().collect();
    let filter = Box::new(Filter {
        name: wanted.name.clone(),
        inside: inside(wanted, actual.network),
        bridges: actual.network.bridges(),
        confined: is_confined(wanted),
        outward: IpNet::aggregate(&all).into_iter().collect(),
        inward: IpNet::aggregate(&sources).into_iter().collect(),
        local_port: wanted.local_port,
        mark: wanted.placement.mark,
        restores_mark: sysctls::must_restore_mark(wanted, own, actual),
    });
    (*actual.filter != FilterState::Set(filter.clone())).then_some(Operation::SetFilter(filter))
}

/// The interfaces between which packets of guarded prefixes may travel.
fn inside(wanted: &Wanted, network: &Network) -> BTreeSet<String> {
    let best = tunnel_metric(&wanted.name);
    // Whatever table they use.
    let others = network.routes().filter(|r| r.table != MAIN_TABLE && r.protocol == PROTOCOL && r.metric != best);
    let others = others.filter_map(|r| network.interface(r.interface?)).filter(|i| i.name != "lo");
    let names = others.map(|i| i.name.clone()).chain([wanted.name.to_string()]);
    names.filter(|name| *name != wanted.placement.wan).chain(wanted.placement.lan.iter().cloned()).collect()
}

/// What the tun device lacks. Some settings take effect only when it next comes up.
fn tun_operations(wanted: &Wanted, tun: &Tun, interface: &Interface, actual: &Actual<'_>) -> Vec<Operation> {
    let mut operations = Vec::new();
    let settings = sysctls::of_tun(wanted.name.as_str());
    let due: Vec<_> = settings.into_iter().filter(|(s, v)| actual.sysctls.get(s).is_some_and(|is| is != v)).collect();
    let restart = interface.up && due.iter().any(|(sysctl, _)| sysctl.name == sysctls::ADDRESS_GENERATION);
    if restart {
        operations.push(Operation::SetUp { interface: tun.index, up: false });
    }
    operations.extend(due.into_iter().map(|(sysctl, value)| Operation::SetSysctl { sysctl, value }));
    if restart || !interface.up {
        operations.push(Operation::SetUp { interface: tun.index, up: true });
    }
    if let Some(mtu) = tun.mtu.filter(|mtu| *mtu != interface.mtu) {
        operations.push(Operation::SetMtu { interface: tun.index, mtu });
    }
    let has: BTreeSet<_> = actual.network.addresses_of(tun.index).filter(|a| a.global).map(|a| a.address).collect();
    let possible = |a: &&std::net::IpAddr| a.is_ipv4() || interface.mtu >= SMALLEST_MTU_V6;
    let missing = tun.addresses.difference(&has).filter(possible);
    let surplus = has.difference(&tun.addresses);
    operations.extend(missing.map(|a| Operation::AddAddress { interface: tun.index, address: *a }));
    operations.extend(surplus.map(|a| Operation::RemoveAddress { interface: tun.index, address: *a }));
    operations
}

fn setting_operations<'a>(
    settings: &'a [(Sysctl, String)],
    actual: &'a Actual<'_>,
) -> impl Iterator<Item = Operation> + 'a {
    let due = settings.iter().filter(|(sysctl, value)| actual.sysctls.get(sysctl).is_some_and(|is| is != value));
    due.map(|(sysctl, value)| Operation::SetSysctl { sysctl: sysctl.clone(), value: value.clone() })
}

/// Settings that were changed and need not be any more get their original values back, the general ones first, since
/// they overwrite those of the interfaces.
fn restored<'a>(
    wanted: &'a Wanted,
    settings: &'a [(Sysctl, String)],
    actual: &'a Actual<'_>,
) -> impl Iterator<Item = Operation> + 'a {
    let kept: BTreeSet<&Sysctl> = settings.iter().map(|(sysctl, _)| sysctl).collect();
    let surplus = actual.saved.iter().filter(move |(sysctl, _)| {
        !kept.contains(sysctl)
            && sysctl.interface != wanted.name.as_str()
            // The value of a missing interface waits until it is back.
            && actual.sysctls.contains_key(sysctl)
    });
    let (general, others): (Vec<_>, Vec<_>) = surplus.partition(|(sysctl, _)| sysctl.interface == "all");
    let back = general.into_iter().chain(others);
    back.map(|(sysctl, value)| Operation::RestoreSysctl { sysctl: sysctl.clone(), value: value.clone() })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Instant;

    use super::super::Placement;
    use super::super::network::PROTOCOL_KERNEL;
    use super::*;
    use crate::ground::{DEFAULT_MARK, DEFAULT_TABLE, Interest};
    use crate::profile::Name;

    /// The number of sites. For the figures of 5,000:
    /// `PENSTOCK_TEST_LONG=1 cargo test --release --workspace --lib ground::plan -- --nocapture`.
    fn sites() -> u16 {
        if std::env::var_os("PENSTOCK_TEST_LONG").is_some() { 5_000 } else { 300 }
    }

    /// A subnet and an address of each.
    fn prefixes(sites: u16) -> BTreeSet<IpNet> {
        let of = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [format!("10.{high}.{low}.0/24"), format!("100.64.{high}.{low}/32")].map(|text| text.parse().unwrap())
        };
        (1..=sites).flat_map(of).collect()
    }

    /// A network of three interfaces: the WAN's, the LAN's and, with index 3, the tunnel's.
    fn network() -> Network {
        let mut network = Network::empty(Interest { table: DEFAULT_TABLE, lan: BTreeSet::from(["lan0".to_owned()]) });
        let up = |index, name: &str| Interface {
            index,
            name: name.into(),
            mac: None,
            mtu: 1420,
            up: true,
            kind: None,
            port_of: None,
            queues: 1,
        };
        network.interfaces = [up(1, "wan0"), up(2, "lan0"), up(3, "pen0")].map(|i| (i.index, i)).into();
        network
    }

    fn wanted(sites: u16, tun: Tun) -> Wanted {
        Wanted {
            name: Name::try_from("pen0".to_owned()).unwrap(),
            placement: Placement {
                profile: "a.profile".into(),
                table: DEFAULT_TABLE,
                mark: DEFAULT_MARK,
                wan: "wan0".into(),
                lan: BTreeSet::from(["lan0".to_owned()]),
                local: BTreeSet::new(),
                transit: false,
            },
            tun: Some(tun),
            tunnelled: prefixes(sites),
            mtus: BTreeMap::new(),
            guarded: prefixes(sites),
            outer: BTreeSet::new(),
            local_port: Some(47100),
            forward: true,
        }
    }

    fn compare(wanted: &Wanted, network: &Network, filter: &FilterState) -> Vec<Operation> {
        let (sysctls, saved) = (BTreeMap::new(), BTreeMap::new());
        plan(wanted, &Actual { network, sysctls: &sysctls, saved: &saved, filter }).operations
    }

    /// The old table's blackholes must not take packets while its tunnel routes are removed.
    #[test]
    fn a_table_that_is_left_is_not_looked_up_while_it_is_emptied() {
        let mut network = network();
        let tun = Tun { index: 3, mtu: None, addresses: BTreeSet::new(), source_v4: None, source_v6: None };
        let old = wanted(1, tun);
        for operation in compare(&old, &network, &FilterState::Absent) {
            match operation {
                Operation::AddRoute(route) => drop(network.insert(route, false)),
                Operation::AddRule(rule) => drop(network.rules.insert(rule.clone())),
                _ => {}
            }
        }
        let operations = compare(
            &Wanted { placement: Placement { table: 4242, ..old.placement.clone() }, ..old },
            &network,
            &FilterState::Absent,
        );
        let last = |is: &dyn Fn(&Operation) -> bool| operations.iter().rposition(is).expect("an operation");
        let first = |is: &dyn Fn(&Operation) -> bool| operations.iter().position(is).expect("an operation");
        let added = last(&|o| matches!(o, Operation::AddRoute(_)));
        let looked_up = last(&|o| matches!(o, Operation::AddRule(_)));
        let (left, emptied) =
            (last(&|o| matches!(o, Operation::RemoveRule(_))), first(&|o| matches!(o, Operation::RemoveRoute(_))));
        assert!(added < left && looked_up < left && left < emptied, "{operations:#?}");
    }

    /// Outer addresses inside a guarded prefix: one on the WAN's network, one on the LAN's, one beyond a router.
    #[test]
    fn a_gap_blocks_no_other_address_of_an_interface_s_network() {
        let mut network = network();
        for (index, destination) in [(1, "10.9.0.0/24"), (2, "10.1.0.0/16")] {
            network.insert(Route::by(destination.parse().unwrap(), index, None, 0, PROTOCOL_KERNEL), false);
        }
        let tun = Tun { index: 3, mtu: None, addresses: BTreeSet::new(), source_v4: None, source_v6: None };
        let wide: BTreeSet<IpNet> = BTreeSet::from(["10.0.0.0/8".parse().unwrap()]);
        let outer = ["10.9.0.2", "10.1.0.9", "10.200.0.5"].map(|address| address.parse().unwrap()).into();
        let wanted = Wanted { tunnelled: wide.clone(), guarded: wide, outer, ..wanted(0, tun) };
        let blocked: Vec<IpNet> = compare(&wanted, &network, &FilterState::Absent)
            .into_iter()
            .filter_map(|operation| match operation {
                Operation::AddRoute(Route { table: MAIN_TABLE, kind: RouteKind::Blackhole, destination, .. }) => {
                    Some(destination)
                }
                _ => None,
            })
            .collect();
        let longest = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            blocked.iter().filter(|prefix| prefix.contains(&address)).map(IpNet::prefix_len).max()
        };
        assert_eq!(longest("10.200.0.5"), None, "beyond the router");
        assert_eq!(longest("10.200.0.4"), Some(32));
        for address in ["10.9.0.2", "10.9.0.3", "10.9.0.1"] {
            assert!(longest(address).is_some_and(|length| length < 24), "{address}: the WAN's network decides");
        }
        for address in ["10.1.0.9", "10.1.0.8", "10.1.255.1"] {
            assert!(longest(address).is_some_and(|length| length < 16), "{address}: the LAN's network decides");
        }
    }

    #[test]
    fn one_site_more_is_a_few_operations() {
        let mut network = network();
        let tun = Tun { index: 3, mtu: None, addresses: BTreeSet::new(), source_v4: None, source_v6: None };
        let wanted = |sites| wanted(sites, tun.clone());
        let count = sites();
        let mut filter = FilterState::Absent;
        let first = compare(&wanted(count), &network, &filter);
        assert!(first.len() > 6 * usize::from(count), "two blackholes and a route of each prefix");
        for operation in first {
            match operation {
                Operation::AddRoute(route) => drop(network.insert(route, false)),
                Operation::AddRule(rule) => drop(network.rules.insert(rule.clone())),
                Operation::SetFilter(set) => filter = FilterState::Set(set),
                other => panic!("{other}"),
            }
        }
        assert_eq!(compare(&wanted(count), &network, &filter), []);
        let more = wanted(count + 1);
        let begun = Instant::now();
        let operations = compare(&more, &network, &filter);
        println!("{count} sites and one more: planned in {:.1?}", begun.elapsed());
        let is_route = |operation: &&Operation| matches!(operation, Operation::AddRoute(_));
        assert_eq!((operations.iter().filter(is_route).count(), operations.len()), (6, 7), "{operations:#?}");
    }
}
