//! Changes by the server's WAL summaries (PostgreSQL 17 and later): files in `pg_wal/summaries`, each telling which
//! blocks a range of one timeline's WAL changed.
//!
//! The server makes them without overlaps and leaves holes where it was told not to summarise and where `wal_level` was
//! minimal (`src/backend/postmaster/walsummarizer.c`). It ends one at each checkpoint's redo LSN, and removes old ones.
//! What must be there is what the server itself demands for an incremental backup (`PrepareForIncrementalBackup` in
//! `src/backend/backup/basebackup_incremental.c`).

use super::stretch::Piece;
use super::{Answer, Changes, ForkKey, refusal};
use crate::blocking;
use crate::server::ServerFacts;
use crate::{Context, EngineError, Unit};
use futures::StreamExt;
use pg_format::relpath::Fork;
use pg_format::wal_summary::{ForkChanges, WalSummary, WalSummaryName};
use pg_format::{Lsn, Timeline};
use pg_wire::{Client, Row};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long the summarizer may stand still before it is given up; the server's own patience
/// (`WaitForWalSummarization`). When idle it looks for WAL every 30 seconds only, unless a checkpoint wakes it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A summary of so many bytes would name some hundred million blocks.
const FILE_BYTES_MAX: u64 = 1 << 30;
const ASK_AGAIN_AFTER_MAX: Duration = Duration::from_millis(500);

/// The changes of the pieces, or why the summaries cannot tell.
pub(super) async fn changes(
    ctx: &Context,
    server: &ServerFacts,
    mut client: Option<&mut Client>,
    pieces: &[Piece],
    patience: Duration,
) -> Result<Answer, EngineError> {
    if !server.major.facts().has_wal_summaries {
        return Ok(Answer::Broken(format!("PostgreSQL {} has no WAL summaries", server.major.number())));
    }
    let directory = server.data_directory.join("pg_wal/summaries");
    let names = match &mut client {
        Some(client) => needed(ctx, client, pieces, patience).await?,
        None => on_disk(&directory, pieces),
    };
    let names = match names {
        Ok(names) => names,
        Err(reason) => return Ok(Answer::Broken(reason)),
    };
    let mut changes = Changes::default();
    ctx.progress.phase("reading WAL summaries", Some(names.len() as u64), Unit::Items);
    for name in names {
        ctx.check()?;
        let path = directory.join(name.to_string());
        changes = match blocking(move || Ok(read_file(&path, changes))).await? {
            FileRead::Read(changes) => changes,
            FileRead::Bad(reason) => return Ok(Answer::Broken(reason)),
            FileRead::OutOfReach(before) => {
                let Some(client) = &mut client else {
                    return Ok(Answer::Broken(unreadable(name, "its file cannot be read")));
                };
                match ctx.or_cancel(ask_for(client, name, before)).await?? {
                    Answer::Unbroken(changes) => changes,
                    broken @ Answer::Broken(_) => return Ok(broken),
                }
            }
        };
        ctx.progress.advance(1);
    }
    Ok(Answer::Unbroken(changes))
}

/// The summaries of a server that does not run, by the names of their files; or why there is a hole.
fn on_disk(directory: &Path, pieces: &[Piece]) -> Result<Vec<WalSummaryName>, String> {
    let entries = std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut names: Vec<WalSummaryName> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    names.sort_unstable();
    match pieces.iter().find_map(|piece| piece.first_hole(&names)) {
        None => Ok(names.into_iter().filter(|name| pieces.iter().any(|piece| piece.meets(name))).collect()),
        Some(hole) => Err(format!(
            "WAL summaries are missing between {} and {} on timeline {}, and the server does not run to make them",
            hole.start, hole.end, hole.timeline
        )),
    }
}

/// The summaries that cover the pieces, when the summarizer is far enough; or why there is a hole.
async fn needed(
    ctx: &Context,
    client: &mut Client,
    pieces: &[Piece],
    patience: Duration,
) -> Result<Result<Vec<WalSummaryName>, String>, EngineError> {
    let mut standing = Instant::now();
    let mut reached = (Timeline(0), Lsn(0));
    let mut ask_again_after = Duration::from_millis(10);
    loop {
        // The state first: a summary is listed before the state says that it is there.
        let state = match ctx.or_cancel(State::ask(client)).await?? {
            Ok(state) => state,
            Err(reason) => return Ok(Err(reason)),
        };
        let names = match ctx.or_cancel(available(client)).await?? {
            Ok(names) => names,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(hole) = pieces.iter().find_map(|piece| piece.first_hole(&names)) else {
            return Ok(Ok(names.into_iter().filter(|name| pieces.iter().any(|piece| piece.meets(name))).collect()));
        };
        let missing =
            format!("WAL summaries are missing between {} and {} on timeline {}", hole.start, hole.end, hole.timeline);
        if !state.enabled {
            return Ok(Err(format!("{missing}; summarize_wal is off: `pgkeep init --apply` sets it")));
        }
        // The summarizer never goes back: it goes on from the newest summary that there is.
        if state.summarized > (hole.timeline, hole.start) {
            return Ok(Err(format!(
                "{missing}: summarize_wal was off or wal_level was minimal at that time, or the server removed them \
                 (wal_summary_keep_time)"
            )));
        }
        let pending = (state.summarized.0, state.pending);
        if pending > reached {
            (reached, standing) = (pending, Instant::now());
        } else if standing.elapsed() >= patience {
            let state = if state.runs { "stands still" } else { "does not run" };
            return Ok(Err(format!(
                "{missing}: the server's WAL summarizer {state} at {}, after {} seconds of waiting; see the server's log",
                pending.1,
                patience.as_secs()
            )));
        }
        if ask_again_after < ASK_AGAIN_AFTER_MAX {
            ask_again_after *= 2;
        }
        ctx.progress.phase("waiting for the server's WAL summaries", None, Unit::Items);
        ctx.or_cancel(tokio::time::sleep(ask_again_after.min(ASK_AGAIN_AFTER_MAX))).await?;
    }
}

/// Where the server's summarizer is.
struct State {
    /// `summarize_wal`.
    enabled: bool,
    runs: bool,
    /// The end of what lies on disk.
    summarized: (Timeline, Lsn),
    /// How far it has read on that timeline.
    pending: Lsn,
}

impl State {
    async fn ask(client: &mut Client) -> Result<Result<Self, String>, EngineError> {
        let sql = "SELECT summarized_tli::text AS timeline, summarized_lsn::text AS summarized, \
                   pending_lsn::text AS pending, (summarizer_pid IS NOT NULL) AS runs, \
                   current_setting('summarize_wal') AS enabled FROM pg_get_wal_summarizer_state()";
        let row = match client.query_one(sql, &[]).await {
            Ok(row) => row,
            Err(error) => {
                return Ok(Err(format!("the server does not tell of its WAL summarizer: {}", refusal(error)?)));
            }
        };
        Ok(Ok(Self {
            enabled: row.bool("enabled")?,
            runs: row.bool("runs")?,
            summarized: (row.timeline("timeline")?, row.lsn("summarized")?),
            pending: row.lsn("pending")?,
        }))
    }
}

/// All summaries that the server has. It is asked even where its files can be read: a directory of the same name on
/// this host need not be that server's.
async fn available(client: &mut Client) -> Result<Result<Vec<WalSummaryName>, String>, EngineError> {
    let sql = "SELECT tli::text AS timeline, start_lsn::text AS start, end_lsn::text AS \"end\" \
               FROM pg_available_wal_summaries()";
    let rows = match client.query(sql, &[]).await {
        Ok(rows) => rows,
        Err(error) => return Ok(Err(format!("the server does not list its WAL summaries: {}", refusal(error)?))),
    };
    let name = |row: Row| -> Result<WalSummaryName, EngineError> {
        Ok(WalSummaryName {
            timeline: row.timeline("timeline")?,
            start_lsn: row.lsn("start")?,
            end_lsn: row.lsn("end")?,
        })
    };
    let mut names = rows.into_iter().map(name).collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable();
    Ok(Ok(names))
}

/// What came of reading a summary's file.
enum FileRead {
    /// The changes, with the file's added.
    Read(Changes),
    /// The file is not to be had; the changes as they were.
    OutOfReach(Changes),
    /// It is damaged, so nobody will make sense of it.
    Bad(String),
}

/// Adds what a summary's file says.
fn read_file(path: &Path, mut changes: Changes) -> FileRead {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    if read.is_err() {
        return FileRead::OutOfReach(changes);
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return FileRead::OutOfReach(changes);
    }
    let forks = match WalSummary::parse(&bytes) {
        Ok(forks) => forks,
        Err(error) => return FileRead::Bad(damaged(path, &error)),
    };
    for fork in forks {
        match fork {
            Ok(fork) => add(&mut changes, &fork),
            Err(error) => return FileRead::Bad(damaged(path, &error)),
        }
    }
    FileRead::Read(changes)
}

fn damaged(path: &Path, error: &pg_format::FormatError) -> String {
    let name = path.file_name().map(PathBuf::from).unwrap_or_default();
    format!("WAL summary {} is damaged: {error}", name.display())
}

fn add(changes: &mut Changes, fork: &ForkChanges) {
    let (tablespace, database) = (fork.tablespace_oid.0, fork.db_oid.0);
    if fork.filenode == 0 {
        // The sign of a database that was made or dropped (`SummarizeDbaseRecord`).
        changes.add_database(tablespace, database);
        return;
    }
    let key = ForkKey { tablespace, database, relfilenode: fork.filenode, fork: fork.fork };
    if let Some(limit) = fork.limit_block {
        changes.set_limit(key, limit.0);
    }
    changes.add_blocks(key, fork.blocks.iter().map(|block| block.0));
}

/// Adds what the server says a summary contains. Blocks come 65,536 to a row at most: one row each would be slow.
async fn ask_for(client: &mut Client, name: WalSummaryName, mut changes: Changes) -> Result<Answer, EngineError> {
    let sql = "SELECT reltablespace::text AS tablespace, reldatabase::text AS database, relfilenode::text AS relfilenode, \
               relforknumber::text AS fork, is_limit_block AS is_limit, \
               string_agg(relblocknumber::text, ',') AS blocks \
               FROM pg_wal_summary_contents($1::int8, $2::pg_lsn, $3::pg_lsn) \
               GROUP BY reltablespace, reldatabase, relfilenode, relforknumber, is_limit_block, relblocknumber / 65536";
    let (timeline, start, end) = (name.timeline.to_string(), name.start_lsn.to_string(), name.end_lsn.to_string());
    let params = [Some(timeline.as_str()), Some(start.as_str()), Some(end.as_str())];
    let mut rows = match client.query_stream(sql, &params).await {
        Ok(rows) => rows,
        Err(error) => return Ok(Answer::Broken(unreadable(name, &refusal(error)?))),
    };
    while let Some(row) = rows.next().await {
        let fork = match row {
            Ok(row) => fork_of_row(&row)?,
            Err(error) => return Ok(Answer::Broken(unreadable(name, &refusal(error)?))),
        };
        match fork {
            Ok(fork) => add(&mut changes, &fork),
            Err(reason) => return Ok(Answer::Broken(unreadable(name, &reason))),
        }
    }
    Ok(Answer::Unbroken(changes))
}

/// Fails within when a value is none that is known.
fn fork_of_row(row: &Row) -> Result<Result<ForkChanges, String>, EngineError> {
    let blocks = row.str("blocks")?.split(',').map(str::parse).collect::<Result<Vec<_>, _>>();
    let (number, Ok(mut blocks)) = (row.get("fork")?, blocks) else { return Ok(Err("a block has no number".into())) };
    let Some(fork) = Fork::from_number(number) else { return Ok(Err(format!("fork {number} is not known"))) };
    let limit_block = if row.bool("is_limit")? { blocks.pop() } else { None };
    Ok(Ok(ForkChanges {
        tablespace_oid: row.get("tablespace")?,
        db_oid: row.get("database")?,
        filenode: row.get("relfilenode")?,
        fork,
        limit_block,
        blocks,
    }))
}

fn unreadable(name: WalSummaryName, reason: &str) -> String {
    format!(
        "the WAL summary from {} to {} on timeline {} is damaged, was removed meanwhile (wal_summary_keep_time), or \
         cannot be read: {reason}",
        name.start_lsn, name.end_lsn, name.timeline
    )
}
