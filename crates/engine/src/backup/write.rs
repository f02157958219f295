//! The manifest: what is written last, and makes the backup.

use super::carry::CarriedWal;
use super::listing::{Found, Listing};
use super::names::Names;
use super::pages::{BadPage, relation_key};
use super::pipeline::{FileResult, Outcome, Stored};
use super::plan::{Plan, Task};
use crate::EngineError;
use pg_format::WalFileName;
use repo::manifest::{DamagedPage, FileEntry, FileType, ManifestFacts, ManifestWriter, PackUse, Place};
use repo::{BackupId, PackId};
use std::collections::HashMap;

/// The packs that a backup uses, with the stored bytes it uses of each.
pub(super) struct Usage {
    pub(super) used: HashMap<PackId, u64>,
    pub(super) sizes: HashMap<PackId, u64>,
}

impl Usage {
    /// What the prior used, changed by what this backup's files no longer use and use anew. `sizes` has the packs of
    /// broken-off backups.
    pub(super) fn new(
        prior: &[PackUse],
        outcome: &Outcome,
        broken_off: impl IntoIterator<Item = (PackId, u64)>,
    ) -> Result<Self, EngineError> {
        let mut sizes: HashMap<PackId, u64> = prior.iter().map(|pack| (pack.id, pack.size)).collect();
        sizes.extend(broken_off);
        sizes.extend(&outcome.packs);
        let mut used: HashMap<PackId, i64> = prior.iter().map(|pack| (pack.id, pack.used as i64)).collect();
        for (pack, change) in &outcome.used {
            *used.entry(*pack).or_default() += change;
        }
        if let Some((pack, _)) = used.iter().find(|(_, used)| **used < 0) {
            return Err(EngineError::failed(
                format!("pack {pack}: more of it would be given up than the earlier backup says that it used"),
                "the earlier backup's manifest is wrong in this: run `pgkeep backup --full`",
            ));
        }
        used.retain(|_, used| *used > 0);
        sizes.retain(|pack, _| used.contains_key(pack) || outcome.packs.contains_key(pack));
        Ok(Self { used: used.into_iter().map(|(pack, used)| (pack, used as u64)).collect(), sizes })
    }

    /// Stored bytes that are shared with earlier backups.
    pub(super) fn shared(&self, backup: BackupId) -> u64 {
        self.used.iter().filter(|(pack, _)| pack.backup != backup).map(|(_, used)| used).sum()
    }
}

/// What became of each entry of the listing.
pub(super) struct Results<'a> {
    plan: &'a Plan,
    /// Ascending.
    worked_on: Vec<(usize, Option<FileResult>)>,
}

impl<'a> Results<'a> {
    pub(super) fn new(plan: &'a Plan, outcome: &mut Outcome) -> Self {
        let mut worked_on = std::mem::take(&mut outcome.files);
        worked_on.sort_unstable_by_key(|(index, _)| *index);
        Self { plan, worked_on }
    }

    /// Each entry with what it is now; none for what is no file, and for files that vanished.
    fn each(&self) -> impl Iterator<Item = Option<FileResult>> {
        let mut worked_on = self.worked_on.iter().peekable();
        self.plan.tasks.iter().enumerate().map(move |(index, task)| {
            match worked_on.next_if(|(worked, _)| *worked == index) {
                Some((_, result)) => *result,
                None if *task == Task::Keep => self.plan.before[index],
                None => None,
            }
        })
    }

    /// Number of files, and their bytes together.
    pub(super) fn totals(&self) -> (u64, u64) {
        self.each().flatten().fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.len))
    }
}

/// Writes names and files; what is left is to finish it.
pub(super) async fn write_entries(
    manifest: &mut ManifestWriter,
    listing: &Listing,
    names: &Names,
    results: &Results<'_>,
    usage: &Usage,
) -> Result<(), EngineError> {
    for name in &names.entries {
        manifest.add_name(name).await?;
    }
    let mut packs: Vec<(&PackId, &u64)> = usage.used.iter().collect();
    packs.sort_unstable();
    for (pack, used) in packs {
        manifest.use_pack(*pack, *used);
    }
    for (entry, result) in listing.entries.iter().zip(results.each()) {
        let file_type = match (&entry.found, result) {
            (Found::Directory, _) => FileType::Directory,
            (Found::Link(target), _) => FileType::Link { target: target.clone() },
            (Found::File { .. }, None) => continue,
            (Found::File { relation, .. }, Some(result)) => {
                let place = place(manifest, usage, &result)?;
                FileType::File { len: result.len, place, settled: None, pages: relation.is_some(), wal: false }
            }
        };
        let path = entry.path.to_vec();
        let entry = FileEntry { path, mode: entry.mode, owner: entry.owner, mtime: entry.mtime, file_type };
        manifest.add_file(&entry).await?;
    }
    Ok(())
}

/// Writes the WAL that travels in the backup: its paths come after all others.
pub(super) async fn write_wal(
    manifest: &mut ManifestWriter,
    carried: &CarriedWal,
    usage: &Usage,
) -> Result<(), EngineError> {
    const MODE: u32 = 0o600;
    if carried.files.is_empty() {
        return Ok(());
    }
    let directory = FileEntry {
        path: b"wal".to_vec(),
        mode: 0o700,
        owner: 0,
        mtime: carried.files.iter().map(|file| file.mtime).max().unwrap_or(0),
        file_type: FileType::Directory,
    };
    manifest.add_file(&directory).await?;
    for file in &carried.files {
        let place = place(manifest, usage, &file.result)?;
        let wal = matches!(file.name, WalFileName::Segment(_));
        let file_type = FileType::File { len: file.result.len, place, settled: None, pages: false, wal };
        let path = format!("wal/{}", file.name).into_bytes();
        manifest.add_file(&FileEntry { path, mode: MODE, owner: 0, mtime: file.mtime, file_type }).await?;
    }
    Ok(())
}

/// Where a file lies, in the manifest's words.
fn place(manifest: &mut ManifestWriter, usage: &Usage, result: &FileResult) -> Result<Place, EngineError> {
    let mut place_in = |pack: PackId, chunk: repo::chunk::ChunkRef| {
        if !usage.used.contains_key(&pack) {
            return Err(EngineError::Failed {
                reason: format!("pack {pack}: a file refers to it that was lost track of"),
                hint: Some("this is a defect of pgkeep; `pgkeep backup --full` goes another way".into()),
            });
        }
        Ok(repo::chunk::ChunkRef { pack: manifest.use_pack(pack, 0), ..chunk })
    };
    Ok(match result.stored {
        Stored::Zero => Place::Zero,
        Stored::Chunk(pack, chunk) => Place::Chunk(place_in(pack, chunk)?),
        Stored::Map(pack, chunk) => Place::Map(place_in(pack, chunk)?),
    })
}

/// Finishes the manifest: from here on the backup is there.
pub(super) async fn commit(manifest: ManifestWriter, facts: &ManifestFacts, usage: &Usage) -> Result<u64, EngineError> {
    Ok(manifest.finish(facts, &usage.sizes).await?)
}

/// Pages in the words of the manifest, by file and block, and how many are beyond those that are listed.
pub(super) fn describe_pages(
    pages: &[BadPage],
    listing: &Listing,
    names: &Names,
    max: usize,
) -> (Vec<DamagedPage>, u64) {
    let describe = |page: &BadPage| {
        let path = &listing.entries[page.file].path;
        DamagedPage {
            path: String::from_utf8_lossy(path).into_owned(),
            relation: relation_key(path).and_then(|key| names.relation(key)),
            block: page.block,
            reason: page.reason.clone(),
        }
    };
    let mut described: Vec<DamagedPage> = pages.iter().map(describe).collect();
    described.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    described.dedup();
    let more = described.len().saturating_sub(max) as u64;
    described.truncate(max);
    (described, more)
}
