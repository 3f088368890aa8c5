//! Bare ChaCha20-Poly1305 of ring, sealed and opened in place: the baseline for the data plane's stages.
//!
//! Run `cargo bench -p penstock-bench --bench ring`; nanoseconds are per packet.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};

/// Smallest packet, a middle one, and what fills a tunnel of MTU 1420.
const SIZES: [usize; 3] = [64, 512, 1420];
/// Packets sealed in advance for opening: enough for many timings, few enough for the cache.
const SEALED: u64 = 64;

fn seal(c: &mut Criterion) {
    let key = key();
    let mut group = c.benchmark_group("ring/chacha20poly1305/seal");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        let mut packet = vec![0x5a; size];
        let mut counter = 0;
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                counter += 1;
                black_box(seal_one(&key, counter, black_box(&mut packet)))
            });
        });
    }
    group.finish();
}

fn open(c: &mut Criterion) {
    let key = key();
    let mut group = c.benchmark_group("ring/chacha20poly1305/open");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        let sealed: Vec<Vec<u8>> = (0..SEALED)
            .map(|counter| {
                let mut packet = vec![0x5a; size];
                let tag = seal_one(&key, counter, &mut packet);
                packet.extend_from_slice(tag.as_ref());
                packet
            })
            .collect();
        let mut packets = sealed.clone();
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            // Opening destroys the packet, so fresh ones are laid out while the clock stands still.
            b.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let round = left.min(SEALED);
                    for (packet, sealed) in packets.iter_mut().zip(&sealed) {
                        packet.copy_from_slice(sealed);
                    }
                    let start = Instant::now();
                    for (counter, packet) in (0..round).zip(&mut packets) {
                        let plain = key.open_in_place(nonce(counter), Aad::empty(), packet);
                        assert_eq!(black_box(plain).map(|plain| plain.len()), Ok(size));
                    }
                    time += start.elapsed();
                    left -= round;
                }
                time
            });
        });
    }
    group.finish();
}

fn key() -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes are a key");
    LessSafeKey::new(key)
}

/// WireGuard's nonce: four zero bytes and the counter, little-endian.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn seal_one(key: &LessSafeKey, counter: u64, packet: &mut [u8]) -> Tag {
    key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), packet).expect("the packet is short enough")
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = seal, open
}
criterion_main!(benches);
