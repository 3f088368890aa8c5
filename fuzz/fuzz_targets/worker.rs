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
        let from = gateway.endpoint;
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
