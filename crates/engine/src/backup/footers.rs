//! What packs say of the pages in them: for looking again at pages that no WAL says have changed, and for leaving packs
//! of which little is still in use.

use crate::{Context, EngineError};
use futures::{StreamExt, TryStreamExt, stream};
use repo::manifest::{ManifestFacts, PackUse};
use repo::pack::{ChunkPages, FooterEntry};
use repo::{Cluster, PackId, RepoError};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

use super::sources::PageAt;

/// All that a backup shares with its prior is looked at again within so many backups.
pub(super) const ROUNDS: u32 = 28;
/// Page hashes that are kept in memory at a time: 32 MiB.
const HASHES_MAX: usize = 4 << 20;
/// A pack of which less than a quarter is in use is left.
const LEAVE_BELOW: u64 = 4;
/// So much is copied forward in one backup to leave packs.
const LEAVE_BYTES_MAX: u64 = 64 << 20;
/// Packs smaller than this are small, and this many of them are too many: reading each costs a request.
const SMALL_PACK: u64 = 4 << 20;
const SMALL_PACKS_MAX: usize = 64;
const FOOTERS_AT_ONCE: usize = 8;

/// The page hashes of one pack.
#[derive(Debug, Default)]
struct PackHashes {
    /// Offset of each chunk, ascending, with the number of its first hash.
    chunks: Vec<(u64, u32)>,
    hashes: Vec<u64>,
}

impl PackHashes {
    fn new(entries: &[FooterEntry]) -> Self {
        let mut all = Self::default();
        for entry in entries.iter().filter(|entry| entry.pages != ChunkPages::Map) {
            all.chunks.push((entry.offset, all.hashes.len() as u32));
            all.hashes.extend_from_slice(&entry.page_hashes);
        }
        all
    }

    fn get(&self, offset: u64, slot: u32) -> Option<u64> {
        let chunk = self.chunks.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        let first = self.chunks[chunk].1 as usize;
        let end = self.chunks.get(chunk + 1).map_or(self.hashes.len(), |(_, next)| *next as usize);
        self.hashes.get(first + slot as usize).copied().filter(|_| first + (slot as usize) < end)
    }
}

/// Page hashes of packs, read as they are asked for and kept as long as there is room.
pub(super) struct Footers {
    cluster: Cluster,
    handle: Handle,
    kept: Mutex<VecDeque<(PackId, Arc<PackHashes>)>>,
}

impl Footers {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self { cluster, handle: Handle::current(), kept: Mutex::default() }
    }

    /// The hash that a page had when it was stored; `None` when its pack does not say. For threads that may block.
    pub(super) fn page_hash(&self, at: &PageAt) -> Result<Option<u64>, EngineError> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().iter().find(|(pack, _)| *pack == at.pack).map(|(_, hashes)| hashes.clone());
        let hashes = match known {
            Some(hashes) => hashes,
            None => {
                let read = async { self.cluster.open_pack_footer(at.pack).await?.footer().await };
                let hashes = match self.handle.block_on(read) {
                    Ok(entries) => PackHashes::new(&entries),
                    // Damage is for verify to find and name; here it only means that nothing can be compared.
                    Err(error) if error.is_damage() || error.is_not_found() => PackHashes::default(),
                    Err(error) => return Err(error.into()),
                };
                self.keep(at.pack, hashes)
            }
        };
        Ok(hashes.get(at.offset, at.slot))
    }

    fn keep(&self, pack: PackId, hashes: PackHashes) -> Arc<PackHashes> {
        let hashes = Arc::new(hashes);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front((pack, hashes.clone()));
        let mut total = 0;
        kept.retain(|(_, hashes)| {
            total += hashes.hashes.len();
            total <= HASHES_MAX || total == hashes.hashes.len()
        });
        hashes
    }
}

/// The round of looking again that comes after a backup's.
pub(super) fn turn_after(prior: &ManifestFacts) -> u32 {
    prior.look_again.as_ref().map_or(0, |last| (last.round + 1) % ROUNDS)
}

/// What is to be done with packs of the prior besides sharing them.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Pages in these are compared with the live ones.
    pub(super) again: HashSet<PackId>,
    /// Pages in these are read and stored anew.
    pub(super) leave: HashSet<PackId>,
    /// The files that have pages in either.
    pub(super) paths: HashSet<Box<[u8]>>,
    /// What a human should read.
    pub(super) warnings: Vec<String>,
}

/// Chooses the packs to look at again in this round, and those to leave.
fn choose(packs: &[PackUse], round: u32) -> (HashSet<PackId>, HashSet<PackId>) {
    let again = packs.iter().filter(|pack| slice_of(pack.id) == round % ROUNDS).map(|pack| pack.id).collect();
    let mut little: Vec<&PackUse> = packs.iter().filter(|pack| pack.used * LEAVE_BELOW < pack.size).collect();
    little.sort_by_key(|pack| (pack.used * 1000 / pack.size.max(1), pack.id));
    let mut small: Vec<&PackUse> = packs.iter().filter(|pack| pack.size < SMALL_PACK).collect();
    small.sort_by_key(|pack| (pack.size, pack.id));
    // All but a quarter of them are joined, so that this is not needed again the next time.
    let too_many = if small.len() > SMALL_PACKS_MAX { small.len() - SMALL_PACKS_MAX / 4 } else { 0 };
    let mut budget = LEAVE_BYTES_MAX;
    let mut leave = HashSet::new();
    for pack in little.into_iter().chain(small.into_iter().take(too_many)) {
        if pack.used <= budget && leave.insert(pack.id) {
            budget -= pack.used;
        }
    }
    (again, leave)
}

/// Which of the rounds a pack is looked at in.
fn slice_of(pack: PackId) -> u32 {
    let name = format!("{}/{}", pack.backup, pack.number);
    let hash = blake3::hash(name.as_bytes());
    u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], 0]) % ROUNDS
}

impl Marks {
    /// Reads the footers of the packs that are chosen, for the files in them.
    pub(super) async fn find(
        ctx: &Context,
        cluster: &Cluster,
        packs: &[PackUse],
        round: u32,
    ) -> Result<Self, EngineError> {
        let (again, leave) = choose(packs, round);
        let mut marks = Self::default();
        let chosen: Vec<PackId> = again.union(&leave).copied().collect();
        let read = |pack| async move {
            match async { cluster.open_pack_footer(pack).await?.footer().await }.await {
                Ok(entries) => Ok((pack, Ok(entries))),
                Err(error) if error.is_damage() || error.is_not_found() => Ok((pack, Err(error))),
                Err(error) => Err(error),
            }
        };
        let mut footers = stream::iter(chosen).map(read).buffer_unordered(FOOTERS_AT_ONCE);
        while let Some((pack, entries)) = ctx.or_cancel(footers.try_next()).await?? {
            match entries {
                Ok(entries) => {
                    let mut last: &[u8] = &[];
                    for entry in &entries {
                        if entry.path != last {
                            marks.paths.insert(entry.path.as_slice().into());
                        }
                        last = &entry.path;
                    }
                }
                Err(error) => marks.warnings.push(damaged_pack(pack, &error)),
            }
        }
        drop(footers);
        (marks.again, marks.leave) = (again, leave);
        Ok(marks)
    }
}

fn damaged_pack(pack: PackId, error: &RepoError) -> String {
    format!(
        "pack {pack}, on which this backup builds, is damaged: {error}; run `pgkeep verify`, and `pgkeep backup --full` for a \
         backup that does not need it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u32, size: u64, used: u64) -> PackUse {
        PackUse { id: PackId { backup: "20261120T200910Z".parse().unwrap(), number }, size, used }
    }

    #[test]
    fn every_pack_has_its_turn_within_the_rounds() {
        let packs: Vec<PackUse> = (1..200).map(|number| pack(number, 64 << 20, 64 << 20)).collect();
        let mut seen = HashSet::new();
        for round in 100..100 + ROUNDS {
            let (again, leave) = choose(&packs, round);
            assert!(again.len() < 30 && leave.is_empty());
            seen.extend(again);
        }
        assert_eq!(seen.len(), packs.len());
    }

    #[test]
    fn packs_of_which_little_is_used_are_left_the_emptiest_first() {
        let mb = 1 << 20;
        let packs =
            [pack(1, 64 * mb, 15 * mb), pack(2, 64 * mb, 17 * mb), pack(3, 64 * mb, mb), pack(4, 300 * mb, 74 * mb)];
        let (_, leave) = choose(&packs, 0);
        let mut numbers: Vec<u32> = leave.iter().map(|pack| pack.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 3], "the fourth would not fit");
    }

    #[test]
    fn many_small_packs_are_joined() {
        let packs: Vec<PackUse> = (1..=65).map(|number| pack(number, 1 << 20, 1 << 19)).collect();
        let (_, leave) = choose(&packs, 0);
        assert_eq!(leave.len(), 49);
        assert!(choose(&packs[1..], 0).1.is_empty());
    }

    #[test]
    fn hashes_are_found_by_chunk_and_slot() {
        let entry = |offset, pages: ChunkPages, hashes: &[u64]| FooterEntry {
            path: b"data/base/5/1".to_vec(),
            pages,
            offset,
            stored_len: 10,
            plain_len: 10,
            hash: [0; 32],
            page_hashes: hashes.to_vec(),
        };
        let entries = [
            entry(0, ChunkPages::Base { first: 0 }, &[1, 2]),
            entry(10, ChunkPages::Map, &[]),
            entry(20, ChunkPages::Delta { pages: vec![4, 9] }, &[3, 4]),
        ];
        let hashes = PackHashes::new(&entries);
        assert_eq!(hashes.get(0, 1), Some(2));
        assert_eq!(hashes.get(0, 2), None);
        assert_eq!((hashes.get(20, 0), hashes.get(20, 1), hashes.get(20, 2)), (Some(3), Some(4), None));
        assert_eq!((hashes.get(10, 0), hashes.get(5, 0)), (None, None));
    }
}
