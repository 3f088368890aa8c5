//! `penstock netcheck` against another implementation's STUN server, coturn.

use std::process::Command;

use crate::support::{Namespace, PATIENCE, Process, eventually, penstock_binary, ready};
use serde_json::Value;

#[test]
fn netcheck_learns_all_from_a_server_of_coturn() {
    if !ready(&["turnserver"]) {
        return;
    }
    let namespace = Namespace::new("coturn");
    // A server with two addresses can measure a NAT completely (RFC 5780), but no client believes loopback addresses.
    namespace.ip("address add 192.0.2.1/32 dev lo\naddress add 192.0.2.2/32 dev lo");
    let scratch = tempfile::tempdir().expect("a directory");
    // Debian's default configuration disables RFC 5780.
    let configuration = scratch.path().join("turnserver.conf");
    std::fs::write(&configuration, "").expect("a file");
    let mut command: Command = namespace.command("turnserver");
    command.arg("-c").arg(&configuration).args(["-n", "-S", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp"]);
    command.args(["-L", "192.0.2.1", "-L", "192.0.2.2", "--log-file", "stdout"]);
    command.arg("--pidfile").arg(scratch.path().join("pid")).arg("--db").arg(scratch.path().join("db"));
    let _server = Process::spawn(command, &scratch.path().join("turnserver.log"), Some(namespace.clone()));
    let bound = || namespace.run(&["ss", "--udp", "--listening", "--numeric"]).contains("192.0.2.2:3479");
    eventually(PATIENCE, "turnserver listens", bound);

    let mut command: Command = namespace.command(penstock_binary().expect("a binary"));
    command.args(["netcheck", "--json", "--stun", "192.0.2.1:3478"]).env("PENSTOCK_RUNTIME_DIR", scratch.path());
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nat = &report["IPv4"]["Nat"];
    assert!(nat["Reflexive"].as_str().expect("an address").starts_with("192.0.2."), "{nat}");
    assert_eq!(nat["Translated"], false, "{nat}");
    assert_eq!((&nat["Mapping"], &nat["Filtering"]), (&"EndpointIndependent".into(), &"EndpointIndependent".into()));
    assert_eq!(report["NatType"], "none", "{report}");
}
