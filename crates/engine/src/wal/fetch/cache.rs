//! Segments fetched ahead of replay, as files on this host.
//!
//! A file is a plain segment followed by its BLAKE3, so that what a crash left half written is recognised. It gets its
//! name when it is whole, and is deleted when it is used. Several recoveries may share the directory: one that finds a
//! file gone fetches for itself.

use crate::EngineError;
use pg_format::{SegmentName, SystemId};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is left lying this long belongs to a recovery that is over.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const TEMP: &str = ".tmp";
const HASH_LEN: usize = 32;

/// The files of one cluster's WAL from one repository.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
    bytes_max: u64,
}

impl Cache {
    pub(super) fn new(dir: &Path, key: &str, bytes_max: u64) -> Self {
        let hash = blake3::hash(key.as_bytes()).to_hex();
        Self { dir: dir.join(format!("wal-fetch-{}", &hash[..16])), bytes_max }
    }

    fn path(&self, system: SystemId, name: SegmentName) -> PathBuf {
        self.dir.join(format!("{system}-{name}"))
    }

    pub(super) fn has(&self, system: SystemId, name: SegmentName) -> bool {
        self.path(system, name).exists()
    }

    /// Takes a segment out. What is not whole is deleted and not given.
    pub(super) fn take(&self, system: SystemId, name: SegmentName) -> Option<Vec<u8>> {
        let path = self.path(system, name);
        let mut content = fs::read(&path).ok()?;
        let _ = fs::remove_file(&path);
        let plain_len = content.len().checked_sub(HASH_LEN)?;
        let whole = blake3::hash(&content[..plain_len]).as_bytes()[..] == content[plain_len..];
        content.truncate(plain_len);
        whole.then_some(content)
    }

    /// Puts a segment in. Not synced to disk: after a crash it is fetched again.
    pub(super) fn put(&self, system: SystemId, name: SegmentName, plain: &[u8]) -> Result<(), EngineError> {
        let path = self.path(system, name);
        let temp = self.dir.join(format!("{system}-{name}.{}{TEMP}", std::process::id()));
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let mut file = File::create(&temp)?;
            file.write_all(plain)?;
            file.write_all(blake3::hash(plain).as_bytes())?;
            fs::rename(&temp, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temp);
            EngineError::file(&path, "writing", error)
        })
    }

    /// Removes what is old, and says how many bytes may still be put in.
    pub(super) fn clean(&self, now: SystemTime) -> u64 {
        let Ok(entries) = fs::read_dir(&self.dir) else { return self.bytes_max };
        let mut used = 0;
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let age = meta.modified().ok().and_then(|time| now.duration_since(time).ok()).unwrap_or_default();
            if age > AGE_MAX {
                let _ = fs::remove_file(entry.path());
            } else {
                used += meta.len();
            }
        }
        self.bytes_max.saturating_sub(used)
    }

    /// Removes the segments of a timeline before this one: replay has passed them.
    pub(super) fn remove_before(&self, system: SystemId, name: SegmentName) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let cached = entry.file_name();
            let parsed = cached.to_str().and_then(|text| text.strip_prefix(&format!("{system}-"))?.parse().ok());
            if parsed.is_some_and(|cached: SegmentName| cached.timeline == name.timeline && cached < name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_taken_once_and_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "k", 1000);
        let (system, name) = (SystemId(7), "000000010000000000000003".parse().unwrap());
        cache.put(system, name, b"plain").unwrap();
        assert!(cache.has(system, name) && !cache.has(SystemId(8), name));
        assert_eq!(cache.clean(SystemTime::now()), 1000 - 37);
        assert_eq!(cache.take(system, name).as_deref(), Some(&b"plain"[..]));
        assert_eq!(cache.take(system, name), None);
        cache.put(system, name, b"plain").unwrap();
        let path = cache.path(system, name);
        for damage in [&b""[..], b"pl", b"plain and something longer than a hash has"] {
            fs::write(&path, damage).unwrap();
            assert_eq!(cache.take(system, name), None);
            assert!(!path.exists());
        }
        cache.put(system, name, b"plain").unwrap();
        cache.remove_before(system, name);
        assert!(path.exists());
        cache.remove_before(SystemId(8), "000000010000000000000004".parse().unwrap());
        cache.remove_before(system, "000000020000000000000004".parse().unwrap());
        assert!(path.exists());
        cache.remove_before(system, "000000010000000000000004".parse().unwrap());
        assert!(!path.exists());
        cache.put(system, name, b"plain").unwrap();
        assert_eq!(cache.clean(SystemTime::now() + AGE_MAX * 2), 1000);
        assert!(!path.exists());
    }
}
