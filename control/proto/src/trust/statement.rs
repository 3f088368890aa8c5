//! What is signed: statements of sites and relays, revocations, the certificate of the lease key, leases,
//! and the authority's handing over to another key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::encoding::{Malformed, Reader, Writer};
use super::prefix::{has_host_bits, overlay_around, unroutable};
use super::time::{LeaseLength, UnixTime, Validity};
use super::{AuthorityKey, LeaseKey};
use crate::coordination::limits::SUBNETS_LIMIT;
use crate::coordination::{Name, SiteKey};

/// The most tags of a site.
pub const TAGS_LIMIT: usize = 32;
/// The most sites in one list of revocations, 164 kB. Before it is full, the authority signs all live statements again
/// and raises the floor.
pub const REVOCATIONS_LIMIT: usize = 4_096;

/// The number of a signed document. Of two documents by the same key, the one with the higher serial was signed later,
/// whatever they are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Serial(pub u64);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Tags of a site, at most [`TAGS_LIMIT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Name>", into = "Vec<Name>")]
pub struct Tags(BTreeSet<Name>);

/// There are more tags than a site can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a site has at most {TAGS_LIMIT} tags")]
pub struct TooManyTags;

impl Tags {
    /// These tags.
    ///
    /// # Errors
    /// There are too many.
    pub fn new(tags: impl IntoIterator<Item = Name>) -> Result<Self, TooManyTags> {
        let tags: BTreeSet<Name> = tags.into_iter().collect();
        if tags.len() > TAGS_LIMIT { Err(TooManyTags) } else { Ok(Self(tags)) }
    }

    /// The tags in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Name>> for Tags {
    type Error = TooManyTags;

    fn try_from(tags: Vec<Name>) -> Result<Self, TooManyTags> {
        Self::new(tags)
    }
}

impl From<Tags> for Vec<Name> {
    fn from(tags: Tags) -> Self {
        tags.0.into_iter().collect()
    }
}

/// Subnets that a site may offer: at most [`SUBNETS_LIMIT`], without host bits, and only those that can be behind a
/// site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<IpNet>", into = "Vec<IpNet>")]
pub struct Subnets(BTreeSet<IpNet>);

/// Why prefixes cannot be the subnets of a site, whoever grants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetsError {
    /// There are too many.
    #[error("a site has at most {SUBNETS_LIMIT} subnets")]
    TooMany,
    /// It is an address within a subnet.
    #[error("{0} is an address within a subnet: write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// Its addresses cannot be behind a site.
    #[error("{0} cannot be at a site: its addresses {1}")]
    Unroutable(IpNet, &'static str),
    /// It lies in the range of virtual addresses.
    #[error("{0} cannot be at a site: it lies inside {1}, where sites have their virtual addresses")]
    Overlay(IpNet, IpNet),
}

impl Subnets {
    /// These subnets.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(subnets: impl IntoIterator<Item = IpNet>) -> Result<Self, SubnetsError> {
        let mut set = BTreeSet::new();
        for subnet in subnets {
            Self::check(&subnet)?;
            set.insert(subnet);
            if set.len() > SUBNETS_LIMIT {
                return Err(SubnetsError::TooMany);
            }
        }
        Ok(Self(set))
    }

    /// Checks one subnet, whoever grants it.
    pub(super) fn check(subnet: &IpNet) -> Result<(), SubnetsError> {
        if has_host_bits(subnet) {
            return Err(SubnetsError::HostBits(*subnet));
        }
        if let Some(reason) = unroutable(subnet) {
            return Err(SubnetsError::Unroutable(*subnet, reason));
        }
        // A prefix that contains the range is a default route or the like, in which the virtual addresses are longer
        // prefixes.
        match overlay_around(subnet) {
            Some(overlay) => Err(SubnetsError::Overlay(*subnet, overlay)),
            None => Ok(()),
        }
    }

    /// The subnets in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &IpNet> {
        self.0.iter()
    }

    /// Whether a prefix is one of them.
    #[must_use]
    pub fn has(&self, prefix: &IpNet) -> bool {
        self.0.contains(prefix)
    }

    /// Whether a prefix is one of them or lies inside one.
    #[must_use]
    pub fn contain(&self, prefix: &IpNet) -> bool {
        self.0.iter().any(|subnet| subnet.contains(prefix))
    }
}

impl TryFrom<Vec<IpNet>> for Subnets {
    type Error = SubnetsError;

    fn try_from(subnets: Vec<IpNet>) -> Result<Self, SubnetsError> {
        Self::new(subnets)
    }
}

impl From<Subnets> for Vec<IpNet> {
    fn from(subnets: Subnets) -> Self {
        subnets.0.into_iter().collect()
    }
}

/// What the authority is asked to state about a site. `site approve --offline` reads it from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct SiteGrant {
    /// Its WireGuard public key.
    pub public_key: SiteKey,
    /// Its name.
    pub name: Name,
    /// Its address in the overlay.
    pub virtual_address: Ipv4Addr,
    /// Its tags.
    #[serde(default)]
    pub tags: Tags,
    /// What it may offer: these subnets, and anything inside them.
    #[serde(default)]
    pub subnets: Subnets,
    /// The period for which it is a site.
    #[serde(default)]
    pub validity: Validity,
}

impl SiteGrant {
    /// Whether a gateway that still believes `before` believes anything that this does not say. Its firewall selects by
    /// name and tags whom it lets in.
    pub(super) fn takes_from(&self, before: &Self) -> bool {
        self.virtual_address != before.virtual_address
            || (&self.name, &self.tags) != (&before.name, &before.tags)
            || !before.subnets.iter().all(|subnet| self.subnets.contain(subnet))
            || !self.validity.covers(&before.validity)
    }
}

/// States that a key is a site of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteStatement {
    /// The number of this document.
    pub serial: Serial,
    /// The newest list of revocations when this was signed. Whoever believes this must know that list, or this could be
    /// combined with statements that were revoked before.
    pub revocations: Serial,
    /// What is said.
    pub grant: SiteGrant,
}

/// States that a key is a relay of the overlay. It does not sign the relay's addresses: a relay proves its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayStatement {
    /// The number of this document.
    pub serial: Serial,
    /// As in [`SiteStatement::revocations`].
    pub revocations: Serial,
    /// The relay's X25519 key.
    pub public_key: SiteKey,
    /// Its name.
    pub name: Name,
    /// When it is a relay.
    pub validity: Validity,
}

/// Which statements are void.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Revocations {
    /// The number of this document.
    pub serial: Serial,
    /// Every statement with a lower serial is void.
    pub floor: Serial,
    /// Every statement about these sites and relays with this serial or a lower one is void.
    pub(super) subjects: BTreeMap<SiteKey, Serial>,
}

impl Revocations {
    /// Whether the statement of that serial about the subject is void.
    #[must_use]
    pub fn void(&self, subject: &SiteKey, serial: Serial) -> bool {
        serial < self.floor || self.subjects.get(subject).is_some_and(|last| serial <= *last)
    }

    /// The subjects that are named, each with the serial up to which its statements are void.
    pub fn subjects(&self) -> impl ExactSizeIterator<Item = (&SiteKey, Serial)> {
        self.subjects.iter().map(|(subject, serial)| (subject, *serial))
    }

    /// Makes void what either list makes void. No list makes anything valid again, so that one from a restored backup
    /// brings nobody back.
    pub(super) fn merge(&mut self, other: &Self) {
        self.serial = self.serial.max(other.serial);
        self.floor = self.floor.max(other.floor);
        for (subject, serial) in &other.subjects {
            let last = self.subjects.entry(*subject).or_default();
            *last = (*last).max(*serial);
        }
        let floor = self.floor;
        self.subjects.retain(|_, serial| *serial >= floor);
    }
}

/// States that a coordinator may keep statements alive with this key. A later certificate ends the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseCertificate {
    /// The number of this document.
    pub serial: Serial,
    /// The key.
    pub key: LeaseKey,
    /// Longer leases count only for this long.
    pub longest: LeaseLength,
}

/// States that a site's statement stays alive for a time, which a gateway counts from when it receives the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The number of this lease among those of its key.
    pub serial: Serial,
    /// The site.
    pub site: SiteKey,
    /// When it was signed, by the coordinator's clock.
    pub issued: UnixTime,
    /// How long it keeps the statement alive.
    pub length: LeaseLength,
}

/// States that another key stands for the overlay from now on, signed by the key that did so before. What the old key
/// signed is void for whoever knows this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollover {
    /// The old key.
    pub from: AuthorityKey,
    /// The new key.
    pub to: AuthorityKey,
}

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Who is a site.
    Site(SiteStatement),
    /// Who is a relay.
    Relay(RelayStatement),
    /// What is void.
    Revocations(Revocations),
    /// Whose leases count.
    LeaseCertificate(LeaseCertificate),
    /// Which statement stays alive.
    Lease(Lease),
    /// Who is the authority.
    Rollover(Rollover),
}

impl Contents {
    /// The number of the document; a rollover has none.
    pub(super) fn serial(&self) -> Serial {
        match self {
            Self::Site(statement) => statement.serial,
            Self::Relay(statement) => statement.serial,
            Self::Revocations(list) => list.serial,
            Self::LeaseCertificate(certificate) => certificate.serial,
            Self::Lease(lease) => lease.serial,
            Self::Rollover(_) => Serial(0),
        }
    }

    /// The canonical form: a byte for the kind, and the fields.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Self::Site(SiteStatement { serial, revocations, grant }) => {
                to.u8(1);
                to.serial(*serial);
                to.serial(*revocations);
                to.site_key(&grant.public_key);
                to.name(&grant.name);
                to.validity(&grant.validity);
                to.bytes(&grant.virtual_address.octets());
                to.tags(&grant.tags);
                to.subnets(&grant.subnets);
            }
            Self::Relay(RelayStatement { serial, revocations, public_key, name, validity }) => {
                to.u8(2);
                to.serial(*serial);
                to.serial(*revocations);
                to.site_key(public_key);
                to.name(name);
                to.validity(validity);
            }
            Self::Revocations(Revocations { serial, floor, subjects }) => {
                to.u8(3);
                to.serial(*serial);
                to.serial(*floor);
                to.u32(subjects.len() as u32);
                for (subject, serial) in subjects {
                    to.site_key(subject);
                    to.serial(*serial);
                }
            }
            Self::LeaseCertificate(LeaseCertificate { serial, key, longest }) => {
                to.u8(4);
                to.serial(*serial);
                to.bytes(key.as_bytes());
                to.u32((*longest).into());
            }
            Self::Lease(Lease { serial, site, issued, length }) => {
                to.u8(5);
                to.serial(*serial);
                to.site_key(site);
                to.u64(issued.0);
                to.u32((*length).into());
            }
            Self::Rollover(Rollover { from, to: new }) => {
                to.u8(6);
                to.bytes(from.as_bytes());
                to.bytes(new.as_bytes());
            }
        }
        to.0
    }

    /// Reads the canonical form, and nothing else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let contents = match from.u8()? {
            1 => {
                let (serial, revocations) = (from.serial()?, from.serial()?);
                let (public_key, name, validity) = (from.key()?, from.name()?, from.validity()?);
                let virtual_address = from.array::<4>()?.into();
                let (tags, subnets) = (from.tags()?, from.subnets()?);
                let grant = SiteGrant { public_key, name, virtual_address, tags, subnets, validity };
                Self::Site(SiteStatement { serial, revocations, grant })
            }
            2 => Self::Relay(RelayStatement {
                serial: from.serial()?,
                revocations: from.serial()?,
                public_key: from.key()?,
                name: from.name()?,
                validity: from.validity()?,
            }),
            3 => {
                let (serial, floor) = (from.serial()?, from.serial()?);
                let count = from.u32()? as usize;
                if count > REVOCATIONS_LIMIT {
                    return Err(Malformed);
                }
                let subject = |from: &mut Reader<'_>| Ok((from.key::<SiteKey>()?, from.serial()?));
                // Ascending in the pairs; equal subjects show as fewer in the map.
                let subjects: BTreeMap<_, _> = from.ascending(count, subject)?.into_iter().collect();
                if subjects.len() != count || subjects.values().any(|serial| *serial < floor) {
                    return Err(Malformed);
                }
                Self::Revocations(Revocations { serial, floor, subjects })
            }
            4 => Self::LeaseCertificate(LeaseCertificate {
                serial: from.serial()?,
                key: from.key()?,
                longest: from.length_of_lease()?,
            }),
            5 => Self::Lease(Lease {
                serial: from.serial()?,
                site: from.key()?,
                issued: UnixTime(from.u64()?),
                length: from.length_of_lease()?,
            }),
            6 => Self::Rollover(Rollover { from: from.key()?, to: from.key()? }),
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(contents)
    }
}
