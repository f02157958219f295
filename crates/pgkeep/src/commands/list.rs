//! `list`: the backups of a cluster.

use super::{end, field};
use crate::cli::ClusterArgs;
use crate::error::{CommandError, CommandResult};
use crate::output::{size, table};
use crate::session::Session;
use crate::when;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use repo::manifest::ManifestFacts;
use repo::{BackupId, Cluster, RepoError};
use serde::Serialize;
use table::{Align, Table};

/// How many manifests are read at the same time.
const AT_ONCE: usize = 16;

/// A backup in the list.
#[derive(Debug, Serialize)]
struct Listed {
    id: BackupId,
    /// `ok`, `damaged-pages`, `unreadable`.
    state: &'static str,
    /// Why it is not ok.
    problem: Option<String>,
    label: Option<String>,
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
    /// The earliest moment that it can be recovered to.
    consistent_at: Option<Timestamp>,
    start_lsn: Option<String>,
    stop_lsn: Option<String>,
    timeline: Option<u32>,
    pg_version: Option<String>,
    source: Option<String>,
    changes_found_by: Option<String>,
    files: Option<u64>,
    bytes: Option<u64>,
    bytes_added: Option<u64>,
}

pub(crate) async fn run(session: &Session, args: &ClusterArgs) -> CommandResult {
    let opened = session.open(args.cluster.as_deref()).await?;
    opened.cluster.known_facts().await?;
    let backups = all(&opened.cluster).await?;
    let unfinished = opened.cluster.unfinished().await?;
    let zone = when::local_zone();
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STARTED", Align::Left),
        ("TOOK", Align::Right),
        ("SIZE", Align::Right),
        ("ADDED", Align::Right),
        ("POSTGRESQL", Align::Left),
        ("PAGES FOUND BY", Align::Left),
        ("STATE", Align::Left),
        ("LABEL", Align::Left),
    ]);
    for backup in &backups {
        let took = backup.started.zip(backup.finished).map(|(from, to)| to.as_second() - from.as_second());
        let text = |value: Option<String>| value.unwrap_or_else(|| "?".into());
        table.row([
            backup.id.to_string(),
            when::short(backup.started.unwrap_or(backup.id.time()), &zone),
            text(took.map(|seconds| when::length(seconds.max(0).unsigned_abs()))),
            text(backup.bytes.map(size::bytes)),
            text(backup.bytes_added.map(size::bytes)),
            text(backup.pg_version.as_deref().map(|version| version.split(' ').next().unwrap_or_default().to_owned())),
            text(backup.changes_found_by.clone()),
            backup.state.to_owned(),
            backup.label.clone().unwrap_or_default(),
        ]);
    }
    if backups.is_empty() {
        session.output.note(format!("There are no backups of '{}' yet; `pgkeep backup` makes one.", opened.name));
    } else {
        session.output.result(table.render());
    }
    for backup in backups.iter().filter(|backup| backup.state != "ok") {
        let problem = backup.problem.clone().unwrap_or_default();
        session.output.warn(format!("backup {}: {problem}", backup.id));
    }
    for id in &unfinished {
        session.output.note(format!("Backup {id} is running, or was broken off; it is not a backup yet."));
    }
    let mut fields = field("cluster", &opened.name)?;
    fields.extend(field("repository", &opened.repository.url)?);
    fields.extend(field("backups", &backups)?);
    fields.extend(field("unfinished", &unfinished)?);
    end(session, "list", fields)
}

/// All backups, oldest first. One that cannot be read does not hide the others.
async fn all(cluster: &Cluster) -> Result<Vec<Listed>, CommandError> {
    let ids = cluster.backups().await?;
    let read = ids.into_iter().map(|id| async move {
        match cluster.manifest_facts(id).await {
            Ok(facts) => Ok(Some(listed(id, &facts))),
            // Deleted since it was listed.
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) if error.is_damage() => Ok(Some(unreadable(id, &error))),
            Err(error) => Err(CommandError::from(error)),
        }
    });
    let found: Vec<Option<Listed>> = futures::stream::iter(read).buffered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

fn listed(id: BackupId, facts: &ManifestFacts) -> Listed {
    let damaged = facts.damaged.len() as u64;
    Listed {
        id,
        state: if damaged == 0 { "ok" } else { "damaged-pages" },
        problem: (damaged > 0).then(|| {
            format!(
                "{} in the cluster failed the check when it was made; see `pgkeep show {id}`",
                size::count(damaged, "page", "pages")
            )
        }),
        label: facts.label.clone(),
        started: Some(facts.started),
        finished: Some(facts.finished),
        consistent_at: Some(facts.stop_time),
        start_lsn: Some(facts.start_lsn.to_string()),
        stop_lsn: Some(facts.stop_lsn.to_string()),
        timeline: Some(facts.timeline.0),
        pg_version: Some(facts.pg_version.clone()),
        source: Some(facts.source.clone()),
        changes_found_by: Some(facts.change_detection.used.clone()),
        files: Some(facts.numbers.files),
        bytes: Some(facts.numbers.bytes),
        bytes_added: Some(facts.numbers.bytes_added),
    }
}

fn unreadable(id: BackupId, error: &RepoError) -> Listed {
    Listed {
        id,
        state: "unreadable",
        problem: Some(error.to_string()),
        label: None,
        started: None,
        finished: None,
        consistent_at: None,
        start_lsn: None,
        stop_lsn: None,
        timeline: None,
        pg_version: None,
        source: None,
        changes_found_by: None,
        files: None,
        bytes: None,
        bytes_added: None,
    }
}

/// The backup that an argument names: an ID, or `latest`.
pub(crate) async fn find(cluster: &Cluster, name: &str) -> Result<BackupId, CommandError> {
    let ids = cluster.backups().await?;
    if name == "latest" {
        return ids.last().copied().ok_or_else(|| {
            CommandError::not_found(format!("cluster '{}' has no backups yet", cluster.name()))
                .hint("`pgkeep backup` makes one")
        });
    }
    let id: BackupId = name.parse()?;
    if ids.contains(&id) {
        return Ok(id);
    }
    let error = CommandError::not_found(format!("there is no backup {id} of cluster '{}'", cluster.name()));
    Err(match ids.last() {
        Some(last) => error.hint(format!("`pgkeep list` shows the backups; the latest is {last}")),
        None => error.hint("there are no backups yet; `pgkeep backup` makes one"),
    })
}
