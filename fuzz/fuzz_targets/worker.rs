//! A worker's receive path: any datagram on the WAN, any packet on the LAN.
//!
//! The first byte says where the rest goes: a datagram as it is, a datagram whose contents are sealed with
//! the session's own key (so that what is behind the AEAD is reached), or a packet of the LAN.
#![no_main]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::engine::{Engine, WorkerSetup};
use penstock_dataplane::frame::Pool;
use penstock_dataplane::peer::Peer;
use penstock_dataplane::ports::memory::{MemoryPort, Wire};
use penstock_dataplane::prefix::PrefixMap;
use penstock_dataplane::session::{DATA_HEADER, Session, SessionConfig, Suite, TAG};
use penstock_dataplane::table::{PeerEntry, SessionEntry, Table};
use penstock_dataplane::worker::Worker;

const SESSION: u32 = 9;
const FRAMES: u32 = 64;

struct Gateway {
    engine: Engine,
    worker: Worker,
    wan: Wire,
    lan: Wire,
    session: Arc<Session>,
}

thread_local! {
    static GATEWAY: RefCell<Gateway> = RefCell::new(gateway());
}

fn gateway() -> Gateway {
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
    allowed_ips.insert([0, 0, 0, 0].into(), 0, 0);
    allowed_ips.insert([0u16; 8].into(), 0, 0);
    let mut table = Table {
        allowed_ips: Arc::new(allowed_ips),
        icmp_v4: Some([192, 0, 2, 1].into()),
        icmp_v6: Some([1u16; 8].into()),
        ..Table::default()
    };
    let endpoint = Some(([192, 0, 2, 2], 2).into());
    table.peers.push(PeerEntry { peer, endpoint, link: None, sending: Some(Arc::clone(&session)) });
    table.sessions.insert(SESSION, SessionEntry { session: Arc::clone(&session), peer: 0 });
    let (wan, lan) = (Wire::default(), Wire::default());
    let setup = WorkerSetup {
        pool: Pool::heap(FRAMES),
        wan: vec![Box::new(MemoryPort::new("wan", wan.clone()))],
        lan: vec![Box::new(MemoryPort::new("lan", lan.clone()))],
        core: None,
        busy_poll: false,
    };
    let (engine, mut workers) = Engine::prepare(vec![setup], table).expect("descriptors");
    Gateway { engine, worker: workers.remove(0), wan, lan, session }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let from: SocketAddr = ([192, 0, 2, 2], 2).into();
    GATEWAY.with_borrow_mut(|gateway| {
        if !gateway.session.alive(Millis::now()) {
            *gateway = self::gateway();
        }
        match kind % 3 {
            0 => gateway.wan.send(from, kind >> 2, bytes),
            1 => {
                let mut message = vec![0; DATA_HEADER];
                message.extend_from_slice(bytes);
                message.extend_from_slice(&[0; TAG]);
                let counter = gateway.session.reserve(1).expect("below the limit");
                gateway.session.seal(counter, &mut message);
                gateway.wan.send(from, kind >> 2, &message);
            }
            _ => gateway.lan.send(from, 0, bytes),
        }
        while gateway.worker.turn() > 0 {}
        for wire in [&gateway.wan, &gateway.lan] {
            while let Some(message) = wire.receive() {
                wire.recycle(message);
            }
        }
        while gateway.engine.notices().pop().is_some() {}
        // No frame is lost: a full pool still passes.
        for _ in 0..FRAMES {
            gateway.wan.send(from, 0, &[1, 0, 0, 0]);
        }
        assert_eq!(gateway.worker.turn(), FRAMES as usize);
        while gateway.engine.notices().pop().is_some() {}
    });
});
