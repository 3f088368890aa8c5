//! What `wg set` changed on a running gateway, and how it is written into the profile's text; the rest stays as
//! written.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::edit::{EditError, input, text_of};
use super::position::STRICT;
use crate::key::PublicKey;

/// What `wg set` changed since the profile was read. Secrets are in base64.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Unsaved {
    /// The private key.
    pub private_key: Option<Secret>,
    /// The tunnel's UDP port.
    pub local_port: Option<u16>,
    /// The firewall mark.
    pub mark: Option<u32>,
    /// Peers that were added or changed.
    pub peers: Vec<UnsavedPeer>,
    /// Peers that were removed.
    pub removed: Vec<PublicKey>,
}

/// A peer that `wg set` added or changed, with the fields in which it differs from the profile.
#[derive(Debug, Serialize, Deserialize)]
pub struct UnsavedPeer {
    /// Its public key.
    pub public_key: PublicKey,
    /// The preshared key; `Some(None)` if it was removed.
    pub preshared_key: Option<Option<Secret>>,
    /// Its endpoint.
    pub endpoint: Option<SocketAddr>,
    /// What is sent to it and accepted from it.
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Seconds between keepalives; 0 for none.
    pub persistent_keepalive: Option<u64>,
}

/// A secret key in base64, which is wiped when dropped and never printed.
pub struct Secret(pub Zeroizing<String>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Unsaved {
    /// Whether the profile says everything that is in force.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { private_key, local_port, mark, peers, removed } = self;
        private_key.is_none() && local_port.is_none() && mark.is_none() && peers.is_empty() && removed.is_empty()
    }
}

/// A profile's text with the changes, and the key files that it needs, relative to its directory.
#[derive(Debug)]
pub struct Saved {
    /// The text.
    pub text: String,
    /// Key files with their contents.
    pub secrets: Vec<(String, Secret)>,
}

/// Writes the changes into the text of a profile. Whether a valid profile results is not checked.
///
/// # Errors
/// The text is not a JSON object.
pub fn save(text: &str, unsaved: Unsaved) -> Result<Saved, EditError> {
    let root = CstRootNode::parse(text, &STRICT).map_err(|_| EditError::NotAnObject)?;
    let top = root.object_value().ok_or(EditError::NotAnObject)?;
    let mut secrets = Vec::new();
    if let Some(key) = unsaved.private_key {
        let file = text_of(&top, "PrivateKeyFile").unwrap_or_default();
        secrets.push((file, key));
    }
    put(&top, "LocalPort", unsaved.local_port.map(|port| json!(port)));
    put(&top, "FwMark", unsaved.mark.map(|mark| json!(mark)));
    for key in &unsaved.removed {
        if let Some(peer) = find(&top, key) {
            peer.remove();
        }
    }
    for peer in unsaved.peers {
        let object = find(&top, &peer.public_key).unwrap_or_else(|| append(&top, &peer.public_key));
        put(&object, "Endpoint", peer.endpoint.map(|endpoint| json!(endpoint.to_string())));
        put(&object, "AllowedIPs", peer.allowed_ips.map(|prefixes| json!(prefixes)));
        put(&object, "PersistentKeepalive", peer.persistent_keepalive.map(|seconds| json!(seconds)));
        match peer.preshared_key {
            None => {}
            Some(None) => put(&object, "PresharedKeyFile", Some(Value::Null)),
            Some(Some(key)) => {
                let file = text_of(&object, "PresharedKeyFile").unwrap_or_else(|| key_file(&peer.public_key));
                put(&object, "PresharedKeyFile", Some(json!(file)));
                secrets.push((file, key));
            }
        }
    }
    Ok(Saved { text: root.to_string(), secrets })
}

/// A name for the file of a peer's preshared key: those characters of its public key that a file name may have.
fn key_file(peer: &PublicKey) -> String {
    let name: String = peer.to_hex().chars().take(16).collect();
    format!("{name}.psk")
}

fn put(object: &CstObject, name: &str, value: Option<Value>) {
    match (object.get(name), value) {
        (_, None) | (None, Some(Value::Null)) => {}
        (Some(property), Some(Value::Null)) => property.remove(),
        (Some(property), Some(value)) => property.set_value(input(value)),
        (None, Some(value)) => drop(object.append(name, input(value))),
    }
}

fn find(top: &CstObject, key: &PublicKey) -> Option<CstObject> {
    let mut peers = top.array_value("Peers")?.elements().into_iter().filter_map(|element| element.as_object());
    peers.find(|peer| text_of(peer, "PublicKey").and_then(|text| text.parse().ok()) == Some(*key))
}

/// A new peer, which is named by its key until somebody gives it a better name.
fn append(top: &CstObject, key: &PublicKey) -> CstObject {
    let peers = top.array_value_or_set("Peers");
    let fields = [("Name", key.to_string()), ("PublicKey", key.to_string())];
    let fields = fields.map(|(name, value)| (name.to_owned(), CstInputValue::String(value)));
    let appended = peers.append(CstInputValue::Object(fields.into()));
    appended.as_object().expect("it was just made of an object")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
  "Name": "amsterdam", "PrivateKeyFile": "a.key",
  "Wan": { "Interface": "eth0" },
  "Peers": [
    { "Name": "berlin",   "PublicKey": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "AllowedIPs": ["10.1.0.0/16"] },
    { "Name": "cologne",  "PublicKey": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=", "PersistentKeepalive": 25 }
  ]
}
"#;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn changed(public_key: PublicKey) -> UnsavedPeer {
        UnsavedPeer { public_key, preshared_key: None, endpoint: None, allowed_ips: None, persistent_keepalive: None }
    }

    #[test]
    fn only_what_was_changed_is_written_anew() {
        assert_eq!(save(PROFILE, Unsaved::default()).unwrap().text, PROFILE);
        let unsaved = Unsaved {
            local_port: Some(47_111),
            peers: vec![
                UnsavedPeer { endpoint: "192.0.2.2:5".parse().ok(), ..changed(key(1)) },
                UnsavedPeer {
                    preshared_key: Some(Some(Secret(Zeroizing::new("secret".to_owned())))),
                    allowed_ips: Some(vec!["10.3.0.0/16".parse().unwrap()]),
                    ..changed(key(3))
                },
            ],
            removed: vec![key(2)],
            ..Unsaved::default()
        };
        let Saved { text, secrets } = save(PROFILE, unsaved).unwrap();
        assert!(text.contains(r#"  "Name": "amsterdam", "PrivateKeyFile": "a.key","#), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["LocalPort"], 47_111);
        let peers = value["Peers"].as_array().unwrap();
        assert_eq!(peers.len(), 2, "{text}");
        assert_eq!((&peers[0]["Endpoint"], &peers[0]["AllowedIPs"][0]), (&json!("192.0.2.2:5"), &json!("10.1.0.0/16")));
        assert_eq!(
            (&peers[1]["Name"], &peers[1]["AllowedIPs"][0]),
            (&json!(key(3).to_string()), &json!("10.3.0.0/16"))
        );
        assert_eq!(peers[1]["PresharedKeyFile"], json!(secrets[0].0));
        assert!(!text.contains("secret") && *secrets[0].1.0 == "secret");
    }

    #[test]
    fn a_key_goes_into_the_file_that_is_named_already() {
        let text = PROFILE.replace("\"PersistentKeepalive\": 25", "\"PresharedKeyFile\": \"c.psk\"");
        let secret = |text: &str| Secret(Zeroizing::new(text.to_owned()));
        let cleared = UnsavedPeer { preshared_key: Some(None), ..changed(key(2)) };
        let set = UnsavedPeer { preshared_key: Some(Some(secret("new"))), ..changed(key(2)) };
        let unsaved = |peer, private_key| Unsaved { private_key, peers: vec![peer], ..Unsaved::default() };
        let saved = save(&text, unsaved(set, Some(secret("own")))).unwrap();
        let files: Vec<_> = saved.secrets.iter().map(|(file, key)| (file.as_str(), key.0.as_str())).collect();
        assert_eq!(files, [("a.key", "own"), ("c.psk", "new")]);
        assert_eq!(saved.text, text);
        assert!(!save(&text, unsaved(cleared, None)).unwrap().text.contains("psk"));
    }
}
