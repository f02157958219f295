//! What WAL there is, and which way leads through it: routes across timelines, gaps, times, restore points.
#![allow(clippy::unwrap_used)]

mod wal_support;

use bytes::Bytes;
use engine::wal::WalArchive;
use engine::wal::push::push;
use pg_format::{Lsn, Timeline, XLogSegNo};
use std::sync::Arc;
use std::time::Duration;
use store::{MemoryStore, Store};
use testkit::pg::Cluster;
use wal_support::*;

const MIB: u64 = 1 << 20;

/// A catalogue with objects by name only: what a listing shows. Segments of 1 MiB.
async fn thicket(
    server: &Cluster,
    segments: &[(u32, std::ops::RangeInclusive<u64>)],
    histories: &[(u32, &str)],
) -> WalArchive {
    let facts = server_facts(server).await;
    let memory = MemoryStore::new();
    let cluster = registered(Arc::new(memory.clone()), &facts).await;
    for (timeline, range) in segments {
        for segno in range.clone() {
            let name = format!("{timeline:08X}{:08X}{:08X}", segno / 4096, segno % 4096);
            let path = cluster.name().wal_file(facts.system_id, Timeline(*timeline), &name).unwrap();
            memory.put(&path, Bytes::from_static(b"x")).await.unwrap();
        }
    }
    let keys = cluster.repository().keys();
    for (timeline, text) in histories {
        let path = cluster.name().history(facts.system_id, Timeline(*timeline));
        repo::wal::put_wal_file(&memory, keys, &path, text.as_bytes()).await.unwrap();
    }
    WalArchive::load(&cluster, facts.system_id).await.unwrap()
}

#[tokio::test]
async fn routes_across_timelines_are_postgresqls() {
    let server = origin();
    // 1 was left for 2 in the middle of segment 5, and for 4 at the border between 6 and 7; 2 for 3 in segment 8.
    let histories = [
        (2, "1\t0/580000\tx\n"),
        (3, "1\t0/580000\tx\n2\t0/880000\tx\n"),
        (4, "1\t0/700000\tx\n"),
        (9, "not a history"),
    ];
    let segments = [(1, 1..=6), (2, 5..=6), (2, 8..=8), (3, 8..=9), (3, 11..=12), (4, 8..=9)];
    let archive = thicket(&server, &segments, &histories).await;
    let at = |segno: u64, offset: u64| Lsn(segno * MIB + offset);
    let way = |start: Lsn, start_tli: u32, end: Lsn, end_tli: u32| {
        let needed = archive.segments_for(start, Timeline(start_tli), end, Timeline(end_tli)).unwrap();
        let text = |segment: &engine::wal::archive::NeededSegment| {
            let segno = segment.name.segno(archive.segment_size()).unwrap();
            format!("{}/{segno}{}", segment.name.timeline, if segment.present { "" } else { "!" })
        };
        needed.iter().map(text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(way(at(4, 40), 1, at(6, 0), 1), "1/4 1/5");
    assert_eq!(way(at(4, 40), 1, at(6, 1), 2), "1/4 2/5 2/6", "the new timeline's copy of the shared segment");
    assert_eq!(way(at(4, 40), 1, at(5, 100), 2), "1/4 2/5", "also when it ends before the switch");
    assert_eq!(way(at(6, 40), 2, at(9, 1), 3), "2/6 2/7! 3/8 3/9");
    assert_eq!(way(at(6, 40), 1, at(9, 1), 4), "1/6 4/7! 4/8 4/9", "a switch at a border");
    assert_eq!(way(at(6, 40), 1, at(7, 0), 4), "1/6");
    assert_eq!(way(at(9, 0), 3, at(9, 0), 3), "3/9");
    for (start, from, to) in
        [(at(5, 0x90000), 1, 2), (at(6, 0), 1, 3), (at(1, 0), 2, 4), (at(1, 0), 1, 9), (at(1, 0), 1, 7)]
    {
        assert!(archive.segments_for(start, Timeline(from), at(9, 0), Timeline(to)).is_err(), "{start} {from} {to}");
    }
    let unbroken = |start, from, to| {
        let (last, next) = archive.unbroken_from(start, Timeline(from), Timeline(to)).unwrap();
        let text =
            |name: pg_format::SegmentName| format!("{}/{}", name.timeline, name.segno(archive.segment_size()).unwrap());
        (last.map(text).unwrap_or_default(), text(next))
    };
    assert_eq!(unbroken(at(1, 40), 1, 1), ("1/6".into(), "1/7".into()));
    assert_eq!(unbroken(at(1, 40), 1, 2), ("2/6".into(), "2/7".into()));
    assert_eq!(unbroken(at(1, 40), 1, 4), ("1/6".into(), "4/7".into()));
    assert_eq!(unbroken(at(8, 40), 2, 3), ("3/9".into(), "3/10".into()));
    assert_eq!(unbroken(at(7, 40), 2, 3), (String::new(), "2/7".into()));
    let missing = archive.missing_between(at(6, 40), Timeline(2), at(12, 0), Timeline(3)).unwrap();
    assert_eq!(
        missing.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
        ["000000020000000000000007", "00000003000000000000000A"]
    );
    let gaps =
        |timeline| archive.gaps(Timeline(timeline)).iter().map(|gap| (gap.first.0, gap.last.0)).collect::<Vec<_>>();
    assert_eq!((gaps(1), gaps(2), gaps(3), gaps(4)), (vec![], vec![(7, 7)], vec![(10, 10)], vec![(7, 7)]));
    assert_eq!(archive.children_of(Timeline(1)), [(Timeline(2), at(5, 0x80000)), (Timeline(4), at(7, 0))]);
    assert!(archive.history_of(Timeline(9)).unwrap_err().to_string().contains("cannot be used"));
    assert_eq!(archive.last_segment(Timeline(3)), Some(XLogSegNo(12)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_promotion_can_be_followed_and_searched() {
    let server = origin();
    let facts = server_facts(&server).await;
    write_segments(&server, 2);
    let standby = server.standby().unwrap();
    let start: Lsn = server.sql("SELECT pg_current_wal_lsn()").unwrap().parse().unwrap();
    write_segments(&server, 3);
    let point: Lsn = server.sql("SELECT pg_create_restore_point('before it')").unwrap().parse().unwrap();
    let until = server.sql("SELECT now() AT TIME ZONE 'UTC'").unwrap().replace(' ', "T") + "Z";
    let until: jiff::Timestamp = until.parse().unwrap();
    write_segments(&server, 2);
    let lsn = server.sql("SELECT pg_current_wal_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    standby.promote().unwrap();
    write_segments(&standby, 3);
    let end: Lsn = standby.sql("SELECT pg_switch_wal()").unwrap().parse().unwrap();

    let temp = tempfile::tempdir().unwrap();
    let memory = MemoryStore::new();
    let cluster = registered(Arc::new(memory.clone()), &facts).await;
    let (ctx, _) = context();
    for (server, dir) in [(&server, "one"), (&standby, "two")] {
        let wal = copy_wal(server, &temp.path().join(dir));
        for name in ready(&wal) {
            push(&ctx, &cluster, &wal.join(&name), &push_options(None, 1)).await.unwrap();
        }
    }
    assert_eq!(cluster.known_facts().await.unwrap().current().unwrap().production_timeline, Timeline(2));
    let archive = WalArchive::load(&cluster, facts.system_id).await.unwrap();
    let (one, two) = (Timeline(1), Timeline(2));
    assert_eq!(archive.missing_between(start, one, end, two).unwrap(), []);
    let switch = archive.history_of(two).unwrap().switch_point(one).unwrap();
    let way = archive.segments_for(start, one, end, two).unwrap();
    for segment in &way {
        let segno = segment.name.segno(archive.segment_size()).unwrap();
        assert_eq!(segment.name.timeline, if segno < switch.segment_no(archive.segment_size()) { one } else { two });
    }
    let found = archive.find_restore_point(&ctx, start, one, two, "before it").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].point.end_lsn, point);
    assert_eq!(archive.find_restore_point(&ctx, start, one, two, "another").await.unwrap(), []);
    assert_eq!(archive.find_restore_point(&ctx, end, two, two, "before it").await.unwrap(), []);

    // The first commit after the moment lies in the first segment written after it.
    let after = archive.first_end_after(&ctx, start, one, two, until).await.unwrap().unwrap();
    assert!(after.time > until && after.segment >= found[0].segment);
    let now = jiff::Timestamp::now();
    assert_eq!(
        archive.first_end_after(&ctx, start, one, two, now).await.unwrap(),
        None,
        "the archive does not reach it"
    );
    let window = archive.recoverable_window(&ctx, start, start, one, two).await.unwrap();
    assert_eq!((window.to_timeline, window.from_lsn), (two, start));
    // The last switch found nothing written since the one before, so `end` is where the next segment begins.
    assert_eq!(
        window.last_segment.unwrap().end(archive.segment_size()).unwrap(),
        end.segment_start(archive.segment_size())
    );
    assert!(window.to_lsn.unwrap() > switch, "{window:?}");
    assert!(window.to_time.unwrap() > until && window.to_time.unwrap() < now, "{window:?}");
    let latest = archive.latest_transaction_end(&ctx, two).await.unwrap().unwrap();
    assert_eq!(Some(latest.time), window.to_time);

    // One segment gone: everything says so.
    let gone = way[2].name;
    memory.delete(&archive.segment_path(gone).unwrap()).await.unwrap();
    let archive = WalArchive::load(&cluster, facts.system_id).await.unwrap();
    assert_eq!(archive.missing_between(start, one, end, two).unwrap(), [gone]);
    let window = archive.recoverable_window(&ctx, start, start, one, two).await.unwrap();
    assert_eq!((window.next_segment, window.last_segment), (gone, Some(way[1].name)));
    assert!(window.to_lsn.unwrap() <= gone.start(archive.segment_size()).unwrap());
    let window = archive.recoverable_window(&ctx, start, end, one, two).await.unwrap();
    assert_eq!(window.to_lsn, None, "a backup whose own WAL is not there cannot be recovered");
}
