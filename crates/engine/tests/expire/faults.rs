//! A store that fails, refuses, tears, lies or stops at every call of a deletion, one at a time.

use super::support::{Made, Result, World, chain, delete, id, in_store, run_in, tidy};
use engine::expire::{Request, WalExpiry};
use futures::FutureExt;
use std::sync::Arc;
use store::{CallKind, Fault, FaultStore, MemoryStore, What, When};

/// A world in which much is to be done: backups, what a broken-off deletion left, a backup that runs, WAL.
async fn busy() -> Result<World> {
    let world = World::new().await?;
    let made = chain(&world, 4).await?;
    let cluster = world.cluster().await?;
    super::wal::put_segments(&world, 1, 0..12).await?;
    let stray = Made::new(5, 2, &[]);
    stray.put_packs(&cluster).await?;
    // It builds on one that goes.
    let running = Made { start_lsn: made[3].start_lsn, ..Made::new(8, 1, &made[1].packs()) };
    cluster.put_intent(&running.intent(&[id(2)])).await?;
    running.put_packs(&cluster).await?;
    Ok(world)
}

fn request() -> Request {
    Request { wal: WalExpiry::Delete, ..delete(&[id(1), id(2)]) }
}

/// Everything that should have stayed is there, the running backup can end, and the next runs leave nothing over.
async fn converges(world: &World, what: &str) -> Result {
    let backups = world.all_whole().await?;
    anyhow::ensure!(backups.contains(&id(3)) && backups.contains(&id(4)), "{what}: {backups:?}");
    let wal = world.names("/wal/").await?.len();
    let gone = 12 - wal as u64;
    anyhow::ensure!(gone <= 3, "{what}: {gone} segments are gone");
    // What killed processes held expires.
    world.wait(1000);
    let cluster = world.cluster().await?;
    let running = Made::new(8, 1, &[super::pack(1, 1), super::pack(2, 1), super::pack(2, 2)]);
    running.put_manifest(&cluster).await?;
    cluster.delete_intent(running.id).await?;
    world.all_whole().await.map_err(|error| error.context(format!("{what}: what was built on is gone")))?;
    let left: Vec<_> = cluster.backups().await?.into_iter().filter(|backup| *backup < id(3)).collect();
    world.run(&Request { wal: WalExpiry::Delete, ..delete(&left) }).await?;
    world.run(&tidy()).await?;
    anyhow::ensure!(world.all_whole().await? == [id(3), id(4), id(8)], "{what}");
    world.nothing_left_over().await.map_err(|error| error.context(what.to_owned()))?;
    anyhow::ensure!(world.names("/wal/").await?.len() == 9, "{what}: WAL before the oldest backup");
    Ok(())
}

#[tokio::test]
async fn every_call_goes_wrong_once() -> Result {
    let origin = busy().await?;
    let attempt = async |fault: Option<(usize, What)>| -> Result<(World, FaultStore<MemoryStore>, bool)> {
        let world = origin.copy();
        let store = FaultStore::new(world.memory.clone(), Vec::new());
        let cluster = in_store(Arc::new(store.clone())).await?;
        let opening = store.call_count();
        if let Some((call, what)) = fault {
            store.add_fault(Fault { when: When::call(call), what });
        }
        // A call that stalls is where the process is killed: all else answers at once.
        let ended = run_in(&world.context(), &cluster, &request()).now_or_never();
        anyhow::ensure!(store.call_count() > opening, "nothing was asked");
        if fault.is_none() {
            ended.expect("nothing stalls")?;
            return Ok((world, store, true));
        }
        Ok((world, store, ended.is_some_and(|result| result.is_ok())))
    };
    let (world, store, _) = attempt(None).await?;
    converges(&world, "without a fault").await?;
    let calls = store.call_count();
    assert!(calls > 40, "{calls} calls");
    let (mut happened, mut succeeded) = (0, 0);
    for call in 0..calls {
        for what in [
            What::FailBefore,
            What::FailAfter,
            What::Tear,
            What::Stall,
            What::Full,
            What::Deny,
            What::Pretend,
            What::Truncate,
            What::Corrupt,
        ] {
            let (world, store, ok) = attempt(Some((call, what))).await?;
            if !store.any_fault_happened() {
                continue;
            }
            happened += 1;
            succeeded += usize::from(ok);
            converges(&world, &format!("call {call}: {what:?}")).await?;
        }
    }
    assert!(happened > 300 && succeeded > 20, "{happened} faults, {succeeded} of them without an error");
    Ok(())
}

/// On write-once storage every deletion is refused for as long as an object is locked.
#[tokio::test]
async fn what_the_store_locks_is_said_and_the_rest_goes_on() -> Result {
    let world = World::new().await?;
    chain(&world, 4).await?;
    let deny = |path: String| {
        let when = When { kind: Some(CallKind::Delete), path_contains: Some(path), nth: 0, times: usize::MAX };
        Fault { when, what: What::Deny }
    };
    let store = FaultStore::new(world.memory.clone(), vec![deny(super::pack(1, 2).to_string())]);
    let cluster = in_store(Arc::new(store.clone())).await?;
    let done = run_in(&world.context(), &cluster, &delete(&[id(1), id(2)])).await?;
    assert_eq!((done.deleted.len(), done.freed_packs, done.not_deleted.len()), (2, 1, 1));
    assert!(done.not_deleted[0].object.ends_with("/000002"), "{:?}", done.not_deleted);
    // A manifest that is locked is a backup that stays, with all that it needs.
    store.add_fault(deny(format!("{}/manifest", id(3))));
    let done = run_in(&world.context(), &cluster, &delete(&[id(3)])).await?;
    assert_eq!((done.deleted.len(), done.not_deleted.len()), (0, 2));
    assert_eq!(world.all_whole().await?, [id(3), id(4)]);
    store.heal();
    run_in(&world.context(), &cluster, &delete(&[id(3)])).await?;
    world.nothing_left_over().await?;
    Ok(())
}

/// A store that went away ends it, after a while.
#[tokio::test]
async fn an_outage_is_not_waited_out_object_by_object() -> Result {
    let world = World::new().await?;
    Made::new(1, 300, &[]).put(&world).await?;
    chain(&world, 0).await?;
    Made::new(2, 1, &[]).put(&world).await?;
    let when = When { kind: Some(CallKind::Delete), path_contains: Some("/packs/".into()), nth: 0, times: usize::MAX };
    let store = FaultStore::new(world.memory.clone(), vec![Fault { when, what: What::FailBefore }]);
    let cluster = in_store(Arc::new(store.clone())).await?;
    let error = run_in(&world.context(), &cluster, &delete(&[id(1)])).await.unwrap_err();
    assert!(error.to_string().contains("delete failed"), "{error}");
    let tries =
        store.calls().iter().filter(|call| call.kind == CallKind::Delete && call.path.contains("packs")).count();
    assert!(tries < 60, "{tries}");
    store.heal();
    world.run(&tidy()).await?;
    world.nothing_left_over().await?;
    Ok(())
}
