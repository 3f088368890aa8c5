//! `auto` and traffic control: a queueing discipline that only orders packets does not matter to it, and a filter
//! inside one does.

use crate::support::*;
use crate::{note, ports, ready};
use std::time::Duration;

/// Rules are read half a second after nftables has changed, and where machines are emulated programs start slowly.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_filter_in_a_queueing_discipline_keeps_packets_with_the_kernel() {
    if !ready(&["tc", "nft"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let auto = Kind::Penstock { wan: "udp", lan: "auto" };
    let (a, _b) = joined(&topology, auto, Kind::SOCKET, Outer::V4);
    let gateway = &topology.a.gateway;
    let mode = |field: &str| a.status()["LanMode"][field].as_str().unwrap_or_default().to_owned();
    assert_eq!(mode("Mode"), "xdp", "{}", a.process.log());
    // Traffic control tells nobody of its changes, and is read along with nftables.
    let change = |command: &str| {
        gateway.run(&command.split(' ').collect::<Vec<_>>());
        gateway.nft("table inet other { }");
        gateway.run(&["nft", "delete", "table", "inet", "other"]);
    };
    change("tc qdisc replace dev lan0 root handle 1: fq_codel");
    assert!(!holds_within(Duration::from_secs(5), || mode("Mode") == "tun"), "{}", mode("Reason"));
    change("tc filter add dev lan0 parent 1: matchall action drop");
    eventually(SOON, "sockets take over", || mode("Mode") == "tun");
    let reason = mode("Reason");
    note(&format!("a filter: {reason}; {}", ports(&a.status())));
    assert!(reason.contains("a filter in the queueing discipline fq_codel of lan0"), "{reason}");
    assert_eq!(
        ping(&topology.a.host, topology.b.host4(), &["-c", "2"]).received,
        0,
        "it holds for what the kernel sends"
    );
    change("tc filter del dev lan0 parent 1:");
    eventually(SOON, "AF_XDP is back", || mode("Mode") == "xdp");
    change("tc qdisc replace dev lan0 root handle 2: fq maxrate 100mbit");
    eventually(SOON, "sockets take over", || mode("Mode") == "tun");
    assert!(mode("Reason").contains("the queueing discipline fq of lan0, with a maxrate"), "{}", mode("Reason"));
    change("tc qdisc replace dev lan0 root handle 3: fq");
    eventually(SOON, "AF_XDP is back", || mode("Mode") == "xdp");
    await_traffic(&topology);
}
