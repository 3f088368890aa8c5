//! Why a connection failed, in an administrator's words.

use std::io;
use std::time::Duration;

use rustls::CertificateError;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::StatusCode;

use crate::{Changed, NameError, ProxyError};

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host name cannot be resolved.
    #[error("{host} cannot be resolved: {error}")]
    Resolve {
        /// The server, or the proxy.
        host: String,
        /// The resolver's error.
        error: NameError,
    },
    /// None of the addresses answers; the error is that of the last one tried.
    #[error("{host}, port {port}, cannot be reached: {error}")]
    Tcp {
        /// The server, or the proxy.
        host: String,
        /// The TCP port.
        port: u16,
        /// The last error.
        error: io::Error,
    },
    /// A step takes too long.
    #[error("{what} took longer than {} s", .limit.as_secs())]
    Slow {
        /// The step, or what we wait for.
        what: String,
        /// The time limit.
        limit: Duration,
    },
    /// The proxy does not let us through.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The certificate is not the pinned one.
    #[error("{host}: {changed}")]
    Changed {
        /// The server.
        host: String,
        /// The pinned fingerprint and the one shown.
        changed: Changed,
    },
    /// No trusted certificate authority has signed the certificate.
    #[error("{host}: no certificate authority that is trusted here vouches for its certificate")]
    UnknownAuthority {
        /// The server.
        host: String,
    },
    /// Anything else in TLS.
    #[error("{}: {}", .host, explain(.error))]
    Tls {
        /// The server.
        host: String,
        /// What is wrong.
        error: io::Error,
    },
    /// A coordinator that has other names.
    #[error("{host} does not serve this name: its own names (--name) must include it")]
    Misdirected {
        /// The server.
        host: String,
    },
    /// Some other kind of server.
    #[error("{host} answers {status}: is it a Penstock coordinator or relay?")]
    Status {
        /// The server.
        host: String,
        /// The HTTP status of its answer.
        status: StatusCode,
    },
    /// Its answer is not an upgrade to our subprotocol.
    #[error("{host} does not speak our protocol: {error}")]
    Protocol {
        /// The server.
        host: String,
        /// What is wrong.
        error: ProtocolError,
    },
    /// Anything else in HTTP.
    #[error("{host}: the upgrade to a WebSocket failed: {error}")]
    Upgrade {
        /// The server.
        host: String,
        /// What is wrong.
        error: Box<tungstenite::Error>,
    },
}

impl ConnectError {
    pub(crate) fn slow(what: String, limit: Duration) -> Self {
        Self::Slow { what, limit }
    }

    /// From the error of a failed handshake.
    pub(crate) fn tls(host: String, error: io::Error) -> Self {
        if let Some(rustls::Error::InvalidCertificate(wrong)) = tls_error(&error) {
            match wrong {
                CertificateError::UnknownIssuer => return Self::UnknownAuthority { host },
                CertificateError::Other(other) => {
                    if let Some(&changed) = other.0.downcast_ref() {
                        return Self::Changed { host, changed };
                    }
                }
                _ => {}
            }
        }
        Self::Tls { host, error }
    }
}

/// What is wrong with the certificate or the handshake.
fn explain(error: &io::Error) -> String {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(wrong)) => match wrong {
            CertificateError::Other(other) => other.0.to_string(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("its certificate has expired, or this machine's clock is wrong: {wrong}")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("its certificate is not valid yet, or this machine's clock is wrong: {wrong}")
            }
            wrong => format!("its certificate is refused: {wrong}"),
        },
        Some(other) => format!("TLS fails: {other}"),
        None => format!("TLS fails: {error}"),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use penstock_proto::coordination::Fingerprint;
    use rustls::OtherError;

    fn refused(wrong: CertificateError) -> ConnectError {
        ConnectError::tls("a.example".into(), io::Error::other(rustls::Error::InvalidCertificate(wrong)))
    }

    #[test]
    fn a_certificate_is_refused_for_a_reason() {
        let changed = Changed { shown: Fingerprint([1; 32]), pinned: Fingerprint([2; 32]), second: None };
        let error = refused(CertificateError::Other(OtherError(Arc::new(changed))));
        assert!(matches!(&error, ConnectError::Changed { changed: other, .. } if *other == changed));
        let expected = format!(
            "a.example: it shows another certificate than the pinned one: the SHA-256 fingerprint is {}, not {}",
            changed.shown, changed.pinned
        );
        assert_eq!(error.to_string(), expected);
        assert!(matches!(refused(CertificateError::UnknownIssuer), ConnectError::UnknownAuthority { .. }));
        for (wrong, expected) in [
            (CertificateError::Expired, "a.example: its certificate has expired, or this machine's clock is wrong: "),
            (CertificateError::NotValidYet, "a.example: its certificate is not valid yet, or this machine's clock"),
            (CertificateError::NotValidForName, "a.example: its certificate is refused: "),
            (CertificateError::Other(OtherError(Arc::new(io::Error::other("odd")))), "a.example: odd"),
        ] {
            let error = refused(wrong).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = ConnectError::tls("a.example".into(), io::ErrorKind::UnexpectedEof.into()).to_string();
        assert!(error.starts_with("a.example: TLS fails: "), "{error}");
    }
}
