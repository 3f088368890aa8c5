//! What `penstock status --json` prints: a contract with whoever reads it.
//!
//! Fields may be added, never renamed, retyped or removed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use penstock_dataplane::work::{BATCH_SIZES, RING_FILLS};
use penstock_proto::coordination::Service;
use penstock_proto::stun::NatReport;
use serde::{Deserialize, Serialize};

use crate::key::PublicKey;
use crate::problem::Problem;
#[cfg(test)]
use crate::profile::firewall::Direction;
use crate::profile::firewall::{Rule, Verdict};
use crate::traversal::RelayState;

/// A running gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// Name of the profile and the tun device.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Version of Penstock.
    pub version: String,
    /// This gateway's public key.
    pub public_key: PublicKey,
    /// The tunnel's UDP port.
    pub local_port: u16,
    /// The kind of NAT, in words; "unknown" as long as no STUN server was asked.
    pub nat_type: String,
    /// The same in RFC 4787's terms, once STUN has found out.
    #[serde(default)]
    pub nat: Option<NatReport>,
    /// The state of the connection to the coordinator, if there is one.
    #[serde(default)]
    pub coordinator: Option<Coordinator>,
    /// The relays that the coordinator names.
    #[serde(default)]
    pub relays: Vec<RelayState>,
    /// Largest inner packet.
    pub tunnel_mtu: u16,
    /// Worker threads.
    pub workers: u16,
    /// What seals and opens, and how fast.
    #[serde(default)]
    pub cipher: Cipher,
    /// How the WAN is driven.
    pub wan_mode: Mode,
    /// How the LAN is driven.
    pub lan_mode: Mode,
    /// Each worker's end of each device's queue.
    pub ports: Vec<Port>,
    /// The other sites.
    pub peers: Vec<PeerStatus>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What the firewall has done; null if the profile has none and no peer is restricted.
    #[serde(default)]
    pub firewall: Option<Firewall>,
    /// Frames seen by the steering programs, by verdict.
    pub steering: Steering,
    /// The overall state.
    #[serde(default)]
    pub health: Health,
    /// Whether packets are forwarded at all: the workers run, and the WAN interface exists and is up.
    #[serde(default)]
    pub forwarding: bool,
    /// What is wrong.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Remote prefixes that are blocked wherever they do not lead into the tunnel, until they are released.
    #[serde(default)]
    pub guarded: Vec<IpNet>,
    /// What each worker has done since the start, in the workers' order.
    #[serde(default)]
    pub worker_loads: Vec<WorkerLoad>,
}

/// The overall state of a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It runs and has no problems.
    #[default]
    Healthy,
    /// It runs and has problems.
    Degraded,
}

/// The connection to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Coordinator {
    /// The coordinator's URL.
    pub url: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Its name for this site, once known.
    pub site: Option<String>,
    /// Whether this site still waits for an administrator's approval.
    pub pending: bool,
    /// Why there is no connection, in a sentence.
    pub error: Option<String>,
    /// The key of the overlay's authority, if the profile pins one: the pinned one, or its latest successor.
    #[serde(default)]
    pub authority: Option<String>,
    /// The refused parts of the coordinator's map, up to a limit.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// Subnets of this site that the coordinator does not announce to the others, since they wait for an administrator.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
}

/// A subnet that waits for an administrator of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Waiting {
    /// The subnet.
    pub subnet: IpNet,
    /// The coordinator's reason, in a sentence without control characters.
    pub reason: String,
}

/// A site, relay or prefix of the coordinator's map that this gateway refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refused {
    /// As the map names it.
    pub name: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// The refused prefix; null: the whole entry.
    pub prefix: Option<IpNet>,
    /// Why, in a sentence.
    pub reason: String,
}

/// How long the overlay's authority and the coordinator vouch for a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    /// When the authority's statement ends, in seconds since the epoch; null: never.
    pub until: Option<u64>,
    /// How long the coordinator's lease keeps it alive, in seconds of this gateway's running time; null: without end.
    pub lease_seconds: Option<u64>,
}

/// The mode that was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mode {
    /// "xdp", "udp" or "tun".
    pub mode: String,
    /// Why, in a sentence.
    pub reason: String,
}

/// The implementation of the ciphers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cipher {
    /// Which implementation of ChaCha20-Poly1305 is used: "ifma512", "ifma256", "avx2" or "ring". AES-256-GCM is always
    /// ring's.
    pub implementation: String,
    /// Why it is that one, in a sentence.
    pub reason: String,
    /// Megabytes per second on one core, measured at the start, by suite.
    pub speeds: BTreeMap<String, u32>,
}

/// A worker's end of a device queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Port {
    /// The device's name.
    pub interface: String,
    /// "xdp", "udp" or "tun".
    pub kind: String,
    /// The device's queue.
    pub queue: u32,
    /// The worker that serves it.
    pub worker: u16,
    /// "native" or "generic"; AF_XDP only.
    pub xdp_mode: Option<String>,
    /// Whether frames are not copied between driver and worker; AF_XDP only.
    pub zero_copy: Option<bool>,
    /// Why it is bound in this way, in a sentence, or empty.
    pub reason: String,
    /// Whether what arrives on the device is received here; AF_XDP only.
    #[serde(default)]
    pub receiving: Option<Proof>,
    /// Whether what is sent here leaves the device; AF_XDP only.
    #[serde(default)]
    pub sending: Option<Proof>,
}

/// Whether a port was seen to work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Proof {
    /// "unproven", "proven" or "failing".
    pub state: String,
    /// Seconds since it was last proven; null: not since it was bound.
    pub proven_seconds_ago: Option<u64>,
    /// What was seen, in a sentence.
    pub seen: String,
}

/// Another site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerStatus {
    /// As in the profile; empty for a peer that was added by `wg set`.
    pub name: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// "direct", "relay" or "none".
    pub path: PathKind,
    /// Why it is that and nothing better, in a sentence. Only for peers that the coordinator names.
    #[serde(default)]
    pub reason: Option<String>,
    /// The reason as a word, such as "no-answer".
    #[serde(default)]
    pub reason_kind: Option<String>,
    /// The relay's name, if there is one on the path.
    #[serde(default)]
    pub relay: Option<String>,
    /// How many times its path has changed. Only for peers that the coordinator names; otherwise 0.
    #[serde(default)]
    pub path_changes: u64,
    /// Where the peer was last heard, or is expected.
    pub endpoint: Option<SocketAddr>,
    /// Round trip of the last probe.
    pub round_trip_ms: Option<f64>,
    /// The paths that answer, including the one in use. Only for peers that the coordinator names.
    #[serde(default)]
    pub answering: Vec<Answering>,
    /// When the last handshake was, in seconds since the epoch.
    pub last_handshake: Option<u64>,
    /// Handshakes that were completed.
    #[serde(default)]
    pub handshakes: u64,
    /// The suite of the present session, or of the next one: "chacha20-poly1305" or "aes-256-gcm".
    #[serde(default)]
    pub suite: String,
    /// Why it is that one, in a sentence.
    #[serde(default)]
    pub suite_reason: String,
    /// How large packets to it may be; null as long as its endpoint is unknown.
    #[serde(default)]
    pub mtu: Option<PathMtu>,
    /// Whether trains of datagrams arrive there whole; null where nobody can tell.
    #[serde(default)]
    pub trains: Option<Proof>,
    /// Bytes of WireGuard messages received.
    pub rx_bytes: u64,
    /// Bytes of WireGuard messages sent.
    pub tx_bytes: u64,
    /// Messages received with packets of the tunnel or keepalives in them, without those of handshakes.
    #[serde(default)]
    pub rx_packets: u64,
    /// The same, sent.
    #[serde(default)]
    pub tx_packets: u64,
    /// What vouches for it; null for a peer of the profile, or where no authority is pinned.
    #[serde(default)]
    pub statement: Option<Statement>,
    /// What is sent to it and accepted from it.
    #[serde(rename = "AllowedIPs")]
    pub allowed_ips: Vec<IpNet>,
}

/// A path to a peer that answers probes, whether it is in use or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Answering {
    /// "direct" or "relay".
    pub path: PathKind,
    /// The relay's name, if there is one on the path.
    pub relay: Option<String>,
    /// The address that its datagrams are sent to.
    pub address: SocketAddr,
    /// Round trip of the last probe.
    pub round_trip_ms: f64,
}

/// How large packets to a peer may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PathMtu {
    /// The largest packet inside the tunnel, in bytes.
    pub inner: u16,
    /// The largest outer IP packet, in bytes.
    pub outer: u16,
    /// Whether even that is too small for the inside, so that outer packets are fragmented.
    pub fragmented: bool,
    /// How that is known, in a few words.
    pub reason: String,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// Directly at its endpoint, with a live session.
    Direct,
    /// Through a relay.
    Relay,
    /// Not at all: there is no live session.
    None,
}

/// The firewall and its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Firewall {
    /// Known flows: accepted, and not idle for too long.
    pub flows: u64,
    /// The most flows that can be known.
    pub flow_limit: u64,
    /// For flows that begin in the tunnel, where no rule decides.
    pub r#in: FirewallDefault,
    /// For flows that begin on the LAN, where no rule decides.
    pub out: FirewallDefault,
    /// The rules, in their order.
    pub rules: Vec<FirewallRule>,
    /// The peers that the coordinator's policy keeps from reaching everything here.
    #[serde(default)]
    pub restrictions: Vec<Restriction>,
}

/// What a peer may reach here, by the coordinator's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Restriction {
    /// Its name.
    pub peer: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// What it may start here, such as "tcp/443" or "icmp".
    pub allow: Vec<Service>,
    /// Packets that were dropped because of it.
    pub packets: u64,
}

/// What happens where no rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FirewallDefault {
    /// "accept" or "drop".
    pub verdict: Verdict,
    /// Packets that it decided on: the first of each accepted flow, and every dropped one.
    pub packets: u64,
}

/// A rule of the firewall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FirewallRule {
    /// As the profile has it.
    pub rule: Rule,
    /// Packets that it decided on: the first of each accepted flow, and every dropped one.
    pub packets: u64,
}

/// Counters of the steering programs; empty without them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Steering {
    /// On the WAN.
    pub wan: BTreeMap<String, u64>,
    /// On the LAN interfaces together.
    pub lan: BTreeMap<String, u64>,
}

/// What a worker has done. It sleeps when it has no packets, so the time awake is its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WorkerLoad {
    /// Batches received from its ports, without empty ones.
    pub batches: u64,
    /// The same by size: of one packet, of two, of up to 4, 8, 16, 32, 64 and 128.
    #[serde(default)]
    pub batch_sizes: [u64; BATCH_SIZES.len()],
    /// Packets in these batches.
    pub packets: u64,
    /// How full the AF_XDP receive rings of the WAN were.
    #[serde(default)]
    pub wan_rings: RingFill,
    /// How full those of the LAN were.
    #[serde(default)]
    pub lan_rings: RingFill,
    /// How often it went to sleep and was woken.
    pub sleeps: u64,
    /// How long it slept in total, including a sleep that has not ended.
    pub slept_ms: u64,
    /// Its traffic under the profile's `WanRate`.
    #[serde(default)]
    pub shaped: Shaped,
}

/// A worker's traffic under `WanRate`. Bytes are those of outer IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Shaped {
    /// Packets that were sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that wait now.
    pub waiting_packets: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
}

/// How full receive rings were when a worker took packets from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RingFill {
    /// How often a ring held up to 128 packets, up to 256, 512, 1024, and up to 2048, which is a full ring.
    pub times: [u64; RING_FILLS.len()],
    /// The sum of all these packets.
    pub packets: u64,
}

/// A status with something in every field, for tests here and elsewhere.
#[cfg(test)]
pub(crate) fn sample() -> Status {
    let key = crate::key::PrivateKey::from_bytes([9; 32]).public_key();
    Status {
        name: "amsterdam".into(),
        pid: 4711,
        version: "0.1.0".into(),
        public_key: key,
        local_port: 47100,
        nat_type: "unknown".into(),
        nat: None,
        coordinator: Some(Coordinator {
            url: "https://coordinator.example.net".into(),
            connected: true,
            site: Some("amsterdam".into()),
            pending: false,
            error: None,
            authority: Some("AuthorityKey".into()),
            refused: vec![Refused {
                name: "cadiz".into(),
                public_key: key,
                prefix: Some("10.103.0.0/24".parse().expect("a prefix")),
                reason: "another has it".into(),
            }],
            waiting: vec![Waiting {
                subnet: "10.101.9.0/24".parse().expect("a prefix"),
                reason: "it is larger than what was granted".into(),
            }],
        }),
        relays: vec![RelayState {
            name: "coordinator".into(),
            transport: "udp".into(),
            address: "192.0.2.9:3478".parse().expect("an address"),
            bound: true,
            round_trip_ms: Some(0.5),
        }],
        tunnel_mtu: 1420,
        workers: 2,
        cipher: Cipher {
            implementation: "ifma512".into(),
            reason: "the fastest that this CPU supports".into(),
            speeds: BTreeMap::from([("chacha20-poly1305".into(), 4500), ("aes-256-gcm".into(), 7500)]),
        },
        wan_mode: Mode { mode: "xdp".into(), reason: "eth0 has zero-copy".into() },
        lan_mode: Mode { mode: "tun".into(), reason: "asked for".into() },
        ports: vec![Port {
            interface: "eth0".into(),
            kind: "xdp".into(),
            queue: 1,
            worker: 1,
            xdp_mode: Some("native".into()),
            zero_copy: Some(true),
            reason: String::new(),
            receiving: Some(Proof { state: "proven".into(), proven_seconds_ago: Some(3), seen: "8 of 8 came".into() }),
            sending: Some(Proof { state: "unproven".into(), proven_seconds_ago: None, seen: "no answer".into() }),
        }],
        peers: vec![PeerStatus {
            name: "berlin".into(),
            public_key: key,
            path: PathKind::Direct,
            reason: Some("the peer answers directly".into()),
            reason_kind: Some("answered".into()),
            relay: None,
            path_changes: 2,
            endpoint: Some("192.0.2.2:47100".parse().expect("an address")),
            round_trip_ms: Some(1.5),
            answering: vec![Answering {
                path: PathKind::Relay,
                relay: Some("coordinator".into()),
                address: "192.0.2.9:3478".parse().expect("an address"),
                round_trip_ms: 8.0,
            }],
            last_handshake: Some(1_700_000_000),
            handshakes: 4,
            suite: "aes-256-gcm".into(),
            suite_reason: "the profile says so".into(),
            mtu: Some(PathMtu { inner: 1340, outer: 1400, fragmented: false, reason: "probed".into() }),
            trains: None,
            rx_bytes: 1536,
            tx_bytes: 10,
            rx_packets: 6,
            tx_packets: 1,
            statement: Some(Statement { until: None, lease_seconds: Some(604_800) }),
            allowed_ips: vec!["10.102.0.0/24".parse().expect("a prefix")],
        }],
        drops: BTreeMap::from([("replayed".into(), 3), ("bad-tag".into(), 0)]),
        firewall: Some(Firewall {
            flows: 12,
            flow_limit: 262_144,
            r#in: FirewallDefault { verdict: Verdict::Drop, packets: 4 },
            out: FirewallDefault { verdict: Verdict::Accept, packets: 9 },
            rules: vec![FirewallRule {
                rule: Rule {
                    name: Some("web".into()),
                    verdict: Verdict::Accept,
                    direction: Some(Direction::In),
                    sites: Some(vec!["tag:branch".parse().expect("a selector")]),
                    sources: None,
                    destinations: None,
                    services: Some(vec!["tcp/443".parse().expect("a service")]),
                },
                packets: 7,
            }],
            restrictions: vec![Restriction {
                peer: "berlin".into(),
                public_key: key,
                allow: vec!["udp/53".parse().expect("a service")],
                packets: 2,
            }],
        }),
        steering: Steering { wan: BTreeMap::from([("redirect".into(), 8)]), lan: BTreeMap::new() },
        health: Health::Degraded,
        forwarding: true,
        problems: vec![Problem {
            subject: "eth1".into(),
            sentence: "there is no interface eth1".into(),
            what_to_do: "connect it".into(),
            severity: crate::problem::Severity::Error,
            since_seconds: 5,
            next_try_seconds: None,
        }],
        guarded: vec!["10.102.0.0/24".parse().expect("a prefix")],
        worker_loads: vec![WorkerLoad {
            batches: 3,
            batch_sizes: [1, 0, 0, 0, 0, 2, 0, 0],
            packets: 40,
            wan_rings: RingFill { times: [2, 1, 0, 0, 0], packets: 170 },
            lan_rings: RingFill::default(),
            sleeps: 2,
            slept_ms: 900,
            shaped: Shaped { packets: 30, bytes: 44_000, waiting_packets: 2, waiting_bytes: 2900 },
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract, byte by byte.
    const JSON: &str = r#"{"Name":"amsterdam","Pid":4711,"Version":"0.1.0","PublicKey":"KEY","LocalPort":47100,"NatType":"unknown","Nat":null,"Coordinator":{"Url":"https://coordinator.example.net","Connected":true,"Site":"amsterdam","Pending":false,"Error":null,"Authority":"AuthorityKey","Refused":[{"Name":"cadiz","PublicKey":"KEY","Prefix":"10.103.0.0/24","Reason":"another has it"}],"Waiting":[{"Subnet":"10.101.9.0/24","Reason":"it is larger than what was granted"}]},"Relays":[{"Name":"coordinator","Transport":"udp","Address":"192.0.2.9:3478","Bound":true,"RoundTripMs":0.5}],"TunnelMtu":1420,"Workers":2,"Cipher":{"Implementation":"ifma512","Reason":"the fastest that this CPU supports","Speeds":{"aes-256-gcm":7500,"chacha20-poly1305":4500}},"WanMode":{"Mode":"xdp","Reason":"eth0 has zero-copy"},"LanMode":{"Mode":"tun","Reason":"asked for"},"Ports":[{"Interface":"eth0","Kind":"xdp","Queue":1,"Worker":1,"XdpMode":"native","ZeroCopy":true,"Reason":"","Receiving":{"State":"proven","ProvenSecondsAgo":3,"Seen":"8 of 8 came"},"Sending":{"State":"unproven","ProvenSecondsAgo":null,"Seen":"no answer"}}],"Peers":[{"Name":"berlin","PublicKey":"KEY","Path":"direct","Reason":"the peer answers directly","ReasonKind":"answered","Relay":null,"PathChanges":2,"Endpoint":"192.0.2.2:47100","RoundTripMs":1.5,"Answering":[{"Path":"relay","Relay":"coordinator","Address":"192.0.2.9:3478","RoundTripMs":8.0}],"LastHandshake":1700000000,"Handshakes":4,"Suite":"aes-256-gcm","SuiteReason":"the profile says so","Mtu":{"Inner":1340,"Outer":1400,"Fragmented":false,"Reason":"probed"},"Trains":null,"RxBytes":1536,"TxBytes":10,"RxPackets":6,"TxPackets":1,"Statement":{"Until":null,"LeaseSeconds":604800},"AllowedIPs":["10.102.0.0/24"]}],"Drops":{"bad-tag":0,"replayed":3},"Firewall":{"Flows":12,"FlowLimit":262144,"In":{"Verdict":"drop","Packets":4},"Out":{"Verdict":"accept","Packets":9},"Rules":[{"Rule":{"Name":"web","Verdict":"accept","Direction":"in","Sites":["tag:branch"],"Services":["tcp/443"]},"Packets":7}],"Restrictions":[{"Peer":"berlin","PublicKey":"KEY","Allow":["udp/53"],"Packets":2}]},"Steering":{"Wan":{"redirect":8},"Lan":{}},"Health":"degraded","Forwarding":true,"Problems":[{"Subject":"eth1","Sentence":"there is no interface eth1","WhatToDo":"connect it","Severity":"error","SinceSeconds":5,"NextTrySeconds":null}],"Guarded":["10.102.0.0/24"],"WorkerLoads":[{"Batches":3,"BatchSizes":[1,0,0,0,0,2,0,0],"Packets":40,"WanRings":{"Times":[2,1,0,0,0],"Packets":170},"LanRings":{"Times":[0,0,0,0,0],"Packets":0},"Sleeps":2,"SleptMs":900,"Shaped":{"Packets":30,"Bytes":44000,"WaitingPackets":2,"WaitingBytes":2900}}]}"#;

    #[test]
    fn json_is_the_contract() {
        let status = sample();
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(text, JSON.replace("KEY", &status.public_key.to_string()));
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }

    #[test]
    fn the_page_explains_every_field() {
        let (_, table) = include_str!("../../docs/commands.md").split_once("## Status as JSON").unwrap();
        let (table, _) = table.split_once("\n## ").unwrap();
        let named: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
            .flat_map(|(cell, _)| cell.split("`, `"))
            .map(|field| field.trim_end_matches("[]"))
            .collect();
        let status: serde_json::Map<String, serde_json::Value> = serde_json::from_str(JSON).unwrap();
        let missing: Vec<&String> = status.keys().filter(|field| !named.contains(&field.as_str())).collect();
        assert!(missing.is_empty(), "docs/commands.md lacks {missing:?}");
    }
}
