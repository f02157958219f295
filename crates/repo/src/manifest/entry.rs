//! The entries of file blocks and name blocks.

use super::{BLOCK_MAX, PATH_LEN_MAX};
use crate::chunk::{CHUNK_PLAIN_MAX, ChunkRef};
use crate::coding::{Cursor, Decoded, Malformed, put_bytes, put_path, put_varint};
use crate::map::MAP_MAX;
use pg_format::Lsn;

const FLAG_SETTLED: u8 = 1;
const FLAG_PAGES: u8 = 2;
const FLAG_WAL: u8 = 4;

/// Where a file's content lies. Packs are indexes into the manifest's own table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The file is empty or all zero.
    Zero,
    /// One base chunk holds the file.
    Chunk(ChunkRef),
    /// A file map tells.
    Map(ChunkRef),
}

/// A file as it is after replay to an LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Replay ended here.
    pub lsn: Lsn,
    /// Where its pages lie.
    pub place: Place,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileType {
    /// A directory.
    Directory,
    /// A symbolic link.
    Link {
        /// What it points to, as bytes of a path.
        target: Vec<u8>,
    },
    /// A file.
    File {
        /// Its length in bytes.
        len: u64,
        /// Where its content lies.
        place: Place,
        /// The same after replay, where it was made.
        settled: Option<Settled>,
        /// Whether it holds PostgreSQL pages (a relation's main fork or another).
        pages: bool,
        /// Whether it is a WAL segment that the backup carries.
        wal: bool,
    },
}

/// One file, directory or link of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Path in the backup, `data/...`, `config/...` or `wal/...`, as bytes.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Index into the owners of the facts.
    pub owner: u32,
    /// Modification time in seconds since 1970-01-01 UTC; 0 when earlier.
    pub mtime: u64,
    /// What it is.
    pub file_type: FileType,
}

/// A name that a number had when the backup was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameEntry {
    /// Database OID; 0 for a tablespace's own entry and for shared relations.
    pub database: u32,
    /// Tablespace OID.
    pub tablespace: u32,
    /// Relfilenode; 0 for a database's or a tablespace's own entry.
    pub relfilenode: u32,
    /// Relation OID; 0 likewise.
    pub oid: u32,
    /// `pg_class.relkind`; 0 likewise.
    pub kind: u8,
    /// Schema; empty likewise.
    pub schema: String,
    /// Name.
    pub name: String,
}

fn put_place(out: &mut Vec<u8>, place: &Place) {
    match place {
        Place::Zero => out.push(0),
        Place::Chunk(chunk) => {
            out.push(1);
            chunk.put(out);
        }
        Place::Map(chunk) => {
            out.push(2);
            chunk.put(out);
        }
    }
}

fn read_place(cursor: &mut Cursor<'_>, packs: usize) -> Decoded<Place> {
    match cursor.u8()? {
        0 => Ok(Place::Zero),
        1 => Ok(Place::Chunk(ChunkRef::read(cursor, packs, CHUNK_PLAIN_MAX)?)),
        2 => Ok(Place::Map(ChunkRef::read(cursor, packs, MAP_MAX)?)),
        other => Err(Malformed(format!("place of unknown kind {other}"))),
    }
}

impl FileEntry {
    /// Appends the entry; `previous` is the path before it in the same block.
    pub(super) fn put(&self, out: &mut Vec<u8>, previous: &[u8]) {
        put_path(out, previous, &self.path);
        let (kind, flags) = match &self.file_type {
            FileType::Directory => (1, 0),
            FileType::Link { .. } => (3, 0),
            FileType::File { settled, pages, wal, .. } => (
                2,
                u8::from(settled.is_some()) * FLAG_SETTLED + u8::from(*pages) * FLAG_PAGES + u8::from(*wal) * FLAG_WAL,
            ),
        };
        out.extend_from_slice(&[kind, flags]);
        put_varint(out, self.mode.into());
        put_varint(out, self.owner.into());
        put_varint(out, self.mtime);
        match &self.file_type {
            FileType::Directory => {}
            FileType::Link { target } => put_bytes(out, target),
            FileType::File { len, place, settled, .. } => {
                put_varint(out, *len);
                put_place(out, place);
                if let Some(settled) = settled {
                    out.extend_from_slice(&settled.lsn.0.to_le_bytes());
                    put_place(out, &settled.place);
                }
            }
        }
    }

    fn read(cursor: &mut Cursor<'_>, path: &mut Vec<u8>, packs: usize) -> Decoded<Self> {
        cursor.path(path)?;
        let (kind, flags) = (cursor.u8()?, cursor.u8()?);
        if flags & !(FLAG_SETTLED | FLAG_PAGES | FLAG_WAL) != 0 || (kind != 2 && flags != 0) {
            return Err(Malformed(format!("unknown flags {flags} at a file")));
        }
        let mode = cursor.bounded("mode", 0o7777)? as u32;
        let owner = cursor.bounded("owner", u32::MAX.into())? as u32;
        let mtime = cursor.varint()?;
        let file_type = match kind {
            1 => FileType::Directory,
            2 => FileType::File {
                len: cursor.varint()?,
                place: read_place(cursor, packs)?,
                settled: if flags & FLAG_SETTLED == 0 {
                    None
                } else {
                    Some(Settled { lsn: Lsn(cursor.u64()?), place: read_place(cursor, packs)? })
                },
                pages: flags & FLAG_PAGES != 0,
                wal: flags & FLAG_WAL != 0,
            },
            3 => FileType::Link { target: cursor.bytes(PATH_LEN_MAX)?.to_vec() },
            other => return Err(Malformed(format!("file of unknown type {other}"))),
        };
        Ok(Self { path: path.clone(), mode, owner, mtime, file_type })
    }

    /// Reads a whole file block.
    pub(super) fn read_block(bytes: &[u8], packs: usize) -> Decoded<Vec<Self>> {
        let mut cursor = Cursor::new(bytes);
        let mut path = Vec::new();
        let mut entries: Vec<Self> = Vec::new();
        while !cursor.is_empty() {
            let entry = Self::read(&mut cursor, &mut path, packs)?;
            if entries.last().is_some_and(|last| last.path >= entry.path) {
                return Err(Malformed("files out of order".into()));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl NameEntry {
    /// The order in which names are stored.
    pub fn key(&self) -> (u32, u32, u32) {
        (self.database, self.tablespace, self.relfilenode)
    }

    /// The key as the index holds it.
    pub(super) fn key_text(&self) -> String {
        format!("{}:{}:{}", self.database, self.tablespace, self.relfilenode)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for number in [self.database, self.tablespace, self.relfilenode, self.oid] {
            put_varint(out, number.into());
        }
        out.push(self.kind);
        put_bytes(out, self.schema.as_bytes());
        put_bytes(out, self.name.as_bytes());
    }

    fn read(cursor: &mut Cursor<'_>) -> Decoded<Self> {
        fn number(cursor: &mut Cursor<'_>) -> Decoded<u32> {
            Ok(cursor.bounded("OID", u32::MAX.into())? as u32)
        }
        fn text(cursor: &mut Cursor<'_>) -> Decoded<String> {
            let bytes = cursor.bytes(BLOCK_MAX)?;
            String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("name is not UTF-8".into()))
        }
        Ok(Self {
            database: number(cursor)?,
            tablespace: number(cursor)?,
            relfilenode: number(cursor)?,
            oid: number(cursor)?,
            kind: cursor.u8()?,
            schema: text(cursor)?,
            name: text(cursor)?,
        })
    }

    /// Reads a whole name block.
    pub(super) fn read_block(bytes: &[u8]) -> Decoded<Vec<Self>> {
        let mut cursor = Cursor::new(bytes);
        let mut entries = Vec::new();
        while !cursor.is_empty() {
            entries.push(Self::read(&mut cursor)?);
        }
        Ok(entries)
    }
}
