//! The stages of the data plane, each by itself, by the functions that the worker calls.
//!
//! Run `cargo bench -p penstock-bench --bench stages`; times are per packet, sizes are those of the inner packet.

use criterion::{Criterion, criterion_group, criterion_main};
use penstock_bench::pipeline::subject::{BESIDE, DIRECTIONS};

mod subjects;

fn stages(c: &mut Criterion) {
    for subject in DIRECTIONS.iter().flat_map(|direction| direction.stages).chain(&BESIDE) {
        subjects::bench(c, &format!("stages/{}", subject.name()), *subject);
    }
}

criterion_group! {
    name = benches;
    config = subjects::config();
    targets = stages
}
criterion_main!(benches);
