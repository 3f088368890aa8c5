//! Random conditions under which frames are carried: rules, routes, the profile's firewall, modes, the IP version
//! outside. Both pairs of gateways have the same, but for the modes.
//!
//! Only rules are chosen that hold in the modes they are for: those of the packet filter, unless the LAN is driven by a
//! tun device, just for packets that AF_XDP leaves to the kernel. No rule is about a site's first host and its gateway
//! over IPv4, whose packets show the test that everything has passed.

use super::frames::{chance, pick};
use super::inside;
use crate::support::{Kind, Outer, Random};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

/// The pairs of modes of a gateway of which one at least is AF_XDP.
const MODES: [Kind; 3] = [Kind::MODES[0], Kind::MODES[1], Kind::MODES[2]];
/// Stands for the name of the tunnel's device.
const TUNNEL: &str = "TUNNEL";
/// The table that rules lead to.
const TABLE: &str = "200";
/// What the kernel does with packets that are to go nowhere.
const NOWHERE: [&str; 3] = ["blackhole", "unreachable", "prohibit"];

/// Packets that AF_XDP leaves to the kernel on both ways.
const OF_THE_KERNEL: [&str; 6] = [
    "ip frag-off & 0x3fff != 0",
    "ip6 nexthdr 44",
    "ip6 nexthdr 0",
    "ip hdrlength > 5 ip saddr & 0.0.0.255 != 0.0.0.10",
    "iifname lan0 ip saddr 172.16.9.9",
    "iifname lan0 ip6 saddr 2001:db8:9::9",
];
/// Any packets.
const OF_ALL: [&str; 10] = [
    "meta l4proto udp",
    "tcp flags syn",
    "tcp dport 443 ip6 hoplimit 64",
    "udp dport 9 iifname lan0",
    "udp dport 9 oifname lan0",
    "icmpv6 type echo-request",
    "icmp type echo-request ip saddr & 0.0.0.255 == 0.0.0.11",
    "ip dscp ef ip protocol != 253",
    "ip6 dscp cs6",
    "meta l4proto { 4, 47, 132 }",
];

/// Conditions for the gateways of A and B.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Of the pair with AF_XDP.
    pub modes: [Kind; 2],
    pub outer: Outer,
    pub firewalls: [Value; 2],
    pub kernels: [Kernel; 2],
}

/// What a gateway's kernel is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Arguments of `ip` without the command: "-4 rule", and what is added and deleted.
    ip: Vec<(String, String)>,
    /// Rules of a forward chain.
    filter: Vec<String>,
    /// Sources and destinations of rules, and whether they come before the tunnel's own route.
    rules: Vec<(Option<IpNet>, Option<IpNet>, bool)>,
    /// Hosts to which there is no route.
    nowhere: Vec<IpAddr>,
}

impl Default for Conditions {
    fn default() -> Self {
        let (firewalls, kernels) = ([Value::Null, Value::Null], Default::default());
        Self { modes: [Kind::XDP; 2], outer: Outer::V4, firewalls, kernels }
    }
}

impl Conditions {
    /// Each dimension has a chance of its own.
    pub fn random(random: &mut Random) -> Self {
        let modes = if chance(random, 60) { [pick(random, &MODES), pick(random, &MODES)] } else { [Kind::XDP; 2] };
        let outer = if chance(random, 40) { Outer::V6 } else { Outer::V4 };
        let firewall = chance(random, 40);
        let mut firewalls = [Value::Null, Value::Null];
        for value in firewalls.iter_mut().filter(|_| firewall) {
            *value = self::firewall(random);
        }
        let kernels = [1, 2].map(|site| Kernel::random(random, site, modes[usize::from(site) - 1]));
        Self { modes, outer, firewalls, kernels }
    }
}

impl Kernel {
    fn random(random: &mut Random, site: u8, modes: Kind) -> Self {
        let mut kernel = Self::default();
        if chance(random, 40) {
            for v6 in [false, true] {
                kernel.rules(random, site, v6);
            }
        }
        if chance(random, 40) {
            for v6 in [false, true] {
                kernel.route(random, site, v6);
            }
        }
        if chance(random, 40) {
            let through_the_kernel = matches!(modes, Kind::Penstock { lan: "tun", .. });
            kernel.filter = (0..1 + random.below(3)).map(|_| filter(random, through_the_kernel)).collect();
        }
        kernel
    }

    fn rules(&mut self, random: &mut Random, site: u8, v6: bool) {
        let v = version(v6);
        let way = match random.below(5) {
            4 => format!("via {} dev lan0 onlink", inside(site, v6, 12)),
            3 => String::new(),
            nowhere => NOWHERE[nowhere].to_owned(),
        };
        let to_table = match way.as_str() {
            "" => format!("throw {} table {TABLE}", all(v6)),
            way if way.starts_with("via") => format!("default {way} table {TABLE}"),
            nowhere => format!("{nowhere} {} table {TABLE}", all(v6)),
        };
        self.ip.push((format!("{v} route"), to_table));
        for _ in 0..1 + random.below(2) {
            let (near, far) = if chance(random, 50) { (site, 3 - site) } else { (3 - site, site) };
            let prefixes = [some(random, near, v6), some(random, far, v6)];
            // One of the two at least: the fences are IPv4's.
            let (from, to) = match random.below(3) {
                0 => (Some(prefixes[0]), None),
                1 => (None, Some(prefixes[1])),
                _ => (Some(prefixes[0]), Some(prefixes[1])),
            };
            let early = chance(random, 60);
            let also =
                pick(random, &["", "", "iif lan0", "iif TUNNEL", "tos 0x08", "ipproto udp", "ipproto tcp dport 443"]);
            let action = match random.below(4) {
                3 => format!("lookup {TABLE}"),
                nowhere => NOWHERE[nowhere].to_owned(),
            };
            let part = |name: &str, prefix: Option<IpNet>| {
                prefix.map(|prefix| format!("{name} {prefix} ")).unwrap_or_default()
            };
            let priority = if early { 100 } else { 5_000 } + self.ip.len();
            let rule = format!("{}{}{also} priority {priority} {action}", part("from", from), part("to", to));
            self.ip.push((format!("{v} rule"), rule));
            self.rules.push((from, to, early));
        }
    }

    /// A route to a host of this site, or one that would lead nowhere if the tunnel's did not come first.
    fn route(&mut self, random: &mut Random, site: u8, v6: bool) {
        let (to, via) = (inside(site, v6, 11), inside(site, v6, 12));
        let route = match random.below(6) {
            0 => format!("{to} via {via} dev lan0 onlink"),
            // IPv6 has no routes by class, and the kernel remembers how large the gateway's own packets may be.
            1 if !v6 => format!("{to} via {via} dev lan0 onlink mtu 1300"),
            2 if !v6 => format!("{to} tos 0x08 via {via} dev lan0 onlink"),
            3 => format!("{} {}", pick(random, &NOWHERE), inside(3 - site, v6, 11)),
            number => {
                self.nowhere.push(to);
                format!("{} {to}", NOWHERE[number % 3])
            }
        };
        self.ip.push((format!("{} route", version(v6)), route));
    }

    /// Whether a rule may refuse a packet before the tunnel's own route is found.
    pub fn may_refuse(&self, from: IpAddr, to: IpAddr) -> bool {
        self.rules.iter().any(|rule| rule.2 && holds(rule, from, to))
    }

    /// Whether a packet that the gateway itself sends from one of these addresses to `to` may go elsewhere, or nowhere.
    pub fn leads_elsewhere(&self, own: &[IpAddr], to: IpAddr) -> bool {
        self.nowhere.contains(&to) || own.iter().any(|from| self.rules.iter().any(|rule| holds(rule, *from, to)))
    }

    /// Commands that establish these conditions, and those that undo them. `tunnel` is the name of the device.
    pub fn commands(&self, tunnel: &str) -> [Vec<Vec<String>>; 2] {
        let words = |what: &str, how: &str, object: &str| {
            let text = format!("ip {what} {how} {}", object.replace(TUNNEL, tunnel));
            text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let [mut add, mut delete]: [Vec<_>; 2] =
            ["add", "del"].map(|how| self.ip.iter().map(|(what, object)| words(what, how, object)).collect());
        delete.reverse();
        if !self.filter.is_empty() {
            let rules = self.filter.join("\n");
            let chain = format!("chain c {{ type filter hook forward priority 0; policy accept;\n{rules}\n}}");
            add.push(vec!["nft".to_owned(), format!("table inet parity {{ {chain}\n}}")]);
            delete.push(["nft", "delete", "table", "inet", "parity"].map(str::to_owned).to_vec());
        }
        [add, delete]
    }
}

/// Whether a rule is for a packet.
fn holds((source, destination, _): &(Option<IpNet>, Option<IpNet>, bool), from: IpAddr, to: IpAddr) -> bool {
    let within = |prefix: &Option<IpNet>, address: IpAddr| prefix.is_none_or(|prefix| prefix.contains(&address));
    within(source, from) && within(destination, to)
}

fn version(v6: bool) -> &'static str {
    if v6 { "-6" } else { "-4" }
}

fn all(v6: bool) -> &'static str {
    if v6 { "::/0" } else { "0.0.0.0/0" }
}

/// Some hosts of a site, not all.
fn some(random: &mut Random, site: u8, v6: bool) -> IpNet {
    let text = match (random.below(3), v6) {
        (0, true) => return IpNet::new(inside(site, true, 0), 64).expect("a prefix").trunc(),
        (1, false) => format!("{}/30", inside(site, false, 12)),
        (number, _) => return IpNet::from(inside(site, v6, 11 + (number as u8 & 1))),
    };
    text.parse().expect("a prefix")
}

fn filter(random: &mut Random, through_the_kernel: bool) -> String {
    let which =
        if through_the_kernel && chance(random, 70) { pick(random, &OF_ALL) } else { pick(random, &OF_THE_KERNEL) };
    let verdict = pick(random, &["drop", "drop", "reject", "accept", "counter"]);
    format!("{which} {verdict}")
}

/// A firewall that lets the fences pass.
fn firewall(random: &mut Random) -> Value {
    let mut rules = vec![json!({ "Verdict": "accept", "Services": ["253", "icmp"] })];
    for _ in 0..1 + random.below(4) {
        let mut rule = json!({ "Verdict": pick(random, &["accept", "drop"]) });
        if chance(random, 60) {
            rule["Direction"] = pick(random, &["in", "out"]).into();
        }
        for field in ["Sources", "Destinations"] {
            if chance(random, 40) {
                let site = 1 + random.below(2) as u8;
                rule[field] = json!([some(random, site, false), some(random, site, true)]);
            }
        }
        if chance(random, 70) {
            let services = ["udp", "tcp", "tcp/443", "udp/9", "udp/10-999", "4", "47", "50", "132"];
            rule["Services"] = json!([pick(random, &services), pick(random, &services)]);
        }
        rules.push(rule);
    }
    let [incoming, outgoing] = [(); 2].map(|()| pick(random, &["accept", "accept", "drop"]));
    json!({ "In": incoming, "Out": outgoing, "Rules": rules })
}
