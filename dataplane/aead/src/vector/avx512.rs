//! AVX-512 registers with IFMA, of 512 and of 256 bits.
#![expect(unsafe_code)]

use std::arch::x86_64::*;

use super::{MAX_LANES, Multiply52, Vector};
use crate::poly1305::Limbs44;

/// The CPU has AVX-512 F, BW, VL, IFMA and VBMI2.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("bmi2");
        has_all.then_some(Self(()))
    }
}

/// 512 bits: eight messages.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Ifma512(__m512i);

/// 256 bits: four messages.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Ifma256(__m256i);

macro_rules! instruction {
    ($call:expr) => {
        // SAFETY: a register, or the proof in `cpu`, exists only where the CPU has the instruction.
        Self(unsafe { $call })
    };
}

impl Vector for Ifma512 {
    type Cpu = Avx512;
    type Field = Limbs44<Self>;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat32(_: Avx512, value: u32) -> Self {
        instruction!(_mm512_set1_epi32(value.cast_signed()))
    }
    #[inline(always)]
    fn splat64(_: Avx512, value: u64) -> Self {
        instruction!(_mm512_set1_epi64(value.cast_signed()))
    }
    #[inline(always)]
    fn from_lanes(_: Avx512, lanes: &[u64; MAX_LANES]) -> Self {
        instruction!(_mm512_loadu_si512(lanes.as_ptr().cast()))
    }
    #[inline(always)]
    fn to_lanes(self) -> [u64; MAX_LANES] {
        let mut lanes = [0; MAX_LANES];
        // SAFETY: the CPU has AVX-512, since `self` exists; the array has 64 bytes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), self.0) };
        lanes
    }
    #[inline(always)]
    unsafe fn load(_: Avx512, from: *const u8) -> Self {
        instruction!(_mm512_loadu_si512(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_parts(_: Avx512, from: [*const [u32; 4]; MAX_LANES / 2]) -> Self {
        // SAFETY: the CPU has AVX-512, since there is a proof; the caller guarantees the words.
        unsafe {
            let [first, second, third, fourth] = from.map(|words| _mm_loadu_si128(words.cast()));
            let register = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(first), second);
            Self(_mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(register, third), fourth))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has AVX-512, since `self` exists; the caller guarantees the bytes.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn load_up_to(_: Avx512, from: *const u8, len: usize) -> Self {
        instruction!(_mm512_maskz_loadu_epi8(_bzhi_u64(u64::MAX, len as u32), from.cast()))
    }
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut u8, len: usize) {
        // SAFETY: the CPU has AVX-512 and BMI2, since `self` exists; the caller guarantees the bytes.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), _bzhi_u64(u64::MAX, len as u32), self.0) }
    }
    #[inline(always)]
    fn keep(self, len: usize) -> Self {
        instruction!(_mm512_maskz_mov_epi8(_bzhi_u64(u64::MAX, len as u32), self.0))
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        instruction!(_mm512_and_si512(self.0, other.0))
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        instruction!(_mm512_or_si512(self.0, other.0))
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        instruction!(_mm512_xor_si512(self.0, other.0))
    }
    #[inline(always)]
    fn add32(self, other: Self) -> Self {
        instruction!(_mm512_add_epi32(self.0, other.0))
    }
    #[inline(always)]
    fn rotate_left32<const BITS: i32>(self) -> Self {
        instruction!(_mm512_rol_epi32::<BITS>(self.0))
    }
    #[inline(always)]
    fn add64(self, other: Self) -> Self {
        instruction!(_mm512_add_epi64(self.0, other.0))
    }
    #[inline(always)]
    fn sub64(self, other: Self) -> Self {
        instruction!(_mm512_sub_epi64(self.0, other.0))
    }
    #[inline(always)]
    fn shift_left64(self, bits: u32) -> Self {
        instruction!(_mm512_sllv_epi64(self.0, _mm512_set1_epi64(bits.into())))
    }
    #[inline(always)]
    fn shift_right64(self, bits: u32) -> Self {
        instruction!(_mm512_srlv_epi64(self.0, _mm512_set1_epi64(bits.into())))
    }
    #[inline(always)]
    fn unpack_low32(self, other: Self) -> Self {
        instruction!(_mm512_unpacklo_epi32(self.0, other.0))
    }
    #[inline(always)]
    fn unpack_high32(self, other: Self) -> Self {
        instruction!(_mm512_unpackhi_epi32(self.0, other.0))
    }
    #[inline(always)]
    fn unpack_low64(self, other: Self) -> Self {
        instruction!(_mm512_unpacklo_epi64(self.0, other.0))
    }
    #[inline(always)]
    fn unpack_high64(self, other: Self) -> Self {
        instruction!(_mm512_unpackhi_epi64(self.0, other.0))
    }
    #[inline(always)]
    fn transpose(of: [Self; 8]) -> [Self; 8] {
        // 2 × 2 within each 128 bits, then the 128-bit parts.
        let [p0, p1] = pair(of[0], of[1]);
        let [p2, p3] = pair(of[2], of[3]);
        let [p4, p5] = pair(of[4], of[5]);
        let [p6, p7] = pair(of[6], of[7]);
        let (a04, a26) = (even_parts(p0, p2), odd_parts(p0, p2));
        let (a15, a37) = (even_parts(p1, p3), odd_parts(p1, p3));
        let (b04, b26) = (even_parts(p4, p6), odd_parts(p4, p6));
        let (b15, b37) = (even_parts(p5, p7), odd_parts(p5, p7));
        [
            even_parts(a04, b04),
            even_parts(a15, b15),
            even_parts(a26, b26),
            even_parts(a37, b37),
            odd_parts(a04, b04),
            odd_parts(a15, b15),
            odd_parts(a26, b26),
            odd_parts(a37, b37),
        ]
    }
}

/// Even lanes of both, alternating; odd lanes of both, alternating.
#[inline(always)]
fn pair(a: Ifma512, b: Ifma512) -> [Ifma512; 2] {
    [a.unpack_low64(b), a.unpack_high64(b)]
}

/// The 128-bit parts 0 and 2 of `a`, then of `b`.
#[inline(always)]
fn even_parts(a: Ifma512, b: Ifma512) -> Ifma512 {
    // SAFETY: the CPU has AVX-512, since `a` exists.
    Ifma512(unsafe { _mm512_shuffle_i64x2::<0b10_00_10_00>(a.0, b.0) })
}

/// The 128-bit parts 1 and 3 of `a`, then of `b`.
#[inline(always)]
fn odd_parts(a: Ifma512, b: Ifma512) -> Ifma512 {
    // SAFETY: the CPU has AVX-512, since `a` exists.
    Ifma512(unsafe { _mm512_shuffle_i64x2::<0b11_01_11_01>(a.0, b.0) })
}

impl Multiply52 for Ifma512 {
    #[inline(always)]
    fn add_product_low(self, a: Self, b: Self) -> Self {
        instruction!(_mm512_madd52lo_epu64(self.0, a.0, b.0))
    }
    #[inline(always)]
    fn add_product_high(self, a: Self, b: Self) -> Self {
        instruction!(_mm512_madd52hi_epu64(self.0, a.0, b.0))
    }
}

impl Vector for Ifma256 {
    type Cpu = Avx512;
    type Field = Limbs44<Self>;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load_up_to(_: Avx512, from: *const u8, len: usize) -> Self {
        instruction!(_mm256_maskz_loadu_epi8(_bzhi_u32(u32::MAX, len as u32), from.cast()))
    }
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut u8, len: usize) {
        // SAFETY: the CPU has AVX-512 and BMI2, since `self` exists; the caller guarantees the bytes.
        unsafe { _mm256_mask_storeu_epi8(to.cast(), _bzhi_u32(u32::MAX, len as u32), self.0) }
    }
    #[inline(always)]
    fn keep(self, len: usize) -> Self {
        instruction!(_mm256_maskz_mov_epi8(_bzhi_u32(u32::MAX, len as u32), self.0))
    }
    #[inline(always)]
    fn rotate_left32<const BITS: i32>(self) -> Self {
        instruction!(_mm256_rol_epi32::<BITS>(self.0))
    }

    super::avx2::same_in_256_bits!(Avx512);
}

impl Multiply52 for Ifma256 {
    #[inline(always)]
    fn add_product_low(self, a: Self, b: Self) -> Self {
        instruction!(_mm256_madd52lo_epu64(self.0, a.0, b.0))
    }
    #[inline(always)]
    fn add_product_high(self, a: Self, b: Self) -> Self {
        instruction!(_mm256_madd52hi_epu64(self.0, a.0, b.0))
    }
}

// Compiled without AVX-512 DQ, whose multiplication is slower than the shifts used for small factors.
crate::kernel::entries!(
    kernels_512,
    Ifma512,
    Avx512(()),
    "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
);
crate::kernel::entries!(
    kernels_256,
    Ifma256,
    Avx512(()),
    "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
);
