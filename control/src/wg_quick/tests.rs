use std::path::Path;

use zeroize::Zeroizing;

use super::export::export;
use super::import::{Imported, Site, import};
use super::*;
use crate::profile::{Environment, Name, Profile};

// RFC 7748, section 6.1: Alice's and Bob's keys.
const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
const OWN: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const BOB: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
const CAROL: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const PSK: &str = "/UrpinObj0dVLNxBh8mFYbSSOsJnmbpGDGJcjh/5jNY=";

fn full() -> String {
    format!(
        "# made by hand\n[interface]\nprivatekey={PRIVATE}\nListenPort = 51820 # the usual one\n\
         Address = 10.8.0.1/24, fd42::1/64\nAddress = 10.9.0.1/32\nMTU = 1380\nFwMark = 0xca6c\n\
         DNS = 10.8.0.53, example.net\nTable = auto\nSaveConfig = true\n\
         PostUp = iptables -A FORWARD -i %i -j ACCEPT\n\n\
         # Name = berlin\n[Peer]\nPublicKey = {BOB}\nPresharedKey = {PSK}\nEndpoint = gw.example.net:51820\n\
         AllowedIPs = 10.102.7.1/24, 10.8.0.2\nPersistentKeepalive = 25\n\n\
         [Peer]\n# friendly_name=cairo\nPublicKey = {CAROL}\nAllowedIPs = 10.103.0.0/24,10.102.7.0/24\n\
         AllowedIPs =\nPersistentKeepalive = off\n"
    )
}

fn site() -> Site {
    Site {
        name: Name::try_from("wg0".to_owned()).unwrap(),
        wan: "eth0".to_owned(),
        lan: vec!["eth1".to_owned()],
        subnets: vec!["10.101.0.0/24".parse().unwrap()],
    }
}

/// The profile made from a file, as a gateway reads it.
fn imported(text: &str) -> (Profile, Imported) {
    let imported = import(parse(text.as_bytes()).unwrap(), &site()).unwrap();
    let json = &imported.profile;
    let path = Path::new("/profiles/wg0.profile");
    let mut read = |file: &Path| {
        let file = file.strip_prefix("/profiles").unwrap();
        if file == imported.private_key.0 {
            return Ok(imported.private_key.1.to_base64());
        }
        let key = imported.preshared_keys.iter().find(|(name, _)| name == file);
        Ok(key.map(|(_, key)| key.to_base64()).expect("a key that is written"))
    };
    let profile = Profile::parse(json.as_bytes(), path, &Environment::default(), &mut read);
    (profile.unwrap_or_else(|error| panic!("{error}\n{json}")), imported)
}

fn complaint(text: &str) -> String {
    parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_file_becomes_a_profile() {
    let (profile, imported) = imported(&full());
    assert_eq!(profile.private_key.public_key().to_string(), OWN);
    assert_eq!(profile.local_port, crate::profile::LocalPort::Pinned(51820));
    assert_eq!(profile.virtual_addresses, ["10.8.0.1".parse::<IpAddr>().unwrap(), "fd42::1".parse().unwrap()]);
    assert_eq!((profile.mtu, profile.mark), (Some(1380), 0xca6c));
    let [berlin, cairo] = profile.peers.as_slice() else { panic!("two peers") };
    assert_eq!((berlin.name.as_str(), cairo.name.as_str()), ("berlin", "cairo"));
    assert_eq!(berlin.endpoint.as_ref().unwrap().to_string(), "gw.example.net:51820");
    assert_eq!(*berlin.preshared_key.as_ref().unwrap().to_base64(), PSK);
    assert_eq!(berlin.persistent_keepalive.unwrap().as_secs(), 25);
    assert_eq!(berlin.allowed_ips, ["10.8.0.2/32".parse().unwrap()], "the last to claim a prefix has it");
    assert_eq!(cairo.allowed_ips, ["10.103.0.0/24".parse().unwrap(), "10.102.7.0/24".parse().unwrap()]);
    assert!(cairo.persistent_keepalive.is_none());

    let notes: Vec<String> = imported.notes.iter().map(ToString::to_string).collect();
    for (at, part) in [
        "Address = 10.8.0.1/24: the gateway has 10.8.0.1 alone",
        "Address = fd42::1/64",
        "Address = 10.9.0.1/32: a gateway has one",
        "line 9: DNS = \"10.8.0.53, example.net\"",
        "line 11: SaveConfig",
        "line 12: PostUp = \"iptables -A FORWARD -i %i -j ACCEPT\"",
        "line 15: AllowedIPs = 10.102.7.0/24: it is given again below",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(notes[at].starts_with(part), "{part} is not note {at} of {notes:#?}");
    }
    assert_eq!(notes.len(), 7, "{notes:#?}");
}

#[test]
fn a_file_from_windows_is_read() {
    let windows = format!("\u{feff}{}", full().replace('\n', "\r\n"));
    assert_eq!(imported(&windows).1.profile, imported(&full()).1.profile);
}

#[test]
fn peers_that_a_profile_cannot_have() {
    let text = format!(
        "[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {OWN}\nAllowedIPs = 10.1.0.0/16\n\
         [Peer]\nPublicKey = {BOB}\nAllowedIPs = 10.101.0.7/32\n[Peer]\nPublicKey = {BOB}\nAllowedIPs = 0.0.0.0/0\n\
         # Name = peer-1\n[Peer]\nPublicKey = {CAROL}\n"
    );
    let (profile, imported) = imported(&text);
    let names: Vec<&str> = profile.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["peer-1", "peer-2"], "two sections of a peer are one, and each has a name");
    assert_eq!(profile.peers[0].allowed_ips, ["0.0.0.0/0".parse().unwrap()]);
    assert_eq!(imported.notes.iter().map(|note| note.line).collect::<Vec<_>>(), [Some(3), Some(6)]);
}

#[test]
fn errors_name_the_line() {
    for (text, expected) in [
        ("PrivateKey = x\n", "line 1: before the first [Interface] or [Peer]"),
        ("[Interface]\nhello\n", "line 2: \"hello\" is neither a section nor KEY = VALUE"),
        ("[Interface]\nJc = 4\n", "line 2: unknown key \"Jc\" in [Interface]"),
        ("[Interface]\n\nListenPort = 65536\n", "line 3: ListenPort: \"65536\" is not a valid number"),
        ("[Interface]\nListenPort = +1\n", "line 2: ListenPort: \"+1\" is not a valid number"),
        ("[Interface]\nAddress = 10.0.0.1/33\n", "line 2: Address: \"10.0.0.1/33\" is not an address or prefix"),
        ("[Peer]\nAllowedIPs = 10.0.0.0/8\n", "line 1: this peer has no PublicKey"),
        ("[Peer]\nEndpoint = nowhere\n", "line 2: \"nowhere\" is not an endpoint"),
        ("[Peer]\nFwMark = 1\n", "line 2: unknown key \"FwMark\" in [Peer]"),
    ] {
        assert!(complaint(text).starts_with(expected), "{text:?}: {}", complaint(text));
    }
    let mistyped = complaint(&format!("[Interface]\nPrivateKey = {}\n", &PRIVATE[1..]));
    assert!(mistyped.starts_with("line 2: PrivateKey: a key is") && !mistyped.contains(&PRIVATE[1..]), "{mistyped}");
    let escape = complaint("[Interface]\n\u{1b}[31m = 4\n");
    assert!(!escape.contains('\u{1b}'), "{escape}");
    assert_eq!(parse(&[b'#', 0xff]).unwrap_err().line, 1);
    let none = import(parse(b"[Interface]\n").unwrap(), &site()).err().unwrap().to_string();
    assert!(none.contains("PrivateKey"), "{none}");
}

#[test]
fn limits() {
    let peers = |count| "[Peer]\n".repeat(count);
    assert!(complaint(&peers(PEER_LIMIT)).contains("no PublicKey"));
    assert!(complaint(&peers(PEER_LIMIT + 1)).contains("more than 4096 peers"));
    let allowed = format!("[Peer]\nAllowedIPs = {}\n", "::/0,".repeat(ALLOWED_IP_LIMIT + 1));
    assert!(complaint(&allowed).contains("more than 65536 allowed IPs"));
    let hooks = format!("[Interface]\n{}", "PostUp = x\n".repeat(EXTRA_LIMIT + 1));
    assert!(complaint(&hooks).starts_with("line 1026: more than 1024"));
    let long = "#".repeat(FILE_LIMIT as usize + 1);
    assert!(complaint(&long).contains("longer than"));
}

#[test]
fn what_is_exported_is_the_other_side() {
    let (profile, _) = imported(&full());
    let key: PrivateKey = PRIVATE.parse().unwrap();
    let endpoint = Endpoint::try_from("198.51.100.1:51820".to_owned()).unwrap();
    let text: Zeroizing<String> = export(&profile, &profile.peers[0], Some(&key), Some(&endpoint));
    let file = parse(text.as_bytes()).unwrap();
    assert!(file.private_key == Some(key) && file.extras.is_empty());
    assert_eq!((file.listen_port, file.mtu), (Some(51820), Some(1380)));
    assert_eq!(file.addresses, ["10.8.0.2/32".parse().unwrap()]);
    let [us] = file.peers.as_slice() else { panic!("one peer") };
    assert_eq!((us.public_key.unwrap().to_string(), us.name.as_deref()), (OWN.to_owned(), Some("wg0")));
    assert_eq!(us.preshared_key, profile.peers[0].preshared_key);
    assert_eq!((us.endpoint.as_ref(), us.persistent_keepalive), (Some(&endpoint), Some(25)));
    let expected: Vec<IpNet> = ["10.8.0.1/32", "fd42::1/128", "10.101.0.0/24"].map(|p| p.parse().unwrap()).to_vec();
    assert_eq!(us.allowed_ips, expected, "without Transit no other site");

    let transit = Profile { transit: true, ..profile.clone() };
    let text = export(&transit, &transit.peers[1], None, None);
    assert!(text.contains(&format!("# PrivateKey = the one that belongs to {CAROL}")), "{}", *text);
    let file = parse(text.as_bytes()).unwrap();
    assert!(file.private_key.is_none() && file.peers[0].endpoint.is_none());
    assert!(file.peers[0].allowed_ips.contains(&"10.8.0.2/32".parse().unwrap()));
}
