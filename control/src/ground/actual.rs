//! The actual state: the part of the kernel's state that a plan is made from.

use std::collections::BTreeMap;

use super::{Filter, Network, Sysctl};

/// The actual state.
#[derive(Clone, Copy, Debug)]
pub struct Actual<'a> {
    /// Interfaces, addresses, routes and rules.
    pub network: &'a Network,
    /// The settings that can matter, as far as they exist.
    pub sysctls: &'a BTreeMap<Sysctl, String>,
    /// The settings that were changed, with their original values.
    pub saved: &'a BTreeMap<Sysctl, String>,
    /// The packet filter.
    pub filter: &'a FilterState,
}

/// The state of the gateway's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterState {
    /// There is none.
    Absent,
    /// One that this process has not set, or that somebody has changed.
    Foreign,
    /// The one that this process has set.
    Set(Box<Filter>),
}
