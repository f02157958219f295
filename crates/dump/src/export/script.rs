//! SQL text that was taken in, given out as it came.

use super::custom::broken;
use super::{ExportFormat, ExportOptions, ExportReport, ExportTo, Partial};
use crate::{DumpError, StreamReader};
use engine::{Context, Unit};
use futures::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};

pub(super) async fn export(
    ctx: &Context,
    reader: &StreamReader,
    stream: u32,
    to: ExportTo,
    options: &ExportOptions,
) -> Result<ExportReport, DumpError> {
    let begun = std::time::Instant::now();
    let (facts, bytes) = (&reader.manifest().facts, reader.manifest().stream_len(stream));
    if options.format != ExportFormat::Plain || options.database.is_some() {
        return Err(DumpError::refused(
            format!("dump {} is SQL text: it is given out as it is", facts.dump),
            "say --format plain, and no database",
        ));
    }
    ctx.progress.phase("exporting", Some(bytes), Unit::Bytes);
    let path = match &to {
        ExportTo::Path(path) => Some(path.clone()),
        ExportTo::Pipe(_) => None,
    };
    match to {
        ExportTo::Pipe(file) => write(ctx, tokio::fs::File::from_std(file), reader, stream).await?,
        ExportTo::Path(path) => {
            let partial = Partial::new(&path)?;
            write(ctx, partial.create().await?, reader, stream).await?;
            partial.keep(&path)?;
        }
    }
    let database = facts.imported.as_ref().map(|imported| imported.connects_to.join(", ")).unwrap_or_default();
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(ExportReport { dump: facts.dump, database, to: path, pieces: None, bytes, elapsed_ms })
}

async fn write(
    ctx: &Context,
    mut out: impl AsyncWrite + Unpin,
    reader: &StreamReader,
    stream: u32,
) -> Result<(), DumpError> {
    let mut pieces = reader.pieces(stream);
    while let Some(piece) = ctx.or_cancel(pieces.next()).await? {
        let piece = piece?;
        ctx.progress.advance(piece.len() as u64);
        out.write_all(&piece).await.map_err(broken)?;
    }
    out.flush().await.map_err(broken)
}
