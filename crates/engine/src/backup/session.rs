//! The session with the server that makes copying its files a backup: `pg_backup_start` to `pg_backup_stop`.

use super::Checkpoint;
use super::source::Ended;
use crate::EngineError;
use crate::server::ServerFacts;
use jiff::Timestamp;
use pg_format::Lsn;
use pg_format::backup_label::BackupLabel;
use pg_wire::{Client, WireError};
use std::hash::{BuildHasher, Hasher, RandomState};

/// A session in which a backup is made. It must last: when it ends, the backup is void.
pub(super) struct BackupSession {
    /// None once it was ended.
    client: Option<Client>,
    before_15: bool,
}

impl BackupSession {
    /// A backup that has not begun yet.
    pub(super) fn new(client: Client, server: &ServerFacts) -> Self {
        Self { client: Some(client), before_15: server.major.number() < 15 }
    }

    /// Has the server keep all WAL from its last checkpoint on, as long as this session lasts. Gives, within, why it will
    /// not.
    pub(super) async fn hold_wal(&mut self, name: &str) -> Result<Result<(), String>, EngineError> {
        let sql = "SELECT slot_name::text AS name FROM pg_create_physical_replication_slot($1, true, true)";
        match self.client().query_one(sql, &[Some(name)]).await {
            Ok(_) => Ok(Ok(())),
            Err(error) if error.server_error().is_some_and(|refused| refused.severity == "ERROR") => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Begins the backup; gives the LSN where replay begins.
    pub(super) async fn start(
        &mut self,
        server: &ServerFacts,
        label: &str,
        checkpoint: Checkpoint,
    ) -> Result<Lsn, EngineError> {
        let sql = if self.before_15 {
            "SELECT pg_start_backup($1, $2::bool, false)::text AS lsn"
        } else {
            "SELECT pg_backup_start($1, $2::bool)::text AS lsn"
        };
        let fast = if checkpoint == Checkpoint::Fast { "true" } else { "false" };
        let row = self.client().query_one(sql, &[Some(label), Some(fast)]).await.map_err(|error| match error.sqlstate() {
            Some("42501") => EngineError::refused(
                format!("the login {} may not start a backup: {error}", server.user),
                "connect as a superuser or as a role with EXECUTE on pg_backup_start and pg_backup_stop (pg_start_backup, pg_stop_backup before 15)",
            ),
            _ => ended(error),
        })?;
        Ok(row.lsn("lsn")?)
    }

    pub(super) fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("the session is open until the backup has ended")
    }

    /// Waits until the session is lost, and says so.
    pub(super) async fn lost(&mut self) -> EngineError {
        ended(self.client().closed().await)
    }

    /// Ends the backup, and checks that the label speaks of the one that began at `start_lsn`.
    pub(super) async fn stop(&mut self, start_lsn: Lsn) -> Result<Ended, EngineError> {
        // The wait for the archive is ours: what counts is what is in the repository.
        let call = if self.before_15 { "pg_stop_backup(false, false)" } else { "pg_backup_stop(false)" };
        let sql = format!(
            "SELECT lsn::text AS lsn, labelfile AS label, spcmapfile AS map, \
             extract(epoch FROM clock_timestamp())::text AS now FROM {call}"
        );
        let row = self.client().query_one(&sql, &[]).await.map_err(ended)?;
        let text = row.str("label")?.to_owned();
        let tablespace_map = row.opt_str("map")?.filter(|map| !map.is_empty()).map(str::to_owned);
        let seconds: f64 = row.get("now")?;
        let stop_time = Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap_or_default();
        let bad = |reason: String| EngineError::Failed {
            reason: format!("backup_label from the server: {reason}"),
            hint: None,
        };
        let label = BackupLabel::parse(&text).map_err(|error| bad(error.to_string()))?;
        if label.start_lsn != start_lsn {
            return Err(bad(format!("it starts at {}, pg_backup_start said {start_lsn}", label.start_lsn)));
        }
        Ok(Ended {
            timeline: label.start_timeline.unwrap_or(label.start_segment.timeline),
            stop_lsn: row.lsn("lsn")?,
            stop_time,
            label: Some(text),
            tablespace_map,
        })
    }

    /// Ends the session. What it held, such as a temporary slot, is gone then.
    pub(super) async fn close(&mut self) {
        if let Some(client) = self.client.take() {
            client.close().await;
        }
    }
}

/// A failure of the session, in the words of what it means for the backup.
fn ended(error: WireError) -> EngineError {
    match error.server_error().map(|server| server.sqlstate.as_str()) {
        // Object not in prerequisite state: promoted in the middle, or full_page_writes was off on the primary.
        Some("55000") => EngineError::failed(format!("the server ended the backup: {error}"), "run the backup again"),
        Some(_) => EngineError::Wire(error),
        None => EngineError::failed(
            format!("the session that makes the backup valid was lost: {error}"),
            "the server was restarted, killed or cut off; nothing of this backup is kept: run it again when the server is up",
        ),
    }
}

/// The name of a temporary slot. It differs each time: the one of a backup that just failed goes only when the server
/// has noticed that its session is gone.
pub(super) fn slot_name(backup_label: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let random = RandomState::new().build_hasher().finish();
    format!("{}_{random:016x}", backup_label.chars().map(plain).collect::<String>())
}
