//! What the authority has signed and what is in force.

use penstock_proto::trust::{AuthorityKey, Contents, Document, Publication, Serial};
use serde::Serialize;
use sqlx::{Row, SqliteConnection};

use super::audit::Change;
use super::{Store, StoreError, Who};

/// The overlay's authority as it was stored.
#[derive(Debug)]
pub struct Trust {
    /// What is in force.
    pub publication: Publication,
    /// No lease so far has a higher serial.
    pub lease_serial: Serial,
}

impl Store {
    /// Everything that the authority has signed; `None` if the overlay has no authority yet.
    ///
    /// # Errors
    /// SQLite's error, or the documents do not belong to one authority.
    pub async fn trust(&mut self) -> Result<Option<Trust>, StoreError> {
        let failed = self.failed();
        let sql = "SELECT root, lease_serial FROM authority";
        let row = sqlx::query(sql).fetch_optional(&mut self.connection).await.map_err(&failed)?;
        let Some(row) = row else { return Ok(None) };
        let root: Vec<u8> = row.try_get("root").map_err(&failed)?;
        let root: [u8; 32] =
            root.try_into().map_err(|_| failed(super::sites::wrong("the authority's key is not one")))?;
        let lease_serial: i64 = row.try_get("lease_serial").map_err(&failed)?;
        // Rollovers come first, in their order, and revocations before statements, so that each can be added.
        let sql = "SELECT document FROM documents ORDER BY \
            CASE kind WHEN 'rollover' THEN 0 WHEN 'revocations' THEN 1 ELSE 2 END, number";
        let texts: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut self.connection).await.map_err(&failed)?;
        let mut publication = Publication::new(AuthorityKey::from(root));
        for text in texts {
            let document: Document = text.parse().map_err(sqlx::Error::decode).map_err(&failed)?;
            publication.add(document).map_err(sqlx::Error::decode).map_err(&failed)?;
        }
        Ok(Some(Trust { publication, lease_serial: Serial(lease_serial as u64) }))
    }

    /// Records which authority this overlay has, with the first documents that it has signed.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn found(&mut self, root: AuthorityKey, documents: &[Document]) -> Result<(), StoreError> {
        let change = Change::of(&Who::Clock, "authority created", None, Some(&root));
        self.begin().await?;
        let outcome = found(&mut self.connection, root, documents, change).await;
        self.end(outcome).await
    }

    /// Stores signed documents that concern more than one of our sites, with the audit's entry about them.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn publish<T: Serialize>(
        &mut self,
        documents: &[Document],
        who: &Who,
        what: &str,
        before: Option<&T>,
        after: Option<&T>,
    ) -> Result<(), StoreError> {
        let change = Change::of(who, what, before, after);
        self.begin().await?;
        let outcome = async {
            publish(&mut self.connection, documents).await?;
            change.note(&mut self.connection).await
        };
        let outcome = outcome.await;
        self.end(outcome).await
    }

    /// Records that no lease will have a higher serial until this is called again.
    ///
    /// # Errors
    /// SQLite's error.
    pub async fn reserve_leases(&mut self, last: Serial) -> Result<(), StoreError> {
        let sql = "UPDATE authority SET lease_serial = ?";
        let failed = self.failed();
        sqlx::query(sql).bind(last.0 as i64).execute(&mut self.connection).await.map(drop).map_err(failed)
    }
}

async fn found(
    connection: &mut SqliteConnection,
    root: AuthorityKey,
    documents: &[Document],
    change: Change<'_>,
) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO authority (only_one, root, lease_serial) VALUES (1, ?, 0)";
    sqlx::query(sql).bind(&root.as_bytes()[..]).execute(&mut *connection).await?;
    publish(connection, documents).await?;
    change.note(connection).await
}

/// Adds documents within a transaction, replacing those that they supersede or make void.
pub(super) async fn publish(connection: &mut SqliteConnection, documents: &[Document]) -> Result<(), sqlx::Error> {
    for document in documents {
        let (kind, subject, serial) = match document.contents() {
            Contents::Rollover(rollover) => {
                let sql = "DELETE FROM documents WHERE kind != 'rollover'";
                sqlx::query(sql).execute(&mut *connection).await?;
                ("rollover", rollover.to.as_bytes().to_vec(), Serial(0))
            }
            Contents::Revocations(list) => {
                let sql = "DELETE FROM documents WHERE kind = 'statement' AND serial < ?";
                sqlx::query(sql).bind(list.floor.0 as i64).execute(&mut *connection).await?;
                for (subject, last) in list.subjects() {
                    let sql = "DELETE FROM documents WHERE kind = 'statement' AND subject = ? AND serial <= ?";
                    let query = sqlx::query(sql).bind(subject.as_bytes().to_vec()).bind(last.0 as i64);
                    query.execute(&mut *connection).await?;
                }
                ("revocations", Vec::new(), list.serial)
            }
            Contents::LeaseCertificate(certificate) => ("certificate", Vec::new(), certificate.serial),
            Contents::Site(site) => ("statement", site.grant.public_key.as_bytes().to_vec(), site.serial),
            Contents::Relay(relay) => ("statement", relay.public_key.as_bytes().to_vec(), relay.serial),
            // Coordinators issue new leases when they start.
            Contents::Lease(_) => continue,
        };
        let sql = "INSERT OR REPLACE INTO documents (kind, subject, serial, document) VALUES (?, ?, ?, ?)";
        let query = sqlx::query(sql).bind(kind).bind(subject).bind(serial.0 as i64).bind(document.to_string());
        query.execute(&mut *connection).await?;
    }
    Ok(())
}
