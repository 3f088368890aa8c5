//! Wipes what the kernels leave behind in registers and on the stack.
//!
//! A kernel keeps keys, key stream and Poly1305's numbers in registers, and the compiler spills some of them to the
//! stack wherever it likes. Wiping variables does not reach those copies. So code that handles secrets is called
//! through [`after`], which then overwrites the part of the stack that it used, and the vector registers.
#![expect(unsafe_code)]

/// The stack between a worker's turn and the deepest frame of ring, even in an unoptimised build.
const RING_STACK: usize = 128 << 10;

/// How much stack below a call may hold secrets afterwards, with some to spare. `tests/wiping.rs` looks for remains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// No secrets for which this crate is responsible.
    Nothing,
    /// That of a kernel for short texts, and of planning.
    ShortKernel,
    /// That of any kernel, and of planning.
    Kernel,
    /// That of setting up a key, even in a build in which ring is not optimised.
    Setup,
}

/// Calls `secret`, and wipes what it has left behind, to the depth that it returns.
#[inline(always)]
pub(crate) fn after(secret: impl FnOnce() -> Depth) {
    match on_own_frame(secret) {
        Depth::Nothing => return,
        Depth::ShortKernel => stack::<{ 8 << 10 }>(),
        Depth::Kernel => stack::<{ 12 << 10 }>(),
        Depth::Setup => stack::<{ 64 << 10 }>(),
    }
    registers();
}

/// Wipes what ring has left on this thread's stack, below the caller's frame, and in vector registers. [`after`] is not
/// used for each of ring's messages, since wiping takes longer than sealing one. So code that drops a session calls
/// this.
pub fn wipe_stack() {
    stack::<RING_STACK>();
    registers();
}

/// Not inlined, so that its frame begins where that of [`stack`] begins.
#[inline(never)]
fn on_own_frame(secret: impl FnOnce() -> Depth) -> Depth {
    secret()
}

#[inline(never)]
fn stack<const STACK: usize>() {
    let frame = [0_u8; STACK];
    #[cfg(not(miri))]
    // SAFETY: no instruction. It makes the compiler assume that the zeros are read here, so that it writes them.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) frame.as_ptr(), options(readonly, nostack, preserves_flags));
    }
    #[cfg(miri)]
    std::hint::black_box(&frame);
}

#[cfg(any(not(target_arch = "x86_64"), miri))]
fn registers() {}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn registers() {
    if is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has AVX. The instruction clears the first sixteen vector registers with all of their bits,
        // and touches nothing else.
        unsafe {
            std::arch::asm!(
                "vzeroall",
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512 F.
        unsafe { registers_from_16() }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx512f")]
fn registers_from_16() {
    // SAFETY: the instructions clear the registers that are declared, and touch nothing else.
    unsafe {
        std::arch::asm!(
            "vpxord zmm16, zmm16, zmm16", "vpxord zmm17, zmm17, zmm17", "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19", "vpxord zmm20, zmm20, zmm20", "vpxord zmm21, zmm21, zmm21",
            "vpxord zmm22, zmm22, zmm22", "vpxord zmm23, zmm23, zmm23", "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25", "vpxord zmm26, zmm26, zmm26", "vpxord zmm27, zmm27, zmm27",
            "vpxord zmm28, zmm28, zmm28", "vpxord zmm29, zmm29, zmm29", "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}
