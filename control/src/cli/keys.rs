//! `genkey` and `pubkey`, as in `wg`.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::fs::FileType;
use zeroize::Zeroizing;

use crate::key::{KEY_FILE_LIMIT, PrivateKey};

pub(super) fn genkey() -> Result<()> {
    let stdout = std::io::stdout();
    warn_if_exposed(&stdout);
    let key = PrivateKey::generate().context("no randomness")?;
    writeln!(stdout.lock(), "{}", *key.to_base64())?;
    Ok(())
}

/// Warns when a secret is about to be written to a file that others can read.
pub(super) fn warn_if_exposed(output: &impl AsFd) {
    if let Ok(status) = rustix::fs::fstat(output.as_fd())
        && FileType::from_raw_mode(status.st_mode).is_file()
        && status.st_mode & 0o077 != 0
    {
        eprintln!(
            "penstock: other users can read the file this writes to; `chmod 600` it, or a gateway will refuse it"
        );
    }
}

pub(super) fn pubkey() -> Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_LIMIT as usize + 1));
    std::io::stdin().take(KEY_FILE_LIMIT).read_to_string(&mut text).context("the private key on standard input")?;
    let key: PrivateKey = text.parse().context("the private key on standard input")?;
    writeln!(std::io::stdout(), "{}", key.public_key())?;
    Ok(())
}
