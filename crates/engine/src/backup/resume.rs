//! Backups that were broken off: what they had stored is gone on from, and what is of no use is removed.

use super::prior::can_resume;
use super::sources::Placed;
use crate::{Context, EngineError};
use pg_format::Lsn;
use repo::chunk::ChunkRef;
use repo::pack::{ChunkPages, FooterEntry};
use repo::{BackupId, Cluster, Intent, IntentStart, PackId, RepoError};
use std::collections::{HashMap, HashSet};

/// Broken-off backups that are gone on from at most; pages of older ones are read again.
const GONE_ON_FROM_MAX: usize = 20;

/// A backup that was broken off, and what it had stored.
#[derive(Debug)]
pub(super) struct BrokenOff {
    pub(super) backup: BackupId,
    /// Pages changed since are not taken from it.
    pub(super) start: IntentStart,
    /// Its packs with their sizes.
    pub(super) packs: HashMap<PackId, u64>,
    /// What is in them, by file.
    pub(super) chunks: HashMap<Box<[u8]>, Vec<Placed>>,
}

/// The intents of backups that have no manifest. The lease is held: none of them still runs.
pub(super) async fn intents(ctx: &Context, cluster: &Cluster) -> Result<Vec<Intent>, EngineError> {
    let mut found = Vec::new();
    for id in cluster.unfinished().await? {
        match cluster.intent(id).await {
            Ok(intent) => found.push(intent),
            Err(error) if error.is_not_found() => {}
            Err(error) if error.is_damage() => ctx.progress.warn(&format!("backup {id} was broken off: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Reads what is to be gone on from, the oldest first. `after` is where the backup that is built on starts: what is
/// older than that is of no use.
pub(super) async fn load(
    ctx: &Context,
    cluster: &Cluster,
    intents: &[Intent],
    now: &IntentStart,
    host: &str,
    after: Option<Lsn>,
) -> Result<Vec<BrokenOff>, EngineError> {
    let mut useful: Vec<(&Intent, &IntentStart)> = intents
        .iter()
        .filter(|intent| can_resume(intent, now, host))
        .filter_map(|intent| Some((intent, intent.start.as_ref()?)))
        .filter(|(_, start)| after.is_none_or(|after| start.start_lsn > after))
        .collect();
    useful.sort_by_key(|(intent, start)| (start.start_lsn, intent.backup));
    let skip = useful.len().saturating_sub(GONE_ON_FROM_MAX);
    let mut all = Vec::new();
    for (intent, start) in useful.into_iter().skip(skip) {
        let mut broken_off =
            BrokenOff { backup: intent.backup, start: start.clone(), packs: HashMap::new(), chunks: HashMap::new() };
        for (pack, size) in packs_of(cluster, intent.backup).await? {
            ctx.check()?;
            match async { cluster.open_pack_footer(pack).await?.footer().await }.await {
                Ok(entries) => {
                    broken_off.packs.insert(pack, size);
                    for entry in entries {
                        broken_off.add(pack, entry);
                    }
                }
                Err(error) if error.is_damage() || error.is_not_found() => {
                    ctx.progress.warn(&format!("pack {pack} of a broken-off backup is not used: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !broken_off.packs.is_empty() {
            all.push(broken_off);
        }
    }
    Ok(all)
}

impl BrokenOff {
    fn add(&mut self, pack: PackId, entry: FooterEntry) {
        let chunk = ChunkRef {
            pack: 0,
            offset: entry.offset,
            stored_len: entry.stored_len,
            plain_len: entry.plain_len,
            hash16: entry.hash[..16].try_into().expect("16 of 32 bytes"),
        };
        let placed = match entry.pages {
            ChunkPages::Base { first } => Placed::Base { first, pages: entry.page_hashes.len() as u64, pack, chunk },
            ChunkPages::Delta { pages } => Placed::Delta { pages, pack, chunk },
            ChunkPages::Map => return,
        };
        self.chunks.entry(entry.path.into()).or_default().push(placed);
    }
}

/// The packs of a backup with their sizes.
pub(super) async fn packs_of(cluster: &Cluster, backup: BackupId) -> Result<Vec<(PackId, u64)>, EngineError> {
    const PAGE: usize = 1000;
    let prefix = cluster.name().packs_prefix();
    let prefix = prefix.join(&backup.to_string()).map_err(|reason| EngineError::Failed { reason, hint: None })?;
    let store = cluster.repository().store();
    let (mut packs, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_page(Some(&prefix), after.as_ref(), PAGE).await.map_err(RepoError::from)?;
        let number = |name: &str| name.parse().ok();
        packs.extend(
            page.iter()
                .filter_map(|object| Some((PackId { backup, number: number(object.path.name())? }, object.size))),
        );
        if page.len() < PAGE {
            return Ok(packs);
        }
        after = page.last().map(|object| object.path.clone());
    }
}

/// Removes what broken-off backups left and no finished backup uses, and intents that outlived their backup. For the end
/// of a backup, which has taken from them what it could.
pub(super) async fn remove_leftovers(ctx: &Context, cluster: &Cluster, current: BackupId) -> Result<(), EngineError> {
    let unfinished: Vec<BackupId> =
        cluster.unfinished().await?.into_iter().filter(|backup| *backup != current).collect();
    if let Some(&oldest) = unfinished.iter().min() {
        let mut used = HashSet::new();
        for id in cluster.backups().await?.into_iter().filter(|id| *id > oldest) {
            match cluster.open_manifest(id).await {
                Ok(manifest) => used.extend(manifest.packs().iter().map(|pack| pack.id)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        for backup in unfinished {
            ctx.check()?;
            for (pack, _) in packs_of(cluster, backup).await? {
                if !used.contains(&pack) {
                    let object = cluster.name().pack(pack);
                    cluster.repository().store().delete(&object).await.map_err(RepoError::from)?;
                }
            }
            cluster.delete_intent(backup).await?;
        }
    }
    for backup in cluster.intents().await?.into_iter().filter(|backup| *backup != current) {
        // What has a manifest needs none.
        if cluster.backups().await?.contains(&backup) {
            cluster.delete_intent(backup).await?;
        }
    }
    Ok(())
}
