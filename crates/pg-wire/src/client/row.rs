//! Rows and columns of a result, in text format.

use crate::WireError;
use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use pg_format::{Lsn, Timeline};
use postgres_protocol::message::backend::{DataRowBody, RowDescriptionBody};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// One column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The OID of its type.
    pub type_oid: u32,
}

/// One row. Values are bytes in text format; the getters convert and name the column when they cannot.
#[derive(Clone)]
pub struct Row {
    columns: Arc<[Column]>,
    buffer: Bytes,
    ranges: Vec<Option<Range<usize>>>,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = (0..self.ranges.len()).map(|i| self.bytes_at(i).map(String::from_utf8_lossy));
        f.debug_map().entries(self.columns.iter().map(|column| &column.name).zip(values)).finish()
    }
}

pub(super) fn columns(body: &RowDescriptionBody) -> Result<Arc<[Column]>, String> {
    let fields = body.fields();
    let columns: Vec<Column> = fields
        .map(|field| Ok(Column { name: field.name().to_owned(), type_oid: field.type_oid() }))
        .collect()
        .map_err(|error| error.to_string())?;
    Ok(columns.into())
}

impl Row {
    pub(super) fn new(columns: Arc<[Column]>, body: &DataRowBody) -> Result<Self, String> {
        let ranges: Vec<_> = body.ranges().collect().map_err(|error| error.to_string())?;
        if ranges.len() != columns.len() {
            return Err(format!("a row of {} values for {} columns", ranges.len(), columns.len()));
        }
        Ok(Self { columns, buffer: body.buffer_bytes().clone(), ranges })
    }

    /// The columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn bytes_at(&self, index: usize) -> Option<&[u8]> {
        self.ranges.get(index).cloned().flatten().map(|range| &self.buffer[range])
    }

    fn index(&self, column: &str) -> Result<usize, WireError> {
        self.columns.iter().position(|known| known.name == column).ok_or_else(|| self.no_column(column))
    }

    fn no_column(&self, column: impl fmt::Display) -> WireError {
        let available = self.columns.iter().map(|column| column.name.clone()).collect();
        WireError::NoColumn { column: column.to_string(), available }
    }

    /// The bytes of a value, none for NULL.
    pub fn bytes(&self, column: &str) -> Result<Option<&[u8]>, WireError> {
        Ok(self.bytes_at(self.index(column)?))
    }

    /// The bytes of the value at an index, none for NULL.
    pub fn bytes_by_index(&self, index: usize) -> Result<Option<&[u8]>, WireError> {
        if index < self.ranges.len() { Ok(self.bytes_at(index)) } else { Err(self.no_column(index)) }
    }

    /// The text of a value, none for NULL.
    pub fn opt_str(&self, column: &str) -> Result<Option<&str>, WireError> {
        let bytes = self.bytes(column)?;
        bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bad_value(column, bytes, "UTF-8 text"))).transpose()
    }

    /// The text of a value.
    pub fn str(&self, column: &str) -> Result<&str, WireError> {
        self.opt_str(column)?.ok_or_else(|| WireError::Null { column: column.to_owned() })
    }

    /// The value parsed as a type, none for NULL; for numbers, [`Lsn`], [`Timeline`] and the like.
    pub fn opt_get<T: FromStr>(&self, column: &str) -> Result<Option<T>, WireError> {
        let Some(text) = self.opt_str(column)? else { return Ok(None) };
        let type_name = std::any::type_name::<T>();
        let short = type_name.rsplit("::").next().unwrap_or(type_name);
        text.parse().map(Some).map_err(|_| bad_value(column, text.as_bytes(), short))
    }

    /// The value parsed as a type.
    pub fn get<T: FromStr>(&self, column: &str) -> Result<T, WireError> {
        self.opt_get(column)?.ok_or_else(|| WireError::Null { column: column.to_owned() })
    }

    /// A boolean (`t`, `f`, and `on`, `off` as SHOW gives them).
    pub fn bool(&self, column: &str) -> Result<bool, WireError> {
        match self.str(column)? {
            "t" | "true" | "on" => Ok(true),
            "f" | "false" | "off" => Ok(false),
            other => Err(bad_value(column, other.as_bytes(), "boolean")),
        }
    }

    /// A `pg_lsn`.
    pub fn lsn(&self, column: &str) -> Result<Lsn, WireError> {
        self.get(column)
    }

    /// A timeline number.
    pub fn timeline(&self, column: &str) -> Result<Timeline, WireError> {
        self.get::<u32>(column).map(Timeline)
    }

    pub(super) fn texts(&self) -> Result<Vec<Option<String>>, WireError> {
        let text = |index: usize, column: &Column| match self.bytes_at(index) {
            None => Ok(None),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(bad_value(&column.name, bytes, "UTF-8 text")),
            },
        };
        self.columns.iter().enumerate().map(|(index, column)| text(index, column)).collect()
    }
}

fn bad_value(column: &str, bytes: &[u8], expected: &'static str) -> WireError {
    let mut value = String::from_utf8_lossy(bytes).into_owned();
    if let Some((cut, _)) = value.char_indices().nth(80) {
        value.truncate(cut);
        value.push('…');
    }
    WireError::BadValue { column: column.to_owned(), value, expected }
}
