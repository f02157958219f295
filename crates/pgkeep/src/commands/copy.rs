//! `copy`: dumps into another repository.

use super::{dump, end, field, list, stopped_as};
use crate::cli::CopyArgs;
use crate::error::{CommandError, CommandResult};
use crate::output::size;
use crate::session::{Opened, Session};
use ::dump::replicate::{CopyReport, copy};
use repo::BackupId;

pub(crate) async fn run(session: &Session, args: &CopyArgs) -> CommandResult {
    let opened = session.open(None).await?;
    let (name, repository) = opened.config.repository(Some(&args.to), None)?;
    if name == opened.repository_name || repository.url == opened.repository.url {
        return Err(CommandError::usage(format!("--to {name} is the repository that it is copied from"))
            .hint("name another one; --repo says where it is copied from"));
    }
    session.refuse_foreign_owner(repository)?;
    let to = session.open_repository(repository).await?.cluster(opened.cluster.name());
    let ids = ids(&opened, args).await?;
    if ids.is_empty() {
        session.output.result("There are no dumps to copy.");
    }
    let mut copied = Vec::new();
    for id in ids {
        let report = copy(&session.context(), &opened.cluster, &to, id, opened.workers(args.workers))
            .await
            .map_err(|error| stopped_as(error.into(), "stopped on request; say the same again, and it goes on"))?;
        session.output.result(text(&report, name));
        copied.push(report);
    }
    let mut fields = field("to", name)?;
    fields.extend(field("dumps", &copied)?);
    end(session, "copy", fields)
}

/// What is meant, each once.
async fn ids(opened: &Opened, args: &CopyArgs) -> Result<Vec<BackupId>, CommandError> {
    let cluster = &opened.cluster;
    if args.all {
        return Ok(cluster.dumps().await?);
    }
    let mut ids = Vec::new();
    for name in &args.ids {
        let id = match dump::find(cluster, name).await {
            Ok(id) => id,
            Err(error) => match list::find(cluster, name).await {
                Ok(backup) if name != "latest" => {
                    return Err(CommandError::failed(format!("{backup} is a backup; only dumps are copied"))
                        .hint(format!("`pgkeep backup --repo {}` makes a backup there", args.to)));
                }
                _ => return Err(error),
            },
        };
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn text(report: &CopyReport, to: &str) -> String {
    if report.was_there {
        return format!("Dump {} is in {to} already.", report.dump);
    }
    let kept = match report.kept_objects {
        0 => String::new(),
        kept => format!(" ({kept} were there already)"),
    };
    format!(
        "Dump {} is in {to}: {}{kept}, {} written, in {:.1} s.",
        report.dump,
        size::count(report.objects, "object", "objects"),
        size::bytes(report.written_bytes),
        report.elapsed_ms as f64 / 1000.0
    )
}
