//! Messages that begin right after an inaccessible page, or end right before one.
#![expect(unsafe_code)]

use std::ptr::null_mut;

use penstock_aead::{Cipher, Implementation, Key, Opening, Sealing, Suite, TAG};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
const ROOM: usize = PAGE;
const COUNT: usize = 24;

/// A page between two inaccessible ones.
struct Guarded(*mut u8);

impl Guarded {
    fn new() -> Self {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(null_mut(), ROOM + 2 * PAGE, ProtFlags::empty(), MapFlags::PRIVATE) };
        let base = base.expect("a mapping").cast::<u8>();
        // SAFETY: the middle of the mapping, which nobody uses yet.
        unsafe { mprotect(base.add(PAGE).cast(), ROOM, MprotectFlags::READ | MprotectFlags::WRITE) }.expect("access");
        Self(base)
    }

    fn room(&mut self) -> &mut [u8] {
        // SAFETY: the accessible part, borrowed together with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(PAGE), ROOM) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { munmap(self.0.cast(), ROOM + 2 * PAGE) }.expect("a mapping to take away");
    }
}

fn place(room: &mut [u8], len: usize, at_end: bool) -> &mut [u8] {
    let begin = if at_end { ROOM - len } else { 0 };
    &mut room[begin..begin + len]
}

#[test]
fn nothing_outside_a_message_is_touched() {
    let key = Key::new(Suite::ChaCha20Poly1305, &[7; 32]);
    let mut guarded: Vec<Guarded> = (0..COUNT).map(|_| Guarded::new()).collect();
    for implementation in Implementation::ALL {
        let Ok(cipher) = Cipher::new(implementation) else {
            println!("not run: this CPU has no {implementation}");
            continue;
        };
        let cipher = cipher.without_ring();
        for len in (0..300).chain([1420, 1424, 2047, 4000]) {
            for (at_end, count, spread) in
                [(false, 16, 0), (true, 16, 0), (true, 5, 0), (false, COUNT, 7), (true, COUNT, 7)]
            {
                let lengths: Vec<usize> = (0..count).map(|i| len - (i * spread).min(len)).collect();
                let mut expected = vec![];
                for (page, len) in guarded.iter_mut().zip(&lengths) {
                    let data = place(page.room(), len + TAG, at_end);
                    data.fill(0x5a);
                    let mut sealed = data.to_vec();
                    Cipher::RING.seal_batch(&mut [Sealing::new(&key, [1; 12], &mut sealed)]);
                    expected.push(sealed);
                }
                let mut batch: Vec<_> = guarded
                    .iter_mut()
                    .zip(&lengths)
                    .map(|(page, len)| Sealing::new(&key, [1; 12], place(page.room(), len + TAG, at_end)))
                    .collect();
                cipher.seal_batch(&mut batch);
                for ((page, len), expected) in guarded.iter_mut().zip(&lengths).zip(&expected) {
                    assert!(*place(page.room(), len + TAG, at_end) == expected[..], "{implementation}, {len} B");
                }
                let mut batch: Vec<_> = guarded
                    .iter_mut()
                    .zip(&lengths)
                    .map(|(page, len)| Opening::new(&key, [1; 12], place(page.room(), len + TAG, at_end), 0))
                    .collect();
                cipher.open_batch(&mut batch);
                assert!(batch.iter().all(|message| message.plaintext().is_some()), "{implementation}, {len} B");
            }
        }
    }
}
