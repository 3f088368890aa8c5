//! A counting allocator, so that "allocates nothing" is measured instead of believed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    // Constant and without a destructor, so that reading it never allocates.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator with a counter of requests per thread. A program has its allocations measured by making this
/// its `#[global_allocator]`.
pub struct Counting;

fn count() {
    COUNT.set(COUNT.get() + 1);
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the trait's promises; counting
// neither allocates nor unwinds (the counter would need centuries to overflow).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often this thread has requested memory; always 0 in a program with another allocator.
#[inline]
pub fn so_far() -> u64 {
    COUNT.get()
}

/// Whether this program's allocator is [`Counting`].
pub fn are_counted() -> bool {
    let before = so_far();
    drop(black_box(Box::new(0u8)));
    so_far() != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    #[test]
    fn each_request_counts_once_and_on_its_own_thread() {
        assert!(are_counted());
        let before = so_far();
        let mut bytes = black_box(vec![0u8; 10]);
        assert_eq!(so_far() - before, 1);
        bytes.reserve_exact(black_box(10_000));
        assert_eq!(so_far() - before, 2);
        drop(bytes);
        assert_eq!(so_far() - before, 2);
        let elsewhere = std::thread::spawn(|| {
            let before = so_far();
            let boxes: Vec<Box<u8>> = black_box((0..100).map(Box::new).collect());
            drop(boxes);
            so_far() - before
        });
        let before = so_far();
        assert!(elsewhere.join().expect("no panic") > 100);
        assert!(so_far() - before < 100);
    }
}
