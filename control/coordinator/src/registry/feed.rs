//! What relays are told about the state: all of it once, then the pairs that have changed.
//!
//! The log remembers pairs, not how they changed: a relay is told their state at the time of telling. A pair of a site
//! with itself stands for the site's own approval.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use penstock_proto::coordination::limits::{ACCESS_PAIRS_LIMIT, PEERS_LIMIT};
use penstock_proto::coordination::{Access, AccessPart, SiteNumber};
use tokio::sync::Notify;

use super::state::State;
use crate::site::SiteState;

/// How many changes are remembered. A relay that missed more is told the whole state again.
pub(super) const HISTORY_LIMIT: usize = 65_536;
/// The most pairs, and the most sites, that are examined under the lock for one message; if a site has more pairs than
/// that, all of them are. This takes two milliseconds.
const PAIRS_AT_A_TIME: usize = 8192;
/// See [`PAIRS_AT_A_TIME`].
const SITES_AT_A_TIME: usize = 2048;

// A relay accepts no more than this in one message.
const _: () = assert!(PAIRS_AT_A_TIME + PEERS_LIMIT <= ACCESS_PAIRS_LIMIT);

/// Changes in who may talk to whom.
#[derive(Default)]
pub(super) struct Feed {
    number: u64,
    changed: VecDeque<(SiteNumber, SiteNumber)>,
    readers: Vec<Weak<Notify>>,
}

/// Reads the feed for one relay.
#[derive(Debug)]
pub struct Reader {
    wake: Arc<Notify>,
    position: Position,
}

#[derive(Clone, Copy, Debug)]
enum Position {
    Nothing,
    /// The whole state up to this site; the changes since that number follow.
    Sites(SiteNumber, u64),
    Changes(u64),
}

impl Reader {
    /// Returns when there may be something new.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Feed {
    pub fn note_all(&mut self, pairs: impl IntoIterator<Item = (SiteNumber, SiteNumber)>) {
        for pair in pairs {
            if self.changed.len() == HISTORY_LIMIT {
                self.changed.pop_front();
            }
            self.changed.push_back(pair);
            self.number += 1;
        }
        self.wake();
    }

    /// More has changed than is remembered: every relay has to be told the whole state.
    pub fn forget(&mut self) {
        self.changed.clear();
        self.number += 1;
        self.wake();
    }

    pub fn wake(&mut self) {
        self.readers.retain(|reader| reader.upgrade().inspect(|wake| wake.notify_one()).is_some());
    }

    pub fn read(&mut self) -> Reader {
        let wake = Arc::new(Notify::new());
        wake.notify_one();
        self.readers.push(Arc::downgrade(&wake));
        Reader { wake, position: Position::Nothing }
    }

    /// What has changed since that number, oldest first; `None` if the log does not go back that far.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = (SiteNumber, SiteNumber)> + '_> {
        let missed = usize::try_from(self.number.checked_sub(number)?).ok()?;
        Some(self.changed.iter().skip(self.changed.len().checked_sub(missed)?).copied())
    }
}

impl State {
    /// The next message for a relay, if there is one. It counts as told.
    pub fn access(&self, reader: &mut Reader) -> Option<Access> {
        match reader.position {
            Position::Changes(number) => {
                if number == self.feed.number {
                    return None;
                }
                let Some(changes) = self.feed.since(number) else {
                    reader.position = Position::Nothing;
                    return self.access(reader);
                };
                let taken: Vec<_> = changes.take(PAIRS_AT_A_TIME).collect();
                reader.position = Position::Changes(number + taken.len() as u64);
                Some(self.change_of(&taken.into_iter().collect()))
            }
            Position::Nothing => Some(self.rows(reader, 0, self.feed.number)),
            Position::Sites(next, number) => Some(self.rows(reader, next, number)),
        }
    }

    fn change_of(&self, pairs: &BTreeSet<(SiteNumber, SiteNumber)>) -> Access {
        let mut access = Access::default();
        for &(one, other) in pairs {
            match (one == other, self.links().joins(one, other)) {
                (true, _) if self.is_approved(one) => access.sites.push((one, self.key(one))),
                (true, _) => access.gone.push(one),
                (false, true) => access.joined.push((one, other)),
                (false, false) => access.parted.push((one, other)),
            }
        }
        // A relay that is told about a pair must know its sites, in whatever order they changed.
        let known: BTreeSet<SiteNumber> = access.sites.iter().map(|(number, _)| *number).collect();
        let named: BTreeSet<SiteNumber> = access.joined.iter().flat_map(|(one, other)| [*one, *other]).collect();
        access.sites.extend(named.difference(&known).map(|number| (*number, self.key(*number))));
        access
    }

    /// Part of the whole state: each site's pairs with those before it, for as many sites as fit.
    fn rows(&self, reader: &mut Reader, first: SiteNumber, number: u64) -> Access {
        let count = self.count();
        let mut access = Access { part: AccessPart::Further, ..Access::default() };
        if first == 0 {
            access.part = AccessPart::First;
        }
        let mut next = first;
        while next < count && access.sites.len() < SITES_AT_A_TIME {
            if self.is_approved(next) {
                let row = self.links().neighbors_before(next);
                if !access.joined.is_empty() && access.joined.len() + row.len() > PAIRS_AT_A_TIME {
                    break;
                }
                access.sites.push((next, self.key(next)));
                access.joined.extend(row.into_iter().map(|other| (next, other)));
            }
            next += 1;
        }
        // Even an empty state is told as a first and a last part, so an empty last part follows.
        if next == count && first > 0 || count == 0 && matches!(reader.position, Position::Sites(..)) {
            access.part = AccessPart::Last;
            reader.position = Position::Changes(number);
        } else {
            reader.position = Position::Sites(next, number);
        }
        access
    }

    fn is_approved(&self, number: SiteNumber) -> bool {
        self.site_of(number).state == SiteState::Approved
    }
}
