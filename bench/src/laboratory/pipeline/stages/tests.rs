use std::collections::BTreeSet;

use super::*;
use crate::laboratory::pipeline::size::Size;

/// With the smallest and the largest size that may be requested.
const SIZES: [Size; 5] = [Size::Bytes(28), Size::Bytes(1420), Size::Imix, Size::Bytes(9000), Size::Bytes(60_000)];

fn rig(size: Size) -> (Rig, Meter) {
    rig_of(size, Suite::ChaCha20Poly1305)
}

fn rig_of(size: Size, suite: Suite) -> (Rig, Meter) {
    (Rig::new(size, suite).expect("descriptors"), Meter::new())
}

#[test]
fn every_subject_does_its_work_at_every_size_again_and_again() {
    for (size, suite) in
        SIZES.into_iter().flat_map(|size| [Suite::ChaCha20Poly1305, Suite::Aes256Gcm].map(|s| (size, s)))
    {
        let (mut plain, mut meter) = rig_of(size, suite);
        let mut filtered = Rig::filtered(size, suite).expect("descriptors");
        for _ in 0..3 {
            for subject in Subject::all() {
                let rig = if subject.is_filtered() { &mut filtered } else { &mut plain };
                let pass = rig.pass(subject, &mut meter);
                assert!(pass.packets % rig.batch() == 0 && pass.packets > 0, "{subject:?}");
            }
        }
        for rig in [&plain, &filtered] {
            assert_eq!(rig.gateway.engine.drops().map(|(_, count)| count).sum::<u64>(), 0);
        }
    }
}

#[test]
fn what_is_opened_is_what_was_sent() {
    for size in SIZES {
        let (mut rig, mut meter) = rig(size);
        let mut frames = rig.frames();
        rig.open(&mut frames, &mut meter);
        let sent = rig.packets.clone();
        let pool = rig.gateway.worker.pool();
        for (frame, packet) in frames.iter().zip(&sent) {
            assert!(pool.slot(frame)[PLAIN..].starts_with(packet), "{size}");
            assert!(!pool.packet(frame).starts_with(packet), "{size}: it was sealed in between");
        }
        rig.give(frames);
    }
}

#[test]
fn a_counter_that_the_replay_stage_accepted_is_refused_afterwards() {
    let (mut rig, mut meter) = rig(Size::Bytes(64));
    let first = rig.gateway.session.sent();
    rig.replay(&mut meter);
    for counter in [first, first + 1, rig.gateway.session.sent() - 1] {
        assert!(!rig.gateway.session.replay().accept(counter));
    }
    assert!(rig.gateway.session.replay().accept(rig.gateway.session.sent()));
}

#[test]
fn both_stages_with_a_hop_take_it() {
    for stage in [Rig::hop, Rig::next_hop] {
        let (mut rig, mut meter) = rig(Size::Imix);
        let mut frames = rig.frames();
        stage(&mut rig, &mut frames, &mut meter);
        let pool = rig.gateway.worker.pool();
        assert!(frames.iter().all(|frame| usize::from(pool.packet(frame)[8]) == 64 - REPEATS));
        rig.give(frames);
    }
}

#[test]
fn headers_are_read_as_they_were_written() {
    let (mut rig, mut meter) = rig(Size::Bytes(1420));
    let mut frames = rig.frames();
    rig.read_headers(&mut frames, &mut meter);
    let endpoint = rig.gateway.endpoint;
    let pool = rig.gateway.worker.pool();
    for frame in &frames {
        let datagram = parse_datagram(pool.packet(frame), PORT).expect("what was written");
        assert_eq!((datagram.payload, datagram.len), (UDP_IPV4_ETHERNET, DATA_HEADER + 1420 + TAG));
        assert_eq!(pool.packet(frame)[30..34], [192, 0, 2, 2], "to {endpoint}");
    }
    rig.give(frames);
}

#[test]
fn ring_and_the_worker_have_the_same_frames() {
    for size in SIZES {
        let (mut rig, mut meter) = rig(size);
        let places = |rig: &mut Rig| -> BTreeSet<*mut u8> {
            let frames = rig.frames();
            let pool = rig.gateway.worker.pool();
            let places = frames.iter().map(|frame| pool.pointer(frame, 0)).collect();
            rig.give(frames);
            places
        };
        let before = places(&mut rig);
        assert_eq!(before.len(), rig.batch());
        for subject in Subject::all().filter(|subject| !subject.is_filtered()) {
            rig.pass(subject, &mut meter);
            assert_eq!(places(&mut rig), before, "{subject:?}");
        }
        // The worker wrote its messages there, and nothing has overwritten them.
        rig.pass(Subject::Encrypt, &mut meter);
        let frames: Vec<Frame> = (0..rig.batch()).map(|_| rig.gateway.worker.pool().take().expect("free")).collect();
        let pool = rig.gateway.worker.pool();
        assert!(frames.iter().all(|frame| pool.slot(frame)[MESSAGE..].starts_with(&[4, 0, 0, 0])));
    }
}

#[test]
#[should_panic(expected = "a stage did not do its work")]
fn a_stage_that_refuses_a_packet_is_noticed() {
    let (mut rig, mut meter) = rig(Size::Bytes(64));
    rig.packets[5][12..16].copy_from_slice(&[10, 102, 0, 5]);
    rig.pass(Subject::AllowedIps, &mut meter);
}

#[test]
#[should_panic(expected = "packets were lost")]
fn a_packet_that_the_worker_drops_is_noticed() {
    let (mut rig, mut meter) = rig(Size::Bytes(64));
    rig.packets[5][12..16].copy_from_slice(&[10, 102, 0, 5]);
    rig.pass(Subject::Decrypt, &mut meter);
}

#[test]
fn lookups_tell_the_sites_apart() {
    let (rig, _) = rig(Size::Bytes(64));
    assert_eq!(rig.table.sessions.len(), usize::from(crate::laboratory::pipeline::rig::SITES));
    assert_eq!(rig.table.route([10, 101, 0, 9].into()), Some(0));
    assert_eq!(rig.table.route([10, 103, 0, 9].into()), Some(2));
    assert_eq!(rig.table.route([100, 64, 0, 63].into()), Some(63));
    assert_eq!(rig.table.route([10, 165, 0, 1].into()), None);
    assert!(rig.table.sessions.values().all(|entry| rig.table.peers.len() > entry.peer as usize));
}
