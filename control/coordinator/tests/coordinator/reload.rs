//! A given certificate that is renewed, and the status, by the program itself.

use std::path::Path;
use std::process::Command;

use penstock_connect::fingerprint;
use penstock_proto::coordination::Fingerprint;

use crate::client::{Failure, Gateway, HOST};
use crate::program::{PROGRAM, Program, enrolment_key, run, succeeds};
use crate::running;

/// Writes a certificate and its key, as an authority's client does; returns what to pin.
fn write(directory: &Path) -> Fingerprint {
    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([HOST.to_owned()]).unwrap().self_signed(&pair).unwrap();
    std::fs::write(directory.join("fullchain.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.join("privkey.pem"), pair.serialize_pem()).unwrap();
    fingerprint(certificate.der())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_read_again_and_an_unsound_one_is_not_used() {
    let (state, files) = (running::directory(), tempfile::tempdir().unwrap());
    let first = write(files.path());
    let mut command = run(Command::new(PROGRAM), state.path());
    command.arg("--certificate").arg(files.path().join("fullchain.pem"));
    command.arg("--certificate-key").arg(files.path().join("privkey.pem"));
    let program = Program::spawn(command);
    let address = program.address();
    program.says("fingerprint is ");
    let key = enrolment_key(state.path(), &[]);
    assert_eq!(key.fingerprint(), None, "authorities vouch for it, and it will change");
    let site = Gateway::new("amsterdam", &[]).with_key(&key);
    let mut connection = site.connect(address, first).await.unwrap();
    connection.until("there is a map", |connection| connection.map.is_some()).await;

    let second = write(files.path());
    program.signal("-HUP");
    program.says("the certificate was read again");
    assert!(matches!(site.connect(address, first).await, Err(Failure::Before(_))), "the old one is gone");
    connection.stays_silent().await;
    drop(connection);
    site.connect(address, second).await.unwrap();

    std::fs::write(files.path().join("privkey.pem"), "nonsense").unwrap();
    program.signal("-HUP");
    program.says("the certificate in use stays");
    site.connect(address, second).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_what_runs() {
    let state = running::directory();
    let program = Program::start(state.path());
    let (address, udp) = (program.address(), program.says("STUN or relay at "));
    let udp = udp.trim_end_matches(" (UDP)");
    let key = enrolment_key(state.path(), &["--uses", "2"]);
    let pin = key.fingerprint().unwrap();
    let mut sites = Vec::new();
    for name in ["amsterdam", "berlin"] {
        let site = Gateway::new(name, &[]).with_key(&key);
        let mut connection = site.connect(address, pin).await.unwrap();
        connection.until("there is a map", |connection| connection.map.is_some()).await;
        sites.push(connection);
    }
    sites.pop();
    // The coordinator notices the end of a connection a moment later.
    let status = loop {
        let text = succeeds(state.path(), &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        if status["SitesConnected"] == 1 {
            break status;
        }
    };
    assert_eq!(status["Sites"], 2);
    assert_eq!(status["StunServers"][0], udp);
    assert_eq!(status["Relays"][0]["Name"], HOST);
    assert_eq!(status["Relay"]["Sites"], 2);
    assert_eq!(status["Relay"]["Drops"]["over-budget"], 0);
    let shown = succeeds(state.path(), &["status"]);
    assert!(shown.contains("sites: 2 approved, 1 connected") && shown.contains(udp), "{shown}");
}
