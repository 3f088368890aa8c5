//! `release` and `guard`: the remote prefixes that are blocked wherever they do not lead into the tunnel.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use ipnet::IpNet;

use super::{Failure, Gateway, environment};
use crate::control_socket::{self, Answer, Command, LockError, Release, Released};
use crate::gateway::{self, Absent};
use crate::profile::{Environment, Profile, ProfileError};

/// `release`: asks the running gateway to do it, or does it itself.
pub(super) fn release(path: &Path, prefixes: Vec<IpNet>, all: bool) -> Result<()> {
    let what = if all { Release::All } else { Release::Prefixes(prefixes) };
    let gateway = Gateway::known(path)?;
    let released = if gateway.is_running() {
        match gateway.ask(Command::Release(what))? {
            Answer::Released(released) => released,
            _ => bail!("{} gave an unexpected answer", gateway.name),
        }
    } else {
        let absent = absent(path, &environment(path))?;
        let _lock = control_socket::lock(&absent.name)?;
        gateway::release(&absent, &what)?
    };
    tell(&released)
}

fn tell(released: &Released) -> Result<()> {
    let mut stdout = std::io::stdout();
    for prefix in &released.released {
        writeln!(stdout, "{prefix} is no longer blocked")?;
    }
    if !released.still_blocked.is_empty() {
        let prefixes = join(&released.still_blocked);
        bail!("still blocked, because the kernel refuses to change it; `penstock status` says why: {prefixes}");
    }
    if !released.in_use.is_empty() {
        bail!("not released, because a peer still has it: {}", join(&released.in_use));
    }
    if !released.unknown.is_empty() {
        bail!("not guarded: {}", join(&released.unknown));
    }
    if released.released.is_empty() {
        writeln!(stdout, "nothing was blocked")?;
    }
    Ok(())
}

/// `guard`: blocks what the profile and the guard's file name, as at boot.
pub(super) fn guard(path: &Path) -> Result<()> {
    let profile = loaded_or_guarded(path, Profile::load_without_secrets)?;
    match control_socket::lock(&profile.name) {
        // A running gateway guards by itself.
        Err(LockError::Taken { .. }) => Ok(()),
        lock => {
            let _lock = lock?;
            gateway::guard(&profile)
        }
    }
}

/// The exit code if the profile is not valid: EX_CONFIG of sysexits.h. systemd does not start the gateway again then.
const INVALID_PROFILE: u8 = 78;

/// Loads the profile. If that fails, what its gateway guarded is blocked all the same.
pub(super) fn loaded_or_guarded(
    path: &Path,
    load: impl FnOnce(&Path, &Environment) -> Result<Profile, ProfileError>,
) -> Result<Profile> {
    // Its service gives it the environment, at boot too.
    load(path, &Environment::of_process()).map_err(|error| {
        let blocked =
            std::path::absolute(path).map_err(Into::into).and_then(|path| gateway::guard_without_profile(&path));
        let blocked = match blocked {
            Ok(prefixes) if prefixes.is_empty() => String::new(),
            Ok(prefixes) => format!("; what was guarded stays blocked ({} prefixes)", prefixes.len()),
            Err(guard) => format!("; not everything is blocked that was before: {guard:#}"),
        };
        let sentence = format!("{error}{blocked}");
        if error.can_wait() { anyhow!(sentence) } else { Failure { code: INVALID_PROFILE, sentence }.into() }
    })
}

/// The gateway that has this profile and is not running. Its guard's file is enough to know it.
fn absent(path: &Path, environment: &Environment) -> Result<Absent, ProfileError> {
    match Profile::load_without_secrets(path, environment) {
        Ok(profile) => Ok(Absent::of(&profile)),
        Err(error) => Absent::with_guard(path).ok_or(error),
    }
}

/// What a gateway that is not running still blocks, in a sentence; empty if nothing.
pub(super) fn blocked(path: &Path) -> String {
    let Ok(absent) = absent(path, &environment(path)) else { return String::new() };
    match gateway::guarded(&absent).unwrap_or_default().as_slice() {
        [] => String::new(),
        prefixes => format!("; blocked until `penstock release`: {}", join(prefixes)),
    }
}

fn join(prefixes: &[IpNet]) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
