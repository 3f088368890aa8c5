//! Resolving names, and connecting to the results: with the firewall mark, from name servers as they behave in reality.
//!
//! ```text
//!   one namespace, all on lo
//!     127.0.0.1, ::1        name servers
//!     192.0.2.1, 192.0.2.2, 2001:db8::1   where gateways and coordinators would be; some of them drop everything
//! ```

use crate::support::name_server::{Conduct, NameServer};
use crate::support::*;
use penstock::key::PublicKey;
use penstock::resolver::{Resolver, rotation::Change};
use penstock_connect::{Answer, HttpsUrl, NameError, Names, Outbound, Proxy, reach};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MARK: u32 = 0x5057;
const NAME: &str = "gateway.example.net";
const ZONE: &str = "gateway.example.net.";

/// Counts packets that leave with the mark, and those that should not leave without it.
const COUNTERS: &str = "table inet outgoing {
    counter dns_udp {}
    counter dns_tcp {}
    counter https {}
    counter unmarked {}
    chain out {
        type filter hook output priority 0
        meta mark 0x5057 udp dport 53 counter name dns_udp
        meta mark 0x5057 tcp dport 53 counter name dns_tcp
        meta mark 0x5057 tcp dport 443 counter name https
        meta mark 0 tcp dport { 53, 443 } counter name unmarked
        meta mark 0 udp dport 53 counter name unmarked
    }
}";

struct Bench {
    namespace: Namespace,
    names: Names,
    directory: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let namespace = Namespace::new("names");
        for address in ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"] {
            namespace.ip(&format!("addr add {address} dev lo"));
        }
        namespace.nft(COUNTERS);
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(namespace.name());
        std::fs::create_dir_all(&directory).expect("a directory");
        let names = Names { resolv_conf: directory.join("resolv.conf"), hosts: directory.join("hosts") };
        let bench = Self { namespace, names, directory };
        bench.resolv_conf("nameserver 127.0.0.1\n");
        bench
    }

    fn resolv_conf(&self, text: &str) {
        std::fs::write(&self.names.resolv_conf, text).expect("written");
    }

    fn hosts(&self, text: &str) {
        std::fs::write(&self.names.hosts, text).expect("written");
    }

    fn server(&self, address: &str) -> NameServer {
        NameServer::start(&self.namespace, address.parse().expect("an address"))
    }

    fn drop_everything_to(&self, family: &str, address: &str) {
        self.namespace.run(&["nft", "add table inet dead"]);
        self.namespace.run(&["nft", "add chain inet dead in { type filter hook input priority 0 ; }"]);
        self.namespace.run(&["nft", &format!("add rule inet dead in {family} daddr {address} drop")]);
    }

    /// Runs work that needs a runtime, in the namespace.
    fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.namespace.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work())
        })
    }

    fn resolve(&self, name: &str) -> Result<Answer, NameError> {
        self.run(async || self.names.resolve(name, MARK).await)
    }

    fn outbound(&self, proxy: Proxy) -> Outbound {
        Outbound { names: self.names.clone(), ..Outbound::new(proxy, MARK) }
    }

    fn count(&self, counter: &str) -> u64 {
        let text = self.namespace.run(&["nft", "list", "counter", "inet", "outgoing", counter]);
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn list(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn names_are_asked_with_the_mark_and_answers_have_a_time_to_live() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let server = bench.server("127.0.0.1");
    server.set(ZONE, &["192.0.2.1", "192.0.2.2", "2001:db8::1", "0.0.0.0"], 60);
    let answer = bench.resolve(NAME).expect("an answer");
    // 0.0.0.0 would be this host.
    assert_eq!(answer.addresses, list(&["2001:db8::1", "192.0.2.1", "192.0.2.2"]));
    assert!(answer.ttl > Duration::from_secs(58) && answer.ttl <= Duration::from_secs(60), "{:?}", answer.ttl);
    assert!(server.asked().iter().all(|asked| !asked.tcp && !asked.edns));
    assert_eq!((bench.count("dns_udp"), bench.count("dns_tcp")), (2, 0));

    server.behave(Conduct::Truncates);
    assert_eq!(bench.resolve(NAME).expect("an answer").addresses, answer.addresses);
    assert!(server.asked().iter().any(|asked| asked.tcp));
    assert!(bench.count("dns_tcp") > 0);
    assert_eq!(bench.count("unmarked"), 0);
}

#[test]
fn addresses_without_a_route_come_last() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let server = bench.server("127.0.0.1");
    server.set(ZONE, &["2001:db8:1::1", "198.51.100.1", "192.0.2.1"], 60);
    let answer = bench.resolve(NAME).expect("an answer");
    assert_eq!(answer.addresses, list(&["192.0.2.1", "2001:db8:1::1", "198.51.100.1"]));
}

#[test]
fn the_system_files_are_followed_and_each_question_reads_them() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let server = bench.server("::1");
    server.set("gw.b.example.", &["192.0.2.1"], 60);
    server.set(ZONE, &["192.0.2.1"], 60);
    bench.resolv_conf("nameserver ::1\nsearch a.example b.example\noptions edns0\n");
    assert_eq!(bench.resolve("gw").expect("an answer").addresses, list(&["192.0.2.1"]));
    let asked = server.asked();
    assert!(asked.iter().all(|asked| asked.edns) && asked.iter().any(|asked| asked.name == "gw.a.example."));

    assert!(matches!(bench.resolve("nowhere.example."), Err(NameError::NoSuchName)));
    server.set("empty.example.", &[], 60);
    assert!(matches!(bench.resolve("empty.example."), Err(NameError::NoAddress)));
    assert!(matches!(bench.resolve("a..b"), Err(NameError::Malformed)));

    // A name in the hosts file is not looked up elsewhere, not even for the other family.
    let before = server.asked().len();
    bench.hosts("192.0.2.2 Gateway.example.net\n");
    assert_eq!(bench.resolve(NAME).expect("an answer").addresses, list(&["192.0.2.2"]));
    assert_eq!(server.asked().len(), before);
    bench.hosts("");
    assert_eq!(bench.resolve(NAME).expect("an answer").addresses, list(&["192.0.2.1"]));
}

#[test]
fn name_servers_are_asked_in_their_order_until_one_answers() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let (first, second) = (bench.server("127.0.0.1"), bench.server("127.0.0.2"));
    bench.resolv_conf("nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
    first.set(ZONE, &["192.0.2.1"], 60);
    second.set(ZONE, &["192.0.2.2"], 60);
    second.set("outside.example.", &["192.0.2.2"], 60);
    let address = || bench.resolve(NAME).expect("an answer").addresses;
    assert_eq!(address(), list(&["192.0.2.1"]));
    assert!(matches!(bench.resolve("outside.example."), Err(NameError::NoSuchName)), "the first one decides");
    assert!(second.asked().is_empty());
    for conduct in [Conduct::IsSilent, Conduct::Fails] {
        first.behave(conduct);
        let begun = Instant::now();
        assert_eq!(address(), list(&["192.0.2.2"]), "{conduct:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{conduct:?}: {:?}", begun.elapsed());
    }
    second.behave(Conduct::IsSilent);
    first.behave(Conduct::IsSilent);
    let begun = Instant::now();
    let error = bench.resolve(NAME).expect_err("nobody answers");
    assert!(begun.elapsed() < Duration::from_secs(11));
    assert!(error.to_string().starts_with("no answer from the name server 127.0.0.2: "), "{error}");
}

#[test]
fn tcp_is_marked_and_finds_the_address_that_lives() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let server = bench.server("127.0.0.1");
    let url: HttpsUrl = format!("https://{NAME}").parse().expect("a URL");
    let _live = bench.namespace.enter(|| TcpListener::bind("192.0.2.2:443")).expect("a listener");
    bench.drop_everything_to("ip6", "2001:db8::1");
    bench.drop_everything_to("ip", "192.0.2.1");
    let peer = |addresses: &[&str]| {
        server.set(ZONE, addresses, 60);
        let begun = Instant::now();
        let stream = bench.run(async || reach(&url, &bench.outbound(Proxy::none())).await.map(|s| s.peer_addr()));
        let peer = stream.expect("a connection").expect("an address");
        (peer.to_string(), begun.elapsed())
    };
    // The dead address comes first: it has a quarter of a second to answer.
    for addresses in [&["2001:db8::1", "192.0.2.2"][..], &["192.0.2.1", "192.0.2.2"]] {
        let (to, time) = peer(addresses);
        assert_eq!(to, "192.0.2.2:443");
        assert!(time >= Duration::from_millis(250) && time < Duration::from_secs(1), "{addresses:?}: {time:?}");
    }
    assert!(bench.count("https") > 0);

    // Through a proxy that is given by name as well.
    server.set("proxy.example.net.", &["192.0.2.2"], 60);
    let _proxy = bench.namespace.enter(|| TcpListener::bind("192.0.2.2:53")).expect("a listener");
    let before = bench.count("dns_tcp");
    let through = bench.outbound(Proxy::new("http://proxy.example.net:53", ""));
    bench.run(async || {
        tokio::time::timeout(Duration::from_millis(500), reach(&url, &through)).await.expect_err("silence")
    });
    assert!(bench.count("dns_tcp") > before);
    assert_eq!(bench.count("unmarked"), 0);
}

#[test]
fn a_silent_endpoint_is_tried_at_its_other_addresses_and_asked_again() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let server = bench.server("127.0.0.1");
    server.set(ZONE, &["2001:db8::1", "192.0.2.1"], 3600);
    let peer = PublicKey::from_bytes([9; 32]);
    let at = |text: &str| Change { peer, endpoint: SocketAddr::new(text.parse().expect("an address"), PORT) };
    bench.run(async || {
        let soon = Duration::from_secs(5);
        let mut resolver = Resolver::new(bench.names.clone(), MARK);
        assert!(tokio::time::timeout(Duration::from_millis(50), resolver.next()).await.is_err(), "nothing to do");
        resolver.watch(Instant::now(), peer, NAME, PORT);
        let mut next = async |silent: bool| {
            if silent {
                resolver.handle_silence(Instant::now(), &peer);
            }
            tokio::time::timeout(soon, resolver.next()).await.expect("a change")
        };
        assert_eq!(next(false).await, at("2001:db8::1"));
        assert_eq!(next(true).await, at("192.0.2.1"));
        assert_eq!(next(true).await, at("2001:db8::1"));
    });
    assert_eq!(server.asked().len(), 2, "asked once, for both families");
    assert_eq!((bench.count("dns_udp"), bench.count("unmarked")), (2, 0));
}

/// A name server's answer expires when its time to live is over, but no sooner than after 10 s.
#[test]
fn an_answer_is_asked_for_again_when_its_time_is_over() {
    if !ready(&["nft"]) {
        return;
    }
    let bench = Bench::new();
    let server = bench.server("127.0.0.1");
    server.set(ZONE, &["192.0.2.1"], 12);
    let peer = PublicKey::from_bytes([9; 32]);
    bench.run(async || {
        let mut resolver = Resolver::new(bench.names.clone(), MARK);
        resolver.watch(Instant::now(), peer, NAME, PORT);
        let first = resolver.next().await.endpoint;
        server.set(ZONE, &["192.0.2.2"], 3600);
        // The path works: the answer is kept for later.
        assert!(tokio::time::timeout(Duration::from_secs(14), resolver.next()).await.is_err());
        resolver.handle_silence(Instant::now(), &peer);
        let second = resolver.next().await.endpoint;
        assert_eq!([first, second].map(|at| at.ip()).to_vec(), list(&["192.0.2.1", "192.0.2.2"]));
    });
    let asked: Vec<Instant> = server.asked().iter().map(|asked| asked.at).collect();
    assert_eq!(asked.len(), 4);
    let pause = asked[2] - asked[1];
    assert!(pause > Duration::from_millis(11_500) && pause < Duration::from_secs(13), "{pause:?}");
}
