//! PostgreSQL 15: backup functions were renamed, `archive_library` was added, `stats_temp_directory` removed.

use super::{ControlLayout, PgMajor, VersionFacts};

/// What is particular to PostgreSQL 15.
pub const FACTS: VersionFacts = VersionFacts {
    major: PgMajor::V15,
    pg_control_version: 1300,
    catalog_version: 202209061,
    wal_page_magic: 0xD110,
    control_layout: ControlLayout::V1300,
    backup_start_sql: "SELECT pg_backup_start($1, $2)",
    backup_stop_sql: "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop($1)",
    backup_manifest_version: 1,
    has_archive_library: true,
    archive_settings_exclude_each_other: false,
    has_wal_summaries: false,
    has_stats_temp_directory: false,
    wal_subdirectories: &["archive_status"],
};
