//! What lies at the path: a data directory or tar files, walked in the same way. Nothing is unpacked, and no link is
//! followed but those of tablespaces and of `pg_wal`.

use crate::EngineError;
use crate::tar::{Member, MemberKind, TarReader, decompress};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is to be done with a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Bytes,
    Nothing,
}

/// Is shown everything, in no particular order. Paths are those of the data directory; what is in a tablespace is below
/// `pg_tblspc/OID`.
pub(super) trait Visitor {
    fn member(&mut self, member: &Member) -> Result<Wanted, EngineError>;
    /// The next bytes of the file that was shown.
    fn data(&mut self, bytes: &[u8]) -> Result<(), EngineError>;
    /// The file ends here.
    fn end(&mut self) -> Result<(), EngineError>;
}

/// What lies at the path.
#[derive(Debug)]
pub(super) enum Input {
    Plain { root: PathBuf },
    Tar { base: PathBuf, tablespaces: Vec<(u32, PathBuf)>, wal: Option<PathBuf>, manifest: Option<PathBuf> },
}

const BUFFER: usize = 512 << 10;

impl Input {
    /// Finds out what it is.
    pub(super) fn find(path: &Path) -> Result<Self, EngineError> {
        let meta = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                EngineError::not_found(format!("{} is not there", path.display()), "give what pg_basebackup wrote")
            }
            _ => EngineError::file(path, "looking at", error),
        })?;
        if meta.is_file() {
            return Ok(Self::Tar { base: path.to_owned(), tablespaces: Vec::new(), wal: None, manifest: None });
        }
        if path.join("PG_VERSION").is_file() {
            return Ok(Self::Plain { root: path.to_owned() });
        }
        let (mut base, mut wal, mut manifest, mut tablespaces) = (None, None, None, Vec::new());
        for entry in fs::read_dir(path).map_err(|error| EngineError::file(path, "listing", error))? {
            let entry = entry.map_err(|error| EngineError::file(path, "listing", error))?;
            let (name, file) = (entry.file_name(), entry.path());
            let Some(name) = name.to_str() else { continue };
            let stem = [".tar", ".tar.gz", ".tar.lz4", ".tar.zst"].iter().find_map(|end| name.strip_suffix(end));
            let twice = match (stem, name) {
                (Some("base"), _) => base.replace(file).is_some(),
                (Some("pg_wal"), _) => wal.replace(file).is_some(),
                (Some(stem), _) => {
                    if let Ok(oid) = stem.parse::<u32>() {
                        tablespaces.push((oid, file));
                    }
                    false
                }
                (None, "backup_manifest") => manifest.replace(file).is_some(),
                _ => false,
            };
            if twice {
                return Err(EngineError::refused(
                    format!("{} has more than one {name}, compressed and not", path.display()),
                    "leave the one that belongs to the backup",
                ));
            }
        }
        tablespaces.sort();
        if let Some(pair) = tablespaces.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(EngineError::refused(
                format!("{} and {} are the same tablespace", pair[0].1.display(), pair[1].1.display()),
                "leave the one that belongs to the backup",
            ));
        }
        let base = base.ok_or_else(|| {
            EngineError::refused(
                format!("{} is no base backup: neither PG_VERSION nor base.tar is in it", path.display()),
                "give the directory that pg_basebackup wrote",
            )
        })?;
        Ok(Self::Tar { base, tablespaces, wal, manifest })
    }

    /// Shows everything. `stopped` is asked between files and pieces.
    pub(super) fn walk(&self, visitor: &mut dyn Visitor, stopped: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let mut walk = Walk { visitor, stopped, buffer: vec![0; BUFFER] };
        match self {
            Self::Plain { root } => walk.directory(root, b""),
            Self::Tar { base, tablespaces, wal, manifest } => {
                if let Some(manifest) = manifest {
                    walk.file_at(manifest, b"backup_manifest")?;
                }
                walk.tar(base, b"")?;
                for (oid, file) in tablespaces {
                    walk.tar(file, format!("pg_tblspc/{oid}/").as_bytes())?;
                }
                wal.as_ref().map_or(Ok(()), |wal| walk.tar(wal, b"pg_wal/"))
            }
        }
    }
}

impl Input {
    /// Shows what may hold WAL: for tar files with WAL in `base.tar`, everything.
    pub(super) fn walk_wal(&self, visitor: &mut dyn Visitor, stopped: &dyn Fn() -> bool) -> Result<(), EngineError> {
        let mut walk = Walk { visitor, stopped, buffer: vec![0; BUFFER] };
        match self {
            Self::Plain { root } => {
                let wal = root.join("pg_wal");
                if wal.is_dir() { walk.directory(&wal, b"pg_wal") } else { Ok(()) }
            }
            Self::Tar { wal: Some(wal), .. } => walk.tar(wal, b"pg_wal/"),
            Self::Tar { base, .. } => walk.tar(base, b""),
        }
    }
}

struct Walk<'a> {
    visitor: &'a mut dyn Visitor,
    stopped: &'a dyn Fn() -> bool,
    buffer: Vec<u8>,
}

fn odd_link(path: &Path, target: &[u8]) -> EngineError {
    EngineError::refused(
        format!(
            "{} is a link to {}: a base backup has links for tablespaces only",
            path.display(),
            String::from_utf8_lossy(target)
        ),
        "put what it leads to in its place, or remove it; nothing was imported",
    )
}

/// Whether a path is a tablespace's own: `pg_tblspc/OID`.
pub(super) fn is_tablespace(path: &[u8]) -> Option<u32> {
    std::str::from_utf8(path.strip_prefix(b"pg_tblspc/")?).ok()?.parse().ok()
}

impl Walk<'_> {
    fn check(&self) -> Result<(), EngineError> {
        if (self.stopped)() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    fn tar(&mut self, file: &Path, prefix: &[u8]) -> Result<(), EngineError> {
        let bad = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => EngineError::refused(
                format!("{}: it is cut off", file.display()),
                "it was not written or copied to its end; nothing was imported",
            ),
            io::ErrorKind::InvalidData | io::ErrorKind::Other | io::ErrorKind::InvalidInput => EngineError::refused(
                format!("{}: {error}", file.display()),
                "it is damaged, or was not made by pg_basebackup; nothing was imported",
            ),
            _ => EngineError::file(file, "reading", error),
        };
        let mut tar = TarReader::new(decompress::open(file).map_err(bad)?);
        while let Some(mut member) = tar.next().map_err(bad)? {
            self.check()?;
            if member.name.is_empty() {
                continue;
            }
            member.name = [prefix, &member.name].concat();
            if let MemberKind::Link(target) = &member.kind
                && is_tablespace(&member.name).is_none()
            {
                let name = String::from_utf8_lossy(&member.name).into_owned();
                return Err(odd_link(&file.join(name), target));
            }
            let wanted = self.visitor.member(&member)?;
            if let (MemberKind::File(_), Wanted::Bytes) = (&member.kind, wanted) {
                loop {
                    self.check()?;
                    let read = tar.read(&mut self.buffer).map_err(bad)?;
                    if read == 0 {
                        break;
                    }
                    self.visitor.data(&self.buffer[..read])?;
                }
                self.visitor.end()?;
            }
        }
        Ok(())
    }

    /// One file under a name of its own.
    fn file_at(&mut self, path: &Path, name: &[u8]) -> Result<(), EngineError> {
        let meta = fs::metadata(path).map_err(|error| EngineError::file(path, "looking at", error))?;
        let member = self.describe(name, MemberKind::File(meta.len()), &meta);
        let wanted = self.visitor.member(&member)?;
        if wanted == Wanted::Bytes { self.content(path, meta.len()) } else { Ok(()) }
    }

    fn describe(&self, name: &[u8], kind: MemberKind, meta: &fs::Metadata) -> Member {
        Member {
            name: name.to_vec(),
            kind,
            mode: meta.mode() & 0o7777,
            mtime: u64::try_from(meta.mtime()).unwrap_or(0),
            user: meta.uid().to_string(),
            group: meta.gid().to_string(),
        }
    }

    fn content(&mut self, path: &Path, len: u64) -> Result<(), EngineError> {
        let fail = |error| EngineError::file(path, "reading", error);
        let mut file = File::open(path).map_err(fail)?;
        let mut left = len;
        while left > 0 {
            self.check()?;
            let want = left.min(BUFFER as u64) as usize;
            let mut got = 0;
            while got < want {
                match file.read(&mut self.buffer[got..want]).map_err(fail)? {
                    0 => break,
                    read => got += read,
                }
            }
            if got < want {
                return Err(EngineError::refused(
                    format!("{} became shorter while it was read", path.display()),
                    "import a base backup that nothing writes to",
                ));
            }
            self.visitor.data(&self.buffer[..got])?;
            left -= got as u64;
        }
        self.visitor.end()
    }

    fn directory(&mut self, dir: &Path, name: &[u8]) -> Result<(), EngineError> {
        let list = || -> io::Result<Vec<_>> { fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect() };
        let mut names = list().map_err(|error| EngineError::file(dir, "listing", error))?;
        names.sort();
        for entry in names {
            self.check()?;
            let path = dir.join(&entry);
            let mut inside = name.to_vec();
            if !inside.is_empty() {
                inside.push(b'/');
            }
            inside.extend_from_slice(OsStr::as_bytes(&entry));
            let meta = fs::symlink_metadata(&path).map_err(|error| EngineError::file(&path, "looking at", error))?;
            let kind = meta.file_type();
            if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| EngineError::file(&path, "reading", error))?;
                let target = target.into_os_string().into_vec();
                if is_tablespace(&inside).is_some() {
                    let member = self.describe(&inside, MemberKind::Link(target), &meta);
                    self.visitor.member(&member)?;
                } else if inside == b"pg_wal" {
                    // `--waldir`: where WAL lies is the host's affair.
                    let meta = fs::metadata(&path).map_err(|error| EngineError::file(&path, "looking at", error))?;
                    let member = self.describe(&inside, MemberKind::Directory, &meta);
                    self.visitor.member(&member)?;
                } else {
                    return Err(odd_link(&path, &target));
                }
                self.directory(&path, &inside)?;
            } else if kind.is_dir() {
                let member = self.describe(&inside, MemberKind::Directory, &meta);
                self.visitor.member(&member)?;
                self.directory(&path, &inside)?;
            } else if kind.is_file() {
                self.file_at(&path, &inside)?;
            } else {
                return Err(EngineError::refused(
                    format!("{} is neither file, directory nor link", path.display()),
                    "a base backup has no such thing; remove it",
                ));
            }
        }
        Ok(())
    }
}
