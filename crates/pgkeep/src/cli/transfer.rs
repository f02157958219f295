//! Arguments of `export`, `copy` and `import-basebackup`: backups and dumps out, elsewhere and in again.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportForm {
    /// A data directory, as pg_basebackup -Fp makes it; of a dump: SQL, for psql
    Plain,
    /// base.tar, OID.tar for each tablespace, pg_wal.tar, as pg_basebackup -Ft makes them; of a dump: for pg_restore
    Tar,
    /// Of a dump: one file, for pg_restore
    Custom,
    /// Of a dump: a directory, for pg_restore with many sessions
    Directory,
}

/// The checksums in backup_manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Checksums {
    /// As pg_basebackup does unless told otherwise
    Crc32c,
    /// SHA-256
    Sha256,
}

/// Give a backup out in PostgreSQL's own form, with nothing of pgkeep's in it
///
/// A data directory or tar files as pg_basebackup makes them, with backup_label and a backup_manifest that
/// pg_verifybackup accepts. Nothing has its final name before all of it is written and durable; a damaged backup is
/// refused. Archiving is off in it unless told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        pgkeep export latest --to /srv/copy --wal && pg_verifybackup /srv/copy\n  \
        pgkeep export 20261120T200910Z --to /srv/tars --format tar --compress zstd\n  \
        pgkeep export latest --to - --wal | ssh other 'tar -xf - -C /srv/data'")]
pub(crate) struct ExportArgs {
    /// The backup's ID as `pgkeep list` shows it, or `latest`; or a dump's
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Of a dump: the database; need not be said when it has only one
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// Of a dump, for plain: the directory of pg_restore; else one that fits is looked for
    #[arg(long, value_name = "DIR")]
    pub(crate) pg_bin: Option<PathBuf>,
    /// A directory that is empty or not there, or - for one tar file on standard output (no tablespaces)
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// The form; else plain, or tar with --to -; of a dump custom
    #[arg(long, value_enum)]
    pub(crate) format: Option<ExportForm>,
    /// Compress the tar files: gzip, gzip:LEVEL, lz4, zstd, zstd:LEVEL or none; of a dump custom, directory and plain (else
    /// gzip, plain: none)
    #[arg(long, value_name = "METHOD")]
    pub(crate) compress: Option<String>,
    /// Of a dump: cut into files of this size: NAME.000, NAME.001 and so on, and NAME.sha256, which lists them
    #[arg(long, value_name = "SIZE")]
    pub(crate) split_size: Option<String>,
    /// The checksums in backup_manifest
    #[arg(long, value_enum, default_value_t = Checksums::Crc32c)]
    pub(crate) checksums: Checksums,
    /// Put the WAL that the backup needs into it, so that a server starts on it without an archive
    #[arg(long)]
    pub(crate) wal: bool,
    /// Leave archiving on: a server on it takes the place of the old one
    #[arg(long)]
    pub(crate) archive: bool,
    /// Put a tablespace elsewhere (plain): its location, name or OID = the new directory; may be repeated
    #[arg(long = "tablespace", value_name = "OLD=NEW")]
    pub(crate) tablespaces: Vec<String>,
    /// Ranges read and unpacked at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
}

/// Copy dumps into another repository
///
/// The copy is the same dump under the same ID: what is listed, loaded, verified and expired there like any other. Every piece
/// is checked on the way and sealed with the other repository's key. A copy that was broken off goes on when it is asked for
/// again; what is there already is passed over. Pins are not copied.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        pgkeep copy latest --to offsite\n  \
        pgkeep copy 20261120T200910Z 20261121T200911Z --to offsite\n  \
        pgkeep copy --all --to offsite")]
pub(crate) struct CopyArgs {
    /// The dumps' IDs as `pgkeep list` shows them, or `latest`
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(crate) ids: Vec<String>,
    /// All dumps that are not there yet
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
    /// The other repository, by its name in the configuration
    #[arg(long, value_name = "REPO")]
    pub(crate) to: String,
    /// Objects copied at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
}

/// Take what pg_basebackup wrote into the repository
///
/// A directory or tar files (gzip, lz4, zstd), with or without backup_manifest and WAL. Everything is compared with
/// backup_manifest while it is read; what is cut off, changed or of another cluster is refused, and nothing of it stays.
/// Its ID is the time when it began. Where the archive has the WAL it needs, that is used; else the backup carries the
/// WAL that came with it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        pgkeep import-basebackup /backup/base-2026-11-20\n  \
        pgkeep import-basebackup --cluster old --new-cluster /backup/old-tars")]
pub(crate) struct ImportBasebackupArgs {
    /// The directory that pg_basebackup wrote, or its tar file
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// A text to know the backup by; else the base backup's own label
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Where it becomes consistent, if nothing in it says so: the "end point" that pg_basebackup -v printed
    #[arg(long, value_name = "LSN")]
    pub(crate) stop_lsn: Option<String>,
    /// Enter its cluster in the repository, under a name that is not used there yet
    #[arg(long)]
    pub(crate) new_cluster: bool,
    /// Files compressed at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// none, lz4, zstd or zstd:LEVEL; else from the configuration, else zstd
    #[arg(long, value_name = "METHOD")]
    pub(crate) compression: Option<String>,
}
