//! The measurements. [`wire`] runs trials on a device, and [`search`] decides the load of the next trial; [`compare`]
//! puts gateways into the same topology, one after another; [`pipeline`] measures the data plane without devices.
//! [`context`] describes the machine, [`progress`] shows how far a measurement has got.

pub mod compare;
pub mod context;
pub mod pipeline;
pub mod progress;
pub mod search;
pub mod wire;
