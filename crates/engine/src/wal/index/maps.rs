//! Where mapped catalogs lie, followed through WAL: who reads segments as they come, without the server's data directory,
//! knows it from there.

use super::IndexedRun;
use super::border::Border;
use super::rebuild::{Moved, told_by};
use crate::EngineError;
use pg_format::SegmentName;
use pg_wal::{Expected, IndexOptions, index_segment};
use repo::wal::{Fragments, WalFacts};

/// `RELMAPPER_FILEMAGIC` (`src/backend/utils/cache/relmapper.c`): each relation map begins with it, in a file and in WAL.
pub(crate) const RELMAP_MAGIC: u32 = 0x0059_2717;

/// Records begin at multiples of it (`MAXALIGN`), and pages' headers are so long.
const ALIGNED: usize = 8;
/// Where the map begins in its record, modulo that: behind the record's header (24 bytes), sometimes its origin (3) and its
/// top-level transaction (5), the header of the main data (5) and `xl_relmap_update` without the map (12; `xloginsert.c`).
const MAP_AT: [usize; 3] = [(24 + 5 + 12) % ALIGNED, (24 + 3 + 5 + 12) % ALIGNED, (24 + 5 + 5 + 12) % ALIGNED];

/// Whether a segment may hold the beginning of a relation map. For all but the last form of the record it is certain that
/// no page's header lies within the magic; that one is written by subtransactions only, which rewrite no catalogs.
pub(crate) fn may_have_map(segment: &[u8]) -> bool {
    let magic = RELMAP_MAGIC.to_le_bytes();
    let has = |bytes: &[u8]| MAP_AT.iter().any(|at| bytes[*at..*at + 4] == magic);
    segment.windows(ALIGNED + 4).step_by(ALIGNED).any(has)
}

/// Reads maps out of segments that follow each other.
#[derive(Default)]
pub(crate) struct MapReader {
    border: Option<Border>,
}

impl MapReader {
    /// The catalogs that a segment says lie elsewhere now, with what the record says that ends in its head.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(&mut self, name: SegmentName, plain: &[u8], expected: &Expected) -> Result<Moved, EngineError> {
        let bad = |error: pg_wal::WalError| EngineError::Failed {
            reason: format!("the WAL segment {name} cannot be read: {error}"),
            hint: None,
        };
        let (mut scan, index) = index_segment(plain, Some(expected), &IndexOptions::usual()).map_err(bad)?;
        let major = scan.info.major;
        let facts = WalFacts::of(&scan, name.timeline, major.facts().wal_page_magic, plain);
        let fragments = Fragments::take(&mut scan);
        let run = IndexedRun { first: name, count: 1, facts: vec![facts], fragments, index: index.map_err(bad)? };
        let joined = self.border.get_or_insert_with(|| Border::new(major)).enter(&run)?;
        let mut told = joined.as_ref().map(told_by).unwrap_or_default();
        told.extend(told_by(&run.index));
        Ok(told)
    }
}
