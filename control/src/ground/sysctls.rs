//! Settings under `/proc/sys/net`: what they should be, and what they were before.
//!
//! A value is written to a file in the runtime directory before it is changed for the first time, so that it
//! can be put back by a process that was started after this one was killed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::own::Own;
use super::{Actual, Network, Wanted};

/// Whether and how an interface makes itself a link-local address.
pub(super) const ADDRESS_GENERATION: &str = "addr_gen_mode";

/// A setting of an interface, or of `all` or `default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Whether it is about IPv6.
    pub ipv6: bool,
    /// The interface.
    pub interface: String,
    /// The setting.
    pub name: String,
}

impl Sysctl {
    /// A setting of IPv4.
    #[must_use]
    pub fn v4(interface: &str, name: &str) -> Self {
        Self { ipv6: false, interface: interface.to_owned(), name: name.to_owned() }
    }

    /// A setting of IPv6.
    #[must_use]
    pub fn v6(interface: &str, name: &str) -> Self {
        Self { ipv6: true, ..Self::v4(interface, name) }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let family = if self.ipv6 { "ipv6" } else { "ipv4" };
        ["/proc/sys/net", family, "conf", &self.interface, &self.name].iter().collect()
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "ipv6" } else { "ipv4" };
        write!(f, "net/{family}/conf/{}/{}", self.interface, self.name)
    }
}

/// What the tun device should have. It goes with the process, so nothing needs to be put back.
pub(super) fn of_tun(tun: &str) -> Vec<(Sysctl, String)> {
    // No link-local address, no router messages: they have nowhere to go there.
    let quiet = [(ADDRESS_GENERATION, "1"), ("accept_ra", "0"), ("router_solicitations", "0")];
    let mut all: Vec<_> = quiet.iter().map(|(name, value)| (Sysctl::v6(tun, name), (*value).to_owned())).collect();
    // Replies may come in by the tunnel although the requests left another way; and two peers that talk through this
    // gateway are not told to bypass it.
    let tolerant = [("rp_filter", "2"), ("send_redirects", "0")];
    all.extend(tolerant.iter().map(|(name, value)| (Sysctl::v4(tun, name), (*value).to_owned())));
    all
}

/// What the other settings should be, in the order in which they are to be set. Those that do not exist are
/// passed over by the plan.
pub(super) fn wanted(wanted: &Wanted, own: &Own, actual: &Actual<'_>) -> Vec<(Sysctl, String)> {
    let mut all = Vec::new();
    let mut set = |sysctl: Sysctl, value: &str| all.push((sysctl, value.to_owned()));
    if must_restore_mark(wanted, own, actual) {
        set(Sysctl::v4(&wanted.placement.wan, "src_valid_mark"), "1");
    }
    if !wanted.forward {
        return all;
    }
    let inside = || std::iter::once(wanted.name.as_str()).chain(wanted.placement.lan.iter().map(String::as_str));
    inside().for_each(|interface| set(Sysctl::v4(interface, "forwarding"), "1"));
    if wanted.tun.is_some() {
        // The kernel sends redirects if this or the interface's own setting says so.
        set(Sysctl::v4("all", "send_redirects"), "0");
    }
    if own.guarded.lacks(true) {
        return all;
    }
    let has = |sysctl: &Sysctl| actual.sysctls.contains_key(sysctl);
    if inside().any(|interface| has(&Sysctl::v6(interface, "force_forwarding"))) {
        inside().for_each(|interface| set(Sysctl::v6(interface, "force_forwarding"), "1"));
        return all;
    }
    // One switch for all interfaces. Before it is thrown, those that follow router advertisements are told to
    // go on with that; and each is noted, because the switch overwrites them.
    let others = || actual.network.interfaces.values().map(|i| i.name.as_str());
    let others = || others().filter(|name| *name != "lo" && *name != wanted.name.as_str());
    let names = || std::iter::once("default").chain(others());
    for interface in names() {
        let accept = Sysctl::v6(interface, "accept_ra");
        let value = actual.sysctls.get(&accept).map(String::as_str);
        if value == Some("1") || value == Some("2") && actual.saved.contains_key(&accept) {
            set(accept, "2");
        }
    }
    names().for_each(|interface| set(Sysctl::v6(interface, "forwarding"), "1"));
    set(Sysctl::v6("all", "forwarding"), "1");
    all
}

/// Whether incoming outer packets need the mark: an outer address is guarded, so that the way back to it leads
/// into the tunnel, and the WAN's reverse path filter looks at that.
pub(super) fn must_restore_mark(wanted: &Wanted, own: &Own, actual: &Actual<'_>) -> bool {
    let filtered =
        |interface: &str| actual.sysctls.get(&Sysctl::v4(interface, "rp_filter")).is_some_and(|value| value != "0");
    (filtered("all") || filtered(&wanted.placement.wan))
        && wanted.outer.iter().any(|address| address.is_ipv4() && own.guarded.holding(*address).is_some())
}

/// The settings that a plan can ask for.
pub(super) fn relevant(wanted: &Wanted, network: &Network) -> Vec<Sysctl> {
    let tun = wanted.name.as_str();
    let mut all: Vec<Sysctl> = of_tun(tun).into_iter().map(|(sysctl, _)| sysctl).collect();
    all.extend(["rp_filter", "send_redirects"].map(|name| Sysctl::v4("all", name)));
    all.extend(["rp_filter", "src_valid_mark"].map(|name| Sysctl::v4(&wanted.placement.wan, name)));
    for interface in std::iter::once(tun).chain(wanted.placement.lan.iter().map(String::as_str)) {
        all.push(Sysctl::v4(interface, "forwarding"));
        all.push(Sysctl::v6(interface, "force_forwarding"));
    }
    if wanted.guarded.iter().any(|p| p.addr().is_ipv6()) {
        let names = network.interfaces.values().map(|i| i.name.as_str());
        for interface in ["all", "default"].into_iter().chain(names) {
            all.extend(["forwarding", "accept_ra"].map(|name| Sysctl::v6(interface, name)));
        }
    }
    all
}

/// The values that settings had before they were changed, in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Where the file is; without it, they are known to this process only.
    path: Option<PathBuf>,
    before: BTreeMap<Sysctl, String>,
    /// Whether the file is out of date.
    unsaved: bool,
}

impl Saved {
    /// Reads the file; lines that are not understood are skipped.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let before = text.lines().filter_map(parse).collect();
        Self { path: Some(path.to_owned()), before, unsaved: false }
    }

    /// The settings that were changed, with the values before.
    #[must_use]
    pub fn before(&self) -> &BTreeMap<Sysctl, String> {
        &self.before
    }

    /// Notes the value that a setting has before it is changed, unless one is noted.
    pub fn note(&mut self, sysctl: &Sysctl, value: &str) {
        if !self.before.contains_key(sysctl) {
            self.before.insert(sysctl.clone(), value.to_owned());
            self.unsaved = true;
        }
    }

    /// Forgets a setting that was put back.
    pub fn forget(&mut self, sysctl: &Sysctl) {
        self.unsaved |= self.before.remove(sysctl).is_some();
    }

    /// Writes the file, if it is out of date.
    ///
    /// # Errors
    /// It cannot be written; the values are known to this process only.
    pub fn save(&mut self) -> io::Result<()> {
        if let (true, Some(path)) = (self.unsaved, &self.path) {
            if self.before.is_empty() {
                crate::sealed::remove(path)?;
            } else {
                let line = |(sysctl, value): (&Sysctl, &String)| format!("{sysctl} {value}\n");
                let lines: Vec<String> = self.before.iter().map(line).collect();
                crate::sealed::replace(path, lines.concat().as_bytes())?;
            }
        }
        self.unsaved = false;
        Ok(())
    }
}

/// A line of the file: `net/ipv4/conf/eth0/forwarding 0`.
fn parse(line: &str) -> Option<(Sysctl, String)> {
    let (path, value) = line.split_once(' ')?;
    let parts: Vec<&str> = path.split('/').collect();
    let ["net", family @ ("ipv4" | "ipv6"), "conf", interface, name] = parts[..] else { return None };
    let sound = |part: &str| !part.is_empty() && part != "." && part != "..";
    let number = value.parse::<i32>().is_ok();
    (sound(interface) && sound(name) && number)
        .then(|| (Sysctl { ipv6: family == "ipv6", ..Sysctl::v4(interface, name) }, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_kept_across_processes_until_it_is_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/a.sysctls");
        let (lan, all) = (Sysctl::v4("lan0.7", "forwarding"), Sysctl::v6("all", "forwarding"));
        let mut saved = Saved::load(&path);
        saved.note(&lan, "0");
        saved.note(&lan, "1");
        saved.note(&all, "0");
        saved.save().unwrap();
        let mut after = Saved::load(&path);
        assert_eq!(after, saved);
        assert_eq!(after.before()[&lan], "0");
        after.forget(&lan);
        after.forget(&all);
        after.save().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_settings_of_interfaces_are_read_from_the_file() {
        assert!(parse("net/ipv4/conf/eth0/forwarding 0").is_some());
        for line in [
            "net/ipv4/conf/../../kernel 1",
            "net/ipv4/conf/../x 1",
            "net/core/conf/a/b 1",
            "net/ipv4/conf/a/b",
            "net/ipv6/conf/a/b x y",
            "",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
