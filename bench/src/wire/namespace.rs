//! Where an interface is.
//!
//! A namespace of our own has no name: it lives as long as somebody holds its descriptor, so it goes with the
//! process, however that ends, and its interfaces go with it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::packet::Mac;

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// Where iproute2 keeps the named ones.
const NAMED: &str = "/run/netns";

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    handle: Arc<File>,
}

/// An interface as the command line has it: `eth1`, or `tester:eth1` in the namespace "tester".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name of the namespace, if it is not ours.
    pub namespace: Option<String>,
    /// Name of the interface.
    pub name: String,
}

/// An interface and where it is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The namespace.
    pub namespace: Namespace,
    /// The interface's name in it.
    pub name: String,
}

impl Namespace {
    /// The one we are in.
    pub fn own() -> io::Result<Namespace> {
        File::open(OWN).map(|file| Namespace { handle: Arc::new(file) })
    }

    /// One that `ip netns` made.
    pub fn named(name: &str) -> io::Result<Namespace> {
        File::open(format!("{NAMED}/{name}")).map(|file| Namespace { handle: Arc::new(file) })
    }

    /// A new, empty one.
    pub fn fresh() -> io::Result<Namespace> {
        let thread = std::thread::spawn(|| {
            // SAFETY: only the network namespace of this thread changes, which ends here; no memory or
            // descriptor is touched.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(privileged)?;
            Namespace::own()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Does `work` on a thread in this namespace. Sockets made there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(privileged)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` here; yields what it prints.
    ///
    /// # Errors
    /// There is no `ip`, or it refuses: then with what it says.
    pub fn ip(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run("ip", arguments)
    }

    /// Runs a program here to its end; yields what it prints.
    ///
    /// # Errors
    /// It cannot be started, or fails: then with what it says.
    pub fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let run = || Command::new(program).args(arguments).stdin(Stdio::null()).output();
        let output = self.enter(run)?.with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A path under which other processes find it, as long as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }
}

/// Says what is missing where the kernel only says no.
fn privileged(error: rustix::io::Errno) -> io::Error {
    match error {
        rustix::io::Errno::PERM => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "network namespaces are for root: run as root or with CAP_SYS_ADMIN, and AF_XDP needs CAP_NET_RAW, \
             CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK",
        ),
        other => other.into(),
    }
}

impl Place {
    /// Finds an interface of the command line.
    ///
    /// # Errors
    /// There is no such namespace. Whether there is the interface shows when it is used.
    pub fn find(interface: &Interface) -> anyhow::Result<Place> {
        let namespace = match &interface.namespace {
            None => Namespace::own().context("cannot open our network namespace")?,
            Some(name) => {
                Namespace::named(name).with_context(|| format!("there is no network namespace \"{name}\""))?
            }
        };
        Ok(Place { namespace, name: interface.name.clone() })
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> anyhow::Result<Mac> {
        let printed = self.namespace.ip(&["-json", "link", "show", "dev", &self.name])?;
        let links: serde_json::Value = serde_json::from_str(&printed).context("ip prints no JSON")?;
        let address = links[0]["address"].as_str().unwrap_or_default();
        address.parse().map_err(|_| anyhow::anyhow!("{} has no Ethernet address", self.name))
    }
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Interface, String> {
        let (namespace, name) = match text.split_once(':') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let is_name = |name: &str| !name.is_empty() && name != ".." && !name.contains(['/', ' ', '\0']);
        if !is_name(name) || !namespace.is_none_or(is_name) {
            return Err(format!("\"{text}\" is neither an interface nor NAMESPACE:INTERFACE"));
        }
        Ok(Interface { namespace: namespace.map(Into::into), name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_strictly() {
        let read = |text: &str| text.parse::<Interface>().map(|i| (i.namespace, i.name));
        assert_eq!(read("eth1"), Ok((None, "eth1".into())));
        assert_eq!(read("left:eth1"), Ok((Some("left".into()), "eth1".into())));
        for wrong in ["", ":", "a:", ":b", "../x:eth0", "..:eth0", "a b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
