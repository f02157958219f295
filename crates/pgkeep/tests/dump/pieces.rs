//! Exports that are cut into pieces or compressed as a whole, out and in again.

use crate::support::Site;
use crate::{as_text, same};
use std::path::Path;
use std::process::{Command, Stdio};

fn filled() -> Site {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    let sql = "CREATE TABLE t (id int PRIMARY KEY, x text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 6000) g; \
        CREATE VIEW v AS SELECT x FROM t; SELECT lo_from_bytea(7, decode(repeat('00ff5c0a', 9000), 'hex'))";
    site.cluster.psql_db("origin", sql).unwrap();
    site
}

fn pieces(base: &str) -> Vec<String> {
    (0..1000).map(|number| format!("{base}.{number:03}")).take_while(|path| Path::new(path).exists()).collect()
}

#[test]
fn what_is_cut_or_compressed_comes_back_whole() {
    let site = filled();
    let origin = as_text(&site, "origin");
    let postgres = site.cluster.conninfo();
    let whole = site.path("whole.sql");
    let args = ["dump", "-d", "origin", "--format", "plain", "--to", &whole, "--json"];
    let id = site.run(&args).expect(0).json()["dump"].as_str().unwrap().to_owned();
    let text = std::fs::read_to_string(&whole).unwrap();
    let mut number = 0;
    let mut comes_back = |path: &str, import: bool| {
        let name = format!("again_{number}");
        number += 1;
        let from = match import {
            true => {
                let made = site.run(&["dump", "--import", path, "--json"]).expect(0).json();
                made["dump"].as_str().unwrap().to_owned()
            }
            false => path.to_owned(),
        };
        site.run(&["load", &from, "--into", &postgres, "--create", &name, "-j", "2"]).expect(0);
        same(path, &origin, &as_text(&site, &name));
    };
    for (form, compress, count, import) in [
        ("plain", "none", 4, true),
        ("plain", "zstd", 2, false),
        ("custom", "gzip:1", 3, false),
        ("custom", "none", 4, true),
        ("tar", "none", 4, false),
    ] {
        let base = site.path(&format!("{form}-{compress}"));
        let args =
            ["export", &id, "--to", &base, "--format", form, "--compress", compress, "--split-size", "80kB", "--json"];
        let made = site.run(&args).expect(0).json();
        let found = pieces(&base);
        assert!(found.len() >= count, "{form}, {compress}: {found:?}");
        assert_eq!(made["pieces"], found.len(), "{made}");
        // What others have to make a file of it again.
        let dir = Path::new(&base).parent().unwrap();
        let checked =
            Command::new("sha256sum").args(["--check", "--quiet", &format!("{base}.sha256")]).current_dir(dir).status();
        assert!(checked.unwrap().success());
        comes_back(if import { &base } else { &found[0] }, import);
        // Nothing is loaded when one is missing.
        let (last, away) = (found.last().unwrap(), site.path("away"));
        std::fs::rename(last, &away).unwrap();
        let load = ["load", &found[0], "--into", &postgres, "--create", "never"];
        site.run(&load).expect(1).says(&[last.as_str(), "is missing"]);
        site.run(&["dump", "--import", &base]).expect(1).says(&[last.as_str(), "is missing"]);
        assert_eq!(site.cluster.sql("SELECT count(*) FROM pg_database WHERE datname = 'never'").unwrap(), "0");
        std::fs::rename(&away, last).unwrap();
        site.run(&args).expect(1).says(&["is there already"]);
        site.run(&["load", &found[1], "--into", &postgres]).expect(1).says(&["name the first"]);
    }
    // As a whole, with what everybody has to unpack it.
    for (compress, unpack) in [("gzip", "gzip"), ("zstd:9", "zstd"), ("lz4", "lz4")] {
        let packed = site.path(&format!("packed.{unpack}"));
        site.run(&["export", &id, "--to", &packed, "--format", "plain", "--compress", compress]).expect(0);
        if let Ok(output) = Command::new(unpack).args(["-dc", &packed]).output() {
            assert!(without_keys(&String::from_utf8(output.stdout).unwrap()) == without_keys(&text), "{compress}");
        }
        comes_back(&packed, compress == "lz4");
    }
    // A piece with another byte: nothing of it stays in a single transaction, and nothing in the repository.
    let base = site.path("plain-none");
    let second = format!("{base}.001");
    let mut bytes = std::fs::read(&second).unwrap();
    let at = bytes.iter().position(|byte| byte.is_ascii_hexdigit()).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&second, bytes).unwrap();
    let load = ["load", &base, "--into", &postgres, "--create", "damaged", "--single-transaction"];
    site.run(&load).expect(1).says(&["plain-none.001 is not what was written"]);
    assert_eq!(site.cluster.psql_db("damaged", "SELECT to_regclass('t') IS NULL").unwrap(), "t");
    site.run(&["dump", "--import", &base]).expect(1).says(&["plain-none.001 is not what was written"]);
    let listed = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!(listed["unfinished_dumps"].as_array().unwrap().len(), 0, "{listed}");

    // At once with the dump, from a pipe, and what cannot be.
    let direct = site.path("direct");
    let args =
        ["dump", "-d", "origin", "--format", "custom", "--compress", "none", "--split-size", "80kB", "--to", &direct];
    let said = site.run(&args).expect(0).stdout;
    assert!(said.contains("direct.000 and so on") && said.contains("pieces"), "{said}");
    comes_back(&format!("{direct}.000"), true);
    let piped = site.path("piped.gz");
    let out = std::fs::File::create(&piped).unwrap();
    let args = ["export", &id, "--to", "-", "--format", "plain", "--compress", "gzip"];
    let status = site.command(&args).stdout(out).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    comes_back(&piped, false);
    let export = |more: &[&str]| site.run(&[&["export", &id, "--to", &site.path("none")][..], more].concat());
    export(&["--format", "directory", "--split-size", "1MB"]).expect(1).says(&["not split"]);
    export(&["--format", "tar", "--compress", "gzip"]).expect(2).says(&["tar"]);
    export(&["--split-size", "12"]).expect(2).says(&["--split-size 12"]);
    export(&["--compress", "brotli"]).expect(2).says(&["lz4"]);
    assert!(!Path::new(&site.path("none")).exists());
    let left = std::fs::read_dir(&site.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.ends_with(".partial")).count(), 0);
}

/// SQL text of 15 and later has keys that are other ones each time.
fn without_keys(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}
