//! AF_XDP and sockets give the same results: two pairs of gateways side by side, one driven by AF_XDP and one by
//! sockets, are sent the same random frames, and their outputs are compared, answers included.
//!
//! ```text
//!   near wire ── host end · A ═══ tunnel ═══ B · host end ── far wire        once in each mode, and in both directions
//! ```
//!
//! Every now and then both get other [`Conditions`]: rules, routes, a firewall, IPv6 outside, and AF_XDP on one side
//! only.
//!
//! What only one of them lets out has to be explained by a drop counter that has moved by that number, or is among
//! [`EXCEPTIONS`]. `PENSTOCK_TEST_SEED=N` replays a run; the frames are the same each time, and many others with
//! `PENSTOCK_TEST_LONG=1`.

mod conditions;
mod frames;

use crate::support::*;
use conditions::Conditions;
use frames::{FRAGMENT, Sent};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Frames sent at once: fewer than a veth's ring holds, and fewer than the errors that a worker may send at once.
const BATCH: usize = 40;
/// Batches before the conditions first change: a few thousand frames.
const BATCHES: usize = 60;
/// How often the conditions change, in a short and in a long run, and the batches after each change.
const CHANGES: usize = 6;
const LONG_CHANGES: usize = 120;
const BATCHES_ALIKE: usize = 10;
/// How long the gateways may take to follow.
const SOON: Duration = Duration::from_secs(5);
/// Marks the packets behind which a batch has come through.
const FENCE: &[u8] = b"PENSTOCK-TEST-FENCE";

/// A host that does not exist: frames are sent in its name, and the gateway has an entry for its MAC address.
#[derive(Clone, Copy)]
struct Host {
    site: u8,
    number: u8,
    mac: [u8; 6],
}

impl Host {
    fn address(&self, v6: bool) -> IpAddr {
        inside(self.site, v6, self.number)
    }
}

/// An address of a site's LAN.
fn inside(site: u8, v6: bool, number: u8) -> IpAddr {
    if v6 {
        format!("fd00:10{site}::{number}").parse().expect("an address")
    } else {
        IpAddr::from([10, 100 + site, 0, number])
    }
}

/// A site's LAN. MAC addresses may contain the bytes of a VLAN tag's type anywhere.
struct End {
    number: u8,
    gateway_mac: [u8; 6],
    hosts: [Host; 3],
}

impl End {
    fn of(number: u8) -> Self {
        let macs = [[0x02, 0, 0, 0, number, 0x10], [0x02, number, 0x81, 0, 0, 0x11], [0x02, number, 1, 2, 0x81, 0]];
        let host = |index: usize| Host { site: number, number: 10 + index as u8, mac: macs[index] };
        Self { number, gateway_mac: [0x02, 0xaa, 0x81, 0, 0, number], hosts: [host(0), host(1), host(2)] }
    }

    fn gateway(&self, v6: bool) -> IpAddr {
        inside(self.number, v6, 1)
    }

    /// The LAN's broadcast address, for IPv4 at least.
    fn broadcast(&self, v6: bool) -> IpAddr {
        if v6 { "ff02::1".parse().expect("an address") } else { inside(self.number, v6, 255) }
    }

    fn prepare(&self, site: &Site) {
        let gateway = &site.gateway;
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        gateway.ip(&format!("link set lan0 address {}\n", text(self.gateway_mac)));
        for (host, v6) in self.hosts.iter().flat_map(|host| [(host, false), (host, true)]) {
            gateway.ip(&format!("neigh add {} lladdr {} dev lan0\n", host.address(v6), text(host.mac)));
        }
        // Packets that wait for a neighbour fill the buffer of the socket with which the kernel sends all ICMPv6 of a
        // core, and then it drops errors.
        gateway.ip(&format!("neigh add {} lladdr {} dev lan0\n", frames::LINK_LOCAL, text(self.hosts[0].mac)));
        // Segments and checksums as they are on a wire.
        gateway.run(&["ethtool", "-K", "lan0", "tx", "off", "tso", "off", "gso", "off"]);
        // Every error that is due, and none of those that depend on time.
        for (name, value) in [
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            ("net/ipv4/icmp_msgs_per_sec", "1000000"),
            ("net/ipv4/icmp_msgs_burst", "1000000"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/lan0/send_redirects", "0"),
        ] {
            gateway.sysctl(name, value);
        }
    }
}

/// Where a packet came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exit {
    Near,
    Far,
}

/// Two joined gateways, with a wire at each end.
struct Pair {
    gateways: [Gateway; 2],
    wires: [Wire; 2],
    topology: Topology,
}

/// How often each packet came out at each exit.
type Seen = BTreeMap<(Exit, Vec<u8>), usize>;

impl Pair {
    fn new(kind: Kind, ends: &[End; 2]) -> Self {
        let topology = Topology::new(Options::default());
        for (site, end) in [&topology.a, &topology.b].into_iter().zip(ends) {
            end.prepare(site);
        }
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        // Packets for neither site go to the other gateway by the default route, and must not wait for a neighbour.
        for (from, to) in [(&topology.a, &topology.b), (&topology.b, &topology.a)] {
            eventually(PATIENCE, "the other gateway is a neighbour", || {
                ping(&from.gateway, to.wan6.into(), &["-c", "1"]).all_answered()
            });
        }
        for gateway in [&a, &b] {
            eventually(PATIENCE, "the path's MTU is known", || gateway.status()["Peers"][0]["Mtu"]["Inner"] == 1420);
        }
        let wires = [&topology.a, &topology.b].map(|site| Wire::open(&site.host, "eth0"));
        Self { gateways: [a, b], wires, topology }
    }

    /// Sends from one end, waits until everything has passed, and returns what came out.
    fn carry(&self, batch: &[Sent], near: usize, ends: &[End; 2], number: usize) -> Seen {
        batch.iter().for_each(|sent| self.wires[near].send(&sent.bytes, sent.partial));
        let (from, to) = (&ends[near], &ends[1 - near]);
        let mark = [FENCE, &number.to_be_bytes()].concat();
        let fences = frames::fences(from, to, &mark);
        // The echoes, and the packets to the other end: each plain and with options.
        let mut awaited = [2_usize; 2];
        let mut seen = Seen::new();
        let deadline = Instant::now() + PATIENCE;
        let mut again = Instant::now();
        while awaited != [0, 0] {
            assert!(Instant::now() < deadline, "a fence is missing: {awaited:?}");
            if again <= Instant::now() {
                fences.iter().for_each(|fence| self.wires[near].send(fence, None));
                again += Duration::from_secs(1);
            }
            for (exit, wire) in [(Exit::Near, near), (Exit::Far, 1 - near)] {
                while let Some(frame) = self.wires[wire].receive(Duration::from_millis(1)) {
                    if frame.windows(mark.len()).any(|part| part == mark) {
                        awaited[exit as usize] = awaited[exit as usize].saturating_sub(1);
                    } else if let Some(packet) = comparable(frame, ends) {
                        *seen.entry((exit, packet)).or_default() += 1;
                    }
                }
            }
        }
        seen
    }

    /// Makes other conditions; of modes only where AF_XDP is one.
    fn change(&self, from: &Conditions, to: &Conditions, is_xdp: bool) {
        let sites = [&self.topology.a, &self.topology.b];
        let apart = |n: usize| from.kernels[n] != to.kernels[n];
        let run = |n: usize, commands: &[Vec<String>]| {
            for command in commands {
                sites[n].gateway.run(&command.iter().map(String::as_str).collect::<Vec<_>>());
            }
        };
        for (n, gateway) in self.gateways.iter().enumerate() {
            if apart(n) {
                run(n, &from.kernels[n].commands(gateway.name())[1]);
            }
            let modes = is_xdp.then_some(to.modes[n]).filter(|modes| *modes != from.modes[n]);
            if modes.is_some() || from.outer != to.outer || from.firewalls[n] != to.firewalls[n] {
                gateway.edit_profile(|profile| {
                    profile["Peers"][0]["Endpoint"] = sites[1 - n].endpoint(to.outer).to_string().into();
                    profile["Firewall"] = to.firewalls[n].clone();
                    if let Some(Kind::Penstock { wan, lan }) = modes {
                        profile["Wan"]["Mode"] = wan.into();
                        profile["Lan"]["Mode"] = lan.into();
                    }
                });
                // It fails where AF_XDP bypasses a rule, as before.
                gateway.command(&["reload"]);
            }
            if let Some(Kind::Penstock { wan, lan }) = is_xdp.then_some(to.modes[n]) {
                eventually(SOON, "the modes are what they are to be", || {
                    let status = gateway.status();
                    status["WanMode"]["Mode"] == wan && status["LanMode"]["Mode"] == lan
                });
            }
        }
        for gateway in &self.gateways {
            eventually(PATIENCE, "the path's MTU is known", || gateway.status()["Peers"][0]["Mtu"]["Inner"] == 1420);
        }
        // By then all is at rest, so that a packet that a rule refuses is missed on both sides.
        for (n, gateway) in self.gateways.iter().enumerate().filter(|(n, _)| apart(*n)) {
            run(n, &to.kernels[n].commands(gateway.name())[0]);
        }
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for gateway in &self.gateways {
            let status = gateway.status();
            for (reason, count) in status["Drops"].as_object().expect("counters") {
                *sum.entry(reason.clone()).or_default() += count.as_u64().expect("a count");
            }
        }
        sum
    }
}

/// The frame without the parts that may differ, or `None` if that is all of it: the kernels' own messages to hosts.
fn comparable(mut frame: Vec<u8>, ends: &[End; 2]) -> Option<Vec<u8>> {
    let (source, destination, protocol, body) = match (Frame { bytes: frame.clone() }).ip() {
        Some((source, destination, protocol, body)) => (source, destination, protocol, body.to_vec()),
        None => return (frame.get(12..14) != Some(&[0x08, 0x06])).then_some(frame),
    };
    let own_hosts = [1, 2].into_iter().flat_map(|site| [inside(site, false, 2), inside(site, true, 2)]);
    if own_hosts.into_iter().any(|host| host == source || host == destination) {
        return None;
    }
    let from_gateway = ends
        .iter()
        .any(|end| [end.gateway(false), end.gateway(true), IpAddr::from([100, 64, 0, end.number])].contains(&source));
    let v6 = source.is_ipv6();
    let own_talk = matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_unspecified());
    let discovery = from_gateway && v6 && protocol == 58 && matches!(body.first(), Some(133..=137));
    if own_talk || discovery || frame.windows(FENCE.len()).any(|part| part == FENCE) {
        return None;
    }
    let length = usize::from(u16::from_be_bytes(if v6 { [frame[18], frame[19]] } else { [frame[16], frame[17]] }));
    frame.truncate(14 + length + if v6 { 40 } else { 0 });
    if from_gateway {
        // Made by a kernel or worker: its number, class and flow label do not matter.
        if v6 {
            frame[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
            if protocol == FRAGMENT {
                frame[58..62].fill(0);
            }
        } else {
            frame[15] = 0;
            frame[18..22].fill(0);
            frame[24..26].fill(0);
        }
        let error = match (protocol, body.first()) {
            (1, Some(3 | 11 | 12)) if !v6 => Some(20),
            (58, Some(1..=4)) if v6 => Some(40),
            _ => None,
        };
        // The kernel reports an absent host after seconds, and a missing fragment after a minute. It tells an IPv4 host
        // of a route that leads nowhere once a second (`route/error_cost`, which namespaces do not have of their own).
        let late = matches!(
            (error, body.first_chunk()),
            (Some(20), Some([3, 0 | 1 | 13] | [11, 1])) | (Some(40), Some([1, 3] | [3, 1]))
        );
        if late {
            return None;
        }
        if let Some(header) = error {
            // A kernel quotes packets whose checksums are not complete yet, so what is behind the ports may differ. It
            // sends from the tunnel's address where a worker uses the LAN's, and to the next hop towards the host where
            // a worker sends to the neighbour that the packet came from.
            frame[..6].fill(0);
            let checksum = frame.len() - body.len() + 2;
            frame[checksum..checksum + 2].fill(0);
            frame.truncate(checksum + 6 + header + 4);
            if !v6 {
                frame[26..30].fill(0);
            }
        }
    }
    Some(frame)
}

/// Packets that are in the first more often than in the second.
fn without(first: &Seen, second: &Seen) -> Vec<(Exit, Vec<u8>)> {
    let more = |(key, count): (&(Exit, Vec<u8>), &usize)| {
        let count = count.saturating_sub(second.get(key).copied().unwrap_or(0));
        std::iter::repeat_n(key.clone(), count)
    };
    first.iter().flat_map(more).collect()
}

/// Packets that one kind lets out and the other does not, and why that is right. There is no counter for it.
struct Exception {
    applies: fn(&Difference, &Conditions) -> bool,
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        applies: |difference, conditions| {
            let refuses = |from: IpAddr, to| {
                let senders = if from.is_unspecified() { own_addresses() } else { vec![from] };
                let refused = |from: &IpAddr| conditions.kernels.iter().any(|kernel| kernel.may_refuse(to, *from));
                from.is_ipv4() && senders.iter().any(refused)
            };
            let came_out = |(_, packet): &(Exit, Vec<u8>)| {
                (Frame { bytes: packet.clone() }).ip().is_some_and(|(from, to, ..)| refuses(from, to))
            };
            // The frame itself, or what it caused, such as an error.
            let all = || difference.xdp_only.iter().all(came_out);
            difference.sockets_only.is_empty()
                && (difference.ends().is_some_and(|(from, to)| refuses(from, to)) || all())
        },
        reason: "the reverse path filter of the tun device refuses packets whose answers a rule refuses",
    },
    Exception {
        applies: |difference, conditions| {
            let own = own_addresses();
            let elsewhere = |to| conditions.kernels.iter().any(|kernel| kernel.leads_elsewhere(&own, to));
            let mut all = difference.xdp_only.iter().chain(&difference.sockets_only);
            let near = difference.xdp_only.iter().all(|(exit, _)| *exit == Exit::Near);
            near && all.all(|(_, packet)| is_error(packet))
                && difference.ends().is_some_and(|(from, _)| elsewhere(from))
        },
        reason: "a worker sends errors to whom the packet came from, a kernel by its route",
    },
];

/// The same for batches that differ although none of their frames does.
const OVERTAKEN: &str =
    "a fragment goes through the kernel, and the packet that begins its flow overtakes it by AF_XDP";

/// Whether a packet is an IPv4 fragment, or has a fragment header right behind IPv6's own.
fn is_fragment(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(20..22).is_some_and(|field| field[0] & 0x3f != 0 || field[1] != 0),
        _ => frame.get(20) == Some(&FRAGMENT),
    }
}

/// The addresses of the gateways on their LANs.
fn own_addresses() -> Vec<IpAddr> {
    [1, 2].into_iter().flat_map(|site| [inside(site, false, 1), inside(site, true, 1)]).collect()
}

/// Whether a packet that [`comparable`] has returned is an error that a gateway reports.
fn is_error(packet: &[u8]) -> bool {
    let frame = Frame { bytes: packet.to_vec() };
    let Some((from, _, protocol, body)) = frame.ip() else { return false };
    let kind = body.first().copied().unwrap_or(0);
    match from {
        IpAddr::V4(from) => from.is_unspecified() && protocol == 1 && matches!(kind, 3 | 11 | 12),
        IpAddr::V6(_) => own_addresses().contains(&from) && protocol == 58 && matches!(kind, 1..=4),
    }
}

/// What happened to one frame, sent alone.
struct Difference {
    sent: Vec<u8>,
    ip: usize,
    xdp_only: Vec<(Exit, Vec<u8>)>,
    sockets_only: Vec<(Exit, Vec<u8>)>,
    /// The drop counters that increased in the gateways with AF_XDP.
    counted: BTreeMap<String, u64>,
}

impl Difference {
    /// The frame, without a tag.
    fn frame(&self) -> Frame {
        Frame { bytes: [&self.sent[..12], &self.sent[self.ip - 2..]].concat() }
    }

    /// Where it was from and to.
    fn ends(&self) -> Option<(IpAddr, IpAddr)> {
        self.frame().ip().map(|(from, to, ..)| (from, to))
    }

    /// The counter or exception that explains it.
    fn explanation(&self, conditions: &Conditions) -> Option<&str> {
        let missing = self.sockets_only.len() as u64;
        let counter = self.counted.iter().find(|(_, count)| self.xdp_only.is_empty() && **count == missing);
        let exception = EXCEPTIONS.iter().find(|exception| (exception.applies)(self, conditions));
        counter.map(|(reason, _)| reason.as_str()).or(exception.map(|exception| exception.reason))
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "sent {} bytes, IP from {}: {}", self.sent.len(), self.ip, hex(&self.sent))?;
        for (who, only) in [("AF_XDP", &self.xdp_only), ("sockets", &self.sockets_only)] {
            for (exit, packet) in only {
                writeln!(f, "  {who} only, {exit:?}, {} bytes: {}", packet.len(), hex(packet))?;
            }
        }
        write!(f, "  counted: {:?}", self.counted)
    }
}

/// The two pairs.
struct Scene {
    ends: [End; 2],
    xdp: Pair,
    sockets: Pair,
    conditions: Conditions,
    /// How many times something was sent.
    turns: usize,
}

impl Scene {
    fn carry(&mut self, batch: &[Sent], near: usize) -> [Seen; 2] {
        self.turns += 1;
        [&self.xdp, &self.sockets].map(|pair| pair.carry(batch, near, &self.ends, self.turns))
    }

    /// Makes other conditions, and waits until both pairs have followed.
    fn change(&mut self, to: Conditions) {
        for (pair, is_xdp) in [(&self.xdp, true), (&self.sockets, false)] {
            pair.change(&self.conditions, &to, is_xdp);
        }
        self.conditions = to;
        let deadline = Instant::now() + SOON;
        pause(500);
        let mut same = false;
        while !same && Instant::now() < deadline {
            same = [0, 1].into_iter().all(|near| {
                let (from, to) = (&self.ends[near], &self.ends[1 - near]);
                let ways = from.hosts.into_iter().flat_map(|from| to.hosts.map(|to| (from, to)));
                let both = ways.flat_map(|(from, to)| [(false, from, to), (true, from, to)]);
                let batch: Vec<Sent> = both
                    .enumerate()
                    .map(|(n, (v6, host, to))| frames::plain(0xff00 + n as u16, v6, (from, host), to))
                    .collect();
                let [by_xdp, by_sockets] = self.carry(&batch, near);
                by_xdp == by_sockets
            });
        }
        // Remaining differences are found with the other frames.
    }

    /// Sends frames alone to find those that differ.
    fn differences(&mut self, batch: &[Sent], near: usize) -> Vec<Difference> {
        let mut found = Vec::new();
        for sent in batch {
            let first = self.carry(std::slice::from_ref(sent), near);
            if first[0] == first[1] {
                continue;
            }
            // Once more, for the counters.
            let before = self.xdp.drops();
            let again = self.carry(std::slice::from_ref(sent), near);
            let mut counted = self.xdp.drops();
            counted.retain(|reason, count| {
                *count -= before.get(reason).copied().unwrap_or(0);
                // The kernel's own multicast increases this one.
                *count > 0 && reason != "no-peer-multicast"
            });
            // A frame that differed only once is reported as it was then.
            let [by_xdp, by_sockets] = if again[0] == again[1] { first } else { again };
            found.push(Difference {
                sent: sent.bytes.clone(),
                ip: sent.ip,
                xdp_only: without(&by_xdp, &by_sockets),
                sockets_only: without(&by_sockets, &by_xdp),
                counted,
            });
        }
        found
    }
}

#[test]
fn xdp_lets_out_what_sockets_do() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seed = number("PENSTOCK_TEST_SEED").unwrap_or(if long() { u64::from(std::process::id()) } else { 14 });
    println!("PENSTOCK_TEST_SEED={seed}");
    let ends = [End::of(1), End::of(2)];
    let [xdp, sockets] = [Kind::XDP, Kind::SOCKET].map(|kind| Pair::new(kind, &ends));
    let mut scene = Scene { ends, xdp, sockets, conditions: Conditions::default(), turns: 0 };
    let mut random = Random::new(seed);
    let (mut explained, mut unexplained) = (BTreeMap::<String, usize>::new(), Vec::new());
    let started = Instant::now();
    let (mut came_out, mut told) = (0, false);
    let changes = if long() { LONG_CHANGES } else { CHANGES };
    for batch in 0..BATCHES + changes * BATCHES_ALIKE {
        if batch >= BATCHES && (batch - BATCHES).is_multiple_of(BATCHES_ALIKE) {
            scene.change(Conditions::random(&mut random));
            told = false;
        }
        let near = batch % 2;
        let sent: Vec<Sent> = (0..BATCH)
            .map(|index| {
                let tag = (batch * BATCH + index) as u16;
                frames::frame(&mut random, tag, &scene.ends[near], &scene.ends[1 - near])
            })
            .collect();
        let [by_xdp, by_sockets] = scene.carry(&sent, near);
        came_out += by_sockets.values().sum::<usize>();
        if by_xdp == by_sockets {
            continue;
        }
        let found = scene.differences(&sent, near);
        let failures = unexplained.len();
        if found.is_empty() {
            let differing: Vec<_> =
                [("AF_XDP", without(&by_xdp, &by_sockets)), ("sockets", without(&by_sockets, &by_xdp))]
                    .into_iter()
                    .flat_map(|(who, packets)| packets.into_iter().map(move |packet| (who, packet)))
                    .collect();
            let firewall = scene.conditions.firewalls.iter().any(|firewall| !firewall.is_null());
            if firewall && differing.iter().all(|(_, (_, packet))| is_fragment(packet)) {
                *explained.entry(OVERTAKEN.to_owned()).or_default() += 1;
                continue;
            }
            let all: String = differing
                .iter()
                .map(|(who, (exit, packet))| format!("  {who} only, {exit:?}: {}\n", hex(packet)))
                .collect();
            unexplained.push(format!("batch {batch} came out otherwise, and none of its frames alone:\n{all}"));
        }
        for difference in found {
            match difference.explanation(&scene.conditions) {
                Some(why) => *explained.entry(why.to_owned()).or_default() += 1,
                None => unexplained.push(format!("batch {batch}: {difference}")),
            }
        }
        if unexplained.len() > failures && !std::mem::replace(&mut told, true) {
            unexplained.insert(failures, format!("{:#?}", scene.conditions));
        }
    }
    println!("{came_out} packets came out; differences: {explained:?}; {:?}", started.elapsed());
    assert!(came_out > BATCHES * BATCH / 4, "{came_out} packets came out");
    assert!(unexplained.is_empty(), "PENSTOCK_TEST_SEED={seed}: {}", unexplained.join("\n"));
}

/// The beginning of a packet.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(100).map(|byte| format!("{byte:02x}")).collect()
}
