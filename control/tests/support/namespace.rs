//! A network namespace that lives as long as its guard and the processes started in it.

use super::process::Process;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

const PREFIX: &str = "penstock-test-";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A number no other call in this process has had.
pub fn unique() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// A named network namespace; clones share it, the last one deletes it.
#[derive(Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    handle: File,
}

impl Namespace {
    /// Creates a namespace with loopback up; `role` makes its name readable.
    pub fn new(role: &str) -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep_the_dead);
        let name = format!("{PREFIX}{}-{}-{role}", std::process::id(), unique());
        run_plain(Command::new("ip").args(["netns", "add", &name]));
        let handle = File::open(Path::new("/run/netns").join(&name)).expect("namespace handle");
        let namespace = Self { inner: Arc::new(Inner { name, handle }) };
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/accept_ra", "0");
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The command `program` in this namespace, to be given arguments and run.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name()]).arg(program);
        command
    }

    /// Runs a command line to its end, whatever its outcome: success and both outputs.
    pub fn attempt(&self, words: &[&str]) -> (bool, String) {
        let output = self.command(words[0]).args(&words[1..]).stdin(Stdio::null()).output().expect("command starts");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Runs a command line that must succeed and returns its output.
    pub fn run(&self, words: &[&str]) -> String {
        let (success, text) = self.attempt(words);
        assert!(success, "{}: {words:?}: {text}", self.name());
        text
    }

    /// Runs `ip` commands, one a line, that must all succeed.
    pub fn ip(&self, script: &str) {
        let mut child = Command::new("ip")
            .args(["-n", self.name(), "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip starts");
        // Dropping the pipe ends the batch.
        let mut input = child.stdin.take().expect("piped");
        input.write_all(script.as_bytes()).expect("ip reads");
        drop(input);
        let output = child.wait_with_output().expect("ip ends");
        assert!(output.status.success(), "{}: ip: {}\n{script}", self.name(), String::from_utf8_lossy(&output.stderr));
    }

    /// The output of one `ip` query.
    pub fn ip_show(&self, words: &str) -> String {
        let output =
            Command::new("ip").args(["-n", self.name()]).args(words.split_whitespace()).output().expect("ip starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a value under /proc/sys, `path` with slashes.
    pub fn sysctl(&self, path: &str, value: &str) {
        let file = Path::new("/proc/sys").join(path);
        self.enter(|| std::fs::write(&file, value))
            .unwrap_or_else(|error| panic!("{}: {}: {error}", self.name(), file.display()));
    }

    /// Loads an nftables script.
    pub fn nft(&self, script: &str) {
        self.run(&["nft", script]);
    }

    /// Runs `work` on a thread in this namespace; sockets made there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(
                    self.inner.handle.as_fd(),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .expect("setns");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `command_line` here; its outputs go to `log`.
    pub fn spawn(&self, words: &[&str], log: &Path) -> Process {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        Process::spawn(command, log, Some(self.clone()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Removes what killed test runs left: namespaces of our prefix whose process is no more.
fn sweep_the_dead() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner else { continue };
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
            for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &name]).status();
    }
}

fn run_plain(command: &mut Command) {
    let output = command.output().expect("command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
