//! A site as the coordinator knows it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use penstock_proto::coordination::{Name, SiteKey};
use penstock_proto::trust::Subnets;
use serde::{Deserialize, Serialize};

/// What lasts of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Site {
    /// Its WireGuard public key.
    #[serde(rename = "PublicKey")]
    pub key: SiteKey,
    /// Its name; of those that are not revoked, no two are the same.
    pub name: Name,
    /// Its address within the overlay.
    pub virtual_address: Ipv4Addr,
    /// The subnets it offers, as it says itself.
    pub subnets: Vec<IpNet>,
    /// Those that are in force; the others are told of them as far as the policy allows.
    #[serde(default)]
    pub in_force: Vec<IpNet>,
    /// What it may offer: what its statement says. Without it nobody has said anything. Of a site that waits it is
    /// what its enrolment key allows.
    #[serde(default)]
    pub granted: Option<Subnets>,
    /// It has proved its key in the TLS connection itself, and has to from then on: nobody ends TLS in between.
    #[serde(default)]
    pub bound: bool,
    /// Its tags, from its enrolment key.
    pub tags: BTreeSet<Name>,
    /// Whether it is let in.
    pub state: SiteState,
    /// When it enrolled, in seconds since 1970.
    pub created: u64,
    /// When it was last connected, in seconds since 1970.
    pub last_seen: Option<u64>,
    /// When it is revoked by itself, in seconds since 1970; none: never.
    #[serde(default)]
    pub ends: Option<u64>,
}

/// Whether a site is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteState {
    /// It waits for an administrator.
    Pending,
    /// It is.
    Approved,
    /// No more.
    Revoked,
}

impl SiteState {
    /// In lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Revoked => "revoked",
        }
    }

    /// The state of that name in lower case.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        [Self::Pending, Self::Approved, Self::Revoked].into_iter().find(|state| state.as_str() == text)
    }
}
