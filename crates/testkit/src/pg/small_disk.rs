//! File systems that are soon full.

use super::ServerUser;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A small file system in memory, over a directory; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one that belongs to `user`. `size` is as `mount -t tmpfs -o size=` takes it, such as `64m`. `None` where
    /// mounting is not allowed.
    #[must_use]
    pub fn mount(dir: &Path, user: &ServerUser, size: &str) -> Option<Self> {
        let options = format!("size={size},mode=0700,uid={},gid={}", user.uid, user.gid);
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "pgkeep-test"]).arg(dir).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then(|| Self(dir.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
