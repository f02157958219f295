//! Two data directories, file by file and page by page.
//!
//! What may differ between an origin and a right copy that replayed its WAL to the same point, and is not compared:
//!
//! - `pg_wal`, `postmaster.*`, `*.signal`, `backup_label*`, `tablespace_map*`, `backup_manifest`, `log`: the life of
//!   the server, not its data;
//! - configuration (`postgresql*.conf`, `pg_hba.conf`, `pg_ident.conf`): a restore adds settings of its own;
//! - `global/pg_control`, `pg_logical/replorigin_checkpoint`, `pg_replslot`, `pg_stat*`, `pg_notify`, `pg_serial`,
//!   `pg_snapshots`, `pg_subtrans`, `pg_dynshmem`, `pgsql_tmp*`, `pg_internal.init*`: made anew by each server;
//! - free space maps: not in WAL (`src/backend/storage/freespace/README`);
//! - unlogged and temporary relations: emptied by recovery; their init forks are compared;
//! - in pages what `pg_format::mask` masks, page LSNs, and the counters of sequences;
//! - what an SP-GiST index notes of free pages in its metapage;
//! - all-zero pages at the end of a relation: extending is not in WAL, what is then written there is;
//! - zero bytes at the end of an SLRU file: pages are added in memory before they are used.

use anyhow::{Context, Result, bail};
use pg_format::control::{CONTROL_FILE_PATH, ControlFile};
use pg_format::ids::BlockNumber;
use pg_format::mask::{MaskOptions, PageKind, mask_page_with, page_kind};
use pg_format::page::{PAGE_HEADER_BYTES, PageHeader};
use pg_format::relpath::{Fork, RelFile};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Something that differs and must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file, relative to the data directory.
    pub path: String,
    /// What is different about it.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Files that were compared.
    pub files: usize,
    /// Pages that were compared.
    pub pages: u64,
    /// What differs; one entry per file and kind, with the first place.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// Fails with the first differences unless the two are equal.
    ///
    /// # Errors
    /// When there are differences, or nothing was compared.
    pub fn require_equal(&self) -> Result<()> {
        if self.pages == 0 {
            bail!("not a single page was compared");
        }
        if self.differences.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = self.differences.iter().take(20).map(ToString::to_string).collect();
        bail!("{} differences between origin and copy:\n{}", self.differences.len(), shown.join("\n"))
    }
}

/// First path components that are not compared.
const SKIPPED_TOP: [&str; 14] = [
    "pg_wal",
    "log",
    "pg_replslot",
    "pg_stat",
    "pg_stat_tmp",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_dynshmem",
    "pg_hba.conf",
    "pg_ident.conf",
    "postgresql.conf",
    "postgresql.auto.conf",
];

/// Beginnings of file names that are not compared.
const SKIPPED_NAMES: [&str; 8] = [
    "postmaster.",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "current_logfiles",
    "pgsql_tmp",
    "pg_internal.init",
    "replorigin_checkpoint",
];

/// What the copy is, which decides how equal it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyOf {
    /// A copy that replayed its WAL to where the origin stands: LSNs and the counters of sequences may differ.
    Replayed,
    /// The files of an origin that had written all pages and does nothing, before any recovery: only what changes
    /// without WAL may differ.
    AtRest,
}

impl CopyOf {
    fn mask(self, block: BlockNumber) -> MaskOptions {
        match self {
            Self::Replayed => MaskOptions::origin_and_replayed(block),
            Self::AtRest => MaskOptions::SAME_CLUSTER,
        }
    }
}

/// Compares two data directories of stopped servers, tablespaces included. The copy has replayed its WAL.
///
/// # Errors
/// When one of them is no data directory or cannot be read. Differences are no error here.
pub fn compare_dirs(origin: &Path, copy: &Path) -> Result<Comparison> {
    compare_dirs_with(origin, copy, CopyOf::Replayed)
}

/// [`compare_dirs`] with a copy of either kind.
///
/// # Errors
/// As [`compare_dirs`].
pub fn compare_dirs_with(origin: &Path, copy: &Path, kind: CopyOf) -> Result<Comparison> {
    let control = read_control(origin)?;
    let copy_control = read_control(copy)?;
    let mut result = Comparison::default();
    if control.system_id != copy_control.system_id {
        result
            .add(CONTROL_FILE_PATH, format!("system identifier {} and {}", control.system_id, copy_control.system_id));
    }
    let (left, right) = (list(origin)?, list(copy)?);
    let unlogged: Vec<RelFile> =
        left.keys().filter_map(|path| RelFile::parse(path)).filter(|file| file.fork == Fork::Init).collect();
    let is_unlogged = |file: &RelFile| {
        file.fork != Fork::Init
            && unlogged.iter().any(|init| init.filenode == file.filenode && init.db_oid == file.db_oid)
    };
    let names: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    for path in names {
        let relation = RelFile::parse(path);
        if relation.is_some_and(|file| file.fork == Fork::Fsm || file.temp_backend.is_some() || is_unlogged(&file)) {
            continue;
        }
        let (Some(in_origin), Some(in_copy)) = (left.get(path), right.get(path)) else {
            let (place, only) = match left.get(path) {
                Some(file) => ("origin", file),
                None => ("copy", &right[path]),
            };
            // An empty or all-zero file holds nothing yet, in a relation and in an SLRU.
            if relation.is_none() && !is_slru(path) || std::fs::read(only)?.iter().any(|byte| *byte != 0) {
                result.add(path, format!("only in the {place}"));
            }
            continue;
        };
        result.files += 1;
        if let Some(file) = relation {
            let first_block = file.segment * control.relation_segment_blocks;
            let page_bytes = control.block_bytes as usize;
            let different = compare_pages([in_origin, in_copy], page_bytes, first_block, kind, &mut result.pages)?;
            if let Some((block, offset)) = different.first() {
                let (count, blocks) = (different.len(), shown_blocks(&different));
                result.add(path, format!("{count} pages differ, the first is block {block} at byte {offset}{blocks}"));
            }
        } else {
            compare_bytes(path, in_origin, in_copy, &mut result)?;
        }
    }
    Ok(result)
}

impl Comparison {
    fn add(&mut self, path: &str, what: String) {
        self.differences.push(Difference { path: path.to_owned(), what });
    }
}

pub(crate) fn read_control(data: &Path) -> Result<ControlFile> {
    let path = data.join(CONTROL_FILE_PATH);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ControlFile::parse(&bytes).with_context(|| format!("cannot understand {}", path.display()))
}

fn is_slru(path: &str) -> bool {
    ["pg_xact/", "pg_multixact/", "pg_commit_ts/"].iter().any(|prefix| path.starts_with(prefix))
}

/// Every file to compare, by its path relative to the data directory; links of tablespaces are followed.
pub(crate) fn list(data: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        let full = data.join(&dir);
        for entry in std::fs::read_dir(&full).with_context(|| format!("cannot read {}", full.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            let skipped = dir.is_empty() && (SKIPPED_TOP.contains(&name.as_str()) || name.ends_with(".signal"))
                || SKIPPED_NAMES.iter().any(|prefix| name.starts_with(prefix))
                || path == CONTROL_FILE_PATH;
            if skipped {
                continue;
            }
            let facts = std::fs::metadata(entry.path()).with_context(|| format!("cannot look at {path}"))?;
            if facts.is_dir() {
                todo.push(path);
            } else {
                files.insert(path, entry.path());
            }
        }
    }
    Ok(files)
}

/// Reads until the buffer is full or the file ends; the rest of the buffer becomes zero. Returns the bytes read.
fn read_page(file: &mut impl Read, page: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < page.len() {
        match file.read(&mut page[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    page[filled..].fill(0);
    Ok(filled)
}

/// An SP-GiST index notes in its metapage, without WAL, which pages have room (`SpGistUpdateMetaPage` in
/// `src/backend/access/spgist/spgutils.c`).
fn mask_spgist_cache(page: &mut [u8]) {
    const SPGIST_META: u8 = 1;
    const CACHE_OFFSET: usize = PAGE_HEADER_BYTES + 4;
    let Ok(header) = PageHeader::parse(page) else { return };
    let (lower, special) = (usize::from(header.lower), usize::from(header.special));
    let is_meta =
        page_kind(page) == PageKind::Spgist && page.get(special).is_some_and(|flags| flags & SPGIST_META != 0);
    if let Some(cache) = page.get_mut(CACHE_OFFSET..lower).filter(|_| is_meta) {
        cache.fill(0);
    }
}

/// The blocks after the first, as far as they fit.
fn shown_blocks(different: &[(u32, usize)]) -> String {
    let more: Vec<String> = different.iter().skip(1).take(8).map(|(block, _)| block.to_string()).collect();
    if more.is_empty() { String::new() } else { format!(", then {}", more.join(", ")) }
}

/// The blocks that differ, each with the first byte that does.
fn compare_pages(
    paths: [&Path; 2],
    page_bytes: usize,
    first_block: u32,
    kind: CopyOf,
    pages: &mut u64,
) -> Result<Vec<(u32, usize)>> {
    let open = |path: &Path| {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()));
        file.map(|file| std::io::BufReader::with_capacity(1 << 20, file))
    };
    let (mut left, mut right) = (open(paths[0])?, open(paths[1])?);
    let (mut left_page, mut right_page) = (vec![0_u8; page_bytes], vec![0_u8; page_bytes]);
    let mut different = Vec::new();
    for position in 0.. {
        let count = read_page(&mut left, &mut left_page)?.max(read_page(&mut right, &mut right_page)?);
        if count == 0 {
            break;
        }
        *pages += 1;
        if left_page == right_page {
            continue;
        }
        // Within a segment positions fit into 32 bits.
        let block = first_block + position;
        let options = kind.mask(BlockNumber(block));
        for page in [&mut left_page, &mut right_page] {
            mask_page_with(page, &options);
            mask_spgist_cache(page);
        }
        if let Some(offset) = left_page.iter().zip(&right_page).position(|(left, right)| left != right) {
            different.push((block, offset));
        }
    }
    Ok(different)
}

fn compare_bytes(path: &str, in_origin: &Path, in_copy: &Path, result: &mut Comparison) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (mut left, mut right) = (read(in_origin)?, read(in_copy)?);
    if is_slru(path) {
        let longer = left.len().max(right.len());
        left.resize(longer, 0);
        right.resize(longer, 0);
    }
    if left.len() != right.len() {
        result.add(path, format!("{} bytes and {} bytes", left.len(), right.len()));
    } else if let Some(offset) = left.iter().zip(&right).position(|(left, right)| left != right) {
        result.add(path, format!("differs from byte {offset} on"));
    }
    Ok(())
}
