//! How the command line talks to the running coordinator: a Unix socket in its state directory, for the
//! directory's owner only. A connection is one line of JSON each way.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use penstock_proto::coordination::{EnrolmentKeyId, Name, Relay, SiteKey, Waiting};
use penstock_proto::trust::{AuthorityKey, Document, Publication};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::acme::AcmeReport;
use crate::admission::{Door, DoorReport};
use crate::policy::{self, Policy};
use crate::registry::{AuthorityReport, ChangeError, KeyTerms, Registry};
use crate::relay::RelayServer;
use crate::signer::{Requests, Spare};
use crate::site::{Site, SiteState};
use crate::store::{AuditEntry, KeyRecord, Who};
use crate::time::{now, rough};
use crate::udp::Sockets;

/// The socket's name in the state directory.
pub const SOCKET: &str = "control.sock";
/// Longest request: a policy, and some.
const REQUEST_LIMIT: u64 = 2 * policy::LIMIT as u64;
/// Longest answer: all sites of the largest coordinator.
const ANSWER_LIMIT: u64 = 64 << 20;
/// How long each side may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after a failed connection the next is taken.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What the command line asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// A new enrolment key.
    CreateKey {
        /// How many sites it lets in.
        uses: u32,
        /// For how long.
        lifetime: Duration,
        /// Given to those sites.
        tags: BTreeSet<Name>,
        /// They wait for an administrator.
        approve_manually: bool,
        /// What those sites may offer at first, whatever it is.
        #[serde(default)]
        subnets: Vec<IpNet>,
        /// For how long they are let in; none: for good.
        #[serde(default)]
        site_lifetime: Option<Duration>,
    },
    /// All enrolment keys.
    ListKeys,
    /// An enrolment key must let in no more.
    RevokeKey(String),
    /// All sites.
    ListSites,
    /// Let a site in, or let it offer other subnets.
    Approve {
        /// Its name or key.
        site: String,
        /// What it may offer; none: what needs no grant.
        subnets: Option<Vec<IpNet>>,
    },
    /// Cut a site off.
    Revoke(String),
    /// Cut a site off and forget it.
    Remove(String),
    /// Say when a site is cut off by itself.
    Limit {
        /// Its name or key.
        site: String,
        /// From now; none: never.
        lifetime: Option<Duration>,
    },
    /// The last changes that were made.
    Audit {
        /// So many.
        last: u32,
    },
    /// Who stands for the overlay.
    Authority,
    /// What waits for the authority's signature.
    Requests,
    /// All that the authority has signed.
    Publication,
    /// The authority has signed something elsewhere.
    AddDocuments(Box<Publication>),
    /// Another key is to stand for the overlay: a new one, or the key of a file.
    RollOver(Option<Spare>),
    /// Sign in advance that another key may take over.
    MakeSpare(AuthorityKey),
    /// The authority's key is to be removed.
    RemoveAuthority,
    /// Make the certificate that is to take the place of the coordinator's own.
    NextCertificate,
    /// Put it there.
    SwitchCertificate,
    /// What runs, and what it did.
    Status,
    /// The policy.
    ShowPolicy,
    /// Another policy.
    SetPolicy(Policy),
}

impl Request {
    /// Reads the line of a connection; none if it is no request.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// What the coordinator answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// A new enrolment key, as text.
    Key(String),
    /// The answer to [`Request::ListKeys`].
    Keys(Vec<KeyRecord>),
    /// The answer to [`Request::ListSites`].
    Sites(Vec<SiteStatus>),
    /// The answer to [`Request::Authority`].
    Authority(AuthorityReport),
    /// The answer to [`Request::Requests`]: what waits for the authority's signature.
    Requests(Requests),
    /// The answer to [`Request::Publication`]: all that the authority has signed.
    Publication(Box<Publication>),
    /// The answer to [`Request::MakeSpare`]: the rollover to the spare key.
    Document(Document),
    /// The answer to [`Request::Status`].
    Status(StatusReport),
    /// The answer to [`Request::ShowPolicy`].
    Policy(Policy),
    /// The answer to [`Request::Audit`].
    Audit(Vec<AuditEntry>),
    /// It is done; a sentence.
    Done(String),
    /// It is not; a sentence.
    Error(String),
}

/// What a running coordinator can tell of.
pub struct Status {
    /// Sites, keys, policy.
    pub registry: Arc<Registry>,
    /// Its relay.
    pub relay: Option<Arc<RelayServer>>,
    /// Its UDP sockets.
    pub udp: Arc<Sockets>,
    /// Where connections come in.
    pub door: Arc<Door>,
    /// How it goes with its certificate, if that is of an authority.
    pub acme: Option<Arc<Mutex<AcmeReport>>>,
    /// The state directory.
    pub state: PathBuf,
    /// The names by which gateways reach it, for its own certificate.
    pub names: Vec<String>,
}

/// What runs, and what it did since it started.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StatusReport {
    /// The program's version.
    pub version: String,
    /// Sites that are approved.
    pub sites: usize,
    /// Sites that are connected.
    pub sites_connected: usize,
    /// Sites that wait for an administrator.
    #[serde(default)]
    pub sites_waiting: usize,
    /// Sites that were revoked.
    #[serde(default)]
    pub sites_revoked: usize,
    /// Subnets that wait for an administrator.
    #[serde(default)]
    pub subnets_waiting: usize,
    /// Leases that were given.
    #[serde(default)]
    pub leases_given: u64,
    /// Connections without a proof, and those that were not let in.
    #[serde(default)]
    pub door: DoorReport,
    /// The longest time that all sites had to wait for one change, in microseconds.
    pub longest_hold: u64,
    /// Relays as gateways are told of them.
    pub relays: Vec<Relay>,
    /// Those of them, by key, that are connected to be told who may talk.
    pub relays_connected: Vec<SiteKey>,
    /// STUN servers as gateways are told of them.
    pub stun_servers: Vec<SocketAddr>,
    /// STUN requests that were answered.
    pub stun_answers: u64,
    /// STUN messages that were not.
    pub stun_drops: u64,
    /// The coordinator's own relay.
    pub relay: Option<RelayReport>,
    /// The certificate, if an authority is asked for it.
    pub acme: Option<Box<AcmeReport>>,
}

/// What a relay did since it started.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RelayReport {
    /// Sites that it knows.
    pub sites: usize,
    /// Sites that are bound to a place.
    pub bindings: usize,
    /// Datagrams that it forwarded.
    pub datagrams: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Datagrams that it dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

impl RelayReport {
    /// Of a running relay.
    #[must_use]
    pub fn of(relay: &RelayServer) -> Self {
        let (sites, bindings) = relay.count();
        let (datagrams, bytes) = relay.counters.totals();
        Self { sites, bindings, datagrams, bytes, drops: relay.counters.drops() }
    }
}

impl Status {
    /// The state at this moment.
    #[must_use]
    pub fn report(&self) -> StatusReport {
        let sites = self.registry.sites();
        let in_state = |state| sites.iter().filter(|(site, _)| site.state == state).count();
        let servers = self.registry.servers();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            sites: in_state(SiteState::Approved),
            sites_connected: sites.iter().filter(|(_, connected)| *connected).count(),
            sites_waiting: in_state(SiteState::Pending),
            sites_revoked: in_state(SiteState::Revoked),
            subnets_waiting: self.registry.subnets_waiting(),
            leases_given: self.registry.leases_given(),
            door: self.door.report(),
            longest_hold: u64::try_from(self.registry.longest_hold().as_micros()).unwrap_or(u64::MAX),
            relays: servers.relays,
            relays_connected: self.registry.relays_connected(),
            stun_servers: servers.stun_servers,
            stun_answers: self.udp.stun_answers.load(Ordering::Relaxed),
            stun_drops: self.udp.stun_drops.load(Ordering::Relaxed),
            relay: self.relay.as_deref().map(RelayReport::of),
            acme: self
                .acme
                .as_deref()
                .map(|acme| Box::new(acme.lock().unwrap_or_else(PoisonError::into_inner).clone())),
        }
    }
}

/// A site, and whether it is there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SiteStatus {
    /// What lasts.
    #[serde(flatten)]
    pub site: Site,
    /// It is connected to the coordinator.
    pub connected: bool,
    /// What of its offer is not in force, and why.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
}

/// Listens at the socket. The state directory must be ours alone: what is there is of a dead
/// predecessor. Must be called within a tokio runtime.
///
/// # Errors
/// What the file system says.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests, one after the other: the clients are administrators.
pub async fn serve(listener: UnixListener, status: Arc<Status>) {
    loop {
        let outcome = match listener.accept().await {
            Ok((stream, _)) => converse(stream, &status).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!("control socket: {error}");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

async fn converse(stream: UnixStream, status: &Status) -> io::Result<()> {
    let who = Who::User(stream.peer_cred()?.uid());
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    timeout(PATIENCE, (&mut stream).take(REQUEST_LIMIT).read_until(b'\n', &mut line)).await??;
    // Without a time limit: a change that has begun is made to the end.
    let answer = match Request::parse(&line) {
        Some(request) => answer(request, &who, status).await.unwrap_or_else(|error| Answer::Error(error.to_string())),
        None => Answer::Error("this coordinator does not know that request".into()),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(PATIENCE, stream.write_all(&text)).await?
}

async fn answer(request: Request, who: &Who, status: &Status) -> Result<Answer, ChangeError> {
    let registry = &status.registry;
    Ok(match request {
        Request::CreateKey { uses, lifetime, tags, approve_manually, subnets, site_lifetime } => {
            let terms = KeyTerms { uses, lifetime, tags, approve_manually, subnets, site_lifetime };
            Answer::Key(registry.create_key(terms, who).await?.to_text().to_string())
        }
        Request::ListKeys => Answer::Keys(registry.keys().await?),
        Request::RevokeKey(id) => match id.parse::<EnrolmentKeyId>() {
            Ok(id) => {
                registry.revoke_key(id, who).await?;
                Answer::Done(format!("the enrolment key {id} lets in no more"))
            }
            Err(_) => Answer::Error(format!("{id:?} names no enrolment key: see `key list`")),
        },
        Request::ListSites => Answer::Sites(
            registry
                .sites()
                .into_iter()
                .map(|(site, connected)| {
                    let waiting = registry.waiting(&site.key).into_iter();
                    let waiting = waiting.map(|(subnet, why)| Waiting { subnet, reason: why.to_string() }).collect();
                    SiteStatus { site, connected, waiting }
                })
                .collect(),
        ),
        Request::Approve { site, subnets } => {
            let site = registry.approve(&site, subnets, who).await?;
            let mut sentence = format!("{} is approved", site.name);
            for (subnet, why) in registry.waiting(&site.key) {
                sentence.push_str(&format!("; {subnet} still waits: {why}"));
            }
            Answer::Done(sentence)
        }
        Request::Authority => Answer::Authority(registry.authority().await?),
        Request::Requests => Answer::Requests(registry.requests().await?),
        Request::Publication => Answer::Publication(Box::new(registry.publication().await?)),
        Request::AddDocuments(signed) => {
            let count = registry.add_documents(&signed, who).await?;
            Answer::Done(format!("{count} signed documents are new and in force"))
        }
        Request::RollOver(spare) => {
            let spare = match spare.map(Spare::open) {
                Some(None) => return Ok(Answer::Error("this is not a spare key with its document".into())),
                Some(spare) => spare,
                None => None,
            };
            let authority = registry.roll_over(spare, who).await?;
            Answer::Done(format!("{authority} stands for the overlay from now on: make a new spare"))
        }
        Request::MakeSpare(to) => Answer::Document(registry.spare(to, who).await?),
        Request::RemoveAuthority => {
            registry.forget_authority(who).await?;
            Answer::Done("the authority's key is removed from this coordinator".into())
        }
        Request::NextCertificate => {
            let made = registry.next_certificate(status.state.clone(), status.names.clone(), who);
            Answer::Done(made.await?.to_string())
        }
        Request::SwitchCertificate => {
            let fingerprint = registry.switch_certificate(status.state.clone(), who).await?;
            Answer::Done(format!("restart the coordinator: its certificate is {fingerprint} then"))
        }
        Request::Revoke(site) => {
            let site = registry.revoke(&site, who).await?;
            Answer::Done(format!("{} is revoked", site.name))
        }
        Request::Remove(site) => {
            let site = registry.remove(&site, who).await?;
            Answer::Done(format!("{} is removed", site.name))
        }
        Request::Limit { site, lifetime } => {
            let site = registry.limit(&site, lifetime, who).await?;
            Answer::Done(match site.ends {
                Some(ends) => format!("{} ends in {}", site.name, rough(ends.saturating_sub(now()))),
                None => format!("{} does not end by itself", site.name),
            })
        }
        Request::Audit { last } => Answer::Audit(registry.audit(last).await?),
        Request::Status => Answer::Status(status.report()),
        Request::ShowPolicy => Answer::Policy(registry.policy()),
        Request::SetPolicy(policy) => {
            registry.set_policy(policy, who).await?;
            Answer::Done("the policy is in force".into())
        }
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no coordinator runs with {0}")]
    NotRunning(PathBuf),
    /// We may not.
    #[error("{0} is for its owner only: try as root")]
    NotAllowed(PathBuf),
    /// The connection ended without an answer: it stops, or crashed.
    #[error("the coordinator went away without an answer")]
    Gone,
    /// The socket, or what came out of it, is not as it should be.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Asks the coordinator with that state directory.
///
/// # Errors
/// There is no answer.
pub fn ask(state: &Path, request: &Request) -> Result<Answer, AskError> {
    use io::ErrorKind;
    let path = state.join(SOCKET);
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::NotRunning(state.to_owned()),
        ErrorKind::PermissionDenied => AskError::NotAllowed(state.to_owned()),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => AskError::Gone,
        _ => AskError::Io { path: path.clone(), error },
    };
    let mut stream = std::os::unix::net::UnixStream::connect(&path).map_err(failed)?;
    let mut text = Vec::new();
    let mut exchange = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        (&stream).take(ANSWER_LIMIT).read_to_end(&mut text)
    };
    match exchange() {
        Ok(0) => Err(AskError::Gone),
        Ok(_) => serde_json::from_slice(&text).map_err(|error| failed(error.into())),
        Err(error) => Err(failed(error)),
    }
}
