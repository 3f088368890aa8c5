//! The names under which a browser may reach the page, and the origin that its forms must come from.
//!
//! Other names are refused: otherwise another website could have its name resolve to our address and pass for the page
//! (DNS rebinding).

use std::net::{IpAddr, SocketAddr};

use penstock_connect::CoordinatorUrl;

/// What is expected of a request.
#[derive(Clone, Debug)]
pub struct Origins {
    tls: bool,
    hosts: Hosts,
    /// Without a slash at the end.
    url: String,
}

#[derive(Clone, Debug)]
enum Hosts {
    /// Only this host, as in a `Host` header.
    Only(String),
    /// Any address, and these names.
    Names(Vec<String>),
    /// The machine itself, also through a forwarded port.
    Loopback,
}

impl Origins {
    /// For a page at this address. `url` is the URL for browsers, if it is a different one; `names` are the
    /// coordinator's.
    #[must_use]
    pub fn new(listen: SocketAddr, url: Option<&CoordinatorUrl>, names: &[String]) -> Self {
        if let Some(url) = url {
            let authority = url.endpoint().authority();
            return Self { tls: true, url: format!("https://{authority}"), hosts: Hosts::Only(authority) };
        }
        if listen.ip().is_loopback() {
            return Self { tls: false, hosts: Hosts::Loopback, url: format!("http://{listen}") };
        }
        let name = names.first().map_or("localhost", String::as_str);
        let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
        let port = listen.port();
        let url = if port == 443 { format!("https://{name}") } else { format!("https://{name}:{port}") };
        Self { tls: true, hosts: Hosts::Names(names.to_vec()), url }
    }

    /// The page's URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether browsers reach the page by HTTPS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.tls
    }

    /// Whether a `Host` header names us.
    #[must_use]
    pub fn is_ours(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.split_once(':').map_or(&host[..], |(name, _)| name),
        };
        let address = name.parse::<IpAddr>().ok();
        match &self.hosts {
            Hosts::Only(authority) => host == *authority,
            // An address is safe, because no DNS name can be one.
            Hosts::Names(names) => address.is_some() || names.iter().any(|known| known == name),
            Hosts::Loopback => name == "localhost" || address.is_some_and(|address| address.is_loopback()),
        }
    }

    /// Whether a request to that host comes from one of our own pages.
    #[must_use]
    pub fn allows(&self, host: &str, origin: &str) -> bool {
        let scheme = if self.tls { "https" } else { "http" };
        self.is_ours(host) && origin.eq_ignore_ascii_case(&format!("{scheme}://{host}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_and_origins_pass() {
        let names = ["coordinator.example.net".to_owned()];
        let local = Origins::new("127.0.0.1:8080".parse().unwrap(), None, &names);
        let open = Origins::new("0.0.0.0:8443".parse().unwrap(), None, &names);
        let url = "https://page.example.net".parse().unwrap();
        let proxied = Origins::new("127.0.0.1:8080".parse().unwrap(), Some(&url), &names);
        assert_eq!(local.url(), "http://127.0.0.1:8080");
        assert_eq!(open.url(), "https://coordinator.example.net:8443");
        assert_eq!(proxied.url(), "https://page.example.net");
        for (origins, host, ours) in [
            (&local, "127.0.0.1:8080", true),
            (&local, "LOCALHOST:9", true),
            (&local, "[::1]:8080", true),
            (&local, "192.0.2.1:8080", false),
            (&local, "evil.example.net:8080", false),
            (&local, "coordinator.example.net", false),
            (&local, "", false),
            (&open, "coordinator.example.net:8443", true),
            (&open, "192.0.2.1:8443", true),
            (&open, "evil.example.net:8443", false),
            (&proxied, "page.example.net", true),
            (&proxied, "page.example.net:8443", false),
            (&proxied, "127.0.0.1:8080", false),
        ] {
            assert_eq!(origins.is_ours(host), ours, "{host}");
            let scheme = if origins.is_secure() { "https" } else { "http" };
            assert_eq!(origins.allows(host, &format!("{scheme}://{host}")), ours, "{host}");
            assert!(!origins.allows(host, &format!("ftp://{host}")) && !origins.allows(host, "null"));
            assert!(!origins.allows(host, "https://evil.example.net"));
        }
        assert!(!open.allows("coordinator.example.net:8443", "http://coordinator.example.net:8443"));
    }
}
