//! Commands that need no cluster: keys, completions, manual pages, version.

use super::{end, field};
use crate::cli::{Cli, KeyArgs};
use crate::error::{CommandError, CommandResult, Outcome};
use crate::keys;
use crate::session::Session;
use clap::CommandFactory;
use std::path::Path;

pub(crate) fn key(session: &Session, args: &KeyArgs) -> CommandResult {
    let KeyArgs::New { file } = args;
    let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
    keys::create_file(&file)?;
    session.output.always(format!("A new key is in {}.\n\n{KEEP_A_COPY}\n", file.display()));
    end(session, "key new", field("file", &file)?)
}

/// Said whenever a key is made.
pub(crate) const KEEP_A_COPY: &str = "\
KEEP A COPY OF THIS KEY somewhere else than on this host and in the repository: whoever restores after a disaster\n\
needs it, and without it nobody can read the backups, not even you.";

pub(crate) fn completions(session: &Session, shell: clap_complete::Shell) -> CommandResult {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgkeep", &mut text);
    session.output.raw(&text);
    Ok(Outcome::Done)
}

pub(crate) fn man(session: &Session, to: Option<&Path>) -> CommandResult {
    let Some(dir) = to else {
        let mut text = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut text)
            .map_err(|error| CommandError::failed(format!("cannot make the manual page: {error}")))?;
        session.output.raw(&text);
        return Ok(Outcome::Done);
    };
    let failed = |error: std::io::Error| {
        CommandError::failed(format!("{}: cannot write the manual pages: {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    session.output.note(format!("The manual pages are in {}.", dir.display()));
    end(session, "man", field("directory", dir)?)
}

pub(crate) fn version(session: &Session) -> CommandResult {
    let version = env!("CARGO_PKG_VERSION");
    session.output.result(format!("pgkeep {version} (repository format 1, PostgreSQL 14 to 18)"));
    let mut fields = field("version", version)?;
    fields.extend(field("repository_format", 1)?);
    fields.extend(field("postgresql", [14, 15, 16, 17, 18])?);
    end(session, "version", fields)
}
