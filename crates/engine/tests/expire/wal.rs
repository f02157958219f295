//! WAL that no backup needs.

use super::support::{Made, Result, SEGMENT, SYSTEM, World, delete, id, keep_last};
use engine::expire::{Request, WalExpiry, plan};
use pg_format::{Lsn, SegmentName, Timeline, WalSegmentSize, XLogSegNo};
use repo::Intent;
use store::{ObjectPath, Store};

fn name(timeline: u32, number: u64) -> String {
    let size = WalSegmentSize::new(SEGMENT as u32).unwrap();
    SegmentName::new(Timeline(timeline), XLogSegNo(number), size).unwrap().to_string()
}

async fn put(world: &World, below: &str) -> Result {
    put_below(world, "wal", below).await
}

async fn put_below(world: &World, kind: &str, below: &str) -> Result {
    let path = ObjectPath::new(format!("clusters/main/{kind}/{SYSTEM}/{below}")).unwrap();
    world.memory.put(&path, vec![7; 10].into()).await?;
    Ok(())
}

/// Segments of a timeline, by number. Only their names count here.
pub(super) async fn put_segments(world: &World, timeline: u32, numbers: std::ops::Range<u64>) -> Result {
    for number in numbers {
        put(world, &format!("{timeline:08X}/{}", name(timeline, number))).await?;
    }
    Ok(())
}

async fn segments(world: &World, timeline: u32) -> Result<Vec<u64>> {
    let names = world.names(&format!("/wal/{SYSTEM}/{timeline:08X}/")).await?;
    let number = |name: &String| {
        let name: SegmentName = name.rsplit('/').next()?.get(..24)?.parse().ok()?;
        Some(name.segno(WalSegmentSize::new(SEGMENT as u32).ok()?).ok()?.0)
    };
    Ok(names.iter().filter_map(number).collect())
}

async fn put_history(world: &World, timeline: u32, from: &[(u32, u64)]) -> Result {
    let cluster = world.cluster().await?;
    let lines = from.iter().map(|(timeline, lsn)| format!("{timeline}\t{}\tno recovery target\n", Lsn(*lsn)));
    let (text, name) = (lines.collect::<String>(), cluster.name().history(SYSTEM, Timeline(timeline)));
    let repository = cluster.repository();
    repo::wal::put_wal_file(&**repository.store(), repository.keys(), &name, text.as_bytes()).await?;
    Ok(())
}

async fn three_backups() -> Result<World> {
    let world = World::new().await?;
    // Starts lie in the segments of these numbers.
    for second in [3, 6, 9] {
        Made::new(second, 1, &[]).put(&world).await?;
    }
    put_segments(&world, 1, 0..12).await?;
    Ok(world)
}

#[tokio::test]
async fn wal_before_the_oldest_backup_goes() -> Result {
    let world = three_backups().await?;
    put(&world, &format!("00000001/{}.00000028.backup", name(1, 3))).await?;
    put(&world, &format!("00000001/{}.partial", name(1, 5))).await?;
    put(&world, "00000001/notes.txt").await?;
    let indexes = [name(1, 5), name(1, 6), format!("{}.4", name(1, 2)), format!("{}.4", name(1, 3))];
    for index in &indexes {
        put_below(&world, "wal-index", &format!("00000001/{index}")).await?;
    }
    let planned = plan(&world.context(), &world.cluster().await?, &keep_last(2)).await?;
    assert_eq!((planned.wal[0].before, planned.wal[0].files), (Lsn(6 * SEGMENT + 40), 10));
    let done = world.run(&keep_last(2)).await?;
    assert_eq!(done.wal, planned.wal);
    assert_eq!(segments(&world, 1).await?, [6, 7, 8, 9, 10, 11]);
    assert_eq!(world.names("notes.txt").await?.len(), 1, "what is no WAL is nobody's");
    let left = world.names("/wal-index/").await?;
    assert!(
        left.len() == 2 && left.iter().all(|path| [&indexes[1], &indexes[3]].iter().any(|name| path.ends_with(*name)))
    );
    let floor = world.cluster().await?.wal_floor(SYSTEM, Timeline(1)).await?;
    assert_eq!(floor, Some(Lsn(6 * SEGMENT + 40)));
    assert!(world.run(&keep_last(2)).await?.wal.is_empty());
    Ok(())
}

#[tokio::test]
async fn timelines_on_which_a_backup_may_still_begin_are_spared() -> Result {
    let world = three_backups().await?;
    // Production went back to segment 4 and on from there as timeline 2; timeline 3 is nobody's yet.
    put_segments(&world, 2, 4..8).await?;
    put_segments(&world, 3, 4..8).await?;
    put_history(&world, 2, &[(1, 4 * SEGMENT + 8)]).await?;
    put_history(&world, 3, &[(1, 4 * SEGMENT + 8)]).await?;
    let cluster = world.cluster().await?;
    cluster.raise_production_timeline(SYSTEM, Timeline(2)).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?, [9, 10, 11]);
    assert_eq!((segments(&world, 2).await?.len(), segments(&world, 3).await?.len()), (4, 4));
    assert_eq!(cluster.wal_floor(SYSTEM, Timeline(2)).await?, None, "its first backup may begin there");
    let first =
        Made { timeline: Timeline(2), start_lsn: Lsn(6 * SEGMENT), ..Made::new(20, 1, &[]) }.put(&world).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(cluster.backups().await?, [first.id]);
    assert_eq!(segments(&world, 2).await?, [6, 7]);
    assert_eq!(segments(&world, 1).await?, [9, 10, 11]);
    // Timeline 2 is left for 3: what is below the floor of what is kept goes from the dead branch too.
    cluster.raise_production_timeline(SYSTEM, Timeline(3)).await?;
    Made { timeline: Timeline(3), start_lsn: Lsn(7 * SEGMENT), ..Made::new(30, 1, &[]) }.put(&world).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!((segments(&world, 2).await?, segments(&world, 3).await?), (vec![7], vec![7]));
    assert_eq!(world.names(".history").await?.len(), 2, "histories stay for ever");
    Ok(())
}

/// Without its history nobody knows what production grew out of.
#[tokio::test]
async fn a_history_that_cannot_be_read_spares_what_it_may_need() -> Result {
    let world = three_backups().await?;
    put_segments(&world, 2, 1..8).await?;
    put(&world, "00000003.history").await?;
    world.cluster().await?.raise_production_timeline(SYSTEM, Timeline(3)).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!((segments(&world, 1).await?.len(), segments(&world, 2).await?.len()), (3, 7));
    Ok(())
}

#[tokio::test]
async fn a_pin_holds_the_wal_after_its_backup() -> Result {
    let world = World::new().await?;
    for second in [3, 6, 9] {
        Made::new(second, 1, &[]).put(&world).await?;
    }
    put_segments(&world, 1, 0..12).await?;
    let pin = repo::Pin { backup: id(3), until: None, reason: String::new() };
    world.cluster().await?.pin(&pin, super::at(1000)).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?.first(), Some(&3));
    Ok(())
}

/// A standby's backup begins at its last restart point, which may lie before a newer backup's start.
#[tokio::test]
async fn a_running_backup_holds_its_wal() -> Result {
    let world = World::new().await?;
    Made::new(9, 1, &[]).put(&world).await?;
    put_segments(&world, 1, 0..12).await?;
    let cluster = world.cluster().await?;
    let old_start = Made { start_lsn: Lsn(4 * SEGMENT), ..Made::new(20, 0, &[]) };
    cluster.put_intent(&old_start.intent(&[])).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?.first(), Some(&4));
    cluster.delete_intent(id(20)).await?;
    // Of one that does not say where it began nothing can be told.
    cluster.put_intent(&Intent { start: None, ..old_start.intent(&[]) }).await?;
    let planned = plan(&world.context(), &cluster, &keep_last(1)).await?;
    assert!(planned.notes[0].contains("does not say where it began"), "{:?}", planned.notes);
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?.first(), Some(&4));
    cluster.delete_intent(id(20)).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?.first(), Some(&9));
    Ok(())
}

#[tokio::test]
async fn without_a_backup_no_wal_goes_nor_with_one_that_cannot_be_read() -> Result {
    let world = World::new().await?;
    put_segments(&world, 1, 0..12).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?.len(), 12);
    Made::new(9, 1, &[]).put(&world).await?;
    let unreadable = world.cluster().await?.name().manifest(id(3));
    world.memory.put(&unreadable, vec![1; 500].into()).await?;
    world.run(&keep_last(1)).await?;
    assert_eq!(segments(&world, 1).await?.len(), 12);
    let request = Request { wal: WalExpiry::Delete, ..delete(&[id(3)]) };
    world.run(&request).await?;
    assert_eq!(segments(&world, 1).await?.len(), 3);
    // The last one went: what it started from stays.
    world.run(&Request { wal: WalExpiry::Delete, ..delete(&[id(9)]) }).await?;
    assert_eq!(segments(&world, 1).await?.len(), 3);
    Ok(())
}
