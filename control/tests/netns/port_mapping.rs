//! Port mapping with a real router daemon, one protocol at a time, and without any.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::support::nat::{Kind, Lab, MappingServer, Offer, Site, socket};
use crate::support::{eventually, holds_within, pause, ready};
use penstock::port_mapping::{Mapping, PortMapper, Protocol, Timings};

const TOOLS: [&str; 4] = ["nft", "conntrack", "tinyproxy", "miniupnpd"];
const PORT: u16 = 47100;
/// Very long for an idle router.
const SOON: Duration = Duration::from_secs(8);
const SHORT: Timings = Timings { lifetime: Duration::from_secs(4), retry: Duration::from_secs(2) };

/// Runs `work` in the gateway's namespace, with a runtime whose tasks go on while `work` waits for commands: threads
/// begin in the namespace of the thread that starts them.
fn within<T: Send>(site: &Site, work: impl AsyncFnOnce() -> T + Send) -> T {
    site.gateway.enter(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(work())
    })
}

fn mapper(site: &Site, timings: Timings) -> PortMapper {
    PortMapper::start_with(site.router().into(), site.wan().into(), PORT, 0, timings)
}

async fn soon(mapper: &mut PortMapper) -> Mapping {
    tokio::time::timeout(SOON, mapper.next()).await.expect("a result in time")
}

/// Whether a stranger's datagram to `to` arrives at `inside`; each attempt is by another stranger, since the NAT
/// remembers what it has refused.
fn arrives(lab: &Lab, to: SocketAddr, inside: &UdpSocket, tries: u32) -> bool {
    let mut datagram = [0; 16];
    (0..tries).any(|_| {
        let stranger = lab.internet().enter(|| UdpSocket::bind((lab.server(4), 0))).expect("a stranger");
        stranger.send_to(b"hello", to).expect("sent");
        pause(50);
        inside.recv_from(&mut datagram).is_ok_and(|(_, from)| from == stranger.local_addr().expect("bound"))
    })
}

#[test]
fn each_protocol_maps_and_gives_back() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let cases = [
        (Offer::PCP, Protocol::Pcp, vec![Protocol::Pcp]),
        (Offer::NAT_PMP, Protocol::NatPmp, vec![Protocol::NatPmp]),
        (Offer::UPNP_IGD, Protocol::UpnpIgd, vec![Protocol::UpnpIgd]),
        (Offer::ALL, Protocol::Pcp, vec![Protocol::Pcp, Protocol::NatPmp, Protocol::UpnpIgd]),
    ];
    for (number, (offer, protocol, found)) in (1..).zip(cases) {
        let site = lab.site(Kind::Symmetric, number);
        let server = MappingServer::start(&site, offer);
        let inside = socket(&site, PORT);
        let outside = SocketAddr::new(site.public().into(), PORT);
        assert!(!arrives(&lab, outside, &inside, 3), "{offer:?}: closed at first");
        within(&site, async || {
            let mut mapper = mapper(&site, Timings::default());
            let mapping = soon(&mut mapper).await;
            assert_eq!(mapping.found, found, "{offer:?}");
            let external = mapping.external.unwrap_or_else(|| panic!("{offer:?}: no mapping"));
            assert_eq!((external.address, external.protocol), (outside, protocol), "{offer:?}");
            assert_eq!(mapping.candidate(), Some(outside));
            assert!(arrives(&lab, outside, &inside, 20), "{offer:?}: {:?}", server.mappings());
            let start = Instant::now();
            mapper.release().await;
            assert!(start.elapsed() < Duration::from_secs(3), "{offer:?}");
        });
        assert!(holds_within(Duration::from_secs(1), || server.mappings().is_empty()), "{offer:?}");
    }
}

/// Without it, the route of a peer with the router's address, or a default route, would lead it into the tunnel.
#[test]
fn the_router_is_asked_with_the_mark() {
    if !ready(&TOOLS) {
        return;
    }
    const MARK: u32 = 0x5057;
    let lab = Lab::new();
    let site = lab.site(Kind::Symmetric, 1);
    let _server = MappingServer::start(&site, Offer::ALL);
    site.gateway.nft(&format!(
        "table inet count {{
             counter control {{ }}
             counter igd {{ }}
             counter unmarked {{ }}
             chain output {{
                 type filter hook output priority 0;
                 meta mark 0 udp dport {{ 1900, 5351 }} counter name unmarked
                 meta mark 0 tcp flags & (syn | ack) == syn counter name unmarked
                 meta mark {MARK} udp dport 5351 counter name control
                 meta mark {MARK} tcp flags & (syn | ack) == syn counter name igd
             }}
         }}"
    ));
    within(&site, async || {
        let mut mapper = PortMapper::start_with(site.router().into(), site.wan().into(), PORT, MARK, SHORT);
        assert_eq!(soon(&mut mapper).await.found.len(), 3, "all are asked");
        mapper.release().await;
    });
    let counted = |counter: &str| packets(&site.gateway.run(&["nft", "list", "counter", "inet", "count", counter]));
    assert_eq!(counted("unmarked"), 0);
    assert!(counted("control") >= 3 && counted("igd") >= 1, "{} {}", counted("control"), counted("igd"));
}

/// What `nft list counter` says.
fn packets(text: &str) -> u64 {
    text.split_whitespace().skip_while(|word| *word != "packets").nth(1).expect("a count").parse().expect("a number")
}

#[test]
fn a_mapping_is_renewed_and_ends_with_a_gateway_that_crashes() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    std::thread::scope(|scope| {
        for (number, offer) in (1..).zip([Offer::PCP, Offer::NAT_PMP, Offer::UPNP_IGD]) {
            let lab = &lab;
            scope.spawn(move || {
                let site = lab.site(Kind::Symmetric, number);
                let server = MappingServer::start(&site, offer);
                within(&site, async || {
                    let mut mapper = mapper(&site, SHORT);
                    assert!(soon(&mut mapper).await.external.is_some(), "{offer:?}");
                    let end = Instant::now() + SHORT.lifetime * 3;
                    while Instant::now() < end {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        // The server replaces its rule by a new one, which takes long on a busy machine.
                        let mapped = || server.mappings().len() == 1;
                        assert!(holds_within(SHORT.lifetime / 2, mapped), "{offer:?}: it is renewed");
                        assert!(mapper.mapping().external.is_some(), "{offer:?}: and known");
                    }
                    // The runtime ends with it, as in a crash: nothing is deleted.
                    std::mem::forget(mapper);
                });
                let mapped = || server.mappings().len() == 1;
                assert!(holds_within(SHORT.lifetime / 2, mapped), "{offer:?}: nobody has given it back");
                eventually(SHORT.lifetime * 3, "the mapping has run out", || server.mappings().is_empty());
            });
        }
    });
}

#[test]
fn a_router_that_restarts_is_asked_again() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let site = lab.site(Kind::Symmetric, 1);
    let mut server = MappingServer::start(&site, Offer::ALL);
    within(&site, async || {
        let mut mapper = mapper(&site, SHORT);
        let first = soon(&mut mapper).await;
        assert!(first.external.is_some());
        server.kill();
        // An expired mapping is reported; until then the old one is.
        let mut last = first.clone();
        let end = Instant::now() + SHORT.lifetime * 4;
        while last.external.is_some() && Instant::now() < end {
            last = soon(&mut mapper).await;
        }
        assert_eq!(last, Mapping::default());
        server.restart();
        mapper.refresh();
        let mut again = soon(&mut mapper).await;
        // It may have asked just before the router was up.
        if again.external.is_none() {
            again = soon(&mut mapper).await;
        }
        assert_eq!(again.external, first.external);
        mapper.release().await;
    });
    assert!(server.mappings().is_empty());
}

#[test]
fn without_a_server_it_is_quick_and_quiet() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    // One refuses with ICMP, one does not answer at all.
    for (number, silent) in [(1, false), (2, true)] {
        let site = lab.site(Kind::Masquerade, number);
        let drop = if silent { "drop" } else { "accept" };
        site.nat.nft(&format!(
            "table ip count {{ counter asked {{ }}; chain input {{ type filter hook input priority 0; \
             iifname lan meta l4proto udp counter name asked {drop}; }}; }}"
        ));
        let asked = || packets(&site.nat.run(&["nft", "list", "counter", "ip", "count", "asked"]));
        within(&site, async || {
            let mut mapper = mapper(&site, Timings::default());
            let start = Instant::now();
            assert_eq!(soon(&mut mapper).await, Mapping::default());
            let took = start.elapsed();
            assert!(took < Duration::from_secs(3), "{took:?}");
            let first = asked();
            // Three over PCP, three over NAT-PMP, two over SSDP.
            assert!((1..=8).contains(&first), "{first}");
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(asked(), first, "it asks again after a minute");
            let start = Instant::now();
            mapper.release().await;
            assert!(start.elapsed() < Duration::from_millis(100));
        });
    }
}
