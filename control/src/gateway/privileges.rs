//! Whether this process has the privileges, and this kernel the features, that the gateway needs. Checked first, so
//! that the answer is a sentence and not an errno from the middle of the start.

use anyhow::{Context, Result, bail};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::needs;

/// Checks capabilities and kernel; `xdp` if AF_XDP is configured.
///
/// # Errors
/// Names everything that is missing.
pub fn check(xdp: bool) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read /proc")?;
    capable(needs::effective_capabilities(&status).context("/proc/self/status shows no capabilities")?, xdp)?;
    recent(release.trim(), xdp)
}

/// Drops the privileges that a running gateway no longer needs; workers have dropped all of theirs. Those that remain
/// are needed to make ports again when interfaces come back: sockets, XDP programs, locked memory, routes.
pub fn reduce() {
    let kept = CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_RAW
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::BPF
        | CapabilitySet::IPC_LOCK
        // A root that was not started by the unit reads keys and profiles of other users.
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH;
    let reduced = capabilities(None).and_then(|mut sets| {
        sets.permitted &= kept;
        sets.effective &= kept;
        sets.inheritable &= kept;
        set_capabilities(None, sets)
    });
    if let Err(error) = reduced {
        tracing::warn!("capabilities that are no longer needed cannot be dropped: {error}");
    }
}

fn capable(held: u64, xdp: bool) -> Result<()> {
    let missing = needs::missing_capabilities(held, xdp);
    if missing.is_empty() {
        return Ok(());
    }
    bail!("missing {}: run as root, or grant it with systemd's AmbientCapabilities= or setcap", missing.join(" and "))
}

fn recent(release: &str, xdp: bool) -> Result<()> {
    let oldest = needs::oldest_kernel(xdp);
    // A release string without a version may pass here; it will fail where a feature is missing.
    if needs::version(release).is_none_or(|version| version >= oldest) {
        return Ok(());
    }
    let ([major, minor, _], what) = (oldest, if xdp { "mode xdp" } else { "Penstock" });
    bail!("the kernel ({release}) is too old: {what} needs Linux {major}.{minor} or newer")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0x1ff_ffff_ffff;

    #[test]
    fn says_which_capability_is_missing() {
        assert_eq!(needs::effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(ALL));
        assert!(capable(ALL, true).is_ok());
        let without = |bit: u32, xdp| capable(ALL & !(1 << 21) & !(1 << bit), xdp).map_err(|e| e.to_string());
        assert!(without(12, false).unwrap_err().contains("CAP_NET_ADMIN"));
        assert!(without(13, true).unwrap_err().contains("CAP_NET_RAW"));
        assert!(without(39, true).unwrap_err().contains("CAP_BPF"));
        assert!(without(39, false).is_ok() && without(13, false).is_ok());
        assert!(capable(0, true).unwrap_err().to_string().contains("CAP_NET_ADMIN and CAP_NET_RAW and CAP_BPF"));
    }

    #[test]
    fn says_when_the_kernel_is_too_old() {
        assert!(recent("6.18.44-fc-v595", true).is_ok());
        assert!(recent("5.18.0-1-amd64", true).is_ok());
        assert!(recent("5.10.0-8-amd64", true).unwrap_err().to_string().contains("5.18"));
        assert!(recent("5.4.0", false).is_ok());
        assert!(recent("4.19.0", false).is_err());
        assert!(recent("strange", true).is_ok());
    }
}
