//! AVX2 registers, and what 256-bit AVX-512 registers have in common with them.
#![expect(unsafe_code)]

use std::arch::x86_64::*;

use super::{MAX_LANES, Multiply32, Vector};
use crate::poly1305::Limbs26;

/// The CPU has AVX2.
#[derive(Clone, Copy)]
pub(crate) struct HasAvx2(());

impl HasAvx2 {
    pub(crate) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2");
        has_all.then_some(Self(()))
    }
}

/// 256 bits: four messages.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Avx2(__m256i);

macro_rules! instruction {
    ($call:expr) => {
        // SAFETY: a register, or the proof in `cpu`, exists only where the CPU has the instruction.
        Self(unsafe { $call })
    };
}

/// The part of an `impl Vector` that needs no more than AVX2.
macro_rules! same_in_256_bits {
    ($cpu:ty) => {
        #[inline(always)]
        fn splat32(_: $cpu, value: u32) -> Self {
            instruction!(_mm256_set1_epi32(value.cast_signed()))
        }
        #[inline(always)]
        fn splat64(_: $cpu, value: u64) -> Self {
            instruction!(_mm256_set1_epi64x(value.cast_signed()))
        }
        #[inline(always)]
        fn from_lanes(_: $cpu, lanes: &[u64; MAX_LANES]) -> Self {
            instruction!(_mm256_loadu_si256(lanes.as_ptr().cast()))
        }
        #[inline(always)]
        fn to_lanes(self) -> [u64; MAX_LANES] {
            let mut lanes = [0; MAX_LANES];
            // SAFETY: the CPU has AVX2, since `self` exists; the array has 64 bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), self.0) };
            lanes
        }
        #[inline(always)]
        unsafe fn load(_: $cpu, from: *const u8) -> Self {
            instruction!(_mm256_loadu_si256(from.cast()))
        }
        #[inline(always)]
        unsafe fn load_parts(_: $cpu, from: [*const [u32; 4]; MAX_LANES / 2]) -> Self {
            let [first, second, ..] = from;
            instruction!(_mm256_loadu2_m128i(second.cast(), first.cast()))
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: the CPU has AVX2, since `self` exists; the caller guarantees the bytes.
            unsafe { _mm256_storeu_si256(to.cast(), self.0) }
        }
        #[inline(always)]
        fn and(self, other: Self) -> Self {
            instruction!(_mm256_and_si256(self.0, other.0))
        }
        #[inline(always)]
        fn or(self, other: Self) -> Self {
            instruction!(_mm256_or_si256(self.0, other.0))
        }
        #[inline(always)]
        fn xor(self, other: Self) -> Self {
            instruction!(_mm256_xor_si256(self.0, other.0))
        }
        #[inline(always)]
        fn add32(self, other: Self) -> Self {
            instruction!(_mm256_add_epi32(self.0, other.0))
        }
        #[inline(always)]
        fn add64(self, other: Self) -> Self {
            instruction!(_mm256_add_epi64(self.0, other.0))
        }
        #[inline(always)]
        fn sub64(self, other: Self) -> Self {
            instruction!(_mm256_sub_epi64(self.0, other.0))
        }
        #[inline(always)]
        fn shift_left64(self, bits: u32) -> Self {
            instruction!(_mm256_sllv_epi64(self.0, _mm256_set1_epi64x(bits.into())))
        }
        #[inline(always)]
        fn shift_right64(self, bits: u32) -> Self {
            instruction!(_mm256_srlv_epi64(self.0, _mm256_set1_epi64x(bits.into())))
        }
        #[inline(always)]
        fn unpack_low32(self, other: Self) -> Self {
            instruction!(_mm256_unpacklo_epi32(self.0, other.0))
        }
        #[inline(always)]
        fn unpack_high32(self, other: Self) -> Self {
            instruction!(_mm256_unpackhi_epi32(self.0, other.0))
        }
        #[inline(always)]
        fn unpack_low64(self, other: Self) -> Self {
            instruction!(_mm256_unpacklo_epi64(self.0, other.0))
        }
        #[inline(always)]
        fn unpack_high64(self, other: Self) -> Self {
            instruction!(_mm256_unpackhi_epi64(self.0, other.0))
        }
        #[inline(always)]
        fn transpose(of: [Self; 8]) -> [Self; 8] {
            let [a, b, c, d, e, f, g, h] = of.map(|register| register.0);
            let [a, b, c, d] = $crate::vector::avx2::transpose4([a, b, c, d]);
            let [e, f, g, h] = $crate::vector::avx2::transpose4([e, f, g, h]);
            [Self(a), Self(b), Self(c), Self(d), Self(e), Self(f), Self(g), Self(h)]
        }
    };
}
pub(super) use same_in_256_bits;

/// Transposes 4 × 4 lanes.
#[inline(always)]
pub(super) fn transpose4(of: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: called for registers of this module and of `avx512` only, which exist only where the CPU has AVX2.
    unsafe {
        let (a02, a13) = (_mm256_unpacklo_epi64(of[0], of[1]), _mm256_unpackhi_epi64(of[0], of[1]));
        let (b02, b13) = (_mm256_unpacklo_epi64(of[2], of[3]), _mm256_unpackhi_epi64(of[2], of[3]));
        [
            _mm256_permute2x128_si256::<0x20>(a02, b02),
            _mm256_permute2x128_si256::<0x20>(a13, b13),
            _mm256_permute2x128_si256::<0x31>(a02, b02),
            _mm256_permute2x128_si256::<0x31>(a13, b13),
        ]
    }
}

impl Vector for Avx2 {
    type Cpu = HasAvx2;
    type Field = Limbs26<Self>;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load_up_to(cpu: HasAvx2, from: *const u8, len: usize) -> Self {
        let rest = len % 4;
        // SAFETY: the CPU has AVX2, since `cpu` exists. Masked words are not touched, so that this reads
        // `len - rest` bytes.
        let words = Self(unsafe { _mm256_maskload_epi32(from.cast(), word_mask(cpu, len)) });
        if rest == 0 {
            return words;
        }
        let mut last = [0; 32];
        // SAFETY: the caller guarantees `rest` more bytes; `len` is below 32, since it is no multiple of 4.
        unsafe { from.add(len - rest).copy_to_nonoverlapping(last.as_mut_ptr().add(len - rest), rest) };
        // SAFETY: the array has 32 bytes.
        words.or(unsafe { Self::load(cpu, last.as_ptr()) })
    }
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut u8, len: usize) {
        let rest = len % 4;
        // SAFETY: the CPU has AVX2, since `self` exists. Masked words are not touched, so that this writes
        // `len - rest` bytes.
        unsafe { _mm256_maskstore_epi32(to.cast(), word_mask(HasAvx2(()), len), self.0) };
        if rest != 0 {
            let mut last = [0; 32];
            // SAFETY: the array has 32 bytes.
            unsafe { self.store(last.as_mut_ptr()) };
            // SAFETY: the caller guarantees `rest` more bytes; `len` is below 32, since it is no multiple of 4.
            unsafe { to.add(len - rest).copy_from_nonoverlapping(last.as_ptr().add(len - rest), rest) };
        }
    }
    #[inline(always)]
    fn keep(self, len: usize) -> Self {
        const NUMBERS: [i8; 32] = {
            let mut numbers = [0; 32];
            let mut i = 0;
            while i < 32 {
                numbers[i] = i as i8;
                i += 1;
            }
            numbers
        };
        instruction!({
            let numbers = _mm256_loadu_si256(NUMBERS.as_ptr().cast());
            _mm256_and_si256(self.0, _mm256_cmpgt_epi8(_mm256_set1_epi8(len as i8), numbers))
        })
    }
    #[inline(always)]
    fn rotate_left32<const BITS: i32>(self) -> Self {
        let high = instruction!(_mm256_slli_epi32::<BITS>(self.0));
        match BITS {
            16 => instruction!(_mm256_shuffle_epi8(
                self.0,
                _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13))
            )),
            8 => instruction!(_mm256_shuffle_epi8(
                self.0,
                _mm256_broadcastsi128_si256(_mm_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14))
            )),
            12 => high.or(instruction!(_mm256_srli_epi32::<20>(self.0))),
            7 => high.or(instruction!(_mm256_srli_epi32::<25>(self.0))),
            _ => unreachable!("not a rotation of ChaCha20"),
        }
    }

    same_in_256_bits!(HasAvx2);
}

/// The high bit of each of the first `len / 4` words.
#[inline(always)]
fn word_mask(_: HasAvx2, len: usize) -> __m256i {
    // SAFETY: the CPU has AVX2, since there is a proof.
    unsafe {
        let count = _mm256_set1_epi32((len / 4) as i32);
        _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }
}

impl Multiply32 for Avx2 {
    #[inline(always)]
    fn product(self, other: Self) -> Self {
        instruction!(_mm256_mul_epu32(self.0, other.0))
    }
}

crate::kernel::entries!(kernels, Avx2, HasAvx2(()), "avx2,bmi1,bmi2,lzcnt,popcnt");
