//! The kernels of each implementation, with their costs.
//!
//! The costs are measured (`cargo run --release -p penstock-aead --example measure -- costs`); they decide only which
//! kernel runs, so that another CPU's being different costs time and nothing else.
#![expect(unsafe_code)]

use crate::Implementation;
use crate::group::{Group, Layout};
use crate::plan::Cost;
#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2, avx512};

/// A kernel as it is called.
pub(crate) struct Kernel {
    pub(crate) layout: Layout,
    pub(crate) cost: Cost,
    /// To be called only where the CPU has what the kernel was compiled for, as `open`.
    seal: unsafe fn(&Group<'_>) -> u32,
    open: unsafe fn(&Group<'_>) -> u32,
}

impl Kernel {
    pub(crate) fn seal(&self, group: &Group<'_>) -> u32 {
        // SAFETY: kernels are handed out by `kernels` alone, which asks the CPU.
        unsafe { (self.seal)(group) }
    }

    pub(crate) fn open(&self, group: &Group<'_>) -> u32 {
        // SAFETY: as for `seal`.
        unsafe { (self.open)(group) }
    }
}

/// ring's time for a message.
pub(crate) const RING: Cost = Cost { call: 1500, block: 350 };

/// The kernels of an implementation, if this CPU has what they need.
pub(crate) fn kernels(implementation: Implementation) -> Option<&'static [Kernel]> {
    match implementation {
        Implementation::Ring => Some(&[]),
        #[cfg(target_arch = "x86_64")]
        Implementation::Ifma512 => avx512::Avx512::is_supported().then_some(&IFMA_512),
        #[cfg(target_arch = "x86_64")]
        Implementation::Ifma256 => avx512::Avx512::is_supported().then_some(&IFMA_256),
        #[cfg(target_arch = "x86_64")]
        Implementation::Avx2 => avx2::HasAvx2::is_supported().then_some(&AVX2),
        #[cfg(not(target_arch = "x86_64"))]
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
const IFMA_512: [Kernel; 3] = [
    Kernel {
        layout: Layout { lanes: 8, blocks: 1 },
        cost: Cost { call: 2600, block: 2900 },
        seal: avx512::kernels_512::seal_one_block,
        open: avx512::kernels_512::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 8, blocks: 2 },
        cost: Cost { call: 1800, block: 1700 },
        seal: avx512::kernels_512::seal_two_blocks,
        open: avx512::kernels_512::open_two_blocks,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 2 },
        cost: Cost { call: 1800, block: 1100 },
        seal: avx512::kernels_256::seal_two_blocks,
        open: avx512::kernels_256::open_two_blocks,
    },
];

#[cfg(target_arch = "x86_64")]
const IFMA_256: [Kernel; 2] = [
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        cost: Cost { call: 2000, block: 2100 },
        seal: avx512::kernels_256::seal_one_block,
        open: avx512::kernels_256::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 2 },
        cost: Cost { call: 1800, block: 1100 },
        seal: avx512::kernels_256::seal_two_blocks,
        open: avx512::kernels_256::open_two_blocks,
    },
];

#[cfg(target_arch = "x86_64")]
const AVX2: [Kernel; 2] = [
    Kernel {
        layout: Layout { lanes: 4, blocks: 1 },
        cost: Cost { call: 2600, block: 3500 },
        seal: avx2::kernels::seal_one_block,
        open: avx2::kernels::open_one_block,
    },
    Kernel {
        layout: Layout { lanes: 4, blocks: 2 },
        cost: Cost { call: 2200, block: 2000 },
        seal: avx2::kernels::seal_two_blocks,
        open: avx2::kernels::open_two_blocks,
    },
];
