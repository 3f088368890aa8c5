//! The body of the loop: follow the news, plan, carry out, and remember what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_proto::Bucket;

use super::actual::FilterState;
use super::network::Follow;
use super::prefixes::Prefixes;
use super::{
    Actual, Changed, Interest, Kernel, Network, Operation, PROTOCOL, Saved, Sysctl, Tun, Wanted, guard_metric,
};
use super::{plan, sysctls};
use crate::netlink::{MAIN_TABLE, News, Route, RouteKind};
use crate::problem::{Problem, Problems};
use crate::profile::Name;

/// After this many failures the rest of a plan is left for the next time: they have a common cause, and an
/// administrator need not be told each of them.
const MANY_FAILURES: usize = 16;

/// Average time between readings of all routes because of news, for each route of the last reading, within limits.
/// Reading a route takes a few microseconds.
const READ_PER_ROUTE: Duration = Duration::from_micros(100);
const READ_SOONEST: Duration = Duration::from_millis(500);
const READ_LATEST: Duration = Duration::from_secs(5);
/// How many readings may follow each other without a pause.
const READ_BURST: u32 = 4;

const READING: &str = "the kernel's network state";
const MORE: &str = "further operations";
const SETTINGS_FILE: &str = "the file of the settings' old values";

/// The kernel's network stack, and what a gateway needs of it.
pub struct Ground<K: Kernel> {
    kernel: K,
    name: Name,
    network: Network,
    filter: FilterState,
    saved: Saved,
    problems: Problems,
    /// Whether the whole snapshot has to be read again.
    stale: bool,
    /// Whether the packet filter has to be read again.
    stale_filter: bool,
    /// How often the routes were recently read because of news.
    reads: Bucket,
    /// How many routes there were then.
    routes: u32,
    /// When a delayed reading of the routes is due.
    read_at: Option<Instant>,
}

impl<K: Kernel> Ground<K> {
    /// Reads the network. What cannot be read is a problem, and is read at the next reconciliation. `runtime` is the
    /// directory where the settings' original values are kept.
    pub fn open(kernel: K, name: &Name, interest: Interest, runtime: &Path, now: Instant) -> Self {
        Self::open_with(kernel, name, interest, Saved::load(&runtime.join(format!("{name}.sysctls"))), now)
    }

    pub(super) fn open_with(kernel: K, name: &Name, interest: Interest, saved: Saved, now: Instant) -> Self {
        let mut ground = Self {
            kernel,
            name: name.clone(),
            network: Network::empty(interest),
            filter: FilterState::Absent,
            saved,
            problems: Problems::default(),
            stale: true,
            stale_filter: true,
            reads: Bucket::default(),
            routes: 0,
            read_at: None,
        };
        ground.read(now, None);
        ground
    }

    /// The network as the kernel has it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The kernel, for asking about routes and neighbours, and the network.
    pub fn parts(&mut self) -> (&mut K, &Network) {
        (&mut self.kernel, &self.network)
    }

    /// Prefixes that the kernel guards for this gateway, for example after a crash.
    #[must_use]
    pub fn held(&self) -> BTreeSet<IpNet> {
        self.network.held(&self.name)
    }

    #[cfg(test)]
    pub(super) fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Follows the kernel's news.
    pub fn refresh(&mut self, now: Instant, news: impl IntoIterator<Item = News>) -> Changed {
        let mut changed = Changed::default();
        let mut read_routes = false;
        for news in news {
            match news {
                News::Lost => self.stale = true,
                News::Filter => (self.stale_filter, changed.ground) = (true, true),
                News::Sysctl => changed.ground = true,
                news => read_routes |= self.network.follow(news, &mut changed) == Follow::ReadRoutes,
            }
        }
        if self.stale {
            self.read(now, None);
            changed = Changed::everything();
        } else if (read_routes || self.read_at.is_some_and(|at| at <= now)) && self.may_read(now) {
            (changed.everywhere, changed.ground) = (true, true);
            match self.network.read_routes(&mut self.kernel) {
                Ok(routes) => self.routes = routes,
                Err(e) => self.reading_failed(now, &e),
            }
        }
        if changed.interfaces || changed.addresses {
            // This change may have removed an obstacle.
            self.problems.try_now(now);
        }
        changed
    }

    /// Whether the routes may be read now; otherwise they are read later. There may be very many.
    fn may_read(&mut self, now: Instant) -> bool {
        let interval = READ_PER_ROUTE.saturating_mul(self.routes).clamp(READ_SOONEST, READ_LATEST);
        let may = self.reads.take(now, interval, interval * READ_BURST);
        self.read_at = (!may).then(|| self.read_at.filter(|at| *at > now).unwrap_or(now + interval));
        may
    }

    /// Reads the network again, for other interfaces or another table.
    pub fn set_interest(&mut self, now: Instant, interest: Interest) {
        if *self.network.interest() != interest {
            self.read(now, Some(interest));
        }
    }

    /// Makes the actual state the wanted one, as far as the kernel allows. What fails is a problem and is retried after
    /// a while; see [`Self::poll_timeout`].
    pub fn reconcile(&mut self, now: Instant, wanted: &Wanted) {
        let interest = wanted.placement.interest();
        let differs = *self.network.interest() != interest;
        if self.stale && !self.problems.may_try(now, READING) {
            return;
        }
        if (self.stale || differs) && !self.read(now, Some(interest)) {
            return;
        }
        if std::mem::take(&mut self.stale_filter) {
            self.filter = match self.kernel.filter(&self.name) {
                Ok(filter) => filter,
                Err(_) if wanted.guarded.is_empty() => FilterState::Absent,
                // It cannot be set either, and that is what will be reported.
                Err(_) => FilterState::Foreign,
            };
        }
        let sysctls = self.read_sysctls(wanted);
        let actual =
            Actual { network: &self.network, sysctls: &sysctls, saved: self.saved.before(), filter: &self.filter };
        let plan = plan(wanted, &actual);
        let mut subjects = BTreeSet::new();
        for finding in &plan.findings {
            self.problems.note(now, &finding.subject, &finding.sentence, finding.what_to_do);
            subjects.insert(finding.subject.clone());
        }
        self.carry_out(now, plan.operations, &sysctls, &mut subjects);
        self.save_settings(now, &mut subjects);
        self.problems.solved_all_but(&subjects);
    }

    fn carry_out(
        &mut self,
        now: Instant,
        operations: Vec<Operation>,
        sysctls: &BTreeMap<Sysctl, String>,
        subjects: &mut BTreeSet<String>,
    ) {
        let mut failures = 0;
        for operation in operations {
            let subject = operation.subject();
            if failures >= MANY_FAILURES {
                self.problems.failed(now, MORE, "many operations failed; the others wait", "see the other problems");
                subjects.insert(MORE.to_owned());
                return;
            }
            if !self.problems.may_try(now, &subject) {
                subjects.insert(subject);
                continue;
            }
            self.note_before(&operation, sysctls);
            match self.kernel.apply(&operation) {
                Ok(()) => self.done(operation),
                Err(e) => {
                    failures += 1;
                    let sentence = format!("cannot {operation}: {e}");
                    self.problems.failed(now, &subject, &sentence, operation.what_to_do());
                    subjects.insert(subject);
                }
            }
        }
    }

    /// Notes the original value of a setting before it is changed, also in the file if that can be written.
    fn note_before(&mut self, operation: &Operation, sysctls: &BTreeMap<Sysctl, String>) {
        let Operation::SetSysctl { sysctl, .. } = operation else { return };
        if let (Some(before), false) = (sysctls.get(sysctl), sysctl.interface == self.name.as_str()) {
            self.saved.note(sysctl, before);
            // A failure is retried and reported when everything else is done.
            let _ = self.saved.save();
        }
    }

    fn save_settings(&mut self, now: Instant, subjects: &mut BTreeSet<String>) {
        if let Err(e) = self.saved.save() {
            let sentence = format!("cannot be written: {e}; they are lost if the gateway is killed");
            self.problems.failed(now, SETTINGS_FILE, &sentence, "make the runtime directory writable");
            subjects.insert(SETTINGS_FILE.to_owned());
        }
    }

    /// Assumes the effect of an operation, until the kernel reports otherwise.
    fn done(&mut self, operation: Operation) {
        match operation {
            Operation::SetFilter(filter) => self.filter = FilterState::Set(filter),
            Operation::RemoveFilter(_) => self.filter = FilterState::Absent,
            Operation::RestoreSysctl { sysctl, .. } => self.saved.forget(&sysctl),
            other => self.network.done(&other),
        }
    }

    /// The problems, for people and machines to read.
    #[must_use]
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }

    /// When [`Self::refresh`] and [`Self::reconcile`] are to be called at the latest, because something has failed or
    /// was delayed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.problems.poll_timeout().into_iter().chain(self.read_at).min()
    }

    /// For an orderly stop: removes everything but the guard. Settings are restored. The exceptions from the guard
    /// stay, or a site's own networks inside a guarded prefix would be blocked with it.
    pub fn withdraw(&mut self, now: Instant, wanted: &Wanted) {
        let rest = Wanted {
            // Its addresses are removed with the device, by whoever created it.
            tun: None::<Tun>,
            tunnelled: BTreeSet::new(),
            mtus: BTreeMap::new(),
            outer: BTreeSet::new(),
            local_port: None,
            forward: false,
            ..wanted.clone()
        };
        self.problems.try_now(now);
        self.reconcile(now, &rest);
    }

    /// Reads the snapshot again; returns whether that was possible.
    fn read(&mut self, now: Instant, interest: Option<Interest>) -> bool {
        let interest = interest.unwrap_or_else(|| self.network.interest().clone());
        match Network::read(&mut self.kernel, interest) {
            Ok(network) => {
                self.network = network;
                (self.stale, self.stale_filter, self.read_at) = (false, true, None);
                self.problems.solved(READING);
                true
            }
            Err(e) => {
                self.reading_failed(now, &e);
                false
            }
        }
    }

    fn reading_failed(&mut self, now: Instant, error: &io::Error) {
        self.stale = true;
        let sentence = format!("cannot be read: {error}; what was set stays as it is");
        self.problems.failed(now, READING, &sentence, "see the kernel's log; it is retried automatically");
    }

    fn read_sysctls(&mut self, wanted: &Wanted) -> BTreeMap<Sysctl, String> {
        let mut all = sysctls::relevant(wanted, &self.network);
        all.extend(self.saved.before().keys().cloned());
        all.into_iter().filter_map(|sysctl| self.kernel.sysctl(&sysctl).map(|value| (sysctl, value))).collect()
    }
}

impl Network {
    /// The prefixes that the kernel guards for the gateway of this name; from its own table if there is one, since that
    /// has no gaps.
    fn held(&self, name: &Name) -> BTreeSet<IpNet> {
        let metric = guard_metric(name);
        let ours = |r: &&Route| r.protocol == PROTOCOL && r.metric == metric && r.kind == RouteKind::Blackhole;
        let (main, own): (Vec<&Route>, Vec<&Route>) = self.routes().filter(ours).partition(|r| r.table == MAIN_TABLE);
        let own: Prefixes = own.iter().map(|r| r.destination).collect();
        let pieces = main.iter().map(|r| r.destination).filter(|piece| own.covering(piece).is_none());
        own.iter().copied().chain(pieces).collect()
    }
}
