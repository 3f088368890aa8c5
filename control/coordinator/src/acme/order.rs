//! One order (RFC 8555, section 7.4): the names, a challenge for each, the certificate.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use super::challenge::Challenges;
use super::http::NoAnswer;
use crate::certificate::CertificateError;

/// How the authority is polled; authorities validate within seconds, from several places.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(120));
/// The authority does not know the account (RFC 8555, section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// It did not accept our nonces, several times in a row, which says nothing about the order.
const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";

/// What the authority has issued, in PEM.
pub struct Issued {
    /// The chain, our certificate first.
    pub chain: String,
    /// Its private key.
    pub key: Zeroizing<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The authority cannot be reached, or does not work.
    #[error("{0}")]
    Unreachable(String),
    /// The authority refused.
    #[error("{0}")]
    Refused(String),
    /// The authority no longer knows our account.
    #[error("it does not know our account")]
    NoAccount,
    /// What it issued cannot be used.
    #[error("{0}")]
    Unsound(String),
    /// It cannot be stored.
    #[error(transparent)]
    File(#[from] CertificateError),
}

impl Failure {
    /// Whether authorities count this failure, so that we have to try less often.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unsound(_))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => Self::NoAccount,
            Error::Api(problem) => {
                let out_of_order = problem.status.is_some_and(|status| status >= 500);
                let again = out_of_order || problem.r#type.as_deref() == Some(BAD_NONCE);
                if again { Self::Unreachable(sentence(&problem)) } else { Self::Refused(sentence(&problem)) }
            }
            // Something in front of the authority answers instead of it.
            Error::Json(error) => Self::Unreachable(format!("its answer is not that of an authority: {error}")),
            Error::Other(error) if error.is::<NoAnswer>() => Self::Unreachable(error.to_string()),
            Error::Timeout(_) => Self::Unreachable("it takes too long".into()),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// What the authority says, in one line.
fn sentence(problem: &Problem) -> String {
    problem.to_string().trim_start_matches("API error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Obtains a certificate for the names, with a new key. Challenges stay open until the caller clears them.
///
/// # Errors
/// The authority cannot be reached, or refuses.
pub async fn order(account: &Account, names: &[String], challenges: &Challenges) -> Result<Issued, Failure> {
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    prove(&mut order, challenges).await?;
    if order.state().status != OrderStatus::Ready {
        let outcome = order.poll_ready(&POLL).await;
        // Some authorities say in the order why it is invalid, others only where they have checked a name.
        if order.state().status == OrderStatus::Invalid {
            return Err(Failure::Refused(why(&mut order).await));
        }
        outcome?;
    }
    let failed = |error: rcgen::Error| Failure::Unsound(format!("cannot make a request for a certificate: {error}"));
    let mut parameters = CertificateParams::new(names).map_err(failed)?;
    parameters.distinguished_name = DistinguishedName::new();
    let pair = KeyPair::generate().map_err(failed)?;
    order.finalize_csr(parameters.serialize_request(&pair).map_err(failed)?.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;
    Ok(Issued { chain, key: Zeroizing::new(pair.serialize_pem()) })
}

/// Answers the challenge of each name that the authority wants to check.
async fn prove(order: &mut Order, challenges: &Challenges) -> Result<(), Failure> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        // The proof of an earlier order may still count.
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = match authorization.identifier().identifier {
            Identifier::Dns(name) => name.to_ascii_lowercase(),
            other => return Err(Failure::Refused(format!("it asks for a proof of {other:?}"))),
        };
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            return Err(Failure::Refused(format!("it does not check {name} by tls-alpn-01")));
        };
        challenges.answer(&name, challenge.key_authorization().digest().as_ref())?;
        challenge.set_ready().await?;
    }
    Ok(())
}

/// Which name the authority could not check, and why.
async fn why(order: &mut Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        if authorization.refresh().await.is_err() {
            continue;
        }
        let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        let name = authorization.identifier();
        reasons.extend(errors.map(|error| format!("{name}: {}", sentence(error))));
    }
    match reasons.is_empty() {
        true => "the order is invalid; the authority does not say why".into(),
        false => reasons.join("; "),
    }
}
