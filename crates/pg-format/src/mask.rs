//! Masking of what may differ between two right images of a page: mask rules 1.
//!
//! The rules are those of the `*_mask` functions that `wal_consistency_checking` uses (`heap_mask`, `btree_mask`,
//! `gin_mask`, `gist_mask`, `hash_mask`, `spg_mask`, `brin_mask`, `seq_mask`, `generic_mask`, and
//! `src/backend/access/common/bufmask.c`). Those functions know the access method; here only the page is at hand, so
//! the access method is told by the special area ([`PageKind`]). Where it cannot be told, less is masked: data is
//! never touched, and a page of the free space map or of the visibility map keeps all its bytes but the checksum.
//!
//! A rule is never changed once it is in use, because masked hashes may be stored: a change makes rules 2.

use crate::bytes::{le_u16, le_u32};
use crate::ids::BlockNumber;
use crate::page::{
    CHECKSUM_OFFSET, PAGE_HEADER_BYTES, PAGE_LAYOUT_VERSION, PD_ALL_VISIBLE, PD_HAS_FREE_LINES, PD_PAGE_FULL,
    PageHeader,
};

/// The number of the rules, to be stored beside hashes of masked pages.
pub const MASK_RULES: u32 = 1;

/// What to do with LSNs: that of the page, and the NSN of a GiST page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageLsn {
    /// They count: the pages are of one cluster.
    Keep,
    /// They are ignored: the pages may come from an origin and a copy that has replayed other records.
    Mask,
}

/// What to do with the counters of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SequenceData {
    /// They count.
    Keep,
    /// `last_value`, `log_cnt` and `is_called` are ignored: WAL runs up to 32 values ahead of the page, so that a
    /// cluster that replayed it has other ones (`nextval_internal` in `src/backend/commands/sequence.c`).
    Mask,
}

/// What to do with `PD_ALL_VISIBLE` of a heap page. It belongs together with a bit of the visibility map; it is set
/// without changing the page's LSN when there are no checksums (`visibilitymap_set`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AllVisible {
    /// It counts: a visibility map that says so of a page that does not is wrong.
    Keep,
    /// It is ignored: replay does not always set it where the origin did (`heap_xlog_visible`).
    Mask,
}

/// How far two images may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaskOptions {
    /// Whether LSNs count.
    pub page_lsn: PageLsn,
    /// Whether the counters of sequences count.
    pub sequence_data: SequenceData,
    /// Whether it counts that a heap page is all visible.
    pub all_visible: AllVisible,
    /// The block's number in the fork, for the places of speculative insertions; without it they stay as they are.
    pub block: Option<BlockNumber>,
}

impl MaskOptions {
    /// For two images of one page of one cluster: only what changes without WAL is masked.
    pub const SAME_CLUSTER: Self =
        Self { page_lsn: PageLsn::Keep, sequence_data: SequenceData::Keep, all_visible: AllVisible::Keep, block: None };

    /// For a page of an origin and that of a cluster which replayed its WAL to the same point.
    #[must_use]
    pub const fn origin_and_replayed(block: BlockNumber) -> Self {
        Self {
            page_lsn: PageLsn::Mask,
            sequence_data: SequenceData::Mask,
            all_visible: AllVisible::Mask,
            block: Some(block),
        }
    }
}

/// What a page is, as far as the page itself tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// New, all zero, or no sane header: nothing is masked but the checksum.
    NoPage,
    /// No special area and nothing below it: a page of a map, or an empty one.
    Bare,
    /// No special area, with line pointers.
    Heap,
    /// A B-tree page.
    Btree,
    /// A hash index page.
    Hash,
    /// A GiST page.
    Gist,
    /// A GIN page.
    Gin,
    /// An SP-GiST page.
    Spgist,
    /// A BRIN page.
    Brin,
    /// The page of a sequence.
    Sequence,
    /// A special area of a kind that is not known.
    Unknown,
}

/// Where the pieces of a sane page are; offsets are within the page and in order.
#[derive(Clone, Copy)]
struct Layout {
    lower: usize,
    upper: usize,
    special: usize,
}

/// Masks what changes without WAL, for images of one cluster's page: [`MaskOptions::SAME_CLUSTER`].
pub fn mask_page(page: &mut [u8]) {
    mask_page_with(page, &MaskOptions::SAME_CLUSTER);
}

/// Masks a page in place. Pages whose header is not sane only lose their checksum, all-zero pages stay as they are.
pub fn mask_page_with(page: &mut [u8], options: &MaskOptions) {
    let kind = page_kind(page);
    fill(page, CHECKSUM_OFFSET, 2);
    let Some(layout) = layout(page) else { return };
    if options.page_lsn == PageLsn::Mask {
        fill(page, 0, 8);
    }
    match kind {
        PageKind::NoPage | PageKind::Unknown => {}
        // What looks like a hole may be a map (`FSMPage`, the bits of a visibility map).
        PageKind::Bare => mask_header_hints(page),
        PageKind::Heap => {
            let all_visible = is_all_visible(page) && options.all_visible == AllVisible::Keep;
            mask_header_hints(page);
            if all_visible {
                set_all_visible(page, true);
            }
            mask_hole(page, layout);
            mask_heap_tuples(page, layout, options);
        }
        PageKind::Btree => mask_btree(page, layout),
        PageKind::Hash => mask_hash(page, layout),
        PageKind::Gist => mask_gist(page, layout, options),
        PageKind::Gin => mask_gin(page, layout),
        PageKind::Spgist => {
            mask_header_hints(page);
            mask_hole_if_bounded(page, layout);
            mask_spgist_meta(page, layout);
        }
        PageKind::Brin => mask_brin(page, layout),
        PageKind::Sequence => mask_sequence(page, layout, options),
    }
}

/// Tells what a page is.
#[must_use]
pub fn page_kind(page: &[u8]) -> PageKind {
    let Some(Layout { lower, special, .. }) = layout(page) else {
        return PageKind::NoPage;
    };
    let end = page.len();
    let id = le_u16(page, end - 2).unwrap_or(0);
    match end - special {
        0 if lower == PAGE_HEADER_BYTES => PageKind::Bare,
        0 => PageKind::Heap,
        16 => match id {
            // HASHO_PAGE_ID and GIST_PAGE_ID; a B-tree has its cycle id there, at most MAX_BT_CYCLE_ID.
            0xFF80 => PageKind::Hash,
            0xFF81 => PageKind::Gist,
            0..=0xFF7F if le_u16(page, end - 4).is_some_and(|flags| flags < 0x0200) => PageKind::Btree,
            _ => PageKind::Unknown,
        },
        8 => match id {
            0xFF82 => PageKind::Spgist,
            // BRIN_PAGETYPE_META, _REVMAP, _REGULAR.
            0xF091..=0xF093 => PageKind::Brin,
            0 if is_sequence(page, lower, special) => PageKind::Sequence,
            // GIN's flags, of which 0xFF are in use.
            0..=0xFF => PageKind::Gin,
            _ => PageKind::Unknown,
        },
        _ => PageKind::Unknown,
    }
}

/// `SEQ_MAGIC`, and the one tuple that a sequence has: without the second, an inner GIN page could be taken for one.
fn is_sequence(page: &[u8], lower: usize, special: usize) -> bool {
    if le_u32(page, special) != Some(0x1717) || lower != PAGE_HEADER_BYTES + 4 {
        return false;
    }
    item(page, 0, special)
        .is_some_and(|item| item.flags == LP_NORMAL && item.len == 24 + 17 && page.get(item.offset + 22) == Some(&24))
}

fn layout(page: &[u8]) -> Option<Layout> {
    let header = PageHeader::parse(page).ok()?;
    let sane = header.is_sane(page.len())
        && !header.is_new()
        && usize::from(header.lower) >= PAGE_HEADER_BYTES
        && header.layout_version == PAGE_LAYOUT_VERSION
        && usize::from(header.size_bytes) == page.len();
    sane.then_some(Layout {
        lower: usize::from(header.lower),
        upper: usize::from(header.upper),
        special: usize::from(header.special),
    })
}

const LP_NORMAL: u8 = 1;
const LP_DEAD: u8 = 3;

/// A line pointer (`ItemIdData`).
struct Item {
    offset: usize,
    flags: u8,
    len: usize,
}

/// Line pointer `index`, from 0, when its bytes are between the header and `end`.
fn item(page: &[u8], index: usize, end: usize) -> Option<Item> {
    let raw = le_u32(page, PAGE_HEADER_BYTES + index * 4)?;
    let offset = (raw & 0x7FFF) as usize;
    let len = (raw >> 17) as usize;
    let inside = offset >= PAGE_HEADER_BYTES && offset + len <= end;
    let flags = (raw >> 15) as u8 & 3;
    (inside || len == 0).then_some(Item { offset, flags, len })
}

fn item_count(layout: Layout) -> usize {
    (layout.lower - PAGE_HEADER_BYTES) / 4
}

fn fill(page: &mut [u8], at: usize, len: usize) {
    if let Some(bytes) = page.get_mut(at..at + len) {
        bytes.fill(0);
    }
}

/// Clears bits of the 16-bit number at `at`.
fn clear(page: &mut [u8], at: usize, bits: u16) {
    if let Some(value) = le_u16(page, at)
        && let Some(bytes) = page.get_mut(at..at + 2)
    {
        bytes.copy_from_slice(&(value & !bits).to_le_bytes());
    }
}

/// `mask_page_hint_bits`.
fn mask_header_hints(page: &mut [u8]) {
    fill(page, 20, 4);
    clear(page, 10, PD_PAGE_FULL | PD_HAS_FREE_LINES | PD_ALL_VISIBLE);
}

/// Whether `PD_ALL_VISIBLE` is set.
#[must_use]
pub fn is_all_visible(page: &[u8]) -> bool {
    le_u16(page, 10).is_some_and(|flags| flags & PD_ALL_VISIBLE != 0)
}

/// Sets or clears `PD_ALL_VISIBLE`.
pub fn set_all_visible(page: &mut [u8], is_set: bool) {
    clear(page, 10, PD_ALL_VISIBLE);
    if is_set
        && let Some(value) = le_u16(page, 10)
        && let Some(bytes) = page.get_mut(10..12)
    {
        bytes.copy_from_slice(&(value | PD_ALL_VISIBLE).to_le_bytes());
    }
}

/// The pages with room that the meta page remembers, `lastUsedPages`: a hint that is written without WAL
/// (`SpGistUpdateMetaPage` in `src/backend/access/spgist/spgutils.c`).
fn mask_spgist_meta(page: &mut [u8], layout: Layout) {
    const SPGIST_META: u16 = 1;
    const MAGIC: u32 = 0xBA0B_ABEE;
    /// `SPGIST_CACHED_PAGES` block numbers, each with its free space.
    const LAST_USED_PAGES_BYTES: usize = 8 * 8;
    let is_meta = le_u16(page, layout.special).is_some_and(|flags| flags & SPGIST_META != 0);
    if is_meta && le_u32(page, PAGE_HEADER_BYTES) == Some(MAGIC) {
        fill(page, PAGE_HEADER_BYTES + 4, LAST_USED_PAGES_BYTES);
    }
}

/// `mask_unused_space`.
fn mask_hole(page: &mut [u8], layout: Layout) {
    fill(page, layout.lower, layout.upper - layout.lower);
}

/// `mask_unused_space`, but not when `pd_lower` was perhaps never set: then the data is in the hole.
fn mask_hole_if_bounded(page: &mut [u8], layout: Layout) {
    if layout.lower > PAGE_HEADER_BYTES {
        mask_hole(page, layout);
    }
}

/// The dead marks of `mask_lp_flags`: a hint in indexes.
fn mask_dead_marks(page: &mut [u8], layout: Layout) {
    let Some(pointers) = page.get_mut(PAGE_HEADER_BYTES..layout.lower) else { return };
    for pointer in pointers.as_chunks_mut::<4>().0 {
        let raw = u32::from_le_bytes(*pointer);
        if (raw >> 15) as u8 & 3 == LP_DEAD && raw >> 17 != 0 {
            *pointer = (raw & !(3 << 15) | u32::from(LP_NORMAL) << 15).to_le_bytes();
        }
    }
}

/// `mask_page_content`: everything but the header and, so that the page stays sane, `pd_lower` and `pd_upper`, which
/// become those of an empty page; the access method's area stays.
fn mask_content(page: &mut [u8], layout: Layout) {
    fill(page, PAGE_HEADER_BYTES, layout.special - PAGE_HEADER_BYTES);
    let special = (layout.special as u16).to_le_bytes();
    if let Some(bounds) = page.get_mut(12..16) {
        bounds[..2].copy_from_slice(&(PAGE_HEADER_BYTES as u16).to_le_bytes());
        bounds[2..].copy_from_slice(&special);
    }
}

const HEAP_TUPLE_HEADER_BYTES: usize = 23;
const HEAP_HASNULL: u16 = 0x0001;
const HEAP_XMAX_COMMITTED: u16 = 0x0400;
const HEAP_XMAX_INVALID: u16 = 0x0800;
const HEAP_XMIN_FROZEN: u16 = 0x0300;
const HEAP_XACT_MASK: u16 = 0xFFF0;
const HEAP_NATTS_MASK: u16 = 0x07FF;
const SPECULATIVE_OFFSET: u16 = 0xFFFE;

/// The tuples of `heap_mask`.
fn mask_heap_tuples(page: &mut [u8], layout: Layout, options: &MaskOptions) {
    for index in 0..item_count(layout) {
        let Some(item) = item(page, index, layout.special) else { continue };
        if item.len == 0 || item.offset < layout.upper {
            continue;
        }
        let Some(tuple) = page.get_mut(item.offset..item.offset + item.len) else { continue };
        // Another access method without a special area may keep something else under a line pointer.
        if item.flags == LP_NORMAL && item.offset.is_multiple_of(8) && is_heap_tuple(tuple) {
            mask_heap_tuple(tuple, index, options);
            let padded = item.len.next_multiple_of(8);
            if item.offset + padded <= layout.special {
                fill(page, item.offset + item.len, padded - item.len);
            }
        }
    }
}

/// Whether these bytes are a heap tuple: its header's length must be the one that its null bitmap needs.
fn is_heap_tuple(tuple: &[u8]) -> bool {
    if tuple.len() < HEAP_TUPLE_HEADER_BYTES {
        return false;
    }
    let infomask = le_u16(tuple, 20).unwrap_or(0);
    let attributes = usize::from(le_u16(tuple, 18).unwrap_or(0) & HEAP_NATTS_MASK);
    let bitmap = if infomask & HEAP_HASNULL != 0 { attributes.div_ceil(8) } else { 0 };
    let header = (HEAP_TUPLE_HEADER_BYTES + bitmap).next_multiple_of(8);
    usize::from(tuple[22]) == header && header <= tuple.len()
}

fn mask_heap_tuple(tuple: &mut [u8], index: usize, options: &MaskOptions) {
    let infomask = le_u16(tuple, 20).unwrap_or(0);
    let hints = if infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN {
        HEAP_XMAX_INVALID | HEAP_XMAX_COMMITTED
    } else {
        HEAP_XACT_MASK
    };
    clear(tuple, 20, hints);
    // Replay writes FirstCommandId.
    fill(tuple, 8, 4);
    if let Some(BlockNumber(block)) = options.block
        && le_u16(tuple, 16) == Some(SPECULATIVE_OFFSET)
        && let Some(ctid) = tuple.get_mut(12..18)
    {
        // `BlockIdData` has its upper half first.
        ctid[..2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
        ctid[2..4].copy_from_slice(&(block as u16).to_le_bytes());
        ctid[4..].copy_from_slice(&(index as u16 + 1).to_le_bytes());
    }
}

fn mask_btree(page: &mut [u8], layout: Layout) {
    const BTP_LEAF: u16 = 0x0001;
    const BTP_META: u16 = 0x0008;
    const BTP_SPLIT_END: u16 = 0x0020;
    const BTP_HAS_GARBAGE: u16 = 0x0040;
    mask_header_hints(page);
    let flags = le_u16(page, layout.special + 12).unwrap_or(0);
    if flags & BTP_META != 0 {
        mask_hole_if_bounded(page, layout);
    } else {
        mask_hole(page, layout);
    }
    if flags & BTP_LEAF != 0 {
        mask_dead_marks(page, layout);
    }
    clear(page, layout.special + 12, BTP_HAS_GARBAGE | BTP_SPLIT_END);
    // btpo_cycleid
    fill(page, layout.special + 14, 2);
}

fn mask_hash(page: &mut [u8], layout: Layout) {
    const LH_OVERFLOW_PAGE: u16 = 0x0001;
    const LH_BUCKET_PAGE: u16 = 0x0002;
    const LH_PAGE_TYPE: u16 = 0x000F;
    const LH_PAGE_HAS_DEAD_TUPLES: u16 = 0x0080;
    mask_header_hints(page);
    match le_u16(page, layout.special + 12).unwrap_or(0) & LH_PAGE_TYPE {
        0 => mask_content(page, layout),
        LH_OVERFLOW_PAGE | LH_BUCKET_PAGE => {
            mask_hole(page, layout);
            mask_dead_marks(page, layout);
        }
        _ => mask_hole_if_bounded(page, layout),
    }
    clear(page, layout.special + 12, LH_PAGE_HAS_DEAD_TUPLES);
}

fn mask_gist(page: &mut [u8], layout: Layout, options: &MaskOptions) {
    const F_LEAF: u16 = 0x0001;
    const F_FOLLOW_RIGHT: u16 = 0x0008;
    const F_HAS_GARBAGE: u16 = 0x0010;
    mask_header_hints(page);
    mask_hole(page, layout);
    if options.page_lsn == PageLsn::Mask {
        fill(page, layout.special, 8);
    }
    if le_u16(page, layout.special + 12).unwrap_or(0) & F_LEAF != 0 {
        mask_dead_marks(page, layout);
    }
    clear(page, layout.special + 12, F_FOLLOW_RIGHT | F_HAS_GARBAGE);
}

fn mask_gin(page: &mut [u8], layout: Layout) {
    const GIN_DELETED: u16 = 0x0004;
    mask_header_hints(page);
    if le_u16(page, layout.special + 6).unwrap_or(0) & GIN_DELETED != 0 {
        mask_content(page, layout);
    } else {
        mask_hole_if_bounded(page, layout);
    }
}

fn mask_brin(page: &mut [u8], layout: Layout) {
    const BRIN_PAGETYPE_REVMAP: u16 = 0xF092;
    const BRIN_EVACUATE_PAGE: u16 = 0x0001;
    mask_header_hints(page);
    if le_u16(page, layout.special + 6) != Some(BRIN_PAGETYPE_REVMAP) {
        mask_hole_if_bounded(page, layout);
    }
    clear(page, layout.special + 4, BRIN_EVACUATE_PAGE);
}

fn mask_sequence(page: &mut [u8], layout: Layout, options: &MaskOptions) {
    mask_hole(page, layout);
    if options.sequence_data == SequenceData::Mask
        && let Some(item) = item(page, 0, layout.special)
    {
        // The tuple's header is remade by `seq_redo`, hint bits and all; the data is 17 bytes.
        fill(page, item.offset, item.len);
    }
}

#[cfg(test)]
mod tests;
