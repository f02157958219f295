//! Hooks around operations, and what keeps a backup from being in the server's way.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::io::Write as _;
use support::Site;

fn configure(site: &Site, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(site.config()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// What hooks wrote since it was asked the last time.
fn written(site: &Site) -> Vec<String> {
    let path = site.dir.join("hooks.log");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn hooks_are_told_what_happened_and_run_whatever_happened() {
    let site = Site::new();
    let log = site.path("hooks.log");
    let note = |words: &str| format!("echo $PGKEEP_HOOK {words} >> {log}");
    let all = "$PGKEEP_OPERATION $PGKEEP_CLUSTER $PGKEEP_RESULT $PGKEEP_EXIT_CODE $PGKEEP_BACKUP_ID";
    let trouble = site.path("trouble");
    configure(
        &site,
        &format!(
            "\n[hooks]\nbefore = '{}'\nafter = '{}'\non-failure = '{}'\ntimeout = \"20s\"\n\
             [cluster.main.hooks]\nbefore-backup = 'if test -f {trouble}; then echo the lock is held; exit 3; fi'\n\
             after-backup = '{} && {} verify latest && nice >> {log}'\non-failure-restore = '{}'\n",
            note(all),
            note(all),
            note("$PGKEEP_ERROR"),
            note(all),
            site.program.display(),
            note("restore"),
        ),
    );
    let made = site.run(&["backup", "--json", "--nice", "7"]).expect(0).json();
    let id = made["backup"].as_str().unwrap();
    let own = |when: &str, rest: &str| format!("{when} backup main {rest}").trim_end().to_owned();
    let done = format!("done 0 {id}");
    // What a hook calls has the configuration, and no hooks.
    assert_eq!(
        written(&site),
        [own("before", ""), own("after-backup", &done), "7".into(), own("after", &done)],
        "in this order"
    );
    site.run(&["expire", "--keep-last", "3", "--dry-run"]).expect(0);
    site.run(&["list"]).expect(0);
    assert!(written(&site).is_empty(), "what only looks has no hooks");

    std::fs::write(&trouble, "").unwrap();
    let said = site.run(&["backup", "--json"]).expect(1);
    let error = said.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("before-backup") && error.contains("exit status: 3"), "{error}");
    assert!(error.contains("the lock is held") && error.contains("backup was not begun"), "{error}");
    let lines = written(&site);
    assert!(lines.iter().any(|line| line.starts_with("on-failure the before-backup hook's command")), "{lines:?}");
    assert!(lines.contains(&own("after", "failed 1")), "{lines:?}");
    assert_eq!(site.run(&["list", "--json"]).json()["backups"].as_array().unwrap().len(), 1);
    std::fs::remove_file(&trouble).unwrap();

    // Beside a server that runs a backup is nice, unless it is already.
    let own = std::process::Command::new("nice").output().unwrap().stdout;
    let own = String::from_utf8_lossy(&own).trim().to_owned();
    site.run(&["backup"]).expect(0);
    assert!(written(&site).contains(&if own == "0" { "5".to_owned() } else { own }));

    site.run(&["restore", "--to-dir", &site.path("x"), "--restore-point", "never"]).expect(3);
    let lines = written(&site);
    assert!(lines.contains(&"on-failure-restore restore".to_owned()), "{lines:?}");
    assert!(lines.contains(&"after restore main failed 3".to_owned()), "{lines:?}");
}

#[test]
fn a_hook_that_fails_or_hangs_afterwards_makes_exit_code_4() {
    let site = Site::new();
    configure(&site, "\n[hooks]\nafter-backup = 'echo no mail today; exit 9'\n");
    let said = site.run(&["backup", "--json"]).expect(4);
    said.json()["backup"].as_str().unwrap();
    let object = said.json();
    assert_eq!(object["exit_code"], 4);
    let warnings = object["warnings"].to_string();
    assert!(warnings.contains("after-backup") && warnings.contains("no mail today"), "{warnings}");
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text.replace("echo no mail today; exit 9", "sleep 1000") + "timeout = \"1s\"\n")
        .unwrap();
    site.run(&["backup"]).expect(4).says(&["did not end within 1 s and was killed"]);
    assert_eq!(site.run(&["list", "--json"]).json()["backups"].as_array().unwrap().len(), 2);
}

#[test]
fn reading_stops_when_its_time_is_up() {
    let site = Site::new();
    // Some 20 MB at this rate take minutes.
    let slow = ["backup", "--json", "--max-rate", "100kB"];
    let said = site.run(&[&slow[..], &["--stop-after", "1s"]].concat()).expect(1);
    said.json()["error"]["kind"].as_str().unwrap();
    let object = said.json();
    assert_eq!(object["error"]["kind"], "stopped");
    let error = object["error"].to_string();
    assert!(error.contains("no backup was made") && error.contains("goes on from what was stored"), "{error}");
    assert_eq!(site.run(&["list", "--json"]).json()["backups"].as_array().unwrap().len(), 0);
    site.run(&["backup"]).expect(0);
    for bad in [&["--max-rate", "50"][..], &["--until", "25:00"], &["--nice", "20"], &["--stop-after", "0"]] {
        site.run(&[&["backup"], bad].concat()).expect(2);
    }
    site.run(&["backup", "--until", "06:00", "--stop-after", "2h"]).expect(2);
}
