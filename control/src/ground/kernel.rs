//! The interface to the kernel: reading its state, and changing it.

use std::io;

use super::{Filter, FilterState, Operation, Sysctl, filter};
use crate::netlink::{Address, ForeignRule, Interface, Neighbour, Netlink, Route, Rule};
use crate::profile::Name;

/// A network stack.
pub trait Kernel {
    /// Carries out an operation.
    ///
    /// # Errors
    /// The kernel's error.
    fn apply(&mut self, operation: &Operation) -> io::Result<()>;

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel's error.
    fn interfaces(&mut self) -> io::Result<Vec<Interface>>;

    /// All addresses.
    ///
    /// # Errors
    /// The kernel's error.
    fn addresses(&mut self) -> io::Result<Vec<Address>>;

    /// The routes of all tables for which `keep` returns true.
    ///
    /// # Errors
    /// The kernel's error.
    fn routes(&mut self, keep: &mut dyn FnMut(&Route) -> bool) -> io::Result<Vec<Route>>;

    /// All rules in the forms that a gateway uses.
    ///
    /// # Errors
    /// The kernel's error.
    fn rules(&mut self) -> io::Result<Vec<Rule>>;

    /// The rules in other forms that lead to a table or drop.
    ///
    /// # Errors
    /// The kernel's error.
    fn other_rules(&mut self) -> io::Result<Vec<ForeignRule>>;

    /// All resolved neighbours.
    ///
    /// # Errors
    /// The kernel's error.
    fn neighbours(&mut self) -> io::Result<Vec<Neighbour>>;

    /// The state of the packet filter of the gateway of this name.
    ///
    /// # Errors
    /// It cannot be read.
    fn filter(&mut self, name: &Name) -> io::Result<FilterState>;

    /// The value of a setting; `None` if it does not exist, such as that of an interface without IPv6.
    fn sysctl(&mut self, sysctl: &Sysctl) -> Option<String>;
}

/// Linux, over rtnetlink, `nft` and `/proc/sys/net`.
pub struct Linux {
    netlink: Netlink,
    /// The filter that was last set, and how nft printed it then.
    printed: Option<(Filter, serde_json::Value)>,
}

impl Linux {
    /// Opens the sockets, in the network namespace of this thread.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, printed: None })
    }

    /// The socket, for look-ups by other parts.
    pub fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }
}

impl Kernel for Linux {
    fn apply(&mut self, operation: &Operation) -> io::Result<()> {
        let netlink = &mut self.netlink;
        match operation {
            Operation::SetUp { interface, up } => netlink.set_up(*interface, *up),
            Operation::SetMtu { interface, mtu } => netlink.set_mtu(*interface, *mtu),
            Operation::AddAddress { interface, address } => netlink.add_address(*interface, *address),
            Operation::RemoveAddress { interface, address } => match netlink.remove_address(*interface, *address) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(()),
                other => other,
            },
            Operation::SetSysctl { sysctl, value } | Operation::RestoreSysctl { sysctl, value } => {
                std::fs::write(sysctl.path(), value)
            }
            Operation::AddRoute(route) => netlink.add_route(route),
            Operation::RemoveRoute(route) => netlink.remove_route(route),
            Operation::AddRule(rule) => netlink.add_rule(rule),
            Operation::RemoveRule(rule) => netlink.remove_rule(rule),
            Operation::SetFilter(filter) => {
                self.printed = None;
                filter.install()?;
                self.printed = filter::print(&filter.name)?.map(|printed| (Filter::clone(filter), printed));
                Ok(())
            }
            Operation::RemoveFilter(name) => {
                self.printed = None;
                filter::remove(name)
            }
        }
    }

    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        self.netlink.interfaces()
    }

    fn addresses(&mut self) -> io::Result<Vec<Address>> {
        self.netlink.addresses()
    }

    fn routes(&mut self, keep: &mut dyn FnMut(&Route) -> bool) -> io::Result<Vec<Route>> {
        self.netlink.routes_that(keep)
    }

    fn rules(&mut self) -> io::Result<Vec<Rule>> {
        self.netlink.rules()
    }

    fn other_rules(&mut self) -> io::Result<Vec<ForeignRule>> {
        self.netlink.other_rules()
    }

    fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        self.netlink.neighbours()
    }

    fn filter(&mut self, name: &Name) -> io::Result<FilterState> {
        let Some(now) = filter::print(name)? else { return Ok(FilterState::Absent) };
        Ok(match &self.printed {
            Some((filter, printed)) if filter.name == *name && now == *printed => {
                FilterState::Set(Box::new(filter.clone()))
            }
            _ => FilterState::Foreign,
        })
    }

    fn sysctl(&mut self, sysctl: &Sysctl) -> Option<String> {
        std::fs::read_to_string(sysctl.path()).ok().map(|value| value.trim().to_owned())
    }
}
