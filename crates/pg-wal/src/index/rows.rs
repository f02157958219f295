//! Catalog rows brought forward: what each place of a catalog holds, change by change.

use std::collections::BTreeMap;

use crate::index::{Catalog, CatalogChange, CatalogChangeKind, CatalogRow, RowImage, TupleId};
use crate::types::Oid;

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPlace {
    /// The database, 0 for shared catalogs.
    pub database: Oid,
    /// The catalog.
    pub catalog: Catalog,
    /// The place in it.
    pub at: TupleId,
}

/// The rows of catalogs, as far as they are known. Deleted ones stay until their place is used again.
///
/// Every page is seen as an image when it is changed for the first time after a checkpoint (with `full_page_writes`), so
/// all rows that are changed are known when the changes are applied from a checkpoint's redo LSN on.
#[derive(Debug, Clone, Default)]
pub struct CatalogRows {
    rows: BTreeMap<RowPlace, RowImage>,
}

/// What a change did to a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowChange {
    /// The row before, for updates and deletes; `None` when it is not known.
    pub old: Option<RowImage>,
    /// The row after, for inserts and updates; `None` when it is not known.
    pub new: Option<RowImage>,
}

impl CatalogRows {
    /// Applies a change; they must come in the order of the WAL. Of a page image it takes the rows and says nothing.
    pub fn apply(&mut self, change: &CatalogChange) -> RowChange {
        let place = |at| RowPlace { database: change.database, catalog: change.catalog, at };
        match &change.kind {
            CatalogChangeKind::Page { block, rows } => {
                let (first, last) = (TupleId { block: *block, offset: 0 }, TupleId { block: *block, offset: u16::MAX });
                let gone: Vec<_> = self.rows.range(place(first)..=place(last)).map(|(place, _)| *place).collect();
                gone.iter().for_each(|place| drop(self.rows.remove(place)));
                let rows = rows.iter().map(|(offset, row)| (TupleId { block: *block, offset: *offset }, row.clone()));
                self.rows.extend(rows.map(|(at, row)| (place(at), row)));
                RowChange::default()
            }
            CatalogChangeKind::Insert { at, row } => {
                let new = self.put(place(*at), row, None);
                RowChange { old: None, new }
            }
            CatalogChangeKind::Update { old, new, row } => {
                let old = self.rows.get(&place(*old)).cloned();
                let new = self.put(place(*new), row, old.as_ref());
                RowChange { old, new }
            }
            CatalogChangeKind::Delete { at } => RowChange { old: self.rows.get(&place(*at)).cloned(), new: None },
        }
    }

    fn put(&mut self, place: RowPlace, row: &CatalogRow, old: Option<&RowImage>) -> Option<RowImage> {
        let new = match row {
            CatalogRow::Whole(row) => Some(row.clone()),
            CatalogRow::Patch(patch) => old.and_then(|old| patch.over(old, place.catalog)),
            CatalogRow::Unknown => None,
        };
        match &new {
            Some(row) => drop(self.rows.insert(place, row.clone())),
            // What was there before is not it.
            None => drop(self.rows.remove(&place)),
        }
        new
    }

    /// Forgets the rows of a catalog that got another file: its places hold other rows now.
    pub fn forget(&mut self, database: Oid, catalog: Catalog) {
        self.rows.retain(|place, _| (place.database, place.catalog) != (database, catalog));
    }

    /// The row at a place.
    pub fn get(&self, place: &RowPlace) -> Option<&RowImage> {
        self.rows.get(place)
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = (&RowPlace, &RowImage)> {
        self.rows.iter()
    }
}
