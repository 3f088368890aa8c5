//! Lets tokio watch a descriptor that belongs to somebody else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a duplicate of the descriptor, so that each side can close its own at any time.
///
/// # Errors
/// There are no descriptors left.
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
