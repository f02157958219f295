//! Verify: every byte of a dump is read, decompressed and compared with its hash, and the counts add up.

use crate::archive::Archive;
use crate::binary::TupleCount;
use crate::large_objects::Parser;
use crate::{DumpError, StreamReader};
use engine::{Context, Unit};
use futures::StreamExt;
use repo::dump::DataKind;
use repo::{BackupId, Cluster};
use serde::Serialize;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The dump.
    pub dump: BackupId,
    /// Streams that were read.
    pub streams: u64,
    /// Their plain bytes.
    pub bytes: u64,
    /// Rows that were counted.
    pub rows: u64,
    /// What is damaged or missing; empty when all is well.
    pub problems: Vec<String>,
}

/// Reads a whole dump. Damage is collected, not thrown.
pub async fn verify(ctx: &Context, cluster: &Cluster, dump: BackupId) -> Result<VerifyReport, DumpError> {
    let mut report = VerifyReport { dump, streams: 0, bytes: 0, rows: 0, problems: Vec::new() };
    let manifest = match cluster.open_dump(dump).await {
        Ok(manifest) => manifest,
        Err(error) if error.is_damage() => {
            report.problems.push(error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error.into()),
    };
    let reader = StreamReader::new(cluster.clone(), manifest);
    let facts = &reader.manifest().facts;
    let total = (0..reader.manifest().streams.len()).map(|stream| reader.manifest().stream_len(stream as u32)).sum();
    ctx.progress.phase("reading the dump", Some(total), Unit::Bytes);
    for (what, stream) in facts.globals.iter().map(|stream| ("roles and tablespaces".to_owned(), *stream)) {
        check(ctx, &reader, stream, &what, &mut report, |_| Ok(())).await?;
    }
    let script = facts.imported.as_ref().and_then(|imported| imported.script);
    if let Some(stream) = script {
        check(ctx, &reader, stream, "SQL text", &mut report, |_| Ok(())).await?;
    }
    for database in &facts.databases {
        let what = format!("{}: definitions", database.name);
        let mut bytes = Vec::new();
        check(ctx, &reader, database.definitions, &what, &mut report, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .await?;
        match Archive::parse(&bytes) {
            Ok(archive) => {
                for data in database.data.iter().filter(|data| archive.entry(data.entry).is_none()) {
                    report.problems.push(format!("{what}: no entry {} for {}.{}", data.entry, data.schema, data.name));
                }
            }
            Err(error) => report.problems.push(format!("{what}: {error}")),
        }
        for data in &database.data {
            for (number, part) in data.parts.iter().enumerate() {
                let what = format!("{}: {}.{}, part {}", database.name, data.schema, data.name, number + 1);
                let (mut rows, mut parser, mut tuples) = (0, Parser::default(), TupleCount::default());
                check(ctx, &reader, part.stream, &what, &mut report, |piece| {
                    match data.kind {
                        DataKind::Table => rows += piece.iter().filter(|byte| **byte == b'\n').count() as u64,
                        DataKind::TableBinary => {
                            tuples.feed(piece);
                            rows = tuples.tuples;
                        }
                        DataKind::LargeObjects => {
                            let steps = parser.feed(piece).map_err(|error| error.to_string())?;
                            rows +=
                                steps.iter().filter(|step| **step == crate::large_objects::Step::End).count() as u64;
                        }
                    }
                    Ok(())
                })
                .await?;
                if !tuples.is_between() {
                    report.problems.push(format!("{what}: it ends within a row"));
                }
                if rows != part.rows {
                    report.problems.push(format!("{what}: {rows} rows, {} were written", part.rows));
                }
                report.rows += rows;
            }
        }
    }
    Ok(report)
}

async fn check(
    ctx: &Context,
    reader: &StreamReader,
    stream: u32,
    what: &str,
    report: &mut VerifyReport,
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), DumpError> {
    let mut pieces = reader.pieces(stream);
    report.streams += 1;
    while let Some(piece) = ctx.or_cancel(pieces.next()).await? {
        match piece {
            Ok(piece) => {
                report.bytes += piece.len() as u64;
                ctx.progress.advance(piece.len() as u64);
                if let Err(reason) = take(&piece) {
                    report.problems.push(format!("{what}: {reason}"));
                    return Ok(());
                }
            }
            Err(DumpError::Repo(error)) if error.is_damage() || error.is_not_found() => {
                report.problems.push(format!("{what}: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
