//! Files that survive the process: replaced in one step, read with a limit and, where they decide what is believed,
//! authenticated with a key derived from the gateway's private key.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub use penstock_proto::sealed::{MAC, Mac, SealError, mac, mac_of, open, seal};

/// Reads a regular file of at most `limit` bytes. `None`: there is no such file.
///
/// # Errors
/// It cannot be read, is not a regular file, or is too long ([`io::ErrorKind::FileTooLarge`]).
pub fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    // Non-blocking, because a FIFO in the file's place must not stop us.
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

/// Replaces the file in one step; only its owner can read it.
///
/// # Errors
/// It cannot be written; the old file is unchanged.
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

/// Creates a file that only its owner can read; an existing one stays as it is. It is on disk when this returns.
///
/// # Errors
/// There already is a file ([`io::ErrorKind::AlreadyExists`]), or it cannot be written; then none is left behind.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes a file, if it exists.
///
/// # Errors
/// It exists and cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
