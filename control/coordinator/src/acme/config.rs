//! The authority that is asked for a certificate.

use std::net::IpAddr;
use std::path::PathBuf;

use hyper::Uri;
use instant_acme::LetsEncrypt;
use rustls::pki_types::DnsName;
use serde::{Deserialize, Serialize};

/// A valid configuration of ACME; whoever has one has agreed to the authority's terms of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The URL of the authority's directory.
    pub directory: String,
    /// The contact address for the authority, `mailto:…`.
    pub contact: Option<String>,
    /// The certificate authorities that vouch for the directory's own server, in PEM; the system's by default.
    pub ca_file: Option<PathBuf>,
}

/// The fields of the file, and of the command line. All are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AcmeDocument {
    /// [`Acme::directory`]; Let's Encrypt's if absent.
    pub directory: Option<String>,
    /// [`Acme::contact`].
    pub contact: Option<String>,
    /// Must be true.
    pub agree_to_terms_of_service: Option<bool>,
    /// [`Acme::ca_file`]; relative to the file.
    pub ca_file: Option<PathBuf>,
}

impl AcmeDocument {
    /// This document, with missing fields taken from another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            directory: self.directory.or(other.directory),
            contact: self.contact.or(other.contact),
            agree_to_terms_of_service: self.agree_to_terms_of_service.or(other.agree_to_terms_of_service),
            ca_file: self.ca_file.or(other.ca_file),
        }
    }

    /// # Errors
    /// The first error, in one sentence.
    pub fn check(self, names: &[String]) -> Result<Acme, String> {
        if self.agree_to_terms_of_service != Some(true) {
            return Err("Acme: AgreeToTermsOfService must be true (--acme): \
                an authority issues certificates only to those who agree to its terms"
                .into());
        }
        let is_dns = |name: &String| name.parse::<IpAddr>().is_err() && DnsName::try_from(name.as_str()).is_ok();
        if let Some(name) = names.iter().find(|name| !is_dns(name)) {
            return Err(format!("Acme: Names: {name:?} is not a DNS name, and certificates are for DNS names"));
        }
        let directory = self.directory.unwrap_or_else(|| LetsEncrypt::Production.url().to_owned());
        let uri = directory.parse::<Uri>();
        if !uri.is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
            return Err(format!("Acme: Directory: {directory:?} is not an https:// URL"));
        }
        if let Some(contact) = self.contact.as_ref().filter(|contact| !contact.starts_with("mailto:")) {
            return Err(format!("Acme: Contact: {contact:?} is not of the form mailto:ADDRESS"));
        }
        Ok(Acme { directory, contact: self.contact, ca_file: self.ca_file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, names: &[&str]) -> Result<Acme, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        serde_json::from_str::<AcmeDocument>(text).map_err(|error| error.to_string())?.check(&names)
    }

    #[test]
    fn agreement_is_enough() {
        let acme = check(r#"{"AgreeToTermsOfService": true}"#, &["coordinator.example.net"]).unwrap();
        assert!(acme.directory.contains("letsencrypt.org"), "{}", acme.directory);
        assert_eq!((acme.contact, acme.ca_file), (None, None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let name = "coordinator.example.net";
        for (text, name, expected) in [
            ("{}", name, "AgreeToTermsOfService"),
            (r#"{"AgreeToTermsOfService": false}"#, name, "--acme"),
            (r#"{"AgreeToTermsOfService": true}"#, "192.0.2.1", "192.0.2.1"),
            (r#"{"AgreeToTermsOfService": true}"#, "2001:db8::1", "2001:db8::1"),
            (r#"{"AgreeToTermsOfService": true, "Directory": "http://a/dir"}"#, name, "Directory"),
            (r#"{"AgreeToTermsOfService": true, "Directory": "x y"}"#, name, "Directory"),
            (r#"{"AgreeToTermsOfService": true, "Contact": "a@example.net"}"#, name, "mailto:"),
            (r#"{"AgreeToTermsOfService": true, "Mail": "a"}"#, name, "Mail"),
        ] {
            let error = check(text, &[name]).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
