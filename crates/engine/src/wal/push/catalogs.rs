//! Where the server's mapped catalogs lie, as far as whoever indexes its WAL knows: rows of a catalog that was rewritten
//! give names only to who knows its file.

use crate::wal::index::RELMAP_MAGIC;
use pg_wal::Oid;
use pg_wal::index::Catalog;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many databases are looked at; catalogs are rewritten seldom.
const DATABASES_MAX: usize = 10_000;
/// So many files of one catalog are known at most, the last ones: segments that wait were written with earlier ones.
const FILES_MAX: usize = 4;

/// The files of each catalog of each database, the latest last.
type Files = BTreeMap<(Oid, Catalog), Vec<u32>>;

/// Catalogs that do not lie in the file they had first. Shared: what one learns is used by all.
#[derive(Debug, Clone, Default)]
pub struct MovedCatalogs {
    files: Arc<Mutex<Files>>,
}

impl MovedCatalogs {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them: database, catalog, relfilenode.
    pub fn all(&self) -> Vec<(Oid, Catalog, u32)> {
        let files = self.files();
        let each = files
            .iter()
            .flat_map(|((database, catalog), files)| files.iter().map(move |file| (*database, *catalog, *file)));
        each.collect()
    }

    /// Adds some, the latest last. Says whether any was new.
    pub fn learn(&self, moved: impl IntoIterator<Item = (Oid, Catalog, u32)>) -> bool {
        let (mut files, mut new) = (self.files(), false);
        for (database, catalog, file) in moved {
            let known = files.entry((database, catalog)).or_default();
            if known.contains(&file) {
                continue;
            }
            if known.len() == FILES_MAX {
                known.remove(0);
            }
            known.push(file);
            new = true;
        }
        new
    }

    /// Those of the server with this data directory.
    pub fn of_data_dir(data_dir: &Path) -> Self {
        let moved = Self::default();
        moved.learn(moved_catalogs(data_dir));
        moved
    }
}

fn moved_catalogs(data_dir: &Path) -> Vec<(Oid, Catalog, u32)> {
    let mut moved = Vec::new();
    let mut read = |path: &Path, database| {
        if let Ok(bytes) = std::fs::read(path) {
            moved.extend(read_map(&bytes, database));
        }
    };
    read(&data_dir.join("global/pg_filenode.map"), Oid(0));
    let Ok(entries) = std::fs::read_dir(data_dir.join("base")) else { return moved };
    for entry in entries.flatten().take(DATABASES_MAX) {
        if let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            read(&entry.path().join("pg_filenode.map"), Oid(oid));
        }
    }
    moved
}

/// `RelMapFile`: magic, number of entries, entries of OID and relfilenode. What cannot be read is as it was at first:
/// then names are missing from the index, and nothing else.
pub(crate) fn read_map(bytes: &[u8], database: Oid) -> Vec<(Oid, Catalog, u32)> {
    let numbers: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let [RELMAP_MAGIC, count, entries @ ..] = &numbers[..] else { return Vec::new() };
    let entries = entries.as_chunks::<2>().0.iter().take(*count as usize);
    let moved = entries.filter_map(|entry| {
        let catalog = Catalog::of_oid(Oid(entry[0])).filter(|_| entry[0] != entry[1])?;
        Some((database, catalog, entry[1]))
    });
    moved.collect()
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

    #[test]
    fn the_last_files_are_kept() {
        let moved = MovedCatalogs::default();
        let (one, other) = ((Oid(5), Catalog::Class), (Oid(6), Catalog::Class));
        assert!(moved.learn((1..=6).map(|file| (one.0, one.1, file))));
        assert!(moved.clone().learn([(other.0, other.1, 3)]), "clones are the same");
        assert!(!moved.learn([(one.0, one.1, 6)]), "it is known");
        let all = moved.all();
        assert_eq!(all.iter().map(|(_, _, file)| *file).collect::<Vec<_>>(), [3, 4, 5, 6, 3]);
    }
}
