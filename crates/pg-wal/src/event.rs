//! What a record says, for the records that recovery, backups and searches care about.

use crate::bytes::Cursor;
use crate::error::WalError;
use crate::record::Record;
use crate::rmgr::Rmgr;
use crate::types::{BlockNumber, Fork, Lsn, Oid, PgMajor, RelFileLocator, Timeline, TimestampTz, Xid};
use crate::xact::{EndKind, parse_end, parse_prepare};
pub use crate::xact::{XactEnd, XactPrepare};

/// What a record says. Everything else is [`Event::Other`]: its block references tell what it touched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// `XLOG_XACT_COMMIT`, `XLOG_XACT_COMMIT_PREPARED`.
    Commit(XactEnd),
    /// `XLOG_XACT_ABORT`, `XLOG_XACT_ABORT_PREPARED`.
    Abort(XactEnd),
    /// `XLOG_XACT_PREPARE`.
    Prepare(XactPrepare),
    /// `XLOG_XACT_ASSIGNMENT`: subtransactions of a transaction, told before it ends.
    Assignment {
        /// The top-level transaction.
        top: Xid,
        /// Its subtransactions.
        subxacts: Vec<Xid>,
    },
    /// `XLOG_CHECKPOINT_SHUTDOWN`, `XLOG_CHECKPOINT_ONLINE`.
    Checkpoint(Checkpoint),
    /// `XLOG_CHECKPOINT_REDO`, 17 and later: where replay begins for the checkpoint that follows.
    CheckpointRedo {
        /// The level in force.
        wal_level: WalLevel,
    },
    /// `XLOG_END_OF_RECOVERY`: a new timeline begins without a checkpoint.
    EndOfRecovery {
        /// When recovery ended.
        time: TimestampTz,
        /// The new timeline.
        timeline: Timeline,
        /// The one it left.
        timeline_prev: Timeline,
        /// 17 and later.
        wal_level: Option<WalLevel>,
    },
    /// `XLOG_RESTORE_POINT`.
    RestorePoint {
        /// When it was made.
        time: TimestampTz,
        /// Its name, in the server's encoding.
        name: Vec<u8>,
    },
    /// `XLOG_SWITCH`: the rest of the segment is padding.
    Switch,
    /// `XLOG_NOOP`.
    Noop,
    /// `XLOG_NEXTOID`.
    NextOid {
        /// OIDs below this may have been given out.
        oid: Oid,
    },
    /// `XLOG_BACKUP_END`.
    BackupEnd {
        /// Where that backup started.
        start: Lsn,
    },
    /// `XLOG_PARAMETER_CHANGE`.
    ParameterChange(Parameters),
    /// `XLOG_FPW_CHANGE`.
    FullPageWritesChange {
        /// From now on.
        full_page_writes: bool,
    },
    /// `XLOG_OVERWRITE_CONTRECORD`.
    OverwriteContrecord {
        /// The record that was lost.
        overwritten: Lsn,
        /// When that was found.
        time: TimestampTz,
    },
    /// `XLOG_FPI`, `XLOG_FPI_FOR_HINT`: whole pages and nothing else.
    FullPageImages {
        /// Because of a hint bit.
        for_hint: bool,
    },
    /// `XLOG_SMGR_CREATE`.
    RelationCreate {
        /// The new file.
        rel: RelFileLocator,
        /// Which fork.
        fork: Fork,
    },
    /// `XLOG_SMGR_TRUNCATE`.
    RelationTruncate {
        /// The file.
        rel: RelFileLocator,
        /// How many blocks its main fork keeps.
        blocks: BlockNumber,
        /// Which forks are cut.
        forks: TruncatedForks,
    },
    /// `XLOG_DBASE_CREATE_FILE_COPY` (`XLOG_DBASE_CREATE` in 14): a whole directory is copied, in no block reference.
    DatabaseCreateFileCopy {
        /// The new database.
        database: Oid,
        /// Where.
        tablespace: Oid,
        /// Copied from.
        source_database: Oid,
        /// Where that lies.
        source_tablespace: Oid,
    },
    /// `XLOG_DBASE_CREATE_WAL_LOG`, 15 and later: the blocks follow as records of their own.
    DatabaseCreateWalLog {
        /// The new database.
        database: Oid,
        /// Where.
        tablespace: Oid,
    },
    /// `XLOG_DBASE_DROP`: the directories are removed at once.
    DatabaseDrop {
        /// The database.
        database: Oid,
        /// The tablespaces it has directories in.
        tablespaces: Vec<Oid>,
    },
    /// `XLOG_TBLSPC_CREATE`.
    TablespaceCreate {
        /// The tablespace.
        tablespace: Oid,
        /// Its directory; empty when it lies in place.
        path: Vec<u8>,
    },
    /// `XLOG_TBLSPC_DROP`.
    TablespaceDrop {
        /// The tablespace.
        tablespace: Oid,
    },
    /// `XLOG_RELMAP_UPDATE`: a `pg_filenode.map` is written anew.
    RelMapUpdate {
        /// The database, 0 for the shared map.
        database: Oid,
        /// Its tablespace.
        tablespace: Oid,
        /// Where the file's bytes lie in the main data.
        map_len: u32,
    },
    /// `XLOG_RUNNING_XACTS`.
    RunningXacts {
        /// The next transaction id.
        next_xid: Xid,
        /// The oldest that runs.
        oldest_running_xid: Xid,
        /// The latest that ended.
        latest_completed_xid: Xid,
        /// Those that run, subtransactions last.
        xids: Vec<Xid>,
        /// Not all subtransactions are in the list.
        subxid_overflow: bool,
    },
    /// Anything else.
    Other,
}

/// The body of a checkpoint record (`CheckPoint`, `catalog/pg_control.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Written at shutdown (or at the end of recovery); otherwise while running.
    pub shutdown: bool,
    /// Where replay from it begins.
    pub redo: Lsn,
    /// The timeline.
    pub timeline: Timeline,
    /// The one before, when this record begins a new one; otherwise the same.
    pub timeline_prev: Timeline,
    /// The setting then.
    pub full_page_writes: bool,
    /// 17 and later.
    pub wal_level: Option<WalLevel>,
    /// The next transaction id, 64 bits.
    pub next_xid: u64,
    /// The next OID.
    pub next_oid: Oid,
    /// The next multixact.
    pub next_multi: u32,
    /// The oldest transaction id still in tables.
    pub oldest_xid: Xid,
    /// When it began, in seconds since 1970 (`pg_time_t`).
    pub time_unix_secs: i64,
    /// The oldest transaction running; 0 when not known.
    pub oldest_active_xid: Xid,
}

/// `wal_level` (`access/xlog.h`, `WalLevel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalLevel {
    /// Crash recovery only: a time in which this was set breaks every range of archived WAL.
    Minimal,
    /// Archiving and standbys.
    Replica,
    /// Logical decoding too.
    Logical,
    /// A number no supported version uses.
    Unknown(u32),
}

impl WalLevel {
    /// From the number in the WAL.
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Minimal,
            1 => Self::Replica,
            2 => Self::Logical,
            other => Self::Unknown(other),
        }
    }

    /// The number in the WAL.
    pub fn number(self) -> u32 {
        match self {
            Self::Minimal => 0,
            Self::Replica => 1,
            Self::Logical => 2,
            Self::Unknown(other) => other,
        }
    }
}

/// Settings that a standby must match (`xl_parameter_change`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Parameters {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
    pub wal_level: WalLevel,
    pub wal_log_hints: bool,
    pub track_commit_timestamp: bool,
}

/// Which forks a truncation cuts (`SMGR_TRUNCATE_*`, `catalog/storage_xlog.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TruncatedForks(pub u32);

impl TruncatedForks {
    /// The main fork.
    pub fn main(self) -> bool {
        self.0 & 1 != 0
    }
    /// The visibility map.
    pub fn visibility(self) -> bool {
        self.0 & 2 != 0
    }
    /// The free space map.
    pub fn free_space(self) -> bool {
        self.0 & 4 != 0
    }
}

impl Event {
    /// Reads what `record` says.
    ///
    /// # Errors
    /// [`WalError::BadRecord`] when its main data does not have the form that its kind has in this version. The
    /// record itself and its block references are good then.
    #[inline]
    pub fn of(record: &Record<'_>) -> Result<Self, WalError> {
        let read = match record.rmgr {
            Rmgr::Xlog => xlog(record),
            Rmgr::Transaction => transaction(record),
            Rmgr::Storage => storage(record),
            Rmgr::Database => database(record),
            Rmgr::Tablespace => tablespace(record),
            Rmgr::RelMap => relmap(record),
            Rmgr::Standby => standby(record),
            _ => Some(Self::Other),
        };
        read.ok_or(WalError::BadRecord { lsn: record.lsn, what: "its main data has not the form of its kind" })
    }
}

/// `catalog/pg_control.h`, `access/xlog_internal.h`, `access/rmgrdesc/xlogdesc.c`.
fn xlog(record: &Record<'_>) -> Option<Event> {
    let mut data = Cursor::new(record.main_data());
    Some(match record.header.op() {
        0x00 => Event::Checkpoint(checkpoint(&mut data, record.major, CheckpointKind::Shutdown)?),
        0x10 => Event::Checkpoint(checkpoint(&mut data, record.major, CheckpointKind::Online)?),
        0x20 => Event::Noop,
        0x30 => Event::NextOid { oid: data.oid()? },
        0x40 => Event::Switch,
        0x50 => Event::BackupEnd { start: Lsn(data.u64()?) },
        0x60 => Event::ParameterChange(Parameters {
            max_connections: data.u32()?,
            max_worker_processes: data.u32()?,
            max_wal_senders: data.u32()?,
            max_prepared_transactions: data.u32()?,
            max_locks_per_transaction: data.u32()?,
            wal_level: WalLevel::from_number(data.u32()?),
            wal_log_hints: data.u8()? != 0,
            track_commit_timestamp: data.u8()? != 0,
        }),
        0x70 => {
            let time = TimestampTz(data.i64()?);
            Event::RestorePoint { time, name: data.c_string()?.to_vec() }
        }
        0x80 => Event::FullPageWritesChange { full_page_writes: data.u8()? != 0 },
        0x90 => Event::EndOfRecovery {
            time: TimestampTz(data.i64()?),
            timeline: Timeline(data.u32()?),
            timeline_prev: Timeline(data.u32()?),
            wal_level: if record.major >= PgMajor::V17 { Some(WalLevel::from_number(data.u32()?)) } else { None },
        },
        0xA0 => Event::FullPageImages { for_hint: true },
        0xB0 => Event::FullPageImages { for_hint: false },
        0xD0 => Event::OverwriteContrecord { overwritten: Lsn(data.u64()?), time: TimestampTz(data.i64()?) },
        0xE0 if record.major >= PgMajor::V17 => Event::CheckpointRedo { wal_level: WalLevel::from_number(data.u32()?) },
        _ => Event::Other,
    })
}

#[derive(PartialEq, Eq)]
enum CheckpointKind {
    Shutdown,
    Online,
}

fn checkpoint(data: &mut Cursor<'_>, major: PgMajor, kind: CheckpointKind) -> Option<Checkpoint> {
    let redo = Lsn(data.u64()?);
    let timeline = Timeline(data.u32()?);
    let timeline_prev = Timeline(data.u32()?);
    let full_page_writes = data.u8()? != 0;
    data.take(3)?;
    // Padding until 16: `wal_level` came with 17 and took its place.
    let level = data.u32()?;
    let next_xid = data.u64()?;
    let next_oid = data.oid()?;
    let next_multi = data.u32()?;
    let _next_multi_offset = data.u32()?;
    let oldest_xid = data.u32()?;
    // oldestXidDB, oldestMulti, oldestMultiDB, padding
    data.take(16)?;
    let time_unix_secs = data.i64()?;
    // oldestCommitTsXid, newestCommitTsXid
    data.take(8)?;
    Some(Checkpoint {
        shutdown: kind == CheckpointKind::Shutdown,
        redo,
        timeline,
        timeline_prev,
        full_page_writes,
        wal_level: (major >= PgMajor::V17).then(|| WalLevel::from_number(level)),
        next_xid,
        next_oid,
        next_multi,
        oldest_xid,
        time_unix_secs,
        oldest_active_xid: data.u32()?,
    })
}

/// `access/xact.h`.
/// When a transaction ended, and whether it committed, for ends that say no more: most of them by far.
#[inline]
pub(crate) fn plain_end(record: &Record<'_>) -> Option<(TimestampTz, bool)> {
    // XLOG_XACT_COMMIT or XLOG_XACT_ABORT without XLOG_XACT_HAS_INFO.
    if record.rmgr != Rmgr::Transaction || record.header.op() & !0x20 != 0 {
        return None;
    }
    let time = Cursor::new(record.main_data()).i64()?;
    Some((TimestampTz(time), record.header.op() == 0))
}

fn transaction(record: &Record<'_>) -> Option<Event> {
    let data = record.main_data();
    let (info, xid, major) = (record.header.info, record.header.xid, record.major);
    Some(match info & 0x70 {
        0x00 => Event::Commit(parse_end(data, info, xid, EndKind::Commit { prepared: false }, major)?),
        0x10 => Event::Prepare(parse_prepare(data, major)?),
        0x20 => Event::Abort(parse_end(data, info, xid, EndKind::Abort { prepared: false }, major)?),
        0x30 => Event::Commit(parse_end(data, info, xid, EndKind::Commit { prepared: true }, major)?),
        0x40 => Event::Abort(parse_end(data, info, xid, EndKind::Abort { prepared: true }, major)?),
        0x50 => {
            let mut data = Cursor::new(data);
            let top = data.u32()?;
            let count = data.u32()?;
            Event::Assignment { top, subxacts: data.u32s(count)? }
        }
        _ => Event::Other,
    })
}

/// `catalog/storage_xlog.h`.
fn storage(record: &Record<'_>) -> Option<Event> {
    let mut data = Cursor::new(record.main_data());
    Some(match record.header.op() {
        0x10 => Event::RelationCreate { rel: data.rel_file()?, fork: Fork::from_number(data.u32()?)? },
        0x20 => {
            let blocks = BlockNumber(data.u32()?);
            Event::RelationTruncate { rel: data.rel_file()?, blocks, forks: TruncatedForks(data.u32()?) }
        }
        _ => Event::Other,
    })
}

/// `commands/dbcommands_xlog.h`: 15 put a second kind of creation between the two of 14.
fn database(record: &Record<'_>) -> Option<Event> {
    let mut data = Cursor::new(record.main_data());
    let drops = if record.major == PgMajor::V14 { 0x10 } else { 0x20 };
    Some(match record.header.op() {
        0x00 => Event::DatabaseCreateFileCopy {
            database: data.oid()?,
            tablespace: data.oid()?,
            source_database: data.oid()?,
            source_tablespace: data.oid()?,
        },
        op if op == drops => {
            let database = data.oid()?;
            let count = data.u32()?;
            Event::DatabaseDrop { database, tablespaces: data.u32s(count)?.into_iter().map(Oid).collect() }
        }
        0x10 => Event::DatabaseCreateWalLog { database: data.oid()?, tablespace: data.oid()? },
        _ => Event::Other,
    })
}

/// `commands/tablespace.h`.
fn tablespace(record: &Record<'_>) -> Option<Event> {
    let mut data = Cursor::new(record.main_data());
    Some(match record.header.op() {
        0x00 => {
            let tablespace = data.oid()?;
            Event::TablespaceCreate { tablespace, path: data.c_string()?.to_vec() }
        }
        0x10 => Event::TablespaceDrop { tablespace: data.oid()? },
        _ => Event::Other,
    })
}

/// `utils/relmapper.h`.
fn relmap(record: &Record<'_>) -> Option<Event> {
    let mut data = Cursor::new(record.main_data());
    Some(match record.header.op() {
        0x00 => Event::RelMapUpdate { database: data.oid()?, tablespace: data.oid()?, map_len: data.u32()? },
        _ => Event::Other,
    })
}

/// `storage/standbydefs.h`.
fn standby(record: &Record<'_>) -> Option<Event> {
    let mut data = Cursor::new(record.main_data());
    Some(match record.header.op() {
        0x10 => {
            let count = data.u32()?;
            let sub_count = data.u32()?;
            let subxid_overflow = data.u8()? != 0;
            data.take(3)?;
            let next_xid = data.u32()?;
            let oldest_running_xid = data.u32()?;
            let latest_completed_xid = data.u32()?;
            let xids = data.u32s(count.checked_add(sub_count)?)?;
            Event::RunningXacts { next_xid, oldest_running_xid, latest_completed_xid, xids, subxid_overflow }
        }
        _ => Event::Other,
    })
}
