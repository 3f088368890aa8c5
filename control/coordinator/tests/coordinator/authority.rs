//! A certificate authority: pebble, the ACME server to test with, and a DNS server that resolves all names to us. Each
//! has a loopback address of its own, so that the ports can be the usual ones.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use instant_acme::HttpClient;
use penstock_connect::Trust;
use penstock_coordinator::acme::http::Client;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ClientConfig;

const DIRECTORY_PORT: u16 = 14000;
const MANAGEMENT_PORT: u16 = 15000;
const DNS_PORT: u16 = 8053;
const VALIDATION_PORT: u16 = 5001;

/// An authority that may run.
pub struct Authority {
    address: Ipv4Addr,
    directory: tempfile::TempDir,
    lifetime: Duration,
    validation_port: u16,
    processes: Vec<Child>,
}

impl Authority {
    /// An authority that does not run yet.
    pub fn new(lifetime: Duration) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let address = Ipv4Addr::new(127, 64 + high % 128, low, NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().unwrap();
        write_certificates(directory.path(), address);
        Self { address, directory, lifetime, validation_port: VALIDATION_PORT, processes: Vec::new() }
    }

    /// An authority that checks names at a port where nobody listens.
    pub fn astray() -> Self {
        let mut authority = Self::new(Duration::from_secs(3600));
        authority.validation_port += 1;
        authority
    }

    /// Starts it, without anything that it knew before.
    pub fn start(&mut self) {
        let address = self.address;
        let at = |port: u16| format!("{address}:{port}");
        let config = serde_json::json!({ "pebble": {
            "listenAddress": at(DIRECTORY_PORT),
            "managementListenAddress": at(MANAGEMENT_PORT),
            "certificate": self.directory.path().join("server.pem"),
            "privateKey": self.directory.path().join("server.key"),
            "httpPort": VALIDATION_PORT + 2,
            "tlsPort": self.validation_port,
            "certificateValidityPeriod": self.lifetime.as_secs(),
        }});
        let file = self.directory.path().join("pebble.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut dns = Command::new("pebble-challtestsrv");
        dns.args(["-defaultIPv4", &address.to_string(), "-defaultIPv6", "", "-dns01", &at(DNS_PORT)]);
        dns.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", &at(DNS_PORT + 2)]);
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(file).args(["-dnsserver", &at(DNS_PORT)]);
        // Validate at once, and each time, and take every valid nonce.
        pebble.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
        for mut command in [dns, pebble] {
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            self.processes.push(quiet.spawn().expect("pebble is missing: scripts/setup --test installs it"));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        for port in [DIRECTORY_PORT, MANAGEMENT_PORT] {
            while std::net::TcpStream::connect((address, port)).is_err() {
                assert!(Instant::now() < deadline, "pebble does not start");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Stops it.
    pub fn stop(&mut self) {
        for mut process in self.processes.drain(..) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}:{DIRECTORY_PORT}/dir", self.address)
    }

    /// The certificate authorities that vouch for the directory's server.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Where it connects to check names, and a UDP address as well.
    pub fn coordinator(&self) -> [SocketAddr; 2] {
        [(self.address, VALIDATION_PORT).into(), (self.address, 3478).into()]
    }

    /// The TLS configuration of a gateway that trusts this authority. It is good until the authority stops.
    pub async fn trusted(&self) -> Arc<ClientConfig> {
        let client = Client::new(Some(&self.ca_file())).unwrap();
        let url = format!("https://{}:{MANAGEMENT_PORT}/roots/0", self.address);
        let request = hyper::Request::get(url).body(Default::default()).unwrap();
        let root = client.request(request).await.unwrap().body.into_bytes().await.unwrap();
        let file = self.directory.path().join("root.pem");
        std::fs::write(&file, root).unwrap();
        Trust::Authorities(Some(file)).client_config().unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes the certificates of the directory's own server.
fn write_certificates(directory: &Path, address: Ipv4Addr) {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = parameters.self_signed(&key).unwrap();
    std::fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
    let issuer = Issuer::new(parameters, key);
    let server = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([address.to_string()]).unwrap().signed_by(&server, &issuer).unwrap();
    std::fs::write(directory.join("server.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.join("server.key"), server.serialize_pem()).unwrap();
}
