//! Files and directories that must belong only to us: whoever else can write them, or read a key in them, can act as
//! the coordinator.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Somebody else has access to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exposed {
    /// Because of its mode.
    #[error("{path} is open to other users: chmod {wanted} it")]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// The mode that it should have.
        wanted: &'static str,
    },
    /// It belongs to somebody else, who can change its mode at any time.
    #[error("{path} belongs to user {owner}, not to user {ours} that this runs as: chown it, or run as its owner")]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our user.
        ours: u32,
    },
}

/// Checks a file or directory by its metadata.
///
/// # Errors
/// Others have access. Root's files are as good as ours, since root can do anything anyway.
pub fn check(path: &Path, metadata: &Metadata) -> Result<(), Exposed> {
    let (owner, ours) = (metadata.uid(), geteuid().as_raw());
    if owner != ours && owner != 0 {
        return Err(Exposed::Owner { path: path.to_owned(), owner, ours });
    }
    check_mode(path, metadata)
}

/// Checks a key file. An administrator who is root may read the keys of a service, which belong to the owner of their
/// directory.
///
/// # Errors
/// It is neither ours alone nor the service's.
pub fn check_key(path: &Path, metadata: &Metadata) -> Result<(), Exposed> {
    let service = || path.parent()?.metadata().ok().map(|directory| directory.uid());
    match check(path, metadata) {
        Err(Exposed::Owner { owner, ours: 0, .. }) if service() == Some(owner) => check_mode(path, metadata),
        outcome => outcome,
    }
}

fn check_mode(path: &Path, metadata: &Metadata) -> Result<(), Exposed> {
    if metadata.permissions().mode() & 0o077 != 0 {
        let wanted = if metadata.is_dir() { "700" } else { "600" };
        return Err(Exposed::Mode { path: path.to_owned(), wanted });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::chown;

    #[test]
    fn mode_and_owner_both_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "secret").unwrap();
        let outcome = |mode| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            check(&path, &fs::metadata(&path).unwrap())
        };
        assert_eq!(outcome(0o600), Ok(()));
        for mode in [0o640, 0o602, 0o601] {
            assert!(outcome(mode).unwrap_err().to_string().ends_with("chmod 600 it"), "{mode:o}");
        }
        if !geteuid().is_root() {
            return eprintln!("skipped in part: only root can give files away");
        }
        chown(&path, Some(12_345), None).unwrap();
        let error = outcome(0o600).unwrap_err();
        assert!(error.to_string().contains("belongs to user 12345, not to user 0"), "{error}");
        // Root reads a service's key in the service's directory, and nobody else's.
        let key = |mode| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            check_key(&path, &fs::metadata(&path).unwrap())
        };
        assert_eq!(key(0o600), Err(error));
        chown(directory.path(), Some(12_345), None).unwrap();
        assert_eq!(key(0o600), Ok(()));
        assert!(matches!(key(0o640), Err(Exposed::Mode { .. })));
        chown(directory.path(), Some(12_346), None).unwrap();
        assert!(matches!(key(0o600), Err(Exposed::Owner { owner: 12_345, .. })));
    }
}
