//! The processing of the TUN device's super-packets, without the device: for fuzzing only, where `cargo fuzz` sets
//! `cfg(fuzzing)`.

use super::BATCH;
use super::offload::{VNET_LEN, VnetHeader, Work, cut, work};
use super::offload_coalesce::Coalescer;
use super::scatter::FRONT;
use crate::checksum;

/// A virtio-net header with a packet behind it: segmented as a port does it; the segments are then coalesced as a port
/// does it and, as the kernel would, segmented again.
///
/// # Panics
/// If a packet is lost, or a coalesced one does not yield its original packets.
pub fn super_packet(input: &[u8]) {
    let Some((header, packet)) = input.split_first_chunk::<VNET_LEN>() else { return };
    let Some(segments) = segments(&VnetHeader::parse(header), packet) else { return };
    for batch in segments.chunks(BATCH) {
        let mut coalescer = Coalescer::new(true);
        coalescer.sort(batch.len(), |i| &batch[i]);
        let mut seen = vec![false; batch.len()];
        for run in coalescer.runs() {
            let of_run: Vec<&Vec<u8>> = coalescer.packets(run).map(|i| &batch[i]).collect();
            coalescer.packets(run).for_each(|i| assert!(!std::mem::replace(&mut seen[i], true), "sent twice"));
            if of_run.len() == 1 {
                continue;
            }
            let mut joined = of_run[0].clone();
            let header = run.finish(&mut joined);
            of_run[1..].iter().for_each(|packet| joined.extend_from_slice(&packet[run.head()..]));
            let again = self::segments(&header, &joined).expect("what we join the kernel can cut");
            assert_eq!(again.len(), of_run.len());
            for (again, packet) in again.iter().zip(of_run) {
                assert_eq!(again.len(), packet.len());
                assert_eq!(again[run.head()..], packet[run.head()..], "the payload is another");
            }
        }
        assert!(seen.into_iter().all(|seen| seen), "a packet is lost");
    }
}

/// The segments of a message from the device.
fn segments(header: &VnetHeader, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let front = &packet[..packet.len().min(FRONT)];
    let mut whole = packet.to_vec();
    match work(header, front, packet.len()).ok()? {
        Work::None => Some(vec![whole]),
        Work::Checksum { start, field } => {
            checksum::complete(&mut whole, start, field);
            Some(vec![whole])
        }
        Work::Segment { head, size } => Some(cut(header, packet, head, size)),
    }
}
