//! What waits on the server to be archived.

use crate::EngineError;
use pg_wire::Client;
use serde::Serialize;

/// The files with a `.ready` mark, as the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// How many.
    pub files: u64,
    /// How long the one that has waited longest waits; `None` when none does.
    pub oldest_seconds: Option<u64>,
}

impl Queue {
    /// Asks the server; `None` when this role may not know it (it needs `pg_monitor`).
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn read(client: &mut Client) -> Result<Option<Self>, EngineError> {
        // Not called when it may not be: an error would be in the server's log each time.
        let may = "SELECT has_function_privilege('pg_ls_archive_statusdir()', 'execute') AS may";
        if !client.query_one(may, &[]).await?.bool("may")? {
            return Ok(None);
        }
        let row = client
            .query_one(
                "SELECT count(*)::text AS files, \
                 greatest(extract(epoch FROM now() - min(modification)), 0)::bigint::text AS oldest \
                 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
                &[],
            )
            .await?;
        let files: u64 = row.get("files")?;
        // `greatest` leaves out nulls.
        let oldest: Option<u64> = row.opt_get("oldest")?;
        Ok(Some(Self { files, oldest_seconds: oldest.filter(|_| files > 0) }))
    }
}
