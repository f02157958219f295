//! A backup over the replication protocol: the server sends its files as tar archives (`BASE_BACKUP`), and what of them
//! changed since the prior is stored.
//!
//! One session receives, one thread takes the archives apart, others compare and compress, so that their work hides
//! behind the one stream. All of it arrives; what is stored is decided page by page, by LSN and by hash, with the rules of
//! files that are read here. Nothing can be read a second time: so the server is asked to check pages, for it reads one
//! again that it met in the middle of a write.

pub(crate) mod connect;
mod feed;
mod incremental;
mod prior_files;
mod store;
mod unpack;

pub(super) use connect::{history, open, server_time, session};
pub(super) use incremental::manifest;
pub(super) use unpack::WalCame;

use super::changes::{Changes, FileChanges};
use super::listing::Listing;
use super::pipeline::{Outcome, PipelineSetup};
use super::plan::{Plan, Task, relation_file};
use crate::server::ServerFacts;
use crate::{Context, EngineError, Unit, blocking};
use feed::{Fed, Feeder, Packed};
use incremental::label_of_whole;
use pg_format::backup_label::BackupLabel;
use pg_format::control::ControlFile;
use pg_format::exclude::Rules;
use pg_format::{Lsn, PgMajor, Timeline};
use pg_wire::{BaseBackup, BaseBackupPart, Client, WireError};
use prior_files::PriorFiles;
use std::sync::Arc;
use store::{InPart, Store};
use unpack::{Expecting, Told, Unpacked, unpack};

/// A base backup that the server begins to send.
pub(super) struct Incoming {
    pub(super) backup: BaseBackup,
    /// The method by which the server packs it.
    pub(super) packed: Option<&'static str>,
    /// Whether the WAL that it needs comes with it.
    pub(super) with_wal: bool,
    /// Whether only what changed comes of files that the prior has.
    pub(super) is_incremental: bool,
}

/// All that came, and the session.
pub(super) struct Received {
    pub(super) listing: Arc<Listing>,
    pub(super) plan: Arc<Plan>,
    pub(super) outcome: Outcome,
    pub(super) wal: Vec<WalCame>,
    parts: Vec<InPart>,
    pub(super) stop_lsn: Lsn,
    pub(super) timeline: Timeline,
    pub(super) label: String,
    /// The server's clock when it began to send the data directory, in seconds since 1970.
    pub(super) label_time: u64,
    pub(super) tablespace_map: Option<String>,
    pub(super) warnings: Vec<String>,
    pub(super) client: Client,
}

/// What the pump was stopped by.
enum Pumped {
    All,
    /// Whoever unpacks has stopped, and says why.
    NotWanted,
}

async fn pump(backup: &mut BaseBackup, feeder: &Feeder) -> Result<Pumped, WireError> {
    let manifest = backup.archives().len();
    while let Some(part) = backup.next().await? {
        let fed = match part {
            BaseBackupPart::Archive(number) => Fed::Archive(number),
            BaseBackupPart::Manifest => Fed::Archive(manifest),
            BaseBackupPart::Data(bytes) => Fed::Data(bytes),
        };
        if feeder.send(fed).await.is_err() {
            return Ok(Pumped::NotWanted);
        }
    }
    Ok(if feeder.send(Fed::End).await.is_ok() { Pumped::All } else { Pumped::NotWanted })
}

/// Receives a base backup and stores what of it changed. The listing and the plan of `setup` are not looked at.
pub(super) async fn receive(
    ctx: &Context,
    mut incoming: Incoming,
    setup: PipelineSetup,
    server: &ServerFacts,
    workers: usize,
    data_mode: u32,
) -> Result<Received, EngineError> {
    let is_incremental = incoming.is_incremental;
    let prior = PriorFiles::read(ctx, &setup.base, setup.rules.relseg_blocks).await?;
    let backup = &incoming.backup;
    let (start_lsn, timeline) = (backup.start_lsn(), backup.timeline());
    let mut rules = Rules::new(server.major);
    rules.tablespace_version_directory = tablespace_version_directory(server.major, server.catalog_version);
    // Of changes only, the server's sum says nothing.
    let sizes = backup.archives().iter().map(|archive| archive.size_bytes).sum::<Option<u64>>();
    let total = sizes.filter(|_| !is_incremental);
    let expecting = Expecting {
        archives: backup.archives().iter().map(|archive| archive.tablespace.as_ref().map(|space| space.oid)).collect(),
        packed: match incoming.packed {
            None => Packed::Plain,
            Some("gzip") => Packed::Gzip,
            Some("lz4") => Packed::Lz4,
            Some(_) => Packed::Zstd,
        },
        is_unterminated: backup.archives_are_unterminated(),
        rules,
        tablespaces: backup
            .archives()
            .iter()
            .filter_map(|archive| archive.tablespace.as_ref().map(|space| (space.oid, space.location.clone())))
            .collect(),
        data_mode,
        wal_of: incoming.with_wal.then_some(timeline),
        is_incremental,
        workers,
        from: server.user.clone(),
    };
    ctx.progress.phase("receiving files", total, Unit::Bytes);
    let (feeder, input) = feed::channel();
    let unpacking = tokio::spawn(blocking(move || unpack(input, setup, prior, &expecting)));
    let pumped = ctx.or_cancel(pump(&mut incoming.backup, &feeder)).await;
    drop(feeder);
    // Whatever happened: nothing may arrive in the repository when this has returned.
    let unpacked = unpacking.await.unwrap_or_else(|panic| {
        Err(EngineError::Failed { reason: format!("unpacking stopped unexpectedly: {panic}"), hint: None })
    });
    let unpacked = match (pumped, unpacked) {
        (Err(cancelled), _) => return Err(cancelled),
        (Ok(Err(error)), _) => return Err(broken_off(error)),
        (Ok(Ok(Pumped::All | Pumped::NotWanted)), Err(error)) => return Err(error),
        (Ok(Ok(Pumped::NotWanted)), Ok(_)) => {
            return Err(EngineError::Failed { reason: "the stream was not read to its end".into(), hint: None });
        }
        (Ok(Ok(Pumped::All)), Ok(unpacked)) => unpacked,
    };
    let (end, client) = ctx.or_cancel(incoming.backup.finish()).await?.map_err(broken_off)?;
    let Unpacked { listing, outcome, wal, parts, told } = unpacked;
    let mut warnings = Vec::new();
    if let Some(complaint) = end.complaint
        && outcome.bad_pages.is_empty()
    {
        warnings.push(format!("the server says that pages are damaged, and none was found here: {complaint}"));
    }
    let label = check(&told, server, start_lsn)?;
    let plan = Plan::of_arrived(vec![Task::Nothing; listing.entries.len()]);
    Ok(Received {
        listing: Arc::new(listing),
        plan: Arc::new(plan),
        outcome,
        wal,
        parts,
        stop_lsn: end.stop_lsn,
        timeline: end.timeline,
        label: label_of_whole(&label),
        label_time: told.label_time,
        tablespace_map: Some(String::from_utf8_lossy(&told.tablespace_map).into_owned()).filter(|map| !map.is_empty()),
        warnings,
        client,
    })
}

impl Received {
    /// Whether there are files of which only what changed came.
    pub(super) fn is_in_part(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Puts files together of which only what changed came. `changes` is what WAL names since the prior began.
    pub(super) async fn settle(
        &mut self,
        ctx: &Context,
        setup: PipelineSetup,
        changes: Changes,
        workers: usize,
    ) -> Result<(), EngineError> {
        let parts = std::mem::take(&mut self.parts);
        ctx.progress.phase("putting files together", Some(parts.len() as u64), Unit::Items);
        let (relseg_blocks, page_size) = (setup.rules.relseg_blocks, setup.rules.page_size as u64);
        let listing = self.listing.clone();
        let outcome = blocking(move || {
            let ctx = setup.ctx.clone();
            let store = Store::new(setup, workers);
            let mut unchanged = Vec::new();
            for part in parts {
                ctx.progress.advance(1);
                let entry = &listing.entries[part.index];
                let named = relation_file(&entry.path).map(|rel| changes.of_file(&rel, relseg_blocks));
                let stale_from = match named {
                    None | Some(FileChanges::None) => None,
                    Some(FileChanges::Whole) => Some(0),
                    Some(FileChanges::Pages { from, .. }) => from,
                };
                let is_whole = stale_from.is_none_or(|from| from >= part.len.div_ceil(page_size));
                if part.blocks.is_empty() && part.before.len == part.len && is_whole {
                    unchanged.push((part.index, Some(part.before)));
                } else if let Err(error) = store.settle(part, entry.clone(), stale_from) {
                    return Err(store.give_up(error));
                }
            }
            let (mut outcome, _) = store.finish()?;
            outcome.files.append(&mut unchanged);
            Ok(outcome)
        })
        .await?;
        self.outcome.add(outcome);
        Ok(())
    }
}

/// The name of the server's own directory in tablespaces.
fn tablespace_version_directory(major: PgMajor, catalog_version: u32) -> String {
    format!("PG_{}_{catalog_version}", major.number())
}

/// Judges the files that tell of the backup; gives the label.
fn check(told: &Told, server: &ServerFacts, start_lsn: Lsn) -> Result<String, EngineError> {
    let again = "run the backup again";
    let label = String::from_utf8_lossy(&told.label).into_owned();
    let parsed = BackupLabel::parse(&label)
        .map_err(|error| EngineError::failed(format!("backup_label from the server: {error}"), again))?;
    if parsed.start_lsn != start_lsn {
        let what = format!("backup_label says that it starts at {}, the server said {start_lsn}", parsed.start_lsn);
        return Err(EngineError::failed(what, again));
    }
    // The server reads it as any other file: it may meet a write of its own, and it is not sent a second time.
    let control = ControlFile::parse(&told.control).map_err(|error| {
        EngineError::failed(format!("pg_control was sent in the middle of a write of it: {error}"), again)
    })?;
    let differs = |what: &str, said: String, found: String| {
        EngineError::failed(format!("the server's {what} is {said}, that of the files is {found}"), again)
    };
    if control.system_id != server.system_id {
        return Err(differs("system identifier", server.system_id.to_string(), control.system_id.to_string()));
    }
    if control.catalog_version != server.catalog_version {
        let (known, found) = (server.catalog_version.to_string(), control.catalog_version.to_string());
        return Err(EngineError::refused(
            format!("the server has catalog version {found}; PostgreSQL {} has {known}", server.major.number()),
            "a server before its release is not supported by this way: use `--source direct`",
        ));
    }
    if control.has_data_checksums() != server.checksums {
        let state = |on: bool| if on { "on".to_owned() } else { "off".to_owned() };
        return Err(differs("data_checksums", state(server.checksums), state(control.has_data_checksums())));
    }
    Ok(label)
}

/// A failure of the session, in the words of what it means for the backup.
pub(super) fn broken_off(error: WireError) -> EngineError {
    let again = "of a stream nothing can be gone on from: run the backup again";
    match error.server_error() {
        // Promoted in the middle, or full_page_writes was off on the primary.
        Some(said) if said.sqlstate == "55000" => {
            EngineError::failed(format!("the server ended the backup, which is void: {said}"), "run the backup again")
        }
        Some(said) if said.message.contains("already been removed") => EngineError::failed(
            format!("the server no longer has the WAL that the backup is to carry: {said}"),
            "raise wal_keep_size, or see that the login may make a replication slot and max_replication_slots leaves one; then run it again",
        ),
        Some(said) if said.severity == "ERROR" => EngineError::Wire(error),
        _ => EngineError::failed(format!("the connection that the backup comes over was lost: {error}"), again),
    }
}
