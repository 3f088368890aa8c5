//! How the command line talks to the running coordinator: through a Unix socket in its state directory that only the
//! directory's owner can use. A connection is one line of JSON in each direction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_proto::coordination::{EnrolmentKeyId, Name, Relay, SiteKey, Waiting};
use penstock_proto::trust::{AuthorityKey, Document, Publication};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::acme::AcmeReport;
use crate::admission::{Door, DoorReport};
use crate::page::Entrance;
use crate::policy::{self, Policy};
use crate::registry::{AuthorityReport, ChangeError, Count, CutOff, KeyTerms, PolicyPreview, Registry};
use crate::relay::RelayServer;
use crate::signer::{Requests, Spare};
use crate::site::{BindingMode, Site};
use crate::store::{AuditEntry, KeyRecord, Who};
use crate::time::{now, rough};
use crate::udp::Sockets;

/// The socket's name in the state directory.
pub const SOCKET: &str = "control.sock";
/// Longest request: a policy, with some room.
const REQUEST_LIMIT: u64 = 2 * policy::LIMIT as u64;
/// Longest answer: all sites of the largest coordinator.
const ANSWER_LIMIT: u64 = 64 << 20;
/// How many of the sites that a new policy cuts off are named.
const CUT_OFF_NAMED: usize = 10;
/// How long each side may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait after a failed accept.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What the command line asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// A new enrolment key.
    CreateKey {
        /// How many sites it admits.
        uses: u32,
        /// For how long it can be used.
        lifetime: Duration,
        /// The tags of those sites.
        tags: BTreeSet<Name>,
        /// Whether they wait for an administrator.
        approve_manually: bool,
        /// What those sites may offer at first.
        #[serde(default)]
        subnets: Vec<IpNet>,
        /// For how long they are admitted; `None`: without end.
        #[serde(default)]
        site_lifetime: Option<Duration>,
    },
    /// All enrolment keys.
    ListKeys,
    /// Revoke an enrolment key.
    RevokeKey(String),
    /// All sites.
    ListSites,
    /// Admit a site, or let it offer other subnets.
    Approve {
        /// Its name or key.
        site: String,
        /// What it may offer; `None`: what needs no grant.
        subnets: Option<Vec<IpNet>>,
    },
    /// Cut a site off.
    Revoke(String),
    /// Cut a site off and remove it.
    Remove(String),
    /// Set when a site is cut off automatically.
    Limit {
        /// Its name or key.
        site: String,
        /// Counted from now; `None`: never.
        lifetime: Option<Duration>,
    },
    /// Set whether a site has to prove its key within the TLS connection itself.
    ChannelBinding {
        /// Its name or key.
        site: String,
        /// Whether it has to.
        mode: BindingMode,
    },
    /// The latest changes.
    Audit {
        /// How many.
        last: u32,
    },
    /// The state of the overlay's authority.
    Authority,
    /// What waits for the authority's signature.
    Requests,
    /// Everything that the authority has signed.
    Publication,
    /// Add documents that the authority has signed elsewhere.
    AddDocuments(Box<Publication>),
    /// Hand the overlay over to another key: a new one, or the one in a file.
    RollOver(Option<Spare>),
    /// Sign in advance that another key may take over.
    MakeSpare(AuthorityKey),
    /// Remove the authority's key.
    RemoveAuthority,
    /// Make the certificate that is to replace the coordinator's own.
    NextCertificate,
    /// Replace the present certificate with the next one.
    SwitchCertificate,
    /// What is running, and what it has done.
    Status,
    /// The policy.
    ShowPolicy,
    /// What another policy would change.
    PreviewPolicy(Policy),
    /// Set another policy.
    SetPolicy(Policy),
    /// Replace the policy that has this fingerprint.
    ReplacePolicy {
        /// The new policy.
        policy: Policy,
        /// The fingerprint of the old policy.
        base: String,
    },
    /// A link that logs a browser in to the page.
    PageLogin,
}

impl Request {
    /// Parses the line of a connection; `None` if it is not a request.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// The coordinator's answer.
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
    /// The answer to [`Request::Publication`]: everything that the authority has signed.
    Publication(Box<Publication>),
    /// The answer to [`Request::MakeSpare`]: the rollover to the spare key.
    Document(Document),
    /// The answer to [`Request::Status`].
    Status(StatusReport),
    /// The answer to [`Request::ShowPolicy`].
    Policy(Policy),
    /// The answer to [`Request::PreviewPolicy`].
    Preview(PolicyPreview),
    /// The answer to [`Request::Audit`].
    Audit(Vec<AuditEntry>),
    /// What was done, in a sentence.
    Done(String),
    /// Why it was not done, in a sentence.
    Error(String),
}

/// What a running coordinator can report on.
pub struct Status {
    /// Sites, keys, policy.
    pub registry: Arc<Registry>,
    /// Its relay.
    pub relay: Option<Arc<RelayServer>>,
    /// Its UDP sockets.
    pub udp: Arc<Sockets>,
    /// The entrance of all connections.
    pub door: Arc<Door>,
    /// Its page.
    pub page: Option<Arc<Entrance>>,
    /// The state of its certificate, if that is from an authority.
    pub acme: Option<Arc<Mutex<AcmeReport>>>,
    /// The state directory.
    pub state: PathBuf,
    /// The names under which gateways reach it, for its own certificate.
    pub names: Vec<String>,
}

/// What is running, and what it has done since it started.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StatusReport {
    /// The program's version.
    pub version: String,
    /// Approved sites.
    pub sites: usize,
    /// Connected sites.
    pub sites_connected: usize,
    /// Sites that wait for an administrator.
    #[serde(default)]
    pub sites_waiting: usize,
    /// Revoked sites.
    #[serde(default)]
    pub sites_revoked: usize,
    /// Subnets that wait for an administrator.
    #[serde(default)]
    pub subnets_waiting: usize,
    /// Leases issued.
    #[serde(default)]
    pub leases_given: u64,
    /// Connections without a proof, and refused ones.
    #[serde(default)]
    pub door: DoorReport,
    /// The longest time that all sites had to wait for one change, in microseconds.
    pub longest_hold: u64,
    /// The relays that gateways are told about.
    pub relays: Vec<Relay>,
    /// The keys of those relays that are connected.
    pub relays_connected: Vec<SiteKey>,
    /// The STUN servers that gateways are told about.
    pub stun_servers: Vec<SocketAddr>,
    /// STUN requests answered.
    pub stun_answers: u64,
    /// STUN messages dropped.
    pub stun_drops: u64,
    /// The coordinator's own relay.
    pub relay: Option<RelayReport>,
    /// The certificate's state, if it is obtained from an authority.
    pub acme: Option<Box<AcmeReport>>,
}

/// What a relay has done since it started.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RelayReport {
    /// Sites that it knows.
    pub sites: usize,
    /// Sites that are bound.
    pub bindings: usize,
    /// Datagrams forwarded.
    pub datagrams: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Datagrams dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

impl RelayReport {
    /// The report of a running relay.
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
        let Count { approved, connected, waiting, revoked } = self.registry.count();
        let servers = self.registry.servers();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            sites: approved,
            sites_connected: connected,
            sites_waiting: waiting,
            sites_revoked: revoked,
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

/// A site, and whether it is connected.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SiteStatus {
    /// What is stored about it.
    #[serde(flatten)]
    pub site: Site,
    /// Whether it is connected to the coordinator.
    pub connected: bool,
    /// Which part of its offer is not in force, and why.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// The sites that the policy cuts it off from, because its gateway is too old.
    #[serde(default)]
    pub cut_off: Option<CutOff>,
}

/// Listens on the socket. The state directory must be ours alone: an existing socket belongs to a dead predecessor.
/// Must be called within a tokio runtime.
///
/// # Errors
/// The file system's error.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests, one after the other, since the clients are administrators.
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
    // Without a time limit: a change that has started is completed.
    let answer = match Request::parse(&line) {
        Some(request) => answer(request, &who, status).await.unwrap_or_else(|error| Answer::Error(error.to_string())),
        None => Answer::Error("this coordinator does not know that request".into()),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(PATIENCE, stream.write_all(&text)).await?
}

/// Carries out a request on behalf of `who`.
pub(crate) async fn answer(request: Request, who: &Who, status: &Status) -> Result<Answer, ChangeError> {
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
                Answer::Done(format!("the enrolment key {id} lets in no more sites"))
            }
            Err(_) => Answer::Error(format!("{id:?} names no enrolment key: see `key list`")),
        },
        Request::ListSites => {
            let mut cut_off: HashMap<_, _> = registry.cut_off().into_iter().map(|site| (site.key, site)).collect();
            let status = |(site, connected): (Site, bool)| {
                let waiting = registry.waiting(&site.key).into_iter();
                let waiting = waiting.map(|(subnet, why)| Waiting { subnet, reason: why.to_string() }).collect();
                let cut_off = cut_off.remove(&site.key);
                SiteStatus { site, connected, waiting, cut_off }
            };
            Answer::Sites(registry.sites().into_iter().map(status).collect())
        }
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
            Answer::Done(format!("signed documents that are new and in force: {count}"))
        }
        Request::RollOver(spare) => {
            let spare = match spare.map(Spare::open) {
                Some(None) => return Ok(Answer::Error("this file is not one from `authority spare`".into())),
                Some(spare) => spare,
                None => None,
            };
            let authority = registry.roll_over(spare, who).await?;
            Answer::Done(format!("{authority} is the overlay's authority from now on: make a new spare"))
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
            Answer::Done(format!("restart the coordinator: its certificate will then be {fingerprint}"))
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
                Some(ends) => format!("{} will be revoked in {}", site.name, rough(ends.saturating_sub(now()))),
                None => format!("{} will not be revoked automatically", site.name),
            })
        }
        Request::ChannelBinding { site, mode } => {
            let site = registry.set_channel_binding(&site, mode, who).await?;
            Answer::Done(format!("the channel binding of {} is {}", site.name, mode.as_str()))
        }
        Request::Audit { last } => Answer::Audit(registry.audit(last).await?),
        Request::Status => Answer::Status(status.report()),
        Request::ShowPolicy => Answer::Policy(registry.policy()),
        Request::PreviewPolicy(policy) => Answer::Preview(registry.preview_policy(policy).await),
        Request::SetPolicy(policy) => {
            registry.set_policy(policy, None, who).await?;
            Answer::Done(in_force(registry))
        }
        Request::ReplacePolicy { policy, base } => {
            registry.set_policy(policy, Some(&base), who).await?;
            Answer::Done(in_force(registry))
        }
        Request::PageLogin => match &status.page {
            Some(entrance) => {
                let link = entrance.sessions.make_link(Instant::now(), Who::Page(who.name()));
                Answer::Done(format!("{}/login?link={}", entrance.origins.url(), *link))
            }
            None => Answer::Error("this coordinator serves no page: its configuration has no Page".into()),
        },
    })
}

/// Says that a policy is in force, what in it selects nobody, and whom it cuts off.
fn in_force(registry: &Registry) -> String {
    let cut_off = registry.cut_off();
    let mut sentence = "the policy is in force".to_owned();
    let idle: Vec<String> = registry.selects_nobody().iter().map(ToString::to_string).collect();
    match idle.len().saturating_sub(CUT_OFF_NAMED) {
        _ if idle.is_empty() => {}
        0 => sentence.push_str(&format!("; no site is selected by {}", idle.join(", "))),
        more => {
            let named = idle[..CUT_OFF_NAMED].join(", ");
            sentence.push_str(&format!("; no site is selected by {named} and {more} others"));
        }
    }
    for site in cut_off.iter().take(CUT_OFF_NAMED) {
        sentence.push_str(&format!("; {site}"));
    }
    match cut_off.len().saturating_sub(CUT_OFF_NAMED) {
        0 => sentence,
        more => format!("{sentence}; and {more} more sites are cut off: see `site list`"),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No coordinator is running.
    #[error("the coordinator is not running (state directory {0})")]
    NotRunning(PathBuf),
    /// Only the owner may connect.
    #[error("{0} is for its owner only: try as root")]
    NotAllowed(PathBuf),
    /// The connection ended without an answer: the coordinator is stopping, or has crashed.
    #[error("the coordinator closed the connection without an answer")]
    Gone,
    /// Something is wrong with the socket or the answer.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// Sends a request to the coordinator with this state directory.
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
