//! What the kernels need from a vector register, and the registers that provide it.
//!
//! A register is seen as 64-bit lanes, each of which holds one message, or as twice as many 32-bit lanes.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(test)]
pub(crate) mod portable;

use crate::poly1305::Field;

/// The most 64-bit lanes of any register.
pub(crate) const MAX_LANES: usize = 8;

/// A vector register.
///
/// Every function is inlined into a kernel's entry point, which is compiled for the instructions in question: hence
/// `#[inline(always)]`, here and in everything generic over vectors.
#[expect(unsafe_code)]
pub(crate) trait Vector: Copy {
    /// A proof that the CPU has the instructions. A register exists only where there was such a proof.
    type Cpu: Copy;
    /// Poly1305's arithmetic in these registers.
    type Field: Field<Vector = Self>;
    /// Number of 64-bit lanes: 4 or 8.
    const LANES: usize;
    /// Bytes of a register.
    const BYTES: usize = 8 * Self::LANES;

    fn splat32(cpu: Self::Cpu, value: u32) -> Self;
    fn splat64(cpu: Self::Cpu, value: u64) -> Self;
    /// The first `LANES` of these values.
    fn from_lanes(cpu: Self::Cpu, lanes: &[u64; MAX_LANES]) -> Self;
    /// The lanes, followed by zeros.
    fn to_lanes(self) -> [u64; MAX_LANES];

    /// Reads [`Self::BYTES`] bytes.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(cpu: Self::Cpu, from: *const u8) -> Self;
    /// Reads four words from each of the first `LANES / 2` addresses, into consecutive 128-bit parts.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_parts(cpu: Self::Cpu, from: [*const [u32; 4]; MAX_LANES / 2]) -> Self;
    /// Writes [`Self::BYTES`] bytes.
    ///
    /// # Safety
    /// They are writable.
    unsafe fn store(self, to: *mut u8);
    /// Reads `len` bytes, at most [`Self::BYTES`], and no others; the rest of the register is zeros.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_up_to(cpu: Self::Cpu, from: *const u8, len: usize) -> Self;
    /// Writes the first `len` bytes, at most [`Self::BYTES`], and no others.
    ///
    /// # Safety
    /// They are writable.
    unsafe fn store_up_to(self, to: *mut u8, len: usize);

    /// The first `len` bytes, at most [`Self::BYTES`], followed by zeros.
    fn keep(self, len: usize) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn add32(self, other: Self) -> Self;
    fn rotate_left32<const BITS: i32>(self) -> Self;
    fn add64(self, other: Self) -> Self;
    fn sub64(self, other: Self) -> Self;
    fn shift_left64(self, bits: u32) -> Self;
    fn shift_right64(self, bits: u32) -> Self;
    /// Of every four 32-bit lanes: first of `self`, first of `other`, second of `self`, second of `other`.
    fn unpack_low32(self, other: Self) -> Self;
    /// Of every four 32-bit lanes: third of `self`, third of `other`, fourth of `self`, fourth of `other`.
    fn unpack_high32(self, other: Self) -> Self;
    /// Of every two 64-bit lanes: the first of `self`, and the first of `other`.
    fn unpack_low64(self, other: Self) -> Self;
    /// Of every two 64-bit lanes: the second of `self`, and the second of `other`.
    fn unpack_high64(self, other: Self) -> Self;
    /// Turns eight columns into rows, or rows into columns. Lane `l` of column `c` is 64-bit word `c` of message `l`;
    /// row `r` is part `r / LANES` of the 64 bytes of message `r % LANES`.
    fn transpose(of: [Self; 8]) -> [Self; 8];

    /// `yes` where `mask` is all ones, `no` where it is zero.
    #[inline(always)]
    fn select(mask: Self, yes: Self, no: Self) -> Self {
        no.xor(no.xor(yes).and(mask))
    }

    /// All ones in the lanes in which `self` is negative as a signed number.
    #[inline(always)]
    fn is_negative(self, cpu: Self::Cpu) -> Self {
        Self::splat64(cpu, 0).sub64(self.shift_right64(63))
    }
}

/// Registers with 52-bit multiplication (AVX-512 IFMA).
pub(crate) trait Multiply52: Vector {
    /// `self` and the low 52 bits of the product of the low 52 bits of `a` and `b`.
    fn add_product_low(self, a: Self, b: Self) -> Self;
    /// `self` and the high 52 bits of that product.
    fn add_product_high(self, a: Self, b: Self) -> Self;
}

/// Registers with 32-bit multiplication.
pub(crate) trait Multiply32: Vector {
    /// The 64-bit product of the low halves of each lane.
    fn product(self, other: Self) -> Self;
}
