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
mod rate;
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

use crate::key::{KeyFileError, PresharedKey, PrivateKey, PublicKey, read_key_file, read_key_file_or_stand_in};

pub use document::{CipherImplementation, Document, LanMode, Prefix, SuiteSetting, WanMode};
pub use edit::{EditError, add_peer, check_assignment, edit};
pub use endpoint::Endpoint;
pub use environment::{Environment, FIELDS, Field, PREFIX, Shape};
pub use error::ProfileError;
pub use firewall::Firewall;
pub use name::Name;
pub use rate::Rate;
pub use save::{Saved, Secret, Unsaved, UnsavedPeer, save};

/// The profile's path, unless `--profile` or `PENSTOCK_PROFILE` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/penstock/profiles/Universe.profile";
/// Longest profile, in bytes.
pub const FILE_LIMIT: u64 = 1 << 20;
/// The most peers.
pub const PEER_LIMIT: usize = 4096;
/// The most allowed IPs of all peers together.
pub const ALLOWED_IP_LIMIT: usize = 65_536;
/// The most LAN interfaces.
pub const INTERFACE_LIMIT: usize = 64;
/// The most LAN subnets.
pub const SUBNET_LIMIT: usize = 1024;
/// The most worker threads.
pub const WORKER_LIMIT: u16 = 256;
/// Longest name of a peer, in characters.
pub const PEER_NAME_LIMIT: usize = 64;
/// The most tags of a peer.
pub const TAG_LIMIT: usize = 64;
/// The possible sizes of inner packets: at least IPv4's minimum, at most jumbo frames.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 576..=9000;

/// A gateway's configuration.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The file it was read from.
    pub path: PathBuf,
    /// The gateway's name, which is also that of the tun device and the sockets.
    pub name: Name,
    /// The tunnel's UDP port.
    pub local_port: LocalPort,
    /// The gateway's own addresses in the tunnel: none, one, or one of each family.
    pub virtual_addresses: Vec<IpAddr>,
    /// Our private key.
    pub private_key: PrivateKey,
    /// The file that it was read from.
    pub private_key_file: PathBuf,
    /// The side of the other sites.
    pub wan: Wan,
    /// The side of this site.
    pub lan: Lan,
    /// Worker threads; 0: one per queue, at most one per core.
    pub workers: u16,
    /// Workers never sleep.
    pub busy_poll: bool,
    /// Whether ports may be guessed when one of the NATs has endpoint-dependent mapping.
    pub birthday_probing: bool,
    /// Whether the router is asked to map the tunnel's port.
    pub port_mapping: bool,
    /// Largest inner packet; `None`: the WAN's MTU less 80.
    pub mtu: Option<u16>,
    /// Whether outer packets get the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// The rate limit for everything that is sent over the WAN.
    pub wan_rate: Option<Rate>,
    /// Whether UDP segmentation offload may be used.
    pub udp_gso: bool,
    /// Which flows may pass between the sites and the LAN; `None`: all of them.
    pub firewall: Option<Firewall>,
    /// Whether other sites may pass through this one to networks that are not its own.
    pub transit: bool,
    /// The routing table of the tunnel's routes.
    pub table: u32,
    /// The firewall mark of everything that the gateway sends outside the tunnel.
    pub mark: u32,
    /// Which implementation of ChaCha20-Poly1305 is used.
    pub cipher: CipherImplementation,
    /// The coordinator that names further sites.
    pub coordinator: Option<Coordinator>,
    /// The prefixes within which a coordinator may give prefixes to other sites; `None`: private ones.
    pub accept: Option<Vec<IpNet>>,
    /// The address where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The other sites.
    pub peers: Vec<Peer>,
}

/// The tunnel's UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPort {
    /// A different one at each start.
    Random,
    /// This one and no other.
    Pinned(u16),
}

/// The side of the other sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wan {
    /// The network interface.
    pub interface: String,
    /// How it is driven.
    pub mode: WanMode,
}

/// The side of this site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// The network interfaces.
    pub interfaces: Vec<String>,
    /// How they are driven.
    pub mode: LanMode,
    /// This site's prefixes, without host bits.
    pub subnets: Vec<IpNet>,
    /// Those of them that other sites know under another prefix.
    pub shown: BTreeMap<IpNet, IpNet>,
}

impl Lan {
    /// This site's prefixes, as the other sites know them.
    pub fn announced(&self) -> Vec<IpNet> {
        self.subnets.iter().map(|subnet| *self.shown.get(subnet).unwrap_or(subnet)).collect()
    }
}

/// The coordinator that names other sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// Its URL.
    pub url: CoordinatorUrl,
    /// Which certificates it may have.
    pub trust: Trust,
    /// The authority that must have signed what it says about sites; `None`: its own word counts.
    pub authority: Option<AuthorityKey>,
}

/// Another site.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name, for people.
    pub name: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// The preshared key, if there is one.
    pub preshared_key: Option<PresharedKey>,
    /// The file that it was read from.
    pub preshared_key_file: Option<PathBuf>,
    /// Its endpoint, if known before its first message.
    pub endpoint: Option<Endpoint>,
    /// What is sent to it and accepted from it, without host bits.
    pub allowed_ips: Vec<IpNet>,
    /// What firewall rules can select it by, besides its name.
    pub tags: Vec<coordination::Name>,
    /// Interval of persistent keepalives.
    pub persistent_keepalive: Option<Duration>,
    /// The suite of its handshakes and sessions.
    pub suite: SuiteSetting,
}

/// Reads the text of a key file: [`read_key_file`], or a test's substitute.
pub type ReadKey<'a> = dyn FnMut(&Path) -> Result<Zeroizing<String>, KeyFileError> + 'a;

impl Profile {
    /// Reads the profile and the key files it names.
    ///
    /// # Errors
    /// One sentence with the place of the first error.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ProfileError> {
        Self::load_with(path, environment, &mut read_key_file)
    }

    /// The same for commands that work without secrets: a key whose file is missing is replaced by a random one.
    ///
    /// # Errors
    /// One sentence with the place of the first error.
    pub fn load_without_secrets(path: &Path, environment: &Environment) -> Result<Self, ProfileError> {
        Self::load_with(path, environment, &mut read_key_file_or_stand_in)
    }

    fn load_with(path: &Path, environment: &Environment, read_key: &mut ReadKey<'_>) -> Result<Self, ProfileError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let text = read_file(&path)?;
        Self::parse(&text, &path, environment, read_key)
    }

    /// Parses the text of a profile. Reads no file itself; `path` is the file that errors name, and that relative names
    /// of key files are relative to.
    ///
    /// # Errors
    /// One sentence with the place of the first error.
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

    /// Whether AF_XDP is required by a mode.
    #[must_use]
    pub fn demands_xdp(&self) -> bool {
        self.wan.mode == WanMode::Xdp || self.lan.mode == LanMode::Xdp
    }

    /// All prefixes of the peers.
    #[must_use]
    pub fn remote(&self) -> BTreeSet<IpNet> {
        self.peers.iter().flat_map(|peer| &peer.allowed_ips).copied().collect()
    }

    /// The fields outside `Peers` in which another profile differs, such as `Wan.Mode`. A different private key in the
    /// same file counts.
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

    /// The profile in force as a document, with defaults and overrides, and secrets only as file names.
    #[must_use]
    pub fn document(&self) -> Document {
        Document::of(self)
    }
}

/// The path of a field in JSON (RFC 6901).
fn pointer(path: &[&str]) -> String {
    path.iter().map(|key| format!("/{key}")).collect()
}

/// Reads the text of a profile, within [`FILE_LIMIT`]. A byte order mark, which editors on Windows put in front, is left
/// out.
///
/// # Errors
/// It cannot be read or is too long.
pub fn read_file(path: &Path) -> Result<Vec<u8>, ProfileError> {
    let unreadable = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "; --profile names another, `penstock import` makes one from a wg-quick file, and `man \
                 penstock.profile` has an example"
            }
            _ => access_hint(&error),
        };
        ProfileError::file(path, format_args!("{error}{hint}")).unreadable(&error)
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

/// What to do about a file that may not be read.
fn access_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied if rustix::process::geteuid().is_root() => {
            ": the service runs as root without CAP_DAC_OVERRIDE, so that it cannot read other users' files; \
             `chown root:` the file, or the directory that it is in"
        }
        std::io::ErrorKind::PermissionDenied => ": run this as root",
        _ => "",
    }
}

/// The name that a profile gives its gateway. Rules are not checked and key files are not read, so that a running
/// gateway can still be reached when they have become invalid.
///
/// # Errors
/// It cannot be read, or does not have the shape of a profile.
pub fn read_name(path: &Path, environment: &Environment) -> Result<Name, ProfileError> {
    let text = read_file(path)?;
    Ok(document::parse(&text, path, environment)?.document.name)
}
