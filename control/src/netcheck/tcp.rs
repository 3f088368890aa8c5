//! Whether TCP to the coordinator works, directly or by an HTTP proxy (CONNECT, RFC 9110, section 9.3.6).

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Coordinator;

/// How long a connection may take; a lost SYN is sent again after one second and after three.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a proxy's answer.
const HEAD_LIMIT: usize = 8192;
const HTTPS_PORT: u16 = 443;
const PROXY_PORT: u16 = 3128;

/// A host and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
}

/// A text that names no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address such as https://coordinator.example.net or host:443")]
pub struct TargetError(String);

impl Target {
    /// Of a proxy, `http://host:port` or `host:port`.
    ///
    /// # Errors
    /// It is something else.
    pub fn proxy(text: &str) -> Result<Self, TargetError> {
        Self::parse(text, "http://", PROXY_PORT)
    }

    fn parse(text: &str, scheme: &str, port: u16) -> Result<Self, TargetError> {
        let error = || TargetError(text.to_owned());
        let rest = text.strip_prefix(scheme).unwrap_or(text);
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, port),
            Some((host, after)) => (host, number(after.strip_prefix(':')).ok_or_else(error)?),
            None => match authority.split_once(':') {
                Some((host, after)) => (host, number(Some(after)).ok_or_else(error)?),
                None => (authority, port),
            },
        };
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        if host.is_empty() || !host.bytes().all(sound) {
            return Err(error());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

fn number(text: Option<&str>) -> Option<u16> {
    text?.parse().ok().filter(|port| *port != 0)
}

/// Of a coordinator, by its URL or as `host:port`.
impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        Self::parse(text, "https://", HTTPS_PORT)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Connects once, in five seconds or not at all, and says what came of it.
pub async fn try_coordinator(coordinator: &Target, proxy: Option<&Target>) -> Coordinator {
    let outcome = match timeout(CONNECT_LIMIT, connect(coordinator, proxy)).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", CONNECT_LIMIT.as_secs())),
    };
    Coordinator {
        address: coordinator.to_string(),
        proxy: proxy.map(ToString::to_string),
        reachable: outcome.is_ok(),
        problem: outcome.err(),
    }
}

async fn connect(coordinator: &Target, proxy: Option<&Target>) -> io::Result<()> {
    let first = proxy.unwrap_or(coordinator);
    let mut stream = TcpStream::connect((first.host.as_str(), first.port)).await?;
    if proxy.is_some() {
        let request = format!("CONNECT {coordinator} HTTP/1.1\r\nHost: {coordinator}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.windows(2).any(|pair| pair == b"\r\n") {
            if head.len() >= HEAD_LIMIT || stream.read_buf(&mut head).await? == 0 {
                return Err(io::Error::other("the proxy gave no answer that could be read"));
            }
        }
        status(&head)?;
    }
    Ok(())
}

/// Whether an answer's first line, `HTTP/1.1 200 words`, is a success.
fn status(head: &[u8]) -> io::Result<()> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse::<u16>().ok());
    match code {
        Some(200..=299) => Ok(()),
        Some(code) => Err(io::Error::other(format!("the proxy refuses with HTTP status {code}"))),
        None => Err(io::Error::other("what answers at the proxy's address is no HTTP proxy")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinators_and_proxies_are_named_in_many_ways() {
        for (text, shown) in [
            ("https://coordinator.example.net", "coordinator.example.net:443"),
            ("https://coordinator.example.net:8443/v1", "coordinator.example.net:8443"),
            ("192.0.2.1:444", "192.0.2.1:444"),
            ("https://[2001:db8::1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown);
        }
        assert_eq!(Target::proxy("http://proxy:8080/").unwrap().to_string(), "proxy:8080");
        for wrong in ["", "https://", "host:port", "host:0", "host:70000", "ho st", "a\r\nb", "[::1]x"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_success_of_the_proxy_is_one() {
        assert!(status(b"HTTP/1.0 200 Connection established\r\n").is_ok());
        for (head, word) in
            [(&b"HTTP/1.1 403 Forbidden\r\n"[..], "403"), (b"SSH-2.0\r\n", "no HTTP"), (b"\xff\r\n", "no HTTP")]
        {
            assert!(status(head).unwrap_err().to_string().contains(word));
        }
    }
}
