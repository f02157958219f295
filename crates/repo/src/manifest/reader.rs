//! Reading a manifest, block by block.

use super::{
    BLOCK_MAX, FACTS_MAX, FileEntry, INDEX_MAX, ManifestFacts, NameEntry, PACKS_MAX, PATH_LEN_MAX, SECTION_FACTS,
    SECTION_FILES, SECTION_INDEX, SECTION_NAMES, SECTION_PACKS,
};
use crate::block::BlockDecoder;
use crate::coding::{Cursor, Decoded, Malformed};
use crate::map::read_pack_id;
use crate::seal::Kind;
use crate::section::Sections;
use crate::{BackupId, ClusterName, Keyring, ObjectReader, PackId, RepoError};
use std::sync::Arc;
use store::Store;

const KNOWN: [u8; 5] = [SECTION_FACTS, SECTION_PACKS, SECTION_NAMES, SECTION_FILES, SECTION_INDEX];
/// What is read to open a manifest: its facts and, as a rule, the index and the packs too.
const TAIL_LEN: u64 = 128 << 10;

/// A pack that a backup uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackUse {
    /// Its name.
    pub id: PackId,
    /// The object's size in bytes.
    pub size: u64,
    /// Stored bytes of it that this backup uses.
    pub used: u64,
}

#[derive(Debug, Clone)]
struct BlockPlace {
    first: Vec<u8>,
    offset: u64,
    stored_len: u64,
    plain_len: u64,
    entries: u64,
}

/// A manifest that was opened: its facts, packs and index are in memory, names and files are read as they are asked for.
pub struct Manifest {
    object: ObjectReader,
    facts: ManifestFacts,
    packs: Vec<PackUse>,
    files: Vec<BlockPlace>,
    names: Vec<BlockPlace>,
}

impl Manifest {
    /// Opens the manifest of a backup.
    pub async fn open(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: BackupId,
    ) -> Result<Self, RepoError> {
        let (object, sections, facts) = Self::open_facts(store, keys, cluster, id).await?;
        let damaged = |Malformed(reason)| RepoError::damaged(object.name(), reason);
        let packs = sections.read_block(&object, SECTION_PACKS, "list of packs", PACKS_MAX).await?;
        let packs = parse_packs(&packs).map_err(damaged)?;
        let index = sections.read_block(&object, SECTION_INDEX, "index", INDEX_MAX).await?;
        let section = |kind, what: &str| {
            let found = sections.get(kind).map(|section| (section.offset, section.stored_len));
            found.ok_or_else(|| damaged(Malformed(format!("has no {what}"))))
        };
        let mut cursor = Cursor::new(&index);
        let files = parse_index(&mut cursor, section(SECTION_FILES, "files")?).map_err(damaged)?;
        let names = parse_index(&mut cursor, section(SECTION_NAMES, "names")?).map_err(damaged)?;
        cursor.finish().map_err(damaged)?;
        Ok(Self { object, facts, packs, files, names })
    }

    /// Reads only the facts of a backup.
    pub async fn read_facts(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: BackupId,
    ) -> Result<ManifestFacts, RepoError> {
        Ok(Self::open_facts(store, keys, cluster, id).await?.2)
    }

    async fn open_facts(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: BackupId,
    ) -> Result<(ObjectReader, Sections, ManifestFacts), RepoError> {
        let object = ObjectReader::open(store, keys, Kind::Manifest, cluster.manifest(id), TAIL_LEN).await?;
        let sections = Sections::read(&object, &KNOWN).await?;
        let json = sections.read_block(&object, SECTION_FACTS, "facts", FACTS_MAX).await?;
        let damaged = |reason: String| RepoError::damaged(object.name(), reason);
        let facts: ManifestFacts = serde_json::from_slice(&json).map_err(|e| damaged(format!("facts: {e}")))?;
        if facts.backup != id || facts.cluster != *cluster {
            return Err(damaged(format!("is of backup {} of cluster {}", facts.backup, facts.cluster)));
        }
        Ok((object, sections, facts))
    }

    /// The backup's facts.
    pub fn facts(&self) -> &ManifestFacts {
        &self.facts
    }

    /// The packs it uses; entries refer to them by index.
    pub fn packs(&self) -> &[PackUse] {
        &self.packs
    }

    /// Size of the manifest object in bytes.
    pub fn size(&self) -> u64 {
        self.object.size()
    }

    /// All files, directories and links, in order of their paths.
    pub fn files(&self) -> FileBlocks<'_> {
        FileBlocks { manifest: self, next: 0 }
    }

    /// All names.
    pub fn names(&self) -> NameBlocks<'_> {
        NameBlocks { manifest: self, next: 0 }
    }

    /// One file by its path.
    pub async fn find(&self, path: &[u8]) -> Result<Option<FileEntry>, RepoError> {
        let after = self.files.partition_point(|block| block.first.as_slice() <= path);
        let Some(block) = after.checked_sub(1).map(|index| &self.files[index]) else {
            return Ok(None);
        };
        let entries = self.file_block(block).await?;
        Ok(entries.into_iter().find(|entry| entry.path == path))
    }

    async fn read(&self, block: &BlockPlace) -> Result<Vec<u8>, RepoError> {
        let stored = self.object.read(block.offset..block.offset + block.stored_len).await?;
        BlockDecoder::new()
            .decode(&stored, block.plain_len as usize)
            .map_err(|Malformed(reason)| RepoError::damaged(self.object.name(), reason))
    }

    async fn file_block(&self, block: &BlockPlace) -> Result<Vec<FileEntry>, RepoError> {
        let damaged = |reason: String| RepoError::damaged(self.object.name(), format!("files: {reason}"));
        let entries = FileEntry::read_block(&self.read(block).await?, self.packs.len()).map_err(|e| damaged(e.0))?;
        let fits = entries.first().is_some_and(|entry| entry.path == block.first);
        if !fits || entries.len() as u64 != block.entries {
            return Err(damaged("a block does not fit the index".into()));
        }
        if entries.iter().any(|entry| entry.owner as usize >= self.facts.owners.len()) {
            return Err(damaged("an owner is not in the facts".into()));
        }
        Ok(entries)
    }
}

fn parse_packs(plain: &[u8]) -> Decoded<Vec<PackUse>> {
    let mut cursor = Cursor::new(plain);
    let count = cursor.bounded("number of packs", plain.len() as u64)?;
    let packs = (0..count)
        .map(|_| Ok(PackUse { id: read_pack_id(&mut cursor)?, size: cursor.varint()?, used: cursor.varint()? }))
        .collect::<Decoded<_>>()?;
    cursor.finish()?;
    Ok(packs)
}

fn parse_index(cursor: &mut Cursor<'_>, (start, len): (u64, u64)) -> Decoded<Vec<BlockPlace>> {
    let mut blocks = Vec::new();
    let mut offset = start;
    for _ in 0..cursor.varint()? {
        let block = BlockPlace {
            first: cursor.bytes(PATH_LEN_MAX)?.to_vec(),
            offset,
            stored_len: cursor.bounded("block", BLOCK_MAX)?,
            plain_len: cursor.bounded("block", BLOCK_MAX)?,
            entries: cursor.varint()?,
        };
        offset += block.stored_len;
        blocks.push(block);
    }
    if offset != start + len {
        return Err(Malformed("index does not cover its section".into()));
    }
    Ok(blocks)
}

/// The file entries of a manifest, a block at a time.
pub struct FileBlocks<'a> {
    manifest: &'a Manifest,
    next: usize,
}

impl FileBlocks<'_> {
    /// The next entries, in order; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<FileEntry>>, RepoError> {
        let Some(block) = self.manifest.files.get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        Ok(Some(self.manifest.file_block(block).await?))
    }
}

/// The name entries of a manifest, a block at a time.
pub struct NameBlocks<'a> {
    manifest: &'a Manifest,
    next: usize,
}

impl NameBlocks<'_> {
    /// The next entries, in order; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<NameEntry>>, RepoError> {
        let Some(block) = self.manifest.names.get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        let plain = self.manifest.read(block).await?;
        let entries = NameEntry::read_block(&plain)
            .map_err(|Malformed(reason)| RepoError::damaged(self.manifest.object.name(), format!("names: {reason}")))?;
        Ok(Some(entries))
    }
}
