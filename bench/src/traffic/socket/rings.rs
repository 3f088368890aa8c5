//! The two halves of a socket: one receives, one sends.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::PoisonError;

use penstock_dataplane::steer::XdpMode;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use super::{Batch, SocketDrops, Steering};

/// The receiving half of a [`super::Socket`].
#[derive(Debug)]
pub struct Receiver {
    // Detached before the rings are dropped.
    pub(super) steering: Option<Steering>,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) id: u64,
    pub(super) ring_size: u32,
}

/// The sending half of a [`super::Socket`].
#[derive(Debug)]
pub struct Sender {
    pub(super) tx: TxQueue,
    pub(super) completion: CompQueue,
    pub(super) id: u64,
    pub(super) ring_size: u32,
    pub(super) in_flight: usize,
    pub(super) zero_copy: bool,
}

impl Receiver {
    /// Moves up to `most` received packets to the end of `into`.
    #[inline]
    pub fn receive(&mut self, into: &mut Batch, most: usize) -> usize {
        assert_eq!(self.id, into.id, "a batch of another memory");
        let ready = (self.rx.nb_avail(most as u32) as usize).min(most);
        let had = into.frames.len();
        into.frames.resize_with(had + ready, FrameDesc::default);
        // SAFETY: the descriptors are placeholders, overwritten by those of this socket's own UMEM.
        let received = unsafe { self.rx.consume(&mut into.frames[had..]) };
        into.frames.truncate(had + received);
        received
    }

    /// Gives frames to the kernel to receive into, as many as its ring takes. The ring can look fuller than
    /// it is: the kernel publishes received packets before it publishes that it took their frames
    /// (xsk_flush in net/xdp/xsk.c). So some may stay behind, and must not be mistaken for packets.
    #[inline]
    pub fn fill(&mut self, from: &mut Batch) -> usize {
        assert_eq!(self.id, from.id, "a batch of another memory");
        let room = self.fill.nb_free(self.ring_size) as usize;
        let keep = from.frames.len().saturating_sub(room);
        // SAFETY: the frames are of this socket's UMEM, owned by the batch, and leave it in the next line.
        let filled = unsafe { self.fill.produce(&from.frames[keep..]) };
        from.frames.truncate(from.frames.len() - filled);
        filled
    }

    /// Mode of the program; `None` for a socket that only sends.
    pub fn xdp_mode(&self) -> Option<XdpMode> {
        self.steering.as_ref().map(|steering| steering.lock().unwrap_or_else(PoisonError::into_inner).mode())
    }

    /// What the kernel dropped on the way to this socket.
    pub fn drops(&self) -> io::Result<SocketDrops> {
        let statistics = self.rx.fd().xdp_statistics()?;
        Ok(SocketDrops {
            receive_ring_full: statistics.rx_ring_full(),
            fill_ring_empty: statistics.rx_fill_ring_empty_descs(),
            // The kernel includes an empty fill ring here.
            other: statistics.rx_dropped().saturating_sub(statistics.rx_fill_ring_empty_descs()),
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the fd lives as long as the rings, which self holds.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

impl Sender {
    /// Queues packets, first to last, as many as fit. They leave with the next [`Sender::kick`].
    #[inline]
    pub fn transmit(&mut self, from: &mut Batch) -> usize {
        assert_eq!(self.id, from.id, "a batch of another memory");
        let wanted = from.frames.len();
        let fitting = wanted.min(self.tx.nb_free(wanted as u32) as usize);
        // SAFETY: the frames are of this socket's UMEM, owned by the batch, and leave it in the next line.
        let queued = unsafe { self.tx.produce(&from.frames[..fitting]) };
        from.frames.drain(..queued);
        self.in_flight += queued;
        queued
    }

    /// Moves the frames of packets that have left to the end of `into`. Without this, transmission stops.
    #[inline]
    pub fn complete(&mut self, into: &mut Batch) -> usize {
        assert_eq!(self.id, into.id, "a batch of another memory");
        if self.in_flight == 0 {
            return 0;
        }
        let ready = self.completion.nb_avail(self.ring_size) as usize;
        let had = into.frames.len();
        into.frames.resize_with(had + ready, FrameDesc::default);
        // SAFETY: the descriptors are placeholders, overwritten by those of this socket's own UMEM.
        let completed = unsafe { self.completion.consume(&mut into.frames[had..]) };
        into.frames.truncate(had + completed);
        self.in_flight -= completed;
        completed
    }

    /// Has the kernel transmit the queued packets. One call transmits only a limited number, and a device that drops a
    /// packet ends it too, so it is repeated while the queue gets shorter.
    #[inline]
    pub fn kick(&mut self) -> io::Result<()> {
        let mut queued = self.queued();
        while queued > 0 && self.tx.needs_wakeup() {
            self.tx.wakeup()?;
            let left = self.queued();
            if left == queued {
                break;
            }
            queued = left;
        }
        Ok(())
    }

    /// Packets queued that the kernel has not taken yet.
    pub fn queued(&mut self) -> usize {
        (self.ring_size - self.tx.nb_free_exact()) as usize
    }

    /// Frames queued or on their way, not completed yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Does the device read our frames itself?
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }
}
