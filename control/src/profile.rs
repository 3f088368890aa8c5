//! The profile: what the administrator wants of a gateway, parsed once into valid types.
//!
//! ```text
//! file ─► JSON ─► environment overrides ─► document (shape, types) ─► rules ─► key files ─► Profile
//! ```
//!
//! Every error names the file with line and column, or the environment variable, and the field. The
//! format is described in docs/profile.md.

mod document;
mod edit;
mod endpoint;
mod environment;
mod error;
pub mod firewall;
mod name;
mod position;
mod rules;
mod save;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use penstock_connect::{CoordinatorUrl, Trust};
use penstock_proto::coordination;
use penstock_proto::trust::AuthorityKey;
use zeroize::Zeroizing;

use crate::key::{KeyFileError, PresharedKey, PrivateKey, PublicKey, read_key_file};

pub use document::{CipherImplementation, Document, LanMode, SuiteSetting, WanMode};
pub use edit::{EditError, add_peer, edit};
pub use endpoint::Endpoint;
pub use environment::{Environment, FIELDS, Field, PREFIX, Shape};
pub use error::ProfileError;
pub use firewall::Firewall;
pub use name::Name;
pub use save::{Saved, Secret, Unsaved, UnsavedPeer, save};

/// Where the profile is unless `--profile` or `PENSTOCK_PROFILE` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/penstock/profiles/Universe.profile";
/// Bytes of a profile.
pub const FILE_LIMIT: u64 = 1 << 20;
/// Peers of a gateway.
pub const PEER_LIMIT: usize = 4096;
/// Allowed IPs of all peers together.
pub const ALLOWED_IP_LIMIT: usize = 65_536;
/// LAN interfaces.
pub const INTERFACE_LIMIT: usize = 64;
/// Subnets of the LAN.
pub const SUBNET_LIMIT: usize = 1024;
/// Worker threads.
pub const WORKER_LIMIT: u16 = 256;
/// Characters of a peer's name.
pub const PEER_NAME_LIMIT: usize = 64;
/// Tags of a peer.
pub const TAG_LIMIT: usize = 64;
/// Inner packets may be at least (IPv4's minimum) and at most (jumbo frames) so large.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 576..=9000;

/// A gateway's configuration.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The file it was read from.
    pub path: PathBuf,
    /// The gateway's name; the tun device and the sockets bear it too.
    pub name: Name,
    /// The tunnel's UDP port.
    pub local_port: LocalPort,
    /// The gateway's own addresses in the tunnel: none, one, or one of each family.
    pub virtual_addresses: Vec<IpAddr>,
    /// Our private key.
    pub private_key: PrivateKey,
    /// Where it was read from.
    pub private_key_file: PathBuf,
    /// Towards the other sites.
    pub wan: Wan,
    /// Towards this site.
    pub lan: Lan,
    /// Worker threads; 0: one per queue, at most one per core.
    pub workers: u16,
    /// Workers never sleep.
    pub busy_poll: bool,
    /// Whether ports may be guessed where one NAT's mapping is endpoint-dependent.
    pub birthday_probing: bool,
    /// Whether the router is asked to map the tunnel's port.
    pub port_mapping: bool,
    /// Largest inner packet; `None`: the WAN's MTU less 80.
    pub mtu: Option<u16>,
    /// Whether outer packets have the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// Whether UDP segmentation offload may be used.
    pub udp_gso: bool,
    /// Which flows may pass between the sites and the LAN; `None`: all.
    pub firewall: Option<Firewall>,
    /// Whether other sites may reach through this one what is not its own.
    pub transit: bool,
    /// The routing table of the tunnel's routes.
    pub table: u32,
    /// The firewall mark of what the gateway sends outside the tunnel.
    pub mark: u32,
    /// What computes ChaCha20-Poly1305.
    pub cipher: CipherImplementation,
    /// Who tells of more sites.
    pub coordinator: Option<Coordinator>,
    /// Within what the prefixes lie that a coordinator may give to other sites; `None`: private ones.
    pub accept: Option<Vec<IpNet>>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The other sites.
    pub peers: Vec<Peer>,
}

/// The tunnel's UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPort {
    /// Another one at each start.
    Random,
    /// This one or none.
    Pinned(u16),
}

/// The side of the other sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wan {
    /// The device.
    pub interface: String,
    /// How it is driven.
    pub mode: WanMode,
}

/// The side of this site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// The devices.
    pub interfaces: Vec<String>,
    /// How they are driven.
    pub mode: LanMode,
    /// This site's prefixes, without host bits.
    pub subnets: Vec<IpNet>,
    /// Those of them that the other sites know by another prefix.
    pub shown: BTreeMap<IpNet, IpNet>,
}

impl Lan {
    /// This site's prefixes as the other sites know them.
    pub fn announced(&self) -> Vec<IpNet> {
        self.subnets.iter().map(|subnet| *self.shown.get(subnet).unwrap_or(subnet)).collect()
    }
}

/// Who tells of other sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// Where it is.
    pub url: CoordinatorUrl,
    /// Whose certificate is taken for its.
    pub trust: Trust,
    /// Who must have signed what it says of sites; `None`: its own word counts.
    pub authority: Option<AuthorityKey>,
}

/// Another site.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For people.
    pub name: String,
    /// Who it is.
    pub public_key: PublicKey,
    /// A key shared beside the key pairs.
    pub preshared_key: Option<PresharedKey>,
    /// Where that was read from.
    pub preshared_key_file: Option<PathBuf>,
    /// Where it is, if known before it calls.
    pub endpoint: Option<Endpoint>,
    /// What it may send and is sent, without host bits.
    pub allowed_ips: Vec<IpNet>,
    /// What rules of the firewall select it by, besides its name.
    pub tags: Vec<coordination::Name>,
    /// Interval of keepalives.
    pub persistent_keepalive: Option<Duration>,
    /// The suite of its handshakes and sessions.
    pub suite: SuiteSetting,
}

/// Reads the text of a key file: [`read_key_file`], or what a test puts in its place.
pub type ReadKey<'a> = dyn FnMut(&Path) -> Result<Zeroizing<String>, KeyFileError> + 'a;

impl Profile {
    /// Reads the profile and the key files it names.
    ///
    /// # Errors
    /// One sentence with the place of the first thing that is wrong.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ProfileError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let text = read_file(&path)?;
        Self::parse(&text, &path, environment, &mut read_key_file)
    }

    /// Parses the text of a profile. Reads no file itself; `path` gives the place that errors name
    /// and that relative key files are relative to.
    ///
    /// # Errors
    /// One sentence with the place of the first thing that is wrong.
    pub fn parse(
        text: &[u8],
        path: &Path,
        environment: &Environment,
        read_key: &mut ReadKey<'_>,
    ) -> Result<Self, ProfileError> {
        let source = document::parse(text, path, environment)?;
        rules::check(&source)?;
        rules::build(source, read_key)
    }

    /// Whether AF_XDP is asked for, and nothing else will do.
    #[must_use]
    pub fn demands_xdp(&self) -> bool {
        self.wan.mode == WanMode::Xdp || self.lan.mode == LanMode::Xdp
    }

    /// All prefixes of the peers.
    #[must_use]
    pub fn remote(&self) -> BTreeSet<IpNet> {
        self.peers.iter().flat_map(|peer| &peer.allowed_ips).copied().collect()
    }

    /// The fields outside `Peers` that another profile has otherwise, `Wan.Mode` for example. A private key that is
    /// another one in the same file counts.
    #[must_use]
    pub fn fields_that_differ(&self, other: &Self) -> Vec<String> {
        let value = |profile: &Self| serde_json::to_value(profile.document()).unwrap_or_default();
        let (ours, theirs) = (value(self), value(other));
        let differs = |field: &&Field| match field.path {
            ["Peers"] => false,
            ["PrivateKeyFile"] if self.private_key != other.private_key => true,
            path => ours.pointer(&pointer(path)) != theirs.pointer(&pointer(path)),
        };
        FIELDS.iter().filter(differs).map(|field| field.path.join(".")).collect()
    }

    /// The profile as it is in force, defaults and overrides included, secrets as file names only.
    #[must_use]
    pub fn document(&self) -> Document {
        Document::of(self)
    }
}

/// The place of a field in JSON (RFC 6901).
fn pointer(path: &[&str]) -> String {
    path.iter().map(|key| format!("/{key}")).collect()
}

/// Reads the text of a profile, within [`FILE_LIMIT`].
///
/// # Errors
/// It cannot be read or is too long.
pub fn read_file(path: &Path) -> Result<Vec<u8>, ProfileError> {
    let file = std::fs::File::open(path).map_err(|error| ProfileError::file(path, error))?;
    let mut text = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut text).map_err(|error| ProfileError::file(path, error))?;
    Ok(text)
}

/// The name that a profile gives its gateway. Rules are not checked and key files are not read, so
/// that a running gateway can be talked to when they have become wrong.
///
/// # Errors
/// It cannot be read, or has not the shape of a profile.
pub fn read_name(path: &Path, environment: &Environment) -> Result<Name, ProfileError> {
    let text = read_file(path)?;
    Ok(document::parse(&text, path, environment)?.document.name)
}
