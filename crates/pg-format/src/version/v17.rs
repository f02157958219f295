//! PostgreSQL 17: WAL summaries, incremental base backups, `backup_manifest` version 2; checkpoints say `wal_level`.

use super::{ControlLayout, PgMajor, VersionFacts};

/// What is particular to PostgreSQL 17.
pub const FACTS: VersionFacts = VersionFacts {
    major: PgMajor::V17,
    pg_control_version: 1700,
    catalog_version: 202406281,
    wal_page_magic: 0xD116,
    control_layout: ControlLayout::V1700,
    backup_start_sql: "SELECT pg_backup_start($1, $2)",
    backup_stop_sql: "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop($1)",
    backup_manifest_version: 2,
    has_archive_library: true,
    archive_settings_exclude_each_other: true,
    has_wal_summaries: true,
    has_stats_temp_directory: false,
    wal_subdirectories: &["archive_status", "summaries"],
};
