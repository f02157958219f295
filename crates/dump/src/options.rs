//! What is asked of a dump.

use crate::ToolSet;
use repo::Compression;

/// Which databases are dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    /// These.
    Named(Vec<String>),
    /// All that can be connected to, without templates.
    All,
}

/// Whether roles, tablespaces and settings are dumped too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Globals {
    /// Yes.
    Include,
    /// No.
    Leave,
}

/// What becomes of tables whose rows row security hides from the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowSecurity {
    /// Their data are left out.
    LeaveOut,
    /// The rows that the policies show are dumped (`--enable-row-security`).
    WhatIsShown,
}

/// How rows are read and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFormat {
    /// As text, which every version reads, and pg_restore and psql.
    Text,
    /// In binary form where all columns of a table have types of which that says everything; else as text.
    Binary,
}

/// What of a database is dumped: pg_dump's own switches, with its patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    switches: Vec<String>,
}

/// Switches of pg_dump that take a pattern, and those that take none. What is not here does not select, or is not for archives.
pub const PATTERN_SWITCHES: [&str; 10] = [
    "schema",
    "exclude-schema",
    "table",
    "table-and-children",
    "exclude-table",
    "exclude-table-and-children",
    "exclude-table-data",
    "exclude-table-data-and-children",
    "extension",
    "exclude-extension",
];

impl Selection {
    /// Adds a switch with a pattern or a file.
    #[must_use]
    pub fn with(mut self, name: &str, values: impl IntoIterator<Item = impl std::fmt::Display>) -> Self {
        self.switches.extend(values.into_iter().map(|value| format!("--{name}={value}")));
        self
    }

    /// Adds a switch without a value, when it is asked for.
    #[must_use]
    pub fn when(mut self, asked: bool, name: &str) -> Self {
        if asked {
            self.switches.push(format!("--{name}"));
        }
        self
    }

    /// The switches for pg_dump.
    pub fn switches(&self) -> &[String] {
        &self.switches
    }
}

impl DumpOptions {
    /// What each session that reads does first, besides what all do.
    pub(crate) fn setup(&self) -> String {
        setup(self.role.as_deref(), self.row_security)
    }
}

/// The same for any session that reads.
pub(crate) fn setup(role: Option<&str>, row_security: RowSecurity) -> String {
    let mut setup = String::new();
    if let Some(role) = role {
        setup += &format!("SET ROLE {};", crate::names::quoted(role));
    }
    if row_security == RowSecurity::WhatIsShown {
        setup += "SET row_security = on;";
    }
    setup
}

/// What is asked of a dump.
#[derive(Debug, Clone)]
pub struct DumpOptions {
    /// Which databases.
    pub databases: Databases,
    /// Roles, tablespaces, settings.
    pub globals: Globals,
    /// What of each database.
    pub selection: Selection,
    /// `SET ROLE` first.
    pub role: Option<String>,
    /// Of tables with row security, what the policies show.
    pub row_security: RowSecurity,
    /// All databases at one moment, as nearly as can be.
    pub synchronised: bool,
    /// Connections that copy data at the same time.
    pub workers: usize,
    /// Tables with more bytes than this are copied in parts of about so many.
    pub part_bytes: u64,
    /// How rows are read and kept.
    pub copy_format: CopyFormat,
    /// How data are compressed.
    pub compression: Compression,
    /// A text to know it by.
    pub label: Option<String>,
    /// The program, for the manifest.
    pub made_by: String,
    /// PostgreSQL's programs.
    pub tools: ToolSet,
}
