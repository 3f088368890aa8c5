//! What must survive the coordinator, in an SQLite file. All SQL is in this module.
//!
//! There is one connection, owned by the [`Store`]; the registry puts changes in order. A change that has returned is
//! on disk: the write-ahead log is synced at every commit (`synchronous = FULL`).

mod audit;
mod documents;
mod error;
mod keys;
mod sites;
#[cfg(test)]
mod tests;

pub use audit::{AuditEntry, Who};
pub use documents::Trust;
pub use error::StoreError;
pub use keys::KeyRecord;

use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::policy::Policy;
use audit::Change;

/// The schema, one step per version: `PRAGMA user_version` says how many were applied.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema-1.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
];

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: SqliteConnection,
    /// Whether a transaction was begun; whoever began it may have been dropped in the middle.
    unfinished: bool,
}

impl Store {
    /// Opens the database, creating it if necessary, checks that it is intact and writable, and upgrades its schema.
    ///
    /// # Errors
    /// It is damaged, newer than this program, read-only, locked, or the disk is full.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::of(path, error);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .disable_statement_logging();
        let connection = options.connect().await.map_err(failed)?;
        let mut store = Self { path: path.to_owned(), connection, unfinished: false };
        store.check().await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Writes everything into the one file and closes it.
    ///
    /// # Errors
    /// SQLite's error; nothing that was acknowledged is lost by it.
    pub async fn close(self) -> Result<(), StoreError> {
        self.connection.close().await.map_err(|error| StoreError::of(&self.path, error))
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        let report: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(1)")
            .fetch_all(&mut self.connection)
            .await
            .map_err(self.failed())?;
        match report.first() {
            Some(verdict) if verdict == "ok" => Ok(()),
            first => {
                let detail = first.cloned().unwrap_or_default().replace('\n', " ");
                Err(StoreError::Corrupt { path: self.path.clone(), detail })
            }
        }
    }

    async fn migrate(&mut self) -> Result<(), StoreError> {
        let known = MIGRATIONS.len() as u32;
        let found: u32 =
            sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut self.connection).await.map_err(self.failed())?;
        if found > known {
            return Err(StoreError::Newer { path: self.path.clone(), found, known });
        }
        self.begin().await?;
        let outcome = migrate(&mut self.connection, found).await;
        self.end(outcome).await
    }

    /// Begins a transaction. This is done by hand because sqlx counts transactions and is not told when SQLite itself
    /// rolls one back, as it does when the disk is full (sqlite.org/lang_transaction.html, section 3).
    async fn begin(&mut self) -> Result<(), StoreError> {
        if self.unfinished {
            self.roll_back().await;
        }
        self.unfinished = true;
        let begun = sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut self.connection).await;
        begun.map(drop).map_err(self.failed())
    }

    /// Commits the transaction, or rolls all of it back if any of its steps failed.
    async fn end<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        let outcome = match outcome {
            Ok(value) => sqlx::raw_sql("COMMIT").execute(&mut self.connection).await.map(|_| value),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(value) => {
                self.unfinished = false;
                Ok(value)
            }
            Err(error) => {
                self.roll_back().await;
                Err(StoreError::of(&self.path, error))
            }
        }
    }

    async fn roll_back(&mut self) {
        // This fails when there is nothing to roll back.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await;
        self.unfinished = false;
    }

    /// The policy as last set; `None` if it never was.
    ///
    /// # Errors
    /// SQLite's error.
    pub async fn policy(&mut self) -> Result<Option<String>, StoreError> {
        let failed = self.failed();
        sqlx::query_scalar("SELECT document FROM policy").fetch_optional(&mut self.connection).await.map_err(failed)
    }

    /// Sets the policy.
    ///
    /// # Errors
    /// SQLite's error; the policy is unchanged then.
    pub async fn set_policy(&mut self, before: &Policy, after: &Policy, who: &Who) -> Result<(), StoreError> {
        let change = Change::of(who, "policy set", Some(before), Some(after));
        self.begin().await?;
        let outcome = set_policy(&mut self.connection, &after.to_text(), change).await;
        self.end(outcome).await
    }

    /// Makes errors that name the database, without borrowing from the store.
    fn failed(&self) -> impl Fn(sqlx::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |error| StoreError::of(&path, error)
    }
}

async fn set_policy(connection: &mut SqliteConnection, document: &str, change: Change<'_>) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO policy (only_one, document) VALUES (1, ?) \
        ON CONFLICT (only_one) DO UPDATE SET document = excluded.document";
    sqlx::query(sql).bind(document).execute(&mut *connection).await?;
    change.note(connection).await
}

async fn migrate(connection: &mut SqliteConnection, found: u32) -> Result<(), sqlx::Error> {
    for migration in &MIGRATIONS[found as usize..] {
        sqlx::raw_sql(*migration).execute(&mut *connection).await?;
    }
    // Written even if it is unchanged: so a read-only file shows now, and not at the first change.
    let version = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", MIGRATIONS.len()));
    sqlx::raw_sql(version).execute(connection).await?;
    Ok(())
}
