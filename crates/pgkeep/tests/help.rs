//! The help texts are snapshots: a change to them is seen and reviewed. Scripts and people depend on them.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::process::Command;

fn pgkeep(args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep"));
    command.args(args).env_remove("COLUMNS").env_remove("PGKEEP_CONFIG").env("HOME", "/nonexistent");
    command.env("XDG_CONFIG_HOME", "/nonexistent").output().unwrap()
}

const COMMANDS: [&str; 31] = [
    "",
    "init",
    "check",
    "status",
    "backup",
    "list",
    "show",
    "pin",
    "unpin",
    "delete",
    "expire",
    "verify",
    "find",
    "restore",
    "restore-point create",
    "export",
    "import-basebackup",
    "dump",
    "load",
    "wal",
    "wal push",
    "wal fetch",
    "wal serve",
    "wal receive",
    "wal log",
    "wal status",
    "wal index",
    "key new",
    "completions",
    "man",
    "version",
];

#[test]
fn help_of_every_command() {
    let mut all = String::new();
    for command in COMMANDS {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let output = pgkeep(&args);
        assert!(output.status.success(), "{command}");
        let text = String::from_utf8(output.stdout).unwrap();
        let text: Vec<&str> = text.lines().map(str::trim_end).collect();
        all += &format!("######## pgkeep {command}\n{}\n\n", text.join("\n"));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["init", "main"],
        &["init", "main", "--pg", "", "--repo", "/r"],
        &["init", "main", "--pg", "", "--repo", "/r", "--no-encryption", "--key-file", "/k"],
        &["restore"],
        &["restore", "--to-dir", "/x", "--latest", "--immediate"],
        &["backup", "--workers", "0"],
        &["backup", "-q", "-v"],
        &["list", "a", "--cluster", "b", "--config", "/nonexistent"],
        &["verify", "latest", "--all"],
        &["dump", "--all", "--database", "x"],
        &["dump", "--format", "custom"],
        &["load", "latest"],
        &["load", "latest", "--into", "", "--force", "--create", "x"],
        &["backup", "--source", "stream"],
        &["delete"],
        &["expire", "--keep-last", "0"],
        &["expire", "--keep-last", "3", "--keep-all"],
        &["pin"],
        &["restore", "--to-dir", "/x", "--latest", "--action", "pause"],
        &["restore", "--to-dir", "/x", "--immediate", "--exclusive"],
        &["restore", "--to-dir", "/x", "--tablespace", "nonsense"],
        &["restore", "--to-dir", "/x", "--lsn", "nonsense"],
        &["restore", "--to-dir", "/x", "--xid", "2"],
        &["restore", "--to-dir", "/x", "--before", " "],
        &["restore", "--to-dir", "/x", "--before", "drop t", "--exclusive"],
        &["find", "--xid", "2"],
        &["find", "--kind", "nonsense"],
        &["restore-point", "create", ""],
    ] {
        let output = pgkeep(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(!said.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_manual_pages_and_version() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = pgkeep(&["completions", shell]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("restore"), "{shell}");
    }
    let page = pgkeep(&["man"]);
    assert!(String::from_utf8_lossy(&page.stdout).starts_with(".ie"), "a page in roff");
    let dir = tempfile::tempdir().unwrap();
    assert!(pgkeep(&["man", "--to", &dir.path().to_string_lossy()]).status.success());
    for name in ["pgkeep.1", "pgkeep-restore.1", "pgkeep-wal-fetch.1"] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
    let version = pgkeep(&["version"]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with(concat!("pgkeep ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn with_json_an_error_is_an_object_too() {
    let output = pgkeep(&["list", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((object["exit_code"].as_u64(), object["error"]["kind"].as_str()), (Some(2), Some("usage")));
    assert!(object["error"]["hints"][0].as_str().unwrap().contains("pgkeep init"));
}
