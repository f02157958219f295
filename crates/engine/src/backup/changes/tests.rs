//! Changes found on real servers, with `pg_walsummary` and the pages themselves as oracles.

use super::stretch::Piece;
use super::*;
use crate::NoProgress;
use crate::server::connect;
use pg_format::history::TimelineHistory;

use pg_format::relpath::{Fork, RelFile};
use pg_format::wal_summary::{WalSummary, WalSummaryName};
use pg_format::{Lsn, PgMajor, Timeline};
use pg_wire::{Conninfo, Surroundings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use testkit::pg::{Cluster, StopMode};
use tokio_util::sync::CancellationToken;

const PAGE_SIZE: usize = 8192;
const SEGMENT: u32 = 131_072;
const SUMMARIES: [u32; 2] = [17, 18];

pub(super) fn context() -> Context {
    Context { progress: Arc::new(NoProgress), cancel: CancellationToken::new(), clock: Arc::new(jiff::Timestamp::now) }
}

pub(super) fn server(major: u32) -> testkit::pg::ClusterBuilder {
    let builder = Cluster::builder(major);
    let builder = if SUMMARIES.contains(&major) { builder.conf("summarize_wal", "on") } else { builder };
    builder
        .wal_segsize_mb(1)
        .without_fsync()
        .conf("autovacuum", "off")
        // Pages are written by checkpoints only.
        .conf("bgwriter_lru_maxpages", "0")
        .conf("checkpoint_timeout", "1h")
        .conf("max_wal_size", "1GB")
        .conf("min_wal_size", "2MB")
}

fn conninfo(server: &Cluster) -> Conninfo {
    Conninfo::parse(&server.conninfo(), &Surroundings::none()).unwrap()
}

/// A checkpoint, as `pg_backup_start` makes it, and its redo LSN.
pub(super) fn checkpoint(server: &Cluster) -> (Timeline, Lsn) {
    let answer = server.sql("CHECKPOINT; SELECT timeline_id, redo_lsn FROM pg_control_checkpoint()").unwrap();
    let (timeline, lsn) = answer.split_once('|').unwrap();
    (timeline.parse().unwrap(), lsn.parse().unwrap())
}

pub(super) struct Asker {
    pub(super) client: Client,
    pub(super) facts: ServerFacts,
    pub(super) cluster: repo::Cluster,
}

impl Asker {
    pub(super) async fn new(server: &Cluster) -> Self {
        let mut client = connect(&conninfo(server)).await.unwrap();
        let facts = ServerFacts::read(&mut client).await.unwrap();
        let store = Arc::new(store::MemoryStore::new());
        let repository = repo::Repository::create(store, None, "test", jiff::Timestamp::UNIX_EPOCH).await.unwrap();
        Self { client, facts, cluster: repository.cluster(&"main".parse().unwrap()) }
    }

    /// What the summaries say.
    async fn ask(&mut self, stretch: &Stretch) -> Result<Changes, String> {
        let pieces = stretch.pieces()?;
        let answer =
            summaries::changes(&context(), &self.facts, Some(&mut self.client), &pieces, summaries::PATIENCE).await;
        match answer.unwrap() {
            Answer::Unbroken(changes) => Ok(changes),
            Answer::Broken(reason) => Err(reason),
        }
    }

    /// What the WAL index says.
    pub(super) async fn index(&self, stretch: &Stretch) -> Result<Changes, String> {
        match index::changes(&context(), &self.cluster, &self.facts, &stretch.pieces()?).await.unwrap() {
            Answer::Unbroken(changes) => Ok(changes),
            Answer::Broken(reason) => Err(reason),
        }
    }

    pub(super) async fn changes(&mut self, stretch: &Stretch) -> Changes {
        self.ask(stretch).await.unwrap()
    }

    /// The same with the files out of reach.
    async fn changes_by_functions(&mut self, stretch: &Stretch) -> Changes {
        let directory = std::mem::replace(&mut self.facts.data_directory, PathBuf::from("/nonexistent"));
        let changes = self.changes(stretch).await;
        self.facts.data_directory = directory;
        changes
    }

    async fn reason(&mut self, stretch: &Stretch) -> String {
        self.ask(stretch).await.unwrap_err()
    }
}

pub(super) fn stretch(from: (Timeline, Lsn), to: (Timeline, Lsn)) -> Stretch {
    Stretch { from, to, history: None }
}

/// The summaries of a server, as its directory has them.
pub(super) fn files(server: &Cluster) -> Vec<(WalSummaryName, PathBuf)> {
    let directory = server.data_dir().join("pg_wal/summaries");
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().parse::<WalSummaryName>();
    let mut files: Vec<_> = entries.filter_map(|path| Some((name(&path).ok()?, path))).collect();
    files.sort();
    files
}

/// What our parser reads, in the words of `pg_walsummary -i`.
fn lines(bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    for fork in WalSummary::parse(bytes).unwrap() {
        let fork = fork.unwrap();
        let whose =
            format!("TS {}, DB {}, REL {}, FORK {}", fork.tablespace_oid, fork.db_oid, fork.filenode, fork.fork);
        lines.extend(fork.limit_block.map(|limit| format!("{whose}: limit {limit}")));
        lines.extend(fork.blocks.iter().map(|block| format!("{whose}: block {block}")));
    }
    lines.sort();
    lines
}

/// All pages of main forks and init forks on disk that are backed up.
pub(super) fn pages(server: &Cluster) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, below: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(root.join(below)).unwrap().map(Result::unwrap) {
            let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
            if std::fs::metadata(root.join(&path)).unwrap().is_dir() {
                walk(root, &path, found);
            } else if RelFile::parse(&path)
                .is_some_and(|file| matches!(file.fork, Fork::Main | Fork::Init) && file.temp_backend.is_none())
            {
                found.insert(path.clone(), std::fs::read(root.join(path)).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    ["global", "base", "pg_tblspc"].iter().for_each(|top| walk(server.data_dir(), top, &mut found));
    // The main forks of unlogged relations are not backed up, and WAL knows nothing of them.
    let unlogged: Vec<String> = found.keys().filter_map(|path| path.strip_suffix("_init").map(str::to_owned)).collect();
    unlogged.iter().for_each(|path| drop(found.remove(path)));
    found
}

/// Panics when a page differs that is not named. Returns how many differ and how many are named, in files that were
/// there before.
pub(super) fn assert_named(
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
    changes: &Changes,
) -> (u64, u64) {
    let (mut differing, mut named_pages) = (0, 0);
    for (path, new) in after {
        let file = RelFile::parse(path).unwrap();
        let named = changes.of_file(&file, SEGMENT);
        let Some(old) = before.get(path) else {
            assert_eq!(named, FileChanges::Whole, "{path} is new");
            continue;
        };
        for (number, page) in new.chunks(PAGE_SIZE).enumerate() {
            let is_named = match &named {
                FileChanges::None => false,
                FileChanges::Whole => true,
                FileChanges::Pages { pages, from } => {
                    pages.contains(number as u32) || from.is_some_and(|from| number as u64 >= from)
                }
            };
            named_pages += u64::from(is_named);
            let Some(was) = old.get(number * PAGE_SIZE..(number + 1) * PAGE_SIZE) else {
                assert!(is_named || page.iter().all(|&byte| byte == 0), "{path}: new page {number} is not named");
                continue;
            };
            differing += u64::from(was != page);
            assert!(is_named || was == page, "{path}: page {number} differs and is not named: {named:?}");
        }
    }
    (differing, named_pages)
}

pub(super) const BEFORE: &str = "
CREATE TABLE t (id int PRIMARY KEY, pad text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 4000) g;
CREATE TABLE cut AS SELECT g, repeat('y', 500) AS pad FROM generate_series(1, 4000) g;
CREATE TABLE grown (LIKE cut); INSERT INTO grown SELECT * FROM cut;
CREATE TABLE gone AS SELECT * FROM cut; CREATE TABLE still AS SELECT * FROM cut;
CREATE TABLE moved AS SELECT * FROM cut; CREATE UNLOGGED TABLE u (i int); INSERT INTO u VALUES (1);
CREATE INDEX ON still USING hash (g); CREATE INDEX ON still USING brin (g);
CREATE DATABASE old1 STRATEGY file_copy; CREATE DATABASE old2;
VACUUM (FREEZE, ANALYZE)";

pub(super) const WORK: &str = "
UPDATE t SET pad = 'z' WHERE id % 500 = 0; DELETE FROM t WHERE id % 700 = 0; VACUUM t;
INSERT INTO t SELECT g, repeat('w', 900) FROM generate_series(5000, 5300) g;
DELETE FROM cut WHERE g > 400; VACUUM cut; INSERT INTO cut SELECT g, repeat('v', 700) FROM generate_series(1, 2000) g;
TRUNCATE grown; INSERT INTO grown SELECT * FROM cut;
DROP TABLE gone; CREATE TABLE fresh AS SELECT * FROM still LIMIT 100; CREATE INDEX ON fresh (g);
CREATE INDEX late ON cut (g); REINDEX INDEX t_pkey; ALTER TABLE u SET LOGGED; CREATE UNLOGGED TABLE v (i int);
VACUUM FULL moved;
BEGIN; CREATE TABLE never (i int); INSERT INTO never VALUES (1); ROLLBACK;
CREATE DATABASE new1 STRATEGY file_copy; CREATE DATABASE new2 STRATEGY wal_log; DROP DATABASE old1;
INSERT INTO still SELECT g FROM generate_series(1, 2000) g";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_summaries_say_is_what_changed() {
    for major in SUMMARIES {
        let server = server(major).start().unwrap();
        let tablespace = server.make_dir("space").unwrap();
        server.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display())).unwrap();
        server.sql(BEFORE).unwrap();
        let mut asker = Asker::new(&server).await;
        let from = checkpoint(&server);
        let before = pages(&server);
        server.sql(WORK).unwrap();
        checkpoint(&server);
        server.sql("ALTER TABLE t SET TABLESPACE space; UPDATE t SET pad = 'a' WHERE id = 1; ALTER DATABASE old2 SET TABLESPACE space").unwrap();
        let to = checkpoint(&server);
        let after = pages(&server);

        let all = stretch(from, to);
        let changes = asker.changes(&all).await;
        let (differing, named) = assert_named(&before, &after, &changes);
        assert!(differing > 20 && named < 3000, "{differing} pages differ, {named} are named");
        assert_eq!(asker.changes_by_functions(&all).await, changes);

        // Each file says what PostgreSQL's own tool reads in it, and all of that is in the changes.
        let files = files(&server);
        assert!(files.len() > 3, "{files:?}");
        let mut oracle = 0;
        for (name, path) in &files {
            let told = server.tool("pg_walsummary", &["-i", path.to_str().unwrap()]).unwrap();
            let mut told: Vec<String> = told.lines().map(str::to_owned).collect();
            told.sort();
            assert_eq!(lines(&std::fs::read(path).unwrap()), told, "{name}");
            if name.end_lsn > from.1 && name.start_lsn < to.1 {
                oracle += told.iter().filter(|line| assert_line(&changes, line)).count();
            }
        }
        assert!(oracle > 100, "{oracle}");
        // No WAL, no changes.
        assert_eq!(asker.changes(&stretch(to, to)).await, Changes::default());
    }
}

/// Whether a line of `pg_walsummary -i` is one of a relation; panics when the changes lack it.
pub(super) fn assert_line(changes: &Changes, line: &str) -> bool {
    let (whose, what) = line.split_once(": ").unwrap();
    let parts: Vec<&str> = whose.split(", ").map(|part| part.split_once(' ').unwrap().1).collect();
    let (what, block) = what.split_once(' ').unwrap();
    let block: u32 = block.parse().unwrap();
    let numbers: Vec<u32> = parts[..3].iter().map(|part| part.parse().unwrap()).collect();
    assert!(changes.names_relation(numbers[0], numbers[1], numbers[2]), "{line}");
    let fork = Fork::ALL.into_iter().find(|fork| fork.to_string() == parts[3]).unwrap();
    let file = RelFile {
        tablespace_oid: pg_format::Oid(numbers[0]),
        db_oid: pg_format::Oid(numbers[1]),
        filenode: numbers[2],
        fork,
        segment: block / SEGMENT,
        temp_backend: None,
    };
    match changes.of_file(&file, SEGMENT) {
        FileChanges::Whole => {}
        FileChanges::Pages { pages, from } => {
            let page = block % SEGMENT;
            let at_limit = from.is_some_and(|from| u64::from(page) >= from);
            assert!(at_limit || (what == "block" && pages.contains(page)), "{line}");
        }
        FileChanges::None => panic!("{line}"),
    }
    numbers[2] != 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_and_damage_are_named() {
    let server = server(17).start().unwrap();
    let mut asker = Asker::new(&server).await;
    let from = checkpoint(&server);
    server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g").unwrap();
    let middle = checkpoint(&server);
    server.sql("UPDATE t SET g = g + 1").unwrap();
    let to = checkpoint(&server);
    let all = stretch(from, to);
    asker.changes(&all).await;
    let files = files(&server);
    let (name, path) = files.iter().find(|(name, _)| name.start_lsn == from.1).unwrap();
    let good = std::fs::read(path).unwrap();

    // Damaged, read as a file and by the server.
    let mut bad = good.clone();
    bad[20] ^= 1;
    std::fs::write(path, &bad).unwrap();
    let reason = asker.reason(&all).await;
    assert!(reason.contains(&format!("WAL summary {name} is damaged")) && reason.contains("CRC"), "{reason}");
    let directory = std::mem::replace(&mut asker.facts.data_directory, PathBuf::from("/nonexistent"));
    let reason = asker.reason(&all).await;
    assert!(reason.contains(&format!("from {} to {}", name.start_lsn, name.end_lsn)), "{reason}");
    asker.facts.data_directory = directory;
    std::fs::write(path, &good[..good.len() - 7]).unwrap();
    assert!(asker.reason(&all).await.contains("is damaged"));

    // One that is listed and cannot be opened any more.
    std::fs::remove_file(path).unwrap();
    std::fs::create_dir(path).unwrap();
    let reason = asker.reason(&all).await;
    assert!(reason.contains("was removed meanwhile"), "{reason}");
    std::fs::remove_dir(path).unwrap();

    // Gone: the server never makes it again. What lies beyond is not touched by it.
    let reason = asker.reason(&all).await;
    let missing = format!("WAL summaries are missing between {} and {} on timeline 1:", name.start_lsn, name.end_lsn);
    assert!(reason.starts_with(&missing), "{reason}");
    asker.changes(&stretch(middle, to)).await;

    // The answer of one way does not spoil the session.
    asker.facts.major = PgMajor::V16;
    assert_eq!(asker.reason(&all).await, "PostgreSQL 16 has no WAL summaries");
    asker.facts.data_directory = PathBuf::from("/nonexistent");
    match find(&context(), &asker.cluster, &asker.facts, Some(&mut asker.client), &all).await.unwrap() {
        Found::ScanPages { reasons } => {
            assert!(reasons[0].contains("is not in the repository, and not in pg_wal"), "{reasons:?}");
            assert_eq!(reasons[1], "PostgreSQL 16 has no WAL summaries");
        }
        other => panic!("{other:?}"),
    }
    asker.facts.major = PgMajor::V17;
    let elsewhere = Stretch { from: (Timeline(2), from.1), ..all };
    match find(&context(), &asker.cluster, &asker.facts, Some(&mut asker.client), &elsewhere).await.unwrap() {
        Found::ScanPages { reasons } => assert!(reasons.len() == 1 && reasons[0].contains("timeline 2"), "{reasons:?}"),
        other => panic!("{other:?}"),
    }

    // A login that may not ask.
    server.sql("CREATE ROLE weak LOGIN; REVOKE EXECUTE ON FUNCTION pg_available_wal_summaries() FROM public").unwrap();
    let weak = conninfo(&server).with(&[("user", "weak")], &Surroundings::none()).unwrap();
    asker.client = connect(&weak).await.unwrap();
    let reason = asker.reason(&stretch(middle, to)).await;
    assert!(reason.contains("permission denied"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_without_summaries_is_found() {
    let mut server = server(18).start().unwrap();
    let mut asker = Asker::new(&server).await;
    let set = |server: &Cluster, to: &str| {
        server.sql(&format!("ALTER SYSTEM SET summarize_wal = {to}")).unwrap();
        server.reload().unwrap();
        server.wait_for("SHOW summarize_wal", to, Duration::from_secs(60)).unwrap();
        let runs = if to == "on" { "t" } else { "f" };
        let sql = "SELECT summarizer_pid IS NOT NULL FROM pg_get_wal_summarizer_state()";
        server.wait_for(sql, runs, Duration::from_secs(60)).unwrap();
    };
    let from = checkpoint(&server);
    server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g").unwrap();
    let middle = checkpoint(&server);
    asker.changes(&stretch(from, middle)).await;

    // Off: said at once, with what to do. What was summarised before still counts.
    set(&server, "off");
    server.sql("UPDATE t SET g = g + 1").unwrap();
    let to = checkpoint(&server);
    let reason = asker.reason(&stretch(from, to)).await;
    let missing =
        format!("WAL summaries are missing between {} and {} on timeline 1; summarize_wal is off", middle.1, to.1);
    assert!(reason.starts_with(&missing) && reason.contains("pgkeep init --apply"), "{reason}");
    asker.changes(&stretch(from, middle)).await;

    // On again while the WAL is still there: the server makes up for it.
    set(&server, "on");
    checkpoint(&server);
    let changes = asker.changes(&stretch(from, to)).await;
    assert_eq!(asker.changes_by_functions(&stretch(from, to)).await, changes);

    // On again when it is gone.
    set(&server, "off");
    for _ in 0..3 {
        server.sql("UPDATE t SET g = g + 1; SELECT pg_switch_wal(); CHECKPOINT").unwrap();
    }
    set(&server, "on");
    server.sql("UPDATE t SET g = g + 1").unwrap();
    let later = checkpoint(&server);
    let reason = asker.reason(&stretch(to, later)).await;
    assert!(reason.contains("summarize_wal was off"), "{reason}");

    // wal_level=minimal leaves a hole as well: WAL written then is read, and no summary is made of it.
    let from = checkpoint(&server);
    server.append_conf("wal_level", "minimal").unwrap();
    server.append_conf("max_wal_senders", "0").unwrap();
    server.sql("ALTER SYSTEM SET summarize_wal = off").unwrap();
    server.restart().unwrap();
    server.sql("BEGIN; CREATE TABLE unseen (i int); INSERT INTO unseen VALUES (1); COMMIT").unwrap();
    server.append_conf("wal_level", "replica").unwrap();
    server.sql("ALTER SYSTEM SET summarize_wal = on").unwrap();
    server.restart().unwrap();
    let to = checkpoint(&server);
    let mut asker = Asker::new(&server).await;
    let reason = asker.reason(&stretch(from, to)).await;
    assert!(reason.contains("wal_level was minimal"), "{reason}");
    server.sql("INSERT INTO unseen VALUES (2)").unwrap();
    let later = checkpoint(&server);
    asker.changes(&stretch(to, later)).await;

    // A crash and a restart in between make no hole.
    server.sql("UPDATE unseen SET i = i").unwrap();
    server.stop(StopMode::Immediate).unwrap();
    server.start_again().unwrap();
    let last = checkpoint(&server);
    let mut asker = Asker::new(&server).await;
    let unseen: u32 = server.sql("SELECT pg_relation_filenode('unseen')").unwrap().parse().unwrap();
    let database: u32 = server.sql("SELECT oid FROM pg_database WHERE datname = 'postgres'").unwrap().parse().unwrap();
    assert!(asker.changes(&stretch(later, last)).await.names_relation(1663, database, unseen));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stretch_may_lead_over_a_promotion() {
    for major in SUMMARIES {
        let primary = server(major).start().unwrap();
        primary
            .sql("CREATE TABLE a AS SELECT 1 AS i; CREATE TABLE b AS SELECT 1 AS i; CREATE TABLE c AS SELECT 1 AS i")
            .unwrap();
        let standby = primary.standby().unwrap();
        let from = checkpoint(&primary);
        primary.sql("UPDATE a SET i = 2").unwrap();
        let lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
        standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
        standby.promote().unwrap();
        // Not of the standby's history.
        primary.sql("UPDATE c SET i = 3").unwrap();
        standby.sql("UPDATE b SET i = 2").unwrap();
        let to = checkpoint(&standby);
        assert_eq!((from.0, to.0), (Timeline(1), Timeline(2)));

        let history = std::fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
        let history = TimelineHistory::parse(Timeline(2), &history).unwrap();
        let switch = history.switches[0].lsn;
        let over = Stretch { from, to, history: Some(history) };
        let mut asker = Asker::new(&standby).await;
        let changes = asker.changes(&over).await;
        assert_eq!(asker.changes_by_functions(&over).await, changes);
        let number = |sql: &str| standby.sql(sql).unwrap().parse::<u32>().unwrap();
        let database = number("SELECT oid FROM pg_database WHERE datname = 'postgres'");
        let named = |table: &str| {
            let node = number(&format!("SELECT pg_relation_filenode('{table}')"));
            changes.names_relation(1663, database, node)
        };
        assert_eq!(["a", "b", "c"].map(named), [true, true, false]);

        // Without the summaries of the old timeline there is a hole, whatever the new one has.
        for (name, path) in files(&standby) {
            if name.timeline == Timeline(1) && name.end_lsn > from.1 {
                std::fs::remove_file(path).unwrap();
            }
        }
        let reason = asker.reason(&over).await;
        let missing = format!("WAL summaries are missing between {} and {switch} on timeline 1", from.1);
        assert!(reason.starts_with(&missing), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_summarizer_that_stands_still_is_given_up() {
    use rustix::process::{Pid, Signal, kill_process};
    let server = server(17).start().unwrap();
    let mut asker = Asker::new(&server).await;
    let from = checkpoint(&server);
    asker.changes(&stretch(from, from)).await;
    let pid = server.sql("SELECT summarizer_pid FROM pg_get_wal_summarizer_state()").unwrap();
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    server.sql("CREATE TABLE t (i int)").unwrap();
    let to = checkpoint(&server);
    let pieces = [Piece { timeline: from.0, start: from.1, end: to.1 }];
    let mut ctx = context();
    let patience = Duration::from_millis(300);
    match summaries::changes(&ctx, &asker.facts, Some(&mut asker.client), &pieces, patience).await.unwrap() {
        Answer::Broken(reason) => assert!(reason.contains("WAL summarizer stands still at"), "{reason}"),
        Answer::Unbroken(_) => panic!("nothing can be there"),
    }
    // Told to stop while it waits.
    ctx.cancel = CancellationToken::new();
    let stop = ctx.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.cancel();
    });
    let patience = Duration::from_secs(600);
    let stopped = summaries::changes(&ctx, &asker.facts, Some(&mut asker.client), &pieces, patience).await;
    assert!(matches!(stopped, Err(EngineError::Cancelled)), "{stopped:?}");
    // It goes on while we wait.
    let waiting = tokio::spawn(async move { asker.changes(&stretch(from, to)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    kill_process(pid, Signal::CONT).unwrap();
    assert_ne!(waiting.await.unwrap(), Changes::default());
}
