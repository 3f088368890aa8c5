//! ChaCha20-Poly1305 of a [`Group`] of messages, for any vector register.
//!
//! Nothing here depends on anything but the lengths, which are public.

use crate::chacha20::Input;
use crate::group::{BLOCK, Group};
use crate::poly1305::Authenticator;
use crate::vector::Vector;

/// One block of each message at a time, twice as many messages as the vector has 64-bit lanes: a message is in the
/// same lane in all of ChaCha20, and in one half's lane in all of Poly1305. Returns a bit for each verified message.
#[inline(always)]
pub(crate) fn one_block<V: Vector, const SEAL: bool>(cpu: V::Cpu, group: &Group<'_>) -> u32 {
    assert_eq!(group.layout().blocks, 1);
    let input = Input::new(cpu, group.words());
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
            let [first, second] = key_stream;
            absorb_next =
                Some([crypt::<V, SEAL>(cpu, group, 0, at, first), crypt::<V, SEAL>(cpu, group, 1, at, second)]);
        } else {
            for (half, key_stream) in key_stream.into_iter().enumerate() {
                let ciphertext = crypt_up_to::<V, SEAL>(cpu, group, half, at, key_stream);
                authenticators[half].absorb_up_to(&ciphertext, &group.left(half, at));
            }
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
    let input = Input::new(cpu, group.words());
    // 0 in the lanes of the first half, 1 in those of the second.
    let halves = V::from_words(cpu, &[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]);
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

/// One block of each message, if there is any.
#[inline(always)]
fn block<V: Vector, const SEAL: bool>(
    cpu: V::Cpu,
    group: &Group<'_>,
    at: usize,
    key_stream: [V; 8],
    authenticator: &mut Authenticator<V>,
) {
    if group.is_whole(at) {
        authenticator.absorb(&crypt::<V, SEAL>(cpu, group, 0, at, key_stream));
    } else if at < group.longest() {
        let ciphertext = crypt_up_to::<V, SEAL>(cpu, group, 0, at, key_stream);
        authenticator.absorb_up_to(&ciphertext, &group.left(0, at));
    }
}

/// Computes key stream and absorbs ciphertext in turns: they use different parts of the CPU.
#[inline(always)]
fn absorb_meanwhile<V: Vector>(
    input: &Input<V>,
    counters: V,
    authenticators: &mut [Authenticator<V>; 2],
    ciphertexts: &[[V; 8]; 2],
) -> [[V; 8]; 2] {
    let mut state = input.state(counters);
    for (authenticator, ciphertext) in authenticators.iter_mut().zip(ciphertexts) {
        let mut absorbing = authenticator.begin(ciphertext);
        for _ in 0..4 {
            absorbing.block(authenticator);
            state.double_round();
        }
        absorbing.finish(authenticator);
        state.double_round();
    }
    state.finish(input, counters)
}

/// Applies key stream to a whole block of each message, and returns the ciphertext as columns.
///
/// All is read before anything is written: the processor takes a read after a write 4096 bytes apart for a conflict.
#[inline(always)]
fn crypt<V: Vector, const SEAL: bool>(
    cpu: V::Cpu,
    group: &Group<'_>,
    half: usize,
    at: usize,
    key_stream: [V; 8],
) -> [V; 8] {
    let before = group.load::<V>(cpu, half, at);
    let after = xor(&before, &V::transpose(key_stream));
    group.store(half, at, &after);
    V::transpose(if SEAL { after } else { before })
}

/// Applies key stream to what each message has left, and returns the ciphertext as columns, with zeros behind it.
#[inline(always)]
fn crypt_up_to<V: Vector, const SEAL: bool>(
    cpu: V::Cpu,
    group: &Group<'_>,
    half: usize,
    at: usize,
    key_stream: [V; 8],
) -> [V; 8] {
    let before = group.load_up_to::<V>(cpu, half, at);
    let mut after = xor(&before, &V::transpose(key_stream));
    group.store_up_to(half, at, &mut after);
    V::transpose(if SEAL { after } else { before })
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
            use crate::kernel::{one_block, two_blocks};

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
