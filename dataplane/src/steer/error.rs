//! What can go wrong, as sentences for the operator, and how they are made from the kernel's answers.

use std::error::Error;
use std::net::IpAddr;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use penstock_wire::MAX_QUEUES;
use rustix::io::Errno;

use super::kernel::{LinkState, forbidden_because, kernel_is_too_old, kernel_release, missing_capabilities, owner};
use super::{Target, XdpMode};

/// Why a program could not be attached; each a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no interface with the index.
    #[error("interface {interface} (index {ifindex}) is gone")]
    NoInterface {
        /// The interface's name.
        interface: String,
        /// The interface's index.
        ifindex: u32,
    },
    /// The interface already has an XDP program; there can be only one.
    #[error("interface {interface} is occupied by {owner}; detach it first, or don't use mode xdp")]
    Busy {
        /// The interface's name.
        interface: String,
        /// Whose program it is, as far as the kernel tells.
        owner: String,
    },
    /// EPERM.
    #[error("loading and attaching XDP programs is not permitted: {reason}")]
    NotPermitted {
        /// The missing capabilities, or what else may forbid it.
        reason: String,
    },
    /// The program needs a frame's length in a way that only Linux 5.18 and newer offer.
    #[error("the kernel ({release}) is too old for XDP steering, which needs Linux 5.18 or newer")]
    KernelTooOld {
        /// What `uname -r` says.
        release: String,
    },
    /// The kernel was built without something.
    #[error("the kernel ({release}) was built without {option}")]
    KernelLacks {
        /// What `uname -r` says.
        release: String,
        /// The configuration option.
        option: &'static str,
    },
    /// [`AttachMode::Native`](super::AttachMode::Native), and the driver refuses.
    #[error("native XDP is not possible on interface {interface}: {reason}")]
    NoNative {
        /// The interface's name.
        interface: String,
        /// The driver's reason.
        reason: String,
    },
    /// Generic XDP refused.
    #[error("generic XDP is not possible on interface {interface}: {reason}")]
    NoGeneric {
        /// The interface's name.
        interface: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The kernel's verifier refused the program.
    #[error("the kernel's verifier refused the program {program}: {summary}")]
    Verifier {
        /// The program's name.
        program: &'static str,
        /// The last thing the verifier said about it.
        summary: String,
        /// All that the verifier said.
        log: String,
    },
    /// Creating the maps or loading the program failed for another reason.
    #[error("the XDP programs cannot be loaded: {0}")]
    Load(String),
}

/// Why a map could not be changed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteerError {
    /// No such slot in the XSKMAP.
    #[error("receive queue {queue} is beyond the {MAX_QUEUES} that can have a socket")]
    QueueOutOfRange {
        /// The queue.
        queue: u32,
    },
    /// More bits than the address has.
    #[error("{address}/{len} is not a prefix: the address has fewer bits")]
    PrefixTooLong {
        /// The prefix's address.
        address: IpAddr,
        /// Its length in bits.
        len: u8,
    },
    /// No room for another entry.
    #[error("the map {map} is full")]
    Full {
        /// The map's name.
        map: &'static str,
    },
    /// The kernel refused.
    #[error("the map {map} cannot be accessed: {reason}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// The kernel's reason.
        reason: String,
    },
}

/// Parsing the object or creating its maps failed.
pub(super) fn refused_by_loader(error: &EbpfError) -> AttachError {
    match (error, errno(error)) {
        (_, errno) if errno != Some(Errno::PERM) && kernel_is_too_old() => too_old(),
        (_, Some(Errno::PERM)) => AttachError::NotPermitted { reason: forbidden_because() },
        (_, Some(Errno::NOSYS)) => AttachError::KernelLacks { release: kernel_release(), option: "CONFIG_BPF_SYSCALL" },
        (EbpfError::MapError(MapError::CreateError { name, .. }), Some(Errno::INVAL))
            if name == penstock_wire::SOCKETS =>
        {
            AttachError::KernelLacks { release: kernel_release(), option: "CONFIG_XDP_SOCKETS" }
        }
        _ => loading(error),
    }
}

/// Loading the program failed.
pub(super) fn refused_by_verifier(program: &'static str, error: &ProgramError) -> AttachError {
    let log = match error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string(),
        _ => String::new(),
    };
    let missing = missing_capabilities();
    match errno(error) {
        Some(Errno::PERM) if log.is_empty() || !missing.is_empty() => {
            AttachError::NotPermitted { reason: forbidden_because() }
        }
        _ if kernel_is_too_old() => too_old(),
        _ if log.is_empty() => loading(error),
        _ => AttachError::Verifier { program, summary: last_complaint(&log).to_owned(), log },
    }
}

/// The line with which a verifier's log ends, before its statistics.
fn last_complaint(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    let is_statistic = |line: &&str| STATISTICS.iter().any(|start| line.starts_with(start));
    let mut complaints = log.lines().map(str::trim).filter(|line| !line.is_empty());
    complaints.rfind(|line| !is_statistic(line)).unwrap_or_default()
}

/// The kernel can do less than the programs need.
pub(super) fn too_old() -> AttachError {
    AttachError::KernelTooOld { release: kernel_release() }
}

/// Attaching the program failed.
pub(super) fn refused_by_interface(target: &Target<'_>, mode: XdpMode, error: &ProgramError) -> AttachError {
    let interface = target.interface.to_owned();
    let state = LinkState::query(target.ifindex);
    let reason = match (errno(error), &state) {
        (_, Err(Errno::NODEV)) | (Some(Errno::NODEV), _) => {
            return AttachError::NoInterface { interface, ifindex: target.ifindex };
        }
        (Some(Errno::PERM), _) => {
            return AttachError::NotPermitted { reason: forbidden_because() };
        }
        (Some(Errno::BUSY | Errno::EXIST), _) => {
            let program = state.ok().and_then(|state| state.xdp_program);
            return AttachError::Busy { interface, owner: owner(program) };
        }
        (Some(Errno::OPNOTSUPP), _) => "its driver has none".to_owned(),
        (Some(Errno::RANGE), Ok(LinkState { mtu, .. })) => {
            format!("the MTU is too large for its driver (it is {mtu} here; on veth the peer's counts)")
        }
        (Some(Errno::NOSPC), _) => {
            "it has too few receive queues (a veth needs as many as its peer's transmit queues)".to_owned()
        }
        _ => sentence(error),
    };
    match mode {
        XdpMode::Native => AttachError::NoNative { interface, reason },
        XdpMode::Generic => AttachError::NoGeneric { interface, reason },
    }
}

/// An error of an operation that should always succeed.
pub(super) fn loading(error: &(dyn Error + 'static)) -> AttachError {
    AttachError::Load(sentence(error))
}

/// Accessing a map failed.
pub(super) fn accessing(map: &'static str) -> impl Fn(MapError) -> SteerError {
    move |error| match errno(&error) {
        Some(Errno::TOOBIG | Errno::NOSPC) => SteerError::Full { map },
        _ => SteerError::Map { map, reason: sentence(&error) },
    }
}

/// Changing a slot of the XSKMAP failed.
pub(super) fn on_queue(queue: u32) -> impl Fn(MapError) -> SteerError {
    move |error| match error {
        MapError::OutOfBounds { .. } => SteerError::QueueOutOfRange { queue },
        error => accessing(penstock_wire::SOCKETS)(error),
    }
}

/// The system's error number at the root of an error, if there is one.
pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    causes(error).filter_map(|cause| cause.downcast_ref()).find_map(Errno::from_io_error)
}

/// An error and its causes in one line.
fn sentence(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause| (*cause).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifiers_last_complaint_comes_before_its_statistics() {
        let log = "78: (bf) r4 = r1\n79: (0f) r4 += r3\nR4 is bad\nverification time 6 usec\n\
                   stack depth 56\nprocessed 80 insns (limit 1000000)\n\n";
        assert_eq!(last_complaint(log), "R4 is bad");
        assert_eq!(last_complaint(""), "");
    }
}
