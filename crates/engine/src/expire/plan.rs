//! What would be deleted, kept, freed; and what stands against it.

use super::survey::{Backups, Look, list_packs};
use super::{LastBackup, Request, WalExpiry, WalPlan, Which, wal};
use crate::{Context, EngineError};
use jiff::{SignedDuration, Timestamp};
use pg_format::SystemId;
use repo::garbage::{Deleted, Garbage, GarbageObject, Roots};
use repo::retention::{BackupState, KeepReason, plan_expire};
use repo::{BackupId, Cluster, ClusterFacts, ClusterName, PackId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoomedBackup {
    /// Its ID.
    pub backup: BackupId,
    /// How it is.
    pub state: BackupState,
    /// What the operator wrote at it.
    pub label: Option<String>,
    /// When it began; `None` when its manifest cannot be read.
    pub started: Option<Timestamp>,
    /// The size of what it holds.
    pub bytes: Option<u64>,
    /// What it added to the repository.
    pub bytes_added: Option<u64>,
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptBackup {
    /// Its ID.
    pub backup: BackupId,
    /// How it is.
    pub state: BackupState,
    /// The rules that keep it; none when it was not asked for a rule.
    pub because: Vec<KeepReason>,
}

/// A backup that runs, or was broken off, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnfinishedBackup {
    /// Its ID.
    pub backup: BackupId,
    /// The host that makes it.
    pub host: Option<String>,
    /// The process there.
    pub pid: Option<u32>,
    /// What it stored itself.
    pub own_bytes: u64,
}

/// What a deletion does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeletionPlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The backups that go, oldest first.
    pub backups: Vec<DoomedBackup>,
    /// Those that stay, oldest first.
    pub kept: Vec<KeptBackup>,
    /// Packs that are deleted at once.
    pub freed_packs: u64,
    /// Their size in bytes.
    pub freed_bytes: u64,
    /// Packs that nothing refers to and whose grace is not over: a later run deletes them.
    pub later_packs: u64,
    /// Their size in bytes.
    pub later_bytes: u64,
    /// When the grace of the last of them is over.
    pub later_from: Option<Timestamp>,
    /// Packs that no manifest refers to and that unfinished backups may need.
    pub held_packs: u64,
    /// Their size in bytes.
    pub held_bytes: u64,
    /// The unfinished backups.
    pub unfinished: Vec<UnfinishedBackup>,
    /// WAL that goes, by system identifier.
    pub wal: Vec<WalPlan>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// What a human must read.
    pub warnings: Vec<String>,
}

/// What was found, and what is to be done: the plan's working form.
pub(super) struct Found {
    pub(super) now: Timestamp,
    pub(super) facts: ClusterFacts,
    pub(super) packs: BTreeMap<PackId, u64>,
    pub(super) backups: Backups,
    pub(super) object: GarbageObject,
    pub(super) lines: BTreeMap<SystemId, wal::Lines>,
    pub(super) doomed: BTreeSet<BackupId>,
    keep: BTreeMap<BackupId, Vec<KeepReason>>,
    warnings: Vec<String>,
}

/// How packs that no manifest refers to are sorted.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) due: Vec<PackId>,
    pub(super) later: Vec<PackId>,
    pub(super) held: Vec<PackId>,
    pub(super) later_from: Option<Timestamp>,
}

/// Says what a deletion would do. Changes nothing.
pub async fn plan(ctx: &Context, cluster: &Cluster, request: &Request) -> Result<DeletionPlan, EngineError> {
    let found = Found::look(ctx, cluster, request).await?;
    found.plan(ctx, cluster, request).await
}

impl Found {
    /// Looks at everything, in the order that makes it safe to act on, and chooses what goes.
    pub(super) async fn look(ctx: &Context, cluster: &Cluster, request: &Request) -> Result<Self, EngineError> {
        let facts = cluster.known_facts().await?;
        let packs = list_packs(ctx, cluster).await?;
        let backups = Backups::look(ctx, cluster, None, &BTreeSet::new()).await?;
        let object = ctx.or_cancel(cluster.garbage()).await??;
        let lines = match request.wal {
            WalExpiry::Delete => wal::read_lines(ctx, cluster, &facts, &backups).await?,
            WalExpiry::Keep => BTreeMap::new(),
        };
        let mut found = Self {
            now: ctx.now(),
            facts,
            packs,
            backups,
            object,
            lines,
            doomed: BTreeSet::new(),
            keep: BTreeMap::new(),
            warnings: Vec::new(),
        };
        found.choose(request)?;
        Ok(found)
    }

    fn choose(&mut self, request: &Request) -> Result<(), EngineError> {
        match &request.which {
            Which::Nothing => {}
            Which::ByPolicy(policy) => {
                if policy.keep_last == 0 {
                    return Err(EngineError::refused(
                        "a rule that keeps no backup would delete them all",
                        "keep at least one; `pgkeep delete` deletes what it is told to",
                    ));
                }
                for verdict in plan_expire(&self.backups.candidates(), &self.facts.pins, policy, self.now) {
                    if verdict.keep.is_empty() {
                        self.doomed.insert(verdict.backup);
                    } else {
                        self.keep.insert(verdict.backup, verdict.keep);
                    }
                }
            }
            Which::Backups { ids, last } => {
                for &id in ids {
                    self.check_named(id)?;
                    self.doomed.insert(id);
                }
                if *last == LastBackup::Keep {
                    self.check_last()?;
                }
            }
        }
        Ok(())
    }

    /// Whether a backup that was named may be deleted at all.
    fn check_named(&self, id: BackupId) -> Result<(), EngineError> {
        match self.backups.manifests.get(&id) {
            None if self.backups.unfinished.contains_key(&id) => Err(EngineError::refused(
                format!("backup {id} is running or was broken off: it is not a backup yet"),
                "the next backup takes over what it stored, or removes it",
            )),
            None => Err(EngineError::not_found(
                format!("there is no backup {id} of cluster '{}'", self.facts.name),
                "`pgkeep list` shows the backups; `pgkeep expire --keep-all` removes what deleted ones left",
            )),
            Some(Look::Unreadable { reason, too_new: true }) => Err(EngineError::refused(
                format!("backup {id} was made by a later version of pgkeep: {reason}"),
                "delete it with that version",
            )),
            Some(_) => match self.facts.pin_of(id, self.now) {
                None => Ok(()),
                Some(pin) => {
                    let until = pin.until.map_or_else(|| "for ever".to_owned(), |until| format!("until {until}"));
                    let reason = if pin.reason.is_empty() { String::new() } else { format!(" ({})", pin.reason) };
                    Err(EngineError::refused(
                        format!("backup {id} is pinned {until}{reason}"),
                        format!("`pgkeep unpin {id}` takes the pin away"),
                    ))
                }
            },
        }
    }

    /// A good backup must stay when there is one: of the present cluster, readable, without damaged pages if there is such.
    fn check_last(&self) -> Result<(), EngineError> {
        let current = self.facts.current().map(|entry| entry.system_id);
        let nothing = BTreeSet::new();
        let good = |doomed: &BTreeSet<BackupId>, whole: bool| {
            let mut kept = self.backups.kept(doomed);
            kept.any(|(_, read)| current.is_none_or(|system| read.system_id == system) && !(whole && read.damaged))
        };
        let what = if good(&nothing, true) && !good(&self.doomed, true) {
            "the last good backup"
        } else if good(&nothing, false) && !good(&self.doomed, false) {
            "the last backup"
        } else {
            return Ok(());
        };
        Err(EngineError::refused(
            format!("{what} of cluster '{}' would be deleted, and nothing could be restored", self.facts.name),
            "make a new backup first, or say --even-the-last",
        ))
    }

    /// What the garbage object says once these backups are marked as deleted.
    pub(super) fn marked(&self, request: &Request) -> Garbage {
        let mut garbage = self.object.garbage.clone();
        // What is there is not deleted, whatever an earlier run meant to do; of the others, only those that an unfinished
        // backup builds on are of any interest.
        let named = self.named_priors();
        let there = |id: &BackupId| self.backups.manifests.contains_key(id);
        garbage.deleted.retain(|id, _| !there(id) && named.contains(id));
        for &id in &self.doomed {
            let packs = match self.backups.manifests.get(&id) {
                Some(Look::Read(read)) => Some(read.packs.clone()),
                _ => None,
            };
            garbage.deleted.insert(id, Deleted { at: self.now, packs });
        }
        garbage.unreferenced =
            self.backups.unreferenced(&self.packs, &self.object.garbage.unreferenced, &self.doomed, self.now);
        if request.wal == WalExpiry::Delete
            && let Ok(floors) = wal::floors(&self.backups, &self.doomed, &self.lines)
        {
            garbage.wal_floors.extend(floors);
        }
        garbage
    }

    fn named_priors(&self) -> BTreeSet<BackupId> {
        named_priors(&self.backups)
    }

    async fn plan(mut self, ctx: &Context, cluster: &Cluster, request: &Request) -> Result<DeletionPlan, EngineError> {
        let garbage = self.marked(request);
        let roots = self.backups.roots(&garbage, &self.doomed);
        let sorted = sort(&garbage, &roots, request, self.now);
        let bytes = |packs: &[PackId]| packs.iter().filter_map(|pack| self.packs.get(pack)).sum();
        let mut notes = Vec::new();
        let mut wal_plans = Vec::new();
        if request.wal == WalExpiry::Delete {
            match wal::floors(&self.backups, &self.doomed, &self.lines) {
                Err(why) => notes.push(format!("no WAL is deleted: {why}")),
                Ok(floors) => {
                    for system in self
                        .lines
                        .keys()
                        .filter(|system| self.backups.kept(&self.doomed).all(|(_, read)| read.system_id != **system))
                    {
                        notes.push(format!("WAL of system identifier {system} stays: it has no backup"));
                    }
                    for ((system_id, timeline), before) in floors {
                        let Some(lines) = self.lines.get(&system_id) else { continue };
                        let doomed =
                            wal::below(ctx, cluster, (system_id, timeline), before, lines.segment_size).await?;
                        if !doomed.objects.is_empty() {
                            let (files, bytes) = (doomed.objects.len() as u64, doomed.bytes());
                            wal_plans.push(WalPlan { system_id, timeline, before, files, bytes });
                        }
                    }
                }
            }
        }
        if let Some(damage) = &self.object.damage {
            self.warnings.push(format!("{damage}; since when packs are unused is counted from now"));
        }
        for why in &roots.all_because {
            self.warnings.push(format!("no pack is deleted: {why}"));
        }
        Ok(DeletionPlan {
            cluster: self.facts.name.clone(),
            backups: self.doomed.iter().filter_map(|id| self.doomed_backup(*id)).collect(),
            kept: self.kept(),
            freed_packs: sorted.due.len() as u64,
            freed_bytes: bytes(&sorted.due),
            later_packs: sorted.later.len() as u64,
            later_bytes: bytes(&sorted.later),
            later_from: sorted.later_from,
            held_packs: sorted.held.len() as u64,
            held_bytes: bytes(&sorted.held),
            unfinished: self.unfinished(),
            wal: wal_plans,
            notes,
            warnings: self.warnings,
        })
    }

    fn doomed_backup(&self, id: BackupId) -> Option<DoomedBackup> {
        let candidate = self.backups.candidates().into_iter().find(|candidate| candidate.backup == id)?;
        let read = match self.backups.manifests.get(&id) {
            Some(Look::Read(read)) => Some(read.clone()),
            _ => None,
        };
        Some(DoomedBackup {
            backup: id,
            state: candidate.state,
            label: read.as_ref().and_then(|read| read.label.clone()),
            started: read.as_ref().map(|read| read.started),
            bytes: read.as_ref().map(|read| read.bytes),
            bytes_added: read.as_ref().map(|read| read.bytes_added),
        })
    }

    fn kept(&self) -> Vec<KeptBackup> {
        let stays = self.backups.candidates().into_iter().filter(|candidate| !self.doomed.contains(&candidate.backup));
        stays
            .map(|candidate| KeptBackup {
                backup: candidate.backup,
                state: candidate.state,
                because: self.keep.get(&candidate.backup).cloned().unwrap_or_default(),
            })
            .collect()
    }

    fn unfinished(&self) -> Vec<UnfinishedBackup> {
        let own = |id: BackupId| self.packs.iter().filter(move |(pack, _)| pack.backup == id).map(|(_, size)| size);
        let unfinished = self.backups.unfinished.iter().map(|(&backup, intent)| {
            let intent = intent.as_ref().ok();
            UnfinishedBackup {
                backup,
                host: intent.map(|intent| intent.host.clone()),
                pid: intent.map(|intent| intent.pid),
                own_bytes: own(backup).sum(),
            }
        });
        unfinished.collect()
    }
}

/// The backups that unfinished ones build on.
pub(super) fn named_priors(backups: &Backups) -> BTreeSet<BackupId> {
    backups.unfinished.values().flatten().flat_map(|intent| intent.priors.iter().copied()).collect()
}

/// Sorts the packs that no manifest refers to.
pub(super) fn sort(garbage: &Garbage, roots: &Roots, request: &Request, now: Timestamp) -> Sorted {
    let grace = SignedDuration::try_from(request.grace).unwrap_or(SignedDuration::MAX);
    let mut sorted = Sorted::default();
    for (&pack, &since) in &garbage.unreferenced {
        let due = since.saturating_add(grace).unwrap_or(Timestamp::MAX);
        if roots.reach(pack) {
            sorted.held.push(pack);
        } else if due <= now {
            sorted.due.push(pack);
        } else {
            sorted.later.push(pack);
            sorted.later_from = sorted.later_from.max(Some(due));
        }
    }
    sorted
}
