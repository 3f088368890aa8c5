//! Where a report's files come from: the gateway, files of the system, and commands that only show something.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Entry;
use crate::control_socket::{self, Answer};
use crate::coordinator::Cached;
use crate::doctor;
use crate::gateway::Absent;
use crate::history::Wanted;
use crate::profile::{Environment, Name, Profile};
use crate::state;

/// How many bytes of one file or of a command's output are kept.
const TEXT_LIMIT: u64 = 4 << 20;
/// How many bytes of a log are kept, from its end.
const LOG_LIMIT: u64 = 2 << 20;
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between checks whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// Kernel settings that matter to a gateway, under /proc/sys, with a star for any one component.
const SETTINGS: [&str; 14] = [
    "kernel/osrelease",
    "kernel/unprivileged_bpf_disabled",
    "net/core/bpf_jit_enable",
    "net/core/busy_poll",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/forwarding",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/accept_ra",
    "net/netfilter/nf_conntrack_max",
];

/// Asks, reads and runs everything. What is not available becomes a sentence in its file.
#[must_use]
pub fn gather(path: &Path, name: &Name, profile: &Result<Profile, String>, environment: &Environment) -> Vec<Entry> {
    // Those of the last start, if the profile does not say.
    let gateway = profile.as_ref().ok().map(Absent::of).or_else(|| Absent::with_guard(path));
    let interfaces: Vec<&str> = gateway.iter().flat_map(Absent::interfaces).collect();
    let entry = |name, what, text| Entry { name, what, text };
    let half_a_day = control_socket::Command::History(Wanted { seconds: 60, points: usize::MAX });
    vec![
        entry("status.json", "What `penstock status --json` says.", ask(name, control_socket::Command::Status)),
        entry("history.json", "Traffic, drops and load of the last twelve hours, by minutes.", ask(name, half_a_day)),
        entry("netcheck.json", "What the gateway knows of its network.", ask(name, control_socket::Command::Netcheck)),
        entry(
            "doctor.json",
            "What `penstock doctor --json` finds.",
            json(&doctor::Report::of(&doctor::gather(path, environment))),
        ),
        entry("profile.json", "The profile in force, with the names of key files but no keys.", document(profile)),
        entry("map.json", "What the coordinator said last.", map(name, profile)),
        entry("journal.txt", "The gateway's log, if systemd runs it: its end.", journal(path)),
        entry("log.txt", "The gateway's log, if `penstock start` made it a process: its end.", log(name)),
        entry("system.txt", "Kernel, distribution, processor, memory, interrupts.", system()),
        entry("links.txt", "Network interfaces and their addresses.", run(&["ip -d -s link", "ip address"])),
        entry("routes.txt", "Routing tables, rules and neighbours.", routes()),
        entry("nftables.txt", "The packet filter.", run(&["nft list ruleset"])),
        entry("sysctls.txt", "Settings of the kernel that have to do with a gateway.", settings()),
        entry("ethtool.txt", "Drivers, offloads, queues and counters of the interfaces.", ethtool(&interfaces)),
        entry("sockets.txt", "Which programs listen at which UDP ports.", run(&["ss -uapn"])),
    ]
}

fn ask(name: &Name, command: control_socket::Command) -> String {
    match control_socket::ask(&control_socket::directory(), name, command) {
        Ok(Answer::Status(status)) => json(&*status),
        Ok(Answer::History(history)) => json(&*history),
        Ok(Answer::Netcheck(report)) => json(&*report),
        Ok(Answer::Error(sentence)) => sentence + "\n",
        Ok(_) => "the gateway gave an unexpected answer\n".to_owned(),
        Err(error) => format!("{error}\n"),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string()) + "\n"
}

fn document(profile: &Result<Profile, String>) -> String {
    match profile {
        Ok(profile) => json(&profile.document()),
        Err(sentence) => format!("{sentence}\n"),
    }
}

fn map(name: &Name, profile: &Result<Profile, String>) -> String {
    let Ok(profile) = profile else { return "not without a valid profile\n".to_owned() };
    let Some(coordinator) = &profile.coordinator else { return "there is no coordinator\n".to_owned() };
    let file = state::directory().join(format!("{name}.map"));
    match Cached::read(&file, &profile.private_key, &coordinator.url) {
        Ok(Some(cached)) => json(&cached),
        Ok(None) => format!("there is no {}\n", file.display()),
        Err(error) => format!("{}: {error}\n", file.display()),
    }
}

fn journal(profile: &Path) -> String {
    let Some(instance) = profile.file_stem().and_then(|stem| stem.to_str()) else { return String::new() };
    let lines = format!("journalctl --no-pager --output short-iso --lines 20000 --unit penstock@{instance}.service");
    let text = run(&[&lines]);
    // The end is what counts.
    let from = text.len().saturating_sub(LOG_LIMIT as usize);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

fn log(name: &Name) -> String {
    let directory = control_socket::directory();
    let files = [directory.join(format!("{name}.log.old")), directory.join(format!("{name}.log"))];
    files.iter().map(|file| format!("== {}\n{}", file.display(), end_of(file))).collect()
}

fn end_of(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT)))?;
        let mut bytes = Vec::new();
        file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("{error}\n"))
}

fn system() -> String {
    let files = ["/proc/version", "/etc/os-release", "/proc/cmdline", "/proc/meminfo", "/proc/interrupts"];
    let mut text: String = files.iter().map(|file| shown(Path::new(file))).collect();
    text += &run(&["lscpu", "uptime"]);
    text
}

fn shown(path: &Path) -> String {
    format!("== {}\n{}\n", path.display(), contents_of(path))
}

fn contents_of(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(TEXT_LIMIT).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        Err(error) => error.to_string(),
    }
}

fn routes() -> String {
    run(&["ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all", "ip neighbour"])
}

fn settings() -> String {
    let mut text = String::new();
    for setting in SETTINGS {
        for path in matching(Path::new("/proc/sys"), setting) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}: {}", path.display(), contents_of(&path));
        }
    }
    text
}

/// The files below `root` that match a pattern.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once("/*/") else { return vec![root.join(pattern)] };
    let entries = std::fs::read_dir(root.join(before)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path().join(after)).collect();
    found.sort();
    found
}

fn ethtool(interfaces: &[&str]) -> String {
    let options = ["-i", "", "-k", "-l", "-g", "-c", "-n", "-S"];
    let lines = interfaces.iter().flat_map(|name| options.map(|option| format!("ethtool {option} {name}")));
    lines.map(|line| run(&[&line])).collect()
}

/// The outputs of commands, each a program with its arguments, including what went wrong.
fn run(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("== {line}\n{}\n", output(line))).collect()
}

fn output(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).env("LC_ALL", "C").stdin(Stdio::null());
    let mut run = || {
        // Files, unlike pipes, keep accepting output beyond the limit, so that the command can end.
        let (mut out, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut child = command.stdout(out.try_clone()?).stderr(errors.try_clone()?).spawn()?;
        let deadline = Instant::now() + PATIENCE;
        let mut ended = child.try_wait()?;
        while ended.is_none() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
            ended = child.try_wait()?;
        }
        if ended.is_none() {
            child.kill()?;
            child.wait()?;
        }
        let mut bytes = Vec::new();
        for file in [&mut out, &mut errors] {
            file.rewind()?;
            file.take(TEXT_LIMIT).read_to_end(&mut bytes)?;
        }
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        match ended {
            Some(status) if status.success() => {}
            Some(status) => text += &format!("({status})\n"),
            None => text += &format!("(it did not end within {} s)\n", PATIENCE.as_secs()),
        }
        Ok::<_, std::io::Error>(text)
    };
    run().unwrap_or_else(|error| format!("{error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_missing_fails_or_hangs_is_said() {
        assert_eq!(output("echo a  b"), "a b\n");
        assert!(output("no-such-program-here").contains("No such file"));
        assert!(output("false").contains("exit status: 1"));
        let begun = Instant::now();
        assert!(output("sleep 60").contains("did not end"));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn settings_are_found_by_pattern() {
        let text = settings();
        assert!(text.contains("/proc/sys/net/ipv4/conf/lo/rp_filter: "), "{text}");
        assert!(text.contains("/proc/sys/kernel/osrelease: "), "{text}");
    }
}
