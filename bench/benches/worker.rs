//! A worker through `memory` ports: encrypting and decrypting whole batches, with lookups, headers,
//! replay window and queues. The `ring` bench of the same run is the AEAD alone.
//!
//! Run `cargo bench -p penstock-bench --bench ring --bench worker`; times are per packet, sizes are those
//! of the inner packet.

use criterion::{Criterion, criterion_group, criterion_main};
use penstock_bench::pipeline::subject::Subject;

mod subjects;

fn worker(c: &mut Criterion) {
    subjects::bench(c, "worker/encrypt", Subject::Encrypt);
    subjects::bench(c, "worker/decrypt", Subject::Decrypt);
}

criterion_group! {
    name = benches;
    config = subjects::config();
    targets = worker
}
criterion_main!(benches);
