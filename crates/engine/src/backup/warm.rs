//! What a warm pass found: where each file's pages lie, as of the redo LSN that was in pg_control before it began.
//!
//! A warm pass reads the files of a running server without asking it. It is no backup: what it read is torn and of many
//! moments, and nobody knows up to where WAL would have to be replayed. But it is what a backup that was broken off
//! leaves: pages that no WAL since its start names are what they were when they were read. A checkpoint had written
//! everything from before that LSN when pg_control got it (`CreateCheckPoint` in `src/backend/access/transam/xlog.c`), and
//! what changed a page later left WAL, but for hint bits.
//!
//! So that the final pass need not find out again what the warm pass found out, it notes its results: a record, stored
//! last, in a pack of its own, as the file `warm` (docs/format.md, section 7). The final pass takes them for those of an
//! earlier backup that began at that LSN.

use super::pages::BadPage;
use super::pipeline::{FileResult, Stored};
use super::resume::BrokenOff;
use super::sources::Placed;
use crate::{Context, EngineError};
use pg_format::Lsn;
use repo::chunk::{ChunkDecoder, ChunkEncoder, ChunkRef, EXTENT_PAGES, PageContent};
use repo::manifest::{DamagedPage, PackUse};
use repo::pack::ChunkPages;
use repo::{BackupId, Cluster, Compression, IntentStart, PackId, RepoError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The record's path in its pack.
const ENTRY: &[u8] = b"warm";
/// It is stored in chunks like a file with pages of this size.
const PAGE_BYTES: usize = 8192;
/// The form of the record.
const VERSION: u32 = 1;

/// What a warm pass found.
pub(super) struct Warm {
    pub(super) backup: BackupId,
    /// Where it began.
    pub(super) start: IntentStart,
    /// The backup it built on.
    pub(super) prior: Option<BackupId>,
    /// Broken-off backups and warm passes that it built on.
    pub(super) resumed: Vec<BackupId>,
    /// What it read or found gone, by path. Of other files what the prior says is right.
    pub(super) files: HashMap<Box<[u8]>, Option<FileResult>>,
    /// The packs that its files lie in, the prior's among them.
    pub(super) packs: Vec<PackUse>,
    /// Pages that failed their check, by their numbers in their files.
    pub(super) bad: HashMap<Box<[u8]>, Vec<u64>>,
    /// Pages that differ from what was stored.
    pub(super) differing: Vec<DamagedPage>,
    /// The turn of looking again, and how many pages were looked at.
    pub(super) looked_again: Option<(u32, u64)>,
    /// The latest LSN on any page.
    pub(super) newest: Lsn,
}

/// As it is stored. Paths are bytes: each is written as the character with its number.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    prior: Option<BackupId>,
    resumed: Vec<BackupId>,
    /// How many packs hold what it stored, this record's not counted.
    own_packs: usize,
    files: Vec<(String, Option<FileRecord>)>,
    /// Backup, number, size, used.
    packs: Vec<(BackupId, u32, u64, u64)>,
    bad: Vec<(String, Vec<u64>)>,
    differing: Vec<DamagedPage>,
    looked_again: Option<(u32, u64)>,
    newest: Lsn,
}

/// Where a file's content lies.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    len: u64,
    /// None when it is empty or all zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<ChunkRecord>,
}

/// A chunk that is a file's content or its map.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChunkRecord {
    map: bool,
    pack: (BackupId, u32),
    offset: u64,
    stored_len: u32,
    plain_len: u32,
    hash16: [u8; 16],
}

fn text(path: &[u8]) -> String {
    path.iter().map(|byte| char::from(*byte)).collect()
}

fn bytes(text: &str) -> Option<Box<[u8]>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

impl From<&FileResult> for FileRecord {
    fn from(result: &FileResult) -> Self {
        let at = match result.stored {
            Stored::Zero => None,
            Stored::Chunk(pack, chunk) => Some((false, pack, chunk)),
            Stored::Map(pack, chunk) => Some((true, pack, chunk)),
        };
        let at = at.map(|(map, pack, chunk)| ChunkRecord {
            map,
            pack: (pack.backup, pack.number),
            offset: chunk.offset,
            stored_len: chunk.stored_len,
            plain_len: chunk.plain_len,
            hash16: chunk.hash16,
        });
        Self { len: result.len, at }
    }
}

impl From<&FileRecord> for FileResult {
    fn from(record: &FileRecord) -> Self {
        let stored = match &record.at {
            None => Stored::Zero,
            Some(at) => {
                let pack = PackId { backup: at.pack.0, number: at.pack.1 };
                let chunk = ChunkRef {
                    pack: 0,
                    offset: at.offset,
                    stored_len: at.stored_len,
                    plain_len: at.plain_len,
                    hash16: at.hash16,
                };
                if at.map { Stored::Map(pack, chunk) } else { Stored::Chunk(pack, chunk) }
            }
        };
        Self { len: record.len, stored }
    }
}

impl Warm {
    /// Notes pages that failed their check, which the final pass reads again.
    pub(super) fn note_bad(&mut self, pages: &[BadPage], relseg_blocks: u32, path: impl Fn(usize) -> Box<[u8]>) {
        for page in pages {
            let number = u64::from(page.block % relseg_blocks.max(1));
            self.bad.entry(path(page.file)).or_default().push(number);
        }
    }

    /// Stores the record in a pack of its own, when everything else is stored; `own_packs` is how many packs that is.
    pub(super) async fn store(
        &self,
        cluster: &Cluster,
        compression: Compression,
        number: u32,
        own_packs: usize,
    ) -> Result<(), EngineError> {
        let mut files: Vec<_> =
            self.files.iter().map(|(path, file)| (text(path), file.as_ref().map(FileRecord::from))).collect();
        files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let record = Record {
            version: VERSION,
            prior: self.prior,
            resumed: self.resumed.clone(),
            own_packs,
            files,
            packs: self.packs.iter().map(|pack| (pack.id.backup, pack.id.number, pack.size, pack.used)).collect(),
            bad: self.bad.iter().map(|(path, pages)| (text(path), pages.clone())).collect(),
            differing: self.differing.clone(),
            looked_again: self.looked_again,
            newest: self.newest,
        };
        let plain = serde_json::to_vec(&record)
            .map_err(|error| EngineError::Failed { reason: format!("noting what was found: {error}"), hint: None })?;
        let mut pack = cluster.create_pack(PackId { backup: self.backup, number }).await?;
        let mut encoder = ChunkEncoder::new(compression);
        for (part, first) in plain.chunks(EXTENT_PAGES as usize * PAGE_BYTES).zip((0..).step_by(EXTENT_PAGES as usize))
        {
            let chunk = encoder.encode(part, PAGE_BYTES, PageContent::Other);
            pack.add(ENTRY, &ChunkPages::Base { first }, &chunk).await?;
        }
        pack.finish().await?;
        Ok(())
    }

    /// Takes the newest warm pass that came to its end, and that built on this backup or on none, out of what was broken
    /// off, with what is older than it. Gives whether it has everything, so that no backup is built on.
    pub(super) async fn take(
        ctx: &Context,
        cluster: &Cluster,
        broken_off: &mut Vec<BrokenOff>,
        prior: Option<BackupId>,
    ) -> Result<Option<Self>, EngineError> {
        let mut found: Option<Self> = None;
        for backup in broken_off.iter_mut() {
            // Not a file of the cluster's.
            let Some(chunks) = backup.chunks.remove(ENTRY) else { continue };
            match Self::read(ctx, cluster, backup, &chunks).await {
                Ok(warm) if warm.prior.is_none() || warm.prior == prior => found = Some(warm),
                Ok(_) => {}
                Err(EngineError::Repo(error)) if error.is_damage() || error.is_not_found() => {
                    ctx.progress.warn(&format!("what the warm pass {} found out is not used: {error}", backup.backup));
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(warm) = &found {
            broken_off.retain(|backup| backup.start.start_lsn > warm.start.start_lsn);
        }
        Ok(found)
    }

    async fn read(
        ctx: &Context,
        cluster: &Cluster,
        backup: &BrokenOff,
        chunks: &[Placed],
    ) -> Result<Self, EngineError> {
        let mut plain = Vec::new();
        let mut part = Vec::new();
        let mut record_pack = None;
        for placed in chunks {
            ctx.check()?;
            let Placed::Base { pack, chunk, .. } = placed else { continue };
            let size = backup.packs.get(pack).copied().unwrap_or_default();
            let stored = cluster.open_pack(*pack, size).await?.read(chunk.offset, chunk.stored_len.into()).await?;
            ChunkDecoder::default()
                .decode(&stored, chunk, &mut part)
                .map_err(|error| RepoError::Damaged { path: cluster.name().pack(*pack), reason: error.0 })?;
            plain.extend_from_slice(&part);
            record_pack = Some(*pack);
        }
        let path = record_pack.map_or_else(|| cluster.name().packs_prefix(), |pack| cluster.name().pack(pack));
        let damaged = |reason: String| EngineError::from(RepoError::Damaged { path: path.clone(), reason });
        let record: Record = serde_json::from_slice(&plain).map_err(|error| damaged(error.to_string()))?;
        if record.version != VERSION {
            return Err(damaged(format!("version {} of the record is not known", record.version)));
        }
        // What a pack held that is gone would be missed.
        if backup.packs.len() != record.own_packs + 1 {
            return Err(damaged(format!(
                "{} packs belong to it, {} are there",
                record.own_packs + 1,
                backup.packs.len()
            )));
        }
        let path_of = |text: &str| bytes(text).ok_or_else(|| damaged(format!("not a path: {text}")));
        let files = record
            .files
            .iter()
            .map(|(path, file)| Ok::<_, EngineError>((path_of(path)?, file.as_ref().map(FileResult::from))));
        let bad = record.bad.iter().map(|(path, pages)| Ok::<_, EngineError>((path_of(path)?, pages.clone())));
        let pack = |(backup, number, size, used)| PackUse { id: PackId { backup, number }, size, used };
        Ok(Self {
            backup: backup.backup,
            start: backup.start.clone(),
            prior: record.prior,
            resumed: record.resumed,
            files: files.collect::<Result<_, EngineError>>()?,
            packs: record.packs.into_iter().map(pack).collect(),
            bad: bad.collect::<Result<_, EngineError>>()?,
            differing: record.differing,
            looked_again: record.looked_again,
            newest: record.newest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_places_come_back() {
        let path = b"data/base/5/odd \xFF\x00name\n";
        assert_eq!(bytes(&text(path)).as_deref(), Some(&path[..]));
        assert_eq!(bytes("\u{100}"), None);
        let pack = PackId { backup: "20261120T200910Z".parse().unwrap(), number: 7 };
        let chunk = ChunkRef { pack: 0, offset: 1 << 40, stored_len: 9, plain_len: 8192, hash16: [3; 16] };
        for stored in [Stored::Zero, Stored::Chunk(pack, chunk), Stored::Map(pack, chunk)] {
            let result = FileResult { len: 12_345, stored };
            let text = serde_json::to_string(&FileRecord::from(&result)).unwrap();
            let record: FileRecord = serde_json::from_str(&text).unwrap();
            assert_eq!(FileResult::from(&record), result);
        }
    }
}
