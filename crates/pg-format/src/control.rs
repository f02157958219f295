//! `global/pg_control`: what a cluster says of itself (`src/include/catalog/pg_control.h`).
//!
//! The layouts 1300 (PostgreSQL 14 to 16), 1700 (17) and 1800 (18) are read, as written by 64-bit little-endian machines.

use crate::bytes::{array, crc32c, le_u32, le_u64};
use crate::error::FormatError;
use crate::ids::{Oid, SystemId, Timeline};
use crate::lsn::Lsn;
use crate::version::{ControlLayout, PgMajor};
use crate::wal_name::WalSegmentSize;

/// The size of the file (`PG_CONTROL_FILE_SIZE`); what it says is in its first 300 bytes.
pub const CONTROL_FILE_BYTES: usize = 8192;

/// The path of the file in the data directory.
pub const CONTROL_FILE_PATH: &str = "global/pg_control";

const WHAT: &str = "pg_control";

/// The contents of `pg_control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// `system_identifier`.
    pub system_id: SystemId,
    /// `pg_control_version`: the layout.
    pub pg_control_version: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
    /// `state`.
    pub state: DbState,
    /// `time`: when the file was last written, seconds since 1970.
    pub time_unix_seconds: i64,
    /// `checkPoint`: where the last checkpoint record is.
    pub checkpoint_lsn: Lsn,
    /// `checkPointCopy`: the last checkpoint.
    pub checkpoint: Checkpoint,
    /// `unloggedLSN`.
    pub unlogged_lsn: Lsn,
    /// `minRecoveryPoint`; invalid outside archive recovery.
    pub min_recovery_point: Lsn,
    /// `minRecoveryPointTLI`; 0 outside archive recovery.
    pub min_recovery_point_timeline: Timeline,
    /// `backupStartPoint`; invalid unless recovering from a base backup.
    pub backup_start_point: Lsn,
    /// `backupEndPoint`; set while recovering from a base backup that was taken from a standby.
    pub backup_end_point: Lsn,
    /// `backupEndRequired`.
    pub backup_end_required: bool,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `MaxConnections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_xacts`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_xact`.
    pub max_locks_per_xact: i32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// `blcksz`: bytes in a data page; a power of two from 1 KiB to 32 KiB.
    pub block_bytes: u32,
    /// `relseg_size`: blocks in a segment of a relation; never 0.
    pub relation_segment_blocks: u32,
    /// `xlog_blcksz`: bytes in a WAL page; a power of two from 1 KiB to 64 KiB.
    pub wal_block_bytes: u32,
    /// `xlog_seg_size`.
    pub wal_segment_size: WalSegmentSize,
    /// `data_checksum_version`: 0 without page checksums.
    pub data_checksum_version: u32,
    /// `default_char_signedness`; from 18.
    pub default_char_signed: Option<bool>,
}

/// A checkpoint record's contents (`CheckPoint`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// `redo`: where replay starts.
    pub redo: Lsn,
    /// `ThisTimeLineID`.
    pub timeline: Timeline,
    /// `PrevTimeLineID`; differs from the timeline when this checkpoint begins one.
    pub previous_timeline: Timeline,
    /// `fullPageWrites`.
    pub full_page_writes: bool,
    /// `wal_level` at the checkpoint; from 17.
    pub wal_level: Option<WalLevel>,
    /// `nextXid`, with its epoch in the upper 32 bits.
    pub next_full_xid: u64,
    /// `nextOid`.
    pub next_oid: Oid,
    /// `nextMulti`.
    pub next_multi_xid: u32,
    /// `nextMultiOffset`.
    pub next_multi_offset: u32,
    /// `oldestXid`.
    pub oldest_xid: u32,
    /// `oldestXidDB`.
    pub oldest_xid_database: Oid,
    /// `oldestMulti`.
    pub oldest_multi_xid: u32,
    /// `oldestMultiDB`.
    pub oldest_multi_database: Oid,
    /// `time`: seconds since 1970.
    pub time_unix_seconds: i64,
    /// `oldestCommitTsXid`.
    pub oldest_commit_ts_xid: u32,
    /// `newestCommitTsXid`.
    pub newest_commit_ts_xid: u32,
    /// `oldestActiveXid`.
    pub oldest_active_xid: u32,
}

/// What the cluster was doing when `pg_control` was written (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DbState {
    /// `DB_STARTUP`.
    Startup,
    /// `DB_SHUTDOWNED`: cleanly stopped.
    ShutDown,
    /// `DB_SHUTDOWNED_IN_RECOVERY`: a cleanly stopped standby.
    ShutDownInRecovery,
    /// `DB_SHUTDOWNING`.
    ShuttingDown,
    /// `DB_IN_CRASH_RECOVERY`.
    InCrashRecovery,
    /// `DB_IN_ARCHIVE_RECOVERY`: a standby, or recovering from an archive.
    InArchiveRecovery,
    /// `DB_IN_PRODUCTION`: running, or crashed.
    InProduction,
}

impl DbState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// The words of `pg_controldata`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        }
    }

    /// Whether the server was stopped cleanly.
    #[must_use]
    pub const fn is_clean_shutdown(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

/// How much is written to the WAL (`WalLevel` in `src/include/access/xlog.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Only what crash recovery needs: no backup can be taken.
    Minimal,
    /// What archiving and physical replication need.
    Replica,
    /// What logical decoding needs, too.
    Logical,
}

impl WalLevel {
    /// The level from its number in `pg_control` and in WAL records.
    #[must_use]
    pub const fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }

    /// The value of the setting `wal_level`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        }
    }
}

/// Where the fields of one layout are, as far as layouts differ.
struct Offsets {
    crc: usize,
    checkpoint_wal_level: Option<usize>,
    default_char_signed: Option<usize>,
}

impl ControlFile {
    /// Reads the file, or at least its first 300 bytes. The CRC is checked first, so an error of another kind than
    /// [`FormatError::Crc`] on a file of a supported version means that the file was written so.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let version = u32_at(bytes, 8)?;
        let layout = match version {
            1300 => ControlLayout::V1300,
            1700 => ControlLayout::V1700,
            1800 => ControlLayout::V1800,
            _ => {
                let swapped = version.swap_bytes();
                return Err(if matches!(swapped, 1300 | 1700 | 1800) {
                    FormatError::field(WHAT, "pg_control_version", swapped, "the file is from a big-endian machine")
                } else {
                    FormatError::UnsupportedVersion {
                        what: "pg_control version",
                        found: u64::from(version),
                        supported: "1300 (PostgreSQL 14 to 16), 1700 (17) and 1800 (18)",
                    }
                });
            }
        };
        let offsets = match layout {
            ControlLayout::V1300 => Offsets { crc: 288, checkpoint_wal_level: None, default_char_signed: None },
            ControlLayout::V1700 => Offsets { crc: 288, checkpoint_wal_level: Some(60), default_char_signed: None },
            ControlLayout::V1800 => {
                Offsets { crc: 292, checkpoint_wal_level: Some(60), default_char_signed: Some(256) }
            }
        };
        let expected = u32_at(bytes, offsets.crc)?;
        let actual = crc32c(&bytes[..offsets.crc]);
        if expected != actual {
            return Err(FormatError::Crc { what: WHAT, expected, actual });
        }
        Self::parse_fields(bytes, version, &offsets)
    }

    fn parse_fields(bytes: &[u8], version: u32, offsets: &Offsets) -> Result<Self, FormatError> {
        let state = u32_at(bytes, 16)?;
        let float_format = f64::from_le_bytes(array_at(bytes, 208)?);
        if float_format != 1_234_567.0 {
            return Err(FormatError::field(
                WHAT,
                "floatFormat",
                float_format,
                "the file is from another kind of machine",
            ));
        }
        Ok(Self {
            system_id: SystemId(u64_at(bytes, 0)?),
            pg_control_version: version,
            catalog_version: u32_at(bytes, 12)?,
            state: DbState::from_number(state)
                .ok_or_else(|| FormatError::field(WHAT, "state", state, "no such state is known"))?,
            time_unix_seconds: u64_at(bytes, 24)? as i64,
            checkpoint_lsn: Lsn(u64_at(bytes, 32)?),
            checkpoint: Checkpoint::parse_at(bytes, 40, offsets)?,
            unlogged_lsn: Lsn(u64_at(bytes, 128)?),
            min_recovery_point: Lsn(u64_at(bytes, 136)?),
            min_recovery_point_timeline: Timeline(u32_at(bytes, 144)?),
            backup_start_point: Lsn(u64_at(bytes, 152)?),
            backup_end_point: Lsn(u64_at(bytes, 160)?),
            backup_end_required: bool_at(bytes, 168)?,
            wal_level: wal_level_at(bytes, 172)?,
            wal_log_hints: bool_at(bytes, 176)?,
            max_connections: u32_at(bytes, 180)? as i32,
            max_worker_processes: u32_at(bytes, 184)? as i32,
            max_wal_senders: u32_at(bytes, 188)? as i32,
            max_prepared_xacts: u32_at(bytes, 192)? as i32,
            max_locks_per_xact: u32_at(bytes, 196)? as i32,
            track_commit_timestamp: bool_at(bytes, 200)?,
            block_bytes: power_of_two_at(bytes, 216, "blcksz", 1 << 15)?,
            relation_segment_blocks: match u32_at(bytes, 220)? {
                0 => return Err(FormatError::field(WHAT, "relseg_size", 0, "a segment has at least one block")),
                blocks => blocks,
            },
            wal_block_bytes: power_of_two_at(bytes, 224, "xlog_blcksz", 1 << 16)?,
            wal_segment_size: WalSegmentSize::new(u32_at(bytes, 228)?)?,
            data_checksum_version: u32_at(bytes, 252)?,
            default_char_signed: offsets.default_char_signed.map(|at| bool_at(bytes, at)).transpose()?,
        })
    }

    /// The major version whose releases write this catalog version.
    pub fn major(&self) -> Result<PgMajor, FormatError> {
        PgMajor::from_catalog_version(self.catalog_version)
    }

    /// Whether data pages have checksums.
    #[must_use]
    pub const fn has_data_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }
}

impl Checkpoint {
    fn parse_at(bytes: &[u8], at: usize, offsets: &Offsets) -> Result<Self, FormatError> {
        Ok(Self {
            redo: Lsn(u64_at(bytes, at)?),
            timeline: Timeline(u32_at(bytes, at + 8)?),
            previous_timeline: Timeline(u32_at(bytes, at + 12)?),
            full_page_writes: bool_at(bytes, at + 16)?,
            wal_level: offsets.checkpoint_wal_level.map(|at| wal_level_at(bytes, at)).transpose()?,
            next_full_xid: u64_at(bytes, at + 24)?,
            next_oid: Oid(u32_at(bytes, at + 32)?),
            next_multi_xid: u32_at(bytes, at + 36)?,
            next_multi_offset: u32_at(bytes, at + 40)?,
            oldest_xid: u32_at(bytes, at + 44)?,
            oldest_xid_database: Oid(u32_at(bytes, at + 48)?),
            oldest_multi_xid: u32_at(bytes, at + 52)?,
            oldest_multi_database: Oid(u32_at(bytes, at + 56)?),
            time_unix_seconds: u64_at(bytes, at + 64)? as i64,
            oldest_commit_ts_xid: u32_at(bytes, at + 72)?,
            newest_commit_ts_xid: u32_at(bytes, at + 76)?,
            oldest_active_xid: u32_at(bytes, at + 80)?,
        })
    }
}

fn too_short(bytes: &[u8], needed: usize) -> FormatError {
    FormatError::Truncated { what: WHAT, needed: needed as u64, actual: bytes.len() as u64 }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FormatError> {
    array(bytes, at).ok_or_else(|| too_short(bytes, at + N))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, FormatError> {
    le_u32(bytes, at).ok_or_else(|| too_short(bytes, at + 4))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, FormatError> {
    le_u64(bytes, at).ok_or_else(|| too_short(bytes, at + 8))
}

fn bool_at(bytes: &[u8], at: usize) -> Result<bool, FormatError> {
    Ok(array_at::<1>(bytes, at)? != [0])
}

fn wal_level_at(bytes: &[u8], at: usize) -> Result<WalLevel, FormatError> {
    let number = u32_at(bytes, at)? as i32;
    WalLevel::from_number(number).ok_or_else(|| FormatError::field(WHAT, "wal_level", number, "no such level is known"))
}

fn power_of_two_at(bytes: &[u8], at: usize, field: &'static str, max: u32) -> Result<u32, FormatError> {
    let size = u32_at(bytes, at)?;
    if size.is_power_of_two() && (1024..=max).contains(&size) {
        return Ok(size);
    }
    Err(FormatError::field(WHAT, field, size, format!("it is a power of two from 1024 to {max}")))
}

#[cfg(test)]
mod tests;
