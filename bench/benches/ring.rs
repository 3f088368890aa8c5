//! Bare ChaCha20-Poly1305 of ring, sealed and opened in place: the floor under the data plane's time. It runs over
//! the same frames as the `worker` and `stages` benches, so that both have the same caches.
//!
//! Run `cargo bench -p penstock-bench --bench ring`; nanoseconds are per packet.

use criterion::{Criterion, criterion_group, criterion_main};
use penstock_bench::pipeline::subject::Subject;

mod subjects;

fn ring(c: &mut Criterion) {
    subjects::bench(c, "ring/chacha20poly1305/seal", Subject::RingSeal);
    subjects::bench(c, "ring/chacha20poly1305/open", Subject::RingOpen);
}

criterion_group! {
    name = benches;
    config = subjects::config();
    targets = ring
}
criterion_main!(benches);
