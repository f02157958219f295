//! Hooks: the operator's commands that are run before and after operations, with what happened in their environment.
//!
//! A failing before-hook stops the operation. After-hooks run whatever became of it, also when a before-hook failed; one
//! that fails is a warning, and makes exit code 4 of 0. What is run inside a hook has no hooks.

use crate::cli::Command;
use crate::config::Config;
use crate::error::{CommandError, CommandResult, ErrorKind, Outcome};
use crate::session::Session;
use engine::shell::ShellCommand;
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a hook may take, where the configuration does not say.
const TIME_MAX: Duration = Duration::from_secs(600);

/// An operation that has hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operation<'a> {
    name: &'static str,
    cluster: Option<&'a str>,
}

/// The operation that a command is. What only shows what it would do is none.
fn operation(command: &Command) -> Option<Operation<'_>> {
    let (name, cluster) = match command {
        Command::Backup(args) => ("backup", args.which.cluster.as_deref()),
        Command::Check(args) => ("check", args.which.cluster.as_deref()),
        Command::Delete(args) if !args.how.dry_run => ("delete", None),
        Command::Expire(args) if !args.how.dry_run => ("expire", args.which.cluster.as_deref()),
        Command::Dump(args) => ("dump", args.which.cluster.as_deref()),
        Command::Export(_) => ("export", None),
        Command::Load(_) => ("load", None),
        Command::ImportBasebackup(_) => ("import-basebackup", None),
        Command::Restore(args) if !args.dry_run => ("restore", args.which.cluster.as_deref()),
        Command::Verify(_) => ("verify", None),
        _ => return None,
    };
    Some(Operation { name, cluster })
}

/// The hooks around one operation.
pub(crate) struct Hooks {
    operation: &'static str,
    commands: Vec<(String, String)>,
    time_max: Duration,
    environment: Vec<(String, String)>,
}

impl Hooks {
    /// Those that are configured for a command; none when there are none. What is wrong with the configuration is for the
    /// command itself to say.
    pub(crate) fn of(session: &Session, command: &Command) -> Option<Self> {
        let operation = operation(command).filter(|_| !session.environment.is_in_hook)?;
        let config = session.config().ok()?;
        let named = session.named(operation.cluster).ok()?;
        Self::configured(session, &config, operation, named)
    }

    fn configured(session: &Session, config: &Config, operation: Operation<'_>, named: Option<&str>) -> Option<Self> {
        let cluster = config.cluster(named).ok();
        let hooks = cluster.map_or(&config.hooks, |(_, settings)| &settings.hooks);
        // The general one begins first and ends last.
        let own = |when: &str| format!("{when}-{}", operation.name);
        let keys =
            ["before".into(), own("before"), own("after"), "after".into(), own("on-failure"), "on-failure".to_owned()];
        let commands: Vec<_> =
            keys.into_iter().filter_map(|key| Some((key.clone(), hooks.commands.get(&key)?.clone()))).collect();
        if commands.is_empty() {
            return None;
        }
        let settings = cluster.map(|(_, settings)| settings);
        let repository = config.repository(session.global.repo.as_deref(), settings).ok();
        let mut environment = vec![
            ("PGKEEP_OPERATION".to_owned(), operation.name.to_owned()),
            // What a hook calls uses the same configuration.
            ("PGKEEP_CONFIG".to_owned(), config.file.display().to_string()),
        ];
        environment.extend(cluster.map(|(name, _)| ("PGKEEP_CLUSTER".to_owned(), name.to_owned())));
        environment.extend(repository.map(|(name, _)| ("PGKEEP_REPOSITORY".to_owned(), name.to_owned())));
        let time_max = hooks.timeout.unwrap_or(TIME_MAX);
        Some(Self { operation: operation.name, commands, time_max, environment })
    }

    /// Runs the command between its hooks.
    pub(crate) async fn around(
        &self,
        session: &Session,
        command: impl Future<Output = CommandResult>,
    ) -> CommandResult {
        let result = match self.before(session).await {
            Ok(()) => command.await,
            Err(error) => Err(error),
        };
        let fields = session.output.object_fields().unwrap_or_default();
        let mut environment = self.environment.clone();
        environment.extend(outcome(&result, &fields, &session.output.warnings()));
        let mut all_well = true;
        let failed = !matches!(result, Ok(Outcome::Done | Outcome::Attention));
        for when in if failed { &["on-failure", "after"][..] } else { &["after"][..] } {
            for (key, text) in self.commands.iter().filter(|(key, _)| is_of(key, when)) {
                // It is run to its end, also after Ctrl-C: it may have something to clean up.
                if let Err(error) = self.shell(key, text, &environment).run(None).await {
                    all_well = false;
                    session.output.warn(error.to_string());
                }
            }
        }
        match result {
            Ok(Outcome::Done) if !all_well => Ok(Outcome::Attention),
            result => result,
        }
    }

    async fn before(&self, session: &Session) -> Result<(), CommandError> {
        for (key, text) in self.commands.iter().filter(|(key, _)| is_of(key, "before")) {
            let result = self.shell(key, text, &self.environment).run(Some(&session.context())).await;
            result.map_err(|error| {
                let error = CommandError::from(error);
                let message = format!("{}; {} was not begun", error.message, self.operation);
                CommandError { message, ..error }
            })?;
        }
        Ok(())
    }

    fn shell(&self, key: &str, command: &str, environment: &[(String, String)]) -> ShellCommand {
        let hook = [("PGKEEP_HOOK".to_owned(), key.to_owned())];
        ShellCommand {
            what: format!("{key} hook's"),
            command: command.to_owned(),
            environment: environment.iter().cloned().chain(hook).collect(),
            time_max: self.time_max,
        }
    }
}

/// Whether a key names a hook of this moment.
fn is_of(key: &str, when: &str) -> bool {
    key.strip_prefix(when).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// What became of the operation, for the environment.
fn outcome(result: &CommandResult, fields: &Map<String, Value>, warnings: &[String]) -> Vec<(String, String)> {
    let (word, code) = match result {
        Ok(outcome @ Outcome::Done) => ("done", outcome.exit_code()),
        Ok(outcome @ Outcome::Attention) => ("attention", outcome.exit_code()),
        Ok(outcome @ Outcome::Code(_)) => ("failed", outcome.exit_code()),
        Err(error) if error.kind == ErrorKind::Stopped => ("stopped", error.kind.exit_code()),
        Err(error) => ("failed", error.kind.exit_code()),
    };
    let backup = fields.get("backup").or_else(|| fields.get("plan")?.get("backup")).and_then(Value::as_str);
    let error = result.as_ref().err().map(|error| error.message.clone());
    let values = [
        ("PGKEEP_RESULT", Some(word.to_owned())),
        ("PGKEEP_EXIT_CODE", Some(code.to_string())),
        ("PGKEEP_BACKUP_ID", backup.map(str::to_owned)),
        ("PGKEEP_ERROR", error),
        ("PGKEEP_WARNINGS", (!warnings.is_empty()).then(|| warnings.join("\n"))),
    ];
    // The environment holds no NUL.
    values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.replace('\0', "")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_environment() {
        let check = |result: CommandResult, fields: Value, expect: &[(&str, &str)]| {
            let Value::Object(fields) = fields else { panic!("an object") };
            let found = outcome(&result, &fields, &["one".into(), "two".into()]);
            for (name, value) in expect {
                assert!(found.contains(&((*name).to_owned(), (*value).to_owned())), "{name}={value} in {found:?}");
            }
        };
        let backup = serde_json::json!({ "backup": "20261120T200910Z" });
        let made = [("PGKEEP_RESULT", "done"), ("PGKEEP_EXIT_CODE", "0"), ("PGKEEP_BACKUP_ID", "20261120T200910Z")];
        check(Ok(Outcome::Done), backup.clone(), &made);
        check(Ok(Outcome::Attention), backup, &[("PGKEEP_RESULT", "attention"), ("PGKEEP_WARNINGS", "one\ntwo")]);
        let planned = serde_json::json!({ "plan": { "backup": "20261120T200910Z" } });
        check(Ok(Outcome::Done), planned, &[("PGKEEP_BACKUP_ID", "20261120T200910Z")]);
        let none = serde_json::json!({});
        check(Ok(Outcome::Code(1)), none.clone(), &[("PGKEEP_RESULT", "failed"), ("PGKEEP_EXIT_CODE", "1")]);
        check(Err(CommandError::usage("no")), none.clone(), &[("PGKEEP_EXIT_CODE", "2"), ("PGKEEP_ERROR", "no")]);
        let stopped = CommandError::new(ErrorKind::Stopped, "stopped");
        check(Err(stopped), none, &[("PGKEEP_RESULT", "stopped"), ("PGKEEP_EXIT_CODE", "1")]);
    }

    #[test]
    fn keys_belong_to_moments() {
        assert!(is_of("before", "before") && is_of("before-backup", "before") && is_of("on-failure", "on-failure"));
        assert!(!is_of("before-backup", "after") && !is_of("beforehand", "before"));
    }
}
