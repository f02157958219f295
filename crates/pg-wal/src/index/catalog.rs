//! Rows of the catalogs that give names: `pg_class`, `pg_namespace`, `pg_database`, `pg_tablespace`.
//!
//! Only the fixed beginning of a row is kept. An update may leave out what the new version shares with the old one
//! (`log_heap_update`, `access/heap/heapam.c`): it is kept as a patch, to be laid over the old version. That one is in
//! the page image that came with the first change of the page after a checkpoint, or in a row that was written since:
//! all of these are kept too.

use crate::bytes::{u16_at, u32_at};
use crate::heap::{HeapChange, UPDATE_PREFIX_FROM_OLD, UPDATE_SUFFIX_FROM_OLD};
use crate::image::restore_block_image;
use crate::record::{BlockRef, Record};
use crate::types::{Fork, Lsn, Oid, PgMajor, RelFileLocator, Xid};

/// A catalog that gives names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Catalog {
    /// `pg_class`.
    Class,
    /// `pg_namespace`.
    Namespace,
    /// `pg_database`, shared by all databases.
    Database,
    /// `pg_tablespace`, shared by all databases.
    Tablespace,
}

impl Catalog {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Class, Self::Namespace, Self::Database, Self::Tablespace];

    /// Its OID, which is also its relfilenode until it is rewritten (`catalog/pg_*.h`).
    pub const fn oid(self) -> Oid {
        Oid(match self {
            Self::Class => 1259,
            Self::Namespace => 2615,
            Self::Database => 1262,
            Self::Tablespace => 1213,
        })
    }

    /// The catalog with this OID.
    pub fn of_oid(oid: Oid) -> Option<Self> {
        Self::ALL.into_iter().find(|catalog| catalog.oid() == oid)
    }

    /// How many bytes of a row are kept at most: what is of use lies before.
    pub const fn head_len(self) -> usize {
        match self {
            Self::Class => 120,
            Self::Namespace | Self::Database | Self::Tablespace => 68,
        }
    }
}

/// The place of a row: block and line pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TupleId {
    /// The block.
    pub block: u32,
    /// The line pointer, from 1.
    pub offset: u16,
}

/// The beginning of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowImage {
    /// The whole length of its values, without header and null bitmap.
    pub len: u16,
    /// Its first bytes, at most [`Catalog::head_len`].
    pub head: Vec<u8>,
}

/// A new version of a row, as far as it differs from the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPatch {
    /// The whole length of its values.
    pub len: u16,
    /// So many first bytes are those of the old version.
    pub prefix: u16,
    /// So many last bytes are those of the old version.
    pub suffix: u16,
    /// What lies between, as far as it falls into the first [`Catalog::head_len`] bytes.
    pub bytes: Vec<u8>,
}

impl RowPatch {
    /// The new version, when the old one is known as far as it is needed.
    pub fn over(&self, old: &RowImage, catalog: Catalog) -> Option<RowImage> {
        let want = catalog.head_len().min(usize::from(self.len));
        let (prefix, end) = (usize::from(self.prefix), usize::from(self.len.checked_sub(self.suffix)?));
        let mut head = Vec::with_capacity(want);
        for at in 0..want {
            let byte = if at < prefix {
                old.head.get(at)
            } else if at < end {
                self.bytes.get(at - prefix)
            } else {
                // The shared end moved when the length changed.
                (at + usize::from(old.len)).checked_sub(usize::from(self.len)).and_then(|at| old.head.get(at))
            };
            head.push(*byte?);
        }
        Some(RowImage { len: self.len, head })
    }
}

/// What is known of a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogRow {
    /// All that is kept of rows.
    Whole(RowImage),
    /// The difference to the old version.
    Patch(RowPatch),
    /// Nothing.
    Unknown,
}

/// A change of a catalog's row, or rows that a page image shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogChange {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The transaction; maybe a subtransaction.
    pub xid: Xid,
    /// The database, 0 for shared catalogs.
    pub database: Oid,
    /// The catalog.
    pub catalog: Catalog,
    /// What happened.
    pub kind: CatalogChangeKind,
}

/// What happened to a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogChangeKind {
    /// The rows that lie on a page after the record, of which the image was taken. It comes before the change itself.
    /// Deleted rows are among them, and old versions.
    Page {
        /// The block.
        block: u32,
        /// Line pointers and rows.
        rows: Vec<(u16, RowImage)>,
    },
    /// A row is added.
    Insert {
        /// Where.
        at: TupleId,
        /// The row.
        row: CatalogRow,
    },
    /// A row is replaced.
    Update {
        /// The old version.
        old: TupleId,
        /// The new version.
        new: TupleId,
        /// What it is.
        row: CatalogRow,
    },
    /// A row is deleted.
    Delete {
        /// Which.
        at: TupleId,
    },
}

/// A row of `pg_class` (`catalog/pg_class.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRow {
    /// The relation's OID.
    pub oid: Oid,
    /// Its name, in the database's encoding.
    pub name: Vec<u8>,
    /// Its schema.
    pub namespace: Oid,
    /// Its file; 0 for those without one, and for mapped catalogs.
    pub relfilenode: u32,
    /// Its tablespace; 0 for the database's own.
    pub tablespace: Oid,
    /// How many pages it had when it was last counted. Counting changes the row in place, which is not followed.
    pub pages: u32,
    /// How many rows it had then; `None` when they were never counted.
    pub tuples: Option<u64>,
    /// `p`, `u` or `t`.
    pub persistence: u8,
    /// `r`, `i`, `S`, `t`, `v`, `m`, `c`, `f`, `p`, `I`.
    pub kind: u8,
}

impl RowImage {
    /// OID and name: what all these catalogs begin with.
    pub fn oid_and_name(&self) -> Option<(Oid, &[u8])> {
        let name = self.head.get(4..68)?;
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Some((Oid(u32_at(&self.head, 0)?), &name[..len]))
    }

    /// Reads it as a row of `pg_class`. The columns up to `relallvisible` are the same in 14 to 18; 18 put
    /// `relallfrozen` after it.
    pub fn class(&self, major: PgMajor) -> Option<ClassRow> {
        let (oid, name) = self.oid_and_name()?;
        let shift = if major >= PgMajor::V18 { 4 } else { 0 };
        Some(ClassRow {
            oid,
            name: name.to_vec(),
            namespace: Oid(u32_at(&self.head, 68)?),
            relfilenode: u32_at(&self.head, 88)?,
            tablespace: Oid(u32_at(&self.head, 92)?),
            pages: u32_at(&self.head, 96)?,
            // A float4; -1 stands for "not known" since 14.
            tuples: Some(f32::from_bits(u32_at(&self.head, 100)?)).filter(|rows| *rows >= 0.0).map(|rows| rows as u64),
            persistence: *self.head.get(114 + shift)?,
            kind: *self.head.get(115 + shift)?,
        })
    }
}

/// Which relation files are catalogs that give names.
#[derive(Debug, Clone, Default)]
pub(crate) struct CatalogFiles {
    /// Those that were rewritten: database, relfilenode.
    pub(crate) moved: Vec<(Oid, u32, Catalog)>,
}

impl CatalogFiles {
    /// Relfilenodes below 16384 are given out by `initdb` only: these always mean the catalog.
    #[inline]
    pub(crate) fn find(&self, rel: &RelFileLocator) -> Option<Catalog> {
        if rel.relfilenode >= 16384 {
            if self.moved.is_empty() {
                return None;
            }
            let moved = |entry: &&(Oid, u32, Catalog)| (entry.0, entry.1) == (rel.database, rel.relfilenode);
            return self.moved.iter().rev().find(moved).map(|entry| entry.2);
        }
        Catalog::of_oid(Oid(rel.relfilenode))
    }
}

/// Where a row's values begin when `header` is `xl_heap_header` or `xl_multi_insert_tuple` without its length, and
/// `rest` begins with the null bitmap; `SizeofHeapTupleHeader` is 23.
fn values<'a>(header: &[u8], rest: &'a [u8]) -> Option<&'a [u8]> {
    rest.get(usize::from(*header.get(4)?).checked_sub(23)?..)
}

fn image_of(catalog: Catalog, values: &[u8]) -> Option<RowImage> {
    let head = values[..values.len().min(catalog.head_len())].to_vec();
    Some(RowImage { len: u16::try_from(values.len()).ok()?, head })
}

/// The rows on a heap page (`storage/bufpage.h`, `storage/itemid.h`, `access/htup_details.h`).
fn rows_of_page(catalog: Catalog, page: &[u8]) -> Vec<(u16, RowImage)> {
    let lower = usize::from(u16_at(page, 12).unwrap_or(0)).min(page.len());
    let pointers = page.get(24..lower).unwrap_or_default().as_chunks::<4>().0;
    let row = |pointer: &[u8; 4]| {
        let pointer = u32::from_le_bytes(*pointer);
        let (at, state, len) = ((pointer & 0x7FFF) as usize, pointer >> 15 & 3, (pointer >> 17) as usize);
        let tuple = page.get(at..at.checked_add(len)?).filter(|_| state == 1)?;
        image_of(catalog, tuple.get(usize::from(*tuple.get(22)?)..)?)
    };
    let numbered = pointers.iter().zip(1_u16..);
    numbered.filter_map(|(pointer, offset)| row(pointer).map(|row| (offset, row))).collect()
}

/// What a heap record does to the catalog that its first block belongs to.
pub(crate) fn read(
    record: &Record<'_>,
    catalog: Catalog,
    change: &HeapChange,
    page: &mut Vec<u8>,
    out: &mut Vec<CatalogChange>,
) {
    let blocks = record.blocks();
    let Some(first) = blocks.first().filter(|block| block.fork == Fork::Main) else { return };
    let (lsn, xid, database) = (record.lsn, record.header.xid, first.rel.database);
    let mut push = |kind| out.push(CatalogChange { lsn, xid, database, catalog, kind });
    let mut first_rows = Vec::new();
    for block in blocks.iter().filter(|block| block.rel == first.rel && block.fork == Fork::Main) {
        let applies = block.image.as_ref().is_some_and(|image| image.apply);
        if !applies || restore_block_image(record, block, page).is_err() {
            continue;
        }
        let rows = rows_of_page(catalog, page);
        if block.id == 0 {
            first_rows = rows.clone();
        }
        push(CatalogChangeKind::Page { block: block.block.0, rows });
    }
    let at = |block: &BlockRef, offset| TupleId { block: block.block.0, offset };
    let on_page = |offset: u16| first_rows.iter().find(|(at, _)| *at == offset).map(|(_, row)| row.clone());
    let known = |offset: u16, row: Option<CatalogRow>| {
        row.or_else(|| on_page(offset).map(CatalogRow::Whole)).unwrap_or(CatalogRow::Unknown)
    };
    let data = record.block_data(first);
    match change {
        HeapChange::Insert { offset } => {
            let row = data.split_at_checked(5).and_then(|(header, rest)| image_of(catalog, values(header, rest)?));
            push(CatalogChangeKind::Insert { at: at(first, *offset), row: known(*offset, row.map(CatalogRow::Whole)) });
        }
        HeapChange::Update { old_offset, new_offset, flags, .. } => {
            let old = blocks.iter().find(|block| block.id == 1 && block.fork == Fork::Main).unwrap_or(first);
            let row = known(*new_offset, new_version(catalog, data, *flags));
            push(CatalogChangeKind::Update { old: at(old, *old_offset), new: at(first, *new_offset), row });
        }
        HeapChange::Delete { offset } => push(CatalogChangeKind::Delete { at: at(first, *offset) }),
        HeapChange::MultiInsert { rows } => {
            // The offsets are left out when the page is made anew: then they count from 1.
            let offsets = record.main_data().get(4..).unwrap_or_default();
            let mut at_byte = 0;
            for index in 0..usize::from(*rows) {
                let offset = u16_at(offsets, index * 2).unwrap_or(index as u16 + 1);
                let row = next_of_many(catalog, data, &mut at_byte);
                push(CatalogChangeKind::Insert {
                    at: at(first, offset),
                    row: known(offset, row.map(CatalogRow::Whole)),
                });
            }
        }
        HeapChange::InsertTakenBack | HeapChange::Truncate { .. } | HeapChange::None => {}
    }
}

/// One `xl_multi_insert_tuple`; they begin at even places.
fn next_of_many(catalog: Catalog, data: &[u8], at: &mut usize) -> Option<RowImage> {
    let header_at = at.next_multiple_of(2);
    let len = usize::from(u16_at(data, header_at)?);
    let header = data.get(header_at + 2..header_at + 7)?;
    let rest = data.get(header_at + 7..header_at + 7 + len)?;
    *at = header_at + 7 + len;
    image_of(catalog, values(header, rest)?)
}

/// The new version in an update's block data: lengths of what was left out, `xl_heap_header`, null bitmap, values.
fn new_version(catalog: Catalog, data: &[u8], flags: u8) -> Option<CatalogRow> {
    let mut rest = data;
    let mut length = |flag: u8| -> Option<u16> {
        if flags & flag == 0 {
            return Some(0);
        }
        let (number, after) = rest.split_at_checked(2)?;
        rest = after;
        u16_at(number, 0)
    };
    let (prefix, suffix) = (length(UPDATE_PREFIX_FROM_OLD)?, length(UPDATE_SUFFIX_FROM_OLD)?);
    let (header, rest) = rest.split_at_checked(5)?;
    let middle = values(header, rest)?;
    if prefix == 0 && suffix == 0 {
        return image_of(catalog, middle).map(CatalogRow::Whole);
    }
    let len = u16::try_from(usize::from(prefix) + middle.len() + usize::from(suffix)).ok()?;
    let keep = catalog.head_len().saturating_sub(usize::from(prefix)).min(middle.len());
    Some(CatalogRow::Patch(RowPatch { len, prefix, suffix, bytes: middle[..keep].to_vec() }))
}
