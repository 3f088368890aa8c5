//! Looks for times that depend on secrets, by the method of dudect (Reparaz, Balasch, Verbauwhede, 2017): two classes
//! of input in random order, and Welch's t of their times. Prints a report without a verdict: on a machine with any
//! other load, t fluctuates.
//!
//! ```sh
//! cargo run --release -p penstock-aead --example timing
//! ```
//!
//! |t| above 10 in repeated runs, growing with the number of samples, would be a leak.

use std::time::Instant;

use penstock_aead::{Cipher, Implementation, Key, Opening, Suite, TAG};

const SAMPLES: usize = 60_000;
const BATCH: usize = 16;
const LEN: usize = 64;

fn main() {
    for implementation in Implementation::ALL {
        let Ok(cipher) = Cipher::new(implementation) else {
            println!("not run: this CPU has no {implementation}");
            continue;
        };
        let cipher = cipher.without_ring();
        report(cipher, "tag wrong in its first byte, or in its last", |random, kind| {
            let mut input = Input::forged(random);
            input.tag = if kind { [&[1][..], &[0; 15]].concat() } else { [&[0; 15][..], &[1]].concat() };
            input
        });
        report(cipher, "tag wrong in one bit, or in all", |random, kind| {
            let mut input = Input::forged(random);
            input.tag = if kind { vec![0xff; TAG] } else { [&[1][..], &[0; 15]].concat() };
            input
        });
        // The effect of clamping, and Poly1305's numbers, depend only on the key.
        report(cipher, "one key, or random ones", |random, kind| {
            let mut input = Input::forged(random);
            if kind {
                input.key = [0; 32];
            }
            input
        });
        report(cipher, "plaintext of zeros, or a random one", |random, kind| {
            let mut input = Input::forged(random);
            if kind {
                // In place: with an allocation more, the messages of this class would lie elsewhere.
                input.text.fill(0);
            }
            input
        });
    }
}

/// A message to open, whose tag differs from the right one by `tag`.
struct Input {
    key: [u8; 32],
    text: Vec<u8>,
    tag: Vec<u8>,
}

impl Input {
    fn forged(random: &mut Random) -> Self {
        let key = std::array::from_fn(|_| random.byte());
        Self { key, text: (0..LEN).map(|_| random.byte()).collect(), tag: [&[1][..], &[0; 15]].concat() }
    }
}

fn report(cipher: Cipher, what: &str, input: impl Fn(&mut Random, bool) -> Input) {
    let mut random = Random(7);
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let kind = random.byte() & 1 == 0;
        let Input { key, text, tag } = input(&mut random, kind);
        let key = Key::new(Suite::ChaCha20Poly1305, &key);
        // Sealing gives the right tag, which is then changed.
        let mut sealed = [&text[..], &[0; TAG]].concat();
        penstock_aead::Cipher::RING.seal_batch(&mut [penstock_aead::Sealing::new(&key, [0; 12], &mut sealed)]);
        sealed[LEN..].iter_mut().zip(&tag).for_each(|(byte, difference)| *byte ^= difference);
        let mut copies = vec![sealed; BATCH];
        let mut batch: Vec<_> = copies.iter_mut().map(|copy| Opening::new(&key, [0; 12], copy, 0)).collect();
        let begin = Instant::now();
        cipher.open_batch(&mut batch);
        samples.push((kind, begin.elapsed().as_nanos() as f64));
        assert!(batch.iter().all(|message| message.plaintext().is_none()));
    }
    // Interrupts make a tail that hides everything else, so the slowest tenth is left out, as dudect does.
    let mut times: Vec<f64> = samples.iter().map(|sample| sample.1).collect();
    times.sort_by(f64::total_cmp);
    let limit = times[times.len() * 9 / 10];
    samples.retain(|sample| sample.1 <= limit);
    println!("{:>8}: {what:<45} t = {:+.2}", cipher.implementation(), welch(&samples));
}

fn welch(samples: &[(bool, f64)]) -> f64 {
    let of = |kind: bool| {
        let times: Vec<f64> = samples.iter().filter(|sample| sample.0 == kind).map(|sample| sample.1).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (times.len() - 1) as f64;
        (mean, variance / times.len() as f64)
    };
    let ((a, a_error), (b, b_error)) = (of(true), of(false));
    (a - b) / (a_error + b_error).sqrt()
}

struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as u8
    }
}
