//! Logical dumps: streams of bytes in data objects, and a manifest that says what they are (docs/format.md section 17).
//!
//! What the streams hold (COPY data, large objects, archives of definitions) is the `dump` crate's to know; here they are bytes.

mod cluster;
mod copy;
mod facts;
mod manifest;
mod names;
mod object;
mod sum;

pub use cluster::{DumpDeletion, DumpObject};
pub use facts::{DataKind, DumpFacts, DumpIntent, DumpedData, DumpedDatabase, DumpedPart, ImportedDump, Unread};
pub use manifest::DumpManifest;
pub use object::{DumpDataReader, DumpDataWriter, DumpEncoder, EncodedPiece};
pub use sum::{PieceHash, RowSum};

/// A data object is closed when it has this many bytes.
pub const DATA_OBJECT_LEN: u64 = 64 << 20;
/// The most plain bytes of a chunk of a stream.
pub const PIECE_MAX: u64 = 2 << 20;
