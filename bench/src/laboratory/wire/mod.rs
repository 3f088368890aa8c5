//! Measuring a device between two interfaces, or in namespaces of our own.
//!
//! ```text
//!            ┌──────────── this process ────────────┐
//!  Generator ── from ──► device under test ──► to ── Sink      and back, if bidirectional
//! ```
//! [`Bench`] runs trials over the ports of [`crate::traffic`] and returns [`Outcome`]s. [`topology`] makes namespaces
//! for measuring the tool itself: a bare veth pair, and one with a forwarder in between. [`Session`] runs the searches
//! ([`crate::laboratory::search`]) and writes the report.

mod bench;
mod findings;
mod outcome;
mod plan;
mod prober;
mod session;
pub mod topology;

pub use bench::{Bench, Direction, Load, Options};
pub use findings::Findings;
pub use outcome::Outcome;
pub use plan::{Kind, Plan, Traffic};
pub use session::Session;
