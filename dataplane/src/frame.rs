//! Frames: fixed slots of a worker's packet memory, and the pool that owns them.
//!
//! A [`Frame`] is the token of ownership of one slot: whoever holds it may read and write the slot, and nobody else
//! can, because a frame is neither `Clone` nor `Copy` and knows its pool. Frames that the kernel holds (in a fill or
//! transmit ring) exist only as ring entries until they come back.
//!
//! ```text
//!   0            256 (anchor)                                             4096
//!   ├─ headroom ──┼─ Ethernet, outer IP, UDP, WireGuard, inner packet, tag ─┤
//! ```
//! AF_XDP transmits from the anchor, the address under which the kernel knows the slot. Ports place packets so that,
//! once the headers are rewritten, they begin exactly there.

use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};
use xsk_rs::{FrameDesc, Umem};

/// Bytes in a slot of a UMEM: a page, the most that AF_XDP takes. Slots in ordinary memory can have several
/// ([`Pool::heap_of`]).
pub const FRAME_SIZE: usize = 4096;
/// Where a slot's packet begins by default: the kernel keeps this much room for XDP programs.
pub const ANCHOR: usize = 256;
/// Bytes of a slot that can hold a packet with all its headers.
pub const FRAME_ROOM: usize = FRAME_SIZE - ANCHOR;

const CACHE_LINE: usize = 64;
/// What lies between two slots in ordinary memory. With slots at a distance of whole pages, the packets that are sealed
/// or opened together would use the same few sets of the first-level cache.
const GAP: usize = 4 * CACHE_LINE;
/// What a panic says about a frame in the wrong pool.
const FOREIGN: &str = "a frame of another pool";

/// One packet's place in the pool: a slot, and the part of it that the packet occupies now.
#[derive(Debug)]
pub struct Frame {
    index: u32,
    /// The pool that it belongs to.
    pool: u32,
    start: u16,
    len: u16,
    /// Bytes of the slot.
    size: u16,
}

impl Frame {
    /// The packet's first byte, counted from the slot's beginning.
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// The packet's length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty packet is not a special case")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Moves the packet's bounds; its bytes stay where they are.
    ///
    /// # Panics
    /// If the bounds leave the slot.
    #[inline]
    pub fn set(&mut self, start: usize, len: usize) {
        assert!(start + len <= usize::from(self.size), "packet bounds leave the frame");
        self.start = start as u16;
        self.len = len as u16;
    }

    /// Takes `n` bytes off the front, or nothing when the packet is shorter.
    #[inline]
    pub fn trim_front(&mut self, n: usize) {
        let n = n.min(self.len()) as u16;
        self.start += n;
        self.len -= n;
    }

    /// Cuts the packet to `len` bytes, if it is longer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.min(usize::from(self.size)) as u16);
    }
}

/// Packet memory and its unused slots.
pub struct Pool {
    /// Unique among the pools of the process.
    id: u32,
    base: NonNull<u8>,
    /// Bytes of a slot.
    size: u16,
    /// From the beginning of a slot to that of the next, in bytes.
    stride: usize,
    free: Vec<u32>,
    /// By slot: the descriptor under which the kernel knows it.
    descs: Vec<FrameDesc>,
    memory: Memory,
}

enum Memory {
    Umem(Umem),
    /// Held only for its mapping; reached through `Pool::base`.
    Heap(#[expect(dead_code)] Box<[Page]>),
}

#[repr(C, align(4096))]
struct Page([u8; FRAME_SIZE]);

#[expect(unsafe_code, reason = "the pool hands out slices of one raw mapping")]
// SAFETY: the mapping behind `base` is owned by `memory`, moves with the pool, and is reached only
// through the pool's methods, which borrow it.
unsafe impl Send for Pool {}

impl Pool {
    /// A pool in ordinary memory, for workers none of whose ports is AF_XDP.
    pub fn heap(slots: u32) -> Self {
        Self::heap_of(slots, 1)
    }

    /// A pool in ordinary memory whose slots have several pages of [`FRAME_SIZE`] bytes, for larger packets.
    ///
    /// # Panics
    /// If a slot would have no bytes, or more than an IP packet, 65,535.
    pub fn heap_of(slots: u32, pages: usize) -> Self {
        let size = u16::try_from(pages * FRAME_SIZE).ok().filter(|size| *size > 0).expect("1 to 15 pages");
        let stride = usize::from(size) + GAP;
        let all = (slots as usize * stride).div_ceil(FRAME_SIZE);
        let mut heap: Box<[Page]> = (0..all).map(|_| Page([0; FRAME_SIZE])).collect();
        let base = NonNull::new(heap.as_mut_ptr().cast()).expect("a box is never null");
        let descs = vec![FrameDesc::default(); slots as usize];
        Self { id: next_id(), base, size, stride, free: (0..slots).rev().collect(), descs, memory: Memory::Heap(heap) }
    }

    /// A pool in a UMEM, which AF_XDP sockets of several devices can share.
    ///
    /// # Errors
    /// The kernel refuses: no CAP_NET_RAW, no AF_XDP, or not enough lockable memory.
    #[expect(unsafe_code)]
    pub fn umem(slots: NonZeroU32, ring: u32) -> std::io::Result<Self> {
        let size = |n| QueueSize::new(n).map_err(std::io::Error::other);
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_SIZE as u32).map_err(std::io::Error::other)?)
            .fill_queue_size(size(ring)?)
            .comp_queue_size(size(ring)?)
            .build()
            .map_err(std::io::Error::other)?;
        let (umem, descs) = Umem::new(config, slots, false).map_err(|error| {
            use std::error::Error;
            match error.source().and_then(|s| s.downcast_ref::<std::io::Error>()) {
                Some(io) => std::io::Error::from_raw_os_error(io.raw_os_error().unwrap_or(libc::EIO)),
                None => std::io::Error::other(error),
            }
        })?;
        debug_assert!(descs[0].addr() == ANCHOR);
        // SAFETY: the descriptor was just handed out by this UMEM, and nothing else reads the slot.
        let anchor = unsafe { umem.data(&descs[0]) }.contents().as_ptr();
        // SAFETY: slot 0's packet area lies ANCHOR bytes into the mapping.
        let base = unsafe { anchor.sub(descs[0].addr()) };
        let base = NonNull::new(base.cast_mut()).expect("the UMEM is mapped");
        let free = (0..slots.get()).rev().collect();
        let (size, stride) = (FRAME_SIZE as u16, FRAME_SIZE);
        Ok(Self { id: next_id(), base, size, stride, free, descs, memory: Memory::Umem(umem) })
    }

    /// The UMEM, for sockets to be created on it; `None` for a heap pool.
    pub fn shared_umem(&self) -> Option<&Umem> {
        match &self.memory {
            Memory::Umem(umem) => Some(umem),
            Memory::Heap(_) => None,
        }
    }

    /// Bytes of a slot.
    #[inline]
    pub fn frame_size(&self) -> usize {
        usize::from(self.size)
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.descs.len()
    }

    /// How many slots are free.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Takes a free slot; its packet begins at the anchor and is empty.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let index = self.free.pop()?;
        Some(Frame { index, pool: self.id, start: ANCHOR as u16, len: 0, size: self.size })
    }

    /// Gives a frame's slot back.
    ///
    /// # Panics
    /// If the frame is another pool's.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        assert!(frame.pool == self.id, "{FOREIGN}");
        self.free.push(frame.index);
    }

    /// The packet.
    #[inline]
    pub fn packet(&self, frame: &Frame) -> &[u8] {
        &self.slot(frame)[frame.start()..frame.start() + frame.len()]
    }

    /// The packet, mutable.
    #[inline]
    pub fn packet_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let (start, len) = (frame.start(), frame.len());
        &mut self.slot_mut(frame)[start..start + len]
    }

    /// The packets of several frames at once, in order, mutable.
    #[inline]
    #[expect(unsafe_code)]
    pub fn packets_mut<'a>(
        &'a mut self,
        frames: impl IntoIterator<Item = &'a mut Frame>,
    ) -> impl Iterator<Item = &'a mut [u8]> {
        let pool = &*self;
        frames.into_iter().map(move |frame| {
            let start = pool.pointer(frame, frame.start());
            // SAFETY: the packet lies inside its slot, see `Frame::set`. The frame is the only token for the slot and
            // borrowed exclusively for as long as the slice is, so no two slices are of the same slot; everything
            // else is kept out by the exclusive borrow of the pool.
            unsafe { std::slice::from_raw_parts_mut(start, frame.len()) }
        })
    }

    /// The whole slot.
    #[inline]
    #[expect(unsafe_code)]
    pub fn slot(&self, frame: &Frame) -> &[u8] {
        let start = self.pointer(frame, 0);
        // SAFETY: the slot lies inside the mapping, as `pointer` has checked; the frame is the only token for
        // the slot, so neither the kernel nor another frame writes it while it is borrowed.
        unsafe { std::slice::from_raw_parts(start, usize::from(self.size)) }
    }

    /// The whole slot, mutable.
    #[inline]
    #[expect(unsafe_code)]
    pub fn slot_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let start = self.pointer(frame, 0);
        // SAFETY: as in `slot`, and the pool is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start, usize::from(self.size)) }
    }

    /// Prefetches a packet that is processed next, if AF_XDP has delivered it: another core may have written it. Into
    /// ordinary memory the kernel copies packets on the worker's own core, so they are in its cache.
    #[inline]
    pub fn prefetch(&self, frame: &Frame) {
        if let Memory::Heap(_) = self.memory {
            return;
        }
        let first = self.pointer(frame, frame.start());
        for offset in (0..frame.len()).step_by(CACHE_LINE) {
            prefetch_line(first.wrapping_add(offset));
        }
    }

    /// Prefetches the first line of a received packet that is about to be read.
    #[inline]
    pub(crate) fn prefetch_header(&self, desc: &FrameDesc) {
        prefetch_line(self.base.as_ptr().wrapping_add(desc.addr()));
    }

    /// A raw pointer into the frame's slot, for scatter and gather lists of system calls.
    ///
    /// # Panics
    /// If `offset` is past the slot, or the frame is another pool's.
    #[inline]
    #[expect(unsafe_code)]
    pub fn pointer(&self, frame: &Frame, offset: usize) -> *mut u8 {
        let size = usize::from(self.size);
        assert!(frame.pool == self.id, "{FOREIGN}");
        assert!(offset <= size, "an offset leaves the frame");
        // SAFETY: the frame's slot is one of ours, and the offset was checked to stay inside it.
        unsafe { self.base.as_ptr().add(frame.index as usize * self.stride + offset) }
    }

    /// Where in its slot the frame must begin to be transmitted by AF_XDP.
    #[inline]
    pub fn anchor(&self, frame: &Frame) -> usize {
        match self.memory {
            Memory::Umem(_) => self.descs[frame.index as usize].addr() % FRAME_SIZE,
            Memory::Heap(_) => ANCHOR,
        }
    }

    /// Moves the packet's bytes to the anchor, unless they are there already.
    pub fn move_to_anchor(&mut self, frame: &mut Frame) -> bool {
        let (anchor, start, len) = (self.anchor(frame), frame.start(), frame.len());
        if start != anchor {
            if anchor + len > usize::from(self.size) {
                return false;
            }
            self.slot_mut(frame).copy_within(start..start + len, anchor);
            frame.set(anchor, len);
        }
        true
    }

    /// The frame that a descriptor from a receive or completion ring stands for.
    #[inline]
    pub(crate) fn frame_of(&mut self, desc: &FrameDesc) -> Frame {
        let index = desc.addr() / FRAME_SIZE;
        self.descs[index] = *desc;
        let (start, len) = (desc.addr() % FRAME_SIZE, desc.lengths().data());
        let mut frame = Frame { index: index as u32, pool: self.id, start: 0, len: 0, size: self.size };
        frame.set(start, len.min(FRAME_SIZE - start));
        frame
    }

    /// The descriptor under which the frame is handed to the kernel to be filled. The kernel takes the whole slot,
    /// wherever its packet began before: with zero-copy that is where a program has moved it.
    pub(crate) fn desc_to_fill(&self, frame: Frame) -> FrameDesc {
        assert!(frame.pool == self.id, "{FOREIGN}");
        self.descs[frame.index as usize]
    }

    /// The descriptor under which the frame is handed to the kernel, carrying the packet's length.
    /// The packet must begin at the anchor (see [`Pool::move_to_anchor`]).
    #[inline]
    #[expect(unsafe_code)]
    pub(crate) fn desc_of(&mut self, frame: Frame) -> FrameDesc {
        assert!(frame.pool == self.id, "{FOREIGN}");
        let desc = &mut self.descs[frame.index as usize];
        debug_assert_eq!(desc.addr() % FRAME_SIZE, frame.start());
        if let Memory::Umem(umem) = &self.memory {
            // SAFETY: the descriptor belongs to this UMEM, and the frame is given up here, so
            // nobody else touches the slot; only the length is changed.
            unsafe { umem.data_mut(desc).cursor().set_pos(frame.len()) };
        }
        *desc
    }
}

/// A number for a new pool.
fn next_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_update(Relaxed, Relaxed, |id| id.checked_add(1)).expect("fewer than 2^32 pools")
}

/// Prefetches a cache line for writing: packets are processed in place.
#[inline]
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code))]
fn prefetch_line(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it accesses nothing and faults on no address.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_distinct_and_come_back() {
        let mut pool = Pool::heap(2);
        let (mut a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        a.set(ANCHOR, 4);
        pool.packet_mut(&a).copy_from_slice(b"abcd");
        pool.slot_mut(&b).fill(0);
        assert_eq!(pool.packet(&a), b"abcd");
        pool.give(a);
        pool.give(b);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn a_packet_moves_to_its_anchor() {
        let mut pool = Pool::heap(1);
        let mut frame = pool.take().unwrap();
        frame.set(100, 300);
        pool.packet_mut(&frame).iter_mut().enumerate().for_each(|(i, b)| *b = i as u8);
        assert!(pool.move_to_anchor(&mut frame));
        assert_eq!(frame.start(), ANCHOR);
        assert!(pool.packet(&frame).iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    #[should_panic(expected = "leave the frame")]
    fn bounds_stay_inside_the_slot() {
        Pool::heap(1).take().unwrap().set(FRAME_SIZE, 1);
    }

    #[test]
    fn slots_of_several_pages_are_whole_and_apart() {
        let mut pool = Pool::heap_of(3, 2);
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        for (i, frame) in (1..).zip(&mut frames) {
            frame.set(0, 2 * FRAME_SIZE);
            pool.packet_mut(frame).fill(i);
        }
        assert_eq!(frames.len(), 3);
        for (i, frame) in (1..).zip(&frames) {
            assert!(pool.packet(frame).iter().all(|byte| *byte == i));
        }
    }

    #[test]
    fn packets_of_a_batch_are_written_side_by_side() {
        let mut pool = Pool::heap(3);
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        for (i, frame) in frames.iter_mut().enumerate() {
            frame.set(ANCHOR + i, FRAME_ROOM - 10 * i);
        }
        let mut packets: Vec<&mut [u8]> = pool.packets_mut(&mut frames).collect();
        for (i, packet) in (1..).zip(&mut packets) {
            packet.fill(i);
        }
        for (i, packet) in packets.iter().enumerate() {
            assert!(packet.len() == FRAME_ROOM - 10 * i && packet.iter().all(|byte| usize::from(*byte) == i + 1));
        }
        assert!(frames.iter().zip(1..).all(|(frame, i)| pool.packet(frame).iter().all(|byte| *byte == i)));
    }

    #[test]
    #[should_panic(expected = "another pool")]
    fn a_frame_is_of_no_use_in_another_pool() {
        let frame = Pool::heap_of(1, 2).take().unwrap();
        Pool::heap(1).slot(&frame);
    }

    #[test]
    #[should_panic(expected = "another pool")]
    fn a_frame_is_not_given_to_another_pool() {
        let frame = Pool::heap(1).take().unwrap();
        Pool::heap(1).give(frame);
    }
}
