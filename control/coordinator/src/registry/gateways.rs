//! What gateways do: enrol, connect, say where they are.

use ipnet::IpNet;
use penstock_proto::coordination::{Enrolment, Hello, Known, Reachability, Refusal, RefusalReason, SiteKey};

use super::{Outgoing, Registry, SITES_LIMIT, Session};
use crate::addresses::{SubnetError, check_subnets, free_virtual_address};
use crate::site::{Site, SiteState};
use crate::store::{Store, StoreError};
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
            Some(site) => self.change_subnets(&mut store, Site { subnets, ..site }).await?,
            None => {
                let enrolment = enrolment.ok_or(refused(RefusalReason::NotEnrolled))?;
                self.enrol(&mut store, public_key, subnets, enrolment).await?;
            }
        }
        drop(store);
        self.note_seen(public_key);
        self.state().connect(&public_key, known).ok_or(refused(RefusalReason::NotEnrolled))
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
        Ok(state.connect(key, known))
    }

    async fn change_subnets(&self, store: &mut Store, site: Site) -> Result<(), Refusal> {
        if site.state == SiteState::Revoked {
            return Err(refused(RefusalReason::Revoked));
        }
        self.check_subnets_of(&site)?;
        store.update_site(&site).await.map_err(|error| unavailable(&error))?;
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
            let taken = |site: &Site| site.state != SiteState::Revoked && site.name == enrolment.name;
            if state.sites().any(taken) {
                return Err(refused(RefusalReason::NameTaken));
            }
            let full = state.sites().count() >= SITES_LIMIT;
            free_virtual_address(state.sites()).filter(|_| !full)
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
        let disputes = site.state == SiteState::Approved;
        let others = state.sites().filter(|_| disputes);
        let Err(error) = check_subnets(site, others) else { return Ok(()) };
        tracing::warn!("{} is refused: {error}", site.name);
        let detail = match &error {
            SubnetError::Overlap { subnet, other, .. } => {
                let visible = |candidate: &&Site| candidate.name == *other && state.policy().joins(site, candidate);
                match state.sites().find(visible) {
                    Some(_) => error.to_string(),
                    None => format!("{subnet} overlaps a subnet of another site"),
                }
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
