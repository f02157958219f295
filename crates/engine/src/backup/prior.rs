//! What a backup builds on: the newest backup whose stored pages are still those of this cluster's own history, and
//! what backups that were broken off had stored.

use super::DAMAGED_LISTED;
use crate::server::ServerFacts;
use crate::{Context, EngineError};
use pg_format::history::TimelineHistory;
use pg_format::{Lsn, Timeline, WalFileName};
use repo::manifest::{Manifest, ManifestFacts};
use repo::wal::read_wal_file;
use repo::{BackupId, Cluster, Intent, IntentStart, RepoError};
use std::path::Path;

/// Backups that are looked at before it is given up to find one that fits.
const LOOKED_AT_MAX: usize = 50;

/// The point at which the new backup begins.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) timeline: Timeline,
    pub(super) lsn: Lsn,
    /// How the server's timeline came about.
    pub(super) history: TimelineHistory,
}

impl Start {
    /// Reads the history of the server's timeline, from the server's files or from the archive.
    pub(super) async fn read(
        cluster: &Cluster,
        server: &ServerFacts,
        timeline: Timeline,
        lsn: Lsn,
    ) -> Result<Self, EngineError> {
        let history = if timeline == Timeline::FIRST {
            TimelineHistory::without_past(timeline)
        } else {
            let name = WalFileName::History(timeline).to_string();
            let path = server.data_directory.join("pg_wal").join(&name);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(_) => history_in_archive(cluster, server, timeline, &path).await?,
            };
            TimelineHistory::parse(timeline, &text)
                .map_err(|error| EngineError::BadFile { path, reason: error.to_string() })?
        };
        Ok(Self { timeline, lsn, history })
    }
}

async fn history_in_archive(
    cluster: &Cluster,
    server: &ServerFacts,
    timeline: Timeline,
    path: &Path,
) -> Result<String, EngineError> {
    let repository = cluster.repository();
    let object = cluster.name().history(server.system_id, timeline);
    match read_wal_file(&**repository.store(), repository.keys(), &object).await {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.is_not_found() => Err(EngineError::failed(
            format!("{}: the history file of timeline {timeline} is neither there nor in the archive", path.display()),
            "without it nothing tells which earlier backups are of this cluster's history; `backup --full` needs none",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Why a backup cannot be built on; `Ok` when it can.
pub(super) fn fits(facts: &ManifestFacts, server: &ServerFacts, start: &Start) -> Result<(), String> {
    let differs = |what: &str| Err(format!("its {what} is another one"));
    if facts.system_id != server.system_id {
        return differs("system identifier");
    }
    if facts.pg_version_num / 10_000 != server.major.number() || facts.catalog_version != server.catalog_version {
        return differs("version of PostgreSQL");
    }
    if facts.block_size != server.block_size || facts.relseg_blocks != server.relseg_blocks {
        return differs("block or segment size");
    }
    if facts.checksums != server.checksums {
        // pg_checksums writes every page without a trace in WAL.
        return Err("data checksums were switched since".into());
    }
    if facts.damaged.len() >= DAMAGED_LISTED {
        return Err("it has too many damaged pages".into());
    }
    if facts.timeline == start.timeline {
        if facts.stop_lsn > start.lsn {
            return Err(format!(
                "it ends at {}, after {}, where this one starts (a standby begins at its last restart point)",
                facts.stop_lsn, start.lsn
            ));
        }
        return Ok(());
    }
    match start.history.switches.iter().find(|switch| switch.timeline == facts.timeline) {
        None => Err(format!(
            "timeline {} is not part of the history of timeline {}, which the server is on",
            facts.timeline, start.timeline
        )),
        Some(switch) if facts.stop_lsn > switch.lsn => Err(format!(
            "it ends at {}, after {}, where timeline {} was left",
            facts.stop_lsn, switch.lsn, facts.timeline
        )),
        Some(_) if facts.stop_lsn > start.lsn => {
            Err(format!("it ends at {}, after {}, where this one starts", facts.stop_lsn, start.lsn))
        }
        Some(_) => Ok(()),
    }
}

/// The backup to build on, or why there is none.
#[derive(Default)]
pub(super) struct Choice {
    pub(super) prior: Option<Manifest>,
    /// Why newer ones, or all, were passed over.
    pub(super) reasons: Vec<String>,
}

/// Chooses the newest backup that fits.
pub(super) async fn choose(
    ctx: &Context,
    cluster: &Cluster,
    server: &ServerFacts,
    start: &Start,
) -> Result<Choice, EngineError> {
    let mut choice = Choice::default();
    let backups = cluster.backups().await?;
    for &id in backups.iter().rev().take(LOOKED_AT_MAX) {
        ctx.check()?;
        match cluster.open_manifest(id).await {
            Ok(manifest) => match fits(manifest.facts(), server, start) {
                Ok(()) => {
                    choice.prior = Some(manifest);
                    return Ok(choice);
                }
                Err(reason) => choice.reasons.push(format!("backup {id} is not built on: {reason}")),
            },
            // Deleted meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(error) if error.is_damage() || matches!(error, RepoError::TooNew { .. }) => {
                choice.reasons.push(format!("backup {id} is not built on: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if backups.is_empty() {
        choice.reasons.push("there is no earlier backup".into());
    }
    Ok(choice)
}

/// Whether what a broken-off backup stored can be gone on from: it must have read the very files that are read now,
/// since nothing says how far the server was when it ended.
pub(super) fn can_resume(intent: &Intent, now: &IntentStart, host: &str) -> bool {
    intent.host == host
        && intent.start.as_ref().is_some_and(|then| {
            let same = IntentStart { start_lsn: now.start_lsn, full: now.full, ..then.clone() } == *now;
            same && then.start_lsn <= now.start_lsn && (then.full || !now.full)
        })
}

/// The IDs named in an intent: a backup that is built on and those that were broken off.
pub(super) fn priors(prior: Option<&Manifest>, broken_off: impl IntoIterator<Item = BackupId>) -> Vec<BackupId> {
    prior.map(|manifest| manifest.facts().backup).into_iter().chain(broken_off).collect()
}
