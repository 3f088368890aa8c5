//! The HTTP proxy (RFC 9110, section 9.3.6: CONNECT) that the environment asks for.

use std::fmt;
use std::sync::Arc;

use hyper::client::conn::http1;
use hyper::header::{HOST, PROXY_AUTHORIZATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{CoordinatorUrl, HttpsUrl};

/// Longest head of a proxy's answer: the least that hyper accepts. Those of real proxies have a few hundred bytes.
const HEAD_LIMIT: usize = 8 << 10;
/// The most header fields in it.
const FIELDS_LIMIT: usize = 64;
/// The port of a proxy whose URL has none.
const DEFAULT_PORT: u16 = 80;

/// Which connections go through which proxy.
#[derive(Clone, Debug)]
pub struct Proxy(Kind);

#[derive(Clone, Debug)]
enum Kind {
    None,
    Through(Arc<Matcher>),
    Unusable,
}

/// Why the proxy cannot be used. None of these shows the proxy's URL, which may contain a password.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The variable cannot be used.
    #[error("HTTPS_PROXY is not a URL such as http://proxy.example.net:3128 or http://user:password@192.0.2.1:3128")]
    Unusable,
    /// It refuses.
    #[error("the proxy {proxy} refuses: {status}{}", advice(*.status))]
    Refused {
        /// Host and port.
        proxy: String,
        /// The HTTP status of its answer.
        status: StatusCode,
    },
    /// Its answer is not HTTP, is too long, or is missing.
    #[error("the proxy {proxy} does not answer as a proxy: {error}")]
    Garbage {
        /// Host and port.
        proxy: String,
        /// What is wrong.
        error: hyper::Error,
    },
    /// It sends something before we do.
    #[error("the proxy {proxy} sends data after its answer")]
    Babbles {
        /// Host and port.
        proxy: String,
    },
}

/// A proxy for one connection.
pub(crate) struct Hop {
    pub host: String,
    pub port: u16,
    intercept: Intercept,
}

impl Proxy {
    /// What `https_proxy` or `HTTPS_PROXY`, and `no_proxy` or `NO_PROXY`, ask for.
    #[must_use]
    pub fn of_environment() -> Self {
        Self::of_variables(|name| std::env::var(name).ok())
    }

    /// The same for variables other than this process's.
    #[must_use]
    pub fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&str; 2]| names.iter().find_map(|name| variable(name)).unwrap_or_default();
        Self::new(&first(["https_proxy", "HTTPS_PROXY"]), &first(["no_proxy", "NO_PROXY"]))
    }

    /// What the values of the variables `HTTPS_PROXY` and `NO_PROXY` ask for. A value that cannot be used makes every
    /// connection fail: one that is to go through a proxy must not go without it.
    #[must_use]
    pub fn new(https: &str, no: &str) -> Self {
        if https.trim().is_empty() {
            return Self::none();
        }
        let sound = Matcher::builder().https(https).build().intercept(&Uri::from_static("https://a.example/"));
        match sound {
            Some(intercept) if intercept.uri().scheme_str() == Some("http") && intercept.uri().host().is_some() => {
                Self(Kind::Through(Arc::new(Matcher::builder().https(https).no(no).build())))
            }
            _ => Self(Kind::Unusable),
        }
    }

    /// Every connection is direct.
    #[must_use]
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// Host and port of the proxy for the coordinator, if one is configured and can be used.
    #[must_use]
    pub fn towards(&self, url: &CoordinatorUrl) -> Option<String> {
        self.hop(url.endpoint()).ok().flatten().map(|hop| hop.to_string())
    }

    /// The same, with host and port apart.
    ///
    /// # Errors
    /// The variable cannot be used.
    pub fn address(&self, url: &CoordinatorUrl) -> Result<Option<(String, u16)>, ProxyError> {
        Ok(self.hop(url.endpoint())?.map(|hop| (hop.host, hop.port)))
    }

    /// The proxy for this URL, if one is configured.
    pub(crate) fn hop(&self, url: &HttpsUrl) -> Result<Option<Hop>, ProxyError> {
        let matcher = match &self.0 {
            Kind::None => return Ok(None),
            Kind::Unusable => return Err(ProxyError::Unusable),
            Kind::Through(matcher) => matcher,
        };
        let destination: Uri = url.to_string().parse().map_err(|_| ProxyError::Unusable)?;
        let Some(intercept) = matcher.intercept(&destination) else { return Ok(None) };
        let uri = intercept.uri();
        let host = uri.host().ok_or(ProxyError::Unusable)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
        Ok(Some(Hop { host, port, intercept }))
    }
}

impl Hop {
    /// Asks the proxy at the other end of `stream` for a connection, and returns the connection. The caller sets a time
    /// limit.
    pub(crate) async fn connect(&self, stream: TcpStream, url: &HttpsUrl) -> Result<TcpStream, ProxyError> {
        let garbage = |error| ProxyError::Garbage { proxy: self.to_string(), error };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_LIMIT).max_headers(FIELDS_LIMIT);
        let (mut sender, connection) = builder.handshake::<_, String>(TokioIo::new(stream)).await.map_err(garbage)?;
        let mut connection = std::pin::pin!(connection.with_upgrades());
        let request = self.request(&url.host_and_port()).ok_or(ProxyError::Unusable)?;
        let mut answer = std::pin::pin!(sender.send_request(request));
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The connection has ended; the answer says how.
            _ = &mut connection => answer.await,
        };
        let answer = answer.map_err(garbage)?;
        if !answer.status().is_success() {
            return Err(ProxyError::Refused { proxy: self.to_string(), status: answer.status() });
        }
        let mut upgraded = std::pin::pin!(hyper::upgrade::on(answer));
        let upgraded = tokio::select! {
            biased;
            upgraded = &mut upgraded => upgraded,
            _ = &mut connection => upgraded.await,
        };
        let upgraded = upgraded.map_err(garbage)?;
        let babbles = || ProxyError::Babbles { proxy: self.to_string() };
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| babbles())?;
        // In TLS the client speaks first.
        if parts.read_buf.is_empty() { Ok(parts.io.into_inner()) } else { Err(babbles()) }
    }

    fn request(&self, destination: &str) -> Option<Request<String>> {
        let mut request = Request::new(String::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = destination.parse().ok()?;
        let host = destination.parse().ok()?;
        request.headers_mut().insert(HOST, host);
        if let Some(authorization) = self.intercept.basic_auth() {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        Some(request)
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            "; it requires a user and a password: HTTPS_PROXY=http://user:password@host:port"
        }
        StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => "; it must allow CONNECT to the coordinator's port",
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            "; it does not reach the coordinator"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> HttpsUrl {
        "https://coordinator.example.net:8443/v1/connect".parse().unwrap()
    }

    fn hop(https: &str, no: &str) -> Option<(String, bool)> {
        let hop = Proxy::new(https, no).hop(&url()).unwrap()?;
        let request = hop.request(&url().host_and_port()).unwrap();
        assert_eq!(request.uri().to_string(), "coordinator.example.net:8443");
        Some((hop.to_string(), request.headers().contains_key(PROXY_AUTHORIZATION)))
    }

    #[test]
    fn the_variables_say_which_way() {
        let through = |text: &str, authorization| Some((text.to_owned(), authorization));
        assert_eq!(hop("", ""), None);
        assert_eq!(hop("http://proxy.test:3128", ""), through("proxy.test:3128", false));
        assert_eq!(hop("proxy.test", ""), through("proxy.test:80", false));
        assert_eq!(hop("http://a:b%20c@192.0.2.1:1/", ""), through("192.0.2.1:1", true));
        assert_eq!(hop("http://proxy.test", "other.net"), through("proxy.test:80", false));
        for no in ["*", "example.net", ".example.net, x", "coordinator.example.net"] {
            assert_eq!(hop("http://proxy.test", no), None, "{no}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_not_passed_over() {
        for bad in ["https://proxy.test", "socks5://proxy.test", "http://", "a b", "ftp://x"] {
            let error = Proxy::new(bad, "").hop(&url()).err();
            assert!(matches!(error, Some(ProxyError::Unusable)), "{bad}");
        }
        let error = Proxy::new("socks5://user:secret@proxy.test", "").hop(&url()).err().unwrap();
        assert!(!error.to_string().contains("secret"));
        let shown = format!("{:?}", Proxy::new("http://user:secret@proxy.test", ""));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
