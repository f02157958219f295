//! The custom format: one file, or a pipe (`src/bin/pg_dump/pg_backup_custom.c`).

use super::compress::{Packer, Wrapping};
use crate::archive::{Archive, ArchiveCompression, Form, Place, put_int, write};
use crate::large_objects::{Parser, Step};
use crate::{DumpError, StreamReader};
use engine::Context;
use futures::StreamExt;
use repo::dump::{DataKind, DumpedData, DumpedDatabase};
use std::collections::{HashMap, HashSet};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// `BLK_DATA` and `BLK_BLOBS` of `pg_backup_archiver.h`.
const BLOCK_DATA: u8 = 1;
const BLOCK_BLOBS: u8 = 3;
/// What pg_dump puts behind the rows of a table (`dumpTableData_copy` in `pg_dump.c`).
pub(super) const END_OF_ROWS: &[u8] = b"\\.\n\n\n";

/// What of the data is written.
pub(crate) struct Chosen<'a> {
    /// Any at all.
    pub(crate) data: bool,
    /// The entries.
    pub(crate) wanted: &'a HashSet<i32>,
}

/// Writes an archive into a pipe: no data are compressed, and no offsets known.
pub(crate) async fn write_to(
    ctx: &Context,
    out: &mut (impl AsyncWrite + Unpin),
    reader: &StreamReader,
    archive: &Archive,
    database: &DumpedDatabase,
    chosen: &Chosen<'_>,
) -> Result<(), DumpError> {
    let mut writer = Writer { ctx, out, reader, archive, compression: ArchiveCompression::None, at: 0 };
    writer.write(database, chosen).await.map(|_| ())
}

pub(super) struct Writer<'a, W> {
    pub(super) ctx: &'a Context,
    pub(super) out: &'a mut W,
    pub(super) reader: &'a StreamReader,
    pub(super) archive: &'a Archive,
    pub(super) compression: ArchiveCompression,
    pub(super) at: u64,
}

pub(super) fn broken(error: std::io::Error) -> DumpError {
    DumpError::failed(
        format!("the archive could not be written: {error}"),
        "the reader of it may have ended; see what it said",
    )
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    /// Writes all; gives the offset of each entry's data.
    pub(super) async fn write(
        &mut self,
        database: &DumpedDatabase,
        chosen: &Chosen<'_>,
    ) -> Result<HashMap<i32, u64>, DumpError> {
        let is_written = |id: i32| chosen.data && chosen.wanted.contains(&id);
        let head = write(self.archive, Form::Custom, self.compression, |entry| {
            if entry.has_data && is_written(entry.dump_id) { Place::Unknown } else { Place::NoData }
        });
        self.put(&head).await?;
        let data: HashMap<i32, &DumpedData> = database.data.iter().map(|data| (data.entry, data)).collect();
        let mut offsets = HashMap::new();
        for entry in self.archive.entries.iter().filter(|entry| entry.has_data && is_written(entry.dump_id)) {
            let Some(data) = data.get(&entry.dump_id) else { continue };
            offsets.insert(entry.dump_id, self.at);
            let block = if data.kind == DataKind::Table { BLOCK_DATA } else { BLOCK_BLOBS };
            self.put(&[block]).await?;
            self.int(entry.dump_id).await?;
            match data.kind {
                DataKind::Table => self.table(data).await?,
                DataKind::TableBinary => return Err(super::not_text(data)),
                DataKind::LargeObjects => self.large_objects(data).await?,
            }
        }
        self.out.flush().await.map_err(broken)?;
        self.out.shutdown().await.map_err(broken)?;
        Ok(offsets)
    }

    async fn table(&mut self, data: &DumpedData) -> Result<(), DumpError> {
        let mut packer = Packer::new(self.compression, Wrapping::Block)?;
        for part in &data.parts {
            let mut pieces = self.reader.pieces(part.stream);
            while let Some(piece) = self.ctx.or_cancel(pieces.next()).await? {
                packer = self.pack(packer, piece?).await?;
            }
        }
        packer = self.pack(packer, END_OF_ROWS.to_vec()).await?;
        let end = packer.finish()?;
        self.chunk(&end).await?;
        self.int(0).await
    }

    async fn large_objects(&mut self, data: &DumpedData) -> Result<(), DumpError> {
        let bad = |error: crate::archive::BadArchive| DumpError::Failed { reason: error.to_string(), hint: None };
        for part in &data.parts {
            let (mut parser, mut packer) = (Parser::default(), None);
            let mut pieces = self.reader.pieces(part.stream);
            while let Some(piece) = self.ctx.or_cancel(pieces.next()).await? {
                for step in parser.feed(&piece?).map_err(bad)? {
                    match step {
                        Step::Begin(oid) => {
                            // As pg_dump does: an OID beyond the integers comes back as itself.
                            self.int(oid as i32).await?;
                            packer = Some(Packer::new(self.compression, Wrapping::Block)?);
                        }
                        Step::Bytes(bytes) => {
                            if let Some(now) = packer.take() {
                                packer = Some(self.pack(now, bytes).await?);
                            }
                        }
                        Step::End => {
                            let end = packer.take().map(Packer::finish).transpose()?.unwrap_or_default();
                            self.chunk(&end).await?;
                            self.int(0).await?;
                        }
                    }
                }
            }
            parser.finish().map_err(bad)?;
        }
        self.int(0).await
    }

    async fn pack(&mut self, packer: Packer, plain: Vec<u8>) -> Result<Packer, DumpError> {
        self.ctx.progress.advance(plain.len() as u64);
        let (packer, ready) = packer.pack(plain).await?;
        self.chunk(&ready).await?;
        Ok(packer)
    }

    async fn chunk(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.int(bytes.len() as i32).await?;
        self.put(bytes).await
    }

    async fn int(&mut self, value: i32) -> Result<(), DumpError> {
        let mut bytes = Vec::new();
        put_int(&mut bytes, self.archive.header.int_size, value);
        self.put(&bytes).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        self.out.write_all(bytes).await.map_err(broken)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
