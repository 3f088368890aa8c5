//! Wiping what a handshake leaves behind on the stack. Keys wipe themselves when they are dropped, but not the places
//! that they were moved from, nor what hash and cipher worked with.

use std::hint::black_box;

/// Stack that a handshake step needs, also in a build that is not optimized.
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
    // In a variable, or a constant would take the place of the stack; and as if the zeros were read, so that they are
    // written.
    let frame = [0_u8; STACK];
    black_box(&frame);
}
