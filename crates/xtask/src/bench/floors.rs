//! The limits to come near: reading the files, compressing them on all cores, copying them.

use super::field::settle;
use super::measure::{Run, measure};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use testkit::pg::Cluster;

/// A command that nobody who makes backups can beat, by much.
pub(super) struct Floor {
    pub(super) name: &'static str,
    script: &'static str,
    programs: &'static [&'static str],
}

/// Of a backup.
pub(super) const BACKUP: [Floor; 2] = [
    Floor {
        name: "floor: cat of the files, 2 processes",
        script: "find base global -type f -print0 | xargs -0 -P 2 -n 32 cat > /dev/null",
        programs: &[],
    },
    Floor {
        name: "floor: zstd -1 -T0 of the files",
        script: "find base global -type f -print0 | xargs -0 cat | zstd -1 -T0 -q > \"$1/floor.zst\"; sync -f \"$1\"",
        programs: &["zstd"],
    },
];

/// Of a restore.
pub(super) const RESTORE: [Floor; 1] = [Floor {
    name: "floor: cp of the files, flushed",
    script: "cp -a --reflink=never base global \"$1/\" && sync -f \"$1\"",
    programs: &[],
}];

impl Floor {
    /// Runs it on the cluster's files.
    pub(super) fn measure(&self, cluster: &Cluster) -> Result<Run> {
        for program in self.programs {
            crate::setup::program(program, program).with_context(|| format!("{} needs {program}", self.name))?;
        }
        let target = cluster.make_dir("floor")?;
        settle()?;
        let mut run = measure(self.command(cluster, &target), &[0])?;
        run.stored_bytes = super::measure::dir_bytes(&target);
        println!("{}: {:.2} s", self.name, run.seconds);
        std::fs::remove_dir_all(&target)?;
        Ok(run)
    }

    fn command(&self, cluster: &Cluster, target: &Path) -> Command {
        let mut command = cluster.command_as_pg("bash");
        command.args(["-c", &format!("set -eo pipefail; {}", self.script), "floor"]).arg(target);
        command.current_dir(cluster.data_dir());
        command
    }
}
