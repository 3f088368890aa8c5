//! The metrics of a gateway: a [`Status`] as an OpenMetrics page, and the small web server that hands it out.
//!
//! [`FAMILIES`] is the one list of what is served. docs/metrics.md describes the same, and a test compares the two.

pub mod http;

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::status::{self, Health, PathKind, Status, WorkerLoad};

/// The media type of a page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The labels of a peer.
const PEER: &[&str] = &["peer", "public_key"];
/// The labels of a peer as Prometheus WireGuard exporters have them, for which there are dashboards.
const WIREGUARD: &[&str] = &["interface", "public_key", "allowed_ips", "friendly_name"];
const RELAY: &[&str] = &["relay", "transport", "address"];
const WORKER: &[&str] = &["worker"];

/// Metrics of one name.
struct Family {
    /// Without the `_total` of a counter and the `_info` of an info, which are only in the names of samples.
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    /// Without a backslash or a line feed.
    help: &'static str,
    samples: fn(&Status) -> Vec<Sample>,
}

/// The values of a family's labels, in their order, and the sample's own.
type Sample = (Vec<String>, f64);

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
        samples: |status| {
            status.coordinator.iter().map(|coordinator| (Vec::new(), truth(coordinator.connected))).collect()
        },
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
        samples: |status| status.ports.iter().map(|port| (port_labels(port), 1.0)).collect(),
    },
    Family {
        name: "penstock_drops",
        kind: MetricType::Counter,
        labels: &["reason"],
        help: "Packets dropped, by reason",
        samples: |status| status.drops.iter().map(|(reason, &count)| (vec![reason.clone()], count as f64)).collect(),
    },
    Family {
        name: "penstock_steering_frames",
        kind: MetricType::Counter,
        labels: &["side", "verdict"],
        help: "Frames seen by the XDP programs, by verdict; begins anew when the programs are attached anew",
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
        name: "penstock_peer_path",
        kind: MetricType::Gauge,
        labels: &["peer", "public_key", "path"],
        help: "1 for the path by which a peer is reached (direct, relay or none), 0 for the two others",
        samples: paths,
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
        help: "The round trip of the last probe to a peer; only for peers that the coordinator names",
        samples: |status| peers(status, |peer| peer.round_trip_ms.map(|millis| millis / 1e3)),
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
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(status)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page(Status);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in FAMILIES {
            let mut encoder = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (values, value) in (family.samples)(&self.0) {
                debug_assert_eq!(values.len(), family.labels.len(), "{}", family.name);
                let labels: Vec<(&str, String)> = family.labels.iter().copied().zip(values).collect();
                match (family.kind, labels.is_empty()) {
                    (MetricType::Info, _) => encoder.encode_info(&labels)?,
                    (kind, true) => encode(&mut encoder, kind, value)?,
                    (kind, false) => encode(&mut encoder.encode_family(&labels)?, kind, value)?,
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: f64) -> fmt::Result {
    match kind {
        MetricType::Counter => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
        _ => encoder.encode_gauge(&value),
    }
}

fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn info<const N: usize>(values: [&String; N]) -> Vec<Sample> {
    vec![(values.into_iter().cloned().collect(), 1.0)]
}

fn truth(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

/// Two parts of the gateway may have a problem with the same subject, but a sample's labels must be unique.
fn problem_ages(status: &Status) -> Vec<Sample> {
    let mut ages: BTreeMap<&str, u64> = BTreeMap::new();
    for problem in &status.problems {
        let age = ages.entry(&problem.subject).or_default();
        *age = problem.since_seconds.max(*age);
    }
    ages.into_iter().map(|(subject, age)| (vec![subject.to_owned()], age as f64)).collect()
}

fn relays(status: &Status, value: impl Fn(&crate::traversal::RelayState) -> Option<f64>) -> Vec<Sample> {
    let sample = |relay: &crate::traversal::RelayState| {
        let labels = vec![relay.name.clone(), relay.transport.clone(), relay.address.to_string()];
        value(relay).map(|value| (labels, value))
    };
    status.relays.iter().filter_map(sample).collect()
}

fn port_labels(port: &status::Port) -> Vec<String> {
    let status::Port { interface, kind, queue, worker, xdp_mode, zero_copy, .. } = port;
    let zero_copy = zero_copy.map(|zero_copy| zero_copy.to_string()).unwrap_or_default();
    let xdp_mode = xdp_mode.clone().unwrap_or_default();
    vec![interface.clone(), kind.clone(), queue.to_string(), worker.to_string(), xdp_mode, zero_copy]
}

fn verdicts(side: &str, counters: &BTreeMap<String, u64>) -> impl Iterator<Item = Sample> {
    counters.iter().map(move |(verdict, &count)| (vec![side.to_owned(), verdict.clone()], count as f64))
}

fn workers(status: &Status, value: impl Fn(&WorkerLoad) -> f64) -> Vec<Sample> {
    status.worker_loads.iter().enumerate().map(|(worker, load)| (vec![worker.to_string()], value(load))).collect()
}

fn peers(status: &Status, value: impl Fn(&status::Peer) -> Option<f64>) -> Vec<Sample> {
    status.peers.iter().filter_map(|peer| value(peer).map(|value| (peer_labels(peer), value))).collect()
}

fn peer_labels(peer: &status::Peer) -> Vec<String> {
    vec![peer.name.clone(), peer.public_key.to_string()]
}

fn paths(status: &Status) -> Vec<Sample> {
    let paths = [("direct", PathKind::Direct), ("relay", PathKind::Relay), ("none", PathKind::None)];
    let of = |peer: &status::Peer| {
        paths.map(|(path, kind)| {
            let mut labels = peer_labels(peer);
            labels.push(path.to_owned());
            (labels, truth(peer.path == kind))
        })
    };
    status.peers.iter().flat_map(of).collect()
}

fn wireguard(status: &Status, value: impl Fn(&status::Peer) -> f64) -> Vec<Sample> {
    let sample = |peer: &status::Peer| {
        let allowed_ips: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let labels = vec![status.name.clone(), peer.public_key.to_string(), allowed_ips.join(","), peer.name.clone()];
        (labels, value(peer))
    };
    status.peers.iter().map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, type, labels and meaning of a family.
    type Row = [String; 4];

    /// What a page says of its families; the labels are those of its samples.
    fn served(page: &str) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a name and a help");
                rows.push([name.to_owned(), String::new(), String::new(), help.to_owned()]);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let row = rows.last_mut().expect("HELP comes first");
                let (name, kind) = kind.split_once(' ').expect("a name and a type");
                assert_eq!(name, row[0]);
                kind.clone_into(&mut row[1]);
            } else if !line.starts_with('#') {
                let row = rows.last_mut().expect("a family comes first");
                let name = line.split(['{', ' ']).next().expect("a name");
                let suffix = match row[1].as_str() {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                assert_eq!(name, format!("{}{suffix}", row[0]));
                // No value of the sample's labels holds these characters.
                let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').expect("an end").0);
                let names: Vec<&str> =
                    labels.split("\",").filter_map(|label| label.split_once('=')).map(|l| l.0).collect();
                row[2] = names.join(", ");
            }
        }
        rows
    }

    /// The table of docs/metrics.md; names there are those of the samples.
    fn documented() -> Vec<Row> {
        let rows = include_str!("../../docs/metrics.md").lines().filter(|line| line.starts_with("| `"));
        let plain = |row: &str| -> Row {
            let cells: Vec<String> = row.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect();
            cells.try_into().expect("four cells")
        };
        let family = |[name, kind, labels, help]: Row| {
            let name = name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
            [name, kind, labels, help.trim_end_matches('.').to_owned()]
        };
        rows.map(plain).map(family).collect()
    }

    #[test]
    fn what_is_documented_is_what_is_served() {
        let (documented, served) = (documented(), served(&page(status::sample()).unwrap()));
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
            "penstock_steering_frames_total{side=\"wan\",verdict=\"redirect\"} 8.0".to_owned(),
            "penstock_worker_sleep_seconds_total{worker=\"0\"} 0.9".to_owned(),
            format!("penstock_peer_path{{peer=\"berlin\",public_key=\"{key}\",path=\"direct\"}} 1.0"),
            format!("penstock_peer_path{{peer=\"berlin\",public_key=\"{key}\",path=\"relay\"}} 0.0"),
            format!("penstock_peer_path_changes_total{{peer=\"berlin\",public_key=\"{key}\"}} 2.0"),
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

    /// A rule or a panel on a metric that nobody serves shows nothing, and nobody notices.
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

    /// One duplicate, and Prometheus refuses the whole page; one quotation mark too many, and it cannot be read.
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
