//! What Penstock's programs tell people: the log on standard error, and what is wrong with a JSON file.

mod fault;
mod json;
mod log;

pub use fault::{Fault, closest};
pub use json::{ADDRESS_WITH_PORT, hint, plain, syntax, without_place};
pub use log::{log_filter, log_to_stderr, print_fatal};
