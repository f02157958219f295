//! Whether a server runs on a data directory.
//!
//! `postmaster.pid` says so, by the rules of `CreateLockFile` and `PGSharedMemoryIsInUse`
//! (`src/backend/utils/init/miscinit.c`, `src/backend/port/sysv_shmem.c`): the process, or, where it has gone, the shared
//! memory segment to which children of it may still be attached. A server in another container or on another host is
//! not seen so; its pid file is: then nobody here can tell whether it runs.

use crate::EngineError;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The line of `postmaster.pid` with the shared memory key and ID (`LOCK_FILE_LINE_SHMEM_KEY`).
const SHMEM_LINE: usize = 7;

/// What is known of a server on a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backup) enum Running {
    /// No pid file, or one of a server that ended without removing it, with its content.
    No {
        /// What the file held.
        pid_file: Option<Vec<u8>>,
    },
    /// It runs.
    Yes {
        /// How that is known.
        why: String,
    },
    /// There is a pid file, and nothing here tells whether its server runs elsewhere.
    Unknown {
        /// What was seen.
        why: String,
    },
}

/// Looks whether a server runs on the directory.
pub(in crate::backup) fn look(data: &Path) -> Result<Running, EngineError> {
    look_with(data, Path::new("/proc"))
}

fn look_with(data: &Path, proc: &Path) -> Result<Running, EngineError> {
    let path = data.join("postmaster.pid");
    let content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Running::No { pid_file: None }),
        Err(error) => return Err(EngineError::file(path, "reading", error)),
    };
    let text = String::from_utf8_lossy(&content);
    let mut lines = text.lines();
    // A server that is alone on its files (`--single`) writes its process ID as a negative number.
    let pid =
        lines.next().and_then(|line| line.trim().trim_start_matches('-').parse::<u32>().ok()).filter(|&pid| pid > 0);
    let Some(pid) = pid else {
        return Ok(Running::Unknown { why: format!("{} holds no process ID", path.display()) });
    };
    let process = proc.join(pid.to_string());
    if process.exists() {
        // The number may have been given to another process: a server's working directory is its data directory.
        let there = fs::read_link(process.join("cwd")).ok();
        let here = fs::canonicalize(data).ok();
        if there.is_none() || here.is_none() || there == here {
            return Ok(Running::Yes { why: format!("process {pid} of {}", path.display()) });
        }
    }
    let shmem = text.lines().nth(SHMEM_LINE - 1).and_then(|line| {
        let mut words = line.split_ascii_whitespace();
        Some((words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?))
    });
    match shmem.and_then(|(key, id)| attached(proc, key, id)) {
        Some(0) => Ok(Running::No { pid_file: Some(content) }),
        Some(count) => {
            Ok(Running::Yes { why: format!("{count} processes hold the shared memory that {} names", path.display()) })
        }
        None => Ok(Running::Unknown {
            why: format!("{} names process {pid}, which is not to be seen on this host", path.display()),
        }),
    }
}

/// How many processes are attached to a System V shared memory segment; none when there is no such segment. One that is
/// there and that nobody is attached to was left behind, on this very host, by a server that was killed.
fn attached(proc: &Path, key: i64, id: i64) -> Option<u64> {
    let table = fs::read_to_string(proc.join("sysvipc/shm")).ok()?;
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let column = |name| names.iter().position(|&found| found == name);
    let (key_at, id_at, count_at) = (column("key")?, column("shmid")?, column("nattch")?);
    lines.find_map(|line| {
        let values: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| values.get(at)?.parse::<i64>().ok();
        // The server writes its key as an unsigned number, the kernel as a signed one.
        let same = number(id_at)? == id && number(key_at)? as i32 == key as i32;
        same.then(|| number(count_at).and_then(|count| u64::try_from(count).ok()))?
    })
}

/// Refuses a directory on which a server runs, or may run.
pub(in crate::backup) fn refuse_running(data: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    match look(data)? {
        Running::No { pid_file } => Ok(pid_file),
        Running::Yes { why } => Err(EngineError::refused(
            format!("{}: a server runs on it ({why})", data.display()),
            "stop it first (`pg_ctl stop -m fast`), or back it up while it runs: leave out `--source offline`",
        )),
        Running::Unknown { why } => Err(EngineError::refused(
            format!("{}: a server may run on it: {why}", data.display()),
            "it may run in another container or on another host that has this directory too: stop it there. When it is \
             certain that it crashed, remove postmaster.pid and run the backup again",
        )),
    }
}

/// The pid file of a directory, for saying that it is not the one it was.
pub(in crate::backup) fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// `/proc` as it would be with these processes (by their working directories) and shared memory segments.
    fn check(pid_file: Option<&str>, processes: &[(u32, &str)], segments: &[(i64, i64, u64)]) -> &'static str {
        let dir = tempfile::tempdir().unwrap();
        let (proc, data) = (dir.path().join("proc"), dir.path().join("data"));
        fs::create_dir_all(proc.join("sysvipc")).unwrap();
        fs::create_dir_all(&data).unwrap();
        for (pid, cwd) in processes {
            fs::create_dir_all(proc.join(pid.to_string())).unwrap();
            symlink(dir.path().join(cwd), proc.join(pid.to_string()).join("cwd")).unwrap();
        }
        let mut table = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid\n".to_owned();
        for (key, id, attached) in segments {
            table +=
                &format!("{:10} {id:10}   600                    56  9  9 {attached:6}   101   101\n", *key as i32);
        }
        fs::write(proc.join("sysvipc/shm"), table).unwrap();
        if let Some(text) = pid_file {
            fs::write(data.join("postmaster.pid"), text).unwrap();
        }
        match look_with(&data, &proc).unwrap() {
            Running::No { pid_file: None } => "no",
            Running::No { pid_file: Some(_) } => "left behind",
            Running::Yes { .. } => "yes",
            Running::Unknown { .. } => "unknown",
        }
    }

    #[test]
    fn a_server_is_seen_by_its_process_its_memory_or_not_at_all() {
        let file = "77\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  3000000000         5\nready   \n";
        assert_eq!(check(None, &[(77, "data")], &[]), "no");
        assert_eq!(check(Some(file), &[(77, "data")], &[]), "yes");
        assert_eq!(check(Some("-77\n/data\n"), &[(77, "data")], &[]), "yes");
        assert_eq!(check(Some(file), &[(77, "other")], &[]), "unknown", "the number is another process's now");
        assert_eq!(check(Some(file), &[], &[]), "unknown", "another host, another container, or a crash");
        assert_eq!(check(Some(file), &[], &[(3_000_000_000, 5, 0)]), "left behind", "killed here");
        assert_eq!(check(Some(file), &[], &[(3_000_000_000, 5, 2)]), "yes", "children are still there");
        assert_eq!(check(Some(file), &[], &[(3_000_000_000, 6, 0), (4, 5, 0)]), "unknown", "other segments");
        for odd in ["", "x\n", "0\n", "77\n/data\n1\n5432\n/tmp\n\n nonsense\n"] {
            assert_eq!(check(Some(odd), &[], &[]), "unknown", "{odd:?}");
        }
    }
}
