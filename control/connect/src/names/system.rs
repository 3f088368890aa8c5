//! This system's configuration of names: its hosts file and resolv.conf.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hickory_resolver::Hosts;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverOpts};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use resolv_conf::{Config, ScopedIp};

use super::{NameError, Names};

/// Longest resolv.conf, in bytes.
const RESOLV_CONF_LIMIT: u64 = 64 << 10;
/// Longest hosts file, in bytes: block lists for advertisements have several million.
const HOSTS_LIMIT: u64 = 32 << 20;
/// The most name servers that are asked, as in glibc (MAXNS).
const SERVERS_LIMIT: usize = 3;
/// The most search domains, as in glibc before 2.26 (MAXDNSRCH).
const SEARCH_LIMIT: usize = 6;
/// The longest that one name server may take to answer, repetitions of the question included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is known without asking anyone, and whom to ask.
pub(super) struct System {
    /// The addresses of the name in the hosts file.
    pub hosts: Vec<IpAddr>,
    pub servers: Vec<Server>,
    pub search: Vec<Name>,
    pub options: ResolverOpts,
}

pub(super) struct Server {
    pub config: NameServerConfig,
    /// The interface of a link-local address.
    pub zone: Option<String>,
}

impl System {
    /// Reads both files. A missing one counts as empty, as for getaddrinfo(3).
    pub fn read(names: &Names, name: &Name) -> Result<Self, NameError> {
        let hosts = read(&names.hosts, HOSTS_LIMIT)?;
        let (config, mistakes) = Config::parse_with_errors(&read(&names.resolv_conf, RESOLV_CONF_LIMIT)?);
        for mistake in mistakes {
            tracing::debug!("{}: {mistake}", names.resolv_conf.display());
        }
        let file = |error| NameError::File { path: names.hosts.clone(), error };
        Ok(Self {
            hosts: addresses_of(name, &hosts).map_err(file)?,
            servers: config.get_nameservers_or_local().into_iter().take(SERVERS_LIMIT).map(Server::new).collect(),
            search: search(&config),
            options: options(&config),
        })
    }
}

impl Server {
    fn new(ip: ScopedIp) -> Self {
        let zone = match &ip {
            ScopedIp::V6(_, zone) => zone.clone(),
            ScopedIp::V4(_) => None,
        };
        Self { config: NameServerConfig::udp_and_tcp(ip.into()), zone }
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, NameError> {
    let mut bytes = Vec::new();
    let outcome = match File::open(path) {
        Ok(file) => file.take(limit + 1).read_to_end(&mut bytes).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    let outcome = outcome.and_then(|()| {
        let fits = bytes.len() as u64 <= limit;
        if fits { Ok(()) } else { Err(io::Error::other(format!("it is longer than {limit} bytes"))) }
    });
    outcome.map_err(|error| NameError::File { path: path.to_owned(), error })?;
    Ok(bytes)
}

/// The addresses of a name in a hosts file. Only lines that contain the name are parsed, since the file may be long.
fn addresses_of(name: &Name, file: &[u8]) -> io::Result<Vec<IpAddr>> {
    let wanted = name.to_lowercase().to_utf8();
    let wanted = wanted.trim_end_matches('.').as_bytes();
    let has_it = |line: &[u8]| line.windows(wanted.len()).any(|part| part.eq_ignore_ascii_case(wanted));
    let lines: Vec<&[u8]> = file.split_inclusive(|&byte| byte == b'\n').filter(|line| has_it(line)).collect();
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(lines.concat().as_slice())?;
    let of = |kind| hosts.lookup_static_host(&Query::query(name.to_lowercase(), kind));
    let lookups = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of);
    Ok(lookups
        .flat_map(|lookup| lookup.answers().iter().filter_map(|r| r.data.ip_addr()).collect::<Vec<_>>())
        .collect())
}

fn search(config: &Config) -> Vec<Name> {
    let domains = config.get_last_search_or_domain().filter_map(|domain| Name::from_str_relaxed(domain).ok());
    domains.take(SEARCH_LIMIT).collect()
}

fn options(config: &Config) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.ndots = config.ndots as usize;
    options.timeout = Duration::from_secs(config.timeout.into()).clamp(Duration::from_secs(1), ANSWER_TIMEOUT);
    // UDP is repeated within that time, at growing intervals; after that the next name server is worth more than asking
    // this one again.
    options.attempts = 0;
    options.edns0 = config.edns0;
    options.ip_strategy = if config.no_aaaa { LookupIpStrategy::Ipv4Only } else { LookupIpStrategy::Ipv4AndIpv6 };
    // Avoids ports that the administrator has reserved.
    options.os_port_selection = true;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 64;
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read_as_it_is_written() {
        let file = b"127.0.0.1 localhost\n# 192.0.2.9 gw.example\n192.0.2.1\tGW.example gw # 192.0.2.8 gw.example\n\
            2001:db8::1 other gw.example\n192.0.2.2 gw.example.net\nnonsense gw.example\n192.0.2.3 gw.example";
        let of = |name: &str| addresses_of(&Name::from_str_relaxed(name).unwrap(), file).unwrap();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(of("gw.Example"), list(&["192.0.2.1", "192.0.2.3", "2001:db8::1"]));
        assert_eq!(of("gw"), list(&["192.0.2.1"]));
        assert_eq!(of("gw.example.net."), list(&["192.0.2.2"]));
        assert!(of("w.example").is_empty());
    }

    #[test]
    fn resolv_conf_is_read_as_glibc_would() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names { resolv_conf: directory.path().join("resolv.conf"), hosts: directory.path().join("hosts") };
        let read = |text: &str| {
            std::fs::write(&names.resolv_conf, text).unwrap();
            System::read(&names, &Name::root())
        };
        let system = read(
            "nameserver 192.0.2.53\nnameserver fe80::53%eth0\nnameserver 2001:db8::53\nnameserver 192.0.2.54\n\
             search a.example b.example\noptions ndots:2 timeout:30 edns0 mystery\n",
        );
        let system = system.unwrap();
        let servers: Vec<_> = system.servers.iter().map(|s| (s.config.ip.to_string(), s.zone.as_deref())).collect();
        let expected = [("192.0.2.53", None), ("fe80::53", Some("eth0")), ("2001:db8::53", None)];
        assert_eq!(servers, expected.map(|(ip, zone)| (ip.to_owned(), zone)));
        assert_eq!(system.search.iter().map(Name::to_string).collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!((system.options.ndots, system.options.timeout), (2, ANSWER_TIMEOUT));
        assert!(system.options.edns0 && !read("").unwrap().options.edns0);
        let too_long = read(&"#".repeat(RESOLV_CONF_LIMIT as usize + 1)).err().unwrap();
        assert!(too_long.to_string().ends_with("resolv.conf: it is longer than 65536 bytes"), "{too_long}");
        std::fs::remove_file(&names.resolv_conf).unwrap();
        let local = System::read(&names, &Name::root()).unwrap().servers;
        assert_eq!(local[0].config.ip, IpAddr::from([127, 0, 0, 1]));
    }
}
