//! The discovery of a NAT's behaviour (RFC 5780, section 4).
//!
//! ```text
//!   1  a plain request to each server's first address        silence from all: UDP is blocked
//!   2  answer from the other address and port?               filtering: endpoint-independent
//!      answer from the other port?                           filtering: address-dependent, else both
//!      a request to our own external address                 hairpinning
//!   3  a request to the other address, same port             same mapping: endpoint-independent
//!   4  only if not: the first server again                   the mapping may have changed since step 1
//!      a request to the other address and port               same as in step 3: address-dependent
//! ```
//! The requests of one step are sent together. Steps 3 and 4 come last because they open filters that step 2 tests, and
//! filters stay open for minutes. A second discovery from the same port, such as a restarted gateway's, still
//! recognises a port-restricted NAT: only behind a symmetric NAT, where each destination has filters of its own, is
//! anything sent to the address from which the first answer of step 2 comes. But an address-restricted NAT then looks
//! like a full cone.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::CryptoRng;

use super::message::{Change, Message, decode};
use super::transaction::{Outcome, Transaction};
use super::{NatReport, Query};
use crate::coordination::Dependence;

/// Servers that are asked; further ones are ignored.
pub const MAX_SERVERS: usize = 4;

/// One run, from the first request to the report.
pub struct Discovery {
    rng: Box<dyn CryptoRng + Send>,
    local: Vec<SocketAddr>,
    step: Step,
    report: NatReport,
    opening: bool,
    finished: bool,
}

enum Step {
    Reach(Vec<Transaction>),
    Filters {
        filters: Vec<Transaction>,
        hairpin: Option<Box<Transaction>>,
        next: Next,
    },
    /// The first server and `last` are asked when the first answer shows a different mapping.
    Mappings {
        asked: Vec<Transaction>,
        doubt: Option<Doubt>,
    },
    Done,
}

/// What step 3 needs to know from step 1.
#[derive(Clone, Copy)]
struct Next {
    server: SocketAddr,
    other: Option<SocketAddr>,
    second_server: Option<SocketAddr>,
}

/// Whom step 4 asks.
#[derive(Clone, Copy)]
struct Doubt {
    server: SocketAddr,
    last: Option<SocketAddr>,
}

impl Discovery {
    /// Starts the discovery. `local` is the socket's addresses, with its port: if one of them is what a server sees,
    /// nothing is translated. All `servers` must be of the address family in question.
    pub fn new(
        now: Instant,
        servers: &[SocketAddr],
        local: &[SocketAddr],
        rng: impl CryptoRng + Send + 'static,
    ) -> Self {
        let mut rng: Box<dyn CryptoRng + Send> = Box::new(rng);
        let reach = servers.iter().take(MAX_SERVERS);
        let reach = reach.map(|server| Transaction::new(now, *server, Change::default(), &mut rng)).collect();
        let report = NatReport::default();
        Self { rng, local: local.to_vec(), step: Step::Reach(reach), report, opening: true, finished: false }
    }

    /// Leaves out what would open filters to more than the servers' first addresses, and with it all of step 3 and
    /// hairpinning, so that the next discovery from this port finds the filters as this one did.
    #[must_use]
    pub fn without_opening(self) -> Self {
        Self { opening: false, ..self }
    }

    /// Takes a datagram; returns whether it belonged to the discovery.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let mut mine = false;
        if let Step::Filters { hairpin: Some(hairpin), .. } = &mut self.step
            && let Ok(Message::Request { transaction, .. }) = decode(datagram)
            && hairpin.is_mine(&transaction)
        {
            // Our own request has come back; the address in it is of no interest.
            hairpin.outcome = Outcome::Answered { mapped: hairpin.to(), other: None };
            mine = true;
        }
        for transaction in self.step.transactions() {
            mine |= transaction.handle(datagram);
        }
        self.advance(now);
        mine
    }

    /// Returns the requests that are due, one per call. Call it until it returns `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Query> {
        let query = self.step.transactions().find_map(|transaction| transaction.poll(now));
        if query.is_none() {
            self.advance(now);
        }
        query.or_else(|| self.step.transactions().find_map(|transaction| transaction.poll(now)))
    }

    /// When [`poll_transmit`](Self::poll_transmit) is next to be called; `None` when all is done.
    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        self.step.transactions().filter_map(|transaction| transaction.timeout()).min()
    }

    /// The report, once.
    pub fn poll_report(&mut self) -> Option<NatReport> {
        if !matches!(self.step, Step::Done) || std::mem::replace(&mut self.finished, true) {
            return None;
        }
        Some(self.report)
    }

    fn advance(&mut self, now: Instant) {
        self.step = match std::mem::replace(&mut self.step, Step::Done) {
            Step::Reach(reach) => self.reached(now, reach),
            Step::Filters { filters, hairpin, next } => self.filtered(now, filters, hairpin, next),
            Step::Mappings { asked, doubt } => self.mapped(now, asked, doubt),
            Step::Done => Step::Done,
        };
    }

    fn reached(&mut self, now: Instant, reach: Vec<Transaction>) -> Step {
        // It is worth waiting for all servers, in case one knows another address of its own.
        let answer = |transaction: &Transaction, with_other: bool| match transaction.outcome {
            Outcome::Answered { mapped, other } if other.is_some() || !with_other => {
                Some((transaction.to(), mapped, other))
            }
            _ => None,
        };
        let best = reach.iter().find_map(|transaction| answer(transaction, true));
        if best.is_none() && !reach.iter().all(Transaction::is_over) {
            return Step::Reach(reach);
        }
        let Some((server, mapped, other)) = best.or_else(|| reach.iter().find_map(|t| answer(t, false))) else {
            self.report.udp_blocked = true;
            return Step::Done;
        };
        // Only a public address of the family in question is worth a request.
        let other = other.filter(|other| other.is_ipv4() == server.is_ipv4() && usable(other.ip()));
        self.report.reflexive = Some(mapped);
        self.report.translated = Some(!self.local.contains(&mapped));
        self.report.port_preservation = Some(self.local.iter().any(|local| local.port() == mapped.port()));
        let second_server = reach.iter().find(|t| t.to().ip() != server.ip() && answer(t, false).is_some());
        let next = Next { server, other, second_server: second_server.map(Transaction::to) };
        let changes = other.into_iter().flat_map(|_| [true, false]).map(|ip| Change { ip, port: true });
        let filters = changes.map(|change| Transaction::new(now, server, change, &mut self.rng)).collect();
        let hairpin = self.opening.then(|| Box::new(self.ask(now, mapped)));
        Step::Filters { filters, hairpin, next }
    }

    fn filtered(
        &mut self,
        now: Instant,
        filters: Vec<Transaction>,
        hairpin: Option<Box<Transaction>>,
        next: Next,
    ) -> Step {
        if !filters.iter().all(Transaction::is_over) || !hairpin.as_ref().is_none_or(|hairpin| hairpin.is_over()) {
            return Step::Filters { filters, hairpin, next };
        }
        self.report.hairpinning = hairpin.map(|hairpin| matches!(hairpin.outcome, Outcome::Answered { .. }));
        let outcomes: Vec<Outcome> = filters.iter().map(|filter| filter.outcome).collect();
        self.report.filtering = match outcomes[..] {
            [Outcome::Answered { .. }, _] => Some(Dependence::EndpointIndependent),
            [_, Outcome::Answered { .. }] => Some(Dependence::AddressDependent),
            [Outcome::Silence, Outcome::Silence] => Some(Dependence::AddressAndPortDependent),
            // The server does not do what it announces, or has only one address.
            _ => None,
        };
        if self.report.translated == Some(false) {
            self.report.mapping = Some(Dependence::EndpointIndependent);
            return Step::Done;
        }
        if !self.opening {
            return Step::Done;
        }
        let (to, last) = match (next.other, next.second_server) {
            (Some(other), _) => (SocketAddr::new(other.ip(), next.server.port()), Some(other)),
            (None, Some(second)) => (second, None),
            (None, None) => return Step::Done,
        };
        let asked = vec![self.ask(now, to)];
        Step::Mappings { asked, doubt: Some(Doubt { server: next.server, last }) }
    }

    fn mapped(&mut self, now: Instant, mut asked: Vec<Transaction>, doubt: Option<Doubt>) -> Step {
        if !asked.iter().all(Transaction::is_over) {
            return Step::Mappings { asked, doubt };
        }
        let seen = |index: usize| match asked.get(index).map(|transaction| transaction.outcome) {
            Some(Outcome::Answered { mapped, .. }) => Some(mapped),
            _ => None,
        };
        if let Some(Doubt { server, last }) = doubt.filter(|_| seen(0).is_some_and(|other| !self.is_first(other))) {
            asked.extend([Some(server), last].into_iter().flatten().map(|to| self.ask(now, to)));
            return Step::Mappings { asked, doubt: None };
        }
        self.report.reflexive = seen(1).or(self.report.reflexive);
        self.report.mapping = match (seen(0), seen(2)) {
            (None, _) => None,
            (Some(second), _) if self.is_first(second) => Some(Dependence::EndpointIndependent),
            (second, third) if second == third => Some(Dependence::AddressDependent),
            // Also when only two servers with one address each could be compared: the worst case is assumed.
            _ => Some(Dependence::AddressAndPortDependent),
        };
        Step::Done
    }

    fn is_first(&self, mapped: SocketAddr) -> bool {
        self.report.reflexive == Some(mapped)
    }

    fn ask(&mut self, now: Instant, to: SocketAddr) -> Transaction {
        Transaction::new(now, to, Change::default(), &mut self.rng)
    }
}

impl Step {
    fn transactions(&mut self) -> Box<dyn Iterator<Item = &mut Transaction> + '_> {
        match self {
            Self::Reach(all) | Self::Mappings { asked: all, .. } => Box::new(all.iter_mut()),
            Self::Filters { filters, hairpin, .. } => Box::new(filters.iter_mut().chain(hairpin.as_deref_mut())),
            Self::Done => Box::new(std::iter::empty()),
        }
    }
}

fn usable(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::super::message::encode_success;
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const MAPPED: &str = "198.51.100.1:5";

    /// Behind a NAT that filters by port, with a server at all four combinations of address and port: what is sent
    /// where, and the report.
    /// `mapped` says which address the n-th request to a destination comes from.
    fn run(opening: bool, mapped: impl Fn(SocketAddr, usize) -> SocketAddr) -> (Vec<SocketAddr>, NatReport) {
        let [local, server, other] = ["10.0.0.2:5", "192.0.2.1:3478", "192.0.2.2:3479"].map(|at| at.parse().unwrap());
        let mut now = Instant::now();
        let mut discovery = Discovery::new(now, &[server], &[local], StdRng::seed_from_u64(1));
        if !opening {
            discovery = discovery.without_opening();
        }
        let mut to = vec![];
        loop {
            while let Some(query) = discovery.poll_transmit(now) {
                let before = to.iter().filter(|known| **known == query.to).count();
                to.push(query.to);
                let Ok(Message::Request { transaction, change, .. }) = decode(&query.bytes) else { panic!() };
                if query.to != mapped(server, 0) && change == Change::default() {
                    let mapped = mapped(query.to, before);
                    discovery.handle_datagram(now, &encode_success(&transaction, mapped, query.to, Some(other)));
                }
            }
            if let Some(report) = discovery.poll_report() {
                return (to, report);
            }
            now = discovery.poll_timeout().expect("it goes on");
        }
    }

    #[test]
    fn filters_are_not_opened_if_they_are_not_to_be() {
        let first: SocketAddr = "192.0.2.1:3478".parse().unwrap();
        let same = |_, _| MAPPED.parse().unwrap();
        let (to, report) = run(false, same);
        assert!(to.iter().all(|to| *to == first), "{to:?}");
        assert_eq!((report.mapping, report.hairpinning), (None, None));
        assert_eq!(report.filtering, Some(Dependence::AddressAndPortDependent));
        let (to, report) = run(true, same);
        let others: Vec<String> = to.iter().filter(|to| to.ip() != first.ip()).map(ToString::to_string).collect();
        assert_eq!(others.last().unwrap(), "192.0.2.2:3478");
        assert!(!others.contains(&"192.0.2.2:3479".to_owned()), "a filter that the next discovery tries");
        assert_eq!((report.mapping, report.hairpinning), (Some(Dependence::EndpointIndependent), Some(false)));
    }
    #[test]
    fn a_mapping_that_changes_on_the_way_is_not_taken_for_another_destination_s() {
        let [before, after, third] = [MAPPED, "198.51.100.1:6", "198.51.100.1:7"].map(|at| at.parse().unwrap());
        let first = |to: SocketAddr| to == "192.0.2.1:3478".parse().unwrap();
        let (_, report) = run(true, |to, times| if first(to) && times == 0 { before } else { after });
        assert_eq!((report.mapping, report.reflexive), (Some(Dependence::EndpointIndependent), Some(after)));
        let (_, report) = run(true, |to, _| if first(to) { before } else { after });
        assert_eq!((report.mapping, report.reflexive), (Some(Dependence::AddressDependent), Some(before)));
        let (_, report) = run(true, |to, _| match to.port() {
            _ if first(to) => before,
            3478 => after,
            _ => third,
        });
        assert_eq!(report.mapping, Some(Dependence::AddressAndPortDependent));
    }
}
