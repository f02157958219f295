//! Where the entries of a backup lie on this host.

use crate::EngineError;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where the entries of a backup lie on this host.
///
/// In a frozen copy of a volume, links lead out of it, to the live files: so each directory that a link leads to is
/// looked up by its path on the live host, and must have a place in a copy.
#[derive(Debug, Clone, Default)]
pub(in crate::backup) struct Places {
    root: PathBuf,
    /// Live directories and where their frozen copies are. Empty when the live files themselves are read.
    frozen: Vec<(PathBuf, PathBuf)>,
    /// Paths in the data directory, and where what is below them lies.
    elsewhere: BTreeMap<Vec<u8>, PathBuf>,
}

impl Places {
    /// The live files of a data directory.
    pub(in crate::backup) fn of(root: PathBuf) -> Self {
        Self { root, ..Self::default() }
    }

    /// A frozen copy: `root` is the data directory in it, `frozen` says where copies of live directories are.
    pub(in crate::backup) fn frozen(root: PathBuf, frozen: Vec<(PathBuf, PathBuf)>) -> Self {
        Self { root, frozen, elsewhere: BTreeMap::new() }
    }

    /// Where the copy of a directory is to which a link in the data directory leads.
    pub(in crate::backup) fn link(&mut self, path: &[u8]) -> Result<PathBuf, EngineError> {
        let link = self.in_data(path);
        if let Ok(target) = std::fs::read_link(&link) {
            self.follow(path, &target)?;
        }
        Ok(self.in_data(path))
    }

    /// The data directory.
    pub(in crate::backup) fn root(&self) -> &Path {
        &self.root
    }

    /// The place of a path in the data directory.
    pub(in crate::backup) fn in_data(&self, path: &[u8]) -> PathBuf {
        let found = self.elsewhere.iter().rev().find_map(|(from, to)| {
            let rest = path.strip_prefix(from.as_slice())?;
            match rest.strip_prefix(b"/") {
                Some(rest) => Some(to.join(OsStr::from_bytes(rest))),
                None => rest.is_empty().then(|| to.clone()),
            }
        });
        found.unwrap_or_else(|| self.root.join(OsStr::from_bytes(path)))
    }

    /// The place of an entry, `data/...` or `config/...`.
    pub(in crate::backup) fn on_disk(&self, entry: &[u8]) -> PathBuf {
        match entry.strip_prefix(b"data/") {
            Some(rest) => self.in_data(rest),
            None => PathBuf::from(OsStr::from_bytes(entry.strip_prefix(b"config").unwrap_or(entry))),
        }
    }

    /// Notes that a link in the data directory leads to a directory, whose contents belong in the backup.
    pub(in crate::backup) fn follow(&mut self, path: &[u8], target: &Path) -> Result<(), EngineError> {
        if self.frozen.is_empty() {
            return Ok(());
        }
        let place = self.frozen.iter().find_map(|(live, copy)| Some(copy.join(target.strip_prefix(live).ok()?)));
        let Some(place) = place else {
            return Err(EngineError::refused(
                format!(
                    "{} leads to {}, of which no frozen copy is named: the live files there would be read",
                    String::from_utf8_lossy(path),
                    target.display()
                ),
                format!("freeze its volume too, and say where: `--snapshot-map {}=COPY`", target.display()),
            ));
        };
        self.elsewhere.insert(path.to_vec(), place);
        Ok(())
    }
}
