//! Compressing what is exported, piece by piece.

use crate::DumpError;
use crate::archive::ArchiveCompression;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use std::io::Write;

/// How a compressed stream is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapping {
    /// As in the blocks of a custom-format archive: zlib's own.
    Block,
    /// As a file of its own: gzip's.
    File,
}

/// Takes plain bytes and gives compressed ones, as they come.
pub(super) enum Packer {
    None,
    Zlib(ZlibEncoder<Vec<u8>>),
    Gzip(GzEncoder<Vec<u8>>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

fn failed(error: std::io::Error) -> DumpError {
    DumpError::Failed { reason: format!("compressing failed: {error}"), hint: None }
}

impl Packer {
    pub(super) fn new(compression: ArchiveCompression, wrapping: Wrapping) -> Result<Self, DumpError> {
        Ok(match (compression, wrapping) {
            (ArchiveCompression::None, _) => Self::None,
            (ArchiveCompression::Gzip(level), Wrapping::Block) => {
                Self::Zlib(ZlibEncoder::new(Vec::new(), Compression::new(level.clamp(1, 9) as u32)))
            }
            (ArchiveCompression::Gzip(level), Wrapping::File) => {
                Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(level.clamp(1, 9) as u32)))
            }
            (ArchiveCompression::Lz4, _) => Self::Lz4(Box::new(lz4_flex::frame::FrameEncoder::new(Vec::new()))),
            (ArchiveCompression::Zstd(level), _) => {
                Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), level).map_err(failed)?)
            }
        })
    }

    /// Compresses a piece, away from the threads that must not be held up; gives what is ready.
    pub(super) async fn pack(self, plain: Vec<u8>) -> Result<(Self, Vec<u8>), DumpError> {
        if matches!(self, Self::None) {
            return Ok((self, plain));
        }
        let work = move || {
            let mut packer = self;
            let ready = packer.write(&plain).map_err(failed)?;
            Ok((packer, ready))
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
            Err(DumpError::Failed { reason: format!("compressing stopped: {panic}"), hint: None })
        })
    }

    fn write(&mut self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        Ok(match self {
            Self::None => plain.to_vec(),
            Self::Zlib(encoder) => {
                encoder.write_all(plain)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Gzip(encoder) => {
                encoder.write_all(plain)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Lz4(encoder) => {
                encoder.write_all(plain)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Zstd(encoder) => {
                encoder.write_all(plain)?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    /// The end of the stream.
    pub(super) fn finish(self) -> Result<Vec<u8>, DumpError> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Zlib(encoder) => encoder.finish().map_err(failed),
            Self::Gzip(encoder) => encoder.finish().map_err(failed),
            Self::Lz4(encoder) => encoder.finish().map_err(|error| failed(std::io::Error::other(error))),
            Self::Zstd(encoder) => encoder.finish().map_err(failed),
        }
    }
}

/// What a compressed file's name ends with.
pub(super) fn suffix(compression: ArchiveCompression) -> &'static str {
    match compression {
        ArchiveCompression::None => "",
        ArchiveCompression::Gzip(_) => ".gz",
        ArchiveCompression::Lz4 => ".lz4",
        ArchiveCompression::Zstd(_) => ".zst",
    }
}
