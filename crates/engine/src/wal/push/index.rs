//! The index of a segment on its way into the repository. Without one it is archived all the same.

use pg_wal::index::Catalog;
use pg_wal::{Expected, IndexOptions, Oid, SegmentFacts, WalError, index_segment, scan_segment};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// `RELMAPPER_FILEMAGIC` (`src/backend/utils/cache/relmapper.c`).
const RELMAP_MAGIC: u32 = 0x0059_2717;
/// So many databases are looked at; catalogs are rewritten seldom.
const DATABASES_MAX: usize = 10_000;

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

/// The catalogs of the server with this data directory that do not lie in the file they had first.
pub(super) fn moved_catalogs(data_dir: &Path) -> Vec<(Oid, Catalog, u32)> {
    let mut moved = Vec::new();
    read_map(&data_dir.join("global/pg_filenode.map"), Oid(0), &mut moved);
    let Ok(entries) = std::fs::read_dir(data_dir.join("base")) else { return moved };
    for entry in entries.flatten().take(DATABASES_MAX) {
        if let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            read_map(&entry.path().join("pg_filenode.map"), Oid(oid), &mut moved);
        }
    }
    moved
}

/// `RelMapFile`: magic, number of entries, entries of OID and relfilenode. What cannot be read is as it was at first:
/// then names are missing from the index, and nothing else.
fn read_map(path: &Path, database: Oid, moved: &mut Vec<(Oid, Catalog, u32)>) {
    let Ok(bytes) = std::fs::read(path) else { return };
    let numbers: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let [RELMAP_MAGIC, count, entries @ ..] = &numbers[..] else { return };
    for entry in entries.as_chunks::<2>().0.iter().take(*count as usize) {
        if let Some(catalog) = Catalog::of_oid(Oid(entry[0])).filter(|_| entry[0] != entry[1]) {
            moved.push((database, catalog, entry[1]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewritten_catalogs_are_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(moved_catalogs(dir.path()).is_empty());
        let map = |path: &str, entries: &[(u32, u32)]| {
            let mut bytes = RELMAP_MAGIC.to_le_bytes().to_vec();
            bytes.extend((entries.len() as u32).to_le_bytes());
            entries.iter().for_each(|(oid, file)| bytes.extend([oid.to_le_bytes(), file.to_le_bytes()].concat()));
            bytes.resize(524, 0);
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        map("global/pg_filenode.map", &[(1262, 20000), (1213, 1213)]);
        map("base/5/pg_filenode.map", &[(1249, 30000), (1259, 30001)]);
        std::fs::write(dir.path().join("base/5/PG_VERSION"), "15").unwrap();
        std::fs::create_dir_all(dir.path().join("base/6")).unwrap();
        std::fs::write(dir.path().join("base/6/pg_filenode.map"), "torn").unwrap();
        assert_eq!(moved_catalogs(dir.path()), [(Oid(0), Catalog::Database, 20000), (Oid(5), Catalog::Class, 30001)]);
    }
}
