//! The loop's body: follow the news, plan, carry out, and remember what failed.

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

/// After so many failures the rest of a plan is left for the next time: they have one cause, and an
/// administrator is not told each.
const MANY_FAILURES: usize = 16;

/// Times between readings of all routes because of news: in the long run, and in a row.
const READ_INTERVAL: Duration = Duration::from_secs(5);
const READ_BURST: u32 = 4;

const READING: &str = "the kernel's network state";
const MORE: &str = "further operations";
const SETTINGS_FILE: &str = "the file of the settings' old values";

/// The kernel's network stack, and what a gateway makes of it.
pub struct Ground<K: Kernel> {
    kernel: K,
    name: Name,
    network: Network,
    filter: FilterState,
    saved: Saved,
    problems: Problems,
    /// Whether the snapshot is to be read anew as a whole.
    stale: bool,
    /// Whether the packet filter is to be read anew.
    stale_filter: bool,
    /// How often the routes were read because of news, lately.
    reads: Bucket,
    /// When the routes are to be read, which was put off.
    read_at: Option<Instant>,
}

impl<K: Kernel> Ground<K> {
    /// Reads the network. What cannot be read is a problem, and is read at the next reconciliation.
    /// `runtime` is the directory where the settings' old values are kept.
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
            read_at: None,
        };
        ground.read(now, None);
        ground
    }

    /// The network as the kernel sees it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The kernel, to be asked for routes and neighbours, and the network.
    pub fn parts(&mut self) -> (&mut K, &Network) {
        (&mut self.kernel, &self.network)
    }

    /// Prefixes that the kernel guards for this gateway, as after a crash.
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
            if let Err(e) = self.network.read_routes(&mut self.kernel) {
                self.reading_failed(now, &e);
            }
        }
        if changed.interfaces || changed.addresses {
            // This may have been what was in the way.
            self.problems.try_now(now);
        }
        changed
    }

    /// Whether the routes may be read now; else they will be later. There may be very many of them.
    fn may_read(&mut self, now: Instant) -> bool {
        let may = self.reads.take(now, READ_INTERVAL, READ_INTERVAL * READ_BURST);
        self.read_at = (!may).then(|| self.read_at.filter(|at| *at > now).unwrap_or(now + READ_INTERVAL));
        may
    }

    /// Reads the network anew, for other interfaces or another table.
    pub fn set_interest(&mut self, now: Instant, interest: Interest) {
        if *self.network.interest() != interest {
            self.read(now, Some(interest));
        }
    }

    /// Makes what is what should be, as far as the kernel lets it. What fails is a problem and is tried again
    /// after a while; see [`Self::poll_timeout`].
    pub fn reconcile(&mut self, now: Instant, wanted: &Wanted) {
        let interest = Interest { table: wanted.table, lan: wanted.lan.clone() };
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
                // It cannot be set either, which is what is said then.
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

    /// Notes the value of a setting before it is changed, in the file too if that can be written.
    fn note_before(&mut self, operation: &Operation, sysctls: &BTreeMap<Sysctl, String>) {
        let Operation::SetSysctl { sysctl, .. } = operation else { return };
        if let (Some(before), false) = (sysctls.get(sysctl), sysctl.interface == self.name.as_str()) {
            self.saved.note(sysctl, before);
            // What fails is tried again, and told, when all is done.
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

    /// What was done is so, as far as we know, until the kernel says otherwise.
    fn done(&mut self, operation: Operation) {
        match operation {
            Operation::SetFilter(filter) => self.filter = FilterState::Set(filter),
            Operation::RemoveFilter(_) => self.filter = FilterState::Absent,
            Operation::RestoreSysctl { sysctl, .. } => self.saved.forget(&sysctl),
            other => self.network.done(&other),
        }
    }

    /// Problems, for people and machines to read.
    #[must_use]
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }

    /// When [`Self::refresh`] and [`Self::reconcile`] are to be called at the latest, since something failed or was
    /// put off.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.problems.poll_timeout().into_iter().chain(self.read_at).min()
    }

    /// At an orderly stop: takes away everything but the guard. Settings get their values back. The exceptions
    /// from the guard stay, or a site's own networks inside a guarded prefix would be blocked with it.
    pub fn withdraw(&mut self, now: Instant, wanted: &Wanted) {
        let rest = Wanted {
            // Its addresses go with the device, which is removed by who made it.
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

    /// Reads the snapshot anew; whether that could be done.
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
        self.problems.failed(now, READING, &sentence, "see the kernel's log; it is tried again by itself");
    }

    fn read_sysctls(&mut self, wanted: &Wanted) -> BTreeMap<Sysctl, String> {
        let mut all = sysctls::relevant(wanted, &self.network);
        all.extend(self.saved.before().keys().cloned());
        all.into_iter().filter_map(|sysctl| self.kernel.sysctl(&sysctl).map(|value| (sysctl, value))).collect()
    }
}

impl Network {
    /// The prefixes that the kernel guards for the gateway of this name: of its own table if it has that, which
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
