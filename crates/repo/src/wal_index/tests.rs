use super::*;
use crate::coding::Malformed;
use pg_wal::event::WalLevel;
use pg_wal::index::*;
use pg_wal::{Fork, Lsn, Oid, RelFileLocator, Timeline, TimestampTz};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn rel() -> impl Strategy<Value = RelFileLocator> {
    (0..3_u32, 0..3_u32, prop_oneof![0..40_u32, any::<u32>()]).prop_map(|(tablespace, database, relfilenode)| {
        RelFileLocator { tablespace: Oid(tablespace), database: Oid(database), relfilenode }
    })
}

fn fork() -> impl Strategy<Value = Fork> {
    (0..4_usize).prop_map(|number| Fork::ALL[number])
}

fn blocks() -> impl Strategy<Value = Vec<u32>> {
    let single = prop::collection::btree_set(any::<u32>(), 0..20);
    let near = prop::collection::btree_set(0..300_u32, 0..100);
    let run = (any::<u16>(), 0..2000_u32)
        .prop_map(|(first, len)| (0..len).map(|at| u32::from(first) * 65536 / 65535 + at).collect::<BTreeSet<_>>());
    prop_oneof![single, near, run].prop_map(|set| set.into_iter().collect())
}

fn changes() -> impl Strategy<Value = Changes> {
    let forks = prop::collection::btree_map((rel(), fork()), (any::<Option<u32>>(), blocks()), 0..20);
    let databases = prop::collection::btree_set((0..5_u32, any::<u32>()), 0..4);
    (forks, databases).prop_map(|(forks, databases)| Changes {
        forks: forks
            .into_iter()
            .map(|((rel, fork), (limit, blocks))| ForkChanges { key: ForkKey { rel, fork }, limit, blocks })
            .collect(),
        databases: databases
            .into_iter()
            .map(|(tablespace, database)| DatabaseKey { tablespace: Oid(tablespace), database: Oid(database) })
            .collect(),
    })
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..70)
}

fn oids() -> impl Strategy<Value = Vec<Oid>> {
    prop::collection::vec(any::<u32>().prop_map(Oid), 0..5)
}

fn time() -> impl Strategy<Value = TimestampTz> {
    any::<i64>().prop_map(TimestampTz)
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn oid() -> impl Strategy<Value = Oid> {
    any::<u32>().prop_map(Oid)
}

fn level() -> impl Strategy<Value = WalLevel> {
    (0..4_u32).prop_map(WalLevel::from_number)
}

fn mark_kind() -> impl Strategy<Value = MarkKind> {
    let timelines = || (any::<u32>().prop_map(Timeline), any::<u32>().prop_map(Timeline));
    prop_oneof![
        (text(), time(), lsn()).prop_map(|(name, time, end)| MarkKind::RestorePoint { name, time, end }),
        (lsn(), timelines(), any::<bool>(), prop::option::of(level())).prop_map(
            |(redo, (timeline, timeline_prev), shutdown, wal_level)| MarkKind::Checkpoint {
                redo,
                timeline,
                timeline_prev,
                shutdown,
                wal_level
            }
        ),
        (timelines(), time(), prop::option::of(level())).prop_map(|((timeline, timeline_prev), time, wal_level)| {
            MarkKind::EndOfRecovery { timeline, timeline_prev, time, wal_level }
        }),
        level().prop_map(|level| MarkKind::WalLevel { level }),
        any::<bool>().prop_map(|on| MarkKind::FullPageWrites { on }),
        (lsn(), time()).prop_map(|(lost, time)| MarkKind::Overwritten { lost, time }),
        (oid(), oid(), prop::option::of((oid(), oid())))
            .prop_map(|(database, tablespace, source)| MarkKind::DatabaseCreate { database, tablespace, source }),
        (oid(), oids()).prop_map(|(database, tablespaces)| MarkKind::DatabaseDrop { database, tablespaces }),
        (oid(), text()).prop_map(|(tablespace, path)| MarkKind::TablespaceCreate { tablespace, path }),
        oid().prop_map(|tablespace| MarkKind::TablespaceDrop { tablespace }),
        (oid(), prop::collection::vec((oid(), any::<u32>()), 0..4))
            .prop_map(|(database, files)| MarkKind::RelMap { database, files }),
        (oid(), oids()).prop_map(|(database, relations)| MarkKind::Truncate { database, relations }),
        (rel(), fork()).prop_map(|(rel, fork)| MarkKind::RelationCreate { rel, fork }),
        (rel(), any::<u32>()).prop_map(|(rel, blocks)| MarkKind::RelationTruncate { rel, blocks }),
    ]
}

fn row() -> impl Strategy<Value = RowImage> {
    (any::<u16>(), prop::collection::vec(any::<u8>(), 0..=68)).prop_map(|(len, head)| RowImage { len, head })
}

fn new_row() -> impl Strategy<Value = CatalogRow> {
    prop_oneof![
        Just(CatalogRow::Unknown),
        row().prop_map(CatalogRow::Whole),
        (any::<u16>(), any::<u16>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..=68))
            .prop_map(|(len, prefix, suffix, bytes)| CatalogRow::Patch(RowPatch { len, prefix, suffix, bytes })),
    ]
}

fn tid() -> impl Strategy<Value = TupleId> {
    (any::<u32>(), any::<u16>()).prop_map(|(block, offset)| TupleId { block, offset })
}

fn catalog() -> impl Strategy<Value = CatalogChange> {
    let kind = prop_oneof![
        (any::<u32>(), prop::collection::vec((any::<u16>(), row()), 0..5))
            .prop_map(|(block, rows)| CatalogChangeKind::Page { block, rows }),
        (tid(), new_row()).prop_map(|(at, row)| CatalogChangeKind::Insert { at, row }),
        (tid(), tid(), new_row()).prop_map(|(old, new, row)| CatalogChangeKind::Update { old, new, row }),
        tid().prop_map(|at| CatalogChangeKind::Delete { at }),
    ];
    (lsn(), any::<u32>(), oid(), 0..4_usize, kind).prop_map(|(lsn, xid, database, catalog, kind)| CatalogChange {
        lsn,
        xid,
        database,
        catalog: Catalog::ALL[catalog],
        kind,
    })
}

fn xids() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::btree_set(any::<u32>(), 0..6).prop_map(|set| set.into_iter().collect())
}

fn work() -> impl Strategy<Value = Vec<RelationWork>> {
    let counts = (0..5_u64, any::<u64>(), 0..9_u64, 0..2_u64, 0..2_u64);
    prop::collection::btree_map(rel(), counts, 0..4).prop_map(|work| {
        let entry = |(rel, (inserted, multi_inserted, updated, hot_updated, deleted))| RelationWork {
            rel,
            rows: RowCounts { inserted, multi_inserted, updated, hot_updated, deleted },
        };
        work.into_iter().map(entry).collect()
    })
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let end =
        (any::<bool>(), time(), any::<bool>(), prop::option::of(oid()), xids(), prop::collection::vec(rel(), 0..4))
            .prop_map(|(commits, time, prepared, database, subxacts, dropped)| XactEndFacts {
                outcome: if commits { Outcome::Commit } else { Outcome::Abort },
                lsn: Lsn(0),
                time,
                prepared,
                database,
                subxacts: subxacts.into(),
                dropped: dropped.into(),
            });
    let prepared = (lsn(), time(), text(), oid(), xids()).prop_map(|(lsn, time, gid, database, subxacts)| Prepared {
        lsn,
        time,
        gid,
        database,
        subxacts,
    });
    let extent = (lsn(), any::<u64>()).prop_map(|(first, bytes)| Extent { first, bytes });
    (
        any::<u32>(),
        prop::option::of(end),
        prop::option::of(prepared),
        prop::option::of(extent),
        any::<Option<u32>>(),
        work(),
    )
        .prop_map(|(xid, end, prepared, extent, top, work)| Transaction {
            xid,
            end,
            prepared: prepared.map(Box::new),
            top,
            extent,
            work: work.into(),
        })
}

fn volumes() -> impl Strategy<Value = Vec<RelationVolume>> {
    prop::collection::btree_map(rel(), (1..u64::MAX, any::<u64>(), any::<u64>(), any::<u64>()), 0..5).prop_map(|map| {
        let volume =
            |(rel, (records, bytes, images, image_bytes))| RelationVolume { rel, records, bytes, images, image_bytes };
        map.into_iter().map(volume).collect()
    })
}

fn images() -> impl Strategy<Value = Images> {
    let count = || (any::<u64>(), any::<u64>()).prop_map(|(images, bytes)| ImageCount { images, bytes });
    let minutes = prop::collection::btree_map(any::<i64>(), count(), 0..5);
    (any::<Option<i64>>(), minutes, count()).prop_map(|(first, minutes, rest)| Images {
        first,
        minutes: minutes.into_iter().collect(),
        rest,
    })
}

fn index() -> impl Strategy<Value = WalIndex> {
    let marks = prop::collection::vec((lsn(), any::<u32>(), mark_kind()), 0..10)
        .prop_map(|list| list.into_iter().map(|(lsn, xid, kind)| Mark { lsn, xid, kind }).collect());
    let transactions = prop::collection::vec((transaction(), 0..5000_u64), 0..40);
    let catalog = prop::collection::vec(catalog(), 0..10);
    (any::<u32>(), lsn(), changes(), marks, transactions, catalog, volumes(), images()).prop_map(
        |(start, end, changes, marks, transactions, catalog, volumes, images)| {
            let start = Lsn(u64::from(start) * 8);
            let mut lsn = start.0;
            let (mut ended, mut open) = (Vec::new(), BTreeMap::new());
            for (mut transaction, ahead) in transactions {
                if let Some(end) = &mut transaction.end {
                    lsn += ahead * 8;
                    end.lsn = Lsn(lsn);
                    ended.push(transaction);
                } else {
                    open.insert(transaction.xid, transaction);
                }
            }
            ended.extend(open.into_values());
            WalIndex { start, end, changes, marks, transactions: ended, catalog, volumes, images }
        },
    )
}

proptest! {
    #[test]
    fn indexes_round_trip(index in index()) {
        let bytes = encode(&index).unwrap();
        prop_assert_eq!(&decode(&bytes).unwrap(), &index);
        let changes = decode_changes(&bytes).unwrap();
        prop_assert_eq!(&changes.changes, &index.changes);
        prop_assert_eq!(&changes.marks, &index.marks);
    }

    #[test]
    fn damage_is_an_error_or_another_index(index in index(), hits in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4), cut: prop::sample::Index) {
        let mut bytes = encode(&index).unwrap();
        let _ = decode(&bytes[..cut.index(bytes.len())]).map(|_| panic!("a part of an index is no index"));
        for (at, xor) in hits {
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
        }
        let _ = decode(&bytes);
    }

    #[test]
    fn decoding_never_panics(bytes: Vec<u8>) {
        let _ = decode(&bytes);
        let mut versioned = vec![VERSION];
        versioned.extend(bytes);
        let _ = decode(&versioned);
    }
}

#[test]
fn few_bytes_do_not_become_many() {
    // A run of all blocks there are, in a handful of bytes.
    let rel = RelFileLocator { tablespace: Oid(1), database: Oid(1), relfilenode: 1 };
    let fork = |blocks| ForkChanges { key: ForkKey { rel, fork: Fork::Main }, limit: None, blocks };
    let changes = Changes { forks: vec![fork((0..1000).collect())], databases: Vec::new() };
    let bytes = encode(&WalIndex { changes, ..WalIndex::default() }).unwrap();
    assert!(decode(&bytes).is_ok());
    // The block part is short enough to be stored as it is: first block, length less one.
    let at = bytes.windows(3).rposition(|window| window == [0, 0xE7, 0x07]).unwrap();
    let mut bomb = bytes[..at].to_vec();
    bomb.extend([0, 0xFF, 0x7F]);
    bomb.extend(&bytes[at + 3..]);
    assert!(decode(&bomb).is_ok(), "16,384 blocks are not too many");
    let order = |list: Vec<u32>| {
        encode(&WalIndex { changes: Changes { forks: vec![fork(list)], databases: vec![] }, ..WalIndex::default() })
    };
    assert!(order(vec![2, 1]).is_err() && order(vec![1, 1]).is_err());
    assert!(matches!(decode(&[2]), Err(Malformed(reason)) if reason.contains("version")));
}

#[test]
fn a_rollup_is_a_quarter_of_a_gibibyte_or_16_segments() {
    for (megabytes, count) in [(1, 16), (16, 16), (64, 4), (1024, 1)] {
        assert_eq!(segments_per_rollup(megabytes << 20), count);
    }
}
