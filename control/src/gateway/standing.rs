//! The guard, with and without a running gateway: what is blocked, what becomes blocked, and what is released.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::site::Site;
use super::{Gateway, wanted};
use crate::control_socket::{self, Release, Released};
use crate::ground::{Ground, Guard, Interest, Linux, Origin, Refusal};
use crate::problem::{Problem, Problems};
use crate::profile::Profile;
use crate::state;

/// Puts up the guard of a gateway that is not running, as at boot: for what it guarded, and for what the profile names now.
///
/// # Errors
/// The kernel cannot be reached, or part of the guard is not in force.
pub fn guard(profile: &Profile) -> Result<()> {
    let Standing { mut guard, mut ground, mut problems, site } = Standing::of(profile)?;
    let now = Instant::now();
    note_refused(&mut problems, now, guard.profile_changed(&profile.remote()));
    ground.reconcile(now, &wanted::guard_only(&site, &guard));
    guard.save(now, &mut problems);
    first_of(ground.problems(now).into_iter().chain(problems.list(now)))
}

/// Lifts the guard of a gateway that is not running.
///
/// # Errors
/// The kernel cannot be reached, or part of the guard is still in force.
pub fn release(profile: &Profile, what: &Release) -> Result<Released> {
    let Standing { mut guard, mut ground, mut problems, site } = Standing::of(profile)?;
    let now = Instant::now();
    let released = release_from(&mut guard, what, &BTreeSet::new());
    ground.reconcile(now, &wanted::guard_only(&site, &guard));
    guard.save(now, &mut problems);
    first_of(ground.problems(now).into_iter().chain(problems.list(now)))?;
    Ok(released)
}

/// The prefixes that are guarded while the gateway is not running.
///
/// # Errors
/// The kernel cannot be reached.
pub fn guarded(profile: &Profile) -> Result<Vec<IpNet>> {
    Ok(Standing::of(profile)?.guard.prefixes().into_iter().collect())
}

fn first_of(mut problems: impl Iterator<Item = Problem>) -> Result<()> {
    problems.next().map_or(Ok(()), |problem| bail!("{}: {}", problem.subject, problem.sentence))
}

/// Releases prefixes, except those `in_use`.
pub fn release_from(guard: &mut Guard, what: &Release, in_use: &BTreeSet<IpNet>) -> Released {
    let asked: Vec<IpNet> = match what {
        Release::All => guard.prefixes().difference(in_use).copied().collect(),
        Release::Prefixes(prefixes) => prefixes.iter().map(IpNet::trunc).collect(),
    };
    let (in_use, free): (Vec<IpNet>, Vec<IpNet>) = asked.into_iter().partition(|prefix| in_use.contains(prefix));
    let unknown = guard.release(free.iter().copied());
    let released = free.into_iter().filter(|prefix| !unknown.contains(prefix)).collect();
    Released { released, in_use, unknown }
}

/// What remains when no gateway runs: the guard as stored, together with what the kernel still has of it.
pub struct Standing {
    /// This site.
    pub site: Site,
    /// What is blocked.
    pub guard: Guard,
    /// What the kernel has.
    pub ground: Ground<Linux>,
    /// Problems of the guard.
    pub problems: Problems,
}

impl Standing {
    /// What remains of the gateway with this profile.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn of(profile: &Profile) -> Result<Self> {
        let now = Instant::now();
        let site = Site::of(profile);
        let kernel = Linux::open().context("cannot use netlink")?;
        let interest = Interest { table: site.table, lan: site.lan.clone() };
        let ground = Ground::open(kernel, &site.name, interest, &control_socket::directory(), now);
        let mut problems = Problems::default();
        let path = Guard::path(&state::directory(), &site.name);
        let guard = Guard::load(&path, &site.private_key, &site.name, &ground.held(), now, &mut problems);
        Ok(Self { site, guard, ground, problems })
    }
}

/// Adds the prefixes of all peers to the guard.
pub fn cover(gateway: &mut Gateway, now: Instant) {
    let mut refused = Vec::new();
    for peer in gateway.handshakes.peers.iter() {
        let origin = match peer.origin {
            Origin::Overlay if gateway.site.accept.is_some() => Origin::Accepted,
            origin => origin,
        };
        refused.extend(gateway.guard.cover(peer.allowed_ips().iter().copied(), origin));
    }
    note_refused(&mut gateway.problems, now, refused);
    gateway.guard.save(now, &mut gateway.problems);
}

/// Notes the prefixes that the guard did not accept.
pub fn note_refused(problems: &mut Problems, now: Instant, refused: Vec<(IpNet, Refusal)>) {
    for (prefix, refusal) in refused {
        let what_to_do = "remove prefixes, or release those that are no longer needed";
        problems.note(now, &format!("guard of {prefix}"), &refusal.to_string(), what_to_do);
    }
}
