//! [`find`]: what happened, and the target just before it.

use super::classify::{OBJECTS_MAX, Thresholds, hit_of_mark, hits};
use super::names::Names;
use super::route::{Bounds, Route};
use super::types::{EventKind, Hit};
use super::walk::{Done, Visitor, walk};
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
/// Names that are offered when nothing is found.
const NEAR_MAX: usize = 10;
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
    /// Names like those that were asked for, when nothing was found.
    pub near: Vec<String>,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// Finds what happened in a cluster, in the index of its archived WAL.
///
/// # Errors
/// When the repository cannot be asked, or knows nothing of the cluster or timeline. Damage and holes are warnings.
pub async fn find(ctx: &Context, cluster: &repo::Cluster, request: &FindRequest) -> Result<FindReport, EngineError> {
    let bounds = Bounds { from: request.from, to: request.to, backup: None };
    let route = Route::open(ctx, cluster, request.timeline, bounds).await?;
    let names = route.base_names(ctx).await?;
    let named = request.filter.has_names() && request.filter.asks_for_rows();
    let default =
        |number: u64| request.rows_min.unwrap_or(if named || request.filter.xid.is_some() { 1 } else { number });
    let mut finder = Finder {
        request,
        history: &route.history,
        thresholds: Thresholds {
            rows: default(ROWS_MIN).max(1),
            load_rows: default(LOAD_ROWS_MIN).max(1),
            all: request.filter.xid.is_some(),
        },
        hits: VecDeque::new(),
        left_out: 0,
        near: BTreeSet::new(),
        to_time: None,
    };
    let walked = walk(ctx, &route, names, &mut finder).await?;
    let Finder { hits, mut left_out, mut near, to_time, .. } = finder;
    let mut hits: Vec<Hit> = hits.into();
    late::name(ctx, &route, &mut hits).await?;
    hits.retain(|hit| {
        let is_wanted = request.filter.matches(hit);
        if !is_wanted {
            near.extend(request.filter.near(hit));
        }
        is_wanted
    });
    let beyond = hits.len().saturating_sub(request.limit);
    left_out += beyond as u64;
    hits.drain(..beyond);
    damage::begin_before(ctx, &route, &mut hits).await?;
    let missing = route.missing(&walked.holes);
    for hit in &mut hits {
        hit.reachable = route.reaches(hit.target.lsn, &missing);
        finish(hit);
    }
    tell_twice(&mut hits);
    let production = cluster.known_facts().await?.current().map(|entry| entry.production_timeline);
    let near = if hits.is_empty() { near.into_iter().take(NEAR_MAX).collect() } else { Vec::new() };
    let mut warnings = route.warnings.clone();
    warnings.extend(hole_texts(&walked.holes));
    Ok(FindReport {
        system_id: route.archive.system_id(),
        timeline: route.timeline,
        is_production: production == Some(route.timeline),
        from_lsn: route.start,
        to_lsn: walked.end,
        to_time,
        hits,
        left_out,
        near,
        warnings,
    })
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

struct Finder<'a> {
    request: &'a FindRequest,
    history: &'a TimelineHistory,
    thresholds: Thresholds,
    hits: VecDeque<Hit>,
    left_out: u64,
    near: BTreeSet<String>,
    to_time: Option<Timestamp>,
}

impl Finder<'_> {
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
            let room = NEAR_MAX.saturating_sub(self.near.len());
            self.near.extend(request.filter.near(&hit).into_iter().take(room));
            return;
        }
        if self.hits.len() >= request.limit.max(KEPT_MAX) {
            self.hits.pop_front();
            self.left_out += 1;
        }
        self.hits.push_back(hit);
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
