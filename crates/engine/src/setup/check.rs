//! Proof that backup and archiving work, by doing them.

use super::init::{is_our_library, is_ours};
use super::{Finding, Level};
use crate::server::{self, ServerFacts};
use crate::{Context, EngineError, lease_holder, process_is_gone};
use bytes::Bytes;
use pg_format::{Lsn, SegmentName};
use pg_wire::{Client, Conninfo};
use repo::RepoError;
use repo::wal::{WalObject, read_segment};
use std::path::Path;
use std::time::Duration;
use store::{Created, StoreError};

/// How a check is made.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// How long the archiving of a segment is waited for.
    pub archive_time_max: Duration,
}

/// So much difference between two clocks is normal.
const SKEW_SECONDS_MAX: f64 = 5.0;
/// How long a local socket may take to be connected.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Less free space than this is worth a warning.
const FREE_BYTES_MIN: u64 = 2 << 30;

/// Looks at everything that backup and archiving need, and does a small part of both. `repository` is the cluster in
/// the opened repository, or why it could not be opened. What is found wrong never ends the check.
pub async fn check(
    ctx: &Context,
    conninfo: &Conninfo,
    repository: Result<repo::Cluster, EngineError>,
    options: &CheckOptions,
) -> Result<Vec<Finding>, EngineError> {
    let mut findings = Vec::new();
    let cluster = match repository {
        Ok(cluster) => {
            let found = ctx.or_cancel(check_repository(ctx, &cluster)).await?;
            let usable = found.iter().all(|finding| finding.level != Level::Failed);
            findings.extend(found);
            usable.then_some(cluster)
        }
        Err(error) => {
            findings.push(from_error("repository", &error));
            None
        }
    };
    let connected = ctx.or_cancel(connect(conninfo)).await?;
    let (mut client, server) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            findings.push(from_error("connection", &error));
            return Ok(findings);
        }
    };
    findings.push(Finding::ok(
        "connection",
        format!("PostgreSQL {} at {} as {}", server.version, client.target(), server.user),
    ));
    let same = if let Some(cluster) = &cluster {
        let found = same_cluster(cluster, &server).await;
        let same = found.level != Level::Failed;
        findings.push(found);
        same
    } else {
        false
    };
    findings.extend(on_server("privileges", privileges(&mut client, &server).await));
    findings.extend(on_server("settings", settings(&mut client, &server).await));
    findings.extend(on_server("clock", clock(ctx, &mut client).await));
    findings.extend(disk_space(cluster.as_ref(), &server));
    findings.extend(on_server("archiver", archiver(&mut client, &server).await));
    if let Some(cluster) = cluster.filter(|_| same) {
        let proof = ctx.or_cancel(archiving(ctx, &mut client, &server, &cluster, options)).await?;
        findings.extend(on_server("archiving", proof.map(|finding| vec![finding])));
    }
    client.close().await;
    Ok(findings)
}

/// An error as a finding, with what to do about it.
fn from_error(name: &'static str, error: &EngineError) -> Finding {
    let hint = match error {
        EngineError::Wire(wire) => wire.hint(),
        EngineError::NotFound { hint, .. } | EngineError::Refused { hint, .. } | EngineError::Failed { hint, .. } => {
            hint.clone()
        }
        _ => None,
    };
    Finding { name, level: Level::Failed, message: error.to_string(), hint }
}

fn on_server(name: &'static str, findings: Result<Vec<Finding>, EngineError>) -> Vec<Finding> {
    findings.unwrap_or_else(|error| vec![from_error(name, &error)])
}

async fn connect(conninfo: &Conninfo) -> Result<(Client, ServerFacts), EngineError> {
    let mut client = server::connect(conninfo).await?;
    let facts = ServerFacts::read(&mut client).await?;
    Ok((client, facts))
}

/// Opens what is known of the cluster (so the key is right), writes, lists and deletes an object.
async fn check_repository(ctx: &Context, cluster: &repo::Cluster) -> Vec<Finding> {
    let url = cluster.repository().store().url();
    if let Err(error) = cluster.known_facts().await {
        let hint = match &error {
            RepoError::UnknownCluster { .. } => format!("run `pgkeep init {}`", cluster.name()),
            _ => "see that the repository can be reached and that its key is the right one".to_owned(),
        };
        return vec![Finding::failed("repository", error.to_string(), hint)];
    }
    let lease = cluster.take_lease("check", lease_holder(), ctx.now(), process_is_gone).await;
    let written = match lease {
        Ok(lease) => {
            let kept = keeps_what_is_there(ctx, cluster).await;
            match (lease.release().await, kept) {
                (Ok(()), Ok(true)) => Ok(()),
                (Ok(()), Ok(false)) => {
                    return vec![Finding::failed(
                        "repository",
                        format!("{url} overwrites objects that are there, though told to create them only when absent"),
                        "use a store with conditional creation (`If-None-Match: *` on S3); with this one, two writers \
                         can destroy each other's backups and WAL",
                    )];
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            }
        }
        // Somebody else's check is at it: then writing works.
        Err(RepoError::Leased { .. }) => Ok(()),
        Err(error) => Err(error),
    };
    match written {
        Ok(()) => vec![Finding::ok("repository", format!("{url} can be read and written, the key fits"))],
        Err(error) => vec![Finding::failed(
            "repository",
            format!("{url} cannot be written: {error}"),
            "see that there is room, and that this user may create and delete objects there",
        )],
    }
}

/// Creates an object twice: the second time it must be told that it exists, and the first content must stay.
async fn keeps_what_is_there(ctx: &Context, cluster: &repo::Cluster) -> Result<bool, RepoError> {
    const FIRST: &[u8] = b"pgkeep check, 1 of 2";
    const SECOND: &[u8] = b"pgkeep check, 2 of 2";
    let store = cluster.repository().store();
    let name = format!("{}-{}", ctx.now().as_microsecond(), std::process::id());
    let bad = |reason| RepoError::BadName { name: name.clone(), what: "probe", reason };
    let probe = cluster.name().lease_prefix("check-probe")?.join(&name).map_err(bad)?;
    let tried = async {
        let first = store.put(&probe, Bytes::from_static(FIRST)).await?;
        let second = store.put(&probe, Bytes::from_static(SECOND)).await?;
        let there = store.get(&probe, 1 << 10).await?;
        Ok::<_, StoreError>((first, second) == (Created::New, Created::Exists) && there == FIRST)
    };
    let tried = tried.await;
    store.delete(&probe).await?;
    Ok(tried?)
}

async fn same_cluster(cluster: &repo::Cluster, server: &ServerFacts) -> Finding {
    let name = cluster.name();
    let init = format!("run `pgkeep init {name}` again, or correct the connection");
    let facts = match cluster.known_facts().await {
        Ok(facts) => facts,
        Err(error) => return Finding::failed("identity", error.to_string(), init),
    };
    match facts.current() {
        Some(entry) if entry.system_id != server.system_id => Finding::failed(
            "identity",
            format!("the server has system identifier {}, cluster {name} has {}", server.system_id, entry.system_id),
            init,
        ),
        Some(entry) if entry.pg_major != server.major.number() => Finding::failed(
            "identity",
            format!("the server has PostgreSQL {}, cluster {name} is known with {}", server.major, entry.pg_major),
            init,
        ),
        Some(entry) if entry.wal_segment_size != server.wal_segment_size.bytes() => Finding::failed(
            "identity",
            format!(
                "the server has WAL segments of {} bytes, cluster {name} is known with {}",
                server.wal_segment_size.bytes(),
                entry.wal_segment_size
            ),
            init,
        ),
        Some(_) => {
            Finding::ok("identity", format!("the server is cluster {name}, system identifier {}", server.system_id))
        }
        None => Finding::failed("identity", format!("cluster {name} has no system identifier yet"), init),
    }
}

async fn privileges(client: &mut Client, server: &ServerFacts) -> Result<Vec<Finding>, EngineError> {
    if server.is_superuser {
        return Ok(vec![Finding::ok("privileges", format!("{} is a superuser", server.user))]);
    }
    let functions: &[&str] = if server.version_num >= 150_000 {
        &["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        &["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    };
    let mut missing = Vec::new();
    for function in functions.iter().chain(&["pg_switch_wal()", "pg_create_restore_point(text)"]) {
        let sql = "SELECT has_function_privilege($1, 'EXECUTE') AS ok";
        if !client.query_one(sql, &[Some(*function)]).await?.bool("ok")? {
            missing.push(*function);
        }
    }
    Ok(vec![if missing.is_empty() {
        Finding::ok("privileges", format!("{} may do what backups need", server.user))
    } else {
        Finding::failed(
            "privileges",
            format!("{} may not execute {}", server.user, missing.join(", ")),
            format!("GRANT EXECUTE ON FUNCTION {} TO \"{}\"", missing.join(", "), server.user.replace('"', "\"\"")),
        )
    }])
}

async fn settings(client: &mut Client, server: &ServerFacts) -> Result<Vec<Finding>, EngineError> {
    const NAME: &str = "settings";
    let apply = "run `pgkeep init --apply`";
    let mut findings = Vec::new();
    if server.wal_level == "minimal" {
        findings.push(Finding::failed(NAME, "wal_level is minimal: its WAL cannot be archived", apply));
    }
    if server.archive_mode == "off" {
        findings.push(Finding::failed(NAME, "archive_mode is off: no WAL is archived", apply));
    } else if !server.archive_library.is_empty() && !server.archive_command.is_empty() {
        let message = format!("both archive_command and archive_library ({}) are set", server.archive_library);
        let finding = if server.major.facts().archive_settings_exclude_each_other {
            Finding::failed(NAME, format!("{message}, which is an error: nothing is archived"), "reset one of them")
        } else {
            Finding::warning(NAME, format!("{message}: the library is used, the command is not"), "reset one of them")
        };
        findings.push(finding);
    } else if server.archive_library.is_empty() && server.archive_command.is_empty() {
        findings.push(Finding::failed(NAME, "archive_command is empty: WAL piles up and is not archived", apply));
    } else if server.archive_library.is_empty() && !is_ours(&server.archive_command) {
        findings.push(Finding::warning(
            NAME,
            format!("archive_command does not run pgkeep: {:?}", server.archive_command),
            "if it is a wrapper, the proof below counts; else run `pgkeep init --apply --replace-archive-command`",
        ));
    } else if is_our_library(&server.archive_library) {
        findings.extend(resident_archiver(client, server).await?);
    } else if !server.archive_library.is_empty() {
        findings.push(Finding::warning(
            NAME,
            format!("archive_library is not pgkeep's: {:?}", server.archive_library),
            "if it leads here all the same, the proof below counts; else run `pgkeep init --apply \
             --replace-archive-command`",
        ));
    }
    if !server.full_page_writes {
        findings.push(Finding::failed(
            NAME,
            "full_page_writes is off: pages read while they are written cannot be repaired by WAL",
            "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()",
        ));
    }
    let waiting = client.query("SELECT name FROM pg_settings WHERE pending_restart ORDER BY name", &[]).await?;
    let waiting: Vec<String> = waiting.into_iter().map(|row| row.get("name")).collect::<Result<_, _>>()?;
    if !waiting.is_empty() {
        findings.push(Finding::warning(
            NAME,
            format!("the server must be restarted before these work: {}", waiting.join(", ")),
            "restart the server",
        ));
    }
    if server.summarize_wal == Some(false) {
        findings.push(Finding::warning(
            NAME,
            "summarize_wal is off: incremental backups find changes more slowly",
            apply,
        ));
    }
    if findings.is_empty() {
        let ours = is_our_library(&server.archive_library);
        let through = if ours { ", through archive_library and `pgkeep wal serve`" } else { "" };
        findings.push(Finding::ok(
            NAME,
            format!("wal_level {}, archive_mode {}{through}", server.wal_level, server.archive_mode),
        ));
    }
    Ok(findings)
}

/// What is wrong when the server archives through pgkeep's library: whether somebody listens where that asks.
pub(crate) async fn resident_archiver(
    client: &mut Client,
    server: &ServerFacts,
) -> Result<Option<Finding>, EngineError> {
    // The socket is on the server's host.
    if !is_our_library(&server.archive_library) || !server.data_directory.is_dir() {
        return Ok(None);
    }
    let row = client.query_one("SELECT coalesce(current_setting('pgkeep.socket', true), '') AS socket", &[]).await?;
    let socket: String = row.get("socket")?;
    if socket.is_empty() {
        return Ok(Some(Finding::failed(
            "settings",
            "archive_library is pgkeep's, and pgkeep.socket is not set: nothing is archived",
            "run `pgkeep init --apply --archive-library`",
        )));
    }
    let found = tokio::time::timeout(CONNECT_TIME_MAX, tokio::net::UnixStream::connect(&socket)).await;
    Ok(match found {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(Finding::failed(
            "settings",
            format!("archive_library is pgkeep's, and nobody listens at pgkeep.socket ({socket}): {error}"),
            "start `pgkeep wal serve` on the server's host, as a service",
        )),
        Err(_) => Some(Finding::failed(
            "settings",
            format!("archive_library is pgkeep's, and what listens at pgkeep.socket ({socket}) does not answer"),
            "look at `pgkeep wal serve`, and restart it",
        )),
    })
}

async fn clock(ctx: &Context, client: &mut Client) -> Result<Vec<Finding>, EngineError> {
    let before = ctx.now();
    let row =
        client.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8::text AS micros", &[]).await?;
    let after = ctx.now();
    let server: i64 = row.get("micros")?;
    let ours = (before.as_microsecond() + after.as_microsecond()) / 2;
    let skew = (server - ours) as f64 / 1e6;
    let allowed = SKEW_SECONDS_MAX + (after.as_microsecond() - before.as_microsecond()) as f64 / 1e6;
    Ok(vec![if skew.abs() <= allowed {
        Finding::ok("clock", format!("the server's clock is within {allowed:.0} s of this host's"))
    } else {
        Finding::warning(
            "clock",
            format!(
                "the server's clock is {:.0} s {} of this host's",
                skew.abs(),
                if skew > 0.0 { "ahead" } else { "behind" }
            ),
            "set both by NTP: recovery to a time goes by the server's clock",
        )
    }])
}

fn disk_space(cluster: Option<&repo::Cluster>, server: &ServerFacts) -> Vec<Finding> {
    let mut places = vec![("the server's pg_wal", server.data_directory.join("pg_wal"))];
    if let Some(cluster) = cluster {
        let url = cluster.repository().store().url();
        let path = url.strip_prefix("file://").unwrap_or(url);
        if path.starts_with('/') {
            places.push(("the repository", path.into()));
        }
    }
    places.into_iter().filter_map(|(what, path)| space_at(what, &path)).collect()
}

/// Nothing for a place that is not on this host.
fn space_at(what: &str, path: &Path) -> Option<Finding> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let (free, all) = (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
    let message = format!("{what} ({}) has {} MiB free of {} MiB", path.display(), free >> 20, all >> 20);
    Some(if free < FREE_BYTES_MIN.min(all / 20) {
        Finding::warning("disk space", message, "make room before archiving or the server stops")
    } else {
        Finding::ok("disk space", message)
    })
}

async fn archiver(client: &mut Client, server: &ServerFacts) -> Result<Vec<Finding>, EngineError> {
    if server.archive_mode == "off" {
        return Ok(Vec::new());
    }
    let archiver = crate::status::ArchiverStatus::read(client).await?;
    Ok(vec![if archiver.failing {
        Finding::failed(
            "archiver",
            archiver.describe(),
            "see the server's log for what archive_command or archive_library said",
        )
    } else {
        Finding::ok("archiver", archiver.describe())
    }])
}

/// Has the server write a restore point and switch to the next segment, waits for the segment, and reads it back.
async fn archiving(
    ctx: &Context,
    client: &mut Client,
    server: &ServerFacts,
    cluster: &repo::Cluster,
    options: &CheckOptions,
) -> Result<Finding, EngineError> {
    const NAME: &str = "archiving";
    if server.in_recovery {
        return Ok(Finding::warning(
            NAME,
            "the server is a standby: it cannot be made to switch WAL, so archiving was not proven",
            "run the check against the primary as well",
        ));
    }
    if server.archive_mode == "off" || server.wal_level == "minimal" {
        return Ok(Finding::failed(
            NAME,
            "archiving is off, so it was not tried",
            "run `pgkeep init --apply`, restart",
        ));
    }
    let point = format!("pgkeep check {}", ctx.now().strftime("%Y%m%dT%H%M%S%.6fZ"));
    let sql = "SELECT pg_create_restore_point($1)::text AS lsn";
    let end: Lsn = client.query_one(sql, &[Some(&point)]).await?.lsn("lsn")?;
    client.query_one("SELECT pg_switch_wal()::text AS lsn", &[]).await?;
    // The record ends there, so the byte before is its last.
    let segno = end.segment_no_of_end(server.wal_segment_size);
    let name = SegmentName::new(server.timeline, segno, server.wal_segment_size)
        .ok_or_else(|| EngineError::Failed { reason: format!("no segment holds {end}"), hint: None })?;
    let path = cluster.name().wal_file(server.system_id, server.timeline, &name.to_string())?;
    let repository = cluster.repository();
    let started = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match repository.store().head(&path).await {
            Ok(_) => break,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(RepoError::from(error).into()),
        }
        if started.elapsed() >= options.archive_time_max {
            let archiver = crate::status::ArchiverStatus::read(client).await?;
            return Ok(Finding::failed(
                NAME,
                format!(
                    "segment {name} did not arrive in the repository within {} s; {}",
                    options.archive_time_max.as_secs(),
                    archiver.describe()
                ),
                "see the server's log for what archive_command said, and run it by hand as the server's user; with \
                 archive_library, see that `pgkeep wal serve` runs, and its log",
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    let took = started.elapsed();
    let proof = async {
        read_segment(repository.store().clone(), repository.keys(), &path).await?;
        WalObject::open(repository.store().clone(), repository.keys(), path.clone()).await?.facts().await
    };
    Ok(match proof.await {
        Ok(facts) if facts.restore_points.iter().any(|found| found.name == point) => {
            Finding::ok(NAME, format!("segment {name} was archived in {:.1} s and read back", took.as_secs_f64()))
        }
        // A record that crosses into the next segment is noted where it begins, or nowhere: the content is proven.
        Ok(_) if end.segment_start(server.wal_segment_size).0 + 4096 > end.0 => {
            Finding::ok(NAME, format!("segment {name} was archived in {:.1} s and read back", took.as_secs_f64()))
        }
        Ok(_) => Finding::failed(
            NAME,
            format!("segment {name} in the repository does not hold the restore point that was just made"),
            "another server archives to this place: see that each cluster has a name of its own",
        ),
        Err(error) => Finding::failed(
            NAME,
            format!("segment {name} was archived and cannot be read back: {error}"),
            "see that the repository can be read from here with this key",
        ),
    })
}
