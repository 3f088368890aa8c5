//! From one policy to the next: planned outside the lock, and put in force under it in short steps.
//!
//! The sites must not change meanwhile; this is ensured by holding the registry's store, which every change of a site
//! needs.

use std::sync::Arc;

use ipnet::IpNet;
use penstock_proto::coordination::SiteNumber;

use super::feed;
use super::links::Links;
use super::state::{HISTORY_LIMIT, State};
use crate::policy::Policy;
use crate::site::Site;

/// Most that is noted at a time under the lock: a millisecond.
const STEP: usize = 4096;

/// What a new policy changes.
pub(super) struct Transition {
    links: Arc<Links>,
    announced: Vec<Arc<[IpNet]>>,
    /// Pairs whose link appears or disappears; `None` if they are more than relays can be told one by one.
    pairs: Option<Vec<(SiteNumber, SiteNumber)>>,
    /// What is new in which site's view.
    views: Vec<(SiteNumber, News)>,
    /// Sites whose own registration changes.
    announcers: Vec<SiteNumber>,
}

/// What is new in a view.
pub(super) enum News {
    /// These peers have changed.
    Peers(Vec<SiteNumber>),
    /// More changes than a view remembers.
    Much,
}

impl Transition {
    /// Makes the plan, which takes a while.
    pub fn plan(before: &Links, policy: Policy, sites: &[Arc<Site>]) -> Self {
        let links = Links::compile(Arc::new(policy), sites.iter().map(|site| &**site));
        let announced: Vec<Arc<[IpNet]>> = sites.iter().map(|site| links.policy().announced(site).into()).collect();
        let changed: Vec<bool> =
            sites.iter().zip(&announced).map(|(site, now)| before.policy().announced(site)[..] != **now).collect();
        let announcers: Vec<SiteNumber> =
            (0..sites.len() as SiteNumber).filter(|number| changed[*number as usize]).collect();
        let mut pairs = Some(Vec::new());
        let mut views = Vec::new();
        let mut reach = before.compare_reach(&links);
        before.compare(&links, |number, was, is| {
            let news = match differences(was, is).filter(|differences| differences.len() <= HISTORY_LIMIT) {
                None => {
                    pairs = None;
                    News::Much
                }
                Some(mut differences) => {
                    differences.retain(|other| *other != number);
                    if let Some(pairs) = &mut pairs {
                        pairs.extend(differences.iter().filter(|other| **other < number).map(|other| (number, *other)));
                    }
                    if !announcers.is_empty() || reach.is_some() {
                        let stays = |other: &&SiteNumber| **other != number && was.binary_search(other).is_ok();
                        let mut reaches = |other| reach.as_mut().is_some_and(|reach| reach.concern(other, number));
                        let looks_new = |other: &&SiteNumber| changed[**other as usize] || reaches(**other);
                        differences.extend(is.iter().filter(stays).filter(looks_new));
                    }
                    if differences.len() > HISTORY_LIMIT { News::Much } else { News::Peers(differences) }
                }
            };
            if !matches!(&news, News::Peers(peers) if peers.is_empty()) {
                views.push((number, news));
            }
            if pairs.as_ref().is_some_and(|pairs| pairs.len() > feed::HISTORY_LIMIT) {
                pairs = None;
            }
        });
        Self { links: Arc::new(links), announced, pairs, views, announcers }
    }

    /// Puts the policy in force; further steps tell those concerned. What is left to be freed is returned, so that it
    /// is not freed under the lock.
    pub fn begin(&mut self, state: &mut State) -> impl Sized + use<> {
        let announced = std::mem::take(&mut self.announced);
        state.change_policy(self.links.clone(), announced)
    }

    /// Notes some of what is new; returns whether there is more. Relays are told about removed links first.
    pub fn step(&mut self, state: &mut State) -> bool {
        match &mut self.pairs {
            None => {
                state.feed.forget();
                self.pairs = Some(Vec::new());
                return true;
            }
            Some(pairs) if !pairs.is_empty() => {
                let rest = pairs.len().saturating_sub(STEP);
                state.feed.note_all(pairs.drain(rest..));
                return true;
            }
            Some(_) => {}
        }
        let mut noted = 0;
        while noted < STEP
            && let Some((number, news)) = self.views.pop()
        {
            noted += match &news {
                News::Peers(peers) => peers.len(),
                News::Much => 1,
            };
            state.note_news(number, news);
        }
        if noted > 0 {
            return true;
        }
        self.announcers.drain(..).for_each(|number| state.wake(number));
        false
    }
}

/// The elements in only one of two ordered lists; `None` if they are certainly more than a view remembers.
fn differences(one: &[SiteNumber], other: &[SiteNumber]) -> Option<Vec<SiteNumber>> {
    if one.len().abs_diff(other.len()) > HISTORY_LIMIT + 1 {
        return None;
    }
    let mut found = Vec::new();
    let (mut one, mut other) = (one.iter().copied().peekable(), other.iter().copied().peekable());
    loop {
        match (one.peek(), other.peek()) {
            (None, None) => return Some(found),
            (Some(a), Some(b)) if a == b => _ = (one.next(), other.next()),
            (Some(a), b) if b.is_none_or(|b| a < b) => found.extend(one.next()),
            _ => found.extend(other.next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_what_one_has_and_the_other_has_not() {
        assert_eq!(differences(&[1, 2, 5], &[2, 3, 5, 9]), Some(vec![1, 3, 9]));
        assert_eq!(differences(&[], &[4]), Some(vec![4]));
        assert_eq!(differences(&[1, 2], &[1, 2]), Some(vec![]));
        let many: Vec<SiteNumber> = (0..2 * HISTORY_LIMIT as SiteNumber).collect();
        assert_eq!(differences(&many, &[]), None);
    }
}
