//! Which of the servers of a cluster is asked, when the connection string names several: a standby that is not behind, else
//! the primary.

use crate::server::connect;
use crate::{Context, EngineError};
use pg_format::{Lsn, SystemId};
use pg_wire::conninfo::{LoadBalanceHosts, TargetSessionAttrs};
use pg_wire::{Client, Conninfo, Params, Surroundings};
use std::time::Duration;
use tokio::time::Instant;

/// How long a standby may take to replay what the primary had written when it was asked.
const CATCH_UP: Duration = Duration::from_secs(2);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How far a standby may be behind. What is not given is not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LagMax {
    /// In bytes of WAL that the primary has written and the standby has not replayed.
    pub bytes: Option<u64>,
    /// In time since the last transaction that was replayed, where not all is replayed.
    pub time: Option<Duration>,
}

/// The server that was chosen.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// How to connect to it, and to no other.
    pub conninfo: Conninfo,
    /// Which one it is.
    pub server: String,
    /// Whether it is a standby.
    pub is_standby: bool,
    /// Why it, and why not the others.
    pub why: Vec<String>,
}

/// One server that answered.
struct Answered {
    conninfo: Conninfo,
    client: Client,
    name: String,
    in_recovery: bool,
    system_id: SystemId,
}

/// A standby whose lag was looked at.
struct Lag {
    bytes: Option<u64>,
    time: Option<Duration>,
}

/// Chooses the standby that is least behind and not too far, else the primary. `usable` says of a server why it cannot be
/// used (its files are not here).
pub async fn prefer_standby(
    ctx: &Context,
    conninfo: &Conninfo,
    lag_max: LagMax,
    usable: impl AsyncFn(&mut Client) -> Result<(), EngineError>,
) -> Result<Chosen, EngineError> {
    let mut why = Vec::new();
    let mut servers = Vec::new();
    for host in &conninfo.hosts {
        let single = Conninfo { hosts: vec![host.clone()], ..alone(conninfo) };
        match ctx.or_cancel(ask(single, host.to_string())).await? {
            Ok(answered) => servers.push(answered),
            Err(error) => why.push(format!("{host} cannot be asked: {error}")),
        }
    }
    one_cluster(&servers)?;
    let (mut standbys, mut primaries): (Vec<_>, Vec<_>) = servers.into_iter().partition(|server| server.in_recovery);
    if primaries.len() > 1 {
        let names: Vec<&str> = primaries.iter().map(|server| server.name.as_str()).collect();
        return Err(EngineError::refused(
            format!("{} both say that they are the primary", names.join(" and ")),
            "find out which one is: the other one was left behind by a failover, and its WAL must not be archived",
        ));
    }
    let mut primary = primaries.pop();
    let mut best: Option<(u64, usize, String)> = None;
    for (index, standby) in standbys.iter_mut().enumerate() {
        if let Err(error) = usable(&mut standby.client).await {
            why.push(format!("standby {} cannot be used: {error}", standby.name));
            continue;
        }
        let lag = ctx.or_cancel(lag_of(&mut standby.client, primary.as_mut())).await??;
        match too_far(&lag, lag_max) {
            Some(reason) => why.push(format!("standby {} is passed over: {reason}", standby.name)),
            None => {
                let bytes = lag.bytes.unwrap_or(u64::MAX);
                let words = lag.bytes.map_or_else(
                    || "how far it is behind is not known, for no primary can be asked".to_owned(),
                    |bytes| format!("it is {bytes} bytes of WAL behind the primary"),
                );
                if best.as_ref().is_none_or(|(least, ..)| bytes < *least) {
                    best = Some((bytes, index, format!("standby {}: {words}", standby.name)));
                }
            }
        }
    }
    let chosen = match (best, primary) {
        (Some((_, index, words)), _) => {
            why.push(words);
            Some(standbys.swap_remove(index))
        }
        (None, Some(mut primary)) => match usable(&mut primary.client).await {
            Ok(()) => {
                why.push(format!("primary {}: no standby can be used", primary.name));
                Some(primary)
            }
            Err(error) => {
                why.push(format!("primary {} cannot be used: {error}", primary.name));
                None
            }
        },
        (None, None) => None,
    };
    let Some(chosen) = chosen else {
        return Err(EngineError::refused(
            format!("none of the servers can be used: {}", why.join("; ")),
            "name in the connection string all servers of the cluster; `direct` reads the files of one on this host",
        ));
    };
    let Answered { conninfo, client, name, in_recovery, .. } = chosen;
    client.close().await;
    Ok(Chosen { conninfo, server: name, is_standby: in_recovery, why })
}

/// The same settings for one server, whatever it is.
fn alone(conninfo: &Conninfo) -> Conninfo {
    Conninfo {
        target_session_attrs: TargetSessionAttrs::Any,
        load_balance_hosts: LoadBalanceHosts::Disable,
        ..conninfo.clone()
    }
}

async fn ask(conninfo: Conninfo, name: String) -> Result<Answered, EngineError> {
    let mut client = connect(&conninfo).await?;
    let sql =
        "SELECT pg_is_in_recovery() AS in_recovery, system_identifier::text AS system_id FROM pg_control_system()";
    let row = client.query_one(sql, &[]).await?;
    let (in_recovery, system_id) = (row.bool("in_recovery")?, SystemId(row.get("system_id")?));
    Ok(Answered { conninfo, client, name, in_recovery, system_id })
}

fn one_cluster(servers: &[Answered]) -> Result<(), EngineError> {
    let Some(first) = servers.first() else { return Ok(()) };
    match servers.iter().find(|server| server.system_id != first.system_id) {
        None => Ok(()),
        Some(other) => Err(EngineError::refused(
            format!(
                "{} has system identifier {}, {} has {}: they are not servers of one cluster",
                first.name, first.system_id, other.name, other.system_id
            ),
            "name only servers of this cluster in its connection string",
        )),
    }
}

/// How far a standby is behind. It has a moment to replay what the primary had written.
async fn lag_of(standby: &mut Client, primary: Option<&mut Answered>) -> Result<Lag, EngineError> {
    let written = match primary {
        None => None,
        Some(primary) => {
            let sql = "SELECT pg_current_wal_lsn()::text AS lsn";
            Some(primary.client.query_one(sql, &[]).await?.lsn("lsn")?)
        }
    };
    let sql = "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text AS lsn, \
               extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::text AS seconds";
    let asked = Instant::now();
    loop {
        let row = standby.query_one(sql, &[]).await?;
        let replayed: Lsn = row.lsn("lsn")?;
        let bytes = written.map(|written| written.0.saturating_sub(replayed.0));
        if bytes == Some(0) {
            return Ok(Lag { bytes, time: Some(asked.elapsed()) });
        }
        if bytes.is_none() || asked.elapsed() > CATCH_UP {
            let seconds: Option<f64> = row.opt_get("seconds")?;
            let time = seconds.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
            return Ok(Lag { bytes, time });
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

/// Why a standby is too far behind.
fn too_far(lag: &Lag, max: LagMax) -> Option<String> {
    if let Some(max) = max.bytes {
        match lag.bytes {
            None => return Some("how far it is behind is not known, for no primary can be asked".into()),
            Some(bytes) if bytes > max => return Some(format!("it is {bytes} bytes of WAL behind, {max} are allowed")),
            Some(_) => {}
        }
    }
    if let Some(max) = max.time {
        match lag.time {
            None => return Some("it has replayed no transaction yet".into()),
            Some(time) if time > max => {
                let (time, max) = (time.as_secs(), max.as_secs());
                return Some(format!("its last replayed transaction is of {time} s ago, {max} s are allowed"));
            }
            Some(_) => {}
        }
    }
    None
}

/// Has the primary end its WAL segment, when it is still writing the one named: what a standby's backup ends with is
/// archived only then. Gives, within, why it could not be asked. `all` names the cluster's servers; without it, or when
/// none of them is the primary, the standby's own `primary_conninfo` is tried, if there is a session to ask it for that.
pub(crate) async fn switch_primary(
    all: Option<&Conninfo>,
    standby: Result<&mut Client, &EngineError>,
    system_id: SystemId,
    segment: &str,
) -> Result<(), String> {
    let mut reasons = Vec::new();
    if let Some(all) = all {
        let primary = Conninfo { target_session_attrs: TargetSessionAttrs::Primary, ..all.clone() };
        match switch(&primary, system_id, segment).await {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    let asked = match standby {
        Ok(standby) => own_primary(standby, all).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match asked {
        Ok(Some(primary)) => match switch(&primary, system_id, segment).await {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("by primary_conninfo: {error}")),
        },
        Ok(None) => reasons.push("the standby has no primary_conninfo".into()),
        Err(error) => reasons.push(format!("primary_conninfo: {error}")),
    }
    Err(reasons.join("; "))
}

/// How the standby reaches its primary, for a query.
async fn own_primary(standby: &mut Client, like: Option<&Conninfo>) -> Result<Option<Conninfo>, EngineError> {
    let sql = "SELECT coalesce(current_setting('primary_conninfo', true), '') AS text";
    let text: String = standby.query_one(sql, &[]).await?.get("text")?;
    if text.is_empty() {
        return Ok(None);
    }
    let wire = |error| EngineError::from(pg_wire::WireError::from(error));
    let mut params = Params::parse(&text).map_err(wire)?;
    // What is there for replication names no database.
    let database = like.map_or("postgres", |like| like.dbname.as_str());
    params.set("dbname", database).map_err(wire)?;
    let nothing = Surroundings::from_vars(std::iter::empty::<(String, String)>());
    Ok(Some(params.resolve(&nothing).map_err(wire)?))
}

async fn switch(primary: &Conninfo, system_id: SystemId, segment: &str) -> Result<(), EngineError> {
    let mut client = connect(primary).await?;
    let sql =
        "SELECT system_identifier::text AS system_id, pg_is_in_recovery() AS in_recovery FROM pg_control_system()";
    let row = client.query_one(sql, &[]).await?;
    if row.bool("in_recovery")? || SystemId(row.get("system_id")?) != system_id {
        return Err(EngineError::Failed { reason: format!("{} is not its primary", client.target()), hint: None });
    }
    // It may have gone on since; then nothing is to be done.
    let sql =
        "SELECT CASE WHEN pg_walfile_name(pg_current_wal_insert_lsn()) <= $1 THEN pg_switch_wal()::text END AS at";
    client.query_one(sql, &[Some(segment)]).await?;
    client.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_far_behind() {
        let lag = |bytes, time: Option<u64>| Lag { bytes, time: time.map(Duration::from_secs) };
        let max = |bytes, time: Option<u64>| LagMax { bytes, time: time.map(Duration::from_secs) };
        let is = |lag, max| too_far(&lag, max).is_some();
        assert!(!is(lag(Some(10), Some(9)), max(None, None)) && !is(lag(None, None), max(None, None)));
        assert!(!is(lag(Some(10), None), max(Some(10), None)) && is(lag(Some(11), Some(0)), max(Some(10), None)));
        assert!(is(lag(None, Some(0)), max(Some(10), None)), "not known is not little");
        assert!(!is(lag(Some(99), Some(5)), max(None, Some(5))) && is(lag(Some(0), Some(6)), max(None, Some(5))));
        assert!(is(lag(Some(0), None), max(None, Some(5))));
    }
}
