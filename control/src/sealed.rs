//! Files that outlive the process: replaced in one step, read with a limit, and, where they say what is to
//! be believed, authenticated under a key that is derived from the gateway's private key.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use blake2::Blake2sMac256;
use blake2::digest::{KeyInit, Mac};
use zeroize::Zeroizing;

use crate::key::PrivateKey;

/// Length of a MAC, in bytes.
pub const MAC: usize = 32;

/// The beginning of a MAC under a key derived for `label`: keyed BLAKE2s-256.
#[must_use]
pub fn mac(key: &PrivateKey, label: &[u8]) -> Blake2sMac256 {
    let keyed = |key: &[u8; 32]| <Blake2sMac256 as KeyInit>::new(key.into());
    let derived: Zeroizing<[u8; 32]> =
        Zeroizing::new(keyed(key.as_bytes()).chain_update(label).finalize().into_bytes().into());
    keyed(&derived)
}

/// Why the bytes of a file are not what this gateway wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It does not begin as it should.
    #[error("it is a file of another kind")]
    Foreign,
    /// The MAC is wrong.
    #[error("it is damaged, or another gateway or coordinator made it")]
    Mac,
}

/// The bytes of a file with this text: `magic`, the MAC of the text, the text. `mac` is the MAC's beginning.
#[must_use]
pub fn seal(magic: &[u8; 16], mac: Blake2sMac256, text: &[u8]) -> Vec<u8> {
    let mac = mac.chain_update(text).finalize().into_bytes();
    [magic, mac.as_slice(), text].concat()
}

/// The text of a file that [`seal`] made.
///
/// # Errors
/// It did not.
pub fn open<'a>(magic: &[u8; 16], mac: Blake2sMac256, bytes: &'a [u8]) -> Result<&'a [u8], SealError> {
    let rest = bytes.strip_prefix(magic).ok_or(SealError::Foreign)?;
    let (tag, text) = rest.split_first_chunk::<MAC>().ok_or(SealError::Foreign)?;
    // In constant time, and before anything is made of the text.
    mac.chain_update(text).verify_slice(tag).map_err(|_| SealError::Mac)?;
    Ok(text)
}

/// Reads a regular file of at most `limit` bytes. `None`: there is none.
///
/// # Errors
/// It cannot be read, is no regular file, or is too long ([`io::ErrorKind::FileTooLarge`]).
pub fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    // Not blocking: a FIFO in the file's place must not stop us.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Puts a file in the place of the one that is there, in one step, for its owner only.
///
/// # Errors
/// It cannot be written; the old one is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    crate::socket_file::make_directory(directory)?;
    // With the mode 0600.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Makes a file for its owner only; one that is there stays as it is. It is on the disk when this returns.
///
/// # Errors
/// There is a file already ([`io::ErrorKind::AlreadyExists`]), or it cannot be written; then there is none.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes a file, if it is there.
///
/// # Errors
/// It is there and stays.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
