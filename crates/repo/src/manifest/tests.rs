//! Manifests are read back as they were written, found in by path, and refused when they do not fit.

use super::*;
use crate::chunk::ChunkRef;
use crate::{BackupId, ClusterName, Keyring, PackId};
use pg_format::{Lsn, SystemId, Timeline};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use store::{MemoryStore, Store};

fn facts(id: BackupId, cluster: &ClusterName) -> ManifestFacts {
    let time = id.time();
    ManifestFacts {
        backup: id,
        cluster: cluster.clone(),
        label: Some("before the migration".into()),
        made_by: "pgkeep 0.1.0".into(),
        started: time,
        finished: time,
        source: "direct".into(),
        from_standby: false,
        standalone: false,
        system_id: SystemId(7_300_000_000_000_000_000),
        pg_version_num: 150_020,
        pg_version: "15.20".into(),
        catalog_version: 202_209_061,
        timeline: Timeline(1),
        start_lsn: Lsn(0x300_0028),
        stop_lsn: Lsn(0x300_0100),
        stop_time: time,
        block_size: 8192,
        relseg_blocks: 131_072,
        wal_segment_size: 16 << 20,
        checksums: true,
        data_directory: "/var/lib/postgresql/15/main".into(),
        tablespaces: Vec::new(),
        backup_label: Some("TEFCRUw=".into()),
        tablespace_map: None,
        config_files: Vec::new(),
        owners: vec![Owner { user: "postgres".into(), group: "postgres".into() }],
        prior: None,
        resumed: Vec::new(),
        look_again: None,
        change_detection: ChangeDetection { used: "all".into(), reasons: Vec::new() },
        numbers: Numbers::default(),
        damaged: Vec::new(),
        warnings: Vec::new(),
        host: HostFacts { name: "db1".into(), os: None, glibc: None, collations: Vec::new() },
        compression: "zstd:1".into(),
        notes: BTreeMap::new(),
    }
}

fn file(number: u32, pack: u32) -> FileEntry {
    let chunk = ChunkRef {
        pack,
        offset: u64::from(number) * 100,
        stored_len: 100,
        plain_len: 8192,
        hash16: [number as u8; 16],
    };
    let settled = (number.is_multiple_of(7)).then_some(Settled { lsn: Lsn(99), place: Place::Chunk(chunk) });
    let place = match number % 3 {
        0 => Place::Zero,
        1 => Place::Chunk(chunk),
        _ => Place::Map(chunk),
    };
    FileEntry {
        path: format!("data/base/16384/{number:08}").into_bytes(),
        mode: 0o600,
        owner: 0,
        mtime: 1_700_000_000 + u64::from(number),
        file_type: FileType::File { len: 8192, place, settled, pages: true, wal: false },
    }
}

#[tokio::test]
async fn manifests_round_trip() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let cluster: ClusterName = "main".parse().unwrap();
    let id: BackupId = "20261120T200910Z".parse().unwrap();
    let keys = Keyring::for_test();
    let packs: Vec<PackId> = (1..=3).map(|number| PackId { backup: id, number }).collect();
    let sizes: HashMap<PackId, u64> = packs.iter().map(|&pack| (pack, 1000 + u64::from(pack.number))).collect();
    let names: Vec<NameEntry> = (1..5000)
        .map(|n| NameEntry {
            database: 5,
            tablespace: 1663,
            relfilenode: n,
            oid: n,
            kind: b'r',
            schema: "public".into(),
            name: format!("table_{n}"),
        })
        .collect();
    let mut files = vec![
        FileEntry { path: b"data".to_vec(), mode: 0o700, owner: 0, mtime: 0, file_type: FileType::Directory },
        FileEntry {
            path: b"data/base/16384/0-link".to_vec(),
            mode: 0o777,
            owner: 0,
            mtime: 0,
            file_type: FileType::Link { target: b"/mnt/\xff".to_vec() },
        },
    ];
    let mut writer = ManifestWriter::create(store.clone(), &keys, &cluster, id).await.unwrap();
    for name in &names {
        writer.add_name(name).await.unwrap();
    }
    for number in 0..20_000 {
        let index = writer.use_pack(packs[number as usize % 3], 100);
        files.push(file(number, index));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    for entry in &files {
        writer.add_file(entry).await.unwrap();
    }
    assert!(writer.add_file(&files[0]).await.is_err(), "out of order");
    let written = facts(id, &cluster);
    assert!(matches!(Manifest::read_facts(store.clone(), &keys, &cluster, id).await, Err(e) if e.is_not_found()));
    let size = writer.finish(&written, &sizes).await.unwrap();

    assert_eq!(Manifest::read_facts(store.clone(), &keys, &cluster, id).await.unwrap(), written);
    let manifest = Manifest::open(store.clone(), &keys, &cluster, id).await.unwrap();
    assert_eq!(manifest.size(), size);
    assert_eq!(manifest.packs().iter().map(|p| (p.id, p.size)).collect::<HashMap<_, _>>(), sizes);
    assert_eq!(manifest.packs().iter().map(|p| p.used).sum::<u64>(), 2_000_000);
    let mut read = Vec::new();
    let mut blocks = manifest.files();
    while let Some(block) = blocks.next().await.unwrap() {
        read.extend(block);
    }
    assert_eq!(read, files);
    let mut read = Vec::new();
    let mut blocks = manifest.names();
    while let Some(block) = blocks.next().await.unwrap() {
        read.extend(block);
    }
    assert_eq!(read, names);
    for entry in files.iter().step_by(977) {
        assert_eq!(manifest.find(&entry.path).await.unwrap().as_ref(), Some(entry));
    }
    for absent in ["", "a", "data/base/16384/00000001x", "zzz"] {
        assert_eq!(manifest.find(absent.as_bytes()).await.unwrap(), None, "{absent}");
    }
}

#[tokio::test]
async fn a_manifest_under_another_backups_name_is_refused() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let cluster: ClusterName = "main".parse().unwrap();
    let id: BackupId = "20261120T200910Z".parse().unwrap();
    let keys = Keyring::plain();
    let mut writer = ManifestWriter::create(store.clone(), &keys, &cluster, id).await.unwrap();
    writer.add_file(&file(0, 0)).await.unwrap();
    writer.finish(&facts(id.next(), &cluster), &HashMap::new()).await.unwrap();
    let error = Manifest::read_facts(store, &keys, &cluster, id).await.unwrap_err();
    assert!(error.is_damage(), "{error}");
}

proptest::proptest! {
    #[test]
    fn reading_blocks_never_panics(bytes: Vec<u8>) {
        let _ = FileEntry::read_block(&bytes, 2);
        let _ = NameEntry::read_block(&bytes);
    }
}
