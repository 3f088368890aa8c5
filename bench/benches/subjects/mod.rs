//! What the benches share: a subject of the pipeline as a criterion group, one benchmark a size.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use penstock_bench::pipeline::meter::Meter;
use penstock_bench::pipeline::rig::Rig;
use penstock_bench::pipeline::size::Size;
use penstock_bench::pipeline::subject::Subject;
use penstock_dataplane::session::Suite;

/// Short, since there are many, and the machine's noise is not less in a longer time.
pub fn config() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

/// Measures a subject at every size.
pub fn bench(c: &mut Criterion, name: &str, subject: Subject) {
    let mut meter = Meter::new();
    let mut group = c.benchmark_group(name);
    for size in Size::ALL {
        let packets = size.packets();
        group.throughput(Throughput::Bytes((packets.iter().sum::<usize>() / packets.len()) as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|wanted| {
                // A session lives for 180 s: each measurement has a fresh one.
                let mut rig = Rig::new(size, Suite::ChaCha20Poly1305).expect("descriptors");
                let (mut time, mut packets) = (Duration::ZERO, 0);
                while packets < wanted {
                    let pass = rig.pass(subject, &mut meter);
                    time += pass.spent.time;
                    packets += pass.packets as u64;
                }
                time.mul_f64(wanted as f64 / packets as f64)
            });
        });
    }
    group.finish();
}
