//! What is left on the stack after a call, seen from outside: the stack is a mapping that belongs to this test.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::ptr::null_mut;

use penstock_aead::{Cipher, Implementation, Key, Opening, Sealing, Suite, TAG};

const STACK: usize = 1 << 20;

/// Runs `on_stack` on a new thread, and returns the thread's stack as it was left.
fn stack_after(mut on_stack: impl FnMut() + Send) -> Vec<u8> {
    extern "C" fn enter<F: FnMut()>(closure: *mut c_void) -> *mut c_void {
        // SAFETY: the pointer that `stack_after` passes, which waits for this thread.
        unsafe { (*closure.cast::<F>())() };
        null_mut()
    }
    fn entry<F: FnMut()>(_: &F) -> extern "C" fn(*mut c_void) -> *mut c_void {
        enter::<F>
    }
    let entry = entry(&on_stack);
    // SAFETY: the attributes are initialized before use; the stack is a separate mapping, which is read only once the
    // thread is gone, and then unmapped.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let stack = libc::mmap(null_mut(), STACK, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_ne!(stack, libc::MAP_FAILED);
        let mut attributes = std::mem::zeroed();
        assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
        assert_eq!(libc::pthread_attr_setstack(&mut attributes, stack, STACK), 0);
        let mut thread = 0;
        assert_eq!(libc::pthread_create(&mut thread, &attributes, entry, (&raw mut on_stack).cast()), 0);
        assert_eq!(libc::pthread_join(thread, null_mut()), 0);
        libc::pthread_attr_destroy(&mut attributes);
        let left = std::slice::from_raw_parts(stack.cast::<u8>(), STACK).to_vec();
        assert_eq!(libc::munmap(stack, STACK), 0);
        left
    }
}

/// How many of the secrets' four-byte words are found, at addresses where words can be.
fn found(stack: &[u8], secrets: &[u8]) -> usize {
    let (words, _) = secrets.as_chunks::<4>();
    let (stack, _) = stack.as_chunks::<4>();
    words.iter().filter(|word| stack.contains(word)).count()
}

const KEY: [u8; 32] = *b"\x91\x7c\x02\xe5K3y!bytes\xf3\x88\x10\xa7thatnobodyelse!";

/// The key, and the first block of key stream, which contains Poly1305's r and s.
fn secrets(nonce: [u8; 12]) -> Vec<u8> {
    use chacha20poly1305::aead::AeadInPlace;
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
    // The ciphertext of zeros is the key stream, from the second block on.
    let mut key_stream = vec![0; 128];
    let cipher = ChaCha20Poly1305::new(&KEY.into());
    cipher.encrypt_in_place_detached(&nonce.into(), b"", &mut key_stream).expect("short");
    [&KEY[..], &key_stream].concat()
}

#[test]
fn no_key_and_no_key_stream_stay_on_the_stack() {
    let key = Key::new(Suite::ChaCha20Poly1305, &KEY);
    let nonce = [3; 12];
    let secrets = secrets(nonce);

    let control = stack_after(|| {
        let copy = std::hint::black_box([KEY; 4]);
        std::hint::black_box(&copy);
    });
    assert_eq!(found(&control, &KEY), 8, "a key that is left on the stack is seen");

    for implementation in Implementation::ALL {
        let Ok(cipher) = Cipher::new(implementation) else {
            println!("not run: this CPU has no {implementation}");
            continue;
        };
        if implementation == Implementation::Ring {
            continue;
        }
        for (count, len) in [(16, 64), (5, 40), (16, 200), (8, 200), (4, 200), (31, 1000)] {
            // Random plaintexts, so that the messages themselves contain no key stream.
            let mut texts: Vec<Vec<u8>> =
                (0..count).map(|i| (0..len + TAG).map(|j| (i * 31 + j * j * 7 + j) as u8 | 1).collect()).collect();
            let mut batch: Vec<_> = texts.iter_mut().map(|t| Sealing::new(&key, nonce, t)).collect();
            let sealing = stack_after(|| cipher.without_ring().seal_batch(&mut batch));
            let mut batch: Vec<_> = texts.iter_mut().map(|t| Opening::new(&key, nonce, t, 0)).collect();
            let opening = stack_after(|| cipher.without_ring().open_batch(&mut batch));
            assert!(batch.iter().all(|message| message.plaintext().is_some()));
            assert_eq!(found(&sealing, &secrets), 0, "{implementation}, sealing {count}");
            assert_eq!(found(&opening, &secrets), 0, "{implementation}, opening {count}");
        }
    }
}

/// What AES-256-GCM must not leave: the key, GHASH's key, and for each message the mask of its tag and its key stream.
fn secrets_of_aes(nonce: [u8; 12], blocks: u32) -> Vec<u8> {
    use aes_gcm::aes::cipher::{BlockEncrypt, KeyInit};
    let aes = aes_gcm::aes::Aes256::new(&KEY.into());
    let encrypted = |input: [u8; 16]| {
        let mut block = input.into();
        aes.encrypt_block(&mut block);
        <[u8; 16]>::from(block)
    };
    let counters = (1..=blocks + 1).map(|counter| {
        let mut input = [0; 16];
        input[..12].copy_from_slice(&nonce);
        input[12..].copy_from_slice(&counter.to_be_bytes());
        encrypted(input)
    });
    KEY.into_iter().chain(encrypted([0; 16])).chain(counters.flatten()).collect()
}

#[test]
fn aes_256_gcm_leaves_nothing_on_the_stack() {
    let key = Key::new(Suite::Aes256Gcm, &KEY);
    let nonce = [3; 12];
    for (count, len) in [(1, 16), (16, 200), (31, 1000)] {
        let secrets = secrets_of_aes(nonce, len as u32 / 16);
        // The ciphertext of zeros is the key stream.
        let mut zeros = [0; 16 + TAG];
        Cipher::RING.seal_batch(&mut [Sealing::new(&key, nonce, &mut zeros)]);
        assert_eq!(zeros[..16], secrets[KEY.len() + 16 + 16..][..16], "these are the secrets");
        let mut texts: Vec<Vec<u8>> =
            (0..count).map(|i| (0..len + TAG).map(|j| (i * 31 + j * j * 7 + j) as u8 | 1).collect()).collect();
        let mut batch: Vec<_> = texts.iter_mut().map(|t| Sealing::new(&key, nonce, t)).collect();
        let sealing = stack_after(|| Cipher::detect().seal_batch(&mut batch));
        let mut batch: Vec<_> = texts.iter_mut().map(|t| Opening::new(&key, nonce, t, 0)).collect();
        let opening = stack_after(|| Cipher::detect().open_batch(&mut batch));
        assert!(batch.iter().all(|message| message.plaintext().is_some()));
        assert_eq!(found(&sealing, &secrets), 0, "sealing {count} of {len} B");
        assert_eq!(found(&opening, &secrets), 0, "opening {count} of {len} B");
    }
}

/// What ring has left is removed by wiping from the frame that called for sealing.
#[test]
fn what_ring_left_can_be_wiped() {
    let key = Key::new(Suite::ChaCha20Poly1305, &KEY);
    let mut text = vec![7; 200 + TAG];
    let mut seal = |wipe: bool| {
        stack_after(|| {
            Cipher::RING.seal_batch(&mut [Sealing::new(&key, [3; 12], &mut text)]);
            if wipe {
                penstock_aead::wipe_stack();
            }
        })
    };
    assert!(found(&seal(false), &KEY) > 0, "ring has left nothing that could be wiped");
    assert_eq!(found(&seal(true), &KEY), 0);
}

#[test]
fn setting_up_a_key_leaves_nothing() {
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
        let left = stack_after(|| drop(std::hint::black_box(Key::new(suite, &KEY))));
        assert_eq!(found(&left, &KEY), 0, "{suite:?}");
    }
}
