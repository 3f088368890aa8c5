//! Which messages of a batch go together, and through which kernel.
//!
//! A kernel takes as long as its longest message needs, however many lanes are in use. So messages are sorted by
//! length, and divided among the kernels and ring where that takes the least time in total.

use crate::engine::{IMPOSSIBLE, Kernel, ring_cost};
use crate::group::{BLOCK, Group};
use crate::message::Message;
use crate::vector::MAX_LANES;
use crate::wipe::Depth;
use crate::{MAX_BATCH, Suite};

/// Longer texts are left to ring.
const LONGEST: usize = 1 << 16;

/// The most messages of any kernel; those of the other kernels are divisors of it.
const FULL: usize = 2 * MAX_LANES;

/// Seals or opens up to [`MAX_BATCH`] messages. Returns where kernels may have left secrets.
pub(crate) fn run<M: Message>(kernels: &[Kernel], use_ring: bool, batch: &mut [M]) -> Depth {
    let (entries, end) = sorted(batch);
    let mut left = &entries[..end];
    let mut depth = Depth::Nothing;
    // Most batches are of one length, and need no plan.
    while left.len() >= FULL && left[0].blocks() == left[FULL - 1].blocks() {
        let kernel = for_full(kernels, use_ring, left[0].blocks());
        let group = left.split_off(..kernel.map_or(1, Kernel::messages)).expect("no more than are left");
        depth = depth.max(run_group(kernel, batch, group));
    }
    let plan = plan(kernels, use_ring, left);
    let mut at = 0;
    while at < left.len() {
        let kernel = kernels.get(usize::from(plan[at]));
        let end = left.len().min(at + kernel.map_or(1, Kernel::messages));
        depth = depth.max(run_group(kernel, batch, &left[at..end]));
        at = end;
    }
    depth
}

/// Through a kernel, or by ring.
fn run_group<M: Message>(kernel: Option<&Kernel>, batch: &mut [M], which: &[Entry]) -> Depth {
    let Some(kernel) = kernel else {
        which.iter().for_each(|entry| batch[entry.index()].by_ring());
        return Depth::Nothing;
    };
    let verified = Group::with(batch, which.iter().map(|entry| entry.index()), kernel.layout, |group| {
        if M::SEAL { kernel.seal(group) } else { kernel.open(group) }
    });
    for (place, entry) in which.iter().enumerate() {
        batch[entry.index()].done(verified >> place & 1 != 0);
    }
    kernel.depth()
}

/// The kernel that takes the least time for [`FULL`] messages of this many blocks; `None` when ring is better.
fn for_full(kernels: &[Kernel], use_ring: bool, blocks: u32) -> Option<&Kernel> {
    let mut best = (None, FULL as u64 * by_ring(use_ring, blocks));
    for kernel in kernels {
        let cost = (FULL / kernel.messages()) as u64 * kernel.cost(blocks);
        if cost < best.1 {
            best = (Some(kernel), cost);
        }
    }
    best.0
}

/// For each message, the kernel that takes it together with those after it, so that the total time is least; a number
/// that no kernel has stands for ring. The entry of a message that an earlier one's kernel takes is ignored.
fn plan(kernels: &[Kernel], use_ring: bool, left: &[Entry]) -> [u8; MAX_BATCH] {
    let mut plan = [u8::MAX; MAX_BATCH];
    // The costs of the messages from a place on.
    let mut costs = [0; MAX_BATCH + 1];
    for at in (0..left.len()).rev() {
        let blocks = left[at].blocks();
        costs[at] = costs[at + 1] + by_ring(use_ring, blocks);
        for (number, kernel) in kernels.iter().enumerate() {
            let cost = costs[left.len().min(at + kernel.messages())] + kernel.cost(blocks);
            if cost < costs[at] {
                (plan[at], costs[at]) = (number as u8, cost);
            }
        }
    }
    plan
}

/// ring's time for a message. A kernel has to save a tenth, because the costs are not exact.
fn by_ring(use_ring: bool, blocks: u32) -> u64 {
    if use_ring { ring_cost(blocks) * 9 / 10 } else { IMPOSSIBLE }
}

/// The number of blocks of a text that a kernel may process, and `None` for others.
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

/// The messages that kernels may process, the longest first, and how many there are; the others are left to ring.
fn sorted<M: Message>(batch: &mut [M]) -> ([Entry; MAX_BATCH], usize) {
    let mut entries = [Entry(0); MAX_BATCH];
    let (mut end, mut is_sorted, mut shortest) = (0, true, u32::MAX);
    for (index, message) in batch.iter_mut().enumerate() {
        let Some(blocks) = blocks(message) else {
            message.by_ring();
            continue;
        };
        is_sorted &= shortest >= blocks;
        shortest = blocks;
        entries[end] = Entry::new(blocks, index);
        end += 1;
    }
    if !is_sorted {
        entries[..end].sort_unstable_by(|a, b| b.cmp(a));
    }
    (entries, end)
}
