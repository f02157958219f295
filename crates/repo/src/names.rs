//! Names inside a repository: clusters, backups, packs, and where each object lies (docs/format.md section 1).

use crate::RepoError;
use jiff::{Timestamp, tz::TimeZone};
use pg_format::{SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use store::ObjectPath;

/// Name of a cluster: 1 to 64 of `a-z 0-9 _ -`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = RepoError;

    fn from_str(name: &str) -> Result<Self, RepoError> {
        let bad = |reason: &str| RepoError::BadName { name: name.into(), what: "cluster name", reason: reason.into() };
        if name.is_empty() || name.len() > 64 {
            return Err(bad("it must have 1 to 64 characters"));
        }
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-') {
            return Err(bad("allowed are a-z 0-9 _ and -"));
        }
        if !name.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(bad("it must begin with a letter or a digit"));
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for ClusterName {
    type Error = RepoError;
    fn try_from(name: String) -> Result<Self, RepoError> {
        name.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A backup's name: its UTC start time to the second, `20261120T200910Z`. Sorts by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(i64);

const ID_FORMAT: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The ID of a backup that starts at this time.
    pub fn at(time: Timestamp) -> Self {
        Self(time.as_second())
    }

    /// The next second's ID, for when this one is taken.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The time the ID stands for.
    pub fn time(self) -> Timestamp {
        Timestamp::from_second(self.0).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.time().strftime(ID_FORMAT))
    }
}

impl FromStr for BackupId {
    type Err = RepoError;

    fn from_str(name: &str) -> Result<Self, RepoError> {
        let bad = || RepoError::BadName {
            name: name.into(),
            what: "backup ID",
            reason: "it must look like 20261120T200910Z, as `pgkeep list` shows it".into(),
        };
        let civil = jiff::civil::DateTime::strptime(ID_FORMAT, name).map_err(|_| bad())?;
        let time = civil.to_zoned(TimeZone::UTC).map_err(|_| bad())?.timestamp();
        let id = Self::at(time);
        if id.to_string() == name { Ok(id) } else { Err(bad()) }
    }
}

impl TryFrom<String> for BackupId {
    type Error = RepoError;
    fn try_from(name: String) -> Result<Self, RepoError> {
        name.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.to_string()
    }
}

/// A pack: the backup that wrote it and its number there, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PackId {
    /// The backup that wrote the pack.
    pub backup: BackupId,
    /// Its number among that backup's packs, from 1.
    pub number: u32,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:06}", self.backup, self.number)
    }
}

fn path(text: String) -> ObjectPath {
    ObjectPath::new(text).expect("names inside a repository are made of checked parts")
}

/// `pgkeep/NNNNNN`, or its second copy.
pub(crate) fn repository_prefix() -> ObjectPath {
    path("pgkeep".into())
}

/// `clusters`.
pub(crate) fn clusters_prefix() -> ObjectPath {
    path("clusters".into())
}

/// Object `number` of a numbered series below `prefix`.
pub(crate) fn numbered(prefix: &ObjectPath, number: u32) -> ObjectPath {
    path(format!("{prefix}/{number:06}"))
}

/// Where a cluster's objects lie.
impl ClusterName {
    /// `clusters/NAME`.
    pub fn prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}"))
    }

    /// `clusters/NAME/cluster`: the numbered cluster objects.
    pub fn facts_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/cluster"))
    }

    /// `clusters/NAME/backups`.
    pub fn backups_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/backups"))
    }

    /// `clusters/NAME/packs`.
    pub fn packs_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/packs"))
    }

    /// `clusters/NAME/garbage`: the numbered garbage objects.
    pub fn garbage_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/garbage"))
    }

    /// `clusters/NAME/backups/ID/manifest`.
    pub fn manifest(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/backups/{id}/manifest"))
    }

    /// `clusters/NAME/backups/ID/intent`.
    pub fn intent(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/backups/{id}/intent"))
    }

    /// `clusters/NAME/ids`.
    pub(crate) fn claims_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/ids"))
    }

    /// `clusters/NAME/ids/ID`.
    pub(crate) fn claim(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/ids/{id}"))
    }

    /// `clusters/NAME/packs/ID/N`.
    pub fn pack(&self, id: PackId) -> ObjectPath {
        path(format!("clusters/{self}/packs/{id}"))
    }

    /// `clusters/NAME/wal`.
    pub fn wal_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/wal"))
    }

    /// `clusters/NAME/wal/SYSID`.
    pub fn wal_system_prefix(&self, system: SystemId) -> ObjectPath {
        path(format!("clusters/{self}/wal/{system}"))
    }

    /// `clusters/NAME/wal/SYSID/TLI`.
    pub fn wal_timeline_prefix(&self, system: SystemId, timeline: Timeline) -> ObjectPath {
        path(format!("clusters/{self}/wal/{system}/{:08X}", timeline.0))
    }

    /// `clusters/NAME/wal/SYSID/TLI/NAME`, for a segment, `.partial` or `.backup` file.
    pub fn wal_file(&self, system: SystemId, timeline: Timeline, file: &str) -> Result<ObjectPath, RepoError> {
        self.wal_timeline_prefix(system, timeline).join(file).map_err(|reason| RepoError::BadName {
            name: file.into(),
            what: "WAL file name",
            reason,
        })
    }

    /// `clusters/NAME/wal/SYSID/TLI.history`.
    pub fn history(&self, system: SystemId, timeline: Timeline) -> ObjectPath {
        path(format!("clusters/{self}/wal/{system}/{:08X}.history", timeline.0))
    }

    /// `leases/clusters/NAME/PURPOSE`: numbered lease objects.
    pub fn lease_prefix(&self, purpose: &str) -> Result<ObjectPath, RepoError> {
        ObjectPath::new(format!("leases/clusters/{self}/{purpose}")).map_err(|reason| RepoError::BadName {
            name: purpose.into(),
            what: "purpose of a lease",
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_ids_are_times() {
        let id: BackupId = "20261120T200910Z".parse().unwrap();
        assert_eq!(id.to_string(), "20261120T200910Z");
        assert_eq!(id.next().to_string(), "20261120T200911Z");
        assert_eq!(id.time().to_string(), "2026-11-20T20:09:10Z");
        for bad in [
            "",
            "20261120",
            "20261120T200910",
            "20261320T200910Z",
            "2026-11-20T20:09:10Z",
            "20261120T200960Z",
            " 20261120T200910Z",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cluster_names_are_safe() {
        for good in ["main", "pg15-main", "0", "a_b"] {
            assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "A", "a/b", "..", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn objects_lie_where_the_format_says() {
        let name: ClusterName = "main".parse().unwrap();
        let id: BackupId = "20261120T200910Z".parse().unwrap();
        assert_eq!(name.pack(PackId { backup: id, number: 7 }).as_str(), "clusters/main/packs/20261120T200910Z/000007");
        assert_eq!(name.history(SystemId(42), Timeline(10)).as_str(), "clusters/main/wal/42/0000000A.history");
    }
}
