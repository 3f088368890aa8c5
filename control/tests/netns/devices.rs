//! Interfaces that AF_XDP drives change under it.

use crate::support::*;
use std::time::Duration;

/// Longer than the time between two counts of the queues.
const LIMIT: Duration = Duration::from_secs(30);

/// Each queue of an interface has a socket, also one that comes later.
#[test]
fn a_queue_that_comes_later_gets_a_socket() {
    if !ready(&["ethtool"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options { queues: 2, ..Options::default() });
    // A veth's program needs as many receive queues as its peer has for sending.
    topology.b.gateway.run(&["ethtool", "-L", "wan0", "tx", "1"]);
    topology.a.gateway.run(&["ethtool", "-L", "wan0", "rx", "1"]);
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let queues = || {
        let status = a.status();
        let ports = status["Ports"].as_array().cloned().unwrap_or_default();
        ports.iter().filter(|port| port["Interface"] == "wan0" && port["Kind"] == "xdp").count()
    };
    assert_eq!(queues(), 1);
    topology.a.gateway.run(&["ethtool", "-L", "wan0", "rx", "2"]);
    eventually(LIMIT, "the second queue has a socket", || queues() == 2);
    await_traffic(&topology);
}
