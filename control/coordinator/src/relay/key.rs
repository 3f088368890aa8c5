//! The relay's private key: made at the first start and kept in the state directory, for its owner only.
//! Whoever has it can pass for the relay; traffic stays the sites' own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use penstock_proto::{StaticSecret, clamped_private_key, generate_private_key};
use zeroize::{Zeroize, Zeroizing};

use crate::owner::{self, Exposed};

const FILE: &str = "relay.key";
/// Longest key file: a key in base64 with generous white space.
const LIMIT: u64 = 256;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum RelayKeyError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Others may read it.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// It is no key.
    #[error("{0} holds no private key: put a backup in its place, or remove it to get a new key")]
    Malformed(PathBuf),
}

/// Reads the key of the state directory, or makes one.
///
/// # Errors
/// The file cannot be used.
pub fn load(directory: &Path) -> Result<StaticSecret, RelayKeyError> {
    let path = directory.join(FILE);
    let failed = |error| RelayKeyError::File { path: path.clone(), error };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make(&path).map_err(failed),
        Err(error) => return Err(failed(error)),
    };
    owner::check(&path, &file.metadata().map_err(failed)?)?;
    // Reserved at once: a growing buffer would leave copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(LIMIT as usize));
    file.take(LIMIT).read_to_string(&mut text).map_err(failed)?;
    let mut bytes = Zeroizing::new([0; 33]);
    match STANDARD.decode_slice(text.trim(), &mut *bytes) {
        Ok(32) => {
            let mut key = [0; 32];
            key.copy_from_slice(&bytes[..32]);
            let private = clamped_private_key(key);
            key.zeroize();
            Ok(private)
        }
        _ => Err(RelayKeyError::Malformed(path)),
    }
}

/// Either whole or not there, as the certificate.
fn make(path: &Path) -> io::Result<StaticSecret> {
    let private = generate_private_key(&mut rand::rng());
    let bytes = Zeroizing::new(private.to_bytes());
    // Reserved at once, as above.
    let mut text = Zeroizing::new(String::with_capacity(LIMIT as usize));
    STANDARD.encode_string(bytes.as_slice(), &mut text);
    text.push('\n');
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all())?;
    Ok(private)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let first = load(directory.path()).unwrap();
        assert_eq!(load(directory.path()).unwrap().to_bytes(), first.to_bytes());
        let path = directory.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(directory.path()), Err(RelayKeyError::Exposed(_))));
    }

    #[test]
    fn what_is_no_key_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in ["", "x", &"A".repeat(300), &STANDARD.encode([1; 31]), &STANDARD.encode([1; 33])] {
            let _ = fs::remove_file(&path);
            File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
            fs::write(&path, text).unwrap();
            assert!(matches!(load(directory.path()), Err(RelayKeyError::Malformed(_))), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
    }
}
