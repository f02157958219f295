//! Carries a deletion out, step by step as docs/format.md section 13 has it.

use super::lease::Held;
use super::plan::{Found, Sorted, named_priors, sort};
use super::survey::Backups;
use super::{DeletionPlan, Request, WalExpiry, WalPlan, wal};
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use repo::{BackupId, Cluster, Garbage, PackId};
use serde::Serialize;
use std::collections::BTreeSet;
use store::{ObjectPath, StoreError};

/// Deletions at the same time.
const DELETES_AT_ONCE: usize = 16;
/// Deletions between two looks at the lease.
const BATCH: usize = 64;
/// So many failures, apart from refusals, and the store is taken to be out of reach.
const FAILURES_MAX: usize = 20;

/// An object that should be gone and is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotDeleted {
    /// The object.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// What a deletion did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deletion {
    /// The backups that are gone.
    pub deleted: Vec<BackupId>,
    /// Packs that are gone.
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
    /// WAL that is gone, by system identifier.
    pub wal: Vec<WalPlan>,
    /// What the store did not delete.
    pub not_deleted: Vec<NotDeleted>,
    /// What a human must read.
    pub warnings: Vec<String>,
}

/// Deletes what the request asks for and the plan showed: nothing that was not in the plan goes, and what has become
/// needed meanwhile stays. What the store refuses to delete is in the result; the rest goes on.
pub async fn apply(
    ctx: &Context,
    cluster: &Cluster,
    request: &Request,
    approved: &DeletionPlan,
) -> Result<Deletion, EngineError> {
    let lease = Held::take(ctx, cluster).await?;
    let mut work = Work { ctx, cluster, request, lease, failures: 0, not_deleted: Vec::new() };
    let result = work.all(approved).await;
    let Work { lease, .. } = work;
    lease.release(ctx).await;
    result
}

struct Work<'a> {
    ctx: &'a Context,
    cluster: &'a Cluster,
    request: &'a Request,
    lease: Held,
    failures: usize,
    not_deleted: Vec<NotDeleted>,
}

impl Work<'_> {
    async fn all(&mut self, approved: &DeletionPlan) -> Result<Deletion, EngineError> {
        let (ctx, cluster) = (self.ctx, self.cluster);
        // Again, now that nobody else deletes.
        let mut found = Found::look(ctx, cluster, self.request).await?;
        let shown: BTreeSet<BackupId> = approved.backups.iter().map(|backup| backup.backup).collect();
        found.doomed.retain(|id| shown.contains(id));
        let marked = found.marked(self.request);
        let mut number = found.object.number;
        if marked != found.object.garbage || found.object.damage.is_some() {
            number = Some(cluster.put_garbage(number, &marked, found.now).await?);
        }
        // A pin that came meanwhile wins; one that comes later sees the mark.
        let pinned = cluster.known_facts().await?;
        found.doomed.retain(|id| pinned.pin_of(*id, found.now).is_none());
        let deleted = self.delete_backups(&found).await?;

        let again = Backups::look(ctx, cluster, Some(&found.backups), &deleted).await?;
        self.lease.keep(ctx).await?;
        let roots = again.roots(&marked, &BTreeSet::new());
        let sorted = sort(&marked, &roots, self.request, found.now);
        let freed = self.delete_packs(&found, &sorted).await?;
        let mut rest = self.rest(&found, &again, &marked, &freed);
        let wal = self.delete_wal(&found, &again, &marked, &mut rest).await?;
        if rest != marked {
            cluster.put_garbage(number, &rest, ctx.now()).await?;
        }
        let bytes = |packs: &[PackId]| packs.iter().filter_map(|pack| found.packs.get(pack)).sum();
        let mut warnings: Vec<String> =
            roots.all_because.iter().map(|why| format!("no pack was deleted: {why}")).collect();
        if let Some(damage) = &found.object.damage {
            warnings.push(format!("{damage}; since when packs are unused is counted from now"));
        }
        Ok(Deletion {
            deleted: deleted.into_iter().collect(),
            freed_packs: freed.len() as u64,
            freed_bytes: freed.iter().filter_map(|pack| found.packs.get(pack)).sum(),
            later_packs: sorted.later.len() as u64,
            later_bytes: bytes(&sorted.later),
            later_from: sorted.later_from,
            held_packs: sorted.held.len() as u64,
            held_bytes: bytes(&sorted.held),
            wal,
            not_deleted: std::mem::take(&mut self.not_deleted),
            warnings,
        })
    }

    /// Deletes manifests, oldest first. An intent that outlived its backup goes before: without the manifest it would be
    /// that of an unfinished one.
    async fn delete_backups(&mut self, found: &Found) -> Result<BTreeSet<BackupId>, EngineError> {
        let (ctx, name) = (self.ctx, self.cluster.name());
        ctx.progress.phase("deleting backups", Some(found.doomed.len() as u64), Unit::Items);
        let mut deleted = BTreeSet::new();
        for &id in &found.doomed {
            ctx.check()?;
            self.lease.keep(ctx).await?;
            let intent_is_gone =
                !found.backups.stale_intents.contains(&id) || !self.delete(vec![name.intent(id)]).await?.is_empty();
            if intent_is_gone && !self.delete(vec![name.manifest(id)]).await?.is_empty() {
                deleted.insert(id);
            }
            ctx.progress.advance(1);
        }
        Ok(deleted)
    }

    async fn delete_packs(&mut self, found: &Found, sorted: &Sorted) -> Result<BTreeSet<PackId>, EngineError> {
        let ctx = self.ctx;
        ctx.progress.phase("deleting packs", Some(sorted.due.len() as u64), Unit::Items);
        let mut freed = BTreeSet::new();
        for batch in sorted.due.chunks(BATCH) {
            ctx.check()?;
            self.lease.keep(ctx).await?;
            let paths = batch.iter().map(|pack| self.cluster.name().pack(*pack)).collect();
            let gone = self.delete(paths).await?;
            let gone = batch.iter().filter(|pack| gone.contains(&self.cluster.name().pack(**pack)));
            freed.extend(gone.filter(|pack| found.packs.contains_key(pack)));
            ctx.progress.advance(batch.len() as u64);
        }
        Ok(freed)
    }

    /// What the next garbage object says.
    fn rest(&self, found: &Found, again: &Backups, marked: &Garbage, freed: &BTreeSet<PackId>) -> Garbage {
        let named = named_priors(again);
        let mut rest = marked.clone();
        // Of one whose deletion failed nobody knows whether it happens still.
        let may_go = |id: &BackupId| found.doomed.contains(id) || !again.manifests.contains_key(id);
        rest.deleted.retain(|id, _| named.contains(id) && may_go(id));
        // A backup that is there after all refers to its packs still.
        rest.unreferenced = again.unreferenced(&found.packs, &marked.unreferenced, &BTreeSet::new(), found.now);
        rest.unreferenced.retain(|pack, _| !freed.contains(pack));
        rest
    }

    /// Deletes WAL below the floor that was written down before the last look, as far as that look allows it.
    async fn delete_wal(
        &mut self,
        found: &Found,
        again: &Backups,
        marked: &Garbage,
        rest: &mut Garbage,
    ) -> Result<Vec<WalPlan>, EngineError> {
        let mut done = Vec::new();
        let (ctx, cluster) = (self.ctx, self.cluster);
        if self.request.wal == WalExpiry::Keep || wal::floors(&found.backups, &found.doomed, &found.lines).is_err() {
            return Ok(done);
        }
        let Ok(floors) = wal::floors(again, &BTreeSet::new(), &found.lines) else { return Ok(done) };
        for (place, now) in floors {
            let Some(&noted) = marked.wal_floors.get(&place) else { continue };
            let Some(lines) = found.lines.get(&place.0) else { continue };
            let before = now.min(noted);
            rest.wal_floors.insert(place, before);
            let doomed = wal::below(ctx, cluster, place, before, lines.segment_size).await?;
            ctx.progress.phase("deleting WAL", Some(doomed.objects.len() as u64), Unit::Items);
            let (mut files, mut bytes) = (0, 0);
            for batch in doomed.objects.chunks(BATCH) {
                ctx.check()?;
                self.lease.keep(ctx).await?;
                let gone = self.delete(batch.iter().map(|(path, _)| path.clone()).collect()).await?;
                for (_, size) in batch.iter().filter(|(path, _)| gone.contains(path)) {
                    files += 1;
                    bytes += size;
                }
                ctx.progress.advance(batch.len() as u64);
            }
            if files > 0 {
                done.push(WalPlan { system_id: place.0, timeline: place.1, before, files, bytes });
            }
        }
        Ok(done)
    }

    /// Deletes objects and gives those that are gone. What the store refuses, or fails at, is noted; only when it fails
    /// again and again is it given up.
    async fn delete(&mut self, paths: Vec<ObjectPath>) -> Result<BTreeSet<ObjectPath>, EngineError> {
        let store = self.cluster.repository().store();
        let calls = paths.into_iter().map(|path| async move {
            let result = store.delete(&path).await;
            (path, result)
        });
        let mut results = stream::iter(calls).buffered(DELETES_AT_ONCE);
        let mut gone = BTreeSet::new();
        while let Some((path, result)) = self.ctx.or_cancel(results.next()).await? {
            match result {
                Ok(()) => drop(gone.insert(path)),
                Err(error) => {
                    let refused = matches!(error, StoreError::Denied { .. });
                    self.failures += usize::from(!refused);
                    if self.failures > FAILURES_MAX {
                        return Err(repo::RepoError::from(error).into());
                    }
                    self.not_deleted.push(NotDeleted { object: path.to_string(), reason: error.to_string() });
                }
            }
        }
        Ok(gone)
    }
}
