//! The metrics of a coordinator, and of a relay on a machine of its own.
//!
//! [`FAMILIES`] is the only list of what is served. docs/coordinator-metrics.md describes the same, and a test compares
//! the two. What a program does not have, such as the sites on a relay, has no samples.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use penstock_metrics::{MetricType, Sample, Value, one};

use crate::admin::{RelayReport, StatusReport};
use crate::admission::{Door, DoorReport};
use crate::relay::RelayServer;
use crate::udp::Sockets;

type Family = penstock_metrics::Family<Snapshot>;

/// The state at one moment.
#[derive(Debug)]
pub struct Snapshot {
    door: DoorReport,
    stun_answers: u64,
    stun_drops: u64,
    relay: Option<RelayReport>,
    /// Only a coordinator has this.
    coordinator: Option<StatusReport>,
}

impl From<StatusReport> for Snapshot {
    fn from(mut report: StatusReport) -> Self {
        let (door, relay) = (std::mem::take(&mut report.door), report.relay.take());
        let StatusReport { stun_answers, stun_drops, .. } = report;
        Self { door, stun_answers, stun_drops, relay, coordinator: Some(report) }
    }
}

impl Snapshot {
    /// The state of a relay on a machine of its own.
    #[must_use]
    pub fn of_relay(relay: &RelayServer, udp: &Sockets, door: &Door) -> Self {
        Self {
            door: door.report(),
            stun_answers: udp.stun_answers.load(Relaxed),
            stun_drops: udp.stun_drops.load(Relaxed),
            relay: Some(RelayReport::of(relay)),
            coordinator: None,
        }
    }
}

const FAMILIES: &[Family] = &[
    Family {
        name: "penstock_coordinator_build",
        kind: MetricType::Info,
        labels: &["version", "role"],
        help: "The version that runs, as a coordinator or as a relay",
        samples: |snapshot| {
            let role = if snapshot.coordinator.is_some() { "coordinator" } else { "relay" };
            vec![(vec![env!("CARGO_PKG_VERSION").to_owned(), role.to_owned()], Value::Number(1.0))]
        },
    },
    Family {
        name: "penstock_coordinator_sites",
        kind: MetricType::Gauge,
        labels: &["state"],
        help: "Sites that are known: approved, waiting for an administrator, revoked",
        samples: |snapshot| {
            let states = |report: &StatusReport| {
                let StatusReport { sites, sites_waiting, sites_revoked, .. } = report;
                [("approved", *sites), ("waiting", *sites_waiting), ("revoked", *sites_revoked)]
            };
            let states = snapshot.coordinator.iter().flat_map(states);
            states.map(|(state, count)| (vec![state.to_owned()], (count as f64).into())).collect()
        },
    },
    Family {
        name: "penstock_coordinator_sites_connected",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Sites that are connected",
        samples: |snapshot| coordinators(snapshot, |report| report.sites_connected as f64),
    },
    Family {
        name: "penstock_coordinator_subnets_waiting",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Subnets that wait for an administrator",
        samples: |snapshot| coordinators(snapshot, |report| report.subnets_waiting as f64),
    },
    Family {
        name: "penstock_coordinator_leases",
        kind: MetricType::Counter,
        labels: &[],
        help: "Leases that were given to sites",
        samples: |snapshot| coordinators(snapshot, |report| report.leases_given as f64),
    },
    Family {
        name: "penstock_coordinator_relays",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Relays announced to gateways, including its own",
        samples: |snapshot| coordinators(snapshot, |report| report.relays.len() as f64),
    },
    Family {
        name: "penstock_coordinator_relays_connected",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Relays on other machines that are connected to be told who may talk",
        samples: |snapshot| coordinators(snapshot, |report| report.relays_connected.len() as f64),
    },
    Family {
        name: "penstock_coordinator_longest_hold_seconds",
        kind: MetricType::Gauge,
        labels: &[],
        help: "The longest time that all sites had to wait for one change",
        samples: |snapshot| coordinators(snapshot, |report| report.longest_hold as f64 / 1e6),
    },
    Family {
        name: "penstock_connections_unproven",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Connections that have not yet proven which site they belong to",
        samples: |snapshot| one(snapshot.door.unproven as f64),
    },
    Family {
        name: "penstock_connections_refused",
        kind: MetricType::Counter,
        labels: &["reason"],
        help: "Connections that were not let in, by reason",
        samples: |snapshot| by_reason(&snapshot.door.refused),
    },
    Family {
        name: "penstock_log_lines_left_out",
        kind: MetricType::Counter,
        labels: &[],
        help: "Lines about connections that were not logged, since one source had too many",
        samples: |snapshot| one(snapshot.door.lines_left_out as f64),
    },
    Family {
        name: "penstock_stun_answers",
        kind: MetricType::Counter,
        labels: &[],
        help: "STUN requests that were answered",
        samples: |snapshot| one(snapshot.stun_answers as f64),
    },
    Family {
        name: "penstock_stun_drops",
        kind: MetricType::Counter,
        labels: &[],
        help: "STUN messages that were not answered",
        samples: |snapshot| one(snapshot.stun_drops as f64),
    },
    Family {
        name: "penstock_relay_sites",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Sites that the relay knows",
        samples: |snapshot| relays(snapshot, |relay| relay.sites as f64),
    },
    Family {
        name: "penstock_relay_sessions",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Sites that are bound at the relay, so that it can forward to them",
        samples: |snapshot| relays(snapshot, |relay| relay.bindings as f64),
    },
    Family {
        name: "penstock_relay_datagrams",
        kind: MetricType::Counter,
        labels: &[],
        help: "Datagrams that the relay forwarded",
        samples: |snapshot| relays(snapshot, |relay| relay.datagrams as f64),
    },
    Family {
        name: "penstock_relay_bytes",
        kind: MetricType::Counter,
        labels: &[],
        help: "Bytes of these datagrams",
        samples: |snapshot| relays(snapshot, |relay| relay.bytes as f64),
    },
    Family {
        name: "penstock_relay_drops",
        kind: MetricType::Counter,
        labels: &["reason"],
        help: "Datagrams that the relay did not forward, by reason",
        samples: |snapshot| snapshot.relay.iter().flat_map(|relay| by_reason(&relay.drops)).collect(),
    },
];

/// The page of a program in this state.
///
/// # Errors
/// Never in practice: the encoder writes to a string.
pub fn page(snapshot: Snapshot) -> Result<String, fmt::Error> {
    penstock_metrics::page(FAMILIES, snapshot)
}

fn coordinators(snapshot: &Snapshot, value: impl Fn(&StatusReport) -> f64) -> Vec<Sample> {
    snapshot.coordinator.iter().flat_map(|report| one(value(report))).collect()
}

fn relays(snapshot: &Snapshot, value: impl Fn(&RelayReport) -> f64) -> Vec<Sample> {
    snapshot.relay.iter().flat_map(|relay| one(value(relay))).collect()
}

fn by_reason(counts: &BTreeMap<String, u64>) -> Vec<Sample> {
    counts.iter().map(|(reason, count)| (vec![reason.clone()], (*count as f64).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use penstock_metrics::table::{documented, served};
    use serde_json::json;

    fn report() -> StatusReport {
        let relay = json!({"Sites": 3, "Bindings": 2, "Datagrams": 10, "Bytes": 1400, "Drops": {"queue-full": 1}});
        let door = json!({"Unproven": 4, "Refused": {"proof": 5}, "LinesLeftOut": 6});
        let report = json!({
            "Version": "0.1.0", "Sites": 3, "SitesConnected": 2, "SitesWaiting": 1, "SitesRevoked": 0,
            "SubnetsWaiting": 7, "LeasesGiven": 8, "Door": door, "LongestHold": 1500, "Relays": [],
            "RelaysConnected": [], "StunServers": [], "StunAnswers": 9, "StunDrops": 1, "Relay": relay, "Acme": null,
        });
        serde_json::from_value(report).expect("a report")
    }

    #[test]
    fn what_is_documented_is_what_is_served() {
        let documented = documented(include_str!("../../../docs/coordinator-metrics.md"));
        let served = served(&page(report().into()).expect("a page"));
        for (documented, served) in documented.iter().zip(&served) {
            assert_eq!(documented, served);
        }
        assert_eq!(documented.len(), served.len());
    }

    #[test]
    fn values_are_those_of_the_report_and_a_relay_has_its_own_only() {
        let coordinators = page(report().into()).expect("a page");
        let relays = page(Snapshot { coordinator: None, ..report().into() }).expect("a page");
        for (expected, also_of_relays) in [
            ("penstock_coordinator_sites{state=\"waiting\"} 1.0", false),
            ("penstock_coordinator_sites_connected 2.0", false),
            ("penstock_coordinator_leases_total 8.0", false),
            ("penstock_coordinator_longest_hold_seconds 0.0015", false),
            ("penstock_connections_refused_total{reason=\"proof\"} 5.0", true),
            ("penstock_log_lines_left_out_total 6.0", true),
            ("penstock_stun_answers_total 9.0", true),
            ("penstock_relay_sessions 2.0", true),
            ("penstock_relay_drops_total{reason=\"queue-full\"} 1.0", true),
        ] {
            assert!(coordinators.lines().any(|line| line == expected), "{expected} is missing:\n{coordinators}");
            assert_eq!(relays.lines().any(|line| line == expected), also_of_relays, "{expected}:\n{relays}");
        }
        assert!(relays.contains("role=\"relay\""));
    }

    /// A rule or panel about a metric that nobody serves shows nothing, and nobody would notice.
    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let page = page(report().into()).expect("a page");
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let served: Vec<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
        for text in [
            include_str!("../../../scripts/packaging/monitoring/penstock-coordinator.rules.yml"),
            include_str!("../../../scripts/packaging/monitoring/grafana-coordinator.json"),
        ] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let asked: Vec<&str> = words.filter(|word| word.starts_with("penstock_")).collect();
            assert!(!asked.is_empty());
            let unknown: Vec<&&str> = asked.iter().filter(|name| !served.contains(name)).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }
}
