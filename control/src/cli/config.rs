//! `list-config`, `set-config`, `reload` and `save`.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

use super::{Gateway, environment};
use crate::control_socket::{Answer, Command, Reloaded};
use crate::key::{KeyFileError, read_key_file, read_key_file_or_stand_in};
use crate::profile::{self, Profile, ReadKey, Saved, edit, read_file};

pub(super) fn list(path: &Path) -> Result<()> {
    let profile = Profile::load_without_secrets(path, &environment(path))?;
    let text = serde_json::to_string_pretty(&profile.document())?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

pub(super) fn set(path: &Path, assignments: &[String]) -> Result<()> {
    // A profile that cannot be read has no name, so no gateway can be found by it; perhaps it is being repaired here.
    let running = Gateway::of(path).ok().filter(Gateway::is_running);
    let text = text(path)?;
    let edited = edit(&text, assignments)?;
    let profile = check(path, &edited, &mut read_keys_unless_new(path, &text))?;
    if let Some(gateway) = running.as_ref().filter(|gateway| gateway.name != profile.name) {
        bail!("{} is running, and keeps its name until it is stopped: stop it first", gateway.name);
    }
    write(path, &edited)?;
    running.map_or(Ok(()), |gateway| reload_by(&gateway))
}

/// `reload`: makes the running gateway read its profile again.
pub(super) fn reload(path: &Path) -> Result<()> {
    reload_by(&Gateway::of(path)?)
}

/// `save`: writes into the profile what `wg set` has changed on the running gateway.
pub(super) fn save(path: &Path) -> Result<()> {
    let environment = environment(path);
    if environment.overrides_any() {
        bail!("environment variables override the profile, so a value written to it may have no effect");
    }
    let gateway = Gateway::of(path)?;
    let Answer::Unsaved(unsaved) = gateway.ask(Command::Unsaved)? else {
        bail!("{} gave an unexpected answer", gateway.name)
    };
    if unsaved.is_empty() {
        writeln!(std::io::stdout(), "the profile already says everything that is in force")?;
        return Ok(());
    }
    let Saved { text, secrets } = profile::save(&text(path)?, *unsaved)?;
    let directory = path.canonicalize()?.parent().map(Path::to_owned).unwrap_or_default();
    let secrets: HashMap<PathBuf, Zeroizing<String>> =
        secrets.into_iter().map(|(file, key)| (directory.join(file), key.0)).collect();
    check(path, &text, &mut |file| match secrets.get(file) {
        Some(key) => Ok(key.clone()),
        None => read_key_file_or_stand_in(file),
    })?;
    for (file, key) in &secrets {
        let line = Zeroizing::new(format!("{}\n", **key));
        let written = match file.canonicalize() {
            Ok(there) => replace(&there, line.as_bytes()),
            Err(_) => crate::sealed::replace(file, line.as_bytes()),
        };
        written.with_context(|| file.display().to_string())?;
    }
    write(path, &text)?;
    reload_by(&gateway)
}

fn reload_by(gateway: &Gateway) -> Result<()> {
    let Answer::Reloaded(Reloaded { changed, not_applied }) = gateway.ask(Command::Reload)? else {
        bail!("{} gave an unexpected answer", gateway.name)
    };
    let mut stdout = std::io::stdout();
    match changed.as_slice() {
        [] => writeln!(stdout, "nothing has changed")?,
        changed => writeln!(stdout, "changed: {}", changed.join(", "))?,
    }
    if !not_applied.is_empty() {
        bail!("not in force: {}", not_applied.join("; "));
    }
    Ok(())
}

/// The profile's text.
pub(super) fn text(path: &Path) -> Result<String> {
    String::from_utf8(read_file(path)?).with_context(|| path.display().to_string())
}

/// Reads key files. Those that the profile already names may be missing, since the service may have them from elsewhere.
fn read_keys_unless_new(path: &Path, text: &str) -> impl FnMut(&Path) -> Result<Zeroizing<String>, KeyFileError> {
    let mut named = HashSet::new();
    // An invalid profile names none: then all of them must be there.
    let _ = check(path, text, &mut |file| {
        named.insert(file.to_owned());
        read_key_file_or_stand_in(file)
    });
    move |file| if named.contains(file) { read_key_file_or_stand_in(file) } else { read_key_file(file) }
}

fn check(path: &Path, text: &str, read_key: &mut ReadKey<'_>) -> Result<Profile> {
    let environment = environment(path);
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    Profile::parse(text.as_bytes(), &path, &environment, read_key).context("nothing was changed")
}

/// Replaces the profile's text.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    // If it is a symbolic link, the file behind it must be replaced.
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    replace(&path, text.as_bytes()).with_context(|| path.display().to_string())
}

/// Replaces a file's text in one step, keeping its mode and owner.
pub(super) fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let old = std::fs::metadata(path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text)?;
    file.as_file().set_permissions(old.permissions())?;
    let new = file.as_file().metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(directory)?.sync_all()
}
