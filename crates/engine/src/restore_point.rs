//! Named restore points, made on a running server: places in the WAL that recovery can be told by name.

use crate::EngineError;
use jiff::Timestamp;
use pg_format::{Lsn, Timeline};
use pg_wire::Client;
use serde::Serialize;

/// `MAXFNAMELEN` is 64, with a terminating zero (`access/xlog_internal.h`).
const NAME_LEN_MAX: usize = 63;

/// A restore point that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreatedRestorePoint {
    /// Its name.
    pub name: String,
    /// Where its record ends.
    pub lsn: Lsn,
    /// When, by the server's clock.
    pub time: Timestamp,
    /// The timeline it lies on.
    pub timeline: Timeline,
    /// The WAL segment that must be archived before it is a target.
    pub segment: String,
    /// Whether the server was told to end that segment now.
    pub switched: bool,
}

/// Whether the segment is ended at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Yes: the restore point is a target as soon as the segment is archived.
    Now,
    /// When it is full, or `archive_timeout` is over.
    Later,
}

/// What a name must be.
///
/// # Errors
/// Why it cannot be one.
pub fn check_name(name: &str) -> Result<(), EngineError> {
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
        return Err(EngineError::refused(
            format!("{name:?} cannot be the name of a restore point"),
            format!("give it 1 to {NAME_LEN_MAX} bytes, without control characters"),
        ));
    }
    Ok(())
}

/// Makes a restore point.
///
/// # Errors
/// When the server is in recovery, writes too little WAL, or does not let this login make one.
pub async fn create(client: &mut Client, name: &str, switch: Switch) -> Result<CreatedRestorePoint, EngineError> {
    check_name(name)?;
    let row = client.query_one("SELECT pg_is_in_recovery() AS in_recovery", &[]).await?;
    if row.bool("in_recovery")? {
        return Err(EngineError::refused(
            format!("{}: a server in recovery cannot make restore points", client.target()),
            "make it on the primary",
        ));
    }
    // The time is taken before, so that what is committed after the answer is later.
    let sql = "SELECT clock_timestamp()::text AS time, pg_create_restore_point($1)::text AS lsn";
    let row = match client.query_one(sql, &[Some(name)]).await {
        Err(error) if error.sqlstate() == Some("42501") => {
            return Err(EngineError::refused(
                format!("{}: the login may not make restore points: {error}", client.target()),
                "connect as a superuser, or GRANT EXECUTE ON FUNCTION pg_create_restore_point TO the role",
            ));
        }
        other => other?,
    };
    let lsn = row.lsn("lsn")?;
    let time: String = row.get("time")?;
    let time = time.parse().map_err(|error| EngineError::Failed {
        reason: format!("{}: the time {time:?} cannot be read: {error}", client.target()),
        hint: None,
    })?;
    // The record ends at the LSN; at a border it lies in the segment before (`pg_walfile_name` says so).
    let row = client.query_one("SELECT pg_walfile_name($1::pg_lsn) AS name", &[Some(&lsn.to_string())]).await?;
    let segment: String = row.get("name")?;
    let timeline = segment.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok()).unwrap_or_default();
    if switch == Switch::Now {
        client.query_one("SELECT pg_switch_wal()::text AS lsn", &[]).await?;
    }
    let (name, timeline, switched) = (name.to_owned(), Timeline(timeline), switch == Switch::Now);
    Ok(CreatedRestorePoint { name, lsn, time, timeline, segment, switched })
}
