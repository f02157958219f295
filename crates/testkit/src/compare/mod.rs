//! Is a restored cluster the same as its origin? Page by page, and by PostgreSQL's own judgement.
//!
//! [`compare_dirs`] takes two stopped data directories that have replayed WAL to the same point; [`amcheck`],
//! [`checksums`] and [`dumps_are_equal`] ask PostgreSQL's programs.

mod files;
mod maps;
mod oracles;

pub use files::{Comparison, CopyOf, Difference, compare_dirs, compare_dirs_with};
pub use maps::visibility_maps_are_sane;
pub use oracles::{amcheck, checksums, controldata, dumps_are_equal, index_only_scans_agree, visibility_is_true};
