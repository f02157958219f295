//! The index of archived WAL: made by pushes, read in order, rolled up, made where it is missing; always the same.
#![allow(clippy::unwrap_used)]

mod wal_support;

use engine::wal::WalArchive;
use engine::wal::index::{IndexCatalogue, Indexed, read, rebuild, roll_up};
use engine::wal::push::push;
use pg_format::{SegmentName, SystemId};
use pg_wal::index::{Changes, Outcome};
use pg_wal::{IndexBuilder, IndexOptions, Joined, Joiner, Lsn, WalIndex, index_segment};
use repo::Compression;
use repo::wal::{WalEncoder, WalObject, read_segment};
use repo::wal_index::IndexPart;
use std::path::Path;
use std::sync::Arc;
use store::{MemoryStore, Store};
use wal_support::*;

/// What counts as changed in any case need not be listed.
fn without_implied(mut changes: Changes) -> Changes {
    for fork in &mut changes.forks {
        let limit = fork.limit;
        fork.blocks.retain(|block| limit.is_none_or(|limit| *block < limit));
    }
    changes
}

/// The index of all records of some segments, read one after the other with nothing in between.
fn direct(files: &[std::path::PathBuf]) -> WalIndex {
    let mut builder = IndexBuilder::new(&IndexOptions::usual());
    let mut joiner: Option<Joiner> = None;
    let mut end = Lsn(0);
    let mut start = None;
    let mut crossed = (0, 0);
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let mut reader = pg_wal::SegmentReader::open(&bytes, &pg_wal::Expected::default()).unwrap();
        let info = *reader.info();
        start.get_or_insert(info.start);
        if let Some(open) = &mut joiner {
            crossed.0 += 1;
            match open.push(&info, reader.head()).unwrap() {
                Joined::Whole => {
                    builder.add(&open.record().unwrap());
                    joiner = None;
                }
                Joined::More => crossed.1 += 1,
                Joined::Overwritten => panic!("nothing was lost"),
            }
        }
        while let Some(record) = reader.next_record() {
            builder.add(&record);
        }
        end = info.end();
        if let (_, Some(tail)) = reader.into_fragments() {
            joiner = Some(Joiner::new(tail, &info));
        }
    }
    assert!(crossed.0 > 8 && crossed.1 > 0, "records crossed borders {crossed:?}");
    builder.finish(start.unwrap(), end).unwrap()
}

async fn archive_of(cluster: &repo::Cluster, system: SystemId) -> WalArchive {
    WalArchive::load(cluster, system).await.unwrap()
}

/// All that can be read, as one index, and the holes.
async fn read_all(archive: &WalArchive, names: &[SegmentName], part: IndexPart) -> (WalIndex, Vec<String>, usize) {
    let (mut all, mut holes, mut runs): (Option<WalIndex>, _, _) = (None, Vec::new(), 0);
    read(&context().0, archive, names, part, |found| {
        let index = match found {
            Indexed::Run(run) => {
                runs += 1;
                run.index
            }
            Indexed::Joined(index) => *index,
            Indexed::Hole(hole) => {
                holes.push(format!("{}: {}", hole.segment, hole.reason));
                return Ok(());
            }
        };
        match &mut all {
            None => all = Some(index),
            Some(all) => all.append(index),
        }
        Ok(())
    })
    .await
    .unwrap();
    (all.unwrap(), holes, runs)
}

fn segno(archive: &WalArchive, name: &SegmentName) -> pg_format::XLogSegNo {
    name.segno(archive.segment_size()).unwrap()
}

fn assert_same(found: &WalIndex, expected: &WalIndex, what: &str) {
    assert!(without_implied(found.changes.clone()) == without_implied(expected.changes.clone()), "changes: {what}");
    assert!(found.marks == expected.marks, "marks: {what}");
    assert!(found.volumes == expected.volumes, "volumes: {what}");
    assert!(found.catalog == expected.catalog, "catalog: {what}");
    assert_eq!(found.transactions.len(), expected.transactions.len(), "transactions: {what}");
    for (found, expected) in found.transactions.iter().zip(&expected.transactions) {
        // How much a transaction wrote is told where it was much: of one that lies in several segments not always.
        let (mut found, mut expected) = (found.clone(), expected.clone());
        (found.extent, expected.extent) = (None, None);
        assert_eq!(found, expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_is_the_same_however_it_is_read() {
    let server = origin();
    let facts = server_facts(&server).await;
    server.sql("CREATE TABLE big (x int PRIMARY KEY, y text)").unwrap();
    write_segments(&server, 5);
    for part in 0..6 {
        server
            .sql(&format!("INSERT INTO big SELECT g, md5(g::text) FROM generate_series({part}0000, {part}9999) g"))
            .unwrap();
    }
    server.sql("SELECT pg_logical_emit_message(true, 'long', repeat('0123456789', 250000))").unwrap();
    server
        .sql("BEGIN; UPDATE big SET y = y || 'x' WHERE x % 3 = 0; SAVEPOINT a; DELETE FROM big WHERE x < 5000; COMMIT")
        .unwrap();
    server.sql("TRUNCATE big; SELECT pg_create_restore_point('here')").unwrap();
    let many = 75_usize.saturating_sub(ready(&server.data_dir().join("pg_wal")).len());
    write_segments(&server, many);

    let temp = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let cluster = registered(store.clone(), &facts).await;
    let wal = copy_wal(&server, &temp.path().join("data"));
    drop(server);
    let waiting = ready(&wal);
    for name in &waiting {
        let report = push(&context().0, &cluster, &wal.join(name), &push_options(Some(temp.path()), 40)).await.unwrap();
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
    let names: Vec<SegmentName> = waiting.iter().filter_map(|name| name.parse().ok()).collect();
    assert!(names.len() >= 75, "{}", names.len());
    let files: Vec<_> = names.iter().map(|name| wal.join(name.to_string())).collect();
    let expected = direct(&files);
    assert!(expected.transactions.iter().any(|t| t.end.as_ref().is_some_and(|end| end.outcome == Outcome::Commit)));

    // Each segment has its own, which says what reading it says.
    let keys = cluster.repository().keys();
    for name in &names {
        let path = cluster.name().wal_file(facts.system_id, name.timeline, &name.to_string()).unwrap();
        let object = WalObject::open_for_index(store.clone(), keys, path).await.unwrap();
        let (_, index) =
            index_segment(&std::fs::read(wal.join(name.to_string())).unwrap(), None, &IndexOptions::usual()).unwrap();
        assert_eq!(object.index(IndexPart::All).await.unwrap(), Some(index.unwrap()), "{name}");
    }
    let archive = archive_of(&cluster, facts.system_id).await;
    let (found, holes, runs) = read_all(&archive, &names, IndexPart::All).await;
    assert_eq!(holes, Vec::<String>::new());
    assert_same(&found, &expected, "as pushed");
    // The push that completed a group while nothing else waited has rolled it up; without that, segments say the same.
    let pushed = IndexCatalogue::load(&archive).await.unwrap();
    let pushed: Vec<_> = names.iter().filter(|name| pushed.has(name.timeline, segno(&archive, name), 16)).collect();
    assert!(!pushed.is_empty());
    assert_eq!(runs, names.len() - 15 * pushed.len());
    for name in pushed {
        store.delete(&cluster.name().wal_index(facts.system_id, *name, 16)).await.unwrap();
    }
    let (found, holes, runs) = read_all(&archive, &names, IndexPart::All).await;
    assert_eq!((holes, runs), (Vec::new(), names.len()));
    assert_same(&found, &expected, "by segments");

    // Rolled up, it says the same in fewer pieces; a second time there is nothing to do.
    let report = roll_up(&context().0, &archive).await.unwrap();
    assert!(report.written >= 1 && report.left_out.is_empty(), "{report:?}");
    let again = roll_up(&context().0, &archive).await.unwrap();
    assert_eq!((again.written, again.there), (0, report.written));
    let (found, holes, rolled) = read_all(&archive, &names, IndexPart::All).await;
    assert_eq!(holes, Vec::<String>::new());
    assert_eq!(rolled, names.len() - 15 * report.written as usize);
    assert_same(&found, &expected, "rolled up");
    let (changes, _, _) = read_all(&archive, &names, IndexPart::Changes).await;
    assert!(without_implied(changes.changes) == without_implied(expected.changes.clone()));
    assert!(changes.transactions.is_empty());

    // A rolled-up index that is damaged is not needed.
    let catalogue = IndexCatalogue::load(&archive).await.unwrap();
    let first = names.iter().find(|name| catalogue.has(name.timeline, segno(&archive, name), 16)).unwrap();
    let path = cluster.name().wal_index(facts.system_id, *first, 16);
    let mut bytes = store.get(&path, 64 << 20).await.unwrap().to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    store.delete(&path).await.unwrap();
    store.put(&path, bytes.into()).await.unwrap();
    let (found, holes, _) = read_all(&archive, &names, IndexPart::All).await;
    assert_eq!(holes, Vec::<String>::new());
    assert_same(&found, &expected, "with a damaged rolled-up one");
    store.delete(&path).await.unwrap();

    // Without its index a segment is a hole until one is made.
    let victim = names.iter().find(|name| segno(&archive, name).0 == segno(&archive, first).0 + 3).unwrap();
    strip_index(&cluster, facts.system_id, *victim).await;
    let (_, holes, _) = read_all(&archive, &names, IndexPart::All).await;
    assert!(
        matches!(&holes[..], [hole] if hole.starts_with(&victim.to_string()) && hole.contains("no index")),
        "{holes:?}"
    );
    let report = roll_up(&context().0, &archive).await.unwrap();
    assert!(matches!(&report.left_out[..], [(_, reason)] if reason.contains(&victim.to_string())), "{report:?}");
    let report = rebuild(&context().0, &archive).await.unwrap();
    assert_eq!((report.made, report.failed), (1, Vec::new()));
    let (found, holes, _) = read_all(&archive, &names, IndexPart::All).await;
    assert_eq!(holes, Vec::<String>::new());
    assert_same(&found, &expected, "made later");
    assert_eq!(roll_up(&context().0, &archive).await.unwrap().written, 1);
    let report = rebuild(&context().0, &archive).await.unwrap();
    assert_eq!((report.made, report.indexed), (0, names.len() as u64));

    // A segment that is not there.
    let path = cluster.name().wal_file(facts.system_id, victim.timeline, &victim.to_string()).unwrap();
    store.delete(&path).await.unwrap();
    let archive = archive_of(&cluster, facts.system_id).await;
    let one = [*victim];
    let mut holes = Vec::new();
    read(&context().0, &archive, &one, IndexPart::All, |found| {
        if let Indexed::Hole(hole) = found {
            holes.push(hole.reason);
        }
        Ok(())
    })
    .await
    .unwrap();
    assert!(matches!(&holes[..], [reason] if reason.contains("not in the repository")), "{holes:?}");
}

/// Puts a segment in the repository as it was before there were indexes.
async fn strip_index(cluster: &repo::Cluster, system: SystemId, name: SegmentName) {
    let repository = cluster.repository();
    let (store, keys) = (repository.store(), repository.keys());
    let path = cluster.name().wal_file(system, name.timeline, &name.to_string()).unwrap();
    let object = WalObject::open(store.clone(), keys, path.clone()).await.unwrap();
    let (facts, fragments) = (object.facts().await.unwrap(), object.fragments().await.unwrap());
    let plain = read_segment(store.clone(), keys, &path).await.unwrap();
    let bytes = WalEncoder::new(Compression::Zstd(1)).encode(keys, &path, &plain, &facts, &fragments).unwrap();
    store.delete(&path).await.unwrap();
    store.put(&path, bytes).await.unwrap();
}

/// What is unreadable has no index beyond; what is not to be read at all is archived all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_segments_are_archived_and_their_index_says_how_far_it_reaches() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 4);
    let temp = tempfile::tempdir().unwrap();
    let cluster = registered(Arc::new(MemoryStore::new()), &facts).await;
    let wal = copy_wal(&server, &temp.path().join("data"));
    drop(server);
    let names: Vec<String> = ready(&wal).into_iter().filter(|name| name.len() == 24).collect();
    let damage = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 0x40;
        std::fs::write(path, bytes).unwrap();
    };
    damage(&wal.join(&names[1]), 8192 * 5 + 100);
    damage(&wal.join(&names[2]), 0);
    for name in &names {
        push(&context().0, &cluster, &wal.join(name), &push_options(None, 1)).await.unwrap();
    }
    let archive = archive_of(&cluster, facts.system_id).await;
    let names: Vec<SegmentName> = names.iter().map(|name| name.parse().unwrap()).collect();
    let mut found = Vec::new();
    read(&context().0, &archive, &names, IndexPart::All, |item| {
        match item {
            Indexed::Run(run) => found.push((run.first, run.index.end, run.facts[0].unreadable.is_some())),
            Indexed::Joined(_) => {}
            Indexed::Hole(hole) => found.push((hole.segment, Lsn(0), true)),
        }
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(found.len(), names.len());
    let start = names[1].start(archive.segment_size()).unwrap();
    assert!(!found[0].2 && found[1].2 && found[1].1 > start && found[1].1 < Lsn(start.0 + 8192 * 6), "{found:?}");
    assert_eq!((found[2].1, found[2].2), (Lsn(0), true), "nothing of it can be read");
    assert!(!found[3].2);
}
