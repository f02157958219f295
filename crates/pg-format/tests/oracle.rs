//! Comparison with PostgreSQL's own programs, on clusters that `initdb` makes.
//!
//! Each test runs on every major version whose programs are found, and fails when there are none. `testkit` is not
//! used, because it stands on this crate.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pg_format::exclude::has_page_checksums;
use pg_format::page::{Checksums, page_lsn};
use pg_format::{ControlFile, PageCheck, PgMajor, RelFile, check_page, conf, mask_page};

/// A cluster that is not running.
struct Cluster {
    programs: PathBuf,
    /// Holds the data directory; removed at the end.
    home: tempfile::TempDir,
}

/// The folder with the programs of each supported version that has `program`.
fn installed(program: &str) -> Vec<(PgMajor, PathBuf)> {
    let tools = std::env::var_os("PGKEEP_TOOLS").map_or_else(|| PathBuf::from("/var/lib/pgkeep-tools"), PathBuf::from);
    let found: Vec<_> = PgMajor::ALL
        .into_iter()
        .filter_map(|major| {
            let packaged = format!("usr/lib/postgresql/{major}/bin");
            let unpacked = tools.join(format!("pg-{major}"));
            let folders = [Path::new("/").join(&packaged), unpacked.join(&packaged), unpacked.join("native/bin")];
            let has_all =
                |folder: &PathBuf| ["initdb", "postgres", program].iter().all(|name| folder.join(name).exists());
            Some((major, folders.into_iter().find(has_all)?))
        })
        .collect();
    assert!(!found.is_empty(), "no PostgreSQL 14 to 18 with {program} is here: run `cargo xtask setup`");
    found
}

fn id_number(option: &str, user: &str) -> Option<u32> {
    let output = Command::new("id").args([option, user]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

impl Cluster {
    fn create(major: PgMajor, programs: &Path, checksums: Checksums) -> Self {
        let home = tempfile::Builder::new().prefix("pg-format-").tempdir().unwrap();
        let cluster = Self { programs: programs.to_owned(), home };
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(cluster.home.path(), Some(uid), Some(gid)).unwrap();
        }
        let mut initdb = cluster.command("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--locale=C", "--encoding=UTF8", "--username=postgres"]);
        match (checksums, major) {
            (Checksums::On, _) => drop(initdb.arg("--data-checksums")),
            (Checksums::Off, PgMajor::V18) => drop(initdb.arg("--no-data-checksums")),
            (Checksums::Off, _) => {}
        }
        succeed(&mut initdb);
        cluster
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// A program of this cluster's version, run as an ordinary user with `PGDATA` set.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = match server_user() {
            Some((uid, gid)) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env("PGDATA", self.data()).env("LC_ALL", "C").env("TZ", "UTC").current_dir(self.home.path());
        command
    }

    /// Runs SQL in a single-user server, one statement a line, and stops it with a checkpoint.
    fn sql(&self, statements: &str) {
        let mut command = self.command("postgres");
        command.args(["--single", "-c", "exit_on_error=on", "postgres"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        child.stdin.take().unwrap().write_all(statements.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn control(&self) -> ControlFile {
        ControlFile::parse(&std::fs::read(self.data().join(pg_format::control::CONTROL_FILE_PATH)).unwrap()).unwrap()
    }

    /// All files with pages, by their path in the data directory.
    fn page_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for directory in ["base", "global"] {
            let mut pending = vec![self.data().join(directory)];
            while let Some(directory) = pending.pop() {
                let Ok(entries) = std::fs::read_dir(&directory) else { continue };
                for entry in entries {
                    let path = entry.unwrap().path();
                    let name = path.strip_prefix(self.data()).unwrap().to_str().unwrap().to_owned();
                    if path.is_dir() {
                        pending.push(path);
                    } else if has_page_checksums(&name) {
                        files.insert(name, std::fs::read(path).unwrap());
                    }
                }
            }
        }
        files
    }
}

/// The ordinary user to run servers as, when this is root.
fn server_user() -> Option<(u32, u32)> {
    if id_number("-u", "root") != current_uid() {
        return None;
    }
    let user =
        ["postgres", "nobody"].into_iter().find(|user| id_number("-u", user).is_some()).expect("a user to run as");
    Some((id_number("-u", user)?, id_number("-g", user)?))
}

fn current_uid() -> Option<u32> {
    let output = Command::new("id").arg("-u").output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

#[test]
fn control_file_is_what_pg_controldata_says() {
    for (major, programs) in installed("pg_controldata") {
        let cluster = Cluster::create(major, &programs, Checksums::On);
        cluster.sql("CREATE TABLE t AS SELECT 1;\n");
        let control = cluster.control();
        let text = String::from_utf8(succeed(&mut cluster.command("pg_controldata")).stdout).unwrap();
        let oracle: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect();
        let check = |key: &str, value: String| assert_eq!(oracle.get(key), Some(&value.as_str()), "{major}: {key}");
        let yes_no = |value: bool, yes: &str, no: &str| if value { yes } else { no }.to_owned();
        let point = &control.checkpoint;
        check("pg_control version number", control.pg_control_version.to_string());
        check("Catalog version number", control.catalog_version.to_string());
        check("Database system identifier", control.system_id.to_string());
        check("Database cluster state", control.state.as_str().to_owned());
        check("Latest checkpoint location", control.checkpoint_lsn.to_string());
        check("Latest checkpoint's REDO location", point.redo.to_string());
        let segment = pg_format::SegmentName::of_lsn(point.timeline, point.redo, control.wal_segment_size);
        check("Latest checkpoint's REDO WAL file", segment.to_string());
        check("Latest checkpoint's TimeLineID", point.timeline.to_string());
        check("Latest checkpoint's PrevTimeLineID", point.previous_timeline.to_string());
        check("Latest checkpoint's full_page_writes", yes_no(point.full_page_writes, "on", "off"));
        let xid = point.next_full_xid;
        check("Latest checkpoint's NextXID", format!("{}:{}", xid >> 32, xid as u32));
        check("Latest checkpoint's NextOID", point.next_oid.to_string());
        check("Latest checkpoint's NextMultiXactId", point.next_multi_xid.to_string());
        check("Latest checkpoint's NextMultiOffset", point.next_multi_offset.to_string());
        check("Latest checkpoint's oldestXID", point.oldest_xid.to_string());
        check("Latest checkpoint's oldestXID's DB", point.oldest_xid_database.to_string());
        check("Latest checkpoint's oldestActiveXID", point.oldest_active_xid.to_string());
        check("Latest checkpoint's oldestMultiXid", point.oldest_multi_xid.to_string());
        check("Latest checkpoint's oldestMulti's DB", point.oldest_multi_database.to_string());
        check("Latest checkpoint's oldestCommitTsXid", point.oldest_commit_ts_xid.to_string());
        check("Latest checkpoint's newestCommitTsXid", point.newest_commit_ts_xid.to_string());
        check("Fake LSN counter for unlogged rels", control.unlogged_lsn.to_string());
        check("Minimum recovery ending location", control.min_recovery_point.to_string());
        check("Min recovery ending loc's timeline", control.min_recovery_point_timeline.to_string());
        check("Backup start location", control.backup_start_point.to_string());
        check("Backup end location", control.backup_end_point.to_string());
        check("End-of-backup record required", yes_no(control.backup_end_required, "yes", "no"));
        check("wal_level setting", control.wal_level.as_str().to_owned());
        check("wal_log_hints setting", yes_no(control.wal_log_hints, "on", "off"));
        check("max_connections setting", control.max_connections.to_string());
        check("max_worker_processes setting", control.max_worker_processes.to_string());
        check("max_wal_senders setting", control.max_wal_senders.to_string());
        check("max_prepared_xacts setting", control.max_prepared_xacts.to_string());
        check("max_locks_per_xact setting", control.max_locks_per_xact.to_string());
        check("track_commit_timestamp setting", yes_no(control.track_commit_timestamp, "on", "off"));
        check("Database block size", control.block_bytes.to_string());
        check("Blocks per segment of large relation", control.relation_segment_blocks.to_string());
        check("WAL block size", control.wal_block_bytes.to_string());
        check("Bytes per WAL segment", control.wal_segment_size.bytes().to_string());
        check("Data page checksum version", control.data_checksum_version.to_string());
    }
}

#[test]
fn version_facts_are_those_of_a_real_cluster() {
    for (major, programs) in installed("postgres") {
        let cluster = Cluster::create(major, &programs, Checksums::On);
        let control = cluster.control();
        assert_eq!(control.major(), Ok(major));
        assert_eq!(control.pg_control_version, major.facts().pg_control_version);
        let point = &control.checkpoint;
        let segment = pg_format::SegmentName::of_lsn(point.timeline, point.redo, control.wal_segment_size);
        let wal = std::fs::read(cluster.data().join("pg_wal").join(segment.to_string())).unwrap();
        assert_eq!(wal[..2], major.facts().wal_page_magic.to_le_bytes());
        let version_file = std::fs::read_to_string(cluster.data().join("PG_VERSION")).unwrap();
        assert_eq!(PgMajor::from_pg_version_file(&version_file), Ok(major));
        assert_eq!(point.wal_level.is_some(), major >= PgMajor::V17);
        assert_eq!(control.default_char_signed, (major >= PgMajor::V18).then_some(true));
    }
}

/// Checks every page of a cluster; the paths and blocks that are not right.
fn bad_pages(cluster: &Cluster) -> (usize, Vec<(String, u32)>) {
    let segment_blocks = cluster.control().relation_segment_blocks;
    let (mut count, mut bad) = (0, Vec::new());
    for (path, bytes) in cluster.page_files() {
        let first = RelFile::parse(&path).unwrap().first_block(segment_blocks).unwrap().0;
        for (index, page) in bytes.chunks(8192).enumerate() {
            count += 1;
            let block = first + index as u32;
            if check_page(page, block, Checksums::On) != PageCheck::Ok && !page.iter().all(|&byte| byte == 0) {
                bad.push((path.clone(), block));
            }
        }
    }
    (count, bad)
}

#[test]
fn checksums_are_those_of_pg_checksums() {
    for (major, programs) in installed("pg_checksums") {
        let cluster = Cluster::create(major, &programs, Checksums::On);
        let text = String::from_utf8(succeed(cluster.command("pg_checksums").arg("--check")).stdout).unwrap();
        let scanned = text.lines().find_map(|line| line.strip_prefix("Blocks scanned:")).unwrap().trim().to_owned();
        let (count, bad) = bad_pages(&cluster);
        assert_eq!(bad, []);
        assert_eq!(count.to_string(), scanned, "{major}");

        let victim = cluster.data().join("base/1/1255");
        let mut bytes = std::fs::read(&victim).unwrap();
        bytes[8192 * 3 + 5000] ^= 0x04;
        std::fs::write(&victim, bytes).unwrap();
        let output = cluster.command("pg_checksums").arg("--check").output().unwrap();
        assert!(!output.status.success());
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(complaint.contains("base/1/1255\", block 3"), "{complaint}");
        assert_eq!(bad_pages(&cluster).1, [("base/1/1255".to_owned(), 3)]);
    }
}

#[test]
fn what_changes_without_wal_is_masked() {
    for (major, programs) in installed("postgres") {
        // Without checksums and wal_log_hints, hint bits are set without WAL, so the page LSN stays.
        let cluster = Cluster::create(major, &programs, Checksums::Off);
        cluster.sql(
            "CREATE TABLE t (id int, s text, p point, a int[]) WITH (autovacuum_enabled = off);\n\
             CREATE INDEX ON t (id);\n\
             CREATE INDEX ON t USING hash (id);\n\
             CREATE INDEX ON t USING gist (p);\n\
             CREATE INDEX ON t USING spgist (s);\n\
             CREATE INDEX ON t USING gin (a);\n\
             CREATE INDEX ON t USING brin (id);\n\
             INSERT INTO t SELECT i, i::text, point(i, i), ARRAY[i % 7, i] FROM generate_series(1, 20000) i;\n\
             DELETE FROM t WHERE id % 3 = 0;\n\
             CHECKPOINT;\n",
        );
        let before = cluster.page_files();
        cluster.sql(
            "SELECT count(*) FROM t;\n\
             SET enable_seqscan = off;\n\
             SET enable_bitmapscan = off;\n\
             SELECT count(s) FROM t WHERE id BETWEEN 1 AND 20000;\n\
             SELECT count(s) FROM t WHERE id = 300;\n\
             SELECT count(s) FROM t WHERE p <@ box '((0,0),(5000,5000))';\n\
             CHECKPOINT;\n",
        );
        let after = cluster.page_files();
        let (mut compared, mut differ_raw) = (0, 0);
        for (path, new) in &after {
            let Some(old) = before.get(path) else { continue };
            // The free space map is not protected by WAL at all.
            if path.ends_with("_fsm") {
                continue;
            }
            for (block, (old, new)) in old.chunks(8192).zip(new.chunks(8192)).enumerate() {
                if page_lsn(old) != page_lsn(new) {
                    continue;
                }
                compared += 1;
                differ_raw += usize::from(old != new);
                let (mut old, mut new) = (old.to_vec(), new.to_vec());
                mask_page(&mut old);
                mask_page(&mut new);
                assert!(old == new, "{major}: {path}, block {block}");
            }
        }
        assert!(compared > 500, "{compared} pages compared");
        assert!(differ_raw > 100, "only {differ_raw} pages were changed by hint bits");
    }
}

#[test]
fn settings_written_here_are_read_by_the_server() {
    for (major, programs) in installed("postgres") {
        let cluster = Cluster::create(major, &programs, Checksums::On);
        let path = cluster.data().join("postgresql.auto.conf");
        for value in ["it's \\ a 'test'", "two\nlines\tand a tab", "é # = ''", "%p\\n"] {
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, conf::set(&text, "archive_command", value).unwrap()).unwrap();
            let output = succeed(cluster.command("postgres").args(["-C", "archive_command"]));
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{value}\n"), "{major}");
        }
        // The server's own file is read without complaint, and with the same values.
        let file = conf::ConfFile::parse(&std::fs::read_to_string(cluster.data().join("postgresql.conf")).unwrap());
        assert_eq!(file.errors, []);
        for directive in file.directives {
            let conf::DirectiveKind::Set { name, value } = directive.kind else { panic!("no includes are expected") };
            if ["max_wal_size", "min_wal_size", "shared_buffers"].contains(&name.as_str()) {
                let unit = if name == "shared_buffers" { 8192 } else { 1 << 20 };
                let output = succeed(cluster.command("postgres").args(["-C", &name]));
                let shown = String::from_utf8(output.stdout).unwrap();
                assert_eq!(conf::parse_memory_bytes(&value, unit), conf::parse_memory_bytes(&shown, unit), "{name}");
            }
        }
    }
}
