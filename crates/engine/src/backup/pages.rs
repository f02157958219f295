//! Page checks while reading: torn reads are read again, what WAL will restore is left to it, the rest is damage.

use super::listing::Relation;
use pg_format::page::{Checksums, PageCheck, check_page, page_lsn};
use pg_format::{Lsn, relpath};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How often a page that fails its check is read again: a read may meet a page that is just being written.
const READ_AGAIN: u32 = 5;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// A page that failed its check each time it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadPage {
    /// Index of its file in the listing.
    pub(super) file: usize,
    /// Block number in the fork.
    pub(super) block: u32,
    /// The LSN on it.
    pub(super) lsn: Lsn,
    /// What is wrong.
    pub(super) reason: String,
}

/// What is needed to judge pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageRules {
    pub(super) checksums: Checksums,
    pub(super) page_size: usize,
    /// The server's last block number of a relation segment; beyond it no page belongs to the file.
    pub(super) relseg_blocks: u32,
}

impl PageRules {
    /// Checks the pages in `buffer`, which begins with page number `first` of the file. A page that fails is read
    /// again into the buffer, when there is a file to read; those that go on failing are returned.
    pub(super) fn check(
        &self,
        file: Option<&File>,
        index: usize,
        relation: Relation,
        first: u64,
        buffer: &mut [u8],
    ) -> Vec<BadPage> {
        let mut bad = Vec::new();
        for (page, number) in buffer.chunks_mut(self.page_size).zip(first..) {
            if page.len() < self.page_size || number >= u64::from(self.relseg_blocks) {
                // The end of a file that is being extended; replay writes the rest.
                continue;
            }
            let block = relation.first_block + number as u32;
            if passes(check_page(page, block, self.checksums)) {
                continue;
            }
            let fault = match file {
                Some(file) => self.read_again(file, number, block, page),
                None => Some(self.fault(page, block)),
            };
            if let Some(reason) = fault {
                bad.push(BadPage { file: index, block, lsn: page_lsn(page).unwrap_or_default(), reason });
            }
        }
        bad
    }

    /// Reads a page until it passes; says what is wrong with it when it does not.
    fn read_again(&self, file: &File, number: u64, block: u32, page: &mut [u8]) -> Option<String> {
        let mut again = vec![0; self.page_size];
        for _ in 0..READ_AGAIN {
            std::thread::sleep(READ_AGAIN_AFTER);
            // A file that was truncated meanwhile has no such page any more: what was read is left to WAL.
            if file.read_exact_at(&mut again, number * self.page_size as u64).is_err() {
                return None;
            }
            page.copy_from_slice(&again);
            if passes(check_page(page, block, self.checksums)) {
                return None;
            }
        }
        Some(self.fault(page, block))
    }

    fn fault(&self, page: &[u8], block: u32) -> String {
        match check_page(page, block, self.checksums) {
            PageCheck::ChecksumMismatch { expected, actual } => {
                format!("checksum on the page is {expected:04X}, its content gives {actual:04X}")
            }
            _ => "the page header is not valid".into(),
        }
    }
}

fn passes(check: PageCheck) -> bool {
    // A page with content and no header is taken for a new one by pg_basebackup and pg_checksums.
    check.is_ok() || check == PageCheck::NewWithContent
}

/// Keeps of the bad pages those that replay will not restore: a page changed since the start LSN is written whole by
/// WAL; an LSN beyond what the server has inserted is itself damage.
pub(super) fn beyond_replay(bad: Vec<BadPage>, start: Lsn, inserted: Lsn) -> Vec<BadPage> {
    bad.into_iter().filter(|page| page.lsn < start || page.lsn > inserted).collect()
}

/// The relation's identity for looking up its name: database, tablespace and relfilenode.
pub(super) fn relation_key(path: &[u8]) -> Option<(u32, u32, u32)> {
    let file = relpath::RelFile::parse(std::str::from_utf8(path.strip_prefix(b"data/")?).ok()?)?;
    Some((file.db_oid.0, file.tablespace_oid.0, file.filenode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use repo::chunk::PageContent;
    use std::io::Write;

    fn page(block: u32, lsn: u64) -> Vec<u8> {
        let mut page = vec![0; 8192];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[12..14].copy_from_slice(&24u16.to_le_bytes());
        page[14..16].copy_from_slice(&8192u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&(8192u16 | 4).to_le_bytes());
        let sum = pg_format::page_checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn torn_reads_heal_and_damage_stays() {
        let rules = PageRules { checksums: Checksums::On, page_size: 8192, relseg_blocks: 131_072 };
        let relation = Relation { first_block: 131_072, content: PageContent::Relation };
        let mut file = tempfile::tempfile().unwrap();
        let mut damaged = page(131_074, 500);
        damaged[5000] ^= 1;
        for content in [page(131_072, 100), page(131_073, 200), damaged.clone(), vec![0; 8192]] {
            file.write_all(&content).unwrap();
        }
        let mut buffer = vec![0; 4 * 8192];
        file.read_exact_at(&mut buffer, 0).unwrap();
        buffer[8192 + 4000] ^= 0x55; // as if the read had met a write
        let bad = rules.check(Some(&file), 7, relation, 0, &mut buffer);
        assert_eq!(bad.iter().map(|page| (page.file, page.block)).collect::<Vec<_>>(), [(7, 131_074)]);
        assert_eq!(buffer[8192..2 * 8192], page(131_073, 200), "the page read again is the one that is kept");
        assert_eq!(beyond_replay(bad.clone(), Lsn(600), Lsn(1000)).len(), 1, "older than the start: WAL does not help");
        assert_eq!(beyond_replay(bad.clone(), Lsn(400), Lsn(1000)).len(), 0, "changed since: WAL writes it whole");
        assert_eq!(beyond_replay(bad, Lsn(400), Lsn(450)).len(), 1, "from the future: damage");
    }
}
