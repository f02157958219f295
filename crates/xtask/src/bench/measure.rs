//! How long a command runs and how much memory it takes.

use anyhow::{Context, Result, bail};
use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Run {
    /// Wall time.
    pub(super) seconds: f64,
    /// Processor time of the command and its descendants, as far as they were waited for; the server's is not in it.
    /// It says more than wall time when something else uses the machine.
    pub(super) cpu_seconds: f64,
    /// The largest sum of resident memory of the command and its descendants, sampled; memory that they share is
    /// counted for each. At least the high-water mark of the largest of them, as the kernel kept it.
    pub(super) memory_bytes: u64,
    /// Bytes that it left in its repository or directory, or added to it.
    pub(super) stored_bytes: u64,
}

/// Runs a command to its end and measures it. Exit codes in `accepted` count as success.
pub(super) fn measure(command: Command, accepted: &[i32]) -> Result<Run> {
    measure_and_hear(command, accepted).map(|(run, _)| run)
}

/// The same, with all that the command said.
pub(super) fn measure_and_hear(mut command: Command, accepted: &[i32]) -> Result<(Run, String)> {
    let shown = format!("{command:?}");
    // Output goes to files: a full pipe would stop the command.
    let said = tempfile::NamedTempFile::new().context("no temporary file")?;
    command.stdin(Stdio::null()).stdout(said.reopen()?).stderr(said.reopen()?);
    let cpu_before = cpu_seconds_of_children();
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let pid = child.id();
    let done = AtomicBool::new(false);
    let (status, seconds, memory_bytes) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample_memory(pid, &done));
        let status = child.wait();
        let seconds = start.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        (status, seconds, sampler.join().unwrap_or(0))
    });
    let status = status.with_context(|| format!("cannot wait for {shown}"))?;
    if !status.code().is_some_and(|code| accepted.contains(&code)) {
        bail!("{shown} ended with {status}\n{}", std::fs::read_to_string(said.path()).unwrap_or_default());
    }
    let said = std::fs::read_to_string(said.path()).unwrap_or_default();
    let cpu_seconds = cpu_seconds_of_children() - cpu_before;
    Ok((Run { seconds, cpu_seconds, memory_bytes, stored_bytes: 0 }, said))
}

/// The same for a command that leaves something working in the background: that must end too, and its processor time
/// counts. `seconds` is the command's own time.
pub(super) fn measure_with_background(command: Command, accepted: &[i32]) -> Result<Run> {
    reap_background();
    let before = cpu_seconds_of_children();
    let mut run = measure(command, accepted)?;
    reap_background();
    run.cpu_seconds = cpu_seconds_of_children() - before;
    Ok(run)
}

/// Waits for what was left in the background: this process is the parent of those whose parent has ended
/// (`testkit::pg::Cluster` makes it that). Not while a server runs, which is one of them.
pub(super) fn reap_background() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            // There is none left.
            Err(_) => break,
        }
    }
}

fn sample_memory(pid: u32, done: &AtomicBool) -> u64 {
    let mut largest = 0;
    while !done.load(Ordering::Relaxed) {
        let mut sum = 0;
        for pid in family(pid) {
            let (now, high) = resident_bytes(pid);
            sum += now;
            largest = largest.max(high);
        }
        largest = largest.max(sum);
        std::thread::sleep(Duration::from_millis(10));
    }
    largest
}

/// Processor time of all children that this process has waited for: `cutime` and `cstime` of proc(5).
pub(super) fn cpu_seconds_of_children() -> f64 {
    ticks("self", 13, 2)
}

/// Processor time of a process: with two fields its own, with four also that of its children that it has waited for.
pub(super) fn cpu_seconds_of(pid: u32, fields: usize) -> f64 {
    ticks(&pid.to_string(), 11, fields)
}

fn ticks(pid: &str, first: usize, count: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold blanks; what follows begins with field 3.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(first).take(count).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ, which is 100 wherever Linux runs.
    ticks as f64 / 100.0
}

/// The process and its descendants.
fn family(root: u32) -> HashSet<u32> {
    let mut found = HashSet::from([root]);
    let mut todo = vec![root];
    while let Some(pid) = todo.pop() {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.filter_map(Result::ok) {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            todo.extend(
                children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| found.insert(*pid)),
            );
        }
    }
    found
}

/// Resident memory of a process, now and at its highest.
fn resident_bytes(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// The middle value.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// Bytes of all files below a directory.
pub(super) fn dir_bytes(dir: &std::path::Path) -> u64 {
    let mut sum = 0;
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            match entry.metadata() {
                Ok(facts) if facts.is_dir() => todo.push(entry.path()),
                Ok(facts) => sum += facts.len(),
                Err(_) => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn time_and_memory_of_a_process_tree() {
        let mut command = Command::new("bash");
        // A child that holds 64 MiB for a moment.
        command.args(["-c", "bash -c 'x=$(head -c 67108864 /dev/zero | tr \"\\0\" a); sleep 0.3; echo ${#x}'; true"]);
        let run = measure(command, &[0]).unwrap();
        assert!(run.seconds >= 0.3, "{run:?}");
        assert!(run.cpu_seconds > 0.0, "making 64 MiB of text takes more than a tick: {run:?}");
        assert!(run.memory_bytes > 60 << 20, "{run:?}");
        let mut command = Command::new("bash");
        command.args(["-c", "echo wrong >&2; exit 3"]);
        assert!(measure(command, &[0]).unwrap_err().to_string().contains("wrong"));
    }
}
