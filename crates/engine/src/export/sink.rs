//! The writing side: each file's bytes are summed and counted as they go out.

use super::feed::{Meta, Step};
use super::plain::PlainOut;
use super::plan::{At, Plan};
use super::tarred::TarOut;
use super::{ExportFormat, ExportOptions, ExportTo};
use crate::checksums::Checksum;
use crate::{EngineError, Progress};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) wal_files: u64,
}

/// A file whose bytes are coming.
struct Current {
    at: At,
    len: u64,
    left: u64,
    mtime: u64,
    sum: Checksum,
}

/// The two forms.
enum Out {
    Plain(Box<PlainOut>),
    Tar(Box<TarOut>),
}

/// Writes an export.
pub(super) struct Sink {
    out: Out,
    current: Option<Current>,
    totals: Totals,
}

impl Sink {
    pub(super) fn create(to: ExportTo, options: &ExportOptions, plan: &Plan) -> Result<Self, EngineError> {
        let out = match (to, options.format) {
            (ExportTo::Directory(dir), ExportFormat::Plain) => {
                Out::Plain(Box::new(PlainOut::create(dir, options, plan)?))
            }
            (to, _) => Out::Tar(Box::new(TarOut::create(to, options, plan)?)),
        };
        Ok(Self { out, current: None, totals: Totals::default() })
    }

    /// Writes one thing.
    pub(super) fn take(&mut self, step: Step, progress: &dyn Progress) -> Result<(), EngineError> {
        match step {
            Step::Directory(at, meta) => match &mut self.out {
                Out::Plain(out) => out.directory(&at, meta),
                Out::Tar(out) => out.directory(&at, meta),
            },
            Step::Link(at, target, meta) => match &mut self.out {
                Out::Plain(out) => out.link(&at, meta),
                Out::Tar(out) => out.link(&at, &target, meta),
            },
            Step::File(at, len, meta) => self.begin(at, len, meta),
            Step::Part(part) => self.data(&part.take()),
            Step::Bytes(bytes) => self.data(&bytes),
            Step::Zeros(mut len) => {
                // The other bytes were counted when they were fetched.
                progress.advance(len);
                while len > 0 {
                    let now = len.min(ZEROS.len() as u64);
                    self.data(&ZEROS[..now as usize])?;
                    len -= now;
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, at: At, len: u64, meta: Meta) -> Result<(), EngineError> {
        let sum = match &mut self.out {
            Out::Plain(out) => {
                out.begin(&at, meta)?;
                out.manifest.file_sum()
            }
            Out::Tar(out) => {
                out.begin(&at, len, meta)?;
                out.manifest.file_sum()
            }
        };
        self.current = Some(Current { at, len, left: len, mtime: meta.mtime, sum });
        if len == 0 { self.end() } else { Ok(()) }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let current = self.current.as_mut().filter(|current| current.left >= bytes.len() as u64);
        let Some(current) = current else {
            return Err(EngineError::Failed {
                reason: "more bytes came than the file has".into(),
                hint: Some("this is a defect of pgkeep".into()),
            });
        };
        current.sum.update(bytes);
        current.left -= bytes.len() as u64;
        let is_whole = current.left == 0;
        match &mut self.out {
            Out::Plain(out) => out.data(bytes)?,
            Out::Tar(out) => out.data(bytes)?,
        }
        if is_whole { self.end() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), EngineError> {
        let Some(current) = self.current.take() else { return Ok(()) };
        if let Out::Plain(out) = &mut self.out {
            out.end()?;
        }
        let Some(path) = current.at.in_manifest() else {
            self.totals.wal_files += 1;
            return Ok(());
        };
        self.totals.files += 1;
        self.totals.bytes += current.len;
        match &mut self.out {
            Out::Plain(out) => out.manifest.file(path, current.len, current.mtime, current.sum),
            Out::Tar(out) => out.manifest.file(path, current.len, current.mtime, current.sum),
        }
        .map_err(|error| super::write_error("backup_manifest".as_ref(), error))
    }

    /// All was written: makes it durable and gives it its names.
    pub(super) fn finish(self) -> Result<Totals, EngineError> {
        match self.out {
            Out::Plain(out) => out.finish()?,
            Out::Tar(out) => out.finish()?,
        }
        Ok(self.totals)
    }

    /// Something failed: what was written is removed.
    pub(super) fn give_up(self) {
        match self.out {
            Out::Plain(out) => out.give_up(),
            Out::Tar(out) => out.give_up(),
        }
    }
}

/// Makes a file that must not be there yet, for its owner only.
pub(super) fn create(path: &Path) -> Result<File, EngineError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| EngineError::file(path, "creating", error))
}
