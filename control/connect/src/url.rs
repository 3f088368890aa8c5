//! Where a coordinator or a relay is: an `https` URL.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::Scheme;
use penstock_proto::coordination::PATH;
use penstock_proto::coordination::limits::HOST_LIMIT;
use rustls::pki_types::ServerName;

/// The port of `https` (RFC 9110, section 4.2.2).
const DEFAULT_PORT: u16 = 443;
/// Longest URL; no host name and path need to be longer.
const LENGTH_LIMIT: usize = 1024;

/// An `https` URL with host, port and path. It has no user, query or fragment, which would be meaningless here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HttpsUrl {
    host: String,
    port: u16,
    path: String,
}

/// The URL of a coordinator, which has no path: `https://coordinator.example.net`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CoordinatorUrl(HttpsUrl);

/// Why a text is not such a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is not a URL at all, or its scheme is not `https`.
    #[error("{0:?} is not a URL such as https://coordinator.example.net or https://192.0.2.1:8443")]
    Malformed(String),
    /// A coordinator's URL has no path.
    #[error("{0:?} has a path, but a coordinator's URL has none")]
    Path(String),
}

impl HttpsUrl {
    /// The host name or address in lower case, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path, with the leading `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The same URL with this path, if it has none.
    #[must_use]
    pub fn with_default_path(mut self, path: &str) -> Self {
        if self.path == "/" {
            path.clone_into(&mut self.path);
        }
        self
    }

    /// Host and port as in a `Host` header (RFC 9110, section 7.2): the default port is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == DEFAULT_PORT { self.bracketed() } else { self.host_and_port() }
    }

    /// Host and port, always both, for a request to a proxy (RFC 9110, section 9.3.6).
    #[must_use]
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    pub(crate) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.host.clone()).expect("parsing has tried it")
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl CoordinatorUrl {
    /// The URL that gateways connect to.
    #[must_use]
    pub fn endpoint(&self) -> &HttpsUrl {
        &self.0
    }
}

impl FromStr for HttpsUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        parse(text).ok_or_else(|| UrlError::Malformed(text.chars().take(LENGTH_LIMIT).collect()))
    }
}

fn parse(text: &str) -> Option<HttpsUrl> {
    // `Uri` silently drops a fragment.
    if text.len() > LENGTH_LIMIT || text.contains('#') {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    if uri.scheme() != Some(&Scheme::HTTPS) || uri.query().is_some() {
        return None;
    }
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).to_ascii_lowercase();
    if host.is_empty() || host.len() > HOST_LIMIT || ServerName::try_from(host.as_str()).is_err() {
        return None;
    }
    // `Authority::port` treats a port number that is too large as a missing one.
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => DEFAULT_PORT,
        rest => rest.strip_prefix(':')?.parse().ok().filter(|&port| port != 0)?,
    };
    Some(HttpsUrl { host, port, path: uri.path().to_owned() })
}

impl FromStr for CoordinatorUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let url: HttpsUrl = text.parse()?;
        if url.path != "/" {
            return Err(UrlError::Path(text.to_owned()));
        }
        Ok(Self(url.with_default_path(PATH)))
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

impl fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.0.authority())
    }
}

impl fmt::Debug for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_and_paths() {
        for (text, host, authority, path) in [
            ("https://Coordinator.Example.NET", "coordinator.example.net", "coordinator.example.net", "/"),
            ("https://a.example:443/v1/relay", "a.example", "a.example", "/v1/relay"),
            ("https://192.0.2.1:8443/", "192.0.2.1", "192.0.2.1:8443", "/"),
            ("https://[2001:DB8::1]", "2001:db8::1", "[2001:db8::1]", "/"),
            ("https://[::1]:5", "::1", "[::1]:5", "/"),
        ] {
            let url: HttpsUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.authority().as_str(), url.path()), (host, authority, path), "{text}");
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        let url: CoordinatorUrl = "https://a.example:8443/".parse().unwrap();
        assert_eq!((url.to_string().as_str(), url.endpoint().path()), ("https://a.example:8443", PATH));
    }

    #[test]
    fn what_is_no_such_url_is_refused() {
        let long = format!("https://{}.example", "a".repeat(300));
        for text in [
            "",
            "a.example",
            "http://a.example",
            "wss://a.example",
            "https://",
            "https:///x",
            "https://u:p@a.example",
            "https://a.example?x",
            "https://a.example#x",
            "https://a.example:0",
            "https://a.example:",
            "https://a.example:65536",
            "https://a.example:x",
            "https://a b",
            "https://[::1",
            "https://ä.example",
            "https://-a.example",
            long.as_str(),
        ] {
            assert!(matches!(text.parse::<HttpsUrl>(), Err(UrlError::Malformed(_))), "{text:?}");
        }
        assert!(matches!("https://a.example/x".parse::<CoordinatorUrl>(), Err(UrlError::Path(_))));
    }
}
