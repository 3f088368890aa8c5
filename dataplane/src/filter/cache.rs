//! A worker's own memory of flows: what the shared table said about them in the current second.

use super::Arrival;
use super::key::Key;
use crate::table::Table;

/// Sets of two flows each.
const SETS: usize = 2048;

/// Flows that the table knew in the current second. The cache belongs to one worker; its entries are at most a second
/// old, so that all workers learn of a flow's end and its last packet by then.
#[derive(Debug, Default)]
pub struct FlowCache(Box<[[Line; 2]]>);

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    key: Key,
    second: u32,
    generation: u32,
    /// The bits of the directions in which packets change nothing.
    steady: u8,
}

const _: () = assert!(size_of::<Line>() == 64);

impl FlowCache {
    /// A cache of the usual size; [`FlowCache::default`] holds nothing, and takes no memory.
    pub fn new() -> Self {
        let line = Line { key: Key::NONE, second: 0, generation: 0, steady: 0 };
        Self(vec![[line; 2]; SETS].into())
    }

    /// One that has memory if the table has a firewall.
    pub(crate) fn for_table(table: &Table) -> Self {
        if table.firewall.is_some() { Self::new() } else { Self::default() }
    }

    /// Whether it has no memory.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the packet belongs to an accepted flow and changes nothing about it that others must know.
    #[inline(always)]
    pub(super) fn knows(&self, key: &Key, arrival: &Arrival) -> bool {
        let Some(set) = self.0.get(arrival.hash as usize % SETS) else { return false };
        set.iter().any(|line| {
            line.second == arrival.second
                && line.generation == arrival.generation
                && line.steady & arrival.direction as u8 != 0
                && line.key == *key
        })
    }

    /// Remembers what the table says about a flow; of two earlier entries, the older one goes.
    pub(super) fn remember(&mut self, key: &Key, arrival: &Arrival, steady: u8) {
        let Some([first, second]) = self.0.get_mut(arrival.hash as usize % SETS) else { return };
        let line = Line { key: *key, second: arrival.second, generation: arrival.generation, steady };
        if first.key == *key {
            *first = line;
        } else {
            *second = std::mem::replace(first, line);
        }
    }
}
