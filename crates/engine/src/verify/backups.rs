//! Backups: their manifests, compared with the packs.

use super::objects::Inventory;
use super::packs::{MISFIT, Pack};
use super::{BackupVerdict, FindingKind, Findings, Severity};
use crate::{Context, EngineError, Unit};
use futures::{StreamExt, stream};
use repo::chunk::{ChunkDecoder, ChunkRef};
use repo::manifest::{FileType, Manifest, ManifestFacts, PackUse, Place};
use repo::map::FileMap;
use repo::pack::PackReader;
use repo::{BackupId, Garbage, PackId, RepoError};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// File maps read at the same time.
const MAPS_AT_ONCE: usize = 16;
/// Files that are named for one damaged object.
const FILES_SHOWN: usize = 3;

/// The backups that are looked at.
pub(super) struct BackupsLook {
    pub(super) backups: Vec<BackupLook>,
}

/// One of them.
pub(super) struct BackupLook {
    pub(super) id: BackupId,
    /// The facts, when the manifest could be read.
    pub(super) facts: Option<ManifestFacts>,
    packs: Vec<PackUse>,
    pub(super) restorable: bool,
    pub(super) wal_until: Option<String>,
    files: u64,
}

/// What was found of a file map.
#[derive(Default)]
struct MapLook {
    wrong: Option<String>,
    /// Stored bytes that it uses of each pack.
    uses: Vec<(PackId, u64)>,
}

/// Stored bytes that a backup's files use of each pack.
type Uses = HashMap<PackId, u64>;

/// Files that a damaged object harms, by object and what is wrong.
type Harm = BTreeMap<(PackId, String), (u64, Vec<String>)>;

impl BackupsLook {
    pub(super) async fn open(
        ctx: &Context,
        cluster: &repo::Cluster,
        ids: &[BackupId],
        findings: &mut Findings,
    ) -> Result<Self, EngineError> {
        let mut backups = Vec::new();
        for &id in ids {
            let path = cluster.name().manifest(id);
            findings.objects += 1;
            let mut look =
                BackupLook { id, facts: None, packs: Vec::new(), restorable: false, wal_until: None, files: 0 };
            match ctx.or_cancel(cluster.open_manifest(id)).await? {
                Ok(manifest) => {
                    findings.bytes += manifest.size();
                    look.facts = Some(manifest.facts().clone());
                    look.packs = manifest.packs().to_vec();
                    look.restorable = true;
                }
                // It was listed a moment ago.
                Err(error) if error.is_not_found() && !ctx.or_cancel(cluster.has_manifest(id)).await?? => {
                    deleted_meanwhile(cluster, id, findings);
                    continue;
                }
                Err(error) => {
                    let finding = findings.object(Severity::Damage, &path, error)?;
                    finding.effect = Some(format!("backup {id} cannot be restored"));
                    finding.backups.push(id);
                }
            }
            backups.push(look);
        }
        Ok(Self { backups })
    }

    /// The packs to be looked at: those the backups use, and, with an inventory, all there are.
    pub(super) fn packs(&self, inventory: Option<&Inventory>) -> BTreeSet<PackId> {
        let used = self.backups.iter().flat_map(|backup| backup.packs.iter().map(|pack| pack.id));
        used.chain(inventory.into_iter().flat_map(|all| all.packs.keys().copied())).collect()
    }

    /// Compares each backup with what was found of its packs.
    pub(super) async fn compare(
        &mut self,
        ctx: &Context,
        cluster: &repo::Cluster,
        sizes: &BTreeMap<PackId, u64>,
        packs: &BTreeMap<PackId, Pack>,
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        ctx.progress.phase("looking at backups", Some(self.backups.len() as u64), Unit::Items);
        // Backups share maps; each is read once.
        let mut maps = HashMap::new();
        let mut still_there = Vec::new();
        for mut backup in std::mem::take(&mut self.backups) {
            ctx.progress.advance(1);
            // What a deletion takes away while it is looked at is no damage.
            let incomplete = backup.packs.iter().any(|pack| !packs.contains_key(&pack.id));
            if incomplete && !ctx.or_cancel(cluster.has_manifest(backup.id)).await?? {
                deleted_meanwhile(cluster, backup.id, findings);
                continue;
            }
            backup.compare(ctx, cluster, sizes, packs, &mut maps, findings).await?;
            still_there.push(backup);
        }
        self.backups = still_there;
        Ok(())
    }

    /// Packs that nothing reaches.
    pub(super) fn strays(
        &self,
        cluster: &repo::Cluster,
        inventory: &Inventory,
        garbage: &Garbage,
        findings: &mut Findings,
    ) {
        // What an unreadable manifest refers to is not known.
        if self.backups.iter().any(|backup| backup.facts.is_none()) {
            return;
        }
        let used: HashSet<PackId> = self.packs(None).into_iter().collect();
        let mut orphans: BTreeMap<BackupId, u64> = BTreeMap::new();
        for (&id, size) in &inventory.packs {
            if used.contains(&id) {
                continue;
            }
            // What a deletion noted goes when its time has come, or when nothing may need it any more.
            if inventory.intents.contains(&id.backup) || garbage.unreferenced.contains_key(&id) {
                continue;
            }
            *orphans.entry(id.backup).or_default() += 1;
            let path = cluster.name().pack(id);
            let what = format!("{path}: {size} bytes that no backup uses");
            let finding = findings.add(Severity::Note, FindingKind::Stray, &path, what);
            finding.effect = Some("only room is lost; `pgkeep expire` removes it".into());
        }
        for (backup, count) in orphans.into_iter().filter(|(id, _)| !inventory.manifests.contains(id)) {
            let path = cluster.name().manifest(backup);
            let what = format!("{path}: is not there, but {count} packs of this backup are, and no intent");
            let finding = findings.add(Severity::Warning, FindingKind::Missing, &path, what);
            finding.effect = Some(
                "either a deletion was broken off, or the manifest was removed, and the backup is lost with it".into(),
            );
        }
        for &backup in inventory.intents.iter().filter(|id| !inventory.manifests.contains(id)) {
            let path = cluster.name().intent(backup);
            let what = format!("{path}: backup {backup} is running or was broken off");
            findings.add(Severity::Note, FindingKind::Noted, &path, what);
        }
    }

    pub(super) fn verdicts(&self) -> Vec<BackupVerdict> {
        let verdict = |backup: &BackupLook| BackupVerdict {
            backup: backup.id,
            restorable: backup.restorable,
            system_id: backup.facts.as_ref().map(|facts| facts.system_id),
            timeline: backup.facts.as_ref().map(|facts| facts.timeline),
            wal_until: backup.wal_until.clone(),
            files: backup.files,
            packs: backup.packs.len() as u64,
        };
        self.backups.iter().map(verdict).collect()
    }
}

fn deleted_meanwhile(cluster: &repo::Cluster, id: BackupId, findings: &mut Findings) {
    let path = cluster.name().manifest(id);
    let what = format!("{path}: backup {id} was deleted in the meantime");
    findings.add(Severity::Note, FindingKind::Noted, &path, what);
}

/// Where a file map lies.
type MapKey = (PackId, u64);

impl BackupLook {
    async fn compare(
        &mut self,
        ctx: &Context,
        cluster: &repo::Cluster,
        sizes: &BTreeMap<PackId, u64>,
        packs: &BTreeMap<PackId, Pack>,
        maps: &mut HashMap<MapKey, MapLook>,
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        if self.facts.is_none() {
            return Ok(());
        }
        for pack in &self.packs {
            let path = cluster.name().pack(pack.id);
            if !packs.contains_key(&pack.id) {
                let finding =
                    findings.add(Severity::Damage, FindingKind::Missing, &path, format!("{path}: is not there"));
                finding.effect = Some(format!("backup {} cannot be restored whole", self.id));
                self.restorable = false;
            }
            if packs.get(&pack.id).is_some_and(|found| found.chunks.is_none()) {
                self.restorable = false;
            }
            findings.backups_of(path.as_str(), self.id);
        }
        let manifest = match ctx.or_cancel(cluster.open_manifest(self.id)).await? {
            Ok(manifest) => manifest,
            Err(error) => {
                self.restorable = false;
                findings.object(Severity::Damage, &cluster.name().manifest(self.id), error)?.backups.push(self.id);
                return Ok(());
            }
        };
        for pack in &self.packs {
            let path = cluster.name().pack(pack.id);
            if let Some(&size) = sizes.get(&pack.id)
                && size != pack.size
            {
                self.restorable = false;
                let what = format!("{path}: has {size} bytes, the manifest of backup {} says {}", self.id, pack.size);
                findings.add(Severity::Damage, FindingKind::Damaged, &path, what).backups.push(self.id);
            }
        }
        let (mut harm, mut uses) = (Harm::new(), Uses::new());
        let read = self.read_files(ctx, cluster, &manifest, packs, maps, (&mut harm, &mut uses)).await;
        if read.is_ok() && harm.is_empty() {
            self.compare_uses(cluster, &uses, findings);
        }
        let names = match read {
            Ok(()) => read_names(ctx, &manifest).await,
            Err(error) => Err(error),
        };
        match names {
            Ok(()) => {}
            Err(EngineError::Repo(error)) => {
                self.restorable = false;
                let finding = findings.object(Severity::Damage, &cluster.name().manifest(self.id), error)?;
                finding.effect = Some(format!("backup {} cannot be restored whole", self.id));
                finding.backups.push(self.id);
            }
            Err(error) => return Err(error),
        }
        for ((pack, what), (count, files)) in harm {
            self.restorable = false;
            let path = cluster.name().pack(pack);
            let finding = findings.add(Severity::Damage, MISFIT, &path, format!("{path}: {what}"));
            finding.effect = Some(format!("{count} files of backup {} need it, such as {}", self.id, files.join(", ")));
            finding.backups.push(self.id);
        }
        let facts = self.facts.as_ref();
        if let Some(facts) = facts.filter(|facts| !facts.damaged.is_empty()) {
            let path = cluster.name().manifest(self.id);
            let what = format!(
                "{path}: {} pages were damaged in the cluster when backup {} was made",
                facts.damaged.len(),
                self.id
            );
            findings.add(Severity::Warning, FindingKind::Noted, &path, what).backups.push(self.id);
        }
        Ok(())
    }

    /// Compares what the files use of each pack with what the manifest says: what it leaves out, a deletion may remove.
    fn compare_uses(&mut self, cluster: &repo::Cluster, uses: &Uses, findings: &mut Findings) {
        let path = cluster.name().manifest(self.id);
        for (pack, bytes) in uses {
            match self.packs.iter().find(|known| known.id == *pack) {
                None => {
                    self.restorable = false;
                    let what = format!("{path}: file maps refer to pack {pack}, which it does not list");
                    let finding = findings.add(Severity::Damage, MISFIT, &path, what);
                    finding.effect = Some(format!("backup {} cannot be restored whole", self.id));
                    finding.backups.push(self.id);
                }
                Some(known) if known.used != *bytes => {
                    let what = format!("{path}: says that {} bytes of pack {pack} are used, it is {bytes}", known.used);
                    let finding = findings.add(Severity::Warning, MISFIT, &path, what);
                    finding.effect = Some("it can be restored; build on nothing: `pgkeep backup --full`".into());
                    finding.backups.push(self.id);
                }
                Some(_) => {}
            }
        }
        for known in self.packs.iter().filter(|known| !uses.contains_key(&known.id)) {
            let what = format!("{path}: lists pack {}, of which nothing is used", known.id);
            findings.add(Severity::Note, FindingKind::Noted, &path, what).backups.push(self.id);
        }
    }

    async fn read_files(
        &mut self,
        ctx: &Context,
        cluster: &repo::Cluster,
        manifest: &Manifest,
        packs: &BTreeMap<PackId, Pack>,
        maps: &mut HashMap<MapKey, MapLook>,
        (harm, uses): (&mut Harm, &mut Uses),
    ) -> Result<(), EngineError> {
        let mut note = |pack: PackId, what: String, file: &[u8]| {
            let (count, files) = harm.entry((pack, what)).or_default();
            *count += 1;
            if files.len() < FILES_SHOWN {
                files.push(String::from_utf8_lossy(file).into_owned());
            }
        };
        let readers = Readers { cluster, open: tokio::sync::Mutex::default() };
        let mut blocks = manifest.files();
        while let Some(entries) = ctx.or_cancel(blocks.next()).await?? {
            let mut wanted = Vec::new();
            for entry in &entries {
                let FileType::File { len, place, settled, .. } = &entry.file_type else { continue };
                self.files += 1;
                for (place, exact) in
                    [Some((place, true)), settled.as_ref().map(|settled| (&settled.place, false))].into_iter().flatten()
                {
                    let (Place::Chunk(chunk) | Place::Map(chunk)) = place else { continue };
                    let Some(pack) = manifest.packs().get(chunk.pack as usize).copied() else { continue };
                    *uses.entry(pack.id).or_default() += u64::from(chunk.stored_len);
                    let Some(found) = packs.get(&pack.id) else { continue };
                    if let Some(what) = found.wrong_with(chunk) {
                        note(pack.id, what, &entry.path);
                        continue;
                    }
                    match place {
                        Place::Chunk(chunk) if exact && u64::from(chunk.plain_len) != *len => {
                            note(
                                pack.id,
                                format!("the chunk at {} is not as long as its file", chunk.offset),
                                &entry.path,
                            );
                        }
                        Place::Map(_) => wanted.push((entry.path.clone(), exact.then_some(*len), pack, *chunk)),
                        _ => {}
                    }
                }
            }
            let fresh: Vec<_> = wanted
                .iter()
                .filter(|(_, _, pack, chunk)| !maps.contains_key(&(pack.id, chunk.offset)))
                .map(|(_, len, pack, chunk)| (*len, *pack, *chunk))
                .collect();
            let look = |(len, pack, chunk): (Option<u64>, PackUse, ChunkRef)| {
                let readers = &readers;
                async move { (pack.id, chunk.offset, look_at_map(readers, packs, pack, &chunk, len).await) }
            };
            let mut looks = stream::iter(fresh).map(look).buffer_unordered(MAPS_AT_ONCE);
            while let Some((pack, offset, looked)) = ctx.or_cancel(looks.next()).await? {
                maps.insert((pack, offset), looked?);
            }
            for (path, _, pack, chunk) in wanted {
                let Some(look) = maps.get(&(pack.id, chunk.offset)) else { continue };
                if let Some(what) = &look.wrong {
                    note(pack.id, what.clone(), &path);
                }
                for (pack, bytes) in &look.uses {
                    *uses.entry(*pack).or_default() += bytes;
                }
            }
        }
        Ok(())
    }
}

/// Packs that are open for reading maps.
struct Readers<'a> {
    cluster: &'a repo::Cluster,
    open: tokio::sync::Mutex<HashMap<PackId, Arc<PackReader>>>,
}

impl Readers<'_> {
    async fn get(&self, pack: PackUse) -> Result<Arc<PackReader>, RepoError> {
        if let Some(reader) = self.open.lock().await.get(&pack.id) {
            return Ok(reader.clone());
        }
        let reader = Arc::new(self.cluster.open_pack(pack.id, pack.size).await?);
        self.open.lock().await.insert(pack.id, reader.clone());
        Ok(reader)
    }
}

/// Reads a file map; gives what is wrong with it or with what it refers to.
async fn look_at_map(
    readers: &Readers<'_>,
    packs: &BTreeMap<PackId, Pack>,
    pack: PackUse,
    chunk: &ChunkRef,
    len: Option<u64>,
) -> Result<MapLook, EngineError> {
    let wrong = |what: String| Ok(MapLook { wrong: Some(what), uses: Vec::new() });
    let stored = match readers.get(pack).await {
        Ok(reader) => reader.read(chunk.offset, chunk.stored_len.into()).await,
        Err(error) => Err(error),
    };
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) if error.is_damage() || error.is_not_found() => return wrong(format!("file map: {error}")),
        Err(error) => return Err(error.into()),
    };
    let mut plain = Vec::new();
    let map = ChunkDecoder::default()
        .decode(&stored, chunk, &mut plain)
        .and_then(|()| FileMap::decode(&plain))
        .map_err(|error| format!("file map at {}: {}", chunk.offset, error.0));
    let map = match map {
        Ok(map) => map,
        Err(what) => return wrong(what),
    };
    if let Some(len) = len.filter(|len| *len != map.len) {
        return wrong(format!("file map at {} is of a file of {} bytes, not {len}", chunk.offset, map.len));
    }
    let mut uses = vec![0; map.packs.len()];
    for chunk in &map.chunks {
        uses[chunk.pack as usize] += u64::from(chunk.stored_len);
    }
    let wrong = map.chunks.iter().find_map(|chunk| {
        let id = map.packs[chunk.pack as usize];
        match packs.get(&id) {
            None => Some(format!("a file map refers to pack {id}, which is not there")),
            Some(found) => {
                found.wrong_with(chunk).map(|what| format!("a file map refers to pack {id}, of which {what}"))
            }
        }
    });
    Ok(MapLook { wrong, uses: map.packs.into_iter().zip(uses).collect() })
}

async fn read_names(ctx: &Context, manifest: &Manifest) -> Result<(), EngineError> {
    let mut blocks = manifest.names();
    while ctx.or_cancel(blocks.next()).await??.is_some() {}
    Ok(())
}
