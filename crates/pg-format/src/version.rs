//! PostgreSQL's major versions, and the facts in which they differ.
//!
//! A new major version does not work until it has a file here, written after a review of its source.

pub mod v14;
pub mod v15;
pub mod v16;
pub mod v17;
pub mod v18;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::FormatError;

/// A major version that this code was reviewed for. Serialised as its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub enum PgMajor {
    /// PostgreSQL 14.
    V14 = 14,
    /// PostgreSQL 15.
    V15 = 15,
    /// PostgreSQL 16.
    V16 = 16,
    /// PostgreSQL 17.
    V17 = 17,
    /// PostgreSQL 18.
    V18 = 18,
}

/// What differs from one major version to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionFacts {
    /// The major version itself.
    pub major: PgMajor,
    /// `PG_CONTROL_VERSION` (`src/include/catalog/pg_control.h`).
    pub pg_control_version: u32,
    /// `CATALOG_VERSION_NO` of the releases (`src/include/catalog/catversion.h`); part of tablespace paths.
    pub catalog_version: u32,
    /// `XLOG_PAGE_MAGIC` (`src/include/access/xlog_internal.h`): the first two bytes of each WAL page.
    pub wal_page_magic: u16,
    /// Layout of `pg_control`.
    pub control_layout: ControlLayout,
    /// Starts a non-exclusive backup; `$1` is the label (text), `$2` whether the checkpoint is fast (boolean).
    /// Returns one column, the start LSN.
    pub backup_start_sql: &'static str,
    /// Ends the backup; `$1` is whether to wait for the archive (boolean). Returns `lsn`, `labelfile`, `spcmapfile`.
    pub backup_stop_sql: &'static str,
    /// `PG-Version` of the `backup_manifest` that the server writes.
    pub backup_manifest_version: u32,
    /// Whether `archive_library` exists (15 and later).
    pub has_archive_library: bool,
    /// Whether it is an error to set both `archive_command` and `archive_library` (16 and later; 15 prefers the
    /// library).
    pub archive_settings_exclude_each_other: bool,
    /// Whether `summarize_wal` and `pg_wal/summaries` exist (17 and later).
    pub has_wal_summaries: bool,
    /// Whether `stats_temp_directory` exists (14 only); what it names within the data directory is omitted.
    pub has_stats_temp_directory: bool,
    /// Empty directories that a base backup has below `pg_wal`.
    pub wal_subdirectories: &'static [&'static str],
}

/// The variants of `ControlFileData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlLayout {
    /// `PG_CONTROL_VERSION` 1300: PostgreSQL 13 to 16.
    V1300,
    /// `PG_CONTROL_VERSION` 1700: the checkpoint has `wal_level` (added between the betas of 17).
    V1700,
    /// `PG_CONTROL_VERSION` 1800: `default_char_signedness` was added.
    V1800,
}

impl PgMajor {
    /// All supported versions, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The version as a number, like 15.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The version from its number.
    pub fn from_number(number: u32) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|major| major.number() == number).ok_or(FormatError::UnsupportedVersion {
            what: "PostgreSQL version",
            found: u64::from(number),
            supported: "14 to 18",
        })
    }

    /// The version from `server_version_num`, like 150020.
    pub fn from_version_num(version_num: u32) -> Result<Self, FormatError> {
        Self::from_number(version_num / 10_000)
    }

    /// The version from the text of a `PG_VERSION` file.
    pub fn from_pg_version_file(text: &str) -> Result<Self, FormatError> {
        text.strip_suffix('\n').unwrap_or(text).parse()
    }

    /// The version whose released servers have this catalog version.
    pub fn from_catalog_version(catalog_version: u32) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|major| major.facts().catalog_version == catalog_version).ok_or(
            FormatError::UnsupportedVersion {
                what: "PostgreSQL catalog version",
                found: u64::from(catalog_version),
                supported: "those of the releases 14 to 18",
            },
        )
    }

    /// The version whose WAL pages have this magic number.
    pub fn from_wal_page_magic(magic: u16) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|major| major.facts().wal_page_magic == magic).ok_or(
            FormatError::UnsupportedVersion {
                what: "WAL page magic",
                found: u64::from(magic),
                supported: "those of the releases 14 to 18",
            },
        )
    }

    /// What is particular to this version.
    #[must_use]
    pub const fn facts(self) -> &'static VersionFacts {
        match self {
            Self::V14 => &v14::FACTS,
            Self::V15 => &v15::FACTS,
            Self::V16 => &v16::FACTS,
            Self::V17 => &v17::FACTS,
            Self::V18 => &v18::FACTS,
        }
    }

    /// The name of this version's directory in a tablespace (`TABLESPACE_VERSION_DIRECTORY`), like
    /// `PG_15_202209061`.
    #[must_use]
    pub fn tablespace_version_directory(self) -> String {
        format!("PG_{}_{}", self.number(), self.facts().catalog_version)
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl FromStr for PgMajor {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let number = text
            .parse()
            .map_err(|_| FormatError::text("PostgreSQL major version", text, "write it as a number, like 15"))?;
        Self::from_number(number)
    }
}

impl From<PgMajor> for u32 {
    fn from(major: PgMajor) -> Self {
        major.number()
    }
}

impl TryFrom<u32> for PgMajor {
    type Error = FormatError;

    fn try_from(number: u32) -> Result<Self, FormatError> {
        Self::from_number(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(PgMajor::from_version_num(150_020), Ok(PgMajor::V15));
        assert_eq!(PgMajor::from_pg_version_file("18\n"), Ok(PgMajor::V18));
        assert!(PgMajor::from_version_num(130_011).is_err());
        assert!(PgMajor::from_version_num(190_000).is_err());
        assert!(PgMajor::from_pg_version_file("9.6\n").is_err());
        for major in PgMajor::ALL {
            let facts = major.facts();
            assert_eq!(facts.major, major);
            assert_eq!(PgMajor::from_catalog_version(facts.catalog_version), Ok(major));
            assert_eq!(PgMajor::from_wal_page_magic(facts.wal_page_magic), Ok(major));
            assert_eq!(major.to_string().parse(), Ok(major));
        }
        assert_eq!(PgMajor::V15.tablespace_version_directory(), "PG_15_202209061");
    }
}
