//! What the authority signs, in step with what is stored: documents are on disk together with the change that they are
//! about, before anybody is told about either.

use std::collections::BTreeSet;

use penstock_proto::coordination::{Relay, SiteKey};
use penstock_proto::trust::{Authority, AuthorityKey, Contents, Document, LeaseLength, Publication};
use penstock_proto::trust::{SigningKey, Subnets};
use serde::{Deserialize, Serialize};

use super::leases::Leases;
use super::{ChangeError, Ledger, Registry};
use crate::signer::{self, Requests, Signer, SignerError};
use crate::site::{Site, SiteState};
use crate::store::{StoreError, Trust, Who};

/// The overlay's authority, and what it has to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuthorityReport {
    /// The key for gateways to pin.
    pub authority: AuthorityKey,
    /// Whether its private key is in the coordinator's state directory.
    pub here: bool,
    /// How many times it has handed over to another key.
    pub rollovers: usize,
    /// The number of sites and relays that it vouches for.
    pub statements: usize,
    /// The number of sites and relays in its present list of revocations.
    pub revoked: usize,
    /// How long a lease of this coordinator lasts.
    pub lease: LeaseLength,
    /// Whether those leases count.
    pub lease_certified: bool,
    /// The number of requests that wait for its signature.
    pub requests: usize,
}

impl Ledger {
    /// The signer. After a change that could not be stored it is made again from what is stored.
    pub(super) async fn signer(&mut self) -> Result<&mut Signer, ChangeError> {
        let signer = match self.signer.take() {
            Some(signer) => signer,
            None => match self.store.trust().await? {
                Some(Trust { publication, .. }) => Signer::resume(&self.keys, publication)?,
                None => Signer::found(&self.keys)?,
            },
        };
        Ok(self.signer.insert(signer))
    }

    /// Signs at the start whatever is known and not signed yet: everything, at the first start and after an upgrade.
    pub(super) async fn sign_all(
        &mut self,
        trust: Option<Trust>,
        sites: &[Site],
        relays: &[Relay],
        leases: &Leases,
    ) -> Result<(), ChangeError> {
        let new = trust.is_none();
        let signer = match trust {
            Some(Trust { publication, .. }) => Signer::resume(&self.keys, publication)?,
            None => Signer::found(&self.keys)?,
        };
        let signer = self.signer.insert(signer);
        let mut documents = signer.certify(leases.key(), leases.length)?;
        for site in sites {
            let signed = match site.state {
                SiteState::Approved => signer.approve(site),
                SiteState::Pending | SiteState::Revoked => signer.revoke(site.key),
            };
            match signed {
                Ok(signed) => documents.extend(signed),
                // Two sites of an older coordinator may have the same subnet or the same name.
                Err(error) => tracing::error!("{} is not vouched for: {error}", site.name),
            }
        }
        documents.extend(signer.approve_relays(relays)?);
        let publication = signer.publication();
        if !signer.certifies(leases.key(), leases.length) {
            tracing::error!("the authority has not certified this coordinator's leases: see `authority requests`");
        }
        if new {
            let root = publication.root();
            tracing::info!("the overlay's authority is {root}, and its private key is in the state directory");
            self.store.found(root, &documents).await?;
        } else if !documents.is_empty() {
            let signed = named(&documents);
            self.store
                .publish(&documents, &Who::Clock, "authority signs what is in force", None, Some(&signed))
                .await?;
        }
        Ok(())
    }

    /// Signs what there is to say about a site that is about to change.
    pub(super) async fn sign(&mut self, site: &Site) -> Result<Vec<Document>, ChangeError> {
        let signer = self.signer().await?;
        Ok(match site.state {
            SiteState::Approved => signer.approve(site)?,
            SiteState::Revoked => signer.revoke(site.key)?,
            SiteState::Pending => Vec::new(),
        })
    }

    /// What was signed but could not be stored does not count as signed.
    pub(super) fn stored<T>(
        &mut self,
        documents: &[Document],
        stored: Result<T, StoreError>,
    ) -> Result<T, ChangeError> {
        if stored.is_err() && !documents.is_empty() {
            self.signer = None;
        }
        Ok(stored?)
    }
}

impl Registry {
    /// Tells everybody concerned about a site that has changed, and about what was signed for it.
    pub(super) async fn put(&self, ledger: &mut Ledger, site: Site, documents: &[Document]) -> Result<(), ChangeError> {
        let key = site.key;
        if site.state == SiteState::Approved {
            ledger.reserve_leases(&self.leases).await?;
            // In one step, so that nobody is told about the site before getting what vouches for it.
            self.lease(&[key], |state| {
                state.put(site);
                state.take_statements(documents.iter());
            });
        } else {
            let mut state = self.state();
            state.put(site);
            state.drop_documents(&key);
        }
        self.publish(ledger, documents).await
    }

    /// Tells everybody about documents that concern everybody.
    pub(super) async fn publish(&self, ledger: &mut Ledger, documents: &[Document]) -> Result<(), ChangeError> {
        if documents.iter().all(|document| matches!(document.contents(), Contents::Site(_))) {
            return Ok(());
        }
        let publication = ledger.signer().await?.publication();
        {
            let mut state = self.state();
            state.take_statements(documents.iter());
            state.set_common(publication);
        }
        self.wake_all().await;
        Ok(())
    }

    /// The state of the overlay's authority.
    ///
    /// # Errors
    /// The signed documents cannot be read.
    pub async fn authority(&self) -> Result<AuthorityReport, ChangeError> {
        let requests = self.requests().await?;
        let mut ledger = self.ledger.lock().await;
        let signer = ledger.signer().await?;
        let publication = signer.publication();
        let rollovers = publication.documents().filter(|document| matches!(document.contents(), Contents::Rollover(_)));
        Ok(AuthorityReport {
            authority: publication.authority(),
            here: signer.is_here(),
            rollovers: rollovers.count(),
            statements: publication.sites().count() + publication.relays().count(),
            revoked: publication.revocations().map_or(0, |list| list.subjects().len()),
            lease: self.leases.length,
            lease_certified: signer.certifies(self.leases.key(), self.leases.length),
            requests: requests.sites.len()
                + requests.revoke.len()
                + requests.relays.len()
                + usize::from(requests.lease_key.is_some()),
        })
    }

    /// Everything that the authority has signed and that is in force.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn publication(&self) -> Result<Publication, ChangeError> {
        Ok(self.ledger.lock().await.signer().await?.publication().clone())
    }

    /// What an authority elsewhere has to sign, given what this coordinator knows to be in force.
    ///
    /// # Errors
    /// The signed documents cannot be read.
    pub async fn requests(&self) -> Result<Requests, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let signer = ledger.signer().await?;
        let publication = signer.publication();
        let sites = self.sites();
        let mut requests = Requests {
            authority: publication.authority(),
            sites: Vec::new(),
            revoke: Vec::new(),
            relays: Vec::new(),
            lease_key: None,
            lease: None,
        };
        for (site, _) in sites.iter().filter(|(site, _)| site.state != SiteState::Revoked) {
            let offered = site.subnets.iter().chain(site.granted.iter().flat_map(|granted| granted.iter())).copied();
            // Subnets that cannot be granted to anybody need not be requested.
            let sound = offered.filter(|subnet| Subnets::new([*subnet]).is_ok());
            let granted = Subnets::new(sound).ok().or_else(|| site.granted.clone());
            let wanted = signer::grant(&Site { granted, ..site.clone() });
            if publication.site(&site.key).is_none_or(|statement| statement.grant != wanted) {
                requests.sites.push(wanted);
            }
        }
        let stays = |key: &SiteKey| sites.iter().any(|(site, _)| site.key == *key && site.state == SiteState::Approved);
        requests.revoke.extend(publication.sites().map(|site| site.grant.public_key).filter(|key| !stays(key)));
        let relays = self.servers().relays;
        let configured = |key: &SiteKey| relays.iter().any(|relay| relay.public_key == *key);
        requests.revoke.extend(publication.relays().map(|relay| relay.public_key).filter(|key| !configured(key)));
        let stated = |relay: &&Relay| publication.statement(&relay.public_key).is_some();
        let missing = relays.iter().filter(|relay| !stated(relay));
        requests.relays.extend(missing.map(|relay| (relay.public_key, relay.name.clone())));
        if !signer.certifies(self.leases.key(), self.leases.length) {
            (requests.lease_key, requests.lease) = (Some(self.leases.key()), Some(self.leases.length));
        }
        Ok(requests)
    }

    /// Takes in what the authority has signed elsewhere, and admits or cuts off sites accordingly.
    ///
    /// # Errors
    /// The key is here, the authority has not signed it, or it could not be stored.
    pub async fn add_documents(&self, signed: &Publication, who: &Who) -> Result<usize, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let documents = match ledger.signer().await?.add(signed) {
            Ok(documents) => documents,
            Err(error) => {
                // Some documents may have been taken in already.
                ledger.signer = None;
                return Err(error.into());
            }
        };
        let stored = ledger.store.publish(&documents, who, "authority add", None, Some(&named(&documents))).await;
        ledger.stored(&documents, stored)?;
        let publication = ledger.signer().await?.publication().clone();
        self.state().publish(&publication);
        let stated = documents.iter().filter_map(|document| match document.contents() {
            Contents::Site(statement) => Some(statement.grant.public_key),
            _ => None,
        });
        let stated: BTreeSet<SiteKey> = stated.collect();
        for (before, _) in self.sites() {
            // A site that this coordinator has revoked stays revoked until the authority has signed a new statement for
            // it.
            if before.state == SiteState::Revoked && !stated.contains(&before.key) {
                continue;
            }
            let Some(after) = self.as_stated(&mut ledger, &before).await? else { continue };
            self.update(&mut ledger, &before, after, who, "authority add").await?;
        }
        self.wake_all().await;
        Ok(documents.len())
    }

    /// A site as the authority states it, if that differs from what is stored.
    async fn as_stated(&self, ledger: &mut Ledger, site: &Site) -> Result<Option<Site>, ChangeError> {
        let statement = ledger.signer().await?.publication().site(&site.key).cloned();
        let after = match statement {
            Some(statement) if statement.grant.name != site.name => {
                tracing::error!(
                    "the authority has signed {} under another name, {}: that is ignored",
                    site.name,
                    statement.grant.name
                );
                return Ok(None);
            }
            Some(statement) if statement.grant.virtual_address != site.virtual_address => {
                tracing::error!("the authority has signed {} with another virtual address: that is ignored", site.name);
                return Ok(None);
            }
            Some(statement) => {
                let (granted, ends) = (statement.grant.subnets, statement.grant.validity.until().map(|until| until.0));
                let mut after = Site { state: SiteState::Approved, granted: Some(granted), ends, ..site.clone() };
                after.in_force = self.state().put_in_force(&after);
                after
            }
            None if site.state == SiteState::Approved => Site { state: SiteState::Revoked, ..site.clone() },
            None => return Ok(None),
        };
        Ok((after != *site).then_some(after))
    }

    /// Hands the overlay over to another key: a new one, or a spare with a document signed earlier.
    ///
    /// # Errors
    /// The key is elsewhere and there is no such document, or the change could not be stored.
    pub async fn roll_over(
        &self,
        spare: Option<(SigningKey, Document)>,
        who: &Who,
    ) -> Result<AuthorityKey, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let before = ledger.signer().await?.publication().authority();
        let (key, outcome) = match (ledger.signer.take(), spare) {
            (Some(Signer::Here(authority)), None) => {
                let key = SigningKey::generate(&mut rand::rng());
                ledger.keys.prepare(&key)?;
                let copy = SigningKey::from_seed(key.seed().clone());
                (key, authority.roll_over(signer::now(), copy))
            }
            (Some(signer), Some((key, rollover))) => {
                ledger.keys.prepare(&key)?;
                let copy = SigningKey::from_seed(key.seed().clone());
                (key, Authority::take_over(signer::now(), copy, signer.publication().clone(), rollover))
            }
            _ => return Err(SignerError::NotHere.into()),
        };
        let (authority, documents) = outcome.map_err(SignerError::from)?;
        let after = key.authority();
        ledger.store.publish(&documents, who, "authority rollover", Some(&before), Some(&after)).await?;
        ledger.keys.replace_authority(&key)?;
        ledger.signer = Some(Signer::Here(Box::new(authority)));
        self.publish(&mut ledger, &documents).await?;
        Ok(after)
    }

    /// Signs in advance that another key may take over.
    ///
    /// # Errors
    /// The key is elsewhere, or the change could not be recorded.
    pub async fn spare(&self, to: AuthorityKey, who: &Who) -> Result<Document, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let document = match ledger.signer().await? {
            Signer::Here(authority) => authority.spare(to),
            Signer::Elsewhere(_) => return Err(SignerError::NotHere.into()),
        };
        ledger.store.note(who, "authority spare", None, Some(&to)).await?;
        Ok(document)
    }

    /// Forgets the authority's key, which is on another machine from now on.
    ///
    /// # Errors
    /// It is already elsewhere, or the file cannot be removed.
    pub async fn forget_authority(&self, who: &Who) -> Result<(), ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let publication = match ledger.signer().await? {
            Signer::Here(authority) => authority.publication().clone(),
            Signer::Elsewhere(_) => return Err(SignerError::Elsewhere.into()),
        };
        ledger.store.note(who, "authority key removed", Some(&publication.authority()), None).await?;
        ledger.keys.remove_authority()?;
        ledger.signer = Some(Signer::Elsewhere(Box::new(publication)));
        Ok(())
    }
}

/// What documents are about, for the log.
fn named(documents: &[Document]) -> Vec<String> {
    const MOST: usize = 64;
    let name = |document: &Document| match document.contents() {
        Contents::Site(site) => format!("site {}", site.grant.name),
        Contents::Relay(relay) => format!("relay {}", relay.name),
        Contents::Revocations(list) => format!("revocations of {}", list.subjects().len()),
        Contents::LeaseCertificate(_) => "lease certificate".to_owned(),
        Contents::Rollover(rollover) => format!("rollover to {}", rollover.to),
        Contents::Lease(_) => "lease".to_owned(),
    };
    let mut names: Vec<String> = documents.iter().take(MOST).map(name).collect();
    if documents.len() > MOST {
        names.push(format!("and {} more", documents.len() - MOST));
    }
    names
}
