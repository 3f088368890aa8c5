//! The machine, its kernel, and files.

use std::path::Path;

use super::interface::may_use_xdp;
use super::{error, path, ports, set_config, warning, without_xdp};
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, KeyFile, Running};
use crate::key::is_exposed;
use crate::needs::{Version, missing_capabilities, oldest_kernel, spoils_trains, version};
use crate::profile::{DEFAULT_PATH, WanMode};

/// The kernels that can panic when AF_XDP sends frames that are copied (CVE-2025-40290): a count that belongs to the
/// completion queue lies in the packet's `cb`, where `ip_rcv` and others write over it. Commit 30f241fcf52a (6.17, and
/// 6.16.8) brought the fault, 0ebc27a4c67d (6.18, and 6.17.11) removed it; 6.16 ended before, with 6.16.12.
///
/// CVE-2025-37920, a race of generic XDP between sockets that share the memory pool of one queue (5.3 to 6.14.5), cannot
/// occur: the gateway has one socket a queue, and a second one is refused.
const AF_XDP_PANICS: [(Version, Version); 2] = [([6, 16, 8], [6, 16, 12]), ([6, 17, 0], [6, 17, 10])];
/// Share of the connection table, in percent, from which on new connections are at risk.
const CONNECTIONS_PERCENT: u64 = 80;
/// Memory for a queue's frames: 4096 of 4 kB.
const QUEUE_MEMORY: u64 = 4096 * 4096;

/// A profile with comments, where packages put it.
const EXAMPLE: &str = "/usr/share/doc/penstock/examples/Universe.profile";

/// The bit of CAP_IPC_LOCK (`capability.h`).
const IPC_LOCK: u32 = 14;

pub(super) fn profile_unsound(facts: &Facts) -> Option<Finding> {
    let file = &facts.file;
    let (subject, sentence) = (file.path.display().to_string(), file.error.as_ref()?);
    let sentence = sentence.strip_prefix(&format!("{subject}: ")).unwrap_or(sentence).trim_end_matches('.');
    let (file, editor) = (path(&file.path), "\"${EDITOR:-vi}\"");
    let command = match facts.file.status {
        Some(_) => format!("{editor} {file}"),
        None => format!("install -m 600 {EXAMPLE} {file} && {editor} {file}"),
    };
    error(&subject, sentence, command)
}

pub(super) fn profile_writable(facts: &Facts) -> Option<Finding> {
    let (mode, owner) = facts.file.status?;
    let subject = facts.file.path.display().to_string();
    if owner != 0 && facts.user.id == 0 {
        let sentence = format!("it belongs to user {owner}, who can change what the gateway does");
        return error(subject, sentence, format!("chown root: {}", path(&facts.file.path)));
    }
    if mode & 0o022 == 0 {
        return None;
    }
    let sentence = format!("its mode {mode:04o} lets users other than its owner change the profile");
    error(subject, sentence, format!("chmod go-w {}", path(&facts.file.path)))
}

pub(super) fn closed_to_service(facts: &Facts, closed: &Path, owner: u32) -> Option<Finding> {
    // A gateway that systemd does not run keeps all of root's capabilities.
    if facts.file.path.parent() != Path::new(DEFAULT_PATH).parent() {
        return None;
    }
    let sentence = "the service runs as root without CAP_DAC_OVERRIDE, so that it cannot read this";
    let command = match owner {
        0 => format!("chmod u+rX {}", path(closed)),
        _ if facts.file.path == closed => return None,
        _ => format!("chown root: {}", path(closed)),
    };
    error(closed.display().to_string(), sentence, command)
}

pub(super) fn key_unusable(facts: &Facts, key: &KeyFile) -> Option<Finding> {
    let subject = key.path.display().to_string();
    let Some((mode, owner)) = key.status else {
        let private = facts.profile.as_ref().is_some_and(|profile| profile.private_key_file == key.path);
        let install = format!("install -m 600 /dev/stdin {}", path(&key.path));
        let sentence = "the profile names this key file, but it does not exist";
        return match (private, &facts.gateway) {
            // A preshared key is the one that the peer has.
            (false, _) => error(subject, sentence, install),
            // It has its key from elsewhere, such as a credential of systemd; `gather` lists the file as not seen.
            (true, Running::Yes(_)) => None,
            (true, _) => {
                let sentence = format!("{sentence}; the service does without if it has the key as a credential");
                error(subject, sentence, format!("penstock genkey | {install}"))
            }
        };
    };
    if owner != 0 && facts.user.id == 0 {
        let command = format!("chown root: {}", path(&key.path));
        return error(subject, format!("it belongs to user {owner}, and keys must belong to root"), command);
    }
    if !is_exposed(mode, key.credential) {
        return None;
    }
    let sentence = format!("its mode {mode:04o} lets users other than its owner use the key");
    error(subject, sentence, format!("chmod 600 {}", path(&key.path)))
}

pub(super) fn kernel_too_old(facts: &Facts) -> Option<Finding> {
    let version = version(&facts.host.release)?;
    if version < oldest_kernel(false) {
        let sentence = format!("Linux {} is too old, Penstock needs 5.0 or newer", facts.host.release);
        return error("kernel", sentence, "apt-get update && apt-get full-upgrade && reboot");
    }
    let profile = facts.profile.as_ref().filter(|profile| profile.demands_xdp())?;
    if version >= oldest_kernel(true) {
        return None;
    }
    let sentence = format!("Linux {} is too old for mode xdp, which needs 5.18 or newer", facts.host.release);
    error("kernel", sentence, set_config(facts, without_xdp(profile)))
}

pub(super) fn kernel_lacks(facts: &Facts) -> Option<Finding> {
    if facts.host.tun == Some(false) {
        return error("kernel", "there are no TUN devices (CONFIG_TUN, /dev/net/tun)", "modprobe tun");
    }
    let profile = facts.profile.as_ref().filter(|profile| profile.demands_xdp())?;
    let lacking = [(facts.host.xdp_sockets, "CONFIG_XDP_SOCKETS"), (facts.host.bpf, "CONFIG_BPF_SYSCALL")];
    let (_, option) = lacking.into_iter().find(|(has, _)| *has == Some(false))?;
    let sentence = format!("it was built without {option}, which mode xdp needs");
    error("kernel", sentence, set_config(facts, without_xdp(profile)))
}

pub(super) fn udp_segmentation_spoilt(facts: &Facts) -> Option<Finding> {
    facts.profile.as_ref().filter(|profile| profile.udp_gso && profile.wan.mode != WanMode::Xdp)?;
    if !spoils_trains(version(&facts.host.release)?) {
        return None;
    }
    let sentence = format!(
        "UDP segmentation offload loses packets with some drivers on Linux {} (7.0 to 7.1.4): ping works, TCP crawls",
        facts.host.release
    );
    warning("kernel", sentence, set_config(facts, "UdpSegmentation=false"))
}

pub(super) fn af_xdp_panics(facts: &Facts) -> Option<Finding> {
    let version = version(&facts.host.release)?;
    AF_XDP_PANICS.iter().find(|(first, last)| (*first..=*last).contains(&version))?;
    let profile = facts.profile.as_ref()?;
    let mut used = ports(profile)
        .into_iter()
        .filter(|port| facts.links.get(port.name).map_or(port.demands_xdp, |link| may_use_xdp(port, link)));
    let first = used.next()?;
    let modes = match (first.wan, used.next()) {
        (true, None) => "Wan.Mode=udp",
        (true, Some(_)) => "Wan.Mode=udp Lan.Mode=tun",
        (false, _) => "Lan.Mode=tun",
    };
    let sentence = format!(
        "Linux {} can panic while AF_XDP sends (CVE-2025-40290, fixed in 6.17.11), unless your distribution has \
         fixed it",
        facts.host.release
    );
    warning("kernel", sentence, set_config(facts, modes))
}

pub(super) fn capabilities_missing(facts: &Facts) -> Option<Finding> {
    // Another user's capabilities are not those that the gateway will have.
    let held = facts.user.capabilities.filter(|_| facts.user.id == 0)?;
    let profile = facts.profile.as_ref()?;
    let missing = missing_capabilities(held, profile.demands_xdp());
    if missing.is_empty() {
        return None;
    }
    let sentence = format!(
        "root lacks {} in this session or container, and the gateway does not run without it",
        missing.join(" and ")
    );
    let run = format!("systemd-run \"$(command -v penstock)\" run --profile {}", path(&facts.file.path));
    error("capabilities", sentence, run)
}

pub(super) fn locked_memory_short(facts: &Facts) -> Option<Finding> {
    let limit = facts.user.locked_memory.filter(|_| facts.user.id == 0)?;
    let profile = facts.profile.as_ref().filter(|profile| profile.demands_xdp())?;
    if facts.user.capabilities? & (1 << IPC_LOCK) != 0 {
        return None;
    }
    let queues = profile.lan.interfaces.len() as u64 + 1;
    let needed = queues * QUEUE_MEMORY;
    if limit >= needed {
        return None;
    }
    let sentence = format!("{limit} bytes may be locked, and AF_XDP needs at least {needed}");
    error("locked memory", sentence, "ulimit -l unlimited")
}

pub(super) fn clock_before_build(facts: &Facts) -> Option<Finding> {
    let (now, built) = (facts.host.now?, facts.host.built?);
    if now >= built {
        return None;
    }
    let sentence =
        "it is set to a time before this program was built, so peers that have seen a later time refuse handshakes";
    error("clock", sentence, synchronise(facts))
}

pub(super) fn clock_unsynchronised(facts: &Facts) -> Option<Finding> {
    if facts.host.synchronised? {
        return None;
    }
    let sentence =
        "it is not synchronised, and if it jumps back, peers refuse handshakes until the old time is reached again";
    warning("clock", sentence, synchronise(facts))
}

/// The command that has the clock synchronised.
fn synchronise(facts: &Facts) -> &'static str {
    match facts.host.has_time_service {
        Some(false) => "apt-get install systemd-timesyncd",
        _ => "timedatectl set-ntp true",
    }
}

pub(super) fn connections_near_limit(facts: &Facts) -> Option<Finding> {
    let (count, most) = facts.host.connections?;
    if most == 0 || count.saturating_mul(100) < most.saturating_mul(CONNECTIONS_PERCENT) {
        return None;
    }
    let sentence =
        format!("{count} of {most} entries are in use; when it is full, packets of new connections are dropped");
    warning("conntrack", sentence, format!("sysctl -w net.netfilter.nf_conntrack_max={}", most.saturating_mul(2)))
}

pub(super) fn networkd_removes_rules(facts: &Facts) -> Option<Finding> {
    if facts.host.networkd_leaves_alone? {
        return None;
    }
    warning(
        "systemd-networkd",
        "it removes routes and rules that it did not make, the gateway's too, whenever it is restarted",
        "mkdir -p /etc/systemd/networkd.conf.d && printf \
         '[Network]\\nManageForeignRoutes=no\\nManageForeignRoutingPolicyRules=no\\n' \
         > /etc/systemd/networkd.conf.d/penstock.conf && systemctl restart systemd-networkd",
    )
}
