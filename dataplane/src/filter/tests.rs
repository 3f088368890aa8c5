use super::classify::DCCP;
use super::model::{Content, Described, Model, ModelRule};
use super::*;
use crate::inner::UDP;
use crate::inner::tests::packet;

const GRE: u8 = 47;
/// Two sites and this one, in each family: the remote host, and the local one.
const PAIRS: [(&str, &str); 2] = [("10.2.0.1", "10.1.0.1"), ("fd02::1", "fd01::1")];
const PEER: u32 = 7;

const SYN: u8 = Flags::SYN;
const ACK: u8 = Flags::ACK;
const FIN: u8 = Flags::FIN;
const RST: u8 = Flags::RST;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn rule(direction: Direction, services: &[Service], verdict: Verdict) -> Rule {
    Rule {
        direction: Some(direction),
        peers: None,
        sources: None,
        destinations: None,
        services: Some(services.to_vec()),
        verdict,
        counter: Counter::default(),
    }
}

fn service(number: u8, ports: RangeInclusive<u16>) -> Service {
    Service { protocol: Protocol::Number(number), ports: Some(ports) }
}

const PING: Service = Service { protocol: Protocol::Icmp, ports: None };

/// A firewall that lets everything out, and lets in only what these rules accept.
fn rules(rules: Vec<Rule>) -> Rules {
    let default = |verdict| DefaultRule { verdict, counter: Counter::default() };
    Rules { inward: default(Verdict::Drop), outward: default(Verdict::Accept), rules, restrictions: HashMap::new() }
}

/// Workers with a cache each and a common firewall, at a time that the test sets.
struct Workers {
    firewall: Firewall,
    caches: [FlowCache; 2],
    second: u64,
}

impl Workers {
    fn new(rules: Rules) -> Self {
        let firewall = Firewall::new(rules, Arc::default());
        Self { firewall, caches: [FlowCache::new(), FlowCache::new()], second: 1 }
    }

    fn reload(&mut self, rules: Rules) {
        self.firewall = Firewall::new(rules, Arc::clone(&self.firewall.flows));
    }

    fn pass(&mut self, worker: usize, direction: Direction, packet: &[u8]) -> Result<(), DropReason> {
        self.pass_of(PEER, worker, direction, packet)
    }

    fn pass_of(&mut self, peer: u32, worker: usize, direction: Direction, packet: &[u8]) -> Result<(), DropReason> {
        let inner = Inner::parse(packet).expect("a sound packet");
        let now = Millis(self.second * 1000);
        self.firewall.admit(&mut self.caches[worker], packet, &inner, (peer, direction), now)
    }

    fn flows(&self) -> usize {
        self.firewall.flows.count(Millis(self.second * 1000))
    }
}

/// A packet between these hosts, with ports in front of its payload, this protocol and these TCP flags.
fn segment(source: &str, destination: &str, protocol: u8, ports: [u16; 2], flags: u8) -> Vec<u8> {
    let mut payload = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    payload.extend([0; 16]);
    if protocol == TCP {
        payload[12..14].copy_from_slice(&[0x50, flags]);
    }
    packet(source, destination, protocol, 0, 64, &payload)
}

fn icmp(source: &str, destination: &str, kind: [u8; 2], identifier: u16, quoted: &[u8]) -> Vec<u8> {
    let v6 = source.contains(':');
    let mut payload = vec![kind[usize::from(v6)], 0, 0, 0];
    payload.extend(identifier.to_be_bytes());
    payload.extend([0; 2]);
    payload.extend(quoted);
    packet(source, destination, if v6 { ICMPV6 } else { ICMP }, 0, 64, &payload)
}

const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];
const UNREACHABLE: [u8; 2] = [3, 1];
const TOO_BIG: [u8; 2] = [3, 2];
const REDIRECT: [u8; 2] = [5, 137];

/// Makes a packet a fragment, in IPv4's header or with IPv6's extension header.
fn fragment(whole: &[u8], identification: u16, offset: u16, more: bool) -> Vec<u8> {
    let mut packet = whole.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        packet[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
        return packet;
    }
    let mut header = vec![packet[6], 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend(u32::from(identification).to_be_bytes());
    extend(&packet, 44, &header)
}

/// Inserts an extension header of this type after the IPv6 header; its first byte becomes the previous next header.
fn extend(packet: &[u8], kind: u8, header: &[u8]) -> Vec<u8> {
    let mut extended = [&packet[..40], header, &packet[40..]].concat();
    extended[40] = packet[6];
    extended[6] = kind;
    let len = (extended.len() - 40) as u16;
    extended[4..6].copy_from_slice(&len.to_be_bytes());
    extended
}

#[test]
fn answers_pass_and_what_nobody_asked_for_does_not_whichever_worker_has_it() {
    for (remote, local) in PAIRS {
        let mut workers = Workers::new(rules(Vec::new()));
        for (nth, protocol) in [TCP, UDP, DCCP, GRE].into_iter().enumerate() {
            let out = segment(local, remote, protocol, [5000, 53], SYN);
            let back = segment(remote, local, protocol, [53, 5000], SYN | ACK);
            assert_eq!(workers.pass(1, Direction::In, &back), Err(DropReason::FilterDenied));
            assert_eq!(workers.pass(0, Direction::Out, &out), Ok(()));
            assert_eq!(workers.pass(1, Direction::In, &back), Ok(()), "{protocol}");
            assert_eq!(workers.pass(0, Direction::In, &back), Ok(()));
            assert_eq!(workers.flows(), nth + 1);
            // Neither from another port, nor from another site with the same address.
            let other = segment(remote, local, protocol, [54, 5000], SYN | ACK);
            if protocol != GRE {
                assert_eq!(workers.pass(0, Direction::In, &other), Err(DropReason::FilterDenied));
            }
            assert_eq!(workers.pass_of(PEER + 1, 0, Direction::In, &back), Err(DropReason::FilterDenied));
        }
        let ping = icmp(local, remote, REQUEST, 9, &[]);
        let pong = icmp(remote, local, REPLY, 9, &[]);
        assert_eq!(workers.pass(0, Direction::In, &pong), Err(DropReason::FilterDenied));
        assert_eq!(workers.pass(0, Direction::Out, &ping), Ok(()));
        assert_eq!(workers.pass(1, Direction::In, &pong), Ok(()));
        let asked_back = icmp(remote, local, REQUEST, 9, &[]);
        assert_eq!(workers.pass(1, Direction::In, &asked_back), Err(DropReason::FilterDenied), "not the same flow");
        assert_eq!(workers.pass(1, Direction::In, &icmp(remote, local, REPLY, 8, &[])), Err(DropReason::FilterDenied));
    }
}

#[test]
fn the_first_rule_that_matches_decides_and_counts() {
    for (remote, local) in PAIRS {
        let prefix = |address: &str, length| {
            let mut map = PrefixMap::default();
            map.insert(ip(address), length, ());
            Some(map)
        };
        let all = vec![
            Rule { sources: prefix(remote, 128), ..rule(Direction::In, &[service(TCP, 22..=22)], Verdict::Drop) },
            Rule { destinations: prefix(local, 24), ..rule(Direction::In, &[service(TCP, 20..=30)], Verdict::Accept) },
            Rule { peers: Some(vec![3, PEER + 1]), ..rule(Direction::In, &[PING], Verdict::Accept) },
            rule(Direction::Out, &[service(UDP, 53..=53)], Verdict::Drop),
        ];
        let counters: Vec<Counter> = all.iter().map(|rule| Arc::clone(&rule.counter)).collect();
        let rules = rules(all);
        let defaults = [&rules.inward, &rules.outward].map(|default| Arc::clone(&default.counter));
        let mut workers = Workers::new(rules);
        let denied = Err(DropReason::FilterDenied);
        let tcp = |port| segment(remote, local, TCP, [5000, port], SYN);
        assert_eq!(workers.pass(0, Direction::In, &tcp(22)), denied);
        assert_eq!(workers.pass(0, Direction::In, &tcp(22)), denied);
        assert_eq!(workers.pass(0, Direction::In, &tcp(20)), Ok(()));
        assert_eq!(workers.pass(0, Direction::In, &tcp(30)), Ok(()));
        assert_eq!(workers.pass(0, Direction::In, &tcp(30)), Ok(()), "of a known flow, not counted again");
        assert_eq!(workers.pass(0, Direction::In, &tcp(31)), denied);
        let ping = icmp(remote, local, REQUEST, 1, &[]);
        assert_eq!(workers.pass(0, Direction::In, &ping), denied);
        assert_eq!(workers.pass_of(PEER + 1, 0, Direction::In, &ping), Ok(()));
        assert_eq!(workers.pass(0, Direction::Out, &segment(local, remote, UDP, [1, 53], 0)), denied);
        assert_eq!(workers.pass(0, Direction::Out, &segment(local, remote, UDP, [1, 54], 0)), Ok(()));
        let counts: Vec<u64> = counters.iter().chain(&defaults).map(|counter| counter.load(Relaxed)).collect();
        assert_eq!(counts, [2, 2, 1, 1, 2, 1]);
    }
}

#[test]
fn a_restricted_peer_reaches_what_it_may_and_is_answered_and_served() {
    for (remote, local) in PAIRS {
        let mut all = rules(Vec::new());
        all.inward.verdict = Verdict::Accept;
        let services = vec![service(TCP, 443..=443), PING];
        let restriction = Restriction { services, denied: Counter::default() };
        let denied = Arc::clone(&restriction.denied);
        all.restrictions.insert(PEER, restriction);
        all.rules = vec![rule(Direction::In, &[PING], Verdict::Drop)];
        let mut workers = Workers::new(all);
        let tcp = |port| segment(remote, local, TCP, [5000, port], SYN);
        assert_eq!(workers.pass(0, Direction::In, &tcp(443)), Ok(()));
        assert_eq!(workers.pass(0, Direction::In, &tcp(80)), Err(DropReason::FilterDenied));
        assert_eq!(workers.pass_of(PEER + 1, 0, Direction::In, &tcp(80)), Ok(()), "another peer");
        assert_eq!(denied.load(Relaxed), 1);
        let ping = icmp(remote, local, REQUEST, 1, &[]);
        assert_eq!(workers.pass(0, Direction::In, &ping), Err(DropReason::FilterDenied), "the rules hold as well");
        assert_eq!(denied.load(Relaxed), 1);
        assert_eq!(workers.pass(0, Direction::Out, &segment(local, remote, UDP, [1, 2], 0)), Ok(()));
        assert_eq!(workers.pass(0, Direction::In, &segment(remote, local, UDP, [2, 1], 0)), Ok(()));
    }
}

#[test]
fn flows_end_when_they_are_silent() {
    for (remote, local) in PAIRS {
        let out = |protocol, flags| segment(local, remote, protocol, [1, 2], flags);
        let back = |protocol, flags| segment(remote, local, protocol, [2, 1], flags);
        // The packets sent, and for how many seconds of silence an answer passes from then on.
        type Steps<'a> = &'a [(Direction, u8)];
        let (o, i) = (Direction::Out, Direction::In);
        let cases: [(u8, Steps<'_>, u64); 9] = [
            (UDP, &[(o, 0)], 30),
            (UDP, &[(o, 0), (i, 0)], 120),
            (GRE, &[(o, 0), (i, 0)], 600),
            (TCP, &[(o, SYN)], 120),
            (TCP, &[(o, SYN), (i, SYN | ACK)], 60),
            (TCP, &[(o, SYN), (i, SYN | ACK), (o, SYN)], 60),
            (TCP, &[(o, SYN), (i, SYN | ACK), (o, ACK), (i, FIN | ACK)], 7440),
            (TCP, &[(o, SYN), (i, SYN | ACK), (o, ACK), (i, FIN | ACK), (o, FIN | ACK)], 120),
            (TCP, &[(o, SYN), (i, RST | ACK)], 10),
        ];
        for (protocol, steps, lifetime) in cases {
            for silence in [lifetime, lifetime + 1] {
                let mut workers = Workers::new(rules(Vec::new()));
                for (direction, flags) in steps {
                    let packet = if *direction == o { out(protocol, *flags) } else { back(protocol, *flags) };
                    assert_eq!(workers.pass(0, *direction, &packet), Ok(()));
                }
                workers.second += silence;
                let expected = if silence > lifetime { Err(DropReason::FilterDenied) } else { Ok(()) };
                assert_eq!(workers.pass(0, i, &back(protocol, ACK)), expected, "{protocol} {steps:?} {silence}");
            }
        }
        // Packets seen by one worker keep the flow alive for the other.
        let mut workers = Workers::new(rules(Vec::new()));
        assert_eq!(workers.pass(0, o, &out(UDP, 0)), Ok(()));
        for _ in 0..100 {
            workers.second += 1;
            assert_eq!(workers.pass(0, o, &out(UDP, 0)), Ok(()));
        }
        assert_eq!(workers.pass(1, i, &back(UDP, 0)), Ok(()));
    }
}

#[test]
fn a_syn_is_judged_even_where_there_is_a_connection() {
    for (remote, local) in PAIRS {
        let mut workers = Workers::new(rules(Vec::new()));
        for (direction, flags) in [(Direction::Out, SYN), (Direction::In, SYN | ACK), (Direction::Out, ACK)] {
            let packet = match direction {
                Direction::Out => segment(local, remote, TCP, [1, 2], flags),
                Direction::In => segment(remote, local, TCP, [2, 1], flags),
            };
            assert_eq!(workers.pass(0, direction, &packet), Ok(()));
        }
        let connect_back = segment(remote, local, TCP, [2, 1], SYN);
        assert_eq!(workers.pass(0, Direction::In, &connect_back), Err(DropReason::FilterDenied));
        assert_eq!(workers.pass(0, Direction::In, &segment(remote, local, TCP, [2, 1], ACK)), Ok(()), "it lives");
        // A packet that only ends a connection does not begin one.
        let mut workers = Workers::new(rules(Vec::new()));
        for flags in [RST, FIN | ACK] {
            assert_eq!(workers.pass(0, Direction::Out, &segment(local, remote, TCP, [1, 2], flags)), Ok(()));
        }
        assert_eq!(workers.flows(), 0);
    }
}

#[test]
fn errors_pass_that_quote_a_known_flow() {
    for (remote, local) in PAIRS {
        let v6 = remote.contains(':');
        let router = if v6 { "fd02::ff" } else { "10.2.0.255" };
        let about = [
            segment(local, remote, TCP, [1, 2], SYN),
            segment(local, remote, UDP, [1, 2], 0),
            segment(local, remote, GRE, [0, 0], 0),
            icmp(local, remote, REQUEST, 4, &[]),
        ];
        for sent in &about {
            let mut workers = Workers::new(rules(Vec::new()));
            // RFC 792 quotes eight bytes after the header.
            let quoted = &sent[..if v6 { 48 } else { 28 }];
            for kind in [UNREACHABLE, TOO_BIG] {
                let error = icmp(router, local, kind, 0, quoted);
                assert_eq!(workers.pass(0, Direction::In, &error), Err(DropReason::FilterDenied), "nothing was sent");
            }
            assert_eq!(workers.pass(0, Direction::Out, sent), Ok(()));
            for kind in [UNREACHABLE, TOO_BIG] {
                assert_eq!(workers.pass(1, Direction::In, &icmp(router, local, kind, 0, quoted)), Ok(()));
            }
            let denied = Err(DropReason::FilterDenied);
            let elsewhere = if v6 { "fd01::2" } else { "10.1.0.2" };
            let refused = [
                icmp(router, elsewhere, UNREACHABLE, 0, quoted),
                icmp(router, local, REDIRECT, 0, quoted),
                icmp(router, local, UNREACHABLE, 0, &quoted[..quoted.len() - 5]),
                icmp(router, local, UNREACHABLE, 0, &[]),
            ];
            for error in &refused {
                // GRE has no ports that could be cut off.
                if sent[if v6 { 6 } else { 9 }] != GRE || error.len() != refused[2].len() {
                    assert_eq!(workers.pass(1, Direction::In, error), denied, "{error:?}");
                }
            }
            assert_eq!(workers.pass_of(PEER + 1, 1, Direction::In, &icmp(router, local, TOO_BIG, 0, quoted)), denied);
        }
    }
}

#[test]
fn later_fragments_pass_between_hosts_with_an_accepted_flow() {
    for (remote, local) in PAIRS {
        let all = vec![rule(Direction::In, &[service(UDP, 53..=53), service(TCP, 443..=443)], Verdict::Accept)];
        let mut workers = Workers::new(rules(all.clone()));
        let udp = |port| segment(remote, local, UDP, [5000, port], 0);
        let unseen = Err(DropReason::FilterFragment);
        let (first, later) = (fragment(&udp(53), 9, 0, true), fragment(&udp(53), 9, 2, false));
        assert_eq!(workers.pass(0, Direction::In, &later), unseen, "nothing was accepted");
        assert_eq!(workers.pass(0, Direction::In, &fragment(&udp(54), 7, 0, true)), Err(DropReason::FilterDenied));
        assert_eq!(workers.pass(0, Direction::In, &later), unseen, "the first was dropped");
        assert_eq!(workers.pass(0, Direction::In, &first), Ok(()));
        assert_eq!(workers.pass(1, Direction::In, &later), Ok(()));
        assert_eq!(workers.pass_of(PEER + 1, 1, Direction::In, &later), unseen, "another site's");
        assert_eq!(workers.flows(), 1, "fragments are no flows");
        workers.second += 121;
        assert_eq!(workers.pass(0, Direction::In, &later), unseen, "too late");

        // Later fragments of an answer overtake its first.
        let mut workers = Workers::new(rules(all.clone()));
        assert_eq!(workers.pass(0, Direction::Out, &segment(local, remote, UDP, [53, 5000], 0)), Ok(()));
        assert_eq!(workers.pass(1, Direction::In, &later), Ok(()));

        let mut workers = Workers::new(rules(all));
        let tcp = segment(remote, local, TCP, [5000, 443], SYN);
        let cut = packet(remote, local, TCP, 0, 64, &[0; 19]);
        assert_eq!(workers.pass(0, Direction::In, &fragment(&cut, 6, 0, true)), unseen, "without all flags");
        assert_eq!(workers.pass(0, Direction::In, &tcp), Ok(()));
        assert_eq!(workers.pass(0, Direction::In, &fragment(&tcp, 6, 3, true)), unseen, "TCP has none");
        assert_eq!(workers.pass(0, Direction::In, &fragment(&tcp, 6, 0, true)), Ok(()));
        assert_eq!(workers.pass(0, Direction::In, &fragment(&tcp, 6, 1, true)), unseen, "over the flags");
        assert_eq!(workers.pass(0, Direction::In, &fragment(&tcp, 6, 3, true)), Ok(()));
    }
}

#[test]
fn what_cannot_be_read_is_dropped_by_name() {
    for (remote, local) in PAIRS {
        let mut all = rules(Vec::new());
        all.inward.verdict = Verdict::Accept;
        let mut workers = Workers::new(all);
        for (protocol, least) in [(UDP, 8), (TCP, 20), (DCCP, 8), (if remote.contains(':') { ICMPV6 } else { ICMP }, 8)]
        {
            for len in 0..=least {
                let packet = packet(remote, local, protocol, 0, 64, &vec![1; len]);
                let expected = if len < least { Err(DropReason::FilterMalformed) } else { Ok(()) };
                assert_eq!(workers.pass(0, Direction::In, &packet), expected, "{protocol} {len}");
            }
        }
        // ICMP of the other family is not known: it is treated as a protocol without ports.
        let strange = packet(remote, local, if remote.contains(':') { ICMP } else { ICMPV6 }, 0, 64, &[]);
        assert_eq!(workers.pass(0, Direction::In, &strange), Ok(()));
    }
}

#[test]
fn ports_are_found_behind_extension_headers() {
    let (remote, local) = PAIRS[1];
    let all = vec![rule(Direction::In, &[service(UDP, 53..=53)], Verdict::Accept)];
    let mut workers = Workers::new(rules(all));
    let udp = |port| segment(remote, local, UDP, [5000, port], 0);
    for kind in [0, 43, 60] {
        let long = [[0, 1].as_slice(), &[0; 14]].concat();
        for header in [[0; 8].as_slice(), &long] {
            assert_eq!(workers.pass(0, Direction::In, &extend(&udp(53), kind, header)), Ok(()));
            assert_eq!(workers.pass(0, Direction::In, &extend(&udp(54), kind, header)), Err(DropReason::FilterDenied));
        }
        let cut = extend(&udp(53), kind, &[0, 30, 0, 0, 0, 0, 0, 0]);
        assert_eq!(workers.pass(0, Direction::In, &cut), Err(DropReason::FilterMalformed));
    }
    // RFC 6946: a fragment header on an unfragmented packet.
    assert_eq!(workers.pass(0, Direction::In, &fragment(&udp(53), 1, 0, false)), Ok(()));
    let mut chain = udp(53);
    for nth in 1..100 {
        chain = extend(&chain, 60, &[0; 8]);
        assert_eq!(workers.pass(0, Direction::In, &chain), Ok(()), "{nth} headers");
    }
}

#[test]
fn a_reload_keeps_the_flows_that_the_new_rules_accept_and_ends_the_others() {
    for (remote, local) in PAIRS {
        let accept = |ports| rules(vec![rule(Direction::In, &[service(TCP, ports)], Verdict::Accept)]);
        let mut workers = Workers::new(accept(20..=30));
        let step = |workers: &mut Workers, worker, direction, port, flags| match direction {
            Direction::In => workers.pass(worker, direction, &segment(remote, local, TCP, [5000, port], flags)),
            Direction::Out => workers.pass(worker, direction, &segment(local, remote, TCP, [port, 5000], flags)),
        };
        for port in [20, 30] {
            for (direction, flags) in [(Direction::In, SYN), (Direction::Out, SYN | ACK), (Direction::In, ACK)] {
                assert_eq!(step(&mut workers, 0, direction, port, flags), Ok(()));
                assert_eq!(step(&mut workers, 1, direction, port, flags), Ok(()));
            }
        }
        // Answers in the first flow are judged by its first packet, and not as outgoing flows.
        let mut fewer = accept(20..=25);
        fewer.outward.verdict = Verdict::Drop;
        workers.reload(fewer);
        assert_eq!(step(&mut workers, 1, Direction::Out, 20, ACK), Ok(()));
        assert_eq!(step(&mut workers, 0, Direction::In, 20, ACK), Ok(()));
        assert_eq!(step(&mut workers, 0, Direction::In, 30, ACK), Err(DropReason::FilterDenied));
        // The server's retransmissions do not begin it again, although the server may begin flows.
        workers.reload(accept(20..=25));
        assert_eq!(step(&mut workers, 1, Direction::Out, 30, ACK), Err(DropReason::FilterDenied));
        workers.second += 7000;
        assert_eq!(step(&mut workers, 1, Direction::Out, 30, ACK), Err(DropReason::FilterDenied));
        assert_eq!(step(&mut workers, 1, Direction::Out, 30, SYN), Ok(()), "another connection");
    }
}

/// A host that keeps opening flows fills a set's places, but not those of others' connections, and is finally refused
/// with a reason.
#[test]
fn a_full_table_keeps_connections_and_refuses_new_flows() {
    let (remote, local) = PAIRS[0];
    let mut workers = Workers::new(rules(Vec::new()));
    let connect = |workers: &mut Workers, port: u16| -> Result<(), DropReason> {
        workers.pass(0, Direction::Out, &segment(local, remote, TCP, [port, 2], SYN))?;
        workers.pass(0, Direction::In, &segment(remote, local, TCP, [2, port], SYN | ACK))?;
        workers.pass(0, Direction::Out, &segment(local, remote, TCP, [port, 2], ACK))
    };
    assert_eq!(connect(&mut workers, 1), Ok(()));
    // More unanswered flows than there are places.
    let mut packet = segment(local, remote, UDP, [1, 2], 0);
    for address in 0..2 * FLOWS as u32 {
        packet[12..16].copy_from_slice(&(0x0a03_0000 + address).to_be_bytes());
        assert_eq!(workers.pass(1, Direction::Out, &packet), Ok(()), "a place that yields is taken");
    }
    assert!(workers.flows() <= FLOWS);
    assert_eq!(workers.pass(0, Direction::In, &segment(remote, local, TCP, [2, 1], ACK)), Ok(()));

    // Connections until one set is full.
    let mut handshake = [
        (Direction::Out, segment(local, remote, TCP, [1, 2], SYN), 12),
        (Direction::In, segment(remote, local, TCP, [2, 1], SYN | ACK), 16),
        (Direction::Out, segment(local, remote, TCP, [1, 2], ACK), 12),
    ];
    let refused = (0..FLOWS as u32).find_map(|address| {
        handshake.iter_mut().find_map(|(direction, packet, at)| {
            packet[*at..*at + 4].copy_from_slice(&(0x0a30_0000 + address).to_be_bytes());
            workers.pass(0, *direction, packet).err()
        })
    });
    assert_eq!(refused, Some(DropReason::FilterFull));
    assert_eq!(workers.pass(0, Direction::In, &segment(remote, local, TCP, [2, 1], ACK)), Ok(()));
}

/// Similar flows are spread over the table, and differently in another table.
#[test]
fn flows_spread_over_the_table() {
    let keys: Vec<Key> = (0..4096u16)
        .map(|port| {
            let key = Key::new((ip("10.2.0.1"), ip("10.1.0.1")), UDP, (PEER, Direction::In)).unwrap();
            key.with_ports(port, 53, Direction::In)
        })
        .collect();
    let (one, other) = (Flows::new(), Flows::new());
    for bits in [0u32, 8, 21] {
        // 2,048 bins with two in each on average; more than twenty in one has a probability below 10^-11.
        let mut bins = [0; 2048];
        keys.iter().for_each(|key| bins[(one.hash(key) >> bits) as usize % 2048] += 1);
        assert!(bins.iter().all(|count| *count < 20), "{:?}", bins.iter().max());
    }
    assert!(keys.iter().filter(|key| one.hash(key) == other.hash(key)).count() < 3);
}

fn random(seed: &mut u64) -> u64 {
    crate::random::xorshift(seed) >> 11
}

fn pick<T: Clone>(seed: &mut u64, from: &[T]) -> T {
    from[random(seed) as usize % from.len()].clone()
}

fn maybe<T>(seed: &mut u64, value: impl FnOnce(&mut u64) -> T) -> Option<T> {
    (random(seed).is_multiple_of(2)).then(|| value(seed))
}

/// Few hosts, ports and identifications, so that flows collide.
fn random_packet(seed: &mut u64, quotes: bool) -> Described {
    let direction = pick(seed, &[Direction::In, Direction::Out]);
    let v6 = random(seed).is_multiple_of(2);
    let remote = ip(pick(seed, if v6 { &["fd02::1", "fd02::2"] } else { &["10.2.0.1", "10.2.0.2"] }));
    let local = ip(pick(seed, if v6 { &["fd01::1", "fd01::2"] } else { &["10.1.0.1", "10.1.0.2"] }));
    let (source, destination) = if direction == Direction::In { (remote, local) } else { (local, remote) };
    let port = |seed: &mut u64| pick(seed, &[1000, 1001]);
    let content = match random(seed) % if quotes { 16 } else { 11 } {
        0..4 => {
            let flags = pick(
                seed,
                &[
                    [true, false, false, false],
                    [true, true, false, false],
                    [false, true, false, false],
                    [false, true, true, false],
                    [false, false, false, true],
                ],
            );
            Content::Tcp(port(seed), port(seed), flags)
        }
        4..7 => Content::Udp(port(seed), port(seed)),
        7..10 => Content::Echo(random(seed).is_multiple_of(2), port(seed)),
        10 => Content::Gre,
        11 => Content::Query,
        12 => Content::First(port(seed), port(seed), pick(seed, &[1, 2])),
        13 => Content::Later(pick(seed, &[1, 2])),
        _ => {
            let mut about = random_packet(seed, false);
            while about.source.is_ipv6() != v6 {
                about = random_packet(seed, false);
            }
            if !random(seed).is_multiple_of(4) {
                (about.direction, about.source, about.destination) = (direction.opposite(), destination, source);
            }
            Content::Error(about.into())
        }
    };
    Described { peer: pick(seed, &[PEER, PEER + 1]), direction, source, destination, content }
}

fn bytes_of(described: &Described) -> Vec<u8> {
    let (source, destination) = (described.source.to_string(), described.destination.to_string());
    let (s, d) = (source.as_str(), destination.as_str());
    match &described.content {
        Content::Tcp(from, to, [syn, ack, fin, reset]) => {
            let bits = [(syn, SYN), (ack, ACK), (fin, FIN), (reset, RST)];
            let flags = bits.iter().filter(|(set, _)| **set).fold(0, |flags, (_, bit)| flags | bit);
            segment(s, d, TCP, [*from, *to], flags)
        }
        Content::Udp(from, to) => segment(s, d, UDP, [*from, *to], 0),
        Content::Echo(request, identifier) => icmp(s, d, if *request { REQUEST } else { REPLY }, *identifier, &[]),
        Content::Error(about) => icmp(s, d, UNREACHABLE, 0, &bytes_of(about)),
        Content::Query => icmp(s, d, [13, 130], 3, &[]),
        Content::Gre => segment(s, d, GRE, [1, 2], 0),
        Content::First(from, to, id) => fragment(&segment(s, d, UDP, [*from, *to], 0), *id, 0, true),
        Content::Later(id) => fragment(&segment(s, d, UDP, [9, 9], 0), *id, 2, false),
    }
}

fn random_rules(seed: &mut u64, model: &mut Model) {
    let verdict = |seed: &mut u64| pick(seed, &[Verdict::Accept, Verdict::Drop]);
    let protocol = |seed: &mut u64| pick(seed, &["tcp", "udp", "icmp", "gre"]);
    let service = |seed: &mut u64| {
        let protocol = protocol(seed);
        let ports = pick(seed, &[None, Some((1000, 1000)), Some((1001, 2000)), Some((5, 6))]);
        (protocol, ports.filter(|_| ["tcp", "udp"].contains(&protocol)))
    };
    let hosts = ["10.2.0.1", "10.2.0.2", "10.1.0.2", "fd02::1", "fd01::1", "fd01::2"];
    let prefix = |seed: &mut u64| {
        let address = ip(pick(seed, &hosts));
        (address, pick(seed, if address.is_ipv4() { &[8, 24, 31, 32] } else { &[8, 64, 127, 128] }))
    };
    model.rules = (0..random(seed) % 6)
        .map(|_| ModelRule {
            direction: maybe(seed, |seed| pick(seed, &[Direction::In, Direction::Out])),
            peer: maybe(seed, |seed| pick(seed, &[PEER, PEER + 1])),
            source: maybe(seed, prefix),
            destination: maybe(seed, prefix),
            service: maybe(seed, service),
            verdict: verdict(seed),
        })
        .collect();
    model.defaults = [verdict(seed), verdict(seed)];
    model.restricted = (0..random(seed) % 3)
        .map(|_| {
            let (protocol, ports) = service(seed);
            (PEER, protocol, ports)
        })
        .collect();
    model.version += 1;
}

/// The same rules, compiled.
fn compiled(model: &Model) -> Rules {
    let service = |(protocol, ports): (&str, Option<(u16, u16)>)| Service {
        protocol: match protocol {
            "tcp" => Protocol::Number(TCP),
            "udp" => Protocol::Number(UDP),
            "gre" => Protocol::Number(GRE),
            _ => Protocol::Icmp,
        },
        ports: ports.map(|(first, last)| first..=last),
    };
    let prefix = |(address, length): (IpAddr, u8)| {
        let mut map = PrefixMap::default();
        map.insert(address, length, ());
        map
    };
    let default = |verdict| DefaultRule { verdict, counter: Counter::default() };
    let mut restrictions = HashMap::new();
    for (peer, protocol, ports) in &model.restricted {
        let fresh = || Restriction { services: Vec::new(), denied: Counter::default() };
        restrictions.entry(*peer).or_insert_with(fresh).services.push(service((*protocol, *ports)));
    }
    let rules = model.rules.iter().map(|rule| Rule {
        direction: rule.direction,
        peers: rule.peer.map(|peer| vec![peer]),
        sources: rule.source.map(prefix),
        destinations: rule.destination.map(prefix),
        services: rule.service.map(|rule| vec![service(rule)]),
        verdict: rule.verdict,
        counter: Counter::default(),
    });
    Rules {
        inward: default(model.defaults[0]),
        outward: default(model.defaults[1]),
        rules: rules.collect(),
        restrictions,
    }
}

/// Random packets of both families through two workers, under random rules that are reloaded now and then, at random
/// times: each must have the same fate as in the model.
#[test]
fn agrees_with_the_model() {
    let mut seed = 0x5eed_f10e;
    let mut passed = 0;
    for _ in 0..20 {
        let mut model = Model::new();
        random_rules(&mut seed, &mut model);
        let mut workers = Workers::new(compiled(&model));
        for nth in 0..4000 {
            let described = random_packet(&mut seed, true);
            let asks_anew = matches!(described.content, Content::Tcp(_, _, [true, false, ..]));
            // A worker's memory of the current second does not tell a connection from the next one with the same ports.
            if asks_anew || random(&mut seed).is_multiple_of(3) {
                workers.second += pick(&mut seed, &[1, 1, 1, 2, 9, 10, 11, 30, 31, 61, 120, 121, 600]);
            }
            if random(&mut seed).is_multiple_of(200) {
                random_rules(&mut seed, &mut model);
                workers.reload(compiled(&model));
            }
            let expected = model.passes(&described, workers.second);
            let bytes = bytes_of(&described);
            let worker = random(&mut seed) as usize % 2;
            let result = workers.pass_of(described.peer, worker, described.direction, &bytes);
            assert_eq!(result.is_ok(), expected, "{nth}: {described:?} at {}: {result:?}", workers.second);
            passed += usize::from(expected);
        }
    }
    assert!((20_000..60_000).contains(&passed), "{passed} of 80,000 passed: nothing is tested where all or none do");
}

/// Whatever the bytes are, they are judged, or dropped with a reason.
#[test]
fn random_packets_are_judged() {
    let mut seed = 77;
    let mut workers = Workers::new(rules(vec![rule(Direction::In, &[PING], Verdict::Accept)]));
    for _ in 0..100_000 {
        let mut bytes: Vec<u8> = (0..20 + random(&mut seed) % 100).map(|_| random(&mut seed) as u8).collect();
        let len = bytes.len() as u16;
        if random(&mut seed).is_multiple_of(2) {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[9] = pick(&mut seed, &[TCP, UDP, ICMP, GRE]);
        } else {
            bytes.resize(bytes.len() + 40, 0);
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes[6] = pick(&mut seed, &[TCP, UDP, ICMPV6, 0, 43, 44, 60]);
            bytes[40] = pick(&mut seed, &[TCP, UDP, ICMPV6, 0, 43, 44, 60]);
            bytes[41] %= 2;
        }
        let direction = pick(&mut seed, &[Direction::In, Direction::Out]);
        let known = [DropReason::FilterDenied, DropReason::FilterFragment, DropReason::FilterMalformed];
        if let Err(reason) = workers.pass(0, direction, &bytes) {
            assert!(known.contains(&reason), "{reason:?}");
        }
    }
}

/// Two workers at once: whichever sees the answer finds the flow that the other has just opened.
#[test]
fn workers_share_flows_while_both_work() {
    let (remote, local) = PAIRS[1];
    let firewall = Firewall::new(rules(Vec::new()), Arc::default());
    let (sent, received) = std::sync::mpsc::sync_channel(16);
    let pass = |cache: &mut FlowCache, direction, bytes: &[u8]| {
        let inner = Inner::parse(bytes).unwrap();
        firewall.admit(cache, bytes, &inner, (PEER, direction), Millis(1000))
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut cache, sent) = (FlowCache::new(), sent);
            for port in 0..20_000 {
                let packet = segment(local, remote, UDP, [port, 53], 0);
                assert_eq!(pass(&mut cache, Direction::Out, &packet), Ok(()));
                sent.send(port).unwrap();
            }
        });
        let mut cache = FlowCache::new();
        for port in received {
            let answer = segment(remote, local, UDP, [53, port], 0);
            assert_eq!(pass(&mut cache, Direction::In, &answer), Ok(()), "{port}");
            let strange = segment(remote, local, UDP, [54, port], 0);
            assert_eq!(pass(&mut cache, Direction::In, &strange), Err(DropReason::FilterDenied));
        }
    });
}
