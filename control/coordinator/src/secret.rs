//! Files that only their owner can read and that are complete or not there at all; and private keys in such files: 32
//! bytes in base64.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::owner::{self, Exposed};

/// Longest key file: a key in base64 with plenty of white space.
const LIMIT: u64 = 256;

/// The bytes of a private key.
pub type Secret = Zeroizing<[u8; 32]>;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Others can read it.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// It is not a key.
    #[error("{0} holds no private key: put a backup in its place, or remove it to get a new key")]
    Malformed(PathBuf),
}

/// Reads a key. `None`: there is no such file.
///
/// # Errors
/// The file cannot be used.
pub fn read(path: &Path) -> Result<Option<Secret>, SecretError> {
    let failed = |error| SecretError::File { path: path.to_owned(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    owner::check_key(path, &file.metadata().map_err(failed)?)?;
    // Allocated in advance: a growing buffer would leave copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(LIMIT as usize));
    file.take(LIMIT).read_to_string(&mut text).map_err(failed)?;
    parse(&text).map(Some).ok_or_else(|| SecretError::Malformed(path.to_owned()))
}

/// Writes a key, replacing the file if it exists.
///
/// # Errors
/// The file cannot be written; an existing one is unchanged.
pub fn write(path: &Path, secret: &Secret) -> Result<(), SecretError> {
    let mut text = to_text(secret);
    text.push('\n');
    write_private(path, text.as_bytes()).map_err(|error| SecretError::File { path: path.to_owned(), error })
}

/// Removes a key, in a way that survives a loss of power.
///
/// # Errors
/// The file cannot be removed.
pub fn remove(path: &Path) -> Result<(), SecretError> {
    let removed = fs::remove_file(path).and_then(|()| sync_directory(path));
    removed.map_err(|error| SecretError::File { path: path.to_owned(), error })
}

/// The 32 bytes in a text.
fn parse(text: &str) -> Option<Secret> {
    let mut bytes = Zeroizing::new([0; 33]);
    let length = STANDARD.decode_slice(text.trim(), &mut *bytes).ok()?;
    let mut secret = Secret::default();
    secret.copy_from_slice(&bytes[..32]);
    (length == 32).then_some(secret)
}

/// A key as text, with room for a newline.
fn to_text(secret: &Secret) -> Zeroizing<String> {
    // Allocated in advance, as above.
    let mut text = Zeroizing::new(String::with_capacity(LIMIT as usize));
    STANDARD.encode_string(secret.as_slice(), &mut text);
    text
}

/// Writes a file that only its owner can read, replacing it if it exists.
///
/// # Errors
/// The file system's error.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path)
}

/// Makes sure that a file created, renamed or removed in this directory stays so after a loss of power.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all())
}

/// How serde writes a secret: like the key files.
pub(crate) mod text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use zeroize::Zeroizing;

    use super::Secret;

    pub fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_text(secret))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        super::parse(&text).ok_or_else(|| D::Error::custom("these are not 32 bytes in base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        assert!(read(&path).unwrap().is_none());
        let secret = Secret::new([7; 32]);
        write(&path, &secret).unwrap();
        assert_eq!(read(&path).unwrap(), Some(secret));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(SecretError::Exposed(_))));
        remove(&path).unwrap();
        assert!(read(&path).unwrap().is_none());
    }

    #[test]
    fn what_is_no_key_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        for text in ["", "x", &"A".repeat(300), &STANDARD.encode([1; 31]), &STANDARD.encode([1; 33])] {
            let _ = fs::remove_file(&path);
            write_private(&path, text.as_bytes()).unwrap();
            assert!(matches!(read(&path), Err(SecretError::Malformed(_))), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
    }
}
