//! What is known of this host and its processes.

use repo::LeaseHolder;
use repo::manifest::HostFacts;
use std::fs;

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat`. `None` when there is no such process.
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold spaces and brackets; the last bracket ends it.
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// This process, as the holder of a lease.
pub fn lease_holder() -> LeaseHolder {
    let pid = std::process::id();
    LeaseHolder { host: hostname(), boot: boot_id(), pid, process_start: process_start(pid).unwrap_or_default() }
}

/// Whether a holder's process is known to have ended. Of other hosts nothing is known.
pub fn process_is_gone(holder: &LeaseHolder) -> bool {
    if holder.host != hostname() {
        return false;
    }
    holder.boot != boot_id() || process_start(holder.pid) != Some(holder.process_start)
}

/// Facts about this host that matter for where a cluster can be restored. Collations are the caller's to add.
pub fn host_facts() -> HostFacts {
    let os = fs::read_to_string("/etc/os-release").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(line.trim_matches('"').to_owned())
    });
    HostFacts { name: hostname(), os, glibc: glibc_version(), collations: Vec::new() }
}

/// glibc's version, as `getconf GNU_LIBC_VERSION` tells it.
fn glibc_version() -> Option<String> {
    let output = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().strip_prefix("glibc ").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_here_and_others_are_judged_by_their_start() {
        let me = lease_holder();
        assert!(!process_is_gone(&me));
        assert!(process_is_gone(&LeaseHolder { process_start: me.process_start + 1, ..me.clone() }));
        assert!(process_is_gone(&LeaseHolder { boot: "before".into(), ..me.clone() }));
        assert!(!process_is_gone(&LeaseHolder { host: "elsewhere".into(), boot: "x".into(), ..me }));
    }
}
