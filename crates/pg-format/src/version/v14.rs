//! PostgreSQL 14: exclusive backups still exist, so the functions take an argument that refuses them.

use super::{ControlLayout, PgMajor, VersionFacts};

/// What is particular to PostgreSQL 14.
pub const FACTS: VersionFacts = VersionFacts {
    major: PgMajor::V14,
    pg_control_version: 1300,
    catalog_version: 202107181,
    wal_page_magic: 0xD10D,
    control_layout: ControlLayout::V1300,
    backup_start_sql: "SELECT pg_start_backup($1, $2, false)",
    backup_stop_sql: "SELECT lsn, labelfile, spcmapfile FROM pg_stop_backup(false, $1)",
    backup_manifest_version: 1,
    has_archive_library: false,
    archive_settings_exclude_each_other: false,
    has_wal_summaries: false,
    has_stats_temp_directory: true,
    wal_subdirectories: &["archive_status"],
};
