//! A WAN that is no port but a device above one. AF_XDP on it carries traffic, or the gateway says in a sentence why
//! it will not start; that it starts and loses packets is what must not be.

use super::support::*;
use super::{note, ports, ready};

/// What TCP must carry at least: little, since emulation is slow, and more than what is left where super-packets reach
/// AF_XDP.
const LEAST: f64 = 1e6;

/// Puts a device named wan0 in the place of A's, above it. `above` are `ip` commands; B's is treated alike if it must.
fn works_or_says_why(word: &str, above: &str, b_too: bool, mode: &'static str) {
    if !ready(&["iperf3"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    for (site, number) in [(&topology.a, 1), (&topology.b, 2)] {
        if number == 2 && !b_too {
            continue;
        }
        site.gateway.ip(&format!(
            "link set wan0 down\n\
             addr flush dev wan0\n\
             link set wan0 name below\n\
             {above}\
             link set below up\n\
             addr add {}/24 dev wan0\n\
             addr add {}/64 dev wan0 nodad\n\
             link set wan0 up\n\
             route replace default via 192.0.2.{}\n",
            site.wan4,
            site.wan6,
            3 - number
        ));
    }
    eventually(PATIENCE, "the WAN works without a gateway", || {
        ping(&topology.a.gateway, topology.b.wan4.into(), &["-c", "1"]).all_answered()
    });
    let (a, b) = pair_config(&topology, Kind::Penstock { wan: mode, lan: "tun" }, Kind::SOCKET, Outer::V4);
    let _b = Gateway::start(&topology.b, b);
    let a = match Gateway::try_start_in(&topology.a.gateway, &topology.a.scratch, a) {
        Ok(a) => a,
        Err((_, log)) => {
            let sentence = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            note(&format!("{word}, {mode}: refused: {sentence}"));
            assert!(mode == "xdp" && sentence.contains("wan0") && sentence.contains(word), "{log}");
            return;
        }
    };
    note(&format!("{word}, {mode}: {}", ports(&a.status())));
    await_traffic(&topology);
    for options in [["-t", "3"].as_slice(), &["-t", "3", "-R"]] {
        let (from, to) = (&topology.a.host, &topology.b.host);
        let rate = iperf3(from, to, topology.b.host4(), options, topology.scratch());
        note(&format!("{word}, {mode}: iperf3 {options:?}: {:.1} Mbit/s", rate / 1e6));
        assert!(rate > LEAST, "{options:?}: {rate:.0} bit/s; drops: {}", a.status()["Drops"]);
    }
}

macro_rules! stacked {
    ($($name:ident: $word:literal, $b_too:literal, $above:literal;)*) => { $(
        mod $name {
            #[test]
            fn xdp() {
                super::works_or_says_why($word, $above, $b_too, "xdp");
            }

            #[test]
            fn auto() {
                super::works_or_says_why($word, $above, $b_too, "auto");
            }
        }
    )* };
}

stacked! {
    bond: "bond", false, "link add wan0 type bond mode active-backup miimon 100\nlink set below master wan0\n";
    vlan: "VLAN", true, "link add link below name wan0 type vlan id 50\n";
    bridge: "bridge", false, "link add wan0 type bridge forward_delay 0\nlink set below master wan0\n";
    macvlan: "macvlan", false, "link add link below name wan0 type macvlan mode bridge\n";
}
