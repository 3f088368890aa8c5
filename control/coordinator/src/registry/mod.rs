//! The one place where the coordinator's knowledge changes.
//!
//! Owns the [`Store`], the [`Signer`] and the state in memory. A change goes to the store first, under its lock, and only
//! when it is on the disk to memory, from where connections are told. So what anybody was told of is
//! durable, and what failed did not happen. What gateways say of their reachability stays in memory.

mod authority;
mod certificates;
mod draft;
mod feed;
mod gateways;
mod held;
mod leases;
mod links;
mod offers;
mod papers;
mod state;
mod transition;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use penstock_proto::coordination::limits::PEERS_LIMIT;
use penstock_proto::coordination::{Access, EnrolmentKey, EnrolmentKeyId, Fingerprint, Name, Relay, SiteKey};
use penstock_proto::trust::{LeaseLength, Serial, Subnets, SubnetsError, Tags, TooManyTags};
use rand::Rng;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::certificate::CertificateError;
use crate::policy::Policy;
use crate::signer::{Keys, Signer, SignerError};
use crate::site::{Site, SiteState};
use crate::store::{AuditEntry, KeyRecord, Store, StoreError, Who};
use crate::time::now;

pub use authority::AuthorityReport;
pub use draft::{Draft, messages_of};
pub use feed::Reader;
use held::{Held, Timed};
use leases::Leases;
pub use offers::WaitingSubnets;
pub use papers::Common;
use state::State;
pub use state::{Outgoing, Session};
use transition::Transition;

/// Most sites: each but one may be a peer of each.
const SITES_LIMIT: usize = PEERS_LIMIT + 1;

/// Sites, keys and policy.
pub struct Registry {
    // Locked before `state` if both are, and always for a change that is stored.
    ledger: AsyncMutex<Ledger>,
    // Locked after `ledger` and before `state`.
    leases: Leases,
    state: Timed<State>,
    /// When sites were connected, not yet stored.
    seen: Mutex<BTreeMap<SiteKey, u64>>,
    relay_links: Mutex<BTreeMap<SiteKey, Arc<Notify>>>,
    /// For enrolment keys: our own certificate's.
    fingerprint: Option<Fingerprint>,
}

/// What is on the disk, and who signs it.
struct Ledger {
    store: Store,
    keys: Keys,
    /// Missing after it had signed what could not be stored: then it goes on by what is stored.
    signer: Option<Signer>,
    /// No lease has a higher serial.
    lease_bound: Serial,
}

/// How a coordinator is to sign, and where.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The keys in its state directory.
    pub keys: Keys,
    /// How long its leases last.
    pub lease: LeaseLength,
}

/// A relay's connection.
pub struct RelaySession {
    /// Which relay.
    pub key: SiteKey,
    /// Told when another connection took this one's place.
    pub gone: Arc<Notify>,
    /// What it was told.
    pub reader: Reader,
}

/// What every map holds besides peers.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// Relays to be had.
    pub relays: Vec<Relay>,
    /// STUN servers.
    pub stun_servers: Vec<SocketAddr>,
    /// The coordinator's own addresses, of which gateways are not told here.
    pub coordinator: Vec<IpAddr>,
}

/// What a new enrolment key may do.
#[derive(Clone, Debug)]
pub struct KeyTerms {
    /// How many sites it lets in.
    pub uses: u32,
    /// For how long.
    pub lifetime: Duration,
    /// Given to those sites.
    pub tags: BTreeSet<Name>,
    /// They wait for an administrator.
    pub approve_manually: bool,
    /// What those sites may offer at first, whatever it is; empty: what needs no grant.
    pub subnets: Vec<IpNet>,
    /// For how long they are let in; none: for good.
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
    /// The stored policy is none.
    #[error("the policy: {0}")]
    Policy(String),
    /// There is no other certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Registry {
    /// Reads everything from the store.
    ///
    /// # Errors
    /// What the store says, or the policy in it is none.
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
            fingerprint,
        };
        registry.renew_leases().await?;
        Ok(registry)
    }

    /// Makes an enrolment key. This is the only time that its secret is seen.
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
    /// What the store says.
    pub async fn keys(&self) -> Result<Vec<KeyRecord>, ChangeError> {
        Ok(self.ledger.lock().await.store.keys().await?)
    }

    /// Forgets an enrolment key. The sites that it let in stay.
    ///
    /// # Errors
    /// There is none, or it could not be stored.
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

    /// Lets a site in, also one that was revoked; then, if its time was over, for good. It may offer these subnets
    /// from now on; if none are named, what it offers as far as that needs no grant, besides what it may already.
    ///
    /// # Errors
    /// There is none, its name or a subnet is another's, or it cannot be signed or stored.
    pub async fn approve(&self, site: &str, subnets: Option<Vec<IpNet>>, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        if !ledger.signer().await?.is_here() {
            return Err(SignerError::Elsewhere.into());
        }
        let (before, after) = {
            let state = self.state();
            let found = find(&state, site)?;
            let namesake = |other: &Arc<Site>| {
                other.name == found.name && other.key != found.key && other.state != SiteState::Revoked
            };
            if state.sites().any(namesake) {
                return Err(ChangeError::NameTaken(found.name.clone()));
            }
            let ends = found.ends.filter(|ends| *ends > now());
            // Whether anybody ends TLS in between is found out anew.
            let mut approved = Site { state: SiteState::Approved, ends, bound: false, ..Site::clone(found) };
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
    /// There is none, or it could not be stored.
    pub async fn revoke(&self, site: &str, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let before = find(&self.state(), site)?.clone();
        let after = Site { state: SiteState::Revoked, ..Site::clone(&before) };
        self.update(&mut ledger, &before, after, who, "site revoke").await
    }

    /// Says for how long from now a site is let in; none: for good.
    ///
    /// # Errors
    /// There is none, or it could not be stored.
    pub async fn limit(&self, site: &str, lifetime: Option<Duration>, who: &Who) -> Result<Site, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let before = find(&self.state(), site)?.clone();
        let ends = lifetime.map(|lifetime| now().saturating_add(lifetime.as_secs()));
        let after = Site { ends, ..Site::clone(&before) };
        self.update(&mut ledger, &before, after, who, "site limit").await
    }

    /// Cuts a site off and forgets it: its name, its address and its subnets may be others' from now on, and it
    /// may enrol as if for the first time.
    ///
    /// # Errors
    /// There is none, or it could not be stored.
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

    /// Notes that the time of enrolment keys is over. To be called now and then.
    ///
    /// # Errors
    /// It could not be stored; it will be tried again.
    pub async fn end_keys(&self) -> Result<(), ChangeError> {
        for key in self.ledger.lock().await.store.end_keys(now()).await? {
            tracing::info!("the time of the enrolment key {} is over", key.id);
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

    /// The last changes that were made, oldest first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn audit(&self, last: u32) -> Result<Vec<AuditEntry>, ChangeError> {
        Ok(self.ledger.lock().await.store.audit(last).await?)
    }

    /// What of a site's offer is not in force, and why.
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

    /// Puts another policy in force.
    ///
    /// # Errors
    /// It could not be stored.
    pub async fn set_policy(&self, policy: Policy, who: &Who) -> Result<(), ChangeError> {
        let mut ledger = self.ledger.lock().await;
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
        // Shared links would have to be copied by the next change of a site.
        drop((transition, rest));
        drop(ledger);
        tracing::info!("there is a new policy");
        Ok(())
    }

    /// The longest time that all others had to wait for one.
    #[must_use]
    pub fn longest_hold(&self) -> Duration {
        self.state.longest()
    }

    /// Stores when sites were last connected. To be called now and then, and at the end.
    ///
    /// # Errors
    /// What the store says; it will be tried again.
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
        // In memory they stay: they are later than what was read at the start.
        self.seen().extend(seen);
        Ok(())
    }

    /// Stores what is left to store, and closes the store.
    ///
    /// # Errors
    /// What the store says; nothing that was acknowledged is lost.
    pub async fn close(self) -> Result<(), ChangeError> {
        self.store_seen().await?;
        Ok(self.ledger.into_inner().store.close().await?)
    }

    /// For a relay: what there is to know of who may talk to whom, from the start.
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

    /// A relay of the configuration connects; a connection of the same one before has to end. `None`: it
    /// is no relay.
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

    fn state(&self) -> Held<'_, State> {
        self.state.lock()
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<SiteKey, u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A site by its name or its public key. Of several of a name, only one is not revoked: that one is meant.
fn find<'a>(state: &'a State, wanted: &str) -> Result<&'a Arc<Site>, ChangeError> {
    if let Some(site) = wanted.parse().ok().and_then(|key| state.site(&key)) {
        return Ok(site);
    }
    let namesakes = state.sites().filter(|site| site.name.as_str() == wanted);
    namesakes
        .max_by_key(|site| (site.state != SiteState::Revoked, site.created))
        .ok_or_else(|| ChangeError::NoSite(wanted.to_owned()))
}
