//! `restore-point create`: on one cluster or several.

use super::end;
use crate::cli::RestorePointCommand;
use crate::config::Config;
use crate::error::{CommandError, CommandResult};
use crate::session::Session;
use crate::when;
use engine::restore_point::{CreatedRestorePoint, Switch, check_name, create};
use engine::server;
use serde_json::{Map, json};

pub(crate) async fn run(session: &Session, command: &RestorePointCommand) -> CommandResult {
    let RestorePointCommand::Create { name, clusters, all, no_switch } = command;
    check_name(name).map_err(|error| CommandError::usage(error.to_string()).hint("give it 1 to 63 bytes"))?;
    let config = session.config()?;
    let names = clusters_meant(session, &config, clusters, *all)?;
    let switch = if *no_switch { Switch::Later } else { Switch::Now };
    // All are connected to before the first one is made: either all have it, or what failed is said.
    let context = session.context();
    let mut clients = Vec::new();
    for cluster in names {
        let (_, settings) = config.cluster(Some(&cluster))?;
        let conninfo = session.conninfo(&settings.pg)?;
        let client = context.or_cancel(server::connect(&conninfo)).await?.map_err(|error| said_of(&cluster, error))?;
        clients.push((cluster, client));
    }
    let mut made = Vec::new();
    let mut failed: Vec<CommandError> = Vec::new();
    for (cluster, client) in &mut clients {
        match context.or_cancel(create(client, name, switch)).await? {
            Ok(point) => {
                session.output.result(text(cluster, &point));
                made.push(json!({ "cluster": cluster, "restore_point": point }));
            }
            Err(error) => failed.push(said_of(cluster, error)),
        }
    }
    if let Some(mut error) = failed.pop() {
        if !made.is_empty() {
            let done: Vec<&str> = made.iter().filter_map(|made| made["cluster"].as_str()).collect();
            error.message = format!("{} (it was made on {})", error.message, done.join(", "));
        }
        return Err(error);
    }
    end(session, "restore-point create", Map::from_iter([("made".to_owned(), json!(made))]))
}

fn said_of(cluster: &str, error: engine::EngineError) -> CommandError {
    let error = CommandError::from(error);
    CommandError { message: format!("cluster {cluster}: {}", error.message), ..error }
}

fn clusters_meant(
    session: &Session,
    config: &Config,
    named: &[String],
    all: bool,
) -> Result<Vec<String>, CommandError> {
    if all {
        return Ok(config.clusters.keys().cloned().collect());
    }
    if named.is_empty() {
        return Ok(vec![config.cluster(session.named(None)?)?.0.to_owned()]);
    }
    named.iter().map(|name| Ok(config.cluster(Some(name))?.0.to_owned())).collect()
}

fn text(cluster: &str, point: &CreatedRestorePoint) -> String {
    let then = if point.switched {
        format!("it is a target as soon as {} is archived", point.segment)
    } else {
        format!("it is a target once {} is full and archived", point.segment)
    };
    let time = when::local(point.time, &when::local_zone());
    format!("Restore point '{}' of cluster {cluster} lies at {} ({time}); {then}.", point.name, point.lsn)
}
