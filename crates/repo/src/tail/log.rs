//! Logs of tails: pieces written one after the other into one object, where a store can write in place
//! (docs/format.md section 16).
//!
//! A file made of zeros beforehand takes a commit's WAL at the price of these bytes alone: no name, no length and no
//! directory becomes different. How far it goes is told by what lies in it.

use super::{TailOf, TailPiece, parse_offset, start_of};
use crate::block::{BlockDecoder, BlockEncoder, Compression};
use crate::seal::{HEADER_LEN, Kind, LogSeal, TAG_LEN, crc32c};
use crate::{ClusterName, Keyring, RepoError};
use std::ops::Range;
use store::{Created, LogFile, ObjectPath, Store};

/// The most plain bytes that one frame has.
pub const FRAME_PLAIN_MAX: usize = 1 << 20;
/// The longest log.
const LOG_LEN_MAX: u64 = 32 << 20;
/// A larger one is none of ours.
const READ_LEN_MAX: u64 = 64 << 20;
const READ_TRIES: u32 = 3;
const SUFFIX: &str = ".log";
const FRAME_HEAD: usize = 16;
/// What a frame takes besides its plain bytes, at most: its head, its LSN, its codec, its tag.
const FRAME_MORE: usize = FRAME_HEAD + 8 + 1 + TAG_LEN;
/// The body of a frame that is a mark: its LSN.
const MARK_LEN: usize = 8;
/// What a body that is not compressed has besides its plain bytes: its LSN, its codec.
const STORED_MORE: usize = 9;
/// Less than this is stored as it is: compressing it costs more than writing it.
const COMPRESS_FROM: usize = 4096;

/// A log without a name, made beforehand.
#[derive(Debug)]
pub struct SpareLog {
    file: Box<dyn LogFile>,
    len: u64,
}

impl SpareLog {
    /// Makes one that holds a whole segment in small frames, mostly; none where a store cannot write in place.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn make(store: &dyn Store, segment_bytes: u64) -> Result<Option<Self>, RepoError> {
        Self::of_len(store, (segment_bytes + segment_bytes / 2).min(LOG_LEN_MAX)).await
    }

    async fn of_len(store: &dyn Store, len: u64) -> Result<Option<Self>, RepoError> {
        Ok(store.create_log(len).await?.map(|file| Self { file, len }))
    }
}

/// The start of a log, by its name.
pub(super) fn start_in(name: &str) -> Option<u64> {
    parse_offset(name.strip_suffix(SUFFIX)?)
}

pub(super) fn is_log(path: &ObjectPath) -> bool {
    path.as_str().ends_with(SUFFIX)
}

fn log_path(cluster: &ClusterName, of: TailOf, from: u64) -> ObjectPath {
    let prefix = cluster.tail_prefix(of.system_id, of.segment);
    super::path(format!("{prefix}/{from:08X}{SUFFIX}"))
}

/// A log that is being written. Calls block.
pub struct TailLog {
    file: Box<dyn LogFile>,
    len: u64,
    seal: LogSeal,
    encoder: BlockEncoder,
    stored: BlockEncoder,
    /// The LSN of the segment's first byte.
    start: u64,
    /// The offset in the segment of the next byte.
    at: u64,
    /// The next frame: its number and its place in the log.
    frame: u64,
    place: u64,
    /// The last frame is a mark.
    marked: bool,
}

impl TailLog {
    /// Begins a log: gives it its name and makes its first bytes durable, which are those of the segment from `from` on.
    /// None when a log of that name is there already.
    ///
    /// # Errors
    /// When they cannot be written, or are more than a frame has.
    pub fn begin(
        spare: SpareLog,
        keys: &Keyring,
        cluster: &ClusterName,
        of: TailOf,
        from: u64,
        plain: &[u8],
        compression: Compression,
    ) -> Result<Option<Self>, RepoError> {
        let (SpareLog { mut file, len }, name) = (spare, log_path(cluster, of, from));
        let start = start_of(&name, of)?;
        let (header, seal) = LogSeal::begin(keys, Kind::TailLog, &name)?;
        let (mut encoder, mut stored) = (BlockEncoder::new(compression), BlockEncoder::new(Compression::None));
        let mut bytes = header.to_vec();
        if plain.is_empty() || plain.len() > FRAME_PLAIN_MAX {
            return Err(RepoError::damaged(&name, format!("{} bytes are to be written to it at once", plain.len())));
        }
        put_frame(&mut bytes, &seal, 0, start + from, from, plain, pick(plain, &mut encoder, &mut stored))?;
        if file.publish(&name, &bytes)? == Created::Exists {
            return Ok(None);
        }
        let at = from + plain.len() as u64;
        Ok(Some(Self {
            file,
            len,
            seal,
            encoder,
            stored,
            start,
            at,
            frame: 1,
            place: bytes.len() as u64,
            marked: false,
        }))
    }

    /// The offset in the segment up to which it goes.
    pub fn end(&self) -> u64 {
        self.at
    }

    /// Appends the segment's next bytes, durably; false when there is no room for them. After an error it must not be
    /// written to any more.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&mut self, plain: &[u8]) -> Result<bool, RepoError> {
        let frames = plain.len().div_ceil(FRAME_PLAIN_MAX);
        if self.place + (plain.len() + frames * FRAME_MORE) as u64 > self.len {
            return Ok(false);
        }
        // One after the other: that a frame is there proves that those before it were.
        for part in plain.chunks(FRAME_PLAIN_MAX) {
            let mut bytes = Vec::with_capacity(part.len() + FRAME_MORE);
            let encoder = pick(part, &mut self.encoder, &mut self.stored);
            put_frame(&mut bytes, &self.seal, self.frame, self.start + self.at, self.at, part, encoder)?;
            // Also when it fails: a number is never used again.
            self.frame += 1;
            self.file.write(self.place, &bytes)?;
            self.place += bytes.len() as u64;
            self.at += part.len() as u64;
            self.marked = false;
        }
        Ok(true)
    }

    /// Marks the end: what lies before was durable, so that damage to its last frame is told from one that was torn. For
    /// when nothing more comes for a while; nothing is done when the end is marked, or there is no room. After an error it
    /// must not be written to any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark(&mut self) -> Result<(), RepoError> {
        if self.marked || self.place + FRAME_MORE as u64 > self.len {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(FRAME_MORE);
        put_frame(&mut bytes, &self.seal, self.frame, self.start + self.at, self.at, &[], &mut self.stored)?;
        self.frame += 1;
        self.file.write(self.place, &bytes)?;
        self.place += bytes.len() as u64;
        self.marked = true;
        Ok(())
    }
}

fn pick<'a>(plain: &[u8], encoder: &'a mut BlockEncoder, stored: &'a mut BlockEncoder) -> &'a mut BlockEncoder {
    if plain.len() < COMPRESS_FROM { stored } else { encoder }
}

fn put_frame(
    out: &mut Vec<u8>,
    seal: &LogSeal,
    number: u64,
    lsn: u64,
    offset: u64,
    plain: &[u8],
    encoder: &mut BlockEncoder,
) -> Result<(), RepoError> {
    let head = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD]);
    out.extend_from_slice(&lsn.to_le_bytes());
    if !plain.is_empty() {
        encoder.encode(plain, out);
    }
    let body = head + FRAME_HEAD;
    let tag = seal.seal_frame(number, &mut out[body..])?;
    let len = (out.len() - body) as u32;
    out.extend_from_slice(&tag);
    out[head..head + 4].copy_from_slice(&len.to_le_bytes());
    out[head + 4..head + 8].copy_from_slice(&(offset as u32).to_le_bytes());
    out[head + 8..head + 12].copy_from_slice(&(plain.len() as u32).to_le_bytes());
    let crc = frame_crc(&out[head..]);
    out[head + 12..head + 16].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// The checksum of a frame: all of it but the checksum.
fn frame_crc(frame: &[u8]) -> u32 {
    let rest = crc32c(&frame[FRAME_HEAD..]);
    let mut head = [0; 16];
    head[..12].copy_from_slice(&frame[..12]);
    head[12..].copy_from_slice(&rest.to_le_bytes());
    crc32c(&head)
}

/// A frame as its head has it. A mark has no plain bytes.
struct Frame<'a> {
    plain_len: usize,
    body: &'a [u8],
    tag: &'a [u8],
}

/// A frame at a place: the place behind it and, when its checksum holds, the frame. None where none can be.
fn frame_at(log: &[u8], place: usize, offset: Option<u64>) -> Option<(usize, Option<Frame<'_>>)> {
    let head = log.get(place..place + FRAME_HEAD)?;
    let le32 = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes of a head"));
    let (len, plain_len) = (le32(0) as usize, le32(8) as usize);
    if !(MARK_LEN..=FRAME_PLAIN_MAX + STORED_MORE).contains(&len) {
        return None;
    }
    let end = place + FRAME_HEAD + len + TAG_LEN;
    let frame = log.get(place..end)?;
    let holds = frame_crc(frame) == le32(12)
        && plain_len <= FRAME_PLAIN_MAX
        && (plain_len == 0) == (len == MARK_LEN)
        && offset.is_none_or(|offset| u64::from(le32(4)) == offset);
    let (body, tag) = frame[FRAME_HEAD..].split_at(len);
    Some((end, holds.then_some(Frame { plain_len, body, tag })))
}

/// Whether a frame lies behind one that does not hold: by its length, or by the number of its plain bytes, for which small
/// ones are stored as they are.
fn is_followed(log: &[u8], place: usize) -> bool {
    let Some(head) = log.get(place..place + FRAME_HEAD) else { return false };
    let le32 = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes of a head")) as usize;
    let (len, plain_len) = (le32(0), le32(8));
    let stored = if plain_len == 0 { MARK_LEN } else { plain_len.saturating_add(STORED_MORE) };
    [len, stored].into_iter().filter(|len| (MARK_LEN..=FRAME_PLAIN_MAX + STORED_MORE).contains(len)).any(|len| {
        let behind = frame_at(log, place + FRAME_HEAD + len + TAG_LEN, None);
        matches!(behind, Some((_, Some(_))))
    })
}

/// What lies in a log.
struct Scan<'a> {
    frames: Vec<Frame<'a>>,
    /// The offset in the segment of its end.
    end: u64,
    /// A frame that was durable is not what it was.
    damaged: bool,
}

/// Reads a log as far as its frames' checksums hold. The last frame may be torn; it was acknowledged to nobody then. That
/// one lies behind it proves that it was whole.
fn scan(log: &[u8], from: u64) -> Scan<'_> {
    let (mut frames, mut end, mut place) = (Vec::new(), from, HEADER_LEN);
    loop {
        match frame_at(log, place, Some(end)) {
            Some((next, Some(frame))) => {
                end += frame.plain_len as u64;
                place = next;
                frames.push(frame);
            }
            _ => {
                // A log has its name only since its first frame is durable.
                let damaged = frames.is_empty() || is_followed(log, place);
                return Scan { frames, end, damaged };
            }
        }
    }
}

/// The offsets of a segment that a log covers, and in how many frames; none when it is gone.
pub(super) async fn covers(
    store: &dyn Store,
    path: &ObjectPath,
    from: u64,
) -> Result<Option<(Range<u64>, u64)>, RepoError> {
    match store.get(path, READ_LEN_MAX).await {
        // Of one that is damaged at its very beginning a byte at least was there: reading it tells.
        Ok(bytes) => {
            let scan = scan(&bytes, from);
            let frames = scan.frames.iter().filter(|frame| frame.plain_len > 0).count();
            Ok(Some((from..scan.end.max(from + 1), frames as u64)))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads what a log was found to cover; it may have grown since.
pub(super) async fn read(
    store: &dyn Store,
    keys: &Keyring,
    of: TailOf,
    piece: &TailPiece,
) -> Result<Vec<u8>, RepoError> {
    let (path, range) = (&piece.path, &piece.range);
    let mut tries = 0;
    let log = loop {
        let log = store.get(path, READ_LEN_MAX).await?;
        // Reading may see half of a frame that is written meanwhile, and the next one whole.
        match scan(&log, range.start).damaged && tries < READ_TRIES {
            true => tries += 1,
            false => break log,
        }
    };
    let seal = LogSeal::open(keys, Kind::TailLog, path, &log)?;
    let scan = scan(&log, range.start);
    if scan.damaged {
        return Err(RepoError::damaged(path, "a frame that others follow is not what was written"));
    }
    let start = start_of(path, of)?;
    let mut plain = Vec::with_capacity((range.end - range.start) as usize);
    let mut decoder = BlockDecoder::new();
    for (number, frame) in (0u64..).zip(&scan.frames) {
        let damaged = |reason: String| RepoError::damaged(path, format!("frame {number} {reason}"));
        let body = seal.open_frame(number, frame.body, frame.tag);
        let body = body.ok_or_else(|| damaged("is not what was written".into()))?;
        let (lsn, block) = body.split_at(8);
        let expected = start + range.start + plain.len() as u64;
        if lsn != expected.to_le_bytes() {
            return Err(damaged(format!("is not of LSN {}", pg_format::Lsn(expected))));
        }
        if frame.plain_len == 0 {
            continue;
        }
        let part = decoder.decode(block, frame.plain_len).map_err(|error| damaged(error.0))?;
        plain.extend_from_slice(&part);
    }
    let len = (range.end - range.start) as usize;
    if plain.len() < len {
        return Err(RepoError::damaged(path, format!("has {} bytes of WAL, {len} were there", plain.len())));
    }
    plain.truncate(len);
    Ok(plain)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
