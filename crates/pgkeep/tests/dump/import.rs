//! What pg_dump and pg_dumpall wrote is taken in, and comes out of every way that dumps go.

use crate::support::Site;
use crate::{as_text, same, site};
use std::process::{Command, Stdio};

fn imported(site: &Site, path: &str) -> serde_json::Value {
    site.run(&["dump", "--import", path, "--part-size", "1MB", "--json"]).expect(0).json()
}

#[test]
fn what_pg_dump_wrote_is_taken_in_from_every_form() {
    let site = site();
    let origin = as_text(&site, "origin");
    let conninfo = site.cluster.conninfo_db("origin");
    let dumped = |name: &str, args: &[&str]| {
        let (path, conninfo) = (site.path(name), format!("--dbname={conninfo}"));
        site.cluster.tool("pg_dump", &[&["--no-sync", &conninfo, "--file", &path][..], args].concat()).unwrap();
        path
    };
    let forms = [
        ("custom", dumped("c", &["-Fc"])),
        ("custom", dumped("c0", &["-Fc", "-Z0"])),
        ("directory", dumped("d", &["-Fd", "-j2"])),
        ("tar", dumped("t", &["-Ft"])),
    ];
    let postgres = site.cluster.conninfo();
    for (number, (form, path)) in forms.iter().enumerate() {
        let made = imported(&site, path);
        let database = &made["databases"][0];
        assert_eq!(
            (database["name"].as_str(), database["large_objects"].as_u64()),
            (Some("origin"), Some(3)),
            "{made}"
        );
        let id = made["dump"].as_str().unwrap();
        let shown = site.run(&["show", id, "--json"]).expect(0).json();
        assert_eq!(shown["dump"]["imported"]["format"], *form, "{shown}");
        let data = shown["dump"]["databases"][0]["data"].as_array().unwrap();
        let big = data.iter().find(|data| data["name"] == "big").unwrap();
        assert!(big["parts"].as_array().unwrap().len() > 2, "cut for those who load: {big}");
        site.run(&["verify", id]).expect(0);
        let name = format!("from_{number}");
        site.run(&["load", id, "--into", &postgres, "--create", &name, "-j", "2"]).expect(0);
        same(path, &origin, &as_text(&site, &name));
    }
    let id = site.run(&["list", "--json"]).expect(0).json()["dumps"][0]["id"].as_str().unwrap().to_owned();
    let out = site.path("out.sql");
    site.run(&["export", &id, "--to", &out, "--format", "plain"]).expect(0);
    let deep = site.run(&["verify", &id, "--deep", "--into", &postgres, "--json"]).expect(0).json();
    let database = &deep["deep"]["databases"][0];
    assert!(database["tables"].as_u64().unwrap() > 10 && database["tables_summed"] == 0, "rows are counted: {deep}");

    // What is cut off, or not of pg_dump, leaves nothing.
    let before = site.run(&["list", "--json"]).expect(0).json();
    let cut = |from: &str, name: &str| {
        let bytes = std::fs::read(from).unwrap();
        std::fs::write(site.path(name), &bytes[..bytes.len() * 9 / 10]).unwrap();
        site.path(name)
    };
    site.run(&["dump", "--import", &cut(&forms[0].1, "cut1")]).expect(1).says(&["cannot be taken in"]);
    site.run(&["dump", "--import", &cut(&forms[3].1, "cut2")]).expect(1).says(&["cannot be taken in"]);
    std::fs::write(site.path("zeros"), [0; 2000]).unwrap();
    site.run(&["dump", "--import", &site.path("zeros")]).expect(1).says(&["neither an archive"]);
    site.run(&["dump", "--import", &site.path("nowhere")]).expect(1);
    let inserts = dumped("inserts", &["-Fc", "--inserts"]);
    site.run(&["dump", "--import", &inserts]).expect(1).says(&["INSERT", "pg_restore"]);
    let after = site.run(&["list", "--json"]).expect(0).json();
    assert_eq!((&before["dumps"], &before["unfinished_dumps"]), (&after["dumps"], &after["unfinished_dumps"]));
}

/// Another compression, and large objects in groups.
#[test]
fn archives_of_17_are_taken_in() {
    let site = Site::bare_on(17);
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE DATABASE origin").unwrap();
    site.cluster.psql_db("origin", crate::FEATURES).unwrap();
    let origin = as_text(&site, "origin");
    let bin = site.cluster.bin("pg_dump").unwrap().parent().unwrap().to_string_lossy().into_owned();
    let (postgres, conninfo) = (site.cluster.conninfo(), format!("--dbname={}", site.cluster.conninfo_db("origin")));
    for (number, args) in [["-Fc", "-Zzstd"], ["-Fd", "-Zlz4"], ["-Fc", "-Zlz4"], ["-Ft", "-Znone"]].iter().enumerate()
    {
        let path = site.path(&format!("dump{number}"));
        site.cluster.tool("pg_dump", &[&args[..], &["--no-sync", "-f", &path, &conninfo]].concat()).unwrap();
        let made = imported(&site, &path);
        assert_eq!(made["databases"][0]["large_objects"], 3, "{made}");
        let (id, name) = (made["dump"].as_str().unwrap(), format!("from_{number}"));
        site.run(&["load", id, "--into", &postgres, "--create", &name, "--pg-bin", &bin]).expect(0);
        same(&args.join(" "), &origin, &as_text(&site, &name));
    }
}

#[test]
fn sql_text_is_kept_as_it_is() {
    let site = site();
    let origin = as_text(&site, "origin");
    let (plain, packed) = (site.path("plain.sql"), site.path("plain.sql.gz"));
    std::fs::write(&plain, &origin).unwrap();
    let packer = Command::new("gzip").args(["-k", &plain]).status().unwrap();
    assert!(packer.success());
    let postgres = site.cluster.conninfo();
    for (number, path) in [&plain, &packed].into_iter().enumerate() {
        let made = imported(&site, path);
        let id = made["dump"].as_str().unwrap();
        assert_eq!(made["bytes"], origin.len(), "{made}");
        let out = site.path(&format!("out{number}.sql"));
        site.run(&["export", id, "--to", &out, "--format", "plain", "--compress", "none"]).expect(0);
        assert!(std::fs::read_to_string(&out).unwrap() == origin, "byte for byte");
        let name = format!("text_{number}");
        site.run(&["load", id, "--into", &postgres, "--create", &name]).expect(0);
        same("text", &origin, &as_text(&site, &name));
        site.run(&["verify", id]).expect(0);
        site.run(&["verify", id, "--deep"]).expect(1).says(&["SQL text"]);
        site.run(&["load", id, "--into", &postgres, "--create", "x", "-t", "app.big"]).expect(1).says(&["whole"]);
        site.run(&["export", id, "--to", &site.path("x"), "--format", "custom"]).expect(1).says(&["SQL text"]);
    }
    // What pg_dumpall writes, from a pipe: which databases it makes is known.
    let all = site.cluster.tool("pg_dumpall", &["--no-sync", "--clean", "--if-exists"]).unwrap();
    let mut command = site.command(&["dump", "--import", "-", "--label", "all", "--json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), all.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let listed = site.run(&["list", "--json"]).expect(0).json();
    let last = listed["dumps"].as_array().unwrap().last().unwrap();
    assert!(last["databases"].to_string().contains("origin"), "{last}");
    assert_eq!((last["imported_from"].as_str(), last["state"].as_str()), (Some("standard input"), Some("ok")));
    assert!(last["pg_version"].as_str().unwrap().starts_with("15."), "{last}");
}
