//! Payloads made of sections with a table at their end (docs/format.md section 5).

use crate::block::{BlockDecoder, BlockEncoder, Compression};
use crate::coding::{Cursor, Malformed};
use crate::seal::crc32c;
use crate::{ObjectReader, RepoError};
use bytes::Bytes;
use store::ObjectPath;

const TRAILER_LEN: u64 = 16;
const ENTRY_LEN: u64 = 26;
const TRAILER_MAGIC: &[u8; 8] = b"PGKSECT1";
const SECTIONS_MAX: u32 = 64;
/// Section flag: a reader that does not know the section must refuse the object.
pub(crate) const MUST_UNDERSTAND: u8 = 1;

/// Where a section lies in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) offset: u64,
    pub(crate) stored_len: u64,
    pub(crate) plain_len: u64,
}

/// The sections of one payload, gathered while it is written.
#[derive(Debug, Default)]
pub(crate) struct SectionTable {
    sections: Vec<Section>,
}

impl SectionTable {
    /// Notes a section of raw bytes that was or will be written at `offset`.
    pub(crate) fn add_raw(&mut self, kind: u8, flags: u8, offset: u64, len: u64) {
        self.sections.push(Section { kind, flags, offset, stored_len: len, plain_len: len });
    }

    /// Compresses a section into a block, notes it for `offset`, and gives the block to be written there.
    pub(crate) fn add_block(&mut self, kind: u8, flags: u8, offset: u64, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        BlockEncoder::new(Compression::Zstd(3)).encode(plain, &mut block);
        self.sections.push(Section {
            kind,
            flags,
            offset,
            stored_len: block.len() as u64,
            plain_len: plain.len() as u64,
        });
        block
    }

    /// The table and the trailer, to be written last.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity((self.sections.len() as u64 * ENTRY_LEN + TRAILER_LEN) as usize);
        for section in &self.sections {
            out.extend_from_slice(&[section.kind, section.flags]);
            for number in [section.offset, section.stored_len, section.plain_len] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        let crc = crc32c(&out);
        out.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(TRAILER_MAGIC);
        out
    }
}

/// The sections of a payload that is being read.
#[derive(Debug, Clone)]
pub(crate) struct Sections {
    sections: Vec<Section>,
}

impl Sections {
    /// Reads the table of an object; refuses must-understand sections whose kind is not in `known`.
    pub(crate) async fn read(object: &ObjectReader, known: &[u8]) -> Result<Self, RepoError> {
        let len = object.payload_len();
        let damaged = |Malformed(reason)| RepoError::damaged(object.name(), reason);
        if len < TRAILER_LEN {
            return Err(damaged(Malformed("too short for a section table".into())));
        }
        let trailer = object.read(len - TRAILER_LEN..len).await?;
        let (count, crc) = Self::parse_trailer(&trailer).map_err(damaged)?;
        let table_len = u64::from(count) * ENTRY_LEN;
        let table_start = (len - TRAILER_LEN)
            .checked_sub(table_len)
            .ok_or_else(|| damaged(Malformed("section table longer than the payload".into())))?;
        let table = object.read(table_start..table_start + table_len).await?;
        let sections = Self::parse_table(&table, crc, table_start).map_err(damaged)?;
        sections.understood(object.name(), known)
    }

    /// The same for a payload that is in memory.
    pub(crate) fn parse(name: &ObjectPath, payload: &[u8], known: &[u8]) -> Result<Self, RepoError> {
        let damaged = |Malformed(reason)| RepoError::damaged(name, reason);
        let cut = || damaged(Malformed("too short for its section table".into()));
        let (rest, trailer) =
            payload.split_at_checked(payload.len().wrapping_sub(TRAILER_LEN as usize)).ok_or_else(cut)?;
        let (count, crc) = Self::parse_trailer(trailer).map_err(damaged)?;
        let start = rest.len().checked_sub((u64::from(count) * ENTRY_LEN) as usize).ok_or_else(cut)?;
        Self::parse_table(&rest[start..], crc, start as u64).map_err(damaged)?.understood(name, known)
    }

    fn understood(self, name: &ObjectPath, known: &[u8]) -> Result<Self, RepoError> {
        let unknown = |section: &&Section| section.flags & MUST_UNDERSTAND != 0 && !known.contains(&section.kind);
        match self.sections.iter().find(unknown) {
            None => Ok(self),
            Some(section) => Err(RepoError::TooNew {
                path: name.clone(),
                what: "section",
                found: section.kind.into(),
                supported: known.iter().copied().max().unwrap_or(0).into(),
            }),
        }
    }

    fn parse_trailer(trailer: &[u8]) -> Result<(u32, u32), Malformed> {
        let mut cursor = Cursor::new(trailer);
        let (count, crc) = (cursor.u32()?, cursor.u32()?);
        if &cursor.array::<8>()? != TRAILER_MAGIC {
            return Err(Malformed("no section table at the end".into()));
        }
        if count > SECTIONS_MAX {
            return Err(Malformed(format!("{count} sections")));
        }
        Ok((count, crc))
    }

    fn parse_table(table: &[u8], crc: u32, end: u64) -> Result<Self, Malformed> {
        if crc32c(table) != crc {
            return Err(Malformed("checksum of the section table does not match".into()));
        }
        let mut cursor = Cursor::new(table);
        let mut sections = Vec::new();
        while !cursor.is_empty() {
            let section = Section {
                kind: cursor.u8()?,
                flags: cursor.u8()?,
                offset: cursor.u64()?,
                stored_len: cursor.u64()?,
                plain_len: cursor.u64()?,
            };
            if section.offset.checked_add(section.stored_len).is_none_or(|section_end| section_end > end) {
                return Err(Malformed(format!("section {} lies outside the payload", section.kind)));
            }
            sections.push(section);
        }
        Ok(Self { sections })
    }

    /// The section of this kind.
    pub(crate) fn get(&self, kind: u8) -> Option<Section> {
        self.sections.iter().find(|section| section.kind == kind).copied()
    }

    /// Reads a section that is a block; at most `max` plain bytes.
    pub(crate) async fn read_block(
        &self,
        object: &ObjectReader,
        kind: u8,
        what: &str,
        max: u64,
    ) -> Result<Bytes, RepoError> {
        let damaged = |reason: String| RepoError::damaged(object.name(), reason);
        let section = self.get(kind).ok_or_else(|| damaged(format!("has no {what}")))?;
        if section.plain_len > max || section.stored_len > max + 1 {
            return Err(damaged(format!("{what} of {} bytes, at most {max} are allowed", section.plain_len)));
        }
        let stored = object.read(section.offset..section.offset + section.stored_len).await?;
        let plain = BlockDecoder::new()
            .decode(&stored, section.plain_len as usize)
            .map_err(|Malformed(reason)| damaged(format!("{what}: {reason}")))?;
        Ok(plain.into())
    }
}
