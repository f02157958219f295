//! Reading the configuration: every key is known or refused, with its place and the nearest name that is known.

use super::{
    ClusterConfig, Config, ExpireConfig, HOOK_MOMENTS, HOOKED, HooksConfig, KeyConfig, Limits, RepositoryConfig,
    SnapshotConfig, lag,
};
use crate::error::CommandError;
use crate::when;
use engine::hosts::LagMax;
use repo::{ClusterName, Compression};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

const TOP_KEYS: [&str; 7] = ["cache-dir", "cluster", "default-cluster", "expire", "hooks", "repository", "state-dir"];
const REPOSITORY_KEYS: [&str; 8] =
    ["compression", "encryption", "key-command", "key-file", "options", "passphrase-file", "required", "url"];
const EXPIRE_KEYS: [&str; 3] = ["grace", "keep-dumps", "keep-last"];
const CLUSTER_KEYS: [&str; 19] = [
    "backup-age-max",
    "expire",
    "fetch-ahead",
    "fetch-cache",
    "freeze-command",
    "hooks",
    "max-lag",
    "max-rate",
    "nice",
    "pg",
    "pgdata",
    "prefer-standby",
    "push-ahead",
    "release-command",
    "repository",
    "snapshot-dir",
    "wal-lag-max",
    "wal-timeout",
    "workers",
];

/// Reads the text of a configuration file.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Config, CommandError> {
    let reader = Reader { text, file };
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        reader.error(at, format!("this is not TOML: {}", error.message().trim().replace('\n', ", ")))
    })?;
    reader.config(table.get_ref())
}

struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
}

/// A table, with its name for messages.
struct Section<'a, 'i> {
    name: String,
    table: &'a DeTable<'i>,
    /// Where it begins in the text.
    at: usize,
}

type Value<'a, 'i> = &'a Spanned<DeValue<'i>>;

impl Reader<'_> {
    /// An error at a place in the file.
    fn error(&self, at: usize, message: impl std::fmt::Display) -> CommandError {
        let line = self.text[..at.min(self.text.len())].matches('\n').count() + 1;
        CommandError::usage(format!("{}, line {line}: {message}", self.file.display()))
    }

    fn config(&self, table: &DeTable<'_>) -> Result<Config, CommandError> {
        let top = Section { name: String::new(), table, at: 0 };
        self.only_known(&top, &TOP_KEYS)?;
        let mut config = Config {
            file: self.file.to_owned(),
            default_cluster: self.text_of(&top, "default-cluster")?,
            state_dir: self.path_of(&top, "state-dir")?,
            cache_dir: self.path_of(&top, "cache-dir")?,
            ..Config::default()
        };
        for section in self.sections(&top, "repository")? {
            let repository = self.repository(&section)?;
            config.repositories.insert(last_part(&section.name), repository);
        }
        let expire = self.expire(&top)?;
        config.hooks = self.hooks(&top)?;
        for section in self.sections(&top, "cluster")? {
            let name = last_part(&section.name);
            ClusterName::from_str(&name).map_err(|error| self.error(section.at, error))?;
            let mut cluster = self.cluster(&section)?;
            cluster.expire = cluster.expire.or(expire);
            cluster.hooks = cluster.hooks.or(&config.hooks);
            for name in cluster.repository.iter().chain(&cluster.more_repositories) {
                self.known_name(&section, "repository", Some(name), config.repositories.keys())?;
            }
            self.one_is_required(&section, &cluster, &config.repositories)?;
            config.clusters.insert(name, cluster);
        }
        self.known_name(&top, "default-cluster", config.default_cluster.as_deref(), config.clusters.keys())?;
        Ok(config)
    }

    fn repository(&self, section: &Section<'_, '_>) -> Result<RepositoryConfig, CommandError> {
        self.only_known(section, &REPOSITORY_KEYS)?;
        let Some(url) = self.text_of(section, "url")? else {
            return Err(self
                .error(section.at, format!("[{}] has no url", section.name))
                .hint("write url = \"/path\" or url = \"s3://bucket/prefix\""));
        };
        let compression = match section.table.get("compression") {
            None => None,
            Some(value) => {
                let text = self.text(value, "compression")?;
                Some(Compression::from_str(&text).map_err(|reason| self.error(value.span().start, reason))?)
            }
        };
        let required = match section.table.get("required") {
            None => true,
            Some(value) => match value.get_ref() {
                DeValue::Boolean(required) => *required,
                _ => return Err(self.error(value.span().start, "required must be true or false")),
            },
        };
        Ok(RepositoryConfig { url, key: self.key(section)?, compression, options: self.options(section)?, required })
    }

    /// A cluster's repositories: one name, or a list of them.
    fn repositories_of(&self, section: &Section<'_, '_>) -> Result<Vec<String>, CommandError> {
        let Some(value) = section.table.get("repository") else { return Ok(Vec::new()) };
        let DeValue::Array(list) = value.get_ref() else { return Ok(vec![self.text(value, "repository")?]) };
        let mut names: Vec<String> = Vec::new();
        for value in list.iter() {
            let name = self.text(value, "repository")?;
            if names.contains(&name) {
                return Err(self.error(value.span().start, format!("repository names '{name}' twice")));
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err(self.error(value.span().start, "repository is an empty list"));
        }
        Ok(names)
    }

    /// WAL that no repository must have would be acknowledged although it is nowhere.
    fn one_is_required(
        &self,
        section: &Section<'_, '_>,
        cluster: &ClusterConfig,
        repositories: &BTreeMap<String, RepositoryConfig>,
    ) -> Result<(), CommandError> {
        let mut own =
            cluster.repository.iter().chain(&cluster.more_repositories).filter_map(|name| repositories.get(name));
        let none = cluster.repository.is_none() && repositories.values().any(|repository| repository.required);
        if none || repositories.is_empty() || own.any(|repository| repository.required) {
            return Ok(());
        }
        let at = section.table.get("repository").map_or(section.at, |value| value.span().start);
        Err(self
            .error(at, format!("none of the repositories of [{}] is required", section.name))
            .hint("leave `required = false` out of one of them: WAL must be somewhere before it is acknowledged"))
    }

    fn key(&self, section: &Section<'_, '_>) -> Result<KeyConfig, CommandError> {
        let mut found = Vec::new();
        found.extend(self.path_of(section, "key-file")?.map(KeyConfig::File));
        found.extend(self.path_of(section, "passphrase-file")?.map(KeyConfig::Passphrase));
        found.extend(self.text_of(section, "key-command")?.map(KeyConfig::Command));
        if let Some(value) = section.table.get("encryption") {
            match self.text(value, "encryption")?.as_str() {
                "none" => found.push(KeyConfig::None),
                other => {
                    let message = format!("encryption = \"{other}\": the only value is \"none\"");
                    return Err(self
                        .error(value.span().start, message)
                        .hint("to encrypt, leave it out and give key-file, passphrase-file or key-command"));
                }
            }
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(self
                .error(section.at, format!("[{}] does not say how it is encrypted", section.name))
                .hint("write one of key-file, passphrase-file, key-command; or encryption = \"none\" when it is not")),
            _ => Err(self
                .error(section.at, format!("[{}] says more than once how it is encrypted", section.name))
                .hint("keep one of key-file, passphrase-file, key-command, encryption = \"none\"")),
        }
    }

    fn options(&self, section: &Section<'_, '_>) -> Result<BTreeMap<String, String>, CommandError> {
        let Some(value) = section.table.get("options") else { return Ok(BTreeMap::new()) };
        let inner = self.table(value, format!("{}.options", section.name))?;
        self.only_known(&inner, &store::OPTION_KEYS)?;
        let mut options = BTreeMap::new();
        for (key, value) in inner.table {
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(yes) => yes.to_string(),
                _ => return Err(self.error(value.span().start, format!("{} must be a text", key.get_ref()))),
            };
            options.insert(key.get_ref().to_string(), text.clone());
            let pair = BTreeMap::from([(key.get_ref().to_string(), text)]);
            store::StoreOptions::from_pairs(&pair).map_err(|error| self.error(value.span().start, error))?;
        }
        Ok(options)
    }

    fn cluster(&self, section: &Section<'_, '_>) -> Result<ClusterConfig, CommandError> {
        self.only_known(section, &CLUSTER_KEYS)?;
        let Some(pg) = section.table.get("pg") else {
            return Err(self
                .error(section.at, format!("[{}] has no pg", section.name))
                .hint("write pg = \"…\", a connection string as libpq takes it; pg = \"\" means all defaults"));
        };
        let text = self.text(pg, "pg")?;
        pg_wire::Params::parse(&text).map_err(|error| self.error(pg.span().start, error))?;
        let workers = self.number_of(section, "workers", 1, 256)?;
        let limits = self.limits(section)?;
        let mut repositories = self.repositories_of(section)?.into_iter();
        let repository = repositories.next();
        let snapshot = SnapshotConfig {
            freeze: self.text_of(section, "freeze-command")?,
            release: self.text_of(section, "release-command")?,
            directory: self.path_of(section, "snapshot-dir")?,
        };
        Ok(ClusterConfig {
            snapshot,
            pg: text,
            repository,
            more_repositories: repositories.collect(),
            workers,
            pgdata: self.path_of(section, "pgdata")?,
            limits,
            expire: self.expire(section)?,
            hooks: self.hooks(section)?,
        })
    }

    /// The section `hooks` of another one, or of the file.
    fn hooks(&self, section: &Section<'_, '_>) -> Result<HooksConfig, CommandError> {
        let Some(value) = section.table.get("hooks") else { return Ok(HooksConfig::default()) };
        let dot = if section.name.is_empty() { "" } else { "." };
        let inner = self.table(value, format!("{}{dot}hooks", section.name))?;
        let of_each = HOOK_MOMENTS.iter().flat_map(|when| HOOKED.iter().map(move |what| format!("{when}-{what}")));
        let keys: Vec<String> = HOOK_MOMENTS.iter().map(|when| (*when).to_owned()).chain(of_each).collect();
        let known: Vec<&str> = keys.iter().map(String::as_str).chain(["timeout"]).collect();
        self.only_known(&inner, &known)?;
        let mut hooks = HooksConfig { timeout: self.duration_of(&inner, "timeout")?, ..HooksConfig::default() };
        for key in keys {
            if let Some(command) = self.text_of(&inner, &key)? {
                hooks.commands.insert(key, command);
            }
        }
        Ok(hooks)
    }

    /// The section `expire` of another one, or of the file.
    fn expire(&self, section: &Section<'_, '_>) -> Result<ExpireConfig, CommandError> {
        let Some(value) = section.table.get("expire") else { return Ok(ExpireConfig::default()) };
        let dot = if section.name.is_empty() { "" } else { "." };
        let inner = self.table(value, format!("{}{dot}expire", section.name))?;
        self.only_known(&inner, &EXPIRE_KEYS)?;
        let keep_last = self.number_of(&inner, "keep-last", 1, u16::MAX)?.map(u32::from);
        let keep_dumps = self.number_of(&inner, "keep-dumps", 1, u16::MAX)?.map(u32::from);
        let grace = match inner.table.get("grace") {
            None => None,
            Some(value) => {
                let text = self.text(value, "grace")?;
                let wrong = "grace must be a time such as \"90s\", \"10min\", \"36h\", \"8d\" or \"0\", in quotes";
                Some(when::duration(&text).ok_or_else(|| self.error(value.span().start, wrong))?)
            }
        };
        Ok(ExpireConfig { keep_last, keep_dumps, grace })
    }

    fn limits(&self, section: &Section<'_, '_>) -> Result<Limits, CommandError> {
        let usual = Limits::USUAL;
        let ahead =
            |key, usual| Ok::<_, CommandError>(self.number_of(section, key, 0, 1024)?.map_or(usual, usize::from));
        Ok(Limits {
            wal_timeout: self.duration_of(section, "wal-timeout")?.unwrap_or(usual.wal_timeout),
            push_ahead: ahead("push-ahead", usual.push_ahead)?,
            fetch_ahead: ahead("fetch-ahead", usual.fetch_ahead)?,
            fetch_cache_bytes: self.size_of(section, "fetch-cache")?.unwrap_or(usual.fetch_cache_bytes),
            backup_age_max: self.duration_of(section, "backup-age-max")?.unwrap_or(usual.backup_age_max),
            wal_lag_bytes_max: self.size_of(section, "wal-lag-max")?.unwrap_or(usual.wal_lag_bytes_max),
            bytes_per_second_max: self.size_of(section, "max-rate")?,
            nice: self.number_of(section, "nice", 0, 19)?.and_then(|nice| u8::try_from(nice).ok()),
            prefer_standby: self.boolean_of(section, "prefer-standby")?.unwrap_or(usual.prefer_standby),
            lag_max: self.lag_of(section, "max-lag")?.unwrap_or(usual.lag_max),
        })
    }

    fn boolean_of(&self, section: &Section<'_, '_>, key: &str) -> Result<Option<bool>, CommandError> {
        let Some(value) = section.table.get(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(yes) => Ok(Some(*yes)),
            _ => Err(self.error(value.span().start, format!("{key} must be true or false"))),
        }
    }

    fn lag_of(&self, section: &Section<'_, '_>, key: &str) -> Result<Option<LagMax>, CommandError> {
        let Some(value) = section.table.get(key) else { return Ok(None) };
        let wrong = || {
            let form = "a size such as \"64MB\", or a time such as \"30s\"";
            self.error(value.span().start, format!("{key} must be {form}, in quotes"))
        };
        lag(&self.text(value, key)?).ok_or_else(wrong).map(Some)
    }

    fn number_of(&self, section: &Section<'_, '_>, key: &str, min: u16, max: u16) -> Result<Option<u16>, CommandError> {
        let Some(value) = section.table.get(key) else { return Ok(None) };
        let number = value.get_ref().as_integer().and_then(|n| u16::from_str_radix(n.as_str(), n.radix()).ok());
        let good = number.filter(|number| (min..=max).contains(number));
        let wrong = || self.error(value.span().start, format!("{key} must be a number from {min} to {max}"));
        good.ok_or_else(wrong).map(Some)
    }

    /// A number with a unit: `"90s"`, `"10min"`, `"36h"`, `"8d"`.
    fn duration_of(&self, section: &Section<'_, '_>, key: &str) -> Result<Option<Duration>, CommandError> {
        let units = [("min", 60), ("s", 1), ("h", 3600), ("d", 24 * 3600)];
        let seconds = self.quantity_of(section, key, &units, "a time such as \"90s\", \"10min\", \"36h\" or \"8d\"")?;
        Ok(seconds.map(Duration::from_secs))
    }

    /// A number with a unit: `"512MB"`, `"2GB"`; units are multiples of 1024, as PostgreSQL has them.
    fn size_of(&self, section: &Section<'_, '_>, key: &str) -> Result<Option<u64>, CommandError> {
        let units = [("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("TB", 1 << 40)];
        self.quantity_of(section, key, &units, "a size such as \"512MB\" or \"2GB\"")
    }

    fn quantity_of(
        &self,
        section: &Section<'_, '_>,
        key: &str,
        units: &[(&str, u64)],
        form: &str,
    ) -> Result<Option<u64>, CommandError> {
        let Some(value) = section.table.get(key) else { return Ok(None) };
        let wrong = || self.error(value.span().start, format!("{key} must be {form}, in quotes"));
        let DeValue::String(text) = value.get_ref() else { return Err(wrong()) };
        let read = units.iter().find_map(|(unit, factor)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*factor).filter(|quantity| (1..1 << 50).contains(quantity))
        });
        read.ok_or_else(wrong).map(Some)
    }

    /// The tables `[what.NAME]`.
    fn sections<'a, 'i>(&self, top: &Section<'a, 'i>, what: &str) -> Result<Vec<Section<'a, 'i>>, CommandError> {
        let Some(value) = top.table.get(what) else { return Ok(Vec::new()) };
        let all = self.table(value, what.to_owned())?;
        let mut sections = Vec::new();
        for (name, value) in all.table {
            let full = format!("{what}.{}", name.get_ref());
            if !matches!(value.get_ref(), DeValue::Table(_)) {
                return Err(self
                    .error(name.span().start, format!("[{what}] needs a name"))
                    .hint(format!("write [{what}.NAME], such as [{what}.main]")));
            }
            sections.push(Section { at: name.span().start, ..self.table(value, full)? });
        }
        Ok(sections)
    }

    fn table<'a, 'i>(&self, value: Value<'a, 'i>, name: String) -> Result<Section<'a, 'i>, CommandError> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(Section { name, table, at: value.span().start }),
            _ => Err(self.error(value.span().start, format!("{name} must be a section, [{name}]"))),
        }
    }

    fn only_known(&self, section: &Section<'_, '_>, known: &[&str]) -> Result<(), CommandError> {
        let unknown = section.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        let name = key.get_ref().as_ref();
        let place = if section.name.is_empty() { String::new() } else { format!(" in [{}]", section.name) };
        let error = self.error(key.span().start, format!("unknown key '{name}'{place}"));
        Err(match nearest(name, known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean '{near}'?")),
            None => error.hint(format!("known keys are: {}", known.join(", "))),
        })
    }

    /// Whether a name that a key refers to is there.
    fn known_name<'n>(
        &self,
        section: &Section<'_, '_>,
        key: &str,
        name: Option<&str>,
        known: impl Iterator<Item = &'n String> + Clone,
    ) -> Result<(), CommandError> {
        let Some(name) = name.filter(|name| !known.clone().any(|known| known == name)) else { return Ok(()) };
        let what = key.rsplit('-').next().unwrap_or(key);
        let at = section.table.get(key).map_or(section.at, |value| value.span().start);
        let error = self.error(at, format!("{key} = \"{name}\": there is no [{what}.{name}]"));
        Err(match nearest(name, known.map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean '{near}'?")),
            None => error.hint(format!("add a section [{what}.{name}]")),
        })
    }

    fn text(&self, value: Value<'_, '_>, key: &str) -> Result<String, CommandError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(self.error(value.span().start, format!("{key} must be a text in quotes"))),
        }
    }

    fn text_of(&self, section: &Section<'_, '_>, key: &str) -> Result<Option<String>, CommandError> {
        section.table.get(key).map(|value| self.text(value, key)).transpose()
    }

    fn path_of(&self, section: &Section<'_, '_>, key: &str) -> Result<Option<PathBuf>, CommandError> {
        let Some(value) = section.table.get(key) else { return Ok(None) };
        let path = PathBuf::from(self.text(value, key)?);
        if !path.is_absolute() {
            return Err(self.error(value.span().start, format!("{key} must be an absolute path, beginning with /")));
        }
        Ok(Some(path))
    }
}

fn last_part(name: &str) -> String {
    name.split_once('.').map_or(name, |(_, last)| last).to_owned()
}

/// The known name that was probably meant.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = name.to_ascii_lowercase().replace('_', "-");
    let scored = known.map(|known| (strsim::jaro_winkler(&plain, known), known));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.75).map(|(_, known)| known)
}
