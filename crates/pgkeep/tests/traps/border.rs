//! Relations that are cut and extended across the border of their segment files (1 GiB).
//!
//! The relation is made long by zeros, as a crash after extending it leaves them; only the rows near its ends and its
//! borders are written, so that this takes seconds.

use crate::scene::{Kind, Scene};
use std::path::{Path, PathBuf};

const SEGMENT_BLOCKS: u64 = 131_072;
const BLOCK: u64 = 8192;

/// Extends the relation by zeros to this many blocks.
fn extend(scene: &mut Scene, file: &Path, blocks: u64) {
    scene.while_stopped(|cluster| {
        for segment in 0..=(blocks - 1) / SEGMENT_BLOCKS {
            let path = segment_path(file, segment);
            let new = !path.exists();
            let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
            let wanted = (blocks - segment * SEGMENT_BLOCKS).min(SEGMENT_BLOCKS) * BLOCK;
            assert!(file.metadata().unwrap().len() <= wanted);
            file.set_len(wanted).unwrap();
            if new {
                cluster.user().own(&path).unwrap();
            }
        }
    });
}

fn segment_path(file: &Path, segment: u64) -> PathBuf {
    if segment == 0 { file.to_owned() } else { PathBuf::from(format!("{}.{segment}", file.display())) }
}

/// One row on each new page at the end of the relation.
fn rows(scene: &Scene, from: u32, count: u32) {
    let to = from + count - 1;
    scene.sql(&format!("INSERT INTO long SELECT g, repeat(md5(g::text), 240) FROM generate_series({from}, {to}) g"));
}

fn blocks(scene: &Scene) -> u64 {
    scene.sql("SELECT pg_relation_size('long') / 8192").parse().unwrap()
}

fn step(scene: &mut Scene, what: &str) {
    let taken = scene.incremental();
    println!("{what}: {} blocks, {taken:?}", blocks(scene));
    scene.check(&taken);
    assert!(taken.pages_stored < SEGMENT_BLOCKS / 2, "{taken:?}");
}

fn cut_and_extended(kind: Kind) {
    let mut scene = Scene::start(kind, |builder| builder);
    scene.sql("CREATE TABLE long (id int, t text); ALTER TABLE long ALTER t SET STORAGE plain");
    scene.sql("CREATE INDEX long_id ON long (id)");
    rows(&scene, 1, 30);
    let file = scene.file_of("long");
    extend(&mut scene, &file, SEGMENT_BLOCKS - 20);
    // Without a free space map rows go to the end.
    rows(&scene, 1000, 60);
    assert!(blocks(&scene) > SEGMENT_BLOCKS + 30, "{}", blocks(&scene));
    scene.sql("VACUUM (TRUNCATE off) long");
    let whole = scene.whole();
    scene.check(&whole);

    // Pages on both sides of the border change.
    scene.sql("UPDATE long SET id = id WHERE id BETWEEN 1015 AND 1025; DELETE FROM long WHERE id > 1040");
    scene.sql("VACUUM (INDEX_CLEANUP on) long");
    assert!(blocks(&scene) > SEGMENT_BLOCKS);
    step(&mut scene, "changed on both sides of the border");

    // Below the border, then over it again by zeros where an earlier backup has rows.
    scene.sql("DELETE FROM long WHERE id > 20; VACUUM (INDEX_CLEANUP on) long");
    assert!(blocks(&scene) < 100, "{}", blocks(&scene));
    let second = std::fs::metadata(segment_path(&file, 1)).unwrap();
    assert_eq!(second.len(), 0, "PostgreSQL keeps the file of a segment that it no longer needs");
    extend(&mut scene, &file, SEGMENT_BLOCKS + 25);
    step(&mut scene, "cut and extended by zeros");

    // Filled behind the zeros, cut, extended and cut again between two backups.
    rows(&scene, 2000, 10);
    scene.sql("DELETE FROM long WHERE id > 25; VACUUM (INDEX_CLEANUP on) long");
    extend(&mut scene, &file, SEGMENT_BLOCKS + 3);
    rows(&scene, 3000, 5);
    scene.sql("DELETE FROM long WHERE id > 3002; VACUUM (INDEX_CLEANUP on) long");
    assert!(blocks(&scene) > SEGMENT_BLOCKS);
    step(&mut scene, "cut, extended, cut");

    scene.sql("DELETE FROM long WHERE id > 10; VACUUM (INDEX_CLEANUP on) long");
    scene.sql("CHECKPOINT");
    rows(&scene, 5000, 40);
    step(&mut scene, "cut to the first segment and grown in it");
    scene.judge();
}

#[test]
fn across_the_border_of_segments_by_page_lsn() {
    cut_and_extended(Kind::without_index(15));
}

#[test]
fn across_the_border_of_segments_by_summaries() {
    cut_and_extended(Kind::without_index(17).without_checksums());
}

#[test]
fn across_the_border_of_segments_by_index() {
    cut_and_extended(Kind::indexed(16));
}
