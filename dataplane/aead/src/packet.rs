//! One message at a time, by ring.

use ring::aead::{Aad, Nonce};

use crate::{Opening, Sealing, TAG};

pub(crate) fn seal(message: &mut Sealing<'_>) {
    let (plaintext, tag) = message.data.split_at_mut(message.data.len() - TAG);
    let sealed = message
        .key
        .ring()
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(message.nonce.bytes()), Aad::empty(), plaintext)
        .expect("shorter than 64 GiB");
    tag.copy_from_slice(sealed.as_ref());
}

pub(crate) fn open(message: &mut Opening<'_>) {
    let nonce = Nonce::assume_unique_for_key(message.nonce.bytes());
    let Some(len) = message.plaintext_len() else { return };
    let opened = message.key.ring().open_within(nonce, Aad::empty(), message.data, message.ciphertext..);
    message.verified = opened.is_ok();
    if !message.verified {
        message.data[..len].fill(0);
    }
}
