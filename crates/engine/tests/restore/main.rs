//! Restores of real clusters: every kind of target, tablespaces, timelines, and what is refused beforehand.

#[allow(dead_code, reason = "the backup tests use the rest of it")]
#[path = "../backup/support.rs"]
mod archived;
mod support;

use archived::{Archived, Result, context};
use engine::restore::{
    self, ExistingFiles, RecoveryTarget, RestoreRequest, TablespaceMapping, TargetAction, TimelineChoice,
};
use pg_format::Timeline;
use std::os::unix::fs::PermissionsExt;
use store::Store;
use support::{lay_out_wal, mode_of, refusal, request, restored, start, switch, wait_for_wal, wait_promoted};
use testkit::compare::compare_dirs;
use testkit::pg::StopMode;

/// One statement that commits, and where it lies.
struct Step {
    xid: u32,
    /// Where WAL ended after it.
    lsn: pg_format::Lsn,
    /// A moment between it and the next.
    time: jiff::Timestamp,
}

fn step(server: &testkit::pg::Cluster, id: u32) -> Result<Step> {
    let sql = format!("INSERT INTO t VALUES ({id}) RETURNING pg_current_xact_id()::xid::text::bigint");
    let xid = server.sql(&sql)?.parse()?;
    std::thread::sleep(std::time::Duration::from_millis(30));
    let at = server.sql("SELECT pg_current_wal_insert_lsn(), to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")?;
    std::thread::sleep(std::time::Duration::from_millis(30));
    let (lsn, time) = at.split_once('|').expect("two columns");
    Ok(Step { xid, lsn: lsn.parse()?, time: time.parse()? })
}

fn ids(server: &testkit::pg::Cluster) -> Result<String> {
    server.sql("SELECT string_agg(id::text, ',' ORDER BY id) FROM t")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_target_is_reached_exactly() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    server.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")?;
    let first = archived.backup().await?;
    let two = step(server, 2)?;
    server.sql("SELECT pg_create_restore_point('after two')")?;
    let three = step(server, 3)?;
    switch(&archived).await?;
    let second = archived.backup().await?;
    let four = step(server, 4)?;
    let five = step(server, 5)?;
    server.sql("SELECT pg_create_restore_point('the end')")?;
    step(server, 6)?;
    switch(&archived).await?;
    lay_out_wal(&archived).await?;

    let cases: [(&str, RecoveryTarget, bool, _, &str); 8] = [
        ("latest", RecoveryTarget::Latest, false, &second, "1,2,3,4,5,6"),
        ("immediate", RecoveryTarget::Immediate, false, &second, "1,2,3"),
        ("time", RecoveryTarget::Time(four.time), false, &second, "1,2,3,4"),
        ("early time", RecoveryTarget::Time(two.time), false, &first, "1,2"),
        ("xid", RecoveryTarget::Xid(four.xid), false, &second, "1,2,3,4"),
        ("before xid", RecoveryTarget::Xid(three.xid), true, &first, "1,2"),
        ("before lsn", RecoveryTarget::Lsn(five.lsn), true, &second, "1,2,3,4,5"),
        ("point", RecoveryTarget::RestorePoint("after two".into()), false, &first, "1,2"),
    ];
    for (index, (name, target, exclusive, backup, expect)) in cases.into_iter().enumerate() {
        let request = RestoreRequest { exclusive, ..request(&archived, &index.to_string(), target)? };
        let report = restored(&archived, &request).await.map_err(|error| error.context(name))?;
        assert_eq!(report.backup, backup.backup, "{name}");
        let auto = std::fs::read_to_string(request.target_dir.join("postgresql.auto.conf"))?;
        assert!(auto.contains("recovery_target_timeline = '1'"), "{auto}");
        let copy = start(&request.target_dir)?;
        wait_promoted(&copy)?;
        assert_eq!(ids(&copy)?, expect, "{name}: {}", copy.log_tail());
        assert_eq!(copy.sql("SHOW archive_mode")?, "off", "{name}");
        drop(copy);
        std::fs::remove_dir_all(&request.target_dir)?;
    }

    // Paused, the server waits at its target and answers queries.
    let paused = RestoreRequest {
        action: TargetAction::Pause,
        ..request(&archived, "paused", RecoveryTarget::RestorePoint("the end".into()))?
    };
    restored(&archived, &paused).await?;
    let copy = start(&paused.target_dir)?;
    copy.wait_for("SELECT pg_get_wal_replay_pause_state()", "paused", std::time::Duration::from_secs(60))?;
    assert_eq!(ids(&copy)?, "1,2,3,4,5");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_succeed_is_refused_before_a_byte_is_written() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    let latest = request(&archived, "new", RecoveryTarget::Latest)?;
    let says = async |request: &RestoreRequest, parts: &[&str]| -> Result {
        let text = refusal(&archived, request).await?;
        for part in parts {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        Ok(())
    };
    says(&latest, &["has no backup", "pgkeep backup"]).await?;
    let early: jiff::Timestamp = "2020-01-01T00:00:00Z".parse()?;
    server.sql("CREATE TABLE t (id int)")?;
    server.sql("SELECT pg_create_restore_point('too early')")?;
    let too_early = step(server, 1)?;
    let backup = archived.backup().await?;
    let two = step(server, 2)?;
    server.sql("SELECT pg_create_restore_point('before the drop')")?;
    switch(&archived).await?;
    for id in 3..7 {
        step(server, id)?;
        switch(&archived).await?;
    }
    server.sql("SELECT pg_create_restore_point('behind')")?;
    switch(&archived).await?;
    let at = |target: RecoveryTarget| RestoreRequest { target, ..latest.clone() };
    let first = backup.stop_lsn.to_string();
    says(&at(RecoveryTarget::Time(early)), &["lies before the end of the first backup", &first]).await?;
    says(&at(RecoveryTarget::Lsn(pg_format::Lsn(1))), &["lies before the end of the first backup", &first]).await?;
    let late = jiff::Timestamp::now() + std::time::Duration::from_secs(60);
    says(&at(RecoveryTarget::Time(late)), &["lies beyond the WAL", "the last transaction in it ended at 20"]).await?;
    says(&at(RecoveryTarget::Lsn(pg_format::Lsn(1 << 50))), &["lies beyond the WAL in the repository"]).await?;
    says(&at(RecoveryTarget::Xid(4_000_000_000)), &["does not end anywhere", "can be recovered from"]).await?;
    says(&at(RecoveryTarget::Xid(too_early.xid)), &["does not end anywhere", &first]).await?;
    says(&at(RecoveryTarget::RestorePoint("before".into())), &["no restore point \"before\"", "\"before the drop\""])
        .await?;
    says(&at(RecoveryTarget::RestorePoint("too early".into())), &["no restore point"]).await?;
    let other = RestoreRequest { timeline: TimelineChoice::Number(Timeline(7)), ..latest.clone() };
    says(&other, &["timeline 7 cannot be reached", "of these timelines: 1"]).await?;
    let unknown = RestoreRequest { backup: Some("20200101T000000Z".parse()?), ..latest.clone() };
    says(&unknown, &["has no backup 20200101T000000Z", &backup.backup.to_string()]).await?;
    let running = RestoreRequest { target_dir: server.data_dir().to_owned(), ..latest.clone() };
    says(&running, &["in use by a running server"]).await?;
    let forced = RestoreRequest { existing: ExistingFiles::Remove, ..running };
    says(&forced, &["in use by a running server"]).await?;
    std::fs::create_dir_all(&latest.target_dir)?;
    std::fs::write(latest.target_dir.join("mine"), "x")?;
    says(&latest, &["is not empty", "\"mine\""]).await?;
    std::fs::remove_file(latest.target_dir.join("mine"))?;
    let nobody = engine::restore::OwnerName { user: "no-such-user".into(), group: None };
    if testkit::pg::server_user()?.must_switch {
        says(&RestoreRequest { owner: Some(nobody), ..latest.clone() }, &["no user \"no-such-user\""]).await?;
    }

    // A gap: targets before it can be reached, later ones cannot.
    let cluster = archived.cluster().await?;
    let objects = cluster.repository().store().list_page(Some(&cluster.name().wal_prefix()), None, 1000).await?;
    let mut segments: Vec<_> = objects.into_iter().filter(|object| object.path.name().len() == 24).collect();
    segments.sort_by(|a, b| a.path.cmp(&b.path));
    let missing = segments[segments.len() - 3].path.clone();
    let bytes = archived.memory.get(&missing, 1 << 30).await?;
    archived.memory.delete(&missing).await?;
    says(&latest, &["is not in the repository", missing.name()]).await?;
    restore::plan(&context(), &cluster, &at(RecoveryTarget::Time(two.time))).await?;
    let beyond = jiff::Timestamp::now();
    says(&at(RecoveryTarget::Time(beyond)), &["is not in the repository", missing.name()]).await?;
    let point = |name: &str| at(RecoveryTarget::RestorePoint(name.into()));
    says(&point("behind"), &["\"behind\" (LSN", "lies behind a gap", missing.name(), "push the segments"]).await?;
    says(&point("nowhere"), &["no restore point \"nowhere\"", "missing from", missing.name()]).await?;
    restore::plan(&context(), &cluster, &point("before the drop")).await?;
    // Damage in a segment is met likewise.
    let mut damaged = bytes.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    archived.memory.damage(&missing, damaged.into());
    says(&latest, &["is damaged", missing.name()]).await?;
    archived.memory.damage(&missing, bytes);
    let plan = restore::plan(&context(), &cluster, &latest).await?;
    assert_eq!(plan.wal.last, segments[segments.len() - 1].path.name());
    assert!(plan.places.iter().all(|place| place.needed_bytes > 1 << 20 && place.free_bytes > place.needed_bytes));
    serde_json::to_string(&plan)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_modes_and_configuration_come_back() -> Result {
    let mut archived = Archived::start().await?;
    let etc = archived.server.make_dir("etc")?;
    let space = archived.server.make_dir("space")?;
    archived.server.stop(StopMode::Fast)?;
    // As Debian has it: all configuration outside, and pg_wal on another disk.
    let data = archived.server.data_dir().to_owned();
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(data.join(name), etc.join(name))?;
    }
    std::fs::create_dir(etc.join("conf.d"))?;
    std::fs::write(etc.join("conf.d/extra.conf"), "work_mem = '5MB'\nrecovery_target_name = 'left behind'\n")?;
    let conf = std::fs::read_to_string(data.join("postgresql.conf"))?;
    let at = etc.display();
    let more = format!(
        "{conf}\ndata_directory = '{}'\nhba_file = '{at}/pg_hba.conf'\nident_file = '{at}/pg_ident.conf'\ninclude_dir '{at}/conf.d'\nautovacuum = off\n",
        data.display()
    );
    std::fs::write(data.join("postgresql.conf"), more)?;
    let elsewhere = archived.server.make_dir("elsewhere")?.join("pg_wal");
    std::fs::rename(data.join("pg_wal"), &elsewhere)?;
    std::os::unix::fs::symlink(&elsewhere, data.join("pg_wal"))?;
    std::fs::write(data.join("odd file"), "mine")?;
    std::fs::set_permissions(data.join("odd file"), std::fs::Permissions::from_mode(0o4751))?;
    archived.server.user().own(archived.server.home())?;
    std::fs::set_permissions(data.join("odd file"), std::fs::Permissions::from_mode(0o4751))?;
    archived.server.start_again()?;
    let server = &archived.server;
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
    server.sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE here LOCATION ''")?;
    server.sql("CREATE TABLE t (id int) TABLESPACE fast; INSERT INTO t SELECT generate_series(1, 5000)")?;
    server.sql("CREATE TABLE u (id int) TABLESPACE here; INSERT INTO u SELECT generate_series(1, 5000)")?;
    server.sql("CREATE TABLE big AS SELECT g, md5(g::text) AS t FROM generate_series(1, 100000) g")?;
    server.sql("CREATE UNLOGGED TABLE quick AS SELECT generate_series(1, 1000) AS id")?;
    archived.backup().await?;
    let server = &archived.server;
    server.sql("INSERT INTO t SELECT generate_series(1, 5000); DELETE FROM big WHERE g % 3 = 0")?;
    switch(&archived).await?;
    lay_out_wal(&archived).await?;

    let plain = request(&archived, "new", RecoveryTarget::Latest)?;
    let refused = refusal(&archived, &plain).await?;
    assert!(refused.contains("tablespace fast's directory") && refused.contains("--tablespace"), "{refused}");
    let unknown = TablespaceMapping { from: "slow".into(), to: "/tmp/x".into() };
    let refused = refusal(&archived, &RestoreRequest { tablespaces: vec![unknown], ..plain.clone() }).await?;
    assert!(refused.contains("no tablespace \"slow\"") && refused.contains("fast (OID"), "{refused}");
    let inside = TablespaceMapping { from: "fast".into(), to: plain.target_dir.join("x") };
    let refused = refusal(&archived, &RestoreRequest { tablespaces: vec![inside], ..plain.clone() }).await?;
    assert!(refused.contains("would lie in each other"), "{refused}");

    let new_space = archived.server.make_dir("restored")?.join("space");
    let mapping = TablespaceMapping { from: "fast".into(), to: new_space.clone() };
    let wanted = RestoreRequest { tablespaces: vec![mapping], ..plain };
    let report = restored(&archived, &wanted).await?;
    let new = &wanted.target_dir;
    assert_eq!(mode_of(new.join("odd file"))?, 0o4751);
    assert_eq!(mode_of(new.clone())?, 0o700);
    assert_eq!(std::fs::read_to_string(new.join("odd file"))?, "mine");
    assert!(!std::fs::symlink_metadata(new.join("pg_wal"))?.is_symlink(), "nothing is written to the origin's WAL");
    assert!(report.warnings.iter().any(|text| text.contains("pgkeep-config")), "{:?}", report.warnings);
    let conf = std::fs::read_to_string(new.join("postgresql.conf"))?;
    assert!(conf.contains(&format!("#data_directory = '{}'", data.display())), "the origin's place is taken out");
    let link = std::fs::read_dir(new.join("pg_tblspc"))?.flatten().find(|entry| entry.path().is_symlink());
    assert_eq!(std::fs::read_link(link.expect("a link").path())?, new_space);
    let map = std::fs::read_to_string(new.join("tablespace_map"))?;
    assert!(map.contains(&format!(" {}\n", new_space.display())), "{map}");

    let mut copy = start(new)?;
    wait_promoted(&copy)?;
    assert_eq!(copy.sql("SHOW work_mem")?, "5MB", "includes work");
    assert_eq!(copy.sql("SHOW data_directory")?, new.display().to_string());
    assert_eq!(copy.sql("SHOW hba_file")?, new.join("pg_hba.conf").display().to_string());
    for sql in [
        "SELECT count(*) FROM t",
        "SELECT count(*) FROM u",
        "SELECT count(*), sum(g), md5(string_agg(t, '' ORDER BY g)) FROM big",
    ] {
        assert_eq!(copy.sql(sql)?, archived.server.sql(sql)?, "{sql}");
    }
    assert_eq!(copy.sql("SELECT count(*) FROM quick")?, "0", "unlogged tables are emptied");
    copy.stop(StopMode::Fast)?;
    archived.server.stop(StopMode::Fast)?;
    let mut compared = compare_dirs(&data, new)?;
    compared.differences.retain(|difference| !difference.path.starts_with("pgkeep-config/"));
    assert!(compared.pages > 3000, "{compared:?}");
    compared.require_equal()?;
    testkit::compare::checksums(&copy)?;
    copy.start_again()?;
    testkit::compare::amcheck(&copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn timelines_are_followed_and_dead_ends_are_told() -> Result {
    let mut archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE t (id int)")?;
    archived.backup().await?;
    let one = step(&archived.server, 1)?;
    step(&archived.server, 2)?;
    switch(&archived).await?;
    lay_out_wal(&archived).await?;
    // Back to before 2; this copy becomes production, and archives.
    let back = RestoreRequest { archive: true, ..request(&archived, "back", RecoveryTarget::Time(one.time))? };
    restored(&archived, &back).await?;
    archived.server.stop(StopMode::Fast)?;
    let copy = start(&back.target_dir)?;
    wait_promoted(&copy)?;
    assert_eq!(copy.sql("SHOW archive_mode")?, "on");
    wait_for_wal(&archived, "00000002.history").await?;
    let three = step(&copy, 3)?;
    let segment = copy.switch_wal()?;
    step(&copy, 4)?;
    let last = copy.switch_wal()?;
    wait_for_wal(&archived, &segment).await?;
    wait_for_wal(&archived, &last).await?;
    drop(copy);
    lay_out_wal(&archived).await?;
    for (name, timeline, target, expect, followed) in [
        ("production", TimelineChoice::Latest, RecoveryTarget::Latest, "1,3,4", Timeline(2)),
        ("production-time", TimelineChoice::Latest, RecoveryTarget::Time(three.time), "1,3", Timeline(2)),
        ("current", TimelineChoice::Current, RecoveryTarget::Latest, "1,2", Timeline(1)),
        ("number", TimelineChoice::Number(Timeline(1)), RecoveryTarget::Latest, "1,2", Timeline(1)),
    ] {
        let wanted = RestoreRequest { timeline, ..request(&archived, name, target)? };
        let report = restored(&archived, &wanted).await.map_err(|error| error.context(name))?;
        assert_eq!(report.timeline, followed, "{name}");
        let copy = start(&wanted.target_dir)?;
        wait_promoted(&copy)?;
        assert_eq!(ids(&copy)?, expect, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_ends_early_leaves_nothing_that_starts() -> Result {
    let archived = Archived::start().await?;
    archived.server.sql("CREATE TABLE t (id int)")?;
    archived.backup().await?;
    lay_out_wal(&archived).await?;
    let cluster = archived.cluster().await?;
    let wanted = request(&archived, "new", RecoveryTarget::Immediate)?;
    let control = wanted.target_dir.join("global/pg_control");
    for phase in ["restoring files", "making it durable"] {
        let request = RestoreRequest { existing: ExistingFiles::Remove, ..wanted.clone() };
        let plan = restore::plan(&context(), &cluster, &request).await?;
        let token = tokio_util::sync::CancellationToken::new();
        let cancel = token.clone();
        let ctx = engine::Context { cancel: token, ..archived::at_phase(phase, move || cancel.cancel()) };
        let result = restore::apply(&ctx, &cluster, &plan).await;
        assert!(matches!(result, Err(engine::EngineError::Cancelled)), "{phase}: {result:?}");
        assert!(!control.exists(), "{phase}");
    }
    assert!(refusal(&archived, &wanted).await?.contains("is not empty"));
    let again = RestoreRequest { existing: ExistingFiles::Remove, ..wanted };
    restored_over(&archived, &again).await?;
    assert!(control.exists());
    let copy = start(&again.target_dir)?;
    wait_promoted(&copy)?;
    assert_eq!(ids(&copy)?, "");
    Ok(())
}

async fn restored_over(archived: &Archived, request: &RestoreRequest) -> Result {
    let cluster = archived.cluster().await?;
    let plan = restore::plan(&context(), &cluster, request).await?;
    restore::apply(&context(), &cluster, &plan).await?;
    Ok(())
}

/// Stops a server that the engine started, whatever becomes of the test.
struct Running<'a>(&'a testkit::pg::Cluster, String);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.0.tool("pg_ctl", &["stop", "-s", "-m", "immediate", "-D", &self.1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_is_started_beside_its_origin() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    // What would make it meet the origin, if it were not told otherwise.
    server.append_conf("shared_preload_libraries", "")?;
    server.sql("CREATE TABLE t (id int)")?;
    archived.backup().await?;
    let one = step(server, 1)?;
    step(server, 2)?;
    switch(&archived).await?;
    lay_out_wal(&archived).await?;
    let options = restore::StartOptions {
        bin_dirs: vec![server.install().bin_dir().to_owned()],
        port: None,
        listen_addresses: String::new(),
        timeout: std::time::Duration::from_secs(60),
    };
    let query = |started: &restore::StartedServer, sql: &str| {
        let conninfo = format!("{} user=postgres", started.conninfo);
        server.tool("psql", &["-AtXq", "-d", &conninfo, "-c", sql]).map(|text| text.trim().to_owned())
    };
    let ids = "SELECT string_agg(id::text, ',' ORDER BY id) FROM t";
    for (action, state) in [
        (TargetAction::Promote, restore::StartedState::Promoted),
        (TargetAction::Pause, restore::StartedState::Paused),
        (TargetAction::Shutdown, restore::StartedState::ShutDown),
    ] {
        // A name that a shell would take apart.
        let name = format!("{}: it's new", action.as_str());
        let wanted = RestoreRequest { action, ..request(&archived, &name, RecoveryTarget::Time(one.time))? };
        restored(&archived, &wanted).await?;
        let _running = Running(server, wanted.target_dir.display().to_string());
        let started = restore::start(&context(), &wanted.target_dir, &options).await?;
        assert_eq!(started.state, state);
        assert!(started.warnings.is_empty(), "{:?}", started.warnings);
        assert!(started.stopped_at.as_ref().is_some_and(|text| text.contains("before commit")), "{started:?}");
        if action != TargetAction::Shutdown {
            assert_eq!(query(&started, ids)?, "1", "{action:?}");
            assert_ne!(started.port, server.port());
            assert_eq!(query(&started, "SHOW archive_mode")?, "off");
            let again = restore::start(&context(), &wanted.target_dir, &options).await.unwrap_err().to_string();
            assert!(again.contains("in use by a running server"), "{again}");
        }
        if action == TargetAction::Promote {
            assert!(started.replayed_lsn.is_some() && started.replayed_time.is_some(), "{started:?}");
        }
    }

    // WAL that is gone by the time the server wants it: said, with its log.
    let wanted = request(&archived, "gone", RecoveryTarget::Latest)?;
    let wanted = RestoreRequest { restore_command: "exit 126".into(), ..wanted };
    restored(&archived, &wanted).await?;
    let _running = Running(server, wanted.target_dir.display().to_string());
    let error = restore::start(&context(), &wanted.target_dir, &options).await.unwrap_err().to_string();
    assert!(error.contains("did not start") && error.contains("FATAL"), "{error}");
    let none = restore::StartOptions { bin_dirs: Vec::new(), ..options };
    let error = restore::start(&context(), &wanted.target_dir, &none).await.unwrap_err().to_string();
    assert!(error.contains("PostgreSQL 15 is not on this host"), "{error}");
    Ok(())
}

/// Pages that changed at many times lie in many packs; there are more of them than are held at once, in several files.
#[tokio::test(flavor = "multi_thread")]
async fn scattered_pages_of_many_backups_come_together() -> Result {
    let archived = Archived::start().await?;
    let server = &archived.server;
    // About a row on each page.
    for table in ["a", "b", "c"] {
        server.sql(&format!(
            "CREATE TABLE {table} (id int, n int, fill text) WITH (fillfactor = 50); \
             ALTER TABLE {table} ALTER fill SET STORAGE PLAIN; \
             INSERT INTO {table} SELECT g, 0, repeat(chr(65 + g % 26), 3500) FROM generate_series(1, 2500) g"
        ))?;
    }
    archived.backup().await?;
    let mut last = None;
    for round in 1..=4 {
        for table in ["a", "b", "c"] {
            server.sql(&format!("UPDATE {table} SET n = {round} WHERE id % 5 = {round} OR id % 41 = {round}"))?;
        }
        last = Some(archived.backup().await?);
    }
    let last = last.expect("four of them");
    switch(&archived).await?;
    lay_out_wal(&archived).await?;
    let sum = "SELECT count(*), sum(n), sum(hashtext(id || ' ' || n || fill)) FROM \
               (SELECT * FROM a UNION ALL SELECT * FROM b UNION ALL SELECT * FROM c) all_of_them";
    let request = request(&archived, "r", RecoveryTarget::Immediate)?;
    let report = restored(&archived, &request).await?;
    assert_eq!(report.backup, last.backup);
    let copy = start(&request.target_dir)?;
    wait_promoted(&copy)?;
    assert_eq!(copy.sql(sum)?, server.sql(sum)?);
    Ok(())
}
