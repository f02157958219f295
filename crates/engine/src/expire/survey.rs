//! What there is: packs, backups, unfinished backups, and what they reach.
//!
//! Everything is looked at more than once, and whatever was seen once counts as there: a listing that leaves something
//! out, once, must not cost a pack. The order of the looks is that of docs/format.md section 13.

use crate::{Context, EngineError, Unit};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use repo::garbage::{Garbage, Roots};
use repo::retention::{BackupState, Candidate};
use repo::{BackupId, Cluster, Intent, PackId, RepoError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::{ObjectMeta, ObjectPath};

/// Objects asked for in one listing request.
const LIST_PAGE: usize = 1000;
/// Manifests read at the same time.
const READS_AT_ONCE: usize = 16;

/// A backup, as far as deleting asks.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) label: Option<String>,
    pub(super) started: Timestamp,
    pub(super) bytes: u64,
    pub(super) bytes_added: u64,
    pub(super) system_id: SystemId,
    pub(super) timeline: Timeline,
    pub(super) start_lsn: Lsn,
    pub(super) damaged: bool,
    pub(super) packs: BTreeSet<PackId>,
}

/// A manifest that was looked at.
#[derive(Debug, Clone)]
pub(super) enum Look {
    Read(Arc<Read>),
    /// It cannot be read, and why; a later version of pgkeep may have written it.
    Unreadable {
        reason: String,
        too_new: bool,
    },
}

/// The backups there are, and the unfinished ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Backups {
    pub(super) manifests: BTreeMap<BackupId, Look>,
    /// Intents of backups without a manifest; what is wrong with those that cannot be read.
    pub(super) unfinished: BTreeMap<BackupId, Result<Intent, String>>,
    /// Intents that outlived the end of their backup.
    pub(super) stale_intents: BTreeSet<BackupId>,
    /// What was there and gone in the same moment.
    vanished: Vec<String>,
}

/// Lists everything below a prefix.
pub(super) async fn list_all(
    ctx: &Context,
    cluster: &Cluster,
    prefix: &ObjectPath,
    mut each: impl FnMut(&ObjectMeta),
) -> Result<(), EngineError> {
    let store = cluster.repository().store();
    let mut after: Option<ObjectPath> = None;
    loop {
        let page = ctx.or_cancel(store.list_page(Some(prefix), after.as_ref(), LIST_PAGE)).await?;
        let page = page.map_err(RepoError::from)?;
        page.iter().for_each(&mut each);
        if page.len() < LIST_PAGE {
            return Ok(());
        }
        after = page.last().map(|object| object.path.clone());
    }
}

/// All packs with their sizes.
pub(super) async fn list_packs(ctx: &Context, cluster: &Cluster) -> Result<BTreeMap<PackId, u64>, EngineError> {
    let prefix = cluster.name().packs_prefix();
    let mut packs = BTreeMap::new();
    list_all(ctx, cluster, &prefix, |object| {
        let parts = object.path.below(&prefix).and_then(|below| below.split_once('/'));
        if let Some((Ok(backup), Ok(number))) = parts.map(|(id, number)| (id.parse(), number.parse())) {
            let pack = PackId { backup, number };
            // Another way to write the number names no pack of ours.
            if cluster.name().pack(pack) == object.path {
                packs.insert(pack, object.size);
            }
        }
    })
    .await?;
    Ok(packs)
}

impl Backups {
    /// Looks. `before` is an earlier look of the same work: what it saw is still there, unless it is in `gone`.
    pub(super) async fn look(
        ctx: &Context,
        cluster: &Cluster,
        before: Option<&Self>,
        gone: &BTreeSet<BackupId>,
    ) -> Result<Self, EngineError> {
        // Twice: a backup that ends in between has its manifest before its intent goes.
        let (mut manifests, mut intents) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..2 {
            list_backups(ctx, cluster, &mut manifests, &mut intents).await?;
        }
        if let Some(before) = before {
            manifests.extend(before.manifests.keys().filter(|id| !gone.contains(id)));
            intents.extend(before.unfinished.keys());
        }
        let mut found = Self::default();
        let known = |id: BackupId| before.and_then(|before| before.manifests.get(&id)).cloned();
        let read = manifests.iter().map(|&id| {
            let known = known(id);
            async move {
                match known {
                    Some(known) => Ok((id, Some(known))),
                    None => Ok::<_, EngineError>((id, read_manifest(cluster, id).await?)),
                }
            }
        });
        let read: Vec<(BackupId, Option<Look>)> =
            ctx.or_cancel(stream::iter(read).buffered(READS_AT_ONCE).try_collect()).await??;
        for (id, look) in read {
            match look {
                Some(look) => drop(found.manifests.insert(id, look)),
                None => {
                    found.vanished.push(format!("the manifest of backup {id} was listed, and then it was not there"))
                }
            }
        }
        for id in intents {
            if found.manifests.contains_key(&id) {
                found.stale_intents.insert(id);
                continue;
            }
            found.read_intent(ctx, cluster, id, before).await?;
        }
        Ok(found)
    }

    async fn read_intent(
        &mut self,
        ctx: &Context,
        cluster: &Cluster,
        id: BackupId,
        before: Option<&Self>,
    ) -> Result<(), EngineError> {
        match ctx.or_cancel(cluster.intent(id)).await? {
            Ok(mut intent) => {
                // It may have been replaced since.
                if let Some(Ok(earlier)) = before.and_then(|before| before.unfinished.get(&id)) {
                    let more = earlier.priors.iter().filter(|prior| !intent.priors.contains(prior));
                    let more: Vec<BackupId> = more.copied().collect();
                    intent.priors.extend(more);
                }
                self.unfinished.insert(id, Ok(intent));
            }
            // It ended: with a manifest, or it was given up.
            Err(error) if error.is_not_found() => match read_manifest(cluster, id).await? {
                Some(look) => drop(self.manifests.insert(id, look)),
                None => match before.and_then(|before| before.unfinished.get(&id)) {
                    Some(earlier) => drop(self.unfinished.insert(id, earlier.clone())),
                    None => self.vanished.push(format!("backup {id} was given up in this moment")),
                },
            },
            Err(error) if error.is_damage() => drop(self.unfinished.insert(id, Err(error.to_string()))),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// For retention.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let state = |look: &Look| match look {
            Look::Read(read) if read.damaged => BackupState::DamagedPages,
            Look::Read(_) => BackupState::Whole,
            Look::Unreadable { .. } => BackupState::Unreadable,
        };
        self.manifests.iter().map(|(&backup, look)| Candidate { backup, state: state(look) }).collect()
    }

    /// The backups that stay and can be read.
    pub(super) fn kept<'a>(
        &'a self,
        doomed: &'a BTreeSet<BackupId>,
    ) -> impl Iterator<Item = (BackupId, &'a Read)> + 'a {
        self.manifests.iter().filter_map(|(id, look)| match look {
            Look::Read(read) if !doomed.contains(id) => Some((*id, &**read)),
            _ => None,
        })
    }

    /// The timelines that backups of a system are on.
    pub(super) fn timelines(&self, system: SystemId) -> impl Iterator<Item = Timeline> + '_ {
        self.manifests.values().filter_map(move |look| match look {
            Look::Read(read) if read.system_id == system => Some(read.timeline),
            _ => None,
        })
    }

    /// Why it is not known what the backups that stay refer to.
    pub(super) fn unknown<'a>(&'a self, doomed: &'a BTreeSet<BackupId>) -> impl Iterator<Item = String> + 'a {
        let unreadable = self.manifests.iter().filter_map(|(id, look)| match look {
            Look::Unreadable { reason, .. } if !doomed.contains(id) => {
                Some(format!("the manifest of backup {id} cannot be read: {reason}"))
            }
            _ => None,
        });
        unreadable.chain(self.vanished.iter().cloned())
    }

    /// What reaches packs when these backups are gone.
    pub(super) fn roots(&self, garbage: &Garbage, doomed: &BTreeSet<BackupId>) -> Roots {
        let mut roots = Roots::default();
        for (_, read) in self.kept(doomed) {
            roots.packs.extend(&read.packs);
        }
        roots.all_because.extend(self.unknown(doomed));
        for (id, intent) in &self.unfinished {
            match intent {
                Ok(intent) => roots.add_intent(intent, garbage, |prior| {
                    self.manifests.contains_key(&prior) && !doomed.contains(&prior)
                        || self.unfinished.contains_key(&prior)
                }),
                Err(reason) => {
                    roots.all_because.push(format!("the intent of unfinished backup {id} cannot be read: {reason}"));
                }
            }
        }
        roots
    }

    /// Which of these packs no manifest refers to when these backups are gone, and since when.
    pub(super) fn unreferenced(
        &self,
        packs: &BTreeMap<PackId, u64>,
        earlier: &BTreeMap<PackId, Timestamp>,
        doomed: &BTreeSet<BackupId>,
        now: Timestamp,
    ) -> BTreeMap<PackId, Timestamp> {
        let referenced: BTreeSet<PackId> = self.kept(doomed).flat_map(|(_, read)| read.packs.iter().copied()).collect();
        let unknown = self.unknown(doomed).next().is_some();
        let loose =
            packs.keys().filter(|pack| !referenced.contains(pack) && !self.unfinished.contains_key(&pack.backup));
        loose
            .filter_map(|pack| {
                // A time that is still to come is of a clock that was wrong.
                let since = earlier.get(pack).map(|since| (*since).min(now));
                since.or((!unknown).then_some(now)).map(|since| (*pack, since))
            })
            .collect()
    }
}

async fn list_backups(
    ctx: &Context,
    cluster: &Cluster,
    manifests: &mut BTreeSet<BackupId>,
    intents: &mut BTreeSet<BackupId>,
) -> Result<(), EngineError> {
    let prefix = cluster.name().backups_prefix();
    ctx.progress.phase("looking at backups", None, Unit::Items);
    list_all(ctx, cluster, &prefix, |object| {
        let parts = object.path.below(&prefix).and_then(|below| below.split_once('/'));
        match parts.and_then(|(id, what)| Some((id.parse().ok()?, what))) {
            Some((id, "manifest")) => drop(manifests.insert(id)),
            Some((id, "intent")) => drop(intents.insert(id)),
            _ => {}
        }
    })
    .await
}

/// Reads a manifest; `None` when it is not there.
async fn read_manifest(cluster: &Cluster, id: BackupId) -> Result<Option<Look>, EngineError> {
    match cluster.open_manifest(id).await {
        Ok(manifest) => {
            let facts = manifest.facts();
            Ok(Some(Look::Read(Arc::new(Read {
                label: facts.label.clone(),
                started: facts.started,
                bytes: facts.numbers.bytes,
                bytes_added: facts.numbers.bytes_added,
                system_id: facts.system_id,
                timeline: facts.timeline,
                start_lsn: facts.start_lsn,
                damaged: !facts.damaged.is_empty(),
                packs: manifest.packs().iter().map(|pack| pack.id).collect(),
            }))))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) if error.is_damage() => {
            let too_new = matches!(error, RepoError::TooNew { .. });
            Ok(Some(Look::Unreadable { reason: error.to_string(), too_new }))
        }
        Err(error) => Err(error.into()),
    }
}
