//! Deleting backups: what goes, what stays, and that nothing that is needed ever goes, whatever happens meanwhile.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod faults;
mod interleaved;
mod support;
mod wal;

use engine::EngineError;
use engine::expire::{LastBackup, Request, WalExpiry, Which, plan};
use repo::retention::{KeepReason, RetentionPolicy};
use repo::{Pin, garbage::Deleted};
use std::collections::BTreeSet;
use std::time::Duration;
use store::Store;
use support::{Made, Result, World, at, chain, delete, id, keep_last, pack, tidy};

/// All orders of so many things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut order = order.clone();
        order.insert(at, count - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..count).map(move |at| insert(order, at))).collect()
}

#[tokio::test]
async fn any_backup_can_go_in_any_order() -> Result {
    let origin = World::new().await?;
    let made = chain(&origin, 4).await?;
    let orders = orders(4);
    assert_eq!(orders.len(), 24);
    for order in orders {
        let world = origin.copy();
        for (step, &index) in order.iter().enumerate() {
            let done = world.run(&delete(&[made[index].id])).await?;
            assert_eq!((done.deleted, done.not_deleted.len()), (vec![made[index].id], 0));
            assert_eq!(world.all_whole().await?.len(), 3 - step, "{order:?}");
            world.nothing_left_over().await?;
        }
        assert!(world.packs().await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn data_stays_for_the_grace_from_when_it_became_unused() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let hour = |which: Which| Request { which, grace: Duration::from_secs(3600), wal: WalExpiry::Keep };
    let ids = |second| Which::Backups { ids: vec![id(second)], last: LastBackup::Keep };
    // Old when it is deleted: that does not count.
    world.wait(1_000_000);
    let done = world.run(&hour(ids(1))).await?;
    assert_eq!((done.freed_packs, done.later_packs), (0, 1), "one pack is its own, the other one is shared");
    assert_eq!(done.later_from, Some(at(1000 + 1_000_000 + 3600)));
    world.wait(3000);
    let done = world.run(&hour(ids(2))).await?;
    assert_eq!((done.freed_packs, done.later_packs), (0, 2));
    world.wait(600);
    let done = world.run(&hour(Which::Nothing)).await?;
    assert_eq!((done.freed_packs, done.later_packs), (1, 1), "of the first");
    assert!(!world.packs().await?.contains(&pack(1, 2).to_string()));
    world.wait(3000);
    assert_eq!(world.run(&hour(Which::Nothing)).await?.freed_packs, 1);
    world.nothing_left_over().await?;
    assert_eq!(world.all_whole().await?, [id(3)]);
    Ok(())
}

#[tokio::test]
async fn the_plan_says_what_is_done_and_changes_nothing() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let before = world.names("").await?;
    let request = delete(&[id(1), id(2)]);
    let planned = plan(&world.context(), &cluster, &request).await?;
    assert_eq!(world.names("").await?, before);
    let going: Vec<_> = planned.backups.iter().map(|backup| backup.backup).collect();
    assert_eq!(going, [id(1), id(2)]);
    assert_eq!(planned.kept.iter().map(|kept| kept.backup).collect::<Vec<_>>(), [id(3)]);
    let done = engine::expire::apply(&world.context(), &cluster, &request, &planned).await?;
    assert_eq!((done.freed_packs, done.freed_bytes), (planned.freed_packs, planned.freed_bytes));
    assert!(planned.freed_bytes > 0 && planned.freed_packs == 2);
    Ok(())
}

#[tokio::test]
async fn what_may_not_go_is_refused() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let refuse = async |ids: &[i64], says: &str| -> Result {
        let ids = ids.iter().map(|second| id(*second)).collect();
        let which = Which::Backups { ids, last: LastBackup::Keep };
        let before = world.names("").await?;
        let request = Request { which, grace: Duration::ZERO, wal: WalExpiry::Keep };
        let error = world.run(&request).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(world.names("").await?, before);
        Ok(())
    };
    refuse(&[1, 9], "there is no backup").await?;
    refuse(&[1, 2, 3], "the last good backup").await?;
    cluster.pin(&Pin { backup: id(2), until: None, reason: "audit".into() }, at(1000)).await?;
    refuse(&[2], "is pinned for ever (audit)").await?;
    cluster.unpin(id(2), at(1000)).await?;
    // Only one with damaged pages would stay.
    Made { damaged: true, ..Made::new(5, 1, &[]) }.put(&world).await?;
    refuse(&[1, 2, 3], "the last good backup").await?;
    cluster.put_intent(&Made::new(6, 0, &[]).intent(&[])).await?;
    refuse(&[6], "running or was broken off").await?;
    world.run(&delete(&[id(1), id(2), id(3)])).await?;
    refuse(&[5], "the last backup").await?;
    Ok(())
}

#[tokio::test]
async fn a_rule_keeps_the_last_ones_and_pins() -> Result {
    let world = World::new().await?;
    chain(&world, 6).await?;
    let cluster = world.cluster().await?;
    cluster.pin(&Pin { backup: id(2), until: Some(at(2000)), reason: String::new() }, at(1000)).await?;
    let planned = plan(&world.context(), &cluster, &keep_last(2)).await?;
    let of = |backup| planned.kept.iter().find(|kept| kept.backup == backup).unwrap().because.clone();
    assert_eq!(of(id(6)), [KeepReason::Last { rank: 1 }]);
    assert_eq!(of(id(2)), [KeepReason::Pinned { until: Some(at(2000)), reason: String::new() }]);
    let done = world.run(&keep_last(2)).await?;
    assert_eq!(done.deleted, [id(1), id(3), id(4)]);
    assert_eq!(world.all_whole().await?, [id(2), id(5), id(6)]);
    world.wait(1000);
    assert_eq!(world.run(&keep_last(2)).await?.deleted, [id(2)], "its time is over");
    world.nothing_left_over().await?;
    let none = Request { which: Which::ByPolicy(RetentionPolicy { keep_last: 0 }), ..keep_last(1) };
    assert!(matches!(world.run(&none).await, Err(EngineError::Refused { .. })));
    Ok(())
}

/// A backup that was made between the plan and its execution makes more expire; what was not shown stays.
#[tokio::test]
async fn only_what_was_shown_goes() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let planned = plan(&world.context(), &cluster, &keep_last(2)).await?;
    Made::new(4, 1, &[]).put(&world).await?;
    let done = engine::expire::apply(&world.context(), &cluster, &keep_last(2), &planned).await?;
    assert_eq!(done.deleted, [id(1)]);
    // And what was pinned meanwhile stays as well.
    let planned = plan(&world.context(), &cluster, &keep_last(2)).await?;
    cluster.pin(&Pin { backup: id(2), until: None, reason: String::new() }, at(1000)).await?;
    let done = engine::expire::apply(&world.context(), &cluster, &keep_last(2), &planned).await?;
    assert_eq!(done.deleted, []);
    Ok(())
}

#[tokio::test]
async fn unfinished_backups_hold_what_they_may_need() -> Result {
    let world = World::new().await?;
    let made = chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let running = Made::new(9, 1, &made[2].packs());
    cluster.put_intent(&running.intent(&[id(3)])).await?;
    running.put_packs(&cluster).await?;
    let done = world.run(&delete(&[id(1), id(2), id(3)])).await?;
    assert_eq!((done.deleted.len(), done.freed_packs), (3, 2), "the first two's own");
    let noted = cluster.garbage().await?.garbage;
    assert_eq!(
        noted.deleted.into_iter().collect::<Vec<_>>(),
        [(id(3), Deleted { at: at(1000), packs: Some(made[2].packs().into_iter().collect()) })]
    );
    // Again and again: they stay for as long as the intent does.
    world.wait(1_000_000);
    let done = world.run(&tidy()).await?;
    assert_eq!((done.freed_packs, done.held_packs), (0, 4));
    running.put_manifest(&cluster).await?;
    cluster.delete_intent(running.id).await?;
    world.run(&tidy()).await?;
    assert_eq!(world.all_whole().await?, [running.id]);
    world.nothing_left_over().await?;
    Ok(())
}

#[tokio::test]
async fn a_prior_of_which_nothing_is_known_holds_everything() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let running = Made::new(9, 1, &[]);
    cluster.put_intent(&running.intent(&[id(7)])).await?;
    let done = world.run(&delete(&[id(1)])).await?;
    assert_eq!((done.deleted, done.freed_packs), (vec![id(1)], 0));
    assert!(done.warnings[0].contains("no pack was deleted"), "{:?}", done.warnings);
    cluster.delete_intent(running.id).await?;
    assert_eq!(world.run(&tidy()).await?.freed_packs, 1);
    world.nothing_left_over().await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_holds_everything_until_it_is_deleted() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let manifest = cluster.name().manifest(id(2));
    let mut bytes = world.memory.get(&manifest, 1 << 20).await?.to_vec();
    bytes[300] ^= 1;
    world.memory.damage(&manifest, bytes.into());
    let done = world.run(&delete(&[id(1)])).await?;
    assert_eq!((done.deleted, done.freed_packs), (vec![id(1)], 0));
    assert!(done.warnings[0].contains("cannot be read"), "{:?}", done.warnings);
    // A rule never takes it, a name does.
    assert_eq!(world.run(&keep_last(1)).await?.deleted, []);
    assert_eq!(world.run(&delete(&[id(2)])).await?.deleted, [id(2)]);
    world.run(&tidy()).await?;
    world.nothing_left_over().await?;
    assert_eq!(world.all_whole().await?, [id(3)]);
    Ok(())
}

#[tokio::test]
async fn an_intent_that_outlived_its_backup_goes_with_it() -> Result {
    let world = World::new().await?;
    let made = chain(&world, 2).await?;
    let cluster = world.cluster().await?;
    cluster.put_intent(&made[0].intent(&[])).await?;
    world.run(&delete(&[id(1)])).await?;
    assert_eq!(cluster.intents().await?, []);
    world.nothing_left_over().await?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_garbage_object_costs_only_the_times() -> Result {
    let world = World::new().await?;
    chain(&world, 3).await?;
    let cluster = world.cluster().await?;
    let request = Request { grace: Duration::from_secs(60), ..delete(&[id(1)]) };
    world.run(&request).await?;
    let newest = world.names("/garbage/").await?.pop().unwrap();
    world.memory.damage(&store::ObjectPath::new(newest).unwrap(), vec![1, 2, 3].into());
    world.wait(100);
    let request = Request { which: Which::Nothing, ..request };
    let done = world.run(&request).await?;
    assert_eq!((done.freed_packs, done.later_packs), (0, 1));
    assert!(done.warnings[0].contains("damaged"), "{:?}", done.warnings);
    world.wait(100);
    assert_eq!(world.run(&request).await?.freed_packs, 1);
    assert!(cluster.garbage().await?.damage.is_none());
    world.nothing_left_over().await?;
    Ok(())
}

/// Packs under names that are not those of packs are nobody's business.
#[tokio::test]
async fn foreign_objects_are_left_alone() -> Result {
    let world = World::new().await?;
    chain(&world, 2).await?;
    for name in ["20270115T080001Z/1", "20270115T080001Z/000001.tmp", "other/000001"] {
        let path = store::ObjectPath::new(format!("clusters/main/packs/{name}")).unwrap();
        world.memory.put(&path, vec![1].into()).await?;
    }
    let before: BTreeSet<String> = world.packs().await?;
    world.run(&tidy()).await?;
    assert_eq!(world.packs().await?, before);
    Ok(())
}
