//! Backups that were broken off: what they had stored is gone on from.

use super::prior::can_resume;
use super::sources::Placed;
use crate::unfinished::packs_of;
use crate::{Context, EngineError};
use pg_format::Lsn;
use repo::pack::{ChunkPages, FooterEntry};
use repo::{BackupId, Cluster, Intent, IntentStart, PackId};
use std::collections::HashMap;

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
        let chunk = entry.chunk();
        let placed = match entry.pages {
            ChunkPages::Base { first } => Placed::Base { first, pages: entry.page_hashes.len() as u64, pack, chunk },
            ChunkPages::Delta { pages } => Placed::Delta { pages, pack, chunk },
            ChunkPages::Map => return,
        };
        self.chunks.entry(entry.path.into()).or_default().push(placed);
    }
}
