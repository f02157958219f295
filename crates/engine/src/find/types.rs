//! What is found.

use super::names::{FIRST_NORMAL, large_objects};
use jiff::Timestamp;
use pg_format::{Lsn, Timeline};
use pg_wal::index::{RowCounts, TupleId};
use pg_wal::{Oid, RelFileLocator};
use repo::BackupId;
use serde::{Serialize, Serializer};
use std::fmt;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A table, index, schema, database and the like was dropped.
    Drop,
    /// Tables were truncated.
    Truncate,
    /// Many rows were deleted.
    Delete,
    /// Many rows were updated.
    Update,
    /// Many rows came in.
    Load,
    /// Tables were written anew (`VACUUM FULL`, `CLUSTER`, some of `ALTER TABLE`) or went to another tablespace.
    Rewrite,
    /// Files of relations were removed, and the index does not say whether by a drop, a truncate or a rewrite.
    FilesRemoved,
    /// A restore point was made.
    RestorePoint,
    /// A new timeline began.
    TimelineSwitch,
    /// Anything else that a transaction did; only when its ID was asked for.
    Transaction,
}

impl EventKind {
    /// As people and JSON have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Truncate => "truncate",
            Self::Delete => "delete",
            Self::Update => "update",
            Self::Load => "load",
            Self::Rewrite => "rewrite",
            Self::FilesRemoved => "files-removed",
            Self::RestorePoint => "restore-point",
            Self::TimelineSwitch => "timeline-switch",
            Self::Transaction => "transaction",
        }
    }
}

/// What it happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A database.
    Database,
    /// A schema.
    Schema,
    /// A tablespace.
    Tablespace,
    /// A table, or a partition.
    Table,
    /// A partitioned table.
    PartitionedTable,
    /// A materialized view.
    MaterializedView,
    /// A view.
    View,
    /// A foreign table.
    ForeignTable,
    /// A sequence.
    Sequence,
    /// A composite type.
    Type,
    /// An index.
    Index,
    /// What holds a table's large values.
    Toast,
    /// A relation of which the kind is not known.
    Relation,
}

impl ObjectKind {
    /// From `pg_class.relkind`.
    pub(super) fn of_relkind(kind: u8) -> Self {
        match kind {
            b'r' => Self::Table,
            b'p' => Self::PartitionedTable,
            b'm' => Self::MaterializedView,
            b'v' => Self::View,
            b'f' => Self::ForeignTable,
            b'S' => Self::Sequence,
            b'c' => Self::Type,
            b'i' | b'I' => Self::Index,
            b't' => Self::Toast,
            _ => Self::Relation,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Schema => "schema",
            Self::Tablespace => "tablespace",
            Self::Table => "table",
            Self::PartitionedTable => "partitioned table",
            Self::MaterializedView => "materialized view",
            Self::View => "view",
            Self::ForeignTable => "foreign table",
            Self::Sequence => "sequence",
            Self::Type => "type",
            Self::Index => "index",
            Self::Toast => "TOAST table",
            Self::Relation => "relation",
        }
    }
}

/// Something that it happened to. Of what has no name the numbers are known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// Its database's name.
    pub database: Option<String>,
    /// Its schema's name.
    pub schema: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its database; 0 for what all databases share.
    pub database_oid: Oid,
    /// Its schema.
    pub schema_oid: Option<Oid>,
    /// Its OID.
    pub oid: Option<Oid>,
    /// Its file: tablespace, database, relfilenode.
    #[serde(serialize_with = "as_text")]
    pub file: Option<RelFileLocator>,
    /// Rows added.
    pub rows_inserted: u64,
    /// Rows replaced.
    pub rows_updated: u64,
    /// Rows deleted.
    pub rows_deleted: u64,
    /// The rows it had when PostgreSQL counted them last, before it was dropped or truncated.
    pub rows_before: Option<u64>,
    /// The pages it had then.
    pub pages_before: Option<u32>,
    /// Its name is that of a later backup: when this happened it may have been another.
    pub named_later: bool,
}

fn as_text<S: Serializer>(file: &Option<RelFileLocator>, serializer: S) -> Result<S::Ok, S::Error> {
    match file {
        Some(file) => serializer.collect_str(file),
        None => serializer.serialize_none(),
    }
}

impl Object {
    /// One of which only this is known.
    pub(super) fn new(kind: ObjectKind, database_oid: Oid) -> Self {
        Self {
            kind,
            database: None,
            schema: None,
            name: None,
            database_oid,
            schema_oid: None,
            oid: None,
            file: None,
            rows_inserted: 0,
            rows_updated: 0,
            rows_deleted: 0,
            rows_before: None,
            pages_before: None,
            named_later: false,
        }
    }

    pub(super) fn with_rows(mut self, rows: &RowCounts) -> Self {
        self.rows_inserted = rows.inserted.saturating_add(rows.multi_inserted);
        self.rows_updated = rows.updated.saturating_add(rows.hot_updated);
        self.rows_deleted = rows.deleted;
        self
    }

    /// Whether a later backup may know more of its name.
    pub(super) fn is_nameless(&self) -> bool {
        let has_schema = !matches!(self.kind, ObjectKind::Database | ObjectKind::Schema | ObjectKind::Tablespace);
        let has_database = self.database_oid.is_valid();
        self.name.is_none() || has_schema && self.schema.is_none() || has_database && self.database.is_none()
    }

    /// Whether it is a relation of PostgreSQL's own: what it holds is no user's data.
    pub(super) fn is_systems(&self) -> bool {
        let relation = !matches!(self.kind, ObjectKind::Database | ObjectKind::Schema | ObjectKind::Tablespace);
        relation && self.oid.is_some_and(|oid| oid.0 < FIRST_NORMAL && large_objects(oid.0).is_none())
    }

    /// `schema.name`, or what is known in its place.
    pub fn label(&self) -> String {
        let name = match (&self.name, self.oid, self.file) {
            (Some(name), _, _) => name.clone(),
            (None, Some(oid), _) => format!("[{} {oid}]", self.kind.words()),
            (None, None, Some(file)) => format!("[file {file}]"),
            (None, None, None) => format!("[a {}]", self.kind.words()),
        };
        match (&self.schema, self.schema_oid) {
            (Some(schema), _) => format!("{schema}.{name}"),
            (None, Some(schema)) if self.name.is_some() => format!("[schema {schema}].{name}"),
            _ => name,
        }
    }
}

impl fmt::Display for Object {
    /// `database.schema.name`, or what is known in its place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self.kind, ObjectKind::Database | ObjectKind::Tablespace) {
            match &self.database {
                Some(database) => write!(f, "{database}.")?,
                None if self.database_oid.is_valid() => write!(f, "[database {}].", self.database_oid)?,
                None => {}
            }
        }
        f.write_str(&self.label())
    }
}

/// Where recovery is to stop, so that it has not happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HitTarget {
    /// The place in the WAL.
    pub lsn: Lsn,
    /// Whether recovery stops before the record there.
    pub exclusive: bool,
    /// The restore point that lies there, when its name is the only one of that name.
    pub restore_point: Option<String>,
    /// The backup that must be named, because the place is of an earlier system identifier of the cluster.
    pub backup: Option<BackupId>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// What.
    pub kind: EventKind,
    /// When it was committed.
    pub time: Option<Timestamp>,
    /// The transaction.
    pub xid: Option<u32>,
    /// Where the record begins that made it so: the commit's, as a rule.
    pub lsn: Lsn,
    /// The timeline it happened on.
    pub timeline: Timeline,
    /// What it happened to, tables first.
    pub objects: Vec<Object>,
    /// How many more that are not listed.
    pub objects_left_out: u64,
    /// The rows that it changed, of the kind of change that it is.
    pub rows: u64,
    /// The WAL that the transaction wrote, when it was much.
    pub wal_bytes: Option<u64>,
    /// The name under which it was prepared, when it was.
    pub prepared: Option<String>,
    /// The name of a restore point.
    pub name: Option<String>,
    /// The target just before it.
    pub target: HitTarget,
    /// Whether a backup reaches the target.
    pub reachable: bool,
    /// It did not commit, as far as is known, and yet did what cannot be taken back.
    pub broken_off: bool,
    /// What else to know.
    pub notes: Vec<String>,
    /// For `DROP DATABASE`: the row of `pg_database`, which is marked in place before the record here deletes it.
    #[serde(skip)]
    pub(super) marked_row: Option<(TupleId, Lsn)>,
    /// It happened only when that row was indeed marked.
    #[serde(skip)]
    pub(super) must_be_marked: bool,
}

impl Hit {
    /// What happened, in words: `drop table`.
    pub fn words(&self) -> String {
        let what = self.objects.first().map(|object| object.kind.words());
        match (self.kind, what) {
            (EventKind::FilesRemoved, _) => "files removed".into(),
            (EventKind::RestorePoint, _) => "restore point".into(),
            (EventKind::TimelineSwitch, _) => "new timeline".into(),
            (EventKind::Transaction, _) | (_, None) => self.kind.as_str().into(),
            (kind, Some(what)) => format!("{} {what}", kind.as_str()),
        }
    }
}
