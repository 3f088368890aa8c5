//! Which server certificates are accepted: TLS 1.3, by a pin or by certificate authorities.

use std::fmt;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;

use penstock_proto::coordination::Fingerprint;
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring::default_provider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use subtle::ConstantTimeEq;

/// How a server proves that it is the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It has the key of this certificate. Names and dates in it do not matter, and so neither does our clock.
    Pinned(Fingerprint),
    /// It has the key of either: the certificate is about to be replaced, or just was.
    Rolling([Fingerprint; 2]),
    /// It has a certificate from these certificate authorities: those of a PEM file, or the system's.
    Authorities(Option<PathBuf>),
}

/// Why no server can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of authorities cannot be used.
    #[error("the file of certificate authorities {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: rustls::pki_types::pem::Error,
    },
    /// A certificate in the file cannot be used.
    #[error("the file of certificate authorities {path}: {error}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: rustls::Error,
    },
    /// There is no certificate in the file.
    #[error("the file of certificate authorities {0}: there is no certificate in it")]
    Empty(PathBuf),
    /// The system has no certificate authorities.
    #[error("this system has no certificate authorities: install ca-certificates")]
    NoAuthorities,
    /// rustls's error.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The server shows a certificate other than the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it shows another certificate than the pinned one: the SHA-256 fingerprint is {shown}, not {pinned}{}",
    second.map(|second| format!(" or {second}")).unwrap_or_default()
)]
pub struct Changed {
    /// The fingerprint of the server's certificate.
    pub shown: Fingerprint,
    /// The fingerprint that was expected.
    pub pinned: Fingerprint,
    /// The other fingerprint that would have been accepted.
    pub second: Option<Fingerprint>,
}

impl Trust {
    /// TLS 1.3 as an HTTP/1.1 client. Files are read now.
    ///
    /// # Errors
    /// There are no certificate authorities.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let provider = Arc::new(default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&rustls::version::TLS13])?;
        let pinned = |pin, second| Arc::new(Pinned { pin, second, provider });
        let builder: ConfigBuilder<ClientConfig, WantsClientCert> = match *self {
            Self::Pinned(pin) => builder.dangerous().with_custom_certificate_verifier(pinned(pin, None)),
            Self::Rolling([pin, second]) => {
                builder.dangerous().with_custom_certificate_verifier(pinned(pin, Some(second)))
            }
            Self::Authorities(ref file) => builder.with_root_certificates(roots(file.as_ref())?),
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn roots(file: Option<&PathBuf>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = file else {
        // Some of a system's may be damaged, which is no reason to do without the rest.
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if added == 0 { Err(TrustError::NoAuthorities) } else { Ok(roots) };
    };
    let failed = |error| TrustError::File { path: path.clone(), error };
    for certificate in CertificateDer::pem_file_iter(path).map_err(failed)? {
        let unusable = |error| TrustError::Unusable { path: path.clone(), error };
        roots.add(certificate.map_err(failed)?).map_err(unusable)?;
    }
    if roots.is_empty() { Err(TrustError::Empty(path.clone())) } else { Ok(roots) }
}

/// The SHA-256 of a certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    Fingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// Accepts one certificate, or either of two, from whoever has its key.
struct Pinned {
    pin: Fingerprint,
    second: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = fingerprint(end_entity);
        if iter::once(self.pin).chain(self.second).any(|pin| shown.0.ct_eq(&pin.0).into()) {
            return Ok(ServerCertVerified::assertion());
        }
        let changed = Changed { shown, pinned: self.pin, second: self.second };
        Err(CertificateError::Other(OtherError(Arc::new(changed))).into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
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

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("pin", &self.pin).field("second", &self.second).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn certificate() -> CertificateDer<'static> {
        let pair = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["coordinator.test".to_owned()]).unwrap();
        parameters.self_signed(&pair).unwrap().der().clone()
    }

    fn verify(pin: Fingerprint, certificate: &CertificateDer<'_>, seconds: u64) -> Result<(), rustls::Error> {
        verify_either(pin, None, certificate, seconds)
    }

    fn verify_either(
        pin: Fingerprint,
        second: Option<Fingerprint>,
        certificate: &CertificateDer<'_>,
        seconds: u64,
    ) -> Result<(), rustls::Error> {
        let verifier = Pinned { pin, second, provider: Arc::new(default_provider()) };
        let name = ServerName::try_from("another.test").unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier.verify_server_cert(certificate, &[], &name, &[], now).map(|_| ())
    }

    #[test]
    fn a_pin_is_for_one_certificate_whatever_the_clock_says() {
        let (ours, other) = (certificate(), certificate());
        for seconds in [0, 1 << 30, 1 << 36] {
            assert_eq!(verify(fingerprint(&ours), &ours, seconds), Ok(()));
        }
        let error = verify(fingerprint(&ours), &other, 0).unwrap_err();
        let rustls::Error::InvalidCertificate(CertificateError::Other(other_error)) = error else { panic!("{error}") };
        let changed = Changed { shown: fingerprint(&other), pinned: fingerprint(&ours), second: None };
        assert_eq!(other_error.0.downcast_ref(), Some(&changed));
        for bit in 0..256 {
            let mut bent = fingerprint(&ours);
            bent.0[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(bent, &ours, 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn either_of_two_pins_will_do_and_no_third() {
        let (old, new, other) = (certificate(), certificate(), certificate());
        let (pin, second) = (fingerprint(&old), fingerprint(&new));
        assert_eq!(verify_either(pin, Some(second), &old, 0), Ok(()));
        assert_eq!(verify_either(pin, Some(second), &new, 0), Ok(()));
        let error = verify_either(pin, Some(second), &other, 0).unwrap_err();
        let rustls::Error::InvalidCertificate(CertificateError::Other(error)) = error else { panic!("{error}") };
        let sentence = error.0.to_string();
        assert!(sentence.ends_with(&format!("is {}, not {pin} or {second}", fingerprint(&other))), "{sentence}");
    }

    #[test]
    fn authorities_come_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let trust = Trust::Authorities(Some(path.clone()));
        assert!(matches!(trust.client_config(), Err(TrustError::File { .. })));
        std::fs::write(&path, "nothing\n").unwrap();
        assert!(matches!(trust.client_config(), Err(TrustError::Empty(_))));
        let pair = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
        std::fs::write(&path, authority.pem()).unwrap();
        assert!(trust.client_config().is_ok());
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(matches!(trust.client_config(), Err(TrustError::Unusable { .. })));
    }
}
