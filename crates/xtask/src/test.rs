//! `cargo xtask test`: everything that must hold before a change is whole.
//!
//! All steps run even when an earlier one fails, so that one run shows all there is to mend. The last line counts:
//! each test is one, and each other step (house rules, formatting, lints, build) is one.

use crate::{setup, sh, tidy};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these tests: words that their names contain
    filters: Vec<String>,
    /// Do not install anything; fail when something is missing
    #[arg(long)]
    no_setup: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let begin = Instant::now();
    let mut counts = Counts::default();
    let mut failed = Vec::new();
    let mut step = |name: &str, result: Result<Counts>| {
        let of_step = result.unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            Counts { passed: 0, failed: 1 }
        });
        if of_step.failed > 0 {
            failed.push(name.to_owned());
        }
        counts.add(of_step);
    };
    let one = |result: Result<()>| result.map(|()| Counts { passed: 1, failed: 0 });
    step("set-up", one(setup::run(&setup::Options::for_tests(options.no_setup))));
    step("tidy", one(tidy::run()));
    step("format", one(cargo(&["fmt", "--all", "--check"])));
    step("lints", one(cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])));
    step("build", one(cargo(&["build", "--quiet", "-p", "pgkeep"])));
    if let Ok(swept @ 1..) = testkit::pg::sweep_stale() {
        println!("removed {swept} servers of killed test runs");
    }
    step("tests", tests(&options.filters));
    if options.filters.is_empty() {
        step("examples in documentation", doc_tests());
    }
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
    }
    println!("{:.0} s", begin.elapsed().as_secs_f64());
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if counts.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    println!("cargo {}", arguments.join(" "));
    if !sh::shown(sh::cargo().args(arguments))? {
        bail!("cargo {} failed", arguments.first().unwrap_or(&""));
    }
    Ok(())
}

fn tests(filters: &[String]) -> Result<Counts> {
    let mut command = sh::cargo();
    if sh::on_path("cargo-nextest") {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--config-file", "crates/xtask/nextest.toml"]);
        // Passing tests are counted, not listed.
        command.args(["--status-level", "fail", "--final-status-level", "fail"]);
        if !filters.is_empty() {
            command.args(filters);
        }
    } else {
        command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"]);
        // The plain runner starts as many tests as there are cores, and takes one word only.
        command.args(filters.iter().take(1));
    }
    counted(command)
}

fn doc_tests() -> Result<Counts> {
    let mut command = sh::cargo();
    command.args(["test", "--workspace", "--doc", "--quiet"]);
    counted(command)
}

/// Runs a test command, shows what it prints, and adds up its summary lines.
fn counted(mut command: Command) -> Result<Counts> {
    println!("{}", shown_command(&command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let other = std::thread::spawn(move || show_and_count(stdout, std::io::stdout()));
    let mut counts = show_and_count(stderr, std::io::stderr());
    counts.add(other.join().unwrap_or_default());
    let status = child.wait().context("cannot wait for the tests")?;
    if !status.success() && counts.failed == 0 {
        // Not a test failed but the building of them, or the runner.
        counts.failed = 1;
    }
    Ok(counts)
}

fn shown_command(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    format!("cargo {}", words.collect::<Vec<_>>().join(" "))
}

fn show_and_count(from: impl std::io::Read, mut to: impl Write) -> Counts {
    let mut counts = Counts::default();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        counts.add(summary(&line).unwrap_or_default());
        writeln!(to, "{line}").ok();
    }
    counts
}

/// Reads the summary line of nextest or of cargo's own runner.
fn summary(line: &str) -> Option<Counts> {
    let is_nextest = line.trim_start().starts_with("Summary [");
    if !is_nextest && !line.starts_with("test result: ") {
        return None;
    }
    let number_before = |word: &str| {
        let before = line.split(word).next().filter(|before| before.len() < line.len())?;
        before.trim_end().rsplit(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let passed = number_before(" passed").unwrap_or(0);
    // A test that ran into its time limit is counted apart by nextest.
    let failed = number_before(" failed").unwrap_or(0) + number_before(" timed out").unwrap_or(0);
    Some(Counts { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_summaries() {
        let check = |line, passed, failed| assert_eq!(summary(line), Some(Counts { passed, failed }), "{line}");
        check("     Summary [  15.952s] 22 tests run: 21 passed, 1 failed, 0 skipped", 21, 1);
        check("     Summary [   2.5s] 10 tests run: 10 passed (1 slow), 0 skipped", 10, 0);
        check("     Summary [   9.0s] 4 tests run: 2 passed, 1 failed, 1 timed out, 0 skipped", 2, 2);
        check("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", 5, 0);
        check("test result: FAILED. 3 passed; 2 failed; 1 ignored", 3, 2);
        assert_eq!(summary("running 5 tests"), None);
    }
}
