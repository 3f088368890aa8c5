//! The messages, as serde types: JSON in WebSocket text frames. Fields that the receiver does not know
//! are ignored, so that either end may be the newer one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::encoding::at_most;
use super::limits::{CANDIDATES_LIMIT, DOCUMENTS_LIMIT, SUBNETS_LIMIT};
use super::map::{Known, Map, Update};
use super::{Access, Challenge, EnrolmentKey, Name, Paths, Proof, Reports, SiteKey};
use crate::Speeds;
use crate::trust::Document;

/// What a gateway says. One [`Hello`] comes first.
#[expect(clippy::large_enum_variant, reason = "one is read at a time")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "Type")]
pub enum GatewayMessage {
    /// Who it is.
    Hello(Hello),
    /// Where it can be reached; replaces what was said before.
    Reachability(Reachability),
    /// How its peers are reached, if the coordinator has asked by [`Reports`].
    Paths(Paths),
}

/// What the coordinator says. A [`Challenge`] comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "Type")]
pub enum CoordinatorMessage {
    /// Prove who you are.
    Challenge(Challenge),
    /// No; the connection ends here.
    Refused(Refusal),
    /// What the coordinator has on record of this site; said again whenever it changes.
    Registration(Registration),
    /// All that this site may know about the others.
    Map(Map),
    /// What changed in it.
    Update(Update),
    /// To a relay: which sites may talk.
    Access(Access),
    /// Signed documents. They come before the map, update or access that depends on them, and after the
    /// registration.
    Documents(Documents),
    /// To a gateway: report paths from time to time. It comes after the registration.
    Reports(Reports),
    /// Something from a newer coordinator, to be ignored.
    #[serde(other)]
    Unknown,
}

/// Who a gateway is, and the proof.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Hello {
    /// Its WireGuard public key.
    pub public_key: SiteKey,
    /// The proof that it has the private key.
    pub proof: Proof,
    /// The subnets behind it, without host bits.
    #[serde(deserialize_with = "at_most::<SUBNETS_LIMIT, _, _>")]
    pub subnets: Vec<IpNet>,
    /// How it wants to be let in. Ignored if it is in already, so that a gateway may ask again when
    /// the answer was lost.
    #[serde(default)]
    pub enrolment: Option<Enrolment>,
    /// The map that it has.
    #[serde(default)]
    pub known: Option<Known>,
    /// The proof once more, of this TLS connection ([`prove_bound`](super::prove_bound)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_proof: Option<Proof>,
}

/// Enrolment keys are compared only by their hashes.
impl PartialEq for Hello {
    fn eq(&self, other: &Self) -> bool {
        let Self { public_key, proof, subnets, enrolment, known, bound_proof } = self;
        let enrolment_of = |hello: &Option<Enrolment>| {
            hello.as_ref().map(|enrolment| (enrolment.name.clone(), enrolment.key.id(), enrolment.key.hash()))
        };
        (public_key, proof, subnets, known) == (&other.public_key, &other.proof, &other.subnets, &other.known)
            && *bound_proof == other.bound_proof
            && enrolment_of(enrolment) == enrolment_of(&other.enrolment)
    }
}

impl Eq for Hello {}

/// A new site's request to be let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Enrolment {
    /// The enrolment key.
    pub key: EnrolmentKey,
    /// The name it wants.
    pub name: Name,
}

/// Where a site can be reached, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reachability {
    /// Addresses to try.
    #[serde(deserialize_with = "at_most::<CANDIDATES_LIMIT, _, _>")]
    pub candidates: Vec<Candidate>,
    /// What its NAT is like, once it knows.
    #[serde(default)]
    pub nat_type: Option<NatType>,
    /// How fast it is with each suite; a site that does not say has WireGuard's only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speeds: Option<Speeds>,
    /// Whether it enforces what a policy allows its peers ([`Peer::allow`](super::Peer::allow)). A gateway that does not
    /// say so is too old for that, and has no tunnel to such peers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enforces_allow: bool,
}

/// One address at which a site may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Candidate {
    /// Where it comes from.
    pub kind: CandidateKind,
    /// The address and UDP port.
    pub address: SocketAddr,
}

/// Where a candidate comes from, in the words of RFC 8445, section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CandidateKind {
    /// An address of one of its interfaces.
    Host,
    /// As a STUN server saw it.
    ServerReflexive,
    /// Mapped by its router on request (PCP, NAT-PMP, UPnP).
    PortMapped,
}

impl Candidate {
    /// Whether a datagram to it can reach one other machine: no multicast, no broadcast, no loopback,
    /// no port 0.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let ip = self.address.ip().to_canonical();
        let local = match ip {
            IpAddr::V4(ip) => ip == Ipv4Addr::BROADCAST || ip.octets()[0] == 0,
            // It belongs to a link, and another machine's interface number does not name that link here.
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        self.address.port() != 0 && !local && !ip.is_multicast() && !ip.is_loopback() && !ip.is_unspecified()
    }
}

/// What kind of NAT a site is behind, in the words of RFC 4787. What was not found out is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NatType {
    /// Whether the port it shows depends on the destination (RFC 4787, section 4.1).
    #[serde(default)]
    pub mapping: Option<Dependence>,
    /// Whom it lets in (RFC 4787, section 5).
    #[serde(default)]
    pub filtering: Option<Dependence>,
    /// No UDP passes.
    #[serde(default)]
    pub udp_blocked: bool,
}

/// Which part of the remote endpoint a NAT's behaviour depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dependence {
    /// On nothing.
    EndpointIndependent,
    /// On its address.
    AddressDependent,
    /// On its address and port.
    AddressAndPortDependent,
}

/// What the coordinator has on record of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// Its name.
    pub name: Name,
    /// Whether it is let in.
    pub state: RegistrationState,
    /// Its address within the overlay.
    pub virtual_address: Ipv4Addr,
    /// Those of its subnets that are announced to the others.
    pub subnets: Vec<IpNet>,
    /// Subnets that it offers and that wait for an administrator.
    #[serde(default, deserialize_with = "at_most::<SUBNETS_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
}

/// A subnet that a site offers, and that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Waiting {
    /// The subnet.
    pub subnet: IpNet,
    /// Why not, for the administrator of the gateway.
    pub reason: String,
}

/// Some of the signed documents that a gateway or relay needs; the rest comes in further messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Documents {
    /// Up to [`DOCUMENTS_LIMIT`] of them.
    #[serde(deserialize_with = "at_most::<DOCUMENTS_LIMIT, _, _>")]
    pub documents: Vec<Document>,
}

/// Whether a site is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RegistrationState {
    /// It waits for an administrator, connected or not.
    Pending,
    /// It is let in.
    Approved,
}

/// Why a gateway is sent away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refusal {
    /// For the program.
    pub reason: RefusalReason,
    /// For the administrator of the gateway, if there is more to say than the reason does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why a gateway is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalReason {
    /// It does not have the private key.
    Proof,
    /// The site is unknown and shows no enrolment key.
    NotEnrolled,
    /// The enrolment key is unknown, or was revoked.
    KeyUnknown,
    /// The enrolment key is too old.
    KeyExpired,
    /// The enrolment key has let in as many as it may.
    KeyUsedUp,
    /// Another site has that name.
    NameTaken,
    /// A subnet is another site's, or not available.
    Subnets,
    /// The site was revoked.
    Revoked,
    /// The same site connected again.
    Replaced,
    /// A message was not one of the protocol.
    Malformed,
    /// Too many messages.
    TooMany,
    /// The coordinator cannot do it at the moment; try again later.
    Unavailable,
    /// Something from a newer coordinator.
    #[serde(other)]
    Other,
}

impl RefusalReason {
    /// The reason in a word, for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proof => "proof",
            Self::NotEnrolled => "not-enrolled",
            Self::KeyUnknown => "key-unknown",
            Self::KeyExpired => "key-expired",
            Self::KeyUsedUp => "key-used-up",
            Self::NameTaken => "name-taken",
            Self::Subnets => "subnets",
            Self::Revoked => "revoked",
            Self::Replaced => "replaced",
            Self::Malformed => "malformed",
            Self::TooMany => "too-many",
            Self::Unavailable => "unavailable",
            Self::Other => "other",
        }
    }

    /// Whether trying again unchanged may help.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::TooMany | Self::Unavailable | Self::Other)
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proof => "the proof of the private key is wrong",
            Self::NotEnrolled => "the coordinator does not know this site; enrol it with a key",
            Self::KeyUnknown => "the coordinator does not know this enrolment key, or it was revoked",
            Self::KeyExpired => "the enrolment key has expired",
            Self::KeyUsedUp => "the enrolment key is used up",
            Self::NameTaken => "another site has this name, or one that looks like it",
            Self::Subnets => "a subnet of this site cannot be granted",
            Self::Revoked => "this site was revoked",
            Self::Replaced => "the same site connected from elsewhere",
            Self::Malformed => "the coordinator does not understand this gateway",
            Self::TooMany => "this gateway sends too much",
            Self::Unavailable => "the coordinator cannot do it at the moment",
            Self::Other => "the coordinator refused",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        self.detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
    }
}
