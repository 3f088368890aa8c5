//! Replacing the coordinator's own certificate, with the audit's entries about it. The files change first: after a
//! crash in between, an entry may be missing.

use std::path::PathBuf;

use penstock_proto::coordination::Fingerprint;
use tokio::task::spawn_blocking;

use super::{ChangeError, Registry};
use crate::certificate;
use crate::store::Who;

impl Registry {
    /// Makes the certificate that is to replace the coordinator's own.
    ///
    /// # Errors
    /// See [`certificate::next`]; or the change could not be recorded.
    pub async fn next_certificate(
        &self,
        directory: PathBuf,
        names: Vec<String>,
        who: &Who,
    ) -> Result<Fingerprint, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let made = spawn_blocking(move || certificate::next(&directory, &names));
        let (next, is_new) = made.await.expect("files make no panic")?;
        if is_new {
            ledger.store.note(who, "certificate next", None, Some(&next)).await?;
        }
        Ok(next)
    }

    /// Replaces the coordinator's own certificate with the next one, from its next start on.
    ///
    /// # Errors
    /// See [`certificate::switch`]; or the change could not be recorded.
    pub async fn switch_certificate(&self, directory: PathBuf, who: &Who) -> Result<Fingerprint, ChangeError> {
        let mut ledger = self.ledger.lock().await;
        let switched = spawn_blocking(move || certificate::switch(&directory));
        let (before, after) = switched.await.expect("files make no panic")?;
        ledger.store.note(who, "certificate switch", before.as_ref(), Some(&after)).await?;
        Ok(after)
    }
}
