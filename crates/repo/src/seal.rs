//! The envelope of every object: header, frames, and what seals them (docs/format.md section 3).

use crate::{Keyring, RepoError};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use store::ObjectPath;

/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Plain bytes of each frame but the last.
pub const FRAME_LEN: usize = 16_384;
/// Bytes of a frame's tag.
pub const TAG_LEN: usize = 16;
const SEALED_FRAME_LEN: usize = FRAME_LEN + TAG_LEN;
const MAGIC: [u8; 8] = *b"PGKEEP\x1a\n";
const PAYLOAD_VERSION: u16 = 1;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Repository identity and wrapped keys.
    Repository = 1,
    /// What is known of a cluster.
    Cluster = 2,
    /// What a running backup builds on.
    Intent = 3,
    /// A backup.
    Manifest = 4,
    /// Chunks of pages.
    Pack = 5,
    /// A WAL segment.
    Wal = 6,
    /// A timeline history or backup history file.
    WalFile = 7,
    /// Indexes of many WAL segments.
    WalIndex = 8,
    /// A logical dump.
    Dump = 9,
    /// The last WAL, not yet a whole segment.
    Tail = 10,
    /// Who is doing something.
    Lease = 11,
    /// What was deleted, and what nothing refers to any more.
    Garbage = 12,
    /// The last WAL, not yet a whole segment, in an object that grows.
    TailLog = 13,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Seal {
    Hash = 0,
    Aes256Gcm = 1,
}

/// The number of bytes an object with a payload of `payload_len` bytes has.
pub fn sealed_len(payload_len: u64) -> u64 {
    let frames = payload_len.div_ceil(FRAME_LEN as u64).max(1);
    HEADER_LEN as u64 + payload_len + frames * TAG_LEN as u64
}

/// The length of the payload of an object of `size` bytes, or `None` where no object has this size.
pub fn payload_len(size: u64) -> Option<u64> {
    let body = size.checked_sub(HEADER_LEN as u64)?;
    let frames = body.div_ceil(SEALED_FRAME_LEN as u64);
    let payload = body.checked_sub(frames * TAG_LEN as u64)?;
    (frames >= 1 && sealed_len(payload) == size).then_some(payload)
}

/// The bytes of the object in which the payload's bytes `range` lie, in whole frames.
pub fn sealed_range(range: &Range<u64>, payload_len: u64) -> Range<u64> {
    let first = range.start / FRAME_LEN as u64;
    let end = range.end.div_ceil(FRAME_LEN as u64).max(first + 1);
    let at = |frame: u64| HEADER_LEN as u64 + frame * SEALED_FRAME_LEN as u64;
    at(first)..at(end).min(sealed_len(payload_len))
}

enum FrameKey {
    Hash([u8; 32]),
    Aes { key: Box<LessSafeKey>, context: [u8; 32] },
}

impl FrameKey {
    fn new(
        keys: &Keyring,
        header: &[u8; HEADER_LEN],
        seal: Seal,
        key_number: u32,
        name: &ObjectPath,
    ) -> Result<Self, RepoError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(header);
        hasher.update(name.as_str().as_bytes());
        let context = *hasher.finalize().as_bytes();
        match seal {
            Seal::Hash => Ok(Self::Hash(context)),
            Seal::Aes256Gcm => {
                let data_key = keys.data_key(key_number).ok_or_else(|| {
                    RepoError::damaged(
                        name,
                        format!("sealed with data key {key_number}, which this repository does not have"),
                    )
                })?;
                let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &header[24..56]);
                let object_key = hkdf_32(&salt, data_key, b"pgkeep object key 1")?;
                Ok(Self::Aes { key: Box::new(aes_key(&object_key)?), context })
            }
        }
    }

    fn seal(&self, counter: u64, last: bool, frame: &mut [u8]) -> Result<[u8; TAG_LEN], RepoError> {
        match self {
            Self::Hash(context) => Ok(hash_tag(context, counter, last, frame)),
            Self::Aes { key, context } => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(counter, last), Aad::from(&context[..]), frame)
                    .map_err(|_| RepoError::Crypto { reason: "AES-256-GCM could not seal a frame".into() })?;
                Ok(tag.as_ref().try_into().expect("a GCM tag has 16 bytes"))
            }
        }
    }

    /// Checks a frame and writes it to `plain`, which is as long; false when it is not what was sealed.
    fn open(&self, counter: u64, last: bool, body: &[u8], tag: &[u8], plain: &mut [u8]) -> bool {
        match self {
            Self::Hash(context) => {
                plain.copy_from_slice(body);
                hash_tag(context, counter, last, body)[..] == *tag
            }
            Self::Aes { key, context } => {
                key.open_separate_gather(nonce(counter, last), Aad::from(&context[..]), body, tag, plain).is_ok()
            }
        }
    }
}

fn hash_tag(context: &[u8; 32], counter: u64, last: bool, plain: &[u8]) -> [u8; TAG_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(context);
    hasher.update(&counter.to_le_bytes());
    hasher.update(&[u8::from(last)]);
    hasher.update(plain);
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LEN]);
    tag
}

fn nonce(counter: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

pub(crate) fn aes_key(key: &[u8; 32]) -> Result<LessSafeKey, RepoError> {
    let key =
        UnboundKey::new(&AES_256_GCM, key).map_err(|_| RepoError::Crypto { reason: "not an AES-256 key".into() })?;
    Ok(LessSafeKey::new(key))
}

pub(crate) fn hkdf_32(salt: &hkdf::Salt, ikm: &[u8], info: &[u8]) -> Result<[u8; 32], RepoError> {
    let failed = |_| RepoError::Crypto { reason: "HKDF failed".into() };
    let mut out = [0; 32];
    salt.extract(ikm).expand(&[info], hkdf::HKDF_SHA256).map_err(failed)?.fill(&mut out).map_err(failed)?;
    Ok(out)
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], RepoError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| RepoError::Crypto { reason: format!("no random numbers: {e}") })?;
    Ok(bytes)
}

/// The header of a new object, and what seals its frames.
fn begin(keys: &Keyring, kind: Kind, name: &ObjectPath) -> Result<([u8; HEADER_LEN], FrameKey), RepoError> {
    let (seal, key_number) = match (kind, keys.newest()) {
        (Kind::Repository, _) | (_, None) => (Seal::Hash, 0),
        (_, Some(number)) => (Seal::Aes256Gcm, number),
    };
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC);
    header[8] = kind as u8;
    header[9] = seal as u8;
    header[10..12].copy_from_slice(&PAYLOAD_VERSION.to_le_bytes());
    header[20..24].copy_from_slice(&key_number.to_le_bytes());
    header[24..56].copy_from_slice(&random::<32>()?);
    let crc = crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    let key = FrameKey::new(keys, &header, seal, key_number, name)?;
    Ok((header, key))
}

/// Turns a payload into an object, as it comes. Holds what was not yet taken away.
pub struct Sealer {
    key: FrameKey,
    out: BytesMut,
    frame_start: usize,
    counter: u64,
    payload_len: u64,
}

impl Sealer {
    /// Begins the object `name`.
    pub fn new(keys: &Keyring, kind: Kind, name: &ObjectPath) -> Result<Self, RepoError> {
        let (header, key) = begin(keys, kind, name)?;
        Ok(Self { key, out: BytesMut::from(&header[..]), frame_start: HEADER_LEN, counter: 0, payload_len: 0 })
    }

    /// The header. Only before anything was taken away.
    pub(crate) fn header(&self) -> &[u8] {
        &self.out[..HEADER_LEN]
    }

    /// Payload bytes pushed so far.
    pub fn payload_len(&self) -> u64 {
        self.payload_len
    }

    /// Makes room for so much payload at once.
    pub fn reserve(&mut self, payload_len: usize) {
        self.out.reserve(sealed_len(payload_len as u64) as usize);
    }

    /// Appends payload.
    pub fn push(&mut self, mut plain: &[u8]) -> Result<(), RepoError> {
        self.payload_len += plain.len() as u64;
        while !plain.is_empty() {
            let mut room = FRAME_LEN - (self.out.len() - self.frame_start);
            if room == 0 {
                self.close_frame(false)?;
                room = FRAME_LEN;
            }
            let (now, later) = plain.split_at(plain.len().min(room));
            self.out.extend_from_slice(now);
            plain = later;
        }
        Ok(())
    }

    fn close_frame(&mut self, last: bool) -> Result<(), RepoError> {
        let tag = self.key.seal(self.counter, last, &mut self.out[self.frame_start..])?;
        self.out.extend_from_slice(&tag);
        self.frame_start = self.out.len();
        self.counter += 1;
        Ok(())
    }

    /// Sealed bytes that wait to be taken away.
    pub fn ready_len(&self) -> usize {
        self.frame_start
    }

    /// Takes the sealed bytes there are.
    pub fn take(&mut self) -> Bytes {
        let ready = self.out.split_to(self.frame_start).freeze();
        self.frame_start = 0;
        ready
    }

    /// Seals the last frame and gives what was not yet taken.
    pub fn finish(mut self) -> Result<Bytes, RepoError> {
        self.close_frame(true)?;
        Ok(self.out.freeze())
    }
}

/// Seals a payload that is in memory.
pub fn seal_whole(keys: &Keyring, kind: Kind, name: &ObjectPath, payload: &[u8]) -> Result<Bytes, RepoError> {
    let mut sealer = Sealer::new(keys, kind, name)?;
    sealer.reserve(payload.len());
    sealer.push(payload)?;
    sealer.finish()
}

/// Checks the header of the object `name`, and gives what opens its frames.
fn open_key(keys: &Keyring, kind: Kind, name: &ObjectPath, header: &[u8]) -> Result<FrameKey, RepoError> {
    let damaged = |reason: String| RepoError::damaged(name, reason);
    let header: &[u8; HEADER_LEN] = header
        .get(..HEADER_LEN)
        .and_then(|h| h.try_into().ok())
        .ok_or_else(|| damaged(format!("only {} bytes, shorter than a header", header.len())))?;
    if header[..8] != MAGIC {
        return Err(damaged("does not begin like an object of pgkeep".into()));
    }
    let le32 = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes of the header"));
    if le32(60) != crc32c(&header[..60]) {
        return Err(damaged("checksum of the header does not match".into()));
    }
    let too_new = |what, found: u64, supported: u64| RepoError::TooNew { path: name.clone(), what, found, supported };
    let version = u16::from_le_bytes([header[10], header[11]]);
    if version != PAYLOAD_VERSION {
        return Err(too_new("object version", version.into(), PAYLOAD_VERSION.into()));
    }
    if le32(12) != 0 {
        return Err(too_new("must-understand flags", le32(12).into(), 0));
    }
    if header[8] != kind as u8 {
        return Err(damaged(format!("is of kind {}, {kind:?} ({}) expected", header[8], kind as u8)));
    }
    let seal = match header[9] {
        0 => Seal::Hash,
        1 => Seal::Aes256Gcm,
        other => return Err(too_new("seal", other.into(), 1)),
    };
    // In an encrypted repository an object with a mere hash may have been put there by anyone.
    if seal == Seal::Hash && kind != Kind::Repository && keys.newest().is_some() {
        return Err(damaged("is not encrypted, but the repository is".into()));
    }
    FrameKey::new(keys, header, seal, le32(20), name)
}

/// Opens the frames of one object.
pub struct Opener {
    name: ObjectPath,
    key: FrameKey,
    size: u64,
    payload_len: u64,
}

impl Opener {
    /// Checks the header of the object `name`, which has `size` bytes in all.
    pub fn new(keys: &Keyring, kind: Kind, name: &ObjectPath, size: u64, header: &[u8]) -> Result<Self, RepoError> {
        let key = open_key(keys, kind, name, header)?;
        let payload_len = payload_len(size)
            .ok_or_else(|| RepoError::damaged(name, format!("no whole object has {size} bytes: it is cut off")))?;
        Ok(Self { name: name.clone(), key, size, payload_len })
    }

    /// Length of the payload in bytes.
    pub fn payload_len(&self) -> u64 {
        self.payload_len
    }

    /// Size of the whole object in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens `sealed`, the bytes of the object that [`sealed_range`] names for `range`, and gives
    /// the payload's bytes `range`.
    pub fn open(&self, range: &Range<u64>, sealed: &[u8]) -> Result<Bytes, RepoError> {
        let wanted = sealed_range(range, self.payload_len);
        if range.start > range.end || range.end > self.payload_len || sealed.len() as u64 != wanted.end - wanted.start {
            return Err(RepoError::damaged(
                &self.name,
                format!("payload bytes {}..{} asked for, it has {}", range.start, range.end, self.payload_len),
            ));
        }
        let first = range.start / FRAME_LEN as u64;
        let last = self.payload_len.div_ceil(FRAME_LEN as u64).max(1) - 1;
        let mut plain = BytesMut::with_capacity(sealed.len());
        for (frame, counter) in sealed.chunks(SEALED_FRAME_LEN).zip(first..) {
            let (body, tag) = frame.split_at(frame.len().saturating_sub(TAG_LEN));
            let start = plain.len();
            plain.resize(start + body.len(), 0);
            let intact = self.key.open(counter, counter == last, body, tag, &mut plain[start..]);
            if !intact {
                return Err(RepoError::damaged(&self.name, format!("frame {counter} is not what was written")));
            }
        }
        let skip = (range.start - first * FRAME_LEN as u64) as usize;
        Ok(plain.freeze().slice(skip..skip + (range.end - range.start) as usize))
    }
}

/// Frames of an object that is written in place, each by itself: none of them is the last one.
pub(crate) struct LogSeal {
    key: FrameKey,
}

impl LogSeal {
    /// Begins the object `name`; also gives its header.
    pub(crate) fn begin(keys: &Keyring, kind: Kind, name: &ObjectPath) -> Result<([u8; HEADER_LEN], Self), RepoError> {
        let (header, key) = begin(keys, kind, name)?;
        Ok((header, Self { key }))
    }

    /// Checks the header of the object `name`.
    pub(crate) fn open(keys: &Keyring, kind: Kind, name: &ObjectPath, header: &[u8]) -> Result<Self, RepoError> {
        Ok(Self { key: open_key(keys, kind, name, header)? })
    }

    /// Seals a frame in place and gives its tag. A number must never be used again in this object.
    pub(crate) fn seal_frame(&self, number: u64, frame: &mut [u8]) -> Result<[u8; TAG_LEN], RepoError> {
        self.key.seal(number, false, frame)
    }

    /// The plain bytes of a frame; none when it is not what was sealed.
    pub(crate) fn open_frame(&self, number: u64, body: &[u8], tag: &[u8]) -> Option<Vec<u8>> {
        let mut plain = vec![0; body.len()];
        self.key.open(number, false, body, tag, &mut plain).then_some(plain)
    }
}

/// Opens an object that is in memory.
pub fn open_whole(keys: &Keyring, kind: Kind, name: &ObjectPath, object: &[u8]) -> Result<Bytes, RepoError> {
    let opener = Opener::new(keys, kind, name, object.len() as u64, object)?;
    opener.open(&(0..opener.payload_len()), &object[HEADER_LEN..])
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ObjectPath {
        ObjectPath::new(text).unwrap()
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 % 251) as u8).collect()
    }

    const LENGTHS: [usize; 9] =
        [0, 1, 100, FRAME_LEN - 1, FRAME_LEN, FRAME_LEN + 1, 2 * FRAME_LEN, 3 * FRAME_LEN - 16, 100_000];

    #[test]
    fn objects_round_trip_in_both_seals() {
        for keys in [Keyring::plain(), Keyring::for_test()] {
            for len in LENGTHS {
                let object = seal_whole(&keys, Kind::Pack, &name("a/b"), &payload(len)).unwrap();
                assert_eq!(object.len() as u64, sealed_len(len as u64));
                assert_eq!(payload_len(object.len() as u64), Some(len as u64));
                assert_eq!(open_whole(&keys, Kind::Pack, &name("a/b"), &object).unwrap(), payload(len));
            }
        }
    }

    #[test]
    fn pushing_in_pieces_changes_nothing_but_the_salt() {
        let keys = Keyring::for_test();
        let plain = payload(100_000);
        let mut sealer = Sealer::new(&keys, Kind::Wal, &name("x")).unwrap();
        let mut object = Vec::new();
        for piece in plain.chunks(777) {
            sealer.push(piece).unwrap();
            object.extend_from_slice(&sealer.take());
        }
        object.extend_from_slice(&sealer.finish().unwrap());
        assert_eq!(open_whole(&keys, Kind::Wal, &name("x"), &object).unwrap(), plain);
    }

    #[test]
    fn any_range_can_be_read_alone() {
        let keys = Keyring::for_test();
        let plain = payload(5 * FRAME_LEN + 33);
        let object = seal_whole(&keys, Kind::Pack, &name("p"), &plain).unwrap();
        let opener = Opener::new(&keys, Kind::Pack, &name("p"), object.len() as u64, &object[..HEADER_LEN]).unwrap();
        let marks = [0, 1, FRAME_LEN - 1, FRAME_LEN, FRAME_LEN + 1, 3 * FRAME_LEN, 5 * FRAME_LEN, plain.len()];
        for start in marks {
            for end in marks.into_iter().filter(|&end| end >= start) {
                let range = start as u64..end as u64;
                let sealed = sealed_range(&range, opener.payload_len());
                let part = &object[sealed.start as usize..sealed.end as usize];
                assert_eq!(opener.open(&range, part).unwrap(), plain[start..end], "{range:?}");
            }
        }
    }

    /// Every single bit flip, every truncation, an extension, another name, another kind: all are seen.
    #[test]
    fn every_change_is_seen() {
        for keys in [Keyring::plain(), Keyring::for_test()] {
            let object = seal_whole(&keys, Kind::Intent, &name("a/b"), &payload(300)).unwrap();
            let open = |object: &[u8], n: &str, kind| open_whole(&keys, kind, &name(n), object);
            assert!(open(&object, "a/b", Kind::Intent).is_ok());
            assert!(open(&object, "a/c", Kind::Intent).is_err());
            assert!(open(&object, "a/b", Kind::Lease).is_err());
            for bit in 0..object.len() * 8 {
                let mut flipped = object.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(open(&flipped, "a/b", Kind::Intent).is_err(), "bit {bit}");
            }
            for len in 0..object.len() {
                assert!(open(&object[..len], "a/b", Kind::Intent).is_err(), "cut to {len}");
            }
            let longer = [&object[..], &[0]].concat();
            assert!(open(&longer, "a/b", Kind::Intent).is_err());
        }
    }

    #[test]
    fn cutting_at_a_frame_border_is_seen() {
        for keys in [Keyring::plain(), Keyring::for_test()] {
            let object = seal_whole(&keys, Kind::Pack, &name("p"), &payload(3 * FRAME_LEN)).unwrap();
            for frames in 1..3 {
                let cut = &object[..HEADER_LEN + frames * SEALED_FRAME_LEN];
                assert!(open_whole(&keys, Kind::Pack, &name("p"), cut).is_err(), "{frames} frames");
            }
        }
    }

    #[test]
    fn another_key_opens_nothing() {
        let object = seal_whole(&Keyring::for_test(), Kind::Pack, &name("p"), b"x").unwrap();
        assert!(open_whole(&Keyring::from_data_keys(vec![(1, [8; 32])]), Kind::Pack, &name("p"), &object).is_err());
        assert!(open_whole(&Keyring::plain(), Kind::Pack, &name("p"), &object).is_err());
        let plain = seal_whole(&Keyring::plain(), Kind::Pack, &name("p"), b"x").unwrap();
        assert!(open_whole(&Keyring::for_test(), Kind::Pack, &name("p"), &plain).is_err());
    }

    #[test]
    fn newer_objects_are_refused_by_name() {
        let keys = Keyring::plain();
        let object = seal_whole(&keys, Kind::Pack, &name("p"), b"x").unwrap();
        for (at, value) in [(10, 2u8), (12, 1), (9, 2)] {
            let mut newer = object.to_vec();
            newer[at] = value;
            let crc = crc32c(&newer[..60]);
            newer[60..64].copy_from_slice(&crc.to_le_bytes());
            let error = open_whole(&keys, Kind::Pack, &name("p"), &newer).unwrap_err();
            assert!(matches!(error, RepoError::TooNew { .. }), "{error}");
        }
    }
}
