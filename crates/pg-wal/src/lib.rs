//! WAL pages → records → block references, transactions, restore points.
//!
//! Pure code over bytes in memory: no I/O, no clock, no environment. Whatever the bytes are, nothing here panics;
//! what can be read is returned together with what was wrong and where. Facts differ between major versions and
//! every fact names the file of PostgreSQL's source it comes from.
//!
//! * [`page`]: page headers, the magic of each major version, [`peek_segment`].
//! * [`reader`]: [`SegmentReader`] walks one segment alone: head fragment, whole records, tail fragment, end.
//! * [`record`]: record headers and block references; [`image`]: full-page images back to pages.
//! * [`event`]: what a record says (commits, checkpoints, restore points, files made, cut or dropped).
//! * [`heap`]: what heap records do to rows.
//! * [`join`]: records that cross segments. [`facts`]: [`scan_segment`], all that is said about a segment, in one pass.
//! * [`index`]: which blocks, rows and transactions a stretch of WAL changed.

pub mod error;
pub mod event;
pub mod facts;
pub mod heap;
pub mod image;
pub mod index;
pub mod join;
pub mod page;
pub mod pglz;
pub mod reader;
pub mod record;
pub mod rmgr;
pub mod types;

mod bytes;
mod crc;
mod xact;

pub use error::WalError;
pub use event::Event;
pub use facts::{SegmentFacts, scan_segment};
pub use image::restore_block_image;
pub use index::{IndexBuilder, IndexOptions, WalIndex, index_segment};
pub use join::{Joined, Joiner};
pub use page::{PageHeader, SegmentInfo, peek_segment};
pub use reader::{EndReason, Expected, Head, HeadState, SegmentReader, Tail};
pub use record::{BlockRef, Record, RecordBody, RecordHeader};
pub use rmgr::Rmgr;
pub use types::{BlockNumber, Fork, Lsn, Oid, PgMajor, RelFileLocator, SystemId, Timeline, TimestampTz, Xid};
