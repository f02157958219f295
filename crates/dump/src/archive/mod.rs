//! pg_dump's archives: header and table of contents, read and written.
//!
//! The facts come from PostgreSQL's `src/bin/pg_dump/pg_backup_archiver.c` (`ReadHead`, `ReadToc`, `WriteHead`, `WriteToc`,
//! `ReadInt`, `ReadStr`, `ReadOffset`), `pg_backup_custom.c` and `pg_backup_directory.c`, for the archive versions 1.12
//! (PostgreSQL 9.0) to 1.16 (17 and 18). What is read is written again byte for byte.

mod read;
mod write;

pub use read::Reader;
pub(crate) use write::put_int;
pub use write::{Place, write};

/// The versions that are read: 1.12 to 1.16.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u8> = 12..=16;

/// The form of an archive, by the number that its header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One file, data behind the table of contents.
    Custom = 1,
    /// A tar file, or a directory: `toc.dat` is the same in both.
    Tar = 3,
}

/// How the data of an archive are compressed (`pg_compress_algorithm` in `src/include/common/compression.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveCompression {
    /// Not at all.
    None,
    /// zlib, of this level.
    Gzip(i32),
    /// LZ4; archives of PostgreSQL 16 and later only, like the next.
    Lz4,
    /// zstd.
    Zstd(i32),
}

/// A string of an archive: bytes in the archive's encoding, or none.
pub type Text = Option<Vec<u8>>;

/// An archive's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Minor number of the archive's version; the major one is 1.
    pub minor: u8,
    /// Revision of the version.
    pub revision: u8,
    /// Bytes in an integer.
    pub int_size: u8,
    /// Bytes in a file offset.
    pub offset_size: u8,
    /// The form's number.
    pub form: u8,
    /// From 1.15 on the algorithm's number, before that the level.
    pub compression: i32,
    /// Seconds, minutes, hours, day, month, year, daylight saving: `struct tm` of the local time.
    pub created: [i32; 7],
    /// The database.
    pub database: Text,
    /// Version of the server.
    pub server_version: Text,
    /// Version of the pg_dump.
    pub tool_version: Text,
}

/// When an entry is restored (`teSection` in `pg_backup.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// With what it belongs to.
    None,
    /// Before the data.
    PreData,
    /// Data.
    Data,
    /// After the data.
    PostData,
}

/// An entry of the table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the archive.
    pub dump_id: i32,
    /// Whether it has data.
    pub has_data: bool,
    /// OID of the catalog that the object is in.
    pub catalog_oid: u32,
    /// OID of the object.
    pub oid: u32,
    /// The object's name.
    pub tag: Text,
    /// What it is: `TABLE`, `TABLE DATA`, …
    pub desc: Text,
    /// The section's number.
    pub section: i32,
    /// The statement that makes it.
    pub definition: Text,
    /// The statement that drops it.
    pub drop_statement: Text,
    /// `COPY … FROM stdin`.
    pub copy_statement: Text,
    /// Its schema.
    pub namespace: Text,
    /// Its tablespace.
    pub tablespace: Text,
    /// Its table access method; from 1.14 on.
    pub access_method: Text,
    /// Its `relkind`; from 1.16 on.
    pub relkind: i32,
    /// Its owner.
    pub owner: Text,
    /// `false`; once for tables with OIDs.
    pub with_oids: Text,
    /// Entries it depends on.
    pub dependencies: Vec<i32>,
}

impl Entry {
    /// What it is.
    pub fn kind(&self) -> &[u8] {
        self.desc.as_deref().unwrap_or_default()
    }

    /// Whether it is of this kind.
    pub fn is(&self, kind: &str) -> bool {
        self.kind() == kind.as_bytes()
    }

    /// When it is restored.
    pub fn section(&self) -> Section {
        match self.section {
            2 => Section::PreData,
            3 => Section::Data,
            4 => Section::PostData,
            _ => Section::None,
        }
    }

    /// Schema and name for people, such as `public.orders`.
    pub fn label(&self) -> String {
        let text = |text: &Text| String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
        match text(&self.namespace) {
            empty if empty.is_empty() => text(&self.tag),
            schema => format!("{schema}.{}", text(&self.tag)),
        }
    }
}

/// Header and table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The header.
    pub header: Header,
    /// The entries, in the order of the archive.
    pub entries: Vec<Entry>,
}

impl Archive {
    /// Reads an archive that is in memory whole; only header and table of contents.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadArchive> {
        let mut reader = Reader::default();
        match reader.feed(bytes)? {
            Some(archive) => Ok(archive),
            None => Err(BadArchive("it ends within its table of contents".into())),
        }
    }

    /// The first entry of a kind.
    pub fn of_kind(&self, kind: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.kind() == kind.as_bytes())
    }

    /// The entry with a number.
    pub fn entry(&self, dump_id: i32) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.dump_id == dump_id)
    }

    /// The encoding of its text and data, from its `ENCODING` entry: `SET client_encoding = 'UTF8';`
    pub fn encoding(&self) -> Option<String> {
        let definition = self.of_kind("ENCODING")?.definition.as_deref()?;
        let text = std::str::from_utf8(definition).ok()?;
        text.split('\'').nth(1).map(str::to_owned)
    }

    /// Version of the pg_dump that made it, as text.
    pub fn tool_version(&self) -> String {
        String::from_utf8_lossy(self.header.tool_version.as_deref().unwrap_or_default()).into_owned()
    }
}

/// Why bytes are no archive that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an archive of pg_dump that can be read: {0}")]
pub struct BadArchive(pub String);

#[cfg(test)]
mod tests;
