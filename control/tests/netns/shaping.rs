//! `WanRate`: packets wait in the gateway, where a ping does not wait behind a transfer.

use std::time::{Duration, Instant};

use crate::support::*;

/// Megabits per second of the uplink, behind which there is a queue of 400 ms; and of the gateway, slightly less.
const UPLINK: u32 = 25;
const RATE: u32 = 20;

/// Milliseconds of a ping that waits behind the transfers, which fill as much of the queue as TCP's windows allow; and
/// of one that does not.
const QUEUED: f64 = 25.0;
const PROMPT: f64 = 8.0;

/// The median round trip of 15 echo requests, in milliseconds.
fn round_trip(topology: &Topology) -> f64 {
    let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "15", "-i", "0.05"]);
    let times = pings.text.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
    let mut times: Vec<f64> = times.collect();
    // A full queue loses some.
    assert!(times.len() >= 5, "{}", pings.text);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes of IP packets that have come from A's gateway.
fn sent(topology: &Topology) -> f64 {
    let counter = |name: &str| -> f64 {
        let text = topology.middle().run(&["cat", &format!("/sys/class/net/a0/statistics/{name}")]);
        text.trim().parse().expect("a counter")
    };
    counter("rx_bytes") - 14.0 * counter("rx_packets")
}

#[test]
fn a_transfer_fills_the_rate_and_delays_nobody_else() {
    if !ready(&["tc"]) || !is_penstock() {
        return;
    }
    for (kind, outer) in [(Kind::SOCKET, Outer::V4), (Kind::XDP, Outer::V6)] {
        let topology = Topology::new(Options::switch());
        let uplink = format!("{UPLINK}mbit");
        topology.middle().run(&[
            "tc", "qdisc", "add", "dev", "b0", "root", "tbf", "rate", &uplink, "burst", "5000", "latency", "400ms",
        ]);
        let (a, _b) = joined(&topology, kind, Kind::SOCKET, outer);
        let transfers = TcpSink::flood(&topology.a.host, &topology.b.host, topology.b.host4(), 4);
        eventually(PATIENCE, "without WanRate the queue behind the uplink fills", || round_trip(&topology) > QUEUED);

        a.reload(|profile| profile["WanRate"] = format!("{RATE} Mbit/s").into());
        eventually(PATIENCE, &format!("{kind:?}: a ping does not wait"), || round_trip(&topology) < PROMPT);
        let (begun, before) = (Instant::now(), sent(&topology));
        let delay = round_trip(&topology);
        pause(2000);
        let rate = (sent(&topology) - before) * 8.0 / begun.elapsed().as_secs_f64() / 1e6;
        assert!(delay < PROMPT, "{kind:?}: {delay} ms");
        // Never more; on a busy machine TCP may leave a little unused.
        assert!((0.9..1.03).contains(&(rate / f64::from(RATE))), "{kind:?}: {rate} Mbit/s");
        let load = &a.status()["WorkerLoads"][0]["Shaped"];
        assert!(load["WaitingPackets"].as_u64() > Some(5) && load["Bytes"].as_u64() > Some(4_000_000), "{load}");
        assert!(transfers.received() > 0);

        a.reload(|profile| profile["WanRate"] = serde_json::Value::Null);
        eventually(PATIENCE, &format!("{kind:?}: without it the queue fills again"), || round_trip(&topology) > QUEUED);
        drop(transfers);
        assert_eq!(a.status()["WorkerLoads"][0]["Shaped"]["WaitingPackets"], 0);
        eventually(Duration::from_secs(5), "what is sent arrives", || {
            ping(&topology.a.host, topology.b.host6(), &["-c", "1"]).all_answered()
        });
    }
}
