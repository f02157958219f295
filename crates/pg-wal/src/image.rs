//! Full-page images: their headers, and the page they stand for (`RestoreBlockImage`, `access/transam/xlogreader.c`).

use crate::bytes::Cursor;
use crate::error::WalError;
use crate::pglz;
use crate::record::{BlockRef, Record};
use crate::types::PgMajor;

/// How an image is compressed (`wal_compression`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCompression {
    /// Not at all.
    None,
    /// PostgreSQL's own; the only one in 14.
    Pglz,
    /// LZ4 block format, 15 and later.
    Lz4,
    /// Zstandard, 15 and later.
    Zstd,
}

/// The header of an image (`XLogRecordBlockImageHeader`, `XLogRecordBlockCompressHeader`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Bytes stored.
    pub len: u16,
    /// Where they lie in the record.
    pub at: u32,
    /// Bytes before the hole.
    pub hole_offset: u16,
    /// Bytes of the hole, which are zeros and not stored.
    pub hole_len: u16,
    /// How the bytes are compressed.
    pub compression: ImageCompression,
    /// Replay puts the image in place; without it the image only serves `wal_consistency_checking`.
    pub apply: bool,
    /// The size of the page it makes.
    pub page_size: u32,
}

const HAS_HOLE: u8 = 0x01;

/// Meaning of `bimg_info`: the bits moved between 14 and 15. An image may carry one method only.
fn read_flags(info: u8, major: PgMajor) -> Result<(ImageCompression, bool), &'static str> {
    const UNKNOWN: &str = "its image has unknown flags";
    if major == PgMajor::V14 {
        if info & !0x07 != 0 {
            return Err(UNKNOWN);
        }
        let compression = if info & 0x02 != 0 { ImageCompression::Pglz } else { ImageCompression::None };
        return Ok((compression, info & 0x04 != 0));
    }
    let compression = match info & !0x03 {
        0x00 => ImageCompression::None,
        0x04 => ImageCompression::Pglz,
        0x08 => ImageCompression::Lz4,
        0x10 => ImageCompression::Zstd,
        _ => return Err(UNKNOWN),
    };
    Ok((compression, info & 0x02 != 0))
}

impl ImageInfo {
    /// Reads the header; the place of the bytes is not known yet and stays 0.
    pub(crate) fn read(cursor: &mut Cursor<'_>, major: PgMajor, block_size: u32) -> Result<Self, &'static str> {
        const SHORT: &str = "it ends inside an image header";
        let len = cursor.u16().ok_or(SHORT)?;
        let hole_offset = cursor.u16().ok_or(SHORT)?;
        let info = cursor.u8().ok_or(SHORT)?;
        let (compression, apply) = read_flags(info, major)?;
        let has_hole = info & HAS_HOLE != 0;
        let compressed = compression != ImageCompression::None;
        let hole_len = match (compressed, has_hole) {
            (true, true) => cursor.u16().ok_or(SHORT)?,
            (true, false) => 0,
            (false, _) => {
                let hole = block_size.checked_sub(u32::from(len)).ok_or("its image is longer than a page")?;
                u16::try_from(hole).map_err(|_| "its image has an impossible hole")?
            }
        };
        if has_hole && (hole_offset == 0 || hole_len == 0 || u32::from(len) == block_size) {
            return Err("its image has an empty hole");
        }
        if !has_hole && (hole_offset != 0 || hole_len != 0) {
            return Err("its image has a hole without the flag for it");
        }
        if u32::from(hole_offset) + u32::from(hole_len) > block_size {
            return Err("its image has a hole beyond the page");
        }
        if compressed && u32::from(len) >= block_size {
            return Err("its compressed image is as long as a page");
        }
        Ok(Self { len, at: 0, hole_offset, hole_len, compression, apply, page_size: block_size })
    }
}

/// Makes the page that the image of `block` stands for, and returns its bytes in `page` (cleared first).
///
/// The page is as it was in shared buffers: its checksum is not set, and its LSN is that of an earlier record (replay
/// sets both).
///
/// # Errors
/// [`WalError::BadImage`] when there is no image, or when it does not decompress to a page.
pub fn restore_block_image(record: &Record<'_>, block: &BlockRef, page: &mut Vec<u8>) -> Result<(), WalError> {
    let bad = |what| WalError::BadImage { lsn: record.lsn, block_id: block.id, what };
    let (Some(info), Some(stored)) = (&block.image, record.block_image(block)) else {
        return Err(bad("the block has none"));
    };
    restore(info, stored, page).map_err(bad)
}

fn restore(info: &ImageInfo, stored: &[u8], page: &mut Vec<u8>) -> Result<(), &'static str> {
    const BAD: &str = "it does not decompress to a page";
    let page_size = info.page_size as usize;
    let (hole_at, hole_len) = (usize::from(info.hole_offset), usize::from(info.hole_len));
    let len = page_size.checked_sub(hole_len).filter(|len| hole_at <= *len).ok_or(BAD)?;
    page.clear();
    page.resize(page_size, 0);
    let packed = page.get_mut(..len).ok_or(BAD)?;
    let got = match info.compression {
        ImageCompression::None if stored.len() == len => {
            packed.copy_from_slice(stored);
            len
        }
        ImageCompression::None => 0,
        ImageCompression::Pglz => pglz::decompress(stored, packed).ok_or(BAD)?,
        ImageCompression::Lz4 => lz4_flex::block::decompress_into(stored, packed).map_err(|_| BAD)?,
        ImageCompression::Zstd => zstd::bulk::decompress_to_buffer(stored, packed).map_err(|_| BAD)?,
    };
    if got != len {
        return Err(BAD);
    }
    page.copy_within(hole_at..len, hole_at + hole_len);
    page[hole_at..hole_at + hole_len].fill(0);
    Ok(())
}
