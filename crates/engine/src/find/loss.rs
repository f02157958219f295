//! What a target leaves out: transactions that committed after it, and those that were open there.

use super::classify::{OBJECTS_MAX, Thresholds, hit_of_mark, hits};
use super::late;
use super::names::Names;
use super::open::{Crossing, open_at};
use super::route::{Bounds, Route};
use super::search::{LOAD_ROWS_MIN, ROWS_MIN, hole_texts};
use super::types::{EventKind, Hit, Object};
use super::walk::{Done, Visitor, plus, walk};
use crate::restore::{RecoveryTarget, RestorePlan};
use crate::{Context, EngineError};
use jiff::Timestamp;
use pg_format::{Lsn, TimelineHistory};
use pg_wal::index::{Mark, MarkKind, RowCounts, XactEndFacts};
use pg_wal::{RelFileLocator, Xid};
use repo::wal::timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Transactions that are told one by one.
const TOLD_MAX: usize = 20;
/// Ends after the target that are kept to be asked for.
const LATER_MAX: usize = 200_000;
/// Events that are told.
const EVENTS_MAX: usize = 50;

/// What lies after a target and is not recovered.
#[derive(Debug, Clone, Serialize)]
pub struct Loss {
    /// Recovery stops before this record; `None` when it does not stop before the end of the WAL.
    pub stops_at: Option<Lsn>,
    /// Transactions that committed after it.
    pub transactions: u64,
    /// The earliest and the latest of their times.
    pub first_time: Option<Timestamp>,
    /// See `first_time`.
    pub last_time: Option<Timestamp>,
    /// Rows by table, most changed first.
    pub relations: Vec<LostRelation>,
    /// How many more relations.
    pub relations_left_out: u64,
    /// What else happened after it: drops, truncates, large changes.
    pub events: Vec<Hit>,
    /// Transactions that were open at the target.
    pub open: Vec<OpenTransaction>,
    /// Whether these are all that had done something.
    pub open_complete: bool,
    /// How many more were open.
    pub open_left_out: u64,
    /// The transaction whose end recovery stops before.
    pub stopped_by: Option<Xid>,
    /// Of the lost ones: transactions with the very time of the last that is kept, or of the target.
    pub same_instant: Vec<Xid>,
    /// Up to where WAL was read: what came later is not in the repository.
    pub read_to: Lsn,
    /// Whether all WAL in between could be read.
    pub complete: bool,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// What is lost of one relation.
#[derive(Debug, Clone, Serialize)]
pub struct LostRelation {
    /// The relation, with its rows.
    #[serde(flatten)]
    pub object: Object,
}

/// What became of a transaction that was open at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenState {
    /// It committed later: it is lost.
    Committed,
    /// It was rolled back later.
    Aborted,
    /// It was prepared before, and is still prepared at the target.
    Prepared,
    /// Its end is not in the repository.
    Unknown,
}

/// A transaction that was open at a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenTransaction {
    /// Its ID.
    pub xid: Xid,
    /// What became of it.
    pub state: OpenState,
    /// When.
    pub time: Option<Timestamp>,
    /// The name it was prepared under.
    pub prepared: Option<String>,
}

/// What a planned restore leaves out, as far as the repository knows it.
///
/// # Errors
/// When the repository cannot be asked.
pub async fn what_is_lost(ctx: &Context, cluster: &repo::Cluster, plan: &RestorePlan) -> Result<Loss, EngineError> {
    let bounds = Bounds { backup: Some(plan.backup), ..Bounds::default() };
    let route = Route::open(ctx, cluster, Some(plan.system_id), Some(plan.timeline), bounds).await?;
    let names = route.base_names(ctx).await?;
    let size = route.archive.segment_size().bytes();
    let mut gatherer = Gatherer::new(plan, &route.history, size);
    let walked = walk(ctx, &route, names, "reading what lies after the target", &mut gatherer).await?;
    for (xid, open) in &walked.open {
        let began = gatherer.cut.is_some_and(|cut| open.first.is_some_and(|first| first < cut));
        if began || gatherer.is_older(*xid) {
            let prepared = open.prepared.as_ref();
            gatherer.open(OpenTransaction {
                xid: *xid,
                state: if prepared.is_some() { OpenState::Prepared } else { OpenState::Unknown },
                time: None,
                prepared: prepared.map(|prepared| String::from_utf8_lossy(&prepared.gid).into_owned()),
            });
        }
    }
    if let Some(cut) = gatherer.cut {
        let found = open_at(ctx, &route, cut, &gatherer.crossing).await?;
        gatherer.loss.open_complete = found.all;
        found.xids.into_iter().for_each(|xid| gatherer.found_open(xid));
    }
    gatherer.loss.open_left_out = gatherer.opened.len().saturating_sub(TOLD_MAX) as u64;
    gatherer.loss.open = std::mem::take(&mut gatherer.opened).into_values().take(TOLD_MAX).collect();
    let Gatherer { cut, mut loss, rows, .. } = gatherer;
    let mut by_relation: HashMap<Object, RowCounts> = HashMap::new();
    for (file, counts) in &rows {
        if walked.names.is_systems(file) {
            continue;
        }
        let mut object = walked.names.object_of_file(file);
        // A relation may have had several files.
        object.file = object.file.filter(|_| object.oid.is_none());
        plus(by_relation.entry(object).or_default(), counts);
    }
    let mut objects: Vec<Object> = by_relation.into_iter().map(|(object, counts)| object.with_rows(&counts)).collect();
    late::name_objects(ctx, &route, objects.iter_mut(), walked.end, &walked.names.doubts).await?;
    late::name(ctx, &route, &mut loss.events, &walked.names.doubts).await?;
    objects.retain(|object| {
        let is_side = matches!(object.kind, super::ObjectKind::Toast | super::ObjectKind::Sequence);
        !is_side && !object.is_systems()
    });
    let weight = |object: &Object| object.rows_deleted + object.rows_inserted + object.rows_updated;
    objects.sort_by_key(|object| (std::cmp::Reverse(weight(object)), object.to_string()));
    loss.relations_left_out = objects.len().saturating_sub(OBJECTS_MAX) as u64;
    objects.truncate(OBJECTS_MAX);
    loss.relations = objects.into_iter().map(|object| LostRelation { object }).collect();
    loss.stops_at = cut;
    loss.read_to = walked.end;
    loss.complete = walked.holes.is_empty();
    loss.warnings.extend(hole_texts(&walked.holes));
    Ok(loss)
}

struct Gatherer<'a> {
    target: &'a RecoveryTarget,
    exclusive: bool,
    history: &'a TimelineHistory,
    /// Before this place nothing stops: the backup is not consistent yet.
    consistent: Lsn,
    /// The first record that is not replayed, once it is known.
    cut: Option<Lsn>,
    /// Transactions before the cut.
    kept: Kept,
    rows: HashMap<RelFileLocator, RowCounts>,
    segment_size: u64,
    /// Ends before the cut that may lie across a segment's border.
    crossing: Crossing,
    /// What became of transactions after the cut, also by their subtransactions: as many as are kept.
    later: HashMap<Xid, OpenTransaction>,
    /// Those that were open at the cut.
    opened: BTreeMap<Xid, OpenTransaction>,
    loss: Loss,
}

#[derive(Default)]
struct Kept {
    highest: Option<Xid>,
    last_time: Option<Timestamp>,
}

impl<'a> Gatherer<'a> {
    fn new(plan: &'a RestorePlan, history: &'a TimelineHistory, segment_size: u64) -> Self {
        let cut = match plan.target {
            RecoveryTarget::Immediate => Some(plan.stop_lsn),
            // Inclusive, it stops after the first record there; a commit right there is kept.
            RecoveryTarget::Lsn(lsn) => Some(if plan.exclusive { lsn } else { Lsn(lsn.0.saturating_add(1)) }),
            _ => None,
        };
        Self {
            target: &plan.target,
            exclusive: plan.exclusive,
            history,
            consistent: plan.stop_lsn,
            cut,
            kept: Kept::default(),
            rows: HashMap::new(),
            segment_size,
            crossing: Crossing::default(),
            later: HashMap::new(),
            opened: BTreeMap::new(),
            loss: Loss {
                stops_at: None,
                transactions: 0,
                first_time: None,
                last_time: None,
                relations: Vec::new(),
                relations_left_out: 0,
                events: Vec::new(),
                open: Vec::new(),
                open_complete: true,
                open_left_out: 0,
                stopped_by: None,
                same_instant: Vec::new(),
                read_to: Lsn::INVALID,
                complete: true,
                warnings: Vec::new(),
            },
        }
    }

    /// Whether the end of a transaction lies after the target (`recoveryStopsBefore` and `recoveryStopsAfter`,
    /// `access/transam/xlogrecovery.c`).
    fn is_lost(&mut self, xid: Xid, end: &XactEndFacts) -> bool {
        if let Some(cut) = self.cut {
            return end.lsn >= cut;
        }
        if end.lsn < self.consistent {
            return false;
        }
        let time = timestamp(end.time);
        let (before, after) = match self.target {
            RecoveryTarget::Time(target) => (if self.exclusive { time >= *target } else { time > *target }, false),
            RecoveryTarget::Xid(target) => (self.exclusive && xid == *target, !self.exclusive && xid == *target),
            _ => (false, false),
        };
        if before {
            self.cut = Some(end.lsn);
        } else if after {
            self.cut = Some(Lsn(end.lsn.0.saturating_add(1)));
        }
        before
    }

    /// Whether a transaction had its ID before the last one that is kept ended.
    fn is_older(&self, xid: Xid) -> bool {
        self.cut.is_some() && self.kept.highest.is_some_and(|highest| (highest.wrapping_sub(xid) as i32) > 0)
    }

    fn keep(&mut self, xid: Xid, end: &XactEndFacts) {
        if xid != 0 && self.kept.highest.is_none_or(|highest| (xid.wrapping_sub(highest) as i32) > 0) {
            self.kept.highest = Some(xid);
        }
        self.kept.last_time = Some(timestamp(end.time));
        self.crossing.note(xid, end, self.segment_size);
    }

    fn open(&mut self, open: OpenTransaction) {
        self.opened.entry(open.xid).or_insert(open);
    }

    /// Keeps what became of a transaction after the cut.
    fn ended_later(&mut self, found: &OpenTransaction, end: &XactEndFacts) {
        for xid in std::iter::once(&found.xid).chain(&end.subxacts) {
            if self.later.len() < LATER_MAX {
                self.later.insert(*xid, found.clone());
            }
        }
    }

    /// A transaction, or a part of one, that the WAL shows to be open at the cut.
    fn found_open(&mut self, xid: Xid) {
        let unknown = OpenTransaction { xid, state: OpenState::Unknown, time: None, prepared: None };
        let open = self.later.get(&xid).cloned().unwrap_or(unknown);
        // The one that recovery stops at is what people want to be rid of.
        if self.loss.stopped_by != Some(open.xid) {
            self.open(open);
        }
    }

    fn was_open(&self, xid: Xid, first: Option<Lsn>) -> bool {
        self.is_older(xid) || self.cut.is_some_and(|cut| first.is_some_and(|first| first < cut))
    }
}

impl Visitor for Gatherer<'_> {
    fn committed(&mut self, done: &Done<'_>, names: &Names) {
        if !self.is_lost(done.xid, done.end) {
            return self.keep(done.xid, done.end);
        }
        let time = timestamp(done.end.time);
        self.loss.transactions += 1;
        self.loss.first_time = self.loss.first_time.into_iter().chain([time]).min();
        self.loss.last_time = self.loss.last_time.into_iter().chain([time]).max();
        // What a rewrite put into the new file is not lost.
        let is_anew = |file: &RelFileLocator| {
            let relation = names.of_file(file).map(|(key, _)| key);
            relation.is_some_and(|key| done.folded.is_some_and(|folded| folded.rewritten.contains(&key)))
        };
        for work in done.work.iter().filter(|work| !is_anew(&work.rel)) {
            plus(self.rows.entry(work.rel).or_default(), &work.rows);
        }
        let instant = match self.target {
            RecoveryTarget::Time(target) => Some(*target),
            _ => self.kept.last_time,
        };
        if instant == Some(time) && self.loss.same_instant.len() < TOLD_MAX {
            self.loss.same_instant.push(done.xid);
        }
        let prepared = done.prepared.filter(|prepared| self.cut.is_some_and(|cut| prepared.lsn < cut));
        let found = OpenTransaction {
            xid: done.xid,
            state: if prepared.is_some() { OpenState::Prepared } else { OpenState::Committed },
            time: Some(time),
            prepared: prepared.map(|prepared| String::from_utf8_lossy(&prepared.gid).into_owned()),
        };
        self.ended_later(&found, done.end);
        if self.cut == Some(done.end.lsn) {
            self.loss.stopped_by = Some(done.xid);
        } else if self.was_open(done.xid, done.first) {
            self.open(found);
        }
        let thresholds = Thresholds { rows: ROWS_MIN, load_rows: LOAD_ROWS_MIN, all: false };
        let events = hits(done, names, self.history.timeline_of(done.end.lsn), &thresholds);
        let room = EVENTS_MAX.saturating_sub(self.loss.events.len());
        self.loss.events.extend(events.into_iter().take(room).map(|mut hit| {
            hit.objects_left_out = hit.objects.len().saturating_sub(OBJECTS_MAX) as u64;
            hit.objects.truncate(OBJECTS_MAX);
            hit
        }));
    }

    fn aborted(&mut self, xid: Xid, end: &XactEndFacts) {
        // Recovery stops at the end of a transaction that was rolled back as well.
        if !self.is_lost(xid, end) {
            return self.keep(xid, end);
        }
        let time = Some(timestamp(end.time));
        let found = OpenTransaction { xid, state: OpenState::Aborted, time, prepared: None };
        self.ended_later(&found, end);
        if self.is_older(xid) {
            self.open(found);
        }
    }

    fn mark(&mut self, mark: &Mark, _: &Names) {
        if let (MarkKind::RestorePoint { name, .. }, RecoveryTarget::RestorePoint(target)) = (&mark.kind, self.target)
            && self.cut.is_none()
            && mark.lsn >= self.consistent
            && *name == *target.as_bytes()
        {
            self.cut = Some(Lsn(mark.lsn.0.saturating_add(1)));
        } else if self.cut.is_some_and(|cut| mark.lsn >= cut)
            && let Some(hit) = hit_of_mark(mark, self.history.timeline_of(mark.lsn))
            && self.loss.events.len() < EVENTS_MAX
            && hit.kind == EventKind::RestorePoint
        {
            self.loss.events.push(hit);
        }
    }
}
