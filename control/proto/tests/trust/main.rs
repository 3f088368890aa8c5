//! Signed statements from the authority to a gateway, over a coordinator that may be hostile.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod hostile;
mod leases;
mod overlay;
mod page;
mod scale;
mod statements;
