//! Crashes, orderly stops and refused starts.

use crate::support::*;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// SIGKILL under load: packets that the LAN goes on sending must not leave in the clear, and two seconds after the next
/// start traffic flows again.
fn a_killed_gateway_leaks_nothing_and_comes_back(kind: Kind) {
    if !ready(&["tcpdump"]) {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
    for config in [&mut a, &mut b] {
        // The restarted side must send first, since the other still uses the old session.
        config.peers[0].keepalive = Some(25);
    }
    let (mut a, mut b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(&topology);
    let echoes = topology.b.hosts().map(|host| UdpEcho::start(&topology.b.host, host));
    let capture = Capture::start(
        topology.middle(),
        "a0",
        // Only what could be in the clear, and a little of the rest: the load is heavy.
        "not udp or less 300",
        topology.scratch(),
    );
    let loads = topology.b.hosts().map(|host| TcpSink::flood(&topology.a.host, &topology.b.host, host, 1));
    eventually(PATIENCE, "there is load", || loads.iter().all(|load| load.received() > 1 << 20));

    for gateway in [&mut a, &mut b] {
        gateway.kill();
        for echo in &echoes {
            assert_eq!(udp_echoes(&topology.a.host, echo.address, 1), 0);
        }
        pause(500);
        let start = Instant::now();
        gateway.restart();
        for echo in &echoes {
            eventually(PATIENCE, "an echo after the restart", || udp_echoes(&topology.a.host, echo.address, 1) == 1);
        }
        let outage = start.elapsed();
        // Usually half a second; the flood and other tests share two cores with it.
        assert!(outage < Duration::from_secs(5), "{kind:?}: {outage:?} from start to traffic");
    }
    drop(loads);
    let frames = capture.stop();
    assert!(frames.iter().any(|frame| frame.message_type() == Some(TRANSPORT_DATA)));
    assert_no_clear_text(&frames, &topology);
}

#[test]
fn killed_with_xdp() {
    a_killed_gateway_leaks_nothing_and_comes_back(Kind::XDP);
}

#[test]
fn killed_with_sockets() {
    a_killed_gateway_leaks_nothing_and_comes_back(Kind::SOCKET);
}

#[test]
fn killed_with_xdp_and_tun() {
    a_killed_gateway_leaks_nothing_and_comes_back(Kind::Penstock { wan: "xdp", lan: "tun" });
}

#[test]
fn killed_with_udp_and_xdp() {
    a_killed_gateway_leaks_nothing_and_comes_back(Kind::Penstock { wan: "udp", lan: "xdp" });
}

/// No clear text before the first handshake either: not during the start, and not while the peer is away.
#[test]
fn nothing_leaks_before_the_first_handshake() {
    if !ready(&["tcpdump"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::switch());
        let (a, _) = pair_config(&topology, kind, kind, Outer::V4);
        let a = Gateway::start(&topology.a, a);
        let capture = Capture::of_wan(&topology);
        for target in topology.b.hosts() {
            ping(&topology.a.host, target, &["-c", "10", "-i", "0.05"]);
        }
        let frames = capture.stop();
        assert!(count_messages(&frames, HANDSHAKE_INITIATION) > 0, "{kind:?}");
        assert_no_clear_text(&frames, &topology);
        drop(a);
    }
}

/// Whether each layer of A's guard has the first prefix of B.
fn is_guarded(topology: &Topology) -> bool {
    let (gateway, prefix) = (&topology.a.gateway, &topology.b.subnets()[0]);
    let routes = gateway.ip_show("route show table all type blackhole");
    let layers = routes.lines().filter(|route| route.contains(prefix.as_str())).count();
    layers == 2 && gateway.run(&["nft", "list", "ruleset"]).contains(prefix.as_str())
}

/// The very first start, which fails before there is anything but the profile.
#[test]
fn a_first_start_that_fails_early_leaves_the_guard_up() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let (topology, path, profile) = with_profile();
    let in_the_way = socket(profile["Name"].as_str().expect("a name"));
    std::fs::create_dir_all(in_the_way.join("not empty")).expect("a directory");
    assert!(!is_guarded(&topology));
    refuses(&topology.a, &path, &["WireGuard's socket"]);
    assert!(is_guarded(&topology));
    std::fs::remove_dir_all(in_the_way).expect("removed");
    let profile = path.to_str().expect("UTF-8");
    let released = penstock(&topology.a.gateway, &["release", "--all", "--profile", profile]);
    assert!(released.status.success() && !is_guarded(&topology), "{released:?}");
}

/// After a reboot with a profile that somebody has damaged, the same prefixes are guarded again, in the same places.
#[test]
fn a_damaged_profile_does_not_keep_the_guard_down() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let (topology, path, mut profile) = with_profile();
    profile["Table"] = 47_200.into();
    write_profile(&path, &profile);
    let guard =
        |path: &std::path::Path| penstock(&topology.a.gateway, &["guard", "--profile", path.to_str().expect("UTF-8")]);
    let reboot = || {
        for words in
            ["-4 route flush table all proto 80", "-6 route flush table all proto 80", "rule flush protocol 80"]
        {
            let words: Vec<&str> = words.split(' ').collect();
            topology.a.gateway.attempt(&[&["ip"], words.as_slice()].concat());
        }
        topology.a.gateway.run(&["nft", "flush", "ruleset"]);
        assert!(!is_guarded(&topology));
    };
    assert!(guard(&path).status.success() && is_guarded(&topology));
    reboot();
    for text in ["{ \"Name\": ", "{}", ""] {
        std::fs::write(&path, text).expect("written");
        let output = guard(&path);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("stays blocked (3 prefixes)"), "{error}");
        assert!(is_guarded(&topology), "{text}");
        assert!(topology.a.gateway.ip_show("route show table 47200").contains("blackhole"));
        reboot();
        refuses(&topology.a, &path, &["spoiled.profile", "stays blocked"]);
        assert!(is_guarded(&topology), "{text}");
        reboot();
    }
    std::fs::remove_file(&path).expect("removed");
    refuses(&topology.a, &path, &["spoiled.profile", "stays blocked"]);
    assert!(is_guarded(&topology), "without a profile");
    write_profile(&path, &profile);
    let released = penstock(&topology.a.gateway, &["release", "--all", "--profile", path.to_str().expect("UTF-8")]);
    assert!(released.status.success() && !is_guarded(&topology), "{released:?}");
}

/// How `penstock run` refuses: soon, with an exit code other than 0, and with a last line of one sentence that contains
/// all of `words`.
fn refuses(site: &Site, profile: &std::path::Path, words: &[&str]) {
    refuses_under(&[], site, profile, words);
}

/// The same, run through another command.
fn refuses_under(command: &[&str], site: &Site, profile: &std::path::Path, words: &[&str]) {
    let log = site.scratch.join("refusal.log");
    let _ = std::fs::remove_file(&log);
    let binary = penstock_binary().expect("checked by ready()");
    let run = [binary.to_str(), Some("run"), Some("--profile"), profile.to_str()].map(Option::unwrap);
    let mut process = site.gateway.spawn(&[command, &run].concat(), &log);
    let status = process.wait(PATIENCE);
    let text = process.log();
    assert!(!status.success(), "it ran in spite of {words:?}: {text}");
    assert!(status.code().is_some_and(|code| code != 101), "{status}: {text}");
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
    let sentence = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    assert!(sentence.len() < 300, "{sentence}");
    for word in words {
        let found = sentence.to_lowercase().contains(&word.to_lowercase());
        assert!(found, "no {word:?} in: {sentence}");
    }
}

/// A site with a valid profile, for the test to spoil.
fn with_profile() -> (Topology, std::path::PathBuf, serde_json::Value) {
    let topology = Topology::new(Options::default());
    let (a, _) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let profile = a.profile(&topology.a.scratch);
    let path = topology.a.scratch.join("spoiled.profile");
    write_profile(&path, &profile);
    (topology, path, profile)
}

#[test]
fn a_second_instance_refuses() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    refuses(&topology.a, a.profile_path(), &["already", a.name()]);
    await_traffic(&topology);
}

#[test]
fn a_port_in_use_is_named() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, path, _) = with_profile();
    let occupy = |address: &'static str| {
        let mut socket = None;
        eventually(PATIENCE, "the port is free", || {
            socket = topology.a.gateway.enter(move || UdpSocket::bind((address, PORT))).ok();
            socket.is_some()
        });
        socket
    };
    let occupied = occupy("0.0.0.0");
    refuses(&topology.a, &path, &["47100", "in use"]);
    drop(occupied);
    let occupied = occupy("::");
    refuses(&topology.a, &path, &["47100", "in use"]);
    drop(occupied);
}

/// An interface that is missing is waited for, and the status says so.
#[test]
fn a_missing_interface_is_waited_for() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        for missing in ["wan0", "lan0"] {
            let topology = Topology::new(Options::default());
            let (a, b) = pair_config(&topology, kind, kind, Outer::V4);
            topology.a.gateway.ip(&format!("link set {missing} name away7\n"));
            let (a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
            let status = a.status();
            assert_eq!(status["Health"], "degraded", "{status}");
            let sentence = format!("there is no interface {missing}");
            let told = status["Problems"].as_array().is_some_and(|all| all.iter().any(|p| p["Sentence"] == sentence));
            assert!(told, "{kind:?}: {status}");
            topology.a.gateway.ip(&format!("link set away7 name {missing}\n"));
            await_traffic(&topology);
            // Traffic can flow a moment before the gateway has heard of the interface.
            eventually(PATIENCE, "all is well", || {
                let status = a.status();
                status["Health"] == "healthy" && status["Problems"] == serde_json::json!([])
            });
        }
    }
}

/// The same for an address.
#[test]
fn a_missing_address_is_waited_for() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        let topology = Topology::new(Options::default());
        let (a, b) = pair_config(&topology, kind, kind, Outer::V4);
        topology.a.gateway.ip("addr flush dev wan0\n");
        let (a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        let status = a.status();
        let told = |p: &serde_json::Value| p["Subject"] == "outer addresses";
        assert!(status["Problems"].as_array().is_some_and(|all| all.iter().any(told)), "{kind:?}: {status}");
        topology.a.gateway.ip("addr add 192.0.2.1/24 dev wan0\naddr add 2001:db8::1/64 dev wan0 nodad\n\
             route replace default via 192.0.2.2\nroute replace default via 2001:db8::2\n");
        await_traffic(&topology);
        eventually(PATIENCE, "all is well", || a.status()["Health"] == "healthy");
    }
}

/// A way to make a state directory unusable, and how to undo it.
type Obstacle = (&'static str, fn(&StateDirectory), fn(&StateDirectory));

/// A state directory that is full or read-only is reported and delays nothing else; its files are written as soon as
/// possible.
#[test]
fn a_state_directory_that_cannot_be_written_holds_nothing_up() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let obstacles: [Obstacle; 2] = [
        ("full", StateDirectory::fill, StateDirectory::make_room),
        ("read-only", |state| state.set_read_only(true), |state| state.set_read_only(false)),
    ];
    for (what, obstruct, clear) in obstacles {
        let topology = Topology::new(Options::default());
        let state = StateDirectory::new(&topology.a.scratch);
        let (mut a, b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
        a.environment.push(state.variable());
        obstruct(&state);
        let (a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        let file = state.path().join(format!("{}.guard", a.name()));
        let subject = file.to_str().expect("UTF-8");
        let status = a.status();
        let told = status["Problems"].as_array().is_some_and(|all| all.iter().any(|p| p["Subject"] == subject));
        assert!(told, "{what}: {status}");
        let held = topology.a.gateway.ip_show("route show table all type blackhole");
        let prefix = &topology.b.subnets()[0];
        assert!(held.contains(prefix.as_str()), "{what}: {held}");
        clear(&state);
        let well = holds_within(PATIENCE, || a.status()["Health"] == "healthy");
        assert!(well, "{what}: {}", a.status()["Problems"]);
        assert!(std::fs::read_to_string(&file).expect("it is written").contains(prefix.as_str()), "{what}");
    }
}

/// The settings that a gateway may change, of all interfaces.
fn settings(gateway: &Namespace) -> String {
    let names = ["forwarding", "force_forwarding", "accept_ra", "send_redirects", "rp_filter", "src_valid_mark"];
    let files = names.map(|name| format!("/proc/sys/net/ipv?/conf/*/{name}")).join(" ");
    gateway.run(&["sh", "-c", &format!("grep -s . {files}; true")])
}

/// The original settings are restored, although the process that changed them was killed.
#[test]
fn settings_of_before_a_crash_are_put_back() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let gateway = &topology.a.gateway;
    gateway.sysctl("net/ipv4/ip_forward", "0");
    gateway.sysctl("net/ipv6/conf/all/forwarding", "0");
    let before = settings(gateway);
    let (mut a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    a.kill();
    let left = settings(gateway);
    assert!(left.contains("ipv4/conf/lan0/forwarding:1"), "nothing was changed: {left}");
    a.restart();
    await_traffic(&topology);
    assert!(a.terminate().success(), "{}", a.process.log());
    assert_eq!(settings(gateway), before);
}

#[test]
fn a_missing_capability_is_named() {
    if !ready(&["setpriv"]) || !is_penstock() {
        return;
    }
    let (topology, path, mut profile) = with_profile();
    refuses_under(&["setpriv", "--bounding-set=-net_admin"], &topology.a, &path, &["CAP_NET_ADMIN", "systemd"]);
    profile["Wan"]["Mode"] = "xdp".into();
    write_profile(&path, &profile);
    refuses_under(&["setpriv", "--bounding-set=-net_raw"], &topology.a, &path, &["CAP_NET_RAW", "systemd"]);
    let without_bpf = ["setpriv", "--bounding-set=-bpf,-sys_admin"];
    refuses_under(&without_bpf, &topology.a, &path, &["CAP_BPF", "systemd"]);
}

#[test]
fn a_key_that_is_missing_or_readable_by_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, path, profile) = with_profile();
    let key = profile["PrivateKeyFile"].as_str().expect("a file").to_owned();
    let file = path.with_file_name(&key);
    for mode in [0o644, 0o640] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        refuses(&topology.a, &path, &[&key]);
    }
    std::fs::remove_file(&file).expect("removed");
    refuses(&topology.a, &path, &[&key]);
    write_secret(&file, "not a key");
    refuses(&topology.a, &path, &[&key]);
}

#[test]
fn a_wrong_profile_is_refused_with_field_and_line() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, path, profile) = with_profile();
    let spoil = |field: &str, value: serde_json::Value| {
        let mut spoiled = profile.clone();
        spoiled[field] = value;
        write_profile(&path, &spoiled);
        let text = std::fs::read_to_string(&path).expect("profile");
        let line = text.lines().position(|line| line.contains(field)).expect("the field");
        (line + 1).to_string()
    };
    // An unknown field is on a line of its own, which the sentence names.
    let line = spoil("Colour", "blue".into());
    refuses(&topology.a, &path, &["Colour", &line, "spoiled.profile"]);
    let line = spoil("LocalPort", 70_000.into());
    refuses(&topology.a, &path, &["LocalPort", &line]);
    let line = spoil("VirtualAddress", "100.64.0".into());
    refuses(&topology.a, &path, &["VirtualAddress", &line]);
    spoil("Wan", serde_json::json!({ "Interface": "wan0", "Mode": "quick" }));
    refuses(&topology.a, &path, &["Mode"]);

    std::fs::write(&path, "{ \"Name\": ").expect("written");
    refuses(&topology.a, &path, &["spoiled.profile"]);
    std::fs::remove_file(&path).expect("removed");
    refuses(&topology.a, &path, &["spoiled.profile"]);
}
