//! Network namespaces for tests and comparisons: each lives as long as its guard and the processes started in it.
//!
//! They have names, so that `ip netns` finds them, and a name identifies the process that made it. What a killed
//! process left behind is removed when another one makes its first namespace. Tests call methods that panic with the
//! reason; those whose names begin with `try_` return it as an error.

mod process;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

pub use process::{Process, eventually, has_signal, holds_within};
use rustix::process::{Pid, Signal};
use rustix::thread::CapabilitySet;

const PREFIX: &str = "penstock-lab-";
/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// A network namespace; clones share it, and the last one deletes it if it was made here.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None`: this process's own.
    name: Option<String>,
    handle: File,
    made_here: bool,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// What it is called there.
    pub name: &'a str,
    /// Its Ethernet address.
    pub address: &'a str,
}

impl Namespace {
    /// Makes a namespace with loopback up; `role` makes its name readable.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn new(role: &str) -> Self {
        Self::try_new(role).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Namespace::new`], for callers that handle the error.
    ///
    /// # Errors
    /// There is no `ip`, or no permission to make namespaces.
    pub fn try_new(role: &str) -> io::Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let name = format!("{}{}-{role}", prefix(), unique());
        output(Command::new("ip").args(["netns", "add", &name])).map_err(privileged)?;
        let handle = File::open(Path::new(NAMED).join(&name))?;
        let namespace = Self { inner: Arc::new(Inner { name: Some(name), handle, made_here: true }) };
        // Addresses are usable at once, and only whoever asked for the namespace configures it.
        for (path, value) in [("all/accept_dad", "0"), ("default/accept_dad", "0"), ("default/accept_ra", "0")] {
            namespace.try_sysctl(&format!("net/ipv6/conf/{path}"), value)?;
        }
        namespace.try_ip("link set lo up")?;
        Ok(namespace)
    }

    /// This thread's own.
    ///
    /// # Errors
    /// The kernel does not say which it is.
    pub fn own() -> io::Result<Self> {
        let handle = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { inner: Arc::new(Inner { name: None, handle, made_here: false }) })
    }

    /// A namespace that somebody else has made and named.
    ///
    /// # Errors
    /// There is none with this name.
    pub fn named(name: &str) -> io::Result<Self> {
        let handle = File::open(Path::new(NAMED).join(name))?;
        Ok(Self { inner: Arc::new(Inner { name: Some(name.into()), handle, made_here: false }) })
    }

    /// Its name; empty for this process's own.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name.as_deref().unwrap_or_default()
    }

    /// The command `program` in this namespace, to be given arguments and run.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(name) = &self.inner.name else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(program);
        command
    }

    /// Runs a command line to its end, whatever its outcome; returns success and both outputs.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn attempt(&self, words: &[&str]) -> (bool, String) {
        let output = self.command(words[0]).args(&words[1..]).stdin(Stdio::null()).output().expect("command starts");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Runs a command line that must succeed and returns both its outputs.
    ///
    /// # Panics
    /// If the command fails.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let (success, text) = self.attempt(words);
        assert!(success, "{}: {words:?}: {text}", self.name());
        text
    }

    /// Runs a command line and returns what it prints.
    ///
    /// # Errors
    /// It cannot be started, or it fails; the error then contains its output.
    pub fn try_run(&self, words: &[&str]) -> io::Result<String> {
        output(self.command(words[0]).args(&words[1..]))
    }

    /// Runs `ip` commands, one per line, that must all succeed.
    ///
    /// # Panics
    /// If a command fails.
    #[track_caller]
    pub fn ip(&self, script: &str) {
        self.try_ip(script).unwrap_or_else(|error| panic!("{}: {error}\n{script}", self.name()));
    }

    /// As [`Namespace::ip`], for callers that handle the error.
    ///
    /// # Errors
    /// One fails; the others are not run.
    pub fn try_ip(&self, script: &str) -> io::Result<()> {
        let mut command = self.ip_command();
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // Dropping the pipe ends the batch. An `ip` that has already failed reads no further, and says why.
            let _ = input.write_all(script.as_bytes());
        }
        checked(&command, &child.wait_with_output()?).map(drop)
    }

    /// The output of one `ip` query, whatever its outcome.
    ///
    /// # Panics
    /// There is no `ip`.
    #[must_use]
    pub fn ip_show(&self, words: &str) -> String {
        let output = self.ip_command().args(words.split_whitespace()).output().expect("ip starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn ip_command(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(self.inner.name.iter().flat_map(|name| ["-n", name]));
        command
    }

    /// Sets a value under /proc/sys, `path` with slashes.
    ///
    /// # Panics
    /// The kernel refuses.
    #[track_caller]
    pub fn sysctl(&self, path: &str, value: &str) {
        self.try_sysctl(path, value).unwrap_or_else(|error| panic!("{}: {error}", self.name()));
    }

    /// As [`Namespace::sysctl`], for callers that handle the error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn try_sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        let file = Path::new("/proc/sys").join(path);
        let written = self.try_enter(|| std::fs::write(&file, value))?;
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
    }

    /// Loads an nftables script.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        self.run(&["nft", script]);
    }

    /// Runs `work` on a thread in this namespace; sockets made there stay in it, and programs started there run in it.
    ///
    /// # Panics
    /// There is no permission to enter, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.try_enter(work).unwrap_or_else(|error| panic!("{}: {error}", self.name()))
    }

    /// As [`Namespace::enter`], for callers that handle the error.
    ///
    /// # Errors
    /// There is no permission to enter.
    pub fn try_enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        let inside = || {
            rustix::thread::move_into_link_name_space(self.inner.handle.as_fd(), kind)
                .map_err(|error| privileged(error.into()))?;
            Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Starts a command line here; its outputs go to `log`.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn spawn(&self, words: &[&str], log: &Path) -> Process {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        Process::spawn(command, log, Some(self.clone()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let (true, Some(name)) = (self.made_here, &self.name) {
            // Nothing more can be done about a failure; the next process that makes one tries again.
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Joins two namespaces by a veth pair with this many queues each way; both ends are up.
///
/// # Errors
/// `ip` refuses.
pub fn veth([left, right]: [End<'_>; 2], queues: u32) -> io::Result<()> {
    let queues = format!("numrxqueues {queues} numtxqueues {queues}");
    left.namespace.try_ip(&format!(
        "link add {} address {} {queues} type veth peer name {} address {} netns {} {queues}",
        left.name,
        left.address,
        right.name,
        right.address,
        right.namespace.name()
    ))?;
    [left, right].into_iter().try_for_each(|end| end.namespace.try_ip(&format!("link set {} up", end.name)))
}

/// A number no other call in this process has had.
pub fn unique() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// What the names of this process's namespaces begin with.
#[must_use]
pub fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Names in a folder that begin with the [`prefix`] of a process that has ended. Anybody may write to a folder of
/// temporary files, but only root's are ours.
#[must_use]
pub fn left_in(folder: &Path) -> Vec<String> {
    let is_left = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner: u32 = name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()?;
        let of_root = entry.metadata().is_ok_and(|metadata| metadata.uid() == 0);
        (of_root && !Path::new("/proc").join(owner.to_string()).exists()).then_some(name)
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| is_left(&entry)).collect()
}

/// Removes what killed processes left, with the programs that still run in it.
fn sweep() {
    for name in left_in(Path::new(NAMED)) {
        let pids = output(Command::new("ip").args(["netns", "pids", &name])).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let _ = Command::new("ip").args(["netns", "del", &name]).status();
    }
}

/// Runs a short command to its end; returns its output.
fn output(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("cannot start {program}: {error}")))?;
    checked(command, &output)
}

fn checked(command: &Command, output: &Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{} failed: {said}", words.join(" "))))
}

/// Says what is missing where the kernel only refuses.
fn privileged(error: io::Error) -> io::Error {
    if rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)) {
        return error;
    }
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "network namespaces need privileges: run as root or with CAP_SYS_ADMIN, and AF_XDP needs CAP_NET_RAW, \
         CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK",
    )
}
