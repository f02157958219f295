//! The directory format: `toc.dat`, and a file for the data of each table (`src/bin/pg_dump/pg_backup_directory.c`).

use super::compress::{Packer, Wrapping, suffix};
use super::custom::END_OF_ROWS;
use crate::archive::{Archive, ArchiveCompression, Entry, Form, Place, write};
use crate::large_objects::{Parser, Step};
use crate::{DumpError, StreamReader};
use engine::Context;
use futures::{StreamExt, TryStreamExt};
use repo::dump::{DataKind, DumpedData, DumpedDatabase};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// What an export needs to know.
#[derive(Clone)]
pub(super) struct Source<'a> {
    pub(super) ctx: &'a Context,
    pub(super) reader: &'a StreamReader,
    pub(super) archive: &'a Archive,
    pub(super) compression: ArchiveCompression,
}

/// The file of an entry's data, as the table of contents names it: without a suffix for its compression.
pub(super) fn file_of(archive: &Archive, entry: &Entry) -> Place {
    match (entry.has_data, entry.kind()) {
        (false, _) => Place::NoData,
        (true, b"BLOBS") if archive.header.minor < 16 => Place::File("blobs.toc".into()),
        (true, b"BLOBS") => Place::File(format!("blobs_{}.toc", entry.dump_id)),
        (true, _) => Place::File(format!("{}.dat", entry.dump_id)),
    }
}

/// Writes everything into an empty directory.
pub(super) async fn write_all(
    source: &Source<'_>,
    dir: &Path,
    database: &DumpedDatabase,
    workers: usize,
) -> Result<(), DumpError> {
    let toc = write(source.archive, Form::Tar, source.compression, |entry| file_of(source.archive, entry));
    let path = dir.join("toc.dat");
    let mut file = create(&path).await?;
    put(&mut file, &path, &toc).await?;
    close(file, &path).await?;
    let mut data: Vec<&DumpedData> = database.data.iter().collect();
    data.sort_by_key(|data| std::cmp::Reverse(data.bytes));
    let written = data.into_iter().map(|data| async move {
        match data.kind {
            DataKind::Table => table(source, dir, data).await,
            DataKind::TableBinary => Err(super::not_text(data)),
            DataKind::LargeObjects => large_objects(source, dir, data).await,
        }
    });
    futures::stream::iter(written).buffer_unordered(workers.max(1)).try_collect::<Vec<()>>().await?;
    Ok(())
}

async fn table(source: &Source<'_>, dir: &Path, data: &DumpedData) -> Result<(), DumpError> {
    let path = dir.join(format!("{}.dat{}", data.entry, suffix(source.compression)));
    let mut out = Packed::create(source, path).await?;
    for part in &data.parts {
        let mut pieces = source.reader.pieces(part.stream);
        while let Some(piece) = source.ctx.or_cancel(pieces.next()).await? {
            let piece = piece?;
            source.ctx.progress.advance(piece.len() as u64);
            out.write(piece).await?;
        }
    }
    out.write(END_OF_ROWS.to_vec()).await?;
    out.close().await
}

async fn large_objects(source: &Source<'_>, dir: &Path, data: &DumpedData) -> Result<(), DumpError> {
    let bad = |error: crate::archive::BadArchive| DumpError::Failed { reason: error.to_string(), hint: None };
    let mut toc = String::new();
    for part in &data.parts {
        let (mut parser, mut open) = (Parser::default(), None);
        let mut pieces = source.reader.pieces(part.stream);
        while let Some(piece) = source.ctx.or_cancel(pieces.next()).await? {
            let piece = piece?;
            source.ctx.progress.advance(piece.len() as u64);
            for step in parser.feed(&piece).map_err(bad)? {
                match step {
                    Step::Begin(oid) => {
                        let name = format!("blob_{oid}.dat");
                        toc += &format!("{oid} {name}\n");
                        let path = dir.join(format!("{name}{}", suffix(source.compression)));
                        open = Some(Packed::create(source, path).await?);
                    }
                    Step::Bytes(bytes) => {
                        if let Some(open) = &mut open {
                            open.write(bytes).await?;
                        }
                    }
                    Step::End => {
                        if let Some(open) = open.take() {
                            open.close().await?;
                        }
                    }
                }
            }
        }
        parser.finish().map_err(bad)?;
    }
    let name = match source.archive.entry(data.entry).map(|entry| file_of(source.archive, entry)) {
        Some(Place::File(name)) => name,
        _ => return Err(bad(crate::archive::BadArchive(format!("no entry {}", data.entry)))),
    };
    let path = dir.join(name);
    let mut file = create(&path).await?;
    put(&mut file, &path, toc.as_bytes()).await?;
    close(file, &path).await
}

/// A file whose content is compressed on its way.
struct Packed {
    file: File,
    path: PathBuf,
    packer: Option<Packer>,
}

impl Packed {
    async fn create(source: &Source<'_>, path: PathBuf) -> Result<Self, DumpError> {
        let packer = Some(Packer::new(source.compression, Wrapping::File)?);
        Ok(Self { file: create(&path).await?, path, packer })
    }

    async fn write(&mut self, plain: Vec<u8>) -> Result<(), DumpError> {
        let Some(packer) = self.packer.take() else { return Ok(()) };
        let (packer, ready) = packer.pack(plain).await?;
        self.packer = Some(packer);
        put(&mut self.file, &self.path, &ready).await
    }

    async fn close(mut self) -> Result<(), DumpError> {
        let end = self.packer.take().map(Packer::finish).transpose()?.unwrap_or_default();
        put(&mut self.file, &self.path, &end).await?;
        close(self.file, &self.path).await
    }
}

async fn create(path: &Path) -> Result<File, DumpError> {
    let mut options = tokio::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path).await;
    opened.map_err(|error| DumpError::file(path, "creating it", error))
}

async fn put(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), DumpError> {
    file.write_all(bytes).await.map_err(|error| DumpError::file(path, "writing", error))
}

async fn close(mut file: File, path: &Path) -> Result<(), DumpError> {
    let failed = |error| DumpError::file(path, "writing", error);
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)
}
