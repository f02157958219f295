//! What cannot give a valid backup is refused before anything is begun.

use crate::EngineError;
use crate::server::ServerFacts;
use pg_format::control::{CONTROL_FILE_PATH, ControlFile, DbState};
use pg_wire::Client;
use repo::{Cluster, RepoError};

/// The cluster must be the one that this name stands for.
pub(super) async fn check_cluster(cluster: &Cluster, server: &ServerFacts) -> Result<(), EngineError> {
    let facts = cluster.known_facts().await.map_err(|error| match error {
        RepoError::UnknownCluster { .. } => {
            EngineError::not_found(error.to_string(), format!("run `pgkeep init {}` first", cluster.name()))
        }
        other => other.into(),
    })?;
    let name = cluster.name();
    match facts.current() {
        Some(known) if known.system_id != server.system_id => Err(EngineError::refused(
            format!(
                "the server has system identifier {}, but cluster {name} in the repository is {}: it is another cluster",
                server.system_id, known.system_id
            ),
            format!(
                "give this cluster a name of its own, or, when it takes the place of the old one (as after a major upgrade), run `pgkeep init {name}` again"
            ),
        )),
        Some(known) if known.pg_major != server.major.number() => Err(EngineError::refused(
            format!(
                "the server runs PostgreSQL {}, the repository knows cluster {name} as {}",
                server.major.number(),
                known.pg_major
            ),
            format!("after a major upgrade, run `pgkeep init {name}` again"),
        )),
        Some(_) => Ok(()),
        None => Err(EngineError::not_found(
            format!("the repository knows no system identifier of cluster {name}"),
            format!("run `pgkeep init {name}` first"),
        )),
    }
}

/// Whether a backup carries the WAL that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CarriesWal {
    Yes,
    No,
}

/// Refuses what cannot give a valid backup.
pub(super) fn check_server(server: &ServerFacts, carries_wal: CarriesWal) -> Result<(), EngineError> {
    let apply = "`pgkeep init --apply` sets what is needed";
    if server.wal_level == "minimal" {
        return Err(EngineError::refused("wal_level is minimal: WAL does not hold what a backup needs", apply));
    }
    if server.archive_mode == "off" && !server.in_recovery && carries_wal == CarriesWal::No {
        let reason = "archive_mode is off: the WAL that a backup needs would not reach the repository";
        let hint = format!("{apply}; then restart the server. Or let the backup carry its WAL: `--standalone`");
        return Err(EngineError::refused(reason, hint));
    }
    Ok(())
}

/// The files must be on this host, and be those of the server that was asked.
pub(super) fn check_host(server: &ServerFacts) -> Result<(), EngineError> {
    let path = server.data_directory.join(CONTROL_FILE_PATH);
    let elsewhere = "run the backup on the database host, as the user that owns the data directory";
    let control = match std::fs::read(&path) {
        Err(error) => {
            return Err(EngineError::refused(
                format!("{}: the data directory cannot be read on this host: {error}", path.display()),
                elsewhere,
            ));
        }
        Ok(bytes) => ControlFile::parse(&bytes),
    };
    match control {
        Ok(control) if control.system_id != server.system_id => Err(EngineError::refused(
            format!(
                "{} has system identifier {}, the server {}: the server is not the one whose files are here",
                server.data_directory.display(),
                control.system_id,
                server.system_id
            ),
            elsewhere,
        )),
        // Another server of the same cluster: a standby on this host, a stopped copy, and the one that was asked runs
        // elsewhere (or in a container) with the same path. Its files and this backup's label would not go together.
        Ok(control) if !state_fits(control.state, server.in_recovery) => Err(EngineError::refused(
            format!(
                "{} says in its pg_control that it is {:?}, but the server that was asked is {}: it is not the one whose \
                 files are here",
                server.data_directory.display(),
                control.state,
                if server.in_recovery { "a standby" } else { "in production" },
            ),
            format!("{elsewhere}; when it was promoted in this moment, run the backup again"),
        )),
        // A checksum that does not fit may be a write that was met; it is read again with the backup.
        _ => Ok(()),
    }
}

/// A server that began later than the pid file says by more than this is another one.
const STARTS_WITHIN_SECONDS: f64 = 600.0;

/// The server that was asked must be the one on these files, also when another standby elsewhere has the same path: its
/// port and the time of its start stand in `postmaster.pid` (`LOCK_FILE_LINE_*` in `src/include/utils/pidfile.h`).
pub(super) async fn check_is_here(client: &mut Client, server: &ServerFacts) -> Result<(), EngineError> {
    let path = server.data_directory.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    let sql = "SELECT current_setting('port') AS port, extract(epoch FROM pg_postmaster_start_time())::text AS started";
    let row = client.query_one(sql, &[]).await?;
    let (port, started): (String, f64) = (row.get("port")?, row.get("started")?);
    match other_server(&text, &port, started) {
        None => Ok(()),
        Some(what) => Err(EngineError::refused(
            format!("{}: {what}: the server that was asked is not the one whose files are here", path.display()),
            "run the backup on the host of the server that is asked, or name the one on this host",
        )),
    }
}

/// What in a pid file is not of a server with this port and time of start.
fn other_server(pid_file: &str, port: &str, started: f64) -> Option<String> {
    let line = |number: usize| pid_file.lines().nth(number - 1).map(str::trim).filter(|line| !line.is_empty());
    if let Some(there) = line(4).filter(|there| *there != port) {
        return Some(format!("it is of a server on port {there}, the one that was asked has {port}"));
    }
    let began: f64 = line(3)?.parse().ok()?;
    // The file is written first.
    let after = started - began;
    (!(-5.0..STARTS_WITHIN_SECONDS).contains(&after)).then(|| {
        format!("it is of a server that was started {} s before or after the one that was asked", after.abs().round())
    })
}

/// What pg_control says of a server that takes queries.
fn state_fits(state: DbState, in_recovery: bool) -> bool {
    state == if in_recovery { DbState::InArchiveRecovery } else { DbState::InProduction }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_with_the_same_path_is_told_by_its_port_and_start() {
        let file = "77\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  3000000000         5\nready   \n";
        let is_other = |port: &str, started: f64| other_server(file, port, started).is_some();
        assert!(!is_other("5432", 1_700_000_000.4) && !is_other("5432", 1_700_000_030.0), "it took a while to start");
        assert!(is_other("5433", 1_700_000_000.4) && is_other("5432", 1_700_009_000.0));
        assert!(is_other("5432", 1_699_999_000.0));
        assert!(other_server("77\n/data\n", "5432", 1.0).is_none(), "it does not say");
    }

    #[test]
    fn files_of_another_server_are_told_by_their_state() {
        assert!(state_fits(DbState::InProduction, false) && state_fits(DbState::InArchiveRecovery, true));
        for (state, in_recovery) in [
            (DbState::InArchiveRecovery, false),
            (DbState::ShutDown, false),
            (DbState::InProduction, true),
            (DbState::ShutDownInRecovery, true),
        ] {
            assert!(!state_fits(state, in_recovery), "{state:?}");
        }
    }
}
