//! A gateway as run by systemd: its privileges, what it tells the service manager, and when it counts as dead.

use crate::support::*;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// After this time the service manager considers a silent gateway dead.
const WATCHDOG: Duration = Duration::from_secs(2);

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/packaging").join(name)
}

/// The capabilities that the unit leaves, in setpriv's format.
fn bounding_set() -> String {
    let text = std::fs::read_to_string(unit("penstock@.service")).expect("the unit");
    let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("its capabilities");
    let names = line.split(' ').map(|name| name.strip_prefix("CAP_").expect("a capability").to_lowercase());
    // The last one replaces LimitMEMLOCK, which not every machine lets root raise.
    names.fold("--bounding-set=-all".to_owned(), |set, name| format!("{set},+{name}")) + ",+ipc_lock"
}

/// Starts the gateway of `config` in site A with the unit's capabilities.
fn start(topology: &Topology, config: &GatewayConfig, environment: &[(&str, &str)]) -> Process {
    let site = &topology.a;
    let profile = site.scratch.join("service.profile");
    write_profile(&profile, &config.profile(&site.scratch));
    let mut command = site.gateway.command("setpriv");
    command.arg(bounding_set());
    command.arg(penstock_binary().expect("checked by ready()")).args(["run", "--profile"]).arg(&profile);
    command.env("PENSTOCK_STATE_DIR", &site.scratch).envs(environment.iter().copied());
    Process::spawn(command, &site.scratch.join("service.log"), Some(site.gateway.clone()))
}

/// The threads of a process: their names and their directories in /proc.
fn threads(process: &Process) -> Vec<(String, PathBuf)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
    let tasks = tasks.map(|task| task.expect("a task").path());
    tasks.map(|task| (std::fs::read_to_string(task.join("comm")).expect("its name").trim().to_owned(), task)).collect()
}

#[test]
fn the_units_expose_little() {
    if !ready(&["systemd-analyze"]) {
        return;
    }
    for (name, most) in [
        ("penstock@.service", "23"),
        ("penstock-guard@.service", "16"),
        ("penstock-coordinator.service", "19"),
        ("penstock-relay.service", "19"),
    ] {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--threshold", most]).arg(unit(name));
        let output = command.output().expect("systemd-analyze starts");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// A gateway that fails is always restarted, at growing intervals; a reload applies another profile; the guard is there
/// before the network; and no core is written.
#[test]
fn the_units_restart_without_end_reload_and_guard_early() {
    let settings = |name: &str| {
        let text = std::fs::read_to_string(unit(name)).expect("the unit");
        move |key: &str| {
            let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            values.collect::<Vec<_>>().join(" ")
        }
    };
    let (gateway, guard) = (settings("penstock@.service"), settings("penstock-guard@.service"));
    assert_eq!((gateway("Restart"), gateway("StartLimitIntervalSec")), ("on-failure".into(), "0".into()));
    assert_eq!((gateway("RestartSec"), gateway("RestartMaxDelaySec")), ("1s".into(), "60s".into()));
    assert_ne!(gateway("RestartSteps"), "");
    assert!(gateway("ExecReload").ends_with(" reload"));
    assert!(guard("Before").split(' ').any(|unit| unit == "network-pre.target"));
    assert_eq!((gateway("LimitCORE"), guard("LimitCORE")), ("0".into(), "0".into()));
}

/// The exit code of `status` follows the Linux Standard Base: 0 healthy, 1 degraded, 3 stopped. With `--check` it only
/// says whether anything is forwarded.
#[test]
fn exit_codes_tell_health_and_with_check_whether_it_forwards() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let code = |gateway: &Gateway, words: &[&str]| gateway.command(words).status.code();
    let ends = |gateway: &Gateway, what: &str, status: i32, check: i32| {
        let codes = || [code(gateway, &["status"]), code(gateway, &["status", "--check"])];
        eventually(PATIENCE, &format!("{what}: {status}, {check}"), || codes() == [Some(status), Some(check)]);
    };
    ends(&a, "all is well", 0, 0);
    topology.a.gateway.ip("link set lan0 name away7\n");
    ends(&a, "without its LAN", 1, 0);
    topology.a.gateway.ip("link set away7 name lan0\n");
    ends(&a, "with its LAN", 0, 0);
    topology.a.gateway.ip("link set wan0 name away7\n");
    ends(&a, "without its WAN", 1, 1);
    assert!(a.terminate().success());
    ends(&a, "stopped", 3, 3);
    std::fs::write(a.profile_path(), "{").expect("written");
    ends(&a, "stopped, with a profile that tells no name", 4, 4);
}

#[test]
fn the_units_capabilities_suffice_and_workers_have_none() {
    if !ready(&["setpriv"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = pair_config(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let process = start(&topology, &a, &[]);
    let _b = Gateway::start(&topology.b, b);
    await_traffic(&topology);
    let mut workers = 0;
    for (name, directory) in threads(&process) {
        let status = std::fs::read_to_string(directory.join("status")).expect("its status");
        let held = status.lines().filter(|line| ["CapPrm", "CapEff", "CapInh"].iter().any(|set| line.starts_with(set)));
        if name.starts_with("worker-") {
            workers += 1;
            held.for_each(|line| assert!(line.ends_with("\t0000000000000000"), "{name} has {line}"));
        }
    }
    assert_eq!(workers, 1);
}

/// Root without a unit has every capability; a running gateway keeps only those with which it rebuilds ports and reads
/// its files again.
#[test]
fn a_gateway_of_plain_root_keeps_only_what_it_needs() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    // DAC_OVERRIDE, DAC_READ_SEARCH, NET_BIND_SERVICE, NET_ADMIN, NET_RAW, IPC_LOCK, BPF (capabilities(7)).
    let kept: u64 = [1, 2, 10, 12, 13, 14, 39].iter().map(|bit| 1 << bit).sum();
    let held = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).expect("its status");
        let sets = ["CapPrm:", "CapEff:", "CapInh:"].map(|set| {
            let line = status.lines().find_map(|line| line.strip_prefix(set)).expect("a set");
            u64::from_str_radix(line.trim(), 16).expect("a number")
        });
        sets[0] | sets[1] | sets[2]
    };
    assert_ne!(held(std::process::id()) & !kept, 0, "nothing to give up, so nothing is shown");
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let left = held(a.process.pid());
    assert_eq!((left & !kept, left & 1 << 12), (0, 1 << 12), "{left:x}");
}

/// The receiving side of a service manager.
struct Manager {
    socket: Arc<UnixDatagram>,
    path: PathBuf,
    /// Read at once, as a service manager does: the sender waits when the socket has no room.
    messages: Receiver<String>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Manager {
    fn listen(site: &Site) -> Self {
        let path = site.scratch.join("notify");
        let socket = Arc::new(UnixDatagram::bind(&path).expect("a socket"));
        let (reading, (sender, messages)) = (Arc::clone(&socket), channel());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reading.recv(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { socket, path, messages }
    }

    /// What is reported within `limit`, message by message, until `enough` is true.
    fn receives(&self, limit: Duration, mut enough: impl FnMut(&str) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let next = || self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).any(|message| message.lines().any(&mut enough))
    }
}

/// A thread that is stopped while the others run.
struct Stuck(i32);

#[expect(unsafe_code, reason = "ptrace")]
impl Stuck {
    fn stop(thread: &Path) -> Self {
        let id: i32 = thread.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok()).expect("a thread");
        // SAFETY: these requests read and write no memory of ours.
        let stopped = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, id, 0, 0) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, id, 0, 0) == 0
                && libc::waitpid(id, std::ptr::null_mut(), libc::__WALL) == id
        };
        assert!(stopped, "{}", std::io::Error::last_os_error());
        Self(id)
    }
}

#[expect(unsafe_code, reason = "ptrace")]
impl Drop for Stuck {
    fn drop(&mut self) {
        // SAFETY: as above. The thread may be gone.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// The gateway reports that it is ready, its state, and that it is alive as long as control and the worker answer, even
/// while the worker sleeps because there is no traffic.
#[test]
fn the_service_manager_is_told_and_a_stuck_thread_counts_as_dead() {
    if !ready(&["setpriv"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let manager = Manager::listen(&topology.a);
    let socket = manager.path.to_str().expect("UTF-8");
    let limit = WATCHDOG.as_micros().to_string();
    let mut process = start(&topology, &a, &[("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", &limit)]);
    assert!(manager.receives(PATIENCE, |line| line == "READY=1"), "{}", process.log());
    assert!(topology.a.scratch.join(format!("{}.guard", a.name)).exists(), "ready without a guard");
    assert!(manager.receives(PATIENCE, |line| line == "STATUS=1 peer, 0 direct, 0 relayed"));
    let b = Gateway::start(&topology.b, b);
    await_traffic(&topology);
    assert!(manager.receives(PATIENCE, |line| line == "STATUS=1 peer, 1 direct, 0 relayed"));
    drop(b);

    let is_alive = || manager.receives(WATCHDOG, |line| line == "WATCHDOG=1");
    // Reports made before the thread was stopped, and one that it answered just before.
    let falls_silent = || {
        manager.receives(WATCHDOG, |_| false);
        !is_alive()
    };
    for _ in 0..3 {
        assert!(is_alive(), "a gateway with nothing to do is taken for dead");
    }
    assert!(!process.log().contains("do not answer"), "{}", process.log());
    for name in ["worker-0", "penstock"] {
        let found = threads(&process).into_iter().find(|(thread, _)| thread == name);
        let (_, thread) = found.unwrap_or_else(|| panic!("no thread {name}"));
        let stuck = Stuck::stop(&thread);
        assert!(falls_silent(), "{name} is stuck and nobody notices");
        drop(stuck);
        assert!(is_alive(), "{name} goes on and nobody notices");
    }
    assert!(process.log().contains("do not answer"), "{}", process.log());
    process.signal(rustix::process::Signal::TERM);
    assert!(manager.receives(PATIENCE, |line| line == "STOPPING=1"));
    assert!(process.wait(PATIENCE).success());
}
