//! Gateways measured against each other and against their ceilings, in the same topology with the same traffic.
//!
//! ```text
//!   host A                gateway A                   gateway B                host B
//!  ┌──────┐ 10.101.0.0/24 ┌─────────┐  192.0.2.0/30  ┌─────────┐ 10.102.0.0/24 ┌──────┐
//!  │ lan .2├──────────────┤.1 lan   │                │   lan .1├──────────────┤.2 lan │
//!  │      │     veth      │   wan .1├──────veth──────┤.2 wan   │     veth     │      │
//!  └──────┘               └─────────┘                └─────────┘              └──────┘
//!  iperf3 -c, ping,        the gateway under test, twice                       iperf3 -s,
//!  generator                                                                   sink
//! ```
//! A [`Subject`] is measured in namespaces of its own, which end with it. [`rounds`] takes the subjects in turn, round
//! after round, so that a slow minute of the machine affects all of them; [`measure`] has the measurements, and
//! [`figures`] makes a report of the results.

pub mod figures;
pub mod markdown;
mod measure;
mod process;
mod rivals;
mod rounds;
pub mod subject;
mod topology;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use rounds::run;
pub use subject::Subject;

/// What is measured, and how.
#[derive(Debug)]
pub struct Options {
    /// The subjects, in this order.
    pub subjects: Vec<Subject>,
    /// How often everything is measured.
    pub rounds: usize,
    /// How long one measurement lasts.
    pub duration: Duration,
    /// The placements; each subject is measured in all that it supports.
    pub placements: Vec<Placement>,
    /// The congestion control of the hosts' TCP, by the kernel's name. It decides how many packets come at once, so it
    /// must not depend on what this machine happens to prefer.
    pub congestion_control: String,
    /// This program, which is also generator, sink and forwarder.
    pub bench: PathBuf,
    /// The gateway that the comparison is about.
    pub penstock: PathBuf,
}

/// Who chooses the cores on which the gateways run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// The kernel's scheduler.
    Scheduler,
    /// Gateway A has core 0, gateway B core 1.
    Pinned,
}

impl Placement {
    /// All placements.
    pub const ALL: [Placement; 2] = [Placement::Scheduler, Placement::Pinned];
}

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SIGINT, SIGTERM or SIGHUP.
    #[error("stopped by a signal")]
    Stopped,
    /// Any other reason, as a sentence.
    #[error("{0}")]
    Failed(String),
    /// An operation, and why it failed.
    #[error("cannot {0}: {1}")]
    Io(String, io::Error),
}

type Result<T> = std::result::Result<T, Error>;

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Failed(error.to_string())
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::Io(what, error)
}
