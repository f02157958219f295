//! `check`: what was found, one line each.

use super::{field, fields};
use crate::cli::CheckArgs;
use crate::error::{CommandResult, ErrorKind, Outcome};
use crate::session::Session;
use engine::EngineError;
use engine::setup::{CheckOptions, Finding, Level, check};
use std::time::Duration;

pub(crate) async fn run(session: &Session, args: &CheckArgs) -> CommandResult {
    let config = session.config()?;
    let named = session.named(args.which.cluster.as_deref())?;
    let (name, settings) = config.cluster(named)?;
    let conninfo = session.conninfo(&settings.pg)?;
    let name = name.to_owned();
    let repository = match session.open_in(config.clone(), named).await {
        Ok(opened) => Ok(opened.cluster),
        Err(error) if error.kind == ErrorKind::Stopped => return Err(error),
        // What is wrong with the repository is one finding among others.
        Err(error) => Err(EngineError::Failed { reason: error.message, hint: error.hints.into_iter().next() }),
    };
    let options = CheckOptions { archive_time_max: Duration::from_secs(args.timeout) };
    let findings = check(&session.context(), &conninfo, repository, &options).await?;
    for finding in &findings {
        session.output.result(line(finding));
    }
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let (outcome, words) = match worst {
        Level::Ok => (Outcome::Done, "Backup and archiving work."),
        Level::Warning => (Outcome::Attention, "Backup and archiving work; read the warnings above."),
        Level::Failed => (Outcome::Code(1), "The cluster is not protected: see what failed above."),
    };
    session.output.result(words);
    let mut object = field("cluster", name)?;
    object.extend(field("verdict", worst)?);
    object.extend(field("findings", findings.iter().map(fields).collect::<Result<Vec<_>, _>>()?)?);
    session.output.object("check", object);
    Ok(outcome)
}

fn line(finding: &Finding) -> String {
    let word = match finding.level {
        Level::Ok => "ok     ",
        Level::Warning => "WARNING",
        Level::Failed => "FAILED ",
    };
    let hint = finding.hint.as_deref().map(|hint| format!("\n         hint: {hint}")).unwrap_or_default();
    format!("{word}  {}: {}{hint}", finding.name, finding.message)
}
