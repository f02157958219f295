//! Writing a manifest: names, then files, each in order; the facts last.

use super::{
    BLOCK_LEN, FileEntry, ManifestFacts, NameEntry, SECTION_FACTS, SECTION_FILES, SECTION_INDEX, SECTION_NAMES,
    SECTION_PACKS,
};
use crate::block::{BlockEncoder, Compression};
use crate::coding::{put_bytes, put_varint};
use crate::seal::Kind;
use crate::section::{MUST_UNDERSTAND, SectionTable};
use crate::{BackupId, ClusterName, Keyring, ObjectSink, PackId, RepoError};
use std::collections::HashMap;
use std::sync::Arc;
use store::Store;

/// Blocks of entries of one section: the one being filled and the index of those written.
#[derive(Default)]
struct Blocks {
    open: Vec<u8>,
    first: Vec<u8>,
    entries: u64,
    index: Vec<u8>,
    count: u64,
}

impl Blocks {
    fn close(&mut self, encoder: &mut BlockEncoder) -> Vec<u8> {
        let mut block = Vec::new();
        if self.entries > 0 {
            encoder.encode(&self.open, &mut block);
            put_bytes(&mut self.index, &self.first);
            put_varint(&mut self.index, block.len() as u64);
            put_varint(&mut self.index, self.open.len() as u64);
            put_varint(&mut self.index, self.entries);
            self.count += 1;
            self.entries = 0;
            self.open.clear();
        }
        block
    }
}

/// A manifest being written. Nothing is visible before [`finish`](Self::finish), which commits the backup.
pub struct ManifestWriter {
    sink: ObjectSink,
    encoder: BlockEncoder,
    packs: Vec<(PackId, u64)>,
    pack_index: HashMap<PackId, u32>,
    names: Blocks,
    files: Blocks,
    files_start: Option<u64>,
    last_path: Vec<u8>,
}

impl ManifestWriter {
    /// Begins the manifest of a backup.
    pub async fn create(
        store: Arc<dyn Store>,
        keys: &Keyring,
        cluster: &ClusterName,
        id: BackupId,
    ) -> Result<Self, RepoError> {
        let sink = ObjectSink::create(store, keys, Kind::Manifest, cluster.manifest(id)).await?;
        Ok(Self {
            sink,
            encoder: BlockEncoder::new(Compression::Zstd(3)),
            packs: Vec::new(),
            pack_index: HashMap::new(),
            names: Blocks::default(),
            files: Blocks::default(),
            files_start: None,
            last_path: Vec::new(),
        })
    }

    /// The index by which entries refer to a pack. `used` stored bytes of it are added to what this backup uses.
    pub fn use_pack(&mut self, pack: PackId, used: u64) -> u32 {
        let packs = &mut self.packs;
        let index = *self.pack_index.entry(pack).or_insert_with(|| {
            packs.push((pack, 0));
            (packs.len() - 1) as u32
        });
        self.packs[index as usize].1 += used;
        index
    }

    /// Adds a name. Names come in ascending order of their key, and before all files.
    pub async fn add_name(&mut self, entry: &NameEntry) -> Result<(), RepoError> {
        if self.files_start.is_some() {
            return Err(self.misuse("a name after files"));
        }
        if self.names.entries == 0 {
            self.names.first = entry.key_text().into_bytes();
        }
        entry.put(&mut self.names.open);
        self.names.entries += 1;
        if self.names.open.len() >= BLOCK_LEN {
            let block = self.names.close(&mut self.encoder);
            self.sink.write(&block).await?;
        }
        Ok(())
    }

    /// Adds a file, directory or link. Entries come in ascending byte order of their paths.
    pub async fn add_file(&mut self, entry: &FileEntry) -> Result<(), RepoError> {
        if self.files_start.is_none() {
            let block = self.names.close(&mut self.encoder);
            self.sink.write(&block).await?;
            self.files_start = Some(self.sink.payload_len());
        } else if entry.path <= self.last_path {
            return Err(self.misuse("files out of order"));
        }
        if self.files.entries == 0 {
            self.files.first.clone_from(&entry.path);
            self.last_path.clear();
        }
        entry.put(&mut self.files.open, &self.last_path);
        self.last_path.clone_from(&entry.path);
        self.files.entries += 1;
        if self.files.open.len() >= BLOCK_LEN {
            let block = self.files.close(&mut self.encoder);
            self.sink.write(&block).await?;
        }
        Ok(())
    }

    /// Writes the rest and commits the backup. `sizes` has the object size of every pack used.
    pub async fn finish(mut self, facts: &ManifestFacts, sizes: &HashMap<PackId, u64>) -> Result<u64, RepoError> {
        if self.files_start.is_none() {
            return Err(self.misuse("a backup without files"));
        }
        let block = self.files.close(&mut self.encoder);
        self.sink.write(&block).await?;
        let files_start = self.files_start.unwrap_or_default();
        let files_end = self.sink.payload_len();
        let mut packs = Vec::new();
        put_varint(&mut packs, self.packs.len() as u64);
        for (pack, used) in &self.packs {
            let size = sizes.get(pack).ok_or_else(|| self.misuse("a pack of unknown size"))?;
            put_bytes(&mut packs, pack.backup.to_string().as_bytes());
            put_varint(&mut packs, pack.number.into());
            put_varint(&mut packs, *size);
            put_varint(&mut packs, *used);
        }
        let mut index = Vec::new();
        for blocks in [&self.files, &self.names] {
            put_varint(&mut index, blocks.count);
            index.extend_from_slice(&blocks.index);
        }
        let json = serde_json::to_vec(facts).map_err(|_| self.misuse("facts that are no JSON"))?;

        let mut table = SectionTable::default();
        table.add_raw(SECTION_NAMES, 0, 0, files_start);
        table.add_raw(SECTION_FILES, MUST_UNDERSTAND, files_start, files_end - files_start);
        for (kind, plain) in [(SECTION_PACKS, packs), (SECTION_INDEX, index), (SECTION_FACTS, json)] {
            let block = table.add_block(kind, MUST_UNDERSTAND, self.sink.payload_len(), &plain);
            self.sink.write(&block).await?;
        }
        self.sink.write(&table.finish()).await?;
        self.sink.finish().await
    }

    /// Gives up; nothing becomes visible.
    pub async fn abort(self) -> Result<(), RepoError> {
        self.sink.abort().await
    }

    fn misuse(&self, what: &str) -> RepoError {
        RepoError::damaged(self.sink.name(), format!("would be written with {what}"))
    }
}
