//! [`find`]: what happened, and the target just before it.

use super::classify::{OBJECTS_MAX, Thresholds, broken_off, hit_of_mark, hits};
use super::names::Names;
use super::near::{Instead, NEAR_MAX};
use super::route::{Bounds, Route};
use super::types::{EventKind, Hit};
use super::walk::{Done, Undone, Visitor, Walked, walk};
use super::{Filter, damage, late};
use crate::{Context, EngineError};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline, TimelineHistory};
use pg_wal::index::Mark;
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};

/// So many rows deleted or updated by one transaction are told, unless asked otherwise.
pub const ROWS_MIN: u64 = 1000;
/// So many rows that came in with one transaction are told, unless asked otherwise.
pub const LOAD_ROWS_MIN: u64 = 10_000;

/// Hits that are kept while it is not known yet whether they are looked for.
const KEPT_MAX: usize = 20_000;
/// Holes that are told one by one.
const HOLES_MAX: usize = 5;

/// What to find.
#[derive(Debug, Clone)]
pub struct FindRequest {
    /// What is looked for.
    pub filter: Filter,
    /// Not before this time.
    pub from: Option<Timestamp>,
    /// Not after this time.
    pub to: Option<Timestamp>,
    /// Rows that a change must count; else [`ROWS_MIN`] and [`LOAD_ROWS_MIN`].
    pub rows_min: Option<u64>,
    /// Large changes only, when there are any: of those with fewer rows than [`ROWS_MIN`] it is told how many there are.
    pub prefer_large: bool,
    /// In the WAL of this system identifier; else the present one.
    pub system_id: Option<SystemId>,
    /// Along this timeline; else production's.
    pub timeline: Option<Timeline>,
    /// So many hits, the latest ones.
    pub limit: usize,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct FindReport {
    /// The system identifier whose WAL was read.
    pub system_id: SystemId,
    /// Along this timeline.
    pub timeline: Timeline,
    /// Whether that is production's.
    pub is_production: bool,
    /// Where reading began.
    pub from_lsn: Lsn,
    /// Where the WAL in the repository ends.
    pub to_lsn: Lsn,
    /// The last end of a transaction that was read.
    pub to_time: Option<Timestamp>,
    /// What was found, in the order of the WAL.
    pub hits: Vec<Hit>,
    /// Earlier hits that are not listed.
    pub left_out: u64,
    /// Smaller changes that are not listed, because there are large ones.
    #[serde(skip)]
    pub smaller: u64,
    /// Other system identifiers that the cluster had: their WAL was not searched.
    pub other_systems: Vec<SystemId>,
    /// What there is instead, when nothing was found.
    #[serde(skip)]
    pub instead: Instead,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// Finds what happened in a cluster, in the index of its archived WAL.
///
/// # Errors
/// When the repository cannot be asked, or knows nothing of the cluster or timeline. Damage and holes are warnings.
pub async fn find(ctx: &Context, cluster: &repo::Cluster, request: &FindRequest) -> Result<FindReport, EngineError> {
    let route = request.route(ctx, cluster).await?;
    let names = route.base_names(ctx).await?;
    let mut finder = Finder::new(request, &route.history);
    let walked = walk(ctx, &route, names, "searching the WAL index", &mut finder).await?;
    finder.report(ctx, &route, &walked).await
}

impl FindRequest {
    /// All that there is of it, along production's timeline.
    pub fn of(filter: Filter, limit: usize) -> Self {
        let (from, to, rows_min, system_id, timeline) = (None, None, None, None, None);
        Self { filter, from, to, rows_min, prefer_large: false, system_id, timeline, limit }
    }

    /// The way through the WAL of the time asked for.
    pub(super) async fn route(&self, ctx: &Context, cluster: &repo::Cluster) -> Result<Route, EngineError> {
        let bounds = Bounds { from: self.from, to: self.to, backup: None };
        Route::open(ctx, cluster, self.system_id, self.timeline, bounds).await
    }

    fn thresholds(&self) -> Thresholds {
        let named = self.filter.has_names() && self.filter.asks_for_rows();
        let by_id = self.filter.xid.is_some();
        let default = |number: u64| self.rows_min.unwrap_or(if named || by_id { 1 } else { number });
        Thresholds { rows: default(ROWS_MIN).max(1), load_rows: default(LOAD_ROWS_MIN).max(1), all: by_id }
    }
}

/// What is missing, for people: neighbours together.
pub(super) fn hole_texts(holes: &[crate::wal::index::Hole]) -> Vec<String> {
    let mut texts: Vec<String> = holes
        .iter()
        .take(HOLES_MAX)
        .map(|hole| format!("{}: {}; what happened in it is not known", hole.segment, hole.reason))
        .collect();
    if holes.len() > HOLES_MAX {
        texts.push(format!("and {} more segments of which nothing is known", holes.len() - HOLES_MAX));
    }
    texts
}

fn finish(hit: &mut Hit) {
    if !hit.reachable {
        hit.notes.push("no backup in the repository reaches what was before it".into());
    }
    hit.objects_left_out = hit.objects.len().saturating_sub(OBJECTS_MAX) as u64;
    hit.objects.truncate(OBJECTS_MAX);
}

/// A restore point's name is a target only when no other one has it: recovery stops at the first.
fn tell_twice(hits: &mut [Hit]) {
    let names: Vec<String> = hits.iter().filter_map(|hit| hit.name.clone()).collect();
    for hit in hits {
        let count = names.iter().filter(|name| Some(*name) == hit.name.as_ref()).count();
        if count > 1 {
            hit.target.restore_point = None;
            hit.notes.push(format!("{count} restore points have this name"));
        }
    }
}

/// Gathers hits while the WAL is read.
pub(super) struct Finder<'a> {
    request: &'a FindRequest,
    history: &'a TimelineHistory,
    thresholds: Thresholds,
    hits: Kept,
    /// Small changes, when large ones are preferred.
    small: Kept,
    happened: BTreeSet<String>,
    to_time: Option<Timestamp>,
}

#[derive(Default)]
struct Kept {
    hits: VecDeque<Hit>,
    left_out: u64,
}

impl<'a> Finder<'a> {
    pub(super) fn new(request: &'a FindRequest, history: &'a TimelineHistory) -> Self {
        Self {
            request,
            history,
            thresholds: request.thresholds(),
            hits: Kept::default(),
            small: Kept::default(),
            happened: BTreeSet::new(),
            to_time: None,
        }
    }

    /// What was found, named and with targets, when all was read.
    pub(super) async fn report(self, ctx: &Context, route: &Route, walked: &Walked) -> Result<FindReport, EngineError> {
        let Self { request, hits, small, mut happened, to_time, .. } = self;
        let missing = route.missing(walked);
        let (mut found, mut left_out, mut smaller) = (Vec::new(), 0, 0);
        for Kept { hits, left_out: earlier } in [hits, small] {
            if !found.is_empty() {
                smaller = hits.len() as u64 + earlier;
                break;
            }
            found = hits.into();
            // What was broken off is known to be that only later.
            found.sort_by_key(|hit: &Hit| hit.lsn);
            late::name(ctx, route, &mut found, &walked.names.doubts).await?;
            // A catalog that was rewritten is known to be one only now.
            found.retain_mut(|hit| {
                let none = hit.objects.is_empty();
                hit.objects.retain(|object| !object.is_systems());
                none || !hit.objects.is_empty()
            });
            found.retain(|hit| {
                let is_wanted = request.filter.matches(hit);
                if !is_wanted {
                    happened.extend(request.filter.near(hit));
                }
                is_wanted
            });
            damage::begin_before(ctx, route, &mut found).await?;
            let beyond = found.len().saturating_sub(request.limit);
            left_out = earlier + beyond as u64;
            found.drain(..beyond);
        }
        for hit in &mut found {
            let backup = route.reaches(hit.target.lsn, &missing);
            hit.reachable = backup.is_some();
            hit.target.backup = backup.filter(|_| !route.is_current);
            finish(hit);
        }
        tell_twice(&mut found);
        let mut warnings = route.warnings.clone();
        warnings.extend(hole_texts(&walked.holes));
        let instead =
            if found.is_empty() { Instead::of(&request.filter, &walked.names, happened) } else { Instead::default() };
        Ok(FindReport {
            system_id: route.archive.system_id(),
            timeline: route.timeline,
            is_production: route.is_production,
            from_lsn: route.start,
            to_lsn: walked.end,
            to_time,
            hits: found,
            left_out,
            smaller,
            other_systems: route.other_systems.clone(),
            instead,
            warnings,
        })
    }

    fn keep(&mut self, hit: Hit) {
        let request = self.request;
        let early = request.from.is_some_and(|from| hit.time.is_some_and(|time| time < from));
        let late = request.to.is_some_and(|to| hit.time.is_some_and(|time| time > to));
        if early || late || !request.filter.matches_kind(&hit) {
            return;
        }
        // A later backup may tell its name.
        let may_match = request.filter.matches(&hit) || hit.objects.iter().any(|object| object.is_nameless());
        if !may_match {
            let room = NEAR_MAX.saturating_sub(self.happened.len());
            self.happened.extend(request.filter.near(&hit).into_iter().take(room));
            return;
        }
        let counts_rows = matches!(hit.kind, EventKind::Delete | EventKind::Update | EventKind::Load);
        let is_small = request.prefer_large && counts_rows && hit.rows < ROWS_MIN;
        let kept = if is_small { &mut self.small } else { &mut self.hits };
        if kept.hits.len() >= request.limit.max(KEPT_MAX) {
            kept.hits.pop_front();
            kept.left_out += 1;
        }
        kept.hits.push_back(hit);
    }
}

impl Visitor for Finder<'_> {
    fn committed(&mut self, done: &Done<'_>, names: &Names) {
        if self.request.filter.xid.is_some_and(|xid| xid != done.xid) {
            return;
        }
        let timeline = self.history.timeline_of(done.end.lsn);
        for hit in hits(done, names, timeline, &self.thresholds) {
            self.keep(hit);
        }
    }

    fn broken_off(&mut self, done: &Done<'_>, why: Undone, names: &Names) {
        if let Some(hit) = broken_off(done, why, names, self.history.timeline_of(done.end.lsn)) {
            self.keep(hit);
        }
    }

    fn mark(&mut self, mark: &Mark, _: &Names) {
        if let Some(hit) = hit_of_mark(mark, self.history.timeline_of(mark.lsn)) {
            self.keep(hit);
        }
    }

    fn stretch(&mut self, stretch: &super::walk::Stretch<'_>) {
        self.to_time = stretch.last_time.map(repo::wal::timestamp).or(self.to_time);
    }
}

impl FindReport {
    /// The hits by their targets: those with the same one are reached together.
    pub fn targets(&self) -> Vec<&Hit> {
        let mut seen = BTreeSet::new();
        self.hits.iter().filter(|hit| seen.insert((hit.timeline, hit.target.lsn, hit.target.exclusive))).collect()
    }
}

/// Kinds that are asked for by name.
impl std::str::FromStr for EventKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [
            Self::Drop,
            Self::Truncate,
            Self::Delete,
            Self::Update,
            Self::Load,
            Self::Rewrite,
            Self::FilesRemoved,
            Self::RestorePoint,
            Self::TimelineSwitch,
        ];
        all.into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("'{text}' is no kind; there are {}", all.map(Self::as_str).join(", ")))
    }
}
