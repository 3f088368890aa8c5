//! What gateways do: enrol, connect, announce where they are.

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use penstock_proto::coordination::{Enrolment, Hello, Known, Reachability, Refusal, RefusalReason, SiteKey};
use penstock_proto::trust::Subnets;

use super::{ChangeError, Ledger, Outgoing, Registry, SITES_LIMIT, Session};
use crate::addresses::free_virtual_address;
use crate::site::{BindingMode, Site, SiteState};
use crate::store::Who;
use crate::time::now;

impl Registry {
    /// Accepts a gateway that has proven its key and, perhaps, that there is nobody in between.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn connect(&self, hello: Hello, bound: bool) -> Result<Session, Refusal> {
        let Hello { public_key, subnets, enrolment, known, .. } = hello;
        if let Some(session) = self.connect_known(&public_key, &subnets, bound, known)? {
            return Ok(session);
        }
        // Enrolment and changes of subnets are stored.
        let mut ledger = self.ledger.lock().await;
        let site = self.state().site(&public_key).cloned();
        match site {
            Some(site) => self.note_hello(&mut ledger, &site, subnets, bound).await?,
            None => {
                let enrolment = enrolment.ok_or(refused(RefusalReason::NotEnrolled))?;
                self.enrol(&mut ledger, public_key, bound, subnets, enrolment).await?;
            }
        }
        drop(ledger);
        self.note_seen(public_key);
        self.state().connect(Instant::now(), &public_key, known).map_err(refused)
    }

    fn connect_known(
        &self,
        key: &SiteKey,
        subnets: &[IpNet],
        bound: bool,
        known: Option<Known>,
    ) -> Result<Option<Session>, Refusal> {
        let mut state = self.state();
        let Some(site) = state.site(key) else { return Ok(None) };
        may_connect(site, bound)?;
        if site.subnets != subnets || site.channel_binding != site.channel_binding.after(bound) {
            return Ok(None);
        }
        self.note_seen(*key);
        state.connect(Instant::now(), key, known).map(Some).map_err(refused)
    }

    /// Notes what a site now announces differently. What is in force stays so until an administrator has allowed the
    /// rest, if it needs permission.
    async fn note_hello(
        &self,
        ledger: &mut Ledger,
        before: &Site,
        subnets: Vec<IpNet>,
        bound: bool,
    ) -> Result<(), Refusal> {
        may_connect(before, bound)?;
        let channel_binding = before.channel_binding.after(bound);
        let mut site = Site { subnets, channel_binding, ..before.clone() };
        if !self.state().may_change_subnets(Instant::now(), &site.key) {
            let detail = Some("it changes its subnets too often".into());
            return Err(Refusal { reason: RefusalReason::TooMany, detail });
        }
        if site.state == SiteState::Approved {
            site.in_force = self.state().decide(&site, site.granted.as_ref()).in_force;
            if site.granted.is_none() {
                site.granted = granted(&site.in_force);
            }
        }
        let who = Who::Site(site.name.clone());
        let stored = self.update(ledger, before, site, &who, "site offers subnets").await;
        let site = stored.map_err(|error| unavailable(&error))?;
        tracing::info!("{} offers {:?} now, of which {:?} are in force", site.name, site.subnets, site.in_force);
        Ok(())
    }

    async fn enrol(
        &self,
        ledger: &mut Ledger,
        key: SiteKey,
        bound: bool,
        subnets: Vec<IpNet>,
        enrolment: Enrolment,
    ) -> Result<(), Refusal> {
        let record = ledger.store.key(enrolment.key.id()).await.map_err(|error| unavailable(&error.into()))?;
        let record = record.filter(|record| enrolment.key.matches(&record.hash));
        let record = record.ok_or(refused(RefusalReason::KeyUnknown))?;
        if record.expires <= now() {
            return Err(refused(RefusalReason::KeyExpired));
        }
        if record.uses_left == 0 {
            return Err(refused(RefusalReason::KeyUsedUp));
        }
        let virtual_address = {
            let state = self.state();
            let taken = |site: &Arc<Site>| site.state != SiteState::Revoked && site.name.resembles(&enrolment.name);
            if state.sites().any(taken) {
                return Err(refused(RefusalReason::NameTaken));
            }
            let full = state.sites().count() >= SITES_LIMIT;
            free_virtual_address(state.virtual_addresses()).filter(|_| !full)
        };
        let Some(virtual_address) = virtual_address else {
            tracing::error!("no more than {SITES_LIMIT} sites can enrol");
            return Err(refused(RefusalReason::Unavailable));
        };
        // Without the authority's key, somebody who has it must approve the site.
        let here = ledger.signer().await.map_err(|error| unavailable(&error))?.is_here();
        let allowed = Subnets::new(record.subnets.iter().copied()).ok().filter(|_| !record.subnets.is_empty());
        let mut site = Site {
            key,
            name: enrolment.name,
            virtual_address,
            subnets,
            channel_binding: BindingMode::default().after(bound),
            tags: record.tags,
            state: if record.approve_manually || !here { SiteState::Pending } else { SiteState::Approved },
            created: now(),
            last_seen: None,
            ends: record.site_lifetime.map(|lifetime| now().saturating_add(lifetime)),
            in_force: Vec::new(),
            granted: allowed,
        };
        if site.state == SiteState::Approved {
            site.in_force = self.state().decide(&site, site.granted.as_ref()).in_force;
            // A key that says what may be offered says so for this offer only: a site that offers none of it now gets
            // no grant.
            site.granted = granted(&site.in_force).or(site.granted.and(Some(Subnets::default())));
        }
        let documents = ledger.sign(&site).await.map_err(|error| unavailable(&error))?;
        let stored = ledger.store.enrol(&site, record.id, &documents).await;
        if !ledger.stored(&documents, stored).map_err(|error| unavailable(&error))? {
            // Nothing was stored, so nothing may count as signed.
            ledger.signer = None;
            return Err(refused(RefusalReason::KeyUsedUp));
        }
        tracing::info!("{} enrolled with key {}, {}, {key}", site.name, record.id, site.state.as_str());
        self.put(ledger, site, &documents).await.map_err(|error| unavailable(&error))
    }

    /// Ends a connection.
    pub fn disconnect(&self, session: &Session) {
        if self.state().disconnect(session) {
            self.reported.latest().remove(&session.key());
            self.note_seen(session.key());
        }
    }

    /// What a connection has to be told now. It counts as told.
    pub fn outgoing(&self, session: &mut Session) -> Outgoing {
        self.state().outgoing(session)
    }

    /// Why a connection was cut.
    #[must_use]
    pub fn why_cut(&self, session: &Session) -> Refusal {
        self.state().why_cut(session)
    }

    /// Whether a site may send another message now. It counts as sent.
    #[must_use]
    pub fn may_speak(&self, session: &Session) -> bool {
        self.state().may_speak(Instant::now(), session)
    }

    /// Notes where a site can be reached.
    pub fn set_reachability(&self, session: &Session, reachability: Reachability) {
        self.state().set_reachability(session, reachability);
    }
}

/// Whether a known site that has proven its key may connect.
fn may_connect(site: &Site, bound: bool) -> Result<(), Refusal> {
    if site.state == SiteState::Revoked {
        return Err(refused(RefusalReason::Revoked));
    }
    if site.channel_binding == BindingMode::Required && !bound {
        let detail = "it is for another TLS connection: somebody is in between. If that is your own proxy, \
            `site channel-binding` lets the site through it";
        return Err(Refusal { reason: RefusalReason::Proof, detail: Some(detail.into()) });
    }
    Ok(())
}

fn refused(reason: RefusalReason) -> Refusal {
    Refusal { reason, detail: None }
}

/// What a site may offer after its first offer: the part of it that is in force. A site that has offered nothing so far
/// still has its first offer to make.
fn granted(in_force: &[IpNet]) -> Option<Subnets> {
    Subnets::new(in_force.iter().copied()).ok().filter(|_| !in_force.is_empty())
}

fn unavailable(error: &ChangeError) -> Refusal {
    tracing::error!("a gateway is refused and told to try later: {error}");
    refused(RefusalReason::Unavailable)
}
