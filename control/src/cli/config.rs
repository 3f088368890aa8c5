//! `list-config` and `set-config`.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Gateway;
use crate::key::read_key_file;
use crate::profile::{Environment, Profile, edit, read_file};

pub(super) fn list(path: &Path) -> Result<()> {
    let profile = Profile::load(path, &Environment::of_process())?;
    let text = serde_json::to_string_pretty(&profile.document())?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

pub(super) fn set(path: &Path, assignments: &[String]) -> Result<()> {
    // A profile that cannot be read has no name, so nothing runs by it; it may be what is mended here.
    if let Ok(gateway) = Gateway::of(path)
        && gateway.is_running()
    {
        bail!("{} is running and reads its profile only when it starts: stop it first", gateway.name);
    }
    // Behind a symbolic link is the file that must be replaced.
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    let text = String::from_utf8(read_file(&path)?).with_context(|| path.display().to_string())?;
    let edited = edit(&text, assignments)?;
    Profile::parse(edited.as_bytes(), &path, &Environment::of_process(), &mut read_key_file)
        .context("nothing was changed")?;
    replace(&path, edited.as_bytes()).with_context(|| path.display().to_string())
}

/// Puts a file with that text in the place of one, in one step, with its mode and owner.
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
