//! Prints how long each implementation takes, as a ratio to ring in the same process.
//!
//! ```sh
//! cargo run --release -p penstock-aead --example measure [hot|cold|mixed|costs]...
//! ```
//!
//! - `hot`: the same 64 messages again and again, by size and batch.
//! - `cold`: 16 MiB of messages, one after the other.
//! - `mixed`: several sizes in one batch, and a different key for each message.
//! - `costs`: time of a call of each kernel, in the form that `src/engine.rs` needs.
//!
//! Figures are medians of rounds in which all implementations take turns, in the form seal/open. Messages are 4096
//! bytes apart, like frames.

use std::time::{Duration, Instant};

use penstock_aead::{Cipher, Implementation, Key, Opening, Sealing, Suite, TAG};

const STRIDE: usize = 4096;
/// Where a frame's ciphertext begins: Ethernet, IPv4, UDP and WireGuard.
const OFFSET: usize = 14 + 20 + 8 + 16;
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const SIZES: [usize; 8] = [0, 64, 128, 256, 512, 1024, 1424, 3968];
const ROUNDS: usize = 31;

fn main() {
    println!("{}", cpu());
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let vectors = Implementation::ALL.into_iter().filter(|i| *i != Implementation::Ring);
    let ciphers: Vec<Cipher> = vectors.filter_map(|i| Cipher::new(i).ok()).collect();
    if is_wanted("hot") {
        sizes(&ciphers, "hot", 64);
    }
    if is_wanted("cold") {
        sizes(&ciphers, "cold", (16 << 20) / STRIDE);
    }
    if is_wanted("mixed") {
        mixed(&ciphers);
    }
    if is_wanted("costs") {
        costs(&ciphers);
    }
}

fn sizes(ciphers: &[Cipher], name: &str, slots: usize) {
    for size in SIZES {
        println!("\n{name}, {size} B");
        for batch in BATCHES {
            let mut frames = Frames::new(slots, 1, |_| size);
            report(&format!("batch of {batch}"), &frames.compare(ciphers, batch));
        }
    }
}

fn mixed(ciphers: &[Cipher]) {
    // Spread over the batch as in a generator, not sorted.
    let spread = |parts: &'static [(usize, usize)]| {
        let total = parts.iter().map(|part| part.0).sum::<usize>();
        move |i: usize| {
            let mut at = i * 29 % total;
            parts
                .iter()
                .find_map(|(count, len)| {
                    if at < *count {
                        Some(*len)
                    } else {
                        at -= count;
                        None
                    }
                })
                .unwrap_or(0)
        }
    };
    // With WireGuard's padding: IP packets of 46, 552 and 1500 bytes; TCP with its acknowledgements; any length.
    let imix = spread(&[(28, 48), (16, 560), (4, 1504)]);
    let tcp = spread(&[(2, 1424), (1, 64)]);
    let any = |i: usize| i * 7919 % 1425;
    println!("\nmixed lengths, hot");
    for batch in [16, 32, 48, 64] {
        report(&format!("IMIX, batch of {batch}"), &Frames::new(96, 1, imix).compare(ciphers, batch));
        report(&format!("1424 and 64 B at 2:1, batch of {batch}"), &Frames::new(96, 1, tcp).compare(ciphers, batch));
        report(&format!("any length to 1424 B, batch of {batch}"), &Frames::new(96, 1, any).compare(ciphers, batch));
    }
    println!("\na key for each of 32 messages, hot");
    for size in [64, 256, 1424] {
        report(&format!("{size} B"), &Frames::new(32, 32, |_| size).compare(ciphers, 32));
    }
}

/// The time of a call and of a pass, computed from two sizes. The batches are those that exactly fill a kernel, if
/// there is one.
fn costs(ciphers: &[Cipher]) {
    println!(
        "\ncosts in tenths of a nanosecond: one block at most; call and pass of one block; of two; ring and its block"
    );
    for cipher in ciphers.iter().map(|cipher| cipher.without_ring()).chain([Cipher::RING]) {
        for batch in [16, 8, 4, 1] {
            let time = |blocks: usize| {
                let times = &Frames::new(64, 1, |_| 64 * blocks).compare(&[cipher], batch)[0];
                (times.seal + times.open) / 2.0 * batch as f64 * 10.0
            };
            // With Poly1305's key, two passes of two blocks and twelve, or four passes of one block and 24.
            let (short, few, many) = (time(1), time(3), time(23));
            let block = (many - few) / 20.0;
            let (name, call, pair) = (cipher.implementation(), few - 4.0 * block, 2.0 * block);
            println!(
                "{name} {batch}: {short:.0}; {call:.0} {block:.0}; {call:.0} {pair:.0}; {:.0} {block:.0}",
                call + block
            );
        }
    }
}

/// Nanoseconds for a message.
struct Times {
    name: Implementation,
    seal: f64,
    open: f64,
    seal_ratio: f64,
    open_ratio: f64,
}

fn report(what: &str, all: &[Times]) {
    print!("{what:>38}");
    for t in all {
        print!(" | {} {:.0}/{:.0} ns {:.2}/{:.2}", t.name, t.seal, t.open, t.seal_ratio, t.open_ratio);
    }
    println!();
}

struct Frames {
    memory: Vec<u8>,
    keys: Vec<Key>,
    lengths: Vec<usize>,
}

impl Frames {
    fn new(slots: usize, keys: usize, length: impl Fn(usize) -> usize) -> Self {
        Self {
            memory: vec![1; slots * STRIDE],
            keys: (0..keys).map(|i| Key::new(Suite::ChaCha20Poly1305, &[i as u8; 32])).collect(),
            lengths: (0..slots).map(length).collect(),
        }
    }

    fn compare(&mut self, ciphers: &[Cipher], batch: usize) -> Vec<Times> {
        let all: Vec<Cipher> = ciphers.iter().copied().chain([Cipher::RING]).collect();
        let mut samples = vec![[vec![], vec![]]; all.len()];
        for round in 0..ROUNDS + 1 {
            for (cipher, samples) in all.iter().zip(&mut samples) {
                let times = self.pass(*cipher, batch);
                if round > 0 {
                    samples.iter_mut().zip(times).for_each(|(samples, time)| samples.push(time));
                }
            }
        }
        let ring = samples[all.len() - 1].clone();
        let times = |(cipher, [seal, open]): (&Cipher, &[Vec<f64>; 2])| Times {
            name: cipher.implementation(),
            seal: median(seal.clone()),
            open: median(open.clone()),
            seal_ratio: median(ring[0].iter().zip(seal).map(|(ring, t)| ring / t).collect()),
            open_ratio: median(ring[1].iter().zip(open).map(|(ring, t)| ring / t).collect()),
        };
        all.iter().zip(&samples).take(ciphers.len()).map(times).collect()
    }

    /// Nanoseconds per message for sealing and for opening all of them, which takes about a hundred microseconds.
    fn pass(&mut self, cipher: Cipher, batch: usize) -> [f64; 2] {
        let count = self.lengths.len();
        let bytes: usize = self.lengths.iter().map(|len| len + 150).sum();
        let repeat = (200_000 / bytes).max(1);
        let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..repeat {
            let keys = self.keys.iter().cycle();
            let frames = self.memory.chunks_exact_mut(STRIDE).zip(&self.lengths).zip(keys.clone());
            let mut messages: Vec<_> = frames
                .map(|((frame, len), key)| Sealing::new(key, [7; 12], &mut frame[OFFSET..][..len + TAG]))
                .collect();
            let begin = Instant::now();
            messages.chunks_mut(batch).for_each(|batch| cipher.seal_batch(batch));
            sealing += begin.elapsed();
            let frames = self.memory.chunks_exact_mut(STRIDE).zip(&self.lengths).zip(keys);
            let mut messages: Vec<_> = frames
                .map(|((frame, len), key)| Opening::new(key, [7; 12], &mut frame[OFFSET..][..len + TAG], 0))
                .collect();
            let begin = Instant::now();
            messages.chunks_mut(batch).for_each(|batch| cipher.open_batch(batch));
            opening += begin.elapsed();
            assert!(messages.iter().all(|m| m.plaintext().is_some()));
        }
        [sealing, opening].map(|time| time.as_nanos() as f64 / (repeat * count) as f64)
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The CPU's name, without which the figures mean nothing.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1)).unwrap_or("?")
    };
    format!("{}, family {}, model {}", field("model name"), field("cpu family"), field("model\t"))
}
