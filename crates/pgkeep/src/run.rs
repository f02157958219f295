//! From the process's arguments to its exit code.

use crate::cli::{Cli, Command, WalCommand};
use crate::environment::Environment;
use crate::error::{CommandError, CommandResult, ErrorKind};
use crate::output::Output;
use crate::session::Session;
use crate::{commands, stop};
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// `wal fetch` failed: more than 125 keeps PostgreSQL from taking it for the end of the archive, and not more than 126
/// keeps it from taking it for a signal (`wait_result_is_any_signal` in `src/common/wait_error.c`).
const FETCH_FAILED: u8 = 126;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As the command says.
    Code(u8),
    /// With an error of this exit code.
    Error(u8),
}

pub(crate) fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let is_fetch = is_wal_fetch(&args);
    // A panic is a bug; it must not look like the end of the archive either.
    let end = std::panic::catch_unwind(|| start(&args)).unwrap_or(End::Error(1));
    ExitCode::from(match end {
        End::Error(_) if is_fetch => FETCH_FAILED,
        End::Error(code) | End::Code(code) => code,
    })
}

/// Whether these are the arguments of `wal fetch`, also when they cannot be parsed: a misspelt `fetch` in
/// `restore_command` must not look like the end of the archive.
fn is_wal_fetch(args: &[OsString]) -> bool {
    let rest = args.iter().skip(1).skip_while(|arg| *arg != "wal").skip(1);
    let words: Vec<_> = rest.filter(|arg| !arg.as_encoded_bytes().starts_with(b"-")).collect();
    !words.is_empty()
        && !words
            .iter()
            .any(|arg| ["push", "push-ahead", "serve", "receive", "status", "index"].iter().any(|word| **arg == *word))
}

fn start(args: &[OsString]) -> End {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { End::Error(2) } else { End::Code(0) };
        }
    };
    let environment = Environment::read();
    log_to_stderr(&cli, &environment);
    let output = Output::new(cli.global.json, cli.global.quiet);
    let name = name_of(&cli.command);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&output, name, &CommandError::failed(format!("cannot start: {error}"))),
    };
    let result = runtime.block_on(async {
        let code = if name == "wal fetch" { FETCH_FAILED } else { 1 };
        let cancel =
            stop::on_signals(code, &output).map_err(|error| CommandError::failed(format!("cannot start: {error}")))?;
        let session = Session { global: cli.global, environment, output: output.clone(), cancel };
        commands::run(&session, cli.command).await
    });
    // Reads and writes that were given up may still be under way; nobody waits for them.
    runtime.shutdown_background();
    finish(&output, name, result)
}

fn finish(output: &Output, name: &str, result: CommandResult) -> End {
    match result {
        Ok(outcome) => {
            output.print_object(outcome.exit_code());
            End::Code(outcome.exit_code())
        }
        Err(error) => fail(output, name, &error),
    }
}

fn fail(output: &Output, name: &str, error: &CommandError) -> End {
    let code = if name == "wal fetch" { FETCH_FAILED } else { error.kind.exit_code() };
    debug_assert!(error.kind != ErrorKind::Usage || code != 1);
    output.error(name, error, code);
    End::Error(code)
}

fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Init(_) => "init",
        Command::Check(_) => "check",
        Command::Status(_) => "status",
        Command::Backup(_) => "backup",
        Command::List(_) => "list",
        Command::Show(_) => "show",
        Command::Pin(_) => "pin",
        Command::Unpin(_) => "unpin",
        Command::Delete(_) => "delete",
        Command::Expire(_) => "expire",
        Command::Verify(_) => "verify",
        Command::Copy(_) => "copy",
        Command::Find(_) => "find",
        Command::Restore(_) => "restore",
        Command::RestorePoint(_) => "restore-point create",
        Command::Export(_) => "export",
        Command::ImportBasebackup(_) => "import-basebackup",
        Command::Dump(_) => "dump",
        Command::Load(_) => "load",
        Command::Wal(WalCommand::Push { .. }) => "wal push",
        Command::Wal(WalCommand::PushAhead { .. }) => "wal push-ahead",
        Command::Wal(WalCommand::Fetch { .. }) => "wal fetch",
        Command::Wal(WalCommand::FetchAhead { .. }) => "wal fetch-ahead",
        Command::Wal(WalCommand::Serve(_)) => "wal serve",
        Command::Wal(WalCommand::Receive(_)) => "wal receive",
        Command::Wal(WalCommand::Log(_)) => "wal log",
        Command::Wal(WalCommand::Status) => "wal status",
        Command::Wal(WalCommand::Index { .. }) => "wal index",
        Command::Key(_) => "key new",
        Command::Completions { .. } => "completions",
        Command::Man { .. } => "man",
        Command::Version => "version",
    }
}

fn log_to_stderr(cli: &Cli, environment: &Environment) {
    let own = |level: &str| {
        ["dump", "engine", "pg_format", "pg_wal", "pg_wire", "pgkeep", "repo", "store"]
            .iter()
            .fold("error".to_owned(), |filter, name| format!("{filter},{name}={level}"))
    };
    let filter = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) => own("warn"),
        (false, 1) => own("info"),
        (false, 2) => own("debug"),
        (false, _) => "trace".to_owned(),
    };
    let filter = environment.log.clone().unwrap_or(filter);
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_target(cli.global.verbose > 1)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_fetch_is_known_by_its_words() {
        let check = |line: &str, expect: bool| {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(is_wal_fetch(&args), expect, "{line}");
        };
        check("pgkeep wal fetch", true);
        check("pgkeep --config x --cluster main wal --json fetch 0 1 --nonsense", true);
        check("pgkeep wal fetc 0 1", true);
        check("pgkeep wal push fetch-me", false);
        check("pgkeep wal serve", false);
        check("pgkeep wal receive", false);
        check("pgkeep wal index --rebuild", false);
        check("fetch wal", false);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
