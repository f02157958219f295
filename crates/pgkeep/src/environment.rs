//! What is read from the process's surroundings: variables, home, user, own path. The only place that does.

use pg_wire::Surroundings;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use store::Secret;

/// The process's surroundings, as far as pgkeep uses them.
pub(crate) struct Environment {
    /// `$PGKEEP_CONFIG`.
    pub(crate) config: Option<PathBuf>,
    /// `$PGKEEP_LOG`: a filter for log messages, stronger than `-v`.
    pub(crate) log: Option<String>,
    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub(crate) config_home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`, else `~/.local/state`.
    pub(crate) state_home: Option<PathBuf>,
    /// `$XDG_CACHE_HOME`, else `~/.cache`.
    pub(crate) cache_home: Option<PathBuf>,
    /// For connections: `PG*`, home, user.
    pub(crate) pg: Surroundings,
    /// For S3: `AWS_*`.
    pub(crate) aws: BTreeMap<String, Secret>,
    /// The content of the AWS credentials file.
    pub(crate) aws_credentials_file: Option<Secret>,
    /// Whether this is root.
    pub(crate) is_root: bool,
    /// Whether a hook called this.
    pub(crate) is_in_hook: bool,
    /// The running program.
    pub(crate) program: PathBuf,
    /// `$NOTIFY_SOCKET`: where a service manager listens.
    pub(crate) notify_socket: Option<std::ffi::OsString>,
    /// `$WATCHDOG_USEC`: after so long without a sign of life this process is killed.
    pub(crate) watchdog: Option<Duration>,
}

impl Environment {
    /// Reads everything once.
    pub(crate) fn read() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let uid = rustix::process::geteuid().as_raw();
        let entry = passwd_entry(uid);
        let user = entry.as_ref().map_or_else(|| uid.to_string(), |(name, _)| name.clone());
        // PostgreSQL may run archive_command without HOME.
        let home = path("HOME").or_else(|| entry.map(|(_, home)| home));
        let xdg = |name: &str, below: &str| {
            path(name).filter(|path| path.is_absolute()).or_else(|| home.as_ref().map(|home| home.join(below)))
        };
        let mut pg = Surroundings::from_vars(std::env::vars_os()).with_user(user);
        pg.home.clone_from(&home);
        pg.sysconf_dir = Some(PathBuf::from("/etc/postgresql-common"));
        let aws = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("AWS_"))
            .map(|(name, value)| (name, Secret::new(value)))
            .collect();
        let aws_file =
            path("AWS_SHARED_CREDENTIALS_FILE").or_else(|| home.as_ref().map(|home| home.join(".aws/credentials")));
        Self {
            config: path("PGKEEP_CONFIG"),
            log: std::env::var("PGKEEP_LOG").ok(),
            config_home: xdg("XDG_CONFIG_HOME", ".config"),
            state_home: xdg("XDG_STATE_HOME", ".local/state"),
            cache_home: xdg("XDG_CACHE_HOME", ".cache"),
            pg,
            aws,
            aws_credentials_file: aws_file.and_then(|file| std::fs::read_to_string(file).ok()).map(Secret::new),
            is_root: uid == 0,
            is_in_hook: std::env::var_os("PGKEEP_HOOK").is_some(),
            program: own_path(),
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog: watchdog(),
        }
    }
}

/// The running program. After an upgrade in place Linux marks the old file's path as deleted; the new one is meant.
fn own_path() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("pgkeep"));
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

/// As `sd_watchdog_enabled(3)`: it may be meant for another process.
fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|_| is_ours).map(Duration::from_micros)
}

/// Name and home of a user, from `/etc/passwd`.
fn passwd_entry(uid: u32) -> Option<(String, PathBuf)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 7 && fields[2].parse() == Ok(uid)).then(|| (fields[0].to_owned(), PathBuf::from(fields[5])))
    })
}

/// Name of a user, or the number where it has none.
pub(crate) fn user_name(uid: u32) -> String {
    passwd_entry(uid).map_or_else(|| uid.to_string(), |(name, _)| name)
}

/// User and group of whom a server runs as that root starts: `postgres`, else `nobody`.
pub(crate) fn server_owner() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"].iter().find_map(|name| {
        let fields: Vec<&str> = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f[0] == *name)?;
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    })
}

/// Where short-lived files go: `$TMPDIR`, else `/tmp`.
pub(crate) fn temp_dir() -> PathBuf {
    std::env::temp_dir()
}

/// The directories of `$PATH`.
pub(crate) fn path_dirs() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}
