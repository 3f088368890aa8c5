//! A certificate from a public authority, obtained and renewed by ACME (RFC 8555).
//!
//! The [`Renewer`] owns the account, the certificate and the time of the next order; a new certificate is used from the
//! next handshake on, and existing connections are not touched. The authority checks a name by connecting to the port
//! that serves gateways anyway ([`challenge`]), so no other port has to be open. Whatever fails, the present
//! certificate stays in use.
//!
//! Reading order: [`config`], this, [`order`], [`challenge`], [`stored`], [`http`].

pub mod challenge;
pub mod config;
pub mod http;
pub mod order;
pub mod stored;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use instant_acme::{Account, AccountCredentials, NewAccount};
use penstock_connect::TrustError;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::certificate::{CertificateError, write};
use crate::time::{now, seconds};
use challenge::Challenges;
use config::Acme;
use order::Failure;
use stored::Stored;

const ACCOUNT: &str = "acme-account.json";
const CERTIFICATE: &str = "acme-certificate.pem";

/// How long one order may take, validation included.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// The longest single wait, since the clock may be set or the machine suspended meanwhile.
const WAIT_STEP: Duration = Duration::from_secs(60);
/// Waits after orders that did not reach the authority, doubled with each: the shortest and the longest.
const UNREACHABLE_RETRY: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(60 * 60)];
/// Waits after orders that the authority refused, doubled with each: the shortest and the longest. Let's
/// Encrypt allows five failed validations of a name per hour (<https://letsencrypt.org/docs/rate-limits/>).
const REFUSED_RETRY: [Duration; 2] = [Duration::from_secs(12 * 60), Duration::from_secs(6 * 60 * 60)];

/// Keeps a certificate valid.
pub struct Renewer {
    acme: Acme,
    names: Vec<String>,
    state: PathBuf,
    http: http::Client,
    challenges: Arc<Challenges>,
    certificate: Option<Stored>,
    report: Arc<Mutex<AcmeReport>>,
}

/// The state of the certificate. Times are seconds since 1970.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AcmeReport {
    /// The authority's directory.
    pub directory: String,
    /// When the present certificate ends; `None` if there is none yet.
    pub not_after: Option<u64>,
    /// When the next certificate will be ordered.
    pub next_order: u64,
    /// Why the last order failed, if it did.
    pub error: Option<String>,
}

impl Renewer {
    /// Loads what an earlier run has left in the state directory. Needs no network.
    ///
    /// # Errors
    /// The file of certificate authorities cannot be used.
    pub fn new(acme: Acme, names: &[String], state: &Path) -> Result<Self, TrustError> {
        let http = http::Client::new(acme.ca_file.as_deref())?;
        let certificate = match stored::load(&state.join(CERTIFICATE)) {
            Ok(certificate) => certificate,
            Err(error) => {
                tracing::error!("{error}: another certificate will be ordered");
                None
            }
        };
        let due = certificate.as_ref().map_or(SystemTime::UNIX_EPOCH, |certificate| {
            let fits = certificate.directory == acme.directory && certificate.is_for(names);
            if fits { certificate.renewal() } else { SystemTime::UNIX_EPOCH }
        });
        let report = AcmeReport {
            directory: acme.directory.clone(),
            not_after: certificate.as_ref().map(Stored::not_after),
            next_order: seconds(due.max(SystemTime::now())),
            error: None,
        };
        Ok(Self {
            acme,
            names: names.to_vec(),
            state: state.to_owned(),
            http,
            challenges: Arc::default(),
            certificate,
            report: Arc::new(Mutex::new(report)),
        })
    }

    /// TLS with the present certificate; without one it serves only the authority's challenges.
    #[must_use]
    pub fn tls(&self) -> Arc<ServerConfig> {
        let key = self.certificate.as_ref().map(|certificate| certificate.key.clone());
        challenge::tls(self.challenges.clone(), key)
    }

    /// The state, which is kept up to date.
    #[must_use]
    pub fn report(&self) -> Arc<Mutex<AcmeReport>> {
        self.report.clone()
    }

    /// Orders certificates when it is time, and has them served. Never ends.
    pub async fn run(mut self, serve: watch::Sender<Arc<ServerConfig>>) {
        match &self.certificate {
            Some(certificate) => tracing::info!("ACME: the present certificate {}", certificate.describe()),
            None => tracing::info!("ACME: there is no certificate yet; {} is asked to issue one", self.acme.directory),
        }
        // How many times in a row, and whether it was refused.
        let mut failures = (0, false);
        loop {
            self.wait().await;
            let outcome = timeout(ORDER_TIMEOUT, self.obtain()).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Failure::Unreachable("it takes too long".into())));
            self.challenges.clear();
            match outcome {
                Ok(certificate) => {
                    failures = (0, false);
                    self.note(None, Some(certificate.not_after()), certificate.renewal());
                    let description = certificate.describe();
                    self.certificate = Some(certificate);
                    serve.send_replace(self.tls());
                    tracing::info!("ACME: a new certificate is in use; it {description}");
                }
                Err(failure) => {
                    let refusal = failure.is_refusal();
                    let before = if failures.1 == refusal { failures.0 } else { 0 };
                    failures = (u32::saturating_add(before, 1), refusal);
                    let pause = pause(refusal, before, rand::random());
                    self.tell(&failure, pause);
                }
            }
        }
    }

    async fn wait(&self) {
        loop {
            let next = self.lock().next_order;
            let left = next.saturating_sub(now());
            if left == 0 {
                return;
            }
            sleep(WAIT_STEP.min(Duration::from_secs(left))).await;
        }
    }

    fn tell(&self, failure: &Failure, pause: Duration) {
        let meanwhile = match &self.certificate {
            Some(certificate) => format!("the one in use {}", certificate.describe()),
            None => "gateways cannot connect until there is one".to_owned(),
        };
        let (directory, seconds) = (&self.acme.directory, pause.as_secs());
        tracing::error!("ACME: no certificate from {directory}: {failure}; next attempt in {seconds} s; {meanwhile}");
        let not_after = self.certificate.as_ref().map(Stored::not_after);
        self.note(Some(failure.to_string()), not_after, SystemTime::now() + pause);
    }

    fn note(&self, error: Option<String>, not_after: Option<u64>, next: SystemTime) {
        let mut report = self.lock();
        (report.error, report.not_after, report.next_order) = (error, not_after, seconds(next));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AcmeReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders a certificate, checks it and stores it.
    async fn obtain(&self) -> Result<Stored, Failure> {
        let order = async || order::order(&self.open_account().await?, &self.names, &self.challenges).await;
        let issued = match order().await {
            Err(Failure::NoAccount) => {
                tracing::warn!("ACME: {} does not know our account; a new one is made", self.acme.directory);
                let _ = std::fs::remove_file(self.state.join(ACCOUNT));
                order().await?
            }
            outcome => outcome?,
        };
        let text = stored::text(&self.acme.directory, &issued);
        let certificate = stored::parse(text.as_bytes()).map_err(Failure::Unsound)?;
        if !certificate.is_for(&self.names) || certificate.has_ended() {
            return Err(Failure::Unsound("it is for other names or another time".into()));
        }
        write(&self.state.join(CERTIFICATE), text.as_bytes())?;
        Ok(certificate)
    }

    /// The account of an earlier run, or a new one.
    async fn open_account(&self) -> Result<Account, Failure> {
        let builder = || Account::builder_with_http(Box::new(self.http.clone()));
        if let Some(credentials) = self.credentials()? {
            return Ok(builder().from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.acme.contact.as_deref().into_iter().collect();
        let account = NewAccount {
            contact: &contact,
            // A configuration exists only if the administrator has agreed.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder().create(&account, self.acme.directory.clone(), None).await?;
        let text = serde_json::to_vec(&credentials).map_err(|error| Failure::Unsound(error.to_string()))?;
        write(&self.state.join(ACCOUNT), &Zeroizing::new(text))?;
        tracing::info!("ACME: the account is {}", account.id());
        Ok(account)
    }

    /// What is stored about the account; `None` if it is another authority's.
    fn credentials(&self) -> Result<Option<AccountCredentials>, Failure> {
        /// The part of the stored credentials that matters here.
        #[derive(Deserialize)]
        struct Whose {
            directory: String,
        }
        let path = self.state.join(ACCOUNT);
        let text = match std::fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CertificateError::File { path, error }.into()),
        };
        match (serde_json::from_slice::<Whose>(&text), serde_json::from_slice(&text)) {
            (Ok(whose), _) if whose.directory != self.acme.directory => Ok(None),
            (Ok(_), Ok(credentials)) => Ok(Some(credentials)),
            _ => {
                tracing::error!("ACME: {} holds no account; a new one is made", path.display());
                Ok(None)
            }
        }
    }
}

/// How long to wait after a failure, with this many of its kind before it; `random` is from 0 to 1.
fn pause(refusal: bool, before: u32, random: f64) -> Duration {
    let [first, longest] = if refusal { REFUSED_RETRY } else { UNREACHABLE_RETRY };
    let doubled = first.saturating_mul(1_u32.checked_shl(before).unwrap_or(u32::MAX)).min(longest);
    // Coordinators that lost the authority at the same time should not come back at the same time.
    doubled.mul_f64(0.75 + random / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_bounded_and_spread() {
        assert_eq!(pause(false, 0, 1.0), UNREACHABLE_RETRY[0]);
        assert_eq!(pause(false, 1, 1.0), UNREACHABLE_RETRY[0] * 2);
        assert_eq!(pause(false, 0, 0.0), UNREACHABLE_RETRY[0] * 3 / 4);
        assert_eq!(pause(false, 4_000, 1.0), UNREACHABLE_RETRY[1]);
        let hour = (0..8).scan(Duration::ZERO, |at, before| {
            *at += pause(true, before, 0.0);
            Some(*at)
        });
        assert!(hour.filter(|at| *at < Duration::from_secs(3600)).count() < 5, "more than the authority allows");
    }
}
