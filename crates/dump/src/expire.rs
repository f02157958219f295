//! Which dumps are kept: the newest so many of each kind, what is pinned, and what nobody can read. What broken-off dumps left
//! goes at the same occasion.
//!
//! Dumps share nothing with each other, so one goes whole and at once (docs/format.md section 17).

use crate::DumpError;
use engine::{Context, Unit};
use jiff::{SignedDuration, Timestamp};
use repo::dump::{DumpDeletion, DumpFacts, DumpIntent};
use repo::retention::{BackupState, Candidate, KeepReason, RetentionPolicy, plan_expire};
use repo::{BackupId, Cluster, LeaseHolder, Pin};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a process of another host left is taken to be left after so long.
const LEFT_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The same when somebody names it.
const LEFT_AFTER_NAMED: SignedDuration = SignedDuration::from_hours(24);

/// A dump that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoomedDump {
    /// Its ID.
    pub dump: BackupId,
    /// What the operator wrote at it.
    pub label: Option<String>,
    /// When it began.
    pub started: Timestamp,
    /// Its databases.
    pub databases: Vec<String>,
    /// Plain bytes.
    pub bytes: u64,
    /// Bytes that it takes in the repository.
    pub stored_bytes: u64,
}

/// A dump that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptDump {
    /// Its ID.
    pub dump: BackupId,
    /// Why.
    pub because: Vec<KeepReason>,
}

/// A dump that is being made, or was broken off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnfinishedDump {
    /// Its ID.
    pub dump: BackupId,
    /// The host that makes it, or made it.
    pub host: Option<String>,
    /// The process there.
    pub pid: Option<u32>,
    /// Whether nobody makes it any more, so that what it stored goes.
    pub left: bool,
}

/// What goes and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DumpExpiry {
    /// Dumps that go, oldest first.
    pub dumps: Vec<DoomedDump>,
    /// Dumps that stay, oldest first.
    pub kept: Vec<KeptDump>,
    /// Unfinished ones.
    pub unfinished: Vec<UnfinishedDump>,
}

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DumpsDeleted {
    /// The dumps, and what broken-off ones left.
    pub deleted: Vec<BackupId>,
    /// Those that were pinned meanwhile.
    pub spared: Vec<BackupId>,
    /// Objects that they had.
    pub objects: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

/// What makes dumps of one kind: a rule counts each kind for itself, so that a dump of one table does not push out those
/// of everything.
fn kind(facts: &DumpFacts) -> (Vec<String>, bool, Vec<String>, bool) {
    let imported = facts.imported.as_ref();
    let mut databases: Vec<String> = facts.databases.iter().map(|database| database.name.clone()).collect();
    databases.extend(imported.into_iter().flat_map(|imported| imported.connects_to.iter().cloned()));
    databases.sort();
    databases.extend(imported.filter(|imported| imported.script.is_some()).map(|imported| imported.path.clone()));
    (databases, facts.globals.is_some(), facts.selection.clone(), imported.is_some())
}

/// Says what goes. Without a policy only what broken-off dumps left.
pub async fn plan(ctx: &Context, cluster: &Cluster, policy: Option<&RetentionPolicy>) -> Result<DumpExpiry, DumpError> {
    if policy.is_some_and(|policy| policy.keep_last == 0) {
        return Err(DumpError::refused(
            "a rule that keeps no dump would delete them all",
            "keep at least one; `pgkeep delete` deletes what it is told to",
        ));
    }
    ctx.progress.phase("looking at dumps", None, Unit::Items);
    let now = ctx.now();
    let mut plan = DumpExpiry::default();
    let pins = cluster.facts().await?.map(|facts| facts.pins).unwrap_or_default();
    let mut kinds: BTreeMap<Option<_>, Vec<Candidate>> = BTreeMap::new();
    let mut all: BTreeMap<BackupId, DumpFacts> = BTreeMap::new();
    for dump in cluster.dumps().await? {
        let (kind, state) = match ctx.or_cancel(cluster.dump_facts(dump)).await? {
            Ok(facts) => {
                let kind = kind(&facts);
                all.insert(dump, facts);
                (Some(kind), BackupState::Whole)
            }
            Err(error) if error.is_not_found() => continue,
            Err(error) if error.is_damage() => (None, BackupState::Unreadable),
            Err(error) => return Err(error.into()),
        };
        kinds.entry(kind).or_default().push(Candidate { backup: dump, state });
    }
    for candidates in kinds.values() {
        for verdict in verdicts(candidates, &pins, policy, now) {
            match all.get(&verdict.backup) {
                Some(facts) if verdict.keep.is_empty() && policy.is_some() => plan.dumps.push(doomed(facts)),
                // A deletion that was broken off goes on.
                Some(facts) if !is_pinned(&verdict.keep) && cluster.is_dump_marked(verdict.backup).await? => {
                    plan.dumps.push(doomed(facts));
                }
                _ => plan.kept.push(KeptDump { dump: verdict.backup, because: verdict.keep }),
            }
        }
    }
    plan.dumps.sort_by_key(|dump| dump.dump);
    plan.kept.sort_by_key(|dump| dump.dump);
    for dump in cluster.unfinished_dumps().await? {
        plan.unfinished.push(unfinished(cluster, dump, now).await?);
    }
    Ok(plan)
}

fn verdicts(
    candidates: &[Candidate],
    pins: &[Pin],
    policy: Option<&RetentionPolicy>,
    now: Timestamp,
) -> Vec<repo::retention::Verdict> {
    let nothing = RetentionPolicy { keep_last: 0 };
    plan_expire(candidates, pins, policy.unwrap_or(&nothing), now)
}

fn is_pinned(keep: &[KeepReason]) -> bool {
    keep.iter().any(|reason| matches!(reason, KeepReason::Pinned { .. }))
}

fn doomed(facts: &DumpFacts) -> DoomedDump {
    DoomedDump {
        dump: facts.dump,
        label: facts.label.clone(),
        started: facts.started,
        databases: facts.databases.iter().map(|database| database.name.clone()).collect(),
        bytes: facts.bytes,
        stored_bytes: facts.stored_bytes,
    }
}

async fn unfinished(cluster: &Cluster, dump: BackupId, now: Timestamp) -> Result<UnfinishedDump, DumpError> {
    let intent = match cluster.dump_intent(dump).await {
        Ok(intent) => intent,
        // Whose it is cannot be said: a human decides.
        Err(error) if error.is_damage() => return Ok(UnfinishedDump { dump, host: None, pid: None, left: false }),
        Err(error) => return Err(error.into()),
    };
    Ok(match intent {
        // Data without an intent: what a deletion left.
        None => UnfinishedDump { dump, host: None, pid: None, left: true },
        Some(intent) => UnfinishedDump {
            dump,
            host: Some(intent.host.clone()),
            pid: Some(intent.pid),
            left: is_left(&intent, now, LEFT_AFTER),
        },
    })
}

/// Whether nobody makes a dump any more: its process is known to be gone, or it is of another host and long ago.
fn is_left(intent: &DumpIntent, now: Timestamp, after: SignedDuration) -> bool {
    let holder = LeaseHolder {
        host: intent.host.clone(),
        boot: intent.boot.clone(),
        pid: intent.pid,
        process_start: intent.process_start,
    };
    let long_ago = intent.started.duration_until(now) >= after;
    engine::process_is_gone(&holder) || long_ago && holder.host != engine::host_facts().name
}

/// Whether somebody who names a dump may take it that nobody makes it any more.
pub(crate) fn is_left_named(intent: &DumpIntent, now: Timestamp) -> bool {
    is_left(intent, now, LEFT_AFTER_NAMED)
}

/// Refuses to delete what a running dump has stored.
pub async fn refuse_running(ctx: &Context, cluster: &Cluster, dump: BackupId) -> Result<(), DumpError> {
    match cluster.dump_intent(dump).await {
        Ok(Some(intent)) if !is_left_named(&intent, ctx.now()) => Err(DumpError::failed(
            format!("dump {dump} is being made, by process {} on {}", intent.pid, intent.host),
            "stop it first; what a process of another host left can be deleted after a day",
        )),
        Ok(_) => Ok(()),
        Err(error) if error.is_damage() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes what a plan says, whatever is pinned since then spared.
pub async fn apply(ctx: &Context, cluster: &Cluster, plan: &DumpExpiry) -> Result<DumpsDeleted, DumpError> {
    let left = plan.unfinished.iter().filter(|dump| dump.left).map(|dump| dump.dump);
    let ids: Vec<BackupId> = plan.dumps.iter().map(|dump| dump.dump).chain(left).collect();
    ctx.progress.phase("deleting dumps", Some(ids.len() as u64), Unit::Items);
    let mut done = DumpsDeleted::default();
    for id in ids {
        ctx.check()?;
        match cluster.delete_dump(id, ctx.now()).await? {
            DumpDeletion::Deleted { objects, bytes } => {
                done.deleted.push(id);
                done.objects += objects;
                done.freed_bytes += bytes;
            }
            DumpDeletion::Pinned(_) => done.spared.push(id),
        }
        ctx.progress.advance(1);
    }
    Ok(done)
}
