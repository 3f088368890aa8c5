//! The signer of what the overlay's gateways believe about sites: the authority, if its key is in our state directory.
//!
//! If it is not, this only keeps what the authority has signed. What it would have to sign becomes [`Requests`]; what
//! comes back is added.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use penstock_proto::coordination::{Name, Relay, SiteKey};
use penstock_proto::trust::{
    Authority, AuthorityError, AuthorityKey, Contents, Document, LeaseKey, LeaseLength, Publication, SigningKey,
    SiteGrant, TAGS_LIMIT, Tags, UnixTime, Validity,
};
use serde::{Deserialize, Serialize};

use crate::secret::{self, Secret, SecretError};
use crate::site::Site;

const AUTHORITY: &str = "authority.key";
/// The key that is about to replace the authority's.
const NEXT: &str = "authority-next.key";
const LEASES: &str = "lease.key";

/// The private keys of a state directory.
#[derive(Clone, Debug)]
pub struct Keys(PathBuf);

impl Keys {
    /// Those of this directory.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self(state.to_owned())
    }

    /// The authority's key, if it is here; any other key in its place is an error.
    ///
    /// # Errors
    /// A file cannot be used, or holds another key.
    pub fn authority(&self, wanted: AuthorityKey) -> Result<Option<SigningKey>, SignerError> {
        let (present, next) = (self.0.join(AUTHORITY), self.0.join(NEXT));
        let Some(key) = secret::read(&present)?.map(SigningKey::from_seed) else { return Ok(None) };
        if key.authority() == wanted {
            return Ok(Some(key));
        }
        // We stopped after the authority had handed over and before its new key was in place.
        match secret::read(&next)?.map(SigningKey::from_seed) {
            Some(key) if key.authority() == wanted => {
                self.replace_authority(&key)?;
                Ok(Some(key))
            }
            _ => Err(SignerError::OtherKey { path: present, wanted }),
        }
    }

    /// The authority's key, or a new one.
    fn found(&self) -> Result<SigningKey, SignerError> {
        load_or_make(&self.0.join(AUTHORITY))
    }

    /// The lease key, or a new one.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn leases(&self) -> Result<SigningKey, SignerError> {
        load_or_make(&self.0.join(LEASES))
    }

    /// Stores a key that is to become the authority's, before anybody is told about it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn prepare(&self, key: &SigningKey) -> Result<(), SignerError> {
        Ok(secret::write(&self.0.join(NEXT), key.seed())?)
    }

    /// Stores the authority's key in its place.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn replace_authority(&self, key: &SigningKey) -> Result<(), SignerError> {
        secret::write(&self.0.join(AUTHORITY), key.seed())?;
        let next = self.0.join(NEXT);
        if next.exists() { Ok(secret::remove(&next)?) } else { Ok(()) }
    }

    /// Removes the authority's key.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove_authority(&self) -> Result<(), SignerError> {
        Ok(secret::remove(&self.0.join(AUTHORITY))?)
    }
}

fn load_or_make(path: &Path) -> Result<SigningKey, SignerError> {
    if let Some(secret) = secret::read(path)? {
        return Ok(SigningKey::from_seed(secret));
    }
    let key = SigningKey::generate(&mut rand::rng());
    secret::write(path, key.seed())?;
    Ok(key)
}

/// Why something is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A key file cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A key file holds another key.
    #[error("{path} is not the key of this overlay's authority, {wanted}")]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The authority whose key it should hold.
        wanted: AuthorityKey,
    },
    /// The authority refuses to sign it.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The key is not here.
    #[error(
        "the authority's key is on another machine: take `penstock-coordinator authority requests` there, sign \
        with `penstock-coordinator site approve --offline`, and bring the result back with \
        `penstock-coordinator authority add`"
    )]
    Elsewhere,
    /// The key is not here, and has to be for this.
    #[error("the authority's key is on another machine: run this there")]
    NotHere,
    /// The key is here.
    #[error("the authority's key is on this coordinator: there is nothing to bring back")]
    Here,
}

/// The signer, and what is in force.
#[derive(Debug)]
pub enum Signer {
    /// The authority's key is here.
    Here(Box<Authority>),
    /// The authority's key is elsewhere.
    Elsewhere(Box<Publication>),
}

impl Signer {
    /// The authority of a new overlay.
    ///
    /// # Errors
    /// Its key cannot be stored.
    pub fn found(keys: &Keys) -> Result<Self, SignerError> {
        Ok(Self::Here(Box::new(Authority::found(keys.found()?))))
    }

    /// Continues from what was stored.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn resume(keys: &Keys, publication: Publication) -> Result<Self, SignerError> {
        Ok(match keys.authority(publication.authority())? {
            Some(key) => Self::Here(Box::new(Authority::resume(key, publication)?)),
            None => Self::Elsewhere(Box::new(publication)),
        })
    }

    /// What is in force.
    #[must_use]
    pub fn publication(&self) -> &Publication {
        match self {
            Self::Here(authority) => authority.publication(),
            Self::Elsewhere(publication) => publication,
        }
    }

    /// Whether the key is here.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Signs what is known about an approved site, unless it is signed already or the key is elsewhere.
    ///
    /// # Errors
    /// The authority refuses to sign it.
    pub fn approve(&mut self, site: &Site) -> Result<Vec<Document>, SignerError> {
        let grant = grant(site);
        match self {
            Self::Here(authority) => match authority.publication().site(&site.key) {
                Some(statement) if statement.grant == grant => Ok(Vec::new()),
                _ => Ok(authority.approve(now(), grant)?),
            },
            Self::Elsewhere(_) => Ok(Vec::new()),
        }
    }

    /// Makes void what was signed about a site or relay, unless there is nothing or the key is elsewhere.
    ///
    /// # Errors
    /// The authority refuses to sign it.
    pub fn revoke(&mut self, subject: SiteKey) -> Result<Vec<Document>, SignerError> {
        match self {
            Self::Here(authority) if authority.publication().statement(&subject).is_some() => {
                Ok(authority.revoke(now(), [subject])?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Certifies whose leases count, unless that is signed already or the key is elsewhere.
    ///
    /// # Errors
    /// The authority refuses to sign it.
    pub fn certify(&mut self, key: LeaseKey, length: LeaseLength) -> Result<Vec<Document>, SignerError> {
        let certified = self.certifies(key, length);
        match self {
            Self::Here(authority) if !certified => Ok(authority.certify(now(), key, length)?),
            _ => Ok(Vec::new()),
        }
    }

    /// Whether leases with this key and length count.
    #[must_use]
    pub fn certifies(&self, key: LeaseKey, length: LeaseLength) -> bool {
        let certificate = self.publication().certificate();
        certificate.is_some_and(|certificate| certificate.key == key && certificate.longest >= length)
    }

    /// Signs which relays there are, and which no longer, unless the key is elsewhere.
    ///
    /// # Errors
    /// The authority refuses to sign it.
    pub fn approve_relays(&mut self, relays: &[Relay]) -> Result<Vec<Document>, SignerError> {
        let Self::Here(authority) = self else { return Ok(Vec::new()) };
        let mut documents = Vec::new();
        let stated: Vec<(SiteKey, Name)> =
            authority.publication().relays().map(|relay| (relay.public_key, relay.name.clone())).collect();
        for (key, _) in &stated {
            if !relays.iter().any(|relay| relay.public_key == *key) {
                documents.extend(authority.revoke(now(), [*key])?);
            }
        }
        for Relay { public_key, name, .. } in relays {
            if !stated.contains(&(*public_key, name.clone())) {
                documents.extend(authority.approve_relay(now(), *public_key, name.clone(), Validity::default())?);
            }
        }
        Ok(documents)
    }

    /// Takes in what the authority has signed elsewhere. Returns what is new.
    ///
    /// # Errors
    /// The key is here, or something was not signed by the authority.
    pub fn add(&mut self, signed: &Publication) -> Result<Vec<Document>, SignerError> {
        let Self::Elsewhere(publication) = self else { return Err(SignerError::Here) };
        let mut new = Vec::new();
        for document in signed.documents() {
            if publication.add(document.clone()).map_err(AuthorityError::from)? {
                new.push(document.clone());
            }
        }
        Ok(new)
    }
}

/// What is to be signed about a site.
#[must_use]
pub fn grant(site: &Site) -> SiteGrant {
    SiteGrant {
        public_key: site.key,
        name: site.name.clone(),
        virtual_address: site.virtual_address,
        // Enrolment keys of older versions could have more.
        tags: Tags::new(site.tags.iter().take(TAGS_LIMIT).cloned()).unwrap_or_default(),
        subnets: site.granted.clone().unwrap_or_default(),
        validity: Validity::new(None, site.ends.map(UnixTime)).unwrap_or_default(),
    }
}

/// Now, by this machine's clock.
#[must_use]
pub fn now() -> UnixTime {
    SystemTime::now().into()
}

/// What the authority is asked to sign. It is a file for an administrator to read, and for the machine that has the
/// key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Requests {
    /// The authority that is asked.
    pub authority: AuthorityKey,
    /// Sites to approve, or whose statement changes.
    #[serde(default)]
    pub sites: Vec<SiteGrant>,
    /// Sites and relays to revoke.
    #[serde(default)]
    pub revoke: Vec<SiteKey>,
    /// Relays to approve.
    #[serde(default)]
    pub relays: Vec<(SiteKey, Name)>,
    /// The lease key to certify.
    #[serde(default)]
    pub lease_key: Option<LeaseKey>,
    /// The length of the leases.
    #[serde(default)]
    pub lease: Option<LeaseLength>,
}

/// Everything about an authority, to be taken to another machine. It is a secret.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Export {
    /// The private key.
    #[serde(with = "secret::text")]
    pub key: Secret,
    /// What it has signed.
    pub publication: Publication,
}

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spare(…)")
    }
}

impl Export {
    /// From a key and what it has signed.
    #[must_use]
    pub fn new(key: &SigningKey, publication: Publication) -> Self {
        Self { key: key.seed().clone(), publication }
    }

    /// The key, and what it has signed.
    ///
    /// # Errors
    /// They do not belong together.
    pub fn open(self) -> Result<(SigningKey, Publication), AuthorityError> {
        let authority = self.publication.authority();
        let key = SigningKey::from_seed(self.key);
        if key.authority() != authority {
            return Err(AuthorityError::WrongKey(authority));
        }
        Ok((key, self.publication))
    }
}

/// A key that can replace the authority's, with what the authority has signed in advance. It is a secret.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Spare {
    /// The private key.
    #[serde(with = "secret::text")]
    pub key: Secret,
    /// The document by which the authority hands over to it.
    pub rollover: Document,
}

impl Spare {
    /// The key and the document, if the document hands over to this key.
    #[must_use]
    pub fn open(self) -> Option<(SigningKey, Document)> {
        let key = SigningKey::from_seed(self.key);
        match self.rollover.contents() {
            Contents::Rollover(rollover) if rollover.to == key.authority() => Some((key, self.rollover)),
            _ => None,
        }
    }
}
