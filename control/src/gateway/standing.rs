//! The guard, with and without a running gateway: what is blocked, what becomes blocked, and what is released.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::site::Site;
use super::{Gateway, wanted};
use crate::control_socket::{self, LockError, Release, Released};
use crate::ground::{Ground, Guard, Linux, Origin, Placement, Refusal};
use crate::key::PrivateKey;
use crate::problem::Problems;
use crate::profile::{Name, Profile};
use crate::state;

/// Puts up the guard of a gateway that is not running, as at boot: for what it guarded, and for what the profile names
/// now.
///
/// # Errors
/// The kernel cannot be reached, or part of the guard is not in force.
pub fn guard(profile: &Profile) -> Result<()> {
    Standing::put_up(profile)?.outcome()
}

/// The same for a profile that cannot be loaded: for what its gateway guarded, where it guarded it. Returns the prefixes;
/// there are none if the gateway has never run with a profile in this file, or runs now.
///
/// # Errors
/// The kernel cannot be reached, or part of the guard is not in force.
pub fn guard_without_profile(path: &Path) -> Result<Vec<IpNet>> {
    let Some(absent) = Absent::with_guard(path) else { return Ok(Vec::new()) };
    let lock = match control_socket::lock(&absent.name) {
        Err(LockError::Taken { .. }) => return Ok(Vec::new()),
        lock => lock?,
    };
    let mut standing = Standing::open(&absent)?;
    standing.reconcile();
    drop(lock);
    standing.outcome()?;
    Ok(standing.guard.prefixes().into_iter().collect())
}

/// A gateway that is not running.
pub struct Absent {
    /// Its name.
    pub name: Name,
    placement: Placement,
    /// Unknown without a valid profile.
    key: Option<PrivateKey>,
}

impl Absent {
    /// The one that has this profile.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let site = Site::of(profile);
        Self { name: site.name.clone(), placement: site.placement(&profile.path), key: Some(site.private_key) }
    }

    /// The one whose guard was placed by the profile in this file, whatever the file says now.
    #[must_use]
    pub fn with_guard(path: &Path) -> Option<Self> {
        let path = std::path::absolute(path).ok()?;
        let (name, placement) = Guard::of_profile(&state::directory(), &path)?;
        Some(Self { name, placement, key: None })
    }

    /// The interfaces on either side of its tunnel.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.placement.wan).chain(&self.placement.lan).map(String::as_str)
    }
}

/// Lifts the guard of a gateway that is not running. If its key is unknown, the file of what remains is authenticated
/// again by the next start, which says so.
///
/// # Errors
/// The kernel cannot be reached, or part of the guard is still in force.
pub fn release(absent: &Absent, what: &Release) -> Result<Released> {
    let mut standing = Standing::open(absent)?;
    if absent.key.is_none() {
        standing.guard.set_key(&PrivateKey::generate()?);
    }
    let released = release_from(&mut standing.guard, what, &BTreeSet::new());
    standing.reconcile();
    standing.guard.save(Instant::now(), &mut standing.problems);
    standing.outcome()?;
    Ok(released)
}

/// The prefixes that are guarded while the gateway is not running.
///
/// # Errors
/// The kernel cannot be reached.
pub fn guarded(absent: &Absent) -> Result<Vec<IpNet>> {
    Ok(Standing::open(absent)?.guard.prefixes().into_iter().collect())
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
    Released { released, still_blocked: Vec::new(), in_use, unknown }
}

/// What remains when no gateway runs: the guard as stored, together with what the kernel still has of it.
pub struct Standing {
    name: Name,
    placement: Placement,
    /// What is blocked.
    pub guard: Guard,
    /// What the kernel has.
    pub ground: Ground<Linux>,
    /// Problems of the guard.
    pub problems: Problems,
}

impl Standing {
    /// Puts up the guard of the gateway with this profile.
    ///
    /// # Errors
    /// The kernel cannot be reached.
    pub fn put_up(profile: &Profile) -> Result<Self> {
        let mut standing = Self::open(&Absent::of(profile))?;
        let now = Instant::now();
        note_refused(&mut standing.problems, now, standing.guard.profile_changed(&profile.remote()));
        standing.guard.place(standing.placement.clone());
        standing.guard.save(now, &mut standing.problems);
        standing.reconcile();
        Ok(standing)
    }

    /// What remains of a gateway.
    fn open(Absent { name, placement, key }: &Absent) -> Result<Self> {
        let now = Instant::now();
        let kernel = Linux::open().context("cannot use netlink")?;
        let ground = Ground::open(kernel, name, placement.interest(), &control_socket::directory(), now);
        let mut problems = Problems::default();
        let path = Guard::path(&state::directory(), name);
        let guard = Guard::load(&path, key.as_ref(), name, &ground.held(), now, &mut problems);
        Ok(Self { name: name.clone(), placement: placement.clone(), guard, ground, problems })
    }

    fn reconcile(&mut self) {
        let wanted = wanted::guard_only(&self.name, self.placement.clone(), &self.guard);
        self.ground.reconcile(Instant::now(), &wanted);
    }

    /// The first operation that failed; other problems do not make the guard weaker.
    fn outcome(&self) -> Result<()> {
        let now = Instant::now();
        let problems = self.ground.problems(now).into_iter().chain(self.problems.list(now));
        let failed = problems.into_iter().find(|problem| problem.next_try_seconds.is_some());
        failed.map_or(Ok(()), |problem| bail!("{}: {}", problem.subject, problem.sentence))
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
