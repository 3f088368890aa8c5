//! A given certificate that is renewed, an own one that is replaced, and the status, by the program itself.

use std::path::Path;
use std::process::Command;

use penstock_connect::{Trust, fingerprint};
use penstock_proto::coordination::Fingerprint;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

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
async fn a_gateway_with_two_pins_stays_through_a_change_of_the_certificate() {
    let state = running::directory();
    let program = Program::start(state.path());
    let address = program.address();
    program.keep_addresses(state.path(), address);
    let key = enrolment_key(state.path(), &[]);
    let old = key.fingerprint().unwrap();
    let new: Fingerprint = succeeds(state.path(), &["certificate", "next"]).trim().parse().unwrap();
    let again: Fingerprint = succeeds(state.path(), &["certificate", "next"]).trim().parse().unwrap();
    assert!(new == again && new != old);
    let reaches = async |trust: Trust| {
        let tls = TlsConnector::from(trust.client_config().unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        tls.connect(ServerName::try_from(HOST).unwrap(), stream).await.is_ok()
    };
    assert!(reaches(Trust::Rolling([old, new])).await && reaches(Trust::Pinned(old)).await);
    assert!(!reaches(Trust::Pinned(new)).await, "the next one serves too early");

    succeeds(state.path(), &["certificate", "switch"]);
    drop(program);
    let program = Program::start(state.path());
    program.says("listening at ");
    assert!(reaches(Trust::Rolling([old, new])).await && reaches(Trust::Pinned(new)).await);
    assert!(!reaches(Trust::Pinned(old)).await, "the old one still serves");
    assert_eq!(enrolment_key(state.path(), &[]).fingerprint(), Some(new));
    Gateway::new("amsterdam", &[]).with_key(&key).connect(address, new).await.unwrap();
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
