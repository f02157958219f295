//! `archive_command`: a file of `pg_wal` into the repository, and those that wait behind it.
//!
//! Success means that the file is durable, with this content, in each repository that must have it. PostgreSQL asks for
//! one file after the other; a call pushes others that wait too, in parallel, and notes them ([`Spool`]), so that the
//! calls for those return at once. Where more wait, a process in the background goes on ([`work()`]).
//!
//! [`Pusher`] is what all of them use: it takes one file after the other, several at the same time.

mod catalogs;
mod copy;
mod destination;
mod file;
mod index;
mod pusher;
mod ready;
mod spool;
mod work;

pub use catalogs::MovedCatalogs;
pub(crate) use catalogs::read_map;
pub use destination::{Destination, OutOfReach};
pub use pusher::{PushedFile, Pusher, PusherOptions};
pub use ready::waiting;
pub use spool::Spool;
pub use work::{BACKLOG_MIN, Waited, WorkOptions, WorkReport, backlog, is_waiting, wait_for, work};

use crate::{Context, EngineError};
use futures::future::join_all;
use futures::{StreamExt, stream::FuturesUnordered};
use pg_format::{Timeline, WalFileName};
use repo::Compression;
use serde::Serialize;
use spool::{FileIdentity, Note};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{ObjectPath, Store};

/// Files that one call brings to optional repositories that missed them.
const CATCH_UP_FILES: usize = 4;

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
    /// The directory for what is noted; without one nothing is remembered, and only the file asked for is pushed.
    pub state_dir: Option<PathBuf>,
    /// What notes belong to: the repositories' URLs and the cluster's name.
    pub state_key: String,
}

impl PushOptions {
    /// Where pushes of this file are noted.
    pub fn spool(&self, file: &Path) -> Option<Spool> {
        self.state_dir.as_ref().map(|dir| Spool::new(dir, &self.state_key, &wal_dir_of(file)))
    }
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

/// The directory that a file lies in, from the root on. By the text of the path: `pg_wal` is often a link.
pub fn wal_dir_of(file: &Path) -> PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    absolute.parent().map(Path::to_owned).unwrap_or_default()
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
    match options.spool(file) {
        Some(spool) => remembered_in(&[store], &spool, file).await,
        None => name_of(file).map(|_| None),
    }
}

/// As [`remembered`], with several repositories: those that must have the file.
pub async fn remembered_in(
    stores: &[&dyn Store],
    spool: &Spool,
    file: &Path,
) -> Result<Option<PushReport>, EngineError> {
    let name = name_of(file)?;
    let Ok(meta) = std::fs::metadata(file) else { return Ok(None) };
    let Some(note) = spool.find(&name.to_string(), &FileIdentity::of(&meta)) else { return Ok(None) };
    let Ok(object) = ObjectPath::new(note.object.as_str()) else { return Ok(None) };
    if !same_system(&note, file) {
        return Ok(None);
    }
    // A store that cannot be asked now: the push proper says what is wrong with it.
    let heads = join_all(stores.iter().map(|store| store.head(&object))).await;
    let found = !heads.is_empty() && heads.iter().all(Result::is_ok);
    if heads.iter().any(|head| head.as_ref().is_err_and(store::StoreError::is_not_found)) {
        // Made anew, or another one: what else is noted about it is as wrong.
        spool.forget_all();
    }
    Ok(found.then(|| PushReport { warnings: note.warnings, ..PushReport::new(name, Pushed::Remembered) }))
}

/// Whether a remembered file is still of the system that it was pushed for: one page header is read.
fn same_system(note: &Note, file: &Path) -> bool {
    use std::io::Read;
    if name_of(file).is_ok_and(|name| matches!(name, WalFileName::History(_) | WalFileName::BackupHistory(..))) {
        return true;
    }
    let mut header = [0; 40];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut header));
    // A segment that cannot be read was pushed as what it is; its identity is all there is to compare.
    read.is_ok() && pg_wal::peek_segment(&header).map_or(true, |info| info.system_id == note.system_id)
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

    fn add(&mut self, done: &PushedFile) {
        self.bytes_read += done.bytes_read;
        self.bytes_stored += done.bytes_stored;
        self.warnings.extend(done.warnings.iter().cloned());
        self.production_timeline = self.production_timeline.max(done.production_timeline);
    }
}

/// Pushes a file into one repository, and others that wait beside it.
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
    let destination = Destination {
        name: "of the cluster".into(),
        cluster: cluster.clone(),
        compression: options.compression,
        required: true,
        key: options.state_key.clone(),
    };
    push_to(ctx, vec![destination], Vec::new(), file, options).await
}

/// Pushes a file into all repositories, and others that wait beside it. That it is noted already is not looked at.
///
/// # Errors
/// When the file asked for is not for certain in each repository that must have it. What goes wrong with others is in
/// the report.
pub async fn push_to(
    ctx: &Context,
    destinations: Vec<Destination>,
    out_of_reach: Vec<OutOfReach>,
    file: &Path,
    options: &PushOptions,
) -> Result<PushReport, EngineError> {
    let name = name_of(file)?;
    let wal_dir = wal_dir_of(file);
    // Where nothing can be noted, taking others along would only do their work twice.
    let (spool, unusable) = match options.spool(file).map(|spool| spool.make_dir().map(|()| spool)).transpose() {
        Ok(spool) => (spool, None),
        Err(error) => (None, Some(format!("{name}: nothing can be noted, so each file is pushed alone: {error}"))),
    };
    let pusher_options =
        PusherOptions { workers: options.workers, spool: spool.clone(), warn_later: false, catalogs: None };
    let pusher = Pusher::open(ctx, destinations, out_of_reach, &wal_dir, &pusher_options).await?;
    let others = match &spool {
        Some(spool) => {
            let waiting = ready::waiting(&wal_dir);
            spool.clean(&waiting.iter().map(ToString::to_string).collect());
            backlog(spool, &wal_dir, name)
        }
        None => Vec::new(),
    };
    // The server waits for none but these.
    let idle = others.len() < options.batch;
    let others = &others[..others.len().min(options.batch.saturating_sub(1))];

    let mut report = PushReport::new(name, Pushed::Stored);
    report.warnings.extend(unusable);
    let mut stored = Vec::new();
    let asked = push_all(ctx, &pusher, file, name, others, options.others_time_max, |done| {
        report.add(done);
        if done.pushed == Pushed::Stored {
            stored.push((done.system_id, done.name));
        }
    })
    .await;
    let (pushed, others) = match asked {
        Ok(value) => (Ok(value.0), value.1),
        Err((error, others)) => (Err(error), others),
    };
    report.others = others;
    if idle && pushed.is_ok() && spool.is_some() {
        // What the others stored is durable, too; this only makes it quicker to read.
        report.warnings.extend(pusher.roll_up(ctx, &stored).await);
        report.warnings.extend(pusher.catch_up(ctx, CATCH_UP_FILES).await.1);
    }
    report.warnings.iter().for_each(|warning| ctx.progress.warn(warning));
    report.pushed = pushed?;
    Ok(report)
}

type Asked = Result<(Pushed, Vec<OtherPush>), (EngineError, Vec<OtherPush>)>;

/// Pushes the file asked for and the others, each once; ends early when the one asked for fails.
async fn push_all(
    ctx: &Context,
    pusher: &Arc<Pusher>,
    file: &Path,
    name: WalFileName,
    others: &[WalFileName],
    others_time_max: Duration,
    mut each: impl FnMut(&PushedFile),
) -> Asked {
    let mut running = FuturesUnordered::new();
    let push_one = |file: PathBuf, name: WalFileName| {
        let pusher = pusher.clone();
        async move { (name, pusher.push(file, name).await) }
    };
    running.push(push_one(file.to_owned(), name));
    for other in others {
        running.push(push_one(pusher.wal_dir().join(other.to_string()), *other));
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
        if let Ok(done) = &outcome {
            each(done);
        }
        if finished == name {
            match outcome {
                Ok(done) => asked = Some(done.pushed),
                // The store is out of reach, or the file is refused: the others can wait for the next call.
                Err(error) => return Err((error, outcomes)),
            }
            deadline.as_mut().reset(tokio::time::Instant::now() + others_time_max);
        } else {
            let outcome = outcome.map(|done| done.pushed).map_err(|error| error.to_string());
            outcomes.push(OtherPush { name: finished, outcome });
        }
    }
    match asked {
        Some(pushed) => Ok((pushed, outcomes)),
        None => Err((EngineError::Cancelled, outcomes)),
    }
}
