//! `status`: is each cluster protected?

use super::field;
use super::wal::archives::Archives;
use super::wal::receiver::{self, Receiver};
use crate::cli::ClusterArgs;
use crate::config::Config;
use crate::error::{CommandError, CommandResult, ErrorKind, Outcome};
use crate::output::{size, table};
use crate::session::Session;
use crate::when;
use engine::server;
use engine::setup::Level;
use engine::status::{ClusterStatus, StatusOptions, status};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub(crate) async fn run(session: &Session, args: &ClusterArgs) -> CommandResult {
    let config = session.config()?;
    let names: Vec<String> = match session.named(args.cluster.as_deref())? {
        Some(name) => vec![config.cluster(Some(name))?.0.to_owned()],
        None if config.clusters.is_empty() => vec![config.cluster(None)?.0.to_owned()],
        None => config.clusters.keys().cloned().collect(),
    };
    let mut clusters: Vec<Value> = Vec::new();
    let mut outcome = Outcome::Done;
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            session.output.result("");
        }
        match one(session, &config, name).await {
            Ok(found) => {
                let archives = Archives::of_cluster(session, &config, Some(name))?;
                let receiver = receiver::look(session, &config, &archives);
                session.output.result(text(&found, receiver.as_ref(), &when::local_zone()));
                let is_well = found.verdict == Level::Ok && !receiver.as_ref().is_some_and(Receiver::needs_attention);
                if !is_well && outcome == Outcome::Done {
                    outcome = Outcome::Attention;
                }
                let mut object = serde_json::to_value(&found).unwrap_or_default();
                object["receiver"] = receiver.map_or(Value::Null, |receiver| receiver.json());
                clusters.push(object);
            }
            Err(error) if error.kind == ErrorKind::Stopped || names.len() == 1 => return Err(error),
            // A cluster that cannot be looked at does not hide the others.
            Err(error) => {
                session.output.result(format!("cluster {name}: UNKNOWN"));
                session.output.warn(format!("cluster {name}: {}", error.message));
                outcome = Outcome::Code(1);
                clusters.push(json!({ "name": name, "verdict": "unknown",
                    "error": { "kind": error.kind, "message": error.message, "hints": error.hints } }));
            }
        }
    }
    session.output.object("status", field("clusters", clusters)?);
    Ok(outcome)
}

async fn one(session: &Session, config: &Config, name: &str) -> Result<ClusterStatus, CommandError> {
    let opened = session.open_in(config.clone(), Some(name)).await?;
    let conninfo = session.conninfo(&opened.settings.pg)?;
    let context = session.context();
    let mut connected = context.or_cancel(server::connect(&conninfo)).await?;
    let server = match &mut connected {
        Ok(client) => Ok(client),
        Err(_) => Err(()),
    };
    let limits = &opened.settings.limits;
    let options = StatusOptions {
        backup_age_max: SignedDuration::try_from(limits.backup_age_max).ok(),
        wal_lag_bytes_max: limits.wal_lag_bytes_max,
    };
    Ok(match server {
        Ok(client) => status(&context, &opened.cluster, Some(Ok(client)), &options).await?,
        Err(()) => {
            let error = connected.err().unwrap_or(engine::EngineError::Cancelled);
            status(&context, &opened.cluster, Some(Err(error)), &options).await?
        }
    })
}

/// How far streamed WAL goes: what tells of a receiver on another host. A server that writes nothing sends nothing.
fn streamed(status: &ClusterStatus, now: Timestamp) -> String {
    let tails = status.tails.iter().map(|tail| {
        let written = tail.written.map(|written| format!(", the last of it {}", when::ago(written, now)));
        format!("timeline {}: up to {}{}", tail.timeline, tail.end_lsn, written.unwrap_or_default())
    });
    tails.collect::<Vec<_>>().join("; ")
}

fn text(status: &ClusterStatus, receiver: Option<&Receiver>, zone: &TimeZone) -> String {
    let verdict = match status.verdict {
        Level::Ok => "protected",
        Level::Warning => "NEEDS ATTENTION",
        Level::Failed => "NOT PROTECTED",
    };
    let now = Timestamp::now();
    let last = status.last_backup.as_ref().map(|backup| {
        format!(
            "{}, finished {} ({})",
            backup.id,
            when::seconds(backup.finished, zone),
            when::ago(backup.finished, now)
        )
    });
    let ranges = status.recoverable.iter().map(|range| {
        let to = range.to_time.map_or_else(|| range.to_lsn.to_string(), |time| when::seconds(time, zone));
        format!("{} to {to}, timeline {}", when::seconds(range.from_time, zone), range.timeline)
    });
    let wal: Vec<String> = status
        .wal
        .iter()
        .map(|wal| {
            let last = wal.last.map(|last| format!(", last {last}")).unwrap_or_default();
            format!(
                "timeline {}: {}, {}{last}",
                wal.timeline,
                size::count(wal.segments, "segment", "segments"),
                size::bytes(wal.stored_bytes)
            )
        })
        .collect();
    let server = status.server.as_ref();
    let mut lines = vec![format!("cluster {}: {verdict}", status.name)];
    lines.push(table::facts(&[
        ("  last backup", Some(last.unwrap_or_else(|| "none".into()))),
        ("  backups", Some(status.backups.to_string())),
        ("  recoverable", Some(ranges.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())),
        ("  archived WAL", Some(wal.join("; ")).filter(|text| !text.is_empty())),
        ("  streamed WAL", Some(streamed(status, now)).filter(|text| !text.is_empty())),
        ("  receiver", receiver.map(Receiver::text)),
        ("  not archived yet", server.and_then(|server| server.wal_lag_bytes).map(size::bytes)),
        (
            "  server",
            server.map(|server| {
                format!("PostgreSQL {}, timeline {}, {}", server.version, server.timeline, server.archiver.describe())
            }),
        ),
        (
            "  running backups",
            Some(status.unfinished.iter().map(|backup| backup.id.to_string()).collect::<Vec<_>>().join(", "))
                .filter(|text| !text.is_empty()),
        ),
    ]));
    if receiver.is_some_and(Receiver::needs_attention) {
        lines.push("  warning: the receiver needs attention: `pgkeep wal status`".to_owned());
    }
    for problem in &status.problems {
        let word = if problem.level == Level::Failed { "PROBLEM" } else { "warning" };
        lines.push(format!("  {word}: {}", problem.message));
        lines.extend(problem.hint.as_ref().map(|hint| format!("    hint: {hint}")));
    }
    lines.join("\n")
}
