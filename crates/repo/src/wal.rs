//! WAL segments and history files as objects (docs/format.md section 10).

use crate::block::{BlockDecoder, BlockEncoder, Compression};
use crate::coding::{Cursor, Decoded, Malformed, from_hex, put_bytes, put_varint, to_hex};
use crate::object::{SMALL_OBJECT_MAX, get_whole, put_whole};
use crate::seal::{Kind, Sealer, open_whole};
use crate::section::{MUST_UNDERSTAND, SectionTable, Sections};
use crate::wal_index::{IndexPart, read_fragments, read_index};
use crate::{Keyring, ObjectReader, RepoError};
use bytes::Bytes;
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline, TimestampTz};
use pg_wal::WalIndex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Created, ObjectPath, Store};

const SECTION_DATA: u8 = 1;
const SECTION_LAYOUT: u8 = 2;
const SECTION_FACTS: u8 = 3;
const SECTION_FRAGMENTS: u8 = 4;
const SECTION_INDEX: u8 = 5;
const KNOWN: [u8; 5] = [SECTION_DATA, SECTION_LAYOUT, SECTION_FACTS, SECTION_FRAGMENTS, SECTION_INDEX];
/// Plain bytes of a segment that are compressed together.
const BLOCK_LEN: usize = 4 << 20;
const SEGMENT_MAX: u64 = 1 << 30;
const LAYOUT_MAX: u64 = 1 << 20;
const FACTS_MAX: u64 = 16 << 20;
const FRAGMENTS_MAX: u64 = 2 * SEGMENT_MAX + 64;
/// What is read to know a segment's facts: they lie at its end.
const TAIL_LEN: u64 = 48 << 10;
/// As much, to know its index too: most indexes lie in it, so that it costs no request of its own.
const INDEX_TAIL_LEN: u64 = 256 << 10;

/// What is known of a segment without reading its records again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalFacts {
    /// The cluster's system identifier.
    pub system_id: SystemId,
    /// The timeline in the segment's name.
    pub timeline: Timeline,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// `XLOG_PAGE_MAGIC` of its first page.
    pub wal_page_magic: u16,
    /// Where it begins.
    pub first_lsn: Lsn,
    /// End of the last whole record.
    pub last_lsn: Lsn,
    /// Where the first record begins that begins here.
    pub first_record_lsn: Option<Lsn>,
    /// Whole records that begin here.
    pub records: u64,
    /// Commits among them.
    pub commits: u64,
    /// Aborts among them.
    pub aborts: u64,
    /// The earliest commit.
    pub earliest_commit: Option<Timestamp>,
    /// The latest commit.
    pub latest_commit: Option<Timestamp>,
    /// The earliest abort; recovery to a time stops at these too.
    pub earliest_abort: Option<Timestamp>,
    /// The latest abort.
    pub latest_abort: Option<Timestamp>,
    /// Restore points.
    pub restore_points: Vec<RestorePoint>,
    /// Checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Whether it ends with a switch to the next segment.
    pub switched: bool,
    /// Bytes of the record that was begun in an earlier segment.
    pub head_len: u64,
    /// Whether that record ends here.
    pub head_whole: bool,
    /// Bytes of the record that ends in a later segment.
    pub tail_len: u64,
    /// The whole length of that record.
    pub tail_total: u64,
    /// From where on it could not be read.
    pub unreadable: Option<Unreadable>,
    /// BLAKE3 of the plain segment, in hexadecimal.
    pub plain_hash: String,
}

/// A named restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end_lsn: Lsn,
    /// When it was made.
    pub time: Timestamp,
}

/// A checkpoint record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where replay from it begins.
    pub redo: Lsn,
}

/// From where on a segment could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreadable {
    /// The first place.
    pub lsn: Lsn,
    /// Why.
    pub reason: String,
}

/// PostgreSQL's time as a timestamp; times that jiff cannot hold become the nearest it can.
pub fn timestamp(time: TimestampTz) -> Timestamp {
    let micros = time.to_unix_micros().unwrap_or(i64::MAX);
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

impl WalFacts {
    /// From what a scan found. `timeline` is the one in the segment's name.
    pub fn of(scan: &pg_wal::SegmentFacts, timeline: Timeline, magic: u16, plain: &[u8]) -> Self {
        let times = |range: Option<pg_wal::facts::TimeRange>| {
            (range.map(|r| timestamp(r.earliest)), range.map(|r| timestamp(r.latest)))
        };
        let (earliest_commit, latest_commit) = times(scan.commit_times);
        let (earliest_abort, latest_abort) = times(scan.abort_times);
        Self {
            system_id: scan.info.system_id,
            timeline,
            segment_size: scan.info.segment_size.into(),
            wal_page_magic: magic,
            first_lsn: scan.info.start,
            last_lsn: scan.last_lsn,
            first_record_lsn: scan.first_record_lsn,
            records: scan.records,
            commits: scan.commits,
            aborts: scan.aborts,
            earliest_commit,
            latest_commit,
            earliest_abort,
            latest_abort,
            restore_points: scan
                .restore_points
                .iter()
                .map(|point| RestorePoint {
                    name: String::from_utf8_lossy(&point.name).into_owned(),
                    lsn: point.lsn,
                    end_lsn: point.end_lsn,
                    time: timestamp(point.time),
                })
                .collect(),
            checkpoints: scan.checkpoints.iter().map(|c| Checkpoint { lsn: c.lsn, redo: c.redo }).collect(),
            switched: scan.switched,
            head_len: scan.head.as_ref().map_or(0, |head| head.bytes.len() as u64),
            head_whole: scan.head.as_ref().is_some_and(|head| head.state == pg_wal::HeadState::Complete),
            tail_len: scan.tail.as_ref().map_or(0, |tail| tail.bytes.len() as u64),
            tail_total: scan.tail.as_ref().map_or(0, |tail| tail.total_len.into()),
            unreadable: scan.unreadable.as_ref().map(|cut| Unreadable { lsn: cut.lsn, reason: cut.reason.to_string() }),
            plain_hash: to_hex(blake3::hash(plain).as_bytes()),
        }
    }

    /// The earliest end of a transaction.
    pub fn earliest_end(&self) -> Option<Timestamp> {
        [self.earliest_commit, self.earliest_abort].into_iter().flatten().min()
    }

    /// The latest end of a transaction: recovery to a later time needs a later segment.
    pub fn latest_end(&self) -> Option<Timestamp> {
        [self.latest_commit, self.latest_abort].into_iter().flatten().max()
    }
}

/// BLAKE3 of a plain segment, as [`WalFacts::plain_hash`] has it.
pub fn plain_hash(plain: &[u8]) -> String {
    to_hex(blake3::hash(plain).as_bytes())
}

/// The fragments of records that cross a segment's borders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fragments {
    /// Of the record begun before.
    pub head: Vec<u8>,
    /// Of the record that ends later.
    pub tail: Vec<u8>,
}

impl Fragments {
    /// Takes those that a scan found.
    pub fn take(scan: &mut pg_wal::SegmentFacts) -> Self {
        Self {
            head: scan.head.take().map(|head| head.bytes).unwrap_or_default(),
            tail: scan.tail.take().map(|tail| tail.bytes).unwrap_or_default(),
        }
    }
}

/// Makes WAL objects. Keeps its working memory; one for each worker.
pub struct WalEncoder {
    block: BlockEncoder,
    buffer: Vec<u8>,
}

impl WalEncoder {
    /// An encoder for one kind of compression.
    pub fn new(compression: Compression) -> Self {
        Self { block: BlockEncoder::new(compression), buffer: Vec::new() }
    }

    /// A whole object for the segment `plain`, whose hash is in its facts, without an index.
    pub fn encode(
        &mut self,
        keys: &Keyring,
        name: &ObjectPath,
        plain: &[u8],
        facts: &WalFacts,
        fragments: &Fragments,
    ) -> Result<Bytes, RepoError> {
        self.encode_indexed(keys, name, plain, facts, fragments, None)
    }

    /// As [`encode`](Self::encode), with the bytes of an index that [`wal_index::encode`](crate::wal_index::encode) made.
    pub fn encode_indexed(
        &mut self,
        keys: &Keyring,
        name: &ObjectPath,
        plain: &[u8],
        facts: &WalFacts,
        fragments: &Fragments,
        index: Option<&[u8]>,
    ) -> Result<Bytes, RepoError> {
        let mut sealer = Sealer::new(keys, Kind::Wal, name)?;
        let hash = from_hex::<32>(&facts.plain_hash)
            .map_err(|Malformed(reason)| RepoError::damaged(name, format!("plain hash in the facts: {reason}")))?;
        // WAL of a busy server compresses to between a half and a tenth.
        sealer.reserve(plain.len() / 2);
        let mut lens = Vec::new();
        for block in plain.chunks(BLOCK_LEN) {
            self.buffer.clear();
            lens.push(self.block.encode(block, &mut self.buffer) as u64);
            sealer.push(&self.buffer)?;
        }
        let mut layout = Vec::new();
        put_varint(&mut layout, plain.len() as u64);
        put_varint(&mut layout, BLOCK_LEN as u64);
        put_varint(&mut layout, lens.len() as u64);
        for len in &lens {
            put_varint(&mut layout, *len);
        }
        layout.extend_from_slice(&hash);
        let mut pieces = Vec::new();
        put_bytes(&mut pieces, &fragments.head);
        put_bytes(&mut pieces, &fragments.tail);
        let json = serde_json::to_vec(facts).map_err(|e| RepoError::damaged(name, format!("facts: {e}")))?;

        let mut table = SectionTable::default();
        table.add_raw(SECTION_DATA, 0, 0, sealer.payload_len());
        if let Some(index) = index {
            table.add_raw(SECTION_INDEX, 0, sealer.payload_len(), index.len() as u64);
            sealer.push(index)?;
        }
        let sections =
            [(SECTION_FRAGMENTS, 0, pieces), (SECTION_LAYOUT, MUST_UNDERSTAND, layout), (SECTION_FACTS, 0, json)];
        for (kind, flags, plain) in sections {
            let block = table.add_block(kind, flags, sealer.payload_len(), &plain);
            sealer.push(&block)?;
        }
        sealer.push(&table.finish())?;
        sealer.finish()
    }
}

struct Layout {
    plain_len: u64,
    block_len: u64,
    stored: Vec<u64>,
    hash: [u8; 32],
}

fn parse_layout(plain: &[u8]) -> Decoded<Layout> {
    let mut cursor = Cursor::new(plain);
    let plain_len = cursor.bounded("segment length", SEGMENT_MAX)?;
    let block_len = cursor.bounded("block length", SEGMENT_MAX)?.max(1);
    let count = cursor.bounded("number of blocks", plain_len.div_ceil(block_len))?;
    let stored = (0..count).map(|_| cursor.bounded("stored length", block_len + 1)).collect::<Decoded<_>>()?;
    let layout = Layout { plain_len, block_len, stored, hash: cursor.array()? };
    cursor.finish()?;
    if count != plain_len.div_ceil(block_len) {
        return Err(Malformed("blocks are missing".into()));
    }
    Ok(layout)
}

/// A WAL segment in the repository.
pub struct WalObject {
    object: ObjectReader,
    sections: Sections,
}

impl WalObject {
    /// Opens a segment by its end, where its facts are.
    pub async fn open(store: Arc<dyn Store>, keys: &Keyring, name: ObjectPath) -> Result<Self, RepoError> {
        Self::open_tail(store, keys, name, TAIL_LEN).await
    }

    /// As [`open`](Self::open), for who wants the index too: more is read at once.
    pub async fn open_for_index(store: Arc<dyn Store>, keys: &Keyring, name: ObjectPath) -> Result<Self, RepoError> {
        Self::open_tail(store, keys, name, INDEX_TAIL_LEN).await
    }

    async fn open_tail(
        store: Arc<dyn Store>,
        keys: &Keyring,
        name: ObjectPath,
        tail_len: u64,
    ) -> Result<Self, RepoError> {
        let object = ObjectReader::open(store, keys, Kind::Wal, name, tail_len).await?;
        let sections = Sections::read(&object, &KNOWN).await?;
        Ok(Self { object, sections })
    }

    /// Size of the object in bytes.
    pub fn size(&self) -> u64 {
        self.object.size()
    }

    /// What is known of the segment.
    pub async fn facts(&self) -> Result<WalFacts, RepoError> {
        let json = self.sections.read_block(&self.object, SECTION_FACTS, "facts", FACTS_MAX).await?;
        serde_json::from_slice(&json).map_err(|e| RepoError::damaged(self.object.name(), format!("facts: {e}")))
    }

    /// The fragments at its borders.
    pub async fn fragments(&self) -> Result<Fragments, RepoError> {
        let plain = self.sections.read_block(&self.object, SECTION_FRAGMENTS, "fragments", FRAGMENTS_MAX).await?;
        read_fragments(&plain)
            .map_err(|Malformed(reason)| RepoError::damaged(self.object.name(), format!("fragments: {reason}")))
    }

    /// Whether it has an index.
    pub fn has_index(&self) -> bool {
        self.sections.get(SECTION_INDEX).is_some()
    }

    /// Its index; `None` when it was archived without one.
    pub async fn index(&self, part: IndexPart) -> Result<Option<WalIndex>, RepoError> {
        if !self.has_index() {
            return Ok(None);
        }
        read_index(&self.object, &self.sections, SECTION_INDEX, part).await.map(Some)
    }
}

/// Reads a whole segment and checks it against its hash.
pub async fn read_segment(store: Arc<dyn Store>, keys: &Keyring, name: &ObjectPath) -> Result<Vec<u8>, RepoError> {
    // A segment that does not compress has a little more bytes than it has plain.
    let object = store.get(name, SEGMENT_MAX + (64 << 20)).await?;
    decode_segment(keys, name, &object)
}

/// Decodes a segment's object that is in memory.
pub fn decode_segment(keys: &Keyring, name: &ObjectPath, object: &[u8]) -> Result<Vec<u8>, RepoError> {
    let payload = open_whole(keys, Kind::Wal, name, object)?;
    let damaged = |Malformed(reason)| RepoError::damaged(name, reason);
    let sections = Sections::parse(name, &payload, &KNOWN)?;
    let missing = |what: &str| RepoError::damaged(name, format!("has no {what}"));
    let layout = sections.get(SECTION_LAYOUT).ok_or_else(|| missing("layout"))?;
    let data = sections.get(SECTION_DATA).ok_or_else(|| missing("data"))?;
    let slice = |offset: u64, len: u64| &payload[offset as usize..(offset + len) as usize];
    let mut decoder = BlockDecoder::new();
    if layout.plain_len > LAYOUT_MAX {
        return Err(damaged(Malformed("layout too long".into())));
    }
    let plain_layout =
        decoder.decode(slice(layout.offset, layout.stored_len), layout.plain_len as usize).map_err(damaged)?;
    let layout = parse_layout(&plain_layout).map_err(damaged)?;
    if layout.stored.iter().sum::<u64>() != data.stored_len {
        return Err(damaged(Malformed("layout does not fit the data".into())));
    }
    let mut plain = vec![0; layout.plain_len as usize];
    let mut offset = data.offset;
    for (out, &stored_len) in plain.chunks_mut(layout.block_len as usize).zip(&layout.stored) {
        decoder.decode_into(slice(offset, stored_len), out).map_err(damaged)?;
        offset += stored_len;
    }
    if *blake3::hash(&plain).as_bytes() != layout.hash {
        return Err(damaged(Malformed("content does not have the hash that was noted when it was written".into())));
    }
    Ok(plain)
}

/// Writes a timeline history or backup history file, if none of that name exists. The same content twice is
/// [`Created::Exists`]; other content is an error.
pub async fn put_wal_file(
    store: &dyn Store,
    keys: &Keyring,
    name: &ObjectPath,
    content: &[u8],
) -> Result<Created, RepoError> {
    let created = put_whole(store, keys, Kind::WalFile, name, content).await?;
    if created == Created::Exists && read_wal_file(store, keys, name).await? != content {
        return Err(RepoError::OtherContent { path: name.clone() });
    }
    Ok(created)
}

/// Reads a timeline history or backup history file.
pub async fn read_wal_file(store: &dyn Store, keys: &Keyring, name: &ObjectPath) -> Result<Bytes, RepoError> {
    get_whole(store, keys, Kind::WalFile, name, SMALL_OBJECT_MAX).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::MemoryStore;

    fn facts(plain: &[u8]) -> WalFacts {
        WalFacts {
            system_id: SystemId(7_300_000_000_000_000_000),
            timeline: Timeline(1),
            segment_size: 16 << 20,
            wal_page_magic: 0xD110,
            first_lsn: Lsn(0x300_0000),
            last_lsn: Lsn(0x3FF_FFF0),
            first_record_lsn: Some(Lsn(0x300_0028)),
            records: 3,
            commits: 1,
            aborts: 0,
            earliest_commit: Some("2026-11-20T20:00:00.000001Z".parse().unwrap()),
            latest_commit: Some("2026-11-20T20:00:00.000001Z".parse().unwrap()),
            earliest_abort: None,
            latest_abort: None,
            restore_points: vec![RestorePoint {
                name: "before".into(),
                lsn: Lsn(1),
                end_lsn: Lsn(2),
                time: Timestamp::UNIX_EPOCH,
            }],
            checkpoints: vec![Checkpoint { lsn: Lsn(9), redo: Lsn(8) }],
            switched: false,
            head_len: 0,
            head_whole: false,
            tail_len: 3,
            tail_total: 90,
            unreadable: None,
            plain_hash: plain_hash(plain),
        }
    }

    #[tokio::test]
    async fn segments_round_trip_and_say_their_facts() {
        let name = ObjectPath::new("clusters/main/wal/73/00000001/000000010000000000000003").unwrap();
        for (keys, compression) in [
            (Keyring::plain(), Compression::Zstd(1)),
            (Keyring::for_test(), Compression::Lz4),
            (Keyring::for_test(), Compression::None),
        ] {
            for len in [0usize, 1 << 20, (9 << 20) + 5] {
                let plain: Vec<u8> = (0..len).map(|i| (i / 13 % 256) as u8).collect();
                let fragments = Fragments { head: Vec::new(), tail: vec![1, 2, 3] };
                let object =
                    WalEncoder::new(compression).encode(&keys, &name, &plain, &facts(&plain), &fragments).unwrap();
                let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
                store.put(&name, object.clone()).await.unwrap();
                assert_eq!(read_segment(store.clone(), &keys, &name).await.unwrap(), plain);
                let opened = WalObject::open(store.clone(), &keys, name.clone()).await.unwrap();
                assert_eq!(opened.facts().await.unwrap(), facts(&plain));
                assert_eq!(opened.fragments().await.unwrap(), fragments);
                let mut flipped = object.to_vec();
                let middle = flipped.len() / 2;
                flipped[middle] ^= 4;
                assert!(decode_segment(&keys, &name, &flipped).unwrap_err().is_damage());
            }
        }
    }

    #[tokio::test]
    async fn files_are_pushed_again_only_with_the_same_content() {
        let store = MemoryStore::new();
        let name = ObjectPath::new("clusters/main/wal/73/00000002.history").unwrap();
        let keys = Keyring::for_test();
        assert_eq!(put_wal_file(&store, &keys, &name, b"1\t0/5\tx\n").await.unwrap(), Created::New);
        assert_eq!(put_wal_file(&store, &keys, &name, b"1\t0/5\tx\n").await.unwrap(), Created::Exists);
        let error = put_wal_file(&store, &keys, &name, b"other").await.unwrap_err();
        assert!(matches!(error, RepoError::OtherContent { .. }), "{error}");
    }
}
