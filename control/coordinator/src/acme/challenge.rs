//! The proof that names are ours: tls-alpn-01 (RFC 8737). The authority connects to the gateways' port with the
//! application protocol `acme-tls/1`, and gets a certificate with a digest that it knows; nothing is said over such a
//! connection.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::order::Failure;

/// The authority's application protocol (RFC 8737, section 6.2).
pub const PROTOCOL: &[u8] = b"acme-tls/1";
/// The gateways' application protocol.
const HTTP: &[u8] = b"http/1.1";
/// How often refusals of gateways are logged, since anyone can connect.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The open challenges, by name.
#[derive(Default)]
pub struct Challenges {
    certificates: Mutex<HashMap<String, Arc<CertifiedKey>>>,
    refusal_logged: Mutex<Option<Instant>>,
}

impl Challenges {
    /// Answers the challenge of a name with the SHA-256 of its key authorization.
    ///
    /// # Errors
    /// No certificate can be made for the name.
    pub fn answer(&self, name: &str, digest: &[u8]) -> Result<(), Failure> {
        let failed = |error: &dyn fmt::Display| Failure::Unsound(format!("no challenge for {name}: {error}"));
        let mut parameters = CertificateParams::new([name.to_owned()]).map_err(|error| failed(&error))?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let pair = KeyPair::generate().map_err(|error| failed(&error))?;
        let certificate = parameters.self_signed(&pair).map_err(|error| failed(&error))?;
        let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        let private = default_provider().key_provider.load_private_key(private).map_err(|error| failed(&error))?;
        // The check is skipped because it would reject the extension, which has to be critical.
        let key = CertifiedKey::new(vec![certificate.der().clone()], private);
        self.lock().insert(name.to_owned(), Arc::new(key));
        Ok(())
    }

    /// Ends all challenges.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_refusal(&self) {
        let mut logged = self.refusal_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!("a connection is refused, as all are until there is a certificate: see `status`");
        }
    }
}

/// Chooses between the certificate in use and those of challenges.
struct Resolver {
    challenges: Arc<Challenges>,
    certificate: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("certificate", &self.certificate.is_some()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The authority offers only this protocol (RFC 8737, section 3); a client that also offers HTTP gets HTTP.
        if hello.alpn().is_some_and(|mut offered| offered.next() == Some(PROTOCOL) && offered.next().is_none()) {
            let name = hello.server_name()?.to_ascii_lowercase();
            return self.challenges.lock().get(&name).cloned();
        }
        if self.certificate.is_none() {
            self.challenges.log_refusal();
        }
        self.certificate.clone()
    }
}

/// TLS 1.3 with HTTP/1.1, with the certificate and the answers to challenges.
#[must_use]
pub fn tls(challenges: Arc<Challenges>, certificate: Option<Arc<CertifiedKey>>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3's suites");
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Resolver { challenges, certificate }));
    config.alpn_protocols = vec![HTTP.to_vec(), PROTOCOL.to_vec()];
    Arc::new(config)
}
