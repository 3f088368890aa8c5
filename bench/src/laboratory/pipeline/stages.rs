//! A pass of each subject: the data plane's own functions over a batch of frames, and nothing else while the clock
//! runs.

use std::hint::black_box;
use std::ops::Range;

use penstock_dataplane::clock::Millis;
use penstock_dataplane::filter::Direction;
use penstock_dataplane::frame::{ANCHOR, Frame, Pool};
use penstock_dataplane::inner::{self, Inner};
use penstock_dataplane::loopback::Loopback;
use penstock_dataplane::ports::xdp::{parse_datagram, write_datagram};
use penstock_dataplane::ports::{BATCH, EGRESS_ROOM};
use penstock_dataplane::session::{Cipher, DATA_HEADER, PADDING, Session, Suite, TAG};
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use smallvec::SmallVec;

use super::meter::{Meter, Spent};
use super::rig::{PORT, Rig};
use super::subject::Subject;

/// How often one measurement repeats a stage that takes only nanoseconds over the batch, so that the clock's resolution
/// does not matter. Less than the TTL of the packets, which each pass of a stage decrements.
const REPEATS: usize = 16;
/// Where a sealed message begins in its frame, and where its plaintext ends up: behind the room for an Ethernet header.
const MESSAGE: usize = ANCHOR + EGRESS_ROOM - DATA_HEADER;
const PLAIN: usize = ANCHOR + 14;
/// What is sealed or opened together, without an allocation.
type Batch<T> = SmallVec<[T; BATCH]>;
/// Bytes of the headers in front of a message.
const UDP_IPV4_ETHERNET: usize = 8 + 20 + 14;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The cost of all its packets.
    pub spent: Spent,
    /// The number of packets.
    pub packets: usize,
}

impl Rig {
    /// Does a subject's work over the batch, and measures nothing but that work.
    ///
    /// # Panics
    /// If a packet is lost, or a stage does not do its work, so that the measurement would mean nothing; also if the
    /// session has grown too old.
    pub fn pass(&mut self, subject: Subject, meter: &mut Meter) -> Pass {
        let packets = self.batch();
        let once = |spent| Pass { spent, packets };
        let repeated = |spent| Pass { spent, packets: packets * REPEATS };
        match subject {
            Subject::Encrypt | Subject::FilteredEncrypt => once(self.encrypt(meter)),
            Subject::Decrypt | Subject::FilteredDecrypt => once(self.decrypt(meter)),
            _ => {
                let mut frames = self.frames();
                let pass = match subject {
                    Subject::RingSeal => once(self.ring_seal(&frames, meter)),
                    Subject::RingOpen => once(self.ring_open(&frames, meter)),
                    Subject::Seal => once(self.seal(&mut frames, meter)),
                    Subject::Open => once(self.open(&mut frames, meter)),
                    Subject::Route => repeated(self.route(&mut frames, meter)),
                    Subject::Hop => repeated(self.hop(&mut frames, meter)),
                    Subject::Lookup => repeated(self.lookup(&mut frames, meter)),
                    Subject::Replay => repeated(self.replay(meter)),
                    Subject::AllowedIps => repeated(self.allowed_ips(&mut frames, meter)),
                    Subject::NextHop => repeated(self.next_hop(&mut frames, meter)),
                    Subject::WriteHeaders => repeated(self.write_headers(&mut frames, meter)),
                    Subject::ReadHeaders => repeated(self.read_headers(&mut frames, meter)),
                    Subject::Filter => repeated(self.filter(&mut frames, meter)),
                    Subject::Encrypt | Subject::Decrypt | Subject::FilteredEncrypt | Subject::FilteredDecrypt => {
                        unreachable!("measured above")
                    }
                };
                self.give(frames);
                pass
            }
        }
    }

    fn encrypt(&mut self, meter: &mut Meter) -> Spent {
        self.load();
        let Loopback { worker, wan, .. } = &mut self.gateway;
        let mut worked = 0;
        let spent = meter.take(|| worked = worker.turn());
        let sent = wan.discard(worker.pool());
        assert_eq!((worked, sent), (self.packets.len(), self.packets.len()), "packets were lost");
        spent
    }

    fn decrypt(&mut self, meter: &mut Meter) -> Spent {
        self.load();
        let Loopback { worker, wan, lan, endpoint, .. } = &mut self.gateway;
        worker.turn();
        wan.turn_around(*endpoint);
        let mut worked = 0;
        let spent = meter.take(|| worked = worker.turn());
        let sent = lan.discard(worker.pool());
        assert_eq!((worked, sent), (self.packets.len(), self.packets.len()), "packets were lost");
        spent
    }

    fn filter(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let Self { gateway, table, flows, .. } = self;
        let (pool, now) = (gateway.worker.pool(), Millis::now());
        let firewall = table.firewall.as_ref().expect("this rig has one");
        repeat(&mut with_inner(frames, pool), meter, |(frame, inner)| {
            firewall.admit(flows, pool.packet(frame), inner, (0, Direction::Out), now).is_ok()
        })
    }

    fn ring_seal(&mut self, frames: &[Frame], meter: &mut Meter) -> Spent {
        let (floor, mtu) = (Floor::new(self.gateway.session.suite()), self.table.mtu);
        let pool = self.gateway.worker.pool();
        meter.take(|| floor.seal_all(frames, pool, mtu))
    }

    fn ring_open(&mut self, frames: &[Frame], meter: &mut Meter) -> Spent {
        let (floor, mtu) = (Floor::new(self.gateway.session.suite()), self.table.mtu);
        let pool = self.gateway.worker.pool();
        floor.seal_all(frames, pool, mtu);
        let mut opened = 0;
        let spent = meter.take(|| {
            for (frame, counter) in frames.iter().zip(0..) {
                let Range { start, end } = message(frame, mtu);
                let sealed = &mut pool.slot_mut(frame)[start + DATA_HEADER..end];
                opened += usize::from(floor.key.open_in_place(floor.nonce(counter), Aad::empty(), sealed).is_ok());
            }
        });
        assert_eq!(opened, frames.len(), "what ring sealed opens");
        spent
    }

    fn seal(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let Loopback { worker, session, engine, .. } = &mut self.gateway;
        let (pool, mtu, cipher) = (worker.pool(), self.table.mtu, engine.cipher());
        meter.take(|| seal_all(session, cipher, frames, pool, mtu))
    }

    fn open(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let Loopback { worker, session, engine, .. } = &mut self.gateway;
        let (pool, mtu, cipher) = (worker.pool(), self.table.mtu, engine.cipher());
        let lens: Vec<usize> = frames.iter().map(Frame::len).collect();
        let first = session.sent();
        seal_all(session, cipher, frames, pool, mtu);
        for frame in &mut *frames {
            frame.set(PLAIN, MESSAGE - PLAIN + frame.len());
        }
        let mut opened = 0;
        let spent = meter.take(|| {
            let mut openings: Batch<_> = pool
                .packets_mut(&mut *frames)
                .zip(first..)
                .map(|(packet, counter)| session.opening(counter, packet, MESSAGE - PLAIN + DATA_HEADER))
                .collect();
            cipher.open_batch(&mut openings);
            opened = openings.iter().filter(|opening| opening.plaintext().is_some()).count();
        });
        assert_eq!(opened, frames.len(), "what the session sealed opens");
        frames.iter_mut().zip(lens).for_each(|(frame, len)| frame.set(ANCHOR + EGRESS_ROOM, len));
        spent
    }

    fn replay(&mut self, meter: &mut Meter) -> Spent {
        let session = &self.gateway.session;
        let count = (self.packets.len() * REPEATS) as u64;
        let first = session.reserve(count, 0).expect("the session is young");
        let mut fresh = 0;
        let spent = meter.take(|| {
            let mut window = session.replay();
            fresh = (first..first + count).filter(|counter| window.accept(black_box(*counter))).count();
        });
        assert_eq!(fresh as u64, count, "counters that were never seen are accepted");
        spent
    }

    fn route(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let (pool, table, now) = (self.gateway.worker.pool(), &self.table, Millis::now());
        repeat(frames, meter, |frame| {
            let Some(inner) = Inner::parse(pool.packet(frame)) else { return false };
            let Some(peer) = table.route(inner.destination) else { return false };
            table.peers[peer as usize].session().is_some_and(|session| session.alive(now))
        })
    }

    fn hop(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let (pool, mtu) = (self.gateway.worker.pool(), self.table.mtu);
        repeat(&mut with_inner(frames, pool), meter, |(frame, inner)| {
            let forwarded = inner::take_hop(pool.packet_mut(frame)).is_ok();
            inner::clamp_mss(pool.packet_mut(frame), inner, mtu);
            black_box(inner::outer_tos(inner.tos, false));
            forwarded
        })
    }

    fn lookup(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let Loopback { worker, session, engine, .. } = &mut self.gateway;
        let (pool, table) = (worker.pool(), &self.table);
        seal_all(session, engine.cipher(), frames, pool, table.mtu);
        repeat(frames, meter, |frame| {
            let index = pool.packet(frame)[4..8].try_into().map(u32::from_le_bytes).expect("four bytes");
            black_box(table.sessions.get(&index)).is_some_and(|entry| entry.peer == 0)
        })
    }

    fn allowed_ips(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let (pool, table) = (self.gateway.worker.pool(), &self.table);
        repeat(frames, meter, |frame| {
            Inner::parse(pool.packet(frame)).is_some_and(|inner| table.route(inner.source) == Some(0))
        })
    }

    fn next_hop(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let (pool, table) = (self.gateway.worker.pool(), &self.table);
        repeat(&mut with_inner(frames, pool), meter, |(frame, inner)| {
            let merged = inner::merge_ecn(pool.packet_mut(frame), inner.tos, 0).is_ok();
            let link =
                black_box(table.hop(inner.destination)).as_ref().filter(|link| inner.len <= usize::from(link.mtu));
            let forwarded = inner::take_hop(pool.packet_mut(frame)).is_ok();
            merged && link.is_some() && forwarded
        })
    }

    fn write_headers(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let Loopback { worker, endpoint, .. } = &mut self.gateway;
        let (pool, link, remote) = (worker.pool(), &self.link, *endpoint);
        frames.iter_mut().for_each(|frame| become_message(frame, self.table.mtu));
        repeat(frames, meter, |frame| {
            let written = write_datagram(pool, frame, link, remote, 0, PORT, 1);
            frame.trim_front(UDP_IPV4_ETHERNET);
            written
        })
    }

    fn read_headers(&mut self, frames: &mut [Frame], meter: &mut Meter) -> Spent {
        let Loopback { worker, endpoint, .. } = &mut self.gateway;
        let pool = worker.pool();
        for frame in &mut *frames {
            become_message(frame, self.table.mtu);
            assert!(write_datagram(pool, frame, &self.link, *endpoint, 0, PORT, 1), "one family");
        }
        repeat(frames, meter, |frame| black_box(parse_datagram(pool.packet(frame), PORT)).is_some())
    }
}

/// Does a stage's work over the batch [`REPEATS`] times. The work returns for each packet whether it did what it
/// should.
#[inline]
fn repeat<T>(items: &mut [T], meter: &mut Meter, mut work: impl FnMut(&mut T) -> bool) -> Spent {
    let mut good = 0;
    let spent = meter.take(|| {
        for _ in 0..REPEATS {
            good += items.iter_mut().map(|item| usize::from(work(black_box(item)))).sum::<usize>();
        }
    });
    assert_eq!(good, items.len() * REPEATS, "a stage did not do its work");
    spent
}

fn with_inner<'a>(frames: &'a mut [Frame], pool: &Pool) -> Vec<(&'a mut Frame, Inner)> {
    let inner = |frame: &Frame| Inner::parse(pool.packet(frame)).expect("a sound packet");
    frames.iter_mut().map(|frame| (inner(frame), frame)).map(|(inner, frame)| (frame, inner)).collect()
}

/// The range of the transport data message of the frame's inner packet: header, padded plaintext, tag.
#[inline]
fn message(frame: &Frame, mtu: usize) -> Range<usize> {
    let padded = frame.len().next_multiple_of(PADDING).min(mtu.max(frame.len()));
    MESSAGE..MESSAGE + DATA_HEADER + padded + TAG
}

/// Extends the bounds of a frame around an inner packet to those of its message.
fn become_message(frame: &mut Frame, mtu: usize) {
    let Range { start, end } = message(frame, mtu);
    frame.set(start, end - start);
}

/// Seals the inner packets into messages.
#[inline]
fn seal_all(session: &Session, cipher: Cipher, frames: &mut [Frame], pool: &mut Pool, mtu: usize) {
    frames.iter_mut().for_each(|frame| become_message(frame, mtu));
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    let first = session.reserve(frames.len() as u64, bytes).expect("the session is young");
    let mut sealings: Batch<_> =
        pool.packets_mut(frames).zip(first..).map(|(message, counter)| session.sealing(counter, message)).collect();
    cipher.seal_batch(&mut sealings);
}

/// What a worker is compared with: ring alone, with nothing around it.
struct Floor {
    key: LessSafeKey,
    suite: Suite,
}

impl Floor {
    fn new(suite: Suite) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).expect("32 bytes are a key"));
        Self { key, suite }
    }

    /// Noise's nonce: four zero bytes and the counter.
    #[inline]
    fn nonce(&self, counter: u64) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        bytes[4..].copy_from_slice(&match self.suite {
            Suite::ChaCha20Poly1305 => counter.to_le_bytes(),
            Suite::Aes256Gcm => counter.to_be_bytes(),
        });
        Nonce::assume_unique_for_key(bytes)
    }

    /// Seals the plaintexts in place, each with its tag behind it.
    #[inline]
    fn seal_all(&self, frames: &[Frame], pool: &mut Pool, mtu: usize) {
        for (frame, counter) in frames.iter().zip(0..) {
            let Range { start, end } = message(frame, mtu);
            let (plaintext, tag) =
                pool.slot_mut(frame)[start + DATA_HEADER..end].split_at_mut(end - start - DATA_HEADER - TAG);
            let sealed = self.key.seal_in_place_separate_tag(self.nonce(counter), Aad::empty(), plaintext);
            tag.copy_from_slice(sealed.expect("a frame is far below the AEAD's limit").as_ref());
        }
    }
}

#[cfg(test)]
mod tests;
