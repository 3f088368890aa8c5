//! The kernels of each implementation, with their costs.
//!
//! The costs are tenths of a nanosecond on an Intel Xeon of family 6, model 207, at 3.2 GHz
//! (`cargo run --release -p penstock-aead --example measure costs`). Only their ratios count, and they decide only
//! which kernel runs: on another CPU a wrong one costs time and nothing else.
#![expect(unsafe_code)]

use crate::Implementation;
use crate::group::{Group, Layout};
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2, avx512};

/// Time of a kernel: a part for each call, and one for each pass over the lanes.
#[derive(Clone, Copy, Debug)]
struct Cost {
    call: u32,
    pass: u32,
}

/// A kernel as it is called.
pub(crate) struct Kernel {
    pub(crate) layout: Layout,
    cost: Cost,
    /// To be called only where the CPU has what the kernel was compiled for, as `open`.
    seal: unsafe fn(&Group<'_>) -> u32,
    open: unsafe fn(&Group<'_>) -> u32,
}

impl Kernel {
    /// Time of a call when the longest message has this many blocks. The first pass has Poly1305's keys, too.
    pub(crate) fn cost(&self, blocks: u32) -> u64 {
        let passes = (u64::from(blocks) + 1).div_ceil(self.layout.blocks as u64);
        u64::from(self.cost.call) + u64::from(self.cost.pass) * passes
    }

    pub(crate) fn seal(&self, group: &Group<'_>) -> u32 {
        // SAFETY: kernels are handed out by `kernels` alone, which asks the CPU.
        unsafe { (self.seal)(group) }
    }

    pub(crate) fn open(&self, group: &Group<'_>) -> u32 {
        // SAFETY: as for `seal`.
        unsafe { (self.open)(group) }
    }
}

/// ring's time for a message with this many blocks.
pub(crate) fn ring_cost(blocks: u32) -> u64 {
    1900 + 380 * u64::from(blocks)
}

/// The kernels of an implementation, if this CPU has what they need.
pub(crate) fn kernels(implementation: Implementation) -> Option<&'static [Kernel]> {
    match implementation {
        Implementation::Ring => Some(&[]),
        #[cfg(target_arch = "x86_64")]
        Implementation::Ifma512 => avx512::Avx512::detect().map(|_| IFMA_512.as_slice()),
        #[cfg(target_arch = "x86_64")]
        Implementation::Ifma256 => avx512::Avx512::detect().map(|_| IFMA_256.as_slice()),
        #[cfg(target_arch = "x86_64")]
        Implementation::Avx2 => avx2::HasAvx2::detect().map(|_| AVX2.as_slice()),
        #[cfg(not(target_arch = "x86_64"))]
        _ => None,
    }
}

/// Of use to both: few long messages leave most of 512 bits empty.
#[cfg(target_arch = "x86_64")]
const FOUR_IN_256_BITS: Kernel = Kernel {
    layout: Layout { lanes: 4, blocks: 2 },
    cost: Cost { call: 2580, pass: 2140 },
    seal: avx512::kernels_256::seal_two_blocks,
    open: avx512::kernels_256::open_two_blocks,
};

#[cfg(target_arch = "x86_64")]
static IFMA_512: [Kernel; 3] = [
    Kernel {
        layout: Layout { lanes: 8, blocks: 1 },
        cost: Cost { call: 3150, pass: 2850 },
        seal: avx512::kernels_512::seal_one_block,
        open: avx512::kernels_512::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 8, blocks: 2 },
        cost: Cost { call: 3100, pass: 2940 },
        seal: avx512::kernels_512::seal_two_blocks,
        open: avx512::kernels_512::open_two_blocks,
    },
    FOUR_IN_256_BITS,
];

#[cfg(target_arch = "x86_64")]
static IFMA_256: [Kernel; 2] = [
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        cost: Cost { call: 2800, pass: 2000 },
        seal: avx512::kernels_256::seal_one_block,
        open: avx512::kernels_256::open_one_block,
    },
    FOUR_IN_256_BITS,
];

#[cfg(target_arch = "x86_64")]
static AVX2: [Kernel; 2] = [
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        cost: Cost { call: 3090, pass: 3510 },
        seal: avx2::kernels::seal_one_block,
        open: avx2::kernels::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 2 },
        cost: Cost { call: 2590, pass: 3465 },
        seal: avx2::kernels::seal_two_blocks,
        open: avx2::kernels::open_two_blocks,
    },
];
