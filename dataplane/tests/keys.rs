//! When sessions have ended, none of their keys is left in the process's memory.

#![allow(clippy::unwrap_used)]

use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use penstock_dataplane::clock::Millis;
use penstock_dataplane::peer::PeerCounters;
use penstock_dataplane::session::{Cipher, DATA_HEADER, Session, SessionConfig, Suite, TAG};

/// Byte `i` of a key that occurs nowhere in the program.
fn byte(seed: u8, i: usize) -> u8 {
    (i as u8 + 1).wrapping_mul(151) ^ seed.wrapping_mul(29)
}

/// How often the key occurs in memory that the process can write.
fn copies(seed: u8) -> usize {
    let (memory, mut found) = (File::open("/proc/self/mem").unwrap(), 0);
    let mut buffer = vec![0; 1 << 20];
    for line in read_to_string("/proc/self/maps").unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let address = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (mut start, end) = (address(start), address(end));
        while start < end {
            let len = buffer.len().min((end - start) as usize);
            let Ok(read) = memory.read_at(&mut buffer[..len], start) else { break };
            found += buffer[..read].windows(32).filter(|w| (0..32).all(|i| w[i] == byte(seed, i))).count();
            // This copy must not be found itself; a key across the boundary is found with the next piece.
            buffer.fill(0);
            start += if read < len || start + read as u64 == end { end - start } else { read as u64 - 31 };
        }
    }
    found
}

/// A session that was used, and whose keys exist nowhere else.
fn session(suite: Suite, seed: u8) -> Arc<Session> {
    let mut key = [0; 32];
    (0..32).for_each(|i| key[i] = byte(seed, i));
    let session = Session::new(SessionConfig {
        local_index: 1,
        remote_index: 1,
        suite,
        send_key: &key,
        receive_key: &key,
        born: Millis(1),
        confirmed: true,
        peer: Arc::new(PeerCounters::new(0)),
    });
    // As the real caller does.
    key.fill(0);
    std::hint::black_box(&key);
    let mut messages = [[0; DATA_HEADER + 64 + TAG]; 32];
    for cipher in [Cipher::RING, Cipher::detect()] {
        let mut sealings: Vec<_> = messages.iter_mut().zip(0..).map(|(m, n)| session.sealing(n, m)).collect();
        cipher.seal_batch(&mut sealings);
    }
    Arc::new(session)
}

#[test]
fn keys_are_gone_with_their_sessions() {
    for (suite, seed) in [(Suite::ChaCha20Poly1305, 1), (Suite::Aes256Gcm, 2)] {
        let session = session(suite, seed);
        assert!(copies(seed) > 0, "a scan that finds no key in use finds nothing");
        drop(session);
        assert_eq!(copies(seed), 0, "{suite:?}");
    }
}
