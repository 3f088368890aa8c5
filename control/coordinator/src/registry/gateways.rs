//! What gateways do: enrol, connect, say where they are.

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use penstock_proto::coordination::{Enrolment, Hello, Known, Reachability, Refusal, RefusalReason, SiteKey};

use super::{Outgoing, Registry, SITES_LIMIT, Session};
use crate::addresses::{SubnetError, Subnets, check_subnets, free_virtual_address};
use crate::site::{Site, SiteState};
use crate::store::{Store, StoreError, Who};
use crate::time::now;

impl Registry {
    /// Lets in a gateway that has proven its key.
    ///
    /// # Errors
    /// Why it is sent away.
    pub async fn connect(&self, hello: Hello) -> Result<Session, Refusal> {
        let Hello { public_key, subnets, enrolment, known, .. } = hello;
        if let Some(session) = self.connect_known(&public_key, &subnets, known)? {
            return Ok(session);
        }
        // Enrolment, or other subnets: both are stored.
        let mut store = self.store.lock().await;
        let site = self.state().site(&public_key).cloned();
        match site {
            Some(site) => self.change_subnets(&mut store, &site, subnets).await?,
            None => {
                let enrolment = enrolment.ok_or(refused(RefusalReason::NotEnrolled))?;
                self.enrol(&mut store, public_key, subnets, enrolment).await?;
            }
        }
        drop(store);
        self.note_seen(public_key);
        self.state().connect(Instant::now(), &public_key, known).map_err(refused)
    }

    fn connect_known(
        &self,
        key: &SiteKey,
        subnets: &[IpNet],
        known: Option<Known>,
    ) -> Result<Option<Session>, Refusal> {
        let mut state = self.state();
        let Some(site) = state.site(key) else { return Ok(None) };
        if site.state == SiteState::Revoked {
            return Err(refused(RefusalReason::Revoked));
        }
        if site.subnets != subnets {
            return Ok(None);
        }
        self.note_seen(*key);
        state.connect(Instant::now(), key, known).map(Some).map_err(refused)
    }

    async fn change_subnets(&self, store: &mut Store, before: &Site, subnets: Vec<IpNet>) -> Result<(), Refusal> {
        let site = Site { subnets, ..before.clone() };
        if site.state == SiteState::Revoked {
            return Err(refused(RefusalReason::Revoked));
        }
        if !self.state().may_change_subnets(Instant::now(), &site.key) {
            let detail = Some("it changes its subnets too often".into());
            return Err(Refusal { reason: RefusalReason::TooMany, detail });
        }
        self.check_subnets_of(&site)?;
        let who = Who::Site(site.name.clone());
        let stored = store.update_site(before, &site, &who, "site offers subnets").await;
        stored.map_err(|error| unavailable(&error))?;
        tracing::info!("{} offers {:?} now", site.name, site.subnets);
        self.state().put(site);
        Ok(())
    }

    async fn enrol(
        &self,
        store: &mut Store,
        key: SiteKey,
        subnets: Vec<IpNet>,
        enrolment: Enrolment,
    ) -> Result<(), Refusal> {
        let record = store.key(enrolment.key.id()).await.map_err(|error| unavailable(&error))?;
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
            let taken = |site: &Arc<Site>| site.state != SiteState::Revoked && site.name == enrolment.name;
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
        let site = Site {
            key,
            name: enrolment.name,
            virtual_address,
            subnets,
            tags: record.tags,
            state: if record.approve_manually { SiteState::Pending } else { SiteState::Approved },
            created: now(),
            last_seen: None,
            ends: record.site_lifetime.map(|lifetime| now().saturating_add(lifetime)),
        };
        self.check_subnets_of(&site)?;
        if !store.enrol(&site, record.id).await.map_err(|error| unavailable(&error))? {
            return Err(refused(RefusalReason::KeyUsedUp));
        }
        tracing::info!("{} enrolled with key {}, {}, {key}", site.name, record.id, site.state.as_str());
        self.state().put(site);
        Ok(())
    }

    /// The other site is named in the log; the gateway is told of it only if it may know of it.
    fn check_subnets_of(&self, site: &Site) -> Result<(), Refusal> {
        let state = self.state();
        // Who waits holds no subnets, so there is nothing to dispute before the approval.
        let nobody = Subnets::default();
        let others = if site.state == SiteState::Approved { state.subnets() } else { &nobody };
        let Err(error) = check_subnets(site, others) else { return Ok(()) };
        tracing::warn!("{} is refused: {error}", site.name);
        let detail = match &error {
            SubnetError::Overlap { subnet, other, .. } => {
                let other = state.sites().find(|candidate| candidate.name == *other && candidate.key != site.key);
                let visible = other
                    .and_then(|other| state.number(&other.key))
                    .is_some_and(|other| state.links().would_join(site, other));
                if visible { error.to_string() } else { format!("{subnet} overlaps a subnet of another site") }
            }
            SubnetError::HostBits(_) | SubnetError::Reserved { .. } | SubnetError::Twice { .. } => error.to_string(),
        };
        Err(Refusal { reason: RefusalReason::Subnets, detail: Some(detail) })
    }

    /// Ends a connection.
    pub fn disconnect(&self, session: &Session) {
        if self.state().disconnect(session) {
            self.note_seen(session.key());
        }
    }

    /// What a connection has to say now. It counts as said.
    pub fn outgoing(&self, session: &mut Session) -> Outgoing {
        self.state().outgoing(session)
    }

    /// Why a connection was cut.
    #[must_use]
    pub fn why_cut(&self, session: &Session) -> Refusal {
        self.state().why_cut(session)
    }

    /// Whether a site may say something more now. It counts as said.
    #[must_use]
    pub fn may_speak(&self, session: &Session) -> bool {
        self.state().may_speak(Instant::now(), session)
    }

    /// Takes note of where a site can be reached.
    pub fn set_reachability(&self, session: &Session, reachability: Reachability) {
        self.state().set_reachability(session, reachability);
    }
}

fn refused(reason: RefusalReason) -> Refusal {
    Refusal { reason, detail: None }
}

fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!("a gateway is put off: {error}");
    refused(RefusalReason::Unavailable)
}
