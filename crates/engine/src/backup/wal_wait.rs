//! The wait until all WAL that a backup needs is in the repository and can be read back.

use crate::server::{ServerFacts, connect};
use crate::{Context, EngineError, Unit};
use pg_format::{Lsn, SegmentName, Timeline, XLogSegNo};
use pg_wire::Conninfo;
use repo::wal::{WalObject, read_segment};
use repo::{Cluster, Repository};
use std::time::Duration;
use store::ObjectPath;
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
    /// On a standby: why the primary could not be asked to end its segment.
    pub(super) primary_failure: Option<&'a str>,
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
            self.one(conninfo, name, stop).await?;
            self.ctx.progress.advance(1);
        }
        Ok(())
    }

    async fn one(&self, conninfo: &Conninfo, name: SegmentName, stop: Lsn) -> Result<(), EngineError> {
        let repository = self.cluster.repository();
        let path = self.cluster.name().wal_file(self.server.system_id, name.timeline, &name.to_string())?;
        let began = Instant::now();
        let mut wondered = false;
        loop {
            if self.ctx.or_cancel(read_back(repository, &path, stop)).await?? {
                return Ok(());
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
                let standby = self.primary_failure.map_or_else(String::new, |failure| {
                    format!(
                        "; on a standby it comes when the primary switches WAL, and that could not be asked for ({failure}): \
                         run `SELECT pg_switch_wal()` there"
                    )
                });
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

/// Reads a segment back; false when it is not there yet. An error when recovery could not get through it to `stop`: a
/// damaged segment is archived as well as it can be, but a backup that needs it is none.
async fn read_back(repository: &Repository, path: &ObjectPath, stop: Lsn) -> Result<bool, EngineError> {
    match read_segment(repository.store().clone(), repository.keys(), path).await {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let object = WalObject::open(repository.store().clone(), repository.keys(), path.clone()).await?;
    match object.facts().await?.unreadable.filter(|cut| cut.lsn < stop) {
        None => Ok(true),
        Some(cut) => Err(EngineError::failed(
            format!(
                "{path}: the WAL of this backup cannot be read from {} on: {}; the backup would not be restorable and was \
                 given up",
                cut.lsn, cut.reason
            ),
            "look at the disk that pg_wal lies on, then run the backup again",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repo::Compression;
    use repo::wal::{Fragments, Unreadable, WalEncoder, WalFacts};
    use std::sync::Arc;
    use store::{MemoryStore, Store};

    #[tokio::test]
    async fn wal_that_recovery_cannot_get_through_makes_no_backup() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let repository = Repository::create(store.clone(), None, "test", jiff::Timestamp::UNIX_EPOCH).await.unwrap();
        let path = ObjectPath::new("clusters/main/wal/7/00000001/000000010000000000000003").unwrap();
        assert!(!read_back(&repository, &path, Lsn(0x300_2000)).await.unwrap(), "not there yet");
        let facts = serde_json::json!({
            "system_id": "7", "timeline": 1, "segment_size": 1 << 24, "wal_page_magic": 1, "first_lsn": "0/3000000",
            "last_lsn": "0/3001000", "first_record_lsn": null, "records": 0, "commits": 0, "aborts": 0,
            "earliest_commit": null, "latest_commit": null, "earliest_abort": null, "latest_abort": null,
            "restore_points": [], "checkpoints": [], "switched": false, "head_len": 0, "head_whole": false,
            "tail_len": 0, "tail_total": 0, "unreadable": null, "plain_hash": ""
        });
        let mut facts: WalFacts = serde_json::from_value(facts).unwrap();
        facts.unreadable = Some(Unreadable { lsn: Lsn(0x300_1000), reason: "bad checksum".into() });
        let plain = vec![3; 1 << 14];
        facts.plain_hash = repo::wal::plain_hash(&plain);
        let object = WalEncoder::new(Compression::None)
            .encode(repository.keys(), &path, &plain, &facts, &Fragments::default())
            .unwrap();
        store.put(&path, object).await.unwrap();
        assert!(read_back(&repository, &path, Lsn(0x300_1000)).await.unwrap(), "the backup ends before");
        let error = read_back(&repository, &path, Lsn(0x300_2000)).await.unwrap_err().to_string();
        assert!(error.contains("cannot be read from 0/3001000 on: bad checksum"), "{error}");
    }
}
