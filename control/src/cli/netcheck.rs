//! `netcheck`: what the network lets this gateway do, and what to change.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use penstock_connect::{CoordinatorUrl, Outbound, Proxy};
use penstock_proto::coordination::Map;
use tokio::runtime::Runtime;

use super::{Gateway, environment};
use crate::control_socket::{Answer, Command};
use crate::coordinator::{Cached, Config};
use crate::netcheck::{Plan, RemoteSite, Report, Silences, add_lifetimes, gather, render};
use crate::profile::{DEFAULT_PATH, LocalPort, Profile};

/// RFC 8489, section 18.6.
const STUN_PORT: u16 = 3478;
/// How long a running gateway may take to measure: a discovery is three steps of three seconds, and the coordinator has
/// to be found first.
const MEASURING_LIMIT: Duration = Duration::from_secs(15);
/// Time between checks.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) fn netcheck(
    path: &Path,
    json: bool,
    stun: &[StunServer],
    coordinator: Option<CoordinatorUrl>,
    lifetime: Option<&Silences>,
) -> Result<()> {
    let profile = profile(path)?;
    let gateway = profile.as_ref().map(|_| Gateway::of(path)).transpose()?;
    let (mut report, servers) = match gateway.filter(Gateway::is_running) {
        Some(gateway) if !stun.is_empty() || coordinator.is_some() => bail!(
            "{} is running and asks the servers that its coordinator names: --stun and --coordinator are for a \
             stopped gateway",
            gateway.name
        ),
        // Its map has come by now, unless it has never had one.
        Some(gateway) => (ask(&gateway)?, lifetime.map(|_| known(profile.as_ref()).stun_servers).unwrap_or_default()),
        None => measure(profile.as_ref(), stun, coordinator, environment(path).proxy())?,
    };
    if let Some(silences) = lifetime {
        let told = |family: &str, progress| eprintln!("penstock: {family}: {progress}");
        let mark = mark(profile.as_ref());
        runtime()?.block_on(add_lifetimes(&mut report, &servers, silences, mark, told))?;
    }
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { render(&report) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A missing profile at the default path is not an error: the network can be examined before there is one.
fn profile(path: &Path) -> Result<Option<Profile>> {
    if path == Path::new(DEFAULT_PATH) && !path.exists() {
        return Ok(None);
    }
    Ok(Some(Profile::load_without_secrets(path, &environment(path))?))
}

/// What the running gateway knows, once it has measured.
fn ask(gateway: &Gateway) -> Result<Report> {
    let end = Instant::now() + MEASURING_LIMIT;
    loop {
        let Answer::Netcheck(report) = gateway.ask(Command::Netcheck)? else {
            bail!("{} gave an unexpected answer", gateway.name);
        };
        if report.coordinator.is_none() {
            bail!(
                "{} runs without a coordinator, which would name STUN servers: stop it and give one with --stun",
                gateway.name
            );
        }
        if !report.measuring || Instant::now() >= end {
            return Ok(*report);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Measured from sockets of our own, with what the profile and the coordinator last said. Also returns the servers that
/// were asked.
fn measure(
    profile: Option<&Profile>,
    stun: &[StunServer],
    coordinator: Option<CoordinatorUrl>,
    proxy: Proxy,
) -> Result<(Report, Vec<SocketAddr>)> {
    let map = known(profile);
    let outbound = Outbound::new(proxy, mark(profile));
    let runtime = runtime()?;
    let servers =
        if stun.is_empty() { map.stun_servers.clone() } else { runtime.block_on(servers(stun, &outbound))? };
    if servers.is_empty() {
        bail!("no STUN server is known: give one with --stun");
    }
    let of_profile = || profile.and_then(|profile| Some(profile.coordinator.as_ref()?.url.clone()));
    let plan = Plan {
        local_port: match profile.map(|profile| profile.local_port) {
            Some(LocalPort::Pinned(port)) => Some(port),
            Some(LocalPort::Random) | None => None,
        },
        servers,
        coordinator: coordinator.or_else(of_profile),
        outbound,
        peers: RemoteSite::of_map(&map),
    };
    let report = runtime.block_on(gather(&plan))?;
    Ok((report, plan.servers))
}

/// The firewall mark of a gateway with this profile.
fn mark(profile: Option<&Profile>) -> u32 {
    profile.and_then(Config::of).map_or(0, |config| config.mark)
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// What the coordinator last said.
fn known(profile: Option<&Profile>) -> Map {
    let Some(config) = profile.and_then(Config::of) else { return Map::default() };
    match Cached::read(&config.cache, &config.private_key, &config.url) {
        Ok(cached) => cached.map(|cached| cached.map).unwrap_or_default(),
        Err(error) => {
            eprintln!("penstock: the cached map {} is not used: {error}", config.cache.display());
            Map::default()
        }
    }
}

/// A STUN server by address or name, with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StunServer {
    /// Its address is given.
    Address(SocketAddr),
    /// Its name and port are given.
    Name(String, u16),
}

impl FromStr for StunServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self::Address(SocketAddr::new(ip, STUN_PORT)));
        }
        let (name, port) =
            text.split_once(':').map_or((text, Some(STUN_PORT)), |(name, port)| (name, port.parse().ok()));
        match port {
            Some(port @ 1..) if !name.is_empty() => Ok(Self::Name(name.to_owned(), port)),
            _ => Err("not a server such as stun.example.net, 192.0.2.1 or [2001:db8::1]:3478".to_owned()),
        }
    }
}

/// The servers' addresses; for a name, one of each IP version.
async fn servers(given: &[StunServer], outbound: &Outbound) -> Result<Vec<SocketAddr>> {
    let mut servers = vec![];
    for server in given {
        match server {
            StunServer::Address(address) => servers.push(*address),
            StunServer::Name(name, port) => {
                let named = outbound.names.resolve(name, outbound.mark).await;
                let named = named.with_context(|| format!("STUN server {name}"))?.addresses;
                let first = |ipv4: bool| named.iter().find(|address| address.is_ipv4() == ipv4);
                servers.extend([first(true), first(false)].into_iter().flatten().map(|ip| SocketAddr::new(*ip, *port)));
            }
        }
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stun_servers_have_an_address_or_a_name() {
        let address = |text: &str| Ok(StunServer::Address(text.parse().unwrap()));
        assert_eq!("192.0.2.1".parse(), address("192.0.2.1:3478"));
        assert_eq!("2001:db8::1".parse(), address("[2001:db8::1]:3478"));
        assert_eq!("[2001:db8::1]:5".parse(), address("[2001:db8::1]:5"));
        assert_eq!("stun.example".parse(), Ok(StunServer::Name("stun.example".into(), 3478)));
        assert_eq!("stun.example:5".parse(), Ok(StunServer::Name("stun.example".into(), 5)));
        for text in ["", ":5", "foo:bar", "foo:0", "foo:65536", "foo:"] {
            assert!(text.parse::<StunServer>().is_err(), "{text}");
        }
    }
}
