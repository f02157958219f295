//! WAL that travels in the backup itself, as `wal/...` (docs/format.md, section 9), so that it needs no archive.

use super::pipeline::{FileResult, Stored};
use crate::packing::{PackSink, Packing};
use crate::{Context, EngineError, Unit};
use jiff::Timestamp;
use pg_format::{SystemId, WalFileName};
use repo::chunk::{ChunkEncoder, ChunkRef, EXTENT_PAGES, EncodedChunk, PageContent};
use repo::map::{FileMap, Run};
use repo::pack::{ChunkPages, map_encoder};
use repo::wal::{read_segment, read_wal_file};
use repo::{Compression, PackId};
use std::collections::HashMap;
use std::path::PathBuf;
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
    pub(super) packing: Packing,
    pub(super) system_id: SystemId,
    pub(super) page_size: u32,
    pub(super) compression: Compression,
}

struct Writing<'a> {
    carrier: &'a Carrier,
    handle: Handle,
    packs: PackSink,
    carried: CarriedWal,
}

impl Carrier {
    /// Stores the files, one after the other. Blocks.
    pub(super) fn store(&self, handle: Handle, mut files: Vec<WalFile>) -> Result<CarriedWal, EngineError> {
        files.sort_unstable_by_key(|file| file.name.to_string());
        files.dedup_by_key(|file| file.name);
        self.ctx.progress.phase("storing WAL in the backup", Some(files.len() as u64), Unit::Items);
        let packs = self.packing.sink(handle.clone());
        let mut writing = Writing { carrier: self, handle, packs, carried: CarriedWal::default() };
        if let Err(error) = writing.all(files) {
            writing.packs.give_up();
            return Err(error);
        }
        writing.carried.packs = writing.packs.finish()?;
        Ok(writing.carried)
    }
}

impl Writing<'_> {
    fn all(&mut self, files: Vec<WalFile>) -> Result<(), EngineError> {
        for file in files {
            self.carrier.ctx.check()?;
            let (bytes, mtime) = self.read(&file)?;
            let result = self.file(&file.name.to_string(), &bytes)?;
            self.carried.files.push(Carried { name: file.name, result, mtime });
            self.carrier.ctx.progress.advance(1);
        }
        Ok(())
    }

    /// The content of a file, and when it was written.
    fn read(&self, file: &WalFile) -> Result<(Vec<u8>, u64), EngineError> {
        if let Some(path) = &file.path {
            let fail = |error| EngineError::file(path, "reading", error);
            let written = std::fs::metadata(path).and_then(|meta| meta.modified()).map_err(fail)?;
            let mtime = written.duration_since(Timestamp::UNIX_EPOCH.into()).unwrap_or(Duration::ZERO).as_secs();
            return Ok((std::fs::read(path).map_err(fail)?, mtime));
        }
        let cluster = &self.carrier.packing.cluster;
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
        let (pack, placed) = self.packs.add(path, pages, chunk)?;
        *self.carried.used.entry(pack).or_default() += i64::from(placed.stored_len);
        Ok((pack, placed))
    }
}
