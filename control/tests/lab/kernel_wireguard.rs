//! Penstock in each of its modes at site A, kernel WireGuard at site B.

use super::support::*;
use super::{note, ready};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(15);

/// How long a side may be silent once the other one is up again: starting takes seconds on an emulated machine.
const RESTART: Duration = Duration::from_secs(1);

/// How long to wait for an echo before it counts as lost: an emulated machine may stand still for seconds.
const UNHURRIED: [&str; 2] = ["-W", "10"];

struct Pair {
    topology: Topology,
    penstock: Gateway,
    kernel: KernelWireguard,
}

impl Pair {
    fn start(
        options: Options,
        kind: Kind,
        outer: Outer,
        change: impl FnOnce(&mut GatewayConfig, &mut GatewayConfig),
    ) -> Self {
        assert!(KernelWireguard::is_there(), "this kernel has no WireGuard");
        let topology = Topology::new(options);
        let (mut a, mut b) = pair_config(&topology, kind, kind, outer);
        change(&mut a, &mut b);
        let penstock = Gateway::start(&topology.a, a);
        let kernel = KernelWireguard::start(&topology.b, b);
        Self { topology, penstock, kernel }
    }

    fn joined(options: Options, kind: Kind, outer: Outer) -> Self {
        let pair = Self::start(options, kind, outer, |_, _| {});
        await_traffic(&pair.topology);
        pair
    }

    /// Both sites, from and to, each way.
    fn ways(&self) -> [(&Site, &Site); 2] {
        let Topology { a, b, .. } = &self.topology;
        [(a, b), (b, a)]
    }

    /// How long A's host, which asks 20 times a second, got no answers from B's because of what `disturb` did.
    fn silence(self, disturb: impl FnOnce(&mut Gateway, &KernelWireguard)) -> Duration {
        const INTERVAL: Duration = Duration::from_millis(50);
        let Self { topology, mut penstock, kernel } = self;
        let (from, target) = (&topology.a.host, topology.b.host4());
        let pings = std::thread::scope(|scope| {
            let pings = scope.spawn(|| ping(from, target, &["-c", "500", "-i", "0.05"]));
            pause(1000);
            disturb(&mut penstock, &kernel);
            pings.join().expect("ping ends")
        });
        (pings.sent - pings.received) * INTERVAL
    }
}

/// Datagrams up to and beyond the MTU and TCP, both IP versions, whoever initiates.
fn joins_whoever_initiates(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    for outer in [Outer::V4, Outer::V6] {
        for penstock_initiates in [true, false] {
            let pair = Pair::start(Options::default(), kind, outer, |a, b| {
                // A side without an endpoint for its peer cannot initiate.
                let silent = if penstock_initiates { b } else { a };
                silent.peers[0].endpoint = None;
            });
            let [there, back] = pair.ways();
            let (from, to) = if penstock_initiates { there } else { back };
            for target in to.hosts() {
                eventually(LIMIT, "the first packet's way is open", || {
                    ping(&from.host, target, &["-c", "1"]).all_answered()
                });
            }
            for (from, to) in pair.ways() {
                for target in to.hosts() {
                    let echo = UdpEcho::start(&to.host, target);
                    let sizes = [0, 1, 15, 16, 17, 64, 500, 1386, 1391, 1392, 1393, 1400, 1472, 1473, 4000, 20_000];
                    datagram_sizes(&from.host, echo.address, sizes);
                    tcp_both_ways(&from.host, &to.host, target, 1 << 18);
                }
            }
            let Pair { topology, penstock, kernel } = &pair;
            assert_eq!(penstock.endpoint(&kernel.public_key()), Some(topology.b.endpoint(outer)));
            assert_eq!(kernel.endpoint(&penstock.public_key()), Some(topology.a.endpoint(outer)));
        }
    }
}

/// Without the same key no handshake completes; with it, traffic flows.
fn preshared_keys_must_match(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    let right = genpsk();
    let Pair { topology, penstock, kernel } = Pair::start(Options::default(), kind, Outer::V4, |a, b| {
        a.peers[0].preshared_key = Some(genpsk());
        b.peers[0].preshared_key = Some(right.clone());
        // Only A initiates: the other side keeps no record of failures that would delay what follows.
        b.peers[0].endpoint = None;
    });
    let refused = ping(&topology.a.host, topology.b.host4(), &["-c", "2"]);
    assert_eq!(refused.received, 0, "traffic in spite of two keys");
    let file = penstock.secret_file("psk", &right);
    penstock.set(&["peer", &kernel.public_key(), "preshared-key", &file]);
    await_traffic(&topology);
}

/// A's NAT maps it to another address and port: B follows the next authentic packet, and its own traffic goes there.
/// First Penstock is behind the NAT, then the kernel's WireGuard.
fn addresses_and_ports_roam(kind: Kind) {
    if !ready(&["nft", "conntrack"]) {
        return;
    }
    assert!(KernelWireguard::is_there(), "this kernel has no WireGuard");
    let cases = [
        (Outer::V4, true, "192.0.2.253:5555"),
        (Outer::V4, false, "192.0.2.253:5555"),
        (Outer::V6, true, "[2001:db8::253]:5555"),
        (Outer::V6, false, "[2001:db8::253]:5555"),
    ];
    for (outer, penstock_moves, moved) in cases {
        let moved: SocketAddr = moved.parse().expect("an address");
        let topology = Topology::new(Options::nat());
        let (a, b) = pair_config(&topology, kind, kind, outer);
        let (penstock, kernel) = if penstock_moves {
            (Gateway::start(&topology.a, a), KernelWireguard::start(&topology.b, b))
        } else {
            let kernel = KernelWireguard::start(&topology.a, a);
            (Gateway::start(&topology.b, b), kernel)
        };
        let seen = || match penstock_moves {
            true => kernel.endpoint(&penstock.public_key()),
            false => penstock.endpoint(&kernel.public_key()),
        };
        await_traffic(&topology);
        assert_ne!(seen(), Some(moved));
        let nat = topology.middle();
        let (length, family) = if outer == Outer::V4 { ("24", "ip") } else { ("64 nodad", "ip6") };
        nat.ip(&format!("addr add {}/{length} dev b0\n", moved.ip()));
        nat.nft(&format!(
            "flush ruleset; table {family} nat {{ chain post {{ type nat hook postrouting priority 100; \
             oifname \"b0\" meta l4proto udp snat to {moved}; }}; }}"
        ));
        nat.run(&["conntrack", "-F"]);
        // Packets that B sends before it has heard from A go to the old port.
        eventually(LIMIT, "A is heard from its new address", || {
            ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered()
        });
        eventually(LIMIT, "B knows A's new address", || seen() == Some(moved));
        for target in topology.a.hosts() {
            let back = ping(&topology.b.host, target, &[&["-c", "5", "-i", "0.1"], &UNHURRIED[..]].concat());
            assert!(back.all_answered(), "{}", back.text);
        }
    }
}

fn restart_of_penstock(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    let mut start = Duration::ZERO;
    let silence = Pair::joined(Options::default(), kind, Outer::V4).silence(|penstock, _| {
        penstock.kill();
        let begun = Instant::now();
        penstock.restart();
        start = begun.elapsed();
    });
    note(&format!("restart of Penstock, {kind:?}: {silence:?} without an answer, and it was up after {start:?}"));
    assert!(silence <= start + RESTART, "{silence:?} after a start of {start:?}");
}

fn restart_of_the_kernel_s(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    let silence = Pair::joined(Options::default(), kind, Outer::V4).silence(|_, kernel| kernel.restart());
    note(&format!("restart of kernel WireGuard, {kind:?}: {silence:?} without an answer"));
    // It does not answer data of an unknown session: the sender asks after 15 s, according to the protocol.
    assert!(silence <= Duration::from_secs(16), "{silence:?}");
}

/// Two rekeys at WireGuard's own times.
#[test]
fn rekeys_lose_nothing() {
    if !ready(&[]) {
        return;
    }
    let pairs = [Kind::XDP, Kind::SOCKET].map(|kind| Pair::joined(Options::default(), kind, Outer::V4));
    std::thread::scope(|scope| {
        for Pair { topology, penstock, kernel } in &pairs {
            scope.spawn(move || {
                let first = penstock.latest_handshake(&kernel.public_key());
                let options = [&["-c", "2700", "-i", "0.1"], &UNHURRIED[..]].concat();
                let pings = ping(&topology.a.host, topology.b.host4(), &options);
                assert!(pings.all_answered(), "{:?}: {}", penstock.config.kind, pings.text);
                let last = penstock.latest_handshake(&kernel.public_key());
                assert!(last >= first + 230, "{:?}: handshakes at {first} and {last}", penstock.config.kind);
            });
        }
    });
}

macro_rules! in_each_mode {
    ($($test:ident)*) => { $(
        mod $test {
            use super::Kind;

            #[test]
            fn xdp_xdp() {
                super::$test(Kind::XDP);
            }

            #[test]
            fn xdp_tun() {
                super::$test(Kind::Penstock { wan: "xdp", lan: "tun" });
            }

            #[test]
            fn udp_xdp() {
                super::$test(Kind::Penstock { wan: "udp", lan: "xdp" });
            }

            #[test]
            fn udp_tun() {
                super::$test(Kind::SOCKET);
            }
        }
    )* };
}

in_each_mode! {
    joins_whoever_initiates
    preshared_keys_must_match
    addresses_and_ports_roam
    restart_of_penstock
    restart_of_the_kernel_s
}
