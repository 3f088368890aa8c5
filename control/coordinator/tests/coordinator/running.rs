//! A coordinator in this process, and its administrator.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use penstock_coordinator::admin::{Answer, Request, SiteStatus, ask};
use penstock_coordinator::config::{Config, Document};
use penstock_coordinator::policy::Policy;
use penstock_coordinator::run::Coordinator;
use penstock_proto::coordination::{EnrolmentKey, Fingerprint};

use crate::client::{Connection, Failure, Gateway, HOST};

pub struct Running {
    pub coordinator: Coordinator,
    pub directory: tempfile::TempDir,
    pub address: SocketAddr,
    /// Of STUN server and relay.
    pub udp: SocketAddr,
    pub pin: Fingerprint,
}

impl Running {
    pub async fn start() -> Self {
        Self::start_in(directory()).await
    }

    pub async fn start_in(directory: tempfile::TempDir) -> Self {
        let document = document(directory.path());
        Self::start_with(directory, document).await
    }

    /// With another configuration; its state is in the directory.
    pub async fn start_with(directory: tempfile::TempDir, document: Document) -> Self {
        let document = Document { state: Some(directory.path().to_owned()), ..document };
        let config: Config = document.try_into().unwrap();
        let coordinator = Coordinator::start(config).await.unwrap();
        let address = coordinator.addresses()[0];
        let udp = coordinator.udp_addresses()[0];
        keep_addresses(directory.path(), address, udp);
        let pin = coordinator.identity().unwrap().fingerprint;
        Self { coordinator, directory, address, udp, pin }
    }

    /// Stops in order; what is left is the directory.
    pub async fn stop(self) -> tempfile::TempDir {
        self.coordinator.stop().await.unwrap();
        self.directory
    }

    pub async fn ask(&self, request: Request) -> Answer {
        let state = self.directory.path().to_owned();
        tokio::task::spawn_blocking(move || ask(&state, &request)).await.unwrap().unwrap()
    }

    pub async fn done(&self, request: Request) {
        match self.ask(request).await {
            Answer::Done(_) => {}
            other => panic!("{other:?}"),
        }
    }

    pub async fn key(&self, uses: u32, tags: &[&str]) -> EnrolmentKey {
        self.key_for(uses, tags, Duration::from_secs(3600), false).await
    }

    pub async fn key_for(&self, uses: u32, tags: &[&str], lifetime: Duration, approve_manually: bool) -> EnrolmentKey {
        let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        let request =
            Request::CreateKey { uses, lifetime, tags, approve_manually, subnets: Vec::new(), site_lifetime: None };
        match self.ask(request).await {
            Answer::Key(text) => text.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn sites(&self) -> Vec<SiteStatus> {
        match self.ask(Request::ListSites).await {
            Answer::Sites(sites) => sites,
            other => panic!("{other:?}"),
        }
    }

    pub async fn policy(&self, text: &str) {
        self.done(Request::SetPolicy(Policy::parse(text).unwrap())).await;
    }

    pub async fn connect(&self, gateway: &Gateway) -> Result<Connection, Failure> {
        gateway.connect(self.address, self.pin).await
    }

    /// A new site with tags, enrolled, approved and connected.
    pub async fn site(&self, name: &str, subnets: &[&str], tags: &[&str]) -> (Gateway, Connection) {
        let key = self.key(1, tags).await;
        let gateway = Gateway::new(name, subnets).with_key(&key);
        let mut connection = self.connect(&gateway).await.unwrap();
        connection.until("there is a map", |connection| connection.map.is_some()).await;
        (gateway, connection)
    }
}

/// A new directory for its owner only.
pub fn directory() -> tempfile::TempDir {
    let owner = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(owner).tempdir().unwrap()
}

const ADDRESSES: &str = "test-addresses";

/// Where to listen: any free ports at first, the same ones after a restart, since gateways are told of them.
pub fn addresses(state: &Path) -> [SocketAddr; 2] {
    let any = "127.0.0.1:0".parse().unwrap();
    let kept = std::fs::read_to_string(state.join(ADDRESSES));
    kept.map_or([any; 2], |kept| {
        let mut lines = kept.lines().map(|line| line.parse().unwrap());
        [lines.next().unwrap(), lines.next().unwrap()]
    })
}

pub fn keep_addresses(state: &Path, tcp: SocketAddr, udp: SocketAddr) {
    std::fs::write(state.join(ADDRESSES), format!("{tcp}\n{udp}\n")).unwrap();
}

pub fn document(state: &Path) -> Document {
    let [tcp, udp] = addresses(state);
    Document {
        listen: Some(vec![tcp]),
        names: Some(vec![HOST.into()]),
        state: Some(state.to_owned()),
        udp_listen: Some(vec![udp]),
        stun_alternate_port: Some(0),
        stun_servers: Some(vec!["192.0.2.1:3478".parse().unwrap()]),
        ..Document::default()
    }
}

/// Approval of a site, and of those of its subnets that need no grant.
pub fn approve(site: impl ToString) -> Request {
    Request::Approve { site: site.to_string(), subnets: None }
}

/// Approval of a site with these subnets.
pub fn grant(site: &str, subnets: &[&str]) -> Request {
    let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
    Request::Approve { site: site.to_owned(), subnets: Some(subnets) }
}
