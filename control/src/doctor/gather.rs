//! The facts, as the kernel, the file system and the running gateway report them. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::facts::{Facts, Host, KeyFile, Link, PortOwner, ProfileFile, Running, User, overlap};
use super::{clock, placement, spread};
use crate::bypass;
use crate::control_socket::{self, Answer, AskError, Command, Lock};
use crate::ground::PROTOCOL;
use crate::key::is_credential;
use crate::needs::effective_capabilities;
use crate::netlink::{Generic, Interface, MAIN_TABLE, Netlink, RouteKind};
use crate::profile::{Environment, LocalPort, Profile, read_file};

/// Bytes read of any file under /proc and of configuration.
const FILE_LIMIT: u64 = 4 << 20;
/// Entries of a directory that are looked at.
pub(super) const SEARCH_LIMIT: usize = 16_384;
/// Routes of other tables that are kept.
const ROUTE_LIMIT: usize = 65_536;
/// Where configuration of systemd-networkd is, the last of which counts.
const NETWORKD: [&str; 3] = ["/usr/lib/systemd", "/run/systemd", "/etc/systemd"];

/// Where programs that synchronise the clock say so.
const TIME_SERVICES: [&str; 4] = [
    "/etc/systemd/ntp-units.d",
    "/run/systemd/ntp-units.d",
    "/usr/local/lib/systemd/ntp-units.d",
    "/usr/lib/systemd/ntp-units.d",
];

/// Gathers everything about the machine and the gateway of this profile, to which this environment is given.
#[must_use]
pub fn gather(path: &Path, environment: &Environment) -> Facts {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut facts = Facts { user: user(), host: host(), ..Facts::default() };
    facts.file.path = path;
    if facts.user.id != 0 {
        facts.unseen.push("whether the gateway has the capabilities it needs, because this is not root".to_owned());
    }
    read_profile(&mut facts, environment);
    let Some(profile) = facts.profile.clone() else {
        facts.unseen.push("anything about interfaces, routes and ports, because the profile is not known".to_owned());
        return facts;
    };
    ask_gateway(&mut facts, &profile);
    let lacks = |key: &KeyFile| key.path == profile.private_key_file && key.status.is_none();
    if matches!(facts.gateway, Running::Yes(_)) && facts.keys.iter().any(lacks) {
        let file = profile.private_key_file.display();
        facts.unseen.push(format!("the private key, because {file} does not exist: the running gateway has one"));
    }
    if let Err(error) = ask_kernel(&mut facts, &profile) {
        facts.unseen.push(format!("interfaces and routes, because the kernel does not report them: {error}"));
    }
    if let (Running::No, LocalPort::Pinned(port)) = (&facts.gateway, profile.local_port) {
        facts.port_owner = port_owner(port);
    }
    facts
}

fn user() -> User {
    let status = text("/proc/self/status").unwrap_or_default();
    let limits = text("/proc/self/limits").unwrap_or_default();
    let locked = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    User {
        id: rustix::process::geteuid().as_raw(),
        capabilities: effective_capabilities(&status),
        locked_memory: locked.and_then(|line| line.split_whitespace().next()?.parse().ok()),
    }
}

fn host() -> Host {
    let number = |name: &str| text(Path::new("/proc/sys/net/netfilter").join(name))?.trim().parse().ok();
    let protocols = text("/proc/net/protocols");
    Host {
        release: text("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        xdp_sockets: protocols.map(|all| all.lines().any(|line| line.split_whitespace().next() == Some("XDP"))),
        bpf: Some(Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists()),
        tun: Some(Path::new("/dev/net/tun").exists()),
        connections: number("nf_conntrack_count").zip(number("nf_conntrack_max")),
        synchronised: clock::is_synchronised(),
        now: Some(SystemTime::now()),
        built: fs::metadata("/proc/self/exe").and_then(|file| file.modified()).ok(),
        networkd_leaves_alone: networkd_leaves_alone(),
        has_time_service: has_time_service(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        nodes: placement::nodes(),
    }
}

/// Reads the profile, and of its keys only who may read them.
fn read_profile(facts: &mut Facts, environment: &Environment) {
    let ProfileFile { path, error, status } = &mut facts.file;
    *status = fs::metadata(&*path).ok().map(|file| (file.mode() & 0o7777, file.uid()));
    facts.closed.extend(closed_to_root(path));
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    // A text that has the form of a key, but is not in use anywhere.
    let stand_in = BASE64_STANDARD.encode([1; 32]);
    let parsed = read_file(path).map_err(|error| (error.to_string(), true)).and_then(|text| {
        let mut read_key = |file: &Path| {
            files.insert(file.to_owned());
            Ok(Zeroizing::new(stand_in.clone()))
        };
        Profile::parse(&text, path, environment, &mut read_key).map_err(|error| (error.to_string(), false))
    });
    match parsed {
        Ok(profile) => facts.profile = Some(profile),
        Err((sentence, true)) if facts.user.id != 0 && path.try_exists().unwrap_or(true) => {
            facts.unseen.push(format!("the profile, because it cannot be read: {sentence}"));
        }
        Err((sentence, _)) => *error = Some(sentence),
    }
    for path in files {
        facts.closed.extend(path.parent().and_then(closed_to_root));
        match fs::metadata(&path) {
            Ok(file) => {
                let (status, credential) = (Some((file.mode() & 0o7777, file.uid())), is_credential(&path));
                facts.keys.push(KeyFile { path, status, credential });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                facts.keys.push(KeyFile { path, status: None, credential: false });
            }
            Err(error) => facts.unseen.push(format!("the key file {}: {error}", path.display())),
        }
    }
}

/// The first on the way to this file or directory that root cannot pass or read without capabilities, and its owner.
fn closed_to_root(path: &Path) -> Option<(PathBuf, u32)> {
    let path = path.canonicalize().ok()?;
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    way.into_iter().find_map(|path| {
        let metadata = fs::metadata(path).ok()?;
        let needed = if metadata.is_dir() { 1 } else { 4 };
        let class = match (metadata.uid(), metadata.gid()) {
            (0, _) => 6,
            (_, 0) => 3,
            _ => 0,
        };
        (metadata.mode() >> class & needed == 0).then(|| (path.to_owned(), metadata.uid()))
    })
}

fn ask_gateway(facts: &mut Facts, profile: &Profile) {
    let directory = control_socket::directory();
    match control_socket::ask(&directory, &profile.name, Command::Status) {
        Ok(Answer::Status(status)) => {
            facts.worker_cpus = placement::worker_cpus(status.pid);
            facts.gateway = Running::Yes(status);
        }
        Err(AskError::NotRunning) if !Lock::is_taken(&directory, &profile.name) => facts.gateway = Running::No,
        Ok(_) | Err(AskError::NotRunning | AskError::Gone) => {
            facts.unseen.push("the gateway, because it is starting or stopping".to_owned());
        }
        Err(error) => facts.unseen.push(format!("the gateway, because it cannot be asked: {error}")),
    }
}

fn ask_kernel(facts: &mut Facts, profile: &Profile) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut generic = Generic::open()?;
    let interfaces = netlink.interfaces()?;
    let mut programs = netlink.xdp_programs()?;
    let names: BTreeMap<u32, &str> = interfaces.iter().map(|i| (i.index, i.name.as_str())).collect();
    let ours = |name: &str| {
        name == profile.name.as_str()
            || name == profile.wan.interface
            || profile.lan.interfaces.iter().any(|l| l == name)
    };
    for interface in interfaces.iter().filter(|interface| ours(&interface.name)) {
        let link = link(interface, programs.remove(&interface.index), &mut generic);
        facts.links.insert(interface.name.clone(), link);
    }
    let wan = facts.links.get(&profile.wan.interface).map(|link| link.interface.index);
    let on_wan = netlink.addresses()?.into_iter().filter(|address| Some(address.interface) == wan);
    facts.wan_addresses = on_wan.map(|address| address.address.into()).collect();
    let of_ours: Vec<Interface> = interfaces.iter().filter(|interface| ours(&interface.name)).cloned().collect();
    facts.firewall = bypass::read(&of_ours);
    facts.unseen.extend(facts.firewall.unread().iter().cloned());

    let is_default = |route: &crate::netlink::Route| {
        route.table == MAIN_TABLE && route.destination.prefix_len() == 0 && route.destination.addr().is_ipv4()
    };
    let defaults = netlink
        .routes_that(|route| is_default(route) && route.kind == RouteKind::Unicast && route.protocol != PROTOCOL)?;
    let best = defaults.iter().min_by_key(|route| route.metric).and_then(|route| route.interface);
    facts.default_route = best.and_then(|index| names.get(&index)).map(|name| (*name).to_owned());

    facts.rules = netlink.every_rule()?.into_iter().filter(|rule| rule.protocol != PROTOCOL).collect();
    let tables: BTreeSet<u32> = facts.rules.iter().filter_map(|rule| rule.table).collect();
    let remote = facts.remote();
    let mut kept = 0;
    facts.routes = netlink.routes_that(|route| {
        let matters = kept < ROUTE_LIMIT
            && tables.contains(&route.table)
            && remote.iter().any(|prefix| overlap(prefix, &route.destination));
        kept += usize::from(matters);
        matters
    })?;
    Ok(())
}

fn link(interface: &Interface, xdp: Option<crate::netlink::XdpAttachment>, generic: &mut Generic) -> Link {
    let setting = |of: &str, name: &str| -> Option<u8> {
        let path: PathBuf = ["/proc/sys/net/ipv4/conf", of, name].iter().collect();
        text(path)?.trim().parse().ok()
    };
    let own = setting(&interface.name, "rp_filter");
    Link {
        xdp,
        offloads: generic.offloads(interface.index).ok(),
        channels: generic.channels(interface.index).ok(),
        xdp_features: generic.xdp_features(interface.index).ok(),
        rp_filter: own.max(setting("all", "rp_filter")),
        forwarding: setting(&interface.name, "forwarding").map(|value| value != 0),
        spread: spread::of(&interface.name),
        interrupts: placement::interrupts(&interface.name),
        node: placement::node_of(&interface.name),
        interface: interface.clone(),
    }
}

/// `None` if systemd-networkd does not run.
fn networkd_leaves_alone() -> Option<bool> {
    if !Path::new("/run/systemd/netif/state").exists() {
        return None;
    }
    let mut files: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    let mut main = String::new();
    for directory in NETWORKD.map(Path::new) {
        if let Some(file) = text(directory.join("networkd.conf")) {
            main = file;
        }
        let entries = fs::read_dir(directory.join("networkd.conf.d")).into_iter().flatten().flatten();
        files.extend(entries.take(SEARCH_LIMIT).map(|entry| (entry.file_name(), entry.path())));
    }
    files.retain(|name, _| Path::new(name).extension().is_some_and(|extension| extension == "conf"));
    let all = std::iter::once(main).chain(files.values().filter_map(text));
    Some(leaves_alone(&all.collect::<Vec<_>>().join("\n")))
}

/// Whether systemd knows a program that synchronises the clock, so that `timedatectl set-ntp` works (systemd-timedated(8)).
fn has_time_service() -> Option<bool> {
    if !sd_notify::booted().ok()? {
        return None;
    }
    let directories = TIME_SERVICES.iter().filter_map(|directory| fs::read_dir(directory).ok());
    let is_list = |entry: fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "list");
    Some(directories.flat_map(|entries| entries.flatten().take(SEARCH_LIMIT)).any(is_list))
}

/// Whether the settings, of which the last of a kind counts, leave other programs' routes and rules alone.
fn leaves_alone(settings: &str) -> bool {
    ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"].iter().all(|key| {
        let mut values = settings.lines().filter_map(|line| line.split_once('=')).filter(|(k, _)| k.trim() == *key);
        values.next_back().is_some_and(|(_, value)| matches!(value.trim(), "no" | "false" | "off" | "0"))
    })
}

fn port_owner(port: u16) -> Option<PortOwner> {
    let found = ["/proc/net/udp", "/proc/net/udp6"].iter().filter_map(text).find_map(|table| bound(&table, port));
    let (address, inode) = found?;
    Some(PortOwner { address, process: holder(inode) })
}

/// The first socket on the port in a table of /proc/net: its address and inode.
fn bound(table: &str, port: u16) -> Option<(IpAddr, u64)> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, at) = fields.get(1)?.split_once(':')?;
        (u16::from_str_radix(at, 16).ok()? == port).then_some(())?;
        Some((hex_address(address)?, fields.get(9)?.parse().ok()?))
    })
}

/// Words of 32 bits, each as a number of this machine's byte order.
fn hex_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).into())
        }
        _ => None,
    }
}

/// The process that has the socket open, as far as we may see it.
fn holder(inode: u64) -> Option<(u32, String)> {
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten().take(SEARCH_LIMIT);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find_map(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().take(SEARCH_LIMIT);
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target.as_os_str() == socket.as_str()).then_some(())?;
        Some((pid, text(format!("/proc/{pid}/comm"))?.trim().to_owned()))
    })
}

/// A file's text, within the limit.
pub(super) fn text(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_port_is_found_here() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(address).unwrap();
            let local = socket.local_addr().unwrap();
            let owner = port_owner(local.port()).unwrap();
            assert_eq!((owner.address, owner.process.unwrap().0), (local.ip(), std::process::id()));
        }
    }

    #[test]
    fn cut_tables_of_sockets_name_nobody() {
        let table = "  sl  local_address rem_address   st\n 12: 0100007F:B7FC 00000000:0000 07 0 0 0 0 4711\n";
        assert_eq!(bound(table, 0xb7fc), None, "too few fields");
        assert_eq!(hex_address("0100007"), None);
        assert_eq!(hex_address("\u{e9}\u{e9}\u{e9}\u{e9}"), None);
    }

    #[test]
    fn networkd_leaves_alone_what_both_settings_name() {
        let both = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules = false\n";
        assert!(leaves_alone(both));
        assert!(!leaves_alone("[Network]\nManageForeignRoutes=no\n"));
        assert!(!leaves_alone(&format!("{both}ManageForeignRoutes=yes\n")));
        assert!(!leaves_alone(&both.replace("Manage", "#Manage")));
    }
}
