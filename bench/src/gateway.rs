//! A worker of the data plane between two `memory` ports, with a session to itself: what it seals it can
//! open again. For measuring the data plane without devices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::engine::{Engine, WorkerSetup};
use penstock_dataplane::frame::Pool;
use penstock_dataplane::peer::Peer;
use penstock_dataplane::ports::BATCH;
use penstock_dataplane::ports::memory::{MemoryPort, Message, Wire};
use penstock_dataplane::prefix::PrefixMap;
use penstock_dataplane::session::{Session, SessionConfig, Suite};
use penstock_dataplane::table::{PeerEntry, SessionEntry, Table};
use penstock_dataplane::worker::Worker;

const SESSION: u32 = 9;
const FRAMES: u32 = 1024;

/// One worker whose WAN is joined to itself.
pub struct Loopback {
    worker: Worker,
    wan: Wire,
    lan: Wire,
    endpoint: SocketAddr,
    packet: Vec<u8>,
    carried: Vec<Message>,
    _engine: Engine,
}

impl Loopback {
    /// A worker for IPv4 packets of `size` bytes.
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn new(size: usize) -> std::io::Result<Self> {
        let endpoint: SocketAddr = ([192, 0, 2, 2], 47100).into();
        let peer = Arc::new(Peer::new(0));
        let session = Arc::new(Session::new(SessionConfig {
            local_index: SESSION,
            remote_index: SESSION,
            suite: Suite::ChaCha20Poly1305,
            send_key: [1; 32].into(),
            receive_key: [1; 32].into(),
            born: Millis::now(),
            confirmed: true,
            peer: Arc::clone(&peer),
        }));
        let mut allowed_ips = PrefixMap::default();
        allowed_ips.insert([10, 0, 0, 0].into(), 16, 0);
        let mut table = Table { allowed_ips: Arc::new(allowed_ips), ..Table::default() };
        let sending = Some(Arc::clone(&session));
        table.peers.push(PeerEntry { peer, endpoint: Some(endpoint), link: None, sending });
        table.sessions.insert(SESSION, SessionEntry { session, peer: 0 });
        let (wan, lan) = (Wire::default(), Wire::default());
        let setup = WorkerSetup {
            pool: Pool::heap(FRAMES),
            wan: vec![Box::new(MemoryPort::new("wan", wan.clone()))],
            lan: vec![Box::new(MemoryPort::new("lan", lan.clone()))],
            core: None,
            busy_poll: false,
        };
        let (engine, mut workers) = Engine::prepare(vec![setup], table)?;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
        packet.resize(size, 0x5a);
        let carried = Vec::with_capacity(BATCH);
        Ok(Self { worker: workers.remove(0), wan, lan, endpoint, packet, carried, _engine: engine })
    }

    /// Sends a batch of packets around: LAN, sealed, WAN, opened, LAN. Returns the time that the worker
    /// took to seal and to open them, memory ports included.
    ///
    /// # Panics
    /// If a packet is lost.
    pub fn round(&mut self) -> (Duration, Duration) {
        for _ in 0..BATCH {
            self.lan.send(self.endpoint, 0, &self.packet);
        }
        let start = Instant::now();
        assert_eq!(self.worker.turn(), BATCH);
        let encrypt = start.elapsed();
        self.carried.extend(std::iter::from_fn(|| self.wan.receive()));
        for message in self.carried.drain(..) {
            self.wan.send(self.endpoint, message.tos, &message.bytes);
            self.wan.recycle(message);
        }
        let start = Instant::now();
        assert_eq!(self.worker.turn(), BATCH);
        let decrypt = start.elapsed();
        for _ in 0..BATCH {
            let message = self.lan.receive().expect("every packet comes back");
            assert_eq!(message.bytes.len(), self.packet.len());
            self.lan.recycle(message);
        }
        (encrypt, decrypt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        for size in [20, 64, 1420] {
            let mut loopback = Loopback::new(size).unwrap();
            for _ in 0..3 {
                loopback.round();
            }
        }
    }
}
