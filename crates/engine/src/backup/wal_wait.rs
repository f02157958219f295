//! The wait until all WAL that a backup needs is in the repository and can be read back.

use crate::server::{ServerFacts, connect};
use crate::{Context, EngineError, Unit};
use pg_format::{Lsn, SegmentName, Timeline, XLogSegNo};
use pg_wire::Conninfo;
use repo::{Cluster, wal::read_segment};
use std::time::Duration;
use tokio::time::Instant;

/// How often the repository is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// When nothing came for so long, the server is asked what is wrong, once.
const WONDER_AFTER: Duration = Duration::from_secs(15);

pub(super) struct WalWait<'a> {
    pub(super) ctx: &'a Context,
    pub(super) cluster: &'a Cluster,
    pub(super) server: &'a ServerFacts,
    /// How long the next segment may take.
    pub(super) timeout: Duration,
}

impl WalWait<'_> {
    /// Waits for each segment from `start` to `stop`, and reads it back.
    pub(super) async fn until_readable(
        &self,
        conninfo: &Conninfo,
        timeline: Timeline,
        start: Lsn,
        stop: Lsn,
    ) -> Result<(), EngineError> {
        let size = self.server.wal_segment_size;
        let (first, last) = (start.segment_no(size), stop.segment_no_of_end(size));
        self.ctx.progress.phase("waiting for WAL in the repository", Some(last.0 - first.0 + 1), Unit::Items);
        for segno in (first.0..=last.0).map(XLogSegNo) {
            let name = SegmentName::new(timeline, segno, size).ok_or_else(|| EngineError::Failed {
                reason: format!("LSN {stop} is beyond all segments"),
                hint: None,
            })?;
            self.one(conninfo, name).await?;
            self.ctx.progress.advance(1);
        }
        Ok(())
    }

    async fn one(&self, conninfo: &Conninfo, name: SegmentName) -> Result<(), EngineError> {
        let repository = self.cluster.repository();
        let path = self.cluster.name().wal_file(self.server.system_id, name.timeline, &name.to_string())?;
        let began = Instant::now();
        let mut wondered = false;
        loop {
            let read = self.ctx.or_cancel(read_segment(repository.store().clone(), repository.keys(), &path)).await?;
            match read {
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
            if began.elapsed() > self.timeout {
                let why = self.archiver_state(conninfo).await;
                return Err(EngineError::failed(
                    format!(
                        "WAL segment {name} did not reach the repository within {} seconds, so the backup would not be \
                         restorable and was given up{why}",
                        self.timeout.as_secs()
                    ),
                    "see the server's log for what archive_command says, then `pgkeep check`",
                ));
            }
            if began.elapsed() > WONDER_AFTER && !wondered {
                wondered = true;
                let why = self.archiver_state(conninfo).await;
                let standby = if self.server.in_recovery {
                    "; on a standby it comes when the primary switches WAL: run `SELECT pg_switch_wal()` there"
                } else {
                    ""
                };
                self.ctx.progress.warn(&format!("still waiting for WAL segment {name}{why}{standby}"));
            }
            self.ctx.or_cancel(tokio::time::sleep(ASK_EVERY)).await?;
        }
    }

    /// What the server's archiver says, as a half-sentence; empty when it says nothing of use.
    async fn archiver_state(&self, conninfo: &Conninfo) -> String {
        let asked = async {
            let mut client = connect(conninfo).await?;
            let sql = "SELECT failed_count::text AS failed, last_failed_wal AS wal, last_failed_time::text AS at \
                       FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time, '-infinity')";
            let row = client.query_opt(sql, &[]).await?;
            client.close().await;
            Ok::<_, EngineError>(row)
        };
        match asked.await {
            Ok(Some(row)) => {
                let text = |column| row.opt_str(column).ok().flatten().unwrap_or("?").to_owned();
                format!("; archiving fails: {} failures, last at {} for {}", text("failed"), text("at"), text("wal"))
            }
            Ok(None) => String::new(),
            Err(error) => format!("; the server cannot be asked why: {error}"),
        }
    }
}
