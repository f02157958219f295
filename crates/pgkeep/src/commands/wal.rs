//! `wal push`, `wal fetch`, `wal serve`, `wal receive`, `wal log`, `wal status`, `wal index`.

pub(super) mod archives;
mod fetch;
mod log;
mod push;
mod receive;
pub(super) mod receiver;
mod serve;
mod status;

use super::{end, field, fields};
use crate::cli::WalCommand;
use crate::error::CommandResult;
use crate::output::size;
use crate::session::Session;
use engine::wal::WalArchive;
use engine::wal::index::{RebuildReport, rebuild, roll_up};
use serde_json::json;

pub(crate) async fn run(session: &Session, command: &WalCommand) -> CommandResult {
    match command {
        WalCommand::Push { path } => push::run(session, path).await,
        WalCommand::PushAhead { wal_dir } => push::run_ahead(session, wal_dir).await,
        WalCommand::Fetch { name, path } => fetch::run(session, name, path).await,
        WalCommand::FetchAhead { wal_dir } => fetch::run_ahead(session, wal_dir).await,
        WalCommand::Serve(args) => serve::run(session, args).await,
        WalCommand::Receive(args) => receive::run(session, args).await,
        WalCommand::Log(args) => super::stoppable(session, log::run(session, args)).await,
        WalCommand::Status => super::stoppable(session, status::run(session)).await,
        WalCommand::Index { rebuild } => super::stoppable(session, index(session, *rebuild)).await,
    }
}

/// Makes indexes that are missing, when asked for, and rolls up what is complete.
async fn index(session: &Session, make_missing: bool) -> CommandResult {
    let opened = session.open(None).await?;
    let facts = opened.cluster.known_facts().await?;
    let ctx = session.context();
    let mut systems = Vec::new();
    let mut lines = Vec::new();
    for system in &facts.systems {
        let archive = WalArchive::load(&opened.cluster, system.system_id).await?;
        let made = if make_missing { Some(rebuild(&ctx, &archive).await?) } else { None };
        let rolled = roll_up(&ctx, &archive).await?;
        for (segment, reason) in made.iter().flat_map(|made: &RebuildReport| &made.failed) {
            session.output.warn(format!("{segment}: no index can be made: {reason}"));
        }
        for (segment, reason) in &rolled.left_out {
            session.output.warn(format!("not rolled up, from {segment} on: {reason}"));
        }
        if let Some(made) = &made {
            lines.push(format!(
                "{}: {} made, {} had one",
                system.system_id,
                size::count(made.made, "index", "indexes"),
                size::count(made.indexed, "segment", "segments"),
            ));
        }
        lines.push(format!(
            "{}: {} written, {} there already",
            system.system_id,
            size::count(rolled.written, "rolled-up index", "rolled-up indexes"),
            rolled.there,
        ));
        let reasons = |list: &[(String, String)]| -> Vec<_> {
            list.iter().map(|(segment, reason)| json!({ "segment": segment, "reason": reason })).collect()
        };
        let rebuilt = made.map(|made| {
            json!({ "made": made.made, "had_one": made.indexed, "bytes_written": made.bytes_written,
                "failed": reasons(&made.failed) })
        });
        systems.push(json!({ "system_id": system.system_id.to_string(), "rebuilt": rebuilt, "rolled_up": {
            "written": rolled.written, "there": rolled.there, "bytes_written": rolled.bytes_written,
            "left_out": reasons(&rolled.left_out) } }));
    }
    session.output.result(lines.join("\n"));
    let mut object = field("cluster", &opened.name)?;
    object.extend(fields(&json!({ "systems": systems }))?);
    end(session, "wal index", object)
}
