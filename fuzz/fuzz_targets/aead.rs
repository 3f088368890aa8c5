//! Batches of any shape, sealed and opened by every implementation, against ring message by message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_aead::{Cipher, Implementation, Key, Opening, Sealing, Suite, TAG};

// Each message is described by five bytes: suite and gap, length, alignment, and which of its bytes is changed.
fuzz_target!(|data: &[u8]| {
    let (descriptions, _) = data.as_chunks::<5>();
    let messages: Vec<Message> =
        descriptions.iter().take(80).enumerate().map(|(i, d)| Message::new(i as u8, *d)).collect();
    for implementation in Implementation::ALL {
        let Ok(cipher) = Cipher::new(implementation) else { continue };
        check(cipher, &messages);
        check(cipher.without_ring(), &messages);
    }
});

struct Message {
    key: Key,
    nonce: [u8; 12],
    offset: usize,
    gap: usize,
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
    changed: Option<usize>,
}

impl Message {
    fn new(number: u8, [shape, len_low, len_high, offset, changed]: [u8; 5]) -> Self {
        let suite = if shape & 7 == 7 { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
        let len = usize::from(u16::from_le_bytes([len_low, len_high]) & 0x0fff);
        let key = Key::new(suite, &[number ^ shape; 32]);
        let nonce = [number.wrapping_mul(3) ^ len_low; 12];
        let plaintext: Vec<u8> = (0..len).map(|i| (i * 7) as u8 ^ offset).collect();
        let mut sealed = plaintext.clone();
        sealed.resize(len + TAG, 0);
        Cipher::RING.seal_batch(&mut [Sealing::new(&key, nonce, &mut sealed)]);
        let changed = (changed < 64).then(|| usize::from(changed) * 67 % sealed.len());
        Self { key, nonce, offset: usize::from(offset), gap: usize::from(shape >> 3), plaintext, sealed, changed }
    }
}

fn check(cipher: Cipher, messages: &[Message]) {
    let mut buffers: Vec<Vec<u8>> =
        messages.iter().map(|m| [vec![0; m.offset], m.plaintext.clone(), vec![0; TAG]].concat()).collect();
    let mut batch: Vec<_> =
        buffers.iter_mut().zip(messages).map(|(b, m)| Sealing::new(&m.key, m.nonce, &mut b[m.offset..])).collect();
    cipher.seal_batch(&mut batch);
    assert!(buffers.iter().zip(messages).all(|(b, m)| b[m.offset..] == m.sealed));

    let mut buffers: Vec<Vec<u8>> =
        messages.iter().map(|m| [vec![0; m.offset + m.gap], m.sealed.clone()].concat()).collect();
    for (buffer, message) in buffers.iter_mut().zip(messages) {
        if let Some(changed) = message.changed {
            buffer[message.offset + message.gap + changed] ^= 0x40;
        }
    }
    let mut batch: Vec<_> = buffers
        .iter_mut()
        .zip(messages)
        .map(|(b, m)| Opening::new(&m.key, m.nonce, &mut b[m.offset..], m.gap))
        .collect();
    cipher.open_batch(&mut batch);
    for (opened, message) in batch.iter().zip(messages) {
        let expected = message.changed.is_none().then_some(&message.plaintext[..]);
        assert_eq!(opened.plaintext(), expected);
    }
    for (buffer, message) in buffers.iter().zip(messages) {
        let place = &buffer[message.offset..][..message.plaintext.len()];
        assert!(message.changed.is_none() || place.iter().all(|byte| *byte == 0));
    }
}
