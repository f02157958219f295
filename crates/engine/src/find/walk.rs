//! The index of archived WAL read in order: transactions are put together from their parts, and names are brought
//! forward by those that committed.

use super::fold::{Folded, RowEvent};
use super::names::{Names, read_change};
use super::route::Route;
use crate::wal::index::{Hole, Indexed, read};
use crate::{Context, EngineError};
use pg_format::{Lsn, PgMajor};
use pg_wal::WalIndex;
use pg_wal::index::{
    Catalog, CatalogRows, Mark, MarkKind, Outcome, Prepared, RelationVolume, RelationWork, RowCounts, Transaction,
    XactEndFacts,
};
use pg_wal::{Oid, RelFileLocator, Xid};
use repo::wal_index::IndexPart;
use std::collections::{BTreeMap, HashMap};

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

/// A stretch of WAL that was indexed as one.
pub(super) struct Stretch<'a> {
    pub(super) start: Lsn,
    /// The WAL of each relation.
    pub(super) volumes: &'a [RelationVolume],
    /// The last end of a transaction in it, in microseconds since 2000.
    pub(super) last_time: Option<pg_wal::TimestampTz>,
}

/// Who is told what the walk comes by.
pub(super) trait Visitor {
    /// A transaction committed; `names` are those after it.
    fn committed(&mut self, done: &Done<'_>, names: &Names);

    /// A transaction, or a part of one, was rolled back.
    fn aborted(&mut self, _: Xid, _: &XactEndFacts) {}

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
    /// The end of what was read.
    pub(super) end: Lsn,
}

/// Reads all of the way, and tells `visitor`.
pub(super) async fn walk(
    ctx: &Context,
    route: &Route,
    names: Names,
    visitor: &mut (dyn Visitor + Send),
) -> Result<Walked, EngineError> {
    let mut walk = Walk {
        major: route.major,
        rows: CatalogRows::default(),
        files: HashMap::new(),
        walked: Walked { names, open: HashMap::new(), holes: Vec::new(), end: Lsn::INVALID },
    };
    ctx.progress.phase("reading the WAL index", Some(route.segments.len() as u64), crate::Unit::Items);
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
    Ok(walk.walked)
}

struct Walk {
    major: PgMajor,
    rows: CatalogRows,
    /// Where catalogs lie that were rewritten.
    files: HashMap<(Oid, Catalog), u32>,
    walked: Walked,
}

impl Walk {
    /// What happened in between is not known, nor what of the state before it still holds.
    fn lose(&mut self, hole: Hole) {
        self.rows = CatalogRows::default();
        self.walked.names.clear();
        self.walked.open.clear();
        self.walked.holes.push(hole);
    }

    fn stretch(&mut self, index: WalIndex, visitor: &mut (dyn Visitor + Send)) {
        let WalIndex { start, end, marks, transactions, catalog, volumes, .. } = index;
        let ended = transactions.partition_point(|transaction| transaction.end.is_some());
        let last_time = ended.checked_sub(1).and_then(|last| transactions[last].end.as_ref()).map(|end| end.time);
        visitor.stretch(&Stretch { start, volumes: &volumes, last_time });
        self.walked.end = self.walked.end.max(end);
        let (mut marks, mut catalog) = (marks.into_iter().peekable(), catalog.into_iter().peekable());
        let (whole, parts) = transactions.split_at(ended);
        for transaction in whole {
            let Some(end) = &transaction.end else { continue };
            self.up_to(end.lsn, &mut marks, &mut catalog, visitor);
            self.ended(transaction, end, visitor);
        }
        self.up_to(Lsn::MAX, &mut marks, &mut catalog, visitor);
        for part in parts {
            self.walked.open.entry(part.xid).or_default().note(part, Some(start));
        }
    }

    /// Marks and rows of catalogs that lie before a place, in their order.
    fn up_to(
        &mut self,
        lsn: Lsn,
        marks: &mut std::iter::Peekable<impl Iterator<Item = Mark>>,
        catalog: &mut std::iter::Peekable<impl Iterator<Item = pg_wal::index::CatalogChange>>,
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
        match &mark.kind {
            // Nothing but prepared transactions survives a shutdown, a crash or a new timeline.
            MarkKind::Checkpoint { shutdown: true, .. } | MarkKind::EndOfRecovery { .. } => {
                self.walked.open.retain(|_, open| open.prepared.is_some());
            }
            MarkKind::RelationCreate { rel, fork } => self.walked.names.file_made(rel, *fork),
            MarkKind::DatabaseCreate { database, tablespace, .. } => {
                self.walked.names.database_made(*database, *tablespace);
            }
            MarkKind::RelMap { database, files } => {
                for (oid, file) in files {
                    let Some(catalog) = Catalog::of_oid(*oid) else { continue };
                    // A map speaks of all mapped catalogs, also of those that stay where they are.
                    if self.files.insert((*database, catalog), *file).unwrap_or(oid.0) != *file {
                        self.rows.forget(*database, catalog);
                    }
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
            return visitor.aborted(transaction.xid, end);
        }
        let Some(mut whole) = before else {
            // Most transactions: all of it lies here, and it did nothing to catalogs.
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
        let folded = (!whole.rows.is_empty()).then(|| Folded::of(&whole.rows, &self.walked.names));
        whole.rows.iter().for_each(|event| self.walked.names.apply(event));
        let work: Vec<RelationWork> =
            whole.work.iter().map(|(rel, rows)| RelationWork { rel: *rel, rows: *rows }).collect();
        let done = Done {
            xid: transaction.xid,
            end,
            prepared: whole.prepared.as_deref(),
            first: whole.first,
            bytes: whole.bytes,
            work: &work,
            marks: &whole.marks,
            folded: folded.as_ref(),
        };
        visitor.committed(&done, &self.walked.names);
    }
}
