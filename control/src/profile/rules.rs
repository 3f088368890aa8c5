//! How fields must agree with each other, and the resulting profile.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use penstock_connect::Trust;
use penstock_proto::coordination::FingerprintError;
use penstock_proto::coordination::limits::SUBNETS_LIMIT;
use penstock_proto::trust::PublicKeyError;

use super::document::{LanDocument, PeerDocument, Prefix, Source, Subnet};
use super::firewall::{self, Firewall};
use super::name::check_interface;
use super::position::FieldPath;
use super::{
    ALLOWED_IP_LIMIT, Coordinator, INTERFACE_LIMIT, Lan, LanMode, LocalPort, MTU_RANGE, PEER_LIMIT, PEER_NAME_LIMIT,
    Peer, Profile, ProfileError, ReadKey, SUBNET_LIMIT, TAG_LIMIT, WORKER_LIMIT, Wan, access_hint,
};
use crate::ground::{DEFAULT_MARK, DEFAULT_TABLE};
use crate::key::{KeyError, KeyFileError, PrivateKey, PublicKey};

/// Checks everything that needs no key file.
pub(super) fn check(source: &Source<'_>) -> Result<(), ProfileError> {
    let document = &source.document;
    if let Some(metrics) = document.metrics.filter(|metrics| metrics.port() == 0) {
        let sentence = format!("{metrics} has port 0, which cannot be connected to; choose another, such as 9586");
        return Err(source.error(FieldPath::of(&["Metrics"]), sentence));
    }
    if let Some(workers) = document.workers.filter(|&workers| workers > WORKER_LIMIT) {
        let sentence = format!("{workers} workers are more than the limit of {WORKER_LIMIT}");
        return Err(source.error(FieldPath::of(&["Workers"]), sentence));
    }
    if let Some(mtu) = document.mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
        let sentence = format!("{mtu} is not from {} to {}", MTU_RANGE.start(), MTU_RANGE.end());
        return Err(source.error(FieldPath::of(&["Mtu"]), sentence));
    }
    // RT_TABLE_COMPAT to RT_TABLE_LOCAL (rtnetlink.h) belong to the system.
    if let Some(table) = document.table.filter(|table| *table == 0 || (252..=255).contains(table)) {
        let sentence = format!("{table} is reserved by the system; choose another number, such as {DEFAULT_TABLE}");
        return Err(source.error(FieldPath::of(&["Table"]), sentence));
    }
    if document.fw_mark == Some(0) {
        return Err(source.error(FieldPath::of(&["FwMark"]), "0 marks nothing; choose another number"));
    }
    coordinator(source)?;
    check_virtual_addresses(source)?;
    check_interfaces(source)?;
    check_peers(source)?;
    firewall::check(source)?;
    check_prefixes(source)
}

/// One fingerprint, or two separated by a comma while the certificate is being replaced.
fn pins(text: &str) -> Result<Trust, FingerprintError> {
    let Some((first, second)) = text.split_once(',') else { return text.trim().parse().map(Trust::Pinned) };
    Ok(Trust::Rolling([first.trim().parse()?, second.trim().parse()?]))
}

/// The coordinator, if there is one.
fn coordinator(source: &Source<'_>) -> Result<Option<Coordinator>, ProfileError> {
    let Some(document) = &source.document.coordinator else { return Ok(None) };
    let field = |name| FieldPath::of(&["Coordinator", name]);
    let url = document.url.parse().map_err(|error| source.error(field("Url"), error))?;
    let trust = match (&document.fingerprint, &document.ca_file) {
        (Some(_), Some(_)) => {
            let sentence = "a certificate that is pinned by Fingerprint needs no authorities: leave one of them out";
            return Err(source.error(field("CaFile"), sentence));
        }
        (Some(text), None) => pins(text).map_err(|error| source.error(field("Fingerprint"), error))?,
        (None, file) => {
            let directory = source.path.parent().unwrap_or(Path::new(""));
            Trust::Authorities(file.as_ref().map(|file| directory.join(file)))
        }
    };
    let authority = document.authority.as_deref().map(str::parse).transpose();
    let authority = authority.map_err(|error: PublicKeyError| source.error(field("Authority"), error))?;
    let subnets = lan(source).subnets.as_ref().map_or(0, Vec::len);
    if subnets > SUBNETS_LIMIT {
        let sentence = format!("{subnets} subnets are more than the {SUBNETS_LIMIT} that a coordinator takes");
        return Err(source.error(FieldPath::of(&["Lan", "Subnets"]), sentence));
    }
    Ok(Some(Coordinator { url, trust, authority }))
}

fn check_virtual_addresses(source: &Source<'_>) -> Result<(), ProfileError> {
    let addresses = virtual_addresses(source);
    for (at, address) in addresses.iter().enumerate() {
        let field = FieldPath::of(&["VirtualAddress"]);
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(source.error(field, format_args!("{address} cannot be a gateway's address")));
        }
        if addresses[..at].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(source.error(field, "at most one IPv4 and one IPv6 address"));
        }
    }
    Ok(())
}

fn check_interfaces(source: &Source<'_>) -> Result<(), ProfileError> {
    let document = &source.document;
    let lan = lan(source);
    let wan = &document.wan.interface;
    let interfaces = lan.interfaces.as_deref().unwrap_or_default();
    let field = FieldPath::of(&["Lan", "Interfaces"]);
    if interfaces.len() > INTERFACE_LIMIT {
        let sentence = format!("{} interfaces are more than the limit of {INTERFACE_LIMIT}", interfaces.len());
        return Err(source.error(field, sentence));
    }
    if interfaces.is_empty() && lan.mode == Some(LanMode::Xdp) {
        return Err(source.error(FieldPath::of(&["Lan", "Mode"]), "xdp needs an interface in Lan.Interfaces"));
    }
    let mut seen = HashMap::from([(wan.as_str(), FieldPath::of(&["Wan", "Interface"]))]);
    for name in interfaces {
        let at = seen.len() - 1;
        if let Some(other) = seen.insert(name, field.clone().index(at)) {
            return Err(source.error(field.index(at), format_args!("{name} is already {other}")));
        }
    }
    for (name, field) in seen {
        check_interface(name).map_err(|sentence| source.error(field.clone(), sentence))?;
        if name == document.name.as_str() {
            let sentence = format!("{name} is the gateway's Name, which its tun device will have");
            return Err(source.error(field, sentence));
        }
    }
    Ok(())
}

fn check_peers(source: &Source<'_>) -> Result<(), ProfileError> {
    let peers = peers(source);
    if peers.len() > PEER_LIMIT {
        let sentence = format!("{} peers are more than the limit of {PEER_LIMIT}", peers.len());
        return Err(source.error(FieldPath::of(&["Peers"]), sentence));
    }
    let mut names = HashSet::new();
    let mut keys: HashMap<PublicKey, &str> = HashMap::new();
    for (at, peer) in peers.iter().enumerate() {
        let name = peer.name.as_str();
        let field = |key| peer_field(at).key(key);
        if !is_readable(name) {
            let sentence = format!("{name:?} is not a name of 1 to {PEER_NAME_LIMIT} printable characters");
            return Err(source.error(field("Name"), sentence));
        }
        if !names.insert(name) {
            return Err(source.error(field("Name"), format_args!("there are two peers named {name}")));
        }
        let tags = peer.tags.as_ref().map_or(0, Vec::len);
        if tags > TAG_LIMIT {
            let sentence = format!("{tags} tags are more than the limit of {TAG_LIMIT}");
            return Err(source.error(field("Tags"), sentence));
        }
        if let Some(other) = keys.insert(peer.public_key, name) {
            let sentence = format!("{name} has the same public key as {other}");
            return Err(source.error(field("PublicKey"), sentence));
        }
    }
    Ok(())
}

/// Every prefix leads to one place. A peer's prefix may contain another's, or this site's, which then win by length. It
/// must not equal one of this site's or lie inside it, since the site would never send anything there.
fn check_prefixes(source: &Source<'_>) -> Result<(), ProfileError> {
    let lan = lan(source);
    let subnets = lan.subnets.as_deref().unwrap_or_default();
    if subnets.len() > SUBNET_LIMIT {
        let sentence = format!("{} subnets are more than the limit of {SUBNET_LIMIT}", subnets.len());
        return Err(source.error(FieldPath::of(&["Lan", "Subnets"]), sentence));
    }
    let mut local: HashMap<IpNet, &str> = HashMap::new();
    local.extend(virtual_addresses(source).iter().map(|&address| (IpNet::from(address), "VirtualAddress")));
    for (at, Subnet { prefix, shown }) in subnets.iter().enumerate() {
        let field = || FieldPath::of(&["Lan", "Subnets"]).index(at);
        for subnet in [prefix].into_iter().chain(shown) {
            if local.insert(*subnet, "Lan.Subnets") == Some("Lan.Subnets") {
                return Err(source.error(field(), format_args!("{subnet} is listed twice")));
            }
        }
        if let Some(shown) = shown.filter(|shown| !are_alike(prefix, shown)) {
            let sentence =
                format!("{prefix} cannot be shown as {shown}: both must have the same length and IP version");
            return Err(source.error(field(), sentence));
        }
    }
    let mut remote: HashMap<IpNet, &str> = HashMap::new();
    for (peer_at, peer) in peers(source).iter().enumerate() {
        let name = peer.name.as_str();
        for (at, Prefix(prefix)) in peer.allowed_ips.iter().flatten().enumerate() {
            let field = || peer_field(peer_at).key("AllowedIPs").index(at);
            if let Some((ours, of)) = covering(&local, *prefix) {
                let sentence = format!("{prefix} of {name} lies in this gateway's own {ours} ({of})");
                return Err(source.error(field(), sentence));
            }
            if let Some(other) = remote.insert(*prefix, name) {
                let sentence = match other == name {
                    true => format!("{prefix} is listed twice for {name}"),
                    false => format!("{prefix} belongs to both {other} and {name}"),
                };
                return Err(source.error(field(), sentence));
            }
            if remote.len() > ALLOWED_IP_LIMIT {
                let sentence = format!("more than {ALLOWED_IP_LIMIT} allowed IPs");
                return Err(source.error(field(), sentence));
            }
        }
    }
    Ok(())
}

/// Whether each address of one prefix has a counterpart in the other.
fn are_alike(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv6() == b.addr().is_ipv6() && a.prefix_len() == b.prefix_len()
}

/// The prefix among `local` that covers `prefix`: itself or a shorter one.
fn covering<'a>(local: &HashMap<IpNet, &'a str>, prefix: IpNet) -> Option<(IpNet, &'a str)> {
    std::iter::successors(Some(prefix), IpNet::supernet)
        .find_map(|candidate| local.get(&candidate).map(|&of| (candidate, of)))
}

/// Reads the key files and puts the profile together.
pub(super) fn build(source: Source<'_>, read_key: &mut ReadKey<'_>) -> Result<Profile, ProfileError> {
    let directory = source.path.parent().unwrap_or(Path::new(""));
    let document = &source.document;
    let private_key_file = directory.join(&document.private_key_file);
    let field = FieldPath::of(&["PrivateKeyFile"]);
    let private_key: PrivateKey = read_secret(&source, &private_key_file, field, read_key)?;
    let own = private_key.public_key();

    let mut profile_peers = Vec::with_capacity(peers(&source).len());
    for (at, peer) in peers(&source).iter().enumerate() {
        if peer.public_key == own {
            let sentence = format!("{} has this gateway's own public key", peer.name);
            return Err(source.error(peer_field(at).key("PublicKey"), sentence));
        }
        let preshared_key_file = peer.preshared_key_file.as_ref().map(|file| directory.join(file));
        let preshared_key = match &preshared_key_file {
            Some(file) => Some(read_secret(&source, file, peer_field(at).key("PresharedKeyFile"), read_key)?),
            None => None,
        };
        profile_peers.push(Peer {
            name: peer.name.clone(),
            public_key: peer.public_key,
            preshared_key,
            preshared_key_file,
            endpoint: peer.endpoint.clone(),
            allowed_ips: bare(peer.allowed_ips.as_deref()),
            tags: peer.tags.clone().unwrap_or_default(),
            persistent_keepalive: keepalive(peer.persistent_keepalive),
            suite: peer.suite.unwrap_or_default(),
        });
    }
    let lan = lan(&source);
    let subnets = lan.subnets.as_deref().unwrap_or_default();
    Ok(Profile {
        path: source.path.to_owned(),
        name: document.name.clone(),
        local_port: match document.local_port {
            None | Some(0) => LocalPort::Random,
            Some(port) => LocalPort::Pinned(port),
        },
        virtual_addresses: virtual_addresses(&source).to_vec(),
        private_key,
        private_key_file,
        wan: Wan { interface: document.wan.interface.clone(), mode: document.wan.mode.unwrap_or_default() },
        lan: Lan {
            interfaces: lan.interfaces.clone().unwrap_or_default(),
            mode: lan.mode.unwrap_or_default(),
            subnets: subnets.iter().map(|subnet| subnet.prefix).collect(),
            shown: subnets.iter().filter_map(|subnet| Some((subnet.prefix, subnet.shown?))).collect(),
        },
        workers: document.workers.unwrap_or(0),
        busy_poll: document.busy_poll.unwrap_or(false),
        mtu: document.mtu,
        copy_dscp: document.copy_dscp.unwrap_or(false),
        wan_rate: document.wan_rate,
        udp_gso: document.udp_segmentation.unwrap_or(true),
        birthday_probing: document.birthday_probing.unwrap_or(true),
        port_mapping: document.port_mapping.unwrap_or(true),
        firewall: document.firewall.as_ref().map(Firewall::of),
        transit: document.transit.unwrap_or(false),
        table: document.table.unwrap_or(DEFAULT_TABLE),
        mark: document.fw_mark.unwrap_or(DEFAULT_MARK),
        cipher: document.cipher.as_ref().and_then(|cipher| cipher.implementation).unwrap_or_default(),
        coordinator: coordinator(&source)?,
        metrics: document.metrics,
        accept: document.accept.as_deref().map(|accept| bare(Some(accept))),
        peers: profile_peers,
    })
}

fn read_secret<K: FromStr<Err = KeyError>>(
    source: &Source<'_>,
    file: &Path,
    field: FieldPath,
    read_key: &mut ReadKey<'_>,
) -> Result<K, ProfileError> {
    let complain = |reason: &dyn fmt::Display| format!("{}: {reason}", file.display());
    let text = read_key(file).map_err(|error| match &error {
        KeyFileError::Unreadable(cause) => {
            source.error(field.clone(), complain(&format_args!("{error}{}", access_hint(cause)))).unreadable(cause)
        }
        _ => source.error(field.clone(), complain(&error)),
    })?;
    text.parse().map_err(|error| source.error(field, complain(&error)))
}

fn keepalive(seconds: Option<u16>) -> Option<Duration> {
    seconds.filter(|&seconds| seconds > 0).map(|seconds| Duration::from_secs(seconds.into()))
}

/// Whether it can be the name of a peer or rule: 1 to [`PEER_NAME_LIMIT`] printable characters.
pub(super) fn is_readable(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= PEER_NAME_LIMIT && !name.chars().any(char::is_control)
}

fn bare(prefixes: Option<&[Prefix]>) -> Vec<IpNet> {
    prefixes.unwrap_or_default().iter().map(|prefix| prefix.0).collect()
}

fn peer_field(at: usize) -> FieldPath {
    FieldPath::of(&["Peers"]).index(at)
}

fn peers<'a>(source: &'a Source<'_>) -> &'a [PeerDocument] {
    source.document.peers.as_deref().unwrap_or_default()
}

fn virtual_addresses<'a>(source: &'a Source<'_>) -> &'a [IpAddr] {
    source.document.virtual_address.as_ref().map_or(&[], |addresses| addresses.0.as_slice())
}

fn lan<'a>(source: &'a Source<'_>) -> &'a LanDocument {
    static NONE: LanDocument = LanDocument { interfaces: None, mode: None, subnets: None };
    source.document.lan.as_ref().unwrap_or(&NONE)
}
