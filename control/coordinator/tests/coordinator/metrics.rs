//! The metrics of a running coordinator and of a relay on a machine of its own.

use std::net::SocketAddr;

use penstock_coordinator::admin::Request;
use penstock_coordinator::config::Document;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::Gateway;
use crate::running::{Running, directory, document};
use crate::separate::PlannedRelay;
use crate::tunnel::{handshake, passes};

/// The page served there.
async fn page(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: coordinator\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && page.ends_with("# EOF\n"), "{answer}");
    page.to_owned()
}

/// The value of a sample; zero if there is none.
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

fn with_metrics(document: Document) -> Document {
    Document { metrics: Some("127.0.0.1:0".parse().unwrap()), ..document }
}

#[tokio::test]
async fn a_coordinator_tells_of_sites_refusals_and_its_relay() {
    let directory = directory();
    let document = with_metrics(document(directory.path()));
    let running = Running::start_with(directory, document).await;
    let address = running.coordinator.metrics_address().unwrap();
    let before = page(address).await;
    assert_eq!(value(&before, "penstock_coordinator_sites{state=\"approved\"}"), 0.0);

    let _connected = running.site("amsterdam", &[], &[]).await;
    let key = running.key_for(1, &[], std::time::Duration::from_secs(60), true).await;
    let _waiting = running.connect(&Gateway::new("berlin", &[]).with_key(&key)).await.unwrap();
    assert!(running.connect(&Gateway::new("cadiz", &[])).await.is_err());
    let mut tunnels = [running.tunnel("a", true).await, running.tunnel("b", false).await];
    let [a, b] = &mut tunnels;
    a.bind().await;
    b.bind().await;
    assert!(handshake(a, b).await && passes(a, b, b"counted").await);

    let page = page(address).await;
    for (sample, expected) in [
        ("penstock_coordinator_build_info{version=\"0.1.0\",role=\"coordinator\"}", 1.0),
        ("penstock_coordinator_sites{state=\"approved\"}", 3.0),
        ("penstock_coordinator_sites{state=\"waiting\"}", 1.0),
        ("penstock_coordinator_relays", 1.0),
        ("penstock_connections_refused_total{reason=\"not-enrolled\"}", 1.0),
        ("penstock_relay_sites", 3.0),
        ("penstock_relay_sessions", 2.0),
        ("penstock_relay_datagrams_total", 3.0),
    ] {
        assert_eq!(value(&page, sample), expected, "{sample}:\n{page}");
    }
    assert!(value(&page, "penstock_coordinator_sites_connected") >= 2.0, "{page}");
    assert!(value(&page, "penstock_coordinator_leases_total") >= 3.0, "{page}");
    assert!(value(&page, "penstock_relay_bytes_total") > 0.0, "{page}");

    running.done(Request::Revoke("amsterdam".into())).await;
    let page = self::page(address).await;
    assert_eq!(value(&page, "penstock_coordinator_sites{state=\"revoked\"}"), 1.0, "{page}");
}

#[tokio::test]
async fn a_relay_of_its_own_tells_of_itself() {
    let planned = PlannedRelay::new();
    let coordinator = Running::start().await;
    let relay = planned.start_with(&coordinator, None, with_metrics).await;
    let page = page(relay.metrics_address.unwrap()).await;
    assert_eq!(value(&page, "penstock_coordinator_build_info{version=\"0.1.0\",role=\"relay\"}"), 1.0, "{page}");
    assert!(page.contains("\npenstock_relay_sessions 0.0\n"), "{page}");
    assert!(!page.contains("\npenstock_coordinator_sites_connected "), "{page}");
}
