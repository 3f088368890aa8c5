//! A site in the coordinator's view.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use penstock_proto::coordination::{Name, SiteKey};
use penstock_proto::trust::Subnets;
use serde::{Deserialize, Serialize};

/// What is stored about a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Site {
    /// Its WireGuard public key.
    #[serde(rename = "PublicKey")]
    pub key: SiteKey,
    /// Its name; among sites that are not revoked, names are unique.
    pub name: Name,
    /// Its address in the overlay.
    pub virtual_address: Ipv4Addr,
    /// The subnets that it offers.
    pub subnets: Vec<IpNet>,
    /// The subnets that are in force; the others are told about them as far as the policy allows.
    #[serde(default)]
    pub in_force: Vec<IpNet>,
    /// What it may offer: what its statement says. `None`: nothing was decided yet. For a waiting site it is what its
    /// enrolment key allows.
    #[serde(default)]
    pub granted: Option<Subnets>,
    /// Whether it has to prove its key within the TLS connection itself.
    pub channel_binding: BindingMode,
    /// Its tags, from its enrolment key.
    pub tags: BTreeSet<Name>,
    /// Whether it is admitted.
    pub state: SiteState,
    /// When it enrolled, in seconds since 1970.
    pub created: u64,
    /// When it was last connected, in seconds since 1970.
    pub last_seen: Option<u64>,
    /// When it is revoked automatically, in seconds since 1970; `None`: never.
    #[serde(default)]
    pub ends: Option<u64>,
}

/// Whether a site has to prove its key within the TLS connection itself, so that nobody who ends TLS in between can
/// pass the proof on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BindingMode {
    /// As soon as it has done so once: it is `required` from then on
    #[default]
    Auto,
    /// Always
    Required,
    /// Never, so that it may come through a proxy that ends TLS
    Off,
}

impl BindingMode {
    const ALL: [Self; 3] = [Self::Auto, Self::Required, Self::Off];

    /// The mode after a connection of the site, which was `bound` or not.
    #[must_use]
    pub fn after(self, bound: bool) -> Self {
        if self == Self::Auto && bound { Self::Required } else { self }
    }

    /// The name in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Required => "required",
            Self::Off => "off",
        }
    }

    /// The mode with this name in lower case.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

/// Whether a site is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteState {
    /// It waits for an administrator.
    Pending,
    /// It is admitted.
    Approved,
    /// It no longer is.
    Revoked,
}

impl SiteState {
    /// The name in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Revoked => "revoked",
        }
    }

    /// The state with this name in lower case.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        [Self::Pending, Self::Approved, Self::Revoked].into_iter().find(|state| state.as_str() == text)
    }
}
