//! `archive_command`: a file of `pg_wal` into the repository, and those that wait behind it.
//!
//! Success means that the file is durable in the repository, with this content. PostgreSQL asks for one file after the
//! other; each call pushes others that wait too, in parallel, and notes them in a small state file, so that the calls
//! for those return at once.

mod file;
mod index;
mod ready;
mod state;

use crate::wal::archive::segment_size_of;
use crate::wal::index::roll_up_after;
use crate::{Context, EngineError};
use file::{Body, Judge, Prepared};
use futures::{StreamExt, stream::FuturesUnordered};
use pg_format::{PgMajor, SegmentName, SystemId, Timeline, WalFileName};
use pg_wal::IndexOptions;
use repo::wal::{WalEncoder, WalObject, put_wal_file};
use repo::{Compression, RepoError};
use serde::Serialize;
use state::{Entry, FileIdentity, State};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Created, ObjectPath, Store};
use tokio::sync::Semaphore;

/// Plain and encoded bytes of files in flight, at most (one file is always let through).
const FLIGHT_BYTES_MAX: u64 = 160 << 20;

/// How files are pushed.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// How segments are compressed.
    pub compression: Compression,
    /// How many segments are checked and compressed at the same time.
    pub workers: usize,
    /// How many files one call pushes at most, the one asked for included.
    pub batch: usize,
    /// How long the others are waited for once the file asked for is in the repository.
    pub others_time_max: Duration,
    /// The directory for the state file; without one nothing is remembered, and only the file asked for is pushed.
    pub state_dir: Option<PathBuf>,
    /// What the state belongs to: the repository's URL and the cluster's name.
    pub state_key: String,
}

/// How a file came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pushed {
    /// This call stored it.
    Stored,
    /// It was there already with the same content.
    AlreadyThere,
    /// An earlier call stored it and noted that; the repository was not asked.
    Remembered,
}

/// What became of one of the other files that waited.
#[derive(Debug, Clone, Serialize)]
pub struct OtherPush {
    /// Its name.
    pub name: WalFileName,
    /// How it came to be there, or what went wrong. It will be asked for again.
    pub outcome: Result<Pushed, String>,
}

/// What a push did. The file asked for is durable in the repository.
#[derive(Debug, Clone, Serialize)]
pub struct PushReport {
    /// The file asked for.
    pub name: WalFileName,
    /// How it came to be there.
    pub pushed: Pushed,
    /// The others that were pushed with it.
    pub others: Vec<OtherPush>,
    /// What a human should read.
    pub warnings: Vec<String>,
    /// Bytes of the files read.
    pub bytes_read: u64,
    /// Bytes stored in the repository.
    pub bytes_stored: u64,
    /// The timeline that production is now noted to be on, when this push changed it.
    pub production_timeline: Option<Timeline>,
}

/// The name of a file that PostgreSQL wants archived; other names are refused.
pub fn name_of(file: &Path) -> Result<WalFileName, EngineError> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse().map_err(|error| {
        EngineError::refused(
            format!("{}: {error}", file.display()),
            "archive_command gives the path with %p: `pgkeep wal push %p`",
        )
    })
}

/// Whether an earlier call pushed this very file, and its object is still there. Needs the store, but no key and no
/// opened repository, so ask it first; it costs one small request. `None` means that [`push`] must be called.
///
/// The object is asked for because a note alone would acknowledge WAL that a repository made anew, or one that lost
/// objects, does not have.
pub async fn remembered(
    store: &dyn Store,
    file: &Path,
    options: &PushOptions,
) -> Result<Option<PushReport>, EngineError> {
    let name = name_of(file)?;
    let Some(dir) = &options.state_dir else { return Ok(None) };
    let Ok(meta) = std::fs::metadata(file) else { return Ok(None) };
    let state = State::load(&state::path_of(dir, &options.state_key));
    let Some(entry) = state.find(&name.to_string(), &FileIdentity::of(&meta)) else { return Ok(None) };
    let Ok(object) = ObjectPath::new(entry.object.as_str()) else { return Ok(None) };
    // A store that cannot be asked now: the push proper says what is wrong with it.
    let found = same_system(entry, file) && store.head(&object).await.is_ok();
    Ok(found.then(|| PushReport::new(name, Pushed::Remembered)))
}

/// Whether a remembered file is still of the system that it was pushed for: one page header is read.
fn same_system(entry: &Entry, file: &Path) -> bool {
    use std::io::Read;
    if name_of(file).is_ok_and(|name| matches!(name, WalFileName::History(_) | WalFileName::BackupHistory(..))) {
        return true;
    }
    let mut header = [0; 40];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut header));
    // A segment that cannot be read was pushed as what it is; its identity is all there is to compare.
    read.is_ok() && pg_wal::peek_segment(&header).map_or(true, |info| info.system_id == entry.system_id)
}

impl PushReport {
    fn new(name: WalFileName, pushed: Pushed) -> Self {
        Self {
            name,
            pushed,
            others: Vec::new(),
            warnings: Vec::new(),
            bytes_read: 0,
            bytes_stored: 0,
            production_timeline: None,
        }
    }
}

/// A file that is in the repository now.
struct Done {
    entry: Entry,
    timeline: Timeline,
    pushed: Pushed,
    warnings: Vec<String>,
    bytes_read: u64,
    bytes_stored: u64,
}

/// Pushes a file, and others that wait beside it.
///
/// # Errors
/// When the file asked for is not in the repository for certain. What goes wrong with others is in the report.
pub async fn push(
    ctx: &Context,
    cluster: &repo::Cluster,
    file: &Path,
    options: &PushOptions,
) -> Result<PushReport, EngineError> {
    let store = cluster.repository().store();
    if let Some(report) = ctx.or_cancel(remembered(&**store, file, options)).await?? {
        return Ok(report);
    }
    let name = name_of(file)?;
    let wal_dir = file.parent().unwrap_or(Path::new("")).to_owned();
    let facts = ctx.or_cancel(cluster.known_facts()).await??;
    // Beside `pg_wal`, by the text of the path: it is often a link to another disk.
    let moved_catalogs = wal_dir.parent().map(index::moved_catalogs).unwrap_or_default();
    let indexing = IndexOptions { moved_catalogs, ..IndexOptions::usual() };
    let judge = Judge { cluster: cluster.clone(), facts, control: file::control_system_id(&wal_dir), indexing };
    let state_path = options.state_dir.as_ref().map(|dir| state::path_of(dir, &options.state_key));
    let mut state = state_path.as_deref().map(State::load).unwrap_or_default();
    let waiting = if state_path.is_some() { ready::waiting(&wal_dir) } else { Vec::new() };
    // What no longer waits was archived; what waits and is known need not be pushed again.
    state.entries.retain(|entry| waiting.iter().any(|name| name.to_string() == entry.name));
    let known = |name: &WalFileName| {
        std::fs::metadata(wal_dir.join(name.to_string()))
            .is_ok_and(|meta| state.find(&name.to_string(), &FileIdentity::of(&meta)).is_some())
    };
    let others = waiting.into_iter().filter(|other| *other != name && !known(other));
    let mut others: Vec<WalFileName> = others.take(options.batch.saturating_sub(1) + 1).collect();
    // The server waits for none but these.
    let idle = others.len() < options.batch;
    others.truncate(options.batch.saturating_sub(1));

    let pusher = Arc::new(Pusher::new(judge, options));
    let mut report = PushReport::new(name, Pushed::Stored);
    let mut reached = None;
    let mut stored = Vec::new();
    let asked = push_all(ctx, &pusher, file, name, &wal_dir, &others, options.others_time_max, |done| {
        report.bytes_read += done.bytes_read;
        report.bytes_stored += done.bytes_stored;
        report.warnings.extend(done.warnings);
        reached = reached.max(Some((done.entry.system_id, done.timeline)));
        if done.pushed == Pushed::Stored {
            stored.push((done.entry.system_id, done.entry.name.clone()));
        }
        state.entries.retain(|entry| entry.name != done.entry.name);
        state.entries.push(done.entry);
    })
    .await;
    let (pushed, others) = match asked {
        Ok(value) => (Ok(value.0), value.1),
        Err((error, others)) => (Err(error), others),
    };
    report.others = others;
    // The timeline first, the notes after: a file that is remembered never comes this way again.
    let raised = match reached {
        Some((system_id, timeline)) => raise_production_timeline(&pusher.judge, system_id, timeline).await,
        None => Ok(None),
    };
    // Also when the file asked for failed: what is in the repository need not go there twice.
    if let Some(path) = state_path.filter(|_| reached.is_some() && raised.is_ok())
        && let Err(error) = state.save(&path)
    {
        report.warnings.push(format!("what was pushed ahead cannot be noted, and will be pushed again: {error}"));
    }
    if idle && pushed.is_ok() && options.state_dir.is_some() {
        // What the others stored is durable, too; this only makes it quicker to read.
        for (system, name) in stored {
            if let Err(error) = roll_up(ctx, &pusher.judge, system, &name).await {
                report.warnings.push(format!("the WAL index could not be rolled up up to {name}: {error}"));
            }
        }
    }
    report.warnings.iter().for_each(|warning| ctx.progress.warn(warning));
    report.pushed = pushed?;
    report.production_timeline = raised?;
    Ok(report)
}

type Asked = Result<(Pushed, Vec<OtherPush>), (EngineError, Vec<OtherPush>)>;

/// Pushes the file asked for and the others, each once; ends early when the one asked for fails.
#[expect(clippy::too_many_arguments, reason = "the parts of one call, kept apart for reading")]
async fn push_all(
    ctx: &Context,
    pusher: &Arc<Pusher>,
    file: &Path,
    name: WalFileName,
    wal_dir: &Path,
    others: &[WalFileName],
    others_time_max: Duration,
    mut each: impl FnMut(Done),
) -> Asked {
    let mut running = FuturesUnordered::new();
    running.push(pusher.clone().push_one(file.to_owned(), name));
    for other in others {
        running.push(pusher.clone().push_one(wal_dir.join(other.to_string()), *other));
    }
    let mut asked = None;
    let mut outcomes = Vec::new();
    let deadline = tokio::time::sleep(Duration::MAX / 4);
    let mut deadline = std::pin::pin!(deadline);
    loop {
        let next = tokio::select! {
            biased;
            next = running.next() => next,
            () = ctx.cancel.cancelled() => None,
            () = &mut deadline, if asked.is_some() => None,
        };
        let Some((finished, outcome)) = next else { break };
        let pushed = outcome.as_ref().map(|done| done.pushed);
        if finished == name {
            match outcome {
                Ok(done) => asked = Some(done.pushed).inspect(|_| each(done)),
                // The store is out of reach, or the file is refused: the others can wait for the next call.
                Err(error) => return Err((error, outcomes)),
            }
            deadline.as_mut().reset(tokio::time::Instant::now() + others_time_max);
        } else {
            outcomes.push(OtherPush { name: finished, outcome: pushed.map_err(ToString::to_string) });
            if let Ok(done) = outcome {
                each(done);
            }
        }
    }
    match asked {
        Some(pushed) => Ok((pushed, outcomes)),
        None => Err((EngineError::Cancelled, outcomes)),
    }
}

struct Pusher {
    judge: Judge,
    compression: Compression,
    encoders: Mutex<Vec<WalEncoder>>,
    computing: Semaphore,
    in_flight: Semaphore,
}

impl Pusher {
    fn new(judge: Judge, options: &PushOptions) -> Self {
        let workers = options.workers.max(1);
        let segment = judge.facts.current().map_or(16 << 20, |entry| entry.wal_segment_size).max(1);
        let in_flight = (FLIGHT_BYTES_MAX / (2 * segment)).clamp(1, 2 * workers as u64 + 2);
        Self {
            judge,
            compression: options.compression,
            encoders: Mutex::default(),
            computing: Semaphore::new(workers),
            in_flight: Semaphore::new(in_flight as usize),
        }
    }

    async fn push_one(self: Arc<Self>, file: PathBuf, name: WalFileName) -> (WalFileName, Result<Done, EngineError>) {
        (name, self.try_push(file, name).await)
    }

    async fn try_push(self: &Arc<Self>, file: PathBuf, name: WalFileName) -> Result<Done, EngineError> {
        // Neither semaphore is ever closed; both bound memory and cores.
        let _in_flight = self.in_flight.acquire().await;
        let prepared = {
            let _computing = self.computing.acquire().await;
            let this = self.clone();
            let task = tokio::task::spawn_blocking(move || this.prepare(&file, name));
            task.await
                .map_err(|error| EngineError::Failed { reason: format!("a worker ended: {error}"), hint: None })??
        };
        let Prepared { system_id, identity, path, hash, bytes_read, body, warnings } = prepared;
        let repository = self.judge.cluster.repository();
        let (created, bytes_stored) = match body {
            Body::Segment(object) => {
                let len = object.len() as u64;
                (repository.store().put(&path, object).await.map_err(RepoError::from)?, len)
            }
            Body::File(content) => {
                let created = put_wal_file(&**repository.store(), repository.keys(), &path, &content).await;
                (created.map_err(other_content)?, content.len() as u64)
            }
        };
        let is_segment = name.segment().is_some() && !matches!(name, WalFileName::BackupHistory(..));
        if created == Created::Exists && is_segment {
            let object = WalObject::open(repository.store().clone(), repository.keys(), path.clone()).await?;
            if object.facts().await?.plain_hash != hash {
                return Err(other_content(RepoError::OtherContent { path: path.clone() }));
            }
        }
        let new = created == Created::New;
        Ok(Done {
            entry: Entry { name: name.to_string(), system_id, identity, object: path.to_string(), hash },
            timeline: name.timeline(),
            pushed: if new { Pushed::Stored } else { Pushed::AlreadyThere },
            warnings,
            bytes_read,
            bytes_stored: if new { bytes_stored } else { 0 },
        })
    }

    /// Blocks and computes, with an encoder that is used again.
    fn prepare(&self, file: &Path, name: WalFileName) -> Result<Prepared, EngineError> {
        let encoders = || self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = encoders().pop();
        let mut encoder = taken.unwrap_or_else(|| WalEncoder::new(self.compression));
        let prepared = self.judge.prepare(file, name, &mut encoder);
        encoders().push(encoder);
        prepared
    }
}

fn other_content(error: RepoError) -> EngineError {
    if !matches!(error, RepoError::OtherContent { .. }) {
        return error.into();
    }
    EngineError::refused(
        error.to_string(),
        "two servers archive to the same place, or this one was restored and runs on beside its origin: give one of them \
         a place of its own (`pgkeep init` with another name), or switch its archiving off",
    )
}

/// Rolls the WAL index up when this segment completes a group of them.
async fn roll_up(ctx: &Context, judge: &Judge, system: SystemId, name: &str) -> Result<(), EngineError> {
    let Ok(last) = name.parse::<SegmentName>() else { return Ok(()) };
    let Some(entry) = judge.facts.systems.iter().rev().find(|entry| entry.system_id == system) else { return Ok(()) };
    let Ok(major) = PgMajor::from_number(entry.pg_major) else { return Ok(()) };
    let size = segment_size_of(entry)?;
    ctx.or_cancel(roll_up_after(&judge.cluster, system, size, major, last)).await?
}

/// Notes that production is on a higher timeline now; says so when that is new.
async fn raise_production_timeline(
    judge: &Judge,
    system_id: SystemId,
    timeline: Timeline,
) -> Result<Option<Timeline>, EngineError> {
    if !judge.facts.is_behind(system_id, timeline) {
        return Ok(None);
    }
    judge.cluster.raise_production_timeline(system_id, timeline).await?;
    Ok(Some(timeline))
}
