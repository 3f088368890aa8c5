//! Files and directories that must be ours alone: whoever else can write them, or read a key in them, is the
//! coordinator.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Somebody else has a hand on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exposed {
    /// By its mode.
    #[error("{path} is open to other users: chmod {wanted} it")]
    Mode {
        /// What it is.
        path: PathBuf,
        /// The mode that it should have.
        wanted: &'static str,
    },
    /// It is somebody else's, who can change its mode at any time.
    #[error("{path} belongs to user {owner}, not to user {ours} that this runs as: chown it, or run as its owner")]
    Owner {
        /// What it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        ours: u32,
    },
}

/// Checks a file or directory by what is known of it.
///
/// # Errors
/// It is not ours alone. Root's is as good as ours: root can do anything anyway.
pub fn check(path: &Path, metadata: &Metadata) -> Result<(), Exposed> {
    let (owner, ours) = (metadata.uid(), geteuid().as_raw());
    if owner != ours && owner != 0 {
        return Err(Exposed::Owner { path: path.to_owned(), owner, ours });
    }
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
    }
}
