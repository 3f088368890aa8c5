//! The kernel's forwarding switches under `/proc/sys/net`: what was changed, and its way back.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Switches that were changed, with their values before. [`Forwarding::restore`] puts them back.
#[derive(Debug, Default)]
pub struct Forwarding {
    before: Vec<(PathBuf, String)>,
}

impl Forwarding {
    /// Lets IPv4 packets pass between the tun device and the LAN interfaces.
    ///
    /// # Errors
    /// A switch cannot be set; those already set are in `self`.
    pub fn enable(&mut self, tun: &str, lan: &[String]) -> Result<()> {
        // Replies may come in by the tunnel for what did not go out by it.
        self.set("ipv4", tun, "rp_filter", "2")?;
        for interface in std::iter::once(tun).chain(lan.iter().map(String::as_str)) {
            self.set("ipv4", interface, "forwarding", "1")?;
        }
        Ok(())
    }

    /// IPv6 forwarding, of which the switch is one for all interfaces, without losing the router
    /// advertisements by which the WAN gets its addresses.
    ///
    /// # Errors
    /// A switch cannot be set; those already set are in `self`.
    pub fn enable_ipv6(&mut self, wan: &str) -> Result<()> {
        if read(&path("ipv6", "all", "forwarding")).as_deref() == Some("1") {
            return Ok(());
        }
        if read(&path("ipv6", wan, "accept_ra")).as_deref() == Some("1") {
            self.set("ipv6", wan, "accept_ra", "2")?;
        }
        // The switch for all overwrites those of the interfaces: note them to give them back.
        let each: Vec<_> = std::fs::read_dir("/proc/sys/net/ipv6/conf")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("forwarding"))
            .filter(|p| !p.starts_with("/proc/sys/net/ipv6/conf/all"))
            .filter_map(|p| read(&p).map(|value| (p, value)))
            .collect();
        self.before.extend(each);
        self.set("ipv6", "all", "forwarding", "1")
    }

    fn set(&mut self, family: &str, interface: &str, switch: &str, value: &str) -> Result<()> {
        let path = path(family, interface, switch);
        let Some(before) = read(&path) else {
            // IPv6 may be switched off altogether.
            tracing::debug!("no {}", path.display());
            return Ok(());
        };
        if before == value {
            return Ok(());
        }
        std::fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))?;
        tracing::info!("{} set to {value} (was {before})", path.display());
        self.before.push((path, before));
        Ok(())
    }

    /// Puts everything back as it was, the last change first. What is gone by now is left alone.
    pub fn restore(&mut self) {
        for (path, before) in self.before.drain(..).rev() {
            if read(&path).is_some_and(|now| now != before) {
                match std::fs::write(&path, &before) {
                    Ok(()) => tracing::debug!("{} back to {before}", path.display()),
                    Err(e) => tracing::warn!("{} could not be put back to {before}: {e}", path.display()),
                }
            }
        }
    }
}

/// Keeps the kernel from giving the tun device a link-local address when it comes up: neighbour and
/// router messages have nowhere to go there.
pub fn quiet_ipv6(tun: &str) {
    for (switch, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0")] {
        // A kernel without IPv6 lacks the switches.
        let _ = std::fs::write(path("ipv6", tun, switch), value);
    }
}

fn path(family: &str, interface: &str, switch: &str) -> PathBuf {
    ["/proc/sys/net", family, "conf", interface, switch].iter().collect()
}

fn read(path: &PathBuf) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
}
