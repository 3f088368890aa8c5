//! What a gateway leaves behind: nothing.

use crate::support::*;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that a gateway changes in its namespace: devices with their programs, addresses, routes, rules, sockets.
fn state(site: &Site) -> String {
    let mut state = String::new();
    // -d shows attached programs; statistics and counters are left out.
    for query in ["-d -br link", "-d link show dev wan0", "-d link show dev lan0"] {
        // The maximum size of one end of a veth pair depends on the program on its other end, which is the other
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

/// Maps and programs by kind and identifier.
type BpfObjects = BTreeSet<(&'static str, u64)>;

fn bpftool_list(kind: &str) -> Vec<serde_json::Value> {
    let output = std::process::Command::new("bpftool").args([kind, "list", "-j"]).output().expect("bpftool starts");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    list.as_array().cloned().unwrap_or_default()
}

/// All maps and programs of the machine, other tests' among them.
fn bpf_objects() -> BpfObjects {
    let ids = |kind| bpftool_list(kind).into_iter().filter_map(move |object| Some((kind, object["id"].as_u64()?)));
    ids("map").chain(ids("prog")).collect()
}

/// The maps and programs that a gateway holds: those of its descriptors, and the maps that its programs use.
fn bpf_objects_of(gateway: &Gateway) -> BpfObjects {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fdinfo", gateway.process.pid())).expect("a process");
    let texts = descriptors.flatten().filter_map(|descriptor| std::fs::read_to_string(descriptor.path()).ok());
    let id = |line: &str, kind| line.strip_prefix(kind)?.strip_prefix("_id:")?.trim().parse::<u64>().ok();
    let mut objects = texts
        .flat_map(|text| {
            let ids = ["map", "prog"].map(|kind| text.lines().filter_map(|l| Some((kind, id(l, kind)?))).collect());
            ids.into_iter().flat_map(|ids: Vec<_>| ids)
        })
        .collect::<BpfObjects>();
    for program in bpftool_list("prog") {
        if program["id"].as_u64().is_some_and(|id| objects.contains(&("prog", id))) {
            let maps = program["map_ids"].as_array().into_iter().flatten();
            objects.extend(maps.filter_map(|map| Some(("map", map.as_u64()?))));
        }
    }
    objects
}

fn files_named(directory: &str, name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).filter(|path| path.contains(name)).collect()
}

/// The state of a site without a gateway, once its devices have noticed that there is something at their other ends.
fn first_state(site: &Site) -> String {
    let mut last = String::new();
    eventually(PATIENCE, "the devices are up", || {
        let now = state(site);
        let is_settled = now == last && !now.contains("NO-CARRIER") && !now.contains("LOWERLAYERDOWN");
        last = now;
        is_settled
    });
    last
}

fn same_state(site: &Site, before: &str, what: &str) {
    let mut after = String::new();
    let same = holds_within(PATIENCE, || {
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
    let mut held = BpfObjects::new();
    for cycle in 0..cycles {
        a.restart();
        b.restart();
        await_traffic(&topology);
        let objects = bpf_objects_of(&a);
        assert!(["map", "prog"].iter().all(|kind| objects.iter().any(|(k, _)| k == kind)), "{objects:?}");
        held.extend(objects);
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
    eventually(PATIENCE, "the kernel has freed its maps and programs", || bpf_objects().is_disjoint(&held));
}

/// A gateway started on a clean machine leaves only its guard when it stops, and nothing once that is released, in
/// every mode.
#[test]
fn a_first_start_and_stop_leave_the_guard_and_a_release_nothing() {
    if !ready(&["ss"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let before = first_state(&topology.a);
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
        // Stopping it once more changes nothing, and may still lift the guard.
        let blocked = state(&topology.a);
        assert!(a.command(&["stop"]).status.success());
        assert_eq!(state(&topology.a), blocked);
        assert!(a.command(&["stop", "--release"]).status.success());
        same_state(&topology.a, &before, &format!("{kind:?}"));
    }
}

/// A prefix that leads to a peer is not released. A prefix that no peer has any more is blocked until it is released,
/// by itself or with all others at a stop.
#[test]
fn a_release_lifts_what_no_peer_has() {
    if !ready(&["ss"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let before = first_state(&topology.a);
    let (mut a, b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let [v4, v6] = topology.b.subnets().try_into().expect("two subnets");
    let blocked = || {
        let routes = ["-4", "-6"]
            .map(|version| topology.a.gateway.ip_show(&format!("{version} route show table all type blackhole")));
        [&v4, &v6].map(|prefix| routes.iter().any(|routes| routes.contains(prefix.as_str())))
    };
    let refused = |arguments: &[&str], reason: &str| {
        let output = a.command(arguments);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && says.contains(reason), "{arguments:?}: {says}");
    };
    refused(&["release", &v4], "because a peer still has it");
    a.set(&["peer", &b.public_key(), "remove"]);
    assert_eq!(blocked(), [true, true]);
    assert!(a.command(&["release", &v4]).status.success());
    assert_eq!(blocked(), [false, true]);
    refused(&["release", &v4], "not guarded");
    assert!(a.command(&["stop", "--release"]).status.success());
    assert!(a.process.wait(PATIENCE).success());
    assert_eq!(blocked(), [false, false]);
    same_state(&topology.a, &before, "released");
}

/// If only the service has the private key, the commands that need no secret work without it, whether the gateway runs
/// or not, and a release leaves nothing behind.
#[test]
fn commands_that_need_no_secret_work_without_the_key_file() {
    if !ready(&["ss"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let before = first_state(&topology.a);
    let (mut a, b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let scratch = topology.a.scratch.clone();
    let credential = scratch.join("credential");
    write_secret(&credential, &a.private_key);
    a.environment = vec![("PENSTOCK_PRIVATE_KEY_FILE", credential.display().to_string())];
    let mut a = Gateway::start(&topology.a, a);
    let _b = Gateway::start(&topology.b, b);
    await_traffic(&topology);
    // An administrator's shell does not have the service's environment.
    a.config.environment.clear();
    std::fs::remove_file(scratch.join(format!("{}.key", a.name()))).expect("the profile's key file");
    let works = |a: &Gateway, words: &[&str]| {
        let output = a.command(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let refused = |a: &Gateway, words: &[&str]| {
        let output = a.command(words);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && says.contains("No such file"), "{words:?}: {says}");
    };
    let either_way = |a: &Gateway| {
        works(a, &["list-config"]);
        works(a, &["firewall"]);
        works(a, &["set-config", "Mtu=1400"]);
        works(a, &["set-config", "Mtu="]);
        refused(a, &["set-config", "PrivateKeyFile=other.key"]);
    };
    either_way(&a);
    let (report, _) = a.doctor();
    assert!(!report.to_string().contains("genkey"), "{report}");
    assert!(a.terminate().success());
    either_way(&a);
    works(&a, &["guard"]);
    let stopped = a.command(&["status"]);
    let says = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert!(stopped.status.code() == Some(3) && says.contains("blocked until `penstock release`"), "{says}");
    refused(&a, &["start"]);
    let [v4, _] = topology.b.subnets().try_into().expect("two subnets");
    works(&a, &["release", &v4]);
    works(&a, &["stop", "--release"]);
    same_state(&topology.a, &before, "released");
    let file = scratch.join(format!("{}.guard", a.name()));
    assert!(!file.exists());
    // At boot, before the first start.
    works(&a, &["guard"]);
    let says = String::from_utf8_lossy(&a.command(&["status"]).stderr).into_owned();
    assert!(file.exists() && topology.b.subnets().iter().all(|prefix| says.contains(prefix)), "{says}");
    works(&a, &["release", "--all"]);
    same_state(&topology.a, &before, "released again");
    // The guard can be lifted by what its file says, whatever has become of the profile.
    works(&a, &["guard"]);
    std::fs::write(a.profile_path(), "{").expect("written");
    let says = String::from_utf8_lossy(&a.command(&["status"]).stderr).into_owned();
    assert!(says.contains("not JSON") && topology.b.subnets().iter().all(|prefix| says.contains(prefix)), "{says}");
    works(&a, &["release", &v4]);
    assert!(std::fs::read_to_string(&file).is_ok_and(|text| !text.contains(&v4)));
    works(&a, &["stop", "--release"]);
    same_state(&topology.a, &before, "released without a valid profile");
    assert!(!file.exists());
}

/// A prefix as `ip route` shows it: a host's without a length.
fn bare(prefix: &str) -> &str {
    prefix.strip_suffix("/32").or(prefix.strip_suffix("/128")).unwrap_or(prefix)
}

/// What a gateway holds while it runs: descriptors, including maps and programs, and its namespace's contents.
fn held(site: &Site, gateway: &Gateway) -> String {
    let pid = gateway.process.pid();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let targets = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    // Sockets have numbers.
    let name = |target: std::path::PathBuf| target.display().to_string().split('[').next().map(str::to_owned);
    let mut descriptors = BTreeMap::<String, usize>::new();
    targets.filter_map(name).for_each(|name| *descriptors.entry(name).or_default() += 1);
    let mut held = format!("{descriptors:#?}\n");
    for query in ["-br link", "-br addr", "rule", "-4 route show table all", "-6 route show table all"] {
        held += &site.gateway.ip_show(query);
    }
    held + &site.gateway.attempt(&["ss", "-Hlnu"]).1
}

/// What it holds when it no longer changes: after a start, files are still being written.
fn held_for_a_second(site: &Site, gateway: &Gateway) -> String {
    let mut held_before = String::new();
    eventually(PATIENCE, "what the gateway holds stays the same for a second", || {
        pause(1000);
        let now = held(site, gateway);
        std::mem::replace(&mut held_before, now.clone()) == now
    });
    held_before
}

/// Resident memory of a process, in KiB.
fn resident(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.pid())).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// How many changes [`vary`] knows, and the one that a reload reports as a problem: an interface is missing.
const ROUND: usize = 8;
const MISSING: usize = 6;

/// A change of a profile.
fn vary(profile: &mut serde_json::Value, cycle: usize, stranger: &str) {
    match cycle % ROUND {
        0 => profile["LocalPort"] = (PORT + 1).into(),
        1 => profile["Workers"] = 2.into(),
        2 => profile["Lan"]["Mode"] = "tun".into(),
        3 => profile["Wan"]["Mode"] = "udp".into(),
        4 => profile["Table"] = 4242.into(),
        5 => profile["FwMark"] = 4242.into(),
        MISSING => profile["Wan"]["Interface"] = "none0".into(),
        _ => profile["Peers"].as_array_mut().expect("a list").push(serde_json::json!({
            "Name": "stranger", "PublicKey": stranger, "Endpoint": "192.0.2.99:9", "AllowedIPs": ["10.250.0.0/16"]
        })),
    }
}

/// A child process that a gateway is just starting has copies of all its descriptors until its exec. What they keep
/// alive for a moment is waited for, whatever is reloaded meanwhile.
#[test]
fn reloads_wait_for_what_a_starting_child_holds() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let stranger = pubkey(&genkey());
    let original: serde_json::Value =
        serde_json::from_slice(&std::fs::read(a.profile_path()).expect("a profile")).expect("JSON");
    for cycle in 0..ROUND {
        std::thread::scope(|scope| {
            scope.spawn(hold_descriptors(&a));
            a.edit_profile(|profile| vary(profile, cycle, &stranger));
            let reloaded = a.command(&["reload"]).status.success();
            assert!(reloaded || cycle == MISSING, "cycle {cycle}: {}", a.process.log());
        });
        std::thread::scope(|scope| {
            scope.spawn(hold_descriptors(&a));
            a.reload(|profile| profile.clone_from(&original));
        });
    }
    await_traffic(&topology);
}

/// Holds copies of all descriptors of a gateway for a while.
fn hold_descriptors(gateway: &Gateway) -> impl FnOnce() + Send + use<> {
    let pid = gateway.process.pid();
    let process =
        Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).expect("a process");
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
    let copies = numbers.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()
    });
    let copies: Vec<_> = copies.collect();
    assert!(!copies.is_empty());
    move || {
        pause(200);
        drop(copies);
    }
}

/// Reloads back and forth, and an occasional restart, leave what a gateway holds unchanged.
#[test]
fn cycles_of_reloads_and_restarts_leak_nothing() {
    if !ready(&["ss"]) || !is_penstock() {
        return;
    }
    let cycles = if long() { 400 } else { 32 };
    /// In KiB. One leaked set of packet memory would show within a round.
    const GROWTH: u64 = 8 << 10;
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let stranger = pubkey(&genkey());
    let original: serde_json::Value =
        serde_json::from_slice(&std::fs::read(a.profile_path()).expect("a profile")).expect("JSON");
    let before = held_for_a_second(&topology.a, &a);
    let mut memory = Vec::new();
    for cycle in 0..cycles {
        a.edit_profile(|profile| vary(profile, cycle, &stranger));
        a.command(&["reload"]);
        a.reload(|profile| profile.clone_from(&original));
        await_traffic(&topology);
        let mut after = String::new();
        let same = holds_within(PATIENCE, || {
            after = held(&topology.a, &a);
            after == before
        });
        assert!(same, "cycle {cycle}: before:\n{before}\nafter:\n{after}");
        memory.push(resident(&a));
        if (cycle + 1) % (2 * ROUND) == 0 {
            // In the first round each variant is used for the first time.
            let most = |round: &[u64]| round.iter().max().copied().expect("cycles");
            let grown = most(&memory[ROUND..]).saturating_sub(most(&memory[..ROUND]));
            assert!(grown < GROWTH, "cycle {cycle}: {grown} KiB more than in the first round: {memory:?}");
            assert!(a.terminate().success(), "{}", a.process.log());
            a.restart();
            memory.clear();
        }
    }
}

/// Peers come and go; descriptors do not pile up.
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
        eventually(PATIENCE, "the descriptors are as before", || descriptors(gateway) <= before);
    }
    await_traffic(&topology);
}
