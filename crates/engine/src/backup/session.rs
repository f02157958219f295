//! The session with the server that makes copying its files a backup: `pg_backup_start` to `pg_backup_stop`.

use super::Checkpoint;
use crate::EngineError;
use crate::server::ServerFacts;
use jiff::Timestamp;
use pg_format::backup_label::BackupLabel;
use pg_format::{Lsn, Timeline};
use pg_wire::{Client, WireError};

/// A backup that the server knows of. The session must last: when it ends, the backup is void.
pub(super) struct BackupSession {
    client: Client,
    before_15: bool,
    start_lsn: Lsn,
}

/// What the server gave at the end.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) stop_lsn: Lsn,
    pub(super) stop_time: Timestamp,
    /// `backup_label`, byte for byte.
    pub(super) label: String,
    /// `tablespace_map`, byte for byte; none when there are no tablespaces.
    pub(super) tablespace_map: Option<String>,
}

/// What the label says of the start.
pub(super) struct LabelStart {
    pub(super) timeline: Timeline,
}

impl BackupSession {
    pub(super) async fn start(
        mut client: Client,
        server: &ServerFacts,
        label: &str,
        checkpoint: Checkpoint,
    ) -> Result<Self, EngineError> {
        let before_15 = server.major.number() < 15;
        let sql = if before_15 {
            "SELECT pg_start_backup($1, $2::bool, false)::text AS lsn"
        } else {
            "SELECT pg_backup_start($1, $2::bool)::text AS lsn"
        };
        let fast = if checkpoint == Checkpoint::Fast { "true" } else { "false" };
        let row = client.query_one(sql, &[Some(label), Some(fast)]).await.map_err(|error| match error.sqlstate() {
            Some("42501") => EngineError::refused(
                format!("the login {} may not start a backup: {error}", server.user),
                "connect as a superuser or as a role with EXECUTE on pg_backup_start and pg_backup_stop (pg_start_backup, pg_stop_backup before 15)",
            ),
            _ => ended(error),
        })?;
        Ok(Self { start_lsn: row.lsn("lsn")?, client, before_15 })
    }

    /// Where replay begins.
    pub(super) fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Waits until the session is lost, and says so.
    pub(super) async fn lost(&mut self) -> EngineError {
        ended(self.client.closed().await)
    }

    pub(super) async fn stop(mut self) -> Result<Stopped, EngineError> {
        // The wait for the archive is ours: what counts is what is in the repository.
        let call = if self.before_15 { "pg_stop_backup(false, false)" } else { "pg_backup_stop(false)" };
        let sql = format!(
            "SELECT lsn::text AS lsn, labelfile AS label, spcmapfile AS map, \
             extract(epoch FROM clock_timestamp())::text AS now FROM {call}"
        );
        let row = self.client.query_one(&sql, &[]).await.map_err(ended)?;
        let label = row.str("label")?.to_owned();
        let tablespace_map = row.opt_str("map")?.filter(|map| !map.is_empty()).map(str::to_owned);
        let seconds: f64 = row.get("now")?;
        let stop_time = Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap_or_default();
        let stop_lsn = row.lsn("lsn")?;
        self.client.close().await;
        Ok(Stopped { stop_lsn, stop_time, label, tablespace_map })
    }
}

impl Stopped {
    /// Checks that the label speaks of this backup.
    pub(super) fn check_label(&self, start_lsn: Lsn) -> Result<LabelStart, EngineError> {
        let bad = |reason: String| EngineError::Failed {
            reason: format!("backup_label from the server: {reason}"),
            hint: None,
        };
        let label = BackupLabel::parse(&self.label).map_err(|error| bad(error.to_string()))?;
        if label.start_lsn != start_lsn {
            return Err(bad(format!("it starts at {}, pg_backup_start said {start_lsn}", label.start_lsn)));
        }
        let timeline = label.start_timeline.unwrap_or(label.start_segment.timeline);
        Ok(LabelStart { timeline })
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
