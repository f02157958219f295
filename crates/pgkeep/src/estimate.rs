//! How long a restore will take, by what earlier ones on this host took.

use crate::output::size;
use crate::when;
use engine::restore::{RestorePlan, RestoreReport};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Restores that are remembered,
const KEPT: usize = 50;
/// and those of one repository that are looked at.
const LOOKED_AT: usize = 5;

/// What one restore took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Measured {
    /// The repository's URL.
    repository: String,
    bytes: u64,
    elapsed_ms: u64,
    /// The WAL that was replayed, when the server was started and came to its target.
    #[serde(default)]
    replay: Option<Replay>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Replay {
    segments: u64,
    elapsed_ms: u64,
}

/// How long a restore will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// Seconds for the files.
    pub(crate) files_seconds: f64,
    /// Seconds for replaying the WAL; `None` when that was never measured.
    pub(crate) replay_seconds: Option<f64>,
    /// How many restores that is drawn from.
    pub(crate) restores: usize,
}

impl Estimate {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let length = |seconds: f64| when::length(seconds.ceil() as u64);
        let source = format!("by {} here", size::count(self.restores as u64, "earlier restore", "earlier restores"));
        let files = length(self.files_seconds);
        match self.replay_seconds {
            Some(0.0) => format!("about {files} {source}"),
            Some(replay) => {
                format!("about {files} for the files and {replay} for the WAL, {source}", replay = length(replay))
            }
            None => format!("about {files} for the files, {source}; for the WAL, it was not measured yet"),
        }
    }
}

/// What restores on this host took.
pub(crate) struct Memory {
    path: PathBuf,
    repository: String,
}

impl Memory {
    pub(crate) fn new(state_dir: &Path, repository: &str) -> Self {
        Self { path: state_dir.join("restores.json"), repository: repository.to_owned() }
    }

    fn read(&self) -> Vec<Measured> {
        // What cannot be read was never measured.
        fs::read(&self.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// By the last restores from this repository; `None` when there was none.
    pub(crate) fn estimate(&self, plan: &RestorePlan) -> Option<Estimate> {
        self.for_amounts(plan.bytes, plan.wal.segments)
    }

    fn for_amounts(&self, bytes: u64, segments: u64) -> Option<Estimate> {
        let all = self.read();
        let mine = || all.iter().rev().filter(|one| one.repository == self.repository);
        let sum = |pairs: Vec<(u64, u64)>| pairs.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let files: Vec<_> = mine().take(LOOKED_AT).map(|one| (one.bytes, one.elapsed_ms)).collect();
        let replays: Vec<_> = mine().filter_map(|one| one.replay).take(LOOKED_AT).collect();
        let restores = files.len();
        let (files, ms) = sum(files);
        if files == 0 {
            return None;
        }
        let (replayed, replay_ms) = sum(replays.iter().map(|one| (one.segments, one.elapsed_ms)).collect());
        let seconds = |amount: u64, ms: u64, of: u64| amount as f64 * ms as f64 / 1000.0 / of as f64;
        let replay_seconds = match (segments, replayed) {
            (0, _) => Some(0.0),
            (_, 0) => None,
            _ => Some(seconds(segments, replay_ms, replayed)),
        };
        Some(Estimate { files_seconds: seconds(bytes, ms, files), replay_seconds, restores })
    }

    /// Remembers a restore, and how long its server took to come to the target. It is no reason to fail that it cannot.
    pub(crate) fn note(&self, plan: &RestorePlan, report: &RestoreReport, replay: Option<Duration>) {
        let replay = replay
            .filter(|_| plan.wal.segments > 0)
            .map(|elapsed| Replay { segments: plan.wal.segments, elapsed_ms: elapsed.as_millis() as u64 });
        self.add(report.bytes, report.elapsed_ms, replay);
    }

    fn add(&self, bytes: u64, elapsed_ms: u64, replay: Option<Replay>) {
        let mut all = self.read();
        all.push(Measured { repository: self.repository.clone(), bytes, elapsed_ms, replay });
        all.drain(..all.len().saturating_sub(KEPT));
        if let Err(error) = self.write(&all) {
            tracing::info!(%error, path = %self.path.display(), "what the restore took is not remembered");
        }
    }

    fn write(&self, all: &[Measured]) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let temp = self.path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temp, serde_json::to_vec(all)?)?;
        fs::rename(&temp, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_restores_took_tells_what_the_next_will() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (near, far) = (Memory::new(&state, "/near"), Memory::new(&state, "s3://far"));
        assert_eq!(near.for_amounts(100, 1), None);
        near.add(1000, 1000, None);
        let told = near.for_amounts(3000, 2).unwrap();
        assert_eq!(told, Estimate { files_seconds: 3.0, replay_seconds: None, restores: 1 });
        assert_eq!(near.for_amounts(3000, 0).unwrap().replay_seconds, Some(0.0));
        assert_eq!(far.for_amounts(3000, 2), None, "another repository is another matter");
        near.add(3000, 1000, Some(Replay { segments: 10, elapsed_ms: 500 }));
        let told = near.for_amounts(4000, 20).unwrap();
        assert_eq!(told, Estimate { files_seconds: 2.0, replay_seconds: Some(1.0), restores: 2 });
        assert_eq!(told.text(), "about 2 s for the files and 1 s for the WAL, by 2 earlier restores here");
        for _ in 0..KEPT {
            near.add(100, 100, None);
        }
        let told = near.for_amounts(4000, 20).unwrap();
        assert_eq!(told, Estimate { files_seconds: 4.0, replay_seconds: None, restores: LOOKED_AT });
        assert_eq!(near.read().len(), KEPT);
        fs::write(&near.path, "nonsense").unwrap();
        assert_eq!(near.for_amounts(1, 1), None);
        // A place that cannot be written to.
        Memory::new(Path::new("/proc/nowhere"), "x").add(1, 1, None);
    }
}
