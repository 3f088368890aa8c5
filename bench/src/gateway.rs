//! A worker of the data plane measured without devices.

use std::time::{Duration, Instant};

use penstock_dataplane::loopback::Loopback;
use penstock_dataplane::ports::BATCH;

const FRAMES: u32 = 1024;

/// One worker whose WAN is joined to itself.
pub struct Carousel {
    gateway: Loopback,
    packet: Vec<u8>,
}

impl Carousel {
    /// A worker for IPv4 packets of `size` bytes.
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn new(size: usize) -> std::io::Result<Self> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
        packet.resize(size, 0x5a);
        Ok(Self { gateway: Loopback::new(FRAMES)?, packet })
    }

    /// Sends a batch of packets around: LAN, sealed, WAN, opened, LAN. Returns the time that the worker
    /// took to seal and to open them, memory ports included.
    ///
    /// # Panics
    /// If a packet is lost.
    pub fn round(&mut self) -> (Duration, Duration) {
        let Loopback { worker, wan, lan, endpoint, .. } = &mut self.gateway;
        for _ in 0..BATCH {
            assert!(lan.send(worker.pool(), *endpoint, 0, &self.packet));
        }
        let start = Instant::now();
        assert_eq!(worker.turn(), BATCH);
        let encrypt = start.elapsed();
        wan.turn_around(*endpoint);
        let start = Instant::now();
        assert_eq!(worker.turn(), BATCH);
        let decrypt = start.elapsed();
        assert_eq!(lan.discard(worker.pool()), BATCH);
        (encrypt, decrypt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        for size in [20, 64, 1420] {
            let mut carousel = Carousel::new(size).unwrap();
            for _ in 0..3 {
                carousel.round();
            }
        }
    }
}
