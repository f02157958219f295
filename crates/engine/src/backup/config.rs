//! Configuration that lies outside the data directory (as Debian has it) and belongs in the backup all the same.

use crate::server::ServerFacts;
use pg_format::conf::{ConfFile, DirectiveKind};
use pg_wire::Client;
use repo::manifest::ConfigFile;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How deep includes are followed; PostgreSQL's own limit (`CONF_FILE_MAX_DEPTH`).
const INCLUDE_DEPTH: u32 = 10;
/// What Debian keeps beside `postgresql.conf`.
const COMPANIONS: [&str; 3] = ["start.conf", "pg_ctl.conf", "environment"];
/// A configuration file larger than this is something else.
const SIZE_MAX: u64 = 16 << 20;

/// The files found, with the setting that leads to each.
#[derive(Debug, Default)]
pub(super) struct OutsideConfig {
    files: BTreeMap<PathBuf, String>,
    pub(super) warnings: Vec<String>,
}

impl OutsideConfig {
    /// Finds them, with or without a server to ask: the three files that settings name, what they include, and Debian's companions.
    pub(super) async fn find(client: Option<&mut Client>, server: &ServerFacts) -> Self {
        let mut found = Self::default();
        let root = &server.data_directory;
        for (setting, file) in
            [("config_file", &server.config_file), ("hba_file", &server.hba_file), ("ident_file", &server.ident_file)]
        {
            found.add(root, file, setting);
        }
        found.follow(root, &server.config_file, INCLUDE_DEPTH);
        found.follow(root, &root.join("postgresql.auto.conf"), INCLUDE_DEPTH);
        if let Some(dir) =
            server.config_file.parent().filter(|dir| !server.config_file.starts_with(root) && dir.parent().is_some())
        {
            for name in COMPANIONS {
                if dir.join(name).is_file() {
                    found.add(root, &dir.join(name), "companion");
                }
            }
        }
        // From 16 on these files have includes of their own, and the server tells which it read.
        if let Some(client) = client.filter(|_| server.major.number() >= 16) {
            for view in ["pg_hba_file_rules", "pg_ident_file_mappings"] {
                match client.query(&format!("SELECT DISTINCT file_name AS file FROM {view}"), &[]).await {
                    Ok(rows) => {
                        for row in rows {
                            if let Ok(Some(file)) = row.opt_str("file") {
                                found.add(root, Path::new(file), "include");
                            }
                        }
                    }
                    Err(error) => found
                        .warnings
                        .push(format!("{view} cannot be read, its included files are not backed up: {error}")),
                }
            }
        }
        found
    }

    fn add(&mut self, root: &Path, file: &Path, setting: &str) {
        let inside = file.starts_with(root) || fs::canonicalize(file).is_ok_and(|real| real.starts_with(root));
        if inside || self.files.contains_key(file) {
            return;
        }
        match fs::File::open(file).and_then(|file| file.metadata()) {
            Ok(found) if found.is_file() && found.len() <= SIZE_MAX => {
                self.files.insert(file.to_owned(), setting.to_owned());
            }
            Ok(_) => self.warnings.push(format!("{}: not a configuration file; not backed up", file.display())),
            Err(error) => self.warnings.push(format!("{}: not backed up: {error}", file.display())),
        }
    }

    fn follow(&mut self, root: &Path, file: &Path, depth: u32) {
        let Ok(bytes) = fs::read(file) else { return };
        let text = String::from_utf8_lossy(&bytes);
        let dir = file.parent().unwrap_or(Path::new("/"));
        for directive in ConfFile::parse(&text).directives {
            let (target, needed) = match &directive.kind {
                DirectiveKind::Set { .. } => continue,
                DirectiveKind::Include(path) => (dir.join(path), true),
                DirectiveKind::IncludeIfExists(path) => (dir.join(path), false),
                DirectiveKind::IncludeDir(path) => {
                    self.follow_dir(root, &dir.join(path), depth);
                    continue;
                }
            };
            if (needed || target.exists()) && depth > 0 {
                self.add(root, &target, "include");
                self.follow(root, &target, depth - 1);
            }
        }
    }

    /// `include_dir`: files that end in `.conf` and do not begin with a dot (`GetConfFilesInDir`).
    fn follow_dir(&mut self, root: &Path, dir: &Path, depth: u32) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".conf") && !name.starts_with('.') && depth > 0 {
                self.add(root, &entry.path(), "include");
                self.follow(root, &entry.path(), depth - 1);
            }
        }
    }

    /// The paths, ascending.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files.keys().cloned().collect()
    }

    /// As the manifest lists them.
    pub(super) fn facts(&self) -> Vec<ConfigFile> {
        self.files
            .iter()
            .map(|(path, setting)| ConfigFile {
                path: format!("config{}", path.display()),
                origin: path.display().to_string(),
                setting: setting.clone(),
            })
            .collect()
    }
}
