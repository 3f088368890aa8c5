//! What is measured: the ceilings, Penstock in each mode, and the rivals.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use penstock_netns::Namespace;
use serde_json::{Value, json};

use super::measure::READY;
use super::process::{self, Process, until};
use super::topology::{End, HOSTS, NETWORKS, PORT, Side, Topology, WAN, beside, mac};
use super::{Options, Result, rivals};
use crate::laboratory::context;

/// How long a gateway may take to carry its first ping.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// A gateway, or what is measured in its place.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The name for `--only`.
    pub name: Cow<'static, str>,
    /// The description for people.
    pub about: Cow<'static, str>,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The kernel's forwarding without a tunnel.
    Kernel,
    /// Our forwarder, one on each gateway.
    Forwarder {
        poll: bool,
    },
    Penstock(Settings),
    /// A program that makes a WireGuard interface and is configured by `wg`.
    Userspace {
        program: Cow<'static, str>,
        arguments: &'static [&'static str],
    },
    KernelWireguard,
    Nebula,
}

/// What differs between the profiles of Penstock's subjects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    wan: &'static str,
    lan: &'static str,
    busy: bool,
    suite: &'static str,
}

const AUTO: Settings = Settings { wan: "auto", lan: "auto", busy: false, suite: "chacha20-poly1305" };
const XDP: Settings = Settings { wan: "xdp", lan: "xdp", ..AUTO };

const fn subject(name: &'static str, about: &'static str, kind: Kind) -> Subject {
    Subject { name: Cow::Borrowed(name), about: Cow::Borrowed(about), kind }
}

const fn userspace(
    name: &'static str,
    about: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
) -> Subject {
    subject(name, about, Kind::Userspace { program: Cow::Borrowed(program), arguments })
}

/// Every subject, in the order of the report.
pub static ALL: [Subject; 13] = [
    subject("kernel", "plain forwarding, no tunnel: the ceiling for TCP", Kind::Kernel),
    subject(
        "forwarder",
        "AF_XDP without crypto; the better of the two is the ceiling for AF_XDP",
        Kind::Forwarder { poll: false },
    ),
    subject("forwarder-busy", "the same, polling busily", Kind::Forwarder { poll: true }),
    subject("penstock-xdp", "WAN xdp, LAN xdp", Kind::Penstock(XDP)),
    subject("penstock-busy", "the same, polling busily", Kind::Penstock(Settings { busy: true, ..XDP })),
    subject("penstock-tun", "WAN udp, LAN tun", Kind::Penstock(Settings { wan: "udp", lan: "tun", ..AUTO })),
    subject("penstock-auto", "as it chooses itself", Kind::Penstock(AUTO)),
    subject("penstock-aes", "the same with AES-256-GCM", Kind::Penstock(Settings { suite: "aes-256-gcm", ..AUTO })),
    subject("kernel-wireguard", "the kernel's WireGuard", Kind::KernelWireguard),
    userspace("wireguard-go", "WireGuard in Go", "wireguard-go", &["-f"]),
    userspace("boringtun", "WireGuard in Rust", "boringtun-cli", &["-f", "--disable-drop-privileges"]),
    userspace("gotatun", "WireGuard in Rust, a fork of boringtun", "gotatun", &["-f", "--disable-drop-privileges"]),
    subject("nebula", "nebula with AES-256-GCM, its default", Kind::Nebula),
];

/// The names of [`ALL`].
pub const NAMES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut n = 0;
    while n < names.len() {
        if let Cow::Borrowed(name) = ALL[n].name {
            names[n] = name;
        }
        n += 1;
    }
    names
};

/// Any userspace WireGuard that is started as `PROGRAM -f INTERFACE` and configured by `wg`: "NAME=PATH".
///
/// # Errors
/// A sentence: the name is not a word of lower-case letters, digits and dashes, or there is no path.
pub fn rival(text: &str) -> std::result::Result<Subject, String> {
    let (name, path) = text.split_once('=').ok_or("a rival looks like name=path")?;
    let is_word = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty() || name.len() > 32 || !is_word(name) {
        return Err("a rival's name has 1 to 32 lower-case letters, digits and dashes".into());
    }
    if path.is_empty() {
        return Err("a rival needs a path".into());
    }
    let kind = Kind::Userspace { program: Cow::Owned(path.into()), arguments: &["-f"] };
    Ok(Subject { name: Cow::Owned(name.into()), about: Cow::Borrowed("a userspace WireGuard"), kind })
}

/// The subject with this name.
pub fn find(name: &str) -> Option<&'static Subject> {
    ALL.iter().find(|subject| subject.name == name)
}

/// A running subject that carries packets. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) processes: Vec<Process>,
}

impl Running {
    fn without_processes() -> Running {
        Running { processes: Vec::new() }
    }

    /// The name of a program that has ended, if one has.
    pub(super) fn has_died(&mut self) -> Option<String> {
        let dead = self.processes.iter_mut().find_map(|process| (!process.is_running()).then(|| process.complaint()));
        dead.map(|complaint| format!("it ended: {complaint}"))
    }
}

impl Subject {
    /// Whether it has a program that can be pinned to a core. In-kernel forwarding runs on the core where packets
    /// arrive.
    pub(super) fn can_be_pinned(&self) -> bool {
        !matches!(self.kind, Kind::Kernel | Kind::KernelWireguard)
    }

    /// Its program and version, if it has any, or why it cannot be measured here, as the end of a sentence.
    pub(super) fn look(&self, options: &Options) -> std::result::Result<Option<(String, String)>, String> {
        let tun = || match Path::new("/dev/net/tun").exists() {
            true => Ok(()),
            false => Err("there is no /dev/net/tun".to_owned()),
        };
        match &self.kind {
            Kind::Kernel | Kind::Forwarder { .. } => Ok(None),
            Kind::Penstock(_) => {
                installed("wg").map(drop).and(tun())?;
                let missing = || format!("{} is missing or does not run", options.penstock.display());
                let version = context::version(&options.penstock, &["--version"]).ok_or_else(missing)?;
                Ok(Some(("version of penstock".into(), version)))
            }
            Kind::Userspace { program, .. } => {
                let path = installed(program)?;
                installed("wg").map(drop).and(tun())?;
                Ok(Some(versioned(&self.name, &path, "--version")))
            }
            Kind::KernelWireguard => {
                installed("wg")?;
                let namespace = Namespace::try_new("look").map_err(|error| error.to_string())?;
                let made = namespace.try_ip("link add wg0 type wireguard");
                made.map(|_| None).map_err(|_| "this kernel has no WireGuard".into())
            }
            Kind::Nebula => {
                let path = installed("nebula")?;
                installed("nebula-cert").map(drop).and(tun())?;
                Ok(Some(versioned("nebula", &path, "-version")))
            }
        }
    }

    /// Starts it, and waits until a ping passes from host to host.
    pub(super) fn start(&self, topology: &Topology, options: &Options, stop: &AtomicBool) -> Result<Running> {
        let mut running = match &self.kind {
            Kind::Kernel => start_kernel(topology)?,
            Kind::Forwarder { poll } => start_forwarder(topology, options, *poll, stop)?,
            Kind::Penstock(settings) => start_penstock(topology, options, settings)?,
            Kind::Userspace { program, arguments } => rivals::start_userspace(topology, program, arguments, stop)?,
            Kind::KernelWireguard => {
                rivals::start_kernel_wireguard(topology)?;
                Running::without_processes()
            }
            Kind::Nebula => rivals::start_nebula(topology)?,
        };
        let ping = ["ping", "-n", "-c", "1", "-W", "1", HOSTS[1]];
        let mut died = None;
        let up = until(UP_WITHIN, stop, || {
            died = running.has_died();
            died.is_some() || topology.host(Side::A).try_run(&ping).is_ok()
        })?;
        match died {
            Some(complaint) => Err(super::Error::Failed(complaint)),
            None if !up => Err(super::Error::Failed(format!(
                "no ping came through within {} s: {}",
                UP_WITHIN.as_secs(),
                running.processes.first().map(Process::complaint).unwrap_or_default()
            ))),
            None => Ok(running),
        }
    }

    /// The modes that Penstock and the forwarder report as bound on the first gateway: "lan xdp native, wan udp".
    pub(super) fn bound(&self, topology: &Topology, running: &Running, options: &Options) -> Option<String> {
        match self.kind {
            Kind::Penstock(_) => {}
            Kind::Forwarder { .. } => {
                return Some(running.processes.first()?.line(READY)?.trim_end_matches(')').into());
            }
            _ => return None,
        }
        let (program, profile) = (options.penstock.to_str()?, topology.file(Side::A, "profile"));
        let words = [program, "status", "--json", "--profile", profile.to_str()?];
        let status: Value = serde_json::from_str(&beside(running.processes.first()?, &words).ok()?).ok()?;
        let mut ports: Vec<String> = status["Ports"].as_array()?.iter().map(describe_port).collect();
        ports.sort();
        ports.dedup();
        Some(ports.join(", "))
    }
}

fn installed(program: &str) -> std::result::Result<PathBuf, String> {
    process::find(program).ok_or_else(|| format!("{program} is not on this machine"))
}

fn versioned(name: &str, path: &Path, argument: &str) -> (String, String) {
    (format!("version of {name}"), context::version(path, &[argument]).unwrap_or("version unknown".into()))
}

fn describe_port(port: &Value) -> String {
    let text = |name: &str| port[name].as_str().unwrap_or("?").to_owned();
    let mode = port["XdpMode"].as_str().map(|mode| format!(" {mode}")).unwrap_or_default();
    let copies = match port["ZeroCopy"].as_bool() {
        Some(true) => " zero-copy",
        Some(false) => " copy",
        None => "",
    };
    format!("{} {}{mode}{copies}", text("Interface"), text("Kind"))
}

fn start_kernel(topology: &Topology) -> Result<Running> {
    for side in Side::BOTH {
        let (network, next_hop) = (NETWORKS[side.other().index()], WAN[side.other().index()]);
        topology.gateway(side).try_ip(&format!("route add {network} via {next_hop}"))?;
    }
    Ok(Running::without_processes())
}

fn start_forwarder(topology: &Topology, options: &Options, poll: bool, stop: &AtomicBool) -> Result<Running> {
    topology.let_hosts_fill_in_checksums()?;
    let bench = options.bench.to_string_lossy().into_owned();
    let start = |side, from: &str, to: &str, [out, next, back, origin]: [End; 4]| {
        let rewrites = [
            format!("--rewrite-src-mac={}", mac(out)),
            format!("--rewrite-dst-mac={}", mac(next)),
            format!("--return-src-mac={}", mac(back)),
            format!("--return-dst-mac={}", mac(origin)),
        ];
        let mut words = vec![bench.as_str(), "forward", "--from", from, "--to", to];
        words.extend(rewrites.iter().map(String::as_str));
        words.extend(poll.then_some("--poll"));
        topology.start(side, &words)
    };
    let a = start(Side::A, "lan", "wan", [End::WanA, End::WanB, End::LanA, End::HostA])?;
    let b = start(Side::B, "wan", "lan", [End::LanB, End::HostB, End::WanB, End::WanA])?;
    let mut running = Running { processes: vec![a, b] };
    running.processes.iter_mut().try_for_each(|process| process.wait_for(READY, UP_WITHIN, stop))?;
    Ok(running)
}

fn start_penstock(topology: &Topology, options: &Options, settings: &Settings) -> Result<Running> {
    let Settings { wan, lan, busy, suite } = *settings;
    if lan == "xdp" {
        topology.let_hosts_fill_in_checksums()?;
    }
    let keys = rivals::keys(topology)?;
    let mut processes = Vec::new();
    for side in Side::BOTH {
        let (own, other) = (side.index(), side.other().index());
        let profile = json!({
            "Name": format!("site-{}", side.letter()),
            "LocalPort": PORT,
            "BusyPoll": busy,
            "VirtualAddress": format!("100.64.0.{}", own + 1),
            "PrivateKeyFile": topology.file(side, "key"),
            "Wan": { "Interface": "wan", "Mode": wan },
            "Lan": { "Interfaces": ["lan"], "Mode": lan, "Subnets": [NETWORKS[own]] },
            "Peers": [{
                "Name": "peer",
                "PublicKey": keys[other],
                "Endpoint": format!("{}:{PORT}", WAN[other]),
                "AllowedIPs": [NETWORKS[other]],
                "Suite": suite,
                "PersistentKeepalive": 25
            }]
        });
        let profile = topology.write(side, "profile", &profile.to_string())?;
        // Its state is removed with the measurement.
        let state = format!("PENSTOCK_STATE_DIR={}", profile.parent().unwrap_or(&profile).display());
        let words =
            ["env", &state, &options.penstock.to_string_lossy(), "run", "--profile", &profile.to_string_lossy()];
        processes.push(topology.start(side, &words)?);
    }
    Ok(Running { processes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_has_a_name_and_a_path() {
        let found = rival("wireguard-go=/opt/new/wireguard-go").expect("a rival");
        assert_eq!(found.name, "wireguard-go");
        assert!(matches!(found.kind, Kind::Userspace { program, arguments: ["-f"] } if program.starts_with("/opt")));
        for bad in ["wireguard-go", "=path", "name=", "a b=/path", "Name=/path"] {
            assert!(rival(bad).is_err(), "{bad}");
        }
    }
}
