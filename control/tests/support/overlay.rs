//! A coordinator on the laboratory's internet, and gateways that enrol with it.

use super::gateway::{penstock, penstock_binary, write_profile, write_secret};
use super::nat::{Kind, Lab, Site, corners};
use super::{PATIENCE, eventually, genkey};
use penstock_netns::{Namespace, Process, unique};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A running coordinator, with its STUN server and relay.
pub struct Coordinator {
    pub process: Process,
    namespace: Namespace,
    directory: PathBuf,
    address: String,
    arguments: Vec<String>,
}

impl Coordinator {
    /// Starts one at the first two of the laboratory's server addresses.
    pub fn start(lab: &Lab) -> Self {
        Self::start_with(lab, &[])
    }

    /// The same, with further options.
    pub fn start_with(lab: &Lab, options: &[&str]) -> Self {
        let address = lab.server(1).to_string();
        let directory = lab.scratch().join(format!("coordinator-{}", unique()));
        let mut arguments =
            ["run", "--name", &address, "--listen", &format!("{address}:443")].map(str::to_owned).to_vec();
        for corner in corners(lab) {
            arguments.extend(["--udp".to_owned(), corner.to_string()]);
        }
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        let namespace = lab.internet().clone();
        let process = spawn(&namespace, &directory, &arguments);
        let coordinator = Self { process, namespace, directory, address, arguments };
        coordinator.await_ready();
        coordinator
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        self.process = spawn(&self.namespace, &self.directory, &self.arguments);
        self.await_ready();
    }

    fn await_ready(&self) {
        eventually(PATIENCE, "the coordinator answers", || self.attempt(&["site", "list", "--json"]).0);
    }

    /// Names these relays to gateways from now on, besides its own or, with `--no-relay`, instead of it.
    pub fn list_relays(&mut self, relays: &[Value], options: &[&str]) {
        let file = self.directory.with_extension("json");
        std::fs::write(&file, json!({ "Relays": relays }).to_string()).expect("configuration");
        self.arguments.extend(["--config".to_owned(), file.to_str().expect("UTF-8").to_owned()]);
        self.arguments.extend(options.iter().map(|option| (*option).to_owned()));
        assert!(self.process.terminate().success());
        self.restart();
    }

    /// The URL for gateways.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The fingerprint of its certificate.
    pub fn fingerprint(&self) -> String {
        let log = self.process.log();
        after(&log, "SHA-256 fingerprint is ").expect("a fingerprint").to_owned()
    }

    /// `penstock-coordinator WORDS`: whether it succeeded, and its outputs.
    pub fn attempt(&self, words: &[&str]) -> (bool, String) {
        let binary = binary();
        let mut all = vec![binary.to_str().expect("UTF-8")];
        all.extend(words);
        all.extend(["--state", self.directory.to_str().expect("UTF-8")]);
        self.namespace.attempt(&all)
    }

    /// The same, which must succeed.
    pub fn run(&self, words: &[&str]) -> String {
        let (success, text) = self.attempt(words);
        assert!(success, "penstock-coordinator {words:?}: {text}");
        text
    }

    /// An enrolment key for this many sites, with a tag.
    pub fn key(&self, uses: usize, tag: &str) -> String {
        self.run(&["key", "create", "--uses", &uses.to_string(), "--tag", tag])
            .lines()
            .last()
            .expect("a key")
            .trim()
            .to_owned()
    }

    /// Puts a policy in force.
    pub fn policy(&self, policy: &Value) {
        let file = self.directory.join("policy.json");
        std::fs::write(&file, policy.to_string()).expect("policy");
        self.run(&["policy", "set", file.to_str().expect("UTF-8")]);
    }
}

/// A relay in a separate process.
pub struct Relay {
    pub process: Process,
    pub address: SocketAddr,
    namespace: Namespace,
    directory: PathBuf,
    arguments: Vec<String>,
    starts: usize,
}

impl Relay {
    const PORT: u16 = 3478;

    /// Starts one at a server address of the laboratory. The coordinator accepts it once its configuration lists it.
    pub fn start(lab: &Lab, coordinator: &Coordinator, server: u8) -> Self {
        let address = SocketAddr::new(lab.server(server).into(), Self::PORT);
        let ip = address.ip().to_string();
        let fingerprint = coordinator.fingerprint();
        let report: Value = serde_json::from_str(&coordinator.run(&["authority", "show", "--json"])).expect("JSON");
        let authority = report["Authority"].as_str().expect("a key");
        let arguments: Vec<String> = [
            &["relay", "--coordinator", &coordinator.url(), "--fingerprint", &fingerprint, "--name", &ip][..],
            &["--authority", authority],
            &["--listen", &format!("{ip}:443"), "--udp", &address.to_string(), "--no-stun"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
        let directory = lab.scratch().join(format!("relay-{}", unique()));
        let namespace = lab.internet().clone();
        let process = spawn(&namespace, &directory, &arguments);
        let relay = Self { process, address, namespace, directory, arguments, starts: 1 };
        relay.await_ready();
        relay
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        self.process = spawn(&self.namespace, &self.directory, &self.arguments);
        self.starts += 1;
        self.await_ready();
    }

    fn await_ready(&self) {
        let started = || self.process.log().matches(KEY_IS).count() == self.starts;
        eventually(PATIENCE, "the relay runs", started);
    }

    /// Its entry for the coordinator's configuration, reached by UDP at `udp`.
    pub fn listing(&self, name: &str, udp: SocketAddr) -> Value {
        let log = self.process.log();
        let url = format!("https://{}", self.address.ip());
        json!({ "Name": name, "PublicKey": after(&log, KEY_IS).expect("a key"), "Udp": [udp], "Url": url })
    }
}

const KEY_IS: &str = "the relay's public key is ";

/// The word after `marker`.
fn after<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    text.split_once(marker)?.1.split_whitespace().next()
}

fn binary() -> PathBuf {
    let beside = penstock_binary().expect("penstock").with_file_name("penstock-coordinator");
    assert!(beside.is_file(), "{} is missing: cargo build -p penstock-coordinator", beside.display());
    beside
}

fn spawn(namespace: &Namespace, directory: &Path, arguments: &[String]) -> Process {
    let binary = binary();
    let mut words = vec![binary.to_str().expect("UTF-8")];
    words.extend(arguments.iter().map(String::as_str));
    words.extend(["--state", directory.to_str().expect("UTF-8")]);
    namespace.spawn(&words, &directory.with_extension("log"))
}

/// A gateway that has enrolled.
pub struct OverlayGateway {
    pub process: Process,
    pub name: String,
    namespace: Namespace,
    profile: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl OverlayGateway {
    /// Enrols a site with a key and starts its gateway. `extra` are further fields of the profile.
    pub fn start(site: &Site, coordinator: &Coordinator, key: &str, extra: &Value) -> Self {
        let (name, profile, environment) = Self::prepare(site, &genkey(), extra);
        let key_file = site.scratch.join(format!("{name}.enrolment"));
        write_secret(&key_file, key);
        let words = [
            "enrol",
            key_file.to_str().expect("UTF-8"),
            "--coordinator",
            &coordinator.url(),
            "--profile",
            profile.to_str().expect("UTF-8"),
        ];
        let output = command(&site.gateway, &environment).args(words).output().expect("penstock starts");
        assert!(output.status.success(), "enrol: {}", String::from_utf8_lossy(&output.stderr));
        let process = run(&site.gateway, &environment, &profile);
        Self { process, name, namespace: site.gateway.clone(), profile, environment }
    }

    /// Starts a gateway with this private key that need not enrol: `extra` has its coordinator, or its peers.
    pub fn enrolled(site: &Site, private_key: &str, extra: &Value) -> Self {
        let (name, profile, environment) = Self::prepare(site, private_key, extra);
        let process = run(&site.gateway, &environment, &profile);
        Self { process, name, namespace: site.gateway.clone(), profile, environment }
    }

    /// A gateway's name, profile and environment.
    fn prepare(site: &Site, private_key: &str, extra: &Value) -> (String, PathBuf, Vec<(&'static str, String)>) {
        let name = format!("o{}x{}", std::process::id(), unique());
        assert!(name.len() <= 15, "{name} is no interface name");
        let profile = site.scratch.join(format!("{name}.profile"));
        write_secret(&site.scratch.join(format!("{name}.key")), private_key);
        let mut fields = json!({
            "Name": name,
            "PrivateKeyFile": format!("{name}.key"),
            "Wan": { "Interface": "wan0", "Mode": "udp" },
            "Lan": { "Interfaces": ["lan0"], "Mode": "tun", "Subnets": [site.subnet()] },
            "Workers": 1,
        });
        for (field, value) in extra.as_object().expect("fields") {
            fields[field] = value.clone();
        }
        write_profile(&profile, &fields);
        let mut environment = vec![("PENSTOCK_STATE_DIR", site.scratch.to_str().expect("UTF-8").to_owned())];
        if site.kind() == Kind::ProxyOnly {
            environment.push(("HTTPS_PROXY", format!("http://{}", site.proxy())));
        }
        (name, profile, environment)
    }

    /// Starts it again after it has ended.
    pub fn restart(&mut self) {
        self.process = run(&self.namespace, &self.environment, &self.profile);
    }

    /// Changes the profile, and makes the gateway read it: returns what it reports as changed.
    pub fn reload(&self, edit: impl FnOnce(&mut Value)) -> String {
        let text = std::fs::read(&self.profile).expect("the profile is there");
        let mut profile = serde_json::from_slice(&text).expect("JSON");
        edit(&mut profile);
        write_profile(&self.profile, &profile);
        let output = self.penstock(&["reload"]);
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "reload: {said}{error}\n{}", self.process.log());
        said.into_owned()
    }

    /// `penstock WORDS` for its profile, in its namespace.
    pub fn penstock(&self, words: &[&str]) -> std::process::Output {
        let mut command = command(&self.namespace, &self.environment);
        command.args(words).arg("--profile").arg(&self.profile).output().expect("penstock starts")
    }

    /// `penstock status --json`, once it answers.
    pub fn status(&self) -> Value {
        let mut status = Value::Null;
        eventually(PATIENCE, "the gateway answers", || {
            let profile = self.profile.to_str().expect("UTF-8");
            let output = penstock(&self.namespace, &["status", "--json", "--profile", profile]);
            status = serde_json::from_slice(&output.stdout).unwrap_or_default();
            // 1 means that it has problems.
            matches!(output.status.code(), Some(0 | 1)) && status.is_object()
        });
        status
    }

    /// `penstock netcheck --json` of a gateway that is stopped, with this STUN server.
    pub fn netcheck(&self, stun: &str) -> Value {
        let mut command = command(&self.namespace, &self.environment);
        let output = command.args(["netcheck", "--json", "--stun", stun, "--profile"]).arg(&self.profile).output();
        let output = output.expect("penstock starts");
        assert!(output.status.success(), "netcheck: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Its status of a peer; null if there is no peer of that name.
    pub fn peer(&self, name: &str) -> Value {
        let status = self.status();
        let peers = status["Peers"].as_array().expect("peers");
        peers.iter().find(|peer| peer["Name"] == name).cloned().unwrap_or_default()
    }

    /// Waits until a peer is reached in this way: "direct", "relay", "none".
    pub fn await_path(&self, peer: &str, path: &str, limit: Duration) {
        let mut last = Value::Null;
        let name = &self.name;
        eventually(limit, &format!("{name} reaches {peer} by path {path}"), || {
            last = self.peer(peer);
            last["Path"] == path
        });
    }
}

fn command(namespace: &Namespace, environment: &[(&'static str, String)]) -> std::process::Command {
    let mut command = namespace.command(penstock_binary().expect("penstock"));
    // Proxies of this machine must not be used in the laboratory.
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

fn run(namespace: &Namespace, environment: &[(&'static str, String)], profile: &Path) -> Process {
    let mut command = command(namespace, environment);
    command.args(["run", "--profile", profile.to_str().expect("UTF-8")]);
    Process::spawn(command, &profile.with_extension("log"), Some(namespace.clone()))
}

/// Pings that measure how long there was no answer.
pub struct Heartbeat {
    process: Process,
}

/// What a [`Heartbeat`] has seen.
#[derive(Debug)]
pub struct Beats {
    /// Seconds since the epoch and number of each answer, in the order of arrival.
    pub answers: Vec<(f64, u32)>,
}

impl Heartbeat {
    /// Starts pinging `target` every `interval`, at most `count` times.
    pub fn start(site: &Site, target: std::net::IpAddr, interval: Duration, count: u32) -> Self {
        Self::start_in(&site.host, &site.scratch, target, interval, count)
    }

    /// The same, from any host.
    pub fn start_in(
        host: &Namespace,
        scratch: &Path,
        target: std::net::IpAddr,
        interval: Duration,
        count: u32,
    ) -> Self {
        let log = scratch.join(format!("heartbeat-{}.log", unique()));
        let (interval, count) = (format!("{:.3}", interval.as_secs_f64()), count.to_string());
        let target = target.to_string();
        let words = ["ping", "-n", "-D", "-i", &interval, "-c", &count, "-W", "1", &target];
        Self { process: host.spawn(&words, &log) }
    }

    /// What was seen so far.
    pub fn beats(&self) -> Beats {
        let number = |text: &str, before: &str, after: char| -> Option<f64> {
            text.split_once(before)?.1.split(after).next()?.parse().ok()
        };
        let answer = |line: &str| {
            let at = number(line, "[", ']')?;
            line.contains("bytes from").then_some(())?;
            Some((at, number(line, "icmp_seq=", ' ')? as u32))
        };
        Beats { answers: self.process.log().lines().filter_map(answer).collect() }
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self, limit: Duration) -> Beats {
        self.process.wait(limit);
        self.beats()
    }

    /// Stops it.
    pub fn stop(mut self) -> Beats {
        self.process.interrupt();
        self.beats()
    }
}

impl Beats {
    /// The longest time between two answers, in seconds.
    pub fn longest_gap(&self) -> f64 {
        self.answers.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(0.0, f64::max)
    }

    /// Seconds from a time since the epoch to the next answer; infinite if there is none.
    pub fn silence_after(&self, time: f64) -> f64 {
        self.answers.iter().map(|(at, _)| at - time).find(|wait| *wait >= 0.0).unwrap_or(f64::INFINITY)
    }

    /// Unanswered requests, from the first answered one to the last.
    pub fn lost(&self) -> u32 {
        let numbers = || self.answers.iter().map(|(_, number)| *number);
        let (Some(first), Some(last)) = (numbers().min(), numbers().max()) else { return 0 };
        last + 1 - first - numbers().collect::<std::collections::BTreeSet<_>>().len() as u32
    }
}

/// Seconds since the epoch, as [`Beats::answers`] have them.
pub fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs_f64()
}

/// Two sites of one coordinator. The gateways end before the namespaces they run in.
pub struct Pair {
    pub gateway_a: OverlayGateway,
    pub gateway_b: OverlayGateway,
    pub a: Site,
    pub b: Site,
}

impl Pair {
    /// Enrols and starts both gateways. `extra` are further fields of their profiles.
    pub fn start(lab: &Lab, coordinator: &Coordinator, kinds: [Kind; 2], extra: &Value) -> Self {
        let key = coordinator.key(2, "site");
        let (a, b) = (lab.site(kinds[0], 1), lab.site(kinds[1], 2));
        let gateway_a = OverlayGateway::start(&a, coordinator, &key, extra);
        let gateway_b = OverlayGateway::start(&b, coordinator, &key, extra);
        Self { gateway_a, gateway_b, a, b }
    }

    /// What each gateway reports about the other.
    pub fn peers(&self) -> [Value; 2] {
        [self.gateway_a.peer(&self.gateway_b.name), self.gateway_b.peer(&self.gateway_a.name)]
    }

    /// Waits until both see this path.
    pub fn await_both(&self, path: &str, limit: Duration) {
        self.gateway_a.await_path(&self.gateway_b.name, path, limit);
        self.gateway_b.await_path(&self.gateway_a.name, path, limit);
    }

    /// Waits until both are relayed by this relay.
    pub fn await_relay(&self, relay: &str, limit: Duration) {
        let relayed = || self.peers().iter().all(|peer| peer["Path"] == "relay" && peer["Relay"] == relay);
        eventually(limit, &format!("both are relayed by {relay}"), relayed);
    }

    /// Pings from A's host to B's, ten a second, of which one was answered already.
    pub fn heartbeat(&self) -> Heartbeat {
        let beat = Heartbeat::start(&self.a, self.b.host_address(), Duration::from_millis(100), 100_000);
        eventually(PATIENCE, "the first answer", || !beat.beats().answers.is_empty());
        beat
    }
}
