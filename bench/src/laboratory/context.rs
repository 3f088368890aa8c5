//! Where, when and how something was measured: what a reader needs to judge a figure or to reproduce it. Everything is
//! looked up when requested; what cannot be found out is reported as unknown, never left out.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use time::OffsetDateTime;

use crate::traffic::interface::Interface;

/// The longest accepted version; a program that prints more has probably printed its manual.
const VERSION_LEN: usize = 100;

/// The lines with which every report begins: command line, time, machine, kernel, load. Call this before the
/// measurement, or the load includes it.
pub fn machine() -> Vec<(String, String)> {
    let lines = [
        ("command line", command_line()),
        ("time", utc(OffsetDateTime::now_utc())),
        ("machine", format!("{} × {}, {} memory", cpus(), cpu_model(), memory())),
        ("kernel", kernel()),
        ("load before (1, 5, 15 min)", load()),
        ("frequency governor", governor()),
        (
            "penstock-bench",
            format!("{}{}", env!("CARGO_PKG_VERSION"), if cfg!(debug_assertions) { ", debug build" } else { "" }),
        ),
    ];
    lines.map(|(name, text)| (name.into(), text)).into()
}

/// One line about an interface: driver, driver version, bus, queues, MTU.
pub fn interface(interface: &Interface) -> (String, String) {
    (
        format!("interface {}", interface.name),
        interface.describe().unwrap_or_else(|error| format!("unknown: {error:#}")),
    )
}

/// The first line that a program prints when asked for its version by `arguments`; `None` if it cannot be started or
/// prints nothing.
pub fn version(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let printed = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&printed);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(VERSION_LEN).collect())
}

/// "2026-11-23 14:05 UTC".
fn utc(time: OffsetDateTime) -> String {
    let (year, month, day) = time.to_calendar_date();
    format!("{year}-{:02}-{day:02} {:02}:{:02} UTC", u8::from(month), time.hour(), time.minute())
}

fn command_line() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map_or(program.clone(), |name| name.to_string_lossy().into_owned());
    std::iter::once(name).chain(words.map(|word| quoted(&word))).collect::<Vec<_>>().join(" ")
}

/// A word as a shell would need it.
fn quoted(word: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_safe) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

fn cpu_model() -> String {
    // On x86 the name of the model; other architectures have at most numbers.
    proc_value("/proc/cpuinfo", "model name")
        .or_else(|| Some(format!("CPU part {}", proc_value("/proc/cpuinfo", "CPU part")?)))
        .unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH))
}

fn memory() -> String {
    let kib = proc_value("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    kib.map_or("unknown".into(), |kib| format!("{:.1} GiB", kib / f64::from(1 << 20)))
}

/// The value of the first line "name : value".
fn proc_value(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| found.trim() == name)?.1;
    Some(value.trim().into())
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or("unknown".into());
    format!("Linux {} {}", release.trim(), std::env::consts::ARCH)
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    match text.split(' ').take(3).collect::<Vec<_>>().join(" ") {
        empty if empty.is_empty() => "unknown".into(),
        load => load,
    }
}

fn governor() -> String {
    match fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        Ok(governor) => governor.trim().into(),
        Err(_) => "none: a virtual machine's, or fixed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_it_is() {
        let lines = machine();
        let text = |name: &str| &lines.iter().find(|(found, _)| found == name).expect(name).1;
        assert!(text("kernel").starts_with("Linux ") && !text("kernel").contains("unknown"));
        assert!(text("machine").contains("GiB memory"), "{}", text("machine"));
        assert_eq!(text("load before (1, 5, 15 min)").split(' ').count(), 3);
    }

    #[test]
    fn times_are_written_with_all_digits() {
        let written = OffsetDateTime::from_unix_timestamp(951_827_700).map(utc);
        assert_eq!(written.as_deref(), Ok("2000-02-29 12:35 UTC"));
    }

    #[test]
    fn words_are_quoted_as_a_shell_needs_them() {
        assert_eq!(["--rounds=5", "", "a b", "it's"].map(quoted), ["--rounds=5", "''", "'a b'", r"'it'\''s'"]);
    }

    #[test]
    fn a_version_is_one_line() {
        let printed = version(Path::new("sh"), &["-c", "echo; echo ' tool 1.2 '; echo more"]);
        assert_eq!(printed.as_deref(), Some("tool 1.2"));
        assert_eq!(version(Path::new("sh"), &["-c", "echo tool 1.3 >&2"]).as_deref(), Some("tool 1.3"));
        assert_eq!(version(Path::new("/no/such/program"), &[]), None);
    }
}
