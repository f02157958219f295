//! `export` through a pipe, as a shell uses it, and back with `import-basebackup`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;
use support::{Said, Site};

#[test]
fn one_tar_through_a_pipe() {
    let site = Site::new();
    site.cluster.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g").unwrap();
    site.run(&["backup"]).expect(0);
    let (tar, data) = (site.path("out.tar"), site.path("unpacked"));
    let mut command = site.command(&["export", "latest", "--to", "-", "--wal"]);
    let output = command.stdout(File::create(&tar).unwrap()).stderr(Stdio::piped()).output().unwrap();
    Said::of(output).expect(0).says(&["standard output", "of WAL"]);
    fs::create_dir(&data).unwrap();
    site.cluster.user().own(data.as_ref()).unwrap();
    site.cluster.run_as_pg("tar", &["-xpf", &tar, "-C", &data]).unwrap();
    let said = site.cluster.tool("pg_verifybackup", &[&data]).unwrap();
    assert!(said.contains("successfully verified"), "{said}");

    // A reader that goes away.
    let mut child =
        site.command(&["export", "latest", "--to", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 4096]).unwrap();
    drop(pipe);
    Said::of(child.wait_with_output().unwrap()).expect(1).says(&["the reader of the pipe ended", "cut off"]);

    // A disk that is full: the reader's, or the one that standard output is on.
    let mut child =
        site.command(&["export", "latest", "--to", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pipe = child.stdout.take().unwrap();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let reader = std::process::Command::new("cat").stdin(pipe).stdout(full()).stderr(Stdio::null()).status().unwrap();
    assert!(!reader.success());
    Said::of(child.wait_with_output().unwrap()).expect(1).says(&["the reader of the pipe ended", "cut off"]);
    let output =
        site.command(&["export", "latest", "--to", "-"]).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    Said::of(output).expect(1).says(&["the disk is full"]);

    site.run(&["export", "latest", "--to", "-", "--json"]).expect(2).says(&["--json"]);
    site.run(&["export", "latest", "--to", &site.path("x"), "--compress", "xz"]).expect(2).says(&["--compress"]);
    site.run(&["export", "20010101T000000Z", "--to", &site.path("x")]).expect(3);
    site.run(&["import-basebackup", &site.path("nothing")]).expect(3).says(&["nothing", "not there"]);
    // One tar file by itself is a base backup too; the manifest is in it.
    site.archive();
    let imported = site.run(&["import-basebackup", &tar, "--json"]).expect(0).json();
    assert_eq!(imported["verified"], true, "{imported}");
    site.run(&["verify", imported["backup"].as_str().unwrap(), "--deep"]).expect(0);
}
