//! The kernels of each implementation, with their costs.
//!
//! The costs are in tenths of a nanosecond on an Intel Xeon of family 6, model 207, at 3.2 GHz (`cargo run --release -p
//! penstock-aead --example measure costs`), less 50 ns per call for wiping, which is done once for all calls of a
//! batch. Only their ratios matter, and they decide only which kernel runs: on another CPU a wrong one costs time and
//! nothing else.
#![expect(unsafe_code)]

use crate::Implementation;
use crate::group::{Group, Layout};
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2, avx512};
use crate::wipe::Depth;

/// Time of a kernel: a part for each call, and a part for each pass over the lanes.
#[derive(Clone, Copy, Debug)]
struct Cost {
    call: u32,
    pass: u32,
}

/// A kernel's entry points.
pub(crate) struct Kernel {
    pub(crate) layout: Layout,
    /// The most blocks that a text may have.
    most_blocks: u32,
    cost: Cost,
    /// `seal` and `open` may be called only where the CPU has the instructions that the kernel was compiled for.
    seal: unsafe fn(&Group<'_>) -> u32,
    open: unsafe fn(&Group<'_>) -> u32,
}

impl Kernel {
    /// Time of a call when the longest message has this many blocks. The first pass also computes Poly1305's keys.
    pub(crate) fn cost(&self, blocks: u32) -> u64 {
        if blocks > self.most_blocks {
            return IMPOSSIBLE;
        }
        let passes = if self.layout.blocks == 2 { (blocks + 2) / 2 } else { blocks + 1 };
        u64::from(self.cost.call) + u64::from(self.cost.pass) * u64::from(passes)
    }

    /// The most messages of a call.
    pub(crate) fn messages(&self) -> usize {
        self.layout.messages()
    }

    pub(crate) fn depth(&self) -> Depth {
        if self.most_blocks == 1 { Depth::ShortKernel } else { Depth::Kernel }
    }

    pub(crate) fn seal(&self, group: &Group<'_>) -> u32 {
        // SAFETY: kernels come only from `kernels`, which checks the CPU.
        unsafe { (self.seal)(group) }
    }

    pub(crate) fn open(&self, group: &Group<'_>) -> u32 {
        // SAFETY: as for `seal`.
        unsafe { (self.open)(group) }
    }
}

/// The cost of work that a kernel cannot do: more than anything else, even 64 times over.
pub(crate) const IMPOSSIBLE: u64 = 1 << 48;

/// ring's time for a message with this many blocks.
pub(crate) fn ring_cost(blocks: u32) -> u64 {
    1850 + 366 * u64::from(blocks)
}

/// The kernels of an implementation, if this CPU supports them.
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

/// Useful for both: a few long messages leave most of a 512-bit register empty.
#[cfg(target_arch = "x86_64")]
const FOUR_IN_256_BITS: Kernel = Kernel {
    layout: Layout { lanes: 4, blocks: 2 },
    most_blocks: u32::MAX,
    cost: Cost { call: 1800, pass: 2090 },
    seal: avx512::kernels_256::seal_two_blocks,
    open: avx512::kernels_256::open_two_blocks,
};

#[cfg(target_arch = "x86_64")]
static IFMA_512: [Kernel; 4] = [
    Kernel {
        layout: Layout { lanes: 8, blocks: 1 },
        most_blocks: 1,
        cost: Cost { call: 7500, pass: 0 },
        seal: avx512::kernels_512::seal_short,
        open: avx512::kernels_512::open_short,
    },
    Kernel {
        layout: Layout { lanes: 8, blocks: 1 },
        most_blocks: u32::MAX,
        cost: Cost { call: 2400, pass: 3000 },
        seal: avx512::kernels_512::seal_one_block,
        open: avx512::kernels_512::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 8, blocks: 2 },
        most_blocks: u32::MAX,
        cost: Cost { call: 2500, pass: 3000 },
        seal: avx512::kernels_512::seal_two_blocks,
        open: avx512::kernels_512::open_two_blocks,
    },
    FOUR_IN_256_BITS,
];

#[cfg(target_arch = "x86_64")]
static IFMA_256: [Kernel; 3] = [
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        most_blocks: 1,
        cost: Cost { call: 6000, pass: 0 },
        seal: avx512::kernels_256::seal_short,
        open: avx512::kernels_256::open_short,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        most_blocks: u32::MAX,
        cost: Cost { call: 2300, pass: 2000 },
        seal: avx512::kernels_256::seal_one_block,
        open: avx512::kernels_256::open_one_block,
    },
    FOUR_IN_256_BITS,
];

#[cfg(target_arch = "x86_64")]
static AVX2: [Kernel; 3] = [
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        most_blocks: 1,
        cost: Cost { call: 8400, pass: 0 },
        seal: avx2::kernels::seal_short,
        open: avx2::kernels::open_short,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        most_blocks: u32::MAX,
        cost: Cost { call: 2800, pass: 3430 },
        seal: avx2::kernels::seal_one_block,
        open: avx2::kernels::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 2 },
        most_blocks: u32::MAX,
        cost: Cost { call: 2100, pass: 3400 },
        seal: avx2::kernels::seal_two_blocks,
        open: avx2::kernels::open_two_blocks,
    },
];
