//! What is to be done for each file: shared as it is, read in part, or read whole. Made by walking the listing and the
//! prior's manifest side by side.

use super::changes::{Changes, FileChanges, Found as Detected};
use super::footers::Marks;
use super::listing::{Found, Listed, Listing};
use super::pipeline::{FileResult, Stored};
use super::resume::BrokenOff;
use super::warm::Warm;
use crate::{Context, EngineError};
use pg_format::Lsn;
use pg_format::relpath::{Fork, RelFile};
use repo::chunk::ChunkRef;
use repo::manifest::{FileEntry, FileType, Manifest, PackUse, Place};
use repo::{BackupId, PackId};
use std::collections::{HashMap, HashSet};

/// What is to be done for one entry of the listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Nothing: no file, or a file for later.
    Nothing,
    /// It is shared with the prior as it is, unread.
    Keep,
    /// All of it is read and stored.
    Whole,
    /// All of it is read; extents that are byte for byte in the repository are shared.
    Compare,
    /// All of it is read; pages whose LSN is older than their copy in the repository are shared.
    Scan,
    /// The same, and the pages that look unchanged are compared by their hashes too.
    ScanHashes,
    /// Only pages named as changed are read.
    Pages,
}

/// What was stored before, and what is known of what changed since: the prior first, then backups that were broken off.
pub(super) struct Layer {
    /// The start LSN of the backup that stored it.
    pub(super) start_lsn: Lsn,
    /// The changed blocks; none when every page must be looked at.
    pub(super) changes: Option<Changes>,
}

/// What a backup builds on.
#[derive(Default)]
pub(super) struct Base {
    pub(super) prior: Option<Manifest>,
    /// The first one is the prior's, also where there is none; one more for each broken-off backup.
    pub(super) layers: Vec<Layer>,
    pub(super) broken_off: Vec<BrokenOff>,
    /// What a warm pass found, which counts more than what the prior says; then the first layer is its.
    pub(super) warm: Option<Warm>,
    pub(super) marks: Marks,
}

impl Base {
    /// A layer from what was found out about changes since it was stored.
    pub(super) fn layer(start_lsn: Lsn, detected: Detected) -> Layer {
        let changes = match detected {
            Detected::Changes { changes, .. } => Some(changes),
            Detected::ScanPages { .. } => None,
        };
        Layer { start_lsn, changes }
    }

    pub(super) fn packs(&self) -> &[PackUse] {
        match &self.warm {
            Some(warm) => &warm.packs,
            None => self.prior.as_ref().map_or(&[], |prior| prior.packs()),
        }
    }

    /// The broken-off backups and warm passes that are gone on from.
    pub(super) fn resumed(&self) -> Vec<BackupId> {
        let warm = self.warm.iter().flat_map(|warm| warm.resumed.iter().copied().chain([warm.backup]));
        warm.chain(self.broken_off.iter().map(|backup| backup.backup)).collect()
    }

    fn has_stored(&self, path: &[u8]) -> bool {
        self.broken_off.iter().any(|backup| backup.chunks.contains_key(path))
    }

    fn prior_changes(&self) -> Option<&Changes> {
        self.layers.first().and_then(|layer| layer.changes.as_ref())
    }
}

/// What is to be done for all files.
#[derive(Default)]
pub(super) struct Plan {
    /// One for each entry of the listing.
    pub(super) tasks: Vec<Task>,
    /// How the prior has each entry of the listing; empty without a prior.
    pub(super) before: Vec<Option<FileResult>>,
    /// The changed pages of files whose task is `Pages`, layer by layer.
    pub(super) changes: HashMap<usize, Vec<FileChanges>>,
    /// Pages that the prior has damaged.
    pub(super) damaged: HashMap<usize, Vec<u64>>,
    /// Files of the prior that are no more.
    pub(super) gone: Vec<FileResult>,
    /// Their paths.
    pub(super) gone_paths: Vec<Box<[u8]>>,
    /// Bytes that will be read, as near as that is known beforehand.
    pub(super) bytes: u64,
    page_size: u64,
}

impl Plan {
    /// For files that have been worked on already, in the order of the listing.
    pub(super) fn of_arrived(tasks: Vec<Task>) -> Self {
        Self { tasks, ..Self::default() }
    }

    /// For one file that arrives.
    pub(super) fn of_one(task: Task, before: Option<FileResult>, damaged: Vec<u64>) -> Self {
        let mut plan = Self { tasks: vec![task], before: vec![before], ..Self::default() };
        if !damaged.is_empty() {
            plan.damaged.insert(0, damaged);
        }
        plan
    }

    /// Walks listing and manifest.
    pub(super) async fn make(
        ctx: &Context,
        base: &Base,
        listing: &Listing,
        (page_size, relseg_blocks): (u64, u32),
    ) -> Result<Self, EngineError> {
        let tasks = vec![Task::Nothing; listing.entries.len()];
        let mut plan = Self { tasks, page_size, ..Self::default() };
        let suspicious = match (&base.prior, base.prior_changes()) {
            (Some(prior), None) => suspicious_databases(ctx, prior, listing).await?,
            // Nobody noted when their directories were made.
            (None, None) => listing.entries.iter().filter_map(|entry| database_of(&entry.path)).collect(),
            _ => HashSet::new(),
        };
        let mut damaged: HashMap<&[u8], Vec<u64>> = HashMap::new();
        if base.prior.is_some() || base.warm.is_some() {
            plan.before = vec![None; listing.entries.len()];
        }
        if let Some(warm) = &base.warm {
            // It has read again what the prior has damaged.
            damaged.extend(warm.bad.iter().map(|(path, pages)| (&**path, pages.clone())));
            plan.read_warm(warm, listing);
        }
        if let Some(prior) = &base.prior {
            for page in prior.facts().damaged.iter().filter(|_| base.warm.is_none()) {
                damaged.entry(page.path.as_bytes()).or_default().push(u64::from(page.block % relseg_blocks.max(1)));
            }
            plan.read_prior(ctx, prior, base.warm.as_ref(), listing).await?;
        }
        for (index, entry) in listing.entries.iter().enumerate() {
            let Found::File { len, relation } = entry.found else { continue };
            let before = plan.before.get(index).copied().flatten();
            if before.is_some()
                && let Some(pages) = damaged.remove(&*entry.path)
            {
                plan.damaged.insert(index, pages);
            }
            let suspicious = database_of(&entry.path).is_some_and(|database| suspicious.contains(database));
            let file = relation.and_then(|_| relation_file(&entry.path));
            let task = match file {
                None => Task::Compare,
                Some(_) if before.is_none() && !base.has_stored(&entry.path) => Task::Whole,
                Some(file) => plan.relation(base, index, entry, (file, len), suspicious, relseg_blocks),
            };
            plan.tasks[index] = task;
            plan.bytes += match task {
                Task::Nothing | Task::Keep => 0,
                Task::Pages => plan.changed_pages(index, len.div_ceil(page_size.max(1))) * page_size,
                Task::Whole | Task::Compare | Task::Scan | Task::ScanHashes => len,
            };
        }
        Ok(plan)
    }

    /// Takes from the prior's manifest what it has of each file that is listed, and what is listed no more.
    async fn read_prior(
        &mut self,
        ctx: &Context,
        prior: &Manifest,
        warm: Option<&Warm>,
        listing: &Listing,
    ) -> Result<(), EngineError> {
        let packs: Vec<PackId> = prior.packs().iter().map(|pack| pack.id).collect();
        let mut blocks = prior.files();
        let mut next = 0;
        while let Some(block) = ctx.or_cancel(blocks.next()).await?? {
            for entry in block {
                let Some(file) = file_result(&entry, &packs) else { continue };
                if warm.is_some_and(|warm| warm.files.contains_key(&*entry.path)) {
                    continue;
                }
                while listing.entries.get(next).is_some_and(|listed| *listed.path < *entry.path) {
                    next += 1;
                }
                match listing.entries.get(next) {
                    Some(listed) if *listed.path == *entry.path && matches!(listed.found, Found::File { .. }) => {
                        self.before[next] = Some(file);
                    }
                    _ => self.is_gone(&entry.path, file),
                }
            }
        }
        Ok(())
    }

    /// Takes what a warm pass has of each file that is listed, and what is listed no more.
    fn read_warm(&mut self, warm: &Warm, listing: &Listing) {
        for (path, file) in warm.files.iter().filter_map(|(path, file)| Some((path, (*file)?))) {
            match listing.entries.binary_search_by(|listed| (*listed.path).cmp(path)) {
                Ok(index) if matches!(listing.entries[index].found, Found::File { .. }) => {
                    self.before[index] = Some(file);
                }
                _ => self.is_gone(path, file),
            }
        }
    }

    fn is_gone(&mut self, path: &[u8], file: FileResult) {
        self.gone.push(file);
        self.gone_paths.push(path.into());
    }

    /// The task for a file of pages that is in the repository, whole or in part.
    fn relation(
        &mut self,
        base: &Base,
        index: usize,
        entry: &Listed,
        (file, len): (RelFile, u64),
        suspicious: bool,
        relseg_blocks: u32,
    ) -> Task {
        let before = self.before.get(index).copied().flatten();
        let stored_in_part = base.has_stored(&entry.path);
        let touched = stored_in_part || base.marks.paths.contains(&*entry.path) || self.damaged.contains_key(&index);
        let same_len = before.is_some_and(|before| before.len == len);
        if file.fork != Fork::Main {
            // WAL does not name every change of these; they are small.
            let named = base
                .prior_changes()
                .is_none_or(|changes| changes.names_relation(file.tablespace_oid.0, file.db_oid.0, file.filenode));
            return if named || touched || !same_len || file.fork == Fork::Init { Task::Compare } else { Task::Keep };
        }
        // Only layers that have something of this file count.
        let layers = base.layers.iter().enumerate().filter(|(number, _)| match number {
            0 => before.is_some(),
            number => base.broken_off[number - 1].chunks.contains_key(&*entry.path),
        });
        let mut by_layer = vec![FileChanges::None; base.layers.len()];
        for (number, layer) in layers {
            match &layer.changes {
                Some(changes) => by_layer[number] = changes.of_file(&file, relseg_blocks),
                None if suspicious => return Task::ScanHashes,
                None => return Task::Scan,
            }
        }
        if by_layer.contains(&FileChanges::Whole) {
            return Task::Whole;
        }
        if !touched && same_len && by_layer.iter().all(|changes| *changes == FileChanges::None) {
            return Task::Keep;
        }
        self.changes.insert(index, by_layer);
        Task::Pages
    }

    /// About how many pages are read of a file whose changed pages are known.
    pub(super) fn changed_pages(&self, index: usize, pages: u64) -> u64 {
        let before = self.before.get(index).copied().flatten();
        let mut changed = pages.saturating_sub(before.map_or(0, |before| before.len.div_ceil(self.page_size.max(1))));
        for layer in self.changes.get(&index).into_iter().flatten() {
            if let FileChanges::Pages { pages: named, from } = layer {
                changed += named.len() + from.map_or(0, |from| pages.saturating_sub(from));
            }
        }
        changed.min(pages)
    }
}

/// The file as a manifest has it, with packs by name.
pub(super) fn file_result(entry: &FileEntry, packs: &[PackId]) -> Option<FileResult> {
    let FileType::File { len, place, .. } = &entry.file_type else { return None };
    let pack = |chunk: &ChunkRef| packs[chunk.pack as usize];
    let stored = match place {
        Place::Zero => Stored::Zero,
        Place::Chunk(chunk) => Stored::Chunk(pack(chunk), *chunk),
        Place::Map(chunk) => Stored::Map(pack(chunk), *chunk),
    };
    Some(FileResult { len: *len, stored })
}

/// The relation file that a path in the backup names.
pub(super) fn relation_file(path: &[u8]) -> Option<RelFile> {
    RelFile::parse(std::str::from_utf8(path.strip_prefix(b"data/")?).ok()?)
}

/// The directory of the database that a relation file lies in.
pub(super) fn database_directory(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    Some(&path[..slash])
}

/// The database that a relation file is of: its OID, the name of its directory in each tablespace.
fn database_of(path: &[u8]) -> Option<&[u8]> {
    database_directory(path)?.rsplit(|byte| *byte == b'/').next()
}

/// Databases that may have been made anew since the prior: copied from a template, with page LSNs older than the prior,
/// under paths that the prior has too. `PG_VERSION` is written when a database's own directory is made and never again;
/// its time must be the one that the prior noted, and lie before the prior began. In other tablespaces there is none:
/// what holds for the database holds for its directories there.
async fn suspicious_databases<'a>(
    ctx: &Context,
    prior: &Manifest,
    listing: &'a Listing,
) -> Result<HashSet<&'a [u8]>, EngineError> {
    const NAME: &[u8] = b"/PG_VERSION";
    let before = u64::try_from(prior.facts().started.as_second()).unwrap_or(0).saturating_sub(2);
    let mut found = HashSet::new();
    for entry in &listing.entries {
        let Some(dir) = entry.path.strip_suffix(NAME).filter(|dir| *dir != b"data") else { continue };
        ctx.check()?;
        let known = prior.find(&entry.path).await?;
        if !known.is_some_and(|known| known.mtime == entry.mtime && known.mtime < before) {
            found.extend(dir.rsplit(|byte| *byte == b'/').next());
        }
    }
    Ok(found)
}
