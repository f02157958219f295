//! How fast a store takes objects: `cargo run --release -p store --example store_speed -- URL`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring tool")]

use bytes::Bytes;
use std::time::Instant;
use store::{MissingRoot, ObjectPath, StoreOptions, open_store};

#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).expect("the URL of an empty store");
    let mut options = StoreOptions::standard();
    options.local.missing_root = MissingRoot::Create;
    let store = open_store(&url, &options).unwrap();
    let name = |text: String| ObjectPath::new(text).unwrap();
    let mib =
        Bytes::from((0..1 << 20).map(|byte: u32| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>());

    for (label, overlap) in [("one after the other", false), ("finish beside the next write", true)] {
        let begin = Instant::now();
        let mut finishing = None;
        for number in 0..16 {
            let mut writer = store.create(&name(format!("packs/{overlap}/{number}"))).await.unwrap();
            for _ in 0..64 {
                writer.write(mib.clone()).await.unwrap();
            }
            if let Some(before) = finishing.replace(tokio::spawn(writer.finish())) {
                before.await.unwrap().unwrap();
            }
            if !overlap {
                finishing.take().unwrap().await.unwrap().unwrap();
            }
        }
        if let Some(last) = finishing {
            last.await.unwrap().unwrap();
        }
        let seconds = begin.elapsed().as_secs_f64();
        println!("16 objects of 64 MiB, {label}: {:.0} MiB/s", 1024.0 / seconds);
    }

    let small = mib.slice(..4096);
    for workers in [1usize, 16] {
        let begin = Instant::now();
        let tasks = (0..workers).map(|worker| {
            let (store, small) = (store.clone(), small.clone());
            tokio::spawn(async move {
                for number in 0..640 / workers {
                    let name = ObjectPath::new(format!("small/{workers}/{worker}/{number}")).unwrap();
                    store.put(&name, small.clone()).await.unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        println!("4 KiB puts by {workers}: {:.0} a second", 640.0 / begin.elapsed().as_secs_f64());
    }
}
