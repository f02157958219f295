//! PostgreSQL 17 and later: the server is shown which files the prior has (`UPLOAD_MANIFEST`), and sends of those only the
//! blocks that its WAL summaries name (`src/backend/backup/basebackup_incremental.c`).
//!
//! What it sends does not say where a file was cut and made longer again. Pages of zeros that came so are not named, and
//! the prior's old pages would stand in their place, as `pg_combinebackup` puts them. So the index of the archived WAL
//! is asked for each cut, before a file is put together; where it has no answer, all is sent.

use super::super::footers::Marks;
use super::super::pages::PageRules;
use super::super::plan::relation_file;
use crate::checksums::sha256;
use crate::server::ServerFacts;
use crate::tar::TarReader;
use crate::{Context, EngineError};
use pg_format::backup_manifest::{BackupManifest, ManifestFile, WalRange};
use pg_format::relpath::Fork;
use repo::manifest::{FileType, Manifest};
use std::collections::HashSet;
use std::io::{self, Read};

/// `INCREMENTAL_MAGIC` (`src/include/backup/basebackup_incremental.h`).
const MAGIC: u32 = 0xd3ae_1f0d;
const PREFIX: &[u8] = b"INCREMENTAL.";
/// Magic, number of blocks, and the length below which what is not sent is the prior's.
const FIXED_BYTES: u64 = 12;

/// The file that a member holds the changes of.
pub(super) fn changed_file(name: &[u8]) -> Option<Vec<u8>> {
    let base = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let file = name[base..].strip_prefix(PREFIX)?;
    Some([&name[..base], file].concat())
}

/// The beginning of a file that holds changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChangedHead {
    /// The blocks that follow, ascending, numbered within the file.
    pub(super) blocks: Vec<u32>,
    /// The file has at least so many blocks.
    truncation_blocks: u32,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

impl ChangedHead {
    /// Reads it, up to where the blocks begin. `len` is the member's length.
    pub(super) fn read<R: Read>(tar: &mut TarReader<R>, len: u64, rules: PageRules) -> io::Result<Self> {
        let (page, limit) = (rules.page_size as u64, rules.relseg_blocks);
        let mut fixed = [0; FIXED_BYTES as usize];
        if len < FIXED_BYTES || tar.read(&mut fixed)? < fixed.len() {
            return Err(bad("they are cut off"));
        }
        // The server writes numbers as it has them in memory; pages are of its kind too.
        let (magic, count, truncation_blocks) = (word(&fixed[..4]), word(&fixed[4..8]), word(&fixed[8..]));
        if magic != MAGIC || count > limit || truncation_blocks > limit {
            return Err(bad("they are none"));
        }
        let header = FIXED_BYTES + 4 * u64::from(count);
        let padded = if count > 0 { header.next_multiple_of(page) } else { header };
        if len != padded + page * u64::from(count) {
            return Err(bad("their length is not that of the blocks in them"));
        }
        let mut numbers = vec![0; (padded - FIXED_BYTES) as usize];
        tar.read(&mut numbers)?;
        let blocks: Vec<u32> = numbers.chunks_exact(4).take(count as usize).map(word).collect();
        if blocks.windows(2).any(|pair| pair[0] >= pair[1]) || blocks.last().is_some_and(|&last| last >= limit) {
            return Err(bad("the blocks in them are not in order"));
        }
        Ok(Self { blocks, truncation_blocks })
    }

    /// How many pages the file has now (`find_reconstructed_block_length` in `src/bin/pg_combinebackup/reconstruct.c`).
    pub(super) fn pages(&self) -> u64 {
        let behind_last = self.blocks.last().map_or(0, |&last| u64::from(last) + 1);
        behind_last.max(self.truncation_blocks.into())
    }
}

/// The manifest that the server is shown of a prior. What is not in it is sent whole: visibility maps, of which WAL does
/// not name every change; files with pages that are to be looked at again or that are damaged; all but main forks.
pub(in crate::backup) async fn manifest(
    ctx: &Context,
    prior: &Manifest,
    marks: &Marks,
    server: &ServerFacts,
) -> Result<Vec<u8>, EngineError> {
    let facts = prior.facts();
    let damaged: HashSet<&[u8]> = facts.damaged.iter().map(|page| page.path.as_bytes()).collect();
    let mut files = Vec::new();
    let mut blocks = prior.files();
    while let Some(block) = ctx.or_cancel(blocks.next()).await?? {
        for entry in block {
            let FileType::File { len, .. } = entry.file_type else { continue };
            let is_main = relation_file(&entry.path).is_some_and(|file| file.fork == Fork::Main);
            let whole = len % u64::from(server.block_size.max(1)) == 0 && len > 0;
            let wanted = is_main && whole && !marks.paths.contains(&*entry.path) && !damaged.contains(&*entry.path);
            if let Some(path) = entry.path.strip_prefix(b"data/").filter(|_| wanted) {
                files.push(ManifestFile {
                    path: path.to_vec(),
                    size_bytes: len,
                    last_modified_text: "1970-01-01 00:00:00 GMT".to_owned(),
                    checksum: None,
                });
            }
        }
    }
    let wal_ranges = vec![WalRange { timeline: facts.timeline, start_lsn: facts.start_lsn, end_lsn: facts.stop_lsn }];
    Ok(BackupManifest { system_id: Some(server.system_id), files, wal_ranges }.render(sha256))
}

/// A label without what says that the files are incremental: put together they are not (as `pg_combinebackup` writes it).
pub(super) fn label_of_whole(label: &str) -> String {
    label.split_inclusive('\n').filter(|line| !line.starts_with("INCREMENTAL FROM ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{TarMeta, TarWriter};
    use pg_format::page::Checksums;

    const META: TarMeta = TarMeta { mode: 0o600, uid: 1, gid: 2, mtime: 77 };
    const RULES: PageRules = PageRules { checksums: Checksums::Off, page_size: 8192, relseg_blocks: 131_072 };

    fn head(words: &[u32], len: u64) -> Result<ChangedHead, String> {
        let mut tar = TarWriter::new(Vec::new());
        tar.file(b"x", len, META).unwrap();
        let mut content: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        content.resize(len as usize, 0);
        tar.data(&content).unwrap();
        let bytes = tar.finish().unwrap();
        let mut reader = TarReader::new(bytes.as_slice());
        let member = reader.next().unwrap().unwrap();
        assert_eq!(member.name, b"x");
        ChangedHead::read(&mut reader, len, RULES).map_err(|error| error.to_string())
    }

    #[test]
    fn heads_of_changes() {
        let none = head(&[MAGIC, 0, 7], 12).unwrap();
        assert_eq!((none.blocks.len(), none.pages()), (0, 7));
        let two = head(&[MAGIC, 2, 3, 1, 9], 3 * 8192).unwrap();
        assert_eq!(
            (two.blocks.as_slice(), two.pages()),
            (&[1, 9][..], 10),
            "a block behind the length makes it longer"
        );
        for (words, len) in [
            (&[MAGIC + 1, 0, 7][..], 12),
            (&[MAGIC, 0, 7], 13),
            (&[MAGIC, 2, 3, 9, 1], 3 * 8192),
            (&[MAGIC, 2, 3, 1, 1], 3 * 8192),
            (&[MAGIC, 2, 3, 1, 131_072], 3 * 8192),
            (&[MAGIC, 1, 3, 1], 3 * 8192),
            (&[MAGIC, 131_073, 3], 12),
            (&[MAGIC, 0, 131_073], 12),
            (&[MAGIC, 0], 8),
        ] {
            assert!(head(words, len).is_err(), "{words:?} {len}");
        }
    }

    #[test]
    fn names_and_labels() {
        assert_eq!(changed_file(b"base/5/INCREMENTAL.1259.1").unwrap(), b"base/5/1259.1");
        assert_eq!(changed_file(b"base/INCREMENTAL.5/1259"), None);
        assert_eq!(changed_file(b"base/5/1259"), None);
        let label = "START TIMELINE: 1\nINCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n";
        assert_eq!(label_of_whole(label), "START TIMELINE: 1\n");
    }
}
