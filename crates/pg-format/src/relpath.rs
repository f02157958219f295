//! Paths of relation files, relative to the data directory (`src/common/relpath.c`,
//! `parse_filename_for_nontemp_relation` in `src/backend/storage/file/reinit.c`, `looks_like_temp_rel_name` in
//! `src/backend/storage/file/fd.c`).

use std::fmt;

use crate::ids::{BlockNumber, Oid};

/// The fork of a relation (`ForkNumber`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data itself.
    Main,
    /// `_fsm`, the free space map.
    Fsm,
    /// `_vm`, the visibility map.
    Vm,
    /// `_init`, what an unlogged relation is reset to.
    Init,
}

impl Fork {
    /// All forks, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Main, Self::Fsm, Self::Vm, Self::Init];

    /// The fork's number in WAL records and WAL summaries.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The fork with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// What stands after the relation's number in the file name, like `_fsm`.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Fsm => "_fsm",
            Self::Vm => "_vm",
            Self::Init => "_init",
        }
    }
}

impl fmt::Display for Fork {
    /// The name of `forkNames`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Main => "main",
            Self::Fsm => "fsm",
            Self::Vm => "vm",
            Self::Init => "init",
        })
    }
}

/// A file of a relation: one segment of one fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFile {
    /// The tablespace; [`Oid::GLOBAL_TABLESPACE`] for `global/`, [`Oid::DEFAULT_TABLESPACE`] for `base/`.
    pub tablespace_oid: Oid,
    /// The database; 0 for shared relations.
    pub db_oid: Oid,
    /// The relfilenode; never 0.
    pub filenode: u32,
    /// The fork.
    pub fork: Fork,
    /// The segment of the fork, from 0.
    pub segment: u32,
    /// For a temporary relation, the backend that owns it.
    pub temp_backend: Option<u32>,
}

/// The last component of a relation file's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileName {
    /// The relfilenode; never 0.
    pub filenode: u32,
    /// The fork.
    pub fork: Fork,
    /// The segment of the fork, from 0.
    pub segment: u32,
    /// For a temporary relation, the backend that owns it.
    pub temp_backend: Option<u32>,
}

/// A directory that holds relation files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelDirectory<'a> {
    /// The tablespace.
    pub tablespace_oid: Oid,
    /// The database; 0 for `global/`.
    pub db_oid: Oid,
    /// For a tablespace elsewhere, its directory of one server version, like `PG_15_202209061`.
    pub version_directory: Option<&'a str>,
}

impl<'a> RelDirectory<'a> {
    /// Reads `global`, `base/DBOID` or `pg_tblspc/OID/PG_…/DBOID`.
    #[must_use]
    pub fn parse(path: &'a str) -> Option<Self> {
        if path == "global" {
            return Some(Self {
                tablespace_oid: Oid::GLOBAL_TABLESPACE,
                db_oid: Oid::INVALID,
                version_directory: None,
            });
        }
        if let Some(db) = path.strip_prefix("base/") {
            return Some(Self {
                tablespace_oid: Oid::DEFAULT_TABLESPACE,
                db_oid: Oid(number(db)?),
                version_directory: None,
            });
        }
        let mut parts = path.strip_prefix("pg_tblspc/")?.split('/');
        let tablespace_oid = Oid(number(parts.next()?)?);
        let version_directory = parts.next().filter(|name| is_version_directory(name))?;
        let db_oid = Oid(number(parts.next()?)?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self { tablespace_oid, db_oid, version_directory: Some(version_directory) })
    }
}

impl RelFileName {
    /// Reads `FILENODE[_fork][.SEGMENT]` or `tBACKEND_FILENODE[_fork][.SEGMENT]`. Numbers with leading zeroes are
    /// no names of relation files, as in PostgreSQL 16 and later.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (temp_backend, rest) = match name.strip_prefix('t') {
            Some(rest) => {
                let (backend, rest) = rest.split_once('_')?;
                let backend = if backend == "0" { 0 } else { number(backend)? };
                (Some(backend), rest)
            }
            None => (None, name),
        };
        let (stem, segment) = match rest.split_once('.') {
            Some((stem, segment)) => (stem, number(segment)?),
            None => (rest, 0),
        };
        let (filenode, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((filenode, "fsm")) => (filenode, Fork::Fsm),
            Some((filenode, "vm")) => (filenode, Fork::Vm),
            Some((filenode, "init")) => (filenode, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { filenode: number(filenode)?, fork, segment, temp_backend })
    }
}

impl fmt::Display for RelFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(backend) = self.temp_backend {
            write!(f, "t{backend}_")?;
        }
        write!(f, "{}{}", self.filenode, self.fork.suffix())?;
        if self.segment > 0 {
            write!(f, ".{}", self.segment)?;
        }
        Ok(())
    }
}

impl RelFile {
    /// Reads a path with `/` between its parts and none in front; `None` when it is no relation file's path.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/')?;
        let directory = RelDirectory::parse(directory)?;
        let name = RelFileName::parse(name)?;
        Some(Self {
            tablespace_oid: directory.tablespace_oid,
            db_oid: directory.db_oid,
            filenode: name.filenode,
            fork: name.fork,
            segment: name.segment,
            temp_backend: name.temp_backend,
        })
    }

    /// The last component of the path.
    #[must_use]
    pub const fn file_name(&self) -> RelFileName {
        RelFileName { filenode: self.filenode, fork: self.fork, segment: self.segment, temp_backend: self.temp_backend }
    }

    /// The path relative to the data directory. `version_directory` is used for tablespaces elsewhere
    /// ([`crate::PgMajor::tablespace_version_directory`]).
    #[must_use]
    pub fn to_path(&self, version_directory: &str) -> String {
        let name = self.file_name();
        match self.tablespace_oid {
            Oid::GLOBAL_TABLESPACE => format!("global/{name}"),
            Oid::DEFAULT_TABLESPACE => format!("base/{}/{name}", self.db_oid),
            tablespace => format!("pg_tblspc/{tablespace}/{version_directory}/{}/{name}", self.db_oid),
        }
    }

    /// The number of this file's first block within the fork, as page checksums count; `None` beyond 32 bits.
    #[must_use]
    pub fn first_block(&self, relation_segment_blocks: u32) -> Option<BlockNumber> {
        self.segment.checked_mul(relation_segment_blocks).map(BlockNumber)
    }
}

/// A decimal number from 1 to 2³² − 1 without leading zeroes.
fn number(digits: &str) -> Option<u32> {
    match digits.as_bytes() {
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => digits.parse().ok(),
        _ => None,
    }
}

/// Whether a name looks like `PG_15_202209061`.
#[must_use]
pub fn is_version_directory(name: &str) -> bool {
    let parts = name.strip_prefix("PG_").and_then(|rest| rest.split_once('_'));
    parts.is_some_and(|(major, catalog)| number(major).is_some() && number(catalog).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VERSION: &str = "PG_15_202209061";

    #[test]
    fn good() {
        let check = |path: &str, expect: (u32, u32, u32, Fork, u32, Option<u32>)| {
            let file = RelFile::parse(path).unwrap_or_else(|| panic!("{path}"));
            let (space, db, node, fork, segment, temp) = expect;
            assert_eq!((file.tablespace_oid, file.db_oid), (Oid(space), Oid(db)), "{path}");
            assert_eq!((file.filenode, file.fork), (node, fork), "{path}");
            assert_eq!((file.segment, file.temp_backend), (segment, temp), "{path}");
            assert_eq!(file.to_path(VERSION), path);
        };
        check("global/1262", (1664, 0, 1262, Fork::Main, 0, None));
        check("global/1262_vm", (1664, 0, 1262, Fork::Vm, 0, None));
        check("base/5/16384.3", (1663, 5, 16384, Fork::Main, 3, None));
        check("base/5/16384_fsm.1", (1663, 5, 16384, Fork::Fsm, 1, None));
        check("base/4294967295/4294967295_init", (1663, u32::MAX, u32::MAX, Fork::Init, 0, None));
        check("base/5/t3_16390_vm", (1663, 5, 16390, Fork::Vm, 0, Some(3)));
        check("base/5/t0_16390", (1663, 5, 16390, Fork::Main, 0, Some(0)));
        check("pg_tblspc/16500/PG_15_202209061/5/16501.2", (16500, 5, 16501, Fork::Main, 2, None));
    }

    #[test]
    fn bad() {
        for path in [
            "",
            "base",
            "base/5",
            "base/5/",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/pg_internal.init",
            "base/5/016384",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384_xyz",
            "base/5/16384_main",
            "base/5/16384.1_fsm",
            "base/5/4294967296",
            "base/05/16384",
            "base/5/x/16384",
            "base/5/t_16384",
            "base/5/t1_",
            "/base/5/16384",
            "global/pg_control",
            "pg_wal/000000010000000000000001",
            "pg_tblspc/16500/5/16501",
            "pg_tblspc/16500/PG_15_x/5/16501",
            "pg_tblspc/16500/PG_15_202209061/16501",
            "pg_xact/0000",
        ] {
            assert_eq!(RelFile::parse(path), None, "{path}");
        }
    }

    #[test]
    fn blocks() {
        let file = RelFile::parse("base/5/16384.3").unwrap();
        assert_eq!(file.first_block(131_072), Some(BlockNumber(393_216)));
        let file = RelFile::parse("base/5/16384.4294967295").unwrap();
        assert_eq!(file.first_block(131_072), None);
    }

    proptest! {
        #[test]
        fn round_trip(space in 1u32.., db in 1u32.., filenode in 1u32.., fork in 0u32..4, segment: u32, temp: Option<u32>) {
            let file = RelFile {
                tablespace_oid: Oid(space),
                db_oid: if Oid(space) == Oid::GLOBAL_TABLESPACE { Oid(0) } else { Oid(db) },
                filenode,
                fork: Fork::from_number(fork).unwrap(),
                segment,
                temp_backend: temp,
            };
            prop_assert_eq!(RelFile::parse(&file.to_path(VERSION)), Some(file));
        }

        #[test]
        fn never_panics(path in "(base/|global/|pg_tblspc/)?[0-9t_./PGfsmé]{0,30}") {
            let _ = RelFile::parse(&path);
            let _ = RelDirectory::parse(&path);
        }
    }
}
