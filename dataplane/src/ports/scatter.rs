//! Receiving super-packets straight into frames.
//!
//! The kernel delivers many segments of equal size as one message: a TSO packet from the TUN device, a GRO bundle from
//! a UDP socket. A [`Scatter`] arranges the scatter list of the system call so that, if the message has the geometry of
//! the previous one (a head of H bytes, then payloads of S bytes), every payload lands in its own frame, where it
//! stays:
//! ```text
//!   message   │ head │ payload 0 │ payload 1 │ payload 2 │ …
//!   frame 0   room │ head │ payload 0 │
//!   frame 1   room │ ···· │ payload 1 │          the owner writes the heads of frames 1, 2, …
//!   frame 2   room │ ···· │ payload 2 │
//!   tail      what did not fit the prediction
//! ```
//! A wrong prediction costs two copies and nothing else: the message is gathered in the tail buffer and split from
//! there. Segments for which the caller has no room stay here for its next call.

use std::collections::VecDeque;

use super::BATCH;
use crate::frame::{ANCHOR, FRAME_ROOM, Frame, Pool};

/// The longest message: an IP packet or a UDP datagram.
const MESSAGE_MAX: usize = 65_536;

/// How many of a message's first bytes [`Scatter::front`] shows at least, if it has as many.
pub(super) const FRONT: usize = 256;

/// After this many single-segment messages, no super-packet is expected any more.
const PATIENCE: u32 = 64;

/// The expected geometry of the next message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prediction {
    head: usize,
    size: usize,
    count: usize,
    singles: u32,
}

impl Prediction {
    /// Single packets of any size.
    pub(super) fn singles() -> Self {
        Self { head: 0, size: 0, count: 1, singles: 0 }
    }

    /// The number of segments expected in a message.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Learns from a message of `count` segments.
    fn observe(&mut self, head: usize, size: usize, count: usize) {
        if count == 1 {
            self.singles += 1;
            if self.singles >= PATIENCE {
                self.count = 1;
            }
            return;
        }
        let most = (MESSAGE_MAX / size + 1).min(BATCH);
        (self.head, self.size, self.singles) = (head, size, 0);
        // Grows fast, because what overflows is copied; shrinks slowly.
        self.count = match self.count {
            expected if count > expected => (2 * count).min(most),
            expected => (expected - (expected - count) / 8).min(most),
        };
    }
}

/// Where a message is received, and which part of it has not been taken yet.
pub(super) struct Scatter {
    /// Bytes left free between a frame's anchor and the segment.
    room: usize,
    /// The largest segment, including the head.
    largest: usize,
    /// Empty frames; the first `armed` of them are in the scatter list.
    frames: VecDeque<Frame>,
    armed: usize,
    /// The geometry that they are armed for.
    head: usize,
    first: usize,
    size: usize,
    tail: Box<[u8]>,
    message: Message,
}

/// A received message: its geometry, and how much of it was taken.
#[derive(Clone, Copy, Debug, Default)]
struct Message {
    head: usize,
    size: usize,
    payload: usize,
    count: usize,
    taken: usize,
    /// Whether the whole message is in the tail buffer.
    gathered: bool,
}

impl Scatter {
    /// A scatter that places segments `room` bytes after the anchor and leaves at least `tail_room` bytes free behind
    /// them.
    pub(super) fn new(room: usize, tail_room: usize) -> Self {
        Self {
            room,
            largest: FRAME_ROOM - room - tail_room,
            frames: VecDeque::with_capacity(BATCH),
            armed: 0,
            head: 0,
            first: 0,
            size: 0,
            tail: vec![0; MESSAGE_MAX].into(),
            message: Message::default(),
        }
    }

    /// The largest segment that fits, including the head.
    pub(super) fn largest(&self) -> usize {
        self.largest
    }

    /// Appends the places where the next message is to be read to `list`, in at most `frames` frames. False when there
    /// is no frame at all.
    pub(super) fn arm(
        &mut self,
        pool: &mut Pool,
        expected: &Prediction,
        frames: usize,
        list: &mut Raw<libc::iovec>,
    ) -> bool {
        let usable = expected.count > 1 && expected.head + expected.size <= self.largest;
        let wanted = if usable { expected.count.min(frames) } else { 1 };
        self.keep(wanted, pool);
        while self.frames.len() < wanted {
            match pool.take() {
                Some(frame) => self.frames.push_back(frame),
                None => break,
            }
        }
        self.armed = self.frames.len();
        (self.head, self.size) = if usable { (expected.head, expected.size) } else { (0, 0) };
        self.first = if usable { self.head + self.size } else { self.largest };
        for (i, frame) in self.frames.iter().enumerate() {
            let start = self.place(pool, frame);
            let (offset, len) = if i == 0 { (start, self.first) } else { (start + self.head, self.size) };
            list.push(libc::iovec { iov_base: pool.pointer(frame, offset).cast(), iov_len: len });
        }
        list.push(libc::iovec { iov_base: self.tail.as_mut_ptr().cast(), iov_len: self.tail.len() });
        self.armed > 0
    }

    /// Gives back all but `count` of the empty frames.
    pub(super) fn keep(&mut self, count: usize, pool: &mut Pool) {
        while self.frames.len() > count {
            self.frames.pop_back().into_iter().for_each(|frame| pool.give(frame));
        }
    }

    /// Entries that [`Scatter::arm`] appended to the list.
    pub(super) fn entries(&self) -> usize {
        self.armed + 1
    }

    /// The beginning of the message of `len` bytes that was just read: all of it or [`FRONT`] bytes. `None` if it is
    /// impossibly long.
    pub(super) fn front<'a>(&'a mut self, pool: &'a Pool, len: usize) -> Option<&'a [u8]> {
        self.message = Message::default();
        if len > self.tail.len() {
            return None;
        }
        if self.first < len.min(FRONT) {
            self.gather(pool, len);
        }
        if self.message.gathered {
            return Some(&self.tail[..len]);
        }
        let frame = &self.frames[0];
        let start = self.place(pool, frame);
        Some(&pool.slot(frame)[start..start + len.min(self.first)])
    }

    /// Sets the message's geometry, after [`Scatter::front`]: `head` bytes, then payloads of `size` bytes, of which the
    /// last may be shorter.
    pub(super) fn split(&mut self, pool: &Pool, len: usize, head: usize, size: usize, expected: &mut Prediction) {
        debug_assert!(head <= len && head + size <= self.largest && (size > 0 || head == len));
        let payload = len - head;
        let count = if size == 0 { 1 } else { payload.div_ceil(size).max(1) };
        let in_place = if count == 1 { len <= self.first } else { head == self.head && size == self.size };
        if !in_place && !self.message.gathered {
            self.gather(pool, len);
        }
        let gathered = self.message.gathered;
        self.message = Message { head, size, payload, count, taken: 0, gathered };
        expected.observe(head, size, count);
    }

    /// Segments not taken yet.
    pub(super) fn pending(&self) -> usize {
        self.message.count - self.message.taken
    }

    /// Takes the next segment: its index and its frame, with the payload in place. The head is in place only in the
    /// first one. `None` when there is no more, or no frame for it.
    #[inline]
    pub(super) fn next(&mut self, pool: &mut Pool) -> Option<(usize, Frame)> {
        let Message { head, size, payload, count, taken, gathered } = self.message;
        if taken == count {
            return None;
        }
        let len = (payload - taken * size).min(size);
        let landed = !gathered && taken < self.armed;
        let mut frame = if landed || gathered { self.frames.pop_front() } else { None }.or_else(|| pool.take())?;
        let start = self.place(pool, &frame);
        frame.set(start, head + len);
        if gathered {
            let from = head + taken * size;
            pool.packet_mut(&frame)[head..].copy_from_slice(&self.tail[from..from + len]);
            if taken == 0 {
                pool.packet_mut(&frame)[..head].copy_from_slice(&self.tail[..head]);
            }
        } else if !landed {
            let from = (taken - self.armed) * size;
            pool.packet_mut(&frame)[head..].copy_from_slice(&self.tail[from..from + len]);
        }
        self.message.taken += 1;
        Some((taken, frame))
    }

    /// Where in its slot a segment begins. A frame with a late anchor is treated as if it had the usual one, so that
    /// every segment has the same room.
    #[inline]
    fn place(&self, pool: &Pool, frame: &Frame) -> usize {
        pool.anchor(frame).min(ANCHOR) + self.room
    }

    /// Assembles the message in the tail buffer by copying.
    #[cold]
    fn gather(&mut self, pool: &Pool, len: usize) {
        let in_frames = (self.first + (self.armed - 1) * self.size).min(len);
        self.tail.copy_within(0..len - in_frames, in_frames);
        let mut done = 0;
        for (i, frame) in self.frames.iter().take(self.armed).enumerate() {
            let start = self.place(pool, frame);
            let (from, room) = if i == 0 { (start, self.first) } else { (start + self.head, self.size) };
            let n = room.min(len - done);
            self.tail[done..done + n].copy_from_slice(&pool.slot(frame)[from..from + n]);
            done += n;
        }
        self.message.gathered = true;
    }
}

/// Preallocated arguments of system calls.
pub(super) struct Raw<T>(Vec<T>);

#[expect(unsafe_code)]
// SAFETY: its pointers are dereferenced only by the system call that follows its construction, on the same thread;
// until then they are mere numbers.
unsafe impl<T> Send for Raw<T> {}

impl<T> Raw<T> {
    /// Room for `capacity` entries.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }
}

impl<T> std::ops::Deref for Raw<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Raw<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "plays the kernel's part: copies along a scatter list")]
mod tests {
    use super::*;

    const ROOM: usize = 58;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// Reads `message` as the kernel would, then takes segments, `step` at a time.
    fn receive(
        scatter: &mut Scatter,
        pool: &mut Pool,
        expected: &mut Prediction,
        message: &[u8],
        (head, size): (usize, usize),
    ) -> Vec<Vec<u8>> {
        let mut list = Raw::with_capacity(BATCH + 2);
        assert!(scatter.arm(pool, expected, BATCH, &mut list));
        assert_eq!(list.len(), scatter.entries());
        let mut rest = message;
        for entry in list.iter() {
            let (now, later) = rest.split_at(rest.len().min(entry.iov_len));
            // SAFETY: the entry points into the pool or the tail, both alive and of this size.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), entry.iov_base.cast(), now.len()) };
            rest = later;
        }
        assert!(rest.is_empty());
        let front = scatter.front(pool, message.len()).unwrap();
        assert!(front.len() >= message.len().min(FRONT) && message.starts_with(front));
        scatter.split(pool, message.len(), head, size, expected);
        let mut segments = Vec::new();
        while scatter.pending() > 0 {
            let (index, frame) = scatter.next(pool).expect("enough frames");
            assert_eq!(index, segments.len());
            assert_eq!(frame.start(), ANCHOR + ROOM);
            let packet = pool.packet(&frame);
            segments.push(if index == 0 { packet.to_vec() } else { packet[head..].to_vec() });
            pool.give(frame);
        }
        assert!(scatter.next(pool).is_none());
        segments
    }

    #[test]
    fn any_geometry_after_any_other_is_split_alike() {
        let geometries = [
            (52, 1368, 64_000),
            (52, 1368, 1420),
            (40, 1380, 30_000),
            (52, 1368, 64_000),
            (0, 112, 7000),
            (0, 1, 100),
            (0, 0, 0),
        ];
        let more =
            [(0, 1452, 65_340), (0, 60, 60), (28, 1000, 28), (52, 536, 65_000), (52, 536, 2000), (40, 3000, 9001)];
        let (mut pool, mut scatter) = (Pool::heap(300), Scatter::new(ROOM, 32));
        let mut expected = Prediction::singles();
        let all: Vec<_> = geometries.into_iter().chain(more).collect();
        for a in &all {
            for b in &all {
                for (head, size, len) in [*a, *b, *b] {
                    let message = bytes(len);
                    let segments = receive(&mut scatter, &mut pool, &mut expected, &message, (head, size));
                    assert_eq!(segments.concat(), message, "{head} {size} {len}");
                    assert!(segments[0].len() <= head + size);
                    assert!(segments.iter().skip(1).all(|s| s.len() <= size));
                }
            }
        }
        scatter.keep(0, &mut pool);
        assert_eq!(pool.available(), 300);
    }

    #[test]
    fn a_right_prediction_copies_nothing() {
        let (mut pool, mut scatter) = (Pool::heap(100), Scatter::new(ROOM, 32));
        let mut expected = Prediction::singles();
        let message = bytes(52 + 1368 * 40);
        receive(&mut scatter, &mut pool, &mut expected, &message, (52, 1368));
        scatter.tail.fill(0xee);
        receive(&mut scatter, &mut pool, &mut expected, &message, (52, 1368));
        assert!(scatter.tail.iter().all(|byte| *byte == 0xee), "the tail buffer was used");
    }

    #[test]
    fn segments_wait_for_frames() {
        let (mut pool, mut scatter) = (Pool::heap(3), Scatter::new(ROOM, 32));
        let mut expected = Prediction::singles();
        let message = bytes(10_000);
        for _ in 0..2 {
            let mut list = Raw::with_capacity(BATCH + 2);
            assert!(scatter.arm(&mut pool, &expected, BATCH, &mut list));
            let mut rest = &message[..];
            for entry in list.iter() {
                let (now, later) = rest.split_at(rest.len().min(entry.iov_len));
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), entry.iov_base.cast(), now.len()) };
                rest = later;
            }
            scatter.front(&pool, message.len()).unwrap();
            scatter.split(&pool, message.len(), 0, 1000, &mut expected);
            let mut whole = Vec::new();
            while scatter.pending() > 0 {
                let taken: Vec<_> = std::iter::from_fn(|| scatter.next(&mut pool)).collect();
                assert!(!taken.is_empty());
                for (_, frame) in taken {
                    whole.extend_from_slice(pool.packet(&frame));
                    pool.give(frame);
                }
            }
            assert_eq!(whole, message);
        }
    }

    #[test]
    fn without_frames_nothing_is_armed() {
        let (mut pool, mut scatter) = (Pool::heap(0), Scatter::new(ROOM, 32));
        assert!(!scatter.arm(&mut pool, &Prediction::singles(), BATCH, &mut Raw::with_capacity(4)));
    }
}
