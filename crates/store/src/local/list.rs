//! Listing a local store: directories read in the byte order of whole paths.

use super::root::Root;
use crate::error::action;
use crate::{Listing, ObjectMeta, ObjectPath, StoreError};
use rustix::fs::{Dir, FileType, Stat};
use rustix::io::Errno;

/// One entry of a directory that may be an object or hold objects.
struct Entry {
    path: ObjectPath,
    is_dir: bool,
}

impl Entry {
    /// How it sorts among whole paths: what a directory holds begins with its name and a slash.
    fn key(&self) -> impl Iterator<Item = u8> + '_ {
        self.path.as_str().bytes().chain(self.is_dir.then_some(b'/'))
    }
}

pub(super) fn level(root: &Root, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    for entry in entries(root, prefix)? {
        if !entry.is_dir {
            listing.objects.extend(meta(root, entry.path)?);
        } else if holds_objects(root, &entry.path)? {
            // A directory without objects is a create or a delete on its way.
            listing.prefixes.push(entry.path);
        }
    }
    listing.prefixes.sort();
    Ok(listing)
}

pub(super) fn page(
    root: &Root,
    prefix: Option<&ObjectPath>,
    after: Option<&ObjectPath>,
    limit: usize,
) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut page = Vec::new();
    // The directories on the way down, each with what is still to come, last first.
    let mut open = vec![pending(root, prefix, after)?];
    while page.len() < limit
        && let Some(todo) = open.last_mut()
    {
        match todo.pop() {
            None => {
                open.pop();
            }
            Some(Entry { path, is_dir: true }) => open.push(pending(root, Some(&path), after)?),
            Some(Entry { path, is_dir: false }) => page.extend(meta(root, path)?),
        }
    }
    Ok(page)
}

/// The entries of a directory that lie after `after` or may hold such, in descending order.
fn pending(root: &Root, dir: Option<&ObjectPath>, after: Option<&ObjectPath>) -> Result<Vec<Entry>, StoreError> {
    let mut entries = entries(root, dir)?;
    if let Some(after) = after {
        entries.retain(|entry| {
            let holds_after = entry.is_dir && after.below(&entry.path).is_some();
            holds_after || entry.key().gt(after.as_str().bytes())
        });
    }
    entries.reverse();
    Ok(entries)
}

/// What lies in a directory, in ascending order of whole paths; nothing when there is none.
fn entries(root: &Root, dir: Option<&ObjectPath>) -> Result<Vec<Entry>, StoreError> {
    let name = dir.map_or("", ObjectPath::as_str);
    let error = |errno| root.error(name, action::LIST, errno);
    let fd = match root.open_dir(name) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => {
            root.check_present(name, action::LIST)?;
            return Ok(Vec::new());
        }
        Err(errno) => return Err(error(errno)),
    };
    let mut entries = Vec::new();
    for found in Dir::read_from(&fd).map_err(error)? {
        let found = match found {
            Ok(found) => found,
            // Removed while it is read.
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(error(errno)),
        };
        let Ok(part) = found.file_name().to_str() else {
            continue;
        };
        // What is no object path is not ours: `.`, `..`, the temporary directory, `lost+found`.
        let path = match dir {
            Some(dir) => dir.join(part),
            None => ObjectPath::new(part),
        };
        let Ok(path) = path else { continue };
        let kind = match found.file_type() {
            FileType::Unknown | FileType::Symlink => match root.stat(path.as_str()) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(error(errno)),
            },
            kind => kind,
        };
        match kind {
            FileType::Directory => entries.push(Entry { path, is_dir: true }),
            FileType::RegularFile => entries.push(Entry { path, is_dir: false }),
            _ => {}
        }
    }
    entries.sort_by(|a, b| a.key().cmp(b.key()));
    Ok(entries)
}

/// Whether an object lies anywhere below a directory.
fn holds_objects(root: &Root, dir: &ObjectPath) -> Result<bool, StoreError> {
    Ok(!page(root, Some(dir), None, 1)?.is_empty())
}

/// Size and time; `None` for what was deleted meanwhile.
fn meta(root: &Root, path: ObjectPath) -> Result<Option<ObjectMeta>, StoreError> {
    match root.stat(path.as_str()) {
        Ok(stat) => Ok(Some(meta_of(path, &stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(root.error(path, action::LIST, errno)),
    }
}

pub(super) fn meta_of(path: ObjectPath, stat: &Stat) -> ObjectMeta {
    let modified_ms = stat.st_mtime * 1000 + stat.st_mtime_nsec as i64 / 1_000_000;
    ObjectMeta { path, size: u64::try_from(stat.st_size).unwrap_or(0), modified_ms }
}
