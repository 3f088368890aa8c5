//! The coordinator's certificate: given, or made at the first start and kept. The third way is [`crate::acme`].
//!
//! Its own certificate is never renewed: gateways pin its fingerprint, so it is valid until its key is replaced, not
//! until a date, and checking it needs no clock. To replace it, the next one is made while the present one is still
//! served, so that gateways can pin both before the change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_connect::fingerprint;
use penstock_proto::coordination::Fingerprint;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::CertificateFiles;
use crate::owner::{self, Exposed};
use crate::secret;

const CHAIN: &str = "certificate.pem";
const KEY: &str = "certificate.key";
const NEXT_CHAIN: &str = "certificate-next.pem";
const NEXT_KEY: &str = "certificate-next.key";

/// What TLS needs, and what gateways have to pin.
#[derive(Clone, Debug)]
pub struct Identity {
    /// TLS 1.3 with HTTP/1.1.
    pub tls: Arc<ServerConfig>,
    /// Of the coordinator's own certificate.
    pub fingerprint: Fingerprint,
    /// Whether gateways have to pin it, because no certificate authority vouches for it.
    pub pinned: bool,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A file does not have the right contents.
    #[error("{path}: {error}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: rustls::pki_types::pem::Error,
    },
    /// The chain has no certificate.
    #[error("{0}: there is no certificate in it")]
    Empty(PathBuf),
    /// One of the two files is missing.
    #[error(
        "{present} is there but {missing} is not: restore it, or remove both to get a new certificate; \
        then all gateways must enrol again"
    )]
    Half {
        /// The existing file.
        present: PathBuf,
        /// The missing file.
        missing: PathBuf,
    },
    /// There is no next certificate to switch to.
    #[error("{0} is not there: make it first, and have all gateways pin it in addition to the present one")]
    NoNext(PathBuf),
    /// Others can read our own key.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// No certificate can be made for these names.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS cannot use certificate and key.
    #[error("{path}: {error}")]
    Tls {
        /// The chain.
        path: PathBuf,
        /// rustls's error.
        error: rustls::Error,
    },
}

impl Identity {
    /// Reads the given certificate.
    ///
    /// # Errors
    /// A file cannot be read, or key and certificate do not belong together.
    pub fn given(files: &CertificateFiles) -> Result<Self, CertificateError> {
        read(&files.chain, &files.key, false)
    }

    /// Reads the coordinator's own certificate, or makes one for these names if there is none.
    ///
    /// # Errors
    /// The files cannot be written or read, or only one of them exists.
    pub fn own(directory: &Path, names: &[String]) -> Result<Self, CertificateError> {
        finish_switch(directory)?;
        let (chain, key) = (directory.join(CHAIN), directory.join(KEY));
        match (chain.exists(), key.exists()) {
            (true, true) => {}
            // The key is written first: as long as there is no certificate, nobody has pinned it.
            (false, _) => make(&chain, &key, names)?,
            (true, false) => return Err(CertificateError::Half { present: chain, missing: key }),
        }
        let metadata = key.metadata().map_err(|error| CertificateError::File { path: key.clone(), error })?;
        owner::check(&key, &metadata)?;
        read(&chain, &key, true)
    }
}

/// Makes the certificate that is to replace the coordinator's own, unless it exists already; returns its fingerprint,
/// for gateways to pin in addition to the present one, and whether it is new.
///
/// # Errors
/// The files cannot be written or read.
pub fn next(directory: &Path, names: &[String]) -> Result<(Fingerprint, bool), CertificateError> {
    finish_switch(directory)?;
    let (chain, key) = (directory.join(NEXT_CHAIN), directory.join(NEXT_KEY));
    let is_new = !chain.exists();
    if is_new {
        make(&chain, &key, names)?;
    }
    Ok((read(&chain, &key, true)?.fingerprint, is_new))
}

/// Moves the next certificate into the place of the present one; returns both fingerprints. The coordinator serves it
/// from its next start on.
///
/// # Errors
/// There is no next certificate, it cannot be used, or the files cannot be renamed.
pub fn switch(directory: &Path) -> Result<(Option<Fingerprint>, Fingerprint), CertificateError> {
    finish_switch(directory)?;
    let (chain, key) = (directory.join(NEXT_CHAIN), directory.join(NEXT_KEY));
    if !chain.exists() {
        return Err(CertificateError::NoNext(chain));
    }
    let next = read(&chain, &key, true)?.fingerprint;
    let present = read(&directory.join(CHAIN), &directory.join(KEY), true).ok();
    rename(&key, &directory.join(KEY))?;
    finish_switch(directory)?;
    Ok((present.map(|present| present.fingerprint), next))
}

/// A switch moves the key first, and [`make`] writes the key first: so a next certificate without its key belongs to a
/// switch that was interrupted.
fn finish_switch(directory: &Path) -> Result<(), CertificateError> {
    let (chain, key) = (directory.join(NEXT_CHAIN), directory.join(NEXT_KEY));
    if chain.exists() && !key.exists() { rename(&chain, &directory.join(CHAIN)) } else { Ok(()) }
}

fn rename(from: &Path, to: &Path) -> Result<(), CertificateError> {
    let failed = |error| CertificateError::File { path: from.to_owned(), error };
    fs::rename(from, to).and_then(|()| secret::sync_directory(to)).map_err(failed)
}

fn make(chain: &Path, key: &Path, names: &[String]) -> Result<(), CertificateError> {
    let mut parameters = rcgen::CertificateParams::new(names)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "penstock-coordinator");
    let pair = rcgen::KeyPair::generate()?;
    let certificate = parameters.self_signed(&pair)?;
    write(key, pair.serialize_pem().as_bytes())?;
    write(chain, certificate.pem().as_bytes())
}

/// Writes a file that only we can read, either completely or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), CertificateError> {
    secret::write_private(path, content).map_err(|error| CertificateError::File { path: path.to_owned(), error })
}

fn read(chain: &Path, key: &Path, pinned: bool) -> Result<Identity, CertificateError> {
    let pem = |path: &Path, error| match error {
        rustls::pki_types::pem::Error::Io(error) => CertificateError::File { path: path.to_owned(), error },
        error => CertificateError::Pem { path: path.to_owned(), error },
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(chain).and_then(Iterator::collect).map_err(|error| pem(chain, error))?;
    let first = certificates.first().ok_or_else(|| CertificateError::Empty(chain.to_owned()))?;
    let fingerprint = fingerprint(first);
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| pem(key, error))?;
    let tls = |error| CertificateError::Tls { path: chain.to_owned(), error };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .map_err(tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity { tls: Arc::new(config), fingerprint, pinned })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn names() -> Vec<String> {
        vec!["coordinator.example.net".into(), "192.0.2.1".into()]
    }

    #[test]
    fn it_is_made_once_and_its_key_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::own(directory.path(), &names()).unwrap();
        let again = Identity::own(directory.path(), &["other.example.net".into()]).unwrap();
        assert_eq!(first.fingerprint, again.fingerprint);
        let mode = fs::metadata(directory.path().join(KEY)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Identity::own(other.path(), &names()).unwrap().fingerprint, first.fingerprint);
    }

    #[test]
    fn a_certificate_without_its_key_is_not_replaced_silently() {
        let directory = tempfile::tempdir().unwrap();
        Identity::own(directory.path(), &names()).unwrap();
        fs::remove_file(directory.path().join(KEY)).unwrap();
        let error = Identity::own(directory.path(), &names()).unwrap_err();
        assert!(matches!(error, CertificateError::Half { .. }), "{error}");
    }

    #[test]
    fn a_switch_that_was_interrupted_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name| directory.path().join(name);
        let first = Identity::own(directory.path(), &names()).unwrap();
        assert!(matches!(switch(directory.path()), Err(CertificateError::NoNext(_))));
        // As after a crash between writing the key and writing the certificate.
        fs::write(at(NEXT_KEY), "half a key").unwrap();
        assert_eq!(Identity::own(directory.path(), &names()).unwrap().fingerprint, first.fingerprint);
        let (second, is_new) = next(directory.path(), &names()).unwrap();
        assert!(is_new);
        assert_eq!(next(directory.path(), &names()).unwrap(), (second, false), "it is made once");
        // As after a crash between renaming the key and renaming the certificate.
        fs::rename(at(NEXT_KEY), at(KEY)).unwrap();
        assert_eq!(Identity::own(directory.path(), &names()).unwrap().fingerprint, second);
        assert!(!at(NEXT_CHAIN).exists());
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&one, &other] {
            Identity::own(directory.path(), &names()).unwrap();
        }
        let given = |chain: PathBuf, key: PathBuf| Identity::given(&CertificateFiles { chain, key });
        assert!(!given(one.path().join(CHAIN), one.path().join(KEY)).unwrap().pinned);
        let error = given(one.path().join(CHAIN), other.path().join(KEY)).unwrap_err();
        assert!(matches!(error, CertificateError::Tls { .. }), "{error}");
        let error = given(one.path().join(KEY), one.path().join(KEY)).unwrap_err();
        assert!(matches!(error, CertificateError::Empty(_)), "{error}");
        let error = given(one.path().join("no.pem"), one.path().join(KEY)).unwrap_err();
        assert!(error.to_string().contains("no.pem"), "{error}");
    }
}
