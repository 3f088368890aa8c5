//! ChaCha20-Poly1305 of a [`Group`] of messages, for any vector register.
//!
//! Nothing here depends on anything but lengths, which are public.

use crate::chacha20::{Input, State};
use crate::group::{BLOCK, Group};
use crate::poly1305::Authenticator;
use crate::vector::Vector;

/// Texts of at most a block, twice as many messages as the vector has 64-bit lanes. Returns a bit for each verified
/// message.
#[inline(always)]
pub(crate) fn short<V: Vector, const SEAL: bool>(cpu: V::Cpu, group: &Group<'_>) -> u32 {
    assert!(group.layout().blocks == 1 && group.longest() <= BLOCK);
    let input = Input::new(cpu, group.keys_and_nonces(cpu));
    let [first, second] = input.key_stream(V::splat32(cpu, 0));
    let mut authenticators = [Authenticator::new(cpu, &first), Authenticator::new(cpu, &second)];
    let key_stream = input.key_stream(V::splat32(cpu, 1));
    let [first, second] = if group.is_whole(0) {
        crypt::<V, SEAL, 2>(cpu, group, 0, key_stream)
    } else {
        crypt_up_to::<V, SEAL, 2>(cpu, group, 0, key_stream)
    };
    authenticators[0].absorb_up_to(&first, group.lengths(0));
    authenticators[1].absorb_up_to(&second, group.lengths(1));
    let [first, second] = authenticators;
    finish::<V, SEAL>(group, 0, first) | finish::<V, SEAL>(group, 1, second) << V::LANES
}

/// One block of each message at a time, twice as many messages as the vector has 64-bit lanes: a message keeps its lane
/// in all of ChaCha20, and its half's lane in all of Poly1305. Returns a bit for each verified message.
#[inline(always)]
pub(crate) fn one_block<V: Vector, const SEAL: bool>(cpu: V::Cpu, group: &Group<'_>) -> u32 {
    assert_eq!(group.layout().blocks, 1);
    let input = Input::new(cpu, group.keys_and_nonces(cpu));
    let [first, second] = input.key_stream(V::splat32(cpu, 0));
    let mut authenticators = [Authenticator::new(cpu, &first), Authenticator::new(cpu, &second)];
    let mut absorb_next: Option<[[V; 8]; 2]> = None;
    let (mut at, mut number) = (0, 1);
    while at < group.longest() {
        let counters = V::splat32(cpu, number);
        let key_stream = match absorb_next.take() {
            None => input.key_stream(counters),
            Some(ciphertexts) => absorb_meanwhile(&input, counters, &mut authenticators, &ciphertexts),
        };
        if group.is_whole(at) {
            absorb_next = Some(crypt::<V, SEAL, 2>(cpu, group, at, key_stream));
        } else {
            let [first, second] = crypt_up_to::<V, SEAL, 2>(cpu, group, at, key_stream);
            authenticators[0].absorb_up_to(&first, &group.left(0, at));
            authenticators[1].absorb_up_to(&second, &group.left(1, at));
        }
        at += BLOCK;
        number += 1;
    }
    if let Some([first, second]) = absorb_next {
        authenticators[0].absorb(&first);
        authenticators[1].absorb(&second);
    }
    let [first, second] = authenticators;
    finish::<V, SEAL>(group, 0, first) | finish::<V, SEAL>(group, 1, second) << V::LANES
}

/// Two blocks of each message at a time, as many messages as the vector has 64-bit lanes.
#[inline(always)]
pub(crate) fn two_blocks<V: Vector, const SEAL: bool>(cpu: V::Cpu, group: &Group<'_>) -> u32 {
    assert_eq!(group.layout().blocks, 2);
    let input = Input::new(cpu, group.keys_and_nonces(cpu));
    // 0 in the lanes of the first half, 1 in those of the second.
    let halves = V::splat32(cpu, 0).unpack_low64(V::splat32(cpu, 1));
    let [keys, key_stream] = input.key_stream(halves);
    let mut authenticator = Authenticator::new(cpu, &keys);
    block::<V, SEAL>(cpu, group, 0, key_stream, &mut authenticator);
    let (mut at, mut number) = (BLOCK, 2);
    while at < group.longest() {
        let [first, second] = input.key_stream(V::splat32(cpu, number).add32(halves));
        block::<V, SEAL>(cpu, group, at, first, &mut authenticator);
        block::<V, SEAL>(cpu, group, at + BLOCK, second, &mut authenticator);
        at += 2 * BLOCK;
        number += 2;
    }
    finish::<V, SEAL>(group, 0, authenticator)
}

/// One block of each message, if there is one left.
#[inline(always)]
fn block<V: Vector, const SEAL: bool>(
    cpu: V::Cpu,
    group: &Group<'_>,
    at: usize,
    key_stream: [V; 8],
    authenticator: &mut Authenticator<V>,
) {
    if group.is_whole(at) {
        let [ciphertext] = crypt::<V, SEAL, 1>(cpu, group, at, [key_stream]);
        authenticator.absorb(&ciphertext);
    } else if at < group.longest() {
        let [ciphertext] = crypt_up_to::<V, SEAL, 1>(cpu, group, at, [key_stream]);
        authenticator.absorb_up_to(&ciphertext, &group.left(0, at));
    }
}

/// Computes key stream and absorbs ciphertext alternately, since they use different parts of the CPU.
#[inline(always)]
fn absorb_meanwhile<V: Vector>(
    input: &Input<V>,
    counters: V,
    authenticators: &mut [Authenticator<V>; 2],
    ciphertexts: &[[V; 8]; 2],
) -> [[V; 8]; 2] {
    let mut state = input.begin(counters);
    let [first, second] = authenticators;
    double_rounds_meanwhile(&mut state, first, &ciphertexts[0]);
    state.double_round();
    double_rounds_meanwhile(&mut state, second, &ciphertexts[1]);
    state.finish(input, counters)
}

#[inline(always)]
fn double_rounds_meanwhile<V: Vector>(state: &mut State<V>, authenticator: &mut Authenticator<V>, ciphertext: &[V; 8]) {
    let mut absorbing = authenticator.begin(ciphertext);
    absorbing.block::<0>(authenticator);
    state.double_round();
    absorbing.block::<1>(authenticator);
    state.double_round();
    absorbing.block::<2>(authenticator);
    state.double_round();
    absorbing.block::<3>(authenticator);
    state.double_round();
    absorbing.finish(authenticator);
}

/// Applies key stream to a whole block of each message in the first `N` halves, and returns the ciphertext as columns.
///
/// Everything is read before anything is written: frames are 4096 bytes apart, and the processor delays a read whose
/// address has the same low twelve bits as a write in progress.
#[inline(always)]
fn crypt<V: Vector, const SEAL: bool, const N: usize>(
    cpu: V::Cpu,
    group: &Group<'_>,
    at: usize,
    key_stream: [[V; 8]; N],
) -> [[V; 8]; N] {
    let mut texts = key_stream;
    for (half, text) in texts.iter_mut().enumerate() {
        *text = group.load::<V>(cpu, half, at);
    }
    for (half, (text, key_stream)) in texts.iter_mut().zip(key_stream).enumerate() {
        let after = xor(text, &V::transpose(key_stream));
        group.store(half, at, &after);
        *text = V::transpose(if SEAL { after } else { *text });
    }
    texts
}

/// Applies key stream to the rest of each message, and returns the ciphertext as columns, followed by zeros.
#[inline(always)]
fn crypt_up_to<V: Vector, const SEAL: bool, const N: usize>(
    cpu: V::Cpu,
    group: &Group<'_>,
    at: usize,
    key_stream: [[V; 8]; N],
) -> [[V; 8]; N] {
    let mut texts = key_stream;
    for (half, text) in texts.iter_mut().enumerate() {
        *text = group.load_up_to::<V>(cpu, half, at);
    }
    for (half, (text, key_stream)) in texts.iter_mut().zip(key_stream).enumerate() {
        let mut after = xor(text, &V::transpose(key_stream));
        group.store_up_to(half, at, &mut after);
        *text = V::transpose(if SEAL { after } else { *text });
    }
    texts
}

#[inline(always)]
fn xor<V: Vector>(a: &[V; 8], b: &[V; 8]) -> [V; 8] {
    let mut both = *a;
    for (a, b) in both.iter_mut().zip(b) {
        *a = a.xor(*b);
    }
    both
}

#[inline(always)]
fn finish<V: Vector, const SEAL: bool>(group: &Group<'_>, half: usize, authenticator: Authenticator<V>) -> u32 {
    let tags = authenticator.finish(group.lengths(half));
    if SEAL {
        group.write_tags(half, tags);
        return 0;
    }
    group.compare_tags(half, tags)
}

/// The kernels of one vector, compiled for its instructions.
macro_rules! entries {
    ($module:ident, $vector:ty, $cpu:expr, $($features:literal)?) => {
        pub(crate) mod $module {
            use super::*;
            use crate::group::Group;
            use crate::kernel::{one_block, short, two_blocks};

            $(#[target_feature(enable = $features)])?
            pub(crate) fn seal_short(group: &Group<'_>) -> u32 {
                short::<$vector, true>($cpu, group)
            }
            $(#[target_feature(enable = $features)])?
            pub(crate) fn open_short(group: &Group<'_>) -> u32 {
                short::<$vector, false>($cpu, group)
            }
            $(#[target_feature(enable = $features)])?
            pub(crate) fn seal_one_block(group: &Group<'_>) -> u32 {
                one_block::<$vector, true>($cpu, group)
            }
            $(#[target_feature(enable = $features)])?
            pub(crate) fn open_one_block(group: &Group<'_>) -> u32 {
                one_block::<$vector, false>($cpu, group)
            }
            $(#[target_feature(enable = $features)])?
            pub(crate) fn seal_two_blocks(group: &Group<'_>) -> u32 {
                two_blocks::<$vector, true>($cpu, group)
            }
            $(#[target_feature(enable = $features)])?
            pub(crate) fn open_two_blocks(group: &Group<'_>) -> u32 {
                two_blocks::<$vector, false>($cpu, group)
            }
        }
    };
}
pub(crate) use entries;

/// The kernels on registers made of plain integers: the same code, with the same memory accesses.
#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::AeadInPlace;
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

    use crate::group::{Group, Layout};
    use crate::message::{Message, Nonce, Text};
    use crate::vector::portable::kernels;
    use crate::{NONCE, Suite, TAG};

    /// A message that does not need ring, which Miri cannot run.
    struct Plain<const SEAL: bool> {
        key: [u32; 8],
        nonce: Nonce,
        data: Vec<u8>,
        gap: usize,
    }

    impl<const SEAL: bool> Message for Plain<SEAL> {
        const SEAL: bool = SEAL;

        fn suite(&self) -> Suite {
            Suite::ChaCha20Poly1305
        }
        fn key_words(&self) -> &[u32; 8] {
            &self.key
        }
        fn nonce(&self) -> &Nonce {
            &self.nonce
        }
        fn len(&self) -> Option<usize> {
            self.data.len().checked_sub(self.gap + TAG)
        }
        fn text(&mut self) -> Text {
            let len = self.data.len() - self.gap - TAG;
            let to = self.data.as_mut_ptr();
            Text { from: to.wrapping_add(self.gap), to, len }
        }
        fn by_ring(&mut self) {
            unreachable!("a kernel is called directly");
        }
        fn done(&mut self, _: bool) {}
    }

    fn message<const SEAL: bool>(i: usize, gap: usize, data: Vec<u8>) -> Plain<SEAL> {
        let key = std::array::from_fn(|word| (i * 0x0101_0107 + word * 0x1234_5677) as u32);
        Plain { key, nonce: Nonce::new([i as u8; NONCE]), data, gap }
    }

    fn sealed_by_another(message: &Plain<true>) -> Vec<u8> {
        let key: Vec<u8> = message.key.iter().flat_map(|word| word.to_le_bytes()).collect();
        let cipher = ChaCha20Poly1305::new_from_slice(&key).unwrap();
        let mut data = message.data.clone();
        let (text, tag) = data.split_last_chunk_mut::<TAG>().unwrap();
        *tag = cipher.encrypt_in_place_detached(&message.nonce.bytes().into(), b"", text).unwrap().into();
        data
    }

    fn check(
        blocks: usize,
        seal: fn(&Group<'_>) -> u32,
        open: fn(&Group<'_>) -> u32,
        lengths: impl Iterator<Item = usize>,
    ) {
        let layout = Layout { lanes: 4, blocks };
        let text = |i: usize, len: usize| (0..len + TAG).map(|j| (i * 7 + j * 3) as u8).collect();
        let mut batch: Vec<_> = lengths.enumerate().map(|(i, len)| message::<true>(i, 0, text(i, len))).collect();
        let plaintexts: Vec<_> = batch.iter().map(|m| m.data.clone()).collect();
        let expected: Vec<_> = batch.iter().map(sealed_by_another).collect();
        let count = batch.len();
        Group::with(&mut batch, 0..count, layout, seal);
        assert!(batch.iter().zip(&expected).all(|(message, expected)| message.data == *expected));

        let with_gap = |data: &Vec<u8>, gap| [vec![0; gap], data.clone()].concat();
        let mut batch: Vec<_> =
            expected.iter().enumerate().map(|(i, data)| message::<false>(i, i * 5, with_gap(data, i * 5))).collect();
        *batch[count / 2].data.last_mut().unwrap() ^= 1;
        let all = (1_u32 << count) - 1;
        assert_eq!(Group::with(&mut batch, 0..count, layout, open), all ^ 1 << (count / 2));
        for (message, plaintext) in batch.iter().zip(&plaintexts) {
            let len = plaintext.len() - TAG;
            assert!(message.data[..len] == plaintext[..len]);
        }
    }

    #[test]
    fn a_block_at_most() {
        let check = |lengths: &[usize]| {
            check(1, kernels::seal_short, kernels::open_short, lengths.iter().copied());
        };
        check(&[64; 8]);
        check(&[0; 8]);
        check(&[0, 1, 15, 16, 17, 48, 63, 64]);
        check(&[33, 31, 32, 16, 16]);
    }

    #[test]
    fn one_block_at_a_time() {
        let check = |lengths: &[usize]| {
            check(1, kernels::seal_one_block, kernels::open_one_block, lengths.iter().copied());
        };
        check(&[64; 8]);
        check(&[130; 8]);
        check(&[0, 1, 15, 16, 17, 63, 64, 200]);
        check(&[100, 99, 98, 70, 65]);
    }

    #[test]
    fn two_blocks_at_a_time() {
        let check = |lengths: &[usize]| {
            check(2, kernels::seal_two_blocks, kernels::open_two_blocks, lengths.iter().copied());
        };
        check(&[128; 4]);
        check(&[0, 1, 17, 200]);
        check(&[193, 191, 128]);
        check(&[64]);
    }
}
