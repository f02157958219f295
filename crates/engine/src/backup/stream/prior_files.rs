//! What the prior has of each file, by its path: a stream comes in the order in which the server lists its directories.

use super::super::listing::Relation;
use super::super::pipeline::FileResult;
use super::super::plan::{Base, Task, database_directory, file_result, relation_file};
use crate::{Context, EngineError};
use pg_format::relpath::Fork;
use repo::PackId;
use repo::manifest::FileType;
use std::collections::HashMap;

const VERSION_FILE: &[u8] = b"/PG_VERSION";

/// The files of the prior.
#[derive(Default)]
pub(super) struct PriorFiles {
    files: HashMap<Box<[u8]>, FileResult>,
    /// Pages that it has damaged, by file.
    damaged: HashMap<Box<[u8]>, Vec<u64>>,
    /// When the prior's databases were made, by their directories.
    made: HashMap<Box<[u8]>, u64>,
    /// Directories of which it is known that they are those that the prior read.
    same: HashMap<Box<[u8]>, bool>,
    /// When the prior began, with a margin, in seconds since 1970.
    began: u64,
}

impl PriorFiles {
    /// Reads the prior's manifest, if there is a prior.
    pub(super) async fn read(ctx: &Context, base: &Base, relseg_blocks: u32) -> Result<Self, EngineError> {
        let mut known = Self::default();
        let Some(prior) = &base.prior else { return Ok(known) };
        let facts = prior.facts();
        known.began = u64::try_from(facts.started.as_second()).unwrap_or(0).saturating_sub(2);
        for page in &facts.damaged {
            let pages = known.damaged.entry(page.path.as_bytes().into()).or_default();
            pages.push(u64::from(page.block % relseg_blocks.max(1)));
        }
        let packs: Vec<PackId> = prior.packs().iter().map(|pack| pack.id).collect();
        let mut blocks = prior.files();
        while let Some(block) = ctx.or_cancel(blocks.next()).await?? {
            for entry in block {
                if let Some(directory) = directory_of_version(&entry.path)
                    && matches!(entry.file_type, FileType::File { .. })
                {
                    known.made.insert(directory.into(), entry.mtime);
                }
                if let Some(file) = file_result(&entry, &packs) {
                    known.files.insert(entry.path.into(), file);
                }
            }
        }
        Ok(known)
    }

    /// A file has arrived that may say when its database was made. `PG_VERSION` is written when the directory is made and
    /// never again (see `suspicious_databases`).
    pub(super) fn saw(&mut self, path: &[u8], mtime: u64) {
        if let Some(directory) = directory_of_version(path) {
            let is_same = self.made.get(directory).is_some_and(|&made| made == mtime && made < self.began);
            self.same.insert(directory.into(), is_same);
        }
    }

    /// Takes what the prior has of a file.
    pub(super) fn take(&mut self, path: &[u8]) -> Option<FileResult> {
        self.files.remove(path)
    }

    /// The pages of a file that the prior has damaged.
    pub(super) fn damaged(&mut self, path: &[u8]) -> Vec<u64> {
        self.damaged.remove(path).unwrap_or_default()
    }

    /// What is to be done with a file that arrives.
    pub(super) fn task(&self, path: &[u8], relation: Option<Relation>, before: Option<FileResult>) -> Task {
        let file = relation.and_then(|_| relation_file(path));
        match file {
            None => Task::Compare,
            Some(_) if before.is_none() => Task::Whole,
            // WAL does not name every change of these, nor do their LSNs tell of it.
            Some(file) if file.fork != Fork::Main => Task::Compare,
            Some(_) => {
                let directory = database_directory(path).unwrap_or_default();
                let is_same = directory == b"data/global" || self.same.get(directory) == Some(&true);
                // Until it is known that the directory is the one that the prior read, old LSNs tell nothing.
                if is_same { Task::Scan } else { Task::ScanHashes }
            }
        }
    }

    /// The files that have not arrived: they are no more.
    pub(super) fn into_gone(self) -> impl Iterator<Item = FileResult> {
        self.files.into_values()
    }
}

/// The directory of the database whose `PG_VERSION` this is.
fn directory_of_version(path: &[u8]) -> Option<&[u8]> {
    path.strip_suffix(VERSION_FILE).filter(|directory| *directory != b"data")
}

#[cfg(test)]
mod tests {
    use super::super::super::pipeline::Stored;
    use super::*;
    use repo::chunk::PageContent;

    #[test]
    fn lsns_are_believed_only_in_directories_that_the_prior_read() {
        let relation = Some(Relation { first_block: 0, content: PageContent::Relation });
        let before = Some(FileResult { len: 8192, stored: Stored::Zero });
        let mut known = PriorFiles { began: 1000, ..PriorFiles::default() };
        known.made.insert(b"data/base/5"[..].into(), 500);
        known.made.insert(b"data/base/6"[..].into(), 500);
        known.made.insert(b"data/base/7"[..].into(), 1000);
        let task = |known: &PriorFiles, path: &str| known.task(path.as_bytes(), relation, before);
        assert_eq!(task(&known, "data/base/5/1259"), Task::ScanHashes, "not known yet");
        known.saw(b"data/base/5/PG_VERSION", 500);
        known.saw(b"data/base/6/PG_VERSION", 700);
        known.saw(b"data/base/7/PG_VERSION", 1000);
        known.saw(b"data/PG_VERSION", 1);
        assert_eq!(task(&known, "data/base/5/1259"), Task::Scan);
        assert_eq!(task(&known, "data/base/5/1259_vm"), Task::Compare);
        assert_eq!(task(&known, "data/base/6/1259"), Task::ScanHashes, "made anew");
        assert_eq!(task(&known, "data/base/7/1259"), Task::ScanHashes, "made when the prior had begun");
        assert_eq!(task(&known, "data/pg_tblspc/9/PG_15_202209061/5/1259"), Task::ScanHashes, "nothing says when");
        assert_eq!(task(&known, "data/global/1262"), Task::Scan);
        assert_eq!(known.task(b"data/base/5/1259", relation, None), Task::Whole);
        assert_eq!(known.task(b"data/postgresql.conf", None, before), Task::Compare);
    }
}
