//! `backup_manifest`, written as the files pass by (`src/backend/backup/backup_manifest.c`).

use super::ManifestChecksums;
use super::plan::Plan;
use crate::checksums::Checksum;
use pg_format::backup_manifest::{
    ChecksumAlgorithm, ManifestFile, WalRange, render_checksum, render_head, render_ranges,
};
use pg_format::timestamp::gmt_text;
use std::io::{self, Write};

/// From this version on the manifest names the system.
const SYSTEM_ID_FROM: u32 = 17;

/// Writes the manifest.
pub(super) struct ManifestOut<W: Write> {
    out: W,
    sum: Option<Checksum>,
    algorithm: ChecksumAlgorithm,
    is_first: bool,
    range: WalRange,
}

impl<W: Write> ManifestOut<W> {
    pub(super) fn new(out: W, plan: &Plan, checksums: ManifestChecksums) -> io::Result<Self> {
        let facts = &plan.facts;
        let mut this = Self {
            out,
            sum: Some(Checksum::new(ChecksumAlgorithm::Sha256)),
            algorithm: match checksums {
                ManifestChecksums::Crc32c => ChecksumAlgorithm::Crc32c,
                ManifestChecksums::Sha256 => ChecksumAlgorithm::Sha256,
            },
            is_first: true,
            range: WalRange { timeline: facts.timeline, start_lsn: facts.start_lsn, end_lsn: facts.stop_lsn },
        };
        this.put(&render_head((plan.major >= SYSTEM_ID_FROM).then_some(facts.system_id)))?;
        Ok(this)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        if let Some(sum) = &mut self.sum {
            sum.update(text.as_bytes());
        }
        self.out.write_all(text.as_bytes())
    }

    /// The sum for a file's bytes.
    pub(super) fn file_sum(&self) -> Checksum {
        Checksum::new(self.algorithm)
    }

    pub(super) fn file(&mut self, path: Vec<u8>, len: u64, mtime: u64, sum: Checksum) -> io::Result<()> {
        let file = ManifestFile {
            path,
            size_bytes: len,
            last_modified_text: gmt_text(i64::try_from(mtime).unwrap_or(0)),
            checksum: Some((self.algorithm, sum.finish())),
        };
        let is_first = std::mem::take(&mut self.is_first);
        self.put(&file.render(is_first))
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.put(&render_ranges(&[self.range]))?;
        let sum = self.sum.take().map(Checksum::finish).unwrap_or_default();
        let sum: [u8; 32] = std::array::from_fn(|at| sum.get(at).copied().unwrap_or(0));
        self.out.write_all(render_checksum(&sum).as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}
