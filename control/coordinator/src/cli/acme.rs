//! The flags of [`crate::acme`].

use std::path::PathBuf;

use clap::Args;

use crate::acme::config::AcmeDocument;

#[derive(Debug, Args)]
pub(super) struct AcmeFlags {
    /// Get and renew a certificate by ACME, and agree to the authority's terms of service; the authority must
    /// reach port 443 of each name
    #[arg(long, conflicts_with = "certificate")]
    acme: bool,
    /// The URL of the authority's directory [default: Let's Encrypt]
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,
    /// The address that the authority may write to
    #[arg(long, value_name = "mailto:ADDRESS")]
    acme_contact: Option<String>,
    /// The certificate authorities that vouch for the directory's server, in PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    acme_ca: Option<PathBuf>,
}

impl AcmeFlags {
    /// `None` if no flag is given.
    pub(super) fn document(self) -> Option<AcmeDocument> {
        let document = AcmeDocument {
            directory: self.acme_directory,
            contact: self.acme_contact,
            agree_to_terms_of_service: self.acme.then_some(true),
            ca_file: self.acme_ca,
        };
        (document != AcmeDocument::default()).then_some(document)
    }
}
