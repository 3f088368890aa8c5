//! One worker between two `memory` ports, with a session to itself: what it seals it can open again. For tests, fuzzing
//! and benchmarks that need a data plane without devices.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::clock::Millis;
use crate::engine::{Engine, EngineConfig, WorkerSetup};
use crate::frame::Pool;
use crate::peer::PeerCounters;
use crate::ports::memory::{MemoryPort, Wire};
use crate::prefix::PrefixMap;
use crate::session::{Cipher, Session, SessionConfig, Suite};
use crate::table::{PeerEntry, SessionEntry, Table};
use crate::worker::Worker;

/// The receiver index of the session, at both of its ends.
pub const SESSION: u32 = 9;

/// The worker and its surroundings. Its only peer has all addresses, and is the worker itself.
pub struct Loopback {
    /// Publishes the table and reads the notices.
    pub engine: Engine,
    /// The worker; the caller calls its turns.
    pub worker: Worker,
    /// The far end of its WAN port.
    pub wan: Wire,
    /// The far end of its LAN port.
    pub lan: Wire,
    /// The session, newly made: it lives for [`crate::session::REJECT_AFTER`].
    pub session: Arc<Session>,
    /// The peer's endpoint.
    pub endpoint: SocketAddr,
}

impl Loopback {
    /// A worker with this many frames.
    ///
    /// # Errors
    /// A descriptor could not be created.
    pub fn new(frames: u32) -> io::Result<Self> {
        Self::with(Pool::heap(frames), Suite::ChaCha20Poly1305)
    }

    /// A worker with this packet memory, and a session with this suite.
    ///
    /// # Errors
    /// A descriptor could not be created.
    pub fn with(pool: Pool, suite: Suite) -> io::Result<Self> {
        let endpoint: SocketAddr = ([192, 0, 2, 2], 47100).into();
        let peer = Arc::new(PeerCounters::new(0));
        let session = Arc::new(Session::new(SessionConfig {
            local_index: SESSION,
            remote_index: SESSION,
            suite,
            send_key: &[1; 32],
            receive_key: &[1; 32],
            born: Millis::now(),
            confirmed: true,
            peer: Arc::clone(&peer),
        }));
        let mut allowed_ips = PrefixMap::default();
        allowed_ips.insert(Ipv4Addr::UNSPECIFIED.into(), 0, 0);
        allowed_ips.insert(Ipv6Addr::UNSPECIFIED.into(), 0, 0);
        let mut table = Table {
            allowed_ips: Arc::new(allowed_ips),
            icmp_v4: Some([192, 0, 2, 1].into()),
            icmp_v6: Some([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()),
            ..Table::default()
        };
        let sending = Some(Arc::clone(&session));
        table.peers.push(PeerEntry {
            peer,
            endpoint: Some(endpoint.into()),
            roams: true,
            link: None,
            mtu: table.mtu,
            sending,
            next: None,
        });
        table.sessions.insert(SESSION, SessionEntry { session: Arc::clone(&session), peer: 0 });
        let (wan, lan) = (Wire::default(), Wire::default());
        let setup = WorkerSetup {
            pool,
            wan: vec![Box::new(MemoryPort::new("wan", wan.clone()))],
            lan: vec![Box::new(MemoryPort::new("lan", lan.clone()))],
            core: None,
            busy_poll: false,
        };
        let (engine, mut workers) =
            Engine::prepare(EngineConfig { workers: vec![setup], table, cipher: Cipher::detect() })?;
        Ok(Self { engine, worker: workers.remove(0), wan, lan, session, endpoint })
    }
}
