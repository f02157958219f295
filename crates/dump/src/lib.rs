//! What pgkeep does with SQL: dumps of databases straight into the repository, and loading them.
//!
//! Definitions are pg_dump's own, of the version that fits: it writes its table of contents into a pipe and is stopped
//! before it reads data. The data are copied here, with many connections on one snapshot, and come back the same way;
//! everything else of a load is pg_restore's. The bytes in the repository are in `docs/format.md` section 17.
//!
//! What it is not: it knows nothing of data directories, pages or WAL, never prints, and reads no environment.

pub mod archive;
mod binary;
mod connection;
mod copy;
mod data;
pub mod deep;
mod definitions;
mod direct;
pub mod expire;
pub mod export;
pub mod import;
mod large_objects;
pub mod load;
mod made;
mod names;
mod options;
mod pieces;
mod reading;
pub mod replicate;
mod run;
mod scratch;
mod sink;
mod streams;
mod tables;
mod tools;
pub mod verify;

pub use connection::Server;
pub use direct::{DirectOptions, DirectReport, direct};
pub use made::DumpReport;
pub use options::{CopyFormat, Databases, DumpOptions, Globals, PATTERN_SWITCHES, RowSecurity, Selection};
pub use run::run;
pub use scratch::ScratchPlace;
pub use streams::StreamReader;
pub use tools::{ToolSet, Tools};

/// Every failure of a dump or a load: sorted by what it means for the user, as everywhere in the engine.
pub use engine::EngineError as DumpError;
