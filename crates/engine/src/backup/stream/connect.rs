//! Sessions for the replication protocol, and what a server says of itself over one. A login with REPLICATION is enough;
//! what only others may see stays unknown.

use crate::EngineError;
use crate::server::{ServerFacts, supported};
use jiff::Timestamp;
use pg_format::history::TimelineHistory;
use pg_format::{ByteSize, Lsn, Timeline, WalSegmentSize};
use pg_wire::conninfo::ReplicationMode;
use pg_wire::{Client, Conninfo, ReplicationMessage, ServerError, StandbyStatus, WireError};
use std::path::PathBuf;
use std::time::Duration;

/// How long the server may take to tell its time.
const TIME_TOLD_WITHIN: Duration = Duration::from_secs(10);
/// 2000-01-01, the beginning of PostgreSQL's time, in microseconds since 1970 (`POSTGRES_EPOCH_JDATE`).
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Connects, and asks the server about itself.
pub(in crate::backup) async fn open(conninfo: &Conninfo) -> Result<(Client, ServerFacts), EngineError> {
    let mut client = session(conninfo).await?;
    let server = facts(&mut client, conninfo).await?;
    Ok((client, server))
}

/// A session for the replication protocol.
pub(crate) async fn session(conninfo: &Conninfo) -> Result<Client, EngineError> {
    let conninfo = Conninfo { replication: ReplicationMode::Physical, ..conninfo.clone() };
    Client::connect(&conninfo).await.map_err(|error| refused(error, &conninfo.user))
}

fn server_said(error: &WireError) -> Option<&ServerError> {
    match error {
        WireError::NoHost { errors } => errors.iter().find_map(server_said),
        other => other.server_error(),
    }
}

/// What is missing, by what the server says against the login (`InitPostgres` in `src/backend/utils/init/postinit.c`,
/// `InitProcess` in `src/backend/storage/lmgr/proc.c`, `ClientAuthentication` in `src/backend/libpq/auth.c`).
fn refused(error: WireError, user: &str) -> EngineError {
    let Some(said) = server_said(&error) else { return error.into() };
    let (what, hint) = match said.sqlstate.as_str() {
        "42501" => (
            format!("the login {user} may not use the replication protocol: {said}"),
            format!("run `ALTER ROLE {user} REPLICATION` as a superuser"),
        ),
        "53300" if said.message.contains("max_wal_senders") => (
            format!("the server has no session for replication left: {said}"),
            "raise max_wal_senders and restart the server, or end one that is not needed: pg_stat_replication lists them"
                .to_owned(),
        ),
        "28000" if said.message.contains("pg_hba.conf") => (
            format!("the server lets nobody in for replication from here: {said}"),
            format!(
                "add a line to pg_hba.conf that has the word replication as its database, such as `host replication {user} \
                 ADDRESS scram-sha-256` (or `local replication {user} peer`), and reload"
            ),
        ),
        _ => return error.into(),
    };
    EngineError::refused(what, hint)
}

/// A setting that only some may see; empty for the others.
async fn show_if_allowed(client: &mut Client, name: &str) -> Result<String, EngineError> {
    match client.show(name).await {
        Err(error) if error.server_error().is_some_and(|said| said.severity == "ERROR") => Ok(String::new()),
        other => Ok(other?),
    }
}

async fn size(client: &mut Client, name: &str) -> Result<u64, EngineError> {
    let text = client.show(name).await?;
    let bad = || EngineError::Failed { reason: format!("{name} is {text}, which is no size"), hint: None };
    Ok(text.parse::<ByteSize>().map_err(|_| bad())?.bytes())
}

async fn facts(client: &mut Client, conninfo: &Conninfo) -> Result<ServerFacts, EngineError> {
    let version_num = client.server_version_num().unwrap_or_default();
    let major = supported(version_num)?;
    let system = client.identify_system().await?;
    let block_size = size(client, "block_size").await?;
    let relseg_bytes = size(client, "segment_size").await?;
    let wal_segment_size = u32::try_from(size(client, "wal_segment_size").await?).unwrap_or_default();
    let wal_segment_size = WalSegmentSize::new(wal_segment_size)
        .map_err(|error| EngineError::Refused { reason: error.to_string(), hint: None })?;
    let path = |text: String| PathBuf::from(text);
    let summarize_wal = match major.facts().has_wal_summaries {
        true => Some(client.show("summarize_wal").await? == "on"),
        false => None,
    };
    Ok(ServerFacts {
        version_num,
        version: client.parameter("server_version").unwrap_or_default().to_owned(),
        major,
        system_id: system.system_id,
        // pg_control, which comes last, must agree.
        catalog_version: major.facts().catalog_version,
        timeline: system.timeline,
        in_recovery: client.parameter("in_hot_standby") == Some("on"),
        data_directory: path(show_if_allowed(client, "data_directory").await?),
        block_size: u32::try_from(block_size).unwrap_or_default(),
        relseg_blocks: u32::try_from(relseg_bytes / block_size.max(1)).unwrap_or_default(),
        wal_segment_size,
        checksums: client.show("data_checksums").await? == "on",
        wal_level: client.show("wal_level").await?,
        archive_mode: client.show("archive_mode").await?,
        archive_command: String::new(),
        archive_library: String::new(),
        full_page_writes: client.show("full_page_writes").await? == "on",
        summarize_wal,
        config_file: path(show_if_allowed(client, "config_file").await?),
        hba_file: path(show_if_allowed(client, "hba_file").await?),
        ident_file: path(show_if_allowed(client, "ident_file").await?),
        user: conninfo.user.clone(),
        is_superuser: client.parameter("is_superuser") == Some("on"),
        tablespaces: Vec::new(),
    })
}

/// How the server's timeline came about.
pub(in crate::backup) async fn history(
    client: &mut Client,
    timeline: Timeline,
) -> Result<TimelineHistory, EngineError> {
    if timeline == Timeline::FIRST {
        return Ok(TimelineHistory::without_past(timeline));
    }
    let file = client.timeline_history(timeline).await?;
    let text = String::from_utf8_lossy(&file.content);
    TimelineHistory::parse(timeline, &text)
        .map_err(|error| EngineError::BadFile { path: PathBuf::from(file.filename), reason: error.to_string() })
}

/// The server's time: it stands in what a stream of WAL begins with. None when it does not tell. The session is of no use
/// for anything else afterwards.
pub(in crate::backup) async fn server_time(client: &mut Client) -> Option<Timestamp> {
    use futures::StreamExt;
    let asked = async {
        let system = client.identify_system().await.ok()?;
        let mut stream = client.start_replication(None, system.xlogpos, system.timeline).await.ok()?;
        // Nothing is said to have been received: no commit may take this for a standby's answer.
        let nowhere = Lsn::INVALID;
        let status = StandbyStatus {
            written: nowhere,
            flushed: nowhere,
            applied: nowhere,
            sent_micros: 0,
            reply_requested: true,
        };
        stream.send_status(status).await.ok()?;
        match stream.next().await?.ok()? {
            ReplicationMessage::XLogData { sent_micros, .. } | ReplicationMessage::Keepalive { sent_micros, .. } => {
                Timestamp::from_microsecond(sent_micros.checked_add(POSTGRES_EPOCH_MICROS)?).ok()
            }
        }
    };
    tokio::time::timeout(TIME_TOLD_WITHIN, asked).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let check = |sqlstate: &str, message: &str, words: &[&str]| {
            let said = ServerError {
                sqlstate: sqlstate.into(),
                message: message.into(),
                severity: "FATAL".into(),
                ..ServerError::default()
            };
            let error = WireError::NoHost { errors: vec![WireError::Server(Box::new(said))] };
            let text = match refused(error, "backup") {
                EngineError::Refused { reason, hint } => format!("{reason} | {}", hint.unwrap_or_default()),
                other => other.to_string(),
            };
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        check(
            "42501",
            "permission denied to start WAL sender",
            &["may not use the replication protocol", "ALTER ROLE backup REPLICATION"],
        );
        check(
            "53300",
            "number of requested standby connections exceeds \"max_wal_senders\" (currently 10)",
            &["raise max_wal_senders"],
        );
        check("28000", "no pg_hba.conf entry for replication connection from host", &["host replication backup"]);
        check("28P01", "password authentication failed", &["password authentication failed"]);
    }
}
