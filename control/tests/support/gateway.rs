//! A gateway, under test or for comparison: one process, one tunnel device, one `wg` name.

use super::control::{genkey, pubkey, wg, wg_try};
use super::topology::{Outer, PORT, Site, Topology};
use super::{PATIENCE, eventually};
use penstock_netns::{Namespace, Process, unique};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its WAN and LAN modes in the profile's spelling.
    Penstock {
        wan: &'static str,
        lan: &'static str,
    },
    WireguardGo,
    Boringtun,
    Gotatun,
}

impl Kind {
    pub const XDP: Self = Self::Penstock { wan: "xdp", lan: "xdp" };
    pub const SOCKET: Self = Self::Penstock { wan: "udp", lan: "tun" };
    /// Every pair of WAN and LAN modes.
    pub const MODES: [Self; 4] =
        [Self::XDP, Self::Penstock { wan: "xdp", lan: "tun" }, Self::Penstock { wan: "udp", lan: "xdp" }, Self::SOCKET];

    /// The program of an implementation that is not Penstock.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::Penstock { .. } => None,
            Self::WireguardGo => Some("wireguard-go"),
            Self::Boringtun => Some("boringtun-cli"),
            Self::Gotatun => Some("gotatun"),
        }
    }
}

/// The implementation that `PENSTOCK_TEST_AS` puts in Penstock's place.
pub fn stand_in() -> Option<Kind> {
    let name = std::env::var("PENSTOCK_TEST_AS").ok()?;
    match name.as_str() {
        "wireguard-go" => Some(Kind::WireguardGo),
        "boringtun" => Some(Kind::Boringtun),
        "gotatun" => Some(Kind::Gotatun),
        _ => panic!("PENSTOCK_TEST_AS={name}: wireguard-go, boringtun or gotatun"),
    }
}

/// The binary under test: `PENSTOCK_BIN`, or the one cargo built for this test.
pub fn penstock_binary() -> Option<PathBuf> {
    std::env::var_os("PENSTOCK_BIN")
        .map(PathBuf::from)
        .or_else(|| option_env!("CARGO_BIN_EXE_penstock").map(PathBuf::from))
        .filter(|path| path.is_file())
}

#[derive(Clone, Debug)]
pub struct Peer {
    pub public_key: String,
    pub preshared_key: Option<String>,
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: Vec<String>,
    pub keepalive: Option<u16>,
    /// In the profile's spelling; other implementations have WireGuard's.
    pub suite: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub struct GatewayConfig {
    pub kind: Kind,
    pub name: String,
    pub private_key: String,
    pub port: u16,
    pub virtual_address: String,
    pub subnets: Vec<String>,
    pub workers: u32,
    /// Whether other sites may pass through.
    pub transit: bool,
    pub peers: Vec<Peer>,
    /// In the profile's format.
    pub coordinator: Option<Value>,
    /// Environment of the process.
    pub environment: Vec<(&'static str, String)>,
}

impl GatewayConfig {
    /// A gateway of `site` with fresh keys and no peers.
    pub fn new(site: &Site, kind: Kind) -> Self {
        let virtual_address = site.virtual_address().to_string();
        Self { subnets: site.subnets(), ..Self::elsewhere(kind, &virtual_address) }
    }

    /// A gateway outside the two sites, with fresh keys and no peers.
    pub fn elsewhere(kind: Kind, virtual_address: &str) -> Self {
        let name = format!("p{}x{}", std::process::id(), unique());
        assert!(name.len() <= 15, "{name} is no interface name");
        Self {
            kind,
            name,
            private_key: genkey(),
            port: PORT,
            virtual_address: virtual_address.to_owned(),
            subnets: Vec::new(),
            workers: 1,
            transit: false,
            peers: Vec::new(),
            coordinator: None,
            environment: Vec::new(),
        }
    }

    pub fn public_key(&self) -> String {
        pubkey(&self.private_key)
    }

    /// Makes the gateway of `site` that `config` describes a peer of this one.
    pub fn add_peer(&mut self, site: &Site, config: &Self, outer: Option<Outer>) {
        self.peers.push(Peer {
            public_key: config.public_key(),
            preshared_key: None,
            endpoint: outer.map(|outer| site.endpoint(outer)),
            allowed_ips: site.allowed_ips(),
            keepalive: None,
            suite: None,
        });
    }

    /// Makes Penstock start a new handshake every `seconds`, not every two minutes.
    pub fn rekey_after(&mut self, seconds: u32) {
        self.environment.push(("PENSTOCK_TEST_REKEY_AFTER_SECONDS", seconds.to_string()));
    }

    /// Keys and peers in the format of `wg setconf`.
    pub fn wg_conf(&self) -> String {
        let mut script = format!("[Interface]\nPrivateKey = {}\nListenPort = {}\n", self.private_key, self.port);
        for peer in &self.peers {
            script += &format!("[Peer]\nPublicKey = {}\n", peer.public_key);
            if !peer.allowed_ips.is_empty() {
                script += &format!("AllowedIPs = {}\n", peer.allowed_ips.join(","));
            }
            if let Some(key) = &peer.preshared_key {
                script += &format!("PresharedKey = {key}\n");
            }
            if let Some(endpoint) = peer.endpoint {
                script += &format!("Endpoint = {endpoint}\n");
            }
            if let Some(seconds) = peer.keepalive {
                script += &format!("PersistentKeepalive = {seconds}\n");
            }
        }
        script
    }

    /// `ip` commands for an existing tunnel device.
    pub fn addresses_and_routes(&self) -> String {
        let name = &self.name;
        let device = format!("addr add {}/32 dev {name}\nlink set {name} mtu 1420 up\n", self.virtual_address);
        let prefixes = self.peers.iter().flat_map(|peer| &peer.allowed_ips);
        device + &prefixes.map(|prefix| format!("route replace {prefix} dev {name}\n")).collect::<String>()
    }

    /// The profile as JSON; its key files are written beside it.
    pub fn profile(&self, directory: &Path) -> Value {
        let Kind::Penstock { wan, lan } = self.kind else {
            panic!("{:?} reads no profile", self.kind);
        };
        let peers: Vec<Value> = self
            .peers
            .iter()
            .enumerate()
            .map(|(index, peer)| {
                let preshared = peer.preshared_key.as_ref().map(|key| {
                    let file = format!("{}-{index}.psk", self.name);
                    write_secret(&directory.join(&file), key);
                    file
                });
                json!({
                    "Name": format!("peer-{index}"),
                    "PublicKey": peer.public_key,
                    "PresharedKeyFile": preshared,
                    "Endpoint": peer.endpoint.map(|endpoint| endpoint.to_string()),
                    "AllowedIPs": peer.allowed_ips,
                    "PersistentKeepalive": peer.keepalive.unwrap_or(0),
                    "Suite": peer.suite,
                })
            })
            .collect();
        let key_file = format!("{}.key", self.name);
        write_secret(&directory.join(&key_file), &self.private_key);
        let mut profile = json!({
            "Name": self.name,
            "LocalPort": self.port,
            "VirtualAddress": self.virtual_address,
            "PrivateKeyFile": key_file,
            "Wan": { "Interface": "wan0", "Mode": wan },
            "Lan": { "Interfaces": ["lan0"], "Mode": lan, "Subnets": self.subnets },
            "Workers": self.workers,
            "Transit": self.transit,
            "Peers": peers,
        });
        if let Some(coordinator) = &self.coordinator {
            profile["Coordinator"] = coordinator.clone();
        }
        profile
    }
}

/// A running gateway. Dropping it kills the process.
pub struct Gateway {
    pub config: GatewayConfig,
    pub process: Process,
    namespace: Namespace,
    profile: PathBuf,
    log: PathBuf,
}

impl Gateway {
    /// Starts the gateway in `site` and waits until `wg` can talk to it.
    pub fn start(site: &Site, config: GatewayConfig) -> Self {
        Self::start_in(&site.gateway, &site.scratch, config)
    }

    /// The same, in any namespace.
    pub fn start_in(namespace: &Namespace, scratch: &Path, config: GatewayConfig) -> Self {
        let name = config.name.clone();
        Self::try_start_in(namespace, scratch, config)
            .unwrap_or_else(|(ended, log)| panic!("{name} has ended, {ended}: {log}"))
    }

    /// The same for a gateway that may have a reason to end instead: returns how it ended, and its log.
    pub fn try_start_in(
        namespace: &Namespace,
        scratch: &Path,
        mut config: GatewayConfig,
    ) -> Result<Self, (ExitStatus, String)> {
        if let (Kind::Penstock { .. }, Some(other)) = (config.kind, stand_in()) {
            config.kind = other;
        }
        let profile = scratch.join(format!("{}.profile", config.name));
        let log = scratch.join(format!("{}.log", config.name));
        if matches!(config.kind, Kind::Penstock { .. }) {
            write_profile(&profile, &config.profile(scratch));
        }
        let namespace = namespace.clone();
        let process = spawn(&config, &namespace, &profile, &log);
        let mut gateway = Self { config, process, namespace, profile, log };
        gateway.await_ready()?;
        Ok(gateway)
    }

    /// Starts the same gateway again after it has ended.
    pub fn restart(&mut self) {
        self.process = spawn(&self.config, &self.namespace, &self.profile, &self.log);
        let ready = self.await_ready();
        ready.unwrap_or_else(|(ended, log)| panic!("{} has ended, {ended}: {log}", self.config.name));
    }

    fn await_ready(&mut self) -> Result<(), (ExitStatus, String)> {
        let name = self.config.name.clone();
        let mut ended = None;
        let mut complaint = String::new();
        let ready = super::holds_within(PATIENCE, || {
            ended = self.process.ended();
            // wg removes a socket on which nobody listens yet, so it must not be the first to connect. A process that a
            // killed gateway was just starting holds the old socket for a moment, and answers nothing. And a gateway
            // may find a reason to end once it has the socket.
            let listens = ended.is_none() && UnixStream::connect(socket(&name)).is_ok();
            let answer = if listens { wg_try(&["show", &name]) } else { Err("nobody listens".to_owned()) };
            complaint = answer.as_ref().err().cloned().unwrap_or_default();
            ended.is_some() || answer.is_ok()
        });
        assert!(ready, "{name} does not answer: {complaint}");
        if let Some(ended) = ended {
            return Err((ended, self.process.log()));
        }
        if self.config.kind.program().is_some() {
            self.configure();
        }
        Ok(())
    }

    /// What Penstock reads from its profile: keys, peers, addresses and routes.
    fn configure(&self) {
        let file = self.profile.with_extension("conf");
        write_secret(&file, &self.config.wg_conf());
        wg(&["setconf", self.name(), file.to_str().expect("UTF-8")]);
        self.namespace.ip(&self.config.addresses_and_routes());
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    pub fn public_key(&self) -> String {
        self.config.public_key()
    }

    pub fn profile_path(&self) -> &Path {
        &self.profile
    }

    /// Changes the profile's file.
    pub fn edit_profile(&self, edit: impl FnOnce(&mut Value)) {
        let text = std::fs::read(&self.profile).expect("the profile is there");
        let mut profile = serde_json::from_slice(&text).expect("JSON");
        edit(&mut profile);
        write_profile(&self.profile, &profile);
    }

    /// Changes the profile's file, and makes the gateway read it: returns what it reports as changed.
    pub fn reload(&self, edit: impl FnOnce(&mut Value)) -> String {
        self.edit_profile(edit);
        let output = self.command(&["reload"]);
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "reload: {said}{error}\n{}", self.process.log());
        said.into_owned()
    }

    /// `wg show NAME FIELD`: the value of the line that starts with `peer`.
    pub fn show(&self, field: &str, peer: &str) -> String {
        wg(&["show", self.name(), field])
            .lines()
            .find_map(|line| line.strip_prefix(peer))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Bytes received from and sent to `peer`.
    pub fn transfer(&self, peer: &str) -> (u64, u64) {
        let line = self.show("transfer", peer);
        let mut numbers = line.split_whitespace().map(|word| word.parse().expect("a number"));
        (numbers.next().expect("received"), numbers.next().expect("sent"))
    }

    /// Seconds since the epoch; 0 before the first handshake.
    pub fn latest_handshake(&self, peer: &str) -> u64 {
        self.show("latest-handshakes", peer).parse().unwrap_or(0)
    }

    pub fn endpoint(&self, peer: &str) -> Option<SocketAddr> {
        self.show("endpoints", peer).parse().ok()
    }

    /// `wg set NAME …`.
    pub fn set(&self, arguments: &[&str]) {
        let mut all = vec!["set", self.name()];
        all.extend(arguments);
        wg(&all);
    }

    /// `wg set` takes secrets from files.
    pub fn secret_file(&self, name: &str, secret: &str) -> String {
        let path = self.profile.with_file_name(format!("{}-{name}", self.name()));
        write_secret(&path, secret);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Other implementations leave routes to the administrator.
    pub fn route(&self, prefix: &str) {
        if self.config.kind.program().is_some() {
            self.namespace.ip(&format!("route replace {prefix} dev {}\n", self.name()));
        }
    }

    /// `penstock status --json`.
    pub fn status(&self) -> Value {
        let profile = self.profile.to_str().expect("UTF-8");
        let output = penstock(&self.namespace, &["status", "--json", "--profile", profile]);
        // 1 means that it has problems.
        let answered = matches!(output.status.code(), Some(0 | 1));
        assert!(answered, "status: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("status is JSON")
    }

    /// The output of `penstock doctor --json`, and its exit code.
    pub fn doctor(&self) -> (Value, i32) {
        let output = self.command(&["doctor", "--json"]);
        let report = serde_json::from_slice(&output.stdout).expect("JSON");
        (report, output.status.code().expect("no signal"))
    }

    /// Runs another command of `penstock` about this gateway, whether it runs or not.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command: Command = self.namespace.command(penstock_binary().expect("checked by ready()"));
        command.args(arguments).arg("--profile").arg(&self.profile);
        command.env("PENSTOCK_STATE_DIR", state_directory(&self.profile));
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        command.output().expect("penstock starts")
    }

    /// Lifts the guard of a gateway that was stopped.
    pub fn release(&self) {
        let output = self.command(&["release", "--all"]);
        assert!(output.status.success(), "release: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The count of one drop reason in `status --json`.
    pub fn drops(&self, reason: &str) -> u64 {
        self.status()["Drops"][reason].as_u64().unwrap_or(0)
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.process.terminate()
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The log does not say which packets it dropped, or whether the gateway lost any at all.
        if std::thread::panicking() && self.process.is_running() && matches!(self.config.kind, Kind::Penstock { .. }) {
            eprintln!("{}", String::from_utf8_lossy(&self.command(&["status"]).stdout));
        }
        // SIGTERM first: a killed userspace gateway leaves its API socket in the shared /var/run.
        if self.process.is_running() {
            self.process.signal(Signal::TERM);
            super::holds_within(Duration::from_secs(3), || !self.process.is_running());
        }
        self.process.kill();
        let _ = std::fs::remove_file(socket(self.name()));
    }
}

/// Where the gateway of a profile keeps its state: beside the profile, since names are unique and scratch directories
/// are removed.
fn state_directory(profile: &Path) -> &Path {
    profile.parent().expect("a profile is in a directory")
}

/// The path of a gateway's API socket.
pub fn socket(name: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{name}.sock"))
}

fn spawn(config: &GatewayConfig, namespace: &Namespace, profile: &Path, log: &Path) -> Process {
    let mut command = match config.kind {
        Kind::Penstock { .. } => {
            let mut command = namespace.command(penstock_binary().expect("checked by ready()"));
            command.args(["run", "--profile"]).arg(profile);
            command.env("PENSTOCK_STATE_DIR", state_directory(profile));
            command
        }
        Kind::WireguardGo => {
            let mut command = namespace.command("wireguard-go");
            command.args(["-f", &config.name]).env("LOG_LEVEL", "error");
            command
        }
        Kind::Boringtun => {
            let mut command = namespace.command("boringtun-cli");
            command.args(["-f", "--disable-drop-privileges", "-t", "2", &config.name]);
            command
        }
        Kind::Gotatun => {
            let mut command = namespace.command("gotatun");
            command.args(["-f", "--disable-drop-privileges", &config.name]);
            command
        }
    };
    // boringtun ends when it finds a predecessor's socket.
    if config.kind.program().is_some() {
        let _ = std::fs::remove_file(socket(&config.name));
    }
    command.envs(config.environment.iter().map(|(name, value)| (name, value)));
    Process::spawn(command, log, Some(namespace.clone()))
}

/// Runs `penstock` to its end.
pub fn penstock(namespace: &Namespace, arguments: &[&str]) -> Output {
    let mut command: Command = namespace.command(penstock_binary().expect("checked by ready()"));
    command.args(arguments).output().expect("penstock starts")
}

pub fn write_profile(path: &Path, profile: &Value) {
    let text = serde_json::to_string_pretty(profile).expect("JSON");
    std::fs::write(path, text).expect("profile written");
}

/// Writes a file that only its owner can read.
pub fn write_secret(path: &Path, text: &str) {
    let mut file =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path).expect("secret file");
    writeln!(file, "{}", text.trim_end()).expect("secret written");
}

/// The configurations of two gateways that know each other's keys and endpoints. Behind a NAT, A cannot be reached
/// first: B has no endpoint for it.
pub fn pair_config(topology: &Topology, kind_a: Kind, kind_b: Kind, outer: Outer) -> (GatewayConfig, GatewayConfig) {
    let mut a = GatewayConfig::new(&topology.a, kind_a);
    let mut b = GatewayConfig::new(&topology.b, kind_b);
    a.workers = topology.options.queues;
    b.workers = topology.options.queues;
    let towards_a = (topology.options.middle != super::Middle::Nat).then_some(outer);
    a.add_peer(&topology.b, &b, Some(outer));
    b.add_peer(&topology.a, &a, towards_a);
    (a, b)
}

/// Two joined gateways, each started and ready; the handshake is still to come.
pub fn pair(topology: &Topology, kind_a: Kind, kind_b: Kind, outer: Outer) -> (Gateway, Gateway) {
    let (a, b) = pair_config(topology, kind_a, kind_b, outer);
    (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b))
}

/// [`pair`], and waits until both inner IP versions pass.
pub fn joined(topology: &Topology, kind_a: Kind, kind_b: Kind, outer: Outer) -> (Gateway, Gateway) {
    let gateways = pair(topology, kind_a, kind_b, outer);
    await_traffic(topology);
    gateways
}

/// Waits until both inner IP versions pass from A's host to B's. The limit leaves room for one lost
/// handshake message, which is repeated after five seconds.
pub fn await_traffic(topology: &Topology) {
    for target in topology.b.hosts() {
        eventually(Duration::from_secs(15), &format!("{target} answers A's host"), || {
            super::ping(&topology.a.host, target, &["-c", "1"]).all_answered()
        });
    }
}
