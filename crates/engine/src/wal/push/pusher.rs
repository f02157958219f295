//! One file after the other, several at a time, into one or more repositories: what a single call, the background
//! process and the resident archiver have in common.

use super::Pushed;
use super::catalogs::MovedCatalogs;
use super::copy::copy_file;
use super::destination::{Destination, OPTIONAL_TIME_MAX, OutOfReach, Target};
use super::file::{self, Body, Judge, Prepared, Scratch};
use super::spool::{Note, Spool};
use crate::wal::archive::segment_size_of;
use crate::wal::index::roll_up_after;
use crate::{Context, EngineError};
use bytes::Bytes;
use futures::future::join_all;
use pg_format::{PgMajor, SegmentName, SystemId, Timeline, WalFileName};
use repo::RepoError;
use repo::wal::{WalObject, put_wal_file};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use store::{Created, ObjectPath};
use tokio::sync::Semaphore;

/// Plain and encoded bytes of files in flight, at most (one file is always let through).
const FLIGHT_BYTES_MAX: u64 = 160 << 20;

/// How a [`Pusher`] works.
#[derive(Debug, Clone)]
pub struct PusherOptions {
    /// How many segments are checked and compressed at the same time.
    pub workers: usize,
    /// Where pushed files are noted; without it, nothing is.
    pub spool: Option<Spool>,
    /// Whether warnings about a file are told by the call that PostgreSQL waits for: nobody hears this process.
    pub warn_later: bool,
    /// Where the server's catalogs lie; none to look into the data directory beside its `pg_wal`.
    pub catalogs: Option<MovedCatalogs>,
}

/// Pushes files of one `pg_wal` into its repositories. Cheap to share; many files may be pushed at once.
pub struct Pusher {
    judge: Judge,
    targets: Vec<Target>,
    out_of_reach: Vec<OutOfReach>,
    spool: Option<Spool>,
    warn_later: bool,
    wal_dir: PathBuf,
    scratch: Mutex<Vec<Scratch>>,
    computing: Semaphore,
    in_flight: Semaphore,
    in_flight_max: usize,
}

/// A file that is in all repositories that must have it, and is noted.
#[derive(Debug, Clone)]
pub struct PushedFile {
    /// Its name.
    pub name: WalFileName,
    /// How it came to be there.
    pub pushed: Pushed,
    /// Its system identifier.
    pub system_id: SystemId,
    /// The timeline that production is now noted to be on, when this file changed it.
    pub production_timeline: Option<Timeline>,
    /// What a human should read.
    pub warnings: Vec<String>,
    /// Bytes of the file.
    pub bytes_read: u64,
    /// Bytes stored in the repositories.
    pub bytes_stored: u64,
}

impl Pusher {
    /// Looks at what the repositories know of the cluster. `wal_dir` is the server's `pg_wal`; the first destination
    /// judges what belongs to the cluster.
    ///
    /// # Errors
    /// When a required repository cannot be asked, or there is none.
    pub async fn open(
        ctx: &Context,
        destinations: Vec<Destination>,
        mut out_of_reach: Vec<OutOfReach>,
        wal_dir: &Path,
        options: &PusherOptions,
    ) -> Result<Arc<Self>, EngineError> {
        let mut targets = Vec::new();
        for to in destinations {
            let (name, key, required) = (to.name.clone(), to.key.clone(), to.required);
            match Target::open(ctx, to).await {
                Ok(target) => targets.push(target),
                Err(error) if required => return Err(error),
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => out_of_reach.push(OutOfReach { name, key, reason: error.to_string() }),
            }
        }
        // Who judges must be one that a file is acknowledged for.
        targets.sort_by_key(|target| !target.to.required);
        let Some(first) = targets.first().filter(|target| target.to.required) else {
            let hint = "one of the cluster's repositories at least must be required";
            return Err(EngineError::refused("there is no repository that must have the WAL", hint));
        };
        // Beside `pg_wal`, by the text of the path: it is often a link to another disk.
        let in_data_dir = || wal_dir.parent().map(MovedCatalogs::of_data_dir).unwrap_or_default();
        let judge = Judge {
            cluster: first.to.cluster.clone(),
            facts: first.facts.clone(),
            control: file::control_system_id(wal_dir),
            catalogs: options.catalogs.clone().unwrap_or_else(in_data_dir),
        };
        let workers = options.workers.max(1);
        let segment = judge.facts.current().map_or(16 << 20, |entry| entry.wal_segment_size).max(1);
        let each = (1 + targets.len() as u64).saturating_mul(segment);
        let in_flight = (FLIGHT_BYTES_MAX / each).clamp(1, 2 * workers as u64 + 2) as usize;
        Ok(Arc::new(Self {
            judge,
            targets,
            out_of_reach,
            spool: options.spool.clone(),
            warn_later: options.warn_later,
            wal_dir: wal_dir.to_owned(),
            scratch: Mutex::default(),
            computing: Semaphore::new(workers),
            in_flight: Semaphore::new(in_flight),
            in_flight_max: in_flight,
        }))
    }

    /// The server's `pg_wal`.
    pub fn wal_dir(&self) -> &Path {
        &self.wal_dir
    }

    /// Where pushed files are noted.
    pub fn spool(&self) -> Option<&Spool> {
        self.spool.as_ref()
    }

    /// So many files at the same time keep it busy; more would only wait.
    pub fn in_flight_max(&self) -> usize {
        self.in_flight_max
    }

    /// Repositories that need not have everything at once and could not be opened.
    pub fn out_of_reach(&self) -> &[OutOfReach] {
        &self.out_of_reach
    }

    /// Pushes a file: it is durable in all repositories that must have it when this returns, production's timeline is
    /// raised, and it is noted.
    ///
    /// # Errors
    /// When the file is not in each required repository for certain, or production's timeline could not be raised.
    pub async fn push(self: &Arc<Self>, file: PathBuf, name: WalFileName) -> Result<PushedFile, EngineError> {
        // Neither semaphore is ever closed; both bound memory and cores.
        let _in_flight = self.in_flight.acquire().await;
        let prepared = {
            let _computing = self.computing.acquire().await;
            let this = self.clone();
            let task = tokio::task::spawn_blocking(move || this.prepare(&file, name));
            task.await
                .map_err(|error| EngineError::Failed { reason: format!("a worker ended: {error}"), hint: None })??
        };
        let Prepared { system_id, identity, path, hash, bytes_read, body, mut warnings } = prepared;
        let object = &Object { name, system_id, path: &path, hash: &hash };
        let bodies: Vec<Sealed> = match body {
            Body::Segment(objects) => objects.into_iter().map(Sealed::Segment).collect(),
            Body::File(content) => self.targets.iter().map(|_| Sealed::File(content.clone())).collect(),
        };
        let puts = self.targets.iter().zip(bodies).map(|(target, body)| self.put_in(target, object, body));
        let (mut bytes_stored, mut new, mut missed) = (0, false, Vec::new());
        for (target, put) in self.targets.iter().zip(join_all(puts).await) {
            match put {
                Ok((created, bytes)) => {
                    new |= created == Created::New;
                    bytes_stored += if created == Created::New { bytes } else { 0 };
                }
                Err(error) if target.to.required => return Err(error),
                Err(error) => missed.push((&target.to.name, &target.to.key, error.to_string())),
            }
        }
        missed.extend(self.out_of_reach.iter().map(|one| (&one.name, &one.key, one.reason.clone())));
        for (name_of, key, reason) in missed {
            // Before it is acknowledged: afterwards nobody could know.
            let noted = match &self.spool {
                Some(spool) => spool.miss(key, system_id, name).map(|()| "it is brought there later"),
                None => Ok("`pgkeep wal status` shows the gap"),
            };
            let then = noted.map_or_else(|error| format!("and that cannot be noted: {error}"), str::to_owned);
            warnings.push(format!("{name}: is not in repository {name_of}, which need not have it: {reason}; {then}"));
        }
        // The timeline first, the note after: a file that is noted never comes this way again.
        let production_timeline = self.raise_timelines(system_id, name.timeline(), &mut warnings).await?;
        if let Some(spool) = &self.spool {
            let mut note = Note::new(name.to_string(), system_id, identity, path.to_string(), hash);
            if self.warn_later {
                note.warnings.clone_from(&warnings);
            }
            if let Err(error) = spool.write(&note) {
                warnings.push(format!("{name}: cannot be noted, and will be pushed again: {error}"));
            }
        }
        let pushed = if new { Pushed::Stored } else { Pushed::AlreadyThere };
        Ok(PushedFile { name, pushed, system_id, production_timeline, warnings, bytes_read, bytes_stored })
    }

    async fn raise_timelines(
        &self,
        system: SystemId,
        timeline: Timeline,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Timeline>, EngineError> {
        let mut raised = None;
        for target in self.targets.iter().filter(|target| target.to.required || !target.is_down()) {
            let raise = target.raise_timeline(system, timeline);
            let done = if target.to.required {
                raise.await
            } else {
                let late = || EngineError::Failed { reason: "it did not answer in time".into(), hint: None };
                tokio::time::timeout(OPTIONAL_TIME_MAX, raise).await.unwrap_or_else(|_| Err(late()))
            };
            match done {
                Ok(true) => raised = Some(timeline),
                Ok(false) => {}
                Err(error) if target.to.required => return Err(error),
                Err(error) => warnings.push(format!(
                    "repository {} could not be told that production is on timeline {timeline}: {error}",
                    target.to.name
                )),
            }
        }
        Ok(raised)
    }

    /// Into one repository; an optional one gets little time, and when it fails it is left alone for a while.
    async fn put_in(&self, target: &Target, object: &Object<'_>, body: Sealed) -> Result<(Created, u64), EngineError> {
        if target.to.required {
            return put(target, object, body).await;
        }
        let not_now = |reason: &str| EngineError::Failed { reason: reason.into(), hint: None };
        if target.is_down() {
            return Err(not_now("it was out of reach a moment ago"));
        }
        let done = match tokio::time::timeout(OPTIONAL_TIME_MAX, put(target, object, body)).await {
            Ok(done) => done,
            Err(_) => Err(not_now("it did not answer in time")),
        };
        if !matches!(done, Ok(_) | Err(EngineError::Refused { .. })) {
            target.set_down(true);
        }
        done
    }

    /// Blocks and computes, with memory that is used again.
    fn prepare(&self, file: &Path, name: WalFileName) -> Result<Prepared, EngineError> {
        let pool = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = pool().pop();
        let mut scratch =
            taken.unwrap_or_else(|| Scratch::new(self.targets.iter().map(|target| target.to.compression)));
        let keys: Vec<_> = self.targets.iter().map(|target| target.to.cluster.repository().keys()).collect();
        let prepared = self.judge.prepare(file, name, &mut scratch, &keys);
        pool().push(scratch);
        prepared
    }

    /// Rolls the WAL index up for each group of segments that these complete. For when nobody waits.
    pub async fn roll_up(&self, ctx: &Context, stored: &[(SystemId, WalFileName)]) -> Vec<String> {
        let mut warnings = Vec::new();
        for (system, name) in stored {
            let WalFileName::Segment(segment) = name else { continue };
            for target in self.targets.iter().filter(|target| !target.is_down()) {
                if let Err(error) = roll_up_in(ctx, target, *system, *segment).await {
                    let what = format!("the WAL index could not be rolled up up to {name}: {error}");
                    warnings.push(what);
                }
            }
        }
        warnings
    }

    /// Brings what optional repositories missed to them, so many files at most; how many were brought. For when nobody
    /// waits.
    pub async fn catch_up(&self, ctx: &Context, files_max: usize) -> (usize, Vec<String>) {
        let (mut brought, mut warnings) = (0, Vec::new());
        let Some(spool) = &self.spool else { return (0, warnings) };
        let from = &self.judge.cluster;
        for target in self.targets.iter().filter(|target| !target.to.required) {
            for (system, name) in spool.missed(&target.to.key) {
                if brought >= files_max || target.is_down() {
                    break;
                }
                let copy = copy_file(from, &target.to.cluster, target.to.compression, system, name);
                let Ok(copied) = ctx.or_cancel(copy).await else { return (brought, warnings) };
                // What was removed by its age meanwhile need not be brought any more.
                let expired = copied.is_err() && !is_there(from, system, name).await;
                match copied {
                    Ok(_) => {
                        spool.caught_up(&target.to.key, system, name);
                        brought += 1;
                    }
                    Err(_) if expired => spool.caught_up(&target.to.key, system, name),
                    Err(error) => {
                        target.set_down(true);
                        warnings.push(format!("{name} cannot be brought to repository {}: {error}", target.to.name));
                    }
                }
            }
        }
        (brought, warnings)
    }
}

/// Whether the object is in a repository, or it is not known.
async fn is_there(cluster: &repo::Cluster, system: SystemId, name: WalFileName) -> bool {
    let Ok(path) = super::copy::path_of(cluster, system, name) else { return true };
    !matches!(cluster.repository().store().head(&path).await, Err(error) if error.is_not_found())
}

/// What is stored, whatever the repository.
struct Object<'a> {
    name: WalFileName,
    system_id: SystemId,
    path: &'a ObjectPath,
    hash: &'a str,
}

/// What is stored in one repository.
enum Sealed {
    /// A whole object.
    Segment(Bytes),
    /// The plain content.
    File(Vec<u8>),
}

async fn put(target: &Target, object: &Object<'_>, body: Sealed) -> Result<(Created, u64), EngineError> {
    target.check_system(object.system_id, object.path)?;
    let repository = target.to.cluster.repository();
    let (store, keys) = (repository.store(), repository.keys());
    let (created, bytes) = match body {
        Sealed::Segment(sealed) => {
            let len = sealed.len() as u64;
            (store.put(object.path, sealed).await.map_err(RepoError::from)?, len)
        }
        Sealed::File(content) => {
            let created = put_wal_file(&**store, keys, object.path, &content).await;
            (created.map_err(other_content)?, content.len() as u64)
        }
    };
    let is_segment = matches!(object.name, WalFileName::Segment(_) | WalFileName::Partial(_));
    if created == Created::Exists && is_segment {
        let there = WalObject::open(store.clone(), keys, object.path.clone()).await?;
        if there.facts().await?.plain_hash != object.hash {
            return Err(other_content(RepoError::OtherContent { path: object.path.clone() }));
        }
    }
    Ok((created, bytes))
}

pub(super) fn other_content(error: RepoError) -> EngineError {
    if !matches!(error, RepoError::OtherContent { .. }) {
        return error.into();
    }
    EngineError::refused(
        error.to_string(),
        "two servers archive to the same place, or this one was restored and runs on beside its origin: give one of them \
         a place of its own (`pgkeep init` with another name), or switch its archiving off",
    )
}

async fn roll_up_in(ctx: &Context, target: &Target, system: SystemId, last: SegmentName) -> Result<(), EngineError> {
    let Some(entry) = target.facts.systems.iter().rev().find(|entry| entry.system_id == system) else { return Ok(()) };
    let Ok(major) = PgMajor::from_number(entry.pg_major) else { return Ok(()) };
    let size = segment_size_of(entry)?;
    ctx.or_cancel(roll_up_after(&target.to.cluster, system, size, major, last)).await?
}
