//! Penstock's benchmarks, in three parts of which each knows only those before it:
//!
//! - [`traffic`] sends, forwards and counts packets on AF_XDP;
//! - [`report`] is what every measurement yields: printed, drawn, written, compared;
//! - [`laboratory`] measures: a device by its wires, gateways against each other, the data plane without devices.

pub mod cli;
pub mod laboratory;
pub mod report;
pub mod traffic;
