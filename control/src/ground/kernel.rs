//! The seam to the kernel: what is read of it, and what is done to it.

use std::io;

use super::{Filter, FilterState, Operation, Sysctl, filter};
use crate::netlink::{Address, ForeignRule, Interface, Neighbour, Netlink, Route, Rule};
use crate::profile::Name;

/// A network stack.
pub trait Kernel {
    /// Carries out an operation.
    ///
    /// # Errors
    /// What the kernel answers.
    fn apply(&mut self, operation: &Operation) -> io::Result<()>;

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel refuses.
    fn interfaces(&mut self) -> io::Result<Vec<Interface>>;

    /// All addresses.
    ///
    /// # Errors
    /// The kernel refuses.
    fn addresses(&mut self) -> io::Result<Vec<Address>>;

    /// The routes of all tables that `keep` says yes to.
    ///
    /// # Errors
    /// The kernel refuses.
    fn routes(&mut self, keep: &mut dyn FnMut(&Route) -> bool) -> io::Result<Vec<Route>>;

    /// All rules of the shapes that a gateway makes.
    ///
    /// # Errors
    /// The kernel refuses.
    fn rules(&mut self) -> io::Result<Vec<Rule>>;

    /// The rules of other shapes that lead to a table or drop.
    ///
    /// # Errors
    /// The kernel refuses.
    fn other_rules(&mut self) -> io::Result<Vec<ForeignRule>>;

    /// All resolved neighbours.
    ///
    /// # Errors
    /// The kernel refuses.
    fn neighbours(&mut self) -> io::Result<Vec<Neighbour>>;

    /// What is in the place of the packet filter of the gateway of this name.
    ///
    /// # Errors
    /// It cannot be read.
    fn filter(&mut self, name: &Name) -> io::Result<FilterState>;

    /// The value of a setting; `None` if there is none, as of an interface without IPv6.
    fn sysctl(&mut self, sysctl: &Sysctl) -> Option<String>;
}

/// Linux, over rtnetlink, `nft` and `/proc/sys/net`.
pub struct Linux {
    netlink: Netlink,
    /// The filter that was set last, and how nft printed it then.
    printed: Option<(Filter, serde_json::Value)>,
}

impl Linux {
    /// Opens the sockets, in the network namespace of this thread.
    ///
    /// # Errors
    /// The system has no descriptor to give.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, printed: None })
    }

    /// The socket, for look-ups that are not the ground's.
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
