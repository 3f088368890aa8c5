//! How our connections leave this machine.

use crate::{Destinations, Names, Proxy};

/// How connections leave this machine.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Which connections go through which proxy.
    pub proxy: Proxy,
    /// The firewall mark of their sockets, including those that ask name servers; 0 for none.
    pub mark: u32,
    /// How host names are resolved.
    pub names: Names,
    /// The addresses that they go to.
    pub destinations: Destinations,
}

impl Outbound {
    /// Through this proxy and with this mark; names are resolved as the system is configured, and nobody follows where
    /// the connections go.
    #[must_use]
    pub fn new(proxy: Proxy, mark: u32) -> Self {
        Self { proxy, mark, names: Names::default(), destinations: Destinations::default() }
    }
}
