//! A network stack in memory, with the kernel's rules about what disappears when a device goes down or is removed, and
//! with the fate of packets in it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;

use super::oracle::Watch;
use crate::ground::{Filter, FilterState, Kernel, Operation, PROTOCOL, Sysctl};
use crate::netlink::{Address, ForeignRule, Interface, MAIN_TABLE, Neighbour, News, Route, RouteKind, Rule};
use crate::profile::Name;

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    OwnTable,
    MainTable,
    Rules,
    Filter,
    Settings,
    Interfaces,
}

/// The state of the stack.
#[derive(Clone, Default)]
pub struct Stack {
    pub interfaces: BTreeMap<u32, Interface>,
    pub addresses: BTreeSet<Address>,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
    /// The filters by gateway; `None` for one that somebody has tampered with.
    pub filters: BTreeMap<String, Option<Filter>>,
    pub sysctls: BTreeMap<Sysctl, String>,
    /// The operations that fail at present.
    pub faults: BTreeSet<Fault>,
    /// News, for each listener.
    pub news: [Vec<News>; 2],
    next_index: u32,
    /// What must hold after each operation.
    pub watch: Watch,
}

impl Stack {
    pub fn tell(&mut self, news: &News) {
        self.news.iter_mut().for_each(|queue| queue.push(news.clone()));
    }

    pub fn named(&self, name: &str) -> Option<u32> {
        self.interfaces.values().find(|i| i.name == name).map(|i| i.index)
    }

    /// Adds an interface, up unless it is a tun device, with an index that was never used before.
    pub fn add_interface(&mut self, name: &str, mtu: u32, up: bool) -> u32 {
        self.next_index += 1;
        let index = self.next_index;
        let interface =
            Interface { index, name: name.to_owned(), mac: None, mtu, up, kind: None, port_of: None, queues: 1 };
        self.interfaces.insert(index, interface.clone());
        let settings = [("forwarding", "0"), ("rp_filter", "0"), ("send_redirects", "1"), ("src_valid_mark", "0")];
        for (setting, value) in settings {
            self.sysctls.insert(Sysctl::v4(name, setting), value.to_owned());
        }
        for (setting, value) in [("forwarding", "0"), ("accept_ra", "1"), ("addr_gen_mode", "0")] {
            self.sysctls.insert(Sysctl::v6(name, setting), value.to_owned());
        }
        self.tell(&News::Interface(interface));
        index
    }

    pub fn remove_interface(&mut self, index: u32) {
        let Some(interface) = self.interfaces.get(&index).cloned() else { return };
        self.set_up(index, false);
        for address in self.addresses.clone().into_iter().filter(|a| a.interface == index) {
            self.addresses.remove(&address);
            self.tell(&News::AddressGone(address));
        }
        self.interfaces.remove(&index);
        self.sysctls.retain(|sysctl, _| sysctl.interface != interface.name);
        self.tell(&News::InterfaceGone(index));
    }

    pub fn set_up(&mut self, index: u32, up: bool) {
        let Some(interface) = self.interfaces.get_mut(&index) else { return };
        let was = std::mem::replace(&mut interface.up, up);
        let interface = interface.clone();
        if was && !up {
            // IPv4 routes disappear silently, IPv6 ones are reported.
            for route in self.routes.clone().into_iter().filter(|r| r.interface == Some(index)) {
                self.routes.remove(&route);
                if route.destination.addr().is_ipv6() {
                    self.tell(&News::RouteGone(route));
                }
            }
            for address in self.addresses.clone() {
                if address.interface == index && address.address.is_ipv6() {
                    self.addresses.remove(&address);
                    self.tell(&News::AddressGone(address));
                }
            }
        }
        if !was && up {
            for address in self.addresses.clone().into_iter().filter(|a| a.interface == index) {
                self.connect(&address);
            }
        }
        self.tell(&News::Interface(interface));
    }

    pub fn add_address(&mut self, index: u32, address: &str) {
        let net: IpNet = address.parse().unwrap();
        let address = Address { interface: index, address: net.addr(), length: net.prefix_len(), global: true };
        if self.addresses.insert(address) {
            self.tell(&News::Address(address));
            if self.interfaces[&index].up {
                self.connect(&address);
            }
        }
    }

    /// The route that comes with an address.
    fn connect(&mut self, address: &Address) {
        let network = address.network();
        if network.prefix_len() < IpNet::from(address.address).prefix_len() {
            let metric = if address.address.is_ipv6() { 256 } else { 0 };
            self.add_route(Route::by(network, address.interface, None, metric, 2));
        }
    }

    pub fn remove_address(&mut self, address: Address) {
        if !self.addresses.remove(&address) {
            return;
        }
        let connected =
            |r: &Route| r.protocol == 2 && r.interface == Some(address.interface) && r.destination == address.network();
        for route in self.routes.clone().into_iter().filter(connected) {
            self.routes.remove(&route);
            self.tell(&News::RouteGone(route));
        }
        // Routes of the main table with this source address disappear silently.
        self.routes.retain(|r| r.table != MAIN_TABLE || r.source != Some(address.address));
        let others = self.addresses.iter().any(|a| a.interface == address.interface && a.address.is_ipv4());
        if address.address.is_ipv4() && !others {
            self.routes.retain(|r| r.interface != Some(address.interface) || r.destination.addr().is_ipv6());
        }
        self.tell(&News::AddressGone(address));
    }

    pub fn add_route(&mut self, route: Route) {
        let old = self.routes.iter().find(|r| key(r) == key(&route)).copied();
        if let Some(old) = old {
            self.routes.remove(&old);
        }
        self.routes.insert(route);
        self.tell(&News::Route { route, replaces: old.is_some() });
    }

    pub fn remove_routes(&mut self, which: impl Fn(&Route) -> bool) {
        for route in self.routes.clone().into_iter().filter(|r| which(r)) {
            self.routes.remove(&route);
            self.tell(&News::RouteGone(route));
        }
    }

    pub fn remove_rules(&mut self) {
        for rule in std::mem::take(&mut self.rules) {
            self.tell(&News::RuleGone(rule));
        }
    }

    fn fault(&self, operation: &Operation) -> bool {
        self.faults.iter().any(|fault| match (fault, operation) {
            (Fault::OwnTable, Operation::AddRoute(r) | Operation::RemoveRoute(r)) => r.table != MAIN_TABLE,
            (Fault::MainTable, Operation::AddRoute(r) | Operation::RemoveRoute(r)) => r.table == MAIN_TABLE,
            (Fault::Rules, Operation::AddRule(_) | Operation::RemoveRule(_)) => true,
            (Fault::Filter, Operation::SetFilter(_) | Operation::RemoveFilter(_)) => true,
            (Fault::Settings, Operation::SetSysctl { .. } | Operation::RestoreSysctl { .. }) => true,
            (Fault::Interfaces, Operation::SetUp { .. } | Operation::AddAddress { .. }) => true,
            _ => false,
        })
    }

    fn apply(&mut self, operation: &Operation) -> io::Result<()> {
        let error = |code| Err(io::Error::from_raw_os_error(code));
        if self.fault(operation) {
            return error(libc::EPERM);
        }
        match operation {
            Operation::SetUp { interface, .. } | Operation::AddAddress { interface, .. }
                if !self.interfaces.contains_key(interface) =>
            {
                return error(libc::ENODEV);
            }
            Operation::SetUp { interface, up } => self.set_up(*interface, *up),
            Operation::SetMtu { interface, mtu } => match self.interfaces.get_mut(interface) {
                Some(interface) => interface.mtu = *mtu,
                None => return error(libc::ENODEV),
            },
            Operation::AddAddress { interface, address } => {
                self.add_address(*interface, &IpNet::from(*address).to_string());
            }
            Operation::RemoveAddress { interface, address } => {
                let found = self.addresses.iter().find(|a| (a.interface, a.address) == (*interface, *address));
                if let Some(found) = found.copied() {
                    self.remove_address(found);
                }
            }
            Operation::SetSysctl { sysctl, value } | Operation::RestoreSysctl { sysctl, value } => {
                let Some(there) = self.sysctls.get_mut(sysctl) else { return error(libc::ENOENT) };
                there.clone_from(value);
                if *sysctl == Sysctl::v6("all", "forwarding") {
                    let each = self.sysctls.iter_mut().filter(|(s, _)| s.ipv6 && s.name == "forwarding");
                    each.for_each(|(_, v)| v.clone_from(value));
                }
            }
            Operation::AddRoute(route) => {
                if route.kind == RouteKind::Unicast {
                    let interface = route.interface.and_then(|index| self.interfaces.get(&index));
                    match interface {
                        None => return error(libc::ENODEV),
                        Some(interface) if !interface.up => return error(libc::ENETDOWN),
                        Some(interface) if route.destination.addr().is_ipv6() && interface.mtu < 1280 => {
                            return error(libc::EINVAL);
                        }
                        Some(_) => {}
                    }
                    if route.source.is_some_and(|source| !self.is_own(source)) {
                        return error(libc::EINVAL);
                    }
                }
                self.add_route(*route);
            }
            Operation::RemoveRoute(route) => {
                let same = |r: &Route| key(r) == key(route) && r.kind == route.kind;
                self.remove_routes(same);
            }
            Operation::AddRule(rule) => {
                if self.rules.insert(rule.clone()) {
                    self.tell(&News::Rule(rule.clone()));
                }
            }
            Operation::RemoveRule(rule) => {
                if self.rules.remove(rule) {
                    self.tell(&News::RuleGone(rule.clone()));
                }
            }
            Operation::SetFilter(filter) => {
                self.filters.insert(filter.name.to_string(), Some(Filter::clone(filter)));
                self.tell(&News::Filter);
            }
            Operation::RemoveFilter(name) => {
                self.filters.remove(name.as_str());
                self.tell(&News::Filter);
            }
        }
        Ok(())
    }

    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }
}

fn key(route: &Route) -> (u32, IpNet, u32) {
    (route.table, route.destination, route.metric)
}

impl Stack {
    /// A copy without anything that a gateway has made.
    pub fn without_gateways(&self) -> Self {
        let mut bare = self.clone();
        bare.routes.retain(|r| r.protocol != PROTOCOL);
        bare.rules.retain(|r| r.protocol != PROTOCOL);
        bare.filters.clear();
        bare
    }
}

/// One gateway's handle to the stack.
pub struct Handle {
    pub stack: Rc<RefCell<Stack>>,
    pub printed: Option<Filter>,
}

impl Kernel for Handle {
    fn apply(&mut self, operation: &Operation) -> io::Result<()> {
        let mut stack = self.stack.borrow_mut();
        let outcome = stack.apply(operation);
        if let (Ok(()), Operation::SetFilter(filter)) = (&outcome, operation) {
            self.printed = Some(Filter::clone(filter));
        }
        // Settings do not affect packets here, and a failed operation has changed nothing.
        let settings = matches!(operation, Operation::SetSysctl { .. } | Operation::RestoreSysctl { .. });
        if outcome.is_ok() && !settings {
            stack.watch.check(&stack, || format!("after: {operation}"));
        }
        outcome
    }

    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        Ok(self.stack.borrow().interfaces.values().cloned().collect())
    }

    fn addresses(&mut self) -> io::Result<Vec<Address>> {
        Ok(self.stack.borrow().addresses.iter().copied().collect())
    }

    fn routes(&mut self, keep: &mut dyn FnMut(&Route) -> bool) -> io::Result<Vec<Route>> {
        Ok(self.stack.borrow().routes.iter().copied().filter(|r| keep(r)).collect())
    }

    fn rules(&mut self) -> io::Result<Vec<Rule>> {
        Ok(self.stack.borrow().rules.iter().cloned().collect())
    }

    fn other_rules(&mut self) -> io::Result<Vec<ForeignRule>> {
        Ok(Vec::new())
    }

    fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        Ok(Vec::new())
    }

    fn filter(&mut self, name: &Name) -> io::Result<FilterState> {
        Ok(match (self.stack.borrow().filters.get(name.as_str()), &self.printed) {
            (None, _) => FilterState::Absent,
            (Some(there), printed) if there.is_some() && there == printed => {
                FilterState::Set(Box::new(there.clone().expect("looked at")))
            }
            _ => FilterState::Foreign,
        })
    }

    fn sysctl(&mut self, sysctl: &Sysctl) -> Option<String> {
        self.stack.borrow().sysctls.get(sysctl).cloned()
    }
}
