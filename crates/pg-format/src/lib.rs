//! Facts about PostgreSQL's files, as pure code.
//!
//! What is here: log sequence numbers and names of WAL files, `pg_control`, pages with their checksums and the
//! masking of hint bits, the names of relation files, what a base backup omits, `backup_label`, `tablespace_map`,
//! timeline histories, `backup_manifest`, configuration files and WAL summaries, for PostgreSQL 14 to 18.
//!
//! What is not here: no I/O, clock, environment, async or `unsafe`; nothing about WAL records (see `pg-wal`).
//! Parsing never panics, whatever the input. Files are read in little-endian order, as x86-64 and aarch64 write them.

pub mod backup_label;
pub mod backup_manifest;
pub mod byte_size;
mod bytes;
pub mod conf;
pub mod control;
pub mod error;
pub mod exclude;
pub mod history;
pub mod ids;
pub mod lsn;
pub mod mask;
pub mod page;
pub mod relpath;
pub mod tablespace_map;
pub mod timestamp;
pub mod version;
pub mod wal_name;
pub mod wal_summary;

pub use backup_label::BackupLabel;
pub use backup_manifest::BackupManifest;
pub use byte_size::ByteSize;
pub use control::{ControlFile, DbState, WalLevel};
pub use error::FormatError;
pub use exclude::{Verdict, classify};
pub use history::TimelineHistory;
pub use ids::{BlockNumber, Oid, SystemId, Timeline};
pub use lsn::Lsn;
pub use mask::{MaskOptions, PageLsn, mask_page, mask_page_with};
pub use page::{PageCheck, PageHeader, check_page, page_checksum};
pub use relpath::{Fork, RelFile};
pub use tablespace_map::TablespaceMap;
pub use timestamp::TimestampTz;
pub use version::{PgMajor, VersionFacts};
pub use wal_name::{SegmentName, WalFileName, WalSegmentSize, XLogSegNo};
pub use wal_summary::WalSummary;
