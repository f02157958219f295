//! The socket's place in the file system: one server at a time, and what a killed one left is replaced.

use crate::EngineError;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// `sun_path` has 108 bytes, the last one is zero; the name while it is being made has four more than the final one.
const PATH_BYTES_MAX: usize = 107 - 4;

/// A socket that is listened at. Dropping it removes the file.
pub(super) struct Socket {
    path: PathBuf,
    /// Held as long as this lives, and given back by the kernel however the process ends.
    _lock: File,
}

impl Socket {
    /// Takes the place and listens there.
    pub(super) fn open(path: &Path) -> Result<(Self, UnixListener), EngineError> {
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(EngineError::refused(
                format!("{}: a socket's path has at most {PATH_BYTES_MAX} bytes", path.display()),
                "name a shorter one with --socket, here and for `pgkeep init --archive-library`",
            ));
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|error| EngineError::file(dir, "making the directory", error))?;
        let lock = lock(path)?;
        let fail = |action| move |error| EngineError::file(path, action, error);
        // Under another name first: there is no moment in which others may connect, or in which nobody can.
        let temp = with_suffix(path, ".new");
        match fs::remove_file(&temp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail("replacing")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&temp).map_err(fail("making the socket"))?;
        fs::set_permissions(&temp, Permissions::from_mode(0o600)).map_err(fail("closing to others"))?;
        fs::rename(&temp, path).map_err(fail("making the socket"))?;
        listener.set_nonblocking(true).map_err(fail("making the socket"))?;
        Ok((Self { path: path.to_owned(), _lock: lock }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock's file stays: removing it could let two others hold locks on two files of one name.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(path: &Path) -> Result<File, EngineError> {
    let lock_path = with_suffix(path, ".lock");
    let fail = |error| EngineError::file(&lock_path, "locking", error);
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(fail)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(EngineError::refused(
                format!("{}: another `pgkeep wal serve` listens there (process {})", path.display(), pid.trim()),
                "one is enough for a cluster; stop that one first, or name another socket",
            ));
        }
        Err(error) => return Err(fail(error.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // Only for people to read.
    let _ = write(&mut file);
    Ok(file)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn one_at_a_time_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/s.sock");
        let (first, _listener) = Socket::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let refused = Socket::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        UnixStream::connect(&path).expect("the first one's socket is untouched");
        drop(first);
        assert!(!path.exists());
        Socket::open(&path).unwrap();
    }

    #[test]
    fn what_a_killed_one_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        drop(UnixListener::bind(dir.path().join("s.sock.new")).unwrap());
        fs::write(dir.path().join("s.sock.lock"), "12345\n").unwrap();
        assert!(UnixStream::connect(&path).is_err());
        let (_socket, _listener) = Socket::open(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_path_that_no_client_could_name_is_refused() {
        let long = PathBuf::from("/tmp").join("x".repeat(110));
        assert!(Socket::open(&long).is_err_and(|error| error.to_string().contains("at most")));
    }
}
