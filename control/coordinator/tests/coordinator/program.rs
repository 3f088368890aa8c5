//! The program itself: its command line, its end, and a state directory that is not as it should be.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use penstock_coordinator::store::Store;
use penstock_proto::coordination::{EnrolmentKey, RefusalReason};

use crate::client::{Failure, Gateway, HOST};
use crate::running;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_penstock-coordinator");

pub struct Program {
    child: Child,
    log: std::sync::mpsc::Receiver<String>,
}

impl Program {
    pub fn start(state: &Path) -> Self {
        Self::spawn(run(Command::new(PROGRAM), state))
    }

    /// Has a restart listen at the same addresses, since gateways are told of them.
    pub fn keep_addresses(&self, state: &Path, tcp: std::net::SocketAddr) {
        let udp = self.says("STUN or relay at ");
        running::keep_addresses(state, tcp, udp.trim_end_matches(" (UDP)").parse().unwrap());
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = std::sync::mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let aloud = std::env::var_os("PENSTOCK_TEST_LOG").is_some();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| {
                if aloud {
                    eprintln!("{line}");
                }
                sender.send(line)
            })
        });
        Self { child, log }
    }

    /// Waits for a line of the log; returns what follows the words.
    pub fn says(&self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let line = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("it does not say {words:?}"));
            if let Some((_, rest)) = line.split_once(words) {
                return rest.to_owned();
            }
        }
    }

    /// All lines of the log since the last time.
    pub fn lines(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.says("listening at ").parse().unwrap()
    }

    /// Its memory in bytes (proc(5), `VmRSS`).
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// How long it has kept a core busy (proc(5), `utime` and `stime` in hundredths of a second).
    pub fn busy(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    pub fn signal(&self, signal: &str) {
        let outcome = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(outcome.success());
    }

    fn ends(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(mut command: Command, state: &Path) -> Command {
    let [tcp, udp] = running::addresses(state).map(|address| address.to_string());
    command.args(["run", "--listen", &tcp, "--udp", &udp, "--stun-alternate-port", "0"]);
    command.args(["--name", HOST, "--state"]).arg(state);
    command.env("NO_COLOR", "1").env_remove("RUST_LOG");
    command
}

fn cli(state: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).arg("--state").arg(state).args(arguments).output().unwrap()
}

pub fn succeeds(state: &Path, arguments: &[&str]) -> String {
    let output = cli(state, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(state: &Path, arguments: &[&str]) -> String {
    let output = cli(state, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub fn enrolment_key(state: &Path, arguments: &[&str]) -> EnrolmentKey {
    succeeds(state, &[&["key", "create"], arguments].concat()).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_from_a_key_to_a_revoked_site() {
    let directory = running::directory();
    let state = &directory.path().join("state");
    let error = fails(state, &["site", "list"]);
    assert!(error.starts_with("penstock-coordinator: the coordinator is not running (state directory "), "{error}");

    let mut program = Program::start(state);
    let address = program.address();
    let fingerprint = program.says("fingerprint is ");
    let key = enrolment_key(state, &["--uses", "2", "--expires", "24h", "--tag", "branch", "--approve-manually"]);
    let pin = key.fingerprint().unwrap();
    assert_eq!(pin.to_string(), fingerprint);
    let listed = succeeds(state, &["key", "list"]);
    assert!(listed.contains(&key.id().to_string()) && listed.contains("by hand"), "{listed}");
    assert!(!listed.contains("penstock1-"), "{listed}");

    let site = Gateway::new("amsterdam", &["10.1.0.0/16"]).with_key(&key);
    let mut connection = site.connect(address, pin).await.unwrap();
    assert!(succeeds(state, &["site", "list"]).contains("pending"));
    assert_eq!(succeeds(state, &["site", "approve", "amsterdam"]), "amsterdam is approved\n");
    connection.until_peers(&[]).await;
    let sites: serde_json::Value = serde_json::from_str(&succeeds(state, &["site", "list", "--json"])).unwrap();
    assert_eq!(sites[0]["Name"], "amsterdam");
    assert_eq!(sites[0]["State"], "Approved");
    assert_eq!(sites[0]["Connected"], true);
    assert_eq!(sites[0]["PublicKey"], site.key.to_string());

    let policy = directory.path().join("policy.json");
    std::fs::write(&policy, r#"{"Links": [["tag:branch", "tag:hub"]]}"#).unwrap();
    succeeds(state, &["policy", "set", policy.to_str().unwrap()]);
    let set = succeeds(state, &["policy", "show"]);
    assert!(set.contains("tag:hub"));
    std::fs::write(&policy, r#"{"Links": [], "Subnets": {"*": ["10.2.0.0/16"]}}"#).unwrap();
    let changes = succeeds(state, &["policy", "set", "--dry-run", policy.to_str().unwrap()]);
    assert_eq!(changes, "sites whose announced subnets change: 1\n  amsterdam: 10.1.0.0/16, then none\n");
    assert_eq!(succeeds(state, &["policy", "show"]), set);
    std::fs::write(&policy, r#"{"Lynx": []}"#).unwrap();
    let error = fails(state, &["policy", "set", policy.to_str().unwrap()]);
    assert!(error.contains("policy.json") && error.contains("Lynx"), "{error}");

    assert!(fails(state, &["site", "revoke", "paris"]).contains("there is no site paris"));
    assert!(fails(state, &["key", "revoke", "00000000"]).contains("no enrolment key"));
    succeeds(state, &["key", "revoke", &key.id().to_string()]);
    succeeds(state, &["site", "revoke", "amsterdam"]);
    assert_eq!(connection.end().await.reason(), RefusalReason::Revoked);

    let second = Program::start(state);
    second.says("another coordinator uses the state directory");
    program.signal("-TERM");
    assert!(program.ends().success());
    assert!(fails(state, &["site", "list"]).contains("the coordinator is not running"));
}

#[test]
fn what_is_wrong_with_flags_and_files_is_said() {
    let directory = running::directory();
    let (state, file) = (directory.path(), directory.path().join("a.json"));
    std::fs::write(&file, r#"{"Names": ["x y"]}"#).unwrap();
    let of_file = ["--config", file.to_str().unwrap(), "run"];
    let expected = r#"Names: "x y" is neither a host name nor an address"#;
    assert_eq!(fails(state, &of_file), format!("penstock-coordinator: {}: {expected}\n", file.display()));
    let error = fails(state, &[&of_file[..], &["--lease", "3d"]].concat());
    assert_eq!(error, format!("penstock-coordinator: {} and the flags: {expected}\n", file.display()));
    assert_eq!(fails(state, &["run", "--name", "x y"]), format!("penstock-coordinator: {expected}\n"));
    let error = fails(state, &["relay", "--coordinator", "https://a", "--name", "b"]);
    assert!(error.contains("--fingerprint or --ca must say whom to trust"), "{error}");
    let output = cli(state, &["run", "--name", "a", "--listen", "1.2.3.4"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("not an address with a port, such as 192.0.2.1:443"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_keeps_what_it_acknowledged() {
    let directory = running::directory();
    let mut enrolled: Vec<Gateway> = Vec::new();
    for round in 0..3 {
        let program = Program::start(directory.path());
        let address = program.address();
        let key = enrolment_key(directory.path(), &["--uses", "100"]);
        let pin = key.fingerprint().unwrap();
        for site in &enrolled {
            let mut connection = site.connect(address, pin).await.unwrap();
            connection.until("it is known", |connection| connection.registration.is_some()).await;
        }
        // The program is killed while sites enrol.
        let id = program.child.id().to_string();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150 + 40 * round));
            Command::new("kill").args(["-KILL", &id]).status()
        });
        for number in 0.. {
            let site = Gateway::new(&format!("s{round}-{number}"), &[]).with_key(&key);
            match site.connect(address, pin).await {
                Ok(_) => enrolled.push(Gateway { enrolment: None, ..site }),
                Err(Failure::Refused(reason)) => panic!("{reason}"),
                Err(_) => break,
            }
        }
    }
    assert!(enrolled.len() > 3, "{}", enrolled.len());
    let program = Program::start(directory.path());
    let sites: serde_json::Value = {
        program.address();
        serde_json::from_str(&succeeds(directory.path(), &["site", "list", "--json"])).unwrap()
    };
    let listed: Vec<&str> = sites.as_array().unwrap().iter().filter_map(|site| site["PublicKey"].as_str()).collect();
    for site in &enrolled {
        assert!(listed.contains(&site.key.to_string().as_str()), "{} is lost", site.name);
    }
}

/// A service manager that hears nothing for the time that it has set ends the program and starts another.
#[test]
fn a_service_manager_hears_of_it_as_long_as_it_runs() {
    let directory = running::directory();
    is_heard(run(Command::new(PROGRAM), directory.path()), directory.path(), "0 sites, 0 connected");
}

#[test]
fn a_service_manager_hears_of_a_relay_as_long_as_it_runs() {
    let directory = running::directory();
    let [tcp, udp] = running::addresses(directory.path()).map(|address| address.to_string());
    let mut command = Command::new(PROGRAM);
    command.arg("--state").arg(directory.path());
    command.args(["relay", "--coordinator", "https://127.0.0.1:9", "--fingerprint", &"00".repeat(32)]);
    command.args(["--name", HOST, "--listen", &tcp, "--udp", &udp, "--stun-alternate-port", "0"]);
    is_heard(command, directory.path(), "0 sites, 0 bound");
}

/// Runs a program, stops and continues it, and ends it, with a service manager that listens.
fn is_heard(mut command: Command, directory: &Path, state: &str) {
    let socket = directory.join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let hears = |within: u64| {
        manager.set_read_timeout(Some(Duration::from_secs(within))).unwrap();
        let mut text = [0; 100];
        let length = manager.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).trim().to_owned())
    };
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let mut program = Program::spawn(command);
    assert_eq!(hears(10).as_deref(), Some("READY=1"));
    assert_eq!(hears(10).unwrap(), format!("STATUS={state}"));
    for _ in 0..3 {
        assert_eq!(hears(10).as_deref(), Some("WATCHDOG=1"));
    }
    program.signal("-STOP");
    while hears(1).is_some() {}
    program.signal("-CONT");
    assert_eq!(hears(10).as_deref(), Some("WATCHDOG=1"));
    program.signal("-TERM");
    while hears(10).expect("it says that it stops") != "STOPPING=1" {}
    assert!(program.ends().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_newer_database_is_named() {
    let directory = running::directory();
    let database = directory.path().join("coordinator.db");
    std::fs::write(&database, vec![0x5a; 8192]).unwrap();
    let mut program = Program::start(directory.path());
    program.says("coordinator.db is damaged");
    assert_eq!(program.ends().code(), Some(1));

    std::fs::remove_file(&database).unwrap();
    Store::open(&database).await.unwrap().close().await.unwrap();
    // The schema's number is in the header (sqlite.org/fileformat.html, section 1.3).
    let mut bytes = std::fs::read(&database).unwrap();
    bytes[60..64].copy_from_slice(&7_u32.to_be_bytes());
    std::fs::write(&database, bytes).unwrap();
    let mut program = Program::start(directory.path());
    program.says("was made by a newer coordinator (schema 7, this one knows 5)");
    assert_eq!(program.ends().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_others_can_enter_is_refused() {
    let directory = running::directory();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
    let mut program = Program::start(directory.path());
    program.says("is open to other users: chmod 700 it");
    assert_eq!(program.ends().code(), Some(1));
}

/// A shell in a mount namespace of its own, or nothing where that is not allowed.
fn in_namespace(script: &str, state: &Path) -> Option<Command> {
    let allowed = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("PENSTOCK_TEST_REQUIRED").is_none(), "mount namespaces are not allowed");
        eprintln!("skipped: mount namespaces are not allowed");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{script}; shift; exec \"$@\""), "sh"]).arg(state).arg(PROGRAM);
    Some(run(command, state))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_named() {
    let directory = running::directory();
    let database = directory.path().join("coordinator.db");
    Store::open(&database).await.unwrap().close().await.unwrap();
    let script = "mount --bind \"$1/coordinator.db\" \"$1/coordinator.db\"; \
        mount -o remount,ro,bind \"$1/coordinator.db\"";
    let Some(command) = in_namespace(script, directory.path()) else { return };
    let mut program = Program::spawn(command);
    program.says("coordinator.db is read-only");
    assert_eq!(program.ends().code(), Some(1));

    let script = "mount --bind \"$1\" \"$1\"; mount -o remount,ro,bind \"$1\"";
    let Some(command) = in_namespace(script, directory.path()) else { return };
    let mut program = Program::spawn(command);
    program.says("Read-only file system");
    assert_eq!(program.ends().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_and_keeps_connections() {
    let directory = running::directory();
    let script = "mount -t tmpfs -o size=512k,mode=0700 tmpfs \"$1\"";
    let Some(command) = in_namespace(script, directory.path()) else { return };
    let program = Program::spawn(command);
    let address = program.address();
    // The namespace's view of the directory.
    let root = format!("/proc/{}/root", program.child.id());
    let state = Path::new(&root).join(directory.path().strip_prefix("/").unwrap());
    let key = enrolment_key(&state, &["--uses", "1000"]);
    let pin = key.fingerprint().unwrap();
    let first = Gateway::new("first", &["10.1.0.0/16"]).with_key(&key);
    let mut connection = first.connect(address, pin).await.unwrap();
    connection.until_peers(&[]).await;

    let mut ballast = std::fs::File::create(state.join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    drop(ballast);
    let mut refused = false;
    for number in 0..200 {
        let site = Gateway::new(&format!("s{number}"), &[]).with_key(&key);
        match site.connect(address, pin).await {
            Ok(_) => {}
            Err(Failure::Refused(RefusalReason::Unavailable)) => {
                refused = true;
                break;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused, "the disk never was full");
    program.says("is full: nothing was changed");
    let error = fails(&state, &["key", "create"]);
    assert!(error.contains("is full"), "{error}");
    connection.say_address("192.0.2.1:1").await;
    first.connect(address, pin).await.unwrap();

    std::fs::remove_file(state.join("ballast")).unwrap();
    let last = Gateway::new("last", &[]).with_key(&key);
    last.connect(address, pin).await.unwrap();
}
