//! PostgreSQL 18: `pg_control` changed its layout; checksums are on by default.

use super::{ControlLayout, PgMajor, VersionFacts};

/// What is particular to PostgreSQL 18.
pub const FACTS: VersionFacts = VersionFacts {
    major: PgMajor::V18,
    pg_control_version: 1800,
    catalog_version: 202506291,
    wal_page_magic: 0xD118,
    control_layout: ControlLayout::V1800,
    backup_start_sql: "SELECT pg_backup_start($1, $2)",
    backup_stop_sql: "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop($1)",
    backup_manifest_version: 2,
    has_archive_library: true,
    archive_settings_exclude_each_other: true,
    has_wal_summaries: true,
    has_stats_temp_directory: false,
    wal_subdirectories: &["archive_status", "summaries"],
};
