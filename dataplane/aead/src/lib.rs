//! Seals and opens batches of messages, each with its own key and nonce.
//!
//! A [`Cipher`] takes any number of [`Sealing`] or [`Opening`] messages at once, in place. ChaCha20-Poly1305 (RFC 8439)
//! of many messages runs in the lanes of vector registers where that is faster than ring; everything else, and all of
//! AES-256-GCM, is done by ring, message by message. The resulting bytes are the same in every case.
//!
//! - There is no associated data: WireGuard's transport messages have none.
//! - Nonces are chosen by the caller, who must never use one twice with a key.
//! - Plaintext that did not verify is never handed out: its place is filled with zeros.
//! - No branch and no address depends on a key, a nonce or a plaintext; they depend on lengths, and on whether a tag
//!   was right.
//! - A call allocates nothing.

// There are kernels for x86-64 only; elsewhere ring does everything.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unused_macros))]

mod chacha20;
mod cipher;
mod engine;
mod group;
mod kernel;
mod key;
mod message;
mod packet;
mod plan;
mod poly1305;
mod self_test;
mod speed;
mod vector;
mod wipe;

pub use cipher::{Cipher, Implementation, NotSupported, SelfTestFailed};
pub use key::{Key, Suite, UnknownSuite};
pub use message::{Opening, Sealing};
pub use wipe::wipe_stack;

/// Bytes of an authentication tag, in both suites.
pub const TAG: usize = 16;
/// Bytes of a nonce, in both suites.
pub const NONCE: usize = 12;
/// The most messages that are planned together. Larger batches are divided.
pub const MAX_BATCH: usize = 64;
