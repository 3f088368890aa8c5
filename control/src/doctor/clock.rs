//! Whether a time source disciplines the kernel's clock.
#![expect(unsafe_code)]

/// `None` if the kernel does not say.
pub(super) fn is_synchronised() -> Option<bool> {
    // SAFETY: an all-zero timex is valid; it is plain old data.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives during the call. Its modes are 0, so the call only reads the clock's state.
    match unsafe { libc::adjtimex(&raw mut state) } {
        -1 => None,
        _ => Some(state.status & libc::STA_UNSYNC == 0),
    }
}
