//! Full uplinks. `WanRate`: packets wait in the gateway, where a ping does not wait behind a transfer. Without it,
//! packets wait in the transmit ring of AF_XDP, and urgent and small ones are the last to be dropped.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Sites driven by AF_XDP. A's uplink takes 256 packets at once, and then none for this many milliseconds.
fn behind_a_slow_device(pause: u32) -> (Topology, [Gateway; 2]) {
    let topology = Topology::new(Options::default());
    let (a, b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    // The cable's other end has a ring, which it empties only so often, and a device with a queue waits for it.
    let slow = format!(
        "cd /sys/class/net/wan0 && echo 1000000000 > napi_defer_hard_irqs && echo {} > gro_flush_timeout",
        pause * 1_000_000
    );
    topology.b.gateway.run(&["sh", "-c", &slow]);
    topology.a.gateway.run(&["tc", "qdisc", "replace", "dev", "wan0", "root", "pfifo"]);
    (topology, [a, b])
}

const SLOW_DEVICES: &str = "a veth that waits for its peer";

#[test]
fn a_burst_that_the_device_is_too_busy_for_is_sent_without_further_traffic() {
    if !ready_since([6, 16], SLOW_DEVICES, &["tc"]) || !is_penstock() {
        return;
    }
    const BURST: u32 = 1_500;
    let (topology, [a, _b]) = behind_a_slow_device(20);
    let target = topology.b.host.enter(|| UdpSocket::bind((topology.b.host4(), 0))).expect("a socket");
    target.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    // All of it fits, however long the reader is off its core.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&target, 8 << 20).expect("a buffer");
    let to = target.local_addr().expect("an address");
    let socket = topology.a.host.enter(|| UdpSocket::bind((topology.a.host4(), 0))).expect("a socket");
    let dropped = || a.status()["Drops"]["transmit-full"].as_u64();
    assert_eq!(dropped(), Some(0));
    let sent = Instant::now();
    for number in 0..BURST {
        socket.send_to(&[number.to_be_bytes().as_slice(), &[0; 200]].concat(), to).expect("sent");
    }
    let mut last = 0;
    while last < BURST - 1 {
        let mut datagram = [0; 256];
        let received = target.recv(&mut datagram);
        assert!(received.is_ok(), "{last} is the last of {BURST} that arrived; drops: {}", a.status()["Drops"]);
        last = u32::from_be_bytes(*datagram.first_chunk().expect("a number"));
    }
    // Six times 20 ms, and what a busy machine adds; only once a second a worker does something without being woken.
    assert!(sent.elapsed() < Duration::from_millis(700), "it took {:?}", sent.elapsed());
    assert_eq!(dropped(), Some(0));
}

#[test]
fn a_full_uplink_drops_what_is_small_last() {
    if !ready_since([6, 16], SLOW_DEVICES, &["tc"]) || !is_penstock() {
        return;
    }
    const TRIES: usize = 5;
    let (topology, [a, _b]) = behind_a_slow_device(40);
    let socket = topology.a.host.enter(|| UdpSocket::bind((topology.a.host4(), 0))).expect("a socket");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Three times what the device takes.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    let _ = socket.send_to(&[0; 500], (topology.b.host4(), 9));
                }
                pause(1);
            }
        });
        let full = holds_within(PATIENCE, || a.status()["Drops"]["transmit-full"].as_u64() > Some(1_000));
        let echoes = |size: &str| {
            let options = ["-c", "20", "-i", "0.1", "-W", "5", "-s", size];
            ping(&topology.a.host, topology.b.host4(), &options)
        };
        // On a busy machine the sender may be off its core for so long that the uplink is not full.
        let mut tries = (0..TRIES).map(|_| ["56", "800"].map(echoes));
        let last = tries.find(|[small, large]| small.received < 18 || large.received <= 15);
        stop.store(true, Ordering::Relaxed);
        assert!(full, "{}", a.status()["Drops"]);
        let [small, large] = last.expect("the uplink was full once");
        assert!(small.received >= 18, "of the large ones {} arrived; {}", large.received, small.text);
    });
}
