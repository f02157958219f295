//! What objects there are, and the small ones among them: repository, cluster, intents, leases.

use super::{FindingKind, Findings, Severity};
use crate::{Context, EngineError, Unit};
use pg_format::{SegmentName, SystemId};
use repo::seal::{Kind, open_whole};
use repo::{BackupId, ClusterFacts, Keyring, LeaseFacts, PackId, RepoError};
use std::collections::BTreeMap;
use store::{ObjectMeta, ObjectPath, Store};

/// Objects asked for in one listing request.
const LIST_PAGE: usize = 1000;
/// The largest small object that is read.
const SMALL_MAX: u64 = 65 << 20;

/// All objects of a cluster, sorted by what they are.
pub(super) struct Inventory {
    /// Backups that have a manifest, ascending.
    pub(super) manifests: Vec<BackupId>,
    pub(super) intents: Vec<BackupId>,
    /// Packs with their sizes.
    pub(super) packs: BTreeMap<PackId, u64>,
    /// Names of WAL objects by system identifier.
    pub(super) wal: BTreeMap<SystemId, Vec<ObjectPath>>,
    /// Index objects of WAL by system identifier, with the first segment and the number of segments in their names.
    pub(super) wal_index: BTreeMap<SystemId, Vec<(ObjectPath, SegmentName, u64)>>,
    cluster: Vec<ObjectPath>,
    garbage: Vec<ObjectPath>,
    repository: Vec<ObjectPath>,
    leases: Vec<ObjectPath>,
    unknown: Vec<ObjectPath>,
}

async fn list_all(
    ctx: &Context,
    store: &dyn Store,
    prefix: &ObjectPath,
    mut each: impl FnMut(ObjectMeta),
) -> Result<(), EngineError> {
    let mut after: Option<ObjectPath> = None;
    loop {
        let page = ctx.or_cancel(store.list_page(Some(prefix), after.as_ref(), LIST_PAGE)).await?;
        let page = page.map_err(RepoError::from)?;
        let whole = page.len() < LIST_PAGE;
        after = page.last().map(|object| object.path.clone());
        page.into_iter().for_each(&mut each);
        if whole {
            return Ok(());
        }
    }
}

fn path(text: String) -> Result<ObjectPath, EngineError> {
    ObjectPath::new(text).map_err(|reason| EngineError::Failed { reason, hint: None })
}

impl Inventory {
    pub(super) async fn list(ctx: &Context, cluster: &repo::Cluster) -> Result<Self, EngineError> {
        let mut all = Self {
            manifests: Vec::new(),
            intents: Vec::new(),
            packs: BTreeMap::new(),
            wal: BTreeMap::new(),
            wal_index: BTreeMap::new(),
            cluster: Vec::new(),
            garbage: Vec::new(),
            repository: Vec::new(),
            leases: Vec::new(),
            unknown: Vec::new(),
        };
        ctx.progress.phase("listing objects", None, Unit::Items);
        let store = cluster.repository().store();
        let prefix = cluster.name().prefix();
        list_all(ctx, &**store, &prefix, |object| {
            let known = object.path.below(&prefix).is_some_and(|below| all.note(below, &object));
            if !known {
                all.unknown.push(object.path);
            }
        })
        .await?;
        list_all(ctx, &**store, &path("pgkeep".into())?, |object| all.repository.push(object.path)).await?;
        let leases = path(format!("leases/clusters/{}", cluster.name()))?;
        list_all(ctx, &**store, &leases, |object| all.leases.push(object.path)).await?;
        all.manifests.sort_unstable();
        Ok(all)
    }

    /// Sorts in an object by its name below the cluster's prefix; false when no such name is known.
    fn note(&mut self, below: &str, object: &ObjectMeta) -> bool {
        let parts: Vec<&str> = below.split('/').collect();
        match parts.as_slice() {
            ["cluster", number] if is_number(number) => self.cluster.push(object.path.clone()),
            ["garbage", number] if is_number(number) => self.garbage.push(object.path.clone()),
            ["backups", id, what @ ("manifest" | "intent")] => {
                let Ok(id) = id.parse::<BackupId>() else { return false };
                if *what == "manifest" { self.manifests.push(id) } else { self.intents.push(id) }
            }
            ["packs", id, number] if is_number(number) => {
                let (Ok(backup), Ok(number)) = (id.parse(), number.parse()) else { return false };
                self.packs.insert(PackId { backup, number }, object.size);
            }
            ["wal", system, rest @ ..] if (1..=2).contains(&rest.len()) => {
                let Ok(system) = system.parse::<SystemId>() else { return false };
                if rest[rest.len() - 1].parse::<pg_format::WalFileName>().is_err() {
                    return false;
                }
                self.wal.entry(system).or_default().push(object.path.clone());
            }
            ["wal-index", system, timeline, name] => {
                let Ok(system) = system.parse::<SystemId>() else { return false };
                let (first, count) = name.split_once('.').unwrap_or((name, "1"));
                let (Ok(first), Ok(count)) = (first.parse::<SegmentName>(), count.parse::<u64>()) else { return false };
                if *timeline != format!("{:08X}", first.timeline.0) || count == 0 {
                    return false;
                }
                self.wal_index.entry(system).or_default().push((object.path.clone(), first, count));
            }
            // Dumps are looked at by themselves.
            ["dumps", ..] => {}
            // Who claimed an ID: nothing is ever read from it.
            ["ids", id] if id.parse::<BackupId>().is_ok() => {}
            _ => return false,
        }
        true
    }
}

fn is_number(name: &str) -> bool {
    name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads the objects that are JSON, and notes those of unknown names.
pub(super) async fn look_at_small(
    ctx: &Context,
    cluster: &repo::Cluster,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let keys = cluster.repository().keys();
    let plain = Keyring::plain();
    let check = |kind: Kind, keys: &'_ Keyring, name: &'_ ObjectPath, bytes: &[u8]| -> Result<(), RepoError> {
        let payload = open_whole(keys, kind, name, bytes)?;
        let parsed = match kind {
            Kind::Cluster => serde_json::from_slice::<ClusterFacts>(&payload).map(drop),
            Kind::Lease => serde_json::from_slice::<LeaseFacts>(&payload).map(drop),
            Kind::Intent => serde_json::from_slice::<repo::Intent>(&payload).map(drop),
            _ => serde_json::from_slice::<serde_json::Value>(&payload).map(drop),
        };
        parsed.map_err(|error| RepoError::Damaged { path: name.clone(), reason: format!("content: {error}") })
    };
    let intents: Vec<ObjectPath> = inventory.intents.iter().map(|id| cluster.name().intent(*id)).collect();
    let newest = inventory.cluster.iter().max();
    for (kind, keys, names) in [
        (Kind::Repository, &plain, &inventory.repository),
        (Kind::Cluster, keys, &inventory.cluster),
        (Kind::Garbage, keys, &inventory.garbage),
        (Kind::Intent, keys, &intents),
        (Kind::Lease, keys, &inventory.leases),
    ] {
        for name in names {
            let read = ctx.or_cancel(cluster.repository().store().get(name, SMALL_MAX)).await?;
            findings.objects += 1;
            let checked = match read {
                Ok(bytes) => {
                    findings.bytes += bytes.len() as u64;
                    check(kind, keys, name, &bytes)
                }
                // Intents and leases come and go while others work.
                Err(error) if error.is_not_found() && matches!(kind, Kind::Intent | Kind::Lease | Kind::Garbage) => {
                    Ok(())
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = checked {
                let needed = kind == Kind::Cluster && Some(name) == newest;
                let severity = if needed { Severity::Damage } else { Severity::Warning };
                let finding = findings.object(severity, name, error)?;
                finding.effect = Some(
                    match kind {
                        Kind::Repository => "the other copy stands in for it; write it anew from that copy",
                        Kind::Cluster if needed => "what is known of the cluster cannot be read; `pgkeep init` writes it anew after this object is removed",
                        Kind::Garbage => "only times are lost; the next `pgkeep expire` writes it anew",
                        Kind::Intent => "nothing is lost; remove it when no backup is running",
                        Kind::Lease => "it keeps others from working until it is removed",
                        _ => "an older state of it; nothing is lost",
                    }
                    .to_owned(),
                );
            }
        }
    }
    if newest.is_none() {
        let name = path(format!("{}/000001", cluster.name().facts_prefix()))?;
        let finding = findings.add(Severity::Damage, FindingKind::Missing, &name, "there is no cluster object");
        finding.effect = Some("what is known of the cluster is lost; `pgkeep init` writes it anew".into());
    }
    for pair in inventory.repository.iter() {
        let other = match pair.as_str().strip_suffix(".copy") {
            Some(first) => first.to_owned(),
            None => format!("{pair}.copy"),
        };
        let other = path(other)?;
        if !inventory.repository.contains(&other) {
            let finding =
                findings.add(Severity::Warning, FindingKind::Missing, &other, format!("{other}: is not there"));
            finding.effect = Some(format!("{pair} stands in for it"));
        }
    }
    for name in &inventory.unknown {
        findings.add(
            Severity::Note,
            FindingKind::Unknown,
            name,
            format!("{name}: is no object of a pgkeep repository"),
        );
    }
    Ok(())
}
