//! A `wg-quick` file for a peer that runs plain WireGuard: the profile as seen from the other side.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::key::PrivateKey;
use crate::profile::{Endpoint, Peer, Profile};

/// Seconds between keepalives, so that the peer's NAT keeps its mapping.
const KEEPALIVE: u32 = 25;
/// Characters of the largest file without its prefixes.
const ROOM: usize = 2048;
/// Characters per prefix in a list.
const PREFIX_ROOM: usize = 48;

/// The file for `peer`. Without a private key it has a comment instead, for whoever has the key to fill in. `endpoint`
/// is where the peer reaches this gateway, if it can.
#[must_use]
pub fn export(
    profile: &Profile,
    peer: &Peer,
    private_key: Option<&PrivateKey>,
    endpoint: Option<&Endpoint>,
) -> Zeroizing<String> {
    let ours = allowed_ips(profile, peer);
    let room = ROOM + PREFIX_ROOM * (ours.len() + peer.allowed_ips.len());
    // Allocated in advance: a growing buffer would leave copies of the secrets behind.
    let mut text = Zeroizing::new(String::with_capacity(room));
    // Writing to a String cannot fail.
    let _ = write(&mut text, profile, peer, private_key, endpoint, &ours);
    debug_assert!(text.len() <= room);
    text
}

fn write(
    text: &mut String,
    profile: &Profile,
    peer: &Peer,
    private_key: Option<&PrivateKey>,
    endpoint: Option<&Endpoint>,
    ours: &[IpNet],
) -> std::fmt::Result {
    writeln!(text, "# {}, a site of the Penstock gateway {}", peer.name, profile.name)?;
    writeln!(text, "[Interface]")?;
    match private_key {
        Some(key) => writeln!(text, "PrivateKey = {}", *key.to_base64())?,
        None => writeln!(text, "# PrivateKey = the one that belongs to {}", peer.public_key)?,
    }
    let addresses: Vec<String> = hosts(&peer.allowed_ips).map(|address| address.to_string()).collect();
    match addresses.as_slice() {
        [] => writeln!(text, "# Address = an address inside AllowedIPs that this gateway has for the peer")?,
        addresses => writeln!(text, "Address = {}", addresses.join(", "))?,
    }
    if let Some(endpoint) = &peer.endpoint {
        writeln!(text, "ListenPort = {}", endpoint.port())?;
    }
    if let Some(mtu) = profile.mtu {
        writeln!(text, "MTU = {mtu}")?;
    }
    writeln!(text, "\n[Peer]\n# Name = {}", profile.name)?;
    writeln!(text, "PublicKey = {}", profile.private_key.public_key())?;
    if let Some(key) = &peer.preshared_key {
        writeln!(text, "PresharedKey = {}", *key.to_base64())?;
    }
    let prefixes: Vec<String> = ours.iter().map(ToString::to_string).collect();
    writeln!(text, "AllowedIPs = {}", prefixes.join(", "))?;
    if let Some(endpoint) = endpoint {
        writeln!(text, "Endpoint = {endpoint}\nPersistentKeepalive = {KEEPALIVE}")?;
    }
    Ok(())
}

/// What the peer reaches through this gateway: its address and subnets and, with `Transit`, those of the other peers.
fn allowed_ips(profile: &Profile, peer: &Peer) -> Vec<IpNet> {
    let own = profile.virtual_addresses.iter().copied().map(IpNet::from);
    let others = profile.peers.iter().filter(|other| profile.transit && other.public_key != peer.public_key);
    own.chain(profile.lan.announced()).chain(others.flat_map(|other| other.allowed_ips.iter().copied())).collect()
}

/// The prefixes that are single hosts; the first of each family.
fn hosts(prefixes: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let host =
        |v4: bool| prefixes.iter().copied().find(|p| p.prefix_len() == p.max_prefix_len() && p.addr().is_ipv4() == v4);
    [host(true), host(false)].into_iter().flatten()
}

/// Where peers anywhere can reach a gateway with these addresses: the first one that is not private.
#[must_use]
pub fn public(addresses: impl IntoIterator<Item = IpAddr>) -> Option<IpAddr> {
    addresses.into_iter().find(|address| match address {
        IpAddr::V4(a) => {
            let shared = a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64;
            !(a.is_private() || a.is_loopback() || a.is_link_local() || a.is_unspecified() || shared)
        }
        IpAddr::V6(a) => a.segments()[0] & 0xe000 == 0x2000,
    })
}
