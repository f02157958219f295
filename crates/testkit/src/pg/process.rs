//! Processes: running them to their end, and seeing which are still there.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
}

impl Output {
    /// True when it ended with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code; -1 when a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// Runs a command to its end and returns what it said, whatever its exit code.
pub(crate) fn run(mut command: Command, input: Option<&str>) -> Result<Output> {
    let shown = format!("{command:?}");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let writer = match (child.stdin.take(), input) {
        (Some(mut pipe), Some(text)) => {
            let text = text.to_owned();
            // A program that ends early closes the pipe; its exit code says why.
            Some(std::thread::spawn(move || drop(pipe.write_all(text.as_bytes()))))
        }
        _ => None,
    };
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {shown}"))?;
    if let Some(writer) = writer {
        writer.join().ok();
    }
    Ok(Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The same, where anything but exit code 0 is an error that carries both streams.
pub(crate) fn run_ok(command: Command, input: Option<&str>) -> Result<String> {
    let shown = format!("{command:?}");
    let output = run(command, input)?;
    if !output.success() {
        bail!("{shown} ended with {}\n{}{}", output.status, output.stdout, output.stderr);
    }
    Ok(output.stdout)
}

/// Ids of the living processes that work in `dir`: every process of a server has its data directory as working
/// directory (`ChangeToDataDir` in `src/backend/utils/init/miscinit.c`), and so have the archive commands it runs.
#[must_use]
pub fn processes_in(dir: &Path) -> Vec<i32> {
    let Ok(dir) = dir.canonicalize() else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir))
        .filter(|pid| is_alive(*pid))
        .collect()
}

/// True when the process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name in parentheses may hold anything; the state follows the last parenthesis.
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next())
        .is_some_and(|state| state != "Z" && state != "X")
}

/// Sends a signal. A process that is gone already is no error.
pub(crate) fn signal(pid: i32, signal: rustix::process::Signal) -> Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { bail!("{pid} is no process id") };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot send {signal:?} to process {pid:?}")),
    }
}

/// Asks again and again until `done` says yes or the time is over; returns the last answer.
pub(crate) fn poll(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes this process the parent of servers whose starter (`pg_ctl`) has ended, so that it can reap them. Until a
/// killed server is reaped its process id exists, and the next start takes it for a running server. Many containers
/// have a first process that reaps late or never.
pub(crate) fn adopt_orphans() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::Pid::INIT))
        .context("cannot become the parent of servers")
}

/// Collects a dead child; a process that is no child of ours, or alive, stays as it is.
fn reap(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG).ok();
    }
}

/// Waits until a process that was told to end is gone, its table entry too.
pub(crate) fn wait_gone(pid: i32, limit: Duration) -> Result<()> {
    let gone = poll(limit, || {
        reap(pid);
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    if !gone {
        bail!("process {pid} is still there after {limit:?}");
    }
    Ok(())
}

/// Ends every process that works in `dir`: waits for `grace`, then kills.
pub(crate) fn end_all_in(dir: &Path, grace: Duration) -> Result<()> {
    let pids = processes_in(dir);
    let ended = end_living_in(dir, grace);
    pids.into_iter().for_each(reap);
    ended
}

fn end_living_in(dir: &Path, grace: Duration) -> Result<()> {
    if poll(grace, || processes_in(dir).is_empty()) {
        return Ok(());
    }
    for pid in processes_in(dir) {
        signal(pid, rustix::process::Signal::KILL)?;
    }
    if poll(Duration::from_secs(20), || processes_in(dir).is_empty()) {
        return Ok(());
    }
    bail!("processes {:?} in {} cannot be killed", processes_in(dir), dir.display())
}

/// Removes what killed test runs left in the folder for temporary files: servers whose test process is gone.
/// Returns how many were removed.
///
/// # Errors
/// When the folder cannot be read.
pub fn sweep_stale() -> Result<usize> {
    let mut swept = sweep(&super::builder::temp_base())?;
    if let Some(base) = super::builder::memory_base() {
        swept += sweep(&base)?;
    }
    Ok(swept)
}

fn sweep(base: &Path) -> Result<usize> {
    let mut swept = 0;
    for entry in std::fs::read_dir(base).with_context(|| format!("cannot read {}", base.display()))? {
        let path = entry?.path();
        let Ok(owner) = std::fs::read_to_string(path.join("owner")) else {
            continue;
        };
        let named =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(super::builder::TEMP_PREFIX));
        let Some(pid) = owner.trim().parse::<i32>().ok().filter(|_| named) else {
            continue;
        };
        if is_alive(pid) {
            continue;
        }
        let data = path.join("data");
        end_all_in(&data, Duration::ZERO)?;
        if std::fs::remove_dir_all(&path).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}
