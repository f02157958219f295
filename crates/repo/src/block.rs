//! Blocks: a codec byte and data (docs/format.md section 6).

use crate::coding::Malformed;
use std::str::FromStr;

/// How a block's data is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// The plain bytes.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One lz4 block without its length.
    Lz4 = 2,
    /// No data: all plain bytes are zero.
    Zero = 3,
}

/// What the operator asks for when something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    /// lz4, its only speed.
    Lz4,
    /// zstd with a level from 1 to 19 (negative levels are faster still).
    Zstd(i32),
}

impl FromStr for Compression {
    type Err = String;

    /// `none`, `lz4`, `zstd`, `zstd:3`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("none", "") => Ok(Self::None),
            ("lz4", "") => Ok(Self::Lz4),
            ("zstd", "") => Ok(Self::Zstd(1)),
            ("zstd", level) => match level.parse() {
                Ok(level) if (-7..=19).contains(&level) => Ok(Self::Zstd(level)),
                _ => Err(format!("zstd level {level:?}: a number from -7 to 19 is wanted")),
            },
            _ => Err(format!("compression {text:?}: none, lz4, zstd or zstd:LEVEL is wanted")),
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// Makes blocks. Keeps its working memory between calls; one for each worker.
pub struct BlockEncoder {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl BlockEncoder {
    /// An encoder for one kind of compression.
    pub fn new(compression: Compression) -> Self {
        Self::with_matches(compression, PAGE_MATCH)
    }

    /// The same for rows of tables. They repeat longer pieces than pages do.
    pub fn for_rows(compression: Compression) -> Self {
        Self::with_matches(compression, ROW_MATCH)
    }

    fn with_matches(compression: Compression, shortest: u32) -> Self {
        let zstd = match compression {
            Compression::Zstd(level) => {
                Some(zstd_compressor(level, shortest).expect("levels and parameters are zstd's own"))
            }
            Compression::None | Compression::Lz4 => None,
        };
        Self { compression, zstd, scratch: Vec::new() }
    }

    /// Appends `plain` as a block to `out`; stored as it is when compressing does not make it smaller.
    /// Returns the block's length.
    pub fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) -> usize {
        let start = out.len();
        if is_zero(plain) {
            out.push(Codec::Zero as u8);
            return 1;
        }
        // Compressed beside `out`, into memory that is kept and never cleared: filling it with zeros for each block
        // takes as long as some per cent of compressing.
        let scratch = &mut self.scratch;
        scratch.clear();
        let codec = match (&mut self.zstd, self.compression) {
            (Some(zstd), _) => {
                scratch.reserve(zstd::zstd_safe::compress_bound(plain.len()));
                zstd.compress_to_buffer(plain, scratch).ok().map(|_| Codec::Zstd)
            }
            (None, Compression::Lz4) => {
                scratch.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
                lz4_flex::block::compress_into(plain, scratch).ok().map(|len| {
                    scratch.truncate(len);
                    Codec::Lz4
                })
            }
            (None, _) => None,
        };
        match codec.filter(|_| scratch.len() < plain.len()) {
            Some(codec) => {
                out.push(codec as u8);
                out.extend_from_slice(scratch);
            }
            None => {
                out.push(Codec::Stored as u8);
                out.extend_from_slice(plain);
            }
        }
        out.len() - start
    }
}

/// The shortest match that is looked for at level 1.
const PAGE_MATCH: u32 = 5;
/// In rows, 6 instead of 5 takes a tenth less time and 1 % less space.
const ROW_MATCH: u32 = 6;

/// Level 1 as zstd has it looks for matches of 7 bytes, with a table that does not fit in a core's first cache beside
/// the data. Pages hold shorter matches, and near ones: 5 bytes and a table of 16 KiB give blocks that are 2 % smaller
/// in four fifths of the time (`cargo run --release -p repo --example chunk_speed`).
fn zstd_compressor(level: i32, shortest: u32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    use zstd::zstd_safe::CParameter::{HashLog, MinMatch};
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    if level == 1 {
        compressor.set_parameter(MinMatch(shortest))?;
        compressor.set_parameter(HashLog(12))?;
    }
    Ok(compressor)
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most data differs within its first bytes; only what does not is looked at whole.
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|&b| b == 0) && rest.chunks(4096).all(|part| part.iter().fold(0, |all, &b| all | b) == 0)
}

/// Reads blocks. Keeps its working memory between calls.
pub struct BlockDecoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Default for BlockDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl BlockDecoder {
    /// A decoder for blocks of any codec.
    pub fn new() -> Self {
        Self { zstd: zstd::bulk::Decompressor::new().expect("a zstd context needs only memory") }
    }

    /// Decodes a block into `out`, whose length is the plain length the block must have.
    pub fn decode_into(&mut self, block: &[u8], out: &mut [u8]) -> Result<(), Malformed> {
        let Some((&codec, data)) = block.split_first() else {
            return Err(Malformed("empty block".into()));
        };
        let plain_len = match codec {
            c if c == Codec::Stored as u8 => {
                if data.len() == out.len() {
                    out.copy_from_slice(data);
                }
                data.len()
            }
            c if c == Codec::Zstd as u8 => {
                self.zstd.decompress_to_buffer(data, out).map_err(|e| Malformed(format!("zstd: {e}")))?
            }
            c if c == Codec::Lz4 as u8 => {
                lz4_flex::block::decompress_into(data, out).map_err(|e| Malformed(format!("lz4: {e}")))?
            }
            c if c == Codec::Zero as u8 && data.is_empty() => {
                out.fill(0);
                out.len()
            }
            other => return Err(Malformed(format!("unknown codec {other}"))),
        };
        if plain_len != out.len() {
            return Err(Malformed(format!("block holds {plain_len} bytes, {} expected", out.len())));
        }
        Ok(())
    }

    /// Decodes a block of `plain_len` bytes.
    pub fn decode(&mut self, block: &[u8], plain_len: usize) -> Result<Vec<u8>, Malformed> {
        let mut out = vec![0; plain_len];
        self.decode_into(block, &mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Compression; 4] = [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(-3)];

    proptest! {
        #[test]
        fn blocks_round_trip(plain in prop::collection::vec(any::<u8>(), 0..2000), repeat in 1usize..20) {
            let plain = plain.repeat(repeat);
            for compression in ALL {
                let mut out = vec![9];
                let len = BlockEncoder::new(compression).encode(&plain, &mut out);
                prop_assert_eq!(len + 1, out.len());
                prop_assert!(len <= plain.len() + 1);
                prop_assert_eq!(&BlockDecoder::new().decode(&out[1..], plain.len()).unwrap(), &plain);
                prop_assert!(BlockDecoder::new().decode(&out[1..], plain.len() + 1).is_err() || is_zero(&plain));
            }
        }

        #[test]
        fn decoding_never_panics(block: Vec<u8>, len in 0usize..5000) {
            let _ = BlockDecoder::new().decode(&block, len);
        }
    }

    #[test]
    fn zeros_take_no_room() {
        let mut out = Vec::new();
        assert_eq!(BlockEncoder::new(Compression::Zstd(1)).encode(&[0; 100_000], &mut out), 1);
        let mut almost = vec![0; 100_000];
        almost[99_999] = 1;
        assert!(!is_zero(&almost));
    }

    #[test]
    fn compression_is_parsed() {
        assert_eq!("zstd:3".parse(), Ok(Compression::Zstd(3)));
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        for bad in ["", "gzip", "zstd:99", "zstd:x", "lz4:1", "none:0"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad:?}");
        }
    }
}
