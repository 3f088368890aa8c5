use super::*;

impl Ruleset {
    /// The rules that iptables prints in this way.
    pub(crate) fn of_iptables(text: &str) -> Self {
        Self { chains: iptables::parse(text, "iptables", false), ..Self::default() }
    }

    /// The chains and rules that nft prints in this way.
    pub(crate) fn of_nft(objects: &[String]) -> Self {
        let text = format!(r#"{{"nftables": [{}]}}"#, objects.join(", "));
        let nft = nft::parse(text.as_bytes(), |_| Some(text.clone().into_bytes())).unwrap();
        Self { chains: nft.chains, looks_into_sets: nft.looks_into_sets, ..Self::default() }
    }
}

/// What concerns a LAN lan0 with 10.1.0.0/24 and fd01::/64, with the tunnel p0 to 10.2.0.0/16 and fd02::/48.
fn lan(chains: Vec<Chain>) -> Option<String> {
    let prefixes = |all: &[&str]| all.iter().map(|prefix| prefix.parse().unwrap()).collect();
    let (own, remote) = (prefixes(&["10.1.0.0/24", "fd01::/64"]), prefixes(&["10.2.0.0/16", "fd02::/48"]));
    let inside = Inside { lan: "lan0", tunnel: "p0", own: &own, remote: &remote };
    Ruleset { chains, ..Ruleset::default() }.concerns_lan(&inside)
}

/// What concerns UDP port 47100 at 192.0.2.1 on wan0.
fn wan(chains: Vec<Chain>) -> Option<String> {
    let addresses = ["192.0.2.1/32".parse().unwrap()].into();
    let outside = Outside { wan: "wan0".to_owned(), port: 47100, addresses };
    Ruleset { chains, ..Ruleset::default() }.concerns_wan(&outside)
}

/// A table of nftables, from its chains: name, hook, rules.
fn nft(chains: &[(&str, Option<&str>, &[&str])]) -> Vec<Chain> {
    let mut objects = Vec::new();
    for (name, base, rules) in chains {
        let base = base.map(|base| format!(", {base}")).unwrap_or_default();
        objects.push(format!(r#"{{"chain": {{"family": "inet", "table": "fw", "name": "{name}"{base}}}}}"#));
        for (handle, rule) in rules.iter().enumerate() {
            objects.push(format!(
                r#"{{"rule": {{"family": "inet", "table": "fw", "chain": "{name}", "handle": {handle}, "expr": [{rule}]}}}}"#
            ));
        }
    }
    Ruleset::of_nft(&objects).chains
}

const FORWARD: Option<&str> = Some(r#""hook": "forward", "policy": "accept""#);
const DROPPING: Option<&str> = Some(r#""hook": "forward", "policy": "drop""#);
const INPUT: Option<&str> = Some(r#""hook": "input", "policy": "drop""#);
const POSTROUTING: Option<&str> = Some(r#""hook": "postrouting", "policy": "accept""#);

fn meta(key: &str, op: &str, right: &str) -> String {
    format!(r#"{{"match": {{"op": "{op}", "left": {{"meta": {{"key": "{key}"}}}}, "right": {right}}}}}"#)
}

fn field(protocol: &str, field: &str, op: &str, right: &str) -> String {
    let left = format!(r#"{{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}"#);
    format!(r#"{{"match": {{"op": "{op}", "left": {left}, "right": {right}}}}}"#)
}

fn prefix(address: &str, len: u8) -> String {
    format!(r#"{{"prefix": {{"addr": "{address}", "len": {len}}}}}"#)
}

#[test]
fn a_rule_of_nftables_concerns_the_packets_that_it_may_match() {
    let drop = r#"{"drop": null}"#;
    for (concerned, conditions) in [
        (true, String::new()),
        (true, meta("iifname", "==", r#""lan0""#)),
        (true, meta("iifname", "==", r#""lan*""#)),
        (true, meta("oifname", "==", r#"{"set": ["docker0", "p0"]}"#)),
        (true, meta("iifname", "!=", r#""wan0""#)),
        (false, meta("iifname", "==", r#""docker0""#)),
        (false, meta("iifname", "!=", r#"{"set": ["lan0", "p0"]}"#)),
        (true, field("ip", "daddr", "==", &prefix("10.2.3.0", 24))),
        (true, field("ip", "saddr", "==", r#"{"range": ["10.1.0.5", "10.1.0.9"]}"#)),
        (false, field("ip", "saddr", "==", &prefix("172.17.0.0", 16))),
        (false, field("ip", "daddr", "!=", &prefix("10.0.0.0", 8))),
        (true, field("ip6", "daddr", "==", &prefix("fd02::", 16))),
        (false, field("ip6", "daddr", "==", &prefix("fd03::", 16))),
        (true, field("ip", "daddr", "==", r#""@blocked""#)),
        (true, field("tcp", "dport", "==", "22")),
        (true, r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}"#.to_owned()),
        (true, r#"{"new": "statement of tomorrow"}"#.to_owned()),
    ] {
        let rule = if conditions.is_empty() { drop.to_owned() } else { format!("{conditions}, {drop}") };
        let found = lan(nft(&[("forward", FORWARD, &[&rule])]));
        assert_eq!(found.is_some(), concerned, "{conditions}: {found:?}");
    }
    let both = format!("{}, {}, {drop}", meta("iifname", "==", r#""lan0""#), meta("oifname", "==", r#""wan0""#));
    assert_eq!(lan(nft(&[("forward", FORWARD, &[&both])])), None, "another way out");
}

#[test]
fn what_accepts_them_lets_them_pass_the_rest_and_the_policy() {
    let accept = |from: &str, to: &str| {
        let (from, to) = (format!("\"{from}\""), format!("\"{to}\""));
        format!(r#"{}, {}, {{"accept": null}}"#, meta("iifname", "==", &from), meta("oifname", "==", &to))
    };
    let (out, back) = (accept("lan0", "p0"), accept("p0", "lan0"));
    let found = lan(nft(&[("forward", DROPPING, &[&out])]));
    assert_eq!(found.as_deref(), Some("the firewall's policy of chain forward, table inet fw"), "what comes back");
    assert_eq!(lan(nft(&[("forward", DROPPING, &[&out, &back])])), None);
    assert_eq!(lan(nft(&[("forward", DROPPING, &[&out, &back, r#"{"drop": null}"#])])), None);
    let found =
        lan(nft(&[("forward", FORWARD, &[&out, r#"{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}"#])]));
    assert_eq!(found.as_deref(), Some("firewall rule handle 1 of chain forward, table inet fw"));
    // A rule that may accept does not keep the others from being examined.
    let some = format!("{}, {{\"accept\": null}}", field("tcp", "dport", "==", "443"));
    assert!(lan(nft(&[("forward", DROPPING, &[&some])])).is_some());
}

#[test]
fn what_is_only_counted_logged_or_marked_is_noticed_too() {
    for (concerned, rule) in [
        (true, r#"{"counter": {"packets": 0, "bytes": 0}}"#),
        (false, r#"{"counter": {"packets": 0, "bytes": 0}}, {"accept": null}"#),
        (true, r#"{"counter": "traffic"}, {"accept": null}"#),
        (true, r#"{"log": {"prefix": "x"}}"#),
        (true, r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}"#),
        (false, r#"{"flow": {"op": "add", "flowtable": "@ft"}}"#),
        (
            true,
            r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}], ["invalid", {"drop": null}]]}}}"#,
        ),
        (false, r#"{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["wan0", {"drop": null}]]}}}"#),
        (true, r#"{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@verdicts"}}"#),
    ] {
        assert_eq!(lan(nft(&[("forward", FORWARD, &[rule])])).is_some(), concerned, "{rule}");
    }
}

#[test]
fn chains_are_followed() {
    let jump = r#"{"jump": {"target": "sub"}}"#;
    let goto = r#"{"goto": {"target": "sub"}}"#;
    let (accept, drop, back) = (r#"{"accept": null}"#, r#"{"drop": null}"#, r#"{"return": null}"#);
    for (concerned, way, sub) in
        [(false, jump, accept), (true, jump, drop), (true, jump, back), (false, goto, accept), (false, goto, back)]
    {
        let rules = [way, drop];
        let found = lan(nft(&[("forward", FORWARD, &rules), ("sub", None, &[sub])]));
        assert_eq!(found.is_some(), concerned, "{way} {sub}: {found:?}");
    }
    // The kernel allows no cycles, but we do not depend on that.
    assert!(lan(nft(&[("forward", FORWARD, &[jump]), ("sub", None, &[jump])])).is_some());
}

#[test]
fn masquerading_to_the_wan_is_no_concern_of_the_tunnel() {
    let masquerade = r#"{"masquerade": null}"#;
    let rule = format!("{}, {masquerade}", meta("oifname", "==", r#""wan0""#));
    assert_eq!(lan(nft(&[("post", POSTROUTING, &[&rule])])), None);
    let rule = format!("{}, {masquerade}", field("ip", "saddr", "==", &prefix("10.1.0.0", 24)));
    assert!(lan(nft(&[("post", POSTROUTING, &[&rule])])).is_some());

    // Outer packets have the WAN's address already, but another port if the rule says so, and so may hosts' packets.
    for (concerned, rule) in [
        (false, meta("oifname", "==", r#""wan0""#) + ", " + masquerade),
        (false, masquerade.to_owned()),
        (true, r#"{"masquerade": {"flags": "fully-random"}}"#.to_owned()),
        (true, r#"{"snat": {"addr": "192.0.2.9"}}"#.to_owned()),
        (true, r#"{"counter": "traffic"}, "#.to_owned() + masquerade),
    ] {
        assert_eq!(wan(nft(&[("post", POSTROUTING, &[&rule])])).is_some(), concerned, "{rule}");
    }
    for (concerned, options) in [(false, ""), (true, " --random"), (true, " --to-ports 1024-2000")] {
        let text = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE{options}\nCOMMIT\n");
        let found = wan(Ruleset::of_iptables(&text).chains);
        assert_eq!(found.is_some(), concerned, "{options}: {found:?}");
    }
    let several = ["192.0.2.1/32", "192.0.2.5/32"].map(|address| address.parse().unwrap()).into();
    let outside = Outside { wan: "wan0".to_owned(), port: 47100, addresses: several };
    let rules = Ruleset { chains: nft(&[("post", POSTROUTING, &[masquerade])]), ..Ruleset::default() };
    assert!(rules.concerns_wan(&outside).is_some(), "it may choose the other address");
}

/// A client that calls the gateway, and is sent on to a host behind the tunnel or the LAN, expects the answer from the
/// gateway.
#[test]
fn forwarded_ports_concern_the_answers() {
    let prerouting = Some(r#""hook": "prerouting", "policy": "accept""#);
    let called = |address: &str| field("ip", "daddr", "==", &format!("\"{address}\""));
    let to = |address: &str, port: u16| format!(r#"{{"dnat": {{"addr": "{address}", "port": {port}}}}}"#);
    for (concerned, conditions, target) in [
        (true, called("100.64.0.1"), to("10.2.0.9", 80)),
        (true, called("100.64.0.1"), to("10.1.0.9", 80)),
        (true, called("100.64.0.1"), r#"{"dnat": {"addr": {"map": "somewhere"}}}"#.to_owned()),
        (true, called("100.64.0.1"), r#"{"dnat": {"addr": {"range": ["10.0.0.0", "10.2.0.0"]}}}"#.to_owned()),
        (false, called("100.64.0.1"), to("172.17.0.2", 80)),
        (false, format!("{}, {}", meta("iifname", "==", r#""wan0""#), called("192.0.2.1")), to("10.1.0.9", 80)),
        (false, called("100.64.0.1"), r#"{"drop": null}"#.to_owned()),
    ] {
        let rule = format!("{conditions}, {target}");
        assert_eq!(lan(nft(&[("pre", prerouting, &[&rule])])).is_some(), concerned, "{rule}");
    }
    for (concerned, rule) in [
        (true, format!("{}, {}", field("udp", "dport", "==", "53"), r#"{"redirect": {"port": 47100}}"#)),
        (true, format!("{}, {}", field("udp", "dport", "==", "53"), to("192.0.2.1", 47100))),
        (false, format!("{}, {}", field("udp", "dport", "==", "53"), to("10.1.0.9", 47100))),
        (false, format!("{}, {}", field("tcp", "dport", "==", "53"), r#"{"redirect": {"port": 47100}}"#)),
        (false, format!("{}, {}", field("udp", "dport", "==", "53"), r#"{"redirect": {"port": 5353}}"#)),
    ] {
        assert_eq!(wan(nft(&[("pre", prerouting, &[&rule])])).is_some(), concerned, "{rule}");
    }
    let iptables = |rule: &str| {
        iptables::parse(&format!("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n"), "iptables", false)
    };
    for (concerned, rule) in [
        (true, "-d 100.64.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.2.0.9:8080"),
        (true, "-d 100.64.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.2.0.9-10.2.0.12 --random"),
        (true, "-d 10.9.0.0/24 -j NETMAP --to 10.2.7.0/24"),
        (false, "-d 100.64.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080"),
        (false, "-d 100.64.0.1/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080"),
    ] {
        assert_eq!(lan(iptables(rule)).is_some(), concerned, "{rule}");
    }
    assert!(wan(iptables("-p udp -m udp --dport 53 -j REDIRECT --to-ports 47100")).is_some());
    assert!(wan(iptables("-p udp -m udp --dport 53 -j REDIRECT --to-ports 5353-5360")).is_none());
}

/// Handshakes pass through the kernel, so data belongs to an established connection.
#[test]
fn the_tunnel_s_own_packets_are_of_an_established_connection() {
    let established = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}"#;
    let invalid = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}"#;
    assert_eq!(wan(nft(&[("input", INPUT, &[invalid, established])])), None);
    let port = |port: u16| format!("{}, {{\"accept\": null}}", field("udp", "dport", "==", &port.to_string()));
    assert_eq!(wan(nft(&[("input", INPUT, &[&port(47100)])])), None);
    assert!(wan(nft(&[("input", INPUT, &[&port(51820)])])).is_some());
    let counted = format!("{}, {{\"counter\": \"vpn\"}}", field("udp", "dport", "==", "47100"));
    assert!(wan(nft(&[("input", INPUT, &[&counted, established])])).is_some());
}

#[test]
fn our_own_tables_and_bridges_are_left_out() {
    for (concerned, family, table) in
        [(true, "inet", "fw"), (false, "inet", "penstock-a"), (false, "bridge", "fw"), (true, "netdev", "fw")]
    {
        let hook = if family == "netdev" { "ingress" } else { "forward" };
        let text = format!(
            r#"{{"nftables": [{{"chain": {{"family": "{family}", "table": "{table}", "name": "c", "hook": "{hook}", "policy": "drop"}}}}]}}"#
        );
        let found = lan(nft::parse(text.as_bytes(), |_| None).unwrap().chains);
        assert_eq!(found.is_some(), concerned, "{family} {table}");
    }
}

/// What Docker leaves on a host with a published port: nothing of it concerns the site's packets.
#[test]
fn docker_s_rules_are_for_its_own_interfaces() {
    let text = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -m comment --comment \"a \\\"web\\\" server\" -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
";
    assert_eq!(lan(iptables::parse(text, "iptables", false)), None);
    assert_eq!(wan(iptables::parse(text, "iptables", false)), None);
    let dropping = text.replace(":FORWARD ACCEPT", ":FORWARD DROP");
    let found = lan(iptables::parse(&dropping, "iptables", false));
    assert_eq!(found.as_deref(), Some("the firewall's policy of chain FORWARD, table filter of iptables"));
    let user = text.replace("-A DOCKER-USER -j RETURN", "-A DOCKER-USER -s 10.2.3.4/32 -j DROP");
    let found = lan(iptables::parse(&user, "iptables", false));
    assert_eq!(found.as_deref(), Some("firewall rule -A DOCKER-USER -s 10.2.3.4/32 -j DROP, table filter of iptables"));
}

/// What Docker has in nftables with its own backend for them, for the bridges docker0 and br1 and a published port.
const DOCKER: &str = r#"
{"map": {"family": "ip", "name": "filter-forward-in-jumps", "table": "docker-bridges", "type": "ifname", "handle": 1, "map": "verdict", "elem": [["br1", {"jump": {"target": "filter-forward-in__br1"}}], ["docker0", {"jump": {"target": "filter-forward-in__docker0"}}]]}}
{"map": {"family": "ip", "name": "filter-forward-out-jumps", "table": "docker-bridges", "type": "ifname", "handle": 2, "map": "verdict", "elem": [["br1", {"jump": {"target": "filter-forward-out__br1"}}]]}}
{"map": {"family": "ip", "name": "nat-postrouting-in-jumps", "table": "docker-bridges", "type": "ifname", "handle": 3, "map": "verdict"}}
{"map": {"family": "ip", "name": "nat-postrouting-out-jumps", "table": "docker-bridges", "type": "ifname", "handle": 4, "map": "verdict", "elem": [["br1", {"jump": {"target": "nat-postrouting-out__br1"}}]]}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "filter-FORWARD", "handle": 5, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "nat-POSTROUTING", "handle": 6, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "nat-PREROUTING", "handle": 7, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "nat-prerouting-and-output", "handle": 8}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "raw-PREROUTING", "handle": 9, "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "filter-forward-in__docker0", "handle": 10}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "filter-forward-in__br1", "handle": 11}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "filter-forward-out__br1", "handle": 12}}
{"chain": {"family": "ip", "table": "docker-bridges", "name": "nat-postrouting-out__br1", "handle": 13}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "filter-FORWARD", "handle": 14, "expr": [{"vmap": {"key": {"meta": {"key": "oifname"}}, "data": "@filter-forward-in-jumps"}}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "filter-FORWARD", "handle": 15, "expr": [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@filter-forward-out-jumps"}}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "nat-POSTROUTING", "handle": 16, "expr": [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@nat-postrouting-out-jumps"}}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "nat-POSTROUTING", "handle": 17, "expr": [{"vmap": {"key": {"meta": {"key": "oifname"}}, "data": "@nat-postrouting-in-jumps"}}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "nat-PREROUTING", "handle": 18, "expr": [{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}, {"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": "nat-prerouting-and-output"}}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "nat-prerouting-and-output", "handle": 19, "comment": "DNAT", "expr": [{"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "br1"}}, {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}}, {"counter": {"packets": 0, "bytes": 0}}, {"dnat": {"addr": "172.18.0.2", "port": 80}}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "raw-PREROUTING", "handle": 20, "comment": "DROP DIRECT ACCESS", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "172.18.0.2"}}, {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "br1"}}, {"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "filter-forward-in__docker0", "handle": 21, "comment": "UNPUBLISHED PORT DROP", "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "filter-forward-in__br1", "handle": 22, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "172.18.0.2"}}, {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "filter-forward-in__br1", "handle": 23, "comment": "UNPUBLISHED PORT DROP", "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "filter-forward-out__br1", "handle": 24, "comment": "OUTGOING", "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}}
{"rule": {"family": "ip", "table": "docker-bridges", "chain": "nat-postrouting-out__br1", "handle": 25, "comment": "MASQUERADE", "expr": [{"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "br1"}}, {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "172.18.0.0", "len": 16}}}}, {"counter": {"packets": 0, "bytes": 0}}, {"masquerade": null}]}}
"#;

#[test]
fn docker_s_maps_in_nftables_are_for_its_own_interfaces() {
    let of = |text: &str| {
        let lines = text.trim().lines().map(str::to_owned);
        Ruleset::of_nft(&lines.collect::<Vec<_>>())
    };
    let docker = of(DOCKER);
    assert!(docker.looks_into_sets());
    assert_eq!(lan(docker.chains.clone()), None);
    assert_eq!(wan(docker.chains), None);
    // The LAN is one of its bridges.
    let found = lan(of(&DOCKER.replace("br1", "lan0")).chains);
    let rule = "firewall rule handle 23 of chain filter-forward-in__lan0, table ip docker-bridges";
    assert_eq!(found.as_deref(), Some(rule));
    // Sets that are not listed may have any elements.
    let unlisted =
        nft::parse(format!(r#"{{"nftables": [{}]}}"#, DOCKER.trim().replace('\n', ",")).as_bytes(), |_| None);
    let found = lan(unlisted.unwrap().chains);
    assert_eq!(found.as_deref(), Some("firewall rule handle 14 of chain filter-FORWARD, table ip docker-bridges"));
}

/// A rule with this expression and a drop, in a table with this set or map.
fn with_set(set: &str, expression: &str) -> Ruleset {
    Ruleset::of_nft(&[
        set.to_owned(),
        r#"{"chain": {"family": "inet", "table": "fw", "name": "c", "hook": "forward", "policy": "accept"}}"#
            .to_owned(),
        format!(
            r#"{{"rule": {{"family": "inet", "table": "fw", "chain": "c", "handle": 1, "expr": [{expression}, {{"drop": null}}]}}}}"#
        ),
    ])
}

#[test]
fn named_sets_are_as_good_as_their_elements() {
    let set = |more: &str| format!(r#"{{"set": {{"family": "inet", "table": "fw", "name": "s", "handle": 1{more}}}}}"#);
    let from = field("ip", "saddr", "==", r#""@s""#);
    let not_from = field("ip", "saddr", "!=", r#""@s""#);
    let elements = |elements: &str| set(&format!(r#", "elem": [{elements}]"#));
    for (concerned, set, expression) in [
        (false, set(""), &from),
        (true, set(""), &not_from),
        (false, elements(r#""192.0.2.7", {"prefix": {"addr": "198.51.100.0", "len": 24}}"#), &from),
        (true, elements(r#""192.0.2.7", {"prefix": {"addr": "10.1.0.0", "len": 28}}"#), &from),
        (false, elements(r#"{"prefix": {"addr": "10.0.0.0", "len": 8}}"#), &not_from),
        (false, elements(r#"{"elem": {"val": "192.0.2.7", "comment": "x"}}"#), &from),
        // Elements that count or limit packets, or time out.
        (true, elements(r#"{"elem": {"val": "192.0.2.7", "counter": {"packets": 0, "bytes": 0}}}"#), &from),
        (true, set(r#", "flags": ["interval", "timeout"]"#), &from),
        (true, set(r#", "flags": "dynamic""#), &from),
        (true, elements(r#"{"concat": ["192.0.2.7", 80]}"#), &from),
        (false, elements(r#""docker0", "veth*""#), &meta("iifname", "==", r#""@s""#)),
        (true, elements(r#""docker0", "lan*""#), &meta("iifname", "==", r#""@s""#)),
        // Of another table.
        (true, set("").replace("fw", "other"), &from),
    ] {
        let found = lan(with_set(&set, expression).chains);
        assert_eq!(found.is_some(), concerned, "{set} {expression}: {found:?}");
    }
    // A set to which a rule adds elements.
    for (concerned, changed) in [(true, "s"), (false, "t")] {
        let adds = format!(r#"{{"set": {{"op": "add", "elem": "192.0.2.7", "set": "@{changed}"}}}}"#);
        let other = r#"{"rule": {"family": "inet", "table": "fw", "chain": "other", "handle": 2, "expr": [ADDS]}}"#;
        let objects = [set(""), other.replace("ADDS", &adds)].join(", ");
        assert_eq!(lan(with_set(&objects, &from).chains).is_some(), concerned, "{adds}");
    }
}

#[test]
fn the_verdict_for_packets_without_an_element_holds_for_some() {
    let map = |to: &str| {
        let map = r#"{"map": {"family": "inet", "table": "fw", "name": "m", "map": "verdict", "elem": [["docker0", {"drop": null}], ["*", {"TO": null}]]}}"#;
        let by_name = r#"{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@m"}}"#;
        with_set(&map.replace("TO", to), by_name)
    };
    assert!(lan(map("drop").chains).is_some());
    assert!(lan(map("continue").chains).is_none());
}

#[test]
fn a_set_in_too_many_rules_is_no_longer_written_out() {
    let set = r#"{"set": {"family": "inet", "table": "fw", "name": "s", "elem": [ELEMENTS]}}"#;
    let elements = vec![r#""192.0.2.7""#; 1000].join(", ");
    let rule = format!(r#"{}, {{"drop": null}}"#, field("ip", "saddr", "==", r#""@s""#));
    let with = |rules: usize| {
        let mut objects = vec![set.replace("ELEMENTS", &elements)];
        objects.push(r#"{"chain": {"family": "inet", "table": "fw", "name": "f", "hook": "forward"}}"#.to_owned());
        objects.extend((0..rules).map(|_| {
            format!(r#"{{"rule": {{"family": "inet", "table": "fw", "chain": "f", "handle": 9, "expr": [{rule}]}}}}"#)
        }));
        lan(Ruleset::of_nft(&objects).chains)
    };
    assert_eq!(with(60), None);
    assert!(with(70).is_some());
}

#[test]
fn the_words_of_iptables_are_understood() {
    for (concerned, rule) in [
        (true, "-j DROP"),
        (true, "-i lan+ -j DROP"),
        (false, "! -i lan+ -o wan0 -j DROP"),
        (false, "-s 192.0.2.0/24 -j DROP"),
        (true, "! -s 192.0.2.0/24 -j DROP"),
        (true, "-p tcp -m multiport --dports 80,443 -j REJECT --reject-with tcp-reset"),
        (true, "-m limit --limit 3/min -j LOG"),
        (true, ""),
        (false, "-j ACCEPT"),
        (false, "-g NOWHERE -j ACCEPT"),
    ] {
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n:NOWHERE - [0:0]\n-A FORWARD {rule}\nCOMMIT\n");
        assert_eq!(lan(iptables::parse(&text, "iptables", false)).is_some(), concerned, "{rule}");
    }
    let of_ipv6 = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    assert!(lan(iptables::parse(of_ipv6, "ip6tables", true)).is_some());
    assert_eq!(wan(iptables::parse(of_ipv6, "ip6tables", true)), None, "there is no IPv6 on this WAN");
}

#[test]
fn what_cannot_be_read_may_be_anything() {
    let ruleset = Ruleset { unread: vec!["the rules of nftables".to_owned()], ..Ruleset::default() };
    let inside = Inside { lan: "lan0", tunnel: "p0", own: &Default::default(), remote: &Default::default() };
    assert_eq!(ruleset.concerns_lan(&inside).as_deref(), Some("the rules of nftables"));
}

#[test]
fn a_long_way_is_given_up() {
    let sub = vec![r#"{"continue": null}"#; 2000];
    let jumps = vec![r#"{"jump": {"target": "sub"}}"#; 2000];
    let found = lan(nft(&[("forward", FORWARD, &jumps), ("sub", None, &sub)]));
    assert!(found.is_some_and(|found| found.contains("too long")));
}

/// The rule that keeps packets to UDP port 47100 of 192.0.2.1 out.
fn keeps_out(chains: Vec<Chain>) -> Option<String> {
    let addresses = ["192.0.2.1/32".parse().unwrap()].into();
    let outside = Outside { wan: "wan0".to_owned(), port: 47100, addresses };
    Ruleset { chains, ..Ruleset::default() }.barrier_wan(&outside).map(|barrier| barrier.rule)
}

#[test]
fn a_barrier_drops_all_and_accepts_none() {
    let (accept, drop) = (r#"{"accept": null}"#, r#"{"drop": null}"#);
    let when = |condition: String, verdict: &str| format!("{condition}, {verdict}");
    let state = |key: &str, value: &str| {
        format!(r#"{{"match": {{"op": "in", "left": {{"ct": {{"key": "{key}"}}}}, "right": "{value}"}}}}"#)
    };
    let own_port = field("udp", "dport", "==", "47100");
    let log = r#"{"log": {"prefix": "x"}}"#;
    let unknown = r#"{"new": "statement of tomorrow"}"#;
    for (barrier, rules) in [
        (true, vec![]),
        (true, vec![when(state("state", "established"), accept)]),
        (true, vec![when(state("status", "dnat"), accept)]),
        (false, vec![when(state("status", "assured"), accept)]),
        (false, vec![when(state("state", "new"), accept)]),
        (true, vec![when(field("tcp", "dport", "==", "22"), accept)]),
        (true, vec![when(field("udp", "dport", "==", "51820"), accept)]),
        (false, vec![when(own_port.clone(), accept)]),
        (false, vec![when(field("ip", "saddr", "==", r#""@friends""#), accept)]),
        (false, vec![when(log.to_owned(), accept)]),
        (true, vec![when(own_port.clone(), log), when(log.to_owned(), drop), accept.to_owned()]),
        (true, vec![unknown.to_owned()]),
        (false, vec![when(own_port.clone(), r#"{"queue": {"num": 1}}"#)]),
        (false, vec![when(field("ip", "saddr", "==", r#""@friends""#), r#"{"return": null}"#)]),
    ] {
        let words: Vec<&str> = rules.iter().map(String::as_str).collect();
        assert_eq!(keeps_out(nft(&[("in", INPUT, &words)])).is_some(), barrier, "{rules:?}");
    }
    let open = Some(r#""hook": "input", "policy": "accept""#);
    assert_eq!(keeps_out(nft(&[("in", open, &[])])), None);
    let some = when(field("ip", "saddr", "==", &prefix("198.51.100.0", 24)), drop);
    assert_eq!(keeps_out(nft(&[("in", open, &[&some])])), None, "others get through");
    let found = keeps_out(nft(&[("in", open, &[accept]), ("in2", open, &[&when(own_port, drop)])]));
    assert_eq!(found.as_deref(), Some("firewall rule handle 0 of chain in2, table inet fw"));
    let forward = keeps_out(nft(&[("forward", DROPPING, &[])]));
    assert_eq!(forward, None, "what is for this host is not forwarded");
}

#[test]
fn a_barrier_is_found_in_the_chains_that_lead_to_it() {
    let (accept, drop, back) = (r#"{"accept": null}"#, r#"{"drop": null}"#, r#"{"return": null}"#);
    let to = |how: &str| format!(r#"{{"{how}": {{"target": "sub"}}}}"#);
    let some = |how: &str| format!("{}, {}", field("ip", "saddr", "==", r#""@some""#), to(how));
    for (barrier, way, sub) in [
        (true, to("jump"), drop),
        (false, to("jump"), accept),
        (true, to("jump"), back),
        (true, some("jump"), drop),
        (false, some("jump"), accept),
        (true, to("goto"), back),
        (false, some("goto"), back),
    ] {
        let found = keeps_out(nft(&[("in", INPUT, &[&way]), ("sub", None, &[sub])]));
        assert_eq!(found.is_some(), barrier, "{way} {sub}: {found:?}");
    }
}

#[test]
fn the_first_policy_of_ipsec_that_may_select_a_packet_decides() {
    let parse = |text: &str| ipsec::parse(text, "Default policies:\n in:  accept\n fwd: accept\n out: accept\n");
    let encrypts = "\n\ttmpl src 192.0.2.1 dst 192.0.2.9\n\t\tproto esp reqid 0 mode tunnel";
    let policy = |selector: &str, more: &str| format!("{selector} \n\tdir {more} ptype main {encrypts}\n");
    let out = policy("src 10.1.0.0/24 dst 10.2.3.0/24 proto tcp dport 443", "out priority 7");
    let named = "policy src 10.1.0.0/24 dst 10.2.3.0/24 proto tcp dport 443, table IPsec";
    assert_eq!(lan(parse(&out)).as_deref(), Some(named));
    assert_eq!(wan(parse(&out)), None);
    let passes = |priority| format!("src 10.0.0.0/8 dst 0.0.0.0/0 \n\tdir out priority {priority} ptype main \n");
    assert_eq!(lan(parse(&(out.clone() + &passes(6)))), None, "packets that pass do so before");
    assert!(lan(parse(&(out + &passes(8)))).is_some());
    let blocks = "src 10.2.0.0/24 dst 10.1.0.0/24 \n\tdir fwd action block priority 0 ptype main \n";
    assert!(lan(parse(blocks)).is_some());
    let all = "src ::/0 dst ::/0";
    for (concerned, text) in [
        (true, policy(all, "fwd priority 0")),
        (true, policy(all, "out priority 0") + "\tmark 0x7/0xf \n"),
        (true, policy("src fd01::/64 dst ::/0 proto icmp type 8", "out priority 0")),
        (false, policy("src fd05::/64 dst ::/0", "out priority 0")),
        (false, policy(all, "in priority 0")),
        (false, policy(all, "out priority 0") + "\tif_id 0x3\n"),
        (false, format!("{all} \n\tsocket out priority 0 ptype main {encrypts}\n")),
        (false, String::new()),
    ] {
        assert_eq!(lan(parse(&text)).is_some(), concerned, "{text}");
    }
    assert!(wan(parse(&policy("src 0.0.0.0/0 dst 192.0.2.1/32 proto udp", "in priority 0"))).is_some());
    // Truncated or unknown output is no reason to fail.
    let whole = policy(all, "fwd priority 0");
    (0..whole.len()).for_each(|end| drop(parse(&whole[..end])));
}

#[test]
fn ipsec_may_block_by_default_what_no_policy_selects() {
    let block = |direction: &str| format!("Default policies:\n {direction}:  block\n");
    let lets_pass =
        "src 0.0.0.0/0 dst 0.0.0.0/0 \n\tdir fwd priority 0 ptype main \nsrc ::/0 dst ::/0 \n\tdir fwd priority 0 \n";
    for (concerned, policies, defaults) in [
        (true, "", block("fwd")),
        (true, "", block("out")),
        (false, "", block("in")),
        (false, "", String::new()),
        (false, lets_pass, block("fwd")),
    ] {
        assert_eq!(lan(ipsec::parse(policies, &defaults)).is_some(), concerned, "{policies}{defaults}");
    }
    assert!(wan(ipsec::parse("", &block("in"))).is_some());
}

/// Rules that somebody has made with nft in a table of iptables are missing from what iptables prints.
#[test]
fn in_tables_of_iptables_chains_of_others_stay() {
    let drop = r#"{"drop": null}"#;
    let chains =
        nft(&[("FORWARD", FORWARD, &[r#"{"xt": {"type": "match", "name": "comment"}}"#]), ("mine", FORWARD, &[drop])])
            .into_iter()
            .map(|chain| Chain { table: "ip filter".to_owned(), ..chain });
    let mut ruleset = Ruleset { chains: chains.collect(), ..Ruleset::default() };
    read::replace(&mut ruleset, "ip", iptables::parse("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", "iptables", false));
    let tables: Vec<_> = ruleset.chains.iter().map(|chain| (chain.table.as_str(), chain.name.as_str())).collect();
    assert_eq!(tables, [("ip filter", "mine"), ("filter of iptables", "FORWARD")]);
    assert!(lan(ruleset.chains).is_some_and(|rule| rule.contains("of chain mine, table ip filter")));
}

#[test]
fn what_leads_to_a_chain_that_is_not_listed_may_do_anything() {
    let jump = r#"{"jump": {"target": "gone"}}"#;
    assert!(lan(nft(&[("forward", FORWARD, &[jump])])).is_some_and(|rule| rule.contains("not listed")));
}
