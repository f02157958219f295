//! Records and their block references (`access/xlogrecord.h`; `DecodeXLogRecord` in `access/transam/xlogreader.c`).

use std::ops::Range;

use crate::bytes::{Cursor, u32_at, u64_at};
use crate::crc::record_crc;
use crate::error::WalError;
use crate::image::ImageInfo;
use crate::rmgr::Rmgr;
use crate::types::{BlockNumber, Fork, Lsn, PgMajor, RelFileLocator, Xid};

/// `SizeOfXLogRecord`.
pub const HEADER_LEN: usize = 24;
/// The longest record a reader can hold: `MaxAllocSize` (`utils/memutils.h`), as older minor releases did not have
/// `XLogRecordMaxSize`.
pub const RECORD_LEN_MAX: u32 = 0x3FFF_FFFF;
/// `XLR_MAX_BLOCK_ID`.
pub const BLOCK_ID_MAX: u8 = 32;

const BLOCK_ID_DATA_SHORT: u8 = 255;
const BLOCK_ID_DATA_LONG: u8 = 254;
const BLOCK_ID_ORIGIN: u8 = 253;
const BLOCK_ID_TOPLEVEL_XID: u8 = 252;

/// The header of a record (`XLogRecord`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// `xl_tot_len`: the whole record with this header.
    pub total_len: u32,
    /// `xl_xid`; 0 when no transaction wrote it.
    pub xid: Xid,
    /// `xl_prev`: where the record before begins.
    pub prev: Lsn,
    /// `xl_info`.
    pub info: u8,
    /// `xl_rmid`.
    pub rmid: u8,
    /// `xl_crc`.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header as it stands, without judging it; `None` when the bytes are too few.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_LEN>()?;
        Some(Self {
            total_len: u32_at(bytes, 0)?,
            xid: u32_at(bytes, 4)?,
            prev: Lsn(u64_at(bytes, 8)?),
            info: bytes[16],
            rmid: bytes[17],
            crc: u32_at(bytes, 20)?,
        })
    }

    /// The bits of `xl_info` that the resource manager uses (`XLR_RMGR_INFO_MASK`).
    #[inline]
    pub fn op(&self) -> u8 {
        self.info & 0xF0
    }

    /// Changes relation files in ways that block references do not tell (`XLR_SPECIAL_REL_UPDATE`).
    pub fn is_special_rel_update(&self) -> bool {
        self.info & 0x01 != 0
    }

    /// `wal_consistency_checking` was on for this record (`XLR_CHECK_CONSISTENCY`).
    pub fn is_consistency_check(&self) -> bool {
        self.info & 0x02 != 0
    }
}

/// One block a record touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRef {
    /// The number the record gives it.
    pub id: u8,
    /// Which fork.
    pub fork: Fork,
    /// Which relation.
    pub rel: RelFileLocator,
    /// Which block of the fork.
    pub block: BlockNumber,
    /// The flags in the upper half of `fork_flags`.
    pub flags: u8,
    /// The full-page image, when there is one.
    pub image: Option<ImageInfo>,
    /// Where the data of this block lies in the record; empty when there is none.
    pub data: Range<u32>,
}

impl BlockRef {
    /// Replay makes the page anew (`BKPBLOCK_WILL_INIT`).
    pub fn will_init(&self) -> bool {
        self.flags & 0x40 != 0
    }
    /// The relation was written as "the same as before" (`BKPBLOCK_SAME_REL`).
    pub fn is_same_rel(&self) -> bool {
        self.flags & 0x80 != 0
    }
}

/// What the headers inside a record say; kept apart from the bytes so that it can be used again for the next record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordBody {
    /// The blocks touched, by rising id.
    pub blocks: Vec<BlockRef>,
    /// Where the main data lies in the record.
    pub main_data: Range<u32>,
    /// The replication origin, when it is written.
    pub origin: Option<u16>,
    /// The top-level transaction, when it is written (`wal_level=logical`, subtransactions).
    pub toplevel_xid: Option<Xid>,
}

impl RecordBody {
    /// Decodes the insides of `record`, a whole record with its header.
    ///
    /// `block_size` is the size of relation pages (`BLCKSZ`), which WAL does not say; 8192 unless built otherwise.
    ///
    /// # Errors
    /// [`WalError::BadRecord`]; what was decoded until then stays.
    #[inline]
    pub fn decode(&mut self, lsn: Lsn, record: &[u8], major: PgMajor, block_size: u32) -> Result<(), WalError> {
        self.blocks.clear();
        self.main_data = 0..0;
        self.origin = None;
        self.toplevel_xid = None;
        self.decode_inner(record, major, block_size).map_err(|what| WalError::BadRecord { lsn, what })
    }

    fn decode_inner(&mut self, record: &[u8], major: PgMajor, block_size: u32) -> Result<(), &'static str> {
        const SHORT: &str = "it is shorter than its parts";
        let mut cursor = Cursor::new(record);
        cursor.take(HEADER_LEN).ok_or(SHORT)?;
        let mut data_total: usize = 0;
        let mut main_len: usize = 0;
        let mut last_rel = None;
        let mut last_id: Option<u8> = None;
        while cursor.remaining() > data_total {
            let id = cursor.u8().ok_or(SHORT)?;
            match id {
                BLOCK_ID_DATA_SHORT => {
                    main_len = usize::from(cursor.u8().ok_or(SHORT)?);
                    data_total += main_len;
                    break;
                }
                BLOCK_ID_DATA_LONG => {
                    main_len = cursor.u32().ok_or(SHORT)? as usize;
                    data_total += main_len;
                    break;
                }
                BLOCK_ID_ORIGIN => self.origin = Some(cursor.u16().ok_or(SHORT)?),
                BLOCK_ID_TOPLEVEL_XID => self.toplevel_xid = Some(cursor.u32().ok_or(SHORT)?),
                0..=BLOCK_ID_MAX => {
                    if last_id.is_some_and(|last| id <= last) {
                        return Err("its block references are out of order");
                    }
                    last_id = Some(id);
                    let block = read_block_header(&mut cursor, id, &mut last_rel, major, block_size)?;
                    data_total += block.image.as_ref().map_or(0, |image| usize::from(image.len));
                    data_total += block.data.len();
                    self.blocks.push(block);
                }
                _ => return Err("it has a part of unknown kind"),
            }
        }
        if cursor.remaining() != data_total {
            return Err(SHORT);
        }
        // The parts follow in the order of their headers: per block its image then its data, then the main data.
        let mut at = cursor.at() as u32;
        for block in &mut self.blocks {
            if let Some(image) = &mut block.image {
                image.at = at;
                at += u32::from(image.len);
            }
            let len = block.data.end;
            block.data = at..at + len;
            at += len;
        }
        self.main_data = at..at + main_len as u32;
        Ok(())
    }
}

/// Reads `XLogRecordBlockHeader` and what follows it. The place of the data is not known yet: its range begins at 0.
#[inline]
fn read_block_header(
    cursor: &mut Cursor<'_>,
    id: u8,
    last_rel: &mut Option<RelFileLocator>,
    major: PgMajor,
    block_size: u32,
) -> Result<BlockRef, &'static str> {
    const SHORT: &str = "it ends inside a block header";
    let fork_flags = cursor.u8().ok_or(SHORT)?;
    let fork = Fork::from_number(u32::from(fork_flags & 0x0F)).ok_or("it names an unknown fork")?;
    let flags = fork_flags & 0xF0;
    let data_len = cursor.u16().ok_or(SHORT)?;
    if (flags & 0x20 != 0) != (data_len > 0) {
        return Err("its flag for block data does not fit the data's length");
    }
    let image = if flags & 0x10 != 0 { Some(ImageInfo::read(cursor, major, block_size)?) } else { None };
    let rel = if flags & 0x80 == 0 {
        let rel = cursor.rel_file().ok_or(SHORT)?;
        *last_rel = Some(rel);
        rel
    } else {
        last_rel.ok_or("it refers to the same relation as before, with none before")?
    };
    let block = BlockNumber(cursor.u32().ok_or(SHORT)?);
    Ok(BlockRef { id, fork, rel, block, flags, image, data: 0..u32::from(data_len) })
}

/// A whole record, checked and decoded.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it begins.
    pub lsn: Lsn,
    /// Where it ends, aligned; what `XLogInsert` returns and functions like `pg_create_restore_point` show. When it
    /// ends with a page, this is the start of the next page, before its header.
    pub end_lsn: Lsn,
    /// Its header.
    pub header: RecordHeader,
    /// Who wrote it.
    pub rmgr: Rmgr,
    /// All its bytes, header included, page headers taken out.
    pub bytes: &'a [u8],
    /// Its parts.
    pub body: &'a RecordBody,
    /// The version that wrote it.
    pub major: PgMajor,
}

impl<'a> Record<'a> {
    /// The blocks it touches.
    pub fn blocks(&self) -> &'a [BlockRef] {
        &self.body.blocks
    }

    /// The data that belongs to no block.
    pub fn main_data(&self) -> &'a [u8] {
        slice(self.bytes, &self.body.main_data)
    }

    /// The data of one of its blocks.
    pub fn block_data(&self, block: &BlockRef) -> &'a [u8] {
        slice(self.bytes, &block.data)
    }

    /// The stored image of one of its blocks, as it stands: maybe compressed, without its hole.
    pub fn block_image(&self, block: &BlockRef) -> Option<&'a [u8]> {
        let image = block.image.as_ref()?;
        Some(slice(self.bytes, &(image.at..image.at + u32::from(image.len))))
    }
}

fn slice<'a>(bytes: &'a [u8], range: &Range<u32>) -> &'a [u8] {
    bytes.get(range.start as usize..range.end as usize).unwrap_or_default()
}

/// Checks a header by itself, as `ValidXLogRecordHeader` does: length, resource manager and the link back.
#[inline]
pub(crate) fn check_header(
    lsn: Lsn,
    header: &RecordHeader,
    prev: Option<Lsn>,
    major: PgMajor,
) -> Result<Rmgr, WalError> {
    if header.total_len < HEADER_LEN as u32 || header.total_len > RECORD_LEN_MAX {
        return Err(WalError::BadRecordLength { lsn, length: header.total_len });
    }
    let rmgr = Rmgr::from_id(header.rmid, major).ok_or(WalError::UnknownRmgr { lsn, rmgr: header.rmid })?;
    let linked = match prev {
        Some(prev) => header.prev == prev,
        None => header.prev < lsn,
    };
    if linked { Ok(rmgr) } else { Err(WalError::BadPrevLink { lsn, found: header.prev }) }
}

/// Checks the record's checksum.
#[inline]
pub(crate) fn check_crc(lsn: Lsn, header: &RecordHeader, record: &[u8]) -> Result<(), WalError> {
    if record_crc(record) == header.crc { Ok(()) } else { Err(WalError::BadCrc { lsn }) }
}
