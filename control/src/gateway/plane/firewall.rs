//! The profile's firewall, and what the coordinator's policy lets others reach here, in the form that workers use:
//! rules with the peers that they select, and known flows that survive every change of the rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use penstock_dataplane::clock::Millis;
use penstock_dataplane::filter as data;
use penstock_dataplane::filter::{Counter, FLOWS, Flows};
use penstock_proto::coordination::Service;

use super::tables::map_of;
use crate::gateway::peers::Peers;
use crate::profile::Firewall;
use crate::profile::firewall::{Direction, Rule, Verdict};
use crate::status;

/// The firewall in force, its counters, and the flows that it has accepted.
#[derive(Debug, Default)]
pub struct Filter {
    /// Without a firewall, flows are not remembered.
    flows: Option<Arc<Flows>>,
    wanted: Wanted,
    compiled: Option<Arc<data::Firewall>>,
    counters: Counters,
}

/// Everything that the firewall is made from. If this is unchanged, no new firewall is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    firewall: Option<Firewall>,
    /// For each rule: the numbers of the peers that it selects, in order.
    selected: Vec<Option<Vec<u32>>>,
    /// For each peer: which flows it may start here, if not all.
    allowed: BTreeMap<u32, Vec<Service>>,
}

/// The counters, which go on counting as long as their rule exists.
#[derive(Debug, Default)]
struct Counters {
    inward: Counter,
    outward: Counter,
    rules: Vec<Counter>,
    /// For each peer that may not reach everything.
    denied: BTreeMap<u32, Counter>,
}

impl Filter {
    /// Makes it the firewall of this profile for these peers; returns whether it has changed.
    pub fn follow(&mut self, firewall: Option<&Firewall>, peers: &Peers) -> bool {
        let wanted = Wanted::of(firewall, peers);
        if wanted == self.wanted {
            return false;
        }
        if wanted == Wanted::default() {
            *self = Self::default();
            return true;
        }
        let rules = wanted.rules().map(|rule| self.counter_of(rule)).collect();
        self.counters.rules = rules;
        self.counters.denied.retain(|peer, _| wanted.allowed.contains_key(peer));
        wanted.allowed.keys().for_each(|peer| _ = self.counters.denied.entry(*peer).or_default());
        let flows = self.flows.get_or_insert_default();
        let rules = compile(&wanted, &self.counters);
        self.compiled = Some(Arc::new(data::Firewall::new(rules, Arc::clone(flows))));
        self.wanted = wanted;
        true
    }

    /// The firewall for the table.
    pub fn compiled(&self) -> Option<Arc<data::Firewall>> {
        self.compiled.clone()
    }

    /// The firewall's entry in `status`.
    pub fn status(&self, peers: &Peers, now: Millis) -> Option<status::Firewall> {
        let flows = self.flows.as_ref()?;
        let (inward, outward) = self.wanted.defaults();
        let default = |verdict, counter: &Counter| status::FirewallDefault { verdict, packets: counter.load(Relaxed) };
        let rules = self.wanted.rules().zip(&self.counters.rules);
        let restricted = peers.iter().filter_map(|peer| {
            let (number, name) = (peer.counters.id, peer.name.clone());
            let (allow, denied) = (self.wanted.allowed.get(&number)?, self.counters.denied.get(&number)?);
            let (allow, packets) = (allow.clone(), denied.load(Relaxed));
            Some(status::Restriction { peer: name, public_key: peer.public_key, allow, packets })
        });
        Some(status::Firewall {
            flows: flows.count(now) as u64,
            flow_limit: FLOWS as u64,
            r#in: default(inward, &self.counters.inward),
            out: default(outward, &self.counters.outward),
            rules: rules
                .map(|(rule, counter)| status::FirewallRule { rule: rule.clone(), packets: counter.load(Relaxed) })
                .collect(),
            restrictions: restricted.collect(),
        })
    }

    /// The existing counter of the same rule, or a new one.
    fn counter_of(&self, rule: &Rule) -> Counter {
        let before = self.wanted.rules().zip(&self.counters.rules);
        before.filter(|(known, _)| *known == rule).map(|(_, counter)| Arc::clone(counter)).next().unwrap_or_default()
    }
}

impl Wanted {
    fn of(firewall: Option<&Firewall>, peers: &Peers) -> Self {
        let allowed = peers.iter().filter_map(|peer| Some((peer.counters.id, peer.allow.clone()?))).collect();
        let Some(firewall) = firewall else { return Self { allowed, ..Self::default() } };
        let selected = |rule: &Rule| {
            let sites = rule.sites.as_ref()?;
            let selects = |name: &str, tags: &[_]| sites.iter().any(|site| site.selects(name, tags));
            let mut numbers: Vec<u32> =
                peers.iter().filter(|peer| selects(&peer.name, &peer.tags)).map(|peer| peer.counters.id).collect();
            numbers.sort_unstable();
            Some(numbers)
        };
        Self { firewall: Some(firewall.clone()), selected: firewall.rules.iter().map(selected).collect(), allowed }
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.firewall.iter().flat_map(|firewall| &firewall.rules)
    }

    /// The verdicts on flows that begin in the tunnel, and on others. Without a firewall only the coordinator's policy
    /// counts.
    fn defaults(&self) -> (Verdict, Verdict) {
        let of = |firewall: &Firewall| (firewall.inward, firewall.outward);
        self.firewall.as_ref().map_or((Verdict::Accept, Verdict::Accept), of)
    }
}

fn compile(wanted: &Wanted, counters: &Counters) -> data::Rules {
    let (inward, outward) = wanted.defaults();
    let default = |verdict, counter: &Counter| data::DefaultRule {
        verdict: self::verdict(verdict),
        counter: Arc::clone(counter),
    };
    let rules = wanted.rules().zip(&wanted.selected).zip(&counters.rules).map(|((rule, peers), counter)| data::Rule {
        direction: rule.direction.map(|direction| match direction {
            Direction::In => data::Direction::In,
            Direction::Out => data::Direction::Out,
        }),
        peers: peers.clone(),
        sources: Rule::prefixes(rule.sources.as_ref()).map(map_of),
        destinations: Rule::prefixes(rule.destinations.as_ref()).map(map_of),
        services: rule.services.as_deref().map(services),
        verdict: verdict(rule.verdict),
        counter: Arc::clone(counter),
    });
    let restrictions = wanted.allowed.iter().zip(counters.denied.values()).map(|((peer, allow), denied)| {
        (*peer, data::Restriction { services: services(allow), denied: Arc::clone(denied) })
    });
    data::Rules {
        inward: default(inward, &counters.inward),
        outward: default(outward, &counters.outward),
        rules: rules.collect(),
        restrictions: restrictions.collect(),
    }
}

fn verdict(verdict: Verdict) -> data::Verdict {
    match verdict {
        Verdict::Accept => data::Verdict::Accept,
        Verdict::Drop => data::Verdict::Drop,
    }
}

fn services(services: &[Service]) -> Vec<data::Service> {
    let compile = |service: &Service| data::Service {
        protocol: service.protocol().map_or(data::Protocol::Icmp, data::Protocol::Number),
        ports: service.ports(),
    };
    services.iter().map(compile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::peers::tests::peers;

    fn rule(json: &str) -> Rule {
        serde_json::from_str(json).unwrap()
    }

    fn firewall(rules: &[&str]) -> Firewall {
        let rules = rules.iter().map(|json| rule(json)).collect();
        Firewall { inward: Verdict::Drop, outward: Verdict::Accept, rules }
    }

    const WEB: &str = r#"{"Verdict": "accept", "Direction": "in", "Services": ["tcp/443", "icmp"]}"#;
    const BRANCH: &str = r#"{"Verdict": "accept", "Sites": ["tag:branch", "berlin"]}"#;

    #[test]
    fn nothing_is_compiled_anew_that_is_the_same() {
        let (_proto, mut peers) = peers(&[7, 8]);
        let mut filter = Filter::default();
        assert!(!filter.follow(None, &peers) && filter.compiled().is_none());
        let firewall = firewall(&[WEB, BRANCH]);
        assert!(filter.follow(Some(&firewall), &peers));
        assert!(!filter.follow(Some(&firewall), &peers));
        assert_eq!(filter.wanted.selected, [None, Some(vec![])]);

        peers.iter_mut().next().unwrap().name = "berlin".into();
        assert!(filter.follow(Some(&firewall), &peers));
        peers.iter_mut().nth(1).unwrap().tags = vec!["branch".parse().unwrap()];
        assert!(filter.follow(Some(&firewall), &peers));
        assert_eq!(filter.wanted.selected, [None, Some(vec![0, 1])]);
        assert!(filter.follow(None, &peers) && filter.compiled().is_none() && filter.flows.is_none());
    }

    #[test]
    fn what_the_coordinator_allows_needs_no_firewall_and_counts_by_peer() {
        let (_proto, mut peers) = peers(&[7, 8]);
        let mut filter = Filter::default();
        peers.iter_mut().nth(1).unwrap().allow = Some(vec!["tcp/443".parse().unwrap()]);
        assert!(filter.follow(None, &peers));
        let status = filter.status(&peers, Millis(1)).unwrap();
        assert_eq!((status.r#in.verdict, status.out.verdict), (Verdict::Accept, Verdict::Accept));
        let [restricted] = status.restrictions.as_slice() else { panic!("{status:?}") };
        assert_eq!((restricted.allow[0].to_string(), restricted.packets), ("tcp/443".to_owned(), 0));

        filter.counters.denied[&1].fetch_add(2, Relaxed);
        assert!(filter.follow(Some(&firewall(&[])), &peers), "both hold");
        let status = filter.status(&peers, Millis(1)).unwrap();
        assert_eq!((status.r#in.verdict, status.restrictions[0].packets), (Verdict::Drop, 2));
        peers.iter_mut().nth(1).unwrap().allow = Some(Vec::new());
        assert!(filter.follow(None, &peers) && filter.compiled().is_some(), "nothing is less than everything");
        peers.iter_mut().nth(1).unwrap().allow = None;
        assert!(filter.follow(None, &peers) && filter.compiled().is_none());
    }

    #[test]
    fn counters_follow_their_rule_to_another_place_and_flows_stay() {
        let (_proto, peers) = peers(&[7]);
        let mut filter = Filter::default();
        filter.follow(Some(&firewall(&[WEB, BRANCH])), &peers);
        let flows = filter.flows.clone().unwrap();
        filter.counters.rules[0].fetch_add(3, Relaxed);
        filter.counters.outward.fetch_add(5, Relaxed);
        filter.follow(Some(&firewall(&[BRANCH, WEB])), &peers);
        let status = filter.status(&peers, Millis(1)).unwrap();
        assert_eq!(status.rules.iter().map(|rule| rule.packets).collect::<Vec<_>>(), [0, 3]);
        assert_eq!((status.r#in.packets, status.out.packets), (0, 5));
        assert!(Arc::ptr_eq(&flows, filter.flows.as_ref().unwrap()));
    }
}
