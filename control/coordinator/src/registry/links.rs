//! The policy, compiled for the existing sites: who is linked to whom, without comparing each site with all others.
//!
//! A site's *class* is the set of the policy's selectors that select it. Selectors joined by a link are neighbours, and
//! a selector's members are the approved sites that it selects. So the neighbours of a site are the members of the
//! neighbours of its class, and a change of one site concerns only those.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use penstock_proto::coordination::SiteNumber;

use crate::policy::{Link, Policy, Reach, Selector};
use crate::site::{Site, SiteState};

type SelectorNumber = u32;

/// Who may talk to whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    policy: Arc<Policy>,
    /// The selectors of links; those used only for subnets are not among them.
    selectors: HashMap<Selector, SelectorNumber>,
    /// What the members of the first may initiate at those of the second. Linked selectors are there in both orders.
    linked: HashMap<(SelectorNumber, SelectorNumber), Reach>,
    /// Whether everybody who may talk may reach everything.
    unrestricted: bool,
    neighbors: Vec<Vec<SelectorNumber>>,
    members: Vec<BTreeSet<SiteNumber>>,
    /// By site; empty if it is not approved.
    classes: Vec<Class>,
}

/// A sorted list of selectors.
pub(super) type Class = Box<[SelectorNumber]>;

impl Links {
    /// Compiles the policy for these sites, by number.
    pub fn compile<'a>(policy: Arc<Policy>, sites: impl Iterator<Item = &'a Site>) -> Self {
        let mut links = Self { policy, unrestricted: true, ..Self::default() };
        for link in &links.policy.links {
            let mut number = |selector: &Selector| {
                let next = links.selectors.len() as SelectorNumber;
                *links.selectors.entry(selector.clone()).or_insert(next)
            };
            let (one, other) = link.ends();
            let (one, other) = (number(one), number(other));
            links.neighbors.resize(links.selectors.len(), Vec::new());
            let (there, back) = match link {
                Link::Pair(..) => (Reach::All, Reach::All),
                Link::Directed(directed) => {
                    links.unrestricted = false;
                    (Reach::Only(directed.allow.iter().cloned().collect()), Reach::NOTHING)
                }
            };
            for (one, other, reach) in [(one, other, there), (other, one, back)] {
                let known = links.linked.entry((one, other)).or_insert_with(|| {
                    links.neighbors[one as usize].push(other);
                    Reach::NOTHING
                });
                known.add(&reach);
            }
        }
        links.members.resize(links.selectors.len(), BTreeSet::new());
        for (number, site) in sites.enumerate() {
            links.set(number as SiteNumber, site);
        }
        links
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// A site is new, or has changed.
    pub fn set(&mut self, number: SiteNumber, site: &Site) {
        let class = self.class_of(site);
        let place = number as usize;
        self.classes.resize(self.classes.len().max(place + 1), Class::default());
        let before = std::mem::replace(&mut self.classes[place], class);
        for selector in before {
            self.members[selector as usize].remove(&number);
        }
        for selector in &self.classes[place] {
            self.members[*selector as usize].insert(number);
        }
    }

    fn class_of(&self, site: &Site) -> Class {
        if site.state != SiteState::Approved {
            return Class::default();
        }
        let own = [Selector::All, Selector::Site(site.name.clone())];
        let tags = site.tags.iter().cloned().map(Selector::Tag);
        let mut class: Vec<_> =
            own.into_iter().chain(tags).filter_map(|selector| self.selectors.get(&selector).copied()).collect();
        class.sort_unstable();
        class.into()
    }

    /// Whether these two may talk.
    pub fn joins(&self, one: SiteNumber, other: SiteNumber) -> bool {
        one != other && self.links(&self.classes[one as usize], &self.classes[other as usize])
    }

    /// Whether a site that may not exist yet could talk to another once it is approved.
    pub fn would_join(&self, site: &Site, other: SiteNumber) -> bool {
        let approved = Site { state: SiteState::Approved, ..site.clone() };
        self.links(&self.class_of(&approved), &self.classes[other as usize])
    }

    fn links(&self, one: &[SelectorNumber], other: &[SelectorNumber]) -> bool {
        one.iter().any(|one| other.iter().any(|other| self.linked.contains_key(&(*one, *other))))
    }

    /// What one site may initiate at another, if they may talk.
    pub fn reach(&self, from: SiteNumber, to: SiteNumber) -> Reach {
        self.reach_of(&self.classes[from as usize], &self.classes[to as usize])
    }

    /// The same for many sites that may talk to one site.
    pub fn reach_at(&self, to: SiteNumber) -> impl FnMut(SiteNumber) -> Arc<Reach> + '_ {
        let (to, everything) = (&self.classes[to as usize], Arc::new(Reach::All));
        // Most sites belong to few classes.
        let mut known: HashMap<&Class, Arc<Reach>> = HashMap::new();
        move |from| {
            if self.unrestricted {
                return everything.clone();
            }
            let from = &self.classes[from as usize];
            known.entry(from).or_insert_with(|| Arc::new(self.reach_of(from, to))).clone()
        }
    }

    fn reach_of(&self, from: &[SelectorNumber], to: &[SelectorNumber]) -> Reach {
        if self.unrestricted {
            return Reach::All;
        }
        let mut reach = Reach::NOTHING;
        for pair in from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))) {
            match self.linked.get(&pair) {
                Some(Reach::All) => return Reach::All,
                Some(more) => reach.add(more),
                None => {}
            }
        }
        reach
    }

    /// The class of a site: sites of one class may reach the same.
    pub fn class(&self, number: SiteNumber) -> Class {
        self.classes[number as usize].clone()
    }

    /// The sites that may now initiate something different at a site than when its class was `before`, and those at
    /// which it may initiate something different.
    pub fn reach_changes(
        &self,
        number: SiteNumber,
        before: &Class,
        among: &BTreeSet<SiteNumber>,
    ) -> (Vec<SiteNumber>, Vec<SiteNumber>) {
        let now = &self.classes[number as usize];
        if self.unrestricted || now == before {
            return Default::default();
        }
        let mut known: HashMap<&Class, (bool, bool)> = HashMap::new();
        let mut changed = (Vec::new(), Vec::new());
        for other in among {
            let class = &self.classes[*other as usize];
            let (inbound, outbound) = *known.entry(class).or_insert_with(|| {
                let inbound = self.reach_of(class, before) != self.reach_of(class, now);
                (inbound, self.reach_of(before, class) != self.reach_of(now, class))
            });
            changed.0.extend(inbound.then_some(*other));
            changed.1.extend(outbound.then_some(*other));
        }
        changed
    }

    /// How the new links change who may initiate what; `None` if neither restricts anybody.
    pub fn compare_reach<'a>(&'a self, new: &'a Self) -> Option<ReachChanges<'a>> {
        if self.unrestricted && new.unrestricted {
            return None;
        }
        let mut known: HashMap<(&Class, &Class), usize> = HashMap::new();
        let mut kind = |classes| {
            let next = known.len();
            *known.entry(classes).or_insert(next)
        };
        let kinds = self.classes.iter().zip(&new.classes).map(&mut kind).collect();
        Some(ReachChanges { before: self, now: new, kinds, row: (usize::MAX, Vec::new()) })
    }

    /// All sites that may talk to a site, in order.
    pub fn neighbors(&self, number: SiteNumber) -> Vec<SiteNumber> {
        let mut neighbors = self.neighbors_of_class(number, SiteNumber::MAX);
        if let Ok(own) = neighbors.binary_search(&number) {
            neighbors.remove(own);
        }
        neighbors
    }

    /// Those of them with a lower number.
    pub fn neighbors_before(&self, number: SiteNumber) -> Vec<SiteNumber> {
        self.neighbors_of_class(number, number)
    }

    /// As [`Links::neighbors`] below `end`, perhaps including the site itself: the same for all sites of its class.
    fn neighbors_of_class(&self, number: SiteNumber, end: SiteNumber) -> Vec<SiteNumber> {
        let class = &self.classes[number as usize];
        let selectors: BTreeSet<SelectorNumber> =
            class.iter().flat_map(|selector| &self.neighbors[*selector as usize]).copied().collect();
        let members = |selector: SelectorNumber| self.members[selector as usize].range(..end).copied();
        let mut neighbors: Vec<SiteNumber> = selectors.into_iter().flat_map(members).collect();
        neighbors.sort_unstable();
        neighbors.dedup();
        neighbors
    }

    /// Calls back for each site with its neighbours before, in `self`, and after, in `new`; both may include the site
    /// itself.
    pub fn compare(&self, new: &Self, mut each: impl FnMut(SiteNumber, &[SiteNumber], &[SiteNumber])) {
        let mut order: Vec<SiteNumber> = (0..self.classes.len() as SiteNumber).collect();
        // Consecutive sites with the same classes share the result.
        let classes = |number: &SiteNumber| (&self.classes[*number as usize], &new.classes[*number as usize]);
        order.sort_unstable_by_key(classes);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let mut last: Option<SiteNumber> = None;
        for number in order {
            let [(old, now), (old_of_last, now_of_last)] = [number, last.unwrap_or(number)].map(|n| classes(&n));
            if last.is_none() || old != old_of_last {
                before = self.neighbors_of_class(number, SiteNumber::MAX);
            }
            if last.is_none() || now != now_of_last {
                after = new.neighbors_of_class(number, SiteNumber::MAX);
            }
            each(number, &before, &after);
            last = Some(number);
        }
    }
}

/// How two sets of links differ in who may initiate what.
pub(super) struct ReachChanges<'a> {
    before: &'a Links,
    now: &'a Links,
    /// By site: sites whose classes are the same, before and after, have the same number.
    kinds: Vec<usize>,
    /// For the last site asked about: its kind, and the results so far by the kind of the other site.
    row: (usize, Vec<Option<bool>>),
}

impl ReachChanges<'_> {
    /// Whether `from` may initiate something different at `to` than before. It is quickest to ask for one kind of `to`
    /// after the other.
    pub fn concern(&mut self, from: SiteNumber, to: SiteNumber) -> bool {
        let (kind, other) = (self.kinds[to as usize], self.kinds[from as usize]);
        if self.row.0 != kind {
            self.row = (kind, vec![None; self.kinds.len()]);
        }
        let differs = || self.before.reach(from, to) != self.now.reach(from, to);
        *self.row.1[other].get_or_insert_with(differs)
    }
}
