//! What can be wrong with the database, in words that say what to do.

use std::path::{Path, PathBuf};

/// Why the database cannot be used, or refused a change. A change that failed was not made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not an SQLite database, or pages of it are damaged.
    #[error("{path} is damaged ({detail}): put a backup in its place, or move it away to begin with an empty one")]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// In SQLite's words.
        detail: String,
    },
    /// The file, or its file system, is read-only.
    #[error("{path} is read-only: the coordinator must be able to write it and its directory")]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// There is no space left.
    #[error("the disk of {path} is full: nothing was changed; free some space and try again")]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// The file is from a newer coordinator.
    #[error(
        "{path} was made by a newer coordinator (schema {found}, this one knows {known}): \
        run that version, or one newer still"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// The version of its schema.
        found: u32,
        /// The latest version that we know.
        known: u32,
    },
    /// Another process has it locked.
    #[error("{path} is in use by another process")]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// It contains something that the coordinator does not write.
    #[error("{path}: {detail}")]
    Content {
        /// The database.
        path: PathBuf,
        /// What is wrong, and where.
        detail: String,
    },
    /// Any other error of SQLite or the file system.
    #[error("{path}: {error}")]
    Other {
        /// The database.
        path: PathBuf,
        /// The error.
        error: sqlx::Error,
    },
}

/// Primary result codes (sqlite.org/rescode.html).
mod code {
    pub const PERM: u32 = 3;
    pub const BUSY: u32 = 5;
    pub const LOCKED: u32 = 6;
    pub const READONLY: u32 = 8;
    pub const CORRUPT: u32 = 11;
    pub const FULL: u32 = 13;
    pub const NOTADB: u32 = 26;
}

impl StoreError {
    pub(super) fn of(path: &Path, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        let database = error.as_database_error();
        // The lowest byte of an extended code is the primary one.
        let extended = database.and_then(|error| error.code()?.parse::<u32>().ok());
        match extended.map(|extended| extended & 0xff) {
            Some(code::CORRUPT | code::NOTADB) => {
                let detail = database.map(|error| error.message().to_owned()).unwrap_or_default();
                Self::Corrupt { path, detail }
            }
            Some(code::READONLY | code::PERM) => Self::ReadOnly { path },
            Some(code::FULL) => Self::Full { path },
            Some(code::BUSY | code::LOCKED) => Self::Busy { path },
            _ => match error {
                sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                    Self::Content { path, detail: error.to_string() }
                }
                error => Self::Other { path, error },
            },
        }
    }
}
