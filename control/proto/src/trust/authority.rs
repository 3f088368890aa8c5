//! The signers: the authority, in the coordinator's process or on a machine of its own, and the coordinator that keeps
//! the authority's statements alive.
//!
//! An authority never lets two valid statements contradict each other: a name, a virtual address and a subnet belong to
//! one site. What is to move is first taken from its present site, by a list of revocations that makes the old
//! statement void and that the next statements refer to.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::publication::{DocumentRefusal, Publication};
use super::statement::{
    Contents, Lease, LeaseCertificate, REVOCATIONS_LIMIT, RelayStatement, Revocations, Rollover, Serial, SiteGrant,
    SiteStatement,
};
use super::{AuthorityKey, Document, LeaseKey, LeaseLength, SigningKey, UnixTime, Validity};
use crate::coordination::{Name, SiteKey};

/// The signer of statements. Whatever it returns is also in its [`Publication`], which must be stored before the
/// documents are given away: a document that is forgotten cannot be revoked.
#[derive(Debug)]
pub struct Authority {
    key: SigningKey,
    publication: Publication,
    last: Serial,
    holders: Holders,
}

/// Why the authority refuses to sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Another site has this name.
    #[error("the name {0} belongs to another site")]
    NameTaken(Name),
    /// Another site has this address.
    #[error("the address {0} is that of {1}")]
    AddressTaken(Ipv4Addr, Name),
    /// Another site may offer exactly this subnet.
    #[error("{0} may offer {1} already: take it from there first")]
    SubnetTaken(Name, IpNet),
    /// The key does not belong to these documents.
    #[error("this private key is not the authority's: {0} is")]
    WrongKey(AuthorityKey),
    /// The publication does not accept it, for example because it is full.
    #[error(transparent)]
    Refused(#[from] DocumentRefusal),
}

impl Authority {
    /// The authority of a new overlay.
    #[must_use]
    pub fn found(key: SigningKey) -> Self {
        let publication = Publication::new(key.authority());
        Self { key, publication, last: Serial(0), holders: Holders::default() }
    }

    /// Continues from what was stored.
    ///
    /// # Errors
    /// Key and documents do not belong together.
    pub fn resume(key: SigningKey, publication: Publication) -> Result<Self, AuthorityError> {
        if publication.authority() != key.authority() {
            return Err(AuthorityError::WrongKey(publication.authority()));
        }
        let last = publication.last_serial();
        let mut holders = Holders::default();
        publication.sites().for_each(|site| holders.note(&site.grant));
        Ok(Self { key, publication, last, holders })
    }

    /// Everything that must be stored besides the key.
    #[must_use]
    pub fn publication(&self) -> &Publication {
        &self.publication
    }

    /// Lets a coordinator keep statements alive, for at most `longest` at a time. A key that was certified before no
    /// longer counts.
    ///
    /// # Errors
    /// Only that of a full publication.
    pub fn certify(
        &mut self,
        now: UnixTime,
        key: LeaseKey,
        longest: LeaseLength,
    ) -> Result<Vec<Document>, AuthorityError> {
        let serial = self.next(now);
        let certificate = LeaseCertificate { serial, key, longest };
        self.publish(Contents::LeaseCertificate(certificate)).map(|document| vec![document])
    }

    /// Makes a key a site, or changes what a site may do. If that takes something away, the old statement is revoked
    /// first.
    ///
    /// # Errors
    /// The name, address or a subnet is another site's.
    pub fn approve(&mut self, now: UnixTime, grant: SiteGrant) -> Result<Vec<Document>, AuthorityError> {
        self.check(&grant)?;
        let takes = self.publication.statement(&grant.public_key).is_some_and(|before| match before.contents() {
            Contents::Site(before) => grant.takes_from(&before.grant),
            _ => true,
        });
        let mut documents = if takes { self.revoke(now, [grant.public_key])? } else { Vec::new() };
        documents.push(self.state_site(now, grant)?);
        Ok(documents)
    }

    /// Makes a key a relay, or changes until when it is one; otherwise as [`approve`](Self::approve).
    ///
    /// # Errors
    /// Only that of a full publication.
    pub fn approve_relay(
        &mut self,
        now: UnixTime,
        public_key: SiteKey,
        name: Name,
        validity: Validity,
    ) -> Result<Vec<Document>, AuthorityError> {
        let takes = self.publication.statement(&public_key).is_some_and(|before| match before.contents() {
            Contents::Relay(before) => !validity.covers(&before.validity),
            _ => true,
        });
        let mut documents = if takes { self.revoke(now, [public_key])? } else { Vec::new() };
        documents.push(self.state_relay(now, public_key, name, validity)?);
        Ok(documents)
    }

    /// Makes all statements about these sites and relays void. They can be approved again.
    ///
    /// # Errors
    /// Only that of a full publication.
    pub fn revoke(
        &mut self,
        now: UnixTime,
        subjects: impl IntoIterator<Item = SiteKey>,
    ) -> Result<Vec<Document>, AuthorityError> {
        let serial = self.next(now);
        let mut list = self.publication.revocations().cloned().unwrap_or_default();
        list.serial = serial;
        // The list's own serial is higher than that of every statement so far.
        list.subjects.extend(subjects.into_iter().map(|subject| (subject, serial)));
        if list.subjects.len() > REVOCATIONS_LIMIT {
            return self.sign_anew(now, &list);
        }
        self.publish(Contents::Revocations(list)).map(|document| vec![document])
    }

    /// Signs everything in force again, so that nothing signed before counts any more.
    ///
    /// # Errors
    /// Only that of a full publication.
    pub fn renew(&mut self, now: UnixTime) -> Result<Vec<Document>, AuthorityError> {
        self.sign_anew(now, &Revocations::default())
    }

    /// Signs all statements again, except those that `gone` makes void.
    fn sign_anew(&mut self, now: UnixTime, gone: &Revocations) -> Result<Vec<Document>, AuthorityError> {
        let live = Live::of(&self.publication, gone);
        let serial = self.next(now);
        let list = Revocations { serial, floor: serial, ..Revocations::default() };
        let mut documents = vec![self.publish(Contents::Revocations(list))?];
        documents.extend(self.state(now, live)?);
        Ok(documents)
    }

    /// Signs in advance that another key takes over the overlay: the way out when this key is lost. The document and
    /// the other private key belong in a safe, apart from this key. It remains useful until this key hands over to any
    /// other.
    #[must_use]
    pub fn spare(&self, to: AuthorityKey) -> Document {
        Document::new(Contents::Rollover(Rollover { from: self.publication.authority(), to }), &self.key)
    }

    /// Hands over to another key: [`spare`](Self::spare) and [`take_over`](Self::take_over) in one step.
    ///
    /// # Errors
    /// The authority has had too many keys.
    pub fn roll_over(self, now: UnixTime, key: SigningKey) -> Result<(Self, Vec<Document>), AuthorityError> {
        let rollover = self.spare(key.authority());
        Self::take_over(now, key, self.publication, rollover)
    }

    /// Takes over the overlay, by a document that the previous key has signed, and signs everything in force with the
    /// new key. After a loss the documents come from the coordinator; the administrator then has to read its list of
    /// sites first.
    /// # Errors
    /// The document does not hand over to this key, or the authority has had too many.
    pub fn take_over(
        now: UnixTime,
        key: SigningKey,
        before: Publication,
        rollover: Document,
    ) -> Result<(Self, Vec<Document>), AuthorityError> {
        let live = Live::of(&before, &Revocations::default());
        let certificate = before.certificate().copied();
        let mut publication = before;
        publication.add(rollover.clone())?;
        let mut authority = Self::resume(key, publication)?;
        let mut documents = vec![rollover];
        if let Some(LeaseCertificate { key, longest, .. }) = certificate {
            documents.extend(authority.certify(now, key, longest)?);
        }
        documents.extend(authority.state(now, live)?);
        Ok((authority, documents))
    }

    fn check(&self, grant: &SiteGrant) -> Result<(), AuthorityError> {
        let other = |holder: Option<&SiteKey>| {
            let site = self.publication.site(holder.filter(|key| **key != grant.public_key)?)?;
            Some(&site.grant)
        };
        if other(self.holders.names.get(&grant.name)).is_some_and(|site| site.name == grant.name) {
            return Err(AuthorityError::NameTaken(grant.name.clone()));
        }
        let address = grant.virtual_address;
        if let Some(site) = other(self.holders.addresses.get(&address)).filter(|site| site.virtual_address == address) {
            return Err(AuthorityError::AddressTaken(address, site.name.clone()));
        }
        for subnet in grant.subnets.iter() {
            if let Some(site) = other(self.holders.subnets.get(subnet)).filter(|site| site.subnets.has(subnet)) {
                return Err(AuthorityError::SubnetTaken(site.name.clone(), *subnet));
            }
        }
        Ok(())
    }

    fn state(&mut self, now: UnixTime, live: Live) -> Result<Vec<Document>, AuthorityError> {
        let mut documents = Vec::new();
        for grant in live.sites {
            documents.push(self.state_site(now, grant)?);
        }
        for (key, name, validity) in live.relays {
            documents.push(self.state_relay(now, key, name, validity)?);
        }
        Ok(documents)
    }

    fn state_site(&mut self, now: UnixTime, grant: SiteGrant) -> Result<Document, AuthorityError> {
        let (serial, revocations) = (self.next(now), self.last_revocations());
        self.holders.note(&grant);
        self.publish(Contents::Site(SiteStatement { serial, revocations, grant }))
    }

    fn state_relay(
        &mut self,
        now: UnixTime,
        public_key: SiteKey,
        name: Name,
        validity: Validity,
    ) -> Result<Document, AuthorityError> {
        let (serial, revocations) = (self.next(now), self.last_revocations());
        self.publish(Contents::Relay(RelayStatement { serial, revocations, public_key, name, validity }))
    }

    fn publish(&mut self, contents: Contents) -> Result<Document, AuthorityError> {
        let document = Document::new(contents, &self.key);
        self.publication.add(document.clone())?;
        Ok(document)
    }

    fn last_revocations(&self) -> Serial {
        self.publication.revocations().map(|list| list.serial).unwrap_or_default()
    }

    fn next(&mut self, now: UnixTime) -> Serial {
        self.last = next_serial(self.last, now);
        self.last
    }
}

/// Which site was last stated to have a name, an address or a subnet. What was taken away since is still in here, so an
/// entry counts only if the statement in force says the same.
#[derive(Debug, Default)]
struct Holders {
    names: HashMap<Name, SiteKey>,
    addresses: HashMap<Ipv4Addr, SiteKey>,
    subnets: HashMap<IpNet, SiteKey>,
}

impl Holders {
    fn note(&mut self, grant: &SiteGrant) {
        let key = grant.public_key;
        self.names.insert(grant.name.clone(), key);
        self.addresses.insert(grant.virtual_address, key);
        self.subnets.extend(grant.subnets.iter().map(|subnet| (*subnet, key)));
    }
}

/// What is in force, without serials.
struct Live {
    sites: Vec<SiteGrant>,
    relays: Vec<(SiteKey, Name, Validity)>,
}

impl Live {
    fn of(publication: &Publication, gone: &Revocations) -> Self {
        let sites = publication.sites().filter(|site| !gone.void(&site.grant.public_key, site.serial));
        let relays = publication.relays().filter(|relay| !gone.void(&relay.public_key, relay.serial));
        Self {
            sites: sites.map(|site| site.grant.clone()).collect(),
            relays: relays.map(|relay| (relay.public_key, relay.name.clone(), relay.validity)).collect(),
        }
    }
}

/// The coordinator's key, which keeps statements alive.
#[derive(Debug)]
pub struct Lessor {
    key: SigningKey,
    length: LeaseLength,
    last: Serial,
}

impl Lessor {
    /// Issues leases of this length. `last` is the value of [`last`](Self::last) in an earlier process, if there was
    /// one: gateways refuse a lease whose serial is lower than one that they have.
    #[must_use]
    pub fn new(key: SigningKey, length: LeaseLength, last: Serial) -> Self {
        Self { key, length, last }
    }

    /// The key that the authority has to certify.
    #[must_use]
    pub fn key(&self) -> LeaseKey {
        self.key.lease_key()
    }

    /// Keeps a site's statement alive; to be repeated after [`LeaseLength::renewal`]. A site that was removed or
    /// revoked must not be given one.
    pub fn lease(&mut self, now: UnixTime, site: SiteKey) -> Document {
        self.last = next_serial(self.last, now);
        Document::new(Contents::Lease(Lease { serial: self.last, site, issued: now, length: self.length }), &self.key)
    }

    /// The serial of the last lease, to be stored before the lease is given away.
    #[must_use]
    pub fn last(&self) -> Serial {
        self.last
    }
}

/// Milliseconds since 1970, or the last serial plus one: so serials grow even after state was restored from a backup,
/// as long as either clock or memory is right.
fn next_serial(last: Serial, now: UnixTime) -> Serial {
    Serial(last.0.saturating_add(1).max(now.0.saturating_mul(1_000)))
}
