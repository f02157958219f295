//! What a connection string is completed from: the environment, the home directory, the user's name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What the program knows about its process; this crate reads none of it by itself.
#[derive(Clone, Default)]
pub struct Surroundings {
    vars: BTreeMap<String, Zeroizing<String>>,
    /// The home directory, for `~/.pgpass`, `~/.pg_service.conf` and `~/.postgresql`.
    pub home: Option<PathBuf>,
    /// The operating system's name of the user, the default for `user`.
    pub user: Option<String>,
    /// The directory of `pg_service.conf` when `PGSYSCONFDIR` is not set; `/etc/postgresql-common` on Debian.
    pub sysconf_dir: Option<PathBuf>,
}

impl Surroundings {
    /// No environment, no home, no user: only what the connection string says.
    pub fn none() -> Self {
        Self::default()
    }

    /// Takes the variables that start with `PG` from the given environment; others are not kept.
    /// Values that are not UTF-8 are left out.
    pub fn from_vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(vars: impl IntoIterator<Item = (K, V)>) -> Self {
        let vars = vars
            .into_iter()
            .filter_map(|(name, value)| {
                let name = name.as_ref().to_str()?;
                let value = value.as_ref().to_str()?;
                name.starts_with("PG").then(|| (name.to_owned(), Zeroizing::new(value.to_owned())))
            })
            .collect();
        Self { vars, ..Self::default() }
    }

    /// Sets the home directory.
    #[must_use]
    pub fn with_home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Sets the user's name.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the directory of the system-wide `pg_service.conf`.
    #[must_use]
    pub fn with_sysconf_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.sysconf_dir = Some(dir.into());
        self
    }

    /// The same without the environment.
    pub(super) fn without_vars(&self) -> Self {
        Self { vars: BTreeMap::new(), ..self.clone() }
    }

    /// The value of an environment variable.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(|value| value.as_str())
    }

    /// A path below the home directory.
    pub(crate) fn in_home(&self, name: &str) -> Option<PathBuf> {
        self.home.as_deref().filter(|home| *home != Path::new("")).map(|home| home.join(name))
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vars: BTreeMap<&str, &str> = self
            .vars
            .iter()
            .map(|(name, value)| (name.as_str(), if name == "PGPASSWORD" { "***" } else { value.as_str() }))
            .collect();
        f.debug_struct("Surroundings")
            .field("vars", &vars)
            .field("home", &self.home)
            .field("user", &self.user)
            .field("sysconf_dir", &self.sysconf_dir)
            .finish()
    }
}
