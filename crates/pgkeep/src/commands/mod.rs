//! The commands: each takes its arguments, calls the engine, and shows what came of it.

mod backup;
mod check;
mod copy;
mod direct;
mod dump;
mod dumps;
mod expire;
mod export;
mod find;
mod help;
mod import_basebackup;
mod init;
mod library;
mod list;
mod load;
mod pin;
mod restore;
mod restore_point;
mod show;
mod source;
mod status;
mod verify;
mod wal;
mod warm;

use crate::cli::Command;
use crate::error::{CommandError, CommandResult, ErrorKind, Outcome};
use crate::hooks::Hooks;
use crate::session::Session;
use serde::Serialize;
use serde_json::{Map, Value};

/// Runs a command, between its hooks.
pub(crate) async fn run(session: &Session, command: Command) -> CommandResult {
    match Hooks::of(session, &command) {
        Some(hooks) => hooks.around(session, alone(session, command)).await,
        None => alone(session, command).await,
    }
}

async fn alone(session: &Session, command: Command) -> CommandResult {
    match command {
        Command::Find(args) => stoppable(session, find::run(session, &args)).await,
        Command::Restore(args) => restore::run(session, &args).await,
        Command::RestorePoint(command) => restore_point::run(session, &command).await,
        Command::Copy(args) => copy::run(session, &args).await,
        Command::Export(args) => export::run(session, &args).await,
        Command::ImportBasebackup(args) => import_basebackup::run(session, &args).await,
        Command::Dump(args) => dump::run(session, &args).await,
        Command::Load(args) => load::run(session, &args).await,
        Command::List(args) => stoppable(session, list::run(session, &args)).await,
        Command::Show(args) => stoppable(session, show::run(session, &args)).await,
        Command::Pin(args) => pin::pin(session, &args).await,
        Command::Unpin(args) => pin::unpin(session, &args).await,
        Command::Delete(args) => expire::delete(session, &args).await,
        Command::Expire(args) => expire::expire(session, &args).await,
        Command::Verify(args) => verify::run(session, &args).await,
        Command::Backup(args) => backup::run(session, &args).await,
        Command::Key(args) => help::key(session, &args),
        Command::Completions { shell } => help::completions(session, shell),
        Command::Man { to } => help::man(session, to.as_deref()),
        Command::Version => help::version(session),
        Command::Wal(command) => wal::run(session, &command).await,
        Command::Init(args) => init::run(session, &args).await,
        Command::Check(args) => check::run(session, &args).await,
        Command::Status(args) => status::run(session, &args).await,
    }
}

/// For commands that only read: they can be left at any point.
async fn stoppable(session: &Session, command: impl Future<Output = CommandResult>) -> CommandResult {
    session.context().or_cancel(command).await?
}

/// What this version cannot do is refused, never ignored.
fn not_yet(what: &str) -> CommandError {
    CommandError::usage(format!("{what} is not in this version of pgkeep")).hint("leave it out, or use a later version")
}

/// Gives the JSON object and says how the command ended: with warnings, a human must look.
fn end(session: &Session, command: &str, fields: Map<String, Value>) -> CommandResult {
    let outcome = if session.output.warnings().is_empty() { Outcome::Done } else { Outcome::Attention };
    session.output.object(command, fields);
    Ok(outcome)
}

/// A report as the fields of a JSON object. Warnings are the output's own.
fn fields(report: &impl Serialize) -> Result<Map<String, Value>, CommandError> {
    match serde_json::to_value(report) {
        Ok(Value::Object(mut map)) => {
            map.remove("warnings");
            Ok(map)
        }
        Ok(other) => Ok(Map::from_iter([("result".to_owned(), other)])),
        Err(error) => Err(CommandError::failed(format!("the result cannot be written as JSON: {error}"))),
    }
}

/// One named value as the fields of a JSON object.
fn field(name: &str, value: impl Serialize) -> Result<Map<String, Value>, CommandError> {
    let value = serde_json::to_value(value)
        .map_err(|error| CommandError::failed(format!("the result cannot be written as JSON: {error}")))?;
    Ok(Map::from_iter([(name.to_owned(), value)]))
}

/// Says of a stopped command what it left behind.
fn stopped_as(error: CommandError, message: &str) -> CommandError {
    if error.kind == ErrorKind::Stopped { CommandError { message: message.to_owned(), ..error } } else { error }
}
