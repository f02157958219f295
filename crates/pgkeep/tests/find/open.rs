//! What was open at a target, of which nothing but the WAL just before it tells.

use crate::support::Site;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

/// A session that stays.
struct Session {
    psql: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Session {
    fn open(site: &Site) -> Self {
        let mut command = site.cluster.command_as_pg(site.cluster.bin("psql").unwrap());
        command.args(["-XqAt", &site.cluster.conninfo()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = command.spawn().unwrap();
        let answers = BufReader::new(psql.stdout.take().unwrap());
        Self { psql, answers }
    }

    /// Runs statements; the last line of what they answer.
    fn run(&mut self, sql: &str) -> String {
        writeln!(self.psql.stdin.as_mut().unwrap(), "{sql};\n\\echo done").unwrap();
        let mut last = String::new();
        for line in (&mut self.answers).lines() {
            let line = line.unwrap();
            if line == "done" {
                return last;
            }
            last = line;
        }
        panic!("psql ended: {sql}");
    }

    /// Begins a transaction that writes something; its ID.
    fn begin(&mut self) -> u64 {
        self.run("BEGIN; INSERT INTO written VALUES (1); SELECT txid_current()").parse().unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.psql.stdin.take());
        let _ = self.psql.wait();
    }
}

#[test]
fn what_was_open_at_a_target_is_told_in_full() {
    let site = Site::new();
    site.cluster.sql("CREATE TABLE written (a int); CREATE TABLE victim (a int)").unwrap();
    let mut sessions: Vec<Session> = (0..4).map(|_| Session::open(&site)).collect();
    let before_backup = sessions[3].begin();
    site.run(&["backup"]).expect(0);
    let early = sessions[0].begin();
    site.archive();
    let never = sessions[1].begin();
    let part = sessions[2].run("BEGIN; SAVEPOINT a; INSERT INTO written VALUES (1); RELEASE a; SELECT txid_current()");
    let rolled_back: u64 = part.parse().unwrap();
    site.cluster.sql("DROP TABLE victim").unwrap();
    sessions[0].run("COMMIT");
    sessions[2].run("ROLLBACK");
    sessions[3].run("COMMIT");
    site.archive();

    let dir = site.path("restored");
    let planned = site.run(&["restore", "--to-dir", &dir, "--before", "drop victim", "--dry-run", "--json"]);
    let planned = planned.expect(0).json();
    let lost = &planned["lost"];
    let open = lost["open"].as_array().unwrap().iter();
    let open: Vec<(u64, &str)> =
        open.map(|open| (open["xid"].as_u64().unwrap(), open["state"].as_str().unwrap())).collect();
    let expected = [(before_backup, "committed"), (early, "committed"), (never, "unknown"), (rolled_back, "aborted")];
    assert_eq!((open, &lost["open_complete"]), (expected.to_vec(), &serde_json::json!(true)), "{lost:#}");
    sessions[1].run("ROLLBACK");
}
