//! What earlier calls pushed ahead of PostgreSQL asking for it, in a small file.
//!
//! An entry is written only after its object is durable, and believed only when the file is the very same one: device,
//! inode, size, times of change. The file is replaced whole; losing it, or an entry when two calls write at the same
//! time, costs a second push and nothing else.

use crate::EngineError;
use pg_format::SystemId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A state file larger than this is not one of ours.
const STATE_BYTES_MAX: u64 = 4 << 20;
const VERSION: u32 = 2;

/// Which file it was: what changes when it is written again or replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl FileIdentity {
    pub(super) fn of(meta: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A file that is in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) system_id: SystemId,
    pub(super) identity: FileIdentity,
    /// The object's path in the repository.
    pub(super) object: String,
    /// BLAKE3 of the content that was pushed.
    pub(super) hash: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    version: u32,
    entries: Vec<Entry>,
}

/// The files that are known to be in the repository.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: Vec<Entry>,
}

/// Where the state of one cluster in one repository lies.
pub(super) fn path_of(dir: &Path, key: &str) -> PathBuf {
    let hash = blake3::hash(key.as_bytes()).to_hex();
    dir.join(format!("wal-push-{}.json", &hash[..16]))
}

impl State {
    /// Reads it; what cannot be read is as good as nothing.
    pub(super) fn load(path: &Path) -> Self {
        let read = || {
            let file = File::open(path).ok()?;
            let len = file.metadata().ok()?.len();
            if len > STATE_BYTES_MAX {
                return None;
            }
            let state: StateFile = serde_json::from_reader(std::io::BufReader::new(file)).ok()?;
            (state.version == VERSION).then_some(state.entries)
        };
        Self { entries: read().unwrap_or_default() }
    }

    /// The entry for a file, when it is still the same one.
    pub(super) fn find(&self, name: &str, identity: &FileIdentity) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name && entry.identity == *identity)
    }

    /// Writes it whole under another name, and puts that in its place.
    pub(super) fn save(self, path: &Path) -> Result<(), EngineError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|error| EngineError::file(dir, "making the directory", error))?;
        let temp = path.with_extension(format!("{}-{:08x}.tmp", std::process::id(), random_u32()));
        let write = || {
            let state = StateFile { version: VERSION, entries: self.entries };
            let text = serde_json::to_vec(&state).map_err(std::io::Error::other)?;
            let mut file = File::create_new(&temp)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temp, path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temp);
            EngineError::file(path, "writing", error)
        })
    }
}

fn random_u32() -> u32 {
    let mut bytes = [0; 4];
    // Without random numbers two calls of one process may meet; `create_new` then fails, and only work is lost.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_file_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("000000010000000000000001");
        fs::write(&file, "one").unwrap();
        let identity = FileIdentity::of(&fs::metadata(&file).unwrap());
        let path = path_of(dir.path(), "repo/main");
        assert_ne!(path, path_of(dir.path(), "repo/other"));
        let entry = Entry {
            name: "x".into(),
            system_id: SystemId(7),
            identity: identity.clone(),
            object: "o".into(),
            hash: "00".into(),
        };
        State { entries: vec![entry.clone()] }.save(&path).unwrap();
        assert_eq!(State::load(&path).find("x", &identity), Some(&entry));
        assert_eq!(State::load(&path).find("y", &identity), None);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "two").unwrap();
        let other = FileIdentity::of(&fs::metadata(&file).unwrap());
        assert_eq!(State::load(&path).find("x", &other), None, "same name, same size, another file");
    }

    #[test]
    fn a_torn_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_of(dir.path(), "k");
        for content in ["", "{", "{\"version\":2,\"entries\":[]}", "\0\0\0\0"] {
            fs::write(&path, content).unwrap();
            assert!(State::load(&path).entries.is_empty(), "{content:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
