//! `penstock bugreport` beside a running gateway: all files are there, no key is, and anonymised texts stay consistent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::*;
use flate2::read::GzDecoder;
use serde_json::Value;

/// The contents of the archive, by file name.
type Report = BTreeMap<String, String>;

fn report(gateway: &Gateway, more: &[&str]) -> Report {
    let file = gateway.profile_path().with_file_name(format!("{}{}.tar.gz", gateway.name(), more.len()));
    let output = gateway.command(&[&["bugreport", "--output", file.to_str().expect("UTF-8")][..], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), file.to_str().expect("UTF-8"));
    assert_eq!(file.metadata().expect("it is written").mode() & 0o777, 0o600);
    let report = read(&file);
    std::fs::remove_file(&file).expect("removed");
    report
}

fn read(file: &Path) -> Report {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(file).expect("it is written")));
    let entries = archive.entries().expect("an archive");
    let text = |entry: std::io::Result<tar::Entry<'_, GzDecoder<File>>>| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("UTF-8");
        (path.file_name().expect("a name").to_string_lossy().into_owned(), text)
    };
    entries.map(text).collect()
}

/// The names in the first column of the page.
fn documented() -> Vec<String> {
    let page = include_str!("../../../docs/bugreport.md").lines();
    page.filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

#[test]
fn everything_is_in_it_but_no_key() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut config, other) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let preshared = genpsk();
    config.peers[0].preshared_key = Some(preshared.clone());
    let a = Gateway::start(&topology.a, config);
    let _b = Gateway::start(&topology.b, other);

    // A key in the log is removed.
    let log = format!("/run/penstock/{}.log", a.name());
    std::fs::write(&log, format!("it said {} and {preshared}\n", a.config.private_key)).expect("written");
    let plain = report(&a, &[]);
    std::fs::remove_file(&log).expect("removed");

    let mut names: Vec<String> = documented();
    names.sort();
    assert_eq!(plain.keys().cloned().collect::<Vec<_>>(), names);
    for (name, text) in &plain {
        for secret in [&a.config.private_key, &preshared, &hex(&a.config.private_key), &hex(&preshared)] {
            assert!(!text.contains(secret.as_str()), "{name} holds a key");
        }
        assert!(name == "README" || plain["README"].contains(name.as_str()), "{name} is not in README");
    }
    assert!(plain["log.txt"].contains("it said [a key, taken out] and [a key, taken out]"), "{}", plain["log.txt"]);
    let status: Value = serde_json::from_str(&plain["status.json"]).expect("JSON");
    assert_eq!(status["Name"], a.name());
    let history: Value = serde_json::from_str(&plain["history.json"]).expect("JSON");
    assert_eq!(history["Seconds"], 60);
    let profile: Value = serde_json::from_str(&plain["profile.json"]).expect("JSON");
    assert_eq!(profile["Wan"]["Interface"], "wan0");
    assert!(plain["routes.txt"].contains("10.102.0.0/24 dev"), "{}", plain["routes.txt"]);
    assert!(plain["links.txt"].contains("wan0") && plain["sysctls.txt"].contains("conf/wan0/rp_filter: "));
    assert!(plain["ethtool.txt"].contains("== ethtool -i wan0") && plain["nftables.txt"].contains("nft list ruleset"));

    let anonymous = report(&a, &["--anonymise"]);
    assert_eq!(anonymous.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    let peer = a.config.peers[0].public_key.clone();
    for (name, text) in &anonymous {
        for told in [a.name(), "peer-0", "10.102.0.", "192.0.2.2", &a.public_key(), &peer] {
            assert!(!text.contains(told), "{name} tells {told}:\n{text}");
        }
    }
    let status: Value = serde_json::from_str(&anonymous["status.json"]).expect("JSON");
    let prefix = status["Peers"][0]["AllowedIPs"][0].as_str().expect("a prefix");
    assert!(prefix.starts_with("10.") && prefix.ends_with(".0/24"), "{prefix}");
    assert!(anonymous["routes.txt"].contains(prefix), "{prefix} is another in routes.txt: {}", anonymous["routes.txt"]);
    assert!(anonymous["profile.json"].contains(prefix), "{prefix} is another in profile.json");
}

/// The gateway is not running, and the output file exists already.
#[test]
fn what_cannot_be_had_is_said() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = pair(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    a.process.terminate();
    let stopped = report(&a, &[]);
    assert!(stopped["status.json"].contains("not running"), "{}", stopped["status.json"]);
    assert!(stopped["map.json"].contains("no coordinator"), "{}", stopped["map.json"]);

    // The gateway is known although its profile cannot be read.
    let profile = std::fs::read(a.profile_path()).expect("a profile");
    std::fs::write(a.profile_path(), "{").expect("written");
    let broken = report(&a, &[]);
    assert!(broken["profile.json"].contains("not JSON"), "{}", broken["profile.json"]);
    assert!(broken["status.json"].contains("not running"), "{}", broken["status.json"]);
    assert!(broken["ethtool.txt"].contains("ethtool -k wan0"), "{}", broken["ethtool.txt"]);
    std::fs::write(a.profile_path(), profile).expect("written");

    let taken = a.profile_path().with_file_name("taken");
    std::fs::write(&taken, "mine").expect("written");
    let output = a.command(&["bugreport", "--output", taken.to_str().expect("UTF-8")]);
    assert!(!output.status.success() && std::fs::read_to_string(&taken).is_ok_and(|text| text == "mine"));
}

/// A key in the form of WireGuard's socket.
fn hex(key: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    let bytes = BASE64_STANDARD.decode(key.trim()).expect("a key");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
