//! What a policy would change, worked out for people before it is put in force.

use std::sync::Arc;

use ipnet::IpNet;
use penstock_proto::coordination::{Name, SiteNumber};
use serde::{Deserialize, Serialize};

use super::Registry;
use super::cut_off::{CutOff, cut_off};
use super::links::Links;
use crate::policy::Policy;
use crate::site::Site;

/// How many of each kind are listed.
const NAMED: usize = 200;

/// What a policy would change.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PolicyPreview {
    /// Links that the new policy adds.
    pub come: Named<[Name; 2]>,
    /// Links that end.
    pub go: Named<[Name; 2]>,
    /// Links that stay, but change what one end may initiate at the other.
    pub other: Named<[Name; 2]>,
    /// Sites whose announced subnets change.
    pub announced: Named<Announcement>,
    /// Sites that the new policy cuts off, whether or not the present one does.
    pub cut_off: Vec<CutOff>,
}

/// How many, and the first of them.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Named<T> {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: Vec<T>,
}

/// The announced subnets of a site.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Announcement {
    /// Whose they are.
    pub site: Name,
    /// As they are now.
    pub before: Vec<IpNet>,
    /// As they would be.
    pub after: Vec<IpNet>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> Named<T> {
    fn add(&mut self, one: impl FnOnce() -> T) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(one());
        }
    }
}

impl PolicyPreview {
    /// Whether nothing would change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        [self.come.count, self.go.count, self.other.count, self.announced.count] == [0; 4]
    }

    fn between(before: &Links, policy: Policy, sites: &[Arc<Site>], outdated: &[SiteNumber]) -> Self {
        let after = Links::compile(Arc::new(policy), sites.iter().map(|site| &**site));
        let mut preview = Self { cut_off: cut_off(&after, sites, outdated), ..Self::default() };
        for site in sites {
            let [was, is] = [before, &after].map(|links| links.policy().announced(site));
            if was != is {
                preview.announced.add(|| Announcement { site: site.name.clone(), before: was, after: is });
            }
        }
        let name = |number: SiteNumber| sites[number as usize].name.clone();
        let mut reach = before.compare_reach(&after);
        before.compare(&after, |number, was, is| {
            let pair = |other| [name(other), name(number)];
            // Each pair once.
            let lower = |list: &[SiteNumber]| list.partition_point(|other| *other < number);
            let (was, is) = (&was[..lower(was)], &is[..lower(is)]);
            for &other in is {
                if was.binary_search(&other).is_err() {
                    preview.come.add(|| pair(other));
                } else if reach.as_mut().is_some_and(|reach| reach.concern(other, number))
                    || before.reach(number, other) != after.reach(number, other)
                {
                    preview.other.add(|| pair(other));
                }
            }
            for &other in was.iter().filter(|other| is.binary_search(other).is_err()) {
                preview.go.add(|| pair(other));
            }
        });
        for pairs in [&mut preview.come, &mut preview.go, &mut preview.other] {
            pairs.first.sort();
        }
        preview
    }
}

impl Registry {
    /// What would change if this were the policy.
    pub async fn preview_policy(&self, policy: Policy) -> PolicyPreview {
        let (before, sites, outdated) = {
            let state = self.state();
            (state.links().clone(), state.numbered(), state.outdated())
        };
        let plan = move || PolicyPreview::between(&before, policy, &sites, &outdated);
        tokio::task::spawn_blocking(plan).await.expect("plans do not panic")
    }
}
