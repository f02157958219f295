//! One file of `pg_wal` on its way into the repository: read, judged, encoded.

use super::catalogs::MovedCatalogs;
use super::index;
use super::spool::FileIdentity;
use crate::EngineError;
use crate::wal::archive::segment_size_of;
use bytes::Bytes;
use pg_format::{Lsn, PgMajor, SegmentName, SystemId, TimelineHistory, WalFileName, WalSegmentSize};
use pg_wal::page::PageHeader;
use pg_wal::{Expected, IndexOptions, WalError};
use repo::wal::{Fragments, Unreadable, WalEncoder, WalFacts, plain_hash};
use repo::{ClusterFacts, Compression, Keyring, SystemEntry};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use store::ObjectPath;

/// No history file has more bytes.
const HISTORY_BYTES_MAX: u64 = 16 << 20;

/// A file read and found fit for the archive.
pub(super) struct Prepared {
    pub(super) system_id: SystemId,
    pub(super) identity: FileIdentity,
    pub(super) path: ObjectPath,
    /// BLAKE3 of the plain content.
    pub(super) hash: String,
    pub(super) bytes_read: u64,
    pub(super) body: Body,
    pub(super) warnings: Vec<String>,
}

/// What is to be stored.
pub(super) enum Body {
    /// A whole object for each repository.
    Segment(Vec<Bytes>),
    /// The plain content of a timeline history or backup history file.
    File(Vec<u8>),
}

/// Memory that is used again: that of a segment, and the encoders, one for each repository.
pub(super) struct Scratch {
    plain: Vec<u8>,
    encoders: Vec<WalEncoder>,
}

impl Scratch {
    pub(super) fn new(compressions: impl Iterator<Item = Compression>) -> Self {
        Self { plain: Vec::new(), encoders: compressions.map(WalEncoder::new).collect() }
    }
}

/// Where things are and what is known; the same for all files of a call.
pub(super) struct Judge {
    pub(super) cluster: repo::Cluster,
    pub(super) facts: ClusterFacts,
    /// The system identifier in the `pg_control` beside `pg_wal`, when there is one.
    pub(super) control: Option<SystemId>,
    /// Where catalogs lie, for the indexes of segments.
    pub(super) catalogs: MovedCatalogs,
}

/// The system identifier in the `pg_control` of the data directory in which `wal_dir` is `pg_wal`.
pub(super) fn control_system_id(wal_dir: &Path) -> Option<SystemId> {
    // By the text of the path, not through the directory: `pg_wal` is often a link to another disk.
    let bytes = std::fs::read(wal_dir.parent()?.join(pg_format::control::CONTROL_FILE_PATH)).ok()?;
    // A torn read is possible while the server runs; then nothing is known.
    Some(pg_format::ControlFile::parse(&bytes).ok()?.system_id)
}

impl Judge {
    /// The entry of the catalogue for a system identifier; refuses one that is not this cluster's.
    fn entry(&self, found: SystemId, file: &Path) -> Result<&SystemEntry, EngineError> {
        self.facts.systems.iter().rev().find(|entry| entry.system_id == found).ok_or_else(|| {
            let name = self.cluster.name();
            let known = self.facts.current().map_or_else(|| "none".to_owned(), |entry| entry.system_id.to_string());
            EngineError::refused(
                format!(
                    "{}: WAL of the system identifier {found}; cluster {name} in the repository has {known}",
                    file.display()
                ),
                format!(
                    "if this server is meant to archive to {name} from now on (made anew, or upgraded), run `pgkeep init \
                     {name}` again; if not, correct its archive_command"
                ),
            )
        })
    }

    /// The system that files without an identifier of their own belong to.
    fn present(&self, file: &Path) -> Result<&SystemEntry, EngineError> {
        match self.control {
            Some(found) => self.entry(found, file),
            None => self.facts.current().ok_or_else(|| {
                EngineError::refused(
                    format!("cluster {} has no system identifier in the repository", self.cluster.name()),
                    format!("run `pgkeep init {}`", self.cluster.name()),
                )
            }),
        }
    }

    /// Reads a file and makes of it what is to be stored, sealed with each of the keys. Blocks and computes.
    pub(super) fn prepare(
        &self,
        file: &Path,
        name: WalFileName,
        scratch: &mut Scratch,
        keys: &[&Keyring],
    ) -> Result<Prepared, EngineError> {
        match name {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                self.prepare_segment(file, name, segment, scratch, keys)
            }
            WalFileName::History(_) | WalFileName::BackupHistory(..) => self.prepare_file(file, name),
        }
    }

    fn prepare_file(&self, file: &Path, name: WalFileName) -> Result<Prepared, EngineError> {
        let system_id = self.present(file)?.system_id;
        let mut content = Vec::new();
        let identity = read(file, HISTORY_BYTES_MAX, &mut content)?;
        let mut warnings = Vec::new();
        let path = match name {
            WalFileName::History(timeline) => {
                if let Err(error) = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content)) {
                    warnings.push(format!("{}: archived as it is, but it cannot be used: {error}", file.display()));
                }
                self.cluster.name().history(system_id, timeline)
            }
            other => self.cluster.name().wal_file(system_id, other.timeline(), &other.to_string())?,
        };
        Ok(Prepared {
            system_id,
            identity,
            path,
            hash: plain_hash(&content),
            bytes_read: content.len() as u64,
            body: Body::File(content),
            warnings,
        })
    }

    fn prepare_segment(
        &self,
        file: &Path,
        name: WalFileName,
        segment: SegmentName,
        scratch: &mut Scratch,
        keys: &[&Keyring],
    ) -> Result<Prepared, EngineError> {
        let Scratch { plain, encoders } = scratch;
        let identity = read(file, 1 << 30, plain)?;
        let plain = &plain[..];
        let entry = match pg_wal::peek_segment(plain) {
            Ok(info) => self.entry(info.system_id, file)?,
            Err(error) => self.entry_of_unreadable(plain, file, &error)?,
        };
        let size = segment_size_of(entry)?;
        let start = segment.start(size).map_err(|error| refused(file, &error))?;
        let partial = matches!(name, WalFileName::Partial(_));
        let len = plain.len() as u64;
        if len != size.bytes() && !(partial && len < size.bytes()) {
            return Err(EngineError::refused(
                format!("{}: has {len} bytes, a segment of this cluster has {}", file.display(), size.bytes()),
                "it is not whole, or not of this cluster; compare it with a copy from a standby",
            ));
        }
        let Judged { facts, fragments, index } = self.judge_segment(file, plain, segment, start, size, entry)?;
        let mut warnings = Vec::new();
        if let Some(cut) = facts.unreadable.as_ref().filter(|_| !partial) {
            warnings.push(format!(
                "{}: archived, but it cannot be read beyond {}: {}; recovery would end there",
                file.display(),
                cut.lsn,
                cut.reason
            ));
        }
        if let Err(reason) = &index {
            warnings.push(format!(
                "{}: archived, but without an index of what it changed: {reason}; the next incremental backup will find \
                 changes in another way",
                file.display()
            ));
        }
        let path = self.cluster.name().wal_file(entry.system_id, segment.timeline, &name.to_string())?;
        let index = index.ok().flatten();
        let sealed = encoders
            .iter_mut()
            .zip(keys)
            .map(|(encoder, keys)| encoder.encode_indexed(keys, &path, plain, &facts, &fragments, index.as_deref()));
        let objects = sealed.collect::<Result<Vec<Bytes>, _>>()?;
        Ok(Prepared {
            system_id: entry.system_id,
            identity,
            path,
            hash: facts.plain_hash,
            bytes_read: len,
            body: Body::Segment(objects),
            warnings,
        })
    }

    /// Whose segment it is when its first page does not say so in a form that is known.
    fn entry_of_unreadable(&self, plain: &[u8], file: &Path, error: &WalError) -> Result<&SystemEntry, EngineError> {
        let header = PageHeader::parse(plain).ok();
        let long = header.and_then(|header| header.long);
        let plausible = |size: u32| WalSegmentSize::new(size).is_ok();
        match (error, long) {
            // A well-formed header with a magic nobody knows, of a system nobody knows: a version of PostgreSQL that is
            // newer than this program. Of a system that is known it can only be damage.
            (WalError::UnknownMagic { .. }, Some(long)) if plausible(long.segment_size) => {
                self.entry(long.system_id, file)
            }
            _ => self.present(file),
        }
    }
}

fn refused(file: &Path, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::refused(
        format!("{}: {error}", file.display()),
        "the file is not what its name says; nothing was archived under this name",
    )
}

/// What a segment says of itself.
struct Judged {
    facts: WalFacts,
    fragments: Fragments,
    /// The bytes of its index; none for a segment that is unreadable from its first page on, or why there is none.
    index: Result<Option<Vec<u8>>, String>,
}

impl Judge {
    /// What the segment says of itself; refuses one that is not what its name says.
    fn judge_segment(
        &self,
        file: &Path,
        plain: &[u8],
        name: SegmentName,
        start: Lsn,
        size: WalSegmentSize,
        entry: &SystemEntry,
    ) -> Result<Judged, EngineError> {
        let expected = Expected {
            system_id: Some(entry.system_id),
            major: PgMajor::from_number(entry.pg_major).ok(),
            segment_size: Some(size.into()),
            timeline: Some(name.timeline),
            start: Some(start),
            block_size: None,
        };
        let indexing = IndexOptions { moved_catalogs: self.catalogs.all(), ..IndexOptions::usual() };
        match index::read(plain, &expected, &indexing) {
            Ok((mut scan, index)) => {
                let magic = scan.info.major.facts().wal_page_magic;
                let facts = WalFacts::of(&scan, name.timeline, magic, plain);
                let fragments = Fragments::take(&mut scan);
                Ok(Judged { facts, fragments, index: index.map(Some) })
            }
            Err(error @ WalError::OtherMajor { .. }) => Err(EngineError::refused(
                format!("{}: {error}", file.display()),
                "the server was upgraded: run `pgkeep init` for this cluster again",
            )),
            Err(
                error @ (WalError::OtherSystem { .. }
                | WalError::OtherSegmentSize { .. }
                | WalError::OtherAddress { .. }
                | WalError::OtherTimeline { .. }
                | WalError::TooLong { .. }),
            ) => Err(refused(file, &error)),
            // Damaged from its first page on. PostgreSQL will not write it again: what there is, is kept.
            Err(error) => Ok(Judged {
                facts: unreadable_facts(plain, name, start, size, entry, &error),
                fragments: Fragments::default(),
                index: Ok(None),
            }),
        }
    }
}

fn unreadable_facts(
    plain: &[u8],
    name: SegmentName,
    start: Lsn,
    size: WalSegmentSize,
    entry: &SystemEntry,
    error: &WalError,
) -> WalFacts {
    WalFacts {
        system_id: entry.system_id,
        timeline: name.timeline,
        segment_size: size.bytes(),
        wal_page_magic: plain.get(..2).map_or(0, |magic| u16::from_le_bytes([magic[0], magic[1]])),
        first_lsn: start,
        last_lsn: start,
        first_record_lsn: None,
        records: 0,
        commits: 0,
        aborts: 0,
        earliest_commit: None,
        latest_commit: None,
        earliest_abort: None,
        latest_abort: None,
        restore_points: Vec::new(),
        checkpoints: Vec::new(),
        switched: false,
        head_len: 0,
        head_whole: false,
        tail_len: 0,
        tail_total: 0,
        unreadable: Some(Unreadable { lsn: start, reason: error.to_string() }),
        plain_hash: plain_hash(plain),
    }
}

/// Reads a file whole into memory that is used again, and makes sure that it was one and the same all the while.
fn read(path: &Path, bytes_max: u64, content: &mut Vec<u8>) -> Result<FileIdentity, EngineError> {
    let fail = |action| move |error| EngineError::file(path, action, error);
    let mut file = File::open(path).map_err(fail("opening"))?;
    let meta = file.metadata().map_err(fail("opening"))?;
    let bad = |reason: String| EngineError::BadFile { path: PathBuf::from(path), reason };
    if !meta.is_file() {
        return Err(bad("is no regular file".into()));
    }
    if meta.len() > bytes_max {
        return Err(bad(format!("has {} bytes, more than the {bytes_max} such a file can have", meta.len())));
    }
    let identity = FileIdentity::of(&meta);
    // Not cleared first: filling it anew takes as long as reading.
    content.resize(meta.len() as usize, 0);
    let read = file.read_exact(content);
    let changed = || bad("changed while it was read".into());
    read.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => changed(),
        _ => EngineError::file(path, "reading", error),
    })?;
    let more = file.read(&mut [0]).map_err(fail("reading"))?;
    let after = FileIdentity::of(&file.metadata().map_err(fail("reading"))?);
    if after != identity || more > 0 {
        return Err(changed());
    }
    Ok(identity)
}
