//! What a backup builds on: chosen when its start LSN is known, protected by its intent, and looked into for what
//! changed since.

use super::changes::{self, Changes, Found, Stretch};
use super::footers::{Marks, turn_after};
use super::plan::{Base, Layer};
use super::prior::{self, Choice, Start};
use super::resume;
use super::source::Begun;
use super::warm::Warm;
use super::{BackupOptions, Sharing};
use crate::server::ServerFacts;
use crate::{Context, EngineError, lease_holder};
use pg_format::history::TimelineHistory;
use pg_format::{Lsn, Timeline};
use pg_wire::Client;
use repo::manifest::ChangeDetection;
use repo::{BackupId, Cluster, Intent, IntentStart};

/// How often a prior is chosen anew because it was deleted in this moment.
const TRIES: u32 = 5;

/// What a backup builds on, and the words for it.
pub(super) struct Prepared {
    pub(super) base: Base,
    pub(super) change_detection: ChangeDetection,
    /// The turn of looking again; none without a prior.
    pub(super) round: Option<u32>,
}

/// How the files come, as far as that matters for what is built on.
pub(super) enum Coming {
    /// They are read where they lie: what is known to be unchanged is not, and what broken-off backups stored is gone on
    /// from.
    ByReading,
    /// All of them arrive, from a server of which nothing lies here.
    ByThemselves {
        /// How the server's timeline came about.
        history: TimelineHistory,
        /// How changes are found, and what to say of that.
        used: &'static str,
        reasons: Vec<String>,
        /// The backup that it must build on, if only what changed since that one comes.
        upon: Option<BackupId>,
    },
}

/// What stands for the data directory of a backup whose files are not read here: no other one goes on from it.
const NOT_HERE: &str = "(received)";

/// What is needed to choose.
pub(super) struct Preparing<'a> {
    pub(super) ctx: &'a Context,
    pub(super) cluster: &'a Cluster,
    pub(super) server: &'a ServerFacts,
    pub(super) options: &'a BackupOptions,
    pub(super) backup: BackupId,
    pub(super) begun: Begun,
    pub(super) coming: Coming,
}

impl Preparing<'_> {
    /// Chooses, writes the intent, and finds out what changed. `client` is the session of the backup, where there is one.
    pub(super) async fn prepare(&self, client: Option<&mut Client>) -> Result<Prepared, EngineError> {
        let Begun { start_lsn, timeline } = self.begun;
        let full = self.options.sharing == Sharing::Full;
        let mut reasons = Vec::new();
        let mut start = None;
        if full {
            reasons.push("a full backup was asked for".to_owned());
        } else {
            let found = match &self.coming {
                Coming::ByReading => Start::read(self.cluster, self.server, timeline, start_lsn).await,
                Coming::ByThemselves { history, .. } => {
                    Ok(Start { timeline, lsn: start_lsn, history: history.clone() })
                }
            };
            match found {
                Ok(found) => start = Some(found),
                Err(error @ EngineError::Failed { .. }) => reasons.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let is_here = matches!(self.coming, Coming::ByReading);
        let intents = if is_here { resume::intents(self.ctx, self.cluster).await? } else { Vec::new() };
        let data_directory = self.server.data_directory.display().to_string();
        let intent_start = IntentStart {
            system_id: self.server.system_id,
            timeline,
            start_lsn,
            data_directory: if is_here { data_directory } else { NOT_HERE.to_owned() },
            from_standby: self.server.in_recovery,
            checksums: self.server.checksums,
            full,
        };
        let host = lease_holder().host;
        let mut base = Base::default();
        for left in (0..TRIES).rev() {
            let mut choice = match &start {
                Some(start) => prior::choose(self.ctx, self.cluster, self.server, start).await?,
                None => Choice::default(),
            };
            let after = choice.prior.as_ref().map(|prior| prior.facts().start_lsn);
            let mut broken_off = resume::load(self.ctx, self.cluster, &intents, &intent_start, &host, after).await?;
            let newest = choice.prior.as_ref().map(|prior| prior.facts().backup);
            let warm = Warm::take(self.ctx, self.cluster, &mut broken_off, newest).await?;
            if let Some(warm) = warm.as_ref().filter(|warm| warm.prior.is_none()) {
                // It has all files, and the earlier backup would only be compared with.
                if choice.prior.take().is_some() {
                    choice.reasons.push(format!("the warm pass {} was asked to build on nothing", warm.backup));
                }
            }
            let resumed = broken_off.iter().map(|backup| backup.backup);
            let warmed = warm.iter().flat_map(|warm| warm.resumed.iter().copied().chain([warm.backup]));
            let intent = Intent {
                backup: self.backup,
                priors: prior::priors(choice.prior.as_ref(), warmed.chain(resumed)),
                host: host.clone(),
                pid: std::process::id(),
                started: self.ctx.now(),
                start: Some(intent_start.clone()),
            };
            self.cluster.put_intent(&intent).await?;
            // Whoever deletes a backup removes its manifest first and reads the intents then: either the manifest is
            // gone here, or the intent is seen there.
            let there = match &choice.prior {
                Some(prior) => self.cluster.has_manifest(prior.facts().backup).await?,
                None => true,
            };
            if there || left == 0 {
                if !there {
                    return Err(EngineError::failed(
                        "the backups to build on are deleted one after the other",
                        "run the backup again when that has ended",
                    ));
                }
                reasons.extend(choice.reasons);
                (base.prior, base.broken_off, base.warm) = (choice.prior, broken_off, warm);
                break;
            }
            self.cluster.delete_intent(self.backup).await?;
        }
        self.check_wal_floor().await?;
        self.detect(client, base, start, reasons).await
    }

    /// WAL before the oldest backup may be going in this moment. A backup begins before that only on a standby whose last
    /// restart point is old. Asked after the intent is there: either the floor is seen here, or the intent there.
    async fn check_wal_floor(&self) -> Result<(), EngineError> {
        let Begun { start_lsn, timeline } = self.begun;
        match self.cluster.wal_floor(self.server.system_id, timeline).await? {
            Some(floor) if start_lsn < floor => Err(EngineError::failed(
                format!(
                    "the backup would begin at {start_lsn}, and WAL before {floor}, where the oldest backup begins, was expired"
                ),
                "a standby begins at its last restart point: run it again after the next one, or on the primary",
            )),
            _ => Ok(()),
        }
    }

    /// Finds out what changed since each layer was stored.
    async fn detect(
        &self,
        mut client: Option<&mut Client>,
        mut base: Base,
        start: Option<Start>,
        mut reasons: Vec<String>,
    ) -> Result<Prepared, EngineError> {
        let Begun { start_lsn, timeline } = self.begun;
        let found = base.prior.as_ref().map(|prior| prior.facts().backup);
        if let Coming::ByThemselves { upon: Some(upon), .. } = &self.coming
            && found != Some(*upon)
        {
            return Err(EngineError::failed(
                format!("backup {upon}, upon which the server was asked for changes, was deleted in this moment"),
                "run the backup again",
            ));
        }
        let mut used = "all";
        let mut round = None;
        let history = start.map_or(TimelineHistory::without_past(timeline), |start| start.history);
        let stretch = |from: (Timeline, Lsn)| Stretch {
            from,
            to: (timeline, start_lsn),
            history: Some(history.clone()).filter(|history| !history.switches.is_empty()),
        };
        if let Some(warm) = &base.warm {
            // What it found out need not be found out again: only what changed since.
            let from = (warm.start.timeline, warm.start.start_lsn);
            self.ctx.progress.phase("finding what changed", None, crate::Unit::Items);
            let found = self.ctx.or_cancel(self.find(client.as_deref_mut(), &stretch(from))).await??;
            used = used_by(&found, &mut reasons);
            reasons.push(format!("the warm pass {} is gone on from", warm.backup));
            base.layers.push(Base::layer(warm.start.start_lsn, found));
            round = warm.looked_again.map(|(round, _)| round);
        } else if let Some(prior) = &base.prior {
            let facts = prior.facts();
            let from = (facts.timeline, facts.start_lsn);
            let found = match &self.coming {
                Coming::ByThemselves { reasons, .. } => Found::ScanPages { reasons: reasons.clone() },
                Coming::ByReading => {
                    self.ctx.progress.phase("finding what changed", None, crate::Unit::Items);
                    self.ctx.or_cancel(self.find(client.as_deref_mut(), &stretch(from))).await??
                }
            };
            let by = used_by(&found, &mut reasons);
            used = match (&found, &self.coming) {
                (Found::ScanPages { .. }, Coming::ByThemselves { used, .. }) => used,
                _ => by,
            };
            base.layers.push(Base::layer(facts.start_lsn, found));
            let turn = turn_after(facts);
            base.marks = Marks::find(self.ctx, self.cluster, prior.packs(), turn).await?;
            round = Some(turn);
        } else {
            base.layers.push(Layer { start_lsn, changes: Some(Changes::default()) });
        }
        for backup in &base.broken_off {
            let from = (backup.start.timeline, backup.start.start_lsn);
            let found = self.ctx.or_cancel(self.find(client.as_deref_mut(), &stretch(from))).await??;
            base.layers.push(Base::layer(backup.start.start_lsn, found));
            reasons.push(format!("backup {}, which was broken off, is gone on from", backup.backup));
        }
        let change_detection = ChangeDetection { used: used.into(), reasons };
        Ok(Prepared { base, change_detection, round })
    }

    async fn find(&self, client: Option<&mut Client>, stretch: &Stretch) -> Result<Found, EngineError> {
        if self.server.wal_level == "minimal" {
            return Ok(Found::ScanPages {
                reasons: vec!["wal_level is minimal: not all changes are in the WAL".into()],
            });
        }
        changes::find(self.ctx, self.cluster, self.server, client, stretch).await
    }
}

/// The way by which changes were found, with what was said on the way.
fn used_by(found: &Found, reasons: &mut Vec<String>) -> &'static str {
    match found {
        Found::Changes { used, reasons: why, .. } => {
            reasons.extend_from_slice(why);
            used
        }
        Found::ScanPages { reasons: why } => {
            reasons.extend_from_slice(why);
            "page-lsn"
        }
    }
}
