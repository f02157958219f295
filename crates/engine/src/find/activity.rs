//! [`log`]: who wrote how much WAL, and when, with what happened.

use super::Pattern;
use super::late;
use super::names::Names;
use super::route::Route;
use super::search::{FindReport, FindRequest, Finder, hole_texts};
use super::types::{Object, ObjectKind};
use super::walk::{Done, Stretch, Undone, Visitor, Walked, plus, walk};
use crate::{Context, EngineError};
use jiff::Timestamp;
use pg_format::{Lsn, SystemId, Timeline};
use pg_wal::index::{ImageCount, Images, Mark, RelationVolume, RowCounts, XactEndFacts};
use pg_wal::{RelFileLocator, Xid};
use repo::wal::timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What to sum up.
#[derive(Debug, Clone)]
pub struct ActivityRequest {
    /// Only what was done to these relations.
    pub tables: Vec<Pattern>,
    /// So many relations and transactions are told.
    pub top: usize,
}

/// What was done in a minute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// When it begins, in seconds since 1970.
    pub minute: i64,
    /// Transactions that committed.
    pub commits: u64,
    /// Transactions, or parts of some, that were rolled back.
    pub aborts: u64,
    /// Rows added.
    pub rows_inserted: u64,
    /// Rows replaced.
    pub rows_updated: u64,
    /// Rows deleted.
    pub rows_deleted: u64,
    /// WAL between the last end of a transaction in the minute before and the last one in this.
    pub wal_bytes: u64,
    /// Full-page images between the same ends; `None` when the index does not tell their minutes.
    pub images: Option<u64>,
    /// Their bytes.
    pub image_bytes: Option<u64>,
}

impl Bucket {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.aborts += other.aborts;
        self.rows_inserted += other.rows_inserted;
        self.rows_updated += other.rows_updated;
        self.rows_deleted += other.rows_deleted;
        self.wal_bytes += other.wal_bytes;
        self.add_images(other.images.zip(other.image_bytes));
    }

    fn add_images(&mut self, more: Option<(u64, u64)>) {
        if let Some((images, bytes)) = more {
            self.images = Some(self.images.unwrap_or(0) + images);
            self.image_bytes = Some(self.image_bytes.unwrap_or(0) + bytes);
        }
    }

    /// All rows.
    pub fn rows(&self) -> u64 {
        self.rows_inserted + self.rows_updated + self.rows_deleted
    }
}

/// The WAL that a relation took.
#[derive(Debug, Clone, Serialize)]
pub struct RelationActivity {
    /// The relation, with its rows.
    #[serde(flatten)]
    pub object: Object,
    /// Records whose first block is the relation's.
    pub records: u64,
    /// Their bytes.
    pub wal_bytes: u64,
    /// Full-page images.
    pub images: u64,
    /// Their bytes.
    pub image_bytes: u64,
}

/// A transaction that wrote much.
#[derive(Debug, Clone, Serialize)]
pub struct TransactionActivity {
    /// Its ID.
    pub xid: Xid,
    /// When it committed.
    pub time: Timestamp,
    /// Where its commit record begins.
    pub lsn: Lsn,
    /// The WAL that it wrote.
    pub wal_bytes: u64,
    /// Rows added.
    pub rows_inserted: u64,
    /// Rows replaced.
    pub rows_updated: u64,
    /// Rows deleted.
    pub rows_deleted: u64,
    /// The relations that it changed most.
    pub objects: Vec<Object>,
}

/// Who wrote how much, and when.
#[derive(Debug, Clone, Serialize)]
pub struct ActivityReport {
    /// The system identifier whose WAL was read.
    pub system_id: SystemId,
    /// Along this timeline.
    pub timeline: Timeline,
    /// Where reading began.
    pub from_lsn: Lsn,
    /// Where the WAL in the repository ends.
    pub to_lsn: Lsn,
    /// All together; `minute` is that of the first commit.
    pub total: Bucket,
    /// Full-page images in the segments of that time.
    pub images: u64,
    /// Their bytes.
    pub image_bytes: u64,
    /// Minutes in which a transaction ended, in order.
    pub minutes: Vec<Bucket>,
    /// Relations that took the most WAL, in the segments of that time.
    pub relations: Vec<RelationActivity>,
    /// Transactions that wrote the most.
    pub transactions: Vec<TransactionActivity>,
    /// What a human should read.
    pub warnings: Vec<String>,
}

/// Sums up what a cluster wrote, and finds what happened, in one reading: the time and timeline are those of `events`.
///
/// # Errors
/// When the repository cannot be asked, or knows nothing of the cluster or timeline.
pub async fn log(
    ctx: &Context,
    cluster: &repo::Cluster,
    events: &FindRequest,
    request: &ActivityRequest,
) -> Result<(FindReport, ActivityReport), EngineError> {
    let route = events.route(ctx, cluster).await?;
    let names = route.base_names(ctx).await?;
    let mut both = Both(Finder::new(events, &route.history), Counter::new(events, request));
    let walked = walk(ctx, &route, names, "reading the WAL index", &mut both).await?;
    let Both(finder, counter) = both;
    let found = finder.report(ctx, &route, &walked).await?;
    let summed = counter.report(ctx, &route, &walked).await?;
    Ok((found, summed))
}

/// Tells two visitors.
struct Both<A, B>(A, B);

impl<A: Visitor, B: Visitor> Visitor for Both<A, B> {
    fn committed(&mut self, done: &Done<'_>, names: &Names) {
        self.0.committed(done, names);
        self.1.committed(done, names);
    }

    fn aborted(&mut self, xid: Xid, end: &XactEndFacts) {
        self.0.aborted(xid, end);
        self.1.aborted(xid, end);
    }

    fn broken_off(&mut self, done: &Done<'_>, why: Undone, names: &Names) {
        self.0.broken_off(done, why, names);
        self.1.broken_off(done, why, names);
    }

    fn mark(&mut self, mark: &Mark, names: &Names) {
        self.0.mark(mark, names);
        self.1.mark(mark, names);
    }

    fn stretch(&mut self, stretch: &Stretch<'_>) {
        self.0.stretch(stretch);
        self.1.stretch(stretch);
    }
}

/// Files of the same relation, before and after a truncate, are one; a TOAST table's are its own.
fn relations(
    volumes: &HashMap<RelFileLocator, RelationVolume>,
    rows: &HashMap<RelFileLocator, RowCounts>,
    names: &Names,
) -> Vec<RelationActivity> {
    let mut by_relation: BTreeMap<String, (RelationActivity, RowCounts)> = BTreeMap::new();
    for (file, volume) in volumes {
        let object = names.object_of_file(file);
        let key = format!("{object} {:?}", object.oid);
        let (sum, counts) = by_relation.entry(key).or_insert_with(|| {
            (RelationActivity { object, records: 0, wal_bytes: 0, images: 0, image_bytes: 0 }, RowCounts::default())
        });
        sum.records += volume.records;
        sum.wal_bytes += volume.bytes;
        sum.images += volume.images;
        sum.image_bytes += volume.image_bytes;
        if let Some(rows) = rows.get(file) {
            plus(counts, rows);
        }
    }
    by_relation
        .into_values()
        .map(|(sum, counts)| RelationActivity { object: sum.object.clone().with_rows(&counts), ..sum })
        .collect()
}

/// 2000-01-01 in seconds since 1970.
const EPOCH_2000: i64 = 946_684_800;
/// So many heavy transactions are kept before the lighter ones are dropped.
const HEAVY_MAX: usize = 4096;
/// Relations that a transaction is told with.
const OBJECTS_MAX: usize = 5;

struct Counter<'a> {
    events: &'a FindRequest,
    request: &'a ActivityRequest,
    minutes: BTreeMap<i64, Bucket>,
    /// The last end of a transaction.
    last_end: Option<Lsn>,
    volumes: HashMap<RelFileLocator, RelationVolume>,
    rows: HashMap<RelFileLocator, RowCounts>,
    heavy: Vec<TransactionActivity>,
    images: ImageCount,
    /// Images by minute as the index tells them, and all there were.
    told: Images,
    all_images: u64,
    /// The volumes of the stretch that is being read, until it is known whether it counts.
    pending: Vec<RelationVolume>,
    counts: bool,
}

impl<'a> Counter<'a> {
    fn new(events: &'a FindRequest, request: &'a ActivityRequest) -> Self {
        Self {
            events,
            request,
            minutes: BTreeMap::new(),
            last_end: None,
            volumes: HashMap::new(),
            rows: HashMap::new(),
            heavy: Vec::new(),
            images: ImageCount::default(),
            told: Images::default(),
            all_images: 0,
            pending: Vec::new(),
            counts: false,
        }
    }

    /// What was counted, with names, when all was read.
    async fn report(mut self, ctx: &Context, route: &Route, walked: &Walked) -> Result<ActivityReport, EngineError> {
        self.end_stretch();
        self.put_images();
        let Self { request, minutes, volumes, rows, mut heavy, images, .. } = self;
        let mut relations = relations(&volumes, &rows, &walked.names);
        let mut objects: Vec<&mut Object> = relations.iter_mut().map(|relation| &mut relation.object).collect();
        objects.extend(heavy.iter_mut().flat_map(|heavy| &mut heavy.objects));
        late::name_objects(ctx, route, objects.into_iter(), walked.end, &walked.names.doubts).await?;
        if !request.tables.is_empty() {
            relations.retain(|relation| request.tables.iter().any(|table| table.matches_object(&relation.object)));
        }
        relations.sort_by_key(|relation| (std::cmp::Reverse(relation.wal_bytes), relation.object.to_string()));
        relations.truncate(request.top);
        heavy.sort_by_key(|transaction| std::cmp::Reverse(transaction.wal_bytes));
        heavy.truncate(request.top);
        let mut total = Bucket { minute: minutes.keys().next().copied().unwrap_or(0), ..Bucket::default() };
        minutes.values().for_each(|minute| total.add(minute));
        let mut warnings = route.warnings.clone();
        warnings.extend(hole_texts(&walked.holes));
        Ok(ActivityReport {
            system_id: route.archive.system_id(),
            timeline: route.timeline,
            from_lsn: route.start,
            to_lsn: walked.end,
            total,
            images: images.images,
            image_bytes: images.bytes,
            minutes: minutes.into_values().collect(),
            relations,
            transactions: heavy,
            warnings,
        })
    }

    /// Puts images to their minutes, when the index tells all of them, and they are not asked of some relations only.
    fn put_images(&mut self) {
        if self.told.total().images != self.all_images || !self.request.tables.is_empty() {
            return;
        }
        self.minutes.values_mut().for_each(|bucket| bucket.add_images(Some((0, 0))));
        for (minute, count) in &self.told.minutes {
            if let Some(bucket) = self.minutes.get_mut(&(minute * 60 + EPOCH_2000)) {
                bucket.add_images(Some((count.images, count.bytes)));
            }
        }
    }

    fn in_time(&self, time: Timestamp) -> bool {
        self.events.from.is_none_or(|from| time >= from) && self.events.to.is_none_or(|to| time <= to)
    }

    /// Counts the stretch that ends, when a transaction of the time asked for ended in it, or when no time was asked for.
    fn end_stretch(&mut self) {
        let all = self.events.from.is_none() && self.events.to.is_none();
        for volume in std::mem::take(&mut self.pending) {
            if !(all || self.counts) {
                break;
            }
            self.images.add(ImageCount { images: volume.images, bytes: volume.image_bytes });
            let sum = self.volumes.entry(volume.rel).or_insert(RelationVolume {
                rel: volume.rel,
                records: 0,
                bytes: 0,
                images: 0,
                image_bytes: 0,
            });
            sum.records += volume.records;
            sum.bytes += volume.bytes;
            sum.images += volume.images;
            sum.image_bytes += volume.image_bytes;
        }
        self.counts = false;
    }

    /// The minute of an end; `None` when it is not in the time asked for.
    fn minute(&mut self, end: &XactEndFacts) -> Option<&mut Bucket> {
        let time = timestamp(end.time);
        let bytes = self.last_end.map_or(0, |last| end.lsn.0.saturating_sub(last.0));
        self.last_end = Some(end.lsn);
        if !self.in_time(time) {
            return None;
        }
        self.counts = true;
        let minute = time.as_second().div_euclid(60) * 60;
        let bucket = self.minutes.entry(minute).or_insert_with(|| Bucket { minute, ..Bucket::default() });
        bucket.wal_bytes += bytes;
        Some(bucket)
    }
}

impl Visitor for Counter<'_> {
    fn committed(&mut self, done: &Done<'_>, names: &Names) {
        let request = self.request;
        let wanted = |file: &RelFileLocator| {
            request.tables.is_empty() || {
                let object = names.object_of_file(file);
                request.tables.iter().any(|table| table.matches_object(&object))
            }
        };
        let touches = request.tables.is_empty() || done.work.iter().any(|work| wanted(&work.rel));
        let Some(bucket) = self.minute(done.end) else { return };
        if !touches {
            return;
        }
        bucket.commits += 1;
        let mut sum = RowCounts::default();
        done.work
            .iter()
            .filter(|work| !names.is_systems(&work.rel) && wanted(&work.rel))
            .for_each(|work| plus(&mut sum, &work.rows));
        bucket.rows_inserted += sum.inserted + sum.multi_inserted;
        bucket.rows_updated += sum.updated + sum.hot_updated;
        bucket.rows_deleted += sum.deleted;
        for work in done.work {
            plus(self.rows.entry(work.rel).or_default(), &work.rows);
        }
        if done.bytes > 0 {
            self.heavy.push(heavy(done, &sum, names));
            if self.heavy.len() > HEAVY_MAX {
                self.heavy.sort_by_key(|transaction| std::cmp::Reverse(transaction.wal_bytes));
                self.heavy.truncate(request.top);
            }
        }
    }

    fn aborted(&mut self, _: Xid, end: &XactEndFacts) {
        let all = self.request.tables.is_empty();
        if let Some(bucket) = self.minute(end).filter(|_| all) {
            bucket.aborts += 1;
        }
    }

    fn stretch(&mut self, stretch: &Stretch<'_>) {
        self.end_stretch();
        self.pending = stretch.volumes.to_vec();
        self.told.append(stretch.images);
        self.all_images += stretch.volumes.iter().map(|volume| volume.images).sum::<u64>();
        if self.last_end.is_none() {
            self.last_end = Some(stretch.start);
        }
    }
}

fn heavy(done: &Done<'_>, sum: &RowCounts, names: &Names) -> TransactionActivity {
    let users = done.work.iter().filter(|work| !names.is_systems(&work.rel));
    let mut objects: Vec<Object> = users.map(|work| names.object_of_file(&work.rel).with_rows(&work.rows)).collect();
    objects.retain(|object| object.kind != ObjectKind::Toast);
    objects.sort_by_key(|object| std::cmp::Reverse(object.rows_deleted + object.rows_inserted + object.rows_updated));
    objects.truncate(OBJECTS_MAX);
    TransactionActivity {
        xid: done.xid,
        time: timestamp(done.end.time),
        lsn: done.end.lsn,
        wal_bytes: done.bytes,
        rows_inserted: sum.inserted + sum.multi_inserted,
        rows_updated: sum.updated + sum.hot_updated,
        rows_deleted: sum.deleted,
        objects,
    }
}
