//! `status`: the state of a running gateway, as JSON or for people.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::Gateway;
use crate::control_socket::{Answer, Command};
use crate::problem::Severity;
use crate::profile::firewall::Verdict;
use crate::status::{
    Cipher, Coordinator, Firewall, FirewallDefault, FirewallRule, Health, PathKind, PathMtu, PeerStatus, Proof,
    Restriction, Status, Waiting,
};

/// Exit codes of `status`, as in the Linux Standard Base for init scripts.
const HEALTHY: u8 = 0;
const DEGRADED: u8 = 1;
const STOPPED: u8 = 3;
const UNKNOWN: u8 = 4;

/// The suite that every WireGuard has.
const WIREGUARDS_SUITE: &str = "chacha20-poly1305";

pub(super) fn status(profile: &Path, json: bool, check: bool) -> ExitCode {
    let gateway = match Gateway::of(profile) {
        Ok(gateway) => gateway,
        Err(error) => {
            if !check {
                eprintln!("penstock: {error}{}", super::guard::blocked(profile));
            }
            return UNKNOWN.into();
        }
    };
    match ask(&gateway) {
        Ok(status) if check => if status.forwarding { HEALTHY } else { DEGRADED }.into(),
        Ok(status) => match print(&status, json) {
            Ok(()) if status.health == Health::Healthy => HEALTHY.into(),
            Ok(()) => DEGRADED.into(),
            // The reader of our output may have closed the pipe.
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            if !check {
                eprintln!("penstock: {error:#}{}", super::guard::blocked(profile));
            }
            STOPPED.into()
        }
    }
}

fn ask(gateway: &Gateway) -> Result<Status> {
    match gateway.ask(Command::Status)? {
        Answer::Status(status) => Ok(*status),
        _ => bail!("{} gave an unexpected answer", gateway.name),
    }
}

fn print(status: &Status, json: bool) -> Result<()> {
    let text = if json {
        serde_json::to_string_pretty(status)? + "\n"
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for_people(status, now)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn for_people(status: &Status, now: Duration) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_head(&mut text, status);
    for table in [ports(status), relays(status), peers(status, now)] {
        if table.rows.len() > 1 {
            let _ = write!(text, "\n{table}");
        }
    }
    for problem in &status.problems {
        let word = match problem.severity {
            Severity::Error => "problem",
            Severity::Warning => "warning",
        };
        let _ = writeln!(text, "\n{word}: {}: {}", problem.subject, problem.sentence);
        let _ = writeln!(text, "  to fix it: {}", problem.what_to_do);
    }
    for peer in status.peers.iter().filter(|peer| peer.path != PathKind::Direct) {
        if let Some(reason) = &peer.reason {
            let way = if peer.path == PathKind::Relay { "relayed" } else { "not reached" };
            let _ = write!(text, "\n{} is {way}: {reason}\n", label(peer));
        }
    }
    // WireGuard's own suite needs no explanation.
    for peer in status.peers.iter().filter(|peer| peer.suite != WIREGUARDS_SUITE) {
        let _ = write!(text, "\n{} uses {}: {}\n", label(peer), peer.suite, peer.suite_reason);
    }
    for peer in &status.peers {
        if let Some(PathMtu { inner, outer, fragmented, reason }) = &peer.mtu
            && (*fragmented || *inner < status.tunnel_mtu)
        {
            let how = if *fragmented { ", which take several outer packets" } else { "" };
            let label = label(peer);
            let _ = write!(text, "\n{label} takes packets of {inner} bytes{how}: its path carries {outer}, {reason}\n");
        }
    }
    if let Some(firewall) = &status.firewall {
        let _ = write_firewall(&mut text, firewall);
    }
    let counters =
        [("dropped", &status.drops), ("steered, WAN", &status.steering.wan), ("steered, LAN", &status.steering.lan)];
    for (title, counts) in counters {
        let seen: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
        if !seen.is_empty() {
            let list: Vec<_> = seen.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let _ = write!(text, "\n{title}: {}\n", list.join(", "));
        }
    }
    text
}

/// The profile's rules with their counters.
fn write_firewall(text: &mut String, firewall: &Firewall) -> std::fmt::Result {
    let verdict = |verdict| if verdict == Verdict::Accept { "accept" } else { "drop" };
    writeln!(text, "\nfirewall: {} of {} flows", firewall.flows, firewall.flow_limit)?;
    for (place, FirewallRule { rule, packets }) in (1..).zip(&firewall.rules) {
        let name = rule.name.as_deref().unwrap_or("rule");
        writeln!(text, "  {place} {name}: {} {packets}", verdict(rule.verdict))?;
    }
    for (direction, FirewallDefault { verdict: default, packets }) in [("in", firewall.r#in), ("out", firewall.out)] {
        writeln!(text, "  else {direction}: {} {packets}", verdict(default))?;
    }
    for Restriction { peer, allow, packets, .. } in &firewall.restrictions {
        let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
        let allow = if allow.is_empty() { "nothing".to_owned() } else { allow.join(" ") };
        writeln!(text, "  {peer} may begin {allow}, by the coordinator: drop {packets}")?;
    }
    Ok(())
}

fn write_head(text: &mut String, status: &Status) -> std::fmt::Result {
    let Status { name, pid, version, public_key, local_port, tunnel_mtu, workers, .. } = status;
    writeln!(text, "{name}: Penstock {version}, process {pid}")?;
    writeln!(text, "  public key  {public_key}")?;
    writeln!(text, "  UDP port    {local_port}")?;
    writeln!(text, "  NAT         {}", status.nat_type)?;
    if let Some(address) = status.nat.as_ref().and_then(|nat| nat.reflexive) {
        writeln!(text, "  seen as     {address}")?;
    }
    if let Some(coordinator) = &status.coordinator {
        let Coordinator { url, connected, site, pending, error, authority, refused: _, waiting } = coordinator;
        let state = match (connected, pending) {
            (true, false) => "connected",
            (true, true) => "connected, waiting for an administrator's approval",
            (false, _) => error.as_deref().unwrap_or("not connected yet"),
        };
        let site = site.as_ref().map(|site| format!(" as {site}")).unwrap_or_default();
        writeln!(text, "  coordinator {url}{site}: {state}")?;
        if let Some(authority) = authority {
            writeln!(text, "  authority   {authority}")?;
        }
        for Waiting { subnet, reason } in waiting {
            writeln!(text, "  not offered {subnet}, which waits for an administrator of the coordinator: {reason}")?;
        }
    }
    writeln!(text, "  tunnel MTU  {tunnel_mtu}")?;
    writeln!(text, "  workers     {workers}")?;
    let Cipher { implementation, reason, speeds } = &status.cipher;
    let speeds: Vec<_> = speeds.iter().map(|(suite, speed)| format!("{suite} {speed} MB/s")).collect();
    writeln!(text, "  cipher      {implementation}: {reason}; {}", speeds.join(", "))?;
    writeln!(text, "  WAN         {}: {}", status.wan_mode.mode, status.wan_mode.reason)?;
    writeln!(text, "  LAN         {}: {}", status.lan_mode.mode, status.lan_mode.reason)
}

fn ports(status: &Status) -> Table {
    let mut table = Table::new(&["PORT", "KIND", "QUEUE", "WORKER", "XDP", "ZERO-COPY", "RECEIVES", "SENDS", ""]);
    for port in &status.ports {
        table.row([
            port.interface.clone(),
            port.kind.clone(),
            port.queue.to_string(),
            port.worker.to_string(),
            port.xdp_mode.clone().unwrap_or_else(|| "-".into()),
            port.zero_copy.map_or("-", |zero_copy| if zero_copy { "yes" } else { "no" }).into(),
            proof(port.receiving.as_ref()),
            proof(port.sending.as_ref()),
            port.reason.clone(),
        ]);
    }
    table
}

/// Whether it was proven, and when.
fn proof(proof: Option<&Proof>) -> String {
    match proof {
        None => "-".to_owned(),
        Some(Proof { state, proven_seconds_ago: Some(seconds), .. }) => format!("{state} {}", age(*seconds)),
        Some(Proof { state, .. }) => state.clone(),
    }
}

fn relays(status: &Status) -> Table {
    let mut table = Table::new(&["RELAY", "BY", "ADDRESS", "BOUND", "ROUND TRIP"]);
    for relay in &status.relays {
        table.row([
            relay.name.clone(),
            relay.transport.clone(),
            relay.address.to_string(),
            if relay.bound { "yes" } else { "no" }.into(),
            milliseconds(relay.round_trip_ms),
        ]);
    }
    table
}

fn peers(status: &Status, now: Duration) -> Table {
    let mut table = Table::new(&[
        "PEER",
        "PATH",
        "ROUND TRIP",
        "ENDPOINT",
        "HANDSHAKE",
        "SUITE",
        "MTU",
        "RECEIVED",
        "SENT",
        "LEASE",
        "ALLOWED IPS",
    ]);
    for peer in &status.peers {
        let path = match (peer.path, &peer.relay) {
            (PathKind::Direct, _) => "direct".to_owned(),
            (PathKind::Relay, Some(relay)) => format!("relay {relay}"),
            (PathKind::Relay, None) => "relay".to_owned(),
            (PathKind::None, _) => "none".to_owned(),
        };
        let allowed_ips: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        table.row([
            label(peer),
            path,
            milliseconds(peer.round_trip_ms),
            peer.endpoint.map_or_else(|| "-".into(), |endpoint| endpoint.to_string()),
            peer.last_handshake.map_or_else(|| "never".into(), |at| age(now.as_secs().saturating_sub(at))),
            peer.suite.clone(),
            peer.mtu.as_ref().map_or_else(|| "-".into(), |mtu| mtu.inner.to_string()),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            lease(peer),
            allowed_ips.join(" "),
        ]);
    }
    table
}

/// How long the coordinator's lease for a site lasts.
fn lease(peer: &PeerStatus) -> String {
    match peer.statement.map(|statement| statement.lease_seconds) {
        None => "-".to_owned(),
        Some(None) => "for good".to_owned(),
        Some(Some(seconds)) => span(seconds),
    }
}

pub(super) fn label(peer: &PeerStatus) -> String {
    if peer.name.is_empty() { peer.public_key.to_string() } else { peer.name.clone() }
}

pub(super) fn milliseconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".into(), |time| format!("{time:.1} ms"))
}

pub(super) fn age(seconds: u64) -> String {
    format!("{} ago", span(seconds))
}

/// A duration in its largest unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (count.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return format!("{count} B");
    }
    format!("{:.1} {}", count as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit])
}

/// A text in at most this many columns of a terminal. The middle is left out, since names mostly differ at their ends.
pub(super) fn shortened(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let head = fitting(text.chars(), columns / 2);
    let tail = fitting(text.chars().rev(), columns.saturating_sub(head.width() + 1));
    format!("{head}…{}", tail.chars().rev().collect::<String>())
}

/// The first characters, as many as fit into this many columns.
fn fitting(characters: impl Iterator<Item = char>, columns: usize) -> String {
    let mut left = columns;
    let fits = |c: &char| {
        let rest = left.checked_sub(c.width().unwrap_or(0));
        left = rest.unwrap_or(left);
        rest.is_some()
    };
    characters.take_while(fits).collect()
}

/// Rows of text in columns.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|&title| title.to_owned()).collect()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell}{:1$}  ", "", *width - cell.width())?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
