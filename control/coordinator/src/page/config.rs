//! The page's part of the configuration.

use std::net::{Ipv4Addr, SocketAddr};

use penstock_connect::CoordinatorUrl;
use serde::{Deserialize, Serialize};

use super::oidc::config::{OidcConfig, OidcDocument};

/// The default address of the page: only for this machine.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Where and how the page is served.
#[derive(Clone, Debug)]
pub struct PageConfig {
    /// The TCP address. On any other than a loopback address, the page is served over TLS.
    pub listen: SocketAddr,
    /// The URL for browsers, if it is a different one.
    pub url: Option<CoordinatorUrl>,
    /// A provider for logins.
    pub oidc: Option<OidcConfig>,
}

/// The fields of the configuration's `Page`. All are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PageDocument {
    /// [`PageConfig::listen`].
    pub listen: Option<SocketAddr>,
    /// [`PageConfig::url`].
    pub url: Option<String>,
    /// [`PageConfig::oidc`].
    pub oidc: Option<OidcDocument>,
}

impl PageDocument {
    /// This document, with missing fields taken from another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { listen: self.listen.or(other.listen), url: self.url.or(other.url), oidc: self.oidc.or(other.oidc) }
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// The first error, in a sentence.
    pub fn check(self) -> Result<PageConfig, String> {
        let url = self.url.map(|url| url.parse()).transpose().map_err(|error| format!("Page.Url: {error}"))?;
        let oidc = self.oidc.map(OidcDocument::check).transpose()?;
        Ok(PageConfig { listen: self.listen.unwrap_or(LISTEN), url, oidc })
    }
}
