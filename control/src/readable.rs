//! A descriptor of somebody else's, watched by tokio.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a duplicate of the descriptor, so that neither side minds when the other closes its own.
///
/// # Errors
/// No descriptor is to be had.
pub fn watch(source: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = source.as_fd().try_clone_to_owned()?;
    register(fd)
}

/// Hands a descriptor to tokio.
///
/// # Errors
/// It cannot be polled.
#[expect(unsafe_code)]
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` keeps the descriptor open, always the same, and is not reachable from outside.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}
