//! Each source × {an empty cluster, tablespaces, load while the backup is made} × {restored, compared page by page, amcheck,
//! equal `pg_dumpall`, every acknowledged commit}.

use super::archived::{Archived, Result, conninfo, context, options};
use super::restoring::{lay_out_wal, request, restored, start, switch, wait_promoted};
use super::site::offline_of;
use anyhow::Context as _;
use engine::backup::{self, BackupOptions, BackupReport, SnapshotGuarantee, SnapshotOptions, SourceOptions, Stopping};
use engine::restore::{RecoveryTarget, RestoreRequest, TablespaceMapping};
use std::path::PathBuf;
use std::time::Duration;
use testkit::compare::{amcheck, checksums, compare_dirs, dumps_are_equal};
use testkit::load::{Ledger, LoadOptions};
use testkit::pg::StopMode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Standalone,
    Snapshot,
    CrashConsistent,
    Offline,
    Warm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Empty,
    Tablespaces,
    Load,
}

struct Proof {
    archived: Archived,
    space: PathBuf,
}

impl Proof {
    async fn start(what: What) -> Result<Self> {
        let archived = Archived::start().await?;
        let server = &archived.server;
        server.append_conf("autovacuum", "off")?;
        server.reload()?;
        let space = server.make_dir("space")?;
        if what != What::Empty {
            server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
            server
                .sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 8) AS t FROM generate_series(1, 20000) n")?;
            server.sql("CREATE INDEX ON big (t); CREATE TABLE there TABLESPACE fast AS SELECT n FROM generate_series(1, 9000) n")?;
            server.sql("CREATE DATABASE other; VACUUM big, there")?;
            // Replayed, a new database has empty visibility maps: its pages are logged as if they had a hole
            // (`RelationCopyStorageUsingBuffer` in src/backend/storage/buffer/bufmgr.c).
            server.sql("CHECKPOINT")?;
        }
        Ok(Self { archived, space })
    }

    /// A copy of all files, made between two commands.
    fn snapshot(&self, guarantee: SnapshotGuarantee) -> Result<SourceOptions> {
        let server = &self.archived.server;
        let (copy, data) = (server.make_dir("frozen")?, server.data_dir().display().to_string());
        let copied = format!(
            "mkdir {0}/now; cp -a {data} {0}/now/data 2>{0}/said; cp -a {1} {0}/now/space 2>>{0}/said; \
             test -e {0}/now/data/global/pg_control",
            copy.display(),
            self.space.display()
        );
        // Files go while they are copied; that is what a backup is for. A crash stops everything in one moment.
        let all = format!("$(head -n 1 {data}/postmaster.pid) $(pgrep -P $(head -n 1 {data}/postmaster.pid))");
        let freeze = match guarantee {
            SnapshotGuarantee::Backup => copied,
            SnapshotGuarantee::CrashConsistent => {
                // The parent first: it makes no children then.
                format!(
                    "kill -STOP $(head -n 1 {data}/postmaster.pid); all=\"{all}\"; kill -STOP $all; {copied}; code=$?; \
                         kill -CONT $all; exit $code"
                )
            }
        };
        Ok(SourceOptions::Snapshot(SnapshotOptions {
            freeze,
            release: format!("rm -rf {}/now", copy.display()),
            directory: copy.join("now/data"),
            maps: vec![(self.space.clone(), copy.join("now/space"))],
            guarantee,
            command_time_max: Duration::from_secs(120),
        }))
    }

    async fn back_up(&mut self, way: Way) -> Result<BackupReport> {
        let data = self.archived.server.data_dir().to_owned();
        let source = match way {
            Way::Direct | Way::Standalone => SourceOptions::Direct,
            Way::Snapshot => self.snapshot(SnapshotGuarantee::Backup)?,
            Way::CrashConsistent => self.snapshot(SnapshotGuarantee::CrashConsistent)?,
            Way::Offline | Way::Warm => offline_of(&data, Stopping::Already),
        };
        let options = BackupOptions { source, standalone: way == Way::Standalone, ..options() };
        let (cluster, conninfo) = (self.archived.cluster().await?, conninfo(&self.archived.server)?);
        if way == Way::Warm {
            backup::warm(&context(), &cluster, &data, None, &options).await?.context("it runs")?;
        }
        let stops = matches!(way, Way::Offline | Way::Warm);
        if stops {
            self.archived.server.stop(StopMode::Fast)?;
        }
        let report = backup::run(&context(), &cluster, &conninfo, &options).await?;
        if stops {
            self.archived.server.start_again()?;
        }
        Ok(report)
    }
}

async fn proof(way: Way, what: What) -> Result {
    let mut proof = Proof::start(what).await?;
    let load = match what {
        What::Load => {
            let load =
                Ledger::start(&proof.archived.server, LoadOptions { clients: 3, pause: Duration::from_millis(1) })?;
            load.wait_for_more(50)?;
            Some(load)
        }
        _ => None,
    };
    let report = proof.back_up(way).await?;
    assert!(report.damaged.is_empty() && report.warnings.is_empty(), "{report:?}");
    if let Some(load) = &load {
        load.wait_for_more(50)?;
    }
    let ledger = load.map(testkit::load::RunningLoad::stop);
    let Proof { mut archived, .. } = proof;
    archived.server.sql("CHECKPOINT")?;
    switch(&archived).await?;
    lay_out_wal(&archived).await?;

    let to = archived.server.make_dir("restored")?.join("space");
    let spaces = if what == What::Empty { vec![] } else { vec![TablespaceMapping { from: space_of(&archived)?, to }] };
    let request = RestoreRequest { tablespaces: spaces, ..request(&archived, "copy", RecoveryTarget::Latest)? };
    restored(&archived, &request).await?;
    let mut copy = start(&request.target_dir)?;
    wait_promoted(&copy)?;
    // Before anybody looks: a query may tidy a page up, on one side only.
    copy.stop(StopMode::Fast)?;
    archived.server.stop(StopMode::Fast)?;
    let comparison = compare_dirs(archived.server.data_dir(), copy.data_dir())?;
    assert!(comparison.files > 500 && comparison.pages > 2000, "{comparison:?}");
    comparison.require_equal()?;
    archived.server.start_again()?;
    copy.start_again()?;
    if let Some(ledger) = ledger {
        let verdict = ledger.verify_all(&copy)?;
        assert!(verdict.required >= 100, "{verdict:?}");
    }
    dumps_are_equal(&archived.server, &copy)?;
    amcheck(&copy)?;
    copy.stop(StopMode::Fast)?;
    checksums(&copy)
}

/// By its link, for a backup of a stopped server has no names.
fn space_of(archived: &Archived) -> Result<String> {
    let entry = std::fs::read_dir(archived.server.data_dir().join("pg_tblspc"))?.next().context("one tablespace")?;
    Ok(entry?.file_name().to_string_lossy().into_owned())
}

macro_rules! proofs {
    ($($name:ident: $way:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() -> Result {
                for what in [What::Empty, What::Tablespaces, What::Load] {
                    proof(Way::$way, what).await.with_context(|| format!("{what:?}"))?;
                }
                Ok(())
            }
        )*
    };
}

proofs! {
    direct_is_restored_whole: Direct;
    standalone_is_restored_whole: Standalone;
    snapshot_is_restored_whole: Snapshot;
    crash_consistent_snapshot_is_restored_whole: CrashConsistent;
    offline_is_restored_whole: Offline;
    two_passes_are_restored_whole: Warm;
}
