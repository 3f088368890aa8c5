//! The steering decision, which reads packets from the wire in the kernel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_wire::{LanConfig, WanConfig, WanVerdict, steer_lan, steer_wan};

fuzz_target!(|frame: &[u8]| {
    let wan = WanConfig { port: 47100 };
    if steer_wan(frame, &wan, |_| true) == WanVerdict::Redirect {
        // Ethernet, IPv4, UDP and the smallest transport data message.
        assert!(frame.len() >= 14 + 20 + 8 + 32);
    }
    let lan = LanConfig { mac: [2, 0, 0, 0, 0, 1], tunnel_mtu: 1420, link_mtu: 1500 };
    if steer_lan(frame, &lan, |_| Some(44)).outer().is_some() {
        assert!(frame.len() >= 14 + 20 && frame[..6] == lan.mac);
    }
});
