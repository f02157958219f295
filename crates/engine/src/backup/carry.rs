//! WAL that travels in the backup itself, as `wal/...` (docs/format.md, section 9), so that it needs no archive.

use super::pipeline::{FileResult, Stored};
use crate::{Context, EngineError, Unit};
use jiff::Timestamp;
use pg_format::{SystemId, WalFileName};
use repo::chunk::{ChunkEncoder, ChunkRef, EXTENT_PAGES, EncodedChunk, PageContent};
use repo::map::{FileMap, Run};
use repo::pack::{ChunkPages, PACK_LEN, PackWriter, map_encoder};
use repo::wal::{read_segment, read_wal_file};
use repo::{BackupId, Cluster, Compression, PackId, RepoError};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// A file of WAL that is to travel in the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WalFile {
    pub(super) name: WalFileName,
    /// Where it is; in the archive of the repository when absent.
    pub(super) path: Option<PathBuf>,
}

/// A file of WAL that was stored.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    pub(super) name: WalFileName,
    pub(super) result: FileResult,
    pub(super) mtime: u64,
}

/// What was stored.
#[derive(Debug, Default)]
pub(super) struct CarriedWal {
    /// In ascending order of the names.
    pub(super) files: Vec<Carried>,
    /// Object size of each pack written.
    pub(super) packs: HashMap<PackId, u64>,
    /// Stored bytes used of each pack.
    pub(super) used: HashMap<PackId, i64>,
}

/// How WAL is stored.
pub(super) struct Carrier {
    pub(super) ctx: Context,
    pub(super) cluster: Cluster,
    pub(super) backup: BackupId,
    pub(super) system_id: SystemId,
    pub(super) page_size: u32,
    pub(super) compression: Compression,
    pub(super) next_pack: Arc<AtomicU32>,
}

struct Writing<'a> {
    carrier: &'a Carrier,
    handle: Handle,
    pack: Option<PackWriter>,
    carried: CarriedWal,
}

impl Carrier {
    /// Stores the files, one after the other. Blocks.
    pub(super) fn store(&self, handle: Handle, mut files: Vec<WalFile>) -> Result<CarriedWal, EngineError> {
        files.sort_unstable_by_key(|file| file.name.to_string());
        files.dedup_by_key(|file| file.name);
        self.ctx.progress.phase("storing WAL in the backup", Some(files.len() as u64), Unit::Items);
        let mut writing = Writing { carrier: self, handle, pack: None, carried: CarriedWal::default() };
        for file in files {
            self.ctx.check()?;
            let (bytes, mtime) = writing.read(&file)?;
            let result = writing.file(&file.name.to_string(), &bytes)?;
            writing.carried.files.push(Carried { name: file.name, result, mtime });
            self.ctx.progress.advance(1);
        }
        writing.finish_pack()?;
        Ok(writing.carried)
    }
}

impl Writing<'_> {
    /// The content of a file, and when it was written.
    fn read(&self, file: &WalFile) -> Result<(Vec<u8>, u64), EngineError> {
        if let Some(path) = &file.path {
            let fail = |error| EngineError::file(path, "reading", error);
            let written = std::fs::metadata(path).and_then(|meta| meta.modified()).map_err(fail)?;
            let mtime = written.duration_since(Timestamp::UNIX_EPOCH.into()).unwrap_or(Duration::ZERO).as_secs();
            return Ok((std::fs::read(path).map_err(fail)?, mtime));
        }
        let cluster = &self.carrier.cluster;
        let (repository, name) = (cluster.repository(), cluster.name());
        let path = match file.name {
            WalFileName::History(timeline) => name.history(self.carrier.system_id, timeline),
            other => name.wal_file(self.carrier.system_id, other.timeline(), &other.to_string())?,
        };
        let read = async {
            match file.name {
                WalFileName::Segment(_) => read_segment(repository.store().clone(), repository.keys(), &path).await,
                _ => read_wal_file(&**repository.store(), repository.keys(), &path).await.map(|bytes| bytes.to_vec()),
            }
        };
        let now = u64::try_from(self.carrier.ctx.now().as_second()).unwrap_or(0);
        Ok((self.handle.block_on(read)?, now))
    }

    /// Stores one file, extent by extent.
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<FileResult, EngineError> {
        let path = format!("wal/{name}").into_bytes();
        let len = bytes.len() as u64;
        let page_size = self.carrier.page_size;
        let extent = EXTENT_PAGES as usize * page_size as usize;
        let mut encoder = ChunkEncoder::new(self.carrier.compression);
        let mut map = FileMap::new(page_size, len);
        let mut only = None;
        for (index, part) in bytes.chunks(extent).enumerate() {
            self.carrier.ctx.check()?;
            let pages = part.len().div_ceil(page_size as usize) as u64;
            let chunk = encoder.encode(part, page_size as usize, PageContent::Other);
            if chunk.is_zero {
                map.add_run(Run { from: None, pages });
                continue;
            }
            let first = index as u64 * EXTENT_PAGES;
            let (pack, chunk) = self.add(&path, &ChunkPages::Base { first }, &chunk)?;
            only = Some((pack, chunk));
            let number = map.add_chunk(pack, chunk);
            map.add_run(Run { from: Some((number, 0)), pages });
        }
        let stored = match only {
            None => Stored::Zero,
            Some((pack, chunk)) if len <= extent as u64 => Stored::Chunk(pack, chunk),
            Some(_) => {
                let plain = map.encode();
                let (pack, chunk) = self.add(&path, &ChunkPages::Map, &map_encoder().encode_plain(&plain))?;
                Stored::Map(pack, chunk)
            }
        };
        Ok(FileResult { len, stored })
    }

    fn add(
        &mut self,
        path: &[u8],
        pages: &ChunkPages,
        chunk: &EncodedChunk<'_>,
    ) -> Result<(PackId, ChunkRef), EngineError> {
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => {
                let number = self.carrier.next_pack.fetch_add(1, Ordering::Relaxed);
                let id = PackId { backup: self.carrier.backup, number };
                self.handle.block_on(self.carrier.cluster.create_pack(id))?
            }
        };
        let offset = self.handle.block_on(pack.add(path, pages, chunk))?;
        let (id, full) = (pack.id(), pack.len() >= PACK_LEN);
        self.pack = Some(pack);
        if full {
            self.finish_pack()?;
        }
        let placed = ChunkRef {
            pack: 0,
            offset,
            stored_len: chunk.stored.len() as u32,
            plain_len: chunk.plain_len,
            hash16: chunk.hash[..16].try_into().expect("16 of 32 bytes"),
        };
        *self.carried.used.entry(id).or_default() += i64::from(placed.stored_len);
        Ok((id, placed))
    }

    fn finish_pack(&mut self) -> Result<(), RepoError> {
        if let Some(pack) = self.pack.take() {
            let written = self.handle.block_on(pack.finish())?;
            self.carried.packs.insert(written.id, written.size);
        }
        Ok(())
    }
}
