//! Random updates that touch a known number of pages, counted in the files themselves.

use anyhow::{Context, Result, bail};
use std::os::unix::fs::FileExt;
use std::path::Path;
use testkit::pg::Cluster;

const PAGE_BYTES: u64 = 8192;

/// What random updates did to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    /// Pages of relations' main forks whose LSN lies at or behind the moment before.
    pub(super) pages: u64,
    /// All pages of main forks.
    pub(super) all: u64,
    /// Rows updated.
    pub(super) rows: u64,
}

impl Touched {
    pub(super) fn percent(self) -> f64 {
        self.pages as f64 * 100.0 / self.all.max(1) as f64
    }
}

/// Updates random rows of `orders` and `events` until about this share of the pages, in percent, was touched.
pub(super) fn touch_percent(cluster: &Cluster, percent: f64) -> Result<Touched> {
    let all = count(cluster, u64::MAX)?.1;
    touch_pages(cluster, (all as f64 * percent / 100.0) as u64)
}

/// The same, with the number of pages given.
pub(super) fn touch_pages(cluster: &Cluster, wanted: u64) -> Result<Touched> {
    let before = lsn(&cluster.sql("CHECKPOINT; SELECT pg_current_wal_insert_lsn()")?)?;
    let mut rows = 0;
    // A row has one page in the table and one in each of its indexes; then it moves to another page.
    let mut step = (wanted / 8).max(1);
    for _ in 0..10 {
        update(cluster, step)?;
        rows += 2 * step;
        let (pages, all) = count(cluster, before)?;
        if pages * 100 >= wanted * 95 {
            let touched = Touched { pages, all, rows };
            println!("{rows} rows updated: {pages} of {all} pages touched ({:.2} %)", touched.percent());
            return Ok(touched);
        }
        step = ((wanted - pages) * step / pages.max(1)).clamp(1, 2 * step);
    }
    bail!("ten rounds of updates did not touch {wanted} pages")
}

/// Updates so many rows of each of two tables, found through an index, then makes the server write its pages.
fn update(cluster: &Cluster, rows: u64) -> Result<()> {
    let one = |table: &str, set: &str| {
        format!(
            "UPDATE {table} SET {set} WHERE id IN (SELECT 1 + floor(random() * (SELECT max(id) FROM {table}))::bigint \
             FROM generate_series(1, {rows}));\n"
        )
    };
    let updates = one("orders", "amount = amount + 1") + &one("events", "value = value + 1");
    cluster
        .sql(&format!(
            "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; {updates} CHECKPOINT"
        ))
        .map(drop)
}

/// How many pages have an LSN from `since` on, and how many there are.
fn count(cluster: &Cluster, since: u64) -> Result<(u64, u64)> {
    let mut sums = (0, 0);
    let base = cluster.data_dir().join("base");
    for database in std::fs::read_dir(&base).with_context(|| format!("cannot read {}", base.display()))? {
        for file in std::fs::read_dir(database?.path())? {
            let path = file?.path();
            if is_main_fork(&path) {
                count_file(&path, since, &mut sums)?;
            }
        }
    }
    Ok(sums)
}

/// `16384` and `16384.1`, not `16384_vm` or `PG_VERSION`.
fn is_main_fork(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

fn count_file(path: &Path, since: u64, sums: &mut (u64, u64)) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let pages = file.metadata()?.len() / PAGE_BYTES;
    sums.1 += pages;
    if since == u64::MAX {
        return Ok(());
    }
    for page in 0..pages {
        // `pd_lsn`, the high half first (src/include/storage/bufpage.h).
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, page * PAGE_BYTES)?;
        let half = |at: usize| u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        if (half(0) << 32 | half(4)) >= since {
            sums.0 += 1;
        }
    }
    Ok(())
}

/// From `1/2A000028`.
fn lsn(text: &str) -> Result<u64> {
    let parse = || {
        let (high, low) = text.trim().split_once('/')?;
        Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
    };
    parse().with_context(|| format!("not an LSN: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_by_their_lsn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("16384.1");
        let mut bytes = vec![0_u8; 3 * 8192];
        bytes[..8].copy_from_slice(&[1, 0, 0, 0, 0x28, 0, 0, 0]);
        bytes[8192..8200].copy_from_slice(&[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
        std::fs::write(&path, bytes).unwrap();
        let mut sums = (0, 0);
        count_file(&path, lsn("1/28").unwrap(), &mut sums).unwrap();
        assert_eq!(sums, (1, 3));
        count_file(&path, lsn("0/FFFFFFFF").unwrap(), &mut sums).unwrap();
        assert_eq!(sums, (3, 6));
    }

    #[test]
    fn names_of_main_forks() {
        let is = |name: &str| is_main_fork(Path::new(name));
        assert!(is("base/5/16384") && is("base/5/16384.12"));
        assert!(!is("base/5/16384_vm") && !is("base/5/PG_VERSION") && !is("base/5/t3_16384") && !is("base/5/1."));
    }
}
