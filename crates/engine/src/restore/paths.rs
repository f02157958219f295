//! Where each entry of a backup goes on this host.

use super::plan::{CONFIG_DIR, in_tablespace};
use super::{LinkBecomes, PlannedLink, PlannedTablespace, RestorePlan};
use crate::EngineError;
use repo::manifest::{FileEntry, FileType};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is to be made of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Make {
    /// A directory.
    Directory(PathBuf),
    /// A file.
    File(PathBuf),
    /// A link to the second path.
    Link(PathBuf, PathBuf),
    /// `global/pg_control`: it comes last.
    ControlFile(PathBuf),
    /// Nothing: the restore writes it itself, or it would mislead the server.
    Nothing,
}

/// Files of the data directory that are not restored from the manifest: the label and the map come from its facts, byte
/// for byte, and the others would make the server do something else than it is told.
const NOT_RESTORED: [&str; 4] = ["backup_label", "tablespace_map", "postmaster.pid", "postmaster.opts"];

/// The mapping of a plan.
pub(super) struct Paths<'a> {
    target: &'a Path,
    tablespaces: HashMap<u32, &'a PlannedTablespace>,
    links: &'a [PlannedLink],
}

impl<'a> Paths<'a> {
    pub(super) fn new(plan: &'a RestorePlan) -> Self {
        let tablespaces = plan.tablespaces.iter().map(|space| (space.oid, space)).collect();
        Self { target: &plan.target_dir, tablespaces, links: &plan.links }
    }

    /// What is to be made of an entry. Paths that could lead out of the target are refused.
    pub(super) fn make(&self, entry: &FileEntry) -> Result<Make, EngineError> {
        let path = entry.path.as_slice();
        if let Some((oid, rest)) = in_tablespace(path) {
            return self.in_tablespace(entry, oid, rest);
        }
        let (to, rest) = if path == b"data" {
            (self.target.to_owned(), &b""[..])
        } else if let Some(rest) = path.strip_prefix(b"data/") {
            (join(self.target, rest, path)?, rest)
        } else if let Some(rest) = path.strip_prefix(b"config/") {
            (join(&self.target.join(CONFIG_DIR), rest, path)?, &b""[..])
        } else if let Some(rest) = path.strip_prefix(b"wal/") {
            (join(&self.target.join("pg_wal"), rest, path)?, &b""[..])
        } else if path == b"config" {
            (self.target.join(CONFIG_DIR), &b""[..])
        } else if path == b"wal" {
            return Ok(Make::Nothing);
        } else {
            return Err(bad_path(path, "it belongs to nothing that this version of pgkeep knows"));
        };
        let name = std::str::from_utf8(rest).unwrap_or_default();
        if is_left_out(name) {
            return Ok(Make::Nothing);
        }
        Ok(match &entry.file_type {
            FileType::Directory => Make::Directory(to),
            FileType::File { .. } if name == pg_format::control::CONTROL_FILE_PATH => Make::ControlFile(to),
            FileType::File { .. } => Make::File(to),
            FileType::Link { target } => {
                let shown = String::from_utf8_lossy(rest);
                let planned = self.links.iter().find(|link| link.path == shown);
                match planned.map(|link| link.becomes) {
                    Some(LinkBecomes::Directory) => Make::Directory(to),
                    _ => Make::Link(to, PathBuf::from(OsStr::from_bytes(target))),
                }
            }
        })
    }

    fn in_tablespace(&self, entry: &FileEntry, oid: u32, rest: &[u8]) -> Result<Make, EngineError> {
        let Some(space) = self.tablespaces.get(&oid) else {
            return Err(bad_path(&entry.path, "the backup's facts have no such tablespace"));
        };
        if rest.is_empty() {
            let link = self.target.join("pg_tblspc").join(oid.to_string());
            return Ok(if space.in_place {
                Make::Directory(link)
            } else {
                Make::Link(link, space.destination.clone())
            });
        }
        let to = join(&space.destination, rest, &entry.path)?;
        Ok(match &entry.file_type {
            FileType::Directory => Make::Directory(to),
            FileType::File { .. } => Make::File(to),
            FileType::Link { target } => Make::Link(to, PathBuf::from(OsStr::from_bytes(target))),
        })
    }
}

/// Whether a file of the data directory is left out, by its path in it.
pub(crate) fn is_left_out(name: &str) -> bool {
    NOT_RESTORED.contains(&name) || pg_format::exclude::RESTORE_REMOVES.contains(&name)
}

/// Whether a path stays below where it is joined to.
pub(crate) fn is_plain(path: &[u8]) -> bool {
    let odd = |part: &[u8]| part.is_empty() || part == b"." || part == b".." || part.contains(&0);
    !path.split(|&byte| byte == b'/').any(odd)
}

fn join(base: &Path, rest: &[u8], whole: &[u8]) -> Result<PathBuf, EngineError> {
    if !is_plain(rest) {
        return Err(bad_path(whole, "it is not a plain path"));
    }
    Ok(base.join(OsStr::from_bytes(rest)))
}

fn bad_path(path: &[u8], reason: &str) -> EngineError {
    EngineError::Failed {
        reason: format!(
            "the manifest has an entry {:?} that cannot be restored: {reason}",
            String::from_utf8_lossy(path)
        ),
        hint: Some("a later version of pgkeep may have written it".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repo::manifest::Place;

    fn entry(path: &str, file_type: FileType) -> FileEntry {
        FileEntry { path: path.as_bytes().to_vec(), mode: 0o600, owner: 0, mtime: 0, file_type }
    }

    #[test]
    fn entries_go_where_the_plan_says() {
        let file = FileType::File { len: 0, place: Place::Zero, settled: None, pages: false, wal: false };
        let link = FileType::Link { target: b"/origin".to_vec() };
        let space = |oid, destination: &str, in_place| PlannedTablespace {
            oid,
            name: "x".into(),
            origin: "/origin".into(),
            destination: destination.into(),
            in_place,
        };
        let target = PathBuf::from("/new");
        let spaces = [space(7, "/fast", false), space(8, "/new/pg_tblspc/8", true)];
        let links = [PlannedLink { path: "pg_wal".into(), target: "/w".into(), becomes: LinkBecomes::Directory }];
        let paths = Paths {
            target: &target,
            tablespaces: spaces.iter().map(|space| (space.oid, space)).collect(),
            links: &links,
        };
        let check = |path: &str, file_type: &FileType, expect: Option<Make>| {
            assert_eq!(paths.make(&entry(path, file_type.clone())).ok(), expect, "{path}");
        };
        check("data", &FileType::Directory, Some(Make::Directory("/new".into())));
        check("data/base/1/1259", &file, Some(Make::File("/new/base/1/1259".into())));
        check("data/global/pg_control", &file, Some(Make::ControlFile("/new/global/pg_control".into())));
        check("data/pg_tblspc/7", &link, Some(Make::Link("/new/pg_tblspc/7".into(), "/fast".into())));
        check("data/pg_tblspc/7/PG_15/5/1", &file, Some(Make::File("/fast/PG_15/5/1".into())));
        check("data/pg_tblspc/8", &FileType::Directory, Some(Make::Directory("/new/pg_tblspc/8".into())));
        check("data/pg_tblspc/8/PG_15/5/1", &file, Some(Make::File("/new/pg_tblspc/8/PG_15/5/1".into())));
        check(
            "config/etc/postgresql/x.conf",
            &file,
            Some(Make::File("/new/pgkeep-config/etc/postgresql/x.conf".into())),
        );
        check("wal/000000010000000000000001", &file, Some(Make::File("/new/pg_wal/000000010000000000000001".into())));
        check("data/pg_wal", &link, Some(Make::Directory("/new/pg_wal".into())));
        check("data/certs", &link, Some(Make::Link("/new/certs".into(), "/origin".into())));
        for path in ["data/backup_label", "data/standby.signal", "data/postmaster.pid"] {
            check(path, &file, Some(Make::Nothing));
        }
        for path in ["data/../x", "data//x", "other/x", "data/pg_tblspc/9/x", "data/pg_tblspc/7/../../x", "config/../x"]
        {
            check(path, &file, None);
        }
    }
}
