//! A worker through `memory` ports: encrypting and decrypting whole batches, with lookups, headers,
//! replay window and queues. The `ring` bench of the same run is the AEAD alone.
//!
//! Run `cargo bench -p penstock-bench --bench ring --bench worker`; times are per packet, sizes are those
//! of the inner packet.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use penstock_bench::gateway::Carousel;
use penstock_dataplane::ports::BATCH;

/// Smallest packet, a middle one, and what fills a tunnel of MTU 1420.
const SIZES: [usize; 3] = [64, 512, 1420];

/// Time of a round that is measured: to seal, or to open.
type Part = fn((Duration, Duration)) -> Duration;

fn worker(c: &mut Criterion) {
    let parts: [(&str, Part); 2] = [("encrypt", |round| round.0), ("decrypt", |round| round.1)];
    for (name, part) in parts {
        let mut group = c.benchmark_group(format!("worker/{name}"));
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter_custom(|packets| {
                    // A session lives for 180 s: each measurement has a fresh one.
                    let mut carousel = Carousel::new(size).expect("descriptors");
                    let rounds = packets.div_ceil(BATCH as u64);
                    let time: Duration = (0..rounds).map(|_| part(carousel.round())).sum();
                    time.mul_f64(packets as f64 / (rounds * BATCH as u64) as f64)
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2));
    targets = worker
}
criterion_main!(benches);
