//! `import` and `export`: from and to files of wg-quick.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::json;
use zeroize::Zeroizing;

use super::keys::warn_if_exposed;
use super::{Gateway, config, environment, network, prefix};
use crate::ground::Network;
use crate::key::{KeyFileError, PrivateKey, read_key_file};
use crate::netlink::{Interface, RouteKind};
use crate::profile::{DEFAULT_PATH, Endpoint, Environment, FILE_LIMIT, LocalPort, Name, Peer, Profile, add_peer};
use crate::sealed;
use crate::wg_quick::export::{export as file_for, public};
use crate::wg_quick::import::{Imported, Site, import as profile_of};
use crate::wg_quick::parse;

/// The most peers that are listed in a sentence.
const FEW: usize = 8;

/// The arguments of `import`.
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// The file, such as /etc/wireguard/wg0.conf
    file: PathBuf,
    /// The gateway's name; the file's by default
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The interface towards the other sites; that of the default route by default
    #[arg(long, value_name = "INTERFACE")]
    wan: Option<String>,
    /// The interfaces towards this site
    #[arg(long, value_name = "INTERFACE,…", value_delimiter = ',')]
    lan: Vec<String>,
    /// The subnets of this site
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', value_parser = prefix)]
    subnets: Vec<IpNet>,
}

/// The arguments of `export`.
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The peer's name in the profile
    peer: String,
    /// Make a key pair for a new peer of this name and add the peer to the profile. The private key is printed and
    /// not kept anywhere
    #[arg(long, requires = "allowed_ips")]
    new: bool,
    /// The addresses and subnets of the new peer
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', value_parser = prefix, requires = "new")]
    allowed_ips: Vec<IpNet>,
    /// A file with the peer's private key, if you have it; otherwise a comment takes its place
    #[arg(long, value_name = "FILE", conflicts_with = "new")]
    private_key_file: Option<PathBuf>,
    /// Where the peer finds this gateway; its WAN address by default, if that is a public one
    #[arg(long, value_name = "HOST[:PORT]")]
    endpoint: Option<String>,
    /// Print a QR code, as the WireGuard apps scan it
    #[arg(long)]
    qr: bool,
}

pub(super) fn import(path: &Path, arguments: Import) -> Result<()> {
    let Import { file, name, wan, lan, subnets } = arguments;
    let shown = file.display();
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_LIMIT as usize + 1));
    let opened = File::open(&file).with_context(|| shown.to_string())?;
    let status = opened.metadata().with_context(|| shown.to_string())?;
    if status.is_file() && status.mode() & 0o007 != 0 {
        eprintln!("penstock: {shown} holds keys, and all users can read it: `chmod 600 {shown}`");
    }
    opened.take(FILE_LIMIT + 1).read_to_end(&mut text).with_context(|| shown.to_string())?;
    let parsed = parse(&text).with_context(|| shown.to_string())?;

    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = Name::try_from(name.unwrap_or_else(|| stem.to_owned()))
        .map_err(|e| anyhow::anyhow!("{e}; give another with --name"))?;
    let wan = match wan {
        Some(wan) => wan,
        None => default_interface()
            .context("there is no default route that shows which interface is the WAN: give --wan")?,
    };
    let imported = profile_of(parsed, &Site { name, wan, lan, subnets }).with_context(|| shown.to_string())?;

    let path = std::path::absolute(path)?;
    let mut keys = |file: &Path| key_of(&imported, &path, file);
    let profile = Profile::parse(imported.profile.as_bytes(), &path, &Environment::default(), &mut keys)
        .context("the profile made from this file would not be valid, so nothing was written")?;
    write_all(&imported, &path)?;
    tell(&imported, &profile)
}

/// The key that will be put into a file beside the profile.
fn key_of(imported: &Imported, profile: &Path, file: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let name = file.strip_prefix(profile.parent().unwrap_or(Path::new("/"))).unwrap_or(file);
    if name == imported.private_key.0 {
        return Ok(imported.private_key.1.to_base64());
    }
    let key = imported.preshared_keys.iter().find(|(file, _)| file == name);
    key.map(|(_, key)| key.to_base64()).ok_or(KeyFileError::Unreadable(io::ErrorKind::NotFound.into()))
}

/// Writes the key files, and the profile last. Nothing is overwritten, and nothing is left behind if anything fails.
fn write_all(imported: &Imported, profile: &Path) -> Result<()> {
    let directory = profile.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let (file, key) = &imported.private_key;
    let preshared = imported.preshared_keys.iter().map(|(file, key)| (directory.join(file), key.to_base64()));
    let keys = [(directory.join(file), key.to_base64())].into_iter().chain(preshared);
    let lines = keys.map(|(file, key)| (file, Zeroizing::new(format!("{}\n", *key))));
    let mut written: Vec<PathBuf> = Vec::new();
    for (file, text) in lines.chain([(profile.to_owned(), Zeroizing::new(imported.profile.clone()))]) {
        if let Err(error) = sealed::create(&file, text.as_bytes()) {
            written.iter().for_each(|file| drop(std::fs::remove_file(file)));
            let shown = file.display();
            if error.kind() == io::ErrorKind::AlreadyExists {
                bail!(
                    "{shown} exists already, so nothing was written: --profile names another file, --name another key"
                );
            }
            return Err(error).with_context(|| format!("{shown}; nothing was written"));
        }
        written.push(file);
    }
    Ok(())
}

fn tell(imported: &Imported, profile: &Profile) -> Result<()> {
    let mut out = io::stdout().lock();
    let peers = match profile.peers.len() {
        1 => "1 peer".to_owned(),
        count => format!("{count} peers"),
    };
    let (path, name, wan) = (&profile.path, &profile.name, &profile.wan.interface);
    writeln!(out, "{}: gateway {name} with {peers}, WAN {wan}", path.display())?;
    if profile.lan.interfaces.is_empty() {
        writeln!(out, "The profile has no LAN. With --lan and --subnets, the gateway would forward for this site.")?;
    }
    if !imported.notes.is_empty() {
        writeln!(out, "Not taken over:")?;
        for note in &imported.notes {
            writeln!(out, "  {note}")?;
        }
    }
    let given = match path == Path::new(DEFAULT_PATH) {
        true => String::new(),
        false => format!(" --profile {}", path.display()),
    };
    writeln!(out, "Before `penstock start{given}`: `wg-quick down {name}`, and disable what starts it at boot.")?;
    Ok(())
}

pub(super) fn export(path: &Path, arguments: Export) -> Result<()> {
    let Export { peer: name, new, allowed_ips, private_key_file, endpoint, qr } = arguments;
    let mut text = config::text(path)?;
    let environment = environment(path);
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    let mut private_key = private_key_file.as_deref().map(read_private_key).transpose()?;
    if new {
        let profile = Profile::parse(text.as_bytes(), &path, &environment, &mut read_key_file)?;
        if find(&profile, &name).is_ok() {
            bail!("the profile already has a peer {name}; leave out --new to print its file");
        }
        let key = PrivateKey::generate().context("no randomness")?;
        let peer = json!({ "Name": name, "PublicKey": key.public_key(), "AllowedIPs": allowed_ips });
        text = add_peer(&text, peer)?;
        private_key = Some(key);
    }
    let profile = Profile::parse(text.as_bytes(), &path, &environment, &mut read_key_file)?;
    let peer = find(&profile, &name)?;
    if let Some(key) = &private_key
        && key.public_key() != peer.public_key
    {
        bail!("this private key is not {name}'s: it belongs to {}", key.public_key());
    }
    if qr && private_key.is_none() {
        bail!("a QR code without the private key is useless: give --private-key-file, or --new for a new peer");
    }
    let endpoint = endpoint_of(&profile, endpoint.as_deref())?;
    if endpoint.is_none() && peer.endpoint.is_none() {
        eprintln!("penstock: neither side knows where the other is: give with --endpoint where {name} finds this one");
    }
    let file = file_for(&profile, peer, private_key.as_ref(), endpoint.as_ref());
    let shown = if qr { Zeroizing::new(qr_code(&file)?) } else { file };
    if new {
        config::write(&path, &text)?;
        if Gateway::of(&path)?.is_running() {
            eprintln!("penstock: {name} is in the profile; `penstock reload` makes {} use it", profile.name);
        }
    }
    let stdout = io::stdout();
    if private_key.is_some() || peer.preshared_key.is_some() {
        warn_if_exposed(&stdout);
    }
    stdout.lock().write_all(shown.as_bytes())?;
    Ok(())
}

fn find<'a>(profile: &'a Profile, name: &str) -> Result<&'a Peer> {
    let found = profile.peers.iter().find(|peer| peer.name == name);
    found.with_context(|| {
        let names: Vec<_> = profile.peers.iter().take(FEW).map(|peer| peer.name.as_str()).collect();
        let peers = match (names.join(", "), profile.peers.len()) {
            (_, 0) => "no peers at all".to_owned(),
            (names, ..=FEW) => format!("only {names}"),
            (names, all) => format!("{names} and {} more", all - FEW),
        };
        format!("the profile has no peer {name}; it has {peers}. --new makes one")
    })
}

fn read_private_key(file: &Path) -> Result<PrivateKey> {
    let text = read_key_file(file).with_context(|| file.display().to_string())?;
    text.parse().with_context(|| file.display().to_string())
}

/// Where the peer reaches this gateway: as given, else at the WAN's public address.
fn endpoint_of(profile: &Profile, given: Option<&str>) -> Result<Option<Endpoint>> {
    let port = match profile.local_port {
        LocalPort::Pinned(port) => Some(port),
        LocalPort::Random => None,
    };
    let parse = |text: String| Endpoint::try_from(text).map_err(anyhow::Error::msg);
    let Some(given) = given else {
        let Some(port) = port else { return Ok(None) };
        let wan = |network: &Network| {
            let wan = network.named(&profile.wan.interface)?.index;
            public(network.addresses_of(wan).map(|address| address.address))
        };
        let address = network().ok().as_ref().and_then(wan);
        return Ok(address.map(|address| Endpoint::Address((address, port).into())));
    };
    if let Ok(endpoint) = Endpoint::try_from(given.to_owned()) {
        return Ok(Some(endpoint));
    }
    let Some(port) = port else { bail!("the profile has no LocalPort, so --endpoint needs a port: {given}:47100") };
    // A bare IPv6 address is put into brackets before a port.
    let host = if given.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{given}]") } else { given.to_owned() };
    parse(format!("{host}:{port}")).map(Some)
}

fn qr_code(file: &str) -> Result<String> {
    // Comments are for people, and would make the code larger.
    let lines = file.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let text = Zeroizing::new(lines.collect::<Vec<_>>().join("\n"));
    let code = QrCode::new(text.as_bytes()).context("too much for a QR code; leave out prefixes")?;
    // Light on dark, like most terminals.
    let image = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Ok(image + "\n")
}

/// The interface of the default route.
fn default_interface() -> Option<String> {
    let network = network().ok()?;
    let usable = network.default_routes().filter(|route| route.kind == RouteKind::Unicast);
    let best = usable.min_by_key(|route| (!route.destination.addr().is_ipv4(), route.metric))?;
    network.interface(best.interface?).map(|Interface { name, .. }| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_there_is_told_with_those_that_are() {
        let complaint = |count: u8| {
            let peer = |n: u8| json!({ "Name": format!("site-{n}"), "PublicKey": key(n).public_key() });
            let peers: Vec<_> = (0..count).map(peer).collect();
            let profile = json!({ "Name": "a", "PrivateKeyFile": "k", "Wan": { "Interface": "eth0" }, "Peers": peers });
            let text = profile.to_string();
            let mut read_key = |_: &Path| Ok(key(100).to_base64());
            let profile =
                Profile::parse(text.as_bytes(), "/p".as_ref(), &Environment::default(), &mut read_key).unwrap();
            find(&profile, "nobody").unwrap_err().to_string()
        };
        assert_eq!(complaint(0), "the profile has no peer nobody; it has no peers at all. --new makes one");
        assert_eq!(complaint(2), "the profile has no peer nobody; it has only site-0, site-1. --new makes one");
        assert!(complaint(10).contains("site-7 and 2 more. --new"), "{}", complaint(10));
    }

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes([byte + 8; 32])
    }

    #[test]
    fn a_file_becomes_a_square_without_its_comments() {
        let shown = qr_code("# berlin\n[Interface]\nPrivateKey = aGVsbG8=\n").unwrap();
        let lines: Vec<&str> = shown.lines().collect();
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width), "{shown}");
        // A character has two dots, one above the other. A code has 21 dots or more a side, and a margin.
        assert_eq!(lines.len(), width.div_ceil(2), "{shown}");
        assert!(width > 21 && [' ', '█', '▀', '▄'].iter().all(|dots| shown.contains(*dots)), "{shown}");
        assert_eq!(shown, qr_code("[Interface]\nPrivateKey = aGVsbG8=\n").unwrap());
        assert_ne!(shown, qr_code("[Interface]\nPrivateKey = aGVsbG9=\n").unwrap());
        assert!(qr_code(&"a".repeat(10_000)).is_err());
    }
}
