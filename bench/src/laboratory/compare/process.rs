//! Programs that are ended when they are no longer needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Error, Result, io_error};

/// The interval at which a condition is checked.
const LOOK: Duration = Duration::from_millis(10);
/// How long a program that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How much of a failed program's output is reported.
const TOLD: usize = 300;

/// A running program whose outputs are in files. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Process {
    /// Starts `command`; `log` is where its outputs go, as LOG.out and LOG.err.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Process> {
        let (output, errors) = (log.with_extension("out"), log.with_extension("err"));
        let create = |path: &Path| File::create(path).map_err(io_error(format!("write {}", path.display())));
        command.stdin(Stdio::null()).stdout(create(&output)?).stderr(create(&errors)?);
        let child = command.spawn().map_err(io_error(format!("start {}", program(&command))))?;
        Ok(Process { child, output, errors })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its output so far.
    pub(super) fn printed(&self) -> String {
        read(&self.output)
    }

    /// The rest of the first line of output that begins like this.
    pub(super) fn line(&self, beginning: &str) -> Option<String> {
        let text = read(&self.errors) + &self.printed();
        text.lines().find_map(|line| line.strip_prefix(beginning)).map(Into::into)
    }

    /// The end of its error output, or else of its output.
    pub(super) fn complaint(&self) -> String {
        let errors = read(&self.errors);
        let text = if errors.trim().is_empty() { self.printed() } else { errors };
        let from = text.len().saturating_sub(TOLD);
        let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        text[from..].split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Waits until `pattern` appears in one of its outputs.
    pub(super) fn wait_for(&mut self, pattern: &str, within: Duration, stop: &AtomicBool) -> Result<()> {
        let found = until(within, stop, || {
            !self.is_running() || read(&self.errors).contains(pattern) || self.printed().contains(pattern)
        })?;
        match found && self.is_running() {
            true => Ok(()),
            false => Err(Error::Failed(format!("it never printed \"{pattern}\": {}", self.complaint()))),
        }
    }

    /// Waits until it ends by itself; returns its output if it succeeded.
    pub(super) fn finish(mut self, within: Duration, stop: &AtomicBool) -> Result<String> {
        until(within, stop, || !self.is_running())?;
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(self.printed()),
            Ok(Some(status)) => Err(Error::Failed(self.ending(status))),
            _ => Err(Error::Failed(format!("it did not end within {} s", within.as_secs()))),
        }
    }

    /// Asks it to end; returns its output if it succeeded.
    pub(super) fn stop(mut self) -> Result<String> {
        match self.end() {
            Some(status) if status.success() => Ok(self.printed()),
            Some(status) => Err(Error::Failed(self.ending(status))),
            None => Err(Error::Failed("it did not end".into())),
        }
    }

    fn ending(&self, status: ExitStatus) -> String {
        format!("it ended with {status}: {}", self.complaint())
    }

    fn end(&mut self) -> Option<ExitStatus> {
        if self.is_running() {
            if let Some(pid) = Pid::from_raw(self.id().cast_signed()) {
                let _ = kill_process(pid, Signal::TERM);
            }
            // Without the stop flag, which is set when everything ends.
            let _ = until(GRACE, &AtomicBool::new(false), || !self.is_running());
            let _ = self.child.kill();
        }
        self.child.wait().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a short command to its end, and returns its output.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(io_error(format!("start {}", program(command))))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed(format!("{command:?} failed: {said}")))
}

/// Waits until `condition` holds; returns whether it did in time.
pub(super) fn until(within: Duration, stop: &AtomicBool, mut condition: impl FnMut() -> bool) -> Result<bool> {
    let end = Instant::now() + within;
    loop {
        if condition() {
            return Ok(true);
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
}

/// Where the shell would find a program; a path is returned as it is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_program =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(is_program);
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(is_program)
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_ends_with_its_guard_even_if_it_will_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let never = AtomicBool::new(false);
        let mut process = Process::start(shell("echo ready; exec sleep 600"), &folder.path().join("a")).expect("sh");
        process.wait_for("ready", Duration::from_secs(5), &never).expect("ready");
        let running = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(running.exists());
        drop(process);
        assert!(!running.exists());
    }

    #[test]
    fn what_a_program_said_last_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let never = AtomicBool::new(false);
        let ended = |script: &str| {
            let process = Process::start(shell(script), &folder.path().join("b")).expect("sh");
            process.finish(Duration::from_secs(5), &never)
        };
        assert_eq!(ended("echo 5").expect("a good end"), "5\n");
        let said = ended("echo no such device >&2; exit 3").expect_err("a bad end").to_string();
        assert!(said.contains("no such device") && said.contains('3'), "{said}");
        let mut silent = Process::start(shell("exec sleep 600"), &folder.path().join("c")).expect("sh");
        assert!(silent.wait_for("ready", Duration::from_millis(50), &never).is_err());
    }

    #[test]
    fn waiting_ends_with_the_signal() {
        let stopped = until(Duration::from_secs(60), &AtomicBool::new(true), || false);
        assert!(matches!(stopped, Err(Error::Stopped)));
    }

    #[test]
    fn programs_are_found_as_the_shell_finds_them() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("no-such-program"), None);
    }
}
