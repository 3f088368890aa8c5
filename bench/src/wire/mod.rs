//! Measuring a device between two interfaces, or in namespaces of our own.
//!
//! ```text
//!            ┌──────────── this process ────────────┐
//!  Generator ── from ──► device under test ──► to ── Sink      and back, if bidirectional
//! ```
//! [`Namespace`] and [`Place`] say where an interface is, [`Port`] has its sockets, [`Bench`] runs trials over
//! them and yields [`Outcome`]s. [`topology`] builds places to measure the tool itself: a bare veth pair, and
//! one with a forwarder between. [`Session`] asks the [`crate::search`]es and writes the report.

mod bench;
mod findings;
mod namespace;
mod outcome;
mod plan;
mod port;
mod prober;
mod session;
mod sink;
pub mod topology;

pub use bench::{Bench, Direction, Load, Options};
pub use findings::Findings;
pub use namespace::{Interface, Namespace, Place};
pub use outcome::Outcome;
pub use plan::{Kind, Plan, Traffic};
pub use port::Port;
pub use session::Session;
pub use sink::{Ending, Sink};
