//! A gateway's connection to a coordinator or relay, and what an administrator can do when it fails.

use penstock_connect::{ConnectError, HttpsUrl, Outbound, Socket, Terms, Trust, TrustError};

/// Why there is no connection, and what can be done about it, in one sentence.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("{}{}", .0, advice_on_trust(.0))]
    Trust(#[from] TrustError),
    #[error("{}{}", .0, advice(.0))]
    Connect(#[from] ConnectError),
}

/// Opens a WebSocket.
///
/// # Errors
/// No certificate can be trusted, or there is no connection.
pub(super) async fn open(
    url: &HttpsUrl,
    trust: &Trust,
    outbound: &Outbound,
    terms: &Terms,
) -> Result<Socket, OpenError> {
    Ok(penstock_connect::open(url, trust.client_config()?, outbound, terms).await?)
}

fn advice_on_trust(error: &TrustError) -> &'static str {
    match error {
        TrustError::NoAuthorities => ", or set Coordinator.CaFile",
        _ => "",
    }
}

fn advice(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Changed { .. } => {
            ". Somebody may be in between; if the certificate was replaced on purpose, set Coordinator.Fingerprint or enrol again with a new key"
        }
        ConnectError::UnknownAuthority { .. } => {
            "; set Coordinator.CaFile, or pin it by enrolling with a key of its own"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_connect::{Changed, NameError};
    use penstock_proto::coordination::Fingerprint;

    #[test]
    fn what_can_be_done_is_said() {
        let changed = Changed { shown: Fingerprint([1; 32]), pinned: Fingerprint([2; 32]), second: None };
        let host = || "a.example".to_owned();
        let sentences: [(OpenError, String); 4] = [
            (
                ConnectError::Changed { host: host(), changed }.into(),
                format!(
                    "a.example: it shows another certificate than the pinned one: the SHA-256 fingerprint is {}, \
                    not {}. Somebody may be in between; if the certificate was replaced on purpose, set \
                    Coordinator.Fingerprint or enrol again with a new key",
                    changed.shown, changed.pinned
                ),
            ),
            (
                ConnectError::UnknownAuthority { host: host() }.into(),
                "a.example: no certificate authority that is trusted here vouches for its certificate; \
                set Coordinator.CaFile, or pin it by enrolling with a key of its own"
                    .into(),
            ),
            (
                TrustError::NoAuthorities.into(),
                "this system has no certificate authorities: install ca-certificates, or set Coordinator.CaFile".into(),
            ),
            (
                ConnectError::Resolve { host: host(), error: NameError::NoAddress }.into(),
                "a.example cannot be resolved: it has no address".into(),
            ),
        ];
        for (error, sentence) in sentences {
            assert_eq!(error.to_string(), sentence);
        }
    }
}
