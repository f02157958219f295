//! Segments fetched ahead of replay, as files on this host: a directory for each recovery.
//!
//! A file is a plain segment followed by its BLAKE3, so that what a crash left half written is recognised. It gets its
//! name when it is whole, is checked and taken away when it is used, and is not used when it is old. Beside them lie the
//! lock of the process that fetches ahead, and where replay is.

use super::Wanted;
use super::segment::check_plain;
use crate::EngineError;
use crate::wal::lock::WorkerLock;
use pg_format::{SegmentName, SystemId};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is left lying this long belongs to a recovery that is over.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// A directory in which nothing happened for so long is removed.
const DIR_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const TEMP: &str = ".tmp";
const COMING: &str = ".coming";
const HERE: &str = "replay";
const HASH_LEN: usize = 32;
/// Read at a time.
const PIECE: usize = 1 << 20;

/// The cache of one recovery: one cluster's WAL, from the same repositories, for one data directory.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
    bytes_max: u64,
}

impl Cache {
    pub(super) fn new(dir: &Path, key: &str, wal_dir: &Path, bytes_max: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(key.as_bytes()).update(&[0]);
        hasher.update(wal_dir.as_os_str().as_encoded_bytes());
        let hash = hasher.finalize().to_hex();
        Self { dir: dir.join(format!("wal-fetch-{}", &hash[..16])), bytes_max }
    }

    fn path(&self, system: SystemId, name: SegmentName) -> PathBuf {
        self.dir.join(format!("{system}-{name}"))
    }

    pub(super) fn has(&self, system: SystemId, name: SegmentName) -> bool {
        self.path(system, name).exists()
    }

    /// Takes a segment out and puts it into `dest`: a whole one, of the right cluster and not old. What is not is removed.
    pub(super) fn take(&self, wanted: Wanted, name: SegmentName, dest: &Path) -> Option<()> {
        let path = self.path(wanted.system, name);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
        let meta = file.metadata().ok()?;
        let taken = is_young(&meta).then(|| move_out(&path, &mut file, &meta, name, wanted, dest)).flatten();
        if path.exists() {
            let _ = fs::remove_file(&path);
        }
        taken
    }

    /// Puts a segment in. It can be taken before it is on the disk: after a crash it is fetched again. But PostgreSQL syncs
    /// what it is given (`KeepFileRestoredFromArchive` in `src/backend/access/transam/xlogarchive.c`), and replay waits.
    pub(super) fn put(&self, system: SystemId, name: SegmentName, plain: &[u8]) -> Result<(), EngineError> {
        let path = self.path(system, name);
        let temp = self.dir.join(format!("{system}-{name}.{}{TEMP}", std::process::id()));
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let mut file = create(&temp)?;
            file.write_all(plain)?;
            file.write_all(blake3::hash(plain).as_bytes())?;
            fs::rename(&temp, &path)?;
            let _ = file.sync_data();
            Ok(())
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
            let is_segment = segment_of(&entry.file_name()).is_some();
            if is_segment && age(&meta, now) > AGE_MAX {
                let _ = fs::remove_file(entry.path());
            } else {
                used += meta.len();
            }
        }
        self.bytes_max.saturating_sub(used)
    }

    /// Removes the segments that replay has passed, or never came to: of the system's timeline before this one, of others.
    pub(super) fn remove_before(&self, system: SystemId, name: SegmentName) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let Some((of_system, cached)) = segment_of(&entry.file_name()) else { continue };
            let passed = of_system != system || (cached.timeline == name.timeline && cached < name);
            if passed {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes caches of recoveries that are over, beside this one.
    pub(super) fn remove_old_neighbours(&self, now: SystemTime) {
        let Some(Ok(entries)) = self.dir.parent().map(fs::read_dir) else { return };
        for entry in entries.flatten().filter(|entry| entry.path() != self.dir) {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with("wal-fetch-"));
            let old = entry.metadata().is_ok_and(|meta| age(&meta, now) > DIR_AGE_MAX);
            if ours && old && !WorkerLock::is_taken(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The right to fetch ahead; `None` when somebody has it.
    pub(super) fn try_lock(&self) -> Result<Option<WorkerLock>, EngineError> {
        WorkerLock::try_take(&self.dir)
    }

    pub(super) fn is_locked(&self) -> bool {
        WorkerLock::is_taken(&self.dir)
    }

    pub(super) fn inherited(&self, file: File) -> Option<WorkerLock> {
        WorkerLock::inherited(&self.dir, file)
    }

    /// Notes that replay has come to this segment.
    pub(super) fn set_replay(&self, system: SystemId, name: SegmentName) {
        let temp = self.dir.join(format!("{HERE}.{}{TEMP}", std::process::id()));
        let path = self.dir.join(HERE);
        // Without it nothing more is fetched ahead, and each segment is fetched when it is asked for.
        let text = format!("{system}-{name}");
        let _ =
            fs::create_dir_all(&self.dir).and_then(|()| fs::write(&temp, text)).and_then(|()| fs::rename(&temp, path));
    }

    /// Which segment replay has come to, and when that was noted.
    pub(super) fn replay(&self) -> Option<(SystemId, SegmentName, SystemTime)> {
        let path = self.dir.join(HERE);
        let noted = fs::metadata(&path).ok()?.modified().ok()?;
        let (system, name) = segment_of(fs::read_to_string(&path).ok()?.as_ref())?;
        Some((system, name, noted))
    }

    /// Says that a segment is on its way; until the value is dropped.
    pub(super) fn coming(&self, system: SystemId, name: SegmentName) -> Coming {
        let mut path = self.path(system, name).into_os_string();
        path.push(COMING);
        let _ = fs::write(&path, "");
        Coming(path.into())
    }

    /// Whether the process that fetches ahead has this one on its way.
    pub(super) fn is_coming(&self, system: SystemId, name: SegmentName) -> bool {
        let mut path = self.path(system, name).into_os_string();
        path.push(COMING);
        Path::new(&path).exists() && self.is_locked()
    }

    /// Removes marks and unfinished files of a process that was killed. For who has the lock.
    pub(super) fn remove_leavings(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.ends_with(COMING) || name.ends_with(TEMP)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A segment is on its way to the cache.
pub(super) struct Coming(PathBuf);

impl Drop for Coming {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn segment_of(file: &std::ffi::OsStr) -> Option<(SystemId, SegmentName)> {
    let (system, name) = file.to_str()?.split_once('-')?;
    Some((system.parse().ok()?, name.parse().ok()?))
}

fn age(meta: &fs::Metadata, now: SystemTime) -> Duration {
    meta.modified().ok().and_then(|time| now.duration_since(time).ok()).unwrap_or_default()
}

fn is_young(meta: &fs::Metadata) -> bool {
    age(meta, SystemTime::now()) <= AGE_MAX
}

/// As PostgreSQL makes its files: for nobody else.
pub(super) fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Checks a file and moves it to `dest`: by its name where that can be, else byte by byte.
fn move_out(
    path: &Path,
    file: &mut File,
    meta: &fs::Metadata,
    name: SegmentName,
    wanted: Wanted,
    dest: &Path,
) -> Option<()> {
    let plain_len = meta.len().checked_sub(HASH_LEN as u64)?;
    let same_disk = fs::metadata(dest.parent()?).ok()?.dev() == meta.dev();
    let temp = super::temp_of(dest);
    let mut copy = if same_disk { None } else { Some(create(&temp).ok()?) };
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE]);
    let (mut left, mut first) = (plain_len, true);
    let mut checked = || -> Option<bool> {
        while left > 0 {
            let now = &mut piece[..left.min(PIECE as u64) as usize];
            file.read_exact(now).ok()?;
            if std::mem::take(&mut first) {
                check_plain(now, plain_len, name, wanted).ok()?;
            }
            hasher.update(now);
            if let Some(copy) = &mut copy {
                copy.write_all(now).ok()?;
            }
            left -= now.len() as u64;
        }
        let mut hash = [0; HASH_LEN];
        file.read_exact(&mut hash).ok()?;
        Some(*hasher.finalize().as_bytes() == hash && plain_len == wanted.size.bytes())
    };
    let whole = checked() == Some(true);
    let done = whole
        && if same_disk {
            file.set_len(plain_len).and_then(|()| fs::rename(path, dest)).is_ok()
        } else {
            fs::rename(&temp, dest).is_ok()
        };
    if !done && !same_disk {
        let _ = fs::remove_file(&temp);
    }
    done.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_format::WalSegmentSize;

    #[test]
    fn a_segment_is_taken_once_and_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "k", Path::new("/pg_wal"), 3 << 20);
        assert_ne!(cache.dir, Cache::new(dir.path(), "k", Path::new("/other"), 0).dir);
        let (system, name) = (SystemId(7), "000000010000000000000003".parse().unwrap());
        let wanted = Wanted { system, size: WalSegmentSize::new(1 << 20).unwrap() };
        let plain = vec![7; 1 << 20];
        let dest = dir.path().join("RECOVERYXLOG");
        let take = || {
            let taken = cache.take(wanted, name, &dest);
            assert_eq!(taken.is_some(), dest.exists());
            assert!(!cache.has(system, name));
            taken.map(|()| fs::read(&dest).unwrap()).inspect(|_| fs::remove_file(&dest).unwrap())
        };
        cache.put(system, name, &plain).unwrap();
        assert!(cache.has(system, name) && !cache.has(SystemId(8), name));
        assert_eq!(cache.clean(SystemTime::now()), (3 << 20) - (1 << 20) - 32);
        assert!(take().is_some_and(|content| content == plain));
        assert_eq!(take(), None);
        let path = cache.path(system, name);
        for damage in [vec![], b"pl".to_vec(), vec![7; 1 << 20], vec![7; (1 << 20) + 32]] {
            cache.put(system, name, &plain).unwrap();
            fs::write(&path, damage).unwrap();
            assert_eq!(take(), None);
        }
        // Of another size of segments, and old.
        cache.put(system, name, &plain[..1000]).unwrap();
        assert_eq!(take(), None);
        cache.put(system, name, &plain).unwrap();
        let old = SystemTime::now() - AGE_MAX - Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert_eq!(take(), None);

        cache.put(system, name, &plain).unwrap();
        cache.remove_before(system, name);
        assert!(path.exists());
        cache.remove_before(system, "000000020000000000000004".parse().unwrap());
        assert!(path.exists());
        cache.remove_before(system, "000000010000000000000004".parse().unwrap());
        assert!(!path.exists());
        cache.put(system, name, &plain).unwrap();
        cache.remove_before(SystemId(8), name);
        assert!(!path.exists(), "of another cluster");
        cache.put(system, name, &plain).unwrap();
        assert_eq!(cache.clean(SystemTime::now() + AGE_MAX * 2), 3 << 20);
        assert!(!path.exists());
    }

    #[test]
    fn who_fetches_ahead_knows_where_replay_is() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "k", Path::new("/pg_wal"), 1 << 20);
        let (system, name) = (SystemId(7), "000000010000000000000003".parse().unwrap());
        assert!(cache.replay().is_none());
        cache.set_replay(system, name);
        assert_eq!(cache.replay().map(|(system, name, _)| (system, name)), Some((system, name)));
        let coming = cache.coming(system, name);
        assert!(!cache.is_coming(system, name), "nobody is there to bring it");
        let lock = cache.try_lock().unwrap().unwrap();
        assert!(cache.is_coming(system, name));
        drop(coming);
        assert!(!cache.is_coming(system, name));
        drop(lock);
    }
}
