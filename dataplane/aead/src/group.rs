//! The messages that a kernel works on at once, and all memory access of the kernels.
#![expect(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;

use crate::TAG;
use crate::message::Message;
use crate::vector::{MAX_LANES, Vector};

/// Bytes of a ChaCha20 block.
pub(crate) const BLOCK: usize = 64;

/// How the messages of a group are arranged in the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Lanes of the vector.
    pub(crate) lanes: usize,
    /// Blocks of each message that are computed at once: with 1 there are twice as many messages as lanes, in two
    /// halves; with 2 there are as many messages as lanes.
    pub(crate) blocks: usize,
}

impl Layout {
    /// The most messages in a group.
    pub(crate) fn messages(self) -> usize {
        if self.blocks == 2 { self.lanes } else { 2 * self.lanes }
    }
}

/// Messages of a batch, by lane. Lanes without a message repeat the group's first message and write nothing.
///
/// As long as the batch is borrowed, `from[..]` has `length` bytes of text with a tag behind them, and `to[..]` has
/// room for the text; `to` may lie in front of `from` and overlap it. The lengths of lanes in use are between
/// `shortest` and `longest`.
pub(crate) struct Group<'a> {
    layout: Layout,
    from: [[*const u8; MAX_LANES]; 2],
    to: [[*mut u8; MAX_LANES]; 2],
    lengths: [[u64; MAX_LANES]; 2],
    shortest: usize,
    longest: usize,
    /// Lanes with a message, in each half.
    used: [usize; 2],
    /// Each of eight words.
    keys: [[*const u32; MAX_LANES]; 2],
    /// Each of four words.
    nonces: [[*const u32; MAX_LANES]; 2],
    batch: PhantomData<&'a mut [u8]>,
}

impl<'a> Group<'a> {
    /// Arranges the messages `which` of `batch`, from 1 to [`Layout::messages`] of them, for `run`. The group stays
    /// where it is made: copying data that was just written in small pieces stalls the processor.
    #[inline(always)]
    pub(crate) fn with<M: Message, R>(
        batch: &'a mut [M],
        mut which: impl ExactSizeIterator<Item = usize>,
        layout: Layout,
        run: impl FnOnce(&Self) -> R,
    ) -> R {
        let count = which.len();
        assert!((1..=layout.messages()).contains(&count) && layout.lanes <= MAX_LANES);
        let mut group = Self {
            layout,
            from: [[ptr::null(); MAX_LANES]; 2],
            to: [[ptr::null_mut(); MAX_LANES]; 2],
            lengths: [[0; MAX_LANES]; 2],
            shortest: 0,
            longest: 0,
            used: [count.min(layout.lanes), count.saturating_sub(layout.lanes)],
            keys: [[ptr::null(); MAX_LANES]; 2],
            nonces: [[ptr::null(); MAX_LANES]; 2],
            batch: PhantomData,
        };
        let (mut shortest, mut longest) = (usize::MAX, 0);
        for half in 0..layout.messages() / layout.lanes {
            for lane in 0..layout.lanes {
                match which.next() {
                    Some(index) => {
                        let len = group.put(half, lane, &mut batch[index]);
                        (shortest, longest) = (shortest.min(len), longest.max(len));
                    }
                    None => group.repeat_first(half, lane),
                }
            }
        }
        (group.shortest, group.longest) = (shortest, longest);
        run(&group)
    }

    /// Puts a message into a lane, and returns its text's length.
    #[inline(always)]
    fn put<M: Message>(&mut self, half: usize, lane: usize, message: &mut M) -> usize {
        for half in half..half + self.layout.blocks {
            self.keys[half][lane] = message.key_words().as_ptr();
            self.nonces[half][lane] = message.nonce().0.as_ptr();
        }
        let text = message.text();
        self.from[half][lane] = text.from;
        self.to[half][lane] = text.to;
        self.lengths[half][lane] = text.len as u64;
        text.len
    }

    fn repeat_first(&mut self, half: usize, lane: usize) {
        for half in half..half + self.layout.blocks {
            self.keys[half][lane] = self.keys[0][0];
            self.nonces[half][lane] = self.nonces[0][0];
        }
        self.from[half][lane] = self.from[0][0];
        self.to[half][lane] = self.to[0][0];
        self.lengths[half][lane] = self.lengths[0][0];
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Eight words of key, one that is ignored and three of nonce, for each 32-bit lane. Of every four lanes the first
    /// two belong to the first half, and the others to the second half.
    #[inline(always)]
    pub(crate) fn keys_and_nonces<V: Vector>(&self, cpu: V::Cpu) -> [V; 12] {
        assert!(self.layout.lanes == V::LANES);
        // SAFETY: all lanes have a key of eight words and a nonce of four, which belong to the batch.
        let all = unsafe {
            [four_words(cpu, &self.keys, 0), four_words(cpu, &self.keys, 4), four_words(cpu, &self.nonces, 0)]
        };
        let mut flat = [V::splat32(cpu, 0); 12];
        flat.copy_from_slice(all.as_flattened());
        flat
    }

    pub(crate) fn lengths(&self, half: usize) -> &[u64; MAX_LANES] {
        &self.lengths[half]
    }

    /// Whether every message has a whole block from byte `at` on.
    #[inline(always)]
    pub(crate) fn is_whole(&self, at: usize) -> bool {
        at < self.shortest && self.shortest - at >= BLOCK
    }

    /// How many bytes each message has from byte `at` on, at most a block.
    #[inline(always)]
    pub(crate) fn left(&self, half: usize, at: usize) -> [u64; MAX_LANES] {
        self.lengths[half].map(|length| length.saturating_sub(at as u64).min(BLOCK as u64))
    }

    /// Reads a whole block of every message of a half, as rows.
    #[inline(always)]
    pub(crate) fn load<V: Vector>(&self, cpu: V::Cpu, half: usize, at: usize) -> [V; 8] {
        assert!(self.is_whole(at) && self.layout.lanes == V::LANES);
        let mut rows = [V::splat64(cpu, 0); 8];
        for (row, bytes) in rows.iter_mut().enumerate() {
            let (lane, part) = (row % V::LANES, row / V::LANES);
            // SAFETY: all lanes, also those that repeat a message, have at least `shortest` bytes of text; this reads
            // from the 64 that begin at `at`.
            *bytes = unsafe { V::load(cpu, self.from[half][lane].add(at + part * V::BYTES)) };
        }
        rows
    }

    /// Writes a whole block of every message of a half.
    #[inline(always)]
    pub(crate) fn store<V: Vector>(&self, half: usize, at: usize, rows: &[V; 8]) {
        assert!(self.is_whole(at) && self.layout.lanes == V::LANES);
        for (row, bytes) in rows.iter().enumerate() {
            let (lane, part) = (row % V::LANES, row / V::LANES);
            if lane < self.used[half] {
                // SAFETY: there is room for at least `shortest` bytes of text; this writes to the 64 that begin at
                // `at`. The batch is borrowed mutably.
                unsafe { bytes.store(self.to[half][lane].add(at + part * V::BYTES)) };
            }
        }
    }

    /// Reads the bytes of each message of a half from byte `at` on, at most a block, followed by zeros.
    #[inline(always)]
    pub(crate) fn load_up_to<V: Vector>(&self, cpu: V::Cpu, half: usize, at: usize) -> [V; 8] {
        assert!(self.layout.lanes == V::LANES);
        let left = self.left(half, at);
        let mut rows = [V::splat64(cpu, 0); 8];
        for (row, bytes) in rows.iter_mut().enumerate() {
            let (lane, part) = (row % V::LANES, row / V::LANES);
            let len = (left[lane] as usize).saturating_sub(part * V::BYTES).min(V::BYTES);
            // SAFETY: `len` bytes of the text are left there. If it is 0, the address does not matter, and may be
            // outside.
            *bytes = unsafe { V::load_up_to(cpu, self.from[half][lane].wrapping_add(at + part * V::BYTES), len) };
        }
        rows
    }

    /// Writes as much as [`Group::load_up_to`] reads, and replaces the rest of the rows with zeros.
    #[inline(always)]
    pub(crate) fn store_up_to<V: Vector>(&self, half: usize, at: usize, rows: &mut [V; 8]) {
        assert!(self.layout.lanes == V::LANES);
        let left = self.left(half, at);
        for (row, bytes) in rows.iter_mut().enumerate() {
            let (lane, part) = (row % V::LANES, row / V::LANES);
            let len = (left[lane] as usize).saturating_sub(part * V::BYTES).min(V::BYTES);
            *bytes = bytes.keep(len);
            if lane < self.used[half] {
                // SAFETY: as for reading; the batch is borrowed mutably.
                unsafe { bytes.store_up_to(self.to[half][lane].wrapping_add(at + part * V::BYTES), len) };
            }
        }
    }

    /// Writes the tags of a half's messages behind their texts.
    #[inline(always)]
    pub(crate) fn write_tags<V: Vector>(&self, half: usize, tags: [V; 2]) {
        let [low, high] = tags.map(V::to_lanes);
        for lane in 0..self.used[half] {
            let tag = u128::from(low[lane]) | u128::from(high[lane]) << 64;
            // SAFETY: there is room for a tag behind the text.
            unsafe {
                let to = self.to[half][lane].add(self.lengths[half][lane] as usize);
                to.cast::<[u8; TAG]>().write_unaligned(tag.to_le_bytes());
            }
        }
    }

    /// Compares the tags behind a half's texts with these. Bit `lane` of the result is set where they are equal.
    #[inline(always)]
    pub(crate) fn compare_tags<V: Vector>(&self, half: usize, tags: [V; 2]) -> u32 {
        let [low, high] = tags.map(V::to_lanes);
        let mut equal = 0;
        for lane in 0..self.used[half] {
            // SAFETY: there is a tag behind the text.
            let tag = u128::from_le_bytes(unsafe {
                let from = self.from[half][lane].add(self.lengths[half][lane] as usize);
                from.cast::<[u8; TAG]>().read_unaligned()
            });
            // All bytes at once: the comparison of one byte does not depend on another.
            let difference = (tag as u64 ^ low[lane]) | ((tag >> 64) as u64 ^ high[lane]);
            equal |= u32::from(difference == 0) << lane;
        }
        equal
    }
}

/// Four words from the number `first_word` on at each of these addresses, one by one.
///
/// # Safety
/// They are readable at the first [`Vector::LANES`] addresses of each half.
#[inline(always)]
unsafe fn four_words<V: Vector>(cpu: V::Cpu, from: &[[*const u32; MAX_LANES]; 2], first_word: usize) -> [V; 4] {
    let every_second = |half: usize, first: usize| {
        let mut some = [ptr::null(); MAX_LANES / 2];
        for (part, address) in some.iter_mut().enumerate() {
            *address = from[half][2 * part + first].wrapping_add(first_word).cast();
        }
        // SAFETY: the caller's promise.
        unsafe { V::load_parts(cpu, some) }
    };
    let [a, b, c, d] = [every_second(0, 0), every_second(0, 1), every_second(1, 0), every_second(1, 1)];
    let (low, high) = ([a.unpack_low32(b), c.unpack_low32(d)], [a.unpack_high32(b), c.unpack_high32(d)]);
    [
        low[0].unpack_low64(low[1]),
        low[0].unpack_high64(low[1]),
        high[0].unpack_low64(high[1]),
        high[0].unpack_high64(high[1]),
    ]
}
