//! `backup`: how the files are read, by arguments and configuration.

use crate::cli::{BackupArgs, Source};
use crate::error::CommandError;
use crate::gentle;
use crate::session::Opened;
use engine::backup::{SnapshotGuarantee, SnapshotOptions, SourceOptions, Stopping, StreamCompression, StreamOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a freeze or release command, or one that stops or starts the server, may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(600);

/// How the files are read.
pub(super) fn options(args: &BackupArgs, opened: &Opened) -> Result<SourceOptions, CommandError> {
    let offline_only = [
        (args.pgdata.is_some(), "--pgdata"),
        (args.config_file.is_some(), "--config-file"),
        (args.warm, "--warm"),
        (args.warm_only, "--warm-only"),
        (args.stop_command.is_some(), "--stop-command"),
    ];
    if args.source != Source::Offline
        && let Some((_, name)) = offline_only.iter().find(|(given, _)| *given)
    {
        return Err(CommandError::usage(format!("{name} is for `--source offline`"))
            .hint("a server that runs says itself where its files are: leave it out"));
    }
    let snapshot_only = [
        (args.freeze.is_some(), "--freeze"),
        (args.release.is_some(), "--release"),
        (args.snapshot_dir.is_some(), "--snapshot-dir"),
        (!args.snapshot_map.is_empty(), "--snapshot-map"),
        (args.crash_consistent, "--crash-consistent"),
    ];
    if args.source != Source::Snapshot
        && let Some((_, name)) = snapshot_only.iter().find(|(given, _)| *given)
    {
        return Err(CommandError::usage(format!("{name} is for `--source snapshot`")).hint("say that, or leave it out"));
    }
    if args.source != Source::Stream && args.stream_compression.is_some() {
        return Err(
            CommandError::usage("--stream-compression is for `--source stream`").hint("say that, or leave it out")
        );
    }
    if args.source == Source::Stream && (args.gentle.until.is_some() || args.gentle.stop_after.is_some()) {
        return Err(CommandError::usage("a backup by `--source stream` cannot be gone on from")
            .hint("leave out --until and --stop-after, or read the files on the database host"));
    }
    match args.source {
        Source::Direct => Ok(SourceOptions::Direct),
        Source::Offline => {
            let pgdata = args.pgdata.clone().or_else(|| opened.settings.pgdata.clone());
            let Some(data_directory) = pgdata else {
                return Err(CommandError::usage(
                    "a server that is stopped cannot be asked where its data directory is",
                )
                .hint(format!("say it with `--pgdata DIR`, or as pgdata in [cluster.{}]", opened.name)));
            };
            if !data_directory.is_absolute() {
                return Err(CommandError::usage(format!(
                    "--pgdata {}: not an absolute path",
                    data_directory.display()
                ))
                .hint("begin it with /"));
            }
            Ok(SourceOptions::Offline {
                data_directory,
                config_file: args.config_file.clone(),
                stopping: stopping(args),
            })
        }
        Source::Snapshot => snapshot(args, opened).map(SourceOptions::Snapshot),
        Source::Stream => stream(args, opened).map(SourceOptions::Stream),
    }
}

/// How a server sends its files.
fn stream(args: &BackupArgs, opened: &Opened) -> Result<StreamOptions, CommandError> {
    let compression = args.stream_compression.as_deref().map_or(Ok(StreamCompression::Auto), stream_compression)?;
    let max_rate_bytes = gentle::max_rate(&args.gentle, opened.settings.limits.bytes_per_second_max)?;
    Ok(StreamOptions { compression, max_rate_bytes })
}

/// `METHOD` or `METHOD:LEVEL`.
fn stream_compression(text: &str) -> Result<StreamCompression, CommandError> {
    let wrong = || {
        CommandError::usage(format!("--stream-compression {text}: no such way"))
            .hint("it is one of auto, none, gzip, lz4 and zstd, the last three with or without a level, as zstd:3")
    };
    let (method, level) = match text.split_once(':') {
        Some((method, level)) => (method, Some(level.parse::<u32>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    match (method, level) {
        ("auto", None) => Ok(StreamCompression::Auto),
        ("none", None) => Ok(StreamCompression::None),
        ("gzip", level) => Ok(StreamCompression::Gzip(level)),
        ("lz4", level) => Ok(StreamCompression::Lz4(level)),
        ("zstd", level) => Ok(StreamCompression::Zstd(level)),
        _ => Err(wrong()),
    }
}

/// How the server comes to be stopped.
fn stopping(args: &BackupArgs) -> Stopping {
    match &args.stop_command {
        Some(stop) => {
            Stopping::Commands { stop: stop.clone(), start: args.start_command.clone(), time_max: COMMAND_TIME_MAX }
        }
        None if args.warm => Stopping::Wait,
        None => Stopping::Already,
    }
}

/// How a frozen copy is made, and where it is.
fn snapshot(args: &BackupArgs, opened: &Opened) -> Result<SnapshotOptions, CommandError> {
    let config = &opened.settings.snapshot;
    let missing = |option: &str, key: &str| {
        CommandError::usage(format!("`--source snapshot` needs {option}"))
            .hint(format!("give it, or write {key} in [cluster.{}]; examples are in docs/operations.md", opened.name))
    };
    let freeze = args.freeze.clone().or_else(|| config.freeze.clone());
    let release = args.release.clone().or_else(|| config.release.clone());
    let directory = args.snapshot_dir.clone().or_else(|| config.directory.clone());
    let maps = args.snapshot_map.iter().map(|text| map(text)).collect::<Result<_, _>>()?;
    Ok(SnapshotOptions {
        freeze: freeze.ok_or_else(|| missing("--freeze COMMAND", "freeze-command"))?,
        release: release.ok_or_else(|| missing("--release COMMAND", "release-command"))?,
        directory: absolute(directory.ok_or_else(|| missing("--snapshot-dir DIR", "snapshot-dir"))?)?,
        maps,
        guarantee: if args.crash_consistent { SnapshotGuarantee::CrashConsistent } else { SnapshotGuarantee::Backup },
        command_time_max: COMMAND_TIME_MAX,
    })
}

/// `LIVE=COPY`.
fn map(text: &str) -> Result<(PathBuf, PathBuf), CommandError> {
    let Some((live, copy)) = text.split_once('=') else {
        return Err(CommandError::usage(format!("--snapshot-map {text}: no = in it"))
            .hint("give the live directory and its copy: --snapshot-map /fast=/mnt/copy/fast"));
    };
    Ok((absolute(Path::new(live).to_owned())?, absolute(Path::new(copy).to_owned())?))
}

fn absolute(path: PathBuf) -> Result<PathBuf, CommandError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(CommandError::usage(format!("{}: not an absolute path", path.display())).hint("begin it with /"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_compressing_a_stream() {
        let check = |text: &str, expect: Option<StreamCompression>| {
            assert_eq!(stream_compression(text).ok(), expect, "{text}");
        };
        check("auto", Some(StreamCompression::Auto));
        check("none", Some(StreamCompression::None));
        check("zstd", Some(StreamCompression::Zstd(None)));
        check("zstd:3", Some(StreamCompression::Zstd(Some(3))));
        check("lz4:1", Some(StreamCompression::Lz4(Some(1))));
        check("gzip:9", Some(StreamCompression::Gzip(Some(9))));
        for wrong in ["", "none:1", "auto:1", "zstd:", "zstd:x", "bzip2"] {
            check(wrong, None);
        }
    }
}
