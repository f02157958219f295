//! Tails: the beginning of a WAL segment that is not whole yet, in pieces (docs/format.md section 16).
//!
//! A piece is an object by itself, or, where objects can be written in place, the growing content of a log.

mod log;

pub use log::{FRAME_PLAIN_MAX, SpareLog, TailLog};

use crate::block::{BlockDecoder, BlockEncoder, Compression};
use crate::coding::{Cursor, Malformed, put_varint};
use crate::object::{get_whole, put_whole};
use crate::seal::Kind;
use crate::{ClusterName, Keyring, RepoError};
use pg_format::{SegmentName, SystemId, Timeline, WalSegmentSize};
use std::collections::BTreeMap;
use std::ops::Range;
use store::{Created, ObjectMeta, ObjectPath, Store};

/// The most plain bytes that one piece has.
pub const PIECE_LEN_MAX: u64 = 4 << 20;
/// A piece that does not compress, with its envelope.
const OBJECT_LEN_MAX: u64 = PIECE_LEN_MAX + (1 << 20);
const VERSION: u8 = 1;
/// Objects asked for in one listing request.
const LIST_PAGE: usize = 1000;

/// A piece of a segment, as its name, or what a log holds, has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailPiece {
    /// The object.
    pub path: ObjectPath,
    /// The offsets in the segment that it covers.
    pub range: Range<u64>,
    /// Of a log, the frames that it has.
    pub frames: Option<u64>,
    /// Size of the object in bytes.
    pub size: u64,
    /// When it was written, in milliseconds since 1970-01-01 UTC by the store's clock.
    pub modified_ms: i64,
}

/// The pieces of a segment, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TailPieces {
    /// All of them.
    pub pieces: Vec<TailPiece>,
}

impl TailPieces {
    /// The pieces that lead from the segment's start as far as they do, each with what of it is used.
    pub fn chain(&self) -> Vec<(&TailPiece, Range<u64>)> {
        let (mut chain, mut at) = (Vec::new(), 0);
        loop {
            let fits = self.pieces.iter().filter(|piece| piece.range.start <= at && at < piece.range.end);
            let Some(next) = fits.max_by_key(|piece| piece.range.end) else { return chain };
            chain.push((next, at..next.range.end));
            at = next.range.end;
        }
    }

    /// Where the chain ends: so many bytes of the segment are there.
    pub fn end(&self) -> u64 {
        self.chain().last().map_or(0, |(_, range)| range.end)
    }

    /// When the newest piece was written.
    pub fn modified_ms(&self) -> Option<i64> {
        self.pieces.iter().map(|piece| piece.modified_ms).max()
    }
}

/// Which segment a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailOf {
    /// The system identifier.
    pub system_id: SystemId,
    /// The segment.
    pub segment: SegmentName,
    /// The cluster's segment size.
    pub size: WalSegmentSize,
}

fn path(text: String) -> ObjectPath {
    ObjectPath::new(text).expect("names of tails are made of checked parts")
}

impl ClusterName {
    /// `tails/clusters/NAME`.
    pub fn tails_prefix(&self) -> ObjectPath {
        path(format!("tails/clusters/{self}"))
    }

    /// `tails/clusters/NAME/SYSID`.
    pub fn tails_system_prefix(&self, system: SystemId) -> ObjectPath {
        path(format!("tails/clusters/{self}/{system}"))
    }

    /// `tails/clusters/NAME/SYSID/TLI`.
    pub fn tails_timeline_prefix(&self, system: SystemId, timeline: Timeline) -> ObjectPath {
        path(format!("tails/clusters/{self}/{system}/{:08X}", timeline.0))
    }

    /// `tails/clusters/NAME/SYSID/TLI/SEGMENT`.
    pub fn tail_prefix(&self, system: SystemId, segment: SegmentName) -> ObjectPath {
        path(format!("tails/clusters/{self}/{system}/{:08X}/{segment}", segment.timeline.0))
    }

    /// `tails/clusters/NAME/SYSID/TLI/SEGMENT/FROM-TO`.
    pub fn tail_piece(&self, system: SystemId, segment: SegmentName, range: &Range<u64>) -> ObjectPath {
        path(format!("{}/{:08X}-{:08X}", self.tail_prefix(system, segment), range.start, range.end))
    }
}

/// An offset in a piece's name.
fn parse_offset(digits: &str) -> Option<u64> {
    let fits = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    fits.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// The offsets in a piece's name.
fn parse_range(name: &str) -> Option<Range<u64>> {
    let (from, to) = name.split_once('-')?;
    let range = parse_offset(from)?..parse_offset(to)?;
    (range.start < range.end).then_some(range)
}

/// Lists the pieces of one segment.
pub async fn list_tail(
    store: &dyn Store,
    cluster: &ClusterName,
    system: SystemId,
    segment: SegmentName,
) -> Result<TailPieces, RepoError> {
    let listed = list_below(store, &cluster.tail_prefix(system, segment)).await?;
    Ok(listed.into_values().next().unwrap_or_default())
}

/// Lists the tails of a system identifier, all timelines.
pub async fn list_tails(
    store: &dyn Store,
    cluster: &ClusterName,
    system: SystemId,
) -> Result<BTreeMap<SegmentName, TailPieces>, RepoError> {
    list_below(store, &cluster.tails_system_prefix(system)).await
}

/// Lists the tails of one timeline.
pub async fn list_timeline_tails(
    store: &dyn Store,
    cluster: &ClusterName,
    system: SystemId,
    timeline: Timeline,
) -> Result<BTreeMap<SegmentName, TailPieces>, RepoError> {
    list_below(store, &cluster.tails_timeline_prefix(system, timeline)).await
}

async fn list_below(store: &dyn Store, prefix: &ObjectPath) -> Result<BTreeMap<SegmentName, TailPieces>, RepoError> {
    let mut tails: BTreeMap<SegmentName, TailPieces> = BTreeMap::new();
    for object in objects_below(store, prefix).await? {
        // What is no piece is left alone.
        let mut parts = object.path.as_str().rsplit('/');
        let (name, segment) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let Ok(segment) = segment.parse() else { continue };
        let covers = match log::start_in(name) {
            Some(from) => log::covers(store, &object.path, from).await?.map(|(range, frames)| (range, Some(frames))),
            None => parse_range(name).map(|range| (range, None)),
        };
        let Some((range, frames)) = covers else { continue };
        let piece = TailPiece { range, frames, size: object.size, modified_ms: object.modified_ms, path: object.path };
        tails.entry(segment).or_default().pieces.push(piece);
    }
    Ok(tails)
}

async fn objects_below(store: &dyn Store, prefix: &ObjectPath) -> Result<Vec<ObjectMeta>, RepoError> {
    let mut objects: Vec<ObjectMeta> = Vec::new();
    loop {
        let page = store.list_page(Some(prefix), objects.last().map(|object| &object.path), LIST_PAGE).await?;
        let last = page.len() < LIST_PAGE;
        objects.extend(page);
        if last {
            return Ok(objects);
        }
    }
}

/// The objects that a segment's tail lies in, for who deletes them: nothing is read.
pub async fn tail_objects(
    store: &dyn Store,
    cluster: &ClusterName,
    system: SystemId,
    segment: SegmentName,
) -> Result<Vec<ObjectPath>, RepoError> {
    let objects = objects_below(store, &cluster.tail_prefix(system, segment)).await?;
    Ok(objects.into_iter().map(|object| object.path).collect())
}

/// Writes the bytes `range` of a segment as a piece, if none of that name exists. The same bytes twice are
/// [`Created::Exists`]; other bytes are an error. Also says how many bytes the object has.
pub async fn put_piece(
    store: &dyn Store,
    keys: &Keyring,
    cluster: &ClusterName,
    of: TailOf,
    range: Range<u64>,
    plain: &[u8],
    compression: Compression,
) -> Result<(Created, u64), RepoError> {
    let name = cluster.tail_piece(of.system_id, of.segment, &range);
    let fits = plain.len() as u64 == range.end - range.start && plain.len() as u64 <= PIECE_LEN_MAX;
    if !fits || range.end > of.size.bytes() {
        return Err(RepoError::damaged(&name, format!("{} bytes are to be written to it", plain.len())));
    }
    let start = start_of(&name, of)?;
    let mut payload = Vec::with_capacity(plain.len() / 2 + 128);
    payload.push(VERSION);
    payload.extend_from_slice(&of.system_id.0.to_le_bytes());
    payload.extend_from_slice(&of.segment.timeline.0.to_le_bytes());
    payload.extend_from_slice(&(of.size.bytes() as u32).to_le_bytes());
    payload.extend_from_slice(&(start + range.start).to_le_bytes());
    put_varint(&mut payload, plain.len() as u64);
    payload.extend_from_slice(blake3::hash(plain).as_bytes());
    BlockEncoder::new(compression).encode(plain, &mut payload);
    let created = put_whole(store, keys, Kind::Tail, &name, &payload).await?;
    let piece = TailPiece { path: name, range, frames: None, size: 0, modified_ms: 0 };
    if created == Created::Exists && read_piece(store, keys, of, &piece).await? != plain {
        return Err(RepoError::OtherContent { path: piece.path });
    }
    Ok((created, crate::seal::sealed_len(payload.len() as u64)))
}

fn start_of(name: &ObjectPath, of: TailOf) -> Result<u64, RepoError> {
    let start = of.segment.start(of.size).map_err(|error| RepoError::damaged(name, error.to_string()))?;
    Ok(start.0)
}

/// Reads a piece and checks that it is what its name says.
pub async fn read_piece(
    store: &dyn Store,
    keys: &Keyring,
    of: TailOf,
    piece: &TailPiece,
) -> Result<Vec<u8>, RepoError> {
    if log::is_log(&piece.path) {
        return log::read(store, keys, of, piece).await;
    }
    let payload = get_whole(store, keys, Kind::Tail, &piece.path, OBJECT_LEN_MAX).await?;
    decode(&payload, of, piece).map_err(|Malformed(reason)| RepoError::damaged(&piece.path, reason))
}

fn decode(payload: &[u8], of: TailOf, piece: &TailPiece) -> Result<Vec<u8>, Malformed> {
    let mut cursor = Cursor::new(payload);
    let version = cursor.u8()?;
    if version != VERSION {
        return Err(Malformed(format!("version {version} of a tail's piece is not known")));
    }
    let (system, timeline, size, start) = (cursor.u64()?, cursor.u32()?, cursor.u32()?, cursor.u64()?);
    let expected = of.segment.start(of.size).map_err(|error| Malformed(error.to_string()))?.0 + piece.range.start;
    let same = system == of.system_id.0
        && timeline == of.segment.timeline.0
        && u64::from(size) == of.size.bytes()
        && start == expected;
    if !same {
        let what = format!("is of system {system}, timeline {timeline}, LSN {}", pg_format::Lsn(start));
        return Err(Malformed(what));
    }
    let len = cursor.bounded("number of bytes", PIECE_LEN_MAX)?;
    if len != piece.range.end - piece.range.start {
        return Err(Malformed(format!("has {len} bytes, not those of its name")));
    }
    let hash: [u8; 32] = cursor.array()?;
    let block = cursor.take(cursor.remaining())?;
    let plain = BlockDecoder::new().decode(block, len as usize)?;
    if *blake3::hash(&plain).as_bytes() != hash {
        return Err(Malformed("content does not have the hash that was noted when it was written".into()));
    }
    Ok(plain)
}

/// The beginning of a segment that its pieces hold; `None` when there is none. Nothing is added to it.
pub async fn read_tail(
    store: &dyn Store,
    keys: &Keyring,
    cluster: &ClusterName,
    of: TailOf,
) -> Result<Option<Vec<u8>>, RepoError> {
    let tail = list_tail(store, cluster, of.system_id, of.segment).await?;
    read_chain(store, keys, of, &tail).await
}

/// As [`read_tail`], of pieces that were listed.
pub async fn read_chain(
    store: &dyn Store,
    keys: &Keyring,
    of: TailOf,
    tail: &TailPieces,
) -> Result<Option<Vec<u8>>, RepoError> {
    use futures::{StreamExt, TryStreamExt, stream};
    const READS_AT_ONCE: usize = 16;
    let chain = tail.chain();
    let Some((last, used)) = chain.last() else { return Ok(None) };
    if used.end > of.size.bytes() {
        return Err(RepoError::damaged(&last.path, "goes beyond the segment's end"));
    }
    let reads = chain.iter().map(|(piece, used)| async move {
        let bytes = read_piece(store, keys, of, piece).await?;
        Ok::<_, RepoError>((bytes, (used.start - piece.range.start) as usize))
    });
    let reads: Vec<_> = reads.collect();
    let mut pieces = stream::iter(reads).buffered(READS_AT_ONCE);
    let mut plain = Vec::with_capacity(used.end as usize);
    while let Some((bytes, skip)) = pieces.try_next().await? {
        plain.extend_from_slice(&bytes[skip..]);
    }
    Ok(Some(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::MemoryStore;

    fn of() -> TailOf {
        let size = WalSegmentSize::new(1 << 20).unwrap();
        TailOf { system_id: SystemId(7), segment: "000000010000000000000003".parse().unwrap(), size }
    }

    fn pieces(ranges: &[(u64, u64)]) -> TailPieces {
        let name: ClusterName = "main".parse().unwrap();
        let piece = |(from, to): &(u64, u64)| {
            let path = name.tail_piece(SystemId(7), of().segment, &(*from..*to));
            TailPiece { path, range: *from..*to, frames: None, size: 0, modified_ms: 0 }
        };
        TailPieces { pieces: ranges.iter().map(piece).collect() }
    }

    #[test]
    fn the_chain_is_made_from_names() {
        let check = |ranges: &[(u64, u64)], expect: &[(u64, u64)]| {
            let tail = pieces(ranges);
            let used: Vec<_> = tail.chain().into_iter().map(|(_, used)| (used.start, used.end)).collect();
            assert_eq!(used, expect, "{ranges:?}");
            assert_eq!(tail.end(), expect.last().map_or(0, |last| last.1));
        };
        check(&[], &[]);
        check(&[(1, 5)], &[]);
        check(&[(0, 5), (5, 9)], &[(0, 5), (5, 9)]);
        check(&[(0, 5), (6, 9)], &[(0, 5)]);
        check(&[(0, 5), (0, 9), (5, 7)], &[(0, 9)]);
        check(&[(0, 5), (3, 8), (5, 6), (8, 12)], &[(0, 5), (5, 8), (8, 12)]);
    }

    #[test]
    fn names_say_what_they_cover() {
        let tail = pieces(&[(0, 0x1f28)]);
        assert_eq!(
            tail.pieces[0].path.as_str(),
            "tails/clusters/main/7/00000001/000000010000000000000003/00000000-00001F28"
        );
        assert_eq!(parse_range("00000000-00001F28"), Some(0..0x1f28));
        for bad in ["", "-", "00000000-0000000g", "00000001-00000001", "0-1", "00000000-00001f28", "00000002-00000001"]
        {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn pieces_round_trip_and_are_checked() {
        let name: ClusterName = "main".parse().unwrap();
        let plain: Vec<u8> = (0..300_000u32).map(|i| (i / 7 % 251) as u8).collect();
        for keys in [Keyring::plain(), Keyring::for_test()] {
            let store = MemoryStore::new();
            let put = |range: Range<u64>| {
                let bytes = plain[range.start as usize..range.end as usize].to_vec();
                let (store, keys, name) = (store.clone(), keys.clone(), name.clone());
                async move { put_piece(&store, &keys, &name, of(), range, &bytes, Compression::Zstd(1)).await }
            };
            for range in [0..8192, 8192..20_000, 4096..100_000, 100_000..300_000] {
                assert_eq!(put(range).await.unwrap().0, Created::New);
            }
            assert_eq!(put(0..8192).await.unwrap().0, Created::Exists);
            let other = put_piece(&store, &keys, &name, of(), 0..3, b"xyz", Compression::None).await;
            assert_eq!(other.unwrap().0, Created::New);
            let other = put_piece(&store, &keys, &name, of(), 0..3, b"abc", Compression::None).await;
            assert!(matches!(other, Err(RepoError::OtherContent { .. })));
            assert_eq!(read_tail(&store, &keys, &name, of()).await.unwrap().unwrap(), plain);
            let listed = list_tails(&store, &name, SystemId(7)).await.unwrap();
            assert_eq!(listed[&of().segment].end(), 300_000);
            // Under another segment's name it is not what it says.
            let elsewhere = TailOf { segment: "000000010000000000000004".parse().unwrap(), ..of() };
            let piece = &listed[&of().segment].pieces[0];
            assert!(read_piece(&store, &keys, elsewhere, piece).await.unwrap_err().is_damage());
            let object = store.get(&piece.path, 1 << 20).await.unwrap();
            store.delete(&piece.path).await.unwrap();
            let mut flipped = object.to_vec();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 1;
            store.put(&piece.path, flipped.into()).await.unwrap();
            assert!(read_piece(&store, &keys, of(), piece).await.unwrap_err().is_damage());
        }
    }
}
