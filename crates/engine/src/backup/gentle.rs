//! Reading that leaves the page cache as it was: what a backup alone needed is not kept there in place of what the server
//! needs again.
//!
//! Before an extent is read, some of its pages are asked for without waiting (`RWF_NOWAIT`). When none of them is in the
//! cache, the extent is dropped from it after it was read (`POSIX_FADV_DONTNEED`); when one is, somebody uses the file,
//! and all of it stays. Dirty pages are never dropped by the kernel.
//!
//! Other ways were left: `mincore` needs a mapping, which a truncation by the server turns into a SIGBUS; `cachestat` and
//! `RWF_DONTCACHE` are only in kernels since 6.5 and 6.14, and not for every file system; direct I/O passes by what is in
//! the cache and not on the disk yet.

use super::reading::read_ahead;
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;

/// Pages of an extent that are asked for.
const ASKED: u64 = 4;
/// Less than this is not worth it: what is dropped has to be taken from the lists of all processors.
const DROPPED_BYTES_MIN: u64 = 64 << 10;

/// What was in the cache of a part of a file before it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing, as far as was asked.
    Absent,
    /// Some of it, or nobody can tell.
    Cached,
}

/// Looks what of a part of a file is in the cache. To be asked before anything has the kernel read it.
pub(super) fn look(file: &File, start: u64, len: u64) -> Before {
    if len < DROPPED_BYTES_MIN {
        return Before::Cached;
    }
    // From the end: asking makes the kernel begin to read there, and perhaps on from there.
    for part in (0..ASKED).rev() {
        let mut byte = [0];
        let at = start + len * part / ASKED;
        match preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
            Err(rustix::io::Errno::AGAIN) => {}
            // There, beyond the end, or a file system that does not say.
            _ => return Before::Cached,
        }
    }
    Before::Absent
}

/// Drops a part of a file that was read from the cache, if nothing of it was there before.
pub(super) fn leave(file: &File, start: u64, len: u64, before: Before) {
    if before == Before::Absent
        && let Some(len) = NonZeroU64::new(len)
    {
        let _ = fadvise(file, start, Some(len), Advice::DontNeed);
    }
}

/// What was in the cache of the extent that the kernel was asked to have ready.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    next: Option<(usize, u64, Before)>,
    /// Beyond this place in the file another worker reads, and would find what it did not ask for.
    end: u64,
}

impl Ahead {
    /// From now on a part of a file is read that ends here.
    pub(super) fn until(&mut self, end: u64) {
        self.end = end;
    }

    /// Has the kernel read the extent that is read next, if it is one of this worker's, and notes what was there before.
    pub(super) fn ask(&mut self, file: &File, index: usize, start: u64, len: u64) {
        if start < self.end && len > 0 {
            self.next = Some((index, start, look(file, start, len)));
            read_ahead(file, start, len);
        }
    }

    /// What was in the cache before of an extent that is read now.
    pub(super) fn before(&mut self, file: &File, index: usize, start: u64, len: u64) -> Before {
        match self.next.take() {
            Some((of, at, before)) if (of, at) == (index, start) => before,
            _ => look(file, start, len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    const EXTENT: u64 = 512 << 10;

    /// A file of which nothing is in the cache; none where the file system keeps all of it there.
    fn cold_file(dir: &std::path::Path) -> Option<File> {
        let path = dir.join("file");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![7; 4 * EXTENT as usize]).unwrap();
        file.sync_all().unwrap();
        let file = File::open(&path).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        is_absent(&file, 3 * EXTENT, EXTENT).then_some(file)
    }

    fn is_absent(file: &File, start: u64, len: u64) -> bool {
        look(file, start, len) == Before::Absent
    }

    #[test]
    fn what_was_not_in_the_cache_is_not_there_afterwards_and_what_was_stays() {
        let dir = tempfile::tempdir().unwrap();
        let Some(file) = cold_file(dir.path()) else {
            eprintln!("skipped: the file system keeps all files in memory");
            return;
        };
        let mut buffer = vec![0; EXTENT as usize];
        let mut read = |start: u64, before: Before| {
            file.read_exact_at(&mut buffer, start).unwrap();
            leave(&file, start, EXTENT, before);
        };
        // Dropping pages may need another go while other processors hold them for a moment.
        let begin = Instant::now();
        let mut ahead = Ahead::default();
        // Each look has the kernel begin to read what it asks for, so an extent is looked at once before it is read.
        let before = ahead.before(&file, 0, EXTENT, EXTENT);
        assert_eq!(before, Before::Absent);
        read(EXTENT, before);
        let mut gone = is_absent(&file, EXTENT, EXTENT);
        while !gone && begin.elapsed() < Duration::from_secs(10) {
            leave(&file, EXTENT, EXTENT, Before::Absent);
            gone = is_absent(&file, EXTENT, EXTENT);
        }
        assert!(gone, "it was read for the backup alone");
        file.read_exact_at(&mut [0; 8192], EXTENT / 2).unwrap();
        let before = ahead.before(&file, 0, 0, EXTENT);
        assert_eq!(before, Before::Cached, "somebody uses it");
        read(0, before);
        assert_eq!(look(&file, 0, EXTENT), Before::Cached);
        assert_eq!(look(&file, 0, 8192), Before::Cached, "too little to be dropped");
    }
}
