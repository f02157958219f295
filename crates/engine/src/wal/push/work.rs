//! The push that goes on behind the answer: one process works off what waits, while PostgreSQL asks for one file after
//! the other and is answered from its notes.
//!
//! It never acknowledges anything: who is asked for a file looks for the note and asks the repository. What it cannot push
//! it leaves to the one that is asked, who tries again and says why. It may be killed at any time: its lock ends with it.

use super::pusher::Pusher;
use super::ready;
use super::spool::{FileIdentity, Spool};
use crate::wal::lock::WorkerLock;
use crate::{Context, EngineError};
use futures::{StreamExt, stream::FuturesUnordered};
use pg_format::{SystemId, WalFileName};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

/// With less than this waiting, beside the file asked for, a call takes them along by itself.
pub const BACKLOG_MIN: usize = 2;
/// What waits is listed again after this time, though not all of the last list is done: histories are urgent.
const LIST_AGAIN: Duration = Duration::from_millis(500);
/// Listing takes this part of the time at most.
const LIST_SHARE: u32 = 20;
/// A repository that could not be opened is tried again by the next process, after so long.
const OUT_OF_REACH_LIFE: Duration = Duration::from_secs(20);
/// Files brought to optional repositories at one go, before it is looked again what waits.
const CATCH_UP_FILES: usize = 4;

/// How long the background process goes on.
#[derive(Debug, Clone, Copy)]
pub struct WorkOptions {
    /// With nothing to do for so long it ends; `None`: never.
    pub idle_time: Option<Duration>,
    /// How often it looks whether something waits.
    pub poll_time: Duration,
    /// It ends after so long, so that the next one reads the configuration anew; `None`: never.
    pub life_max: Option<Duration>,
}

impl WorkOptions {
    /// For a process that was started by a push.
    pub const USUAL: Self = Self {
        idle_time: Some(Duration::from_secs(3)),
        poll_time: Duration::from_millis(10),
        life_max: Some(Duration::from_secs(600)),
    };
}

/// What the background process did.
#[derive(Debug, Clone, Default)]
pub struct WorkReport {
    /// Files pushed.
    pub pushed: u64,
    /// Files that could not be pushed, with the reason. They are left to who is asked for them.
    pub failed: Vec<(WalFileName, String)>,
    /// What else went wrong.
    pub warnings: Vec<String>,
}

/// What became of a file while it was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There is a note on it.
    Noted,
    /// Nobody in the background pushes it: push it here.
    LeftToUs,
}

/// The files that wait and have no note, most urgent first, without the one that is asked for.
pub fn backlog(spool: &Spool, wal_dir: &Path, asked: WalFileName) -> Vec<WalFileName> {
    let noted = |name: &WalFileName| {
        identity_of(wal_dir, *name).is_some_and(|identity| spool.find(&name.to_string(), &identity).is_some())
    };
    ready::waiting(wal_dir).into_iter().filter(|name| *name != asked && !noted(name)).collect()
}

/// Whether the server waits for this file, so that the background process will come to it.
pub fn is_waiting(wal_dir: &Path, name: WalFileName) -> bool {
    wal_dir.join("archive_status").join(format!("{name}.ready")).exists()
}

fn identity_of(wal_dir: &Path, name: WalFileName) -> Option<FileIdentity> {
    std::fs::metadata(wal_dir.join(name.to_string())).ok().map(|meta| FileIdentity::of(&meta))
}

/// Waits until the background process has pushed a file, or is seen not to do it: it has ended, it says so, or nothing
/// was heard for `time_max`.
pub async fn wait_for(ctx: &Context, spool: &Spool, wal_dir: &Path, name: WalFileName, time_max: Duration) -> Waited {
    let (begun, text) = (Instant::now(), name.to_string());
    let mut pause = Duration::from_millis(1);
    loop {
        // In this order: a note may be written just before the lock becomes free.
        let locked = spool.is_locked();
        if identity_of(wal_dir, name).is_some_and(|it| spool.find(&text, &it).is_some()) {
            return Waited::Noted;
        }
        let over = !locked || spool.has_failed(&text) || begun.elapsed() > time_max;
        if over || ctx.or_cancel(tokio::time::sleep(pause)).await.is_err() {
            return Waited::LeftToUs;
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(10));
    }
}

/// Pushes what waits, until nothing does for [`WorkOptions::idle_time`], the store fails, or it is told to stop.
///
/// # Errors
/// When there is no spool to note anything in. What goes wrong with files is in the report.
pub async fn work(
    ctx: &Context,
    pusher: &std::sync::Arc<Pusher>,
    _lock: &WorkerLock,
    options: &WorkOptions,
) -> Result<WorkReport, EngineError> {
    let Some(spool) = pusher.spool() else {
        return Err(EngineError::Failed {
            reason: "nothing can be noted without a state directory".into(),
            hint: None,
        });
    };
    let mut work = Work { spool, wal_dir: pusher.wal_dir(), known: HashMap::new(), queue: VecDeque::new() };
    let mut running = FuturesUnordered::new();
    let mut report = WorkReport::default();
    let mut stored: Vec<(SystemId, WalFileName)> = Vec::new();
    let mut list_at = Instant::now();
    let mut idle_since = Instant::now();
    // Nothing new is begun any more.
    let mut ending = false;
    let born = Instant::now();
    let out_of_reach = (!pusher.out_of_reach().is_empty()).then_some(OUT_OF_REACH_LIFE);
    let life_max = [options.life_max, out_of_reach].into_iter().flatten().min();
    loop {
        ending |= life_max.is_some_and(|life| born.elapsed() > life);
        if !ending && Instant::now() >= list_at {
            let begun = Instant::now();
            if !work.list() {
                // The data directory or the state directory is gone.
                break;
            }
            let pause = if work.queue.is_empty() { options.poll_time } else { LIST_AGAIN };
            list_at = Instant::now() + pause.max(begun.elapsed() * LIST_SHARE);
        }
        while !ending && running.len() < pusher.in_flight_max() {
            let Some(name) = work.next() else { break };
            let (pusher, file) = (pusher.clone(), work.wal_dir.join(name.to_string()));
            running.push(async move { (name, pusher.push(file, name).await) });
        }
        if running.is_empty() {
            if ending || ctx.cancel.is_cancelled() {
                break;
            }
            // Nobody waits: now is the time for what only makes things better.
            report.warnings.extend(pusher.roll_up(ctx, &std::mem::take(&mut stored)).await);
            let (brought, warnings) = pusher.catch_up(ctx, CATCH_UP_FILES).await;
            report.warnings.extend(warnings);
            if brought > 0 {
                idle_since = Instant::now();
                list_at = Instant::now();
                continue;
            }
            let over = options.idle_time.is_some_and(|idle| idle_since.elapsed() > idle);
            if over || ctx.or_cancel(tokio::time::sleep_until(list_at.into())).await.is_err() {
                break;
            }
            continue;
        }
        idle_since = Instant::now();
        tokio::select! {
            biased;
            Some((name, pushed)) = running.next() => match pushed {
                Ok(done) => {
                    report.pushed += 1;
                    work.set(name, State::Pushed);
                    stored.push((done.system_id, name));
                    // Its list of what waits is short again.
                    if work.queue.is_empty() {
                        list_at = Instant::now();
                    }
                }
                Err(error) => {
                    // A store out of reach fails for the others as well.
                    ending |= matches!(&error, EngineError::Repo(error) if !error.is_damage());
                    work.set(name, State::Failed);
                    work.spool.fail(&name.to_string(), &error.to_string());
                    report.failed.push((name, error.to_string()));
                }
            },
            () = ctx.cancel.cancelled() => break,
            () = tokio::time::sleep_until(list_at.into()), if !ending => {}
        }
    }
    Ok(report)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    OnItsWay,
    Failed,
    Pushed,
}

struct Work<'a> {
    spool: &'a Spool,
    wal_dir: &'a Path,
    /// Files that need not be looked at again as long as they are the same ones: on their way, failed, or, as long as the
    /// note on them is there, pushed.
    known: HashMap<WalFileName, (FileIdentity, State)>,
    queue: VecDeque<WalFileName>,
}

impl Work<'_> {
    /// Lists what waits; false when there is no place for it any more.
    fn list(&mut self) -> bool {
        let waiting = ready::waiting(self.wal_dir);
        let names: BTreeSet<String> = waiting.iter().map(ToString::to_string).collect();
        let there = !waiting.is_empty() || self.wal_dir.join("archive_status").is_dir();
        self.known.retain(|name, _| names.contains(&name.to_string()));
        let known = |name: &WalFileName| {
            self.known.get(name).is_some_and(|(identity, state)| {
                let noted = *state != State::Pushed || self.spool.has_note(&name.to_string());
                noted && identity_of(self.wal_dir, *name).as_ref() == Some(identity)
            })
        };
        self.queue = waiting.into_iter().filter(|name| !known(name)).collect();
        self.spool.clean(&names) && there
    }

    fn set(&mut self, name: WalFileName, state: State) {
        if let Some((_, known)) = self.known.get_mut(&name) {
            *known = state;
        }
    }

    /// The next file to be pushed.
    fn next(&mut self) -> Option<WalFileName> {
        while let Some(name) = self.queue.pop_front() {
            // It is archived and gone, or somebody else pushed it.
            let Some(identity) = identity_of(self.wal_dir, name) else { continue };
            let noted = self.spool.find(&name.to_string(), &identity).is_some();
            self.known.insert(name, (identity, if noted { State::Pushed } else { State::OnItsWay }));
            if !noted {
                return Some(name);
            }
        }
        None
    }
}
