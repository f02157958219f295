//! `list`: the backups and dumps of a cluster.

use super::{dumps, end, field};
use crate::cli::ListArgs;
use crate::error::{CommandError, CommandResult};
use crate::output::{size, table};
use crate::session::Session;
use crate::when;
use engine::find::{EventKind, Filter, FindRequest, find as find_events};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use repo::manifest::ManifestFacts;
use repo::{BackupId, Cluster, Pin, RepoError};
use serde::Serialize;
use serde_json::{Value, json};
use table::{Align, Table};

/// Restore points that are listed.
const POINTS_MAX: usize = 1000;
/// How many manifests are read at the same time.
const AT_ONCE: usize = 16;

/// A backup in the list.
#[derive(Debug, Serialize)]
struct Listed {
    id: BackupId,
    /// `ok`, `damaged-pages`, `differing-pages`, `unreadable`.
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
    /// The backup whose unchanged pages it shares.
    builds_on: Option<BackupId>,
    changes_found_by: Option<String>,
    /// Why not by a better way.
    changes_reasons: Vec<String>,
    files: Option<u64>,
    bytes: Option<u64>,
    pages_read: Option<u64>,
    pages_stored: Option<u64>,
    bytes_added: Option<u64>,
    bytes_shared: Option<u64>,
    /// What keeps it from being deleted.
    pin: Option<Pin>,
}

pub(crate) async fn run(session: &Session, args: &ListArgs) -> CommandResult {
    let opened = session.open(args.which.cluster.as_deref()).await?;
    let known = opened.cluster.known_facts().await?;
    let mut backups = all(&opened.cluster).await?;
    let now = Timestamp::now();
    for backup in &mut backups {
        backup.pin = known.pin_of(backup.id, now).cloned();
    }
    let unfinished = opened.cluster.unfinished().await?;
    let zone = when::local_zone();
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STARTED", Align::Left),
        ("TOOK", Align::Right),
        ("SIZE", Align::Right),
        ("PAGES READ", Align::Right),
        ("STORED", Align::Right),
        ("ADDED", Align::Right),
        ("SHARED", Align::Right),
        ("POSTGRESQL", Align::Left),
        ("CHANGES BY", Align::Left),
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
            text(backup.pages_read.map(|pages| pages.to_string())),
            text(backup.pages_stored.map(|pages| pages.to_string())),
            text(backup.bytes_added.map(size::bytes)),
            text(backup.bytes_shared.map(size::bytes)),
            text(backup.pg_version.as_deref().map(|version| version.split(' ').next().unwrap_or_default().to_owned())),
            text(backup.changes_found_by.clone()),
            if backup.pin.is_some() { format!("{}, pinned", backup.state) } else { backup.state.to_owned() },
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
    let dumps = dumps::list(session, &opened).await?;
    let mut fields = field("cluster", &opened.name)?;
    fields.extend(dumps);
    fields.extend(field("repository", &opened.repository.url)?);
    fields.extend(field("backups", &backups)?);
    fields.extend(field("unfinished", &unfinished)?);
    if args.restore_points {
        let points = restore_points(session, &opened.cluster).await?;
        fields.extend(field("restore_points", points)?);
    }
    end(session, "list", fields)
}

/// The restore points in the archived WAL along production's timeline.
async fn restore_points(session: &Session, cluster: &Cluster) -> Result<Vec<Value>, CommandError> {
    let filter = Filter { kinds: vec![EventKind::RestorePoint], ..Filter::default() };
    let request = FindRequest::of(filter, POINTS_MAX);
    let report = find_events(&session.context(), cluster, &request).await?;
    report.warnings.iter().for_each(|warning| session.output.warn(warning));
    let mut table =
        Table::new(&[("RESTORE POINT", Align::Left), ("MADE", Align::Left), ("LSN", Align::Left), ("", Align::Left)]);
    for hit in &report.hits {
        table.row([
            hit.name.clone().unwrap_or_default(),
            hit.time.map_or_else(String::new, |time| when::short(time, &when::local_zone())),
            hit.lsn.to_string(),
            hit.notes.join("; "),
        ]);
    }
    if report.hits.is_empty() {
        session.output.note("There are no restore points in the archived WAL.");
    } else {
        session.output.result(format!("\n{}", table.render()));
    }
    let point = |hit: &engine::find::Hit| {
        json!({ "name": hit.name, "time": hit.time, "lsn": hit.lsn, "timeline": hit.timeline,
            "reachable": hit.reachable, "notes": hit.notes })
    };
    Ok(report.hits.iter().map(point).collect())
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
    let differing = facts.look_again.as_ref().map_or(0, |again| again.differing.len() as u64);
    let (state, problem) = match (damaged, differing) {
        (0, 0) => ("ok", None),
        (0, _) => (
            "differing-pages",
            Some(format!(
                "{} differed from what was stored of them, though nothing says that they changed",
                size::count(differing, "page", "pages")
            )),
        ),
        _ => (
            "damaged-pages",
            Some(format!("{} in the cluster failed the check when it was made", size::count(damaged, "page", "pages"))),
        ),
    };
    Listed {
        id,
        state,
        problem: problem.map(|problem| format!("{problem}; see `pgkeep show {id}`")),
        label: facts.label.clone(),
        started: Some(facts.started),
        finished: Some(facts.finished),
        consistent_at: Some(facts.stop_time),
        start_lsn: Some(facts.start_lsn.to_string()),
        stop_lsn: Some(facts.stop_lsn.to_string()),
        timeline: Some(facts.timeline.0),
        pg_version: Some(facts.pg_version.clone()),
        source: Some(facts.source.clone()),
        builds_on: facts.prior,
        changes_found_by: Some(facts.change_detection.used.clone()),
        changes_reasons: facts.change_detection.reasons.clone(),
        files: Some(facts.numbers.files),
        bytes: Some(facts.numbers.bytes),
        pages_read: Some(facts.numbers.pages_read),
        pages_stored: Some(facts.numbers.pages_stored),
        bytes_added: Some(facts.numbers.bytes_added),
        bytes_shared: Some(facts.numbers.bytes_shared),
        pin: None,
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
        builds_on: None,
        changes_found_by: None,
        changes_reasons: Vec::new(),
        files: None,
        bytes: None,
        pages_read: None,
        pages_stored: None,
        bytes_added: None,
        bytes_shared: None,
        pin: None,
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
