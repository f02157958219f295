//! Every interleaving of a deletion with what may run beside it: a backup that builds on what goes, a pin, and a backup
//! that needs the WAL that goes.
//!
//! A store hands out one call at a time; a schedule says when the turn passes to the other party. All schedules with up to
//! [`SWITCHES`] such changes are tried: what goes wrong between two parties goes wrong with few.
//! `PGKEEP_TEST_SWITCHES=5` tries more, for minutes.

use super::support::{Made, Result, SYSTEM, World, delete, id, in_store, keep_last};
use async_trait::async_trait;
use bytes::Bytes;
use engine::expire::{Request, WalExpiry};
use pg_format::{Lsn, Timeline};
use repo::Cluster;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use store::{Created, Listing, MemoryStore, ObjectMeta, ObjectPath, ObjectWriter, Store, StoreError};

/// Gives the turn away before each call that concerns what two parties share.
#[derive(Debug, Clone)]
struct Turns {
    inner: MemoryStore,
    shared: &'static [&'static str],
}

impl Turns {
    async fn turn(&self, path: Option<&ObjectPath>) {
        let path = path.map_or("", ObjectPath::as_str);
        if !self.shared.iter().any(|part| path.contains(part)) {
            return;
        }
        let mut given = false;
        poll_fn(|context| {
            if std::mem::replace(&mut given, true) {
                return Poll::Ready(());
            }
            // Futures that are polled several at a time are asked again only when they say so.
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[async_trait]
impl Store for Turns {
    fn url(&self) -> &str {
        self.inner.url()
    }
    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> std::result::Result<Created, StoreError> {
        self.turn(Some(path)).await;
        self.inner.put(path, bytes).await
    }
    async fn create(&self, path: &ObjectPath) -> std::result::Result<Box<dyn ObjectWriter>, StoreError> {
        // Nothing is visible before it is finished.
        Ok(Box::new(TurnsWriter { inner: self.inner.create(path).await?, turns: self.clone(), path: path.clone() }))
    }
    async fn get(&self, path: &ObjectPath, size_max: u64) -> std::result::Result<Bytes, StoreError> {
        self.turn(Some(path)).await;
        self.inner.get(path, size_max).await
    }
    async fn get_range(&self, path: &ObjectPath, range: Range<u64>) -> std::result::Result<Bytes, StoreError> {
        self.turn(Some(path)).await;
        self.inner.get_range(path, range).await
    }
    async fn get_tail(&self, path: &ObjectPath, len: u64) -> std::result::Result<(Bytes, ObjectMeta), StoreError> {
        self.turn(Some(path)).await;
        self.inner.get_tail(path, len).await
    }
    async fn head(&self, path: &ObjectPath) -> std::result::Result<ObjectMeta, StoreError> {
        self.turn(Some(path)).await;
        self.inner.head(path).await
    }
    async fn list_level(&self, prefix: Option<&ObjectPath>) -> std::result::Result<Listing, StoreError> {
        self.turn(prefix).await;
        self.inner.list_level(prefix).await
    }
    async fn list_page(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<&ObjectPath>,
        limit: usize,
    ) -> std::result::Result<Vec<ObjectMeta>, StoreError> {
        self.turn(prefix).await;
        self.inner.list_page(prefix, after, limit).await
    }
    async fn delete(&self, path: &ObjectPath) -> std::result::Result<(), StoreError> {
        self.turn(Some(path)).await;
        self.inner.delete(path).await
    }
}

struct TurnsWriter {
    inner: Box<dyn ObjectWriter>,
    turns: Turns,
    path: ObjectPath,
}

#[async_trait]
impl ObjectWriter for TurnsWriter {
    async fn write(&mut self, bytes: Bytes) -> std::result::Result<(), StoreError> {
        self.inner.write(bytes).await
    }
    async fn finish(self: Box<Self>) -> std::result::Result<Created, StoreError> {
        self.turns.turn(Some(&self.path)).await;
        self.inner.finish().await
    }
    async fn abort(self: Box<Self>) -> std::result::Result<(), StoreError> {
        self.inner.abort().await
    }
}

type Party<'a> = Pin<&'a mut dyn Future<Output = Result>>;

/// How often the turn passes before a party has ended.
const SWITCHES: usize = 3;

/// Runs two parties. `schedule` says, for each point at which both could go on, whether the turn passes; beyond it nobody
/// gives it away. Gives the choices that were made.
fn run_two(parties: [Party<'_>; 2], mut turn: usize, schedule: &[bool]) -> Result<Vec<bool>> {
    let mut context = Context::from_waker(Waker::noop());
    let mut parties = parties.map(Some);
    let mut choices = Vec::new();
    loop {
        match &parties {
            [Some(_), Some(_)] => {
                let switch = schedule.get(choices.len()).copied().unwrap_or(false);
                choices.push(switch);
                turn ^= usize::from(switch);
            }
            [None, None] => return Ok(choices),
            [first, _] => turn = usize::from(first.is_none()),
        }
        if let Some(party) = &mut parties[turn]
            && let Poll::Ready(result) = party.as_mut().poll(&mut context)
        {
            result?;
            parties[turn] = None;
        }
    }
}

/// The schedule after this one in a depth-first search.
fn next(mut choices: Vec<bool>, switches_max: usize) -> Option<Vec<bool>> {
    while let Some(last) = choices.pop() {
        if !last && choices.iter().filter(|switch| **switch).count() < switches_max {
            choices.push(true);
            return Some(choices);
        }
    }
    None
}

/// Tries all schedules of what `parties` makes of a world, and checks each world afterwards.
async fn all_schedules<C: Future<Output = Result>>(
    origin: &World,
    shared: &'static [&'static str],
    first: impl AsyncFn(World, Cluster) -> Result,
    second: impl AsyncFn(World, Cluster) -> Result,
    check: impl Fn(World) -> C,
) -> Result<usize> {
    let switches_max =
        std::env::var("PGKEEP_TEST_SWITCHES").ok().and_then(|text| text.parse().ok()).unwrap_or(SWITCHES);
    let mut count = 0;
    for begins in 0..2 {
        let mut schedule = Some(Vec::new());
        while let Some(wanted) = schedule {
            let world = origin.copy();
            let cluster = in_store(Arc::new(Turns { inner: world.memory.clone(), shared })).await?;
            let one = pin!(first(world.clone(), cluster.clone()));
            let two = pin!(second(world.clone(), cluster));
            let said = |error: anyhow::Error, choices: &[bool]| error.context(format!("{begins} begins: {choices:?}"));
            let choices = run_two([one, two], begins, &wanted).map_err(|error| said(error, &wanted))?;
            check(world).await.map_err(|error| said(error, &choices))?;
            count += 1;
            schedule = next(choices, switches_max);
        }
    }
    Ok(count)
}

/// As `engine::backup` does it: choose, intent, look whether the prior is there still, packs, manifest, end of the intent.
async fn backup_on_the_newest(cluster: &Cluster, new: &Made) -> Result {
    loop {
        let prior = *cluster.backups().await?.last().expect("one stays");
        let shared: Vec<_> = match cluster.open_manifest(prior).await {
            Ok(manifest) => manifest.packs().iter().map(|used| used.id).collect(),
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        };
        let new = Made { shared, ..new.clone() };
        cluster.put_intent(&new.intent(&[prior])).await?;
        let there = cluster.repository().store().head(&cluster.name().manifest(prior)).await.is_ok();
        if there {
            new.put_packs(cluster).await?;
            new.put_manifest(cluster).await?;
        }
        cluster.delete_intent(new.id).await?;
        if there {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn a_backup_beside_the_deletion_of_what_it_builds_on() -> Result {
    let origin = World::new().await?;
    let kept = Made::new(1, 1, &[]).put(&origin).await?;
    Made::new(2, 1, &kept.packs()).put(&origin).await?;
    let new = Made::new(9, 1, &[]);
    let count = all_schedules(
        &origin,
        &["/backups", "/packs"],
        async |world, cluster| {
            let plain = world.cluster().await?;
            // The plan is made before the backup begins: what counts is its execution.
            let planned = engine::expire::plan(&world.context(), &plain, &delete(&[id(2)])).await?;
            engine::expire::apply(&world.context(), &cluster, &delete(&[id(2)]), &planned).await?;
            Ok(())
        },
        async |_, cluster| backup_on_the_newest(&cluster, &new).await,
        |world| async move {
            let backups = world.all_whole().await?;
            anyhow::ensure!(backups == [id(1), id(9)], "{backups:?}");
            // And the next run leaves nothing over.
            world.run(&super::tidy()).await?;
            world.nothing_left_over().await?;
            world.all_whole().await.map(drop)
        },
    )
    .await?;
    assert!(count > 500, "{count} schedules");
    Ok(())
}

#[tokio::test]
async fn a_pin_beside_the_deletion_of_its_backup() -> Result {
    let origin = World::new().await?;
    for second in 1..=2 {
        Made::new(second, 1, &[]).put(&origin).await?;
    }
    let count = all_schedules(
        &origin,
        &["/backups", "main/cluster", "/garbage"],
        async |world, cluster| {
            let planned = engine::expire::plan(&world.context(), &world.cluster().await?, &keep_last(1)).await?;
            match engine::expire::apply(&world.context(), &cluster, &keep_last(1), &planned).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            }
        },
        async |_, cluster| {
            let pin = repo::Pin { backup: id(1), until: None, reason: String::new() };
            // It may fail, and then says so.
            let _ = cluster.pin(&pin, super::at(1000)).await;
            Ok(())
        },
        |world| async move {
            let cluster = world.cluster().await?;
            let pinned = !cluster.known_facts().await?.pins.is_empty();
            let there = cluster.backups().await?.contains(&id(1));
            anyhow::ensure!(there || !pinned, "it is pinned and gone");
            world.all_whole().await.map(drop)
        },
    )
    .await?;
    assert!(count > 500, "{count} schedules");
    Ok(())
}

/// A standby's backup begins before the start of the oldest backup that stays: either it fails, or its WAL stays.
#[tokio::test]
async fn a_backup_that_begins_early_beside_the_expiry_of_wal() -> Result {
    let origin = World::new().await?;
    Made::new(6, 1, &[]).put(&origin).await?;
    super::wal::put_segments(&origin, 1, 3..8).await?;
    let early = Made { start_lsn: Lsn(4 * super::support::SEGMENT), ..Made::new(9, 0, &[]) };
    let wal_is_there = async |cluster: &Cluster| -> Result<bool> {
        let prefix = cluster.name().wal_prefix();
        let there = cluster.repository().store().list_page(Some(&prefix), None, 1000).await?;
        Ok((4..8).all(|number| there.iter().any(|object| object.path.name().ends_with(&format!("{number:08X}")))))
    };
    let count = all_schedules(
        &origin,
        &["/backups", "/garbage", "/wal"],
        async |world, cluster| {
            let request = Request { wal: WalExpiry::Delete, ..keep_last(1) };
            let planned = engine::expire::plan(&world.context(), &world.cluster().await?, &request).await?;
            engine::expire::apply(&world.context(), &cluster, &request, &planned).await?;
            Ok(())
        },
        async |_, cluster| {
            cluster.put_intent(&early.intent(&[])).await?;
            let floor = cluster.wal_floor(SYSTEM, Timeline(1)).await?;
            if floor.is_none_or(|floor| floor <= early.start_lsn) && wal_is_there(&cluster).await? {
                early.put_manifest(&cluster).await?;
            }
            Ok(cluster.delete_intent(early.id).await?)
        },
        |world| async move {
            let cluster = world.cluster().await?;
            if cluster.backups().await?.contains(&id(9)) {
                anyhow::ensure!(wal_is_there(&cluster).await?, "it was made, and its WAL is gone");
            }
            Ok(())
        },
    )
    .await?;
    assert!(count > 500, "{count} schedules");
    Ok(())
}
