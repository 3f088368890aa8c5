//! `start` and `stop`: the gateway in the background, with or without systemd.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Gateway, guard};
use crate::control_socket::{self, Answer, AskError};
use crate::profile::{DEFAULT_PATH, Environment, Name, Profile};
use crate::socket_file::make_directory;

/// How long a gateway may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a gateway may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// Time between checks.
const PAUSE: Duration = Duration::from_millis(50);
/// How much of a log is shown, from its end.
const LOG_TAIL: u64 = 4096;

pub(super) fn start(profile: &Path, filter: Option<&str>) -> Result<()> {
    let mut environment = Environment::of_process();
    let instance = systemd_instance(profile, &environment);
    if instance.is_some() {
        environment = super::environment(profile);
    }
    // Errors in the profile are reported here, not in a log. A unit may have a key that is not here.
    let load = if instance.is_some() { Profile::load_without_secrets } else { Profile::load };
    load(profile, &environment)?;
    let gateway = Gateway::of(profile)?;
    if gateway.is_running() {
        bail!("{} is already running", gateway.name);
    }
    match instance {
        Some(instance) => start_unit(&gateway, &format!("penstock@{instance}.service")),
        None => start_process(&gateway, profile, filter),
    }
}

/// Stops the gateway. That it is stopped already is no error, as for systemctl and in the LSB.
pub(super) fn stop(profile: &Path, release: bool) -> Result<()> {
    let gateway = Gateway::known(profile)?;
    let name = &gateway.name;
    let command = if release { control_socket::Command::StopAndRelease } else { control_socket::Command::Stop };
    match control_socket::ask(&gateway.directory, name, command) {
        // It may be gone before it answers.
        Ok(Answer::Stopping) | Err(AskError::Gone) => {}
        Ok(Answer::Error(sentence)) => bail!("{name}: {sentence}"),
        Ok(_) => bail!("{name} gave an unexpected answer"),
        // A gateway that is stopping ends by itself; one that is starting is reported below.
        Err(AskError::NotRunning) if gateway.is_running() => {}
        Err(AskError::NotRunning) if release => return guard::release(profile, Vec::new(), true),
        Err(AskError::NotRunning) => {
            eprintln!("penstock: {name} is not running");
            return Ok(());
        }
        Err(error) => bail!("cannot talk to {name}: {error}"),
    }
    if !wait(STOP_PATIENCE, || Ok(!gateway.is_running()))? {
        bail!("{name} was asked to stop but still runs after {} s", STOP_PATIENCE.as_secs());
    }
    Ok(())
}

fn start_unit(gateway: &Gateway, unit: &str) -> Result<()> {
    let status = Command::new("systemctl").args(["start", unit]).status().context("systemctl")?;
    if !status.success() {
        bail!("systemd could not start {unit}; `journalctl -u {unit}` says why");
    }
    let up = wait(START_PATIENCE, || {
        let failed = Command::new("systemctl").args(["--quiet", "is-failed", unit]).status()?.success();
        if failed {
            bail!("{} did not start; `journalctl -u {unit}` says why", gateway.name);
        }
        is_up(gateway)
    })?;
    if !up {
        bail!("{} is not up after {} s; `journalctl -u {unit}` says more", gateway.name, START_PATIENCE.as_secs());
    }
    Ok(())
}

fn start_process(gateway: &Gateway, profile: &Path, filter: Option<&str>) -> Result<()> {
    let profile = std::path::absolute(profile)?;
    let arguments = ["--profile".as_ref(), profile.as_os_str(), "run".as_ref(), "--detached".as_ref()];
    in_background(&gateway.directory, &gateway.name, filter, &arguments, &|| is_up(gateway))
}

/// Starts this program as `name` with these arguments, logging to a file in `directory`, and waits until it is up.
pub(super) fn in_background(
    directory: &Path,
    name: &Name,
    filter: Option<&str>,
    arguments: &[impl AsRef<OsStr>],
    is_up: &dyn Fn() -> Result<bool>,
) -> Result<()> {
    let log_path = directory.join(format!("{name}.log"));
    make_directory(directory).with_context(|| directory.display().to_string())?;
    let log = open_log(&log_path).with_context(|| log_path.display().to_string())?;
    let mut command = Command::new(std::env::current_exe().context("cannot find our own program file")?);
    if let Some(filter) = filter {
        command.args(["--log", filter]);
    }
    command.args(arguments).current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().context("cannot start a process")?;
    let up = wait(START_PATIENCE, || {
        if child.try_wait()?.is_some() {
            bail!("{name} did not start: {}", last_words(&log_path));
        }
        is_up()
    })?;
    if !up {
        end(&mut child);
        bail!("{name} is not up after {} s; {} says more", START_PATIENCE.as_secs(), log_path.display());
    }
    Ok(())
}

fn is_up(gateway: &Gateway) -> Result<bool> {
    let answer = control_socket::ask(&gateway.directory, &gateway.name, control_socket::Command::Status);
    Ok(matches!(answer, Ok(Answer::Status(_))))
}

/// A gateway that does not start in time must not come up later, when nobody expects it.
fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let gone = wait(STOP_PATIENCE, || Ok(child.try_wait()?.is_some()));
    if !matches!(gone, Ok(true)) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The instance of penstock@.service that would run this profile.
pub(super) fn instance(profile: &Path) -> Option<String> {
    let absolute = std::path::absolute(profile).ok()?;
    let in_place = absolute.parent() == Path::new(DEFAULT_PATH).parent()
        && absolute.extension().is_some_and(|extension| extension == "profile")
        && control_socket::directory() == Path::new(control_socket::DIRECTORY);
    let stem = absolute.file_stem()?.to_str()?;
    (in_place && is_instance(stem) && sd_notify::booted().unwrap_or(false)).then(|| stem.to_owned())
}

/// The instance of penstock@.service that is to run this profile, if systemd knows the unit.
fn systemd_instance(profile: &Path, environment: &Environment) -> Option<String> {
    let instance = instance(profile).filter(|_| !environment.overrides_any())?;
    let known = Command::new("systemctl")
        .args(["cat", "penstock@.service"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    known.is_ok_and(|status| status.success()).then_some(instance)
}

/// Whether a unit's instance can have this name. The unit takes it as it is (`%i`), so nothing is escaped.
fn is_instance(stem: &str) -> bool {
    stem.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.'))
}

/// The log of this start; the last one's is kept as NAME.log.old.
fn open_log(path: &Path) -> std::io::Result<File> {
    if path.exists() {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    File::options().append(true).create_new(true).mode(0o600).open(path)
}

/// The last line of a log, which is where our own errors are.
fn last_words(path: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let tail = tail().unwrap_or_default();
    match tail.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => line.strip_prefix("penstock: ").unwrap_or(line).to_owned(),
        None => format!("it said nothing in {}", path.display()),
    }
}

/// Whether `done` becomes true in time.
fn wait(patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::is_instance;

    #[test]
    fn systemd_gets_what_it_takes_as_it_is() {
        assert!(["Universe", "site-a", "-a", "b_1.c"].into_iter().all(is_instance));
        assert!(!["a b", "a\\x2db", "a@b", "ä"].into_iter().any(is_instance));
    }
}
