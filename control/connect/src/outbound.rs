//! How our connections leave this machine.

use crate::{Names, Proxy};

/// How connections leave this machine.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Which go through which proxy.
    pub proxy: Proxy,
    /// The firewall mark of their sockets, those that ask name servers too; 0 for none.
    pub mark: u32,
    /// Where host names are looked up.
    pub names: Names,
}

impl Outbound {
    /// Through this proxy and with this mark, by the system's names.
    #[must_use]
    pub fn new(proxy: Proxy, mark: u32) -> Self {
        Self { proxy, mark, names: Names::default() }
    }
}
