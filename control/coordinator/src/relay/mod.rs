//! The relay server: [`penstock_proto::relay`] decides about each datagram, this module moves it.
//!
//! ```text
//!   site ── UDP ──► udp ─────┐                                  ┌──► udp ── UDP ──► site
//!                            ├──► RelayServer: lock, decide ────┤
//!   site ── TLS ──► stream ──┘          ▲                       └──► stream ── TLS ──► site
//!                                     access: who may talk, as the registry or the coordinator says
//! ```
//! Who owns what: the [`RelayServer`] owns the decisions and where each bound source is to be reached; UDP
//! sockets belong to [`udp`](crate::udp), a stream to its task, which ends when its place here is taken.

pub mod access;
pub mod counters;
pub mod kept;
pub mod key;
pub mod process;
pub mod snapshot;
pub mod stream;
pub mod uplink;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Bytes;
use penstock_proto::coordination::SiteKey;
use penstock_proto::path::SiteId;
use penstock_proto::relay::{BOUND_LENGTH, Outcome, Relay, RelayDrop, RelayLimits, Source, is_data};
use penstock_proto::{Key, PublicKey, StaticSecret};
use rand::RngCore;
use tokio::sync::mpsc;

use crate::udp::Origin;
use counters::{Counters, Loss};

/// Data that waits for a stream; more is dropped and counted. At 1,400 bytes it is 350 kB, a third of a second at
/// 8 Mbit/s: a longer queue only adds delay.
pub const STREAM_QUEUE: usize = 256;
/// Handshakes and probes that wait for a stream, which go first: data of one peer must not keep other peers from
/// starting a session.
pub const STREAM_CONTROL_QUEUE: usize = 64;

/// The queues of a stream: where datagrams for it are put.
#[derive(Clone)]
pub struct StreamSender {
    control: mpsc::Sender<Bytes>,
    data: mpsc::Sender<Bytes>,
}

/// The queues of a stream: where it takes datagrams from.
pub struct StreamReceiver {
    control: mpsc::Receiver<Bytes>,
    data: mpsc::Receiver<Bytes>,
}

impl StreamReceiver {
    /// The next datagram. None when there is no sender any more.
    pub async fn recv(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            Some(datagram) = self.control.recv() => Some(datagram),
            datagram = self.data.recv() => datagram,
        }
    }

    /// The next datagram, if one waits.
    pub fn try_recv(&mut self) -> Option<Bytes> {
        self.control.try_recv().or_else(|_| self.data.try_recv()).ok()
    }
}

fn queues() -> (StreamSender, StreamReceiver) {
    let ((control, from_control), (data, from_data)) =
        (mpsc::channel(STREAM_CONTROL_QUEUE), mpsc::channel(STREAM_QUEUE));
    (StreamSender { control, data }, StreamReceiver { control: from_control, data: from_data })
}

/// A relay with the places of its sites.
pub struct RelayServer {
    hub: Mutex<Hub>,
    public_key: SiteKey,
    streams: AtomicU64,
    /// What it did.
    pub counters: Counters,
}

/// The relay's state, locked.
pub struct Hub {
    relay: Relay,
    /// How to reach the source, and the site that bound it.
    transports: HashMap<Source, (Transport, Option<SiteId>)>,
    places: HashMap<SiteId, Source>,
}

#[derive(Clone)]
enum Transport {
    Udp(Origin),
    Stream(StreamSender),
}

/// What is to be done with a datagram.
pub enum Decision {
    /// Send it there by UDP, from that socket and address of ours.
    Udp(SocketAddr, Origin),
    /// Give it to that stream.
    Stream(StreamSender),
    /// Send this back. With a site: the source is that site's now.
    Answer(Vec<u8>, Option<SiteId>),
}

impl RelayServer {
    /// A relay that knows no site yet.
    #[must_use]
    pub fn new(private_key: StaticSecret, limits: RelayLimits) -> Self {
        let public_key = PublicKey::from(&private_key).into();
        let mut cookie_secret = [0; 32];
        rand::rng().fill_bytes(&mut cookie_secret);
        let relay = Relay::new(private_key, Key::from(cookie_secret), limits);
        let hub = Mutex::new(Hub { relay, transports: HashMap::new(), places: HashMap::new() });
        Self { hub, public_key, streams: AtomicU64::new(0), counters: Counters::default() }
    }

    /// The key by which sites bind themselves.
    #[must_use]
    pub fn public_key(&self) -> SiteKey {
        self.public_key
    }

    /// Locks the state, to decide about several datagrams in a row.
    pub fn lock(&self) -> MutexGuard<'_, Hub> {
        // A panic cannot leave it in a state that others cannot use.
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sites are known, and how many are bound.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        self.lock().relay.count(Instant::now())
    }

    /// Makes a place for a stream: its source, and what it is to send. When no sender is left, the stream has to end:
    /// its site is elsewhere, or is no site any more.
    #[must_use]
    pub fn open_stream(&self) -> (Source, StreamReceiver) {
        let source = Source::Stream(self.streams.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = queues();
        self.lock().transports.insert(source, (Transport::Stream(sender), None));
        (source, receiver)
    }

    /// A stream has ended.
    pub fn close_stream(&self, source: Source) {
        self.lock().forget(source);
    }

    /// Hands a datagram to a stream, or drops it.
    pub fn queue(&self, stream: &StreamSender, datagram: &[u8]) {
        let queue = if is_data(datagram) { &stream.data } else { &stream.control };
        match queue.try_send(Bytes::copy_from_slice(datagram)) {
            Ok(()) => self.counters.forwarded(1, datagram.len()),
            Err(_) => self.counters.lost(Loss::QueueFull, 1),
        }
    }
}

impl Hub {
    /// The decisions themselves.
    #[must_use]
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Decides about a datagram; `origin` is where it came in, if by UDP.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn decide(
        &mut self,
        now: Instant,
        from: Source,
        origin: Option<Origin>,
        datagram: &[u8],
    ) -> Result<Decision, RelayDrop> {
        match self.relay.handle_datagram(now, from, datagram)? {
            Outcome::Forward(to) => match (to, self.transports.get(&to)) {
                (Source::Udp(address), Some((Transport::Udp(origin), _))) => Ok(Decision::Udp(address, *origin)),
                (_, Some((Transport::Stream(sender), _))) => Ok(Decision::Stream(sender.clone())),
                _ => Err(RelayDrop::UnboundReceiver),
            },
            Outcome::Answer(answer) => {
                let site = self.relay.site_at(now, from).filter(|_| answer.len() == BOUND_LENGTH);
                if let Some(site) = site {
                    self.bound(site, from, origin);
                }
                Ok(Decision::Answer(answer, site))
            }
        }
    }

    /// Notes where a site is, and that no site is at its former source.
    fn bound(&mut self, site: SiteId, source: Source, origin: Option<Origin>) {
        if let Some(before) = self.places.insert(site, source).filter(|before| *before != source) {
            self.leave(site, before);
        }
        match origin {
            Some(origin) => _ = self.transports.insert(source, (Transport::Udp(origin), Some(site))),
            None => self.transports.get_mut(&source).into_iter().for_each(|(_, at)| *at = Some(site)),
        }
    }

    fn leave(&mut self, site: SiteId, source: Source) {
        if self.transports.get(&source).is_some_and(|(_, at)| *at == Some(site)) {
            self.transports.remove(&source);
        }
    }

    fn forget(&mut self, source: Source) {
        if let Source::Stream(number) = source {
            self.relay.stream_closed(number);
        }
        if let Some((_, Some(site))) = self.transports.remove(&source)
            && self.places.get(&site) == Some(&source)
        {
            self.places.remove(&site);
        }
    }

    fn remove_site(&mut self, key: &PublicKey) {
        self.relay.remove_site(key);
        let site = SiteId::of(key);
        if let Some(source) = self.places.remove(&site) {
            self.leave(site, source);
        }
    }
}
