//! `penstock enrol`, as an administrator uses it.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use penstock::coordinator::Cached;
use penstock_connect::Trust;

use super::laboratory::{Coordinator, Site};

#[test]
fn a_site_enrols_and_its_profile_knows_the_coordinator() {
    let Some(coordinator) = Coordinator::start() else { return };
    let site = Site::new("amsterdam", "10.101.0.0/24");
    let before = site.text();
    let key = coordinator.key(&[]);
    let arguments = [&key, "--coordinator", &coordinator.url()];
    let outcome = site.enrol(&arguments);
    assert!(outcome.is(0), "{outcome:?}");
    let url = coordinator.url();
    let said = format!("amsterdam is enrolled at {url} and approved: address 100.64.0.1, offers 10.101.0.0/24\n");
    assert_eq!(outcome.out, said);
    assert!(outcome.error.starts_with("penstock: created the private key "), "{outcome:?}");
    assert_eq!(site.mode("site.key"), 0o600);

    let profile = site.load();
    let written = profile.coordinator.as_ref().unwrap();
    assert_eq!(written.url.to_string(), url);
    assert!(matches!(&written.trust, Trust::Pinned(pin) if key_pins(&key, &pin.0)), "{written:?}");
    assert_eq!(profile.virtual_addresses, ["100.64.0.1".parse::<std::net::IpAddr>().unwrap()]);
    let kept = before.trim_end().strip_suffix("\n}").unwrap();
    assert!(site.text().starts_with(kept), "what was there stays as it was:\n{}", site.text());

    let cached = Cached::read(&site.cache(), &profile.private_key, &written.url).unwrap().unwrap();
    assert_eq!(cached.registration.name.as_str(), "amsterdam");
    assert_eq!(site.mode("state/amsterdam.map"), 0o600);

    // Once more, as if the answer had been lost: the key's single use is not needed twice.
    let after = site.text();
    let outcome = site.enrol(&arguments);
    assert!(outcome.is(0) && outcome.error.is_empty(), "{outcome:?}");
    assert_eq!(site.text(), after);
    // And without a URL, since the profile has it.
    assert!(site.enrol(&[&key]).is(0));
    assert_eq!(coordinator.cli(&["site", "list"]).matches("amsterdam").count(), 1);
}

fn key_pins(key: &str, fingerprint: &[u8]) -> bool {
    let key: penstock_proto::coordination::EnrolmentKey = key.parse().unwrap();
    key.fingerprint().is_some_and(|pin| pin.0 == fingerprint)
}

#[test]
fn a_key_comes_from_a_file_or_standard_input_and_is_not_logged() {
    let Some(coordinator) = Coordinator::start() else { return };
    let key = coordinator.key(&["--uses", "3"]);
    let site = Site::new("amsterdam", "10.101.0.0/24");
    std::fs::write(site.file("enrolment"), format!("{key}\n")).unwrap();
    let file = site.file("enrolment");
    let outcome = site.enrol_by(&[file.to_str().unwrap(), "--coordinator", &coordinator.url()], |command| {
        command.env("RUST_LOG", "trace").args(["--log", "trace"]);
    });
    assert!(outcome.is(0), "{outcome:?}");
    let secret = &key["penstock1-".len()..];
    assert!(!outcome.error.contains(&secret[..20]) && !outcome.error.contains(&secret[6..26]), "{outcome:?}");

    let site = Site::new("berlin", "10.102.0.0/24");
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(format!("  {key}\n").as_bytes()).unwrap();
    drop(writer);
    let outcome = site.enrol_by(&["-", "--coordinator", &coordinator.url()], |command| {
        command.stdin(Stdio::from(reader));
    });
    assert!(outcome.is(0), "{outcome:?}");

    let outcome = site.enrol(&["-"]);
    assert!(outcome.is(1) && outcome.error.contains("standard input: this is not an enrolment key"), "{outcome:?}");
    let outcome = site.enrol(&["/nonexistent"]);
    assert!(outcome.is(1) && outcome.error.contains("the enrolment key in /nonexistent: No such"), "{outcome:?}");
    let cut = &key[..30];
    let outcome = site.enrol(&[cut]);
    assert!(outcome.is(1) && outcome.error.contains("is copied whole"), "{outcome:?}");
    assert!(!outcome.error.contains(&cut[10..]), "{outcome:?}");
}

#[test]
fn each_refusal_is_a_sentence_and_changes_nothing() {
    let Some(coordinator) = Coordinator::start() else { return };
    let url = coordinator.url();
    let used = coordinator.key(&[]);
    let first = Site::new("amsterdam", "10.101.0.0/24");
    assert!(first.enrol(&[&used, "--coordinator", &url]).is(0));
    let short = coordinator.key(&["--expires", "1s"]);
    let revoked = coordinator.key(&[]);
    let id = revoked.parse::<penstock_proto::coordination::EnrolmentKey>().unwrap().id().to_string();
    coordinator.cli(&["key", "revoke", &id]);
    let good = coordinator.key(&["--uses", "9"]);
    std::thread::sleep(Duration::from_millis(1200));

    for (key, name, subnet, expected) in [
        (&used, "berlin", "10.102.0.0/24", "penstock: the enrolment key is used up\n"),
        (&short, "berlin", "10.102.0.0/24", "penstock: the enrolment key has expired\n"),
        (
            &revoked,
            "berlin",
            "10.102.0.0/24",
            "penstock: the coordinator does not know this enrolment key, or it was revoked\n",
        ),
        (&good, "Amsterdam", "10.102.0.0/24", "penstock: another site has this name, or one that looks like it\n"),
    ] {
        let site = Site::new(name, subnet);
        let before = site.text();
        let outcome = site.enrol(&[key, "--coordinator", &url]);
        assert!(outcome.is(3), "{outcome:?}");
        let said = outcome.error.split_once("site.key\n").map_or(outcome.error.as_str(), |(_, rest)| rest);
        assert_eq!(said, expected);
        assert_eq!(site.text(), before);
        assert!(!site.cache().exists());
    }
    // A subnet that is not available at the moment does not prevent enrolment.
    let outcome = Site::new("berlin", "10.101.0.0/16").enrol(&[&good, "--coordinator", &url]);
    assert!(outcome.is(0) && outcome.out.contains("approved: address 100.64.0.2, offers no subnets\n"), "{outcome:?}");
    let waits = "\n  10.101.0.0/16 waits for an administrator of the coordinator: ";
    assert!(outcome.out.contains(waits) && outcome.out.contains("10.101.0.0/24 of amsterdam"), "{outcome:?}");

    coordinator.cli(&["site", "revoke", "amsterdam"]);
    let outcome = first.enrol(&[&good, "--coordinator", &url]);
    assert!(outcome.is(3) && outcome.error == "penstock: this site was revoked\n", "{outcome:?}");

    let site = Site::new("_x", "10.103.0.0/24");
    let outcome = site.enrol(&[&good, "--coordinator", &url]);
    assert!(
        outcome.is(1) && outcome.error.contains("\"_x\" is not a valid site name (--name): a name is"),
        "{outcome:?}"
    );
    assert!(site.enrol(&[&good, "--coordinator", &url, "--name", "x"]).is(0));
    let outcome = Site::new("a", "10.1.0.0/24").enrol(&[&good, "--coordinator", "http://127.0.0.1"]);
    assert!(outcome.is(2) && outcome.error.contains("is not a URL such as https://"), "{outcome:?}");
    let outcome = Site::new("a", "10.1.0.0/24").enrol(&[&good]);
    assert!(outcome.is(1) && outcome.error.contains("--coordinator must say where"), "{outcome:?}");
}

#[test]
fn an_approval_is_waited_for_as_long_as_asked() {
    let Some(coordinator) = Coordinator::start() else { return };
    let url = coordinator.url();
    let key = coordinator.key(&["--uses", "2", "--approve-manually"]);
    let site = Site::new("amsterdam", "10.101.0.0/24");
    let arguments = [&key, "--coordinator", &url];
    let outcome = site.enrol(&arguments);
    assert!(outcome.is(0) && outcome.out.contains("amsterdam is enrolled"), "{outcome:?}");
    assert!(
        outcome.out.contains("waits for approval") && outcome.out.contains("site approve amsterdam"),
        "{outcome:?}"
    );
    let outcome = site.enrol(&[&arguments[..], &["--wait", "1"]].concat());
    assert!(outcome.is(5) && outcome.error.contains("has not been approved after 1 s"), "{outcome:?}");

    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            coordinator.cli(&["site", "approve", "amsterdam"]);
        });
        site.enrol(&[&arguments[..], &["--wait", "30"]].concat())
    });
    assert!(outcome.is(0) && outcome.out.contains("and approved"), "{outcome:?}");
    assert!(site.cache().exists());
}

#[test]
fn another_certificate_is_refused_and_a_given_one_is_asked_of_authorities() {
    let Some(mut coordinator) = Coordinator::start() else { return };
    let url = coordinator.url();
    let key = coordinator.key(&["--uses", "9"]);
    coordinator.change_certificate();
    let site = Site::new("amsterdam", "10.101.0.0/24");
    let outcome = site.enrol(&[&key, "--coordinator", &url]);
    assert!(outcome.is(4), "{outcome:?}");
    assert!(outcome.error.contains("127.0.0.1: it shows another certificate than the pinned one"), "{outcome:?}");
    assert!(outcome.error.contains("enrol again with a new key"), "{outcome:?}");
    assert!(coordinator.cli(&["site", "list", "--json"]).trim() == "[]", "nothing was said to it");

    // The same key without its pin: its first 20 bytes are identifier and secret.
    let bare = coordinator.key(&[]);
    let bare = {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let bytes = URL_SAFE_NO_PAD.decode(&bare["penstock1-".len()..]).unwrap();
        format!("penstock1-{}", URL_SAFE_NO_PAD.encode(&bytes[..20]))
    };
    let outcome = site.enrol(&[&bare, "--coordinator", &url]);
    assert!(outcome.is(4) && outcome.error.contains("no certificate authority"), "{outcome:?}");
    let authority = coordinator.certificate();
    let authority = authority.to_str().unwrap();
    let outcome = site.enrol(&[&bare, "--coordinator", &url, "--ca-file", authority]);
    assert!(outcome.is(0), "{outcome:?}");
    assert_eq!(site.load().coordinator.unwrap().trust, Trust::Authorities(Some(authority.into())));
    let pinning = coordinator.key(&[]);
    let outcome = site.enrol(&[&pinning, "--coordinator", &url, "--ca-file", authority]);
    assert!(outcome.is(1) && outcome.error.contains("leave out --ca-file"), "{outcome:?}");
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let Some(mut coordinator) = Coordinator::start() else { return };
    let url = coordinator.url();
    let key = coordinator.key(&[]);
    coordinator.kill();
    let site = Site::new("amsterdam", "10.101.0.0/24");
    let before = site.text();
    let outcome = site.enrol(&[&key, "--coordinator", &url]);
    let expected = format!("127.0.0.1, port {}, cannot be reached: Connection refused", coordinator.address().port());
    assert!(outcome.is(4) && outcome.error.contains(&expected), "{outcome:?}");
    assert_eq!(site.text(), before);
    let outcome = site.enrol(&[&key, "--coordinator", "https://nowhere.invalid"]);
    assert!(outcome.is(4) && outcome.error.contains("nowhere.invalid cannot be resolved"), "{outcome:?}");
    coordinator.run();
    let other = url.replace("127.0.0.1", "localhost");
    let outcome = site.enrol(&[&key, "--coordinator", &other]);
    assert!(outcome.is(4) && outcome.error.contains("localhost does not serve this name"), "{outcome:?}");
}

#[test]
fn a_clock_that_is_an_hour_wrong_does_not_matter() {
    let Some(coordinator) = Coordinator::start() else { return };
    let installed = std::process::Command::new("faketime").arg("--version").output().is_ok();
    if !installed {
        assert!(std::env::var_os("PENSTOCK_TEST_REQUIRED").is_none(), "faketime is not installed");
        let _ = writeln!(std::io::stderr(), "skipped: faketime is not installed (scripts/setup --test)");
        return;
    }
    let key = coordinator.key(&["--uses", "9"]);
    for (name, subnet, offset) in
        [("slow", "10.1.0.0/24", "-1h"), ("fast", "10.2.0.0/24", "+1h"), ("lost", "10.3.0.0/24", "-20y")]
    {
        let site = Site::new(name, subnet);
        let before = ["-f", offset, env!("CARGO_BIN_EXE_penstock")];
        let outcome = site.enrol_with("faketime", &before, &[&key, "--coordinator", &coordinator.url()], |_| {});
        assert!(outcome.is(0), "{offset}: {outcome:?}");
    }
}
