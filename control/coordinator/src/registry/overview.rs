//! All sites and the links between them, for administrators.

use std::collections::HashMap;
use std::sync::Arc;

use penstock_proto::coordination::{NatType, PathKind, PathReport, SiteNumber};

use super::Registry;
use crate::site::{Site, SiteState};

/// Most links that are looked at: a full mesh of 200 sites.
pub const LINKS_LIMIT: usize = 20_000;

/// The sites and links at one moment.
#[derive(Debug, Default)]
pub struct Overview {
    /// Approved sites, by name.
    pub sites: Vec<SiteView>,
    /// The links between them.
    pub links: Vec<LinkView>,
    /// There are more links than [`LINKS_LIMIT`].
    pub more_links: bool,
}

/// An approved site.
#[derive(Debug)]
pub struct SiteView {
    /// What is stored about it.
    pub site: Arc<Site>,
    /// It is connected to the coordinator.
    pub connected: bool,
    /// What its NAT is like, if it said so.
    pub nat: Option<NatType>,
}

/// Two sites that may talk.
#[derive(Clone, Debug)]
pub struct LinkView {
    /// The places of the two among the sites.
    pub ends: [usize; 2],
    /// What each of them says about the path to the other.
    pub told: [Option<PathReport>; 2],
}

impl LinkView {
    /// What kind of path there is; none as long as neither end has said so. If the two differ, the worse one.
    #[must_use]
    pub fn path(&self) -> Option<PathKind> {
        let rank = |path: &PathKind| match path {
            PathKind::Direct => 0,
            PathKind::Relay => 1,
            PathKind::None => 2,
        };
        self.told.iter().flatten().map(|told| told.path).max_by_key(rank)
    }

    /// Bytes a second, both ways together: the higher of the figures of the two ends.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.told.iter().flatten().map(|told| told.received.saturating_add(told.sent)).max().unwrap_or_default()
    }

    /// The shorter of the round trips that the two ends have seen, in microseconds.
    #[must_use]
    pub fn round_trip(&self) -> Option<u32> {
        self.told.iter().flatten().filter_map(|told| told.round_trip).min()
    }
}

impl Registry {
    /// The approved sites that `wanted` selects, and their links with any site.
    #[must_use]
    pub fn overview(&self, wanted: impl Fn(&Site) -> bool) -> Overview {
        let (links, sites, about) = {
            let state = self.state();
            let about: Vec<_> = (0..state.count()).map(|number| state.about(number)).collect();
            (state.links().clone(), state.numbered(), about)
        };
        let approved = |number: &SiteNumber| sites[*number as usize].state == SiteState::Approved;
        let selected: Vec<bool> = sites.iter().map(|site| wanted(site)).collect();
        let mut pairs = Vec::new();
        let mut more_links = false;
        'sites: for number in (0..sites.len() as SiteNumber).filter(approved) {
            for other in links.neighbors_before(number) {
                if !selected[number as usize] && !selected[other as usize] {
                    continue;
                }
                if pairs.len() == LINKS_LIMIT {
                    more_links = true;
                    break 'sites;
                }
                pairs.push([other, number]);
            }
        }
        // The next change of a site would have to copy links that are still shared.
        drop(links);
        let mut shown: Vec<SiteNumber> = (0..sites.len() as SiteNumber).filter(approved).collect();
        let mut linked = selected;
        pairs.iter().flatten().for_each(|number| linked[*number as usize] = true);
        shown.retain(|number| linked[*number as usize]);
        shown.sort_by_key(|number| &sites[*number as usize].name);
        let places: HashMap<SiteNumber, usize> = shown.iter().copied().zip(0..).collect();
        let latest = self.reported.latest();
        let told = |from: SiteNumber, to: SiteNumber| {
            let paths = latest.get(&sites[from as usize].key)?;
            paths.iter().find(|path| path.peer == sites[to as usize].key).cloned()
        };
        let link = |[one, other]: [SiteNumber; 2]| LinkView {
            ends: [places[&one], places[&other]],
            told: [told(one, other), told(other, one)],
        };
        Overview {
            links: pairs.into_iter().map(link).collect(),
            sites: shown
                .iter()
                .map(|number| {
                    let (connected, nat) = about[*number as usize];
                    SiteView { site: sites[*number as usize].clone(), connected, nat }
                })
                .collect(),
            more_links,
        }
    }
}
