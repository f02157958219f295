//! The compression around a tar file.

use std::io::{self, Write};
use std::str::FromStr;

/// How a tar file is compressed: what `pg_basebackup` knows, done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarCompression {
    /// Not at all.
    None,
    /// gzip, with its level.
    Gzip(u32),
    /// lz4 frames.
    Lz4,
    /// zstd, with its level.
    Zstd(i32),
}

impl TarCompression {
    /// What the file's name ends with.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip(_) => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zstd(_) => ".zst",
        }
    }
}

impl FromStr for TarCompression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (method, level) = text.split_once(':').map_or((text, None), |(method, level)| (method, Some(level)));
        let level = level.map(|level| level.parse::<u32>().map_err(|_| format!("{level} is no level"))).transpose()?;
        let within = |max: u32, default: u32| match level.unwrap_or(default) {
            level if (1..=max).contains(&level) => Ok(level),
            level => Err(format!("{method} has levels 1 to {max}, not {level}")),
        };
        match method {
            "none" if level.is_none() => Ok(Self::None),
            "lz4" if level.is_none() => Ok(Self::Lz4),
            "gzip" => Ok(Self::Gzip(within(9, 6)?)),
            "zstd" => Ok(Self::Zstd(within(22, 3)? as i32)),
            _ => Err(format!("{text} is not none, gzip, gzip:LEVEL, lz4, zstd or zstd:LEVEL")),
        }
    }
}

/// Compresses what is written to it.
pub(crate) enum Compressor<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<W>>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    pub(crate) fn new(out: W, compression: TarCompression) -> io::Result<Self> {
        Ok(match compression {
            TarCompression::None => Self::None(out),
            TarCompression::Gzip(level) => {
                Self::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::new(level)))
            }
            TarCompression::Lz4 => Self::Lz4(Box::new(lz4_flex::frame::FrameEncoder::new(out))),
            TarCompression::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Ends the compressed stream.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(mut out) => out.flush().map(|()| out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::other),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            Self::Gzip(out) => out.write(bytes),
            Self::Lz4(out) => out.write(bytes),
            Self::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(out) => out.flush(),
            Self::Gzip(out) => out.flush(),
            Self::Lz4(out) => out.flush(),
            Self::Zstd(out) => out.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let check = |text: &str, expect: Option<TarCompression>| {
            assert_eq!(text.parse::<TarCompression>().ok(), expect, "{text}");
        };
        check("none", Some(TarCompression::None));
        check("gzip", Some(TarCompression::Gzip(6)));
        check("zstd:19", Some(TarCompression::Zstd(19)));
        check("lz4", Some(TarCompression::Lz4));
        for bad in ["", "gzip:0", "gzip:10", "zstd:x", "none:1", "lz4:3", "xz"] {
            check(bad, None);
        }
    }
}
