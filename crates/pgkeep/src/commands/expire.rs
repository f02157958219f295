//! `delete` and `expire`: what goes is shown first, then it goes.

use super::{dumps, end, field, stopped_as};
use crate::cli::{DeleteArgs, ExpireArgs, HowArgs};
use crate::error::{CommandError, CommandResult, ErrorKind};
use crate::output::size;
use crate::output::table::{Align, Table};
use crate::session::{Opened, Session};
use crate::when;
use engine::expire::{Deletion, DeletionPlan, LastBackup, Request, WalExpiry, Which, apply, plan};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use repo::BackupId;
use repo::retention::{BackupState, KeepReason, RetentionPolicy};
use serde_json::{Map, Value};
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

/// How long data stays after nothing uses it, where nobody says otherwise.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Backups that stay are listed up to so many.
const KEPT_SHOWN: usize = 50;

pub(crate) async fn delete(session: &Session, args: &DeleteArgs) -> CommandResult {
    let opened = session.open(None).await?;
    session.refuse_foreign_user(&opened)?;
    let ids = args.ids.iter().map(|id| id.parse()).collect::<Result<Vec<BackupId>, _>>()?;
    let (dumps, unfinished) = (opened.cluster.dumps().await?, opened.cluster.unfinished_dumps().await?);
    let (of_dumps, ids): (Vec<_>, Vec<_>) =
        ids.into_iter().partition(|id| dumps.contains(id) || unfinished.contains(id));
    if !of_dumps.is_empty() {
        if !ids.is_empty() {
            return Err(
                CommandError::usage("some of these are dumps and some are not").hint("delete them one kind at a time")
            );
        }
        dumps::refuse(session, &opened, &of_dumps).await?;
        if !args.yes && !args.how.dry_run {
            of_dumps.iter().for_each(|id| session.output.note(format!("Dump {id} goes.")));
            confirm(session, "Delete these dumps?").await?;
        }
        let mut fields = head(&opened, args.how.dry_run)?;
        fields.extend(dumps::delete(session, &opened, &of_dumps, args.how.dry_run).await?);
        return end(session, "delete", fields);
    }
    let last = if args.even_the_last { LastBackup::MayGo } else { LastBackup::Keep };
    let which = Which::Backups { ids, last };
    let request = Request { which, grace: grace(&args.how, &opened)?, wal: WalExpiry::Keep };
    let question = (!args.yes).then_some("Delete these backups?");
    let mut fields = head(&opened, args.how.dry_run)?;
    fields.extend(run(session, &opened, &request, &args.how, question).await?);
    end(session, "delete", fields)
}

pub(crate) async fn expire(session: &Session, args: &ExpireArgs) -> CommandResult {
    let opened = session.open(args.which.cluster.as_deref()).await?;
    session.refuse_foreign_user(&opened)?;
    let said = &opened.settings.expire;
    let policy = |number: Option<u32>| number.map(|keep_last| RetentionPolicy { keep_last });
    let of_dumps = policy(args.keep_dumps.or(said.keep_dumps)).filter(|_| !args.keep_all);
    let which = match args.keep_last.or(said.keep_last) {
        _ if args.keep_all => Some(Which::Nothing),
        Some(keep_last) => Some(Which::ByPolicy(RetentionPolicy { keep_last })),
        None if of_dumps.is_some() => None,
        None => {
            return Err(CommandError::usage(format!("nothing says which backups of '{}' are kept", opened.name))
                .hint(format!(
                    "say --keep-last N, or write keep-last = N into [cluster.{}.expire] or [expire] of {} (keep-dumps for \
                     dumps)",
                    opened.name,
                    opened.config.file.display()
                ))
                .hint("--keep-all keeps everything and removes what nothing uses any more"));
        }
    };
    let mut fields = head(&opened, args.how.dry_run)?;
    match which {
        Some(which) => {
            let request = Request { which, grace: grace(&args.how, &opened)?, wal: WalExpiry::Delete };
            fields.extend(run(session, &opened, &request, &args.how, None).await?);
        }
        None => session.output.note("note: no rule for backups: only dumps are looked at"),
    }
    fields.extend(dumps::expire(session, &opened, of_dumps.as_ref(), args.how.dry_run).await?);
    end(session, "expire", fields)
}

/// What the JSON of both begins with.
fn head(opened: &Opened, dry_run: bool) -> Result<Map<String, Value>, CommandError> {
    let mut fields = field("cluster", &opened.name)?;
    fields.extend(field("repository", &opened.repository.url)?);
    fields.extend(field("dry_run", dry_run)?);
    Ok(fields)
}

fn grace(how: &HowArgs, opened: &Opened) -> Result<Duration, CommandError> {
    match &how.grace {
        Some(text) => when::duration(text).ok_or_else(|| {
            CommandError::usage(format!("--grace {text}: not a time such as 90s, 10min, 36h, 8d or 0"))
                .hint("write a whole number and its unit")
        }),
        None => Ok(opened.settings.expire.grace.unwrap_or(GRACE)),
    }
}

async fn run(
    session: &Session,
    opened: &Opened,
    request: &Request,
    how: &HowArgs,
    question: Option<&str>,
) -> Result<Map<String, Value>, CommandError> {
    let context = session.context();
    let cluster = &opened.cluster;
    let planned = plan(&context, cluster, request).await?;
    let zone = when::local_zone();
    show_plan(session, &planned, &zone);
    let mut fields = field("plan", &planned)?;
    if how.dry_run {
        planned.warnings.iter().for_each(|warning| session.output.warn(warning));
        return Ok(fields);
    }
    if let Some(question) = question {
        confirm(session, question).await?;
    }
    let deletion = apply(&context, cluster, request, &planned).await.map_err(|error| {
        stopped_as(error.into(), "stopped on request; what remains is whole, and `pgkeep expire` goes on from here")
    })?;
    drop(context);
    show_deletion(session, &deletion, &zone);
    fields.extend(field("deletion", &deletion)?);
    Ok(fields)
}

/// Asks on the terminal. Where there is none, it must have been said before.
async fn confirm(session: &Session, question: &str) -> Result<(), CommandError> {
    if !std::io::stdin().is_terminal() {
        return Err(CommandError::usage("there is no terminal to ask on, and --yes was not said")
            .hint("look at what --dry-run shows, then say --yes"));
    }
    session.output.always(format!("{question} [y/N]"));
    let (answer, asked) = tokio::sync::oneshot::channel();
    // On a thread of its own: a read from the terminal cannot be called back, and nobody waits for this one.
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().lock().read_line(&mut line);
        let _ = answer.send(line);
    });
    let line = session.context().or_cancel(asked).await?.unwrap_or_default();
    match line.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CommandError::new(ErrorKind::Stopped, "nothing was deleted")),
    }
}

fn state(state: BackupState) -> &'static str {
    match state {
        BackupState::Whole => "ok",
        BackupState::DamagedPages => "damaged-pages",
        BackupState::Unreadable => "unreadable",
    }
}

fn show_plan(session: &Session, plan: &DeletionPlan, zone: &TimeZone) {
    let output = &session.output;
    if plan.backups.is_empty() {
        output.result("No backup goes.");
    } else {
        let mut table = Table::new(&[
            ("GOES", Align::Left),
            ("STARTED", Align::Left),
            ("SIZE", Align::Right),
            ("ADDED", Align::Right),
            ("STATE", Align::Left),
            ("LABEL", Align::Left),
        ]);
        for backup in &plan.backups {
            let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), size::bytes);
            table.row([
                backup.backup.to_string(),
                when::short(backup.started.unwrap_or(backup.backup.time()), zone),
                bytes(backup.bytes),
                bytes(backup.bytes_added),
                state(backup.state).to_owned(),
                backup.label.clone().unwrap_or_default(),
            ]);
        }
        output.result(table.render());
    }
    if plan.kept.len() <= KEPT_SHOWN && !plan.kept.is_empty() {
        let mut table = Table::new(&[("STAYS", Align::Left), ("STATE", Align::Left), ("BECAUSE", Align::Left)]);
        for kept in &plan.kept {
            let because: Vec<String> = kept.because.iter().map(|reason| because(reason, zone)).collect();
            table.row([kept.backup.to_string(), state(kept.state).to_owned(), because.join("; ")]);
        }
        output.result(table.render());
    } else {
        output.result(format!("{} stay.", size::count(plan.kept.len() as u64, "backup", "backups")));
    }
    output.result(room(
        ("Goes at once", plan.freed_packs, plan.freed_bytes),
        (plan.later_packs, plan.later_bytes, plan.later_from),
        (plan.held_packs, plan.held_bytes),
        zone,
    ));
    for wal in &plan.wal {
        output.result(format!(
            "WAL that goes: {}, {}, before {} on timeline {} of system identifier {}.",
            size::count(wal.files, "file", "files"),
            size::bytes(wal.bytes),
            wal.before,
            wal.timeline,
            wal.system_id
        ));
    }
    for unfinished in &plan.unfinished {
        let who = unfinished.host.as_ref().zip(unfinished.pid);
        let who = who.map(|(host, pid)| format!(" (process {pid} on {host})")).unwrap_or_default();
        output.note(format!(
            "Backup {} is running, or was broken off{who}: what it stored ({}) and what it builds on stay. The next \
             backup goes on from it or removes it.",
            unfinished.backup,
            size::bytes(unfinished.own_bytes)
        ));
    }
    plan.notes.iter().for_each(|note| output.note(format!("note: {note}")));
}

pub(super) fn because(reason: &KeepReason, zone: &TimeZone) -> String {
    match reason {
        KeepReason::Last { rank: 1 } => "the newest".to_owned(),
        KeepReason::Last { rank } => format!("one of the last ({rank})"),
        KeepReason::NewerThanKept => "newer than one that is kept".to_owned(),
        KeepReason::Pinned { until, reason } => {
            let until =
                until.map_or_else(|| "for ever".to_owned(), |until| format!("until {}", when::short(until, zone)));
            if reason.is_empty() { format!("pinned {until}") } else { format!("pinned {until} ({reason})") }
        }
        KeepReason::Unreadable => "it cannot be read: a human decides".to_owned(),
    }
}

/// What becomes of the room.
fn room(
    (what, packs, bytes): (&str, u64, u64),
    (later_packs, later_bytes, later_from): (u64, u64, Option<Timestamp>),
    (held_packs, held_bytes): (u64, u64),
    zone: &TimeZone,
) -> String {
    let in_packs = |packs, bytes| format!("{} in {}", size::bytes(bytes), size::count(packs, "pack", "packs"));
    let mut text = format!("{what}: {}.", in_packs(packs, bytes));
    if later_packs > 0 {
        let from = later_from.map(|from| format!(" on {}", when::seconds(from, zone))).unwrap_or_default();
        text += &format!(
            "\nStays for the grace: {}; a `pgkeep expire` or `delete` after it removes it, all of it from{from} on.",
            in_packs(later_packs, later_bytes)
        );
    }
    if held_packs > 0 {
        text += &format!("\nStays for unfinished backups: {}.", in_packs(held_packs, held_bytes));
    }
    text
}

fn show_deletion(session: &Session, deletion: &Deletion, zone: &TimeZone) {
    let output = &session.output;
    for wal in &deletion.wal {
        output.result(format!(
            "Deleted WAL: {}, {}, before {} on timeline {}.",
            size::count(wal.files, "file", "files"),
            size::bytes(wal.bytes),
            wal.before,
            wal.timeline
        ));
    }
    output.result(format!("Deleted: {}.", size::count(deletion.deleted.len() as u64, "backup", "backups")));
    output.result(room(
        ("Freed", deletion.freed_packs, deletion.freed_bytes),
        (deletion.later_packs, deletion.later_bytes, deletion.later_from),
        (deletion.held_packs, deletion.held_bytes),
        zone,
    ));
    for object in deletion.not_deleted.iter().take(KEPT_SHOWN) {
        output.warn(format!("{}: was not deleted: {}", object.object, object.reason));
    }
    let more = deletion.not_deleted.len().saturating_sub(KEPT_SHOWN) as u64;
    if more > 0 {
        output.warn(format!("and {} more", size::count(more, "object", "objects")));
    }
    if !deletion.not_deleted.is_empty() {
        output.note("hint: objects that the store locks go when a later `pgkeep expire` finds them unlocked");
    }
    deletion.warnings.iter().for_each(|warning| output.warn(warning));
}
