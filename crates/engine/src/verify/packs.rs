//! Packs: their footers, and, on request, every chunk in them.

use super::objects::Inventory;
use super::{FindingKind, Findings, Severity, VerifyOptions};
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use repo::chunk::{ChunkDecoder, ChunkRef};
use repo::{PackId, RepoError};
use std::collections::{BTreeMap, BTreeSet};

/// A range is closed when it has so many bytes.
const RANGE_BYTES_MAX: u64 = 4 << 20;

/// What is known of one chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) stored_len: u32,
    pub(super) plain_len: u32,
    pub(super) hash16: [u8; 16],
}

/// What is known of a pack.
#[derive(Debug, Default)]
pub(super) struct Pack {
    /// Its chunks, by offset; `None` when the footer cannot be read.
    pub(super) chunks: Option<Vec<Chunk>>,
    /// Offsets of chunks that are damaged.
    pub(super) damaged: BTreeSet<u64>,
}

/// What one pack's look gave.
struct Looked {
    id: PackId,
    pack: Pack,
    errors: Vec<RepoError>,
    bytes: u64,
}

/// Looks at these packs; those that are not there are left out (the backups name them).
pub(super) async fn look_at_packs(
    ctx: &Context,
    cluster: &repo::Cluster,
    inventory: &Inventory,
    wanted: BTreeSet<PackId>,
    options: &VerifyOptions,
    findings: &mut Findings,
) -> Result<BTreeMap<PackId, Pack>, EngineError> {
    let ids: Vec<PackId> = wanted.into_iter().filter(|id| inventory.packs.contains_key(id)).collect();
    let total = ids.iter().filter_map(|id| inventory.packs.get(id)).sum();
    if options.deep {
        ctx.progress.phase("reading packs", Some(total), Unit::Bytes);
    } else {
        ctx.progress.phase("looking at packs", Some(ids.len() as u64), Unit::Items);
    }
    let deep = options.deep;
    let look = |id: PackId| {
        let (ctx, cluster) = (ctx.clone(), cluster.clone());
        // A task for each, so that they are decoded in parallel.
        async move {
            let task = tokio::spawn(async move { look_at_pack(&ctx, &cluster, id, deep).await });
            task.await.map_err(|error| EngineError::Failed {
                reason: format!("looking at pack {id} ended unexpectedly: {error}"),
                hint: None,
            })?
        }
    };
    let mut looks = stream::iter(ids).map(look).buffer_unordered(options.workers.clamp(1, 64));
    let mut packs = BTreeMap::new();
    while let Some(looked) = ctx.or_cancel(looks.next()).await? {
        let looked = looked?;
        findings.objects += 1;
        findings.bytes += looked.bytes;
        if !deep {
            ctx.progress.advance(1);
        }
        let path = cluster.name().pack(looked.id);
        for error in looked.errors {
            findings.object(Severity::Damage, &path, error)?;
        }
        packs.insert(looked.id, looked.pack);
    }
    Ok(packs)
}

async fn look_at_pack(ctx: &Context, cluster: &repo::Cluster, id: PackId, deep: bool) -> Result<Looked, EngineError> {
    let mut looked = Looked { id, pack: Pack::default(), errors: Vec::new(), bytes: 0 };
    let opened = async {
        let reader = cluster.open_pack_footer(id).await?;
        let footer = reader.footer().await?;
        Ok::<_, RepoError>((reader, footer))
    };
    let (reader, footer) = match opened.await {
        Ok(opened) => opened,
        Err(error) if error.is_damage() || error.is_not_found() => {
            looked.errors.push(error);
            return Ok(looked);
        }
        Err(error) => return Err(error.into()),
    };
    let chunks: Vec<Chunk> = footer
        .iter()
        .map(|entry| {
            let mut hash16 = [0; 16];
            hash16.copy_from_slice(&entry.hash[..16]);
            Chunk { offset: entry.offset, stored_len: entry.stored_len, plain_len: entry.plain_len, hash16 }
        })
        .collect();
    if deep {
        let mut decoder = ChunkDecoder::default();
        let mut plain = Vec::new();
        let mut from = 0;
        while from < chunks.len() {
            ctx.check()?;
            let start = chunks[from].offset;
            let end = |chunk: &Chunk| chunk.offset + u64::from(chunk.stored_len);
            let fit = chunks[from..].iter().take_while(|chunk| end(chunk) - start <= RANGE_BYTES_MAX).count().max(1);
            let group = &chunks[from..from + fit];
            let group_end = group.last().map_or(start, end);
            match reader.read(start, group_end - start).await {
                Ok(stored) => {
                    looked.bytes += stored.len() as u64;
                    for chunk in group {
                        let at = (chunk.offset - start) as usize;
                        check_chunk(
                            &mut looked,
                            &reader,
                            chunk,
                            &stored[at..at + chunk.stored_len as usize],
                            &mut decoder,
                            &mut plain,
                        );
                    }
                }
                Err(error) if error.is_damage() => {
                    // One by one, to know which chunks are good.
                    for chunk in group {
                        match reader.read(chunk.offset, chunk.stored_len.into()).await {
                            Ok(stored) => check_chunk(&mut looked, &reader, chunk, &stored, &mut decoder, &mut plain),
                            Err(error) if error.is_damage() || error.is_not_found() => {
                                looked.pack.damaged.insert(chunk.offset);
                                if looked.errors.is_empty() {
                                    looked.errors.push(error);
                                }
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                Err(error) if error.is_not_found() => {
                    looked.errors.push(error);
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            ctx.progress.advance(group_end - start);
            from += fit;
        }
        // Some damaged bytes may lie where no chunk is, and harm nothing; a range that failed is told all the same.
        let damaged = looked.pack.damaged.len();
        if damaged > 1 {
            looked.errors.push(RepoError::Damaged {
                path: reader.object().name().clone(),
                reason: format!("{damaged} of its {} chunks are damaged", chunks.len()),
            });
        }
    }
    looked.pack.chunks = Some(chunks);
    Ok(looked)
}

fn check_chunk(
    looked: &mut Looked,
    reader: &repo::pack::PackReader,
    chunk: &Chunk,
    stored: &[u8],
    decoder: &mut ChunkDecoder,
    plain: &mut Vec<u8>,
) {
    let Chunk { offset, stored_len, plain_len, hash16 } = *chunk;
    let wanted = ChunkRef { pack: 0, offset, stored_len, plain_len, hash16 };
    if let Err(error) = decoder.decode(stored, &wanted, plain) {
        looked.pack.damaged.insert(offset);
        if looked.errors.is_empty() {
            let reason = format!("chunk at {offset}: {}", error.0);
            looked.errors.push(RepoError::Damaged { path: reader.object().name().clone(), reason });
        }
    }
}

impl Pack {
    /// What is wrong with a chunk that a manifest or map refers to.
    pub(super) fn wrong_with(&self, chunk: &ChunkRef) -> Option<String> {
        let Some(chunks) = &self.chunks else { return Some("its footer cannot be read".into()) };
        let found = chunks.binary_search_by_key(&chunk.offset, |chunk| chunk.offset).ok().map(|index| chunks[index]);
        match found {
            None => Some(format!("no chunk begins at {}", chunk.offset)),
            Some(found)
                if (found.stored_len, found.plain_len, found.hash16)
                    != (chunk.stored_len, chunk.plain_len, chunk.hash16) =>
            {
                Some(format!("the chunk at {} is another one", chunk.offset))
            }
            Some(_) if self.damaged.contains(&chunk.offset) => {
                Some(format!("the chunk at {} is damaged", chunk.offset))
            }
            Some(_) => None,
        }
    }
}

/// The kind of a finding about a chunk that does not fit.
pub(super) const MISFIT: FindingKind = FindingKind::Damaged;
