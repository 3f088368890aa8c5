//! The profile's shape as JSON: every field has a type, and nothing is compared with anything else.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fmt, str};

use ipnet::IpNet;
use penstock_connect::Trust;
use penstock_messages::{ADDRESS_WITH_PORT, Fault, hint, syntax};
use penstock_proto::coordination;
use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::environment::{Environment, FIELDS};
use super::firewall::{Firewall, FirewallDocument};
use super::position::{FieldPath, Map, Step};
use super::{Coordinator, Endpoint, FILE_LIMIT, LocalPort, Name, Profile, ProfileError, Rate};
use crate::key::PublicKey;

/// A profile as written. Absent and `null` mean the same.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)] // docs/profile.md describes the fields.
pub struct Document {
    pub name: Name,
    pub local_port: Option<u16>,
    pub virtual_address: Option<Addresses>,
    pub private_key_file: PathBuf,
    pub wan: WanDocument,
    pub lan: Option<LanDocument>,
    pub workers: Option<u16>,
    pub busy_poll: Option<bool>,
    pub mtu: Option<u16>,
    pub copy_dscp: Option<bool>,
    pub wan_rate: Option<Rate>,
    pub udp_segmentation: Option<bool>,
    pub birthday_probing: Option<bool>,
    pub port_mapping: Option<bool>,
    pub firewall: Option<FirewallDocument>,
    pub transit: Option<bool>,
    pub table: Option<u32>,
    pub fw_mark: Option<u32>,
    pub cipher: Option<CipherDocument>,
    pub coordinator: Option<CoordinatorDocument>,
    pub accept: Option<Vec<Prefix>>,
    pub peers: Option<Vec<PeerDocument>>,
    #[serde(default, deserialize_with = "address_with_port")]
    pub metrics: Option<SocketAddr>,
}

/// `Wan`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct WanDocument {
    pub interface: String,
    pub mode: Option<WanMode>,
}

/// `Lan`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LanDocument {
    pub interfaces: Option<Vec<String>>,
    pub mode: Option<LanMode>,
    pub subnets: Option<Vec<Subnet>>,
}

/// `Cipher`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CipherDocument {
    pub implementation: Option<CipherImplementation>,
}

/// `Coordinator`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CoordinatorDocument {
    pub url: String,
    pub fingerprint: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub authority: Option<String>,
}

/// One of `Peers`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PeerDocument {
    pub name: String,
    pub public_key: PublicKey,
    pub preshared_key_file: Option<PathBuf>,
    pub endpoint: Option<Endpoint>,
    #[serde(rename = "AllowedIPs")]
    pub allowed_ips: Option<Vec<Prefix>>,
    pub tags: Option<Vec<coordination::Name>>,
    pub persistent_keepalive: Option<u16>,
    pub suite: Option<SuiteSetting>,
}

/// How the WAN is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WanMode {
    /// The fastest that the interface really supports.
    #[default]
    Auto,
    /// AF_XDP, or an error.
    Xdp,
    /// A UDP socket.
    Udp,
}

/// How the LAN is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LanMode {
    /// The fastest that the interfaces really support.
    #[default]
    Auto,
    /// AF_XDP, or an error.
    Xdp,
    /// The tun device only.
    Tun,
}

/// Which implementation of ChaCha20-Poly1305 is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CipherImplementation {
    /// The fastest that the CPU supports.
    #[default]
    Auto,
    /// AVX-512 with IFMA, registers of 512 bits.
    Ifma512,
    /// AVX-512 with IFMA, registers of 256 bits.
    Ifma256,
    /// AVX2.
    Avx2,
    /// ring, one message at a time.
    Ring,
}

/// Which suite is used with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum SuiteSetting {
    /// Whichever is faster for both sites, by what they announce to the coordinator.
    #[serde(rename = "auto")]
    Auto,
    /// WireGuard's own, and no other.
    #[default]
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// This one, and no other.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// A prefix. Host bits are removed; a bare address is a prefix of full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix(pub IpNet);

/// One of `Lan.Subnets`: a prefix, or one that the other sites see as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The prefix.
    pub prefix: IpNet,
    /// What the other sites see.
    pub shown: Option<IpNet>,
}

/// A subnet that the other sites see as another.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct MappedSubnet {
    prefix: Prefix,
    #[serde(rename = "As")]
    shown: Prefix,
}

/// An address, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<IpAddr>);

/// A document that knows where each of its fields came from.
pub(super) struct Source<'a> {
    pub(super) document: Document,
    pub(super) path: &'a Path,
    map: Map<'a>,
    overrides: Vec<(FieldPath, String)>,
}

/// From text to document, with the overrides applied.
pub(super) fn parse<'a>(text: &'a [u8], path: &'a Path, environment: &Environment) -> Result<Source<'a>, ProfileError> {
    if text.len() as u64 > FILE_LIMIT {
        return Err(ProfileError::file(path, format_args!("longer than {FILE_LIMIT} bytes, so it is not a profile")));
    }
    // From bytes, so that an error about text that is not UTF-8 has a line too.
    let mut value: Value = serde_json::from_slice(text).map_err(|error| not_json(path, text, &error))?;
    let Ok(text) = str::from_utf8(text) else {
        return Err(ProfileError::file(path, "not UTF-8"));
    };
    let map = Map::new(text);
    if !value.is_object() {
        return Err(ProfileError::line(path, (1, 1), FieldPath::default(), "a profile is a JSON object"));
    }
    if let Some((field, place)) = map.duplicate() {
        return Err(ProfileError::line(path, place, field, "given twice in one object"));
    }
    let overrides = apply(environment, &mut value)?;
    match serde_path_to_error::deserialize(&value) {
        Ok(document) => Ok(Source { document, path, map, overrides }),
        Err(error) => {
            let text = error.inner().to_string();
            let Fault { unknown, sentence } = Fault::of(&text, "man penstock.profile");
            let mut field = FieldPath::from(error.path());
            if let Some(name) = unknown.filter(|name| field.0.last() != Some(&Step::Key((*name).to_owned()))) {
                field = field.key(name);
            }
            Err(blame(path, &map, &overrides, field, unknown.is_some(), sentence))
        }
    }
}

impl Source<'_> {
    /// An error about the value of a field.
    pub(super) fn error(&self, field: FieldPath, sentence: impl fmt::Display) -> ProfileError {
        blame(self.path, &self.map, &self.overrides, field, false, sentence)
    }
}

fn blame(
    path: &Path,
    map: &Map<'_>,
    overrides: &[(FieldPath, String)],
    field: FieldPath,
    at_name: bool,
    sentence: impl fmt::Display,
) -> ProfileError {
    if let Some((_, variable)) = overrides.iter().find(|(given, _)| field.0.starts_with(&given.0)) {
        return ProfileError::variable(variable, field, sentence);
    }
    let place = if at_name { map.key(&field) } else { map.value(&field) };
    ProfileError::line(path, place, field, sentence)
}

/// Writes the variables' values into the document and returns the fields that they set.
fn apply(environment: &Environment, value: &mut Value) -> Result<Vec<(FieldPath, String)>, ProfileError> {
    let mut overrides = Vec::new();
    for field in FIELDS {
        let Some((variable, text)) = environment.of(field) else {
            continue;
        };
        let given = field
            .shape
            .value(text)
            .map_err(|sentence| ProfileError::variable(&variable, field.field_path(), sentence))?;
        if put(value, field.path, given) {
            overrides.push((field.field_path(), variable));
        }
    }
    Ok(overrides)
}

/// Sets a field, creating the objects on the way to it. Where there is something other than an object, it stays, to be
/// reported later.
fn put(value: &mut Value, path: &[&str], given: Value) -> bool {
    let Some((key, rest)) = path.split_first() else {
        *value = given;
        return true;
    };
    if value.is_null() {
        if given.is_null() {
            return false;
        }
        *value = Value::Object(serde_json::Map::new());
    }
    match value {
        Value::Object(object) => put(object.entry(*key).or_insert(Value::Null), rest, given),
        _ => false,
    }
}

fn not_json(path: &Path, text: &[u8], error: &serde_json::Error) -> ProfileError {
    if text.trim_ascii().is_empty() {
        return ProfileError::file(path, "the file is empty");
    }
    let what = syntax(error);
    let place = (error.line().max(1), error.column().max(1));
    let hint = hint(text, place);
    ProfileError::line(path, place, FieldPath::default(), format_args!("this is not JSON: {what}{hint}"))
}

impl Document {
    /// The document for this profile.
    pub(super) fn of(profile: &Profile) -> Self {
        let prefixes = |list: &[IpNet]| Some(list.iter().copied().map(Prefix).collect());
        let subnet = |prefix: &IpNet| Subnet { prefix: *prefix, shown: profile.lan.shown.get(prefix).copied() };
        Self {
            name: profile.name.clone(),
            local_port: Some(match profile.local_port {
                LocalPort::Random => 0,
                LocalPort::Pinned(port) => port,
            }),
            virtual_address: match profile.virtual_addresses.as_slice() {
                [] => None,
                addresses => Some(Addresses(addresses.to_vec())),
            },
            private_key_file: profile.private_key_file.clone(),
            wan: WanDocument { interface: profile.wan.interface.clone(), mode: Some(profile.wan.mode) },
            lan: Some(LanDocument {
                interfaces: Some(profile.lan.interfaces.clone()),
                mode: Some(profile.lan.mode),
                subnets: Some(profile.lan.subnets.iter().map(subnet).collect()),
            }),
            workers: Some(profile.workers),
            busy_poll: Some(profile.busy_poll),
            mtu: profile.mtu,
            copy_dscp: Some(profile.copy_dscp),
            wan_rate: profile.wan_rate,
            udp_segmentation: Some(profile.udp_gso),
            birthday_probing: Some(profile.birthday_probing),
            port_mapping: Some(profile.port_mapping),
            firewall: profile.firewall.as_ref().map(Firewall::document),
            transit: Some(profile.transit),
            table: Some(profile.table),
            fw_mark: Some(profile.mark),
            cipher: Some(CipherDocument { implementation: Some(profile.cipher) }),
            coordinator: profile.coordinator.as_ref().map(CoordinatorDocument::of),
            accept: profile.accept.as_deref().and_then(prefixes),
            peers: Some(
                profile
                    .peers
                    .iter()
                    .map(|peer| PeerDocument {
                        name: peer.name.clone(),
                        public_key: peer.public_key,
                        preshared_key_file: peer.preshared_key_file.clone(),
                        endpoint: peer.endpoint.clone(),
                        allowed_ips: prefixes(&peer.allowed_ips),
                        tags: Some(peer.tags.clone()),
                        persistent_keepalive: Some(
                            peer.persistent_keepalive.map_or(0, |interval| interval.as_secs() as u16),
                        ),
                        suite: Some(peer.suite),
                    })
                    .collect(),
            ),
            metrics: profile.metrics,
        }
    }
}

impl CoordinatorDocument {
    fn of(coordinator: &Coordinator) -> Self {
        let (fingerprint, ca_file) = match &coordinator.trust {
            Trust::Pinned(fingerprint) => (Some(fingerprint.to_string()), None),
            Trust::Rolling([first, second]) => (Some(format!("{first},{second}")), None),
            Trust::Authorities(file) => (None, file.clone()),
        };
        let authority = coordinator.authority.as_ref().map(ToString::to_string);
        Self { url: coordinator.url.to_string(), fingerprint, ca_file, authority }
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let prefix = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => text.parse::<IpNet>().ok(),
        };
        match prefix {
            Some(prefix) => Ok(Self(prefix.trunc())),
            None => Err(format!("{text:?} is not a prefix such as 10.0.0.0/8 or fd00:1::/64")),
        }
    }
}

fn address_with_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong = |_| de::Error::custom(format_args!("{text:?} is not {ADDRESS_WITH_PORT}"));
    text.parse().map(Some).map_err(wrong)
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let prefix = Prefix(self.prefix);
        match self.shown {
            None => prefix.serialize(serializer),
            Some(shown) => MappedSubnet { prefix, shown: Prefix(shown) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PlainOrMapped;

        impl<'de> de::Visitor<'de> for PlainOrMapped {
            type Value = Subnet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a prefix, or { \"Prefix\": …, \"As\": … }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Subnet, E> {
                let Prefix(prefix) = Prefix::try_from(text.to_owned()).map_err(E::custom)?;
                Ok(Subnet { prefix, shown: None })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Subnet, A::Error> {
                let mapped = MappedSubnet::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Subnet { prefix: mapped.prefix.0, shown: Some(mapped.shown.0) })
            }
        }

        deserializer.deserialize_any(PlainOrMapped)
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [address] => address.serialize(serializer),
            addresses => addresses.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> de::Visitor<'de> for OneOrMore {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Addresses, E> {
                Ok(Addresses(vec![address(text)?]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
                let mut addresses = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    addresses.push(address(&text)?);
                }
                Ok(Addresses(addresses))
            }
        }

        fn address<E: de::Error>(text: &str) -> Result<IpAddr, E> {
            text.parse().map_err(|_| {
                E::custom(format_args!("{text:?} is not an IP address such as 100.64.0.1 or fd00::1, without a length"))
            })
        }

        deserializer.deserialize_any(OneOrMore)
    }
}
