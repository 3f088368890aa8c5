//! The guard in a real kernel: what is left of it when somebody removes parts, and how it comes back. There is no
//! gateway process here; [`Ground`] works in the gateway's namespace on a tun device that nobody reads.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use crate::chaos::network::routes_again;
use crate::support::*;
use ipnet::IpNet;
use penstock::ground::{
    DEFAULT_MARK, DEFAULT_TABLE, FilterState, Ground, Interest, Kernel, Linux, Operation, Placement, Sysctl, Tun,
    Wanted,
};
use penstock::netlink::{Address, ForeignRule, Interface, Monitor, Neighbour, Route, Rule};
use penstock::profile::Name;
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel, with a record of the requests to it.
struct Noting {
    kernel: Linux,
    asked: Vec<String>,
    /// Whether it can forward IPv6 by interface, as Linux can since 6.17.
    forwards_by_interface: bool,
}

impl Kernel for Noting {
    fn apply(&mut self, operation: &Operation) -> io::Result<()> {
        let outcome = self.kernel.apply(operation);
        self.asked.push(format!("{operation}: {outcome:?}"));
        outcome
    }

    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        self.kernel.interfaces()
    }

    fn addresses(&mut self) -> io::Result<Vec<Address>> {
        self.kernel.addresses()
    }

    fn routes(&mut self, keep: &mut dyn FnMut(&Route) -> bool) -> io::Result<Vec<Route>> {
        self.kernel.routes(keep)
    }

    fn rules(&mut self) -> io::Result<Vec<Rule>> {
        self.kernel.rules()
    }

    fn other_rules(&mut self) -> io::Result<Vec<ForeignRule>> {
        self.kernel.other_rules()
    }

    fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        self.kernel.neighbours()
    }

    fn filter(&mut self, name: &Name) -> io::Result<FilterState> {
        self.kernel.filter(name)
    }

    fn sysctl(&mut self, sysctl: &Sysctl) -> Option<String> {
        self.kernel.sysctl(sysctl).filter(|_| self.forwards_by_interface || sysctl.name != "force_forwarding")
    }
}

/// A ground, the state it is to establish, and the notifications it receives.
struct Laboratory<'a> {
    topology: &'a Topology,
    runtime: tokio::runtime::Runtime,
    monitor: Monitor,
    ground: Ground<Noting>,
    wanted: Wanted,
    _directory: tempfile::TempDir,
}

fn nets(list: &[&str]) -> BTreeSet<IpNet> {
    list.iter().map(|text| text.parse().expect("a prefix")).collect()
}

const TUN: &str = "pen0";

impl<'a> Laboratory<'a> {
    /// Must be called in the gateway's namespace.
    fn new(topology: &'a Topology, guarded: &[&str]) -> Self {
        Self::with_kernel(topology, guarded, true)
    }

    fn with_kernel(topology: &'a Topology, guarded: &[&str], forwards_by_interface: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let monitor = runtime.block_on(async { Monitor::open() }).expect("a monitor");
        let directory = tempfile::tempdir().expect("a directory");
        let name = Name::try_from(TUN.to_owned()).expect("a name");
        let lan = BTreeSet::from(["lan0".to_owned()]);
        let interest = Interest { table: DEFAULT_TABLE, lan: lan.clone() };
        let kernel = Noting { kernel: Linux::open().expect("netlink"), asked: Vec::new(), forwards_by_interface };
        let ground = Ground::open(kernel, &name, interest, directory.path(), Instant::now());
        let wanted = Wanted {
            mtus: Default::default(),
            name,
            placement: Placement {
                profile: "a.profile".into(),
                table: DEFAULT_TABLE,
                mark: DEFAULT_MARK,
                wan: "wan0".into(),
                lan,
                local: topology.a.subnets().iter().map(|s| s.parse().expect("a prefix")).collect(),
                transit: false,
            },
            tun: None,
            tunnelled: nets(guarded),
            guarded: nets(guarded),
            outer: BTreeSet::from([IpAddr::V4(topology.b.wan4)]),
            local_port: Some(PORT),
            forward: true,
        };
        let mut laboratory = Self { topology, runtime, monitor, ground, wanted, _directory: directory };
        laboratory.make_tun();
        laboratory.settle();
        laboratory
    }

    fn make_tun(&mut self) {
        let gateway = &self.topology.a.gateway;
        gateway.run(&["ip", "tuntap", "add", "dev", TUN, "mode", "tun"]);
        let index = gateway.run(&["cat", &format!("/sys/class/net/{TUN}/ifindex")]).trim().parse().expect("an index");
        self.wanted.tun = Some(Tun {
            mtu: None,
            index,
            addresses: BTreeSet::from([self.topology.a.virtual_address()]),
            source_v4: Some(self.topology.a.virtual_address()),
            source_v6: Some("fd00:101::1".parse().expect("an address")),
        });
    }

    /// Processes notifications until nothing is left to do.
    fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.ground.parts().0.asked.clear();
            self.ground.reconcile(Instant::now(), &self.wanted);
            let quiet = Duration::from_millis(100);
            let news = self.runtime.block_on(async { tokio::time::timeout(quiet, self.monitor.news()).await });
            match news {
                Ok(news) => drop(self.ground.refresh(Instant::now(), news.expect("news"))),
                Err(_) if self.ground.parts().0.asked.is_empty() => break,
                Err(_) => {}
            }
            let asked = &self.ground.parts().0.asked;
            assert!(Instant::now() < deadline, "it does not settle: {asked:#?}");
        }
        // A network that overlaps a remote prefix is reported, and there is nothing to retry.
        let mut problems = self.ground.problems(Instant::now());
        problems.retain(|problem| problem.next_try_seconds.is_some());
        assert!(problems.is_empty(), "{problems:#?}");
    }

    /// The path of a packet from the LAN, according to the routes.
    fn way(&self, destination: IpAddr) -> String {
        let source = if destination.is_ipv4() { self.topology.a.host4() } else { self.topology.a.host6() };
        let words = ["ip", "route", "get", &destination.to_string(), "from", &source.to_string(), "iif", "lan0"];
        self.topology.a.gateway.attempt(&words).1
    }

    fn leads_into_the_tunnel(&self) {
        for host in self.topology.b.hosts() {
            let way = self.way(host);
            assert!(way.contains(&format!("dev {TUN}")), "{way}");
        }
    }

    /// How many packets leave in the clear when the LAN's host pings the other site's.
    fn leaked(&self) -> usize {
        let capture = Capture::of_wan(self.topology);
        for host in self.topology.b.hosts() {
            ping(&self.topology.a.host, host, &["-c", "3", "-i", "0.05", "-W", "1"]);
        }
        capture.stop().iter().filter(|frame| frame.is_clear_text(self.topology)).count()
    }
}

fn take_rules(gateway: &Namespace) {
    gateway.run(&["ip", "rule", "del", "priority", "4710"]);
    gateway.run(&["ip", "-6", "rule", "del", "priority", "4710"]);
}

fn take_table(gateway: &Namespace) {
    for version in ["-4", "-6"] {
        gateway.attempt(&["ip", version, "route", "flush", "table", &DEFAULT_TABLE.to_string()]);
    }
}

fn take_blackholes(gateway: &Namespace) {
    for version in ["-4", "-6"] {
        gateway.attempt(&["ip", version, "route", "flush", "table", "main", "proto", "80"]);
    }
}

fn take_filter(gateway: &Namespace) {
    gateway.run(&["nft", "flush", "ruleset"]);
}

/// Runs a test in the gateway's namespace of site A.
fn in_gateway(test: impl FnOnce(&Topology) + Send) {
    if !ready(&["tcpdump", "nft"]) {
        return;
    }
    let topology = Topology::new(Options::switch());
    topology.a.gateway.enter(|| test(&topology));
}

#[test]
fn each_layer_alone_holds_and_what_was_taken_comes_back() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        let mut laboratory = Laboratory::new(topology, &["10.102.0.0/24", "fd00:102::/64"]);
        laboratory.leads_into_the_tunnel();
        type Take = (&'static str, fn(&Namespace));
        let takes: [Take; 4] =
            [("rules", take_rules), ("table", take_table), ("blackholes", take_blackholes), ("filter", take_filter)];
        for (what, take) in takes {
            take(gateway);
            assert_eq!(laboratory.leaked(), 0, "without {what}");
            laboratory.settle();
            laboratory.leads_into_the_tunnel();
        }
        // Any one of the three suffices.
        type Takes = [fn(&Namespace); 2];
        let pairs: [(&str, Takes); 3] = [
            ("the own table", [take_blackholes, take_filter]),
            ("the main table", [take_rules, take_filter]),
            ("the filter", [take_table, take_blackholes]),
        ];
        for (what, takes) in pairs {
            takes.iter().for_each(|take| take(gateway));
            assert_eq!(laboratory.leaked(), 0, "with {what} alone");
            laboratory.settle();
        }
        // The leak test itself sees leaks.
        take_rules(gateway);
        take_blackholes(gateway);
        take_filter(gateway);
        assert!(laboratory.leaked() > 0, "nothing is seen without any layer");
        laboratory.settle();
        assert_eq!(laboratory.leaked(), 0);
        laboratory.leads_into_the_tunnel();
    });
}

/// Packets from the tunnel for this site, when the LAN interface and the packet filter are gone at once.
#[test]
fn what_comes_from_the_tunnel_does_not_take_the_default_route() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        let mut laboratory = Laboratory::new(topology, &["10.102.0.0/24", "fd00:102::/64"]);
        routes_again(topology);
        let from_tunnel = |destination: IpAddr| {
            let host = topology.b.hosts().into_iter().find(|host| host.is_ipv4() == destination.is_ipv4());
            let source = host.expect("a host of each version").to_string();
            let words = ["ip", "route", "get", &destination.to_string(), "from", &source, "iif", TUN];
            gateway.attempt(&words).1
        };
        laboratory.settle();
        for host in topology.a.hosts() {
            assert!(from_tunnel(host).contains("dev lan0"), "{}", from_tunnel(host));
        }
        take_filter(gateway);
        gateway.ip("link del lan0\n");
        for host in topology.a.hosts() {
            assert!(!from_tunnel(host).contains("dev"), "{}", from_tunnel(host));
        }
        // A rule of somebody else's decides before.
        gateway.run(&["ip", "rule", "add", "iif", TUN, "lookup", "main", "priority", "20000"]);
        laboratory.settle();
        assert!(from_tunnel(topology.a.host4()).contains("dev wan0"));
        gateway.run(&["ip", "rule", "del", "priority", "20000"]);
        // With transit, packets may go on to other sites' networks.
        laboratory.wanted.placement.transit = true;
        laboratory.settle();
        assert!(from_tunnel(topology.a.host4()).contains("dev wan0"));
        let rules = gateway.ip_show("rule");
        assert!(!rules.contains(TUN), "{rules}");
    });
}

/// Where the default route leaves by the LAN, what comes from the tunnel may take it.
#[test]
fn a_default_route_by_the_lan_stays_open_to_the_tunnel() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        let mut laboratory = Laboratory::new(topology, &["10.102.0.0/24"]);
        assert!(gateway.ip_show("rule").contains("suppress_prefixlength 0"), "{}", gateway.ip_show("rule"));
        gateway.run(&["ip", "route", "replace", "default", "via", "10.101.0.2"]);
        laboratory.settle();
        assert!(!gateway.ip_show("rule").contains(TUN), "{}", gateway.ip_show("rule"));
    });
}

#[test]
fn a_tun_device_that_goes_down_or_is_replaced_gets_its_routes_again() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        let mut laboratory = Laboratory::new(topology, &["10.102.0.0/24", "fd00:102::/64"]);
        gateway.ip(&format!("link set {TUN} down\n"));
        assert_eq!(laboratory.leaked(), 0);
        laboratory.settle();
        laboratory.leads_into_the_tunnel();

        gateway.ip(&format!("link set {TUN} down\nlink set {TUN} up\n"));
        laboratory.settle();
        laboratory.leads_into_the_tunnel();

        gateway.ip(&format!("link del {TUN}\n"));
        laboratory.wanted.tun = None;
        laboratory.settle();
        assert_eq!(laboratory.leaked(), 0);
        laboratory.make_tun();
        laboratory.settle();
        laboratory.leads_into_the_tunnel();
        let addresses = gateway.ip_show(&format!("-6 addr show dev {TUN}"));
        assert!(!addresses.contains("fe80"), "{addresses}");
    });
}

#[test]
fn a_foreign_rule_and_a_foreign_route_leak_nothing() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        let mut laboratory = Laboratory::new(topology, &["10.102.0.0/16", "fd00:102::/64"]);
        gateway.ip("route add default via 192.0.2.2 table 100\nrule add priority 100 lookup 100\n");
        let way = laboratory.way(topology.b.host4());
        assert!(way.contains("dev wan0"), "{way}");
        assert_eq!(laboratory.leaked(), 0);
        laboratory.settle();
        assert_eq!(laboratory.leaked(), 0);
        gateway.ip("rule del priority 100\n");

        gateway.ip("route add 10.102.0.0/24 via 192.0.2.2\n");
        assert_eq!(laboratory.leaked(), 0);
        laboratory.settle();
        laboratory.leads_into_the_tunnel();
    });
}

/// The tunnel's peer lies in a remote prefix, and the WAN has a strict reverse path filter: the tunnel's own packets
/// pass nevertheless, while nothing in the clear is accepted in the name of the prefix.
#[test]
fn outer_packets_of_a_guarded_address_pass_a_strict_reverse_path_filter() {
    in_gateway(|topology| {
        topology.a.gateway.sysctl("net/ipv4/conf/wan0/rp_filter", "1");
        for guarded in ["192.0.2.0/28", "0.0.0.0/0"] {
            let mut laboratory = Laboratory::new(topology, &[guarded]);
            let inside = UdpSocket::bind((topology.a.wan4, PORT)).expect("the port is free");
            socket2::SockRef::from(&inside).set_mark(DEFAULT_MARK).expect("a mark");
            inside.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            let outside = topology.b.gateway.enter(|| UdpSocket::bind((topology.b.wan4, PORT))).expect("free");
            outside.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            outside.send_to(b"in", (topology.a.wan4, PORT)).expect("sent");
            let mut buffer = [0; 16];
            let (_, from) = inside.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{guarded}: {e}"));
            inside.send_to(b"out", from).expect("sent");
            outside.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{guarded}: {e}"));

            laboratory.wanted.guarded.clear();
            laboratory.wanted.tun = None;
            topology.a.gateway.ip(&format!("link del {TUN}\n"));
            laboratory.settle();
            let before = topology.a.gateway.run(&["cat", "/proc/sys/net/ipv4/conf/wan0/src_valid_mark"]);
            assert_eq!(before.trim(), "0", "it was not put back");
        }
    });
}

#[test]
fn nothing_comes_in_the_clear_in_the_name_of_a_remote_prefix() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        bridge_lan(&topology.a, "");
        let mut laboratory = Laboratory::new(topology, &["10.102.0.0/24", "fd00:102::/64"]);
        for own in topology.a.hosts() {
            let echo = UdpEcho::start(&topology.a.host, own);
            udp_echoes(&topology.b.host, echo.address, 2);
            assert_eq!(echo.received(), 0, "to {own}");
            take_filter(gateway);
            udp_echoes(&topology.b.host, echo.address, 2);
            assert!(echo.received() > 0, "the filter was not what held it");
            laboratory.settle();
        }
    });
}

#[test]
fn a_guarded_default_route_locks_nobody_out() {
    in_gateway(|topology| {
        let laboratory = Laboratory::new(topology, &["0.0.0.0/0", "::/0"]);
        laboratory.leads_into_the_tunnel();
        assert_eq!(laboratory.leaked(), 0);
        let administrator = &topology.b.gateway;
        assert!(ping(administrator, topology.a.wan4.into(), &["-c", "2", "-i", "0.1"]).all_answered());
        assert!(ping(administrator, topology.a.wan6.into(), &["-c", "2", "-i", "0.1"]).all_answered());
        for own in ["10.101.0.1", "fd00:101::1"] {
            assert!(ping(&topology.a.host, own.parse().unwrap(), &["-c", "1"]).all_answered(), "from the LAN to {own}");
        }
    });
}

#[test]
fn the_guard_stays_when_the_gateway_stops_and_goes_when_it_is_released() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        let state = || {
            let routes = ["-4", "-6"].map(|v| gateway.ip_show(&format!("{v} route show table all proto 80")));
            let rules = ["-4", "-6"].map(|v| gateway.ip_show(&format!("{v} rule show")));
            let settings = ["all/send_redirects", "lan0/forwarding", "lan0/rp_filter"]
                .map(|s| gateway.run(&["cat", &format!("/proc/sys/net/ipv4/conf/{s}")]));
            (routes, rules, settings, gateway.run(&["nft", "list", "ruleset"]))
        };
        gateway.sysctl("net/ipv4/conf/lan0/forwarding", "0");
        let before = state();
        let mut laboratory = Laboratory::new(topology, &["10.0.0.0/8", "fd00:102::/64"]);
        assert_eq!(gateway.run(&["cat", "/proc/sys/net/ipv4/conf/lan0/forwarding"]).trim(), "1");
        let now = Instant::now();
        laboratory.ground.withdraw(now, &laboratory.wanted);
        gateway.ip(&format!("link del {TUN}\n"));
        assert_eq!(state().2, before.2, "settings are put back");
        // Somebody else switches forwarding on.
        gateway.sysctl("net/ipv4/conf/lan0/forwarding", "1");
        assert_eq!(laboratory.leaked(), 0);
        assert!(ping(gateway, topology.a.host4(), &["-c", "1"]).all_answered(), "the own LAN is cut off");
        gateway.sysctl("net/ipv4/conf/lan0/forwarding", "0");

        laboratory.wanted.tun = None;
        laboratory.wanted.forward = false;
        laboratory.wanted.guarded.clear();
        laboratory.settle();
        assert_eq!(state(), before);
    });
}

/// A prefix for which the machine already has a route, and one for which the tunnel's MTU is too small, are reported
/// and do not keep other prefixes from getting routes.
#[test]
fn a_prefix_that_cannot_have_a_route_holds_up_no_other() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        gateway.ip("route add 10.50.0.0/16 via 10.101.0.2 dev lan0 proto static\n");
        let mut laboratory =
            Laboratory::new(topology, &["10.50.0.0/16", "10.102.0.0/24", "fd00:99::/48", "fd00:102::/64"]);
        laboratory.leads_into_the_tunnel();
        let way = laboratory.way("10.50.0.1".parse().unwrap());
        assert!(way.contains("dev lan0"), "{way}");
        let told = |laboratory: &Laboratory<'_>, subject: &str| {
            laboratory.ground.problems(Instant::now()).iter().any(|problem| problem.subject == subject)
        };
        assert!(told(&laboratory, "10.50.0.0/16"));
        gateway.ip(&format!("link set {TUN} mtu 1200\n"));
        laboratory.settle();
        assert!(told(&laboratory, &format!("IPv6 in {TUN}")));
        let way = laboratory.way(topology.b.host4());
        assert!(way.contains(&format!("dev {TUN}")), "{way}");
        assert_eq!(laboratory.leaked(), 0, "IPv6 is blocked meanwhile");
        gateway.ip(&format!("link set {TUN} mtu 1420\n"));
        laboratory.settle();
        laboratory.leads_into_the_tunnel();
    });
}

/// A peer that has the prefixes of this site's own LAN, or parts of them, does not get the LAN's traffic.
#[test]
fn the_sites_own_prefixes_stay_with_the_lan_in_both_versions() {
    in_gateway(|topology| {
        let own = ["10.101.0.0/24", "fd00:101::/64", "10.101.0.0/28", "fd00:101::/96"];
        let laboratory = Laboratory::new(topology, &[&own[..], &["10.102.0.0/24", "fd00:102::/64"]].concat());
        laboratory.leads_into_the_tunnel();
        for host in topology.a.hosts() {
            let way = topology.a.gateway.run(&["ip", "route", "get", &host.to_string()]);
            assert!(way.contains("dev lan0"), "{way}");
            let ping = ping(&topology.a.gateway, host, &["-c", "3", "-i", "0.2", "-W", "1"]);
            assert!(ping.received > 0, "{host} of the LAN, {way}: {}", ping.text);
        }
        let subjects: BTreeSet<String> =
            laboratory.ground.problems(Instant::now()).into_iter().map(|problem| problem.subject).collect();
        for prefix in own {
            assert!(subjects.contains(prefix), "{prefix} is not told: {subjects:?}");
        }
    });
}

/// Networks inside a remote prefix that are behind the LAN stay there, including those behind a router of the LAN. A
/// network of the WAN is reported, and its packets go into the tunnel.
#[test]
fn networks_inside_a_remote_prefix_stay_with_the_lan_and_not_with_the_wan() {
    in_gateway(|topology| {
        let gateway = &topology.a.gateway;
        gateway.ip("route add 10.102.50.0/24 via 10.101.0.2 dev lan0 proto static\n\
             addr add 10.102.60.1/24 dev wan0\naddr add 10.102.70.1/24 dev lan0\n");
        let laboratory = Laboratory::new(topology, &["10.102.0.0/16"]);
        for (host, device) in [("10.102.50.1", "lan0"), ("10.102.60.9", TUN), ("10.102.70.9", "lan0")] {
            let way = laboratory.way(host.parse().unwrap());
            assert!(way.contains(&format!("dev {device}")), "{host}: {way}");
        }
        let problems = laboratory.ground.problems(Instant::now());
        let subjects: Vec<&str> = problems.iter().map(|problem| problem.subject.as_str()).collect();
        assert_eq!(subjects, ["network 10.102.60.0/24 of interface wan0"]);
    });
}

/// Makes a router advertise itself, if its interface has an address yet.
fn advertise(router: &Namespace, interface: &str) {
    let index = router.run(&["cat", &format!("/sys/class/net/{interface}/ifindex")]).trim().parse().expect("an index");
    router.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("a socket");
        socket.set_multicast_hops_v6(255).expect("hops");
        socket.set_multicast_if_v6(index).expect("an interface");
        // RFC 4861, 4.2: a default router for half an hour. The kernel fills in the checksum.
        let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let all = SocketAddrV6::new("ff02::1".parse().expect("an address"), 0, 0, index);
        match socket.send_to(&advertisement, &all.into()) {
            Err(error) if error.kind() == std::io::ErrorKind::NetworkUnreachable => {}
            sent => assert_eq!(sent.expect("sent"), advertisement.len()),
        }
    });
}

/// An uplink that follows router advertisements keeps its default route and goes on following them while IPv6 is
/// forwarded, whichever way the kernel does that. Afterwards its settings are restored.
#[test]
fn router_advertisements_are_followed_while_ipv6_is_forwarded() {
    for forwards_by_interface in [true, false] {
        in_gateway(|topology| {
            let (gateway, router) = (&topology.a.gateway, topology.middle());
            gateway.sysctl("net/ipv6/conf/all/forwarding", "0");
            gateway.ip(&format!("link add wan1 type veth peer name r1 netns {}\n", router.name()));
            gateway.sysctl("net/ipv6/conf/wan1/accept_ra", "1");
            gateway.ip("link set wan1 up\n");
            router.ip("link set r1 up\n");
            let is_followed = || gateway.ip_show("-6 route show default dev wan1").contains("proto ra");
            let learns = |when: &str| {
                eventually(PATIENCE, when, || {
                    advertise(router, "r1");
                    is_followed()
                });
            };
            learns("the router is heard");
            let guarded = ["10.102.0.0/24", "fd00:102::/64"];
            let mut laboratory = Laboratory::with_kernel(topology, &guarded, forwards_by_interface);
            assert!(is_followed(), "by interface: {forwards_by_interface}: the default route is gone");
            gateway.run(&["ip", "-6", "route", "flush", "default", "dev", "wan1"]);
            learns("the router is heard while IPv6 is forwarded");
            laboratory.ground.withdraw(Instant::now(), &laboratory.wanted);
            for (setting, value) in [("wan1/accept_ra", "1"), ("wan1/forwarding", "0"), ("all/forwarding", "0")] {
                let now = gateway.run(&["cat", &format!("/proc/sys/net/ipv6/conf/{setting}")]);
                assert_eq!(now.trim(), value, "by interface: {forwards_by_interface}: {setting}");
            }
        });
    }
}
