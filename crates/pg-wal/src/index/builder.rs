//! Makes an index, record by record.

use crate::bytes::u32_at;
use crate::error::WalError;
use crate::event::{Event, XactEnd, plain_end};
use crate::facts::{SegmentFacts, scan_segment_with};
use crate::heap::HeapChange;
use crate::index::WalIndex;
use crate::index::catalog::{self, Catalog, CatalogChange, CatalogFiles};
use crate::index::changes::{DatabaseKey, RelationTable};
use crate::index::images::Images;
use crate::index::marks::{Mark, MarkKind};
use crate::index::xacts::{OpenXacts, Outcome, Prepared, Shapes, Transaction, XactEndFacts};
use crate::reader::{BLOCK_SIZE_USUAL, Expected};
use crate::record::Record;
use crate::rmgr::Rmgr;
use crate::types::{BlockNumber, Fork, Lsn, Oid, RelFileLocator, TimestampTz, Xid};

/// What must be known to make an index.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// The size of relation pages (`BLCKSZ`).
    pub block_size: u32,
    /// Catalogs that do not lie in the file they had first: database, catalog, relfilenode. What relation map updates
    /// say is added.
    pub moved_catalogs: Vec<(Oid, Catalog, u32)>,
}

impl IndexOptions {
    /// A server as it is usually built, with no catalog rewritten.
    pub fn usual() -> Self {
        Self { block_size: BLOCK_SIZE_USUAL, moved_catalogs: Vec::new() }
    }
}

/// Makes the index of one segment from the records that lie whole in it, in the same pass that finds its facts.
///
/// # Errors
/// The outer error as [`scan_segment`](crate::scan_segment): these bytes are not that segment. The inner one when its
/// records cannot be indexed: one of those that change files has not the form it should have.
pub fn index_segment(
    bytes: &[u8],
    expected: Option<&Expected>,
    options: &IndexOptions,
) -> Result<(SegmentFacts, Result<WalIndex, WalError>), WalError> {
    let mut builder = IndexBuilder::new(options);
    let facts = scan_segment_with(bytes, expected, |record| builder.add(record))?;
    let index = builder.finish(facts.info.start, facts.valid_end);
    Ok((facts, index))
}

/// Makes an index from records given in the order of the WAL.
#[derive(Debug)]
pub struct IndexBuilder {
    /// `HEAPBLOCKS_PER_PAGE` (`access/heap/visibilitymap.c`).
    heap_blocks_per_vm_page: u32,
    catalogs: CatalogFiles,
    relations: RelationTable,
    open: OpenXacts,
    ended: Vec<Transaction>,
    shapes: Shapes,
    marks: Vec<Mark>,
    catalog: Vec<CatalogChange>,
    images: Images,
    page: Vec<u8>,
    problem: Option<WalError>,
}

impl IndexBuilder {
    /// An empty one.
    pub fn new(options: &IndexOptions) -> Self {
        let moved = options.moved_catalogs.iter().map(|(database, catalog, file)| (*database, *file, *catalog));
        Self {
            // Two bits for each heap page, after a page header of 24 bytes.
            heap_blocks_per_vm_page: (options.block_size.max(32) - 24) * 4,
            catalogs: CatalogFiles { moved: moved.collect() },
            relations: RelationTable::default(),
            open: OpenXacts::default(),
            ended: Vec::new(),
            shapes: Shapes::default(),
            marks: Vec::new(),
            catalog: Vec::new(),
            images: Images::default(),
            page: Vec::new(),
            problem: None,
        }
    }

    /// Adds a record. What is wrong with it is told by [`finish`](Self::finish).
    #[inline]
    pub fn add(&mut self, record: &Record<'_>) {
        let xid = record.header.xid;
        if xid != 0 {
            let open = self.open.get(xid);
            if open.bytes == 0 {
                open.first = record.lsn;
            }
            open.bytes += u64::from(record.header.total_len);
            if let Some(top) = record.body.toplevel_xid {
                open.top = Some(top);
            }
        }
        if let Some((time, commits)) = plain_end(record) {
            let outcome = if commits { Outcome::Commit } else { Outcome::Abort };
            return self.plain_end(record, time, outcome);
        }
        // Limits first, then blocks: `SummarizeWAL`.
        let read = match record.rmgr {
            Rmgr::Heap | Rmgr::Heap2 => {
                self.heap(record);
                Ok(())
            }
            Rmgr::Xlog | Rmgr::Transaction | Rmgr::Storage | Rmgr::Database | Rmgr::Tablespace | Rmgr::RelMap => {
                Event::of(record).map(|event| self.event(record, event))
            }
            // What an extension does to files beyond its block references cannot be known.
            Rmgr::Custom(_) if record.header.is_special_rel_update() => {
                let what = "an extension changes relation files in a way of its own";
                Err(WalError::BadRecord { lsn: record.lsn, what })
            }
            _ => Ok(()),
        };
        if let Err(error) = read {
            self.problem.get_or_insert(error);
        }
        let blocks = record.blocks();
        let mut counted = None;
        for block in blocks {
            let number = self.relations.number(block.rel);
            self.relations.mark(number, block.fork, block.block.0);
            if let Some(image) = &block.image {
                let counted = self.relations.volume(*counted.get_or_insert(number));
                counted.images += 1;
                counted.image_bytes += u64::from(image.len);
                self.images.image(image.len.into());
            }
            counted.get_or_insert(number);
        }
        if let Some(number) = counted {
            let volume = self.relations.volume(number);
            volume.records += 1;
            volume.bytes += u64::from(record.header.total_len);
        }
    }

    /// Row counts, and rows of catalogs.
    #[inline]
    fn heap(&mut self, record: &Record<'_>) {
        let Some(change) = HeapChange::of(record) else {
            self.misunderstood(record.lsn);
            return;
        };
        if let HeapChange::Truncate { database, relations } = change {
            self.mark(record, MarkKind::Truncate { database, relations });
            return;
        }
        self.catalog_rows(record, &change);
        // A transaction that changes rows has an id.
        if change == HeapChange::None || record.header.xid == 0 {
            return;
        }
        let Some(first) = record.blocks().first() else { return };
        let number = self.relations.number(first.rel);
        let rows = self.open.get(record.header.xid).rows(number);
        match change {
            HeapChange::Insert { .. } => rows.inserted += 1,
            HeapChange::MultiInsert { rows: count } => rows.multi_inserted += u64::from(count),
            HeapChange::Delete { .. } => rows.deleted += 1,
            HeapChange::InsertTakenBack => rows.inserted = rows.inserted.saturating_sub(1),
            HeapChange::Update { hot: true, .. } => rows.hot_updated += 1,
            HeapChange::Update { hot: false, .. } => rows.updated += 1,
            HeapChange::Truncate { .. } | HeapChange::None => {}
        }
    }

    /// Keeps rows of the catalogs that give names.
    #[inline]
    fn catalog_rows(&mut self, record: &Record<'_>, change: &HeapChange) {
        let Some(first) = record.blocks().first() else { return };
        let Some(catalog) = self.catalogs.find(&first.rel) else { return };
        let before = self.catalog.len();
        catalog::read(record, catalog, change, &mut self.page, &mut self.catalog);
        if self.catalog.len() > before && record.header.xid != 0 {
            self.open.get(record.header.xid).notable = true;
        }
    }

    fn misunderstood(&mut self, lsn: Lsn) {
        let what = "its main data has not the form of its kind";
        self.problem.get_or_insert(WalError::BadRecord { lsn, what });
    }

    fn mark(&mut self, record: &Record<'_>, kind: MarkKind) {
        let xid = record.header.xid;
        if xid != 0 {
            self.open.get(xid).notable = true;
        }
        self.marks.push(Mark { lsn: record.lsn, xid, kind });
    }

    fn event(&mut self, record: &Record<'_>, event: Event) {
        let kind = match event {
            Event::Commit(end) => return self.end(record, end, Outcome::Commit),
            Event::Abort(end) => return self.end(record, end, Outcome::Abort),
            Event::Prepare(prepare) => {
                let mut subxacts = prepare.subxacts;
                subxacts.sort_unstable();
                subxacts.dedup();
                let (lsn, time, gid) = (record.lsn, prepare.time, prepare.gid);
                self.fold(prepare.xid, &subxacts);
                let prepared = Prepared { lsn, time, gid, database: prepare.database, subxacts };
                self.open.get(prepare.xid).prepared = Some(Box::new(prepared));
                return;
            }
            Event::Assignment { top, subxacts } => {
                subxacts.into_iter().for_each(|xid| self.open.get(xid).top = Some(top));
                return;
            }
            Event::RestorePoint { time, name } => MarkKind::RestorePoint { name, time, end: record.end_lsn },
            Event::Checkpoint(checkpoint) => MarkKind::Checkpoint {
                redo: checkpoint.redo,
                timeline: checkpoint.timeline,
                timeline_prev: checkpoint.timeline_prev,
                shutdown: checkpoint.shutdown,
                wal_level: checkpoint.wal_level,
            },
            Event::CheckpointRedo { wal_level } => MarkKind::WalLevel { level: wal_level },
            Event::ParameterChange(parameters) => MarkKind::WalLevel { level: parameters.wal_level },
            Event::EndOfRecovery { time, timeline, timeline_prev, wal_level } => {
                MarkKind::EndOfRecovery { timeline, timeline_prev, time, wal_level }
            }
            Event::FullPageWritesChange { full_page_writes } => MarkKind::FullPageWrites { on: full_page_writes },
            Event::OverwriteContrecord { overwritten, time } => MarkKind::Overwritten { lost: overwritten, time },
            Event::RelationCreate { rel, fork } => {
                self.relations.limit(rel, fork, 0);
                MarkKind::RelationCreate { rel, fork }
            }
            Event::RelationTruncate { rel, blocks: BlockNumber(blocks), forks } => {
                // The free space map is not fully logged, and read whole: no limit for it.
                if forks.main() {
                    self.relations.limit(rel, Fork::Main, blocks);
                }
                if forks.visibility() {
                    self.relations.limit(rel, Fork::Vm, blocks.div_ceil(self.heap_blocks_per_vm_page));
                }
                MarkKind::RelationTruncate { rel, blocks }
            }
            Event::DatabaseCreateFileCopy { database, tablespace, source_database, source_tablespace } => {
                self.relations.database(DatabaseKey { tablespace, database });
                let source = Some((source_database, source_tablespace));
                MarkKind::DatabaseCreate { database, tablespace, source }
            }
            Event::DatabaseCreateWalLog { database, tablespace } => {
                self.relations.database(DatabaseKey { tablespace, database });
                MarkKind::DatabaseCreate { database, tablespace, source: None }
            }
            Event::DatabaseDrop { database, tablespaces } => {
                for tablespace in tablespaces.iter().copied() {
                    self.relations.database(DatabaseKey { tablespace, database });
                }
                MarkKind::DatabaseDrop { database, tablespaces }
            }
            Event::TablespaceCreate { tablespace, path } => MarkKind::TablespaceCreate { tablespace, path },
            Event::TablespaceDrop { tablespace } => MarkKind::TablespaceDrop { tablespace },
            Event::RelMapUpdate { database, map_len, .. } => self.relation_map(record, database, map_len),
            // With checksums a page's first image after a checkpoint may come alone.
            Event::FullPageImages { .. } => return self.catalog_rows(record, &HeapChange::None),
            Event::Switch
            | Event::Noop
            | Event::NextOid { .. }
            | Event::BackupEnd { .. }
            | Event::RunningXacts { .. }
            | Event::Other => return,
        };
        self.mark(record, kind);
    }

    /// `RelMapFile` (`utils/cache/relmapper.c`): magic, number of entries, entries of OID and relfilenode.
    fn relation_map(&mut self, record: &Record<'_>, database: Oid, map_len: u32) -> MarkKind {
        let map = record.main_data().get(12..).unwrap_or_default();
        let map = &map[..map.len().min(map_len as usize)];
        let count = u32_at(map, 4).unwrap_or(0).min(64) as usize;
        let entries = map.get(8..).unwrap_or_default().as_chunks::<8>().0.iter().take(count);
        let files: Vec<(Oid, u32)> = entries
            .filter_map(|entry| Some((Oid(u32_at(entry, 0)?), u32_at(entry, 4)?)))
            .filter(|(oid, _)| Catalog::of_oid(*oid).is_some())
            .collect();
        for (oid, file) in &files {
            if let Some(catalog) = Catalog::of_oid(*oid) {
                let moved = &mut self.catalogs.moved;
                moved.retain(|entry| (entry.0, entry.2) != (database, catalog));
                moved.push((database, *file, catalog));
            }
        }
        MarkKind::RelMap { database, files }
    }

    /// Adds what subtransactions did to what their transaction did.
    fn fold(&mut self, xid: Xid, subxacts: &[Xid]) {
        for sub in subxacts {
            if let Some(part) = self.open.take(*sub) {
                self.open.get(xid).absorb(part);
            }
        }
    }

    fn end(&mut self, record: &Record<'_>, end: XactEnd, outcome: Outcome) {
        let XactEnd { xid, time, database, mut subxacts, mut dropped, prepared, .. } = end;
        for rel in &dropped {
            // As the server does, whatever forks there were.
            [Fork::Main, Fork::Vm, Fork::Init].into_iter().for_each(|fork| self.relations.limit(*rel, fork, 0));
        }
        subxacts.sort_unstable();
        subxacts.dedup();
        dropped.sort_unstable();
        self.fold(xid, &subxacts);
        // Replayed or not: a transaction without an id that ends (it only dropped files) is noted when it did something.
        if xid == 0 && dropped.is_empty() {
            return;
        }
        let (lsn, subxacts, dropped) = (record.lsn, subxacts.into(), dropped.into());
        self.close(xid, XactEndFacts { outcome, lsn, time, prepared, database, subxacts, dropped });
    }

    /// A transaction ended, and there is no more to say of it.
    #[inline]
    fn plain_end(&mut self, record: &Record<'_>, time: TimestampTz, outcome: Outcome) {
        if record.header.xid != 0 {
            let (subxacts, dropped) = Default::default();
            let (lsn, prepared, database) = (record.lsn, false, None);
            let facts = XactEndFacts { outcome, lsn, time, prepared, database, subxacts, dropped };
            self.close(record.header.xid, facts);
        }
    }

    fn close(&mut self, xid: Xid, end: XactEndFacts) {
        self.images.end(end.time);
        let mut open = self.open.take(xid).unwrap_or_default();
        open.top = None;
        open.notable |= !end.dropped.is_empty();
        let relations = &self.relations;
        let closed = open.finish(xid, Some(end), &mut self.shapes, |number| relations.rel(number));
        self.ended.push(closed);
        self.open.recycle(open);
    }

    /// The index of the records added; they begin and end between these places.
    ///
    /// # Errors
    /// When a record that tells of changed files could not be understood: the index would hide changes.
    pub fn finish(mut self, start: Lsn, end: Lsn) -> Result<WalIndex, WalError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let mut transactions = self.ended;
        let relations = &self.relations;
        for (xid, mut open) in self.open.drain() {
            let transaction = open.finish(xid, None, &mut self.shapes, |number| relations.rel(number));
            transactions.push(transaction);
        }
        let (changes, volumes) = self.relations.finish();
        let (marks, catalog, images) = (self.marks, self.catalog, self.images);
        Ok(WalIndex { start, end, changes, marks, transactions, catalog, volumes, images })
    }
}

impl DatabaseKey {
    /// The directory that a relation lies in.
    pub fn of(rel: &RelFileLocator) -> Self {
        Self { tablespace: rel.tablespace, database: rel.database }
    }
}
