//! The packet memory, and the frames of it that user space owns.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use xsk_rs::config::{QueueSize, UmemConfig};
use xsk_rs::{FrameDesc, Umem};

use super::{FRAME_SIZE, RING_SIZE, SetupError, os_error};

/// The packet memory (UMEM) that sockets share, so that a frame received by one leaves by another.
#[derive(Debug)]
pub struct Memory {
    pub(super) umem: Umem,
    pub(super) id: u64,
    pub(super) ring_size: u32,
}

/// Frames owned by user space, in order.
#[derive(Debug)]
pub struct Batch {
    umem: Umem,
    pub(super) id: u64,
    pub(super) frames: Vec<FrameDesc>,
}

impl Memory {
    /// Registers memory for this many frames and returns them, for sockets with rings of [`RING_SIZE`]. The first
    /// socket over it is made here already, so this must be called in the network namespace of the interfaces.
    pub fn new(frames: u32) -> Result<(Memory, Batch), SetupError> {
        Memory::with_rings(frames, RING_SIZE)
    }

    /// The same for sockets whose rings have this many entries, a power of two.
    pub fn with_rings(frames: u32, ring_size: u32) -> Result<(Memory, Batch), SetupError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let invalid = |error: &dyn std::fmt::Display| {
            SetupError::Memory(io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
        };
        let frames = NonZeroU32::new(frames).ok_or_else(|| invalid(&"no frames"))?;
        let ring = QueueSize::new(ring_size).map_err(|e| invalid(&e))?;
        let config = UmemConfig::builder()
            .frame_size(FRAME_SIZE.try_into().map_err(|e| invalid(&e))?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(|e| invalid(&e))?;
        let (umem, frames) = Umem::new(config, frames, false).map_err(|e| SetupError::Memory(os_error(&e)))?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let memory = Memory { umem, id, ring_size };
        let batch = Batch { frames, ..memory.batch(0) };
        Ok((memory, batch))
    }

    /// An empty batch.
    pub fn batch(&self, capacity: usize) -> Batch {
        Batch { umem: self.umem.clone(), id: self.id, frames: Vec::with_capacity(capacity) }
    }
}

impl Batch {
    /// Frames in the batch.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// No frames?
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Moves up to `count` frames, the last ones, to the end of `into`: those used last are the ones still
    /// in the cache.
    pub fn give(&mut self, into: &mut Batch, count: usize) {
        assert_eq!(self.id, into.id, "batches of different memories");
        let from = self.frames.len().saturating_sub(count);
        into.frames.extend_from_slice(&self.frames[from..]);
        self.frames.truncate(from);
    }

    /// Makes every packet this long, at most [`super::FRAME_ROOM`]. A frame that was never written is all zeros; others
    /// keep their bytes.
    pub fn set_packet_len(&mut self, len: usize) {
        for frame in &mut self.frames {
            // SAFETY: the batch owns the frame (see the top of socket/mod.rs) and is borrowed exclusively.
            let mut data = unsafe { self.umem.data_mut(frame) };
            data.cursor().set_pos(len);
        }
    }

    /// Writes every packet, in order: `each` gets the packet's number in the batch and all of the frame's
    /// [`super::FRAME_ROOM`] bytes, and returns the packet's length.
    #[inline]
    pub fn write_each(&mut self, mut each: impl FnMut(usize, &mut [u8]) -> usize) {
        for (number, frame) in self.frames.iter_mut().enumerate() {
            // SAFETY: the batch owns the frame (see the top of socket/mod.rs) and is borrowed exclusively.
            let mut data = unsafe { self.umem.data_mut(frame) };
            let room = data.cursor().buf_len();
            data.cursor().set_pos(room);
            let len = each(number, data.contents_mut());
            data.cursor().set_pos(len);
        }
    }

    /// Calls `each` with every packet's bytes, in order.
    #[inline]
    pub fn for_each(&mut self, mut each: impl FnMut(&mut [u8])) {
        for frame in &mut self.frames {
            // SAFETY: the batch owns the frame (see the top of socket/mod.rs) and is borrowed exclusively.
            let mut data = unsafe { self.umem.data_mut(frame) };
            each(data.contents_mut());
        }
    }
}
