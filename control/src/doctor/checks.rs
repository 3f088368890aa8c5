//! The checks: each a pure function of the facts. An unknown fact causes no finding.

mod firewall;
mod host;
mod interface;
mod network;
mod placement;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::facts::Facts;
use super::{Finding, Severity};
use crate::profile::{LanMode, Profile, WanMode};

/// A check of the machine, the profile or the routing.
type Check = fn(&Facts) -> Option<Finding>;
/// A check of one of the profile's interfaces.
type PortCheck = fn(&Facts, &Profile, &Port<'_>) -> Option<Finding>;

const CHECKS: [Check; 16] = [
    host::profile_unsound,
    host::profile_writable,
    host::kernel_too_old,
    host::kernel_lacks,
    host::udp_segmentation_spoilt,
    host::af_xdp_panics,
    host::capabilities_missing,
    host::locked_memory_short,
    host::clock_before_build,
    host::clock_unsynchronised,
    host::connections_near_limit,
    host::networkd_removes_rules,
    network::port_taken,
    network::tunnel_filters_strictly,
    network::wan_filters_strictly,
    firewall::keeps_calls_out,
];

const PORT_CHECKS: [PortCheck; 16] = [
    interface::missing,
    interface::down,
    interface::without_native_xdp,
    interface::foreign_program,
    interface::large_receive,
    interface::hardware_gro,
    interface::merged_below,
    interface::few_queues,
    interface::queues_without_packets,
    interface::udp_hashed_by_address,
    interface::small_mtu,
    interface::forwarding_off,
    firewall::keeps_the_lan_apart,
    firewall::is_bypassed,
    placement::interrupt_at_another_worker,
    placement::workers_away_from_card,
];

/// What is wrong, the worst first.
#[must_use]
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = CHECKS.iter().filter_map(|check| check(facts)).collect();
    findings.extend(facts.closed.iter().filter_map(|(path, owner)| host::closed_to_service(facts, path, *owner)));
    findings.extend(facts.keys.iter().filter_map(|key| host::key_unusable(facts, key)));
    if let Some(profile) = &facts.profile {
        for port in ports(profile) {
            findings.extend(PORT_CHECKS.iter().filter_map(|check| check(facts, profile, &port)));
        }
        findings.extend(facts.rules.iter().filter_map(|rule| network::rule_catches(facts, profile, rule)));
        findings.extend(network::fragmented(facts));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// One of the profile's interfaces.
struct Port<'a> {
    name: &'a str,
    wan: bool,
    /// AF_XDP or an error.
    demands_xdp: bool,
    /// AF_XDP if the interface is a network card that does it.
    prefers_xdp: bool,
}

fn ports(profile: &Profile) -> Vec<Port<'_>> {
    let wan = Port {
        name: &profile.wan.interface,
        wan: true,
        demands_xdp: profile.wan.mode == WanMode::Xdp,
        prefers_xdp: profile.wan.mode == WanMode::Auto,
    };
    let lan = profile.lan.interfaces.iter().map(|name| Port {
        name,
        wan: false,
        demands_xdp: profile.lan.mode == LanMode::Xdp,
        prefers_xdp: profile.lan.mode == LanMode::Auto,
    });
    std::iter::once(wan).chain(lan).collect()
}

fn warning(subject: impl Into<String>, sentence: impl Into<String>, command: impl Into<String>) -> Option<Finding> {
    finding(Severity::Warning, subject, sentence, command)
}

fn error(subject: impl Into<String>, sentence: impl Into<String>, command: impl Into<String>) -> Option<Finding> {
    finding(Severity::Error, subject, sentence, command)
}

fn finding(
    severity: Severity,
    subject: impl Into<String>,
    sentence: impl Into<String>,
    command: impl Into<String>,
) -> Option<Finding> {
    Some(Finding { severity, subject: subject.into(), sentence: sentence.into(), command: command.into() })
}

/// The command line that changes fields of the profile.
fn set_config(facts: &Facts, assignments: &str) -> String {
    format!("penstock set-config {assignments} --profile {}", path(&facts.file.path))
}

/// The fields that make the gateway do without AF_XDP where it is demanded.
fn without_xdp(profile: &Profile) -> &'static str {
    match (profile.wan.mode == WanMode::Xdp, profile.lan.mode == LanMode::Xdp) {
        (true, true) => "Wan.Mode=auto Lan.Mode=auto",
        (true, false) => "Wan.Mode=auto",
        _ => "Lan.Mode=auto",
    }
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A word of a shell's command line.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
