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

/// What of a database is dumped: pg_dump's own switches, with its patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// `--schema`.
    pub schemas: Vec<String>,
    /// `--exclude-schema`.
    pub exclude_schemas: Vec<String>,
    /// `--table`.
    pub tables: Vec<String>,
    /// `--exclude-table`.
    pub exclude_tables: Vec<String>,
    /// `--exclude-table-data`.
    pub exclude_table_data: Vec<String>,
    /// `--extension`.
    pub extensions: Vec<String>,
    /// `--filter`, PostgreSQL 17 and later.
    pub filter: Option<std::path::PathBuf>,
    /// `--schema-only`.
    pub schema_only: bool,
    /// `--data-only`.
    pub data_only: bool,
}

impl Selection {
    /// The switches for pg_dump.
    pub(crate) fn switches(&self) -> Vec<String> {
        let mut switches = Vec::new();
        for (name, patterns) in [
            ("schema", &self.schemas),
            ("exclude-schema", &self.exclude_schemas),
            ("table", &self.tables),
            ("exclude-table", &self.exclude_tables),
            ("exclude-table-data", &self.exclude_table_data),
            ("extension", &self.extensions),
        ] {
            switches.extend(patterns.iter().map(|pattern| format!("--{name}={pattern}")));
        }
        switches.extend(self.filter.iter().map(|file| format!("--filter={}", file.display())));
        if self.schema_only {
            switches.push("--schema-only".into());
        }
        if self.data_only {
            switches.push("--data-only".into());
        }
        switches
    }
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
    /// All databases at one moment, as nearly as can be.
    pub synchronised: bool,
    /// Connections that copy data at the same time.
    pub workers: usize,
    /// Tables with more bytes than this are copied in parts of about so many.
    pub part_bytes: u64,
    /// How data are compressed.
    pub compression: Compression,
    /// A text to know it by.
    pub label: Option<String>,
    /// The program, for the manifest.
    pub made_by: String,
    /// PostgreSQL's programs.
    pub tools: ToolSet,
}
