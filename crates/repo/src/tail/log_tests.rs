//! Logs of tails in a store on disk: they grow, they are torn, they are damaged.

use super::*;
use crate::tail::{list_tail, put_piece, read_tail};
use pg_format::{SystemId, WalSegmentSize};
use std::path::Path;
use store::{LocalStore, StoreOptions};

const LEN: u64 = 200_000;

fn of() -> TailOf {
    let size = WalSegmentSize::new(1 << 20).unwrap();
    TailOf { system_id: SystemId(7), segment: "000000010000000000000003".parse().unwrap(), size }
}

fn name() -> ClusterName {
    "main".parse().unwrap()
}

fn wal(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i / 5 % 251) as u8).collect()
}

fn local(dir: &Path) -> LocalStore {
    LocalStore::open(dir, StoreOptions::standard().local).unwrap()
}

async fn begin(store: &LocalStore, keys: &Keyring, from: u64, plain: &[u8]) -> Option<TailLog> {
    let spare = SpareLog::of_len(store, LEN).await.unwrap().unwrap();
    TailLog::begin(spare, keys, &name(), of(), from, plain, Compression::Zstd(1)).unwrap()
}

#[tokio::test]
async fn a_log_is_a_piece_that_grows() {
    let wal = wal(60_000);
    for keys in [Keyring::plain(), Keyring::for_test()] {
        let dir = tempfile::tempdir().unwrap();
        let store = local(dir.path());
        put_piece(&store, &keys, &name(), of(), 0..1000, &wal[..1000], Compression::None).await.unwrap();
        let mut log = begin(&store, &keys, 900, &wal[900..1100]).await.unwrap();
        for (from, to) in [(1100, 1101), (1101, 9000), (9000, 50_000)] {
            let read = read_tail(&store, &keys, &name(), of()).await.unwrap().unwrap();
            assert_eq!(read, wal[..from]);
            assert!(log.append(&wal[from..to]).unwrap());
            assert_eq!(log.end(), to as u64);
        }
        let listed = list_tail(&store, &name(), SystemId(7), of().segment).await.unwrap();
        assert_eq!(listed.end(), 50_000);
        // What was listed is what is read, also when more came since.
        assert!(log.append(&wal[50_000..]).unwrap());
        let read = crate::tail::read_chain(&store, &keys, of(), &listed).await.unwrap().unwrap();
        assert_eq!(read, wal[..50_000]);
        assert!(!log.append(&vec![7; LEN as usize]).unwrap(), "there is no room for it");
        assert!(begin(&store, &keys, 900, &wal[900..1000]).await.is_none(), "one is there already");
        drop(log);
        // Nothing is left of the one that got no name.
        assert_eq!(std::fs::read_dir(dir.path().join(".tmp~")).unwrap().count(), 0);
        assert_eq!(read_tail(&store, &keys, &name(), of()).await.unwrap().unwrap(), wal);
    }
}

/// Cut or torn in its last frame, it ends before it; changed anywhere else, it is damaged. Never other bytes.
#[tokio::test]
async fn a_torn_end_is_an_end_and_damage_is_damage() {
    let wal = wal(600);
    for keys in [Keyring::plain(), Keyring::for_test()] {
        let dir = tempfile::tempdir().unwrap();
        let store = local(dir.path());
        let mut log = begin(&store, &keys, 0, &wal[..200]).await.unwrap();
        let ends = [log.place as usize, 0, 0];
        assert!(log.append(&wal[200..400]).unwrap());
        let ends = [ends[0], log.place as usize, 0];
        assert!(log.append(&wal[400..]).unwrap());
        let ends = [ends[0], ends[1], log.place as usize];
        let path = dir.path().join(log_path(&name(), of(), 0).as_str());
        let mut whole = std::fs::read(&path).unwrap();
        let read = || async { read_tail(&store, &keys, &name(), of()).await };
        for at in 0..ends[2] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            match read().await {
                Ok(read) => {
                    let read = read.unwrap();
                    assert!(wal.starts_with(&read), "byte {at}");
                    assert!(at >= ends[1] && read.len() == 400, "byte {at}");
                }
                Err(error) => assert!(error.is_damage() && at < ends[1], "byte {at}: {error}"),
            }
        }
        for len in ends[0]..ends[2] {
            let mut cut = whole[..len].to_vec();
            cut.resize(whole.len(), 0);
            std::fs::write(&path, &cut).unwrap();
            let expect = if len >= ends[1] { 400 } else { 200 };
            assert_eq!(read().await.unwrap().unwrap(), wal[..expect], "{len}");
        }
        // Once its end is marked the last frame is known to have been whole; the mark itself nobody misses.
        std::fs::write(&path, &whole).unwrap();
        log.mark().unwrap();
        let marked = log.place as usize;
        log.mark().unwrap();
        assert_eq!(log.place as usize, marked, "one mark is enough");
        whole = std::fs::read(&path).unwrap();
        for at in 0..marked {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            match read().await {
                Ok(read) => assert!(at >= ends[2] && read.unwrap() == wal, "byte {at}"),
                Err(error) => assert!(error.is_damage() && at < ends[2], "byte {at}: {error}"),
            }
        }
        // It goes on behind the mark.
        std::fs::write(&path, &whole).unwrap();
        assert!(log.append(b"more").unwrap());
        assert_eq!(read().await.unwrap().unwrap(), [&wal[..], b"more"].concat());
        let listed = list_tail(&store, &name(), SystemId(7), of().segment).await.unwrap();
        assert_eq!((listed.end(), listed.pieces[0].frames), (604, Some(4)));
        whole = std::fs::read(&path).unwrap();
        // Under another segment's name it is nothing.
        std::fs::write(&path, &whole).unwrap();
        let elsewhere = TailOf { segment: "000000010000000000000004".parse().unwrap(), ..of() };
        let moved = dir.path().join(log_path(&name(), elsewhere, 0).as_str());
        std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
        std::fs::rename(&path, &moved).unwrap();
        assert!(read_tail(&store, &keys, &name(), elsewhere).await.unwrap_err().is_damage());
    }
}

/// What is not in the store any more is not acknowledged.
#[tokio::test]
async fn a_log_whose_file_or_store_is_gone_fails() {
    let (keys, wal) = (Keyring::plain(), wal(600));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repository");
    std::fs::create_dir(&root).unwrap();
    let store = local(&root);
    let mut log = begin(&store, &keys, 0, &wal[..200]).await.unwrap();
    store.delete(&log_path(&name(), of(), 0)).await.unwrap();
    assert!(log.append(&wal[200..400]).is_err());
    let mut log = begin(&store, &keys, 0, &wal[..200]).await.unwrap();
    assert!(log.append(&wal[200..400]).unwrap());
    std::fs::rename(&root, dir.path().join("away")).unwrap();
    assert!(log.append(&wal[400..]).is_err());
}
