//! Visibility maps against the pages that they speak of, in the files.

use super::files::{list, read_control};
use anyhow::{Context, Result, bail};
use pg_format::page::{PAGE_HEADER_BYTES, PD_ALL_VISIBLE, PageHeader};
use pg_format::relpath::{Fork, RelFile};
use std::path::Path;

/// Bits of the map for each heap page: all-visible and all-frozen (`visibilitymapdefs.h`).
const BITS_PER_BLOCK: usize = 2;
const ALL_VISIBLE: u8 = 1;

/// Every page that its map says is all-visible must say so itself (`PD_ALL_VISIBLE`): otherwise the next change of the
/// page leaves the map as it is, and index-only scans return rows that are gone. The bit in the page is set without a
/// new page LSN where neither checksums nor `wal_log_hints` are on (`visibilitymap_set`), so a copy can lose it.
/// For a directory at rest. Returns how many pages are all-visible.
///
/// # Errors
/// When a file cannot be read, or with the first pages that are wrong.
pub fn visibility_maps_are_sane(data: &Path) -> Result<u64> {
    let control = read_control(data)?;
    let (page_bytes, segment_blocks) = (control.block_bytes as usize, control.relation_segment_blocks as usize);
    let files = list(data)?;
    let (mut visible, mut wrong) = (0, Vec::new());
    for (path, full) in &files {
        let Some(file) = RelFile::parse(path).filter(|file| file.fork == Fork::Vm) else { continue };
        let map = std::fs::read(full).with_context(|| format!("cannot read {path}"))?;
        let stem = path.rsplit_once("_vm").map_or("", |(stem, _)| stem);
        let per_map_page = (page_bytes - PAGE_HEADER_BYTES) * 8 / BITS_PER_BLOCK;
        let mut heap: Option<(usize, Vec<u8>)> = None;
        let first_map_page = file.segment as usize * segment_blocks;
        for (number, page) in map.chunks_exact(page_bytes).enumerate() {
            for (index, byte) in page[PAGE_HEADER_BYTES..].iter().enumerate().filter(|(_, byte)| **byte != 0) {
                for slot in (0..8 / BITS_PER_BLOCK).filter(|slot| byte >> (slot * BITS_PER_BLOCK) & ALL_VISIBLE != 0) {
                    let block = (first_map_page + number) * per_map_page + index * 8 / BITS_PER_BLOCK + slot;
                    let (segment, within) = (block / segment_blocks, block % segment_blocks);
                    if heap.as_ref().is_none_or(|(loaded, _)| *loaded != segment) {
                        let name = if segment == 0 { stem.to_owned() } else { format!("{stem}.{segment}") };
                        let bytes = files.get(&name).map(std::fs::read).transpose();
                        heap =
                            Some((segment, bytes.with_context(|| format!("cannot read {name}"))?.unwrap_or_default()));
                    }
                    let bytes = heap.as_ref().map_or(&[][..], |(_, bytes)| bytes);
                    let flags = bytes
                        .get(within * page_bytes..(within + 1) * page_bytes)
                        .and_then(|page| PageHeader::parse(page).ok())
                        .map(|header| header.flags);
                    visible += 1;
                    if flags.is_none_or(|flags| flags & PD_ALL_VISIBLE == 0) {
                        wrong.push(format!("{stem} block {block}"));
                    }
                }
            }
        }
    }
    if !wrong.is_empty() {
        wrong.truncate(20);
        bail!("all-visible by the map, but not by the page: {}", wrong.join(", "));
    }
    Ok(visible)
}
