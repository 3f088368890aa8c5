//! The one place where the coordinator's knowledge changes.
//!
//! It owns the [`Store`], the [`Signer`] and the state in memory. A change is written to the store first, under the
//! ledger's lock. Only once it is on disk is it made in memory, where connections learn of it. So whatever anybody was
//! told is durable, and a change that failed has had no effect. What gateways announce about their reachability is kept
//! in memory only.

mod authority;
mod certificates;
mod cut_off;
mod documents;
mod draft;
mod feed;
mod gateways;
mod held;
mod history;
mod leases;
mod links;
mod offers;
mod overview;
mod preview;
mod reports;
mod state;
mod transition;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_proto::coordination::limits::PEERS_LIMIT;
use penstock_proto::coordination::{Access, EnrolmentKey, EnrolmentKeyId, Fingerprint, Name, Relay, SiteKey};
use penstock_proto::trust::{LeaseLength, Serial, Subnets, SubnetsError, Tags, TooManyTags};
use rand::Rng;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::certificate::CertificateError;
use crate::policy::{Policy, Selector};
use crate::signer::{Keys, Signer, SignerError};
use crate::site::{BindingMode, Site, SiteState};
use crate::store::{AuditEntry, KeyRecord, Store, StoreError, Who};
use crate::time::now;

pub use authority::AuthorityReport;
pub use cut_off::CutOff;
pub use documents::Common;
pub use draft::{Draft, messages_of};
pub use feed::Reader;
use held::{Held, Timed};
pub use history::{EVERY as HISTORY_EVERY, Past};
use leases::Leases;
pub use offers::WaitingSubnets;
pub use overview::{LINKS_LIMIT, LinkView, Overview, SiteView};
pub use preview::{Announcement, Named, PolicyPreview};
use reports::Reported;
use state::State;
pub use state::{Outgoing, Session};
use transition::Transition;

/// The most sites: a map can hold all of them but the one that it is for.
const SITES_LIMIT: usize = PEERS_LIMIT + 1;

/// Sites, keys and policy.
pub struct Registry {
    // Locked before `state` if both are, and always for a change that is stored.
    ledger: AsyncMutex<Ledger>,
    // Locked after `ledger` and before `state`.
    leases: Leases,
    state: Timed<State>,
    /// When sites were last connected, where that is not stored yet.
    seen: Mutex<BTreeMap<SiteKey, u64>>,
    relay_links: Mutex<BTreeMap<SiteKey, Arc<Notify>>>,
    reported: Reported,
    /// The fingerprint of our own certificate, for enrolment keys.
    fingerprint: Option<Fingerprint>,
}

/// How many sites there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Approved sites.
    pub approved: usize,
    /// Connected sites.
    pub connected: usize,
    /// Sites that wait for an administrator.
    pub waiting: usize,
    /// Revoked sites.
    pub revoked: usize,
}

/// What is on disk, and the signer.
struct Ledger {
    store: Store,
    keys: Keys,
    /// `None` after it has signed something that could not be stored; it is then rebuilt from the store.
    signer: Option<Signer>,
    /// No lease so far has a higher serial.
    lease_bound: Serial,
}

/// How a coordinator signs, and where.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The keys in its state directory.
    pub keys: Keys,
    /// How long its leases last.
    pub lease: LeaseLength,
}

/// A relay's connection.
pub struct RelaySession {
    /// The relay's key.
    pub key: SiteKey,
    /// Notified when another connection has replaced this one.
    pub gone: Arc<Notify>,
    /// What it was told so far.
    pub reader: Reader,
}

/// What every map contains besides peers.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// The relays that can be used.
    pub relays: Vec<Relay>,
    /// STUN servers.
    pub stun_servers: Vec<SocketAddr>,
    /// The coordinator's own addresses, which gateways are not told here.
    pub coordinator: Vec<IpAddr>,
}

/// What a new enrolment key allows.
#[derive(Clone, Debug)]
pub struct KeyTerms {
    /// How many sites it admits.
    pub uses: u32,
    /// For how long it can be used.
    pub lifetime: Duration,
    /// The tags of those sites.
    pub tags: BTreeSet<Name>,
    /// Whether they wait for an administrator.
    pub approve_manually: bool,
    /// What those sites may offer at first; empty: what needs no grant.
    pub subnets: Vec<IpNet>,
    /// For how long they are admitted; `None`: without end.
    pub site_lifetime: Option<Duration>,
}

/// Why an administrator's change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no such site.
    #[error("there is no site {0}")]
    NoSite(String),
    /// There is no such key.
    #[error("there is no enrolment key {0}")]
    NoKey(EnrolmentKeyId),
    /// Another site has that name.
    #[error("another site is named {0}: revoke that one first")]
    NameTaken(Name),
    /// A subnet cannot be granted.
    #[error(transparent)]
    Subnets(#[from] SubnetsError),
    /// There are too many tags.
    #[error(transparent)]
    Tags(#[from] TooManyTags),
    /// It cannot be signed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was quicker.
    #[error("somebody has changed the policy in the meantime: your change was not made")]
    PolicyChanged,
    /// The stored policy is not valid.
    #[error("the policy: {0}")]
    Policy(String),
    /// There is no next certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Registry {
    /// Reads everything from the store.
    ///
    /// # Errors
    /// The store's error, or the policy in it is not valid.
    pub async fn load(
        mut store: Store,
        servers: Servers,
        fingerprint: Option<Fingerprint>,
        signing: Signing,
    ) -> Result<Self, ChangeError> {
        let policy = match store.policy().await? {
            Some(document) => Policy::parse(&document).map_err(ChangeError::Policy)?,
            None => Policy::default(),
        };
        let sites = store.sites().await?;
        let Signing { keys, lease } = signing;
        let trust = store.trust().await?;
        let lease_bound = trust.as_ref().map(|trust| trust.lease_serial).unwrap_or_default();
        let leases = Leases::new(keys.leases()?, lease, lease_bound);
        let mut ledger = Ledger { store, keys, signer: None, lease_bound };
        ledger.sign_all(trust, &sites, &servers.relays, &leases).await?;
        ledger.reserve_leases(&leases).await?;
        let mut state = State::new(rand::rng().random(), policy, servers, sites);
        state.publish(ledger.signer().await?.publication());
        let registry = Self {
            ledger: AsyncMutex::new(ledger),
            leases,
            state: Timed::new(state),
            seen: Mutex::default(),
            relay_links: Mutex::default(),
            reported: Reported::new(Instant::now()),
            fingerprint,
        };
        registry.renew_leases().await?;
        Ok(registry)
    }

    /// Makes an enrolment key. Its secret is never shown again.
    ///
    /// # Errors
    /// It could not be stored.
    pub async fn create_key(&self, terms: KeyTerms, who: &Who) -> Result<EnrolmentKey, ChangeError> {
        Tags::new(terms.tags.iter().cloned())?;
        Subnets::new(terms.subnets.iter().copied())?;
        let mut ledger = self.ledger.lock().await;
        let authority = ledger.signer().await?.publication().authority();
        let key = EnrolmentKey::generate(&mut rand::rng(), self.fingerprint).with_authority(authority);
        let created = now();
        let record = KeyRecord {
            id: key.id(),
            hash: key.hash(),
            uses_left: terms.uses,
            expires: created.saturating_add(terms.lifetime.as_secs()),
            tags: terms.tags,
            approve_manually: terms.approve_manually,
            created,
            site_lifetime: terms.site_lifetime.map(|lifetime| lifetime.as_secs()),
            subnets: terms.subnets,
        };
        ledger.store.add_key(&record, who).await?;
        Ok(key)
    }

    /// All enrolment keys, used up and expired ones too.
    ///
    /// # Errors
    /// The store's error.
    pub async fn keys(&self) -> Result<Vec<KeyRecord>, ChangeError> {
        Ok(self.ledger.lock().await.store.keys().await?)
    }

    /// Forgets an enrolment key. The sites that it let in stay.
    ///
    /// # Errors
    /// There is no such key, or it could not be stored.
    pub async fn revoke_key(&self, id: EnrolmentKeyId, who: &Who) -> Result<(), ChangeError> {
        if self.ledger.lock().await.store.remove_key(id, who).await? { Ok(()) } else { Err(ChangeError::NoKey(id)) }
    }

    /// All sites, and whether each is connected.
    #[must_use]
    pub fn sites(&self) -> Vec<(Site, bool)> {
        let state = self.state();
        let sites: Vec<(Arc<Site>, bool)> =
            state.sites().map(|site| (site.clone(), state.is_connected(&site.key))).collect();
        drop(state);
        let seen = self.seen();
        let with_time = |(site, connected): (Arc<Site>, bool)| {
            let last_seen = site.last_seen.max(seen.get(&site.key).copied());
            (Site { last_seen, ..Site::clone(&site) }, connected)
        };
        let mut sites: Vec<(Site, bool)> = sites.into_iter().map(with_time).collect();
        drop(seen);
        sites.sort_by_key(|(site, _)| site.virtual_address);
        sites
    }

    /// Approves a site, even a revoked one; if its time was over, it has no end from then on. From now on it may offer
    /// `subnets`, or if there are none, what it was granted before and the part of its offer that needs no grant.
    ///
    /// # Errors
    /// There is no such site, its name or a subnet belongs to another one, or it cannot be signed or stored.
    pub async fn approve(&self, site: &str, subnets: Option<Vec<IpNet>>, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        if !ledger.signer().await?.is_here() {
            return Err(SignerError::Elsewhere.into());
        }
        let (before, after) = {
            let state = self.state();
            let found = find(&state, site)?;
            let namesake = |other: &&Arc<Site>| {
                // Sites that an earlier version approved may have names that resemble each other.
                let alike = if found.state == SiteState::Approved {
                    other.name == found.name
                } else {
                    other.name.resembles(&found.name)
                };
                alike && other.key != found.key && other.state != SiteState::Revoked
            };
            if let Some(other) = state.sites().find(namesake) {
                return Err(ChangeError::NameTaken(other.name.clone()));
            }
            let ends = found.ends.filter(|ends| *ends > now());
            let mut approved = Site { state: SiteState::Approved, ends, ..Site::clone(found) };
            approved.granted = Some(match subnets {
                Some(subnets) => Subnets::new(subnets)?,
                None => state.grant(found)?,
            });
            approved.in_force = state.put_in_force(&approved);
            (found.clone(), approved)
        };
        self.update(&mut ledger, &before, after, who, "site approve").await
    }

    /// Cuts a site off for good.
    ///
    /// # Errors
    /// There is no such site, or it could not be stored.
    pub async fn revoke(&self, site: &str, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let before = find(&self.state(), site)?.clone();
        let after = Site { state: SiteState::Revoked, ..Site::clone(&before) };
        self.update(&mut ledger, &before, after, who, "site revoke").await
    }

    /// Sets when a site is revoked automatically, counted from now; `None`: never.
    ///
    /// # Errors
    /// There is no such site, or it could not be stored.
    pub async fn limit(&self, site: &str, lifetime: Option<Duration>, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let before = find(&self.state(), site)?.clone();
        let ends = lifetime.map(|lifetime| now().saturating_add(lifetime.as_secs()));
        let after = Site { ends, ..Site::clone(&before) };
        self.update(&mut ledger, &before, after, who, "site limit").await
    }

    /// Says whether a site has to prove its key within the TLS connection itself, from its next connection on.
    ///
    /// # Errors
    /// There is no such site, or it could not be stored.
    pub async fn set_channel_binding(&self, site: &str, mode: BindingMode, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let before = find(&self.state(), site)?.clone();
        let after = Site { channel_binding: mode, ..Site::clone(&before) };
        self.update(&mut ledger, &before, after, who, "site channel-binding").await
    }

    /// Cuts a site off and forgets it: its name, its address and its subnets may be others' from now on, and it
    /// may enrol as if for the first time.
    ///
    /// # Errors
    /// There is no such site, or it could not be stored.
    pub async fn remove(&self, site: &str, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let site = find(&self.state(), site)?.clone();
        let documents = ledger.signer().await?.revoke(site.key)?;
        let stored = ledger.store.remove_site(&site, &documents, who).await;
        ledger.stored(&documents, stored)?;
        self.state().remove(&site.key);
        self.seen().remove(&site.key);
        self.publish(&mut ledger, &documents).await?;
        tracing::info!("{} is removed", site.name);
        Ok(Site::clone(&site))
    }

    /// Records which enrolment keys have expired. To be called now and then.
    ///
    /// # Errors
    /// It could not be stored; it will be tried again.
    pub async fn end_keys(&self) -> Result<(), ChangeError> {
        for key in self.ledger.lock().await.store.end_keys(now()).await? {
            tracing::info!("the enrolment key {} has expired", key.id);
        }
        Ok(())
    }

    /// Revokes the sites whose time is over. To be called now and then.
    ///
    /// # Errors
    /// It could not be stored; it will be tried again.
    pub async fn end_sites(&self) -> Result<(), ChangeError> {
        let now = now();
        let over = |site: &Arc<Site>| site.state != SiteState::Revoked && site.ends.is_some_and(|ends| ends <= now);
        if !self.state().sites().any(over) {
            return Ok(());
        }
        let mut ledger = self.ledger.lock().await;
        let ended: Vec<Arc<Site>> = self.state().sites().filter(|site| over(site)).cloned().collect();
        for before in ended {
            let after = Site { state: SiteState::Revoked, ..Site::clone(&before) };
            self.update(&mut ledger, &before, after, &Who::Clock, "site ends").await?;
        }
        Ok(())
    }

    async fn update(
        &self,
        ledger: &mut Ledger,
        before: &Site,
        after: Site,
        who: &Who,
        what: &str,
    ) -> Result<Site, ChangeError> {
        let documents = ledger.sign(&after).await?;
        let stored = ledger.store.update_site(before, &after, &documents, who, what).await;
        ledger.stored(&documents, stored)?;
        self.put(ledger, after.clone(), &documents).await?;
        tracing::info!("{what}: {}, {}, by {who}", after.name, after.state.as_str());
        Ok(after)
    }

    /// Puts a login at the page into the audit.
    ///
    /// # Errors
    /// It could not be stored.
    pub async fn note_login(&self, who: &Who, source: SocketAddr) -> Result<(), ChangeError> {
        let source = source.ip().to_string();
        Ok(self.ledger.lock().await.store.note(who, "page login", None, Some(&source)).await?)
    }

    /// The last changes that were made, oldest first.
    ///
    /// # Errors
    /// The store's error.
    pub async fn audit(&self, last: u32) -> Result<Vec<AuditEntry>, ChangeError> {
        Ok(self.ledger.lock().await.store.audit(last).await?)
    }

    /// The subnets of a site's offer that are not in force, and why.
    #[must_use]
    pub fn waiting(&self, site: &SiteKey) -> WaitingSubnets {
        self.state().waiting_of(site).to_vec()
    }

    /// How many subnets wait for an administrator, of all sites together.
    #[must_use]
    pub fn subnets_waiting(&self) -> usize {
        let state = self.state();
        state.sites().map(|site| state.waiting_of(&site.key).len()).sum()
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let policy = self.state().links().policy().clone();
        Policy::clone(&policy)
    }

    /// The selectors of the policy in force that select no site at present: a name may be misspelt.
    #[must_use]
    pub fn selects_nobody(&self) -> Vec<Selector> {
        let state = self.state();
        let policy = state.links().policy().clone();
        let sites: Vec<Arc<Site>> = state.sites().filter(|site| site.state != SiteState::Revoked).cloned().collect();
        drop(state);
        let names: HashSet<&Name> = sites.iter().map(|site| &site.name).collect();
        let tags: HashSet<&Name> = sites.iter().flat_map(|site| &site.tags).collect();
        let ends = policy.links.iter().flat_map(|link| <[&Selector; 2]>::from(link.ends()));
        let selectors: BTreeSet<&Selector> = ends.chain(policy.subnets.keys()).collect();
        let is_idle = |selector: &Selector| match selector {
            Selector::All => false,
            Selector::Tag(tag) => !tags.contains(tag),
            Selector::Site(name) => !names.contains(name),
        };
        selectors.into_iter().filter(|selector| is_idle(selector)).cloned().collect()
    }

    /// Puts another policy in force; if `base` is given, only if the present policy has that
    /// [fingerprint](Policy::fingerprint).
    ///
    /// # Errors
    /// Another policy is in force than the base, or it could not be stored.
    pub async fn set_policy(&self, policy: Policy, base: Option<&str>, who: &Who) -> Result<(), ChangeError> {
        let mut ledger = self.ledger.lock().await;
        if base.is_some_and(|base| self.policy().fingerprint() != base) {
            return Err(ChangeError::PolicyChanged);
        }
        let (before, sites) = {
            let state = self.state();
            (state.links().clone(), state.numbered())
        };
        ledger.store.set_policy(before.policy(), &policy, who).await?;
        let plan = move || Transition::plan(&before, policy, &sites);
        let mut transition = tokio::task::spawn_blocking(plan).await.expect("plans do not panic");
        let rest = transition.begin(&mut self.state());
        while transition.step(&mut self.state()) {
            tokio::task::yield_now().await;
        }
        // The next change of a site would have to copy links that are still shared.
        drop((transition, rest));
        drop(ledger);
        tracing::info!("there is a new policy");
        Ok(())
    }

    /// The longest time that the lock on the state was held.
    #[must_use]
    pub fn longest_hold(&self) -> Duration {
        self.state.longest()
    }

    /// Stores when sites were last connected. To be called now and then, and at the end.
    ///
    /// # Errors
    /// The store's error; it will be tried again.
    pub async fn store_seen(&self) -> Result<(), ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let mut seen: BTreeMap<SiteKey, u64> = self.seen().clone();
        for (site, connected) in self.sites() {
            if connected {
                seen.insert(site.key, now());
            }
        }
        let list: Vec<(SiteKey, u64)> = seen.iter().map(|(key, time)| (*key, *time)).collect();
        ledger.store.note_seen(&list).await?;
        // They stay in memory, since they are later than the times that were read at the start.
        self.seen().extend(seen);
        Ok(())
    }

    /// Stores what is left to store, and closes the store.
    ///
    /// # Errors
    /// The store's error; nothing that was acknowledged is lost.
    pub async fn close(self) -> Result<(), ChangeError> {
        self.store_seen().await?;
        Ok(self.ledger.into_inner().store.close().await?)
    }

    /// For a relay: who may talk to whom, from the start.
    #[must_use]
    pub fn read_access(&self) -> Reader {
        self.state().read_access()
    }

    /// What every map holds besides peers.
    #[must_use]
    pub fn servers(&self) -> Servers {
        let servers = self.state().servers().clone();
        Servers::clone(&servers)
    }

    /// Relays that are connected.
    #[must_use]
    pub fn relays_connected(&self) -> Vec<SiteKey> {
        self.relay_links().keys().copied().collect()
    }

    /// Notes that a relay of the configuration has connected, and ends its former connection. `None`: the key is not
    /// that of a relay.
    pub fn connect_relay(&self, key: SiteKey) -> Option<RelaySession> {
        let known = self.state().servers().relays.iter().any(|relay| relay.public_key == key);
        let gone = Arc::new(Notify::new());
        known.then(|| {
            let before = self.relay_links().insert(key, gone.clone());
            before.into_iter().for_each(|before| before.notify_one());
            RelaySession { key, gone, reader: self.read_access() }
        })
    }

    /// A relay's connection has ended.
    pub fn disconnect_relay(&self, session: &RelaySession) {
        let mut links = self.relay_links();
        if links.get(&session.key).is_some_and(|link| Arc::ptr_eq(link, &session.gone)) {
            links.remove(&session.key);
        }
    }

    fn relay_links(&self) -> MutexGuard<'_, BTreeMap<SiteKey, Arc<Notify>>> {
        self.relay_links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a relay is to be told next, if anything. It counts as told.
    pub fn access(&self, reader: &mut Reader) -> Option<Access> {
        self.state().access(reader)
    }

    /// The documents that concern everybody.
    #[must_use]
    pub fn common(&self) -> Common {
        self.state().common().clone()
    }

    fn note_seen(&self, key: SiteKey) {
        self.seen().insert(key, now());
    }

    /// How many sites there are. Returns once the lock on the state, which every connection needs, could be taken.
    pub fn count(&self) -> Count {
        let state = self.state();
        let mut count = Count::default();
        for site in state.sites() {
            let of_state = match site.state {
                SiteState::Approved => &mut count.approved,
                SiteState::Pending => &mut count.waiting,
                SiteState::Revoked => &mut count.revoked,
            };
            *of_state += 1;
            count.connected += usize::from(state.is_connected(&site.key));
        }
        count
    }

    /// Takes that lock, as a task that is stuck would.
    #[cfg(test)]
    pub(crate) fn stuck(&self) -> impl Drop + '_ {
        self.state()
    }

    fn state(&self) -> Held<'_, State> {
        self.state.lock()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<SiteKey, u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A site by its name or its public key. Of several sites with the same name the one that is not revoked is meant, or
/// else the newest.
fn find<'a>(state: &'a State, wanted: &str) -> Result<&'a Arc<Site>, ChangeError> {
    if let Some(site) = wanted.parse().ok().and_then(|key| state.site(&key)) {
        return Ok(site);
    }
    let namesakes = state.sites().filter(|site| site.name.as_str() == wanted);
    namesakes
        .max_by_key(|site| (site.state != SiteState::Revoked, site.created))
        .ok_or_else(|| ChangeError::NoSite(wanted.to_owned()))
}
