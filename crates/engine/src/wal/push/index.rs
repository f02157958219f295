//! The index of a segment on its way into the repository. Without one it is archived all the same.

use pg_wal::{Expected, IndexOptions, SegmentFacts, WalError, index_segment, scan_segment};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A segment's facts, and its index or why there is none.
pub(super) fn read(
    plain: &[u8],
    expected: &Expected,
    options: &IndexOptions,
) -> Result<(SegmentFacts, Result<Vec<u8>, String>), WalError> {
    // Nothing in it panics on any input that is known. But archiving must not end because of what only helps.
    let made = catch_unwind(AssertUnwindSafe(|| {
        let (facts, index) = index_segment(plain, Some(expected), options)?;
        let index = index.map_err(|error| error.to_string());
        let index = index.and_then(|index| repo::wal_index::encode(&index).map_err(|error| error.to_string()));
        Ok((facts, index))
    }));
    match made {
        Ok(result) => result,
        Err(_) => Ok((scan_segment(plain, Some(expected))?, Err("the indexer stopped at an error of its own".into()))),
    }
}
