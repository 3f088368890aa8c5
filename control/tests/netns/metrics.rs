//! The metrics of a running gateway: what they say, where they are served, and what a client can do to the gateway with
//! them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::*;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(10);
const ADDRESS: &str = "127.0.0.1:9586";
const OTHER: &str = "127.0.0.1:9587";
/// More connections than are served at once.
const CROWD: usize = 20;

fn connect(namespace: &Namespace, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().expect("an address");
    let stream = namespace.enter(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends a request, and returns everything that comes back.
fn exchange(namespace: &Namespace, address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = connect(namespace, address)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // There was unread data when it closed.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        outcome => drop(outcome?),
    }
    Ok(String::from_utf8(answer).expect("UTF-8"))
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: gateway\r\n\r\n")
}

/// The page of metrics.
fn scrape(namespace: &Namespace, address: &str) -> std::io::Result<String> {
    let answer = exchange(namespace, address, &request("GET", "/metrics"))?;
    // A process that another test is just starting may hold a listener of this one for a moment.
    let (head, page) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no answer"))?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    Ok(page.to_owned())
}

/// The value of the only sample that begins like this.
fn value(page: &str, sample: &str) -> f64 {
    let found: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(sample)).collect();
    let [value] = found.as_slice() else { panic!("{} samples {sample}:\n{page}", found.len()) };
    value.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// The names of docs/metrics.md with their types, without suffixes.
fn documented() -> BTreeSet<String> {
    let table = include_str!("../../../docs/metrics.md").lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |line: &str| {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`'));
        let (name, kind) = (cells.next().expect("a name"), cells.next().expect("a type"));
        format!("{} {kind}", name.trim_end_matches("_total").trim_end_matches("_info"))
    };
    table.map(row).collect()
}

fn serve(gateway: &Gateway, address: Option<&str>) -> String {
    gateway.reload(|profile| profile["Metrics"] = json!(address))
}

/// Two sites, of which A is configured to serve its metrics.
fn serving(kind: Kind) -> (Topology, Gateway, Gateway) {
    let topology = Topology::new(Options::switch());
    let (a, b) = joined(&topology, kind, kind, Outer::V4);
    assert!(connect(&topology.a.gateway, ADDRESS).is_err(), "it is served though nobody asked for it");
    assert!(serve(&a, Some(ADDRESS)).contains("Metrics"));
    (topology, a, b)
}

/// What is served is what is documented, agrees with `wg` and `status`, and keeps counting when the workers are
/// replaced.
#[test]
fn a_page_says_what_wg_and_status_say() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        let (topology, a, b) = serving(kind);
        let gateway = &topology.a.gateway;
        await_traffic(&topology);

        let peer = b.public_key();
        let before = a.transfer(&peer);
        let page = scrape(gateway, ADDRESS).expect("it is served");
        let after = a.transfer(&peer);
        let served: BTreeSet<String> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
        assert_eq!(served, documented());

        let ours = |name: &str| value(&page, &format!("penstock_peer_{name}{{peer=\"peer-0\",public_key=\"{peer}\""));
        let theirs = |name: &str| value(&page, &format!("wireguard_{name}{{interface=\"{}\"", a.name()));
        let (received, sent) = (ours("received_bytes_total") as u64, ours("sent_bytes_total") as u64);
        assert!((before.0..=after.0).contains(&received) && received > 0, "{received}: {before:?} {after:?}");
        assert!((before.1..=after.1).contains(&sent) && sent > 0, "{sent}: {before:?} {after:?}");
        assert!(ours("handshakes_total") >= 1.0, "{page}");
        assert!(ours("received_packets_total") >= 1.0 && ours("sent_packets_total") >= 1.0, "{page}");
        assert_eq!(theirs("received_bytes_total") as u64, received);
        assert_eq!(theirs("sent_bytes_total") as u64, sent);
        assert_eq!(theirs("latest_handshake_seconds") as u64, a.latest_handshake(&peer));
        let direct = format!("penstock_peer_path{{peer=\"peer-0\",public_key=\"{peer}\",path=\"direct\"}}");
        assert_eq!(value(&page, &direct), 1.0);
        assert_eq!(value(&page, "penstock_healthy"), 1.0);
        assert_eq!(value(&page, "penstock_tunnel_mtu_bytes"), a.status()["TunnelMtu"].as_f64().expect("a number"));

        let packets = |page: &str| value(page, "penstock_worker_packets_total{worker=\"0\"}");
        let (batches, sleeps) =
            ("penstock_worker_batches_total{worker=\"0\"}", "penstock_worker_sleeps_total{worker=\"0\"}");
        assert!(packets(&page) >= value(&page, batches) && value(&page, batches) > 0.0, "{page}");
        assert!(value(&page, sleeps) > 0.0, "{page}");
        let histogram = |name: &str| value(&page, &format!("penstock_worker_{name}{{worker=\"0\""));
        assert_eq!(histogram("batch_packets_count"), value(&page, batches));
        assert_eq!(histogram("batch_packets_sum"), packets(&page));
        for side in ["wan", "lan"] {
            let rings = format!("penstock_worker_ring_packets_count{{worker=\"0\",side=\"{side}\"}}");
            assert_eq!(page.contains(&rings), kind == Kind::XDP, "{side}: {page}");
        }
        let outer = format!("penstock_peer_mtu_bytes{{peer=\"peer-0\",public_key=\"{peer}\",side=\"outer\"}}");
        assert_eq!(value(&page, &outer), 1500.0);
        // New sockets, and so new workers.
        a.reload(|profile| profile["LocalPort"] = json!(47_119));
        assert!(packets(&scrape(gateway, ADDRESS).expect("it is served")) >= packets(&page), "the counters began anew");
    }
}

/// A reload moves or ends the service; an address in use is a problem until it is free.
#[test]
fn a_reload_moves_it_and_a_taken_address_is_a_problem() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, _b) = serving(Kind::SOCKET);
    let gateway = &topology.a.gateway;
    scrape(gateway, ADDRESS).expect("it is served");

    let taken = gateway.enter(|| TcpListener::bind(OTHER)).expect("the address is free");
    a.edit_profile(|profile| profile["Metrics"] = json!(OTHER));
    let refused = a.command(&["reload"]);
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    let expected = format!("not in force: Metrics: metrics cannot be served at {OTHER}");
    assert!(!refused.status.success() && says.contains(&expected), "{says}");
    assert!(a.status()["Problems"].to_string().contains(OTHER), "{:#}", a.status()["Problems"]);
    assert!(connect(gateway, ADDRESS).is_err(), "it is still served where it was");
    drop(taken);
    eventually(LIMIT, "it is served once the address is free", || scrape(gateway, OTHER).is_ok());
    assert_eq!(a.status()["Health"], "healthy");

    serve(&a, None);
    assert!(connect(gateway, OTHER).is_err(), "it is still served");
}

/// Nothing but the page is served, and clients that send nothing or too much do not keep others out for long.
#[test]
fn clients_get_the_page_and_nothing_else() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, _b) = serving(Kind::SOCKET);
    let gateway = &topology.a.gateway;
    let long = format!("GET /metrics HTTP/1.1\r\nHost: gateway\r\nX: {}\r\n\r\n", "x".repeat(16 << 10));
    let many = format!("GET /metrics HTTP/1.1\r\nHost: gateway\r\n{}\r\n", "X: x\r\n".repeat(100));
    for (request, expected) in [
        (request("POST", "/metrics"), "HTTP/1.1 405 "),
        (request("GET", "/"), "HTTP/1.1 404 "),
        (request("GET", "/metrics/../etc/passwd"), "HTTP/1.1 404 "),
        (long, "HTTP/1.1 431 "),
        (many, "HTTP/1.1 431 "),
        ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
    ] {
        let answer = exchange(gateway, ADDRESS, &request).expect("an answer");
        assert!(answer.starts_with(expected), "{request:.40}: {answer:.200}");
    }
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(gateway, ADDRESS).expect("connected")).collect();
    scrape(gateway, ADDRESS).expect("it is served in spite of the crowd");
    drop(crowd);
    assert_eq!(a.status()["Health"], "healthy");
}
