//! Tests that need another kernel than the build machine's: kernel WireGuard, netem, real drivers. `scripts/lab` runs
//! them in virtual machines.

#[path = "../support/mod.rs"]
mod support;

mod bridged;
mod cards;
mod kernel_wireguard;
mod netem;
mod stacked;
mod standstill;

use std::io::Write;

/// Whether the test can run here: in a machine of the laboratory, with `tools`.
fn ready(tools: &[&str]) -> bool {
    assert!(std::env::var_os("PENSTOCK_LAB_NOTES").is_some(), "these tests run in the laboratory: scripts/lab run");
    support::ready(tools)
}

/// Has `scripts/lab` print what a test has measured or found.
fn note(text: &str) {
    let path = std::env::var_os("PENSTOCK_LAB_NOTES").expect("asked in ready");
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("the notes");
    writeln!(file, "{text}").expect("noted");
}

/// Has `scripts/lab` stop the machine, and returns when it runs again.
fn stop_machine(time: std::time::Duration) {
    let request = std::path::Path::new("/run/lab/stop");
    std::fs::write(request, time.as_secs().to_string()).expect("asked");
    let again = || !request.exists();
    support::eventually(time + std::time::Duration::from_secs(30), "the machine was stopped", again);
}

/// What `penstock status` says about how the cards' ports are bound and what they were seen to do, in few words.
fn ports(status: &serde_json::Value) -> String {
    let is_card = |port: &&serde_json::Value| port["Interface"] == "wan0" || port["Interface"] == "lan0";
    let told = |port: &serde_json::Value| {
        let text = |field: &str| port[field].as_str().unwrap_or_default().to_owned();
        let copy = match port["ZeroCopy"].as_bool() {
            Some(true) => " zero-copy",
            Some(false) => " copy",
            None => "",
        };
        let proven = match (port["Receiving"]["State"].as_str(), port["Sending"]["State"].as_str()) {
            (Some(receiving), Some(sending)) => format!(", receiving {receiving}, sending {sending}"),
            _ => String::new(),
        };
        let port = format!("{} {} {} {}{copy}", text("Interface"), port["Queue"], text("Kind"), text("XdpMode"));
        format!("{}{proven}", port.trim())
    };
    let all: Vec<String> = status["Ports"].as_array().expect("ports").iter().filter(is_card).map(told).collect();
    all.join("; ")
}
