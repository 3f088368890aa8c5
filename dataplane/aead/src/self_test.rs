//! Known answers for a program's start, as one digest over batches of many shapes.

use ring::digest;

use crate::{Key, NONCE, Opening, Sealing, Suite, TAG};

/// SHA-256 over all sealed messages of [`SHAPES`], in order.
const EXPECTED: [u8; 32] = [
    0x8c, 0x25, 0x69, 0x94, 0xff, 0x34, 0xaf, 0xa5, 0xc7, 0x75, 0x21, 0x85, 0xf6, 0x12, 0xa3, 0x71, 0x7d, 0xed, 0x05,
    0x9e, 0x75, 0x64, 0xb2, 0x65, 0x3f, 0x42, 0x4b, 0x52, 0x36, 0xac, 0x19, 0x1b,
];

/// The lengths of the plaintexts of each batch: equal and mixed ones, full and partial groups of lanes, whole and
/// partial blocks of both primitives.
const SHAPES: [fn(usize) -> Option<usize>; 5] = [
    |i| (i < 64).then_some(i * 23),
    |i| (i < 64).then_some(64),
    |i| (i < 27).then_some(256 - i % 3),
    |i| (i < 24).then_some(1424),
    |i| (i < 5).then_some(100),
];

struct Message {
    key: Key,
    #[cfg(test)]
    bytes: [u8; 32],
    nonce: [u8; NONCE],
    plaintext: Vec<u8>,
    data: Vec<u8>,
}

/// One batch of each shape. All keys, nonces and plaintexts are different.
fn batches() -> impl Iterator<Item = Vec<Message>> {
    SHAPES.iter().enumerate().map(|(shape, len)| {
        (0..).map_while(|i| Some((i, len(i)?))).map(|(i, len)| message((shape << 6 | i) as u32, len)).collect()
    })
}

fn message(number: u32, len: usize) -> Message {
    // A simple generator, since it matters only that all bytes differ.
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    let mut byte = || {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        (state >> 24) as u8
    };
    let key = std::array::from_fn(|_| byte());
    let nonce = std::array::from_fn(|_| byte());
    let plaintext: Vec<u8> = (0..len).map(|_| byte()).collect();
    let suite = if number % 16 == 5 { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
    let mut data = plaintext.clone();
    data.resize(len + TAG, 0);
    Message {
        key: Key::new(suite, &key),
        #[cfg(test)]
        bytes: key,
        nonce,
        plaintext,
        data,
    }
}

/// Whether `seal` and `open` give the expected results.
pub(crate) fn passes(seal: impl Fn(&mut [Sealing<'_>]), open: impl Fn(&mut [Opening<'_>])) -> bool {
    let mut digest = digest::Context::new(&digest::SHA256);
    let mut opened_well = true;
    for mut batch in batches() {
        let mut sealings: Vec<_> = batch.iter_mut().map(|m| Sealing::new(&m.key, m.nonce, &mut m.data)).collect();
        seal(&mut sealings);
        batch.iter().for_each(|m| digest.update(&m.data));

        let mut forged: Vec<_> = batch.iter().map(|m| m.data.clone()).collect();
        for (i, data) in forged.iter_mut().enumerate() {
            let bit = i * 61 % (data.len() * 8);
            data[bit / 8] ^= 1 << (bit % 8);
        }
        let mut openings: Vec<_> =
            forged.iter_mut().zip(&batch).map(|(data, m)| Opening::new(&m.key, m.nonce, data, 0)).collect();
        open(&mut openings);
        opened_well &= openings.iter().all(|o| o.plaintext().is_none());
        opened_well &= forged.iter().all(|data| data[..data.len() - TAG].iter().all(|b| *b == 0));

        let mut openings: Vec<_> =
            batch.iter_mut().map(|m| (&m.plaintext, Opening::new(&m.key, m.nonce, &mut m.data, 0))).collect();
        let (plaintexts, mut openings): (Vec<_>, Vec<_>) = openings.drain(..).unzip();
        open(&mut openings);
        opened_well &= plaintexts.iter().zip(&openings).all(|(p, o)| o.plaintext() == Some(p.as_slice()));
    }
    opened_well && digest.finish().as_ref() == EXPECTED
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::AeadInPlace;
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

    use super::*;
    use crate::packet;

    #[test]
    fn the_expected_digest_is_that_of_another_implementation() {
        let mut digest = digest::Context::new(&digest::SHA256);
        for mut m in batches().flatten() {
            if m.key.suite() == Suite::Aes256Gcm {
                packet::seal(&mut Sealing::new(&m.key, m.nonce, &mut m.data));
            } else {
                let (text, tag) = m.data.split_at_mut(m.plaintext.len());
                let other = ChaCha20Poly1305::new(&m.bytes.into());
                tag.copy_from_slice(&other.encrypt_in_place_detached(&m.nonce.into(), b"", text).unwrap());
            }
            digest.update(&m.data);
        }
        assert_eq!(digest.finish().as_ref(), EXPECTED);
    }

    #[test]
    fn ring_passes_and_faults_do_not() {
        let seal = |batch: &mut [Sealing<'_>]| batch.iter_mut().for_each(packet::seal);
        let open = |batch: &mut [Opening<'_>]| batch.iter_mut().for_each(packet::open);
        assert!(passes(seal, open));
        let one_wrong_bit = |batch: &mut [Sealing<'_>]| {
            seal(batch);
            batch[3].data[7] ^= 0x10;
        };
        assert!(!passes(one_wrong_bit, open));
        let believes_all = |batch: &mut [Opening<'_>]| {
            open(batch);
            batch.iter_mut().for_each(|o| o.verified = true);
        };
        assert!(!passes(seal, believes_all));
        let believes_nothing = |batch: &mut [Opening<'_>]| batch.iter_mut().for_each(|o| o.verified = false);
        assert!(!passes(seal, believes_nothing));
    }
}
