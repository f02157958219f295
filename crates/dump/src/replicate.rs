//! A dump copied into another repository: the same dump, under the same ID, sealed with that one's keys. Every chunk is checked
//! against its hash on the way. What an earlier copy that was broken off has left is read, checked and kept.

use crate::DumpError;
use crate::expire::is_left_named;
use engine::{Context, Unit};
use futures::{StreamExt, TryStreamExt};
use repo::chunk::ChunkRef;
use repo::dump::{DumpDataReader, DumpIntent, DumpManifest, DumpObject};
use repo::{BackupId, Cluster, RepoError};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Instant;

/// A dump that is in the other repository now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// The dump.
    pub dump: BackupId,
    /// Whether it was there already, whole.
    pub was_there: bool,
    /// Data objects that it has.
    pub objects: u64,
    /// Those of them that an earlier copy had left, and that were right.
    pub kept_objects: u64,
    /// Bytes of the data objects that were written.
    pub written_bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Copies a dump. `workers` objects at the same time.
pub async fn copy(
    ctx: &Context,
    from: &Cluster,
    to: &Cluster,
    dump: BackupId,
    workers: usize,
) -> Result<CopyReport, DumpError> {
    let begun = Instant::now();
    let manifest = from.open_dump(dump).await?;
    let mut report = CopyReport {
        dump,
        was_there: false,
        objects: manifest.objects.len() as u64,
        kept_objects: 0,
        written_bytes: 0,
        elapsed_ms: 0,
    };
    match to.dump_facts(dump).await {
        Ok(facts) if facts == manifest.facts => {
            refused_while_deleted(to, dump).await?;
            report.was_there = true;
            return Ok(report);
        }
        Ok(_) => return Err(other(dump)),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    known(from, to).await?;
    begin(ctx, to, &manifest).await?;
    let there: HashMap<u32, u64> =
        to.dump_data_there(dump).await?.into_iter().map(|object| (object.number, object.size)).collect();
    let chunks = manifest.chunks_of_objects();
    let bytes = chunks.iter().flatten().map(|chunk| u64::from(chunk.stored_len)).sum();
    ctx.progress.phase("copying the dump", Some(bytes), Unit::Bytes);
    let copying = Copying { ctx, from, to, dump, there };
    let all = manifest.objects.iter().zip(&chunks).map(|(object, chunks)| copying.object(*object, chunks));
    let done: Vec<(DumpObject, bool)> =
        ctx.or_cancel(futures::stream::iter(all).buffer_unordered(workers.max(1)).try_collect()).await??;
    for (object, kept) in &done {
        report.kept_objects += u64::from(*kept);
        report.written_bytes += if *kept { 0 } else { object.size };
    }
    commit(to, &manifest, done.into_iter().map(|(object, _)| object).collect()).await?;
    report.elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(report)
}

fn other(dump: BackupId) -> DumpError {
    DumpError::refused(
        format!("the other repository has something else under the ID {dump}"),
        "`pgkeep list` with --repo shows what it is; IDs are never used twice",
    )
}

async fn refused_while_deleted(to: &Cluster, dump: BackupId) -> Result<(), DumpError> {
    if to.is_dump_marked(dump).await? {
        return Err(DumpError::refused(
            format!("dump {dump} is being deleted in the other repository, or its deletion was broken off"),
            "`pgkeep expire` there ends it; then copy it again",
        ));
    }
    Ok(())
}

/// The cluster is known there, too.
async fn known(from: &Cluster, to: &Cluster) -> Result<(), DumpError> {
    let own = from.known_facts().await?;
    to.update_facts(|there| match there {
        Some(_) => None,
        None => Some(repo::ClusterFacts { pins: Vec::new(), ..own.clone() }),
    })
    .await?;
    Ok(())
}

/// Takes the ID, also from a copy that was broken off.
async fn begin(ctx: &Context, to: &Cluster, manifest: &DumpManifest) -> Result<(), DumpError> {
    let dump = manifest.facts.dump;
    refused_while_deleted(to, dump).await?;
    if let Some(intent) = to.dump_intent(dump).await? {
        if !is_left_named(&intent, ctx.now()) {
            return Err(DumpError::refused(
                format!("dump {dump} is being copied there, by process {} on {}", intent.pid, intent.host),
                "wait for it; what a process of another host left can be taken over after a day",
            ));
        }
        to.delete_dump_intent(dump).await?;
    }
    let holder = engine::lease_holder();
    let intent = DumpIntent {
        dump,
        host: holder.host,
        pid: holder.pid,
        boot: holder.boot,
        process_start: holder.process_start,
        started: ctx.now(),
    };
    let made = manifest.facts.started..=manifest.facts.finished;
    match to.begin_copied_dump(&intent, made, ctx.now()).await {
        Err(RepoError::Conflict { .. }) => Err(other(dump)),
        done => Ok(done?),
    }
}

/// Writes the manifest, unless the copy was deleted meanwhile.
async fn commit(to: &Cluster, manifest: &DumpManifest, objects: Vec<DumpObject>) -> Result<(), DumpError> {
    let dump = manifest.facts.dump;
    let manifest = manifest.with_objects(objects).ok_or_else(|| DumpError::Failed {
        reason: format!("the copy of dump {dump} has other objects than the dump"),
        hint: None,
    })?;
    if to.dump_intent(dump).await?.is_none() {
        return Err(DumpError::failed(
            format!("the copy of dump {dump} was deleted while it was made"),
            "copy it again",
        ));
    }
    Ok(to.put_dump_manifest(&manifest).await?)
}

struct Copying<'a> {
    ctx: &'a Context,
    from: &'a Cluster,
    to: &'a Cluster,
    dump: BackupId,
    /// The data objects that are there, and their sizes.
    there: HashMap<u32, u64>,
}

impl Copying<'_> {
    /// One object; whether it was there and right.
    async fn object(&self, object: DumpObject, chunks: &[ChunkRef]) -> Result<(DumpObject, bool), DumpError> {
        let number = object.number;
        if let Some(size) = self.there.get(&number) {
            let there = DumpObject { number, size: *size };
            if self.is_right(there, chunks).await? {
                return Ok((there, true));
            }
            tracing::warn!(number, "a data object that a broken-off copy left is not right; it is copied again");
            self.to.delete_dump_data(self.dump, number).await?;
        }
        let reader = self.from.open_dump_data(self.dump, object).await?;
        let mut writer = self.to.create_dump_data(self.dump, number).await?;
        for chunk in chunks {
            let piece = reader.read_stored(chunk).await?;
            let place = writer.add(&piece).await?;
            if place.offset != chunk.offset {
                return Err(DumpError::Failed {
                    reason: format!(
                        "data object {number} of dump {} has bytes that its manifest does not name",
                        self.dump
                    ),
                    hint: Some("`pgkeep verify` of the dump says more".into()),
                });
            }
            self.ctx.progress.advance(chunk.stored_len.into());
        }
        Ok((DumpObject { number, size: writer.finish().await? }, false))
    }

    /// Whether an object holds just these chunks.
    async fn is_right(&self, there: DumpObject, chunks: &[ChunkRef]) -> Result<bool, DumpError> {
        let reader = match self.to.open_dump_data(self.dump, there).await {
            Ok(reader) => reader,
            Err(error) if error.is_damage() || error.is_not_found() => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for chunk in chunks {
            if !read(&reader, chunk).await? {
                return Ok(false);
            }
            self.ctx.progress.advance(chunk.stored_len.into());
        }
        Ok(true)
    }
}

async fn read(reader: &DumpDataReader, chunk: &ChunkRef) -> Result<bool, DumpError> {
    match reader.read(chunk).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
