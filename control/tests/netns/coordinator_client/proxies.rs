//! Through proxies, good and bad, using the command itself, since it reads the environment.

use super::hop::{Hop, Manner};
use super::laboratory::{Coordinator, Outcome, Site};

/// Enrols through a proxy.
fn enrol(coordinator: &Coordinator, variables: &[(&str, &str)]) -> Outcome {
    let site = Site::new("amsterdam", "10.101.0.0/24");
    let key = coordinator.key(&[]);
    let outcome = site.enrol_by(&[&key, "--coordinator", &coordinator.url()], |command| {
        command.envs(variables.iter().copied());
    });
    if outcome.is(0) {
        coordinator.cli(&["site", "revoke", "amsterdam"]);
    }
    outcome
}

#[test]
fn a_proxy_is_asked_for_the_coordinator() {
    let Some(coordinator) = Coordinator::start() else { return };
    for manner in [Manner::Forward, Manner::Dribble] {
        let hop = Hop::start(manner);
        for variable in ["HTTPS_PROXY", "https_proxy"] {
            let outcome = enrol(&coordinator, &[(variable, &hop.url())]);
            assert!(outcome.is(0), "{outcome:?}");
        }
        let url = hop.url().replace("http://", "http://gateway:s%20cret@");
        let outcome = enrol(&coordinator, &[("HTTPS_PROXY", &url)]);
        assert!(outcome.is(0), "{outcome:?}");
        let requests = hop.requests();
        let [first, _, authorized] = requests.as_slice() else { panic!("{requests:?}") };
        let start = format!("CONNECT {} HTTP/1.1\r\n", coordinator.address());
        assert!(first.starts_with(&start), "{first}");
        let host = format!("\r\nhost: {}\r\n", coordinator.address());
        assert!(first.to_lowercase().contains(&host) && !first.to_lowercase().contains("authorization"), "{first}");
        // The base64 of "gateway:s cret".
        assert!(authorized.contains(": Basic Z2F0ZXdheTpzIGNyZXQ="), "{authorized}");

        let outcome = enrol(&coordinator, &[("HTTPS_PROXY", &hop.url()), ("NO_PROXY", "127.0.0.0/8")]);
        assert!(outcome.is(0), "{outcome:?}");
        assert_eq!(hop.requests().len(), 3, "the last went without the proxy");
    }
}

#[test]
fn a_bad_proxy_is_named_and_not_gone_around() {
    let Some(coordinator) = Coordinator::start() else { return };
    let head = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
    for (manner, expected) in [
        (Manner::Say(head), "refuses: 407 Proxy Authentication Required; it requires a user and a password"),
        (Manner::Say("HTTP/1.1 403 Forbidden\r\n\r\n<html>"), "refuses: 403 Forbidden; it must allow CONNECT"),
        (Manner::Say("HTTP/1.0 502 Bad Gateway\r\n\r\n"), "refuses: 502 Bad Gateway; it does not reach"),
        (Manner::Say("SSH-2.0-OpenSSH_9.2\r\n"), "does not answer as a proxy"),
        (Manner::Say("\0\u{1}\u{2}\r\n\r\n"), "does not answer as a proxy"),
        (Manner::Say("HTTP/1.1 200"), "does not answer as a proxy"),
        (Manner::Say(""), "does not answer as a proxy"),
        (Manner::Endless, "does not answer as a proxy"),
        (Manner::Babble, "sends data after its answer"),
        (Manner::Silent, "took longer than 10 s"),
    ] {
        let hop = Hop::start(manner);
        let outcome = enrol(&coordinator, &[("HTTPS_PROXY", &hop.url())]);
        assert!(outcome.is(4), "{manner:?}: {outcome:?}");
        let named = format!("penstock: the proxy {} ", hop.address);
        // The first line says that a private key was made.
        let [_, said] = outcome.error.lines().collect::<Vec<_>>()[..] else { panic!("{outcome:?}") };
        assert!(said.starts_with(&named) && said.contains(expected), "{manner:?}: {outcome:?}");
    }
    for variable in ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://", "gar bage"] {
        let outcome = enrol(&coordinator, &[("HTTPS_PROXY", variable)]);
        assert!(outcome.is(4) && outcome.error.contains("HTTPS_PROXY is not a URL such as"), "{variable}: {outcome:?}");
    }
    let outcome = enrol(&coordinator, &[("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")]);
    assert!(outcome.is(4) && outcome.error.contains("127.0.0.1, port 9, cannot be reached"), "{outcome:?}");
    assert!(!outcome.error.contains("secret"), "{outcome:?}");
    assert!(!coordinator.cli(&["site", "list"]).contains("amsterdam"), "none of them went around the proxy");
}
