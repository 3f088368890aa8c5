//! The coordinator's own certificate is replaced while gateways run.

use serde_json::{Value, json};

use super::tools;
use crate::support::nat::{Kind, Lab};
use crate::support::overlay::{Coordinator, OverlayGateway, Pair};
use crate::support::*;

fn pin(gateway: &OverlayGateway, fingerprints: &str) {
    let output = gateway.penstock(&["set-config", &format!("Coordinator.Fingerprint={fingerprints}")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// How many times it had no path to its peer.
fn paths_lost(gateway: &OverlayGateway) -> usize {
    gateway.process.log().matches(": no path").count()
}

/// Waits until the coordinator's present process has a connection of this gateway.
fn await_connected(coordinator: &Coordinator, gateway: &OverlayGateway) {
    eventually(PATIENCE, &format!("{} is connected", gateway.name), || {
        let sites: Value = serde_json::from_str(&coordinator.run(&["site", "list", "--json"])).expect("JSON");
        let sites = sites.as_array().expect("a list");
        sites.iter().any(|site| site["Name"] == gateway.name.as_str() && site["Connected"] == true)
    });
}

#[test]
fn a_gateway_that_pins_both_certificates_follows_and_one_that_does_not_is_told() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let mut coordinator = Coordinator::start(&lab);
    let pair = Pair::start(&lab, &coordinator, [Kind::None, Kind::None], &json!({}));
    let (told, forgotten) = (&pair.gateway_a, &pair.gateway_b);
    pair.await_both("direct", PATIENCE);
    let (beat, before) = (pair.heartbeat(), [told, forgotten].map(paths_lost));
    let present = coordinator.fingerprint();
    let next = coordinator.run(&["certificate", "next"]).trim().to_owned();
    pin(told, &format!("{present},{next}"));
    await_connected(&coordinator, told);

    coordinator.run(&["certificate", "switch"]);
    assert!(coordinator.process.terminate().success());
    coordinator.restart();
    await_connected(&coordinator, told);
    let refuses = "shows another certificate than the pinned one";
    eventually(PATIENCE, "the other gateway says why it is not connected", || {
        let status = forgotten.status();
        status["Coordinator"]["Error"].as_str().is_some_and(|error| error.contains(refuses))
    });

    pin(told, &next);
    pin(forgotten, &next);
    assert!(coordinator.process.terminate().success());
    coordinator.restart();
    await_connected(&coordinator, told);
    await_connected(&coordinator, forgotten);
    assert_eq!([told, forgotten].map(paths_lost), before, "the coordinator's certificate has to do with no path");
    let beats = beat.stop();
    assert!(beats.lost() <= 2 && beats.longest_gap() <= 1.0, "{} lost, {:.2} s", beats.lost(), beats.longest_gap());
}
