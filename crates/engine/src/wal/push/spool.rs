//! What the pushes of one server know of each other: a directory with a note for each file that is in the repositories
//! already, a lock for the one process that works in the background, and what an optional repository missed.
//!
//! A note is written only after its objects are durable, and believed only when the file is the very same one: device,
//! inode, size, times of change. Notes are not synced: one that is lost or torn costs a second push and nothing else.
//! What a repository missed is synced, because it is noted before the file is acknowledged.

use crate::EngineError;
use crate::wal::lock::WorkerLock;
use pg_format::{SystemId, WalFileName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A note larger than this is not one of ours.
const NOTE_BYTES_MAX: u64 = 1 << 20;
const VERSION: u32 = 3;
const NOTE: &str = "note";
const FAILED: &str = "failed";

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

/// A file that is in all repositories that must have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    pub(super) version: u32,
    pub(super) name: String,
    pub(super) system_id: SystemId,
    pub(super) identity: FileIdentity,
    /// The object's path, the same in each repository.
    pub(super) object: String,
    /// BLAKE3 of the content that was pushed.
    pub(super) hash: String,
    /// What a human should read, for the call that PostgreSQL waits for.
    pub(super) warnings: Vec<String>,
}

impl Note {
    pub(super) fn new(name: String, system_id: SystemId, identity: FileIdentity, object: String, hash: String) -> Self {
        Self { version: VERSION, name, system_id, identity, object, hash, warnings: Vec::new() }
    }
}

/// The directory of one server's pushes to the same repositories.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// The one in `state_dir` for the files of `wal_dir` (absolute) and the repositories and cluster that `key` names.
    pub fn new(state_dir: &Path, key: &str, wal_dir: &Path) -> Self {
        let place = blake3::hash(wal_dir.as_os_str().as_encoded_bytes()).to_hex();
        Self { dir: state_dir.join(format!("wal-push-{}-{}", short_hash(key), &place[..16])) }
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("{name}.{kind}"))
    }

    /// Makes the directory, when it is not there.
    pub(super) fn make_dir(&self) -> Result<(), EngineError> {
        fs::create_dir_all(&self.dir).map_err(|error| EngineError::file(&self.dir, "making the directory", error))
    }

    /// Takes the right to push in the background; `None` when somebody has it.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn try_lock(&self) -> Result<Option<WorkerLock>, EngineError> {
        WorkerLock::try_take(&self.dir)
    }

    /// Whether somebody pushes in the background.
    pub fn is_locked(&self) -> bool {
        WorkerLock::is_taken(&self.dir)
    }

    /// The lock that this process was given by the one that started it, when `file` is it.
    pub fn inherited(&self, file: File) -> Option<WorkerLock> {
        WorkerLock::inherited(&self.dir, file)
    }

    /// The note on a file, when it is still the same one.
    pub(super) fn find(&self, name: &str, identity: &FileIdentity) -> Option<Note> {
        let path = self.path(name, NOTE);
        if fs::metadata(&path).ok()?.len() > NOTE_BYTES_MAX {
            return None;
        }
        let note: Note = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        (note.version == VERSION && note.name == name && note.identity == *identity).then_some(note)
    }

    /// Whether there is a note on a file of this name.
    pub(super) fn has_note(&self, name: &str) -> bool {
        self.path(name, NOTE).exists()
    }

    /// Forgets all notes: a repository does not have what one of them says.
    pub(super) fn forget_all(&self) {
        self.clean(&BTreeSet::new());
    }

    /// Writes a note under another name, and puts it in its place.
    pub(super) fn write(&self, note: &Note) -> Result<(), EngineError> {
        let path = self.path(&note.name, NOTE);
        let temp = self.path(&note.name, &format!("{}-{:08x}.tmp", std::process::id(), random_u32()));
        let text = serde_json::to_vec(note).map_err(|error| EngineError::file(&path, "writing", error.into()))?;
        self.make_dir()?;
        fs::write(&temp, text).and_then(|()| fs::rename(&temp, &path)).map_err(|error| {
            let _ = fs::remove_file(&temp);
            EngineError::file(&path, "writing", error)
        })?;
        let _ = fs::remove_file(self.path(&note.name, FAILED));
        Ok(())
    }

    /// Says that a file could not be pushed in the background: who is asked for it must try for itself, and say why.
    pub(super) fn fail(&self, name: &str, reason: &str) {
        // When even this cannot be written, the lock that becomes free says the same, only later.
        let _ = fs::write(self.path(name, FAILED), reason);
    }

    pub(super) fn has_failed(&self, name: &str) -> bool {
        self.path(name, FAILED).exists()
    }

    /// Removes notes on files that no longer wait: their archiving was acknowledged. Says whether the directory is there.
    pub(crate) fn clean(&self, waiting: &BTreeSet<String>) -> bool {
        let Ok(entries) = fs::read_dir(&self.dir) else { return false };
        for entry in entries.flatten() {
            let file = entry.file_name();
            let Some((name, kind)) = file.to_str().and_then(|file| file.rsplit_once('.')) else { continue };
            let over = match kind {
                NOTE | FAILED => !waiting.contains(name),
                // Of a process that was killed while it wrote; a living one is done in a moment.
                "tmp" => entry.metadata().is_ok_and(|meta| is_old(&meta)),
                _ => false,
            };
            if over {
                let _ = fs::remove_file(entry.path());
            }
        }
        true
    }

    fn missed_dir(&self, destination: &str) -> PathBuf {
        self.dir.join(format!("missed-{}", short_hash(destination)))
    }

    /// Notes, durably, that a repository does not have a file.
    pub(super) fn miss(&self, destination: &str, system: SystemId, name: WalFileName) -> Result<(), EngineError> {
        let dir = self.missed_dir(destination);
        let path = dir.join(format!("{system}-{name}"));
        let write = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            let mut file = File::create(&path)?;
            file.write_all(destination.as_bytes())?;
            file.sync_all()?;
            File::open(&dir)?.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| EngineError::file(&path, "writing", error))
    }

    /// What a repository missed, in order.
    pub(super) fn missed(&self, destination: &str) -> Vec<(SystemId, WalFileName)> {
        let Ok(entries) = fs::read_dir(self.missed_dir(destination)) else { return Vec::new() };
        let parse = |text: &str| {
            let (system, name) = text.split_once('-')?;
            Some((system.parse().ok()?, name.parse().ok()?))
        };
        let mut missed: Vec<(SystemId, WalFileName)> =
            entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect();
        missed.sort_by_cached_key(|(_, name)| name.to_string());
        missed
    }

    /// How many files a repository missed that it does not have yet, in all directories that are pushed from to the
    /// repositories and cluster that `key` names.
    pub fn missed_by(state_dir: &Path, key: &str, destination: &str) -> usize {
        let Ok(entries) = fs::read_dir(state_dir) else { return 0 };
        let prefix = format!("wal-push-{}-", short_hash(key));
        let spools =
            entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)));
        spools.map(|entry| Self { dir: entry.path() }.missed(destination).len()).sum()
    }

    /// A repository has it now.
    pub(super) fn caught_up(&self, destination: &str, system: SystemId, name: WalFileName) {
        let _ = fs::remove_file(self.missed_dir(destination).join(format!("{system}-{name}")));
    }
}

fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}

fn is_old(meta: &Metadata) -> bool {
    meta.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|age| age.as_secs() > 60)
}

fn random_u32() -> u32 {
    let mut bytes = [0; 4];
    // Without random numbers two calls of one process may meet; then only work is lost.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, identity: &FileIdentity) -> Note {
        Note::new(name.into(), SystemId(7), identity.clone(), "o".into(), "00".into())
    }

    #[test]
    fn only_the_same_file_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("000000010000000000000001");
        fs::write(&file, "one").unwrap();
        let identity = FileIdentity::of(&fs::metadata(&file).unwrap());
        let spool = Spool::new(dir.path(), "repo/main", dir.path());
        for other in [Spool::new(dir.path(), "repo/other", dir.path()), Spool::new(dir.path(), "repo/main", &file)] {
            assert_ne!(spool.dir, other.dir);
        }
        spool.write(&note("x", &identity)).unwrap();
        assert_eq!(spool.find("x", &identity), Some(note("x", &identity)));
        assert_eq!(spool.find("y", &identity), None);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "two").unwrap();
        let other = FileIdentity::of(&fs::metadata(&file).unwrap());
        assert_eq!(spool.find("x", &other), None, "same name, same size, another file");
        for torn in ["", "{", "{\"version\":3}", "\0\0\0\0"] {
            fs::write(spool.path("x", NOTE), torn).unwrap();
            assert_eq!(spool.find("x", &identity), None, "{torn:?}");
        }
        spool.write(&note("x", &identity)).unwrap();
        spool.write(&note("y", &identity)).unwrap();
        spool.clean(&BTreeSet::from(["y".to_owned()]));
        assert!(spool.find("x", &identity).is_none() && spool.find("y", &identity).is_some());
    }

    #[test]
    fn what_was_missed_is_known_until_it_is_caught_up() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), "k", dir.path());
        let names: Vec<WalFileName> =
            ["000000010000000000000002", "000000010000000000000001"].map(|name| name.parse().unwrap()).into();
        for name in &names {
            spool.miss("far", SystemId(7), *name).unwrap();
        }
        assert_eq!(spool.missed("far"), [(SystemId(7), names[1]), (SystemId(7), names[0])]);
        let counts = ["far", "near"].map(|name| Spool::missed_by(dir.path(), "k", name));
        assert_eq!((counts, Spool::missed_by(dir.path(), "other", "far")), ([2, 0], 0));
        spool.clean(&BTreeSet::new());
        spool.caught_up("far", SystemId(7), names[0]);
        assert_eq!(spool.missed("far"), [(SystemId(7), names[1])]);
    }
}
