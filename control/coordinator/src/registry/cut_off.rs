//! Sites that are cut off from others, because their gateways are too old to enforce what the policy allows these.

use std::fmt;
use std::sync::Arc;

use penstock_proto::coordination::{Name, SiteKey, SiteNumber};
use serde::{Deserialize, Serialize};

use super::Registry;
use super::links::Links;
use crate::policy::Reach;
use crate::site::Site;

/// How many of the other sites are named.
const NAMED: usize = 3;

/// A site whose gateway is too old for a policy's `Allow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CutOff {
    /// Its key.
    pub key: SiteKey,
    /// Its name.
    pub name: Name,
    /// The first of the sites that it has no tunnel to.
    pub from: Vec<Name>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from: Vec<&str> = self.from.iter().map(Name::as_str).collect();
        write!(f, "{} has no tunnel to {}", self.name, from.join(", "))?;
        if self.more > 0 {
            write!(f, " and {} more", self.more)?;
        }
        f.write_str(": its gateway is too old to enforce Allow; update it")
    }
}

/// The sites that these links cut off. `outdated` are those whose gateways are too old.
pub(super) fn cut_off(links: &Links, sites: &[Arc<Site>], outdated: &[SiteNumber]) -> Vec<CutOff> {
    let of = |&number: &SiteNumber| {
        let mut reach = links.reach_at(number);
        let neighbors = links.neighbors(number);
        let mut from = neighbors.iter().filter(|other| *reach(**other) != Reach::All);
        let first: Vec<Name> = from.by_ref().take(NAMED).map(|other| sites[*other as usize].name.clone()).collect();
        let Site { key, name, .. } = &*sites[number as usize];
        (!first.is_empty()).then(|| CutOff { key: *key, name: name.clone(), from: first, more: from.count() })
    };
    outdated.iter().filter_map(of).collect()
}

impl Registry {
    /// The sites that the policy in force cuts off.
    #[must_use]
    pub fn cut_off(&self) -> Vec<CutOff> {
        let (links, sites, outdated) = {
            let state = self.state();
            (state.links().clone(), state.numbered(), state.outdated())
        };
        cut_off(&links, &sites, &outdated)
    }
}
