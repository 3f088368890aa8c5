//! Makes a profile from a `wg-quick` file, and lists what a profile cannot take over.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Serialize;

use super::{ExtraKind, File, Peer, shown};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::profile::{Endpoint, MTU_RANGE, Name, PEER_NAME_LIMIT};

/// The devices that the profile is about; a wg-quick file does not name them.
#[derive(Clone, Debug)]
pub struct Site {
    /// The gateway's name.
    pub name: Name,
    /// The WAN interface.
    pub wan: String,
    /// The LAN interfaces.
    pub lan: Vec<String>,
    /// The site's subnets.
    pub subnets: Vec<IpNet>,
}

/// The result of an import.
pub struct Imported {
    /// The profile, as JSON.
    pub profile: String,
    /// The private key, and the file beside the profile that it belongs in.
    pub private_key: (PathBuf, PrivateKey),
    /// The preshared keys, likewise.
    pub preshared_keys: Vec<(PathBuf, PresharedKey)>,
    /// What the profile cannot take over.
    pub notes: Vec<Note>,
}

/// Something that the profile cannot take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line that it is about.
    pub line: Option<usize>,
    /// What it is about.
    pub what: String,
    /// What to do instead.
    pub instead: String,
}

/// The file has no private key.
#[derive(Debug, thiserror::Error)]
#[error(
    "[Interface] has no PrivateKey, which a gateway must have; if a PostUp sets it from a file, put that key here first"
)]
pub struct NoPrivateKey;

/// Makes a profile from a file.
///
/// # Errors
/// There is no private key in the file.
pub fn import(file: File, site: &Site) -> Result<Imported, NoPrivateKey> {
    let File { private_key, listen_port, fw_mark, addresses, mtu, extras, peers } = file;
    let private_key = private_key.ok_or(NoPrivateKey)?;
    let name = site.name.as_str();
    let mut notes = Vec::new();
    let own = own_addresses(&addresses, &mut notes);
    let key_file = PathBuf::from(format!("{name}.key"));
    notes.extend(extras.iter().filter_map(|extra| {
        let (line, what) = (Some(extra.line), format!("{} = {}", extra.kind, shown(&extra.value)));
        instead(extra.kind, &extra.value, name).map(|instead| Note { line, what, instead })
    }));
    let mtu = mtu.and_then(|mtu| {
        let sound = u16::try_from(mtu).ok().filter(|mtu| MTU_RANGE.contains(mtu));
        if sound.is_none() {
            let (least, most) = (MTU_RANGE.start(), MTU_RANGE.end());
            let instead = format!("Mtu must be from {least} to {most}; without it, it follows the WAN's MTU less 80");
            notes.push(Note { line: None, what: format!("MTU = {mtu}"), instead });
        }
        sound
    });
    let mut preshared_keys = Vec::new();
    let peers = peers_of(peers, private_key.public_key(), &own, &site.subnets, &mut notes);
    let profile = Profile {
        name,
        local_port: listen_port.filter(|port| *port != 0),
        virtual_address: own,
        private_key_file: &key_file,
        wan: Wan { interface: &site.wan, mode: "auto" },
        lan: Lan { interfaces: &site.lan, mode: "auto", subnets: &site.subnets },
        mtu,
        fw_mark: fw_mark.filter(|mark| *mark != 0),
        peers: peers.into_iter().map(|peer| ProfilePeer::of(peer, name, &mut preshared_keys)).collect(),
    };
    // There are only names, numbers and text, all of which can be written as JSON.
    let profile = serde_json::to_string_pretty(&profile).unwrap_or_default() + "\n";
    notes.sort_by_key(|note| note.line);
    Ok(Imported { profile, private_key: (key_file, private_key), preshared_keys, notes })
}

/// A profile as written, with the fields that a wg-quick file can provide.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Profile<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_port: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    virtual_address: Vec<IpAddr>,
    private_key_file: &'a Path,
    wan: Wan<'a>,
    lan: Lan<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fw_mark: Option<u32>,
    peers: Vec<ProfilePeer>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Wan<'a> {
    interface: &'a str,
    mode: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Lan<'a> {
    interfaces: &'a [String],
    mode: &'a str,
    subnets: &'a [IpNet],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProfilePeer {
    name: Option<String>,
    public_key: Option<PublicKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preshared_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
    #[serde(rename = "AllowedIPs")]
    allowed_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    persistent_keepalive: Option<u16>,
}

impl ProfilePeer {
    fn of(peer: Peer, gateway: &str, preshared_keys: &mut Vec<(PathBuf, PresharedKey)>) -> Self {
        let preshared_key_file = peer.preshared_key.map(|key| {
            let file = PathBuf::from(format!("{gateway}-{}.psk", preshared_keys.len() + 1));
            preshared_keys.push((file.clone(), key));
            file
        });
        Self {
            name: peer.name,
            public_key: peer.public_key,
            preshared_key_file,
            endpoint: peer.endpoint,
            allowed_ips: peer.allowed_ips,
            persistent_keepalive: peer.persistent_keepalive.filter(|seconds| *seconds != 0),
        }
    }
}

/// One address of each family. The networks that they are in do not become the device's.
fn own_addresses(given: &[IpNet], notes: &mut Vec<Note>) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = Vec::new();
    for address in given {
        let what = format!("Address = {address}");
        if own.iter().any(|other| other.is_ipv4() == address.addr().is_ipv4()) {
            let instead = "a gateway has one address of each family in the tunnel".to_owned();
            notes.push(Note { line: None, what, instead });
            continue;
        }
        own.push(address.addr());
        if address.prefix_len() < address.max_prefix_len() {
            let network = address.trunc();
            let instead = format!(
                "the gateway has {} alone; of {network} it reaches what is in a peer's AllowedIPs",
                address.addr()
            );
            notes.push(Note { line: None, what, instead });
        }
    }
    own
}

/// What to do instead of what only wg-quick does; `None` if it would change nothing.
fn instead(kind: ExtraKind, value: &str, name: &str) -> Option<String> {
    let unit = |when| {
        format!(
            "the gateway switches forwarding on and sets routes by itself; anything else that the command does belongs in \
             {when}= of a drop-in of penstock@.service (`systemctl edit`), with {name} for %i"
        )
    };
    Some(match kind {
        ExtraKind::PreUp => unit("ExecStartPre"),
        ExtraKind::PostUp => unit("ExecStartPost"),
        ExtraKind::PreDown => unit("ExecStop"),
        ExtraKind::PostDown => unit("ExecStopPost"),
        ExtraKind::Dns => format!(
            "the gateway leaves name servers alone; with systemd-resolved `resolvectl dns {name} …` sets them while \
             it runs"
        ),
        ExtraKind::Table if value.eq_ignore_ascii_case("auto") => return None,
        ExtraKind::Table => "the gateway always routes AllowedIPs, in a table of its own (Table, 47100); to keep a \
             prefix out of the tunnel leave it out of AllowedIPs"
            .to_owned(),
        ExtraKind::SaveConfig if value.eq_ignore_ascii_case("false") => return None,
        ExtraKind::SaveConfig => {
            "a gateway that stops writes nothing; `penstock save` writes what `wg set` changed into the profile"
                .to_owned()
        }
    })
}

/// The peers that a profile can have: each key once, each prefix once, no prefix that is this site's.
fn peers_of(
    given: Vec<Peer>,
    own_key: PublicKey,
    own: &[IpAddr],
    subnets: &[IpNet],
    notes: &mut Vec<Note>,
) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    let mut places: HashMap<PublicKey, usize> = HashMap::new();
    for mut peer in given {
        let Some(key) = peer.public_key else { continue };
        let mut note = |what: String, instead: &str| {
            notes.push(Note { line: Some(peer.line), what, instead: instead.to_owned() });
        };
        if key == own_key {
            note("a peer with this site's own key".to_owned(), "it is left out, as WireGuard does");
            continue;
        }
        peer.allowed_ips.retain(|prefix| {
            let ours = subnets.iter().any(|subnet| subnet.contains(prefix))
                || own.iter().any(|address| IpNet::from(*address) == *prefix);
            if ours {
                note(format!("AllowedIPs = {prefix}"), "it lies in this gateway's own network, so it is left out");
            }
            !ours
        });
        // As with `wg`, a second section of a peer continues the first.
        let place = *places.entry(key).or_insert_with(|| {
            peers.push(Peer { allowed_ips: Vec::new(), ..Peer::new(peer.line, peer.name.take()) });
            peers.len() - 1
        });
        let known = &mut peers[place];
        known.public_key = Some(key);
        known.preshared_key = peer.preshared_key.take().or(known.preshared_key.take());
        known.endpoint = peer.endpoint.take().or(known.endpoint.take());
        known.persistent_keepalive = peer.persistent_keepalive.or(known.persistent_keepalive);
        known.allowed_ips.append(&mut peer.allowed_ips);
    }
    // The last peer that claims a prefix gets it, as with `wg`.
    let mut claimed = HashSet::new();
    for peer in peers.iter_mut().rev() {
        peer.allowed_ips.reverse();
        peer.allowed_ips.retain(|prefix| {
            let first = claimed.insert(*prefix);
            if !first {
                let what = format!("AllowedIPs = {prefix}");
                let instead = "it is given again below, and the last one counts".to_owned();
                notes.push(Note { line: Some(peer.line), what, instead });
            }
            first
        });
        peer.allowed_ips.reverse();
    }
    name_all(&mut peers);
    peers
}

/// Gives each peer a unique name.
fn name_all(peers: &mut [Peer]) {
    let mut taken = HashSet::new();
    for (at, peer) in peers.iter_mut().enumerate() {
        let given = peer.name.take().unwrap_or_default();
        let mut name: String = given.chars().filter(|c| !c.is_control()).take(PEER_NAME_LIMIT).collect();
        if name.trim().is_empty() || !taken.insert(name.clone()) {
            let numbers = at + 1..;
            // There are as many candidates as there are numbers.
            name = numbers.map(|n| format!("peer-{n}")).find(|name| !taken.contains(name)).unwrap_or_default();
            taken.insert(name.clone());
        }
        peer.name = Some(name);
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}", self.what, self.instead)
    }
}
