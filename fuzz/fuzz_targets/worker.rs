//! A worker's receive path: any datagram on the WAN, any packet on the LAN.
//!
//! The first byte says where the rest goes: a datagram as it is, a datagram whose contents are sealed with
//! the session's own key (so that what is behind the AEAD is reached), or a packet of the LAN.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::loopback::Loopback;
use penstock_dataplane::session::{DATA_HEADER, TAG};

const FRAMES: u32 = 64;

thread_local! {
    static GATEWAY: RefCell<Loopback> = RefCell::new(gateway());
}

fn gateway() -> Loopback {
    Loopback::new(FRAMES).expect("descriptors")
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    GATEWAY.with_borrow_mut(|gateway| {
        if !gateway.session.alive(Millis::now()) {
            *gateway = self::gateway();
        }
        let Loopback { engine, worker, wan, lan, session, endpoint } = gateway;
        // Packets that do not fit a frame never leave a device.
        match kind % 3 {
            0 => wan.send(worker.pool(), *endpoint, kind >> 2, bytes),
            1 => {
                let mut message = vec![0; DATA_HEADER];
                message.extend_from_slice(bytes);
                message.extend_from_slice(&[0; TAG]);
                let counter = session.reserve(1, message.len() as u64).expect("below the limit");
                engine.cipher().seal_batch(&mut [session.sealing(counter, &mut message)]);
                wan.send(worker.pool(), *endpoint, kind >> 2, &message)
            }
            _ => lan.send(worker.pool(), *endpoint, 0, bytes),
        };
        while worker.turn() > 0 {}
        wan.discard(worker.pool());
        lan.discard(worker.pool());
        while engine.notices().pop().is_some() {}
        assert_eq!(worker.pool().available(), FRAMES as usize, "a frame is lost");
    });
});
