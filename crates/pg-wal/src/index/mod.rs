//! What a stretch of WAL changed, small enough to be kept beside it: made once, asked for years.
//!
//! * [`Changes`]: which blocks of which forks, by the rules of `postmaster/walsummarizer.c` (17 and later), so that it
//!   can take the place of PostgreSQL's own WAL summaries in every version;
//! * [`Transaction`]: when and where each ended, and how many rows of which relation it changed;
//! * [`CatalogChange`]: rows of the catalogs that give names; [`Mark`]: everything else that has a place of its own.
//!
//! [`index_segment`] makes the index of one segment from the records that lie whole in it. Records that cross its
//! borders are in none: who reads an unbroken run joins them ([`crate::Joiner`]) and adds them with an
//! [`IndexBuilder`]. Indexes of neighbours are joined with [`WalIndex::append`].

mod builder;
mod catalog;
mod changes;
mod images;
mod marks;
mod merge;
mod rows;
mod xacts;

pub use builder::{IndexBuilder, IndexOptions, index_segment};
pub use catalog::{Catalog, CatalogChange, CatalogChangeKind, CatalogRow, ClassRow, RowImage, RowPatch, TupleId};
pub use changes::{Changes, DatabaseKey, ForkChanges, ForkKey};
pub use images::{ImageCount, Images};
pub use marks::{Mark, MarkKind};
pub use rows::{CatalogRows, RowChange, RowPlace};
pub use xacts::{Extent, Outcome, Prepared, RelationWork, RowCounts, Transaction, XactEndFacts};

use crate::types::{Lsn, RelFileLocator};

/// The index of a stretch of WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalIndex {
    /// Where the first record begins that it speaks of, at the earliest.
    pub start: Lsn,
    /// It speaks of no record that begins here or later.
    pub end: Lsn,
    /// Which blocks changed.
    pub changes: Changes,
    /// What happened at a place of its own, in the order of the WAL.
    pub marks: Vec<Mark>,
    /// Transactions: those that ended here in the order of their ends, then those of which only a part lies here, by
    /// id.
    pub transactions: Vec<Transaction>,
    /// Rows of catalogs, in the order of the WAL.
    pub catalog: Vec<CatalogChange>,
    /// How much WAL each relation took, by relation.
    pub volumes: Vec<RelationVolume>,
    /// Full-page images by minute; an index of before this was told has none.
    pub images: Images,
}

/// The WAL that one relation took. A record that touches several counts for that of its first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationVolume {
    /// The relation.
    pub rel: RelFileLocator,
    /// How many records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many full-page images.
    pub images: u64,
    /// The bytes of those.
    pub image_bytes: u64,
}
