//! Acts on one stage: many traps are laid between the same backups, so that a server is started once for all of them.

use crate::scene::{Kind, Scene};
use testkit::pg::ClusterBuilder;

/// Something that is done to a cluster in steps: step 0 before the first backup, each further one before the next.
pub(crate) struct Act {
    pub(crate) name: &'static str,
    pub(crate) play: fn(&mut Scene, usize),
}

/// The number of backups after the first one.
pub(crate) const STEPS: usize = 3;

/// Plays acts of SQL: for each step the database and the statements.
pub(crate) fn play_sql(scene: &Scene, script: &[(usize, &str, &str)], step: usize) {
    for (_, database, sql) in script.iter().filter(|(at, _, _)| *at == step) {
        scene.sql_in(database, sql);
    }
}

/// Plays all acts, with a backup after each step that is restored and compared; in the end PostgreSQL judges the last.
pub(crate) fn perform(kind: Kind, more: impl FnOnce(ClusterBuilder) -> ClusterBuilder, acts: &[Act]) -> Scene {
    let mut scene = Scene::start(kind, more);
    let begin = std::time::Instant::now();
    let play = |scene: &mut Scene, step: usize| {
        for act in acts {
            println!("{:?}: step {step} of {}", begin.elapsed(), act.name);
            (act.play)(scene, step);
        }
        // As a cluster between two backups does, it writes pages at other times than at the start of a backup.
        scene.sql("CHECKPOINT");
    };
    play(&mut scene, 0);
    let whole = scene.whole();
    scene.check(&whole);
    for step in 1..=STEPS {
        play(&mut scene, step);
        let taken = scene.incremental();
        println!("{:?}: {taken:?}", begin.elapsed());
        scene.check(&taken);
        assert!(taken.pages_stored < whole.pages_stored, "{taken:?} {whole:?}");
    }
    // With nothing in between a backup has next to nothing to store, once it has left packs that are mostly dead.
    let mut idle = scene.incremental();
    for _ in 0..2 {
        println!("{:?}: idle {idle:?}", begin.elapsed());
        idle = scene.incremental();
    }
    println!("{:?}: idle {idle:?}", begin.elapsed());
    scene.check(&idle);
    assert!(idle.pages_stored * 50 < whole.pages_stored, "{idle:?} after {whole:?}");
    assert!(idle.bytes_added * 50 < whole.bytes_added, "{idle:?} after {whole:?}");
    // The first one, which the others were built on, and one of the middle go; the rest is what it was.
    scene.delete(2);
    scene.delete(0);
    scene.check(&idle);
    scene.judge();
    println!("{:?}: judged", begin.elapsed());
    // Each of them is whole by itself, the older ones too.
    scene.verify();
    println!("{:?}: verified", begin.elapsed());
    scene
}
