//! Which files belong in a backup: the rules of PostgreSQL's "Backing Up the Data Directory", applied to a directory.

use super::source::Places;
use crate::EngineError;
use pg_format::exclude::{EntryKind, Rules, UnloggedRelations, Verdict, classify};
use pg_format::relpath::{Fork, RelFile};
use repo::chunk::PageContent;
use repo::manifest::Owner;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A directory.
    Directory,
    /// A symbolic link that is kept as a link.
    Link(Vec<u8>),
    /// A file, with its length when it was listed.
    File { len: u64, relation: Option<Relation> },
}

/// What a file of pages is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relation {
    /// Number of the file's first block in the fork.
    pub(super) first_block: u32,
    /// How its pages are compared.
    pub(super) content: PageContent,
}

/// One file, directory or link that belongs in the backup.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    /// Path in the backup: `data/...` or `config/...`.
    pub(super) path: Box<[u8]>,
    pub(super) mode: u32,
    pub(super) owner: u32,
    pub(super) mtime: u64,
    pub(super) found: Found,
}

/// All that belongs in the backup, in ascending byte order of the paths.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<Listed>,
    pub(super) owners: Owners,
    /// Bytes of all files together.
    pub(super) bytes: u64,
    /// What a human should read.
    pub(super) warnings: Vec<String>,
}

/// Users and groups of files, each pair once.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pub(super) list: Vec<Owner>,
    known: HashMap<(u32, u32), u32>,
}

impl Owners {
    /// By their names, where the numbers are another host's.
    pub(super) fn named(&mut self, user: &str, group: &str) -> u32 {
        let found = self.list.iter().position(|owner| owner.user == user && owner.group == group);
        found.unwrap_or_else(|| {
            self.list.push(Owner { user: user.to_owned(), group: group.to_owned() });
            self.list.len() - 1
        }) as u32
    }

    fn index(&mut self, uid: u32, gid: u32) -> u32 {
        *self.known.entry((uid, gid)).or_insert_with(|| {
            self.list.push(Owner { user: name_of("/etc/passwd", uid), group: name_of("/etc/group", gid) });
            (self.list.len() - 1) as u32
        })
    }
}

/// The name of a user or group, or its number where there is none: `name:x:number:...`.
fn name_of(file: &str, id: u32) -> String {
    let number = id.to_string();
    let text = fs::read_to_string(file).unwrap_or_default();
    let named = text.lines().find(|line| line.split(':').nth(2) == Some(&number));
    named.and_then(|line| line.split(':').next()).map_or(number, str::to_owned)
}

/// Walks a data directory.
pub(super) struct Lister<'a> {
    places: &'a mut Places,
    rules: &'a Rules,
    relseg_blocks: u32,
    listing: Listing,
}

impl<'a> Lister<'a> {
    pub(super) fn new(places: &'a mut Places, rules: &'a Rules, relseg_blocks: u32) -> Self {
        Self { places, rules, relseg_blocks, listing: Listing::default() }
    }

    /// Lists the data directory and, by their absolute paths, files from outside it.
    pub(super) fn list(mut self, outside: &[PathBuf]) -> Result<Listing, EngineError> {
        let root = self.places.root().to_owned();
        self.add(b"data", &root, Found::Directory)?;
        self.walk(b"")?;
        let mut directories = Vec::new();
        for file in outside {
            directories.extend(file.ancestors().skip(1).filter(|dir| dir.parent().is_some()).map(Path::to_owned));
        }
        directories.sort();
        directories.dedup();
        if !outside.is_empty() {
            self.add(b"config", Path::new("/"), Found::Directory)?;
        }
        for path in &directories {
            self.add(&config_path(path), path, Found::Directory)?;
        }
        for path in outside {
            let len = metadata(path)?.map_or(0, |found| found.len());
            self.add(&config_path(path), path, Found::File { len, relation: None })?;
        }
        self.listing.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.listing.entries.dedup_by(|a, b| a.path == b.path);
        Ok(self.listing)
    }

    /// Adds an entry by what is at `on_disk`; what vanished meanwhile is left out.
    fn add(&mut self, path: &[u8], on_disk: &Path, found: Found) -> Result<bool, EngineError> {
        let metadata = if matches!(found, Found::Link(_)) { link_metadata(on_disk)? } else { metadata(on_disk)? };
        let Some(metadata) = metadata else {
            return Ok(false);
        };
        if let Found::File { len, .. } = &found {
            self.listing.bytes += len;
        }
        let owner = self.listing.owners.index(metadata.uid(), metadata.gid());
        let mtime = u64::try_from(metadata.mtime()).unwrap_or(0);
        self.listing.entries.push(Listed { path: path.into(), mode: metadata.mode() & 0o7777, owner, mtime, found });
        Ok(true)
    }

    /// Lists what is below `dir`, a path relative to the data directory.
    fn walk(&mut self, dir: &[u8]) -> Result<(), EngineError> {
        let on_disk = self.places.in_data(dir);
        let names = match read_names(&on_disk) {
            // A database that was dropped after its parent was listed: replay drops it too.
            Err(error) if error.kind() == ErrorKind::NotFound && !dir.is_empty() => return Ok(()),
            other => other.map_err(|error| EngineError::file(&on_disk, "listing the directory", error))?,
        };
        let unlogged = UnloggedRelations::from_names(names.iter().filter_map(|name| name.to_str()));
        for name in &names {
            let mut path = dir.to_vec();
            if !dir.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            if name.to_str().is_some_and(|name| unlogged.omits(name)) {
                continue;
            }
            self.entry(&path, &on_disk.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], on_disk: &Path) -> Result<(), EngineError> {
        let Some(metadata) = link_metadata(on_disk)? else {
            return Ok(());
        };
        let text = String::from_utf8_lossy(path);
        let kind = metadata.file_type();
        let in_backup = [b"data/", path].concat();
        if kind.is_symlink() {
            return self.link(path, &text, &in_backup, on_disk);
        }
        if kind.is_dir() {
            match classify(&text, EntryKind::Directory, self.rules) {
                Verdict::Omit(_) => {}
                verdict => {
                    self.add(&in_backup, on_disk, Found::Directory)?;
                    // Some directories that must be there are inside others whose files are left out.
                    if verdict == Verdict::Include || path == b"pg_wal" {
                        self.walk(path)?;
                    }
                }
            }
        } else if kind.is_file() {
            if classify(&text, EntryKind::File, self.rules) == Verdict::Include {
                let found = Found::File { len: metadata.len(), relation: relation_of(&text, self.relseg_blocks) };
                self.add(&in_backup, on_disk, found)?;
            }
        } else {
            self.listing.warnings.push(format!("{}: neither file, directory nor link; left out", on_disk.display()));
        }
        Ok(())
    }

    /// Tablespaces are walked through their links; `pg_wal` and the like may be links to directories, whose place is
    /// the host's affair; any other link is kept as one.
    fn link(&mut self, path: &[u8], text: &str, in_backup: &[u8], on_disk: &Path) -> Result<(), EngineError> {
        let is_tablespace = path.strip_prefix(b"pg_tblspc/").is_some_and(|rest| rest.iter().all(u8::is_ascii_digit));
        let target = match fs::read_link(on_disk) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| EngineError::file(on_disk, "reading the link", error))?,
        };
        if is_tablespace || holds_data(path) {
            self.places.follow(path, &target)?;
        }
        let target_kind = metadata(&self.places.in_data(path))?.map(|metadata| metadata.is_dir());
        if is_tablespace {
            self.add(in_backup, on_disk, Found::Link(target.into_os_string().into_vec()))?;
            if target_kind.is_none() {
                let reason = format!("{}: the tablespace's directory is missing", on_disk.display());
                return Err(EngineError::refused(reason, "bring its volume back, or drop the tablespace"));
            }
            return self.walk(path);
        }
        match (target_kind, classify(text, EntryKind::Directory, self.rules)) {
            (Some(true), Verdict::DirectoryOnly) => {
                self.add(in_backup, on_disk, Found::Directory)?;
                if path == b"pg_wal" { self.walk(path) } else { Ok(()) }
            }
            (_, Verdict::Omit(_)) => Ok(()),
            // A database or SLRU directory that was moved and linked: without what is in it the backup is none, and a
            // restored link would lead to the origin's files.
            (Some(true), Verdict::Include) if holds_data(path) => {
                self.listing.warnings.push(format!(
                    "{}: a link to {}; what it points to is backed up in its place, and restored as a directory",
                    on_disk.display(),
                    target.display()
                ));
                self.add(in_backup, on_disk, Found::Directory)?;
                self.walk(path)
            }
            _ => {
                self.listing.warnings.push(format!(
                    "{}: a link to {}; the link is backed up, what it points to is not",
                    on_disk.display(),
                    target.display()
                ));
                self.add(in_backup, on_disk, Found::Link(target.into_os_string().into_vec()))?;
                Ok(())
            }
        }
    }
}

/// What a file of pages is a part of, by its path in the data directory.
pub(super) fn relation_of(path: &str, relseg_blocks: u32) -> Option<Relation> {
    let file = RelFile::parse(path).filter(|file| file.temp_backend.is_none())?;
    let first_block = file.first_block(relseg_blocks)?.0;
    // The maps hold data where other pages have a hole: masking would hide what changed.
    let content = match file.fork {
        Fork::Main | Fork::Init => PageContent::Relation,
        Fork::Fsm | Fork::Vm => PageContent::Other,
    };
    Some(Relation { first_block, content })
}

/// Whether what is at this path belongs to the server's data, not to the operator.
fn holds_data(path: &[u8]) -> bool {
    const DATA: [&[u8]; 7] =
        [b"base", b"global", b"pg_tblspc", b"pg_xact", b"pg_multixact", b"pg_commit_ts", b"pg_twophase"];
    path.split(|&byte| byte == b'/').next().is_some_and(|first| DATA.contains(&first))
}

fn config_path(path: &Path) -> Vec<u8> {
    [b"config", path.as_os_str().as_bytes()].concat()
}

fn read_names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>, EngineError> {
    gone_is_none(path, fs::metadata(path))
}

fn link_metadata(path: &Path) -> Result<Option<fs::Metadata>, EngineError> {
    gone_is_none(path, fs::symlink_metadata(path))
}

fn gone_is_none<T>(path: &Path, result: std::io::Result<T>) -> Result<Option<T>, EngineError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::file(path, "looking at it", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_format::PgMajor;
    use std::os::unix::fs::symlink;

    fn list(root: &Path, outside: &[PathBuf]) -> Listing {
        let rules = Rules::new(PgMajor::from_number(15).unwrap());
        Lister::new(&mut Places::of(root.to_owned()), &rules, 131_072).list(outside).unwrap()
    }

    fn paths(listing: &Listing) -> Vec<String> {
        listing.entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
    }

    #[test]
    fn what_belongs_in_a_backup_and_what_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("main");
        let tablespace = dir.path().join("fast");
        let version = PgMajor::from_number(15).unwrap().tablespace_version_directory();
        for sub in ["base/5", "global", "pg_wal/archive_status", "pg_replslot/slot", "pg_tblspc/777/x", "pg_stat_tmp"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::create_dir_all(tablespace.join(&version).join("5")).unwrap();
        fs::create_dir_all(tablespace.join("PG_14_202107181/5")).unwrap();
        symlink(&tablespace, root.join("pg_tblspc/16400")).unwrap();
        symlink("/etc/hostname", root.join("a-link")).unwrap();
        for file in [
            "PG_VERSION",
            "postmaster.pid",
            "base/5/1259",
            "base/5/1259_vm",
            "base/5/1259.1",
            "base/5/16500",
            "base/5/16500_init",
            "base/5/16500_fsm",
            "base/5/t3_16600",
            "base/5/pg_internal.init",
            "global/pg_control",
            "pg_wal/000000010000000000000001",
            "pg_replslot/slot/state",
            "pg_stat_tmp/x",
            "backup_label.old",
        ] {
            fs::write(root.join(file), b"12345").unwrap();
        }
        fs::write(tablespace.join(&version).join("5/16700"), b"").unwrap();
        fs::write(tablespace.join("PG_14_202107181/5/1"), b"").unwrap();
        let conf = dir.path().join("etc/postgresql.conf");
        fs::create_dir_all(conf.parent().unwrap()).unwrap();
        fs::write(&conf, b"x = 1").unwrap();

        let listing = list(&root, std::slice::from_ref(&conf));
        let found = paths(&listing);
        let data: Vec<&str> = found.iter().map(String::as_str).filter(|path| path.starts_with("data")).collect();
        let in_tablespace = [format!("data/pg_tblspc/16400/{version}"), format!("data/pg_tblspc/16400/{version}/5")];
        let file_there = format!("data/pg_tblspc/16400/{version}/5/16700");
        let mut expect = vec![
            "data",
            "data/PG_VERSION",
            "data/a-link",
            "data/backup_label.old",
            "data/base",
            "data/base/5",
            "data/base/5/1259",
            "data/base/5/1259.1",
            "data/base/5/1259_vm",
            "data/base/5/16500_init",
            "data/global",
            "data/global/pg_control",
            "data/pg_replslot",
            "data/pg_stat_tmp",
            "data/pg_tblspc",
            "data/pg_tblspc/16400",
            &in_tablespace[0],
            &in_tablespace[1],
            &file_there,
            "data/pg_tblspc/777",
            "data/pg_wal",
            "data/pg_wal/archive_status",
        ];
        expect.sort_unstable();
        assert_eq!(data, expect);
        assert!(found.contains(&format!("config{}", conf.display())));
        assert!(found.windows(2).all(|pair| pair[0].as_bytes() < pair[1].as_bytes()), "sorted");
        assert!(listing.warnings.iter().any(|warning| warning.contains("a-link")), "{:?}", listing.warnings);

        let relation = |path: &str| {
            let entry = listing.entries.iter().find(|entry| &*entry.path == path.as_bytes()).unwrap();
            let Found::File { relation, .. } = entry.found else { panic!("{path} is a file") };
            relation.map(|relation| (relation.first_block, relation.content))
        };
        assert_eq!(relation("data/base/5/1259"), Some((0, PageContent::Relation)));
        assert_eq!(relation("data/base/5/1259.1"), Some((131_072, PageContent::Relation)));
        assert_eq!(relation("data/base/5/1259_vm"), Some((0, PageContent::Other)));
        assert_eq!(relation("data/PG_VERSION"), None);
    }

    #[test]
    fn a_database_that_was_moved_and_linked_is_backed_up_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (root, moved) = (dir.path().join("main"), dir.path().join("moved"));
        for made in [&root.join("base"), &moved] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(moved.join("1259"), b"12345").unwrap();
        symlink(&moved, root.join("base/5")).unwrap();
        symlink(&moved, root.join("log")).unwrap();
        let listing = list(&root, &[]);
        assert_eq!(paths(&listing), ["data", "data/base", "data/base/5", "data/base/5/1259", "data/log"]);
        assert_eq!(listing.entries[2].found, Found::Directory);
        assert!(matches!(listing.entries[4].found, Found::Link(_)), "of what is the operator's only the link is kept");
        assert_eq!(listing.warnings.len(), 2);
    }

    #[test]
    fn a_missing_tablespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pg_tblspc")).unwrap();
        symlink("/nowhere/at/all", dir.path().join("pg_tblspc/16400")).unwrap();
        let rules = Rules::new(PgMajor::from_number(15).unwrap());
        assert!(Lister::new(&mut Places::of(dir.path().to_owned()), &rules, 131_072).list(&[]).is_err());
    }
}
