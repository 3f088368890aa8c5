//! The coordinator's configuration: a JSON file, overridden by the command line.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use penstock_messages::{Fault, hint, without_place};
use penstock_proto::coordination::Relay;
use penstock_proto::coordination::limits::{HOST_LIMIT, SERVERS_LIMIT};
use penstock_proto::trust::LeaseLength;
use serde::{Deserialize, Serialize};

use crate::acme::config::{Acme, AcmeDocument};
use crate::page::config::{PageConfig, PageDocument};
use crate::udp::Listen;

/// The port of STUN servers (RFC 8489, section 9), and of our relays.
pub const STUN_PORT: u16 = 3478;
/// The other port of a STUN server that can measure NATs (RFC 5780, section 7.6 does not assign one).
pub const STUN_ALTERNATE_PORT: u16 = 3479;
/// The most STUN servers in a map that are our own.
pub const STUN_OWN: usize = 8;
/// The default directory of the coordinator's state.
pub const STATE: &str = "/var/lib/penstock-coordinator";

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it serves, and under which names.
    pub serving: Serving,
    /// Further relays that gateways are told about; they may connect to be told who may talk.
    pub relays: Vec<Relay>,
    /// Further STUN servers that gateways are told about.
    pub stun_servers: Vec<SocketAddr>,
    /// How long a site's statement stays alive without this coordinator.
    pub lease: LeaseLength,
    /// The page for administrators; `None`: no page.
    pub page: Option<PageConfig>,
}

/// Where a coordinator, or a relay on a machine of its own, serves, and under which names.
#[derive(Clone, Debug)]
pub struct Serving {
    /// TCP addresses to listen at, for TLS.
    pub listen: Vec<SocketAddr>,
    /// The host names and addresses under which gateways reach it, in lower case; at least one.
    pub names: Vec<String>,
    /// The directory of keys and certificate and, for a coordinator, of database and control socket.
    pub state: PathBuf,
    /// A given certificate; without one it makes its own.
    pub certificate: Option<CertificateFiles>,
    /// The authority to get a certificate from; not together with a given one.
    pub acme: Option<Acme>,
    /// Its own STUN server and relay.
    pub udp: Udp,
    /// The address where its metrics are served; `None`: they are not.
    pub metrics: Option<SocketAddr>,
}

/// A STUN server and a relay on the same UDP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The addresses to listen at; none if it is neither.
    pub listen: Vec<Listen>,
    /// The addresses that gateways are told; if empty, those it listens at.
    pub public: Vec<SocketAddr>,
    /// Whether it is a STUN server.
    pub stun: bool,
    /// Whether it is a relay.
    pub relay: bool,
}

/// A given certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain in PEM, the coordinator's own first.
    pub chain: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// The fields of the file, and of the command line. All are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Document {
    /// [`Serving::listen`].
    pub listen: Option<Vec<SocketAddr>>,
    /// [`Serving::names`].
    pub names: Option<Vec<String>>,
    /// [`Serving::state`]; relative to the file.
    pub state: Option<PathBuf>,
    /// [`CertificateFiles::chain`]; relative to the file.
    pub certificate_file: Option<PathBuf>,
    /// [`CertificateFiles::key`]; relative to the file.
    pub certificate_key_file: Option<PathBuf>,
    /// [`Serving::acme`].
    pub acme: Option<AcmeDocument>,
    /// UDP addresses of STUN server and relay: at most two per IP version, with the same port, or one for all
    /// addresses.
    pub udp_listen: Option<Vec<SocketAddr>>,
    /// [`Udp::public`].
    pub udp_public: Option<Vec<SocketAddr>>,
    /// The STUN server's other port.
    pub stun_alternate_port: Option<u16>,
    /// [`Udp::stun`].
    pub stun: Option<bool>,
    /// [`Udp::relay`].
    pub relay: Option<bool>,
    /// [`Serving::metrics`].
    pub metrics: Option<SocketAddr>,
    /// [`Config::relays`].
    pub relays: Option<Vec<Relay>>,
    /// [`Config::stun_servers`].
    pub stun_servers: Option<Vec<SocketAddr>>,
    /// [`Config::lease`], in seconds; 0: without end.
    pub lease: Option<LeaseLength>,
    /// [`Config::page`].
    pub page: Option<PageDocument>,
}

/// The first error in a configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}:{line}:{column}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line at which it is wrong, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
        /// What is wrong, with the field if there is one.
        problem: String,
    },
    /// The fields do not fit together.
    #[error("{0}")]
    Unsound(String),
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is not a configuration.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File { path: path.into(), error })?;
        // Editors on Windows put a byte order mark in front.
        let text = text.trim_start_matches('\u{feff}');
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let syntax = |error: &serde_json::Error, problem| ConfigError::Syntax {
            path: path.into(),
            line: error.line().max(1),
            column: error.column().max(1),
            problem,
        };
        let not_json = |error: &serde_json::Error| {
            let hint = hint(text.as_bytes(), (error.line(), error.column()));
            syntax(error, format!("this is not JSON: {}{hint}", penstock_messages::syntax(error)))
        };
        let mut document: Self = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let inner = error.inner();
            if !inner.is_data() {
                return not_json(inner);
            }
            let fault = without_place(inner);
            let fault = Fault::of(&fault, "man penstock-coordinator.json");
            let mut field = error.path().to_string();
            if let Some(name) = fault.unknown.filter(|name| field.rsplit('.').next() != Some(*name)) {
                field = if field == "." { name.to_owned() } else { format!("{field}.{name}") };
            }
            let field = if field == "." { String::new() } else { format!("field {field}: ") };
            syntax(inner, format!("{field}{}", fault.sentence))
        })?;
        deserializer.end().map_err(|error| not_json(&error))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let files = [&mut document.state, &mut document.certificate_file, &mut document.certificate_key_file];
        let ca_file = document.acme.as_mut().and_then(|acme| acme.ca_file.as_mut());
        let oidc = document.page.as_mut().and_then(|page| page.oidc.as_mut());
        let oidc = oidc.into_iter().flat_map(|oidc| [oidc.client_secret_file.as_mut(), oidc.ca_file.as_mut()]);
        for file in files.into_iter().flatten().chain(ca_file).chain(oidc.flatten()) {
            *file = directory.join(&*file);
        }
        Ok(document)
    }

    /// This document, with missing fields taken from another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            names: self.names.or(other.names),
            state: self.state.or(other.state),
            certificate_file: self.certificate_file.or(other.certificate_file),
            certificate_key_file: self.certificate_key_file.or(other.certificate_key_file),
            acme: match (self.acme, other.acme) {
                (Some(first), Some(second)) => Some(first.or(second)),
                (first, second) => first.or(second),
            },
            udp_listen: self.udp_listen.or(other.udp_listen),
            udp_public: self.udp_public.or(other.udp_public),
            stun_alternate_port: self.stun_alternate_port.or(other.stun_alternate_port),
            stun: self.stun.or(other.stun),
            relay: self.relay.or(other.relay),
            metrics: self.metrics.or(other.metrics),
            relays: self.relays.or(other.relays),
            stun_servers: self.stun_servers.or(other.stun_servers),
            lease: self.lease.or(other.lease),
            page: match (self.page, other.page) {
                (Some(first), Some(second)) => Some(first.or(second)),
                (first, second) => first.or(second),
            },
        }
    }

    /// The state directory in the document.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| STATE.into())
    }
}

impl TryFrom<Document> for Config {
    type Error = ConfigError;

    fn try_from(document: Document) -> Result<Self, ConfigError> {
        let unsound = |sentence: String| Err(ConfigError::Unsound(sentence));
        let state = document.state();
        let names: Vec<String> =
            document.names.unwrap_or_default().iter().map(|name| name.to_ascii_lowercase()).collect();
        if names.is_empty() {
            return unsound(
                "Names (--name) must give the host name by which gateways reach the coordinator, \
                because their proofs are valid for that name alone"
                    .into(),
            );
        }
        if let Some(name) = names.iter().find(|name| !is_host(name)) {
            return unsound(format!("Names: {name:?} is neither a host name nor an address"));
        }
        let certificate = match (document.certificate_file, document.certificate_key_file) {
            (Some(chain), Some(key)) => Some(CertificateFiles { chain, key }),
            (None, None) => None,
            _ => return unsound("CertificateFile and CertificateKeyFile go together".into()),
        };
        if certificate.is_some() && document.acme.is_some() {
            return unsound("Acme (--acme) and CertificateFile (--certificate) exclude each other".into());
        }
        let acme = document.acme.map(|acme| acme.check(&names)).transpose().map_err(ConfigError::Unsound)?;
        let relays = document.relays.unwrap_or_default();
        let stun_servers = document.stun_servers.unwrap_or_default();
        if relays.len() >= SERVERS_LIMIT || stun_servers.len() > SERVERS_LIMIT - STUN_OWN {
            let (relays, stun) = (SERVERS_LIMIT - 1, SERVERS_LIMIT - STUN_OWN);
            return unsound(format!("there may be {relays} Relays and {stun} StunServers besides our own, no more"));
        }
        let listen = document.listen.unwrap_or_else(|| vec![(Ipv6Addr::UNSPECIFIED, 443).into()]);
        if listen.is_empty() {
            return unsound("Listen must hold an address".into());
        }
        let udp = Udp::new(
            document.udp_listen.unwrap_or_else(|| vec![(Ipv6Addr::UNSPECIFIED, STUN_PORT).into()]),
            document.udp_public.unwrap_or_default(),
            document.stun_alternate_port.unwrap_or(STUN_ALTERNATE_PORT),
            document.stun.unwrap_or(true),
            document.relay.unwrap_or(true),
        );
        let udp = udp.map_err(ConfigError::Unsound)?;
        let page = document.page.map(PageDocument::check).transpose().map_err(ConfigError::Unsound)?;
        let serving = Serving { listen, names, state, certificate, acme, udp, metrics: document.metrics };
        Ok(Self { serving, relays, stun_servers, lease: document.lease.unwrap_or(LeaseLength::DEFAULT), page })
    }
}

impl Udp {
    fn new(
        addresses: Vec<SocketAddr>,
        public: Vec<SocketAddr>,
        alternate_port: u16,
        stun: bool,
        relay: bool,
    ) -> Result<Self, String> {
        if addresses.is_empty() || addresses.len() > SERVERS_LIMIT || public.len() > SERVERS_LIMIT {
            return Err(format!("UdpListen must hold 1 to {SERVERS_LIMIT} addresses, UdpPublic at most as many"));
        }
        if let Some(all) = public.iter().find(|address| address.ip().is_unspecified() || address.port() == 0) {
            return Err(format!("UdpPublic: nobody can reach {all}"));
        }
        let (v4, v6): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses.into_iter().partition(SocketAddr::is_ipv4);
        let mut listen = Vec::new();
        for addresses in [v4, v6].into_iter().filter(|addresses| !addresses.is_empty() && (stun || relay)) {
            let v4 = addresses[0].is_ipv4();
            let all = addresses.iter().any(|address| address.ip().is_unspecified());
            let sound = match &addresses[..] {
                [_] => true,
                [first, second] => !all && first.ip() != second.ip() && first.port() == second.port(),
                _ => false,
            };
            if !sound {
                return Err("UdpListen takes one address for everything, or for each IP version one or two addresses \
                    with the same port; a STUN server has no use for more"
                    .into());
            }
            let public: Vec<SocketAddr> =
                public.iter().copied().filter(|public| public.is_ipv4() == v4 && !all).collect();
            if !public.is_empty() && public.len() != addresses.len() {
                return Err(
                    "UdpPublic must say for each address in UdpListen how it is reached, in the same order".into()
                );
            }
            if stun && addresses.iter().any(|address| address.port() == alternate_port && alternate_port != 0) {
                return Err(format!("StunAlternatePort must be another port than {alternate_port}"));
            }
            listen.push(Listen { addresses, public, alternate_port: stun.then_some(alternate_port) });
        }
        Ok(Self { listen, public, stun, relay })
    }
}

/// Whether it consists of the characters of a host name or is an address; without brackets or port.
fn is_host(name: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let named = !name.is_empty() && name.len() <= HOST_LIMIT && name.bytes().all(sound) && !name.ends_with('.');
    named || name.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        std::fs::write(&path, text).unwrap();
        Document::read(&path).and_then(Config::try_from).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_and_relative_files() {
        let config =
            read(r#"{"Names": ["Coordinator.example.net"], "CertificateFile": "a", "CertificateKeyFile": "/b"}"#);
        let config = config.unwrap().serving;
        assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
        assert_eq!(config.names, ["coordinator.example.net"]);
        assert_eq!(config.state, Path::new(STATE));
        let files = config.certificate.unwrap();
        assert!(files.chain.is_absolute() && files.chain.ends_with("a"));
        assert_eq!(files.key, Path::new("/b"));
        let acme = r#"{"Names": ["a"], "Acme": {"AgreeToTermsOfService": true, "CaFile": "ca.pem"}}"#;
        let file = read(acme).unwrap().serving.acme.unwrap().ca_file.unwrap();
        assert!(file.is_absolute() && file.ends_with("ca.pem"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("{}", "--name"),
            (r#"{"Names": []}"#, "--name"),
            (r#"{"Names": ["a b"]}"#, "\"a b\""),
            (r#"{"Names": ["https://a"]}"#, "https"),
            (r#"{"Names": ["a"], "CertificateFile": "x"}"#, "go together"),
            (r#"{"Names": ["a"], "Acme": {}}"#, "AgreeToTermsOfService"),
            (
                r#"{"Names": ["a"], "CertificateFile": "x", "CertificateKeyFile": "y",
                    "Acme": {"AgreeToTermsOfService": true}}"#,
                "exclude each other",
            ),
            (r#"{"Names": ["a"], "Listen": ["x"]}"#, "field Listen[0]"),
            (r#"{"Names": ["a"], "Listen": []}"#, "Listen"),
            (r#"{"Names": ["a"], "UdpListen": ["192.0.2.1:1", "192.0.2.2:2"]}"#, "same port"),
            (r#"{"Names": ["a"], "UdpListen": ["192.0.2.1:1", "0.0.0.0:1"]}"#, "UdpListen"),
            (r#"{"Names": ["a"], "UdpListen": ["192.0.2.1:3479"]}"#, "StunAlternatePort"),
            (r#"{"Names": ["a"], "UdpPublic": ["0.0.0.0:1"]}"#, "UdpPublic"),
            (
                r#"{"Names": ["a"], "UdpListen": ["10.0.0.1:1", "10.0.0.2:1"], "UdpPublic": ["192.0.2.1:1"]}"#,
                "same order",
            ),
            (r#"{"Nmes": ["a"]}"#, "/a.json:1:7: field Nmes: there is no such field; did you mean Names?"),
            (
                r#"{"Port": 1}"#,
                "/a.json:1:7: field Port: there is no such field; man penstock-coordinator.json lists them all",
            ),
            (
                "{\n\"Page\": {\"Lsten\": 1}}",
                "/a.json:2:16: field Page.Lsten: there is no such field; did you mean Listen?",
            ),
            ("[]", "/a.json:1:2: "),
            (r#"{"Names": ["a"]} x"#, "/a.json:1:18: this is not JSON: trailing characters"),
            ("{", "this is not JSON"),
            ("{ # c\n}", "JSON has no comments"),
            (r#"{"Names": ["a"], "Page": 5}"#, "a.json:1:26: field Page: expected an object, not 5"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_comes_first() {
        let said = Document { names: Some(vec!["a".into()]), ..Document::default() };
        let file = Document { names: Some(vec!["b".into()]), state: Some("c".into()), ..Document::default() };
        let both = said.or(file);
        assert_eq!(both.names.as_deref(), Some(&["a".to_owned()][..]));
        assert_eq!(both.state(), Path::new("c"));
        let acme = |text| Document { acme: Some(serde_json::from_str(text).unwrap()), ..Document::default() };
        let both = acme(r#"{"Directory": "a"}"#).or(acme(r#"{"Directory": "b", "AgreeToTermsOfService": true}"#));
        assert_eq!(both, acme(r#"{"Directory": "a", "AgreeToTermsOfService": true}"#));
    }
}
