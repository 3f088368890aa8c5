//! Enrolment: one conversation, in which an enrolment key lets a new site in.

use std::time::Duration;

use penstock_connect::Outbound;
use penstock_proto::coordination::{CoordinatorMessage, Enrolment, Map, Refusal, Registration, RegistrationState};
use penstock_proto::trust::{Document, SUBJECTS_LIMIT};
use tokio::time::{Instant, sleep, timeout_at};

use super::Config;
use super::session::{End, Identity, Session};

/// How long the map may take after the approval.
const MAP_PATIENCE: Duration = Duration::from_secs(3);
/// How long after a lost connection the next attempt is made, while we wait for approval.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The most documents that are kept: more than an honest coordinator shows.
const DOCUMENTS_LIMIT: usize = 2 * SUBJECTS_LIMIT;

/// The result of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The coordinator's record of the site.
    pub registration: Registration,
    /// The map, if the site is approved.
    pub map: Option<Map>,
    /// The signed documents that came with it.
    pub documents: Vec<Document>,
}

/// Why the site is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The coordinator refuses it.
    #[error("{0}")]
    Refused(Refusal),
    /// The coordinator cannot be talked to.
    #[error("{0}")]
    Unreachable(String),
}

impl From<End> for EnrolError {
    fn from(end: End) -> Self {
        match end {
            End::Refused(refusal) => Self::Refused(refusal),
            end => Self::Unreachable(end.to_string()),
        }
    }
}

/// Enrols, and waits for approval for this long. `told` is called with every registration that the coordinator sends. A
/// site that is already enrolled gets its registration whatever the key.
///
/// # Errors
/// The coordinator refuses, or cannot be reached.
pub async fn enrol(
    config: &Config,
    outbound: &Outbound,
    enrolment: Enrolment,
    wait: Duration,
    mut told: impl FnMut(&Registration),
) -> Result<Enrolled, EnrolError> {
    let deadline = Instant::now() + wait;
    let open = async || {
        let identity = Identity {
            url: &config.url,
            trust: &config.trust,
            outbound,
            private_key: &config.private_key,
            subnets: &config.subnets,
        };
        Session::open(identity, Some(enrolment.clone()), None).await
    };
    let (mut session, mut registration) = open().await?;
    told(&registration);
    while registration.state == RegistrationState::Pending {
        match timeout_at(deadline, session.receive()).await {
            Err(_) => return Ok(Enrolled { registration, map: None, documents: Vec::new() }),
            Ok(Ok(CoordinatorMessage::Registration(latest))) => {
                registration = latest;
                told(&registration);
            }
            Ok(Ok(CoordinatorMessage::Refused(refusal))) => return Err(EnrolError::Refused(refusal)),
            Ok(Ok(_)) => {}
            Ok(Err(lost)) => {
                tracing::info!("{lost}");
                sleep(RETRY_PAUSE).await;
                // The enrolment is on record; only the waiting remains.
                if Instant::now() >= deadline {
                    return Ok(Enrolled { registration, map: None, documents: Vec::new() });
                }
                match open().await {
                    Ok((again, latest)) => (session, registration) = (again, latest),
                    Err(End::Refused(refusal)) if !refusal.reason.is_passing() => {
                        return Err(EnrolError::Refused(refusal));
                    }
                    // The old connection ends at once, which leads here again.
                    Err(_) => {}
                }
            }
        }
    }
    let patience = Instant::now() + MAP_PATIENCE;
    let mut documents = Vec::new();
    let map = loop {
        match timeout_at(patience, session.receive()).await {
            Ok(Ok(CoordinatorMessage::Map(map))) => break Some(map),
            Ok(Ok(CoordinatorMessage::Refused(refusal))) => return Err(EnrolError::Refused(refusal)),
            Ok(Ok(CoordinatorMessage::Documents(more))) if documents.len() < DOCUMENTS_LIMIT => {
                documents.extend(more.documents);
            }
            Ok(Ok(_)) => {}
            // The gateway will ask for it later.
            Ok(Err(_)) | Err(_) => break None,
        }
    };
    Ok(Enrolled { registration, map, documents })
}
