//! Arguments of `dump` and `load`.

use super::ClusterArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// The form that pg_restore or psql reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DumpForm {
    /// SQL, for psql
    Plain,
    /// One file, for pg_restore
    Custom,
    /// A directory, for pg_restore with many sessions
    Directory,
    /// A tar file, for pg_restore
    Tar,
}

/// How rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyFormatArg {
    /// For every version and tool
    Text,
    /// The types' own bytes
    Binary,
}

/// Dump databases as SQL, straight into the repository
///
/// Definitions come from PostgreSQL's own pg_dump of the version that fits, data by many connections on one snapshot: large
/// tables are read in parts by all of them. A dump is loaded with `pgkeep load`, into any version from its own on, or given
/// out for pg_restore and psql. What the login may not read is left out and listed (exit code 4).
///
/// With --import it takes in what pg_dump or pg_dumpall wrote, in every form, compressed or not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        pgkeep dump --database shop\n  \
        pgkeep dump --all --globals --synchronised --label 'before the upgrade'\n  \
        pgkeep dump --database shop --table 'public.orders*' --format custom --to /srv/orders.dump\n  \
        pgkeep dump --database shop --to 'host=new dbname=postgres' --create shop\n  \
        pgkeep dump --import /srv/old/shop.dump --label 'from the old host'\n  \
        pg_dump -h elsewhere shop | pgkeep dump --import -")]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    pub(crate) which: ClusterArgs,
    /// The database; may be repeated. Else the one of the cluster's connection string
    #[arg(long, short, value_name = "NAME", conflicts_with = "all")]
    pub(crate) database: Vec<String>,
    /// All databases but templates
    #[arg(long)]
    pub(crate) all: bool,
    /// Roles, tablespaces and settings too (pg_dumpall --globals-only)
    #[arg(long)]
    pub(crate) globals: bool,
    /// Take the snapshots of all databases together, and say how near to each other they are
    #[arg(long)]
    pub(crate) synchronised: bool,
    #[command(flatten)]
    pub(crate) selection: DumpSelectionArgs,
    /// Be this role while dumping
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: Option<String>,
    /// Take a dump in that pg_dump or pg_dumpall made: a file (of one in pieces the first), a directory, or - for standard input
    #[arg(long, value_name = "PATH", conflicts_with_all = ["database", "all", "globals", "synchronised", "role"])]
    pub(crate) import: Option<PathBuf>,
    /// A text to know the dump by
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Pin the dump: keep it for so long (30d, 6 months), until a moment, or `forever`, whatever the rules say
    #[arg(long, value_name = "TIME")]
    pub(crate) pin: Option<String>,
    /// Connections that copy data at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// none, lz4, zstd or zstd:LEVEL; else from the configuration, else zstd
    #[arg(long, value_name = "METHOD")]
    pub(crate) compression: Option<String>,
    /// Tables larger than this are kept in parts of about this size, and the largest are read in them, by all connections
    #[arg(long, value_name = "SIZE", default_value = "128MB")]
    pub(crate) part_size: String,
    /// How rows are read and kept. Binary: faster to read and much faster to load, into the same major version or a later one,
    /// and not for pg_restore or psql; tables with columns of other than PostgreSQL's own types stay text
    #[arg(long, value_enum, value_name = "FORM", default_value_t = CopyFormatArg::Text, conflicts_with_all = ["format", "import"])]
    pub(crate) copy_format: CopyFormatArg,
    /// Also give it out for pg_restore or psql, in this form
    #[arg(long, value_enum, requires = "to")]
    pub(crate) format: Option<DumpForm>,
    /// How that is compressed: none, gzip, gzip:LEVEL, lz4, zstd or zstd:LEVEL; else gzip for custom and directory, none for plain
    #[arg(long, value_name = "METHOD", requires = "format")]
    pub(crate) compress: Option<String>,
    /// Cut into files of this size: NAME.000, NAME.001 and so on, and NAME.sha256, which lists them
    #[arg(long, value_name = "SIZE", requires = "format")]
    pub(crate) split_size: Option<String>,
    /// Where to: with --format a file or directory that is not there yet; else a connection string: the database is copied
    /// into that server, with nothing in between and nothing kept
    #[arg(long, value_name = "PATH or CONNINFO")]
    pub(crate) to: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tools: ToolArgs,
    #[command(flatten)]
    pub(crate) into: IntoArgs,
}

/// How a database is copied into another server; `load` has the same.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "With --to CONNINFO")]
pub(crate) struct IntoArgs {
    /// Make the database there, from template0; --to names another one to connect to
    #[arg(long, value_name = "NAME", requires = "to", conflicts_with = "format")]
    pub(crate) create: Option<String>,
    /// Everything belongs to the login
    #[arg(long, short = 'O', requires = "to", conflicts_with = "format")]
    pub(crate) no_owner: bool,
    /// No GRANT and REVOKE
    #[arg(long, short = 'x', requires = "to", conflicts_with = "format")]
    pub(crate) no_privileges: bool,
    /// Everything in the default tablespace
    #[arg(long, requires = "to", conflicts_with = "format")]
    pub(crate) no_tablespaces: bool,
    /// Another name for a schema, which is made if it is not there; may be repeated, like the next two
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed, requires = "to", conflicts_with = "format")]
    pub(crate) map_schema: Vec<(String, String)>,
    /// Another name for a role that owns something or has privileges
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed, requires = "to", conflicts_with = "format")]
    pub(crate) map_owner: Vec<(String, String)>,
    /// Another name for a tablespace
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed, requires = "to", conflicts_with = "format")]
    pub(crate) map_tablespace: Vec<(String, String)>,
    /// What happens when a statement fails
    #[arg(long, value_enum, default_value_t = OnErrorArg::Stop, conflicts_with = "format")]
    pub(crate) on_error: OnErrorArg,
    /// Do not analyze the tables at the end
    #[arg(long, requires = "to", conflicts_with = "format")]
    pub(crate) no_analyze: bool,
}

/// What of a database, with pg_dump's switches and patterns.
#[derive(Debug, Clone, Args)]
pub(crate) struct DumpSelectionArgs {
    /// Only the schemas that match, as pg_dump has it; may be repeated, like the next ones
    #[arg(long, short = 'n', value_name = "PATTERN")]
    pub(crate) schema: Vec<String>,
    /// Not the schemas that match
    #[arg(long, short = 'N', value_name = "PATTERN")]
    pub(crate) exclude_schema: Vec<String>,
    /// Only the tables, views and sequences that match
    #[arg(long, short = 't', value_name = "PATTERN")]
    pub(crate) table: Vec<String>,
    /// Not the tables that match
    #[arg(long, short = 'T', value_name = "PATTERN")]
    pub(crate) exclude_table: Vec<String>,
    /// Only the tables that match, with their partitions and children (pg_dump 16 and later)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) table_and_children: Vec<String>,
    /// Not the tables that match, nor their partitions and children (pg_dump 16 and later)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude_table_and_children: Vec<String>,
    /// Not the data of the tables that match
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude_table_data: Vec<String>,
    /// Not the data of the tables that match, nor of their partitions and children (pg_dump 16 and later)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude_table_data_and_children: Vec<String>,
    /// Only the extensions that match
    #[arg(long, short = 'e', value_name = "PATTERN")]
    pub(crate) extension: Vec<String>,
    /// Not the extensions that match (pg_dump 17 and later)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude_extension: Vec<String>,
    /// A file that says what is dumped (pg_dump 17 and later)
    #[arg(long, value_name = "FILE")]
    pub(crate) filter: Option<PathBuf>,
    /// Also the data of foreign tables on the servers that match
    #[arg(long, value_name = "PATTERN")]
    pub(crate) include_foreign_data: Vec<String>,
    /// A pattern that matches nothing is an error
    #[arg(long)]
    pub(crate) strict_names: bool,
    /// Only this section; may be repeated
    #[arg(long, value_enum, conflicts_with_all = ["schema_only", "data_only"])]
    pub(crate) section: Vec<SectionArg>,
    /// Definitions, no data
    #[arg(long, conflicts_with = "data_only")]
    pub(crate) schema_only: bool,
    /// Data, no definitions
    #[arg(long)]
    pub(crate) data_only: bool,
    /// Large objects too, where schemas or tables are selected
    #[arg(long, conflicts_with = "no_large_objects")]
    pub(crate) large_objects: bool,
    /// No large objects
    #[arg(long)]
    pub(crate) no_large_objects: bool,
    /// Not the data of unlogged tables
    #[arg(long)]
    pub(crate) no_unlogged_table_data: bool,
    /// Of tables whose rows row security hides: those that it shows, instead of none
    #[arg(long)]
    pub(crate) enable_row_security: bool,
    /// The planner's statistics, too (pg_dump 18 and later)
    #[arg(long)]
    pub(crate) statistics: bool,
    /// No comments
    #[arg(long)]
    pub(crate) no_comments: bool,
    /// No publications
    #[arg(long)]
    pub(crate) no_publications: bool,
    /// No subscriptions
    #[arg(long)]
    pub(crate) no_subscriptions: bool,
    /// No security labels
    #[arg(long)]
    pub(crate) no_security_labels: bool,
    /// No row security policies (pg_dump 18 and later)
    #[arg(long)]
    pub(crate) no_policies: bool,
}

/// PostgreSQL's own programs.
#[derive(Debug, Clone, Args)]
pub(crate) struct ToolArgs {
    /// The directory of pg_dump and pg_restore; else those that fit are looked for
    #[arg(long, value_name = "DIR")]
    pub(crate) pg_bin: Option<PathBuf>,
}

/// What happens when a statement fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnErrorArg {
    /// The load ends
    Stop,
    /// The rest is loaded, and what failed is listed (exit code 4)
    Continue,
}

/// A part of a load, as pg_restore names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SectionArg {
    /// Tables, functions and all else before the data
    PreData,
    /// Data
    Data,
    /// Indexes, constraints, triggers
    PostData,
}

fn renamed(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err("OLD=NEW is wanted, such as public=yesterday".to_owned()),
    }
}

/// Load a dump into a database
///
/// Definitions by PostgreSQL's own pg_restore, data by many connections, also within one table, indexes and constraints as soon
/// as their tables are whole. The database must be empty, or is made for it (--create).
///
/// A load that was broken off goes on when the same is said again: what is done is noted in the database, in a schema
/// pgkeep_load that goes at the end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        pgkeep load latest --into 'host=new dbname=shop'\n  \
        pgkeep load latest --into 'host=new dbname=postgres' --globals --create shop\n  \
        pgkeep load latest --into 'dbname=shop' --force --table public.orders --map-schema public=yesterday\n  \
        pgkeep load latest --list > list; pgkeep load latest --use-list list --into 'dbname=scratch'")]
pub(crate) struct LoadArgs {
    /// The dump's ID as `pgkeep list` shows it, or `latest`; or the path of what pg_dump wrote (with a slash in it), compressed
    /// or not; of one in pieces the first
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Where to: a connection string
    #[arg(long, value_name = "CONNINFO", required_unless_present = "list")]
    pub(crate) into: Option<String>,
    /// The database of the dump; need not be said when it has only one
    #[arg(long, short, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// Make the database, from template0, with the settings that the dump knows; --into names another one to connect to
    #[arg(long, value_name = "NAME")]
    pub(crate) create: Option<String>,
    /// Make the roles and tablespaces of the dump first
    #[arg(long)]
    pub(crate) globals: bool,
    /// Also when there is something in the database already
    #[arg(long, conflicts_with = "create")]
    pub(crate) force: bool,
    /// Only this schema; may be repeated
    #[arg(long, short = 'n', value_name = "NAME")]
    pub(crate) schema: Vec<String>,
    /// Only this table, with its data, indexes, constraints and triggers; may be repeated
    #[arg(long, short = 't', value_name = "NAME")]
    pub(crate) table: Vec<String>,
    /// Only this section; may be repeated
    #[arg(long, value_enum)]
    pub(crate) section: Vec<SectionArg>,
    /// Print what would be loaded, an entry a line as `pg_restore --list` does, and load nothing
    #[arg(long, short = 'l', conflicts_with_all = ["into", "use_list"])]
    pub(crate) list: bool,
    /// Only the entries of such a list, edited, and in its order
    #[arg(long, short = 'L', value_name = "FILE")]
    pub(crate) use_list: Option<PathBuf>,
    /// Everything but data
    #[arg(long, conflicts_with_all = ["data_only", "section"])]
    pub(crate) schema_only: bool,
    /// Data into tables that are there
    #[arg(long, conflicts_with = "section")]
    pub(crate) data_only: bool,
    /// Everything belongs to the login
    #[arg(long, short = 'O')]
    pub(crate) no_owner: bool,
    /// No GRANT and REVOKE
    #[arg(long, short = 'x')]
    pub(crate) no_privileges: bool,
    /// Everything in the default tablespace
    #[arg(long)]
    pub(crate) no_tablespaces: bool,
    /// Another name for a schema, which is made if it is not there; may be repeated, like the next two
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed, conflicts_with = "single_transaction")]
    pub(crate) map_schema: Vec<(String, String)>,
    /// Another name for a role that owns something or has privileges
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed)]
    pub(crate) map_owner: Vec<(String, String)>,
    /// Another name for a tablespace
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed)]
    pub(crate) map_tablespace: Vec<(String, String)>,
    /// Be this role while loading
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: Option<String>,
    /// All or nothing, by one connection
    #[arg(long, short = '1')]
    pub(crate) single_transaction: bool,
    /// What happens when a statement fails
    #[arg(long, value_enum, default_value_t = OnErrorArg::Stop)]
    pub(crate) on_error: OnErrorArg,
    /// Connections at the same time; else from the configuration, else the processors, at most 8
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// maintenance_work_mem of each connection that makes indexes; else what fits, at least the server's own
    #[arg(long, value_name = "SIZE")]
    pub(crate) maintenance_memory: Option<String>,
    /// Do not analyze the tables at the end
    #[arg(long)]
    pub(crate) no_analyze: bool,
    #[command(flatten)]
    pub(crate) tools: ToolArgs,
}
