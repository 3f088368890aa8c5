//! What a gateway leaves behind: nothing.

use crate::support::*;
use std::collections::BTreeSet;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// All that a gateway changes in its namespace: devices with their programs, addresses, routes,
/// rules, sockets.
fn state(site: &Site) -> String {
    let mut state = String::new();
    // -d shows attached programs; statistics and counters are left out.
    for query in ["-d -br link", "-d link show dev wan0", "-d link show dev lan0"] {
        // An end of a veth pair may be as large as the program on its other end allows: the other
        // gateway's doing.
        let links = site.gateway.ip_show(query);
        let words = links.split(' ').collect::<Vec<_>>();
        let is_max = |i: usize| i > 0 && words[i - 1] == "maxmtu";
        state.extend((0..words.len()).filter(|&i| !is_max(i)).flat_map(|i| [words[i], " "]));
    }
    for query in ["-4 route show table all", "-6 route show table all", "-br addr", "rule"] {
        state += &site.gateway.ip_show(query);
    }
    state += &site.gateway.attempt(&["ss", "-Hlnu"]).1;
    state
}

/// Identifiers of the BPF objects that no process holds: pinned or leaked.
fn ownerless(kind: &str) -> BTreeSet<u64> {
    let output = std::process::Command::new("bpftool").args([kind, "list", "-j"]).output().expect("bpftool starts");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list.as_array()
        .into_iter()
        .flatten()
        .filter(|object| object.get("pids").is_none())
        .filter_map(|object| object["id"].as_u64())
        .collect()
}

fn files_named(directory: &str, name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).filter(|path| path.contains(name)).collect()
}

fn same_state(site: &Site, before: &str, what: &str) {
    let mut after = String::new();
    let same = holds_within(LIMIT, || {
        after = state(site);
        after == before
    });
    assert!(same, "{what}: before:\n{before}\nafter:\n{after}");
}

#[test]
fn starts_and_stops_leave_nothing() {
    if !ready(&["bpftool", "ss"]) {
        return;
    }
    let cycles = if long() { 100 } else { 5 };
    let topology = Topology::new(Options::default());
    let (mut a, mut b) = pair(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    await_traffic(&topology);
    assert!(a.terminate().success(), "SIGTERM is an orderly end: {}", a.process.log());
    assert!(b.terminate().success(), "SIGTERM is an orderly end: {}", b.process.log());
    pause(300);
    let (before_a, before_b) = (state(&topology.a), state(&topology.b));
    assert!(!before_a.contains(a.name()), "{before_a}");
    let (maps, programs) = (ownerless("map"), ownerless("prog"));
    for cycle in 0..cycles {
        a.restart();
        b.restart();
        await_traffic(&topology);
        assert!(a.terminate().success());
        assert!(b.terminate().success());
        same_state(&topology.a, &before_a, &format!("cycle {cycle}"));
        same_state(&topology.b, &before_b, &format!("cycle {cycle}"));
        for directory in ["/var/run/wireguard", "/run/penstock"] {
            assert_eq!(files_named(directory, a.name()), Vec::<String>::new());
            assert_eq!(files_named(directory, b.name()), Vec::<String>::new());
        }
    }
    // The kernel frees maps and programs a little later.
    eventually(LIMIT, "the kernel has freed the maps", || ownerless("map").is_subset(&maps));
    eventually(LIMIT, "and the programs", || ownerless("prog").is_subset(&programs));
}

/// A gateway started where nothing was before leaves its guard there when it stops, and nothing once that is
/// released, in every mode.
#[test]
fn a_first_start_and_stop_leave_the_guard_and_a_release_nothing() {
    if !ready(&["ss"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let before = state(&topology.a);
        let (mut a, _b) = joined(&topology, kind, kind, Outer::V4);
        assert_ne!(state(&topology.a), before);
        assert!(a.terminate().success(), "{kind:?}: {}", a.process.log());
        for prefix in topology.b.allowed_ips() {
            let held = topology.a.gateway.ip_show("-4 route show table all")
                + &topology.a.gateway.ip_show("-6 route show table all");
            assert!(
                held.contains(&format!("blackhole {}", bare(&prefix))),
                "{kind:?}: {prefix} is not blocked: {held}"
            );
        }
        let stopped = a.command(&["status"]);
        assert_eq!(stopped.status.code(), Some(3));
        let says = String::from_utf8_lossy(&stopped.stderr).into_owned();
        assert!(says.contains("blocked until `penstock release`"), "{says}");
        a.release();
        same_state(&topology.a, &before, &format!("{kind:?}"));
    }
}

/// A prefix as `ip route` shows it: a host's without a length.
fn bare(prefix: &str) -> &str {
    prefix.strip_suffix("/32").or(prefix.strip_suffix("/128")).unwrap_or(prefix)
}

/// Peers come and go; file descriptors don't pile up.
#[test]
fn changes_of_peers_leak_no_descriptors() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let descriptors =
        |gateway: &Gateway| std::fs::read_dir(format!("/proc/{}/fd", gateway.process.pid())).map_or(0, Iterator::count);
    let stranger = pubkey(&genkey());
    let change = |gateway: &Gateway| {
        let endpoint = ["endpoint", "192.0.2.99:9", "allowed-ips", "10.250.0.0/16"];
        gateway.set(&[["peer", &stranger].as_slice(), &endpoint].concat());
        gateway.set(&["peer", &stranger, "remove"]);
    };
    for gateway in [&a, &b] {
        change(gateway);
        let before = descriptors(gateway);
        for _ in 0..25 {
            change(gateway);
        }
        eventually(LIMIT, "the descriptors are as before", || descriptors(gateway) <= before);
    }
    await_traffic(&topology);
}
