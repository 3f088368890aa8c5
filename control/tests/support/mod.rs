//! The laboratory of the integration tests: sites in network namespaces, gateways in them, and instruments for sending,
//! counting and capturing.
//!
//! Every object here is a guard: what it started or created is gone when it is dropped, also on a panic. Names are
//! unique per process and counter, so tests run in any order and beside each other. Nothing here knows how Penstock
//! works inside: `PENSTOCK_TEST_AS=wireguard-go` (or `boringtun`, `gotatun`) puts another implementation in its place,
//! which tells a wrong test from a wrong gateway.

// Each test file is a separate crate and uses its part of the laboratory.
#![allow(dead_code, unused_imports)]

mod capture;
mod control;
mod gateway;
mod kernel;
mod message;
pub mod name_server;
pub mod nat;
pub mod overlay;
mod state_directory;
mod steering;
mod terminal;
mod topology;
mod traffic;
mod wire;

pub use capture::{Capture, Datagram, Frame, assert_no_clear_text, count_messages};
pub use control::{genkey, genpsk, pubkey, wg, wg_try};
pub use gateway::{
    Gateway, GatewayConfig, Kind, Peer, await_traffic, joined, pair, pair_config, penstock, penstock_binary, socket,
    write_profile, write_secret,
};
pub use kernel::KernelWireguard;
pub use message::{
    COOKIE_REPLY, HANDSHAKE_INITIATION, HANDSHAKE_RESPONSE, Random, TRANSPORT_DATA, initiation, raw_datagram,
};
pub use penstock_netns::{Namespace, Process, eventually, holds_within};
pub use state_directory::StateDirectory;
pub use steering::{Swallower, attach_foreign_program, program};
pub use terminal::Terminal;
pub use topology::{Middle, Options, Outer, PORT, Site, Topology, bridge_lan, has_cards};
pub use traffic::{
    CLEAR_TEXT_MARKER, Ping, TcpSink, UdpEcho, datagram_sizes, iperf3, ping, tcp_both_ways, tcp_transfer, udp_echoes,
};
pub use wire::{Partial, Wire};

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How long anything on these lightly loaded, local networks may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Tools that every test of this suite needs.
const ALWAYS: [&str; 4] = ["ip", "wg", "ethtool", "ping"];

/// Whether the test can run here: as root, and with `tools` present. Otherwise the reason is printed on the terminal,
/// and the test returns. With `PENSTOCK_TEST_REQUIRED=1` a reason to skip is a failure.
pub fn ready(tools: &[&str]) -> bool {
    can_run(obstacle(tools))
}

/// The same, for what only newer kernels do.
pub fn ready_since(least: [u32; 2], what: &str, tools: &[&str]) -> bool {
    let [major, minor] = least;
    let old = || (linux() < least).then(|| format!("{what} needs Linux {major}.{minor}"));
    can_run(obstacle(tools).or_else(old))
}

/// The kernel's version: major and minor number.
pub fn linux() -> [u32; 2] {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    [numbers.next(), numbers.next()].map(|number| number.expect("a number"))
}

fn can_run(obstacle: Option<String>) -> bool {
    let Some(reason) = obstacle else {
        return true;
    };
    assert!(std::env::var_os("PENSTOCK_TEST_REQUIRED").is_none(), "cannot run: {reason}");
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    // Not eprintln!: the test harness would capture it, and a skipped test must be seen.
    let _ = writeln!(std::io::stderr(), "skipped {name}: {reason}");
    false
}

fn obstacle(tools: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    for tool in ALWAYS.iter().chain(tools) {
        if which(tool).is_none() {
            return Some(format!("{tool} is not installed (scripts/setup --test)"));
        }
    }
    if gateway::stand_in().is_none() && penstock_binary().is_none() {
        return Some("there is no penstock binary".into());
    }
    // Implementations race to create it when the first ones start in parallel.
    let _ = std::fs::create_dir_all("/var/run/wireguard");
    None
}

/// Whether the long variants were requested.
pub fn long() -> bool {
    std::env::var_os("PENSTOCK_TEST_LONG").is_some_and(|value| value == "1")
}

/// Whether Penstock itself is under test, not a stand-in; for features that only Penstock has.
pub fn is_penstock() -> bool {
    gateway::stand_in().is_none()
}

pub fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(tool))
        .find(|candidate| candidate.is_file())
}

pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
