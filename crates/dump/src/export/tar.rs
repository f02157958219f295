//! The tar format: `toc.dat`, then the data in the order of the table of contents, uncompressed
//! (`src/bin/pg_dump/pg_backup_tar.c`). The `restore.sql` that pg_dump adds for people is left out; pg_restore does not read it.

use super::custom::END_OF_ROWS;
use super::directory::file_of;
use crate::archive::{Archive, ArchiveCompression, BadArchive, Form, Place, write};
use crate::large_objects::{Parser, Step};
use crate::{DumpError, StreamReader};
use engine::Context;
use futures::StreamExt;
use repo::dump::{DataKind, DumpedData, DumpedDatabase};
use std::collections::HashMap;
use tokio::io::{AsyncWrite, AsyncWriteExt};

const BLOCK: u64 = 512;
/// The most that twelve octal digits, less the last, can say (`print_tar_number` in `src/port/tar.c`).
const OCTAL_MAX: u64 = (1 << 33) - 1;

/// Writes the whole file.
pub(super) async fn write_to(
    ctx: &Context,
    out: &mut (impl AsyncWrite + Unpin),
    reader: &StreamReader,
    archive: &Archive,
    database: &DumpedDatabase,
) -> Result<(), DumpError> {
    let mut tar = Tar { ctx, out, reader, left: 0 };
    let toc = write(archive, Form::Tar, ArchiveCompression::None, |entry| file_of(archive, entry));
    tar.begin("toc.dat", toc.len() as u64).await?;
    tar.put(&toc).await?;
    tar.end(toc.len() as u64).await?;
    let data: HashMap<i32, &DumpedData> = database.data.iter().map(|data| (data.entry, data)).collect();
    for entry in archive.entries.iter().filter(|entry| entry.has_data) {
        let (Some(data), Place::File(name)) = (data.get(&entry.dump_id), file_of(archive, entry)) else { continue };
        match data.kind {
            DataKind::Table => tar.table(data, &name).await?,
            DataKind::TableBinary => return Err(super::not_text(data)),
            DataKind::LargeObjects => tar.large_objects(data, &name).await?,
        }
    }
    tar.finish().await
}

struct Tar<'a, W> {
    ctx: &'a Context,
    out: &'a mut W,
    reader: &'a StreamReader,
    /// What the member must still get.
    left: u64,
}

fn bad(error: BadArchive) -> DumpError {
    DumpError::Failed { reason: error.to_string(), hint: None }
}

impl<W: AsyncWrite + Unpin> Tar<'_, W> {
    async fn table(&mut self, data: &DumpedData, name: &str) -> Result<(), DumpError> {
        let len = data.bytes + END_OF_ROWS.len() as u64;
        self.begin(name, len).await?;
        for part in &data.parts {
            let mut pieces = self.reader.pieces(part.stream);
            while let Some(piece) = self.ctx.or_cancel(pieces.next()).await? {
                let piece = piece?;
                self.ctx.progress.advance(piece.len() as u64);
                self.put(&piece).await?;
            }
        }
        self.put(END_OF_ROWS).await?;
        self.end(len).await
    }

    /// First how long each is, for its header stands before it; then all of them, and last the list.
    async fn large_objects(&mut self, data: &DumpedData, name: &str) -> Result<(), DumpError> {
        let mut list = String::new();
        for part in &data.parts {
            let mut sizes: Vec<(u32, u64)> = Vec::new();
            let mut parser = Parser::default();
            let mut pieces = self.reader.pieces(part.stream);
            while let Some(piece) = self.ctx.or_cancel(pieces.next()).await? {
                for step in parser.feed(&piece?).map_err(bad)? {
                    match step {
                        Step::Begin(oid) => sizes.push((oid, 0)),
                        Step::Bytes(bytes) => {
                            if let Some(last) = sizes.last_mut() {
                                last.1 += bytes.len() as u64;
                            }
                        }
                        Step::End => {}
                    }
                }
            }
            parser.finish().map_err(bad)?;
            let (mut parser, mut next, mut now) = (Parser::default(), sizes.into_iter(), 0);
            let mut pieces = self.reader.pieces(part.stream);
            while let Some(piece) = self.ctx.or_cancel(pieces.next()).await? {
                let piece = piece?;
                self.ctx.progress.advance(piece.len() as u64);
                for step in parser.feed(&piece).map_err(bad)? {
                    match step {
                        Step::Begin(oid) => {
                            now = next.next().map_or(0, |(_, size)| size);
                            list += &format!("{oid} blob_{oid}.dat\n");
                            self.begin(&format!("blob_{oid}.dat"), now).await?;
                        }
                        Step::Bytes(bytes) => self.put(&bytes).await?,
                        Step::End => self.end(now).await?,
                    }
                }
            }
        }
        self.begin(name, list.len() as u64).await?;
        self.put(list.as_bytes()).await?;
        self.end(list.len() as u64).await
    }

    async fn begin(&mut self, name: &str, len: u64) -> Result<(), DumpError> {
        self.left = len;
        self.write(&header(name, len)).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(length_differs)?;
        self.write(bytes).await
    }

    async fn end(&mut self, len: u64) -> Result<(), DumpError> {
        if self.left != 0 {
            return Err(length_differs());
        }
        self.write(&vec![0; (len.next_multiple_of(BLOCK) - len) as usize]).await
    }

    async fn finish(&mut self) -> Result<(), DumpError> {
        self.write(&[0; 2 * BLOCK as usize]).await?;
        self.out.flush().await.map_err(super::custom::broken)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        self.out.write_all(bytes).await.map_err(super::custom::broken)
    }
}

fn length_differs() -> DumpError {
    DumpError::Failed { reason: "a table's data are not as long as the dump's manifest says".into(), hint: None }
}

/// A ustar header, as `tarCreateHeader` in PostgreSQL's `src/port/tar.c` makes it.
fn header(name: &str, len: u64) -> [u8; BLOCK as usize] {
    let mut header = [0; BLOCK as usize];
    let mut text = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    text(0, name.as_bytes());
    text(100, b"0000600\0");
    text(108, b"0000000\0");
    text(116, b"0000000\0");
    if len <= OCTAL_MAX {
        text(124, format!("{len:011o} ").as_bytes());
    } else {
        let mut number = [0; 12];
        number[0] = 0x80;
        number[4..].copy_from_slice(&len.to_be_bytes());
        text(124, &number);
    }
    text(136, b"00000000000 ");
    text(148, b"        ");
    text(156, b"0");
    text(257, b"ustar\x0000");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
