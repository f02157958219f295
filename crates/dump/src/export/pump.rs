//! What goes into pieces, or through a compressor of its own: it is written into a pipe, and a thread takes it out at the other end.

use super::{ExportFormat, ExportOptions, ExportReport, ExportTo, Partial, export};
use crate::DumpError;
use crate::archive::ArchiveCompression;
use crate::pieces::PieceWriter;
use engine::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use repo::{BackupId, Cluster};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;

/// Whether an export is made here.
pub(super) fn is_for(options: &ExportOptions) -> bool {
    let packed = options.format == ExportFormat::Plain && options.compression != ArchiveCompression::None;
    options.piece_bytes.is_some() || packed
}

/// Exports through a pipe.
pub(super) async fn run(
    ctx: &Context,
    cluster: &Cluster,
    dump: BackupId,
    to: ExportTo,
    options: &ExportOptions,
) -> Result<ExportReport, DumpError> {
    // Archives are compressed inside, text as a whole.
    let (inner, outer) = match options.format {
        ExportFormat::Plain => (ArchiveCompression::None, options.compression),
        _ => (options.compression, ArchiveCompression::None),
    };
    let path = match &to {
        ExportTo::Path(path) => Some(path.clone()),
        ExportTo::Pipe(_) => None,
    };
    let target = match (to, options.piece_bytes) {
        (_, Some(_)) if options.format == ExportFormat::Directory => {
            return Err(DumpError::refused("a directory is not split", "use --format custom, plain or tar"));
        }
        (ExportTo::Path(path), Some(bytes)) => Target::Pieces(PieceWriter::create(&path, bytes)?),
        (ExportTo::Path(path), None) => {
            let partial = Partial::new(&path)?;
            let file = partial.create().await?.into_std().await;
            Target::File(file, partial)
        }
        (ExportTo::Pipe(_), Some(_)) => {
            return Err(DumpError::refused("a pipe is not split", "name a path, or pipe it through split"));
        }
        (ExportTo::Pipe(file), None) => Target::Pipe(file),
    };
    let failed = |error| DumpError::Failed { reason: format!("a pipe could not be made: {error}"), hint: None };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let pump = tokio::task::spawn_blocking(move || pump(reader, target, outer));
    let inside = ExportOptions { compression: inner, piece_bytes: None, ..options.clone() };
    let to_pipe = ExportTo::Pipe(File::from(OwnedFd::from(writer)));
    let made = Box::pin(export(ctx, cluster, dump, to_pipe, &inside)).await;
    let pumped = pump.await.unwrap_or_else(|panic| Err(io::Error::other(format!("writing stopped: {panic}"))));
    let place = path.clone().unwrap_or_else(|| "standard output".into());
    // Why nothing could be written is said by who writes; the other end knows only that nobody reads any more.
    let target = match (pumped, made.is_ok()) {
        (Err(error), _) => return Err(DumpError::file(place, "writing", error)),
        (Ok(target), _) => target,
    };
    let report = made?;
    let pieces = match (target, &path) {
        (Target::Pieces(pieces), _) => Some(pieces.keep()?),
        (Target::File(file, partial), Some(path)) => {
            file.sync_all().map_err(|error| DumpError::file(path, "writing", error))?;
            partial.keep(path)?;
            None
        }
        _ => None,
    };
    Ok(ExportReport { to: path, pieces, ..report })
}

enum Target {
    Pieces(PieceWriter),
    File(File, Partial),
    Pipe(File),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pieces(pieces) => pieces.write(bytes),
            Self::File(file, _) | Self::Pipe(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pump(from: PipeReader, to: Target, compression: ArchiveCompression) -> io::Result<Target> {
    match compression {
        ArchiveCompression::None => through(from, to),
        ArchiveCompression::Gzip(level) => {
            through(from, GzEncoder::new(to, Compression::new(level.clamp(1, 9) as u32)))?.finish()
        }
        ArchiveCompression::Zstd(level) => through(from, zstd::stream::write::Encoder::new(to, level)?)?.finish(),
        ArchiveCompression::Lz4 => {
            through(from, lz4_flex::frame::FrameEncoder::new(to))?.finish().map_err(io::Error::other)
        }
    }
}

fn through<W: Write>(mut from: PipeReader, mut to: W) -> io::Result<W> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(to),
            Ok(got) => to.write_all(&buffer[..got])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
