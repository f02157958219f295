//! The index of archived WAL read in order: transactions are put together from their parts, and names are brought
//! forward by those that committed.

use super::fold::{Folded, RowEvent, Verb, What};
use super::names::{Names, read_change};
use super::route::Route;
use crate::wal::index::{Hole, Indexed, read};
use crate::{Context, EngineError};
use pg_format::{Lsn, PgMajor, WalSegmentSize};
use pg_wal::WalIndex;
use pg_wal::event::WalLevel;
use pg_wal::index::{
    Catalog, CatalogChange, CatalogChangeKind, CatalogRows, Images, Mark, MarkKind, Outcome, Prepared, RelationVolume,
    RelationWork, RowCounts, Transaction, XactEndFacts,
};
use pg_wal::{Oid, RelFileLocator, TimestampTz, Xid};
use repo::wal_index::IndexPart;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What is kept of a transaction that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// It began here or later, and wrote nothing before.
    pub(super) first: Option<Lsn>,
    pub(super) bytes: u64,
    pub(super) work: BTreeMap<RelFileLocator, RowCounts>,
    pub(super) rows: Vec<RowEvent>,
    pub(super) marks: Vec<Mark>,
    pub(super) prepared: Option<Box<Prepared>>,
}

impl Open {
    fn absorb(&mut self, part: Self) {
        self.first = earlier(self.first, part.first);
        self.bytes = self.bytes.saturating_add(part.bytes);
        part.work.iter().for_each(|(rel, rows)| plus(self.work.entry(*rel).or_default(), rows));
        self.rows.extend(part.rows);
        self.marks.extend(part.marks);
        self.prepared = self.prepared.take().or(part.prepared);
    }

    /// Takes in what one stretch of WAL says of it. `before`: the stretch begins here, when the transaction goes on after
    /// it.
    fn note(&mut self, part: &Transaction, before: Option<Lsn>) {
        self.first = earlier(self.first, part.extent.map(|extent| extent.first).or(before));
        self.bytes = self.bytes.saturating_add(part.extent.map_or(0, |extent| extent.bytes));
        part.work.iter().for_each(|work| plus(self.work.entry(work.rel).or_default(), &work.rows));
        self.prepared = self.prepared.take().or_else(|| part.prepared.clone());
    }
}

fn earlier(one: Option<Lsn>, other: Option<Lsn>) -> Option<Lsn> {
    one.into_iter().chain(other).min()
}

/// Adds up.
pub(super) fn plus(sum: &mut RowCounts, more: &RowCounts) {
    sum.inserted = sum.inserted.saturating_add(more.inserted);
    sum.multi_inserted = sum.multi_inserted.saturating_add(more.multi_inserted);
    sum.updated = sum.updated.saturating_add(more.updated);
    sum.hot_updated = sum.hot_updated.saturating_add(more.hot_updated);
    sum.deleted = sum.deleted.saturating_add(more.deleted);
}

/// A transaction that committed, whole.
pub(super) struct Done<'a> {
    pub(super) xid: Xid,
    pub(super) end: &'a XactEndFacts,
    pub(super) prepared: Option<&'a Prepared>,
    /// It wrote nothing before this; told for those that did more than change a few rows.
    pub(super) first: Option<Lsn>,
    /// WAL that it wrote, as far as it is told; 0 for little.
    pub(super) bytes: u64,
    pub(super) work: &'a [RelationWork],
    pub(super) marks: &'a [Mark],
    /// What it did to the catalogs, if anything.
    pub(super) folded: Option<&'a Folded>,
}

impl<'a> Done<'a> {
    /// A transaction that had to be put together.
    fn of(
        xid: Xid,
        end: &'a XactEndFacts,
        whole: &'a Open,
        work: &'a [RelationWork],
        folded: Option<&'a Folded>,
    ) -> Self {
        let prepared = whole.prepared.as_deref();
        Self { xid, end, prepared, first: whole.first, bytes: whole.bytes, work, marks: &whole.marks, folded }
    }
}

/// Why a transaction has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undone {
    /// It was rolled back.
    RolledBack,
    /// The server crashed or was stopped while it ran.
    Crashed,
    /// Its end is not archived, or not yet.
    Unended,
}

/// A stretch of WAL that was indexed as one.
pub(super) struct Stretch<'a> {
    pub(super) start: Lsn,
    /// The WAL of each relation.
    pub(super) volumes: &'a [RelationVolume],
    /// Its full-page images by minute.
    pub(super) images: &'a Images,
    /// The last end of a transaction in it, in microseconds since 2000.
    pub(super) last_time: Option<pg_wal::TimestampTz>,
}

/// Who is told what the walk comes by.
pub(super) trait Visitor {
    /// A transaction committed; `names` are those after it.
    fn committed(&mut self, done: &Done<'_>, names: &Names);

    /// A transaction, or a part of one, was rolled back.
    fn aborted(&mut self, _: Xid, _: &XactEndFacts) {}

    /// A transaction that did something to a database or tablespace that no rollback takes back did not commit. What it
    /// says of its end is where it was last heard of, when it has none.
    fn broken_off(&mut self, _: &Done<'_>, _: Undone, _: &Names) {}

    /// Something happened at a place of its own.
    fn mark(&mut self, _: &Mark, _: &Names) {}

    /// A stretch of WAL begins; what lies in it follows.
    fn stretch(&mut self, _: &Stretch<'_>) {}
}

/// How far the walk came.
pub(super) struct Walked {
    pub(super) names: Names,
    /// Transactions that never ended.
    pub(super) open: HashMap<Xid, Open>,
    pub(super) holes: Vec<Hole>,
    /// Where WAL was written that recovery cannot go through (`wal_level = minimal`).
    pub(super) minimal: Vec<Lsn>,
    /// The end of what was read.
    pub(super) end: Lsn,
}

/// Reads all of the way, and tells `visitor`; `phase` is what people are told that it is for.
pub(super) async fn walk(
    ctx: &Context,
    route: &Route,
    names: Names,
    phase: &str,
    visitor: &mut (dyn Visitor + Send),
) -> Result<Walked, EngineError> {
    let files = names.moved_catalogs().into_iter().map(|(database, catalog, file)| ((database, catalog), file));
    let mut walk = Walk {
        major: route.major,
        rows: CatalogRows::default(),
        files: files.collect(),
        moves: HashMap::new(),
        size: route.archive.segment_size(),
        walked: Walked { names, open: HashMap::new(), holes: Vec::new(), minimal: Vec::new(), end: Lsn::INVALID },
    };
    ctx.progress.phase(phase, Some(route.segments.len() as u64), crate::Unit::Items);
    read(ctx, &route.archive, &route.segments, IndexPart::History, |found| {
        match found {
            Indexed::Run(run) => {
                ctx.progress.advance(run.count);
                walk.stretch(run.index, visitor);
            }
            Indexed::Joined(index) => walk.stretch(*index, visitor),
            Indexed::Hole(hole) => {
                ctx.progress.advance(1);
                walk.lose(hole);
            }
        }
        Ok(())
    })
    .await?;
    walk.unended(visitor);
    Ok(walk.walked)
}

struct Walk {
    major: PgMajor,
    rows: CatalogRows,
    /// Where catalogs lie that were rewritten.
    files: HashMap<(Oid, Catalog), u32>,
    /// Databases that are copied to another tablespace: from where to where.
    moves: HashMap<Oid, (Oid, Oid)>,
    size: WalSegmentSize,
    walked: Walked,
}

impl Walk {
    /// What happened in between is not known, nor what of the state before it still holds.
    fn lose(&mut self, hole: Hole) {
        self.rows = CatalogRows::default();
        self.walked.names.clear(hole.segment.start(self.size).unwrap_or(self.walked.end));
        self.walked.open.clear();
        self.walked.holes.push(hole);
    }

    fn stretch(&mut self, index: WalIndex, visitor: &mut (dyn Visitor + Send)) {
        let WalIndex { start, end, marks, transactions, catalog, volumes, images, .. } = index;
        let ended = transactions.partition_point(|transaction| transaction.end.is_some());
        let last_time = ended.checked_sub(1).and_then(|last| transactions[last].end.as_ref()).map(|end| end.time);
        visitor.stretch(&Stretch { start, volumes: &volumes, images: &images, last_time });
        self.walked.end = self.walked.end.max(end);
        let blind = self.blind(&transactions, &catalog);
        blind.iter().for_each(|(database, catalog)| self.rows.forget(*database, *catalog));
        let (mut marks, mut catalog) = (marks.into_iter().peekable(), catalog.into_iter().peekable());
        let (whole, parts) = transactions.split_at(ended);
        // Which ones outlive a restart must be known before it.
        for transaction in &transactions {
            if let Some(prepared) = &transaction.prepared {
                self.walked.open.entry(transaction.xid).or_default().prepared = Some(prepared.clone());
            }
        }
        for transaction in whole {
            let Some(end) = &transaction.end else { continue };
            self.up_to(end.lsn, &mut marks, &mut catalog, visitor);
            self.ended(transaction, end, visitor);
        }
        self.up_to(Lsn::MAX, &mut marks, &mut catalog, visitor);
        blind.iter().for_each(|(database, catalog)| self.rows.forget(*database, *catalog));
        for part in parts {
            self.walked.open.entry(part.xid).or_default().note(part, Some(start));
        }
    }

    /// Marks and rows of catalogs that lie before a place, in their order.
    fn up_to(
        &mut self,
        lsn: Lsn,
        marks: &mut std::iter::Peekable<impl Iterator<Item = Mark>>,
        catalog: &mut std::iter::Peekable<impl Iterator<Item = CatalogChange>>,
        visitor: &mut (dyn Visitor + Send),
    ) {
        loop {
            let next_mark = marks.peek().map(|mark| mark.lsn).filter(|at| *at < lsn);
            let next_row = catalog.peek().map(|change| change.lsn).filter(|at| *at < lsn);
            match (next_mark, next_row) {
                (None, None) => return,
                (Some(mark), row) if row.is_none_or(|row| mark <= row) => {
                    if let Some(mark) = marks.next() {
                        self.mark(mark, visitor);
                    }
                }
                _ => {
                    if let Some(change) = catalog.next() {
                        let effect = self.rows.apply(&change);
                        if let Some(event) = read_change(&change, effect, self.major)
                            && change.xid != 0
                        {
                            self.walked.open.entry(change.xid).or_default().rows.push(event);
                        }
                    }
                }
            }
        }
    }

    fn mark(&mut self, mark: Mark, visitor: &mut (dyn Visitor + Send)) {
        if mark.wal_level() == Some(WalLevel::Minimal) {
            self.walked.minimal.push(mark.lsn);
        }
        match &mark.kind {
            // Nothing but prepared transactions survives a shutdown, a crash or a new timeline.
            MarkKind::Checkpoint { shutdown: true, .. } | MarkKind::EndOfRecovery { .. } => self.restarted(visitor),
            MarkKind::RelationCreate { rel, fork } => self.walked.names.file_made(rel, *fork),
            MarkKind::DatabaseCreate { database, tablespace, source: Some((source, from)) } if source == database => {
                self.moves.insert(*database, (*from, *tablespace));
            }
            MarkKind::DatabaseCreate { database, tablespace, source } => {
                // A database may lie in several tablespaces; its own is told first, and known by the template's.
                let names = &mut self.walked.names;
                if source.is_none_or(|(source, from)| names.home(source).is_none_or(|home| home == from)) {
                    names.database_made(*database, *tablespace);
                }
                match source {
                    Some((source, from)) => {
                        names.database_copied((*source, *from), (*database, *tablespace));
                        for catalog in Catalog::ALL {
                            if let Some(file) = self.files.get(&(*source, catalog)).copied() {
                                self.catalog_lies(*database, catalog, file);
                            }
                        }
                    }
                    None => names.database_written(*database),
                }
            }
            // `movedb` removes the old files in a transaction of its own, after the move committed.
            MarkKind::DatabaseDrop { database, tablespaces } if mark.xid == 0 => {
                if let Some((from, to)) = self.moves.remove(database).filter(|(from, _)| tablespaces == &[*from]) {
                    self.walked.names.database_moved(*database, from, to);
                }
            }
            MarkKind::RelMap { database, files } => {
                for (oid, file) in files {
                    let Some(catalog) = Catalog::of_oid(*oid) else { continue };
                    // A map speaks of all mapped catalogs, also of those that stay where they are.
                    self.catalog_lies(*database, catalog, *file);
                    self.walked.names.catalog_moved(*database, *oid, *file);
                }
            }
            _ => {}
        }
        visitor.mark(&mark, &self.walked.names);
        let keeps = matches!(
            mark.kind,
            MarkKind::DatabaseDrop { .. } | MarkKind::TablespaceDrop { .. } | MarkKind::Truncate { .. }
        );
        if keeps && mark.xid != 0 {
            self.walked.open.entry(mark.xid).or_default().marks.push(mark);
        }
    }

    /// A catalog lies in this file now.
    fn catalog_lies(&mut self, database: Oid, catalog: Catalog, file: u32) {
        if self.files.insert((database, catalog), file).unwrap_or(catalog.oid().0) != file {
            self.rows.forget(database, catalog);
        }
    }

    /// Catalogs whose rows changed in this stretch, and its index does not tell how: it did not know where they lie.
    fn blind(&self, transactions: &[Transaction], changes: &[CatalogChange]) -> Vec<(Oid, Catalog)> {
        let moved = self.files.iter().filter(|((_, catalog), file)| **file != catalog.oid().0);
        let is_blind = |((database, catalog), file): &(&(Oid, Catalog), &u32)| {
            let is_it = |work: &&RelationWork| work.rel.database == *database && work.rel.relfilenode == **file;
            let rows = transactions.iter().flat_map(|transaction| transaction.work.iter().find(is_it));
            let rows: u64 = rows.map(|work| work.rows.total()).sum();
            let of_it = |change: &&CatalogChange| {
                let is_row = !matches!(change.kind, CatalogChangeKind::Page { .. });
                is_row && (change.database, change.catalog) == (*database, *catalog)
            };
            rows > changes.iter().filter(of_it).count() as u64
        };
        moved.filter(is_blind).map(|(key, _)| *key).collect()
    }

    /// Transactions that ran are no more, but those that were prepared, with their subtransactions.
    fn restarted(&mut self, visitor: &mut (dyn Visitor + Send)) {
        let mut stays: HashSet<Xid> = HashSet::new();
        for (xid, open) in &self.walked.open {
            if let Some(prepared) = &open.prepared {
                stays.insert(*xid);
                stays.extend(&prepared.subxacts);
            }
        }
        let mut gone: Vec<(Xid, Open)> = self.walked.open.extract_if(|xid, _| !stays.contains(xid)).collect();
        gone.sort_unstable_by_key(|(xid, _)| *xid);
        for (xid, open) in gone {
            self.broken_off(xid, None, &open, Undone::Crashed, visitor);
        }
    }

    /// The end of the archive.
    fn unended(&mut self, visitor: &mut (dyn Visitor + Send)) {
        let open = std::mem::take(&mut self.walked.open);
        let mut xids: Vec<Xid> = open.iter().filter(|(_, open)| open.prepared.is_none()).map(|(xid, _)| *xid).collect();
        xids.sort_unstable();
        for xid in xids {
            self.broken_off(xid, None, &open[&xid], Undone::Unended, visitor);
        }
        self.walked.open = open;
    }

    /// Tells of a transaction that did not commit, when what it did cannot be taken back.
    fn broken_off(
        &self,
        xid: Xid,
        end: Option<&XactEndFacts>,
        open: &Open,
        why: Undone,
        visitor: &mut (dyn Visitor + Send),
    ) {
        let removes = |event: &RowEvent| event.verb == Verb::Delete && event.catalog() == Catalog::Database;
        let last_removal = open.rows.iter().filter(|event| removes(event)).map(|event| event.lsn).max();
        let mark = open.marks.iter().filter(|mark| matches!(mark.kind, MarkKind::TablespaceDrop { .. }));
        let Some(last) = mark.map(|mark| mark.lsn).chain(last_removal).max() else { return };
        let unended = XactEndFacts {
            outcome: Outcome::Abort,
            lsn: last,
            time: TimestampTz(0),
            prepared: false,
            database: None,
            subxacts: Box::default(),
            dropped: Box::default(),
        };
        let folded = Folded::of(&open.rows, &self.walked.names);
        let done = Done::of(xid, end.unwrap_or(&unended), open, &[], Some(&folded));
        visitor.broken_off(&done, why, &self.walked.names);
    }

    fn ended(&mut self, transaction: &Transaction, end: &XactEndFacts, visitor: &mut (dyn Visitor + Send)) {
        let open = &mut self.walked.open;
        let mut before = if open.is_empty() { None } else { open.remove(&transaction.xid) };
        let known = before.as_ref().and_then(|open| open.prepared.as_ref()).map(|prepared| prepared.subxacts.clone());
        for sub in transaction.subxacts().iter().chain(known.iter().flatten()) {
            if let Some(part) = open.remove(sub) {
                before.get_or_insert_default().absorb(part);
            }
        }
        if end.outcome == Outcome::Abort {
            if let Some(whole) = &before {
                self.broken_off(transaction.xid, Some(end), whole, Undone::RolledBack, visitor);
            }
            return visitor.aborted(transaction.xid, end);
        }
        let Some(mut whole) = before else {
            // Most transactions: all of it lies here, and it did nothing to catalogs.
            let untold = self.untold(&[], &transaction.work);
            self.follow(&[], &untold, end);
            let done = Done {
                xid: transaction.xid,
                end,
                prepared: transaction.prepared.as_deref(),
                first: transaction.extent.map(|extent| extent.first),
                bytes: transaction.extent.map_or(0, |extent| extent.bytes),
                work: &transaction.work,
                marks: &[],
                folded: None,
            };
            return visitor.committed(&done, &self.walked.names);
        };
        whole.note(transaction, None);
        whole.rows.sort_by_key(|event| event.lsn);
        let mut folded = (!whole.rows.is_empty()).then(|| Folded::of(&whole.rows, &self.walked.names));
        let work: Vec<RelationWork> =
            whole.work.iter().map(|(rel, rows)| RelationWork { rel: *rel, rows: *rows }).collect();
        let untold = self.untold(&whole.rows, &work);
        if let Some(folded) = folded.as_mut().filter(|_| untold.iter().any(|(_, catalog)| *catalog == Catalog::Class)) {
            // Its rows lie in several segments, and not all of their indexes knew where the catalog lies.
            folded.unknown += 1;
        }
        self.follow(&whole.rows, &untold, end);
        let done = Done::of(transaction.xid, end, &whole, &work, folded.as_ref());
        visitor.committed(&done, &self.walked.names);
    }

    /// Catalogs of which not all rows are told that a transaction changed: an index that was made without knowing where
    /// a catalog lies counts its rows, and does not tell them.
    fn untold(&self, rows: &[RowEvent], work: &[RelationWork]) -> Vec<(Oid, Catalog)> {
        let moved = self.files.iter().filter(|((_, catalog), file)| **file != catalog.oid().0);
        let untold = moved.filter(|((database, catalog), file)| {
            let is_it = |work: &&RelationWork| work.rel.database == *database && work.rel.relfilenode == **file;
            let told = rows.iter().filter(|event| event.catalog() == *catalog && event.database == *database).count();
            work.iter().find(is_it).is_some_and(|work| work.rows.total() > told as u64)
        });
        untold.map(|(key, _)| *key).collect()
    }

    /// Names follow a transaction that committed.
    fn follow(&mut self, rows: &[RowEvent], untold: &[(Oid, Catalog)], end: &XactEndFacts) {
        let names = &mut self.walked.names;
        if end.lsn < names.from {
            return;
        }
        let mut moved = Vec::new();
        for event in rows {
            names.apply(event);
            if let What::Class { new: Some(row), .. } = &event.what
                && row.oid == Catalog::Namespace.oid()
            {
                moved.push((event.database, row.relfilenode));
            }
        }
        for (database, catalog) in untold {
            names.lose(*database, *catalog, end.lsn);
        }
        // It is no mapped catalog: its row tells where it lies. Its old file goes with the transaction that moves it.
        for (database, file) in moved {
            self.catalog_lies(database, Catalog::Namespace, file);
            self.walked.names.see_schemas(database, end.lsn);
        }
        for file in &end.dropped {
            let (database, catalog) = (file.database, Catalog::Namespace);
            if self.files.get(&(database, catalog)).copied().unwrap_or(catalog.oid().0) == file.relfilenode {
                self.walked.names.lose_sight_of_schemas(database, end.lsn);
            }
        }
    }
}
