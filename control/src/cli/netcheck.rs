//! `netcheck`: what the network lets this gateway do, and what to change.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Gateway;
use crate::netcheck::{Plan, Target, gather, render};
use crate::profile::{DEFAULT_PATH, Environment, LocalPort, Profile};

/// RFC 8489, section 18.6.
const STUN_PORT: u16 = 3478;
/// Addresses that are taken of one name: one of each IP version.
const ADDRESSES_OF_A_NAME: usize = 2;

pub(super) fn netcheck(path: &Path, json: bool, stun: &[String], coordinator: Option<&str>) -> Result<()> {
    let plan = Plan {
        local_port: local_port(path)?,
        servers: servers(stun)?,
        coordinator: coordinator.map(str::parse).transpose()?,
        proxy: proxy()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(gather(&plan))?;
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { render(&report) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The profile's port. No profile at the usual place is no error: the network can be looked at before there is one.
fn local_port(path: &Path) -> Result<Option<u16>> {
    if path == Path::new(DEFAULT_PATH) && !path.exists() {
        return Ok(None);
    }
    let profile = Profile::load(path, &Environment::of_process())?;
    let gateway = Gateway::of(path)?;
    if gateway.is_running() {
        bail!("{} is running and holds its port; stop it first", gateway.name);
    }
    Ok(match profile.local_port {
        LocalPort::Random => None,
        LocalPort::Pinned(port) => Some(port),
    })
}

/// The STUN servers to ask: those given, by address or name, with or without a port.
fn servers(given: &[String]) -> Result<Vec<SocketAddr>> {
    let mut servers = vec![];
    for text in given {
        if let Ok(address) = text.parse() {
            servers.push(address);
        } else if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            servers.push(SocketAddr::new(ip, STUN_PORT));
        } else {
            let named =
                if text.contains(':') { text.to_socket_addrs() } else { (text.as_str(), STUN_PORT).to_socket_addrs() };
            let named: Vec<SocketAddr> = named.with_context(|| format!("STUN server {text}"))?.collect();
            let first = |ipv4: bool| named.iter().copied().find(|address| address.is_ipv4() == ipv4);
            servers.extend([first(true), first(false)].into_iter().flatten().take(ADDRESSES_OF_A_NAME));
        }
    }
    if servers.is_empty() {
        bail!("no STUN server is known: name one by --stun");
    }
    Ok(servers)
}

/// The proxy that outbound TLS shall use.
fn proxy() -> Result<Option<Target>> {
    let given = ["HTTPS_PROXY", "https_proxy"].into_iter().find_map(|name| std::env::var(name).ok());
    given.filter(|text| !text.is_empty()).map(|text| Target::proxy(&text).context("HTTPS_PROXY")).transpose()
}
