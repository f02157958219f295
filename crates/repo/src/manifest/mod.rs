//! Manifests: what a backup is (docs/format.md section 9). Written and read as a stream, in memory that does not
//! grow with the number of files.

mod entry;
mod facts;
mod reader;
mod writer;

pub use entry::{FileEntry, FileType, NameEntry, Place, Settled};
pub use facts::{
    ChangeDetection, Collation, ConfigFile, DamagedPage, HostFacts, LookAgain, ManifestFacts, Numbers, Owner,
    TablespaceFacts,
};
pub use reader::{FileBlocks, Manifest, NameBlocks, PackUse};
pub use writer::ManifestWriter;

/// The longest path of a file in a backup, in bytes.
pub(crate) const PATH_LEN_MAX: u64 = 4096;
const SECTION_FACTS: u8 = 1;
const SECTION_PACKS: u8 = 2;
const SECTION_NAMES: u8 = 3;
const SECTION_FILES: u8 = 4;
const SECTION_INDEX: u8 = 5;
const FACTS_MAX: u64 = 64 << 20;
const PACKS_MAX: u64 = 256 << 20;
const INDEX_MAX: u64 = 256 << 20;
/// Plain bytes after which a block of entries is closed.
const BLOCK_LEN: usize = 64 << 10;
const BLOCK_MAX: u64 = 16 << 20;

#[cfg(test)]
mod tests;
