//! How to log in through a provider, and who may.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::token::Claims;

/// The provider, and whom to admit.
#[derive(Clone)]
pub struct OidcConfig {
    /// The provider's issuer identifier, as in its tokens.
    pub issuer: String,
    /// Our client identifier.
    pub client_id: String,
    /// Our client secret; `None` for a public client.
    pub client_secret: Option<Zeroizing<String>>,
    /// Certificate authorities that vouch for the provider, if the system's do not.
    pub ca_file: Option<PathBuf>,
    /// Who may log in.
    pub allow: Allow,
}

impl std::fmt::Debug for OidcConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OidcConfig").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// Who may log in: everybody who is in one of these lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Allow {
    /// Subject identifiers.
    #[serde(default)]
    pub subjects: BTreeSet<String>,
    /// E-mail addresses, if the provider has verified them.
    #[serde(default)]
    pub emails: BTreeSet<String>,
    /// Groups.
    #[serde(default)]
    pub groups: BTreeSet<String>,
}

/// The fields of the configuration's `Page.Oidc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct OidcDocument {
    /// [`OidcConfig::issuer`].
    pub issuer: String,
    /// [`OidcConfig::client_id`].
    pub client_id: String,
    /// A file with [`OidcConfig::client_secret`]; relative to the configuration.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// [`OidcConfig::ca_file`]; relative to the configuration.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// [`OidcConfig::allow`].
    pub allow: Allow,
}

impl OidcDocument {
    /// Checks the fields, and reads the secret.
    ///
    /// # Errors
    /// The first error, in a sentence.
    pub fn check(self) -> Result<OidcConfig, String> {
        let Self { issuer, client_id, client_secret_file, ca_file, allow } = self;
        if !issuer.starts_with("https://") || issuer.contains(['?', '#']) {
            return Err(format!("Page.Oidc.Issuer: {issuer:?} is not a URL such as https://id.example.net"));
        }
        if allow == Allow::default() {
            return Err("Page.Oidc.Allow must name subjects, e-mail addresses or groups: nobody else may log in".into());
        }
        let secret = client_secret_file.map(|file| {
            let text = std::fs::read_to_string(&file).map(Zeroizing::new);
            let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
            Ok::<_, String>(Zeroizing::new(text.trim().to_owned()))
        });
        Ok(OidcConfig { issuer, client_id, client_secret: secret.transpose()?, ca_file, allow })
    }
}

impl Allow {
    /// The name under which somebody may log in; `None` if they may not.
    #[must_use]
    pub fn name(&self, claims: &Claims) -> Option<String> {
        let email = claims.verified_email();
        let by_email = email.is_some_and(|email| self.emails.contains(email));
        let by_group = || claims.groups.iter().any(|group| self.groups.contains(group));
        let allowed = by_email || self.subjects.contains(&claims.sub) || by_group();
        let name = email.unwrap_or(&claims.sub);
        // It is shown in the log and on terminals.
        let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
        allowed.then_some(name)
    }
}
