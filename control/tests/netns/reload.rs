//! A new profile for a running gateway: only what differs changes.

use std::net::UdpSocket;
use std::time::Duration;

use crate::support::overlay::Heartbeat;
use crate::support::*;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_millis(5);
/// The longest outage, in seconds, that a change of port, mode or number of workers may cause.
const OUTAGE: f64 = 0.2;

fn scene(kind: Kind) -> (Topology, Gateway, Gateway) {
    let topology = Topology::new(Options::switch());
    let (a, b) = joined(&topology, kind, kind, Outer::V4);
    (topology, a, b)
}

/// Echo requests from A's host to B's, until they are stopped.
fn heartbeat(topology: &Topology) -> Heartbeat {
    let beat = Heartbeat::start_in(&topology.a.host, &topology.a.scratch, topology.b.host4(), EVERY, 100_000);
    eventually(LIMIT, "the first answers", || beat.beats().answers.len() > 10);
    beat
}

fn stranger() -> Value {
    json!({ "Name": "stranger", "PublicKey": pubkey(&genkey()), "Endpoint": "192.0.2.99:9",
            "AllowedIPs": ["10.200.0.0/24", "fd00:200::/64"] })
}

fn peers(profile: &mut Value) -> &mut Vec<Value> {
    profile["Peers"].as_array_mut().expect("there are peers")
}

fn guarded(gateway: &Gateway, prefix: &str) -> bool {
    let status = gateway.status();
    status["Guarded"].as_array().expect("a list").iter().any(|guarded| guarded == prefix)
}

fn all_routes(gateway: &Namespace) -> String {
    gateway.ip_show("-4 route show table all") + &gateway.ip_show("-6 route show table all")
}

/// Peers are added, changed and removed; the unchanged one keeps its session, its counters and every packet.
#[test]
fn other_peers_lose_no_session_and_no_packet() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let (topology, a, b) = scene(kind);
        let peer = b.public_key();
        let beat = heartbeat(&topology);
        let (handshake, (received, _)) = (a.latest_handshake(&peer), a.transfer(&peer));

        let said = a.reload(|profile| peers(profile).push(stranger()));
        assert!(said.contains("peer stranger added"), "{said}");
        assert!(guarded(&a, "10.200.0.0/24"));
        assert!(all_routes(&topology.a.gateway).contains("10.200.0.0/24"));
        let said = a.reload(|profile| {
            let stranger = &mut peers(profile)[1];
            stranger["AllowedIPs"] = json!(["10.201.0.0/24"]);
            stranger["PersistentKeepalive"] = json!(25);
        });
        assert!(said.contains("Peers.stranger.AllowedIPs, Peers.stranger.PersistentKeepalive"), "{said}");
        assert!(guarded(&a, "10.201.0.0/24") && !guarded(&a, "10.200.0.0/24"));
        let said = a.reload(|profile| drop(peers(profile).pop()));
        assert!(said.contains("peer stranger removed"), "{said}");
        let routes = all_routes(&topology.a.gateway);
        assert!(!routes.contains("10.20") && !routes.contains("fd00:200"), "{kind:?}: what nobody has: {routes}");
        assert!(a.reload(|_| {}).contains("nothing has changed"));

        pause(200);
        let beats = beat.stop();
        assert_eq!(beats.lost(), 0, "{kind:?}: longest gap {} s", beats.longest_gap());
        assert_eq!(a.latest_handshake(&peer), handshake, "{kind:?}: another session");
        assert!(a.transfer(&peer).0 > received, "{kind:?}: other counters");
        assert_eq!(a.status()["Health"], "healthy");
    }
}

/// A removed peer is cut off, and the guard releases its prefixes, since an administrator here has removed it.
#[test]
fn a_removed_peer_is_gone_and_its_prefixes_are_released() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, _b) = scene(Kind::SOCKET);
    a.reload(|profile| peers(profile).clear());
    assert_eq!(wg(&["show", a.name(), "peers"]).trim(), "");
    assert_eq!(ping(&topology.b.host, topology.a.host4(), &["-c", "2", "-i", "0.1"]).received, 0);
    assert!(!all_routes(&topology.a.gateway).contains("10.102.0.0"), "{}", all_routes(&topology.a.gateway));
    assert_eq!(a.status()["Guarded"], json!([]));
}

/// The keys of both sides change, the private and the preshared one, and the sites find each other again.
#[test]
fn other_keys_are_taken_up() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, b) = scene(Kind::SOCKET);
    let shared = genpsk();
    for (gateway, peer) in [(&a, &b), (&b, &a)] {
        let file = gateway.secret_file("shared.psk", &shared);
        let said = gateway.reload(|profile| peers(profile)[0]["PresharedKeyFile"] = json!(file));
        assert!(said.contains("PresharedKeyFile"), "{said}");
        assert_eq!(gateway.show("preshared-keys", &peer.public_key()), shared);
    }
    // The next handshake needs it on both sides, and a new private key starts one.
    let private = genkey();
    let (peer, before) = (b.public_key(), a.latest_handshake(&b.public_key()));
    write_secret(&a.profile_path().with_extension("key"), &private);
    let said = a.reload(|_| {});
    assert!(said.contains("PrivateKeyFile"), "{said}");
    assert_eq!(wg(&["show", a.name(), "public-key"]).trim(), pubkey(&private));
    assert_eq!(ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).received, 0, "B does not know this key");
    b.reload(|profile| peers(profile)[0]["PublicKey"] = json!(pubkey(&private)));
    await_traffic(&topology);
    assert!(a.latest_handshake(&peer) >= before);
    assert_eq!(a.status()["Health"], "healthy");
}

/// An invalid profile changes nothing, is reported with line and column, and is a problem until there is a valid one.
#[test]
fn an_unsound_profile_changes_nothing() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, b) = scene(Kind::SOCKET);
    let beat = heartbeat(&topology);
    let sound = std::fs::read_to_string(a.profile_path()).expect("a profile");
    let show = || (wg(&["showconf", a.name()]), all_routes(&topology.a.gateway));
    let (before, handshake) = (show(), a.latest_handshake(&b.public_key()));
    for (text, place) in [
        (sound.replace("\"LocalPort\": 47100", "\"LocalPort\": \"many\""), ":12:16: field LocalPort"),
        (sound[..sound.len() / 2].to_owned(), "this is not JSON"),
        (String::new(), ": the file is empty"),
        (sound.replace("\"10.102.0.0/24\"", "\"10.101.0.0/24\""), "lies in this gateway's own"),
        (sound.replace(".key\"", ".none\""), "PrivateKeyFile"),
    ] {
        std::fs::write(a.profile_path(), text).expect("written");
        let refused = a.command(&["reload"]);
        let says = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && says.contains(place), "{place}: {says}");
        // The gateway is still found, though its name may be lost with the profile.
        let problems = a.status()["Problems"].to_string();
        assert!(
            problems.contains(place) && problems.contains("the previous one stays in force"),
            "{place}: {problems}"
        );
        assert!(a.command(&["status", "--check"]).status.success(), "{place}");
        assert_eq!(show(), before, "{place}");
    }
    std::fs::write(a.profile_path(), sound.replace("47100", "99999")).expect("written");
    let refused = a.command(&["reload"]);
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && says.contains("field LocalPort"), "{says}");
    std::fs::write(a.profile_path(), &sound).expect("written");
    a.reload(|_| {});
    assert_eq!(a.status()["Health"], "healthy");
    assert_eq!((beat.stop().lost(), a.latest_handshake(&b.public_key())), (0, handshake));
}

/// Changes that replace sockets or workers: at most 200 ms without an answer, the session is the same, and the status
/// shows what is in force.
#[test]
fn ports_modes_and_workers_change_within_200_ms() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, b) = scene(Kind::SOCKET);
    let handshake = a.latest_handshake(&b.public_key());
    let changes: [(&str, Value); 12] = [
        ("/LocalPort", json!(47_111)),
        ("/Workers", json!(2)),
        ("/LocalPort", json!(47_112)),
        ("/Workers", json!(1)),
        ("/Lan/Mode", json!("xdp")),
        ("/Wan/Mode", json!("xdp")),
        ("/LocalPort", json!(47_113)),
        ("/Workers", json!(2)),
        ("/Lan/Mode", json!("tun")),
        ("/Wan/Mode", json!("udp")),
        ("/BusyPoll", json!(true)),
        ("/UdpSegmentation", json!(false)),
    ];
    for (field, value) in changes {
        let beat = heartbeat(&topology);
        let name = field[1..].replace('/', ".");
        let said = a.reload(|profile| put(profile, field, value.clone()));
        assert!(said.contains(&name), "{said}");
        pause(700);
        let gap = beat.stop().longest_gap();
        println!("{name} = {value}: {:.0} ms", gap * 1000.0);
        assert!(gap <= OUTAGE, "{name} = {value}: {gap} s without an answer\n{}", a.process.log());
        let status = a.status();
        let in_force = match field {
            "/LocalPort" => status["LocalPort"] == value,
            "/Workers" => status["Workers"] == value,
            "/Lan/Mode" => status["LanMode"]["Mode"] == value,
            "/Wan/Mode" => status["WanMode"]["Mode"] == value,
            _ => true,
        };
        assert!(in_force && status["Health"] == "healthy", "{name} = {value}: {status:#}");
    }
    assert_eq!(a.latest_handshake(&b.public_key()), handshake, "another session");
    assert_eq!(wg(&["show", a.name(), "listen-port"]).trim(), "47113");
}

fn put(profile: &mut Value, field: &str, value: Value) {
    let (object, key) = field.rsplit_once('/').expect("a pointer");
    profile.pointer_mut(object).expect("an object")[key] = value;
}

/// Changes that need no new sockets or workers cost no packet, and are in force at once.
#[test]
fn other_fields_cost_no_packet() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let (topology, a, b) = scene(Kind::SOCKET);
    let beat = heartbeat(&topology);
    let handshake = a.latest_handshake(&b.public_key());
    let gateway = &topology.a.gateway;
    let reload = |field: &str, value: Value| {
        let said = a.reload(|profile| put(profile, field, value));
        assert!(said.contains(&field[1..].replace('/', ".")), "{said}");
    };

    reload("/Mtu", json!(1380));
    assert_eq!(a.status()["TunnelMtu"], 1380);
    assert!(gateway.ip_show(&format!("link show dev {}", a.name())).contains("mtu 1380"));

    reload("/VirtualAddress", json!("100.64.9.9"));
    let addresses = gateway.ip_show(&format!("-br addr show dev {}", a.name()));
    assert!(addresses.contains("100.64.9.9") && !addresses.contains(&a.config.virtual_address), "{addresses}");

    reload("/Table", json!(4242));
    let routes = all_routes(gateway);
    assert!(routes.contains("table 4242") && !routes.contains("table 47100"), "{routes}");
    let rules = gateway.ip_show("rule");
    assert!(rules.contains("4242") && !rules.contains("lookup 47100"), "{rules}");

    reload("/FwMark", json!(77));
    let rules = gateway.ip_show("rule");
    assert!(rules.contains("fwmark 0x4d") && !rules.contains("fwmark 0xb7fc"), "{rules}");
    assert_eq!(wg(&["show", a.name(), "fwmark"]).trim(), "0x4d");

    let filter = || gateway.run(&["nft", "list", "table", "inet", &format!("penstock-{}", a.name())]);
    let before = filter();
    reload("/Transit", json!(true));
    assert_ne!(filter(), before, "Transit is not in the packet filter");

    gateway.ip("link add lan9 type veth peer name eth9\naddr add 10.109.0.1/24 dev lan9\nlink set lan9 up\n");
    reload("/Lan/Interfaces", json!(["lan0", "lan9"]));
    assert!(filter().contains("lan9"));
    reload("/Lan/Subnets", json!(["10.101.0.0/24", "10.109.0.0/24", "fd00:101::/64"]));
    reload("/Lan/Interfaces", json!(["lan0"]));
    assert!(!filter().contains("lan9"));
    // On a virtual device this is the same mode as before.
    reload("/Lan/Mode", json!("auto"));
    reload("/Wan/Mode", json!("auto"));
    reload("/Accept", json!(["10.0.0.0/8"]));
    reload("/BirthdayProbing", json!(false));
    reload("/PortMapping", json!(false));

    let beats = beat.stop();
    assert_eq!(beats.lost(), 0, "longest gap {} s", beats.longest_gap());
    assert_eq!(a.latest_handshake(&b.public_key()), handshake);
    assert_eq!(a.status()["Health"], "healthy", "{:#}", a.status()["Problems"]);
}

/// What cannot be applied is named in the answer and in the status; the rest of the profile is in force.
#[test]
fn what_cannot_be_applied_is_named() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, _b) = scene(Kind::SOCKET);
    let taken = topology.a.gateway.enter(|| UdpSocket::bind(("0.0.0.0", 47_200)).expect("a free port"));
    let refused = |gateway: &Gateway| {
        let output = gateway.command(&["reload"]);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    a.edit_profile(|profile| {
        put(profile, "/LocalPort", json!(47_200));
        put(profile, "/Mtu", json!(1300));
    });
    for _ in 0..2 {
        let says = refused(&a);
        assert!(says.contains("UDP port 47200 is in use"), "{says}");
    }
    let status = a.status();
    assert_eq!((&status["TunnelMtu"], &status["LocalPort"]), (&json!(1300), &json!(PORT)));
    assert_eq!(status["Problems"][0]["Subject"], "LocalPort");
    await_traffic(&topology);
    drop(taken);
    eventually(LIMIT, "the port is taken once it is free", || a.status()["LocalPort"] == 47_200);
    eventually(LIMIT, "and all is well", || a.status()["Health"] == "healthy");
    await_traffic(&topology);

    // Under another name the gateway is still found.
    let sound = std::fs::read_to_string(a.profile_path()).expect("a profile");
    a.edit_profile(|profile| put(profile, "/Name", json!("other")));
    let says = refused(&a);
    assert!(says.contains("Name"), "{says}");
    assert!(a.status()["Problems"][0]["Sentence"].to_string().contains("keeps its name"), "{}", a.status());
    let renamed = a.command(&["set-config", "Name=third"]);
    let says = String::from_utf8_lossy(&renamed.stderr).into_owned();
    assert!(!renamed.status.success() && says.contains("keeps its name until it is stopped"), "{says}");
    std::fs::write(a.profile_path(), sound).expect("written");
    a.reload(|_| {});
    assert_eq!(a.status()["Health"], "healthy");
}

/// `set-config` changes a running gateway too.
#[test]
fn set_config_reloads_a_running_gateway() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, b) = scene(Kind::SOCKET);
    let handshake = a.latest_handshake(&b.public_key());
    let set = a.command(&["set-config", "Mtu=1333", "Peers.peer-0.PersistentKeepalive=7"]);
    let said = String::from_utf8_lossy(&set.stdout).into_owned();
    assert!(set.status.success() && said.contains("Mtu, Peers.peer-0.PersistentKeepalive"), "{said}");
    assert_eq!(
        (a.show("persistent-keepalive", &b.public_key()), a.status()["TunnelMtu"].clone()),
        ("7".into(), json!(1333))
    );
    let bad = a.command(&["set-config", "Mtu=12"]);
    assert!(!bad.status.success());
    assert_eq!(a.status()["TunnelMtu"], 1333);
    await_traffic(&topology);
    assert_eq!(a.latest_handshake(&b.public_key()), handshake);
}

/// What `wg set` has changed is in the profile after `penstock save`, and in force after a restart; what was not saved
/// is undone by a reload.
#[test]
fn save_keeps_what_wg_set_changed() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, mut a, b) = scene(Kind::SOCKET);
    let beat = heartbeat(&topology);
    let (peer, stranger, key) = (b.public_key(), pubkey(&genkey()), genpsk());
    let handshake = a.latest_handshake(&peer);
    let file = a.secret_file("given.psk", &key);
    assert!(String::from_utf8_lossy(&a.command(&["save"]).stdout).contains("already says everything that is in force"));
    a.set(&["peer", &peer, "persistent-keepalive", "3"]);
    a.set(&["peer", &stranger, "allowed-ips", "10.77.0.0/16", "endpoint", "192.0.2.9:9", "preshared-key", &file]);
    a.set(&["fwmark", "99"]);
    let saved = a.command(&["save"]);
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let text = std::fs::read_to_string(a.profile_path()).expect("a profile");
    assert!(text.contains(&stranger) && !text.contains(&key), "{text}");
    let beats = beat.stop();
    assert_eq!((beats.lost(), a.latest_handshake(&peer)), (0, handshake));

    a.set(&["peer", &stranger, "remove"]);
    a.set(&["peer", &peer, "persistent-keepalive", "21"]);
    a.set(&["fwmark", "5"]);
    let said = a.reload(|_| {});
    let undone = ["FwMark", "Peers.peer-0.PersistentKeepalive", &format!("peer {stranger} added")];
    assert!(undone.iter().all(|undone| said.contains(undone)), "{said}");
    for restarted in [false, true] {
        if restarted {
            a.terminate();
            a.restart();
        }
        assert_eq!(a.show("allowed-ips", &stranger), "10.77.0.0/16");
        assert_eq!(a.show("preshared-keys", &stranger), key);
        assert_eq!(a.show("endpoints", &stranger), "192.0.2.9:9");
        assert_eq!(a.show("persistent-keepalive", &peer), "3");
        assert_eq!(wg(&["show", a.name(), "fwmark"]).trim(), "0x63");
    }
    a.set(&["peer", &stranger, "remove"]);
    assert!(a.command(&["save"]).status.success());
    assert!(!std::fs::read_to_string(a.profile_path()).expect("a profile").contains(&stranger));
}

/// `wg setconf` and `syncconf` with a file that names no port, `wg set listen-port` and `fwmark`.
#[test]
fn wg_changes_mark_and_port_within_200_ms() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let (topology, a, b) = scene(Kind::SOCKET);
    let conf: String = wg(&["showconf", a.name()])
        .lines()
        .filter(|line| !line.starts_with("ListenPort") && !line.starts_with("FwMark"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let file = a.secret_file("no-port.conf", &conf);
    for command in ["syncconf", "setconf"] {
        wg(&[command, a.name(), &file]);
        assert_eq!(wg(&["show", a.name(), "listen-port"]).trim(), PORT.to_string());
        await_traffic(&topology);
    }
    let taken = topology.a.gateway.enter(|| UdpSocket::bind(("0.0.0.0", 47_200)).expect("a free port"));
    let refused = wg_try(&["set", a.name(), "listen-port", "47200"]).expect_err("the port is taken");
    assert!(refused.contains("Address already in use"), "{refused}");
    assert_eq!(a.status()["Health"], "healthy");
    drop(taken);

    let handshake = a.latest_handshake(&b.public_key());
    let beat = heartbeat(&topology);
    a.set(&["fwmark", "0x4d"]);
    assert_eq!(wg(&["show", a.name(), "fwmark"]).trim(), "0x4d");
    assert_eq!(beat.stop().lost(), 0);
    let beat = heartbeat(&topology);
    a.set(&["listen-port", "47200"]);
    pause(700);
    let gap = beat.stop().longest_gap();
    assert!(gap <= OUTAGE, "{gap} s without an answer");
    assert_eq!(wg(&["show", a.name(), "listen-port"]).trim(), "47200");
    assert_eq!(b.endpoint(&a.public_key()).map(|endpoint| endpoint.port()), Some(47_200));
    assert_eq!(a.latest_handshake(&b.public_key()), handshake);
}
