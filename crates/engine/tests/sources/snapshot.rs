//! Backups of frozen copies: made in one moment or not, released whatever happens.

use super::archived::{Result, at_phase, context, options};
use super::fill;
use super::site::{Site, hint_of};
use engine::EngineError;
use engine::backup::{BackupOptions, SnapshotGuarantee, SnapshotOptions, SourceOptions};
use engine::restore::{RecoveryTarget, RestoreRequest};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::compare::{amcheck, checksums};
use testkit::pg::StopMode;
use tokio_util::sync::CancellationToken;

/// A "volume manager" that copies files, one volume after the other.
struct Copier<'a> {
    site: &'a Site,
    copy: PathBuf,
    space: PathBuf,
}

impl<'a> Copier<'a> {
    fn new(site: &'a Site) -> Result<Self> {
        let copy = site.server.make_dir("frozen")?;
        let space = std::fs::read_link(
            std::fs::read_dir(site.server.data_dir().join("pg_tblspc"))?.next().expect("one tablespace")?.path(),
        )?;
        Ok(Self { site, copy, space })
    }

    fn data(&self) -> String {
        format!("cp -a {} {}/data", self.site.server.data_dir().display(), self.copy.display())
    }

    fn tablespace(&self) -> String {
        format!("cp -a {} {}/space", self.space.display(), self.copy.display())
    }

    fn sql(&self, sql: &str) -> Result<String> {
        let psql = self.site.server.bin("psql")?;
        Ok(format!("{} -qXd '{}' -c \"{sql}\"", psql.display(), self.site.server.conninfo()))
    }

    fn options(&self, freeze: &[String], guarantee: SnapshotGuarantee) -> BackupOptions {
        let snapshot = SnapshotOptions {
            freeze: freeze.join(" && "),
            release: format!("rm -rf {0}/data {0}/space && echo x >> {0}/released", self.copy.display()),
            directory: self.copy.join("data"),
            maps: vec![(self.space.clone(), self.copy.join("space"))],
            guarantee,
            command_time_max: Duration::from_secs(120),
        };
        BackupOptions { source: SourceOptions::Snapshot(snapshot), standalone: true, ..options() }
    }

    /// How often a copy was released; the copy is gone.
    fn released(&self) -> usize {
        assert!(!self.copy.join("data").exists() && !self.copy.join("space").exists());
        std::fs::read_to_string(self.copy.join("released")).map_or(0, |text| text.lines().count())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_need_not_be_of_one_moment_within_a_backup() -> Result {
    let site = Site::start(15, &[("autovacuum", "off")]).await?;
    fill(&site)?;
    let copier = Copier::new(&site)?;
    let change = copier.sql("UPDATE there SET x = x + 1; UPDATE big SET n = n + 1 WHERE n % 300 = 1; CHECKPOINT")?;
    let freeze = [copier.data(), change.clone(), copier.tablespace()];
    let report = site.backup(&copier.options(&freeze, SnapshotGuarantee::Backup)).await?;
    assert_eq!((report.source, copier.released()), ("snapshot", 1));
    assert!(report.warnings.is_empty() && report.damaged.is_empty(), "{report:?}");
    site.comes_up_equal("copy", RecoveryTarget::Latest).await?;

    // Promised to be of one moment, the same copy is found out.
    let error = site.backup(&copier.options(&freeze, SnapshotGuarantee::CrashConsistent)).await.unwrap_err();
    assert!(hint_of(&error).contains("not of one moment"), "{}", hint_of(&error));
    assert_eq!(copier.released(), 2);

    // And one that is of one moment, because nothing moves, recovers like after a crash.
    site.server.sql("INSERT INTO there SELECT generate_series(1, 3000)")?;
    let still = [copier.data(), copier.tablespace()];
    let report = site.backup(&copier.options(&still, SnapshotGuarantee::CrashConsistent)).await?;
    assert!(report.standalone && report.source == "snapshot" && copier.released() == 3, "{report:?}");
    site.comes_up_equal("crashed", RecoveryTarget::Latest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_copy_is_released_whatever_happens() -> Result {
    let site = Site::start(15, &[]).await?;
    fill(&site)?;
    let copier = Copier::new(&site)?;
    let good = [copier.data(), copier.tablespace()];
    let backup = SnapshotGuarantee::Backup;
    let fails = |options: BackupOptions| {
        let site = &site;
        async move { hint_of(&site.backup(&options).await.unwrap_err()) }
    };
    let text = fails(copier.options(&[copier.data(), "echo the volume is busy >&2; exit 7".into()], backup)).await;
    assert!(text.contains("exit status: 7") && text.contains("the volume is busy"), "{text}");
    assert_eq!(copier.released(), 1, "half of it was done");

    let mut hangs = copier.options(&["sleep 1000".into()], backup);
    if let SourceOptions::Snapshot(snapshot) = &mut hangs.source {
        snapshot.command_time_max = Duration::from_secs(1);
    }
    let text = fails(hangs).await;
    assert!(text.contains("did not end within 1 s"), "{text}");
    assert_eq!(copier.released(), 2);

    let mut elsewhere = copier.options(&good, backup);
    if let SourceOptions::Snapshot(snapshot) = &mut elsewhere.source {
        snapshot.maps.clear();
    }
    let text = fails(elsewhere).await;
    assert!(text.contains("no frozen copy is named") && text.contains("--snapshot-map"), "{text}");
    assert_eq!(copier.released(), 3);

    let text = fails(copier.options(&["true".into()], backup)).await;
    assert!(text.contains("no frozen data directory is there"), "{text}");
    assert_eq!(copier.released(), 4);

    let token = CancellationToken::new();
    let cancel = token.clone();
    let ctx = engine::Context { cancel: token, ..at_phase("reading files", move || cancel.cancel()) };
    let stopped = site.backup_with(&ctx, &copier.options(&good, backup)).await;
    assert!(matches!(stopped, Err(EngineError::Cancelled)), "{stopped:?}");
    assert_eq!(copier.released(), 5);

    // A release that fails is said; the backup is whole.
    let mut stays = copier.options(&good, backup);
    if let SourceOptions::Snapshot(snapshot) = &mut stays.source {
        snapshot.release = "exit 9".into();
    }
    let report = site.backup_with(&context(), &stays).await?;
    assert!(report.warnings.iter().any(|text| text.contains("still there") && text.contains("9")), "{report:?}");
    Ok(())
}

/// What a real volume does: a snapshot of one moment, under load, of a subvolume with everything in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_btrfs_snapshot_recovers_like_after_a_crash() -> Result {
    let Some(volume) = Btrfs::mount()? else { return Ok(()) };
    let site = Site::start(15, &[]).await?;
    fill(&site)?;
    // The cluster moves to the volume, tablespace and all.
    let mut origin = site;
    origin.server.stop(StopMode::Fast)?;
    let (data, live) = (origin.server.data_dir().to_owned(), volume.dir.join("live"));
    ran(Command::new("btrfs").args(["subvolume", "create"]).arg(&live))?;
    let link = std::fs::read_dir(data.join("pg_tblspc"))?.next().expect("one tablespace")?.path();
    let space = std::fs::read_link(&link)?;
    ran(Command::new("cp").arg("-a").arg(&space).arg(live.join("space")))?;
    std::fs::remove_file(&link)?;
    std::os::unix::fs::symlink(live.join("space"), &link)?;
    ran(Command::new("cp").arg("-a").arg(&data).arg(live.join("data")))?;
    origin.server.user().own(&live)?;
    let mut server = testkit::pg::Cluster::adopt(&live.join("data"), 15)?;
    server.start_again()?;
    let site = Site { server, memory: origin.memory.clone() };
    site.server.sql("CHECKPOINT; INSERT INTO there SELECT generate_series(1, 3000)")?;
    let shot = volume.dir.join("shot");
    let snapshot = SnapshotOptions {
        // Between the two statements the snapshot is made: the first is in it, committed and perhaps in WAL only.
        freeze: format!("btrfs subvolume snapshot -r {} {}", live.display(), shot.display()),
        release: format!("btrfs subvolume delete {}", shot.display()),
        directory: shot.join("data"),
        maps: vec![(live.join("space"), shot.join("space"))],
        guarantee: SnapshotGuarantee::CrashConsistent,
        command_time_max: Duration::from_secs(60),
    };
    let options = BackupOptions { source: SourceOptions::Snapshot(snapshot), ..options() };
    let expect = site.server.sql("SELECT count(*), sum(x) FROM there")?;
    let ctx = {
        let (psql, conninfo) = (site.server.bin("psql")?, site.server.conninfo());
        at_phase("reading files", move || {
            let sql = "UPDATE there SET x = x + 1; UPDATE big SET t = t || 'y'; CHECKPOINT";
            let done = Command::new(&psql).args(["-qXd", &conninfo, "-c", sql]).status();
            assert!(done.expect("psql runs").success());
        })
    };
    let report = site.backup_with(&ctx, &options).await?;
    assert!(report.standalone && !shot.exists(), "{report:?}");
    let request = site.request("copy", RecoveryTarget::Latest)?;
    let request = RestoreRequest { tablespaces: site.elsewhere("fast", "copy-fast")?, ..request };
    site.restore(&request).await?;
    let mut copy = site.open(&request.target_dir)?;
    assert_eq!(copy.sql("SELECT count(*), sum(x) FROM there")?, expect, "as it was when it was frozen");
    amcheck(&copy)?;
    copy.stop(StopMode::Fast)?;
    checksums(&copy)
}

fn ran(command: &mut Command) -> Result {
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A btrfs file system in a file.
struct Btrfs {
    dir: PathBuf,
    _home: tempfile::TempDir,
}

impl Btrfs {
    /// None, with the reason said, where it cannot be had.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says why")]
    fn mount() -> Result<Option<Self>> {
        let has = |program: &str| {
            ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
        };
        if !testkit::pg::server_user()?.must_switch || !has("mkfs.btrfs") {
            eprintln!("skipped: needs root and btrfs-progs");
            return Ok(None);
        }
        let home = tempfile::tempdir()?;
        let (image, dir) = (home.path().join("image"), home.path().join("volume"));
        std::fs::File::create(&image)?.set_len(1 << 30)?;
        std::fs::create_dir(&dir)?;
        ran(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        if let Err(error) = ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir)) {
            eprintln!("skipped: no loop mounts here: {error}");
            return Ok(None);
        }
        use std::os::unix::fs::PermissionsExt;
        for path in [home.path(), &dir] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(Some(Self { dir, _home: home }))
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}
