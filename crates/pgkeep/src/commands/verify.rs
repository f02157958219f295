//! `verify`.

use super::{dump, dumps, end, field, fields, list};
use crate::cli::VerifyArgs;
use crate::error::{CommandError, CommandResult, Outcome};
use crate::output::size;
use crate::output::table::{Align, Table};
use crate::session::Session;
use engine::verify::{Backups, FindingKind, Severity, VerifyOptions, VerifyReport, verify};

pub(crate) async fn run(session: &Session, args: &VerifyArgs) -> CommandResult {
    let opened = session.open(None).await?;
    opened.cluster.known_facts().await?;
    if let Some(id) = &args.id
        && let Some(id) = dump::named(&opened.cluster, id).await?
    {
        return dumps::verify(session, &opened, id, args).await;
    }
    if args.into.is_some() || args.scratch_dir.is_some() || args.tools.pg_bin.is_some() {
        return Err(CommandError::usage(
            "--into, --scratch-dir and --pg-bin are for a dump that is named, with --deep",
        )
        .hint("`pgkeep list` shows the dumps"));
    }
    let backups = if args.all {
        Backups::All
    } else {
        Backups::Only(vec![list::find(&opened.cluster, args.id.as_deref().unwrap_or("latest")).await?])
    };
    let options = VerifyOptions { backups, deep: args.deep, wal: true, workers: opened.workers(None) };
    let report = verify(&session.context(), &opened.cluster, &options).await?;
    show(session, &report);
    let mut is_damaged = report.verdict == Some(Severity::Damage);
    let mut object = fields(&report)?;
    if args.all {
        let dumps = dumps::verify_all(session, &opened, args.deep).await?;
        is_damaged |= dumps.iter().any(|dump| !dump.problems.is_empty());
        object.extend(field("dumps", &dumps)?);
    }
    if is_damaged {
        session.output.object("verify", object);
        return Ok(Outcome::Code(1));
    }
    end(session, "verify", object)
}

fn show(session: &Session, report: &VerifyReport) {
    let output = &session.output;
    let mut table = Table::new(&[
        ("BACKUP", Align::Left),
        ("RESTORABLE", Align::Left),
        ("FILES", Align::Right),
        ("PACKS", Align::Right),
        ("WAL UNTIL", Align::Left),
    ]);
    for backup in &report.backups {
        table.row([
            backup.backup.to_string(),
            if backup.restorable { "yes" } else { "NO" }.to_owned(),
            backup.files.to_string(),
            backup.packs.to_string(),
            backup.wal_until.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    output.result(table.render());
    for finding in &report.findings {
        let effect = finding.effect.as_deref().map(|effect| format!("; {effect}")).unwrap_or_default();
        let text = format!("{}: {}{effect}", finding.object, finding.what.trim_end_matches('.'));
        match finding.severity {
            Severity::Damage => output.result(format!("DAMAGE {text}")),
            Severity::Warning => output.warn(text),
            Severity::Note => output.note(format!("note: {text}")),
        }
    }
    let read = format!(
        "{} and {} looked at, {} read",
        size::count(report.objects, "object", "objects"),
        size::count(report.segments, "WAL segment", "WAL segments"),
        size::bytes(report.bytes)
    );
    let gap = report.findings.iter().any(|finding| finding.kind == FindingKind::WalGap);
    output.result(match report.verdict {
        Some(Severity::Damage) => format!("Something that is needed is damaged or missing ({read})."),
        Some(Severity::Warning) if gap => {
            format!("What was verified is whole, but WAL is missing after it or beside it: see the warnings ({read}).")
        }
        Some(Severity::Warning) => format!("Everything needed is there, with warnings ({read})."),
        Some(Severity::Note) | None => format!("Everything needed is there ({read})."),
    });
}
