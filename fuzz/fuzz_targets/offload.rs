//! Super-packets of the TUN device: a virtio-net header (10 bytes) and the packet it describes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_dataplane::ports::fuzzing::super_packet;

fuzz_target!(|input: &[u8]| super_packet(input));
