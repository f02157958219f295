//! The data blocks of a custom-format archive (`src/bin/pg_dump/pg_backup_custom.c`), one behind the other.

use super::refused;
use crate::DumpError;
use crate::archive::Archive;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use std::io::{self, Read};

/// How data are compressed (`src/include/common/compression.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    /// zlib's own wrapping in blocks, gzip's in files.
    Gzip,
    Lz4,
    Zstd,
}

impl Codec {
    /// Of the blocks of an archive.
    pub(super) fn of(archive: &Archive) -> Result<Self, DumpError> {
        match (archive.header.minor, archive.header.compression) {
            (_, 0) => Ok(Self::None),
            (..15, _) | (_, 1) => Ok(Self::Gzip),
            (_, 2) => Ok(Self::Lz4),
            (_, 3) => Ok(Self::Zstd),
            (_, other) => Err(refused(format!("its compression has the number {other}"))),
        }
    }

    /// Of a file, by its first bytes.
    pub(crate) fn of_file(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Reads a block through it.
    pub(super) fn of_block<'a>(self, input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, DumpError> {
        Ok(match self {
            Self::Gzip => Box::new(ZlibDecoder::new(input)),
            other => other.of_stream(input)?,
        })
    }

    /// Reads a file through it.
    pub(crate) fn of_stream<'a>(self, input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, DumpError> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(MultiGzDecoder::new(input)),
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(input).map_err(refused)?),
        })
    }
}

/// Reads integers as an archive has them.
pub(super) fn int(input: &mut dyn Read, int_size: u8) -> io::Result<i32> {
    let mut bytes = [0; 9];
    let bytes = &mut bytes[..1 + usize::from(int_size)];
    input.read_exact(bytes)?;
    let value = bytes[1..].iter().rev().try_fold(0u64, |value, byte| Some(value.checked_mul(256)? + u64::from(*byte)));
    let value = value.and_then(|value| i32::try_from(value).ok());
    let value = value.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a number too large"))?;
    Ok(if bytes[0] != 0 { -value } else { value })
}

/// The OID of a large object: an integer whose bits it has.
pub(super) fn oid(input: &mut dyn Read, int_size: u8) -> io::Result<u32> {
    let mut bytes = [0; 9];
    let bytes = &mut bytes[..1 + usize::from(int_size)];
    input.read_exact(bytes)?;
    let value = bytes[1..].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)) as u32;
    Ok(if bytes[0] != 0 { value.wrapping_neg() } else { value })
}

/// The next byte; none at the end.
pub(super) fn byte(input: &mut dyn Read) -> io::Result<Option<u8>> {
    let mut one = [0];
    loop {
        match input.read(&mut one) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(one[0])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The bytes of one block: chunks, each with its length before it, up to one of length 0.
pub(super) struct Chunks<'a> {
    input: &'a mut dyn Read,
    int_size: u8,
    left: usize,
    ended: bool,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(input: &'a mut dyn Read, int_size: u8) -> Self {
        Self { input, int_size, left: 0, ended: false }
    }

    /// Passes over what a decoder did not ask for.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let len = int(self.input, self.int_size)?;
            self.left = usize::try_from(len)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("a chunk of {len} bytes")))?;
            self.ended = self.left == 0;
        }
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let want = buffer.len().min(self.left);
        match self.input.read(&mut buffer[..want])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            got => {
                self.left -= got;
                Ok(got)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::put_int;

    #[test]
    fn integers_and_chunks_are_read() {
        let mut bytes = Vec::new();
        for value in [0, 5, -7, i32::MAX] {
            put_int(&mut bytes, 4, value);
        }
        put_int(&mut bytes, 4, 4_000_000_000_u32 as i32);
        let mut input = bytes.as_slice();
        for value in [0, 5, -7, i32::MAX] {
            assert_eq!(int(&mut input, 4).unwrap(), value);
        }
        assert_eq!(oid(&mut input, 4).unwrap(), 4_000_000_000, "an OID beyond the integers");
        assert!(int(&mut input, 4).is_err());

        let mut bytes = Vec::new();
        for chunk in [&b"one, "[..], b"two", b""] {
            put_int(&mut bytes, 4, chunk.len() as i32);
            bytes.extend_from_slice(chunk);
        }
        bytes.extend_from_slice(b"rest");
        let mut input = bytes.as_slice();
        let mut text = String::new();
        Chunks::new(&mut input, 4).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), input), ("one, two", &b"rest"[..]));
        let mut cut = &bytes[..9];
        assert!(Chunks::new(&mut cut, 4).drain().is_err(), "cut off");
    }
}
