//! Certificates of an authority, by the program itself and a real ACME server.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use penstock_connect::{Trust, fingerprint};
use penstock_proto::coordination::{Fingerprint, GatewayMessage, prove};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::Authority;
use crate::client::{Connection, Gateway, HOST, challenge, upgrade};
use crate::program::{PROGRAM, Program, enrolment_key, run, succeeds};
use crate::running;

const HOUR: Duration = Duration::from_secs(3600);

/// A coordinator that asks that authority.
fn start(state: &Path, authority: &Authority) -> Program {
    let [tcp, udp] = authority.coordinator();
    running::keep_addresses(state, tcp, udp);
    Program::spawn(asking(run(Command::new(PROGRAM), state), authority))
}

fn asking(mut command: Command, authority: &Authority) -> Command {
    command.args(["--acme", "--acme-contact", "mailto:noc@example.net", "--acme-directory", &authority.url()]);
    command.arg("--acme-ca").arg(authority.ca_file());
    command
}

async fn encrypt(trusted: &Arc<ClientConfig>, authority: &Authority) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(authority.coordinator()[0]).await?;
    TlsConnector::from(trusted.clone()).connect(ServerName::try_from(HOST).unwrap(), stream).await
}

/// The certificate that a gateway is shown, which its authorities vouch for.
async fn shown(trusted: &Arc<ClientConfig>, authority: &Authority) -> std::io::Result<Fingerprint> {
    let stream = encrypt(trusted, authority).await?;
    Ok(fingerprint(&stream.get_ref().1.peer_certificates().unwrap()[0]))
}

/// A new site enrols; its key carries no pin.
async fn enrol(trusted: &Arc<ClientConfig>, authority: &Authority, state: &Path, name: &str) -> Connection {
    let key = enrolment_key(state, &[]);
    assert_eq!(key.fingerprint(), None, "authorities vouch for the certificate");
    let site = Gateway::new(name, &[]).with_key(&key);
    let socket = upgrade(encrypt(trusted, authority).await.unwrap(), HOST).await.unwrap();
    let (mut connection, challenge) = challenge(socket).await.unwrap();
    let proof = prove(&site.private, &challenge, HOST).unwrap();
    connection.send(&GatewayMessage::Hello(site.hello(proof))).await;
    connection.until("there is a map", |connection| connection.map.is_some()).await;
    connection
}

fn status(state: &Path) -> serde_json::Value {
    serde_json::from_str(&succeeds(state, &["status", "--json"])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_obtained_served_and_kept_across_a_restart() {
    let (state, mut authority) = (running::directory(), Authority::new(24 * HOUR));
    let program = start(state.path(), &authority);
    program.says("there is no certificate yet");
    // The authority issues nothing, and without a certificate nobody is let in.
    let error = program.says("no certificate from ");
    assert!(error.contains("refused") && error.contains("gateways cannot connect until"), "{error}");
    let refused = TcpStream::connect(authority.coordinator()[0]).await.unwrap();
    let anybody = Trust::Pinned(Fingerprint([0; 32])).client_config().unwrap();
    let connector = TlsConnector::from(anybody);
    assert!(connector.connect(ServerName::try_from(HOST).unwrap(), refused).await.is_err());
    program.says("a connection is refused, as all are until there is a certificate");
    assert!(status(state.path())["Acme"]["Error"].as_str().unwrap().contains("refused"));
    assert!(succeeds(state.path(), &["status"]).contains("none yet"));

    authority.start();
    program.says("has checked that a name is ours");
    program.says("a new certificate is in use; it is valid for another 23 h");
    let trusted = authority.trusted().await;
    let first = shown(&trusted, &authority).await.unwrap();
    enrol(&trusted, &authority, state.path(), "amsterdam").await;
    for file in ["acme-account.json", "acme-certificate.pem"] {
        let mode = std::fs::metadata(state.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let report = status(state.path());
    assert_eq!(report["Acme"]["Error"], serde_json::Value::Null);
    let left = report["Acme"]["NotAfter"].as_u64().unwrap() - report["Acme"]["NextOrder"].as_u64().unwrap();
    assert!((7 * 3600..=8 * 3600).contains(&left), "two thirds of a day, and up to an hour: {left}");

    // A restart orders nothing, and works without the authority.
    drop(program);
    authority.stop();
    let program = start(state.path(), &authority);
    program.says("the present certificate is valid for another 23 h");
    assert_eq!(shown(&trusted, &authority).await.unwrap(), first);
    enrol(&trusted, &authority, state.path(), "berlin").await;
    assert_eq!(status(state.path())["Acme"]["Error"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_renewed_in_time_and_the_old_one_served_until_then() {
    // It is renewed after two thirds, and one that failed is tried again four seconds later.
    let lifetime = if std::env::var_os("PENSTOCK_TEST_LONG").is_some() { 18 } else { 9 };
    let (state, mut authority) = (running::directory(), Authority::new(Duration::from_secs(lifetime)));
    authority.start();
    let program = start(state.path(), &authority);
    program.says("a new certificate is in use");
    let old_root = authority.trusted().await;
    let first = shown(&old_root, &authority).await.unwrap();
    let mut connection = enrol(&old_root, &authority, state.path(), "amsterdam").await;

    // The authority forgets our account, and is not running when the renewal is due.
    authority.stop();
    // Keeps the wait for the log short.
    tokio::time::sleep(Duration::from_secs(lifetime / 5)).await;
    let error = program.says("no certificate from ");
    assert!(error.contains("the one in use is valid for another"), "{error}");
    assert_eq!(shown(&old_root, &authority).await.unwrap(), first, "the old one is served");
    authority.start();
    let trusted = authority.trusted().await;
    program.says("does not know our account; a new one is made");
    program.says("a new certificate is in use");
    let second = shown(&trusted, &authority).await.unwrap();
    assert_ne!(second, first);
    connection.stays_silent().await;
    connection.say_address("192.0.2.1:1").await;
    enrol(&trusted, &authority, state.path(), "berlin").await;
    connection.until_peers(&["berlin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_and_not_repeated_at_once() {
    let (state, mut authority) = (running::directory(), Authority::astray());
    authority.start();
    let program = start(state.path(), &authority);
    let error = program.says("no certificate from ");
    assert!(error.contains(HOST) && error.contains("tls-alpn-01"), "{error}");
    let report = status(state.path());
    assert!(report["Acme"]["Error"].as_str().unwrap().contains(HOST), "{report}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(report["Acme"]["NextOrder"].as_u64().unwrap() > now + 500, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_more_is_ordered_at_the_next_start() {
    let (state, mut authority) = (running::directory(), Authority::new(24 * HOUR));
    authority.start();
    let program = start(state.path(), &authority);
    program.says("a new certificate is in use");
    let trusted = authority.trusted().await;
    let first = shown(&trusted, &authority).await.unwrap();
    drop(program);

    let mut command = asking(run(Command::new(PROGRAM), state.path()), &authority);
    command.args(["--name", "second.test"]);
    let program = Program::spawn(command);
    program.says("the present certificate is valid for another");
    program.says("a new certificate is in use");
    let account = std::fs::read(state.path().join("acme-account.json")).unwrap();
    assert_ne!(shown(&trusted, &authority).await.unwrap(), first);
    let stream = TcpStream::connect(authority.coordinator()[0]).await.unwrap();
    let second = ServerName::try_from("second.test").unwrap();
    TlsConnector::from(trusted).connect(second, stream).await.unwrap();

    // Damaged files are replaced, and the rest is kept.
    drop(program);
    std::fs::write(state.path().join("acme-certificate.pem"), "nonsense").unwrap();
    let program = start(state.path(), &authority);
    program.says("acme-certificate.pem: ");
    program.says("a new certificate is in use");
    assert_eq!(std::fs::read(state.path().join("acme-account.json")).unwrap(), account);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_s_protocol_opens_nothing_but_its_challenge() {
    let (state, mut authority) = (running::directory(), Authority::new(24 * HOUR));
    authority.start();
    let program = start(state.path(), &authority);
    program.says("a new certificate is in use");
    let trusted = authority.trusted().await;
    let offering = |protocols: &[&[u8]]| {
        let mut config = ClientConfig::clone(&trusted);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    assert!(encrypt(&offering(&[b"acme-tls/1"]), &authority).await.is_err(), "no challenge is open");
    let both = encrypt(&offering(&[b"acme-tls/1", b"http/1.1"]), &authority).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_its_own_gets_a_certificate_too() {
    let (state, mut authority) = (running::directory(), Authority::new(24 * HOUR));
    authority.start();
    let [tcp, udp] = authority.coordinator().map(|address| address.to_string());
    let mut command = Command::new(PROGRAM);
    command.arg("--state").arg(state.path()).args(["relay", "--listen", &tcp, "--udp", &udp, "--name", HOST]);
    // It needs no coordinator for that.
    command.args(["--coordinator", "https://127.0.0.1:1", "--fingerprint", &Fingerprint([0; 32]).to_string()]);
    let program = Program::spawn(asking(command, &authority));
    program.says("a new certificate is in use");
    let trusted = authority.trusted().await;
    shown(&trusted, &authority).await.unwrap();
}
