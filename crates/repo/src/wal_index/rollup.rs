//! Index objects: of one segment, made later, or of many that follow each other.

use super::decode::decode_part;
use super::{IndexPart, encode};
use crate::coding::{Cursor, Malformed, put_bytes};
use crate::object::put_sealed;
use crate::seal::{Kind, Sealer};
use crate::section::{MUST_UNDERSTAND, SectionTable, Sections};
use crate::wal::{Fragments, WalFacts};
use crate::{ClusterName, Keyring, ObjectReader, RepoError};
use bytes::Bytes;
use pg_format::{SegmentName, SystemId, Timeline};
use pg_wal::WalIndex;
use std::sync::Arc;
use store::{Created, ObjectPath, Store};

const SECTION_FACTS: u8 = 3;
const SECTION_FRAGMENTS: u8 = 4;
const SECTION_INDEX: u8 = 5;
const KNOWN: [u8; 3] = [SECTION_FACTS, SECTION_FRAGMENTS, SECTION_INDEX];
const FACTS_MAX: u64 = 64 << 20;
const FRAGMENTS_MAX: u64 = (2 << 30) + 64;
const INDEX_MAX: u64 = 1 << 30;
/// What is read of an object at first: most are not larger.
const TAIL_LEN: u64 = 1 << 20;
/// An index object covers so many bytes of WAL at most, and [`SEGMENTS_MAX`] segments.
const WAL_BYTES_MAX: u64 = 256 << 20;
const SEGMENTS_MAX: u64 = 16;

/// How many segments a rolled-up index covers.
pub fn segments_per_rollup(segment_size: u64) -> u64 {
    (WAL_BYTES_MAX / segment_size.max(1)).clamp(1, SEGMENTS_MAX)
}

impl ClusterName {
    /// `clusters/NAME/wal-index/SYSID/TLI`.
    pub fn wal_index_prefix(&self, system: SystemId, timeline: Timeline) -> ObjectPath {
        let text = format!("clusters/{self}/wal-index/{system}/{:08X}", timeline.0);
        ObjectPath::new(text).expect("made of checked parts")
    }

    /// The index object of `count` segments from `first` on.
    pub fn wal_index(&self, system: SystemId, first: SegmentName, count: u64) -> ObjectPath {
        let prefix = self.wal_index_prefix(system, first.timeline);
        let name = if count == 1 { first.to_string() } else { format!("{first}.{count}") };
        prefix.join(&name).expect("made of checked parts")
    }
}

/// Makes an index object.
///
/// # Errors
/// When the index is not as it should be, or sealing fails.
pub fn encode_index_object(
    keys: &Keyring,
    name: &ObjectPath,
    facts: &[WalFacts],
    fragments: &Fragments,
    index: &WalIndex,
) -> Result<Bytes, RepoError> {
    let bad = |error: &dyn std::fmt::Display| RepoError::damaged(name, error.to_string());
    let mut sealer = Sealer::new(keys, Kind::WalIndex, name)?;
    let mut table = SectionTable::default();
    let section = encode(index).map_err(|error| bad(&error))?;
    table.add_raw(SECTION_INDEX, MUST_UNDERSTAND, 0, section.len() as u64);
    sealer.push(&section)?;
    let json = serde_json::to_vec(facts).map_err(|error| bad(&error))?;
    let mut pieces = Vec::new();
    put_bytes(&mut pieces, &fragments.head);
    put_bytes(&mut pieces, &fragments.tail);
    for (kind, plain) in [(SECTION_FRAGMENTS, pieces), (SECTION_FACTS, json)] {
        let block = table.add_block(kind, MUST_UNDERSTAND, sealer.payload_len(), &plain);
        sealer.push(&block)?;
    }
    sealer.push(&table.finish())?;
    sealer.finish()
}

/// Writes an index object that [`encode_index_object`] made, if none of that name exists.
///
/// # Errors
/// When the store does not confirm it.
pub async fn put_index_object(store: &dyn Store, name: &ObjectPath, object: Bytes) -> Result<Created, RepoError> {
    put_sealed(store, name, object).await
}

/// An index object in the repository.
pub struct IndexObject {
    object: ObjectReader,
    sections: Sections,
}

impl IndexObject {
    /// Opens it by its end.
    ///
    /// # Errors
    /// When it is not there, damaged, or the store cannot be asked.
    pub async fn open(store: Arc<dyn Store>, keys: &Keyring, name: ObjectPath) -> Result<Self, RepoError> {
        let object = ObjectReader::open(store, keys, Kind::WalIndex, name, TAIL_LEN).await?;
        let sections = Sections::read(&object, &KNOWN).await?;
        Ok(Self { object, sections })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.object.size()
    }

    /// The facts of its segments, in order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn facts(&self) -> Result<Vec<WalFacts>, RepoError> {
        let json = self.sections.read_block(&self.object, SECTION_FACTS, "facts", FACTS_MAX).await?;
        serde_json::from_slice(&json).map_err(|e| RepoError::damaged(self.object.name(), format!("facts: {e}")))
    }

    /// The fragments at the beginning of the first and at the end of the last segment.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn fragments(&self) -> Result<Fragments, RepoError> {
        let plain = self.sections.read_block(&self.object, SECTION_FRAGMENTS, "fragments", FRAGMENTS_MAX).await?;
        read_fragments(&plain)
            .map_err(|Malformed(reason)| RepoError::damaged(self.object.name(), format!("fragments: {reason}")))
    }

    /// The index.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn index(&self, part: IndexPart) -> Result<WalIndex, RepoError> {
        read_index(&self.object, &self.sections, SECTION_INDEX, part).await
    }
}

pub(crate) fn read_fragments(plain: &[u8]) -> Result<Fragments, Malformed> {
    let mut cursor = Cursor::new(plain);
    let head = cursor.bytes(1 << 30)?.to_vec();
    let tail = cursor.bytes(1 << 30)?.to_vec();
    cursor.finish()?;
    Ok(Fragments { head, tail })
}

/// Reads the section of an index.
pub(crate) async fn read_index(
    object: &ObjectReader,
    sections: &Sections,
    kind: u8,
    part: IndexPart,
) -> Result<WalIndex, RepoError> {
    let damaged = |reason: String| RepoError::damaged(object.name(), reason);
    let section = sections.get(kind).ok_or_else(|| damaged("has no index".into()))?;
    if section.stored_len > INDEX_MAX || section.stored_len != section.plain_len {
        return Err(damaged(format!("an index of {} bytes", section.stored_len)));
    }
    let bytes = object.read(section.offset..section.offset + section.stored_len).await?;
    decode_part(&bytes, part).map_err(|Malformed(reason)| damaged(format!("index: {reason}")))
}
