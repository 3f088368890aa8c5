//! The metrics of a gateway: a [`Status`] in Prometheus's terms.
//!
//! [`FAMILIES`] is the only list of what is served. docs/metrics.md describes the same, and a test compares the two.

use std::collections::BTreeMap;
use std::fmt;

use penstock_dataplane::work::{BATCH_SIZES, RING_FILLS};
use penstock_metrics::{MetricType, Sample, Value, one, truth};

use crate::profile::firewall::{Direction, Verdict};
use crate::status::{self, FirewallRule, Health, PathKind, RingFill, Status, WorkerLoad};

type Family = penstock_metrics::Family<Status>;

/// The labels of a peer.
const PEER: &[&str] = &["peer", "public_key"];
/// The labels of a peer as existing Prometheus exporters for WireGuard have them, so that their dashboards work.
const WIREGUARD: &[&str] = &["interface", "public_key", "allowed_ips", "friendly_name"];
const RELAY: &[&str] = &["relay", "transport", "address"];
const WORKER: &[&str] = &["worker"];

const FAMILIES: &[Family] = &[
    Family {
        name: "penstock_build",
        kind: MetricType::Info,
        labels: &["version"],
        help: "The version that runs",
        samples: |status| info([&status.version]),
    },
    Family {
        name: "penstock_gateway",
        kind: MetricType::Info,
        labels: &["name", "public_key", "wan_mode", "lan_mode", "cipher"],
        help: "Who the gateway is, and what drives its two sides",
        samples: |status| {
            let Status { name, public_key, wan_mode, lan_mode, cipher, .. } = status;
            info([name, &public_key.to_string(), &wan_mode.mode, &lan_mode.mode, &cipher.implementation])
        },
    },
    Family {
        name: "penstock_healthy",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Whether there are no problems (1) or some (0)",
        samples: |status| one(truth(status.health == Health::Healthy)),
    },
    Family {
        name: "penstock_forwarding",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Whether packets are forwarded at all (1): the workers run, and the WAN interface is there and up",
        samples: |status| one(truth(status.forwarding)),
    },
    Family {
        name: "penstock_problem_age_seconds",
        kind: MetricType::Gauge,
        labels: &["subject"],
        help: "How long ago each problem that still lasts was first seen",
        samples: problem_ages,
    },
    Family {
        name: "penstock_guarded_prefixes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Remote prefixes that are blocked wherever they do not lead into the tunnel",
        samples: |status| one(status.guarded.len() as f64),
    },
    Family {
        name: "penstock_tunnel_mtu_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "The largest packet inside the tunnel",
        samples: |status| one(f64::from(status.tunnel_mtu)),
    },
    Family {
        name: "penstock_coordinator_connected",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Whether there is a connection to the coordinator; only with a coordinator",
        samples: |status| status.coordinator.iter().flat_map(|coordinator| one(truth(coordinator.connected))).collect(),
    },
    Family {
        name: "penstock_relay_bound",
        kind: MetricType::Gauge,
        labels: RELAY,
        help: "Whether a relay that the coordinator names can be used by this gateway",
        samples: |status| relays(status, |relay| Some(truth(relay.bound))),
    },
    Family {
        name: "penstock_relay_round_trip_seconds",
        kind: MetricType::Gauge,
        labels: RELAY,
        help: "The round trip to a relay, once measured",
        samples: |status| relays(status, |relay| relay.round_trip_ms.map(|millis| millis / 1e3)),
    },
    Family {
        name: "penstock_port",
        kind: MetricType::Info,
        labels: &["interface", "kind", "queue", "worker", "xdp_mode", "zero_copy"],
        help: "The device queues that each worker serves, and how",
        samples: |status| status.ports.iter().map(|port| (port_labels(port), Value::Number(1.0))).collect(),
    },
    Family {
        name: "penstock_drops",
        kind: MetricType::Counter,
        labels: &["reason"],
        help: "Packets dropped, by reason",
        samples: |status| drops(&status.drops),
    },
    Family {
        name: "penstock_firewall_packets",
        kind: MetricType::Counter,
        labels: &["rule", "name", "direction", "verdict"],
        help: "Packets that a rule of the firewall (by its place from 1) or its default decided about: the first of each accepted flow and every dropped one; starts again at 0 when the rule is changed",
        samples: firewall_packets,
    },
    Family {
        name: "penstock_firewall_flows",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Flows that the firewall knows; only with a firewall",
        samples: |status| status.firewall.iter().map(|firewall| (Vec::new(), (firewall.flows as f64).into())).collect(),
    },
    Family {
        name: "penstock_steering_frames",
        kind: MetricType::Counter,
        labels: &["side", "verdict"],
        help: "Frames seen by the XDP programs, by verdict; starts again at 0 when the programs are attached again",
        samples: |status| verdicts("wan", &status.steering.wan).chain(verdicts("lan", &status.steering.lan)).collect(),
    },
    Family {
        name: "penstock_worker_batches",
        kind: MetricType::Counter,
        labels: WORKER,
        help: "Batches of packets that a worker received, without empty ones",
        samples: |status| workers(status, |load| load.batches as f64),
    },
    Family {
        name: "penstock_worker_packets",
        kind: MetricType::Counter,
        labels: WORKER,
        help: "Packets that a worker received",
        samples: |status| workers(status, |load| load.packets as f64),
    },
    Family {
        name: "penstock_worker_sleeps",
        kind: MetricType::Counter,
        labels: WORKER,
        help: "How often a worker had no packets, slept and was woken",
        samples: |status| workers(status, |load| load.sleeps as f64),
    },
    Family {
        name: "penstock_worker_sleep_seconds",
        kind: MetricType::Counter,
        labels: WORKER,
        help: "How long a worker slept, with a sleep that still lasts; the time not slept is load",
        samples: |status| workers(status, |load| load.slept_ms as f64 / 1e3),
    },
    Family {
        name: "penstock_worker_shaped_bytes",
        kind: MetricType::Counter,
        labels: WORKER,
        help: "Bytes of outer IP packets that a worker sent and held to WanRate",
        samples: |status| workers(status, |load| load.shaped.bytes as f64),
    },
    Family {
        name: "penstock_worker_waiting_packets",
        kind: MetricType::Gauge,
        labels: WORKER,
        help: "Packets that wait in a worker for WanRate",
        samples: |status| workers(status, |load| load.shaped.waiting_packets as f64),
    },
    Family {
        name: "penstock_worker_batch_packets",
        kind: MetricType::Histogram,
        labels: WORKER,
        help: "Sizes of the batches that a worker received",
        samples: batch_sizes,
    },
    Family {
        name: "penstock_worker_ring_packets",
        kind: MetricType::Histogram,
        labels: &["worker", "side"],
        help: "Packets in an AF_XDP receive ring whenever a worker took some from it; it holds 2048",
        samples: ring_fills,
    },
    Family {
        name: "penstock_peer_path",
        kind: MetricType::Gauge,
        labels: &["peer", "public_key", "path"],
        help: "1 for the path by which a peer is reached (direct, relay or none), 0 for the two others",
        samples: paths,
    },
    Family {
        name: "penstock_peer_path_reason",
        kind: MetricType::Info,
        labels: &["peer", "public_key", "reason"],
        help: "Why a peer is reached by that path and no better one; only for peers that the coordinator names",
        samples: path_reasons,
    },
    Family {
        name: "penstock_peer_path_changes",
        kind: MetricType::Counter,
        labels: PEER,
        help: "How often another path to a peer was chosen; stays 0 for a peer that only the profile names",
        samples: |status| peers(status, |peer| Some(peer.path_changes as f64)),
    },
    Family {
        name: "penstock_peer_received_bytes",
        kind: MetricType::Counter,
        labels: PEER,
        help: "Bytes of WireGuard messages received from a peer",
        samples: |status| peers(status, |peer| Some(peer.rx_bytes as f64)),
    },
    Family {
        name: "penstock_peer_sent_bytes",
        kind: MetricType::Counter,
        labels: PEER,
        help: "Bytes of WireGuard messages sent to a peer",
        samples: |status| peers(status, |peer| Some(peer.tx_bytes as f64)),
    },
    Family {
        name: "penstock_peer_received_packets",
        kind: MetricType::Counter,
        labels: PEER,
        help: "Messages received from a peer with a packet or a keepalive in them, without those of handshakes",
        samples: |status| peers(status, |peer| Some(peer.rx_packets as f64)),
    },
    Family {
        name: "penstock_peer_sent_packets",
        kind: MetricType::Counter,
        labels: PEER,
        help: "Messages sent to a peer with a packet or a keepalive in them, without those of handshakes",
        samples: |status| peers(status, |peer| Some(peer.tx_packets as f64)),
    },
    Family {
        name: "penstock_peer_handshakes",
        kind: MetricType::Counter,
        labels: PEER,
        help: "Handshakes with a peer that were completed",
        samples: |status| peers(status, |peer| Some(peer.handshakes as f64)),
    },
    Family {
        name: "penstock_peer_last_handshake_timestamp_seconds",
        kind: MetricType::Gauge,
        labels: PEER,
        help: "When the last handshake with a peer was, in seconds since the epoch; nothing before the first",
        samples: |status| peers(status, |peer| peer.last_handshake.map(|at| at as f64)),
    },
    Family {
        name: "penstock_peer_round_trip_seconds",
        kind: MetricType::Gauge,
        labels: PEER,
        help: "The round trip of the last probe to a peer; only for peers that answer probes",
        samples: |status| peers(status, |peer| peer.round_trip_ms.map(|millis| millis / 1e3)),
    },
    Family {
        name: "penstock_peer_path_round_trip_seconds",
        kind: MetricType::Gauge,
        labels: &["peer", "public_key", "path", "relay"],
        help: "The round trip of the last probe by each kind of path (direct or relay) that answers, in use or not",
        samples: path_round_trips,
    },
    Family {
        name: "penstock_peer_mtu_bytes",
        kind: MetricType::Gauge,
        labels: &["peer", "public_key", "side"],
        help: "The largest packet to a peer: inside the tunnel (inner) and outside (outer); nothing until it is known",
        samples: mtus,
    },
    Family {
        name: "wireguard_sent_bytes",
        kind: MetricType::Counter,
        labels: WIREGUARD,
        help: "As penstock_peer_sent_bytes, by the name that Prometheus WireGuard exporters use",
        samples: |status| wireguard(status, |peer| peer.tx_bytes as f64),
    },
    Family {
        name: "wireguard_received_bytes",
        kind: MetricType::Counter,
        labels: WIREGUARD,
        help: "As penstock_peer_received_bytes, by the name that Prometheus WireGuard exporters use",
        samples: |status| wireguard(status, |peer| peer.rx_bytes as f64),
    },
    Family {
        name: "wireguard_latest_handshake_seconds",
        kind: MetricType::Gauge,
        labels: WIREGUARD,
        help: "When the last handshake was, in seconds since the epoch; 0 before the first",
        samples: |status| wireguard(status, |peer| peer.last_handshake.unwrap_or(0) as f64),
    },
];

/// The page of a gateway in this state.
///
/// # Errors
/// Never, as far as the encoder goes: it writes to a string.
pub fn page(status: Status) -> Result<String, fmt::Error> {
    penstock_metrics::page(FAMILIES, status)
}

fn info<const N: usize>(values: [&String; N]) -> Vec<Sample> {
    vec![(values.into_iter().cloned().collect(), Value::Number(1.0))]
}

/// Two parts of the gateway may have a problem with the same subject, but a sample's labels must be unique.
fn problem_ages(status: &Status) -> Vec<Sample> {
    let mut ages: BTreeMap<&str, u64> = BTreeMap::new();
    for problem in &status.problems {
        let age = ages.entry(&problem.subject).or_default();
        *age = problem.since_seconds.max(*age);
    }
    ages.into_iter().map(|(subject, age)| (vec![subject.to_owned()], (age as f64).into())).collect()
}

fn firewall_packets(status: &Status) -> Vec<Sample> {
    let Some(firewall) = &status.firewall else { return Vec::new() };
    let verdict = |verdict| if verdict == Verdict::Accept { "accept" } else { "drop" };
    let labels = |rule: &str, name: &str, direction: &str, verdict: &str| {
        [rule, name, direction, verdict].map(str::to_owned).to_vec()
    };
    let rules = firewall.rules.iter().zip(1..).map(|(FirewallRule { rule, packets }, place)| {
        let direction = match rule.direction {
            Some(Direction::In) => "in",
            Some(Direction::Out) => "out",
            None => "both",
        };
        let name = rule.name.as_deref().unwrap_or_default();
        (labels(&place.to_string(), name, direction, verdict(rule.verdict)), (*packets as f64).into())
    });
    let defaults = [("in", firewall.r#in), ("out", firewall.out)];
    let defaults = defaults.map(|(direction, default)| {
        (labels("default", "", direction, verdict(default.verdict)), (default.packets as f64).into())
    });
    rules.chain(defaults).collect()
}

fn relays(status: &Status, value: impl Fn(&crate::traversal::RelayState) -> Option<f64>) -> Vec<Sample> {
    let sample = |relay: &crate::traversal::RelayState| {
        let labels = vec![relay.name.clone(), relay.transport.clone(), relay.address.to_string()];
        value(relay).map(|value| (labels, value.into()))
    };
    status.relays.iter().filter_map(sample).collect()
}

fn port_labels(port: &status::Port) -> Vec<String> {
    let status::Port { interface, kind, queue, worker, xdp_mode, zero_copy, .. } = port;
    let zero_copy = zero_copy.map(|zero_copy| zero_copy.to_string()).unwrap_or_default();
    let xdp_mode = xdp_mode.clone().unwrap_or_default();
    vec![interface.clone(), kind.clone(), queue.to_string(), worker.to_string(), xdp_mode, zero_copy]
}

fn drops(drops: &BTreeMap<String, u64>) -> Vec<Sample> {
    drops.iter().map(|(reason, &count)| (vec![reason.clone()], (count as f64).into())).collect()
}

fn verdicts(side: &str, counters: &BTreeMap<String, u64>) -> impl Iterator<Item = Sample> {
    counters.iter().map(move |(verdict, &count)| (vec![side.to_owned(), verdict.clone()], (count as f64).into()))
}

fn workers(status: &Status, value: impl Fn(&WorkerLoad) -> f64) -> Vec<Sample> {
    status
        .worker_loads
        .iter()
        .enumerate()
        .map(|(worker, load)| (vec![worker.to_string()], value(load).into()))
        .collect()
}

fn batch_sizes(status: &Status) -> Vec<Sample> {
    let sample = |(worker, load): (usize, &WorkerLoad)| {
        (vec![worker.to_string()], histogram(&BATCH_SIZES, &load.batch_sizes, load.packets))
    };
    status.worker_loads.iter().enumerate().map(sample).collect()
}

/// For the sides that have rings.
fn ring_fills(status: &Status) -> Vec<Sample> {
    let sample = |worker: usize, side: &str, RingFill { times, packets }: RingFill| {
        let labels = vec![worker.to_string(), side.to_owned()];
        (packets > 0).then(|| (labels, histogram(&RING_FILLS, &times, packets)))
    };
    let of = |(worker, load): (usize, &WorkerLoad)| {
        [sample(worker, "wan", load.wan_rings), sample(worker, "lan", load.lan_rings)]
    };
    status.worker_loads.iter().enumerate().flat_map(of).flatten().collect()
}

fn histogram(bounds: &[usize], counts: &[u64], sum: u64) -> Value {
    let buckets = bounds.iter().zip(counts).map(|(bound, count)| (*bound as f64, *count));
    Value::Histogram { sum: sum as f64, buckets: buckets.collect() }
}

/// The shortest round trip of each kind of path that answers, and of each relay: a series per address would be too
/// many.
fn path_round_trips(status: &Status) -> Vec<Sample> {
    let mut shortest: BTreeMap<Vec<String>, f64> = BTreeMap::new();
    for peer in &status.peers {
        for path in &peer.answering {
            let kind = if path.path == PathKind::Relay { "relay" } else { "direct" };
            let mut labels = peer_labels(peer);
            labels.extend([kind.to_owned(), path.relay.clone().unwrap_or_default()]);
            let known = shortest.entry(labels).or_insert(f64::INFINITY);
            *known = known.min(path.round_trip_ms / 1e3);
        }
    }
    shortest.into_iter().map(|(labels, seconds)| (labels, seconds.into())).collect()
}

fn mtus(status: &Status) -> Vec<Sample> {
    let of = |peer: &status::PeerStatus| {
        let sizes = peer.mtu.as_ref().map(|mtu| [("inner", mtu.inner), ("outer", mtu.outer)]);
        let labels = peer_labels(peer);
        sizes.into_iter().flatten().map(move |(side, bytes)| {
            let labels = [labels.as_slice(), &[side.to_owned()]].concat();
            (labels, f64::from(bytes).into())
        })
    };
    status.peers.iter().flat_map(of).collect()
}

fn peers(status: &Status, value: impl Fn(&status::PeerStatus) -> Option<f64>) -> Vec<Sample> {
    status.peers.iter().filter_map(|peer| value(peer).map(|value| (peer_labels(peer), value.into()))).collect()
}

fn peer_labels(peer: &status::PeerStatus) -> Vec<String> {
    vec![peer.name.clone(), peer.public_key.to_string()]
}

fn paths(status: &Status) -> Vec<Sample> {
    let paths = [("direct", PathKind::Direct), ("relay", PathKind::Relay), ("none", PathKind::None)];
    let of = |peer: &status::PeerStatus| {
        paths.map(|(path, kind)| {
            let mut labels = peer_labels(peer);
            labels.push(path.to_owned());
            (labels, truth(peer.path == kind).into())
        })
    };
    status.peers.iter().flat_map(of).collect()
}

fn path_reasons(status: &Status) -> Vec<Sample> {
    let of = |peer: &status::PeerStatus| {
        let reason = peer.reason_kind.clone()?;
        Some(([peer_labels(peer), vec![reason]].concat(), Value::Number(1.0)))
    };
    status.peers.iter().filter_map(of).collect()
}

fn wireguard(status: &Status, value: impl Fn(&status::PeerStatus) -> f64) -> Vec<Sample> {
    let sample = |peer: &status::PeerStatus| {
        let allowed_ips: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let labels = vec![status.name.clone(), peer.public_key.to_string(), allowed_ips.join(","), peer.name.clone()];
        (labels, value(peer).into())
    };
    status.peers.iter().map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use penstock_metrics::table::{documented, served};

    #[test]
    fn what_is_documented_is_what_is_served() {
        let (documented, served) =
            (documented(include_str!("../../docs/metrics.md")), served(&page(status::sample()).unwrap()));
        for (documented, served) in documented.iter().zip(&served) {
            assert_eq!(documented, served);
        }
        assert_eq!(documented.len(), served.len());
    }

    #[test]
    fn values_and_labels_are_those_of_the_status() {
        let status = status::sample();
        let key = status.public_key.to_string();
        let page = page(status).unwrap();
        for expected in [
            "penstock_build_info{version=\"0.1.0\"} 1".to_owned(),
            "penstock_healthy 0.0".to_owned(),
            "penstock_forwarding 1.0".to_owned(),
            "penstock_problem_age_seconds{subject=\"eth1\"} 5.0".to_owned(),
            "penstock_drops_total{reason=\"replayed\"} 3.0".to_owned(),
            "penstock_firewall_packets_total{rule=\"1\",name=\"web\",direction=\"in\",verdict=\"accept\"} 7.0"
                .to_owned(),
            "penstock_firewall_packets_total{rule=\"default\",name=\"\",direction=\"out\",verdict=\"accept\"} 9.0"
                .to_owned(),
            "penstock_steering_frames_total{side=\"wan\",verdict=\"redirect\"} 8.0".to_owned(),
            "penstock_worker_sleep_seconds_total{worker=\"0\"} 0.9".to_owned(),
            format!("penstock_peer_path{{peer=\"berlin\",public_key=\"{key}\",path=\"direct\"}} 1.0"),
            format!("penstock_peer_path{{peer=\"berlin\",public_key=\"{key}\",path=\"relay\"}} 0.0"),
            format!("penstock_peer_path_reason_info{{peer=\"berlin\",public_key=\"{key}\",reason=\"answered\"}} 1"),
            format!("penstock_peer_handshakes_total{{peer=\"berlin\",public_key=\"{key}\"}} 4.0"),
            format!("penstock_peer_received_packets_total{{peer=\"berlin\",public_key=\"{key}\"}} 6.0"),
            format!("penstock_peer_sent_packets_total{{peer=\"berlin\",public_key=\"{key}\"}} 1.0"),
            format!("penstock_peer_path_changes_total{{peer=\"berlin\",public_key=\"{key}\"}} 2.0"),
            "penstock_worker_batch_packets_bucket{le=\"16.0\",worker=\"0\"} 1".to_owned(),
            "penstock_worker_batch_packets_bucket{le=\"32.0\",worker=\"0\"} 3".to_owned(),
            "penstock_worker_batch_packets_count{worker=\"0\"} 3".to_owned(),
            "penstock_worker_ring_packets_sum{worker=\"0\",side=\"wan\"} 170.0".to_owned(),
            format!(
                "penstock_peer_path_round_trip_seconds{{peer=\"berlin\",public_key=\"{key}\",path=\"relay\",\
                 relay=\"coordinator\"}} 0.008"
            ),
            format!("penstock_peer_mtu_bytes{{peer=\"berlin\",public_key=\"{key}\",side=\"outer\"}} 1400.0"),
            format!("penstock_peer_round_trip_seconds{{peer=\"berlin\",public_key=\"{key}\"}} 0.0015"),
            format!(
                "wireguard_received_bytes_total{{interface=\"amsterdam\",public_key=\"{key}\",\
                 allowed_ips=\"10.102.0.0/24\",friendly_name=\"berlin\"}} 1536.0"
            ),
        ] {
            assert!(page.lines().any(|line| line == expected), "{expected} is missing:\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    /// A rule or panel about a metric that nobody serves shows nothing, and nobody would notice.
    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let page = page(status::sample()).unwrap();
        let served: Vec<&str> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        for text in [
            include_str!("../../scripts/packaging/monitoring/penstock.rules.yml"),
            include_str!("../../scripts/packaging/monitoring/grafana-dashboard.json"),
        ] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let asked: Vec<&str> = words.filter(|word| word.starts_with("penstock_")).collect();
            assert!(!asked.is_empty());
            let unknown: Vec<&&str> = asked.iter().filter(|name| !served.contains(name)).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }

    /// One duplicate, and Prometheus refuses the whole page; one quotation mark too many, and it cannot parse it.
    #[test]
    fn labels_stay_unique_and_quoted() {
        let mut status = status::sample();
        let mut again = status.problems[0].clone();
        again.since_seconds = 7;
        status.problems.push(again);
        status.peers[0].name = "a \"b\" \\ c".to_owned();
        let page = page(status).unwrap();
        let ages: Vec<&str> = page.lines().filter(|line| line.starts_with("penstock_problem_age_seconds{")).collect();
        assert_eq!(ages, ["penstock_problem_age_seconds{subject=\"eth1\"} 7.0"]);
        assert!(page.contains(r#"{peer="a \"b\" \\ c",public_key="#), "{page}");
    }
}
