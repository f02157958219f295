//! What a base backup omits (`sendDir` in `src/backend/backup/basebackup.c`; before 16 the file is in
//! `src/backend/replication/`), and which files have page checksums.
//!
//! Paths are relative to the data directory, with `/` between their parts. Tablespaces elsewhere are walked as
//! `pg_tblspc/OID/…`. Not decided here: `recovery.signal`, `standby.signal`, `backup_label.old` and
//! `tablespace_map.old` are included, as `pg_basebackup` does; a restore has to remove or replace them
//! ([`RESTORE_REMOVES`]). `pg_control` is included, but must be copied last.

use std::collections::HashSet;

use crate::relpath::{Fork, RelDirectory, RelFile, RelFileName};
use crate::version::PgMajor;

/// Directories whose contents are omitted wherever they are (`excludeDirContents`); the same in 14 to 18.
pub const EMPTIED_DIRECTORIES: &[&str] =
    &["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];

/// Names that are omitted wherever they are (`excludeFiles`, those with a whole name); the same in 14 to 18.
pub const OMITTED_NAMES: &[&str] = &[
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];

/// Beginnings of names that are omitted wherever they are (`excludeFiles` with `match_prefix`, and
/// `PG_TEMP_FILE_PREFIX`).
pub const OMITTED_PREFIXES: &[&str] = &["pg_internal.init", "pgsql_tmp"];

/// Names in relation directories that have no page checksums (`noChecksumFiles` up to 16); `pg_internal.init` is a
/// beginning. Later versions check only what is named like a relation, as [`has_page_checksums`] does for all.
pub const NO_CHECKSUM_NAMES: &[&str] = &["pg_control", "pg_filenode.map", "pg_internal.init", "PG_VERSION"];

/// Files of the data directory that a base backup may contain, and that would make a restored cluster do something
/// else than it was told.
pub const RESTORE_REMOVES: &[&str] =
    &["recovery.signal", "standby.signal", "backup_label.old", "tablespace_map.old", "recovery.done"];

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory, or a link to one that is walked as if it were one.
    Directory,
}

/// What is to be done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It belongs in the backup; a directory is walked.
    Include,
    /// The directory belongs in the backup (also when it is a link), what is in it does not.
    DirectoryOnly,
    /// It does not belong in the backup.
    Omit(OmitReason),
}

/// Why a path is omitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OmitReason {
    /// A temporary file or relation.
    Temporary,
    /// The server makes it again when it starts.
    Remade,
    /// It belongs to the running server or to another backup.
    OtherBackupOrServer,
    /// WAL comes from the archive.
    Wal,
    /// Of an unlogged relation only the init fork is kept.
    Unlogged,
    /// A tablespace's directory of another server version.
    OtherVersion,
}

/// The rules for one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The server's version.
    pub major: PgMajor,
    /// Name of the server's own directory in tablespaces; see [`PgMajor::tablespace_version_directory`].
    pub tablespace_version_directory: String,
    /// PostgreSQL 14: the setting `stats_temp_directory`, relative to the data directory, when it lies within.
    pub stats_temp_directory: Option<String>,
}

impl Rules {
    /// The rules for a released server with default directories.
    #[must_use]
    pub fn new(major: PgMajor) -> Self {
        Self { major, tablespace_version_directory: major.tablespace_version_directory(), stats_temp_directory: None }
    }
}

/// Decides about one path. Omitted directories need not be walked; for what lies in them the answer is `Omit`, too.
///
/// Unlogged relations cannot be told from one path: see [`UnloggedRelations`].
#[must_use]
pub fn classify(path: &str, kind: EntryKind, rules: &Rules) -> Verdict {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    // The same name rules hold for every directory on the way.
    for component in parent.split('/') {
        if let Some(reason) = omitted_name(component) {
            return Verdict::Omit(reason);
        }
        if EMPTIED_DIRECTORIES.contains(&component) {
            return Verdict::Omit(OmitReason::Remade);
        }
    }
    if let Some(reason) = omitted_name(name) {
        return Verdict::Omit(reason);
    }
    if EMPTIED_DIRECTORIES.contains(&name) && kind == EntryKind::Directory {
        return Verdict::DirectoryOnly;
    }
    if let Some(stats) = rules.stats_temp_directory.as_deref().filter(|stats| !stats.is_empty()) {
        if path == stats {
            return Verdict::DirectoryOnly;
        }
        if path.strip_prefix(stats).is_some_and(|rest| rest.starts_with('/')) {
            return Verdict::Omit(OmitReason::Remade);
        }
    }
    if path == "pg_wal" {
        return Verdict::DirectoryOnly;
    }
    if let Some(rest) = path.strip_prefix("pg_wal/") {
        let kept = kind == EntryKind::Directory && rules.major.facts().wal_subdirectories.contains(&rest);
        return if kept { Verdict::DirectoryOnly } else { Verdict::Omit(OmitReason::Wal) };
    }
    if let Some(rest) = path.strip_prefix("pg_tblspc/") {
        // `sendTablespace` sends only the server's own directory of a tablespace.
        if let Some(inside) = rest.split('/').nth(1)
            && inside != rules.tablespace_version_directory
        {
            return Verdict::Omit(OmitReason::OtherVersion);
        }
    }
    if RelFileName::parse(name).is_some_and(|file| file.temp_backend.is_some())
        && RelDirectory::parse(parent).is_some_and(|directory| directory.db_oid.is_valid())
    {
        return Verdict::Omit(OmitReason::Temporary);
    }
    Verdict::Include
}

fn omitted_name(name: &str) -> Option<OmitReason> {
    // `.DS_Store` is skipped from 17 on; it is never data.
    if name.starts_with("pgsql_tmp") || name == ".DS_Store" {
        return Some(OmitReason::Temporary);
    }
    if name.starts_with("pg_internal.init") {
        return Some(OmitReason::Remade);
    }
    OMITTED_NAMES.contains(&name).then_some(OmitReason::OtherBackupOrServer)
}

/// Whether the pages of this file have checksums (when the cluster has them).
#[must_use]
pub fn has_page_checksums(path: &str) -> bool {
    RelFile::parse(path).is_some_and(|file| file.temp_backend.is_none())
}

/// The unlogged relations of one directory: those with an init fork.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnloggedRelations {
    filenodes: HashSet<u32>,
}

impl UnloggedRelations {
    /// From all names in one directory that holds relations (`base/DBOID`, `global`, `pg_tblspc/OID/PG_…/DBOID`).
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let init = |name| {
            let file = RelFileName::parse(name)?;
            // Only the first segment counts: `sendDir` looks for `FILENODE_init`.
            let is_init = file.fork == Fork::Init && file.segment == 0 && file.temp_backend.is_none();
            is_init.then_some(file.filenode)
        };
        Self { filenodes: names.into_iter().filter_map(init).collect() }
    }

    /// Whether a backup omits this file of the same directory.
    #[must_use]
    pub fn omits(&self, name: &str) -> bool {
        RelFileName::parse(name).is_some_and(|file| {
            file.temp_backend.is_none() && file.fork != Fork::Init && self.filenodes.contains(&file.filenode)
        })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filenodes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn verdicts() {
        use EntryKind::{Directory, File};
        use OmitReason::{OtherBackupOrServer, OtherVersion, Remade, Temporary, Wal};
        use Verdict::{DirectoryOnly, Include, Omit};
        let check = |major: PgMajor, path: &str, kind: EntryKind, expect: Verdict| {
            let rules = Rules { stats_temp_directory: Some("my_stats".into()), ..Rules::new(major) };
            assert_eq!(classify(path, kind, &rules), expect, "{path}");
        };
        for major in PgMajor::ALL {
            check(major, "base", Directory, Include);
            check(major, "base/5/16384", File, Include);
            check(major, "base/5/t3_16384", File, Omit(Temporary));
            check(major, "base/5/t3_16384_fsm.1", File, Omit(Temporary));
            check(major, "global/t3_16384", File, Include);
            check(major, "t3_16384", File, Include);
            check(major, "base/pgsql_tmp", Directory, Omit(Temporary));
            check(major, "base/pgsql_tmp/pgsql_tmp12.0", File, Omit(Temporary));
            check(major, "base/pgsql_tmp/x", File, Omit(Temporary));
            check(major, "global/pg_control", File, Include);
            check(major, "global/pg_internal.init.123", File, Omit(Remade));
            check(major, "base/5/pg_internal.init", File, Omit(Remade));
            check(major, "postmaster.pid", File, Omit(OtherBackupOrServer));
            check(major, "postmaster.pidx", File, Include);
            check(major, "backup_label", File, Omit(OtherBackupOrServer));
            check(major, "backup_label.old", File, Include);
            check(major, "standby.signal", File, Include);
            check(major, "postgresql.auto.conf", File, Include);
            check(major, "postgresql.auto.conf.tmp", File, Omit(OtherBackupOrServer));
            check(major, "pg_replslot", Directory, DirectoryOnly);
            check(major, "pg_replslot/s/state", File, Omit(Remade));
            check(major, "pg_stat_tmp", Directory, DirectoryOnly);
            check(major, "pg_stat/pgstat.stat", File, Include);
            check(major, "my_stats", Directory, DirectoryOnly);
            check(major, "my_stats/x", File, Omit(Remade));
            check(major, "my_stats2", Directory, Include);
            check(major, "pg_wal", Directory, DirectoryOnly);
            check(major, "pg_wal/archive_status", Directory, DirectoryOnly);
            check(major, "pg_wal/archive_status/x.ready", File, Omit(Wal));
            check(major, "pg_wal/000000010000000000000001", File, Omit(Wal));
            check(major, "pg_tblspc/16500", Directory, Include);
        }
        check(PgMajor::V16, "pg_wal/summaries", Directory, Omit(Wal));
        check(PgMajor::V17, "pg_wal/summaries", Directory, DirectoryOnly);
        check(PgMajor::V15, "pg_tblspc/16500/PG_15_202209061/5/16501", File, Include);
        check(PgMajor::V15, "pg_tblspc/16500/PG_15_202209061/5/t1_16501", File, Omit(Temporary));
        check(PgMajor::V15, "pg_tblspc/16500/PG_14_202107181", Directory, Omit(OtherVersion));
        check(PgMajor::V15, "pg_tblspc/16500/something", File, Omit(OtherVersion));
    }

    #[test]
    fn unlogged() {
        let names = ["16384", "16384_init", "16384_fsm", "16384.1", "16385", "16385_vm", "16386_init.1", "16386"];
        let unlogged = UnloggedRelations::from_names(names);
        let omitted: Vec<_> = names.into_iter().filter(|name| unlogged.omits(name)).collect();
        assert_eq!(omitted, ["16384", "16384_fsm", "16384.1"]);
        assert!(UnloggedRelations::from_names(["PG_VERSION", "t1_5_init"]).is_empty());
    }

    #[test]
    fn checksummed() {
        for path in ["base/5/16384", "global/1262_vm", "pg_tblspc/16500/PG_15_202209061/5/16501_init"] {
            assert!(has_page_checksums(path), "{path}");
        }
        for path in ["base/5/PG_VERSION", "global/pg_control", "pg_xact/0000", "base/5/t1_16384"] {
            assert!(!has_page_checksums(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in ".*") {
            let _ = classify(&path, EntryKind::File, &Rules::new(PgMajor::V14));
        }
    }
}
