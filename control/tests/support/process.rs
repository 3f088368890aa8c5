//! A child process with its outputs in a file, killed when its guard is dropped.

use super::namespace::Namespace;
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

pub struct Process {
    child: Child,
    log: PathBuf,
    // Keeps the namespace until the process in it is gone.
    _namespace: Option<Namespace>,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    pub fn spawn(mut command: Command, log: &Path, namespace: Option<Namespace>) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log file"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned(), _namespace: namespace }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the process has printed.
    /// Time that its threads have spent on a core.
    pub fn cpu_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let nanoseconds = tasks.map(|task| {
            let statistics = std::fs::read_to_string(task.expect("a task").path().join("schedstat"));
            statistics.ok().and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("own child")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        // It may have ended already; whoever cares looks at the exit status.
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        super::eventually(limit, "the process ends", || {
            status = self.child.try_wait().expect("own child");
            status.is_some()
        });
        status.expect("just seen")
    }

    pub fn interrupt(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.wait(super::PATIENCE)
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(super::PATIENCE)
    }

    /// SIGKILL, and wait.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(4000);
            let tail = log.get(from..).unwrap_or(&log);
            eprintln!("--- {} (pid {})\n{tail}\n---", self.log.display(), self.child.id());
        }
    }
}
