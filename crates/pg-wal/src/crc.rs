//! The checksum of records: CRC-32C (`port/pg_crc32c.h`).

use crate::record::HEADER_LEN;

/// The checksum a record should have: of everything after its header, then of the header up to `xl_crc`
/// (`ValidXLogRecord`, `access/transam/xlogreader.c`). `record` holds at least a header.
#[inline]
pub(crate) fn record_crc(record: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(record.get(HEADER_LEN..).unwrap_or_default());
    digest.update(record.get(..HEADER_LEN - 4).unwrap_or_default());
    digest.finalize() as u32
}
