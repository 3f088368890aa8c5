//! Where state is kept that survives the process: the cached map, the guarded prefixes, the peers' last endpoints.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The directory, unless `PENSTOCK_STATE_DIR` or systemd's `STATE_DIRECTORY` says otherwise.
pub const DIRECTORY: &str = "/var/lib/penstock";

/// The directory of this process's state.
#[must_use]
pub fn directory() -> PathBuf {
    let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(given) = given("PENSTOCK_STATE_DIR") {
        return given.into();
    }
    // systemd gives a list separated by colons; ours is the first.
    let given = given("STATE_DIRECTORY").unwrap_or_default();
    match given.split(':').next() {
        None | Some("") => DIRECTORY.into(),
        Some(first) => first.into(),
    }
}

/// Checks that nobody but root and we can put files into the directory: they decide whom the gateway believes, and
/// older ones in their place would bring revoked sites back. A directory that does not exist yet is created for its
/// owner only.
///
/// # Errors
/// Says who owns it, or how to close it.
pub fn check(directory: &Path) -> Result<()> {
    let shown = directory.display();
    let metadata = match directory.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.with_context(|| format!("the state directory {shown}"))?,
    };
    let (owner, ours) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != ours {
        bail!("the state directory {shown} belongs to user {owner}, not to user {ours} that this runs as: chown it");
    }
    if metadata.mode() & 0o022 != 0 {
        bail!("other users can write to the state directory {shown}: chmod 700 it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn a_state_directory_that_others_can_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let outcome = |mode| {
            set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            check(directory.path()).map_err(|error| error.to_string())
        };
        assert_eq!((outcome(0o700), outcome(0o755)), (Ok(()), Ok(())));
        for mode in [0o770, 0o702, 0o1777] {
            assert!(outcome(mode).unwrap_err().ends_with("chmod 700 it"), "{mode:o}");
        }
        check(&directory.path().join("not-there")).unwrap();
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped in part: only root can give directories away");
        }
        chown(directory.path(), Some(12_345), None).unwrap();
        assert!(outcome(0o700).unwrap_err().contains("belongs to user 12345, not to user 0"));
    }
}
