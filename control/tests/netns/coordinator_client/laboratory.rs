//! A coordinator in a separate process, and sites that want to be admitted.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use penstock::coordinator::{Client, Config, Event};
use penstock::profile::{Environment, Profile};
use penstock_connect::{Outbound, Proxy};
use penstock_proto::coordination::{Map, Name};
use tempfile::TempDir;
use tokio::time::timeout;

/// Longer than anything takes here, so that only what never comes exceeds it.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PENSTOCK: &str = env!("CARGO_BIN_EXE_penstock");

/// The coordinator's program, which the workspace builds beside ours; `None`, with a message, if it is not built.
fn program() -> Option<PathBuf> {
    let path = Path::new(PENSTOCK).with_file_name("penstock-coordinator");
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("PENSTOCK_TEST_REQUIRED").is_none(), "{} is not built", path.display());
    // Not eprintln!: the test harness would capture it, and a skipped test must be seen.
    let _ = writeln!(std::io::stderr(), "skipped: {} is not built (cargo build --workspace)", path.display());
    None
}

/// A coordinator with its state. Killed when dropped.
pub struct Coordinator {
    program: PathBuf,
    state: TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

impl Coordinator {
    /// A new one on a port of its own; `None` if it is not built.
    pub fn start() -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut coordinator = Self { program: program()?, state, address: ([127, 0, 0, 1], 0).into(), child: None };
        coordinator.run();
        Some(coordinator)
    }

    /// Starts it, each time on the same port.
    pub fn run(&mut self) {
        let mut child = Command::new(&self.program)
            .args([
                "run",
                "--name",
                "127.0.0.1",
                "--listen",
                &self.address.to_string(),
                "--no-stun",
                "--no-relay",
                "--state",
            ])
            .arg(self.state.path())
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = std::sync::mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Keeps reading when nobody listens, so that the process never blocks.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        self.child = Some(child);
        self.address = says(&log, "listening at ").parse().unwrap();
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        if signal == "-STOP" {
            // A thread on another core may still answer for a moment.
            while !self.is_stopped(&id) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Whether every thread of the process has stopped.
    fn is_stopped(&self, id: &str) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        // The state follows the name, which is in parentheses.
        stats.into_iter().all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
    }

    /// Replaces its certificate with another.
    pub fn change_certificate(&mut self) {
        self.kill();
        for file in ["certificate.pem", "certificate.key"] {
            std::fs::remove_file(self.state.path().join(file)).unwrap();
        }
        self.run();
    }

    pub fn certificate(&self) -> PathBuf {
        self.state.path().join("certificate.pem")
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Runs a command of its command line, which must succeed.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output =
            Command::new(&self.program).arg("--state").arg(self.state.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// An enrolment key.
    pub fn key(&self, arguments: &[&str]) -> String {
        self.cli(&[&["key", "create"], arguments].concat()).trim().to_owned()
    }

    /// A new site that is enrolled.
    pub fn site(&self, name: &str, subnet: &str) -> Site {
        let site = Site::new(name, subnet);
        let outcome = site.enrol(&[&self.key(&[]), "--coordinator", &self.url()]);
        assert!(outcome.is(0), "{outcome:?}");
        site
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a line; returns what follows the words.
fn says(log: &Receiver<String>, words: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = log.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let line = line.unwrap_or_else(|_| panic!("it does not say {words:?}"));
        if let Some((_, rest)) = line.split_once(words) {
            return rest.to_owned();
        }
    }
}

/// A gateway's profile and state, in a directory of its own.
pub struct Site {
    directory: TempDir,
    pub name: String,
}

/// How a command of `penstock` ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

impl Site {
    pub fn new(name: &str, subnet: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let profile = format!(
            "{{\n  \"Name\": \"{name}\",\n  \"PrivateKeyFile\": \"site.key\",\n  \
            \"Wan\":   {{ \"Interface\": \"eth0\" }},\n  \"Lan\": {{ \"Subnets\": [\"{subnet}\"] }}\n}}\n"
        );
        let site = Self { directory, name: name.to_owned() };
        std::fs::write(site.profile(), profile).unwrap();
        site
    }

    pub fn profile(&self) -> PathBuf {
        self.directory.path().join("a.profile")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.file(name)).unwrap().mode() & 0o777
    }

    /// `penstock enrol` with no proxy but those that `prepare` sets.
    pub fn enrol_by(&self, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Outcome {
        self.enrol_with(PENSTOCK, &[], arguments, prepare)
    }

    /// The same by a program that takes the command as arguments.
    pub fn enrol_with(
        &self,
        program: &str,
        before: &[&str],
        arguments: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Outcome {
        let mut command = Command::new(program);
        command.args(before).arg("--profile").arg(self.profile()).arg("enrol").args(arguments);
        for (name, _) in std::env::vars_os() {
            let lower = name.to_string_lossy().to_ascii_lowercase();
            if lower.ends_with("_proxy") || lower.starts_with("penstock_") {
                command.env_remove(name);
            }
        }
        command.env("PENSTOCK_STATE_DIR", self.directory.path().join("state"));
        command.env("PENSTOCK_RUNTIME_DIR", self.directory.path().join("run")).stdin(Stdio::null());
        prepare(&mut command);
        Outcome::of(command.output().unwrap())
    }

    pub fn enrol(&self, arguments: &[&str]) -> Outcome {
        self.enrol_by(arguments, |_| {})
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.profile()).unwrap()
    }

    pub fn load(&self) -> Profile {
        Profile::load(&self.profile(), &Environment::default()).unwrap()
    }

    /// The map's file.
    pub fn cache(&self) -> PathBuf {
        self.file(&format!("state/{}.map", self.name))
    }

    pub fn config(&self) -> Config {
        Config { cache: self.cache(), ..Config::of(&self.load()).unwrap() }
    }

    pub fn client(&self) -> Running {
        Running { client: Client::start_through(self.config(), Outbound::new(Proxy::none(), 0)), map: None }
    }
}

impl Outcome {
    fn of(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) }
    }

    pub fn is(&self, code: i32) -> bool {
        self.code == Some(code)
    }
}

/// A client and the last map that it reported.
pub struct Running {
    pub client: Client,
    pub map: Option<Map>,
}

impl Running {
    /// The next event.
    pub async fn next(&mut self) -> Event {
        let event = timeout(PATIENCE, self.client.next()).await.expect("an event");
        if let Event::Map(map) = &event {
            self.map = Some(Map::clone(map));
        }
        event
    }

    /// Events until one is wanted.
    pub async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let Ok(event) = timeout(deadline.saturating_duration_since(Instant::now()), self.next()).await else {
                panic!("{what} never comes: {seen:?}");
            };
            if let Some(found) = wanted(&event) {
                return found;
            }
            seen.push(event);
        }
    }

    /// Events until the map has just these peers.
    pub async fn until_peers(&mut self, names: &[&str]) {
        let names: Vec<Name> = names.iter().map(|name| name.parse().unwrap()).collect();
        self.until(&format!("a map of {names:?}"), |event| {
            let Event::Map(map) = event else { return None };
            let mut peers: Vec<Name> = map.peers.values().map(|peer| peer.name.clone()).collect();
            peers.sort_unstable();
            (peers == names).then_some(())
        })
        .await;
    }

    pub async fn until_lost(&mut self) -> String {
        self.until("a loss", |event| match event {
            Event::Lost(why) => Some(why.clone()),
            _ => None,
        })
        .await
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: never");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
