//! Whom a relay takes for the coordinator: the owner of a pinned certificate, or whoever a certificate
//! authority vouches for. And whom the coordinator takes for a certificate authority's server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_proto::coordination::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring::default_provider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::certificate::fingerprint;

/// A file of certificate authorities is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
pub struct TrustError {
    path: PathBuf,
    error: String,
}

/// Trusts the owner of that certificate alone, whatever its names and dates.
#[must_use]
pub fn pinned(pin: Fingerprint) -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.expect("the provider has TLS 1.3's suites");
    Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier(pin)).with_no_client_auth())
}

/// What takes that certificate and no other.
#[must_use]
pub fn verifier(pin: Fingerprint) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Pinned { pin, provider: Arc::new(default_provider()) })
}

/// Trusts the authorities in a PEM file.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn authorities(path: &Path) -> Result<Arc<ClientConfig>, TrustError> {
    let failed = |error: String| TrustError { path: path.to_owned(), error };
    let certificates: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let mut roots = RootCertStore::empty();
    for certificate in certificates.map_err(|error| failed(error.to_string()))? {
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(failed("there is no certificate in it".into()));
    }
    trusting(roots).map_err(|error| failed(error.to_string()))
}

/// Trusts the authorities that the system trusts.
///
/// # Errors
/// There are none.
pub fn system() -> Result<Arc<ClientConfig>, TrustError> {
    let failed = |error: String| TrustError { path: "the system's certificate authorities".into(), error };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(failed("there are none (Debian's are in the package ca-certificates)".into()));
    }
    trusting(roots).map_err(|error| failed(error.to_string()))
}

fn trusting(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if fingerprint(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("it shows another certificate than the pinned one".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
