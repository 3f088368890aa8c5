//! Tables for people.

use std::io::{self, Write};

use penstock_proto::coordination::Waiting;
use penstock_proto::trust::LeaseLength;

use crate::admin::{RelayReport, SiteStatus, StatusReport};
use crate::registry::{Announcement, AuthorityReport, PolicyPreview};
use crate::store::KeyRecord;
use crate::time::{now, rough};

pub(super) fn keys(out: &mut dyn Write, keys: &[KeyRecord]) -> io::Result<()> {
    let mut rows = vec![["KEY", "USES LEFT", "EXPIRES", "APPROVAL", "SUBNETS", "SITES END", "TAGS"].map(str::to_owned)];
    for key in keys {
        let approval = if key.approve_manually { "by hand" } else { "at once" };
        rows.push([
            key.id.to_string(),
            key.uses_left.to_string(),
            from_now(key.expires),
            approval.into(),
            join(&key.subnets),
            key.site_lifetime.map_or("never".into(), |lifetime| format!("after {}", rough(lifetime))),
            join(&key.tags),
        ]);
    }
    table(out, &rows)
}

/// What a policy would change.
pub(super) fn preview(out: &mut dyn Write, preview: &PolicyPreview) -> io::Result<()> {
    if preview.is_empty() {
        writeln!(out, "no link and no announced subnet changes")?;
    }
    let links = [
        (&preview.come, "new links"),
        (&preview.go, "links that end, with their tunnels"),
        (&preview.other, "links on which other services are allowed"),
    ];
    for (links, title) in links {
        named(out, title, links.count, links.first.iter().map(|[one, other]| format!("{one} - {other}")))?;
    }
    let announced = &preview.announced;
    let rows = announced.first.iter().map(|Announcement { site, before, after }| {
        let [before, after] =
            [before, after].map(|subnets| if subnets.is_empty() { "none".into() } else { join(subnets) });
        format!("{site}: {before}, then {after}")
    });
    named(out, "sites whose announced subnets change", announced.count, rows)?;
    named(out, "sites that are cut off", preview.cut_off.len(), preview.cut_off.iter().map(ToString::to_string))
}

/// A title with the count, and the items that are listed; nothing if the count is 0.
fn named(out: &mut dyn Write, title: &str, count: usize, rows: impl Iterator<Item = String>) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    writeln!(out, "{title}: {count}")?;
    let mut listed = 0;
    for row in rows {
        writeln!(out, "  {row}")?;
        listed += 1;
    }
    if count > listed { writeln!(out, "  and {} more", count - listed) } else { Ok(()) }
}

pub(super) fn sites(out: &mut dyn Write, sites: &[SiteStatus]) -> io::Result<()> {
    let header =
        ["NAME", "STATE", "ENDS", "CONNECTED", "BINDING", "ADDRESS", "IN FORCE", "WAITING", "TAGS", "PUBLIC KEY"];
    let mut rows = vec![header.map(str::to_owned)];
    for SiteStatus { site, connected, waiting, .. } in sites {
        let connected = match (connected, site.last_seen) {
            (true, _) => "yes".into(),
            (false, Some(time)) => from_now(time),
            (false, None) => "never".into(),
        };
        rows.push([
            site.name.to_string(),
            site.state.as_str().into(),
            site.ends.map_or("never".into(), from_now),
            connected,
            site.channel_binding.as_str().into(),
            site.virtual_address.to_string(),
            join(&site.in_force),
            join(waiting.iter().map(|waiting| waiting.subnet)),
            join(&site.tags),
            site.key.to_string(),
        ]);
    }
    table(out, &rows)?;
    for SiteStatus { site, waiting, cut_off, .. } in sites {
        cut_off.iter().try_for_each(|cut_off| writeln!(out, "{cut_off}"))?;
        for Waiting { subnet, reason } in waiting {
            writeln!(out, "{subnet} of {} waits for `site approve`: {reason}", site.name)?;
        }
    }
    Ok(())
}

pub(super) fn authority(out: &mut dyn Write, report: &AuthorityReport) -> io::Result<()> {
    let place = if report.here { "in the state directory of this coordinator" } else { "on another machine" };
    writeln!(out, "authority: {}", report.authority)?;
    writeln!(out, "  private key: {place}")?;
    writeln!(out, "  handed over to another key: {} times", report.rollovers)?;
    writeln!(out, "  sites and relays: {} vouched for, {} revoked", report.statements, report.revoked)?;
    let certified = if report.lease_certified { "" } else { "; they do NOT count until the authority certifies them" };
    let lease = match report.lease {
        LeaseLength::Seconds(seconds) => format!("valid for {}, renewed automatically", rough(seconds.get().into())),
        LeaseLength::Never => "valid without end".into(),
    };
    writeln!(out, "leases: {lease}{certified}")?;
    if !report.here {
        writeln!(out, "waiting for its signature: {} (see `authority requests`)", report.requests)?;
    }
    writeln!(out, "A gateway that pins no authority yet gets it by this line in the Coordinator of its profile:")?;
    writeln!(out, "  \"Authority\": \"{}\"", report.authority)
}

pub(super) fn status(out: &mut dyn Write, status: &StatusReport) -> io::Result<()> {
    writeln!(out, "penstock-coordinator {}", status.version)?;
    writeln!(out, "sites: {} approved, {} connected", status.sites, status.sites_connected)?;
    if status.sites_waiting + status.subnets_waiting > 0 {
        let StatusReport { sites_waiting, subnets_waiting, .. } = status;
        writeln!(out, "waiting for an administrator: {sites_waiting} sites, {subnets_waiting} subnets")?;
    }
    if !status.door.refused.is_empty() {
        let refused = status.door.refused.iter().map(|(reason, count)| format!("{reason} {count}"));
        writeln!(out, "connections not let in: {}", refused.collect::<Vec<_>>().join(", "))?;
    }
    if let Some(acme) = &status.acme {
        let certificate = acme.not_after.map_or("none yet".into(), |end| format!("ends {}", from_now(end)));
        let order = from_now(acme.next_order);
        let order = if order.ends_with("ago") { "being ordered".into() } else { format!("ordered {order}") };
        writeln!(out, "certificate of {}: {certificate}, the next is {order}", acme.directory)?;
        acme.error.iter().try_for_each(|error| writeln!(out, "  the last order failed: {error}"))?;
    }
    for address in &status.stun_servers {
        writeln!(out, "STUN server: {address}")?;
    }
    writeln!(out, "STUN requests: {} answered, {} dropped", status.stun_answers, status.stun_drops)?;
    for relay in &status.relays {
        let there = if status.relays_connected.contains(&relay.public_key) { ", connected" } else { "" };
        writeln!(out, "relay {}: {}, {}{there}", relay.name, join(&relay.udp), relay.url.as_deref().unwrap_or("-"))?;
    }
    status.relay.iter().try_for_each(|relay| self::relay(out, relay))
}

pub(super) fn relay(out: &mut dyn Write, relay: &RelayReport) -> io::Result<()> {
    writeln!(out, "own relay: {} sites, {} bound", relay.sites, relay.bindings)?;
    writeln!(out, "  forwarded: {} datagrams, {} bytes", relay.datagrams, relay.bytes)?;
    for (reason, count) in relay.drops.iter().filter(|(_, count)| **count > 0) {
        writeln!(out, "  dropped, {reason}: {count}")?;
    }
    Ok(())
}

fn table<const N: usize>(out: &mut dyn Write, rows: &[[String; N]]) -> io::Result<()> {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or_default());
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "-".into() } else { items.join(",") }
}

/// A time in seconds since 1970 as "in 3 h" or "3 h ago".
fn from_now(time: u64) -> String {
    let now = now();
    if time > now { format!("in {}", rough(time - now)) } else { format!("{} ago", rough(now - time)) }
}
