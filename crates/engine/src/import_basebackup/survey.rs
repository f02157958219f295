//! The first look at a base backup: everything is named once, the small files that say what it is are read, and nothing
//! is stored.

use super::input::{Visitor, Wanted, is_tablespace};
use crate::EngineError;
use crate::checksums::sha256;
use crate::tar::{Member, MemberKind};
use pg_format::backup_manifest::BackupManifest;
use pg_format::{BackupLabel, ControlFile, SegmentName, TablespaceMap, WalFileName};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A small file has at most so many bytes.
const SMALL_MAX: u64 = 16 << 20;
/// And the manifest so many: about ten million files.
const MANIFEST_MAX: u64 = 2 << 30;

/// What a base backup is.
pub(super) struct Survey {
    root: PathBuf,
    seen: HashSet<Vec<u8>>,
    /// The small files that were read, by path.
    small: HashMap<Vec<u8>, Vec<u8>>,
    reading: Option<Vec<u8>>,
    /// Links of tablespaces.
    pub(super) links: BTreeMap<u32, Vec<u8>>,
    /// Tablespaces that have something in them, or are directories.
    pub(super) spaces: HashSet<u32>,
    /// WAL segments, with their lengths.
    pub(super) segments: BTreeMap<SegmentName, u64>,
    pub(super) bytes: u64,
    pub(super) label_mtime: u64,
    pub(super) last_mtime: u64,
}

/// What the small files say.
pub(super) struct Known {
    pub(super) label: BackupLabel,
    pub(super) label_bytes: Vec<u8>,
    pub(super) tablespace_map: Option<Vec<u8>>,
    pub(super) map: TablespaceMap,
    pub(super) control: ControlFile,
    pub(super) major: u32,
    pub(super) manifest: Option<BackupManifest>,
}

fn is_small(path: &[u8]) -> bool {
    const SMALL: [&[u8]; 5] =
        [b"backup_label", b"tablespace_map", b"backup_manifest", b"PG_VERSION", b"global/pg_control"];
    SMALL.contains(&path) || wal_name(path).is_some_and(|name| name.segment().is_none() || is_backup_history(&name))
}

fn is_backup_history(name: &WalFileName) -> bool {
    matches!(name, WalFileName::BackupHistory(..))
}

/// The name of a file of WAL in `pg_wal`.
pub(super) fn wal_name(path: &[u8]) -> Option<WalFileName> {
    std::str::from_utf8(path.strip_prefix(b"pg_wal/")?).ok()?.parse().ok()
}

impl Survey {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            seen: HashSet::new(),
            small: HashMap::new(),
            reading: None,
            links: BTreeMap::new(),
            spaces: HashSet::new(),
            segments: BTreeMap::new(),
            bytes: 0,
            label_mtime: 0,
            last_mtime: 0,
        }
    }

    fn bad(&self, name: &str, reason: impl Into<String>) -> EngineError {
        EngineError::BadFile { path: self.root.join(name), reason: reason.into() }
    }

    /// A file of WAL that is no segment.
    pub(super) fn wal_file(&self, name: &str) -> Option<&[u8]> {
        self.small.get([b"pg_wal/", name.as_bytes()].concat().as_slice()).map(Vec::as_slice)
    }

    /// The backup history files, with their content.
    pub(super) fn histories(&self) -> impl Iterator<Item = &[u8]> {
        self.small
            .iter()
            .filter(|(path, _)| wal_name(path).is_some_and(|name| is_backup_history(&name)))
            .map(|(_, content)| content.as_slice())
    }

    /// Reads what the small files say; refuses what is no base backup of its own.
    pub(super) fn known(&mut self) -> Result<Known, EngineError> {
        let mut take = |name: &str| self.small.remove(name.as_bytes());
        let (label, map, manifest) = (take("backup_label"), take("tablespace_map"), take("backup_manifest"));
        let (version, control) = (take("PG_VERSION"), take("global/pg_control"));
        let missing = |name: &str| {
            EngineError::refused(
                format!("{} has no {name}: it is no whole base backup", self.root.display()),
                "a server that was started on it takes backup_label away, and what it is then can no longer be known: \
                 import an untouched base backup",
            )
        };
        let label_bytes = label.ok_or_else(|| missing("backup_label"))?;
        let label = BackupLabel::parse(&String::from_utf8_lossy(&label_bytes))
            .map_err(|error| self.bad("backup_label", error.to_string()))?;
        if label.incremental_from_lsn.is_some() {
            return Err(EngineError::refused(
                format!("{} is an incremental base backup: by itself it is not whole", self.root.display()),
                "put it together with those it builds on, with pg_combinebackup, and import the result",
            ));
        }
        let control = ControlFile::parse(&control.ok_or_else(|| missing("global/pg_control"))?)
            .map_err(|error| self.bad("global/pg_control", error.to_string()))?;
        let version = version.ok_or_else(|| missing("PG_VERSION"))?;
        let text = String::from_utf8_lossy(&version).trim().to_owned();
        let major: u32 = text.parse().map_err(|_| self.bad("PG_VERSION", format!("{text:?} is no major version")))?;
        let of_control = control.major().map_err(|error| self.bad("global/pg_control", error.to_string()))?;
        if of_control.number() != major {
            let reason = format!("it is of PostgreSQL {}, PG_VERSION says {major}", of_control.number());
            return Err(self.bad("global/pg_control", reason));
        }
        let parsed = TablespaceMap::parse(map.as_deref().unwrap_or_default())
            .map_err(|error| self.bad("tablespace_map", error.to_string()))?;
        let manifest = match manifest {
            Some(bytes) => Some(
                BackupManifest::parse(&bytes, sha256)
                    .map_err(|error| self.bad("backup_manifest", error.to_string()))?,
            ),
            None => None,
        };
        if let Some(found) = manifest.as_ref().and_then(|manifest| manifest.system_id)
            && found != control.system_id
        {
            let reason = format!("it is of system {found}, pg_control of {}", control.system_id);
            return Err(self.bad("backup_manifest", reason));
        }
        Ok(Known { label, label_bytes, tablespace_map: map, map: parsed, control, major, manifest })
    }
}

impl Visitor for Survey {
    fn member(&mut self, member: &Member) -> Result<Wanted, EngineError> {
        let path = &member.name;
        let shown = || String::from_utf8_lossy(path).into_owned();
        let is_directory = member.kind == MemberKind::Directory;
        if !self.seen.insert(path.clone()) && !is_directory {
            return Err(EngineError::refused(
                format!("{}: {} is there twice", self.root.display(), shown()),
                "it is damaged, or two base backups were mixed",
            ));
        }
        if let Some(rest) = path.strip_prefix(b"pg_tblspc/")
            && let Some(oid) = rest.split(|&byte| byte == b'/').next()
            && let Some(oid) = std::str::from_utf8(oid).ok().and_then(|oid| oid.parse().ok())
            && !matches!(member.kind, MemberKind::Link(_))
        {
            self.spaces.insert(oid);
        }
        match &member.kind {
            MemberKind::Directory => Ok(Wanted::Nothing),
            MemberKind::Link(target) => {
                if let Some(oid) = is_tablespace(path) {
                    self.links.insert(oid, target.clone());
                }
                Ok(Wanted::Nothing)
            }
            MemberKind::File(len) => {
                if path == b"backup_label" {
                    self.label_mtime = member.mtime;
                }
                self.last_mtime = self.last_mtime.max(member.mtime);
                if let Some(WalFileName::Segment(name)) = wal_name(path) {
                    self.segments.insert(name, *len);
                } else {
                    self.bytes += len;
                }
                if !is_small(path) {
                    return Ok(Wanted::Nothing);
                }
                let max = if path == b"backup_manifest" { MANIFEST_MAX } else { SMALL_MAX };
                if *len > max {
                    return Err(self.bad(&shown(), format!("has {len} bytes, more than such a file can have")));
                }
                self.reading = Some(path.clone());
                self.small.insert(path.clone(), Vec::with_capacity((*len).min(1 << 20) as usize));
                Ok(Wanted::Bytes)
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        if let Some(content) = self.reading.as_ref().and_then(|path| self.small.get_mut(path)) {
            content.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), EngineError> {
        self.reading = None;
        Ok(())
    }
}
