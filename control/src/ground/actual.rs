//! What is: the part of the kernel's state that a plan is made from.

use std::collections::BTreeMap;

use super::{Filter, Network, Sysctl};

/// What is.
#[derive(Clone, Copy, Debug)]
pub struct Actual<'a> {
    /// Interfaces, addresses, routes and rules.
    pub network: &'a Network,
    /// The settings that can matter, as far as they exist.
    pub sysctls: &'a BTreeMap<Sysctl, String>,
    /// The settings that were changed, with the values before.
    pub saved: &'a BTreeMap<Sysctl, String>,
    /// The packet filter.
    pub filter: &'a FilterState,
}

/// What is in the place of the gateway's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterState {
    /// Nothing.
    Absent,
    /// Something that was not set by this process, or was changed by somebody.
    Foreign,
    /// What this process set.
    Set(Box<Filter>),
}
