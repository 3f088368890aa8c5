//! Registers made of plain integers, for tests: they run the kernels on any machine, and under Miri.
#![expect(unsafe_code)]

use super::{MAX_LANES, Multiply32, Vector};
use crate::poly1305::Limbs26;

/// Four lanes.
#[derive(Clone, Copy)]
pub(crate) struct Portable([u64; 4]);

impl Portable {
    fn lanes(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|i| of(self.0[i], other.0[i])))
    }

    fn words(self, other: Self, of: impl Fn(u32, u32) -> u32) -> Self {
        let high = |x: u64| (x >> 32) as u32;
        self.lanes(other, |a, b| u64::from(of(a as u32, b as u32)) | u64::from(of(high(a), high(b))) << 32)
    }

    fn bytes(self) -> [u8; 32] {
        std::array::from_fn(|i| self.0[i / 8].to_le_bytes()[i % 8])
    }

    fn word(self, i: usize) -> u64 {
        self.0[i / 2] >> (32 * (i % 2)) & 0xffff_ffff
    }
}

impl Vector for Portable {
    type Cpu = ();
    type Field = Limbs26<Self>;
    const LANES: usize = 4;

    fn splat32(_: (), value: u32) -> Self {
        Self([u64::from(value) | u64::from(value) << 32; 4])
    }
    fn splat64(_: (), value: u64) -> Self {
        Self([value; 4])
    }
    fn from_lanes(_: (), lanes: &[u64; MAX_LANES]) -> Self {
        Self(std::array::from_fn(|i| lanes[i]))
    }
    fn to_lanes(self) -> [u64; MAX_LANES] {
        std::array::from_fn(|i| self.0.get(i).copied().unwrap_or(0))
    }
    unsafe fn load(cpu: (), from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load_up_to(cpu, from, 32) }
    }
    unsafe fn load_parts(_: (), from: [*const [u32; 4]; MAX_LANES / 2]) -> Self {
        // SAFETY: the caller's promise.
        let [first, second] = unsafe { [from[0].read(), from[1].read()] };
        let lane = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [a, b] = [first, second].map(|part| [lane(part[0], part[1]), lane(part[2], part[3])]);
        Self([a[0], a[1], b[0], b[1]])
    }
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { self.store_up_to(to, 32) }
    }
    unsafe fn load_up_to(_: (), from: *const u8, len: usize) -> Self {
        let mut bytes = [0; 32];
        // SAFETY: the caller's promise.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
        let (words, _) = bytes.as_chunks::<8>();
        Self(std::array::from_fn(|i| u64::from_le_bytes(words[i])))
    }
    unsafe fn store_up_to(self, to: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { to.copy_from_nonoverlapping(self.bytes().as_ptr(), len) };
    }
    fn keep(self, len: usize) -> Self {
        let mut bytes = self.bytes();
        bytes[len..].fill(0);
        // SAFETY: the array has 32 bytes.
        unsafe { Self::load((), bytes.as_ptr()) }
    }
    fn and(self, other: Self) -> Self {
        self.lanes(other, |a, b| a & b)
    }
    fn or(self, other: Self) -> Self {
        self.lanes(other, |a, b| a | b)
    }
    fn xor(self, other: Self) -> Self {
        self.lanes(other, |a, b| a ^ b)
    }
    fn add32(self, other: Self) -> Self {
        self.words(other, u32::wrapping_add)
    }
    fn rotate_left32<const BITS: i32>(self) -> Self {
        self.words(self, |a, _| a.rotate_left(BITS as u32))
    }
    fn add64(self, other: Self) -> Self {
        self.lanes(other, u64::wrapping_add)
    }
    fn sub64(self, other: Self) -> Self {
        self.lanes(other, u64::wrapping_sub)
    }
    fn shift_left64(self, bits: u32) -> Self {
        self.lanes(self, |a, _| a << bits)
    }
    fn shift_right64(self, bits: u32) -> Self {
        self.lanes(self, |a, _| a >> bits)
    }
    fn unpack_low32(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| {
            let word = i / 2 * 4 + i % 2;
            self.word(word) | other.word(word) << 32
        }))
    }
    fn unpack_high32(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| {
            let word = i / 2 * 4 + 2 + i % 2;
            self.word(word) | other.word(word) << 32
        }))
    }
    fn unpack_low64(self, other: Self) -> Self {
        Self([self.0[0], other.0[0], self.0[2], other.0[2]])
    }
    fn unpack_high64(self, other: Self) -> Self {
        Self([self.0[1], other.0[1], self.0[3], other.0[3]])
    }
    fn transpose(of: [Self; 8]) -> [Self; 8] {
        std::array::from_fn(|row| Self(std::array::from_fn(|i| of[row / 4 * 4 + i].0[row % 4])))
    }
}

impl Multiply32 for Portable {
    fn product(self, other: Self) -> Self {
        self.lanes(other, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff))
    }
}

crate::kernel::entries!(kernels, Portable, (),);
