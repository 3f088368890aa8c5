use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::{check, quoted};
use crate::bypass::Ruleset;
use crate::doctor::Severity::{self, Error, Warning};
use crate::doctor::facts::{Facts, Host, Interrupt, KeyFile, Link, PortOwner, ProfileFile, Running, Spread, User};
use crate::ground::RULE_PRIORITY;
use crate::netlink::{Channels, ForeignRule, Interface, Offloads, Route, RouteKind, XdpAttachment};
use crate::profile::{Environment, LanMode, Profile, WanMode};
use crate::status::PathMtu;

const PATH: &str = "/etc/penstock/profiles/a.profile";

fn key(byte: u8) -> String {
    BASE64_STANDARD.encode([byte; 32])
}

fn profile() -> Profile {
    let text = format!(
        r#"{{"Name":"pen0","LocalPort":47100,"PrivateKeyFile":"a.key","Wan":{{"Interface":"eth0"}},
            "Lan":{{"Interfaces":["eth1"],"Subnets":["10.1.0.0/24"]}},
            "Peers":[{{"Name":"b","PublicKey":"{}","AllowedIPs":["10.2.0.0/24"]}}]}}"#,
        key(9)
    );
    let mut read_key = |_: &std::path::Path| Ok(Zeroizing::new(key(1)));
    let environment = Environment::default();
    Profile::parse(text.as_bytes(), PATH.as_ref(), &environment, &mut read_key).unwrap()
}

fn link(name: &str) -> Link {
    let interface = Interface {
        index: 2,
        name: name.to_owned(),
        mac: Some([2; 6]),
        mtu: 1500,
        up: true,
        kind: None,
        port_of: None,
        queues: 4,
    };
    Link {
        interface,
        xdp: None,
        offloads: Some(Offloads::default()),
        channels: Some(Channels { combined: 4, combined_most: 4, ..Channels::default() }),
        xdp_features: Some(7),
        rp_filter: Some(2),
        forwarding: Some(true),
        spread: Spread::default(),
        interrupts: BTreeMap::new(),
        node: None,
    }
}

/// A machine on which all is well.
fn sound() -> Facts {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Facts {
        user: User { id: 0, capabilities: Some(0x1ff_ffff_ffff), locked_memory: Some(8 << 20) },
        host: Host {
            release: "6.18.44".to_owned(),
            xdp_sockets: Some(true),
            bpf: Some(true),
            tun: Some(true),
            connections: Some((79, 100)),
            synchronised: Some(true),
            now: Some(now),
            built: Some(now),
            networkd_leaves_alone: Some(true),
            has_time_service: Some(true),
            cores: 4,
            nodes: BTreeMap::from([(0, BTreeSet::from([0, 1])), (1, BTreeSet::from([2, 3, 8]))]),
        },
        file: ProfileFile { path: PATH.into(), error: None, status: Some((0o644, 0)) },
        profile: Some(profile()),
        gateway: Running::No,
        links: BTreeMap::from(["eth0", "eth1", "pen0"].map(|name| (name.to_owned(), link(name)))),
        default_route: Some("eth0".to_owned()),
        keys: vec![KeyFile { path: PathBuf::from("/etc/a.key"), status: Some((0o600, 0)), credential: false }],
        ..Facts::default()
    }
}

fn of(facts: &mut Facts) -> &mut Profile {
    facts.profile.as_mut().unwrap()
}

fn wan(facts: &mut Facts) -> &mut Link {
    facts.links.get_mut("eth0").unwrap()
}

fn demand_xdp(facts: &mut Facts) {
    of(facts).wan.mode = WanMode::Xdp;
}

fn rule(facts: &mut Facts, rule: ForeignRule) {
    let route = Route {
        destination: "10.0.0.0/8".parse().unwrap(),
        table: 200,
        metric: 0,
        protocol: 4,
        kind: RouteKind::Unicast,
        interface: Some(2),
        gateway: None,
        source: None,
        mtu: None,
        kernel_only: false,
        by_class: false,
    };
    facts.rules = vec![ForeignRule { priority: 100, table: Some(200), ..rule }];
    facts.routes = vec![route];
}

fn lose_private_key(facts: &mut Facts) {
    facts.keys[0] = KeyFile { path: of(facts).private_key_file.clone(), status: None, credential: false };
}

/// One finding, although it is both closed and somebody else's.
fn close_to_root(facts: &mut Facts) {
    facts.file.status = Some((0o600, 7));
    facts.closed.insert(PATH.into(), 7);
}

/// A fault, and what is said about it.
type Case = (fn(&mut Facts), Severity, &'static str, &'static str);

#[test]
fn each_fault_is_one_finding_with_its_command() {
    assert_eq!(check(&sound()), []);
    let cases: &[Case] = &[
        (
            |f| f.file.error = Some("line 3: no".into()),
            Error,
            PATH,
            "\"${EDITOR:-vi}\" /etc/penstock/profiles/a.profile",
        ),
        (
            |f| (f.file.error, f.file.status) = (Some("No such file".into()), None),
            Error,
            PATH,
            "install -m 600 /usr/share/doc/penstock/examples/Universe.profile /etc/penstock/profiles/a.profile && \
             \"${EDITOR:-vi}\" /etc/penstock/profiles/a.profile",
        ),
        (|f| f.file.status = Some((0o664, 0)), Error, PATH, "chmod go-w /etc/penstock/profiles/a.profile"),
        (close_to_root, Error, PATH, "chown root: /etc/penstock/profiles/a.profile"),
        (|f| f.closed.extend([("/etc/b".into(), 7)]), Error, "/etc/b", "chown root: /etc/b"),
        (|f| f.closed.extend([("/etc/b".into(), 0)]), Error, "/etc/b", "chmod u+rX /etc/b"),
        (|f| f.keys[0].status = Some((0o640, 0)), Error, "/etc/a.key", "chmod 600 /etc/a.key"),
        (|f| f.keys[0].status = Some((0o600, 7)), Error, "/etc/a.key", "chown root: /etc/a.key"),
        (|f| f.keys[0].status = None, Error, "/etc/a.key", "install -m 600 /dev/stdin /etc/a.key"),
        (
            lose_private_key,
            Error,
            "/etc/penstock/profiles/a.key",
            "penstock genkey | install -m 600 /dev/stdin /etc/penstock/profiles/a.key",
        ),
        (|f| f.host.release = "4.19.0-1".into(), Error, "kernel", "apt-get update && apt-get full-upgrade && reboot"),
        (|f| f.host.tun = Some(false), Error, "kernel", "modprobe tun"),
        (
            |f| f.host.connections = Some((80, 100)),
            Warning,
            "conntrack",
            "sysctl -w net.netfilter.nf_conntrack_max=200",
        ),
        (|f| f.host.synchronised = Some(false), Warning, "clock", "timedatectl set-ntp true"),
        (
            |f| (f.host.synchronised, f.host.has_time_service) = (Some(false), Some(false)),
            Warning,
            "clock",
            "apt-get install systemd-timesyncd",
        ),
        (|f| f.host.now = Some(SystemTime::UNIX_EPOCH), Error, "clock", "timedatectl set-ntp true"),
        (|f| f.links.remove("eth1").map(drop).unwrap(), Error, "eth1", "ip -brief link show"),
        (|f| wan(f).interface.up = false, Error, "eth0", "ip link set dev eth0 up"),
        (|f| wan(f).interface.mtu = 1339, Warning, "eth0", "ip link set dev eth0 mtu 1500"),
        (|f| wan(f).channels.as_mut().unwrap().combined = 1, Warning, "eth0", "ethtool -L eth0 combined 4"),
        (|f| wan(f).spread.queues = BTreeSet::from([0, 2]), Warning, "eth0", "ethtool -X eth0 equal 4"),
        (
            |f| f.links.get_mut("eth1").unwrap().spread.udp_by_address = true,
            Warning,
            "eth1",
            "ethtool -N eth1 rx-flow-hash udp4 sdfn",
        ),
        (
            |f| wan(f).xdp = Some(XdpAttachment { program: 7, generic: true }),
            Warning,
            "eth0",
            "ip link set dev eth0 xdpgeneric off",
        ),
        (
            |f| f.links.get_mut("pen0").unwrap().rp_filter = Some(1),
            Warning,
            "pen0",
            "sysctl -w net/ipv4/conf/pen0/rp_filter=2",
        ),
        (|f| rule(f, ForeignRule::default()), Error, "rule 100", "ip rule del priority 100 table 200"),
        (
            |f| f.port_owner = Some(PortOwner { address: [0; 4].into(), process: Some((12, "wg".into())) }),
            Error,
            "UDP port 47100",
            "kill 12",
        ),
        (
            |f| f.user.capabilities = Some(!(1 << 12)),
            Error,
            "capabilities",
            "systemd-run \"$(command -v penstock)\" run --profile /etc/penstock/profiles/a.profile",
        ),
    ];
    for (break_it, severity, subject, command) in cases {
        let mut facts = sound();
        break_it(&mut facts);
        let findings = check(&facts);
        let found: Vec<_> = findings.iter().map(|f| (f.severity, f.subject.as_str(), f.command.as_str())).collect();
        assert_eq!(found, [(*severity, *subject, *command)], "{findings:?}");
    }
    let mut facts = sound();
    facts.host.networkd_leaves_alone = Some(false);
    assert!(check(&facts)[0].command.contains("ManageForeignRoutingPolicyRules=no"));
}

/// Its unit may have the key as a credential.
#[test]
fn only_the_service_is_kept_from_what_is_closed_to_root() {
    let mut facts = sound();
    facts.closed.insert("/home/a".into(), 1000);
    assert_eq!(check(&facts).len(), 1);
    facts.file.path = "/home/a/a.profile".into();
    assert_eq!(check(&facts), []);
}

#[test]
fn a_running_gateway_has_its_private_key_from_somewhere() {
    let mut facts = sound();
    lose_private_key(&mut facts);
    facts.gateway = Running::Yes(Box::new(crate::status::sample()));
    let findings = check(&facts);
    assert!(findings.iter().all(|finding| !finding.subject.ends_with(".key")), "{findings:?}");
}

#[test]
fn offloads_are_found_where_they_hurt_and_can_be_switched() {
    for (offload, name, sockets) in [("rx-lro", "lro", true), ("rx-gro-hw", "rx-gro-hw", false)] {
        let mut facts = sound();
        let only = BTreeSet::from([offload.to_owned()]);
        wan(&mut facts).offloads = Some(Offloads { active: only.clone(), switchable: only });
        assert_eq!(check(&facts)[0].command, format!("ethtool -K eth0 {name} off"));
        of(&mut facts).wan.mode = WanMode::Udp;
        assert_eq!(!check(&facts).is_empty(), sockets, "{offload} with sockets");
        of(&mut facts).wan.mode = WanMode::Auto;
        wan(&mut facts).offloads.as_mut().unwrap().switchable.clear();
        assert_eq!(check(&facts), [], "{offload} is fixed");
    }
}

#[test]
fn packets_merged_below_a_bridge_are_found_where_generic_xdp_meets_them() {
    let merging = |merged: u64, generic: bool, kind: &str| {
        let mut facts = sound();
        let lan = facts.links.get_mut("eth1").unwrap();
        lan.interface.kind = Some(kind.to_owned());
        lan.xdp = Some(XdpAttachment { program: 7, generic });
        let mut status = crate::status::sample();
        status.ports[0].interface = "eth1".to_owned();
        status.ports[0].kind = "xdp".to_owned();
        status.steering.lan.insert("merged".to_owned(), merged);
        facts.gateway = Running::Yes(Box::new(status));
        check(&facts).into_iter().find(|finding| finding.sentence.contains("merge received packets"))
    };
    let found = merging(5000, true, "bridge").expect("found");
    assert!(found.sentence.contains("5000 went to the kernel"), "{found:?}");
    assert_eq!(found.command, "for port in /sys/class/net/eth1/brif/*; do ethtool -K \"${port##*/}\" gro off; done");
    for (merged, generic, kind) in [(5, true, "bridge"), (5000, false, "bridge"), (5000, true, "veth")] {
        assert_eq!(merging(merged, generic, kind), None);
    }
}

#[test]
fn kernels_are_known_by_their_versions() {
    use crate::needs::version;
    assert_eq!(version("6.18.44-fc-v595"), Some([6, 18, 44]));
    assert_eq!(version("7.1-rc3"), Some([7, 1, 0]));
    assert_eq!(version("strange"), None);
    let spoilt = |release: &str| {
        let mut facts = sound();
        facts.host.release = release.to_owned();
        let found = check(&facts);
        assert!(found.iter().all(|finding| finding.command.starts_with("penstock set-config UdpSegmentation=false ")));
        !found.is_empty()
    };
    let all = ["6.19.12", "7.0.0-14-generic", "7.1.4", "7.1.5", "7.2.0"];
    assert_eq!(all.map(spoilt), [false, true, true, false, false]);
    let mut facts = sound();
    facts.host.release = "7.0.3".to_owned();
    of(&mut facts).udp_gso = false;
    assert_eq!(check(&facts), []);
}

#[test]
fn kernels_that_panic_are_known_where_af_xdp_is_used() {
    let command = |release: &str, change: fn(&mut Facts)| {
        let mut facts = sound();
        facts.host.release = release.to_owned();
        change(&mut facts);
        check(&facts).first().map(|finding| finding.command.replace(&format!(" --profile {PATH}"), ""))
    };
    let both = Some("penstock set-config Wan.Mode=udp Lan.Mode=tun".to_owned());
    let releases = ["6.16.7", "6.16.8", "6.16.12+deb14-amd64", "6.17.0-14-generic", "6.17.10", "6.17.11", "6.18.0"];
    let expected = [false, true, true, true, true, false, false].map(|bad| both.clone().filter(|_| bad));
    assert_eq!(releases.map(|release| command(release, |_| {})), expected);
    let sockets = |f: &mut Facts| (of(f).wan.mode, of(f).lan.mode) = (WanMode::Udp, LanMode::Tun);
    assert_eq!(command("6.17.3", sockets), None);
    let virtual_wan = |f: &mut Facts| wan(f).interface.kind = Some("veth".to_owned());
    assert_eq!(command("6.17.3", virtual_wan).as_deref(), Some("penstock set-config Lan.Mode=tun"));
}

/// A gateway whose AF_XDP queue 1 of eth0 is served by worker 1, with two workers on CPUs 0 and 1.
fn running_on_a_card() -> Facts {
    let mut facts = sound();
    facts.gateway = Running::Yes(Box::new(crate::status::sample()));
    facts.worker_cpus = BTreeMap::from([(0, 0), (1, 1)]);
    interrupt(&mut facts, &[1]);
    facts
}

fn interrupt(facts: &mut Facts, cpus: &[u32]) {
    wan(facts).interrupts = BTreeMap::from([(1, Interrupt { number: 38, cpus: cpus.iter().copied().collect() })]);
}

#[test]
fn an_interrupt_belongs_to_its_worker_or_to_nobody() {
    let command = |cpus: &[u32]| {
        let mut facts = running_on_a_card();
        interrupt(&mut facts, cpus);
        check(&facts).first().map(|finding| finding.command.clone())
    };
    assert_eq!(command(&[0]).as_deref(), Some("echo 1 > /proc/irq/38/smp_affinity_list"));
    assert_eq!([command(&[1]), command(&[0, 1]), command(&[2])], [None, None, None]);
    let mut facts = running_on_a_card();
    interrupt(&mut facts, &[0]);
    facts.worker_cpus.remove(&1);
    assert_eq!(check(&facts), [], "a worker that is not pinned goes where there is time");
}

#[test]
fn workers_belong_to_the_node_of_the_card() {
    let mut facts = running_on_a_card();
    wan(&mut facts).node = Some(0);
    assert_eq!(check(&facts), []);
    wan(&mut facts).node = Some(1);
    let unit = "penstock@a.service";
    let command = format!("systemctl set-property {unit} AllowedCPUs=2-3,8 && systemctl restart {unit}");
    assert_eq!(check(&facts).first().map(|finding| finding.command.clone()), Some(command));
    facts.file.path = "/tmp/a.profile".into();
    let command = "penstock stop --profile /tmp/a.profile && \
                   taskset --cpu-list 2-3,8 penstock start --profile /tmp/a.profile";
    assert_eq!(check(&facts)[0].command, command);
    facts.host.nodes.clear();
    assert_eq!(check(&facts), [], "a machine that does not tell");
}

#[test]
fn queues_suffice_for_the_workers_that_the_profile_asks_for() {
    let command = |workers: u16, queues: u32| {
        let mut facts = sound();
        of(&mut facts).workers = workers;
        wan(&mut facts).channels.as_mut().unwrap().combined = queues;
        wan(&mut facts).spread.queues = (0..queues).collect();
        check(&facts).first().map(|finding| finding.command.clone())
    };
    let more = |queues: u32| Some(format!("ethtool -L eth0 combined {queues}"));
    assert_eq!([command(0, 1), command(0, 2), command(1, 1)], [more(4), None, None]);
    assert_eq!([command(3, 2), command(3, 3), command(9, 3)], [more(3), None, more(4)]);
}

#[test]
fn the_wan_needs_ports_in_its_hash_where_peers_share_an_address() {
    let mut facts = sound();
    wan(&mut facts).spread.udp_by_address = true;
    let mut status = crate::status::sample();
    let mut other = status.peers[0].clone();
    other.endpoint = Some("192.0.2.2:47101".parse().unwrap());
    status.peers.push(other);
    facts.gateway = Running::Yes(Box::new(status));
    assert_eq!(check(&facts)[0].command, "ethtool -N eth0 rx-flow-hash udp4 sdfn");
    for endpoint in ["192.0.2.2:47100", "192.0.2.3:47101"] {
        let Running::Yes(status) = &mut facts.gateway else { panic!() };
        status.peers[1].endpoint = Some(endpoint.parse().unwrap());
        assert_eq!(check(&facts), [], "{endpoint}");
    }
}

#[test]
fn a_path_too_small_for_ipv6_inside_is_found() {
    let command = |outer: u16, reason: &str, ipv6: bool| {
        let mut facts = sound();
        let mut status = crate::status::sample();
        let reason = reason.to_owned();
        status.peers[0].mtu = Some(PathMtu { inner: 1280, outer, fragmented: outer < 1340, reason });
        if ipv6 {
            status.guarded.push("fd02::/48".parse().unwrap());
        }
        facts.gateway = Running::Yes(Box::new(status));
        check(&facts).first().map(|finding| finding.command.replace(&format!(" --profile {PATH}"), ""))
    };
    assert_eq!(command(1300, "probed", false).as_deref(), Some("penstock set-config Mtu=1232"));
    assert_eq!(command(1300, "told by a router", true).as_deref(), Some("tracepath -n 192.0.2.2"));
    let nothing_passes = "assumed: not even probes of this size pass";
    assert_eq!(command(1280, nothing_passes, false).as_deref(), Some("tracepath -n 192.0.2.2"));
    assert_eq!(command(1400, "probed", false), None);
    assert_eq!(command(1300, "of the link", false), None, "the link has its own finding");
}

#[test]
fn what_drops_calls_or_the_lan_is_found_and_let_through() {
    let found = |firewall: Ruleset| {
        let mut facts = sound();
        facts.wan_addresses = BTreeSet::from(["192.0.2.1/32".parse().unwrap()]);
        facts.firewall = firewall;
        let findings = check(&facts).into_iter();
        findings.map(|finding| (finding.severity, finding.subject, finding.command)).collect::<Vec<_>>()
    };
    let one = |severity, subject: &str, command: &str| vec![(severity, subject.to_owned(), command.to_owned())];
    let iptables = Ruleset::of_iptables;
    let port = one(Warning, "UDP port 47100", "iptables -I INPUT -i eth0 -p udp --dport 47100 -j ACCEPT");
    let established = "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT";
    assert_eq!(found(iptables(&format!("*filter\n:INPUT DROP [0:0]\n{established}\n"))), port);
    let out = "iptables -I FORWARD -i eth1 -o pen0 -j ACCEPT";
    let back = "iptables -I FORWARD -i pen0 -o eth1 -j ACCEPT";
    let docker = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i docker0 -j ACCEPT\n";
    assert_eq!(found(iptables(docker)), one(Error, "eth1", &format!("{out} && {back}")));
    let one_way = "-A FORWARD -i eth1 -j ACCEPT\n";
    assert_eq!(found(iptables(&format!("{docker}{one_way}"))), one(Warning, "eth1", back));
    let mut facts = sound();
    of(&mut facts).lan.mode = LanMode::Xdp;
    facts.firewall = iptables(docker);
    let bypassed = check(&facts);
    assert_eq!((bypassed.len(), bypassed[0].subject.as_str()), (1, "eth1"), "AF_XDP does not ask it: {bypassed:?}");
    assert!(bypassed[0].sentence.contains("bypasses the firewall's policy of chain FORWARD"), "{bypassed:?}");
    assert_eq!(bypassed[0].command, format!("penstock set-config Lan.Mode=auto --profile {PATH}"));
    of(&mut facts).wan.mode = WanMode::Xdp;
    facts.wan_addresses = BTreeSet::from(["192.0.2.1/32".parse().unwrap()]);
    facts.firewall = iptables("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 47100 -j LOG\n");
    let bypassed = check(&facts);
    assert_eq!((bypassed.len(), bypassed[0].subject.as_str()), (1, "eth0"), "{bypassed:?}");
    assert_eq!(bypassed[0].command, format!("penstock set-config Wan.Mode=auto --profile {PATH}"));

    let rules = [
        r#"{"chain": {"family": "inet", "table": "TABLE", "name": "in", "hook": "input", "policy": "accept"}}"#,
        r#"{"rule": {"family": "inet", "table": "TABLE", "chain": "in", "handle": 1, "expr": [{"reject": null}]}}"#,
    ];
    let nft = |table: &str| Ruleset::of_nft(&rules.map(|rule| rule.replace("TABLE", table)));
    let accept = "nft insert rule inet fw in iifname eth0 udp dport 47100 accept";
    assert_eq!(found(nft("fw")), one(Warning, "UDP port 47100", accept));
    let firewalld = format!("penstock firewall --format firewalld --profile {PATH} | sh");
    assert_eq!(found(nft("firewalld")), one(Warning, "UDP port 47100", &firewalld));
}

#[test]
fn mode_xdp_needs_more_than_auto() {
    let needs: [fn(&mut Facts); 5] = [
        |f| f.host.release = "5.17.9".to_owned(),
        |f| f.host.xdp_sockets = Some(false),
        |f| f.user.capabilities = Some(!(1 << 13)),
        |f| f.user.capabilities = Some(!(1 << 14)),
        |f| wan(f).xdp_features = Some(0),
    ];
    for need in needs {
        let mut facts = sound();
        need(&mut facts);
        assert_eq!(check(&facts), [], "auto does without");
        demand_xdp(&mut facts);
        assert_eq!(check(&facts).len(), 1, "{:?}", check(&facts));
    }
    let mut facts = sound();
    facts.user.capabilities = Some(0);
    facts.user.id = 1000;
    assert_eq!(check(&facts), [], "another user's capabilities are not the gateway's");
    of(&mut facts).lan.mode = LanMode::Xdp;
    wan(&mut facts).xdp = Some(XdpAttachment { program: 7, generic: false });
    demand_xdp(&mut facts);
    assert_eq!(check(&facts)[0].severity, Error);
    facts.gateway = Running::Unknown;
    assert_eq!(check(&facts), [], "the program may be ours");
}

#[test]
fn only_rules_that_come_first_and_decide_are_found() {
    let found = |change: &dyn Fn(&mut Facts)| {
        let mut facts = sound();
        rule(&mut facts, ForeignRule::default());
        change(&mut facts);
        !check(&facts).is_empty()
    };
    assert!(found(&|_| {}));
    assert!(found(&|f| f.rules[0].input = Some("eth1".to_owned())));
    assert!(found(&|f| f.rules[0].mark = Some(1)));
    assert!(found(&|f| (f.rules[0].table, f.routes) = (None, vec![])), "it drops");
    assert!(found(&|f| f.rules[0].destination = Some("10.2.0.128/25".parse().unwrap())));
    assert!(!found(&|f| f.rules[0].destination = Some("10.3.0.0/24".parse().unwrap())));
    assert!(!found(&|f| f.rules[0].priority = RULE_PRIORITY));
    assert!(!found(&|f| f.rules[0].ipv6 = true));
    assert!(!found(&|f| f.rules[0].input = Some("eth0".to_owned())));
    assert!(!found(&|f| f.rules[0].mark = Some(of(f).mark)));
    assert!(!found(&|f| f.rules[0].suppressed = Some(8)));
    assert!(!found(&|f| f.routes[0].kind = RouteKind::Throw));
    assert!(!found(&|f| f.routes[0].destination = "10.3.0.0/24".parse().unwrap()));
}

#[test]
fn the_wan_may_filter_strictly_where_the_default_route_leaves_by_it() {
    let mut facts = sound();
    wan(&mut facts).rp_filter = Some(1);
    assert_eq!(check(&facts), []);
    facts.default_route = Some("eth1".to_owned());
    assert_eq!(check(&facts)[0].command, "sysctl -w net/ipv4/conf/eth0/rp_filter=2");
}

#[test]
fn words_are_quoted_for_the_shell() {
    assert_eq!(quoted("eth0.100"), "eth0.100");
    assert_eq!(quoted("a b"), "'a b'");
    assert_eq!(quoted("it's"), r"'it'\''s'");
    assert_eq!(quoted(""), "''");
}
