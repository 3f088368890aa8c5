//! Which messages of a batch go together, and through which kernel.
//!
//! A kernel takes as long as the longest of its messages needs, however many lanes are in use. So messages are sorted
//! by length, and the longest ones that are left go, again and again, to the kernel that saves most against ring for
//! them and those next to them. What no kernel saves anything for is ring's.

use crate::engine::{Kernel, ring_cost};
use crate::group::{BLOCK, Group};
use crate::message::Message;
use crate::{MAX_BATCH, Suite};

/// Longer texts are ring's.
const LONGEST: usize = 1 << 16;

/// Seals or opens up to [`MAX_BATCH`] messages. Whether a kernel ran.
pub(crate) fn run<M: Message>(kernels: &[Kernel], use_ring: bool, batch: &mut [M]) -> bool {
    let mut sorted = Sorted::new(batch);
    let mut kernel_ran = false;
    while let Some(longest) = sorted.left().first().copied() {
        match best(kernels, use_ring, sorted.left()) {
            Some((kernel, count)) => {
                run_group(kernel, batch, sorted.take(count));
                kernel_ran = true;
            }
            None => {
                batch[longest.index()].by_ring();
                sorted.take(1);
            }
        }
    }
    kernel_ran
}

fn run_group<M: Message>(kernel: &Kernel, batch: &mut [M], which: &[Entry]) {
    let verified = Group::with(batch, which.iter().map(|entry| entry.index()), kernel.layout, |group| {
        if M::SEAL { kernel.seal(group) } else { kernel.open(group) }
    });
    for (place, entry) in which.iter().enumerate() {
        batch[entry.index()].done(verified >> place & 1 != 0);
    }
}

/// The kernel that takes the smallest part of ring's time, and for how many messages; `None` when ring is better.
fn best<'k>(kernels: &'k [Kernel], use_ring: bool, left: &[Entry]) -> Option<(&'k Kernel, usize)> {
    let mut best = None;
    // A kernel has to save a tenth, since costs are not that exact.
    let (mut best_cost, mut best_by_ring) = if use_ring { (9, 10) } else { (u64::from(u32::MAX), 1) };
    for kernel in kernels {
        let count = left.len().min(kernel.layout.messages());
        let by_ring = left[..count].iter().map(|entry| ring_cost(entry.blocks())).sum();
        let cost = kernel.cost(left[0].blocks());
        if cost * best_by_ring < best_cost * by_ring {
            (best, best_cost, best_by_ring) = (Some((kernel, count)), cost, by_ring);
        }
    }
    best
}

/// The blocks of a text that a kernel may have, and `None` for the rest.
fn blocks<M: Message>(message: &M) -> Option<u32> {
    let len = message.len().filter(|len| *len <= LONGEST)?;
    (message.suite() == Suite::ChaCha20Poly1305).then_some(len.div_ceil(BLOCK) as u32)
}

/// A message's number of blocks, and below it its index, so that comparing sorts by blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u32);

impl Entry {
    fn new(blocks: u32, index: usize) -> Self {
        Self(blocks << 8 | index as u32)
    }
    fn blocks(self) -> u32 {
        self.0 >> 8
    }
    fn index(self) -> usize {
        (self.0 & 0xff) as usize
    }
}

/// The messages that kernels may have, the longest first.
struct Sorted {
    entries: [Entry; MAX_BATCH],
    begin: usize,
    end: usize,
}

impl Sorted {
    /// Does the others with ring.
    fn new<M: Message>(batch: &mut [M]) -> Self {
        let mut sorted = Self { entries: [Entry(0); MAX_BATCH], begin: 0, end: 0 };
        let (mut is_sorted, mut shortest) = (true, u32::MAX);
        for (index, message) in batch.iter_mut().enumerate() {
            let Some(blocks) = blocks(message) else {
                message.by_ring();
                continue;
            };
            is_sorted &= shortest >= blocks;
            shortest = blocks;
            sorted.entries[sorted.end] = Entry::new(blocks, index);
            sorted.end += 1;
        }
        if !is_sorted {
            sorted.entries[..sorted.end].sort_unstable_by(|a, b| b.cmp(a));
        }
        sorted
    }

    fn left(&self) -> &[Entry] {
        &self.entries[self.begin..self.end]
    }

    fn take(&mut self, count: usize) -> &[Entry] {
        self.begin += count;
        &self.entries[self.begin - count..self.begin]
    }
}
