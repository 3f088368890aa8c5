//! How the rivals are set up: with their defaults, except for the MTU, which is the largest that all of them can carry.

use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::json;

use super::process::{self, Process, until};
use super::subject::Running;
use super::topology::{NETWORKS, PORT, Side, Topology, WAN, beside};
use super::{Error, Result, io_error};

/// What an Ethernet MTU of 1500 leaves after IPv4, UDP, WireGuard's header and its tag; nebula's overhead is the same.
const MTU: u32 = 1440;
/// How long a program may take to make its interface.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// Addresses inside nebula's network.
const NEBULA: [&str; 2] = ["100.64.0.1", "100.64.0.2"];

/// Makes a private key for each side, in its file "key"; returns the public keys.
pub(super) fn keys(topology: &Topology) -> Result<[String; 2]> {
    let mut public = [const { String::new() }; 2];
    for side in Side::BOTH {
        let private = process::run(Command::new("wg").arg("genkey"))?;
        topology.write(side, "key", &private)?;
        let file = std::fs::File::open(topology.file(side, "key")).map_err(io_error("read a key"))?;
        let output =
            Command::new("wg").arg("pubkey").stdin(Stdio::from(file)).output().map_err(io_error("start wg"))?;
        public[side.index()] = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    Ok(public)
}

pub(super) fn start_userspace(
    topology: &Topology,
    program: &str,
    arguments: &[&str],
    stop: &AtomicBool,
) -> Result<Running> {
    let keys = keys(topology)?;
    let words: Vec<&str> = [program].iter().chain(arguments).chain(&["wg0"]).copied().collect();
    let mut processes: Vec<Process> = Vec::new();
    for side in Side::BOTH {
        processes.push(topology.start(side, &words)?);
    }
    for side in Side::BOTH {
        let process = &processes[side.index()];
        let is_there = || beside(process, &["test", "-S", "/run/wireguard/wg0.sock"]).is_ok();
        if !until(READY_WITHIN, stop, is_there)? {
            return Err(Error::Failed(format!("it made no interface: {}", process.complaint())));
        }
        configure(topology, side, &keys[side.other().index()], |words| beside(process, words))?;
    }
    Ok(Running { processes })
}

pub(super) fn start_kernel_wireguard(topology: &Topology) -> Result<()> {
    let keys = keys(topology)?;
    for side in Side::BOTH {
        let gateway = topology.gateway(side);
        gateway.try_ip("link add wg0 type wireguard")?;
        configure(topology, side, &keys[side.other().index()], |words| Ok(gateway.try_run(words)?))?;
    }
    Ok(())
}

/// Gives the interface wg0 its peer, its MTU and its route.
fn configure(topology: &Topology, side: Side, peer: &str, run: impl Fn(&[&str]) -> Result<String>) -> Result<()> {
    let other = side.other().index();
    let (port, mtu, endpoint) = (PORT.to_string(), MTU.to_string(), format!("{}:{PORT}", WAN[other]));
    let key = topology.file(side, "key");
    let interface = ["wg", "set", "wg0", "listen-port", &port, "private-key", &key.to_string_lossy(), "peer", peer];
    let more = ["endpoint", &endpoint, "allowed-ips", NETWORKS[other], "persistent-keepalive", "25"];
    run(&[&interface[..], &more[..]].concat())?;
    run(&["ip", "link", "set", "wg0", "mtu", &mtu, "up"])?;
    run(&["ip", "route", "add", NETWORKS[other], "dev", "wg0"])?;
    Ok(())
}

pub(super) fn start_nebula(topology: &Topology) -> Result<Running> {
    let file = |name: &str| topology.folder.join(name).to_string_lossy().into_owned();
    let certificate = |words: &[&str]| process::run(Command::new("nebula-cert").args(words));
    // nebula-cert does not overwrite the files of an earlier round.
    for name in ["ca.crt", "ca.key", "a.crt", "a.key", "b.crt", "b.key"] {
        let _ = std::fs::remove_file(file(name));
    }
    let (ca, ca_key) = (file("ca.crt"), file("ca.key"));
    certificate(&["ca", "-name", "penstock-bench", "-out-crt", &ca, "-out-key", &ca_key])?;
    let mut processes = Vec::new();
    for side in Side::BOTH {
        let (own, other) = (side.index(), side.other().index());
        let (crt, key) = (file(&format!("{}.crt", side.letter())), file(&format!("{}.key", side.letter())));
        let address = format!("{}/24", NEBULA[own]);
        certificate(&[
            "sign",
            "-name",
            side.letter(),
            "-ip",
            &address,
            "-subnets",
            NETWORKS[own],
            "-ca-crt",
            &ca,
            "-ca-key",
            &ca_key,
            "-out-crt",
            &crt,
            "-out-key",
            &key,
        ])?;
        let anyone = json!([{ "port": "any", "proto": "any", "host": "any" }]);
        // JSON is YAML.
        let configuration = json!({
            "pki": { "ca": ca, "cert": crt, "key": key },
            "static_host_map": { NEBULA[other]: [format!("{}:{PORT}", WAN[other])] },
            "lighthouse": { "am_lighthouse": false },
            "listen": { "host": "0.0.0.0", "port": PORT },
            "tun": {
                "dev": "nebula0",
                "mtu": MTU,
                "unsafe_routes": [{ "route": NETWORKS[other], "via": NEBULA[other], "mtu": MTU }]
            },
            // Newer versions let a rule cover only the node's own address, unless told otherwise.
            "firewall": { "default_local_cidr_any": true, "outbound": anyone, "inbound": anyone }
        });
        let configuration = topology.write(side, "yml", &configuration.to_string())?;
        processes.push(topology.start(side, &["nebula", "-config", &configuration.to_string_lossy()])?);
    }
    Ok(Running { processes })
}
