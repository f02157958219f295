//! Tar files as `pg_basebackup` makes and reads them (`src/port/tar.c`): ustar headers, sizes beyond 8 GiB in base 256.

mod compress;
pub(crate) mod decompress;
mod read;
mod write;

pub(crate) use compress::Compressor;
pub use compress::TarCompression;
pub(crate) use read::{Member, MemberKind, TarReader};
pub(crate) use write::{TarMeta, TarWriter, fits_name};

/// Everything in a tar file is a multiple of so many bytes.
pub(crate) const BLOCK: usize = 512;
