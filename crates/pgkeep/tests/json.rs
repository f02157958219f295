//! `docs/json.md` lists every field of every object; what the program prints must be just that.
//!
//! `PGKEEP_UPDATE_DOCS=1 cargo test -p pgkeep --test json` writes the list anew.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use support::Site;

const MARK: &str = "<!-- What follows is made and checked by crates/pgkeep/tests/json.rs. -->\n";

#[test]
fn the_objects_have_the_fields_that_are_documented() {
    let mut site = Site::bare();
    let mut text = String::new();
    let mut add = |title: &str, object: Value| write!(text, "\n## {title}\n\n{}", fields(&object)).unwrap();
    add("init", site.init(&["--json"]).expect(0).json());
    add("init --apply", site.init(&["--apply", "--json"]).expect(0).json());
    site.cluster.restart().unwrap();
    add("check", site.run(&["check", "--json"]).expect(0).json());
    add("backup", site.run(&["backup", "--json", "--label", "x"]).expect(0).json());
    site.archive();
    site.cluster.sql("CREATE TABLE dumped AS SELECT 1 AS one; SELECT lo_from_bytea(5, 'x')").unwrap();
    let limited = "CREATE ROLE limited LOGIN; CREATE TABLE closed (a int); GRANT SELECT ON dumped TO limited";
    site.cluster.sql(limited).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), config.replace("user=postgres", "user=limited")).unwrap();
    let to = site.path("out.dump");
    let dumped = ["dump", "--label", "x", "--format", "custom", "--to", &to, "--json"];
    let dumped = site.run(&dumped).expect(4).json();
    std::fs::write(site.config(), config).unwrap();
    let dump = dumped["dump"].as_str().unwrap().to_owned();
    add("dump", dumped);
    let into = site.cluster.conninfo();
    add("load", site.run(&["load", &dump, "--into", &into, "--create", "loaded", "--json"]).expect(0).json());
    add("dump --to CONNINFO", site.run(&["dump", "--to", &into, "--create", "copied", "--json"]).expect(0).json());
    add("show, of a dump", site.run(&["show", &dump, "--json"]).expect(0).json());
    add("verify, of a dump", site.run(&["verify", &dump, "--json"]).expect(0).json());
    let out = site.path("dump.dir");
    add(
        "export, of a dump",
        site.run(&["export", &dump, "--to", &out, "--format", "directory", "--json"]).expect(0).json(),
    );
    add("list", site.run(&["list", "--json"]).expect(0).json());
    add("pin", site.run(&["pin", "latest", "--until", "30d", "--reason", "why", "--json"]).expect(0).json());
    add("unpin", site.run(&["unpin", "latest", "--json"]).expect(0).json());
    add("show --files", site.run(&["show", "latest", "--files", "--json"]).expect(0).json());
    add("status", site.run(&["status", "--json"]).expect(0).json());
    add("verify", site.run(&["verify", "--json"]).expect(0).json());
    let target = site.path("restored");
    add("restore", site.run(&["restore", "--to-dir", &target, "--latest", "--json"]).expect(0).json());
    add("restore-point create", site.run(&["restore-point", "create", "here", "--json"]).expect(0).json());
    site.cluster.sql("CREATE TABLE dropped AS SELECT g FROM generate_series(1, 20000) g; DROP TABLE dropped").unwrap();
    site.archive();
    add("list --restore-points", site.run(&["list", "--restore-points", "--json"]).expect(0).json());
    add("find", site.run(&["find", "--json"]).expect(0).json());
    add("wal log", site.run(&["wal", "log", "--json"]).expect(0).json());
    let before = site.path("before");
    let planned = site.run(&["restore", "--to-dir", &before, "--before", "drop public.dropped", "--dry-run", "--json"]);
    add("restore --dry-run", planned.expect(0).json());
    let exported = site.path("exported");
    add("export", site.run(&["export", "latest", "--to", &exported, "--wal", "--json"]).expect(0).json());
    // An export is a base backup like any other, and comes in again.
    add("import-basebackup", site.run(&["import-basebackup", &exported, "--json"]).expect(0).json());
    let segment = site.cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").unwrap();
    let history = site.cluster.data_dir().join("pg_wal").join(&segment);
    let dest = site.path("fetched");
    site.cluster.sql("SELECT pg_switch_wal()").unwrap();
    add("wal push", site.run(&["wal", "push", &history.to_string_lossy(), "--json"]).expect(0).json());
    add("wal fetch", site.run(&["wal", "fetch", &segment, &dest, "--json"]).expect(0).json());
    let server = site.command(&["wal", "serve", "--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let socket = site.dir.join(".local/state/pgkeep/main.sock");
    site.wait_for("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    assert!(std::process::Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    let served = server.wait_with_output().unwrap();
    add("wal serve", serde_json::from_slice(&served.stdout).unwrap());
    let receiver = site.command(&["wal", "receive", "--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgkeep' AND state = 'streaming'";
    site.wait_for("it streams", || site.cluster.sql(streams).unwrap() == "1");
    site.wait_for("its state is there", || {
        site.run(&["wal", "status", "--json"]).json()["receiver"]["server"].is_string()
    });
    add("wal status", site.run(&["wal", "status", "--json"]).expect(0).json());
    assert!(std::process::Command::new("kill").arg(receiver.id().to_string()).status().unwrap().success());
    let received = receiver.wait_with_output().unwrap();
    add("wal receive", serde_json::from_slice(&received.stdout).unwrap());
    add("wal index", site.run(&["wal", "index", "--rebuild", "--json"]).expect(0).json());
    let (first, at_once) = (site.run(&["list", "--json"]).json(), ["--grace", "0", "--json"]);
    let first = first["backups"][0]["id"].as_str().unwrap().to_owned();
    site.run(&["backup", "--full"]).expect(0);
    site.run(&["backup", "--full"]).expect(0);
    add("delete", site.run(&[&["delete", &first, "--yes"][..], &at_once[..]].concat()).expect(0).json());
    add("delete, of a dump", site.run(&["delete", &dump, "--yes", "--json"]).expect(0).json());
    add("expire", site.run(&[&["expire", "--keep-last", "1"][..], &at_once[..]].concat()).expect(0).json());
    add("key new", site.run(&["key", "new", &site.path("new.key"), "--json"]).expect(0).json());
    add("version", site.run(&["version", "--json"]).expect(0).json());
    add("An error", site.run(&["show", "20010101T000000Z", "--json"]).expect(3).json());

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (intro, documented) = document.split_once(MARK).expect("docs/json.md has the mark");
    if std::env::var_os("PGKEEP_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{intro}{MARK}{text}")).unwrap();
    } else {
        let problems = differences(documented, &text);
        let how = "PGKEEP_UPDATE_DOCS=1 writes docs/json.md anew; is the change one to make?";
        assert!(problems.is_empty(), "{}\n{how}", problems.join("\n"));
    }
}

/// Fields that are not documented, of another type, or gone. Whether a field has a value depends on the machine and the
/// moment, so null fits every type, and what is below a null or in an empty list may be absent.
fn differences(documented: &str, found: &str) -> Vec<String> {
    let (documented, found) = (by_field(documented), by_field(found));
    let mut problems = Vec::new();
    for (field, kind) in &found {
        match documented.get(field) {
            None => problems.push(format!("{field}: is not documented")),
            Some(other) => {
                let values = |kind: &str| kind.replace("null or ", "").replace("null", "");
                let (a, b) = (values(kind), values(other));
                if a != b && !a.is_empty() && !b.is_empty() {
                    problems.push(format!("{field}: is {kind}, documented as {other}"));
                }
            }
        }
    }
    for field in documented.keys().filter(|field| !found.contains_key(*field)) {
        let end = field.rfind(['.', '[']).unwrap_or(0);
        let parent = &field[..end];
        let has_value =
            found.get(parent).is_none_or(|kind| *kind == "object" || *kind == "list" && field.contains("[]."));
        if (has_value && !field.ends_with("[]")) && (parent.is_empty() || found.contains_key(parent)) {
            problems.push(format!("{field}: is documented and not there"));
        }
    }
    problems
}

/// From "title: field" to the type.
fn by_field(text: &str) -> std::collections::BTreeMap<String, String> {
    let mut title = "";
    let mut fields = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            title = name;
        } else if let Some((field, kind)) = line.strip_prefix("- `").and_then(|line| line.split_once("`: ")) {
            fields.insert(format!("{title}: {field}"), kind.to_owned());
        }
    }
    fields
}

/// Each field with its type, one a line. Of a list all elements are looked at.
fn fields(object: &Value) -> String {
    let mut found: Vec<(String, &'static str)> = Vec::new();
    walk("", object, &mut found);
    let mut lines: Vec<String> = Vec::new();
    found.sort();
    for (path, _) in &found {
        let types = found.iter().filter(|(other, _)| other == path).map(|(_, kind)| *kind);
        let mut types: Vec<&str> = types.collect();
        types.sort_unstable();
        types.dedup();
        // A field that is null in one place and not in another may be null anywhere.
        let line = format!("- `{path}`: {}", types.join(" or "));
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

fn walk(path: &str, value: &Value, found: &mut Vec<(String, &'static str)>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    if !path.is_empty() {
        found.push((path.to_owned(), kind));
    }
    match value {
        Value::Object(map) => {
            let dot = if path.is_empty() { "" } else { "." };
            map.iter().for_each(|(name, value)| walk(&format!("{path}{dot}{name}"), value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| walk(&format!("{path}[]"), value, found)),
        _ => {}
    }
}
