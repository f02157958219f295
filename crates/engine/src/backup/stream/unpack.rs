//! The archives of a base backup, taken apart: what is a file's becomes the backup's, and what tells of the backup itself
//! is kept.

use super::super::listing::{Found, Listed, Listing, Owners, relation_of};
use super::super::pipeline::{FileResult, Outcome, PipelineSetup};
use super::super::plan::Task;
use super::feed::{Feed, Packed};
use super::incremental::{self, ChangedHead};
use super::prior_files::PriorFiles;
use super::store::{FileHead, InPart, Store};
use crate::EngineError;
use crate::tar::{Member, MemberKind, TarReader};
use pg_format::control::CONTROL_FILE_PATH;
use pg_format::exclude::{EntryKind, Rules, Verdict, classify};
use pg_format::{Timeline, WalFileName};
use repo::chunk::EXTENT_PAGES;
use std::collections::HashMap;
use std::io::{self, Read};

/// Files that tell of the backup have at most so many bytes.
const SMALL_MAX: u64 = 16 << 20;

/// What is known before the archives come.
pub(super) struct Expecting {
    /// The tablespace of each archive; none for the data directory.
    pub(super) archives: Vec<Option<u32>>,
    pub(super) packed: Packed,
    /// Whether tar files lack their end.
    pub(super) is_unterminated: bool,
    pub(super) rules: Rules,
    /// Tablespaces with their places, for links that are not sent; relative to the data directory when in-place.
    pub(super) tablespaces: Vec<(u32, String)>,
    /// Mode of the data directory.
    pub(super) data_mode: u32,
    /// The timeline whose WAL the backup is to carry, if it is to carry any.
    pub(super) wal_of: Option<Timeline>,
    /// Whether files may come as the blocks of them that changed.
    pub(super) is_incremental: bool,
    pub(super) workers: usize,
    /// From where, for errors.
    pub(super) from: String,
}

/// A file of WAL that came along.
#[derive(Debug, Clone, Copy)]
pub(in crate::backup) struct WalCame {
    pub(in crate::backup) name: WalFileName,
    pub(in crate::backup) mtime: u64,
    pub(in crate::backup) result: FileResult,
}

/// All that came.
pub(super) struct Unpacked {
    /// Sorted; what was noted of files has their numbers here.
    pub(super) listing: Listing,
    pub(super) outcome: Outcome,
    pub(super) wal: Vec<WalCame>,
    /// Files of which only what changed came: they are not put together yet.
    pub(super) parts: Vec<InPart>,
    /// The small files that tell of the backup.
    pub(super) told: Told,
}

/// The small files that tell of the backup.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) label: Vec<u8>,
    /// The server's clock when it began to send the data directory, in seconds since 1970.
    pub(super) label_time: u64,
    pub(super) tablespace_map: Vec<u8>,
    pub(super) control: Vec<u8>,
}

struct Unpacker<'a> {
    expecting: &'a Expecting,
    setup: PipelineSetup,
    prior: PriorFiles,
    store: Store,
    entries: Vec<Listed>,
    owners: Owners,
    wal: HashMap<usize, (WalFileName, u64)>,
    told: Told,
}

/// Takes the archives apart, and stores what is in them. Blocks.
pub(super) fn unpack(
    mut feed: Feed,
    setup: PipelineSetup,
    prior: PriorFiles,
    expecting: &Expecting,
) -> Result<Unpacked, EngineError> {
    let mut unpacker = Unpacker {
        expecting,
        store: Store::new(setup.clone(), expecting.workers),
        setup,
        prior,
        entries: Vec::new(),
        owners: Owners::default(),
        wal: HashMap::new(),
        told: Told::default(),
    };
    match unpacker.all(&mut feed) {
        Ok(()) => unpacker.finish(),
        Err(error) => Err(unpacker.store.give_up(error)),
    }
}

impl Unpacker<'_> {
    fn bad(&self, error: &io::Error) -> EngineError {
        let what = format!("the base backup from {} cannot be read: {error}", self.expecting.from);
        EngineError::failed(what, "run the backup again: of a stream that was broken off nothing can be gone on from")
    }

    fn all(&mut self, feed: &mut Feed) -> Result<(), EngineError> {
        self.add(b"data", self.expecting.data_mode, 0, Found::Directory, ("postgres", "postgres"));
        for (oid, location) in &self.expecting.tablespaces {
            let path = format!("data/pg_tblspc/{oid}");
            let is_link = location.starts_with('/');
            let found = if is_link { Found::Link(location.clone().into_bytes()) } else { Found::Directory };
            let mode = if is_link { 0o777 } else { self.expecting.data_mode };
            self.add(path.as_bytes(), mode, 0, found, ("postgres", "postgres"));
        }
        while let Some(number) = feed.next_archive().map_err(|error| self.bad(&error))? {
            let Some(tablespace) = self.expecting.archives.get(number).copied() else {
                // backup_manifest was not asked for.
                continue;
            };
            let prefix = tablespace.map_or_else(String::new, |oid| format!("pg_tblspc/{oid}/")).into_bytes();
            let input = feed.archive(self.expecting.packed, self.expecting.is_unterminated);
            let mut tar = TarReader::new(input.map_err(|error| self.bad(&error))?);
            while let Some(mut member) = tar.next().map_err(|error| self.bad(&error))? {
                if self.store.is_stopped() {
                    return Err(EngineError::Cancelled);
                }
                if !member.name.is_empty() {
                    member.name = [&prefix[..], &member.name].concat();
                    self.member(&mut tar, &member)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &[u8], mode: u32, mtime: u64, found: Found, owner: (&str, &str)) -> usize {
        let owner = self.owners.named(owner.0, owner.1);
        self.entries.push(Listed { path: path.into(), mode, owner, mtime, found });
        self.entries.len() - 1
    }

    fn member(&mut self, tar: &mut TarReader<Box<dyn Read + '_>>, member: &Member) -> Result<(), EngineError> {
        let text = String::from_utf8_lossy(&member.name).into_owned();
        let path = [b"data/", member.name.as_slice()].concat();
        let owner = (member.user.as_str(), member.group.as_str());
        match &member.kind {
            MemberKind::Directory => {
                if !matches!(classify(&text, EntryKind::Directory, &self.expecting.rules), Verdict::Omit(_)) {
                    self.add(&path, member.mode, member.mtime, Found::Directory, owner);
                }
                Ok(())
            }
            MemberKind::Link(target) => {
                self.add(&path, member.mode, member.mtime, Found::Link(target.clone()), owner);
                Ok(())
            }
            MemberKind::File(len) => match incremental::changed_file(&member.name) {
                Some(name) if self.expecting.is_incremental => self.changed(tar, member, &name, *len),
                _ => self.file(tar, member, &text, &path, *len),
            },
        }
    }

    fn file(
        &mut self,
        tar: &mut TarReader<Box<dyn Read + '_>>,
        member: &Member,
        text: &str,
        path: &[u8],
        len: u64,
    ) -> Result<(), EngineError> {
        let small = match text {
            "backup_label" => Some(&mut self.told.label),
            "tablespace_map" => Some(&mut self.told.tablespace_map),
            _ => None,
        };
        if let Some(to) = small {
            let mut content = vec![0; len.min(SMALL_MAX) as usize];
            let got = tar.read(&mut content);
            content.truncate(got.as_ref().map_or(0, |got| *got));
            *to = content;
            if text == "backup_label" {
                self.told.label_time = member.mtime;
            }
            return got.map(drop).map_err(|error| self.bad(&error));
        }
        let carried = self.expecting.wal_of.and_then(|timeline| carried(text, timeline));
        if carried.is_none() && classify(text, EntryKind::File, &self.expecting.rules) != Verdict::Include {
            return Ok(());
        }
        let to = carried.map_or_else(|| path.to_vec(), |name| format!("wal/{name}").into_bytes());
        let relation = carried.is_none().then(|| relation_of(text, self.setup.rules.relseg_blocks)).flatten();
        self.prior.saw(&to, member.mtime);
        let before = self.prior.take(&to);
        let task = self.prior.task(&to, relation, before);
        let found = Found::File { len, relation };
        let index = self.add(&to, member.mode, member.mtime, found, (&member.user, &member.group));
        if let Some(name) = carried {
            self.wal.insert(index, (name, member.mtime));
        }
        let damaged = if before.is_some() { self.prior.damaged(&to) } else { Vec::new() };
        let entry = self.entries[index].clone();
        let arriving = self.store.begin(FileHead { index, entry, len, relation, task, before, damaged }, None);
        let extent_bytes = EXTENT_PAGES * self.setup.rules.page_size as u64;
        for extent in 0..len.div_ceil(extent_bytes).max(1) {
            let wanted = (len - extent * extent_bytes).min(extent_bytes);
            let mut bytes = vec![0; wanted as usize];
            tar.read(&mut bytes).map_err(|error| self.bad(&error))?;
            if text == CONTROL_FILE_PATH {
                self.told.control.clone_from(&bytes);
            }
            self.setup.ctx.progress.advance(wanted);
            self.store.extent(&arriving, extent, bytes)?;
        }
        Ok(())
    }

    /// A file of which only what changed comes.
    fn changed(
        &mut self,
        tar: &mut TarReader<Box<dyn Read + '_>>,
        member: &Member,
        name: &[u8],
        len: u64,
    ) -> Result<(), EngineError> {
        let text = String::from_utf8_lossy(name).into_owned();
        let path = [b"data/", name].concat();
        let rules = self.setup.rules;
        let wrong =
            |what: String| EngineError::failed(format!("changes of {text}: {what}"), "run the backup with --full");
        let relation = relation_of(&text, rules.relseg_blocks);
        let before = self.prior.take(&path).filter(|_| relation.is_some());
        let before = before.ok_or_else(|| wrong("the backup that they were asked for upon does not have it".into()))?;
        let head = ChangedHead::read(tar, len, rules).map_err(|error| wrong(error.to_string()))?;
        let now = head.pages() * rules.page_size as u64;
        let owner = (member.user.as_str(), member.group.as_str());
        let index = self.add(&path, member.mode, member.mtime, Found::File { len: now, relation }, owner);
        let entry = self.entries[index].clone();
        let task = Task::Pages;
        let arriving_head =
            FileHead { index, entry, len: now, relation, task, before: Some(before), damaged: Vec::new() };
        if head.blocks.is_empty() {
            let (blocks, placed) = (Vec::new(), Vec::new());
            self.store.unchanged(InPart { index, len: now, before, blocks, placed });
            return Ok(());
        }
        let count = head.blocks.len();
        let arriving = self.store.begin(arriving_head, Some(head.blocks));
        let at_once = EXTENT_PAGES as usize;
        for first in (0..count).step_by(at_once) {
            let mut bytes = vec![0; (count - first).min(at_once) * rules.page_size];
            tar.read(&mut bytes).map_err(|error| self.bad(&error))?;
            self.setup.ctx.progress.advance(bytes.len() as u64);
            self.store.blocks(&arriving, first, bytes)?;
        }
        Ok(())
    }

    /// All has come: what the prior has besides is no more, and what came is sorted by its paths.
    fn finish(self) -> Result<Unpacked, EngineError> {
        let Self { prior, store, entries, owners, wal, told, .. } = self;
        for file in prior.into_gone() {
            if let Err(error) = store.gone(file) {
                return Err(store.give_up(error));
            }
        }
        let (mut outcome, mut parts) = store.finish()?;
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by(|&a, &b| entries[a].path.cmp(&entries[b].path));
        let mut place = vec![0; entries.len()];
        order.iter().enumerate().for_each(|(now, &was)| place[was] = now);
        let mut sorted: Vec<Option<Listed>> = entries.into_iter().map(Some).collect();
        let mut entries: Vec<Listed> = order.iter().filter_map(|&was| sorted[was].take()).collect();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            let path = String::from_utf8_lossy(&pair[0].path).into_owned();
            return Err(EngineError::Failed { reason: format!("the server sent {path} twice"), hint: None });
        }
        for page in outcome.bad_pages.iter_mut().chain(&mut outcome.differing) {
            page.file = place[page.file];
        }
        let (mut files, mut came) = (Vec::new(), Vec::new());
        for (index, result) in std::mem::take(&mut outcome.files) {
            match (wal.get(&index), result) {
                (Some(&(name, mtime)), Some(result)) => came.push(WalCame { name, mtime, result }),
                _ => files.push((place[index], result)),
            }
        }
        outcome.files = files;
        // The manifest has them after all others.
        entries.retain(|entry| entry.path.starts_with(b"data"));
        came.sort_by_key(|file| file.name.to_string());
        let bytes = entries.iter().map(|entry| if let Found::File { len, .. } = entry.found { len } else { 0 }).sum();
        let listing = Listing { entries, owners, bytes, warnings: Vec::new() };
        parts.iter_mut().for_each(|part| part.index = place[part.index]);
        Ok(Unpacked { listing, outcome, wal: came, parts, told })
    }
}

/// The WAL file that a member is, if it is one that the backup is to carry.
fn carried(text: &str, timeline: Timeline) -> Option<WalFileName> {
    let name: WalFileName = text.strip_prefix("pg_wal/")?.parse().ok()?;
    let wanted = matches!(name, WalFileName::Segment(_) | WalFileName::History(_)) && name.timeline() == timeline;
    wanted.then_some(name)
}
