//! A gateway, or its whole machine, that is stopped for a while, and one whose clock jumps.

use super::support::*;
use super::{note, ready, stop_machine};
use std::time::{Duration, Instant};

/// The outage when one side has forgotten its sessions: the other one asks after 15 s without an answer.
const SILENCE: Duration = Duration::from_secs(20);

/// A process that is stopped, as by a debugger, continues where it was.
fn a_gateway_that_was_stopped_goes_on(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = pair_config(&topology, kind, kind, Outer::V4);
    let a = Gateway::start(&topology.a, a);
    let _b = KernelWireguard::start(&topology.b, b);
    await_traffic(&topology);
    let (host, target) = (&topology.a.host, topology.b.host4());
    a.process.signal(rustix::process::Signal::STOP);
    assert_eq!(ping(host, target, &["-c", "20", "-i", "0.5"]).received, 0, "it is stopped");
    a.process.signal(rustix::process::Signal::CONT);
    let begun = Instant::now();
    eventually(SILENCE, "traffic passes", || ping(host, target, &["-c", "1"]).all_answered());
    note(&format!("{kind:?}: traffic {:.1} s after a standstill of 10 s", begun.elapsed().as_secs_f64()));
}

/// The machine gets no time for so long that all sessions are too old, as when its hypervisor stops it: then all its
/// timers are due at once.
#[test]
fn a_machine_that_was_stopped_goes_on() {
    if !ready(&[]) {
        return;
    }
    let stop = Duration::from_secs(190);
    let sites = [Kind::XDP, Kind::SOCKET].map(|kind| {
        let topology = Topology::new(Options::default());
        let (a, b) = pair_config(&topology, kind, kind, Outer::V4);
        let gateways = (Gateway::start(&topology.a, a), KernelWireguard::start(&topology.b, b));
        await_traffic(&topology);
        (kind, topology, gateways)
    });
    let begun = Instant::now();
    stop_machine(stop);
    assert!(begun.elapsed() >= stop, "its clocks stood still too: the test shows nothing");
    for (kind, topology, (a, _b)) in &sites {
        let begun = Instant::now();
        let passes = || ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered();
        eventually(SILENCE, "traffic passes", passes);
        note(&format!("{kind:?}: traffic {:.1} s after a standstill of {stop:?}", begun.elapsed().as_secs_f64()));
        assert_eq!(a.status()["Health"], "healthy", "{}", a.process.log());
    }
}

/// The machine's clock jumps forward and back: no packet is lost, and handshakes go on, although they contain the time
/// and a peer accepts none that is older than the last.
fn a_clock_that_jumps_costs_nothing(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, kind, kind, Outer::V4);
    a.rekey_after(3);
    let a = Gateway::start(&topology.a, a);
    let b = KernelWireguard::start(&topology.b, b);
    await_traffic(&topology);
    for jump in ["1 hour", "-2 hours", "1 hour"] {
        topology.a.gateway.run(&["date", "-s", jump]);
        let before = a.latest_handshake(&b.public_key());
        let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "100", "-i", "0.1"]);
        assert!(pings.all_answered(), "{jump}: {}", pings.text);
        assert_ne!(a.latest_handshake(&b.public_key()), before, "{jump}: no handshake since");
    }
}

macro_rules! by_both {
    ($($test:ident)*) => { $(
        mod $test {
            use crate::support::Kind;

            #[test]
            fn xdp_xdp() {
                super::$test(Kind::XDP);
            }

            #[test]
            fn udp_tun() {
                super::$test(Kind::SOCKET);
            }
        }
    )* };
}

by_both! {
    a_gateway_that_was_stopped_goes_on
    a_clock_that_jumps_costs_nothing
}
