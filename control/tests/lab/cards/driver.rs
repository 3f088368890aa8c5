//! What happens to real cards while packets pass: their driver is unbound or unloaded, rings and queues change.

use crate::support::*;
use crate::{note, ports, ready};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// The kernel waits for whoever holds a device that is going away, and complains every 10 s.
const PATIENCE_OF_THE_KERNEL: Duration = Duration::from_secs(10);
/// A card is there, its link is up, neighbours are found, AF_XDP is bound.
const BACK: Duration = Duration::from_secs(30);

/// The device and the driver behind A's interface.
fn device_of(topology: &Topology, interface: &str) -> (String, PathBuf) {
    let path = |link: &str| {
        let link = format!("/sys/class/net/{interface}/{link}");
        PathBuf::from(topology.a.gateway.run(&["readlink", "-f", &link]).trim())
    };
    let name = path("device").file_name().expect("a device").to_str().expect("UTF-8").to_owned();
    (name, path("device/driver"))
}

/// How long the kernel took for something, if it finished and succeeded.
fn timed(what: impl FnOnce() + Send + 'static) -> Option<Duration> {
    let (done, ended) = mpsc::channel();
    let begun = Instant::now();
    // On a separate thread, since it may never return.
    std::thread::spawn(move || {
        what();
        let _ = done.send(begun.elapsed());
    });
    ended.recv_timeout(3 * PATIENCE_OF_THE_KERNEL).ok()
}

/// Writes a device's name to a file of its driver.
fn tell(driver: &Path, file: &str, device: &str) -> Option<Duration> {
    let (path, device) = (driver.join(file), device.to_owned());
    timed(move || std::fs::write(&path, device).expect("the driver is told"))
}

fn modprobe(arguments: &[&str]) -> Option<Duration> {
    let mut command = std::process::Command::new("modprobe");
    command.args(arguments);
    timed(move || assert!(command.status().expect("modprobe starts").success(), "{command:?}"))
}

fn kernel_log() -> String {
    let output = std::process::Command::new("dmesg").output().expect("dmesg starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// The driver lets go of the LAN's card several times, then of the WAN's, and takes it again, while TCP goes both ways:
/// the device is free at once, and is driven as before when it is back.
fn unbound_and_bound_again(kind: Kind) {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, kind, Kind::SOCKET, Outer::V4);
    let driven = ports(&a.status());
    let (at_a, at_b) = (&topology.a.host, &topology.b.host);
    for round in 1..=ROUNDS + 1 {
        let interface = if round > ROUNDS { "wan0" } else { "lan0" };
        let floods =
            [TcpSink::flood(at_a, at_b, topology.b.host4(), 2), TcpSink::flood(at_b, at_a, topology.a.host4(), 2)];
        pause(2_000);
        let carried: Vec<u64> = floods.iter().map(TcpSink::received).collect();
        let (device, driver) = device_of(&topology, interface);
        let unbound = tell(&driver, "unbind", &device);
        note(&format!("{kind:?}, {interface}: {carried:?} bytes before, unbound after {unbound:?}"));
        assert!(
            unbound.is_some_and(|took| took < PATIENCE_OF_THE_KERNEL),
            "the kernel waits for {device}:\n{}\n{}",
            kernel_log(),
            a.process.log()
        );
        drop(floods);
        tell(&driver, "bind", &device).expect("the driver takes it");
        if interface == "wan0" {
            topology.plug_wan_again()
        } else {
            topology.plug_lan_again()
        }
        await_as_before(&topology, &a, &driven);
    }
}

fn await_as_before(topology: &Topology, a: &Gateway, driven: &str) {
    let passes = || ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered();
    eventually(BACK, "traffic passes again", passes);
    let as_before = || ports(&a.status()).split(", rec").next() == driven.split(", rec").next();
    eventually(BACK, "it is driven as before", as_before);
}

/// The module of A's cards is unloaded under TCP, with WAN and LAN, and loaded again.
#[test]
fn unloaded_and_loaded_again() {
    if !ready(&["modprobe"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let driven = ports(&a.status());
    let (_, driver) = device_of(&topology, "lan0");
    let module = driver.file_name().and_then(|name| name.to_str()).expect("a driver");
    if module == "virtio_net" {
        note("the module of virtio_net is not unloaded: site B's cards are driven by it too");
        return;
    }
    let flood = TcpSink::flood(&topology.a.host, &topology.b.host, topology.b.host4(), 2);
    pause(2_000);
    let unloaded = modprobe(&["-r", module]);
    note(&format!("{module}: {} bytes before, unloaded after {unloaded:?}", flood.received()));
    assert!(unloaded.is_some_and(|took| took < PATIENCE_OF_THE_KERNEL), "{}\n{}", kernel_log(), a.process.log());
    drop(flood);
    modprobe(&[module]).expect("the module is loaded");
    topology.plug_wan_again();
    topology.plug_lan_again();
    await_as_before(&topology, &a, &driven);
}

/// Rings of another size, another number of queues, another MTU, MAC address or name: traffic comes back by itself.
fn rings_queues_and_addresses_change(kind: Kind) {
    if !ready(&["ethtool"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, kind, Kind::SOCKET, Outer::V4);
    let (gateway, host) = (&topology.a.gateway, &topology.a.host);
    let target = topology.b.host4();
    let changes: [&[&str]; 8] = [
        &["ethtool", "-G", "wan0", "rx", "256", "tx", "256"],
        &["ethtool", "-G", "lan0", "rx", "256", "tx", "256"],
        &["ethtool", "-L", "lan0", "combined", "1"],
        &["ethtool", "-L", "lan0", "combined", "2"],
        &["ip", "link", "set", "lan0", "mtu", "1400"],
        // Less than the tunnel's packets need on it.
        &["ip", "link", "set", "wan0", "mtu", "1400"],
        &["ip", "link", "set", "lan0", "address", "02:00:00:00:00:99"],
        // The next test recognises the card by this address.
        &["ip", "link", "set", "lan0", "address", "02:1a:b0:00:00:02"],
    ];
    for change in changes {
        // Not every driver can do it.
        let (done, said) = gateway.attempt(change);
        host.ip("neigh flush dev eth0\n");
        let begun = Instant::now();
        eventually(BACK, &format!("traffic after {change:?}"), || {
            ping(host, target, &["-c", "3", "-i", "0.2", "-s", "1300"]).all_answered()
        });
        let outcome = if done { format!("{:.1} s", begun.elapsed().as_secs_f64()) } else { said.trim().to_owned() };
        note(&format!("{kind:?}: {}: {outcome}; {}", change.join(" "), ports(&a.status())));
    }
    let driven = ports(&a.status());
    gateway.ip("link set wan0 down\nlink set wan0 name elsewhere\n");
    let missing = || a.status()["Problems"].to_string().contains("there is no interface wan0");
    eventually(BACK, "it is told that there is no WAN", missing);
    gateway.ip("link set elsewhere name wan0\n");
    topology.address_wan_again();
    await_as_before(&topology, &a, &driven);
}

macro_rules! driven_by {
    ($($name:ident: $kind:expr;)*) => { $(
        mod $name {
            use crate::support::Kind;

            #[test]
            fn unbound_and_bound_again() {
                super::unbound_and_bound_again($kind);
            }

            #[test]
            fn rings_queues_and_addresses_change() {
                super::rings_queues_and_addresses_change($kind);
            }
        }
    )* };
}

driven_by! {
    xdp_xdp: Kind::XDP;
    udp_tun: Kind::SOCKET;
}
