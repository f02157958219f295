//! What the file system says of data files is not to be believed: times that were set back, files that grew by zeros,
//! names that were used again.

use crate::acts::Act;
use crate::scene::{Kind, Scene};
use std::path::Path;
use std::process::Command;
use testkit::pg::StopMode;

pub(crate) const TOUCHED: Act = Act { name: "modification times", play: play_touched };
pub(crate) const ZEROED: Act = Act { name: "pages of zeros", play: play_zeroed };

/// Sets a file's times to those of another.
fn set_times(path: &Path, like: &Path) {
    let done = Command::new("touch").arg("-r").arg(like).arg(path).status().unwrap();
    assert!(done.success());
}

fn set_date(path: &Path, date: &str) {
    let done = Command::new("touch").args(["-d", date]).arg(path).status().unwrap();
    assert!(done.success());
}

/// A table is changed in place, and its file looks untouched: same size, same or older times.
fn play_touched(scene: &mut Scene, step: usize) {
    if step == 0 {
        scene.sql("CREATE TABLE touched (id int PRIMARY KEY, n int) WITH (fillfactor = 40)");
        scene.sql("INSERT INTO touched SELECT g, 0 FROM generate_series(1, 20000) g; VACUUM FREEZE touched");
        let file = scene.file_of("touched");
        set_date(&file, "2021-03-04 05:06:07");
        return;
    }
    let file = scene.file_of("touched");
    let like = scene.site.dir.join("times");
    std::fs::write(&like, "").unwrap();
    set_times(&like, &file);
    let size = std::fs::metadata(&file).unwrap().len();
    scene.sql(&format!("UPDATE touched SET n = {step} WHERE id % 3000 = {step}"));
    scene.file_of("touched");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), size, "updated within its pages");
    match step {
        1 => set_times(&file, &like),
        2 => set_date(&file, "2001-01-01"),
        _ => set_date(&file, "2037-01-01"),
    }
}

/// A crash between extending a relation and the record that fills the new page leaves zeros, also where an earlier backup
/// has rows. `COPY` leaves them too from 16 on, when it extends by many pages.
fn play_zeroed(scene: &mut Scene, step: usize) {
    match step {
        0 => {
            scene.sql("CREATE TABLE zeroed (id int, t text); CREATE INDEX zeroed_id ON zeroed (id)");
            scene.sql("INSERT INTO zeroed SELECT g, md5(g::text) FROM generate_series(1, 12000) g; VACUUM zeroed");
            scene.sql("CREATE TABLE emptied AS SELECT * FROM zeroed; CREATE TABLE small AS SELECT 1 AS x");
        }
        1 => {
            // 100 pages go, 50 come back as zeros.
            scene.sql("DELETE FROM zeroed WHERE id > 200; VACUUM zeroed; DELETE FROM emptied; VACUUM emptied");
            let grown =
                [("zeroed", 50), ("emptied", 20), ("small", 3)].map(|(name, pages)| (scene.file_of(name), pages));
            scene.while_stopped(|_| {
                for (file, pages) in grown {
                    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
                    file.set_len(file.metadata().unwrap().len() + pages * 8192).unwrap();
                }
            });
        }
        2 => {
            // They are found and filled.
            scene.sql("VACUUM zeroed, emptied, small");
            scene.sql("INSERT INTO zeroed SELECT g, md5(g::text) FROM generate_series(20001, 21000) g");
            scene.sql("COPY emptied FROM PROGRAM 'seq -f ''%g\tfilled'' 1 3000'");
        }
        _ => {
            scene.sql("TRUNCATE emptied; DELETE FROM zeroed; VACUUM zeroed");
            scene.sql("COPY zeroed FROM PROGRAM 'seq -f ''%g\tcopied'' 1 4000'");
            let file = scene.file_of("zeroed");
            scene.while_stopped(|_| {
                let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
                file.set_len(file.metadata().unwrap().len() + 33 * 8192).unwrap();
            });
        }
    }
}

/// A relation is dropped, and the next one gets its file's name: the counter of OIDs is set back, as a wrap around would.
#[test]
fn a_filenode_that_is_used_again() {
    for kind in [Kind::without_index(15).without_checksums(), Kind::indexed(18)] {
        let mut scene = Scene::start(kind, |builder| builder);
        let fill = |table: &str, word: &str, rows: u32| {
            format!(
                "CREATE TABLE {table} (id int, t text);
                 INSERT INTO {table} SELECT g, '{word}' || md5(g::text) FROM generate_series(1, {rows}) g"
            )
        };
        // A range of OIDs that nothing else has used.
        let set_back = |scene: &mut Scene| {
            scene.site.cluster.stop(StopMode::Fast).unwrap();
            let data = scene.site.cluster.data_dir().to_string_lossy().into_owned();
            scene.site.cluster.tool("pg_resetwal", &["-o", "300000", "-D", &data]).unwrap();
            scene.site.cluster.start_again().unwrap();
        };
        set_back(&mut scene);
        scene.sql(&fill("first", "first", 5000));
        scene.sql("VACUUM first");
        let file = scene.file_of("first");
        set_back(&mut scene);
        let whole = scene.whole();
        scene.check(&whole);
        for (number, rows) in [(2, 5000), (3, 9000), (4, 1000)] {
            let dropped = if number == 2 { "first".to_owned() } else { format!("number_{}", number - 1) };
            scene.sql(&format!("DROP TABLE {dropped}; CHECKPOINT; VACUUM pg_class; VACUUM pg_type; VACUUM pg_depend"));
            if number > 2 {
                set_back(&mut scene);
            }
            let table = format!("number_{number}");
            scene.sql(&fill(&table, &table, rows));
            assert_eq!(scene.file_of(&table), file, "the name is used again");
            let taken = scene.backup(&[], 0);
            scene.check(&taken);
        }
        scene.judge();
    }
}
