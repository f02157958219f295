//! What a running server says of itself.

use crate::EngineError;
use pg_format::{Lsn, PgMajor, SystemId, Timeline, WalSegmentSize};
use pg_wire::{Client, Conninfo};
use std::path::PathBuf;

/// A tablespace, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it lies (`pg_tablespace_location`); relative, below the data directory, when it is in-place.
    pub location: String,
}

/// What a running server says of itself.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version_num: u32,
    /// `server_version`.
    pub version: String,
    /// Major version.
    pub major: PgMajor,
    /// System identifier.
    pub system_id: SystemId,
    /// Catalog version number.
    pub catalog_version: u32,
    /// The timeline it writes, or, on a standby, the one it last knew.
    pub timeline: Timeline,
    /// Whether it is a standby or otherwise in recovery.
    pub in_recovery: bool,
    /// Data directory.
    pub data_directory: PathBuf,
    /// Block size in bytes.
    pub block_size: u32,
    /// Blocks in a segment of a relation.
    pub relseg_blocks: u32,
    /// WAL segment size.
    pub wal_segment_size: WalSegmentSize,
    /// Whether data checksums are on.
    pub checksums: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_library`; empty before 15.
    pub archive_library: String,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `summarize_wal`; none before 17.
    pub summarize_wal: Option<bool>,
    /// `config_file`.
    pub config_file: PathBuf,
    /// `hba_file`.
    pub hba_file: PathBuf,
    /// `ident_file`.
    pub ident_file: PathBuf,
    /// The role connected as.
    pub user: String,
    /// Whether that role is a superuser.
    pub is_superuser: bool,
    /// The tablespaces, without pg_default and pg_global.
    pub tablespaces: Vec<Tablespace>,
}

const FACTS_SQL: &str = "\
SELECT current_setting('server_version_num') AS version_num, current_setting('server_version') AS version, \
 s.system_identifier::text AS system_id, s.catalog_version_no::text AS catalog_version, \
 c.timeline_id::text AS checkpoint_timeline, pg_is_in_recovery() AS in_recovery, \
 r.min_recovery_end_timeline::text AS recovery_timeline, \
 current_setting('data_directory') AS data_directory, \
 i.database_block_size::text AS block_size, i.blocks_per_segment::text AS relseg_blocks, \
 i.bytes_per_wal_segment::text AS wal_segment_size, (i.data_page_checksum_version <> 0) AS checksums, \
 current_setting('wal_level') AS wal_level, current_setting('archive_mode') AS archive_mode, \
 current_setting('archive_command') AS archive_command, \
 coalesce(current_setting('archive_library', true), '') AS archive_library, \
 (current_setting('full_page_writes') = 'on') AS full_page_writes, \
 current_setting('summarize_wal', true) AS summarize_wal, \
 current_setting('config_file') AS config_file, current_setting('hba_file') AS hba_file, \
 current_setting('ident_file') AS ident_file, current_user::text AS \"user\", \
 (current_setting('is_superuser') = 'on') AS is_superuser \
FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_init() i, pg_control_recovery() r";

impl ServerFacts {
    /// Asks the server.
    pub async fn read(client: &mut Client) -> Result<Self, EngineError> {
        if let Some(version) = client.server_version_num() {
            supported(version)?;
        }
        let row = match client.query_one(FACTS_SQL, &[]).await {
            Err(error) if error.sqlstate() == Some("42501") => {
                let reason = format!("{}: the login may not read what a backup needs: {error}", client.target());
                return Err(EngineError::refused(
                    reason,
                    "connect as a superuser, or GRANT pg_read_all_settings, pg_monitor TO the role",
                ));
            }
            other => other?,
        };
        let version_num = row.get("version_num")?;
        let in_recovery = row.bool("in_recovery")?;
        let checkpoint_timeline = Timeline(row.get("checkpoint_timeline")?);
        let timeline = if in_recovery {
            Timeline(row.get("recovery_timeline")?).max(checkpoint_timeline)
        } else {
            // After a promotion pg_control lags behind until the next checkpoint; the WAL's own name does not.
            let name: String =
                client.query_one("SELECT pg_walfile_name(pg_current_wal_lsn()) AS name", &[]).await?.get("name")?;
            name.get(..8).and_then(|tli| u32::from_str_radix(tli, 16).ok()).map_or(checkpoint_timeline, Timeline)
        };
        let bad = |reason: String| EngineError::Refused { reason, hint: None };
        let wal_segment_size =
            WalSegmentSize::new(row.get("wal_segment_size")?).map_err(|error| bad(error.to_string()))?;
        let tablespaces = client
            .query(
                "SELECT oid::text AS oid, spcname AS name, pg_tablespace_location(oid) AS location FROM pg_tablespace \
                 WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
                &[],
            )
            .await?
            .into_iter()
            .map(|row| Ok(Tablespace { oid: row.get("oid")?, name: row.get("name")?, location: row.get("location")? }))
            .collect::<Result<_, pg_wire::WireError>>()?;
        let path = |name: &str| row.get::<String>(name).map(PathBuf::from);
        Ok(Self {
            version_num,
            version: row.get("version")?,
            major: supported(version_num)?,
            system_id: SystemId(row.get("system_id")?),
            catalog_version: row.get("catalog_version")?,
            timeline,
            in_recovery,
            data_directory: path("data_directory")?,
            block_size: row.get("block_size")?,
            relseg_blocks: row.get("relseg_blocks")?,
            wal_segment_size,
            checksums: row.bool("checksums")?,
            wal_level: row.get("wal_level")?,
            archive_mode: row.get("archive_mode")?,
            archive_command: row.get("archive_command")?,
            archive_library: row.get("archive_library")?,
            full_page_writes: row.bool("full_page_writes")?,
            summarize_wal: row.opt_str("summarize_wal")?.map(|value| value == "on"),
            config_file: path("config_file")?,
            hba_file: path("hba_file")?,
            ident_file: path("ident_file")?,
            user: row.get("user")?,
            is_superuser: row.bool("is_superuser")?,
            tablespaces,
        })
    }
}

pub(crate) fn supported(version_num: u32) -> Result<PgMajor, EngineError> {
    PgMajor::from_version_num(version_num).map_err(|error| {
        EngineError::refused(
            format!("PostgreSQL {}: {error}", version_num / 10_000),
            "this version of pgkeep knows PostgreSQL 14 to 18; a later one may know more",
        )
    })
}

/// Connects, with what a session for backups needs: no statement or idle timeout may end it.
pub async fn connect(conninfo: &Conninfo) -> Result<Client, EngineError> {
    let mut client = Client::connect(conninfo).await?;
    client
        .simple_query(
            "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
             SET client_encoding = 'UTF8'; SET search_path = pg_catalog; SET DateStyle = 'ISO'; SET TimeZone = 'UTC'",
        )
        .await?;
    Ok(client)
}

/// How far the server's WAL is: what it inserted, or, on a standby, replayed.
pub async fn current_lsn(client: &mut Client, in_recovery: bool) -> Result<Lsn, EngineError> {
    let function = if in_recovery { "pg_last_wal_replay_lsn()" } else { "pg_current_wal_insert_lsn()" };
    Ok(client.query_one(&format!("SELECT {function}::text AS lsn"), &[]).await?.lsn("lsn")?)
}
