//! Wipes what a handshake leaves behind on the stack. Keys wipe themselves when dropped, but not the places they were
//! moved from, nor the working memory of hash and cipher.

use std::hint::black_box;

/// The stack that a handshake step needs, also in unoptimised builds.
const STACK: usize = 64 << 10;

/// Calls `secret` and wipes the part of the stack that it used.
pub(crate) fn wiped<T>(secret: impl FnOnce() -> T) -> T {
    let outcome = on_own_frame(secret);
    wipe();
    outcome
}

/// Not inlined, so that its frame begins where that of [`wipe`] begins.
#[inline(never)]
fn on_own_frame<T>(secret: impl FnOnce() -> T) -> T {
    secret()
}

#[inline(never)]
fn wipe() {
    // The zeros are in a variable because a constant would not be written to the stack, and they are marked as read so
    // that the compiler keeps the writes.
    let frame = [0_u8; STACK];
    black_box(&frame);
}
