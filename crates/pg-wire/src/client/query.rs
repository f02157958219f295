//! Statements whose results are small enough to hold: simple and extended queries.

use super::Client;
use super::codec::{self, Backend};
use super::connection::{Connection, CopyState};
use super::row::{self, Column, Row};
use crate::WireError;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::sync::Arc;

/// The result of one statement of a simple query, all text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryResult {
    /// The columns; none for a statement that gives no rows.
    pub columns: Vec<Column>,
    /// The rows; NULL is none.
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tag, such as `INSERT 0 1`; empty for an empty statement.
    pub tag: String,
}

/// The result of a statement: rows and the command tag.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The columns.
    pub columns: Arc<[Column]>,
    /// The rows.
    pub rows: Vec<Row>,
    /// The command tag.
    pub tag: String,
}

impl Rows {
    fn empty() -> Self {
        Self { columns: Arc::new([]), rows: Vec::new(), tag: String::new() }
    }

    /// The number of rows that the command tag reports, such as 3 for `UPDATE 3`.
    pub fn affected(&self) -> u64 {
        self.tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// The only row.
    pub fn one(mut self) -> Result<Row, WireError> {
        let found = self.rows.len();
        self.rows.pop().filter(|_| found == 1).ok_or(WireError::RowCount { expected: "one", found })
    }

    /// The only row, or none.
    pub fn at_most_one(mut self) -> Result<Option<Row>, WireError> {
        match self.rows.len() {
            0 | 1 => Ok(self.rows.pop()),
            found => Err(WireError::RowCount { expected: "at most one", found }),
        }
    }
}

impl IntoIterator for Rows {
    type Item = Row;
    type IntoIter = std::vec::IntoIter<Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter()
    }
}

impl Client {
    /// Runs one or more statements by the simple protocol; several without BEGIN are one transaction.
    ///
    /// The first error ends them all and is returned. Also speaks walsender commands on a replication connection.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryResult>, WireError> {
        let results = self.simple_rows(sql).await?;
        let text = |rows: Rows| {
            Ok(QueryResult {
                columns: rows.columns.to_vec(),
                rows: rows.rows.iter().map(Row::texts).collect::<Result<_, _>>()?,
                tag: rows.tag,
            })
        };
        results.into_iter().map(text).collect()
    }

    /// Like [`Client::simple_query`], with rows whose values are bytes.
    pub async fn simple_rows(&mut self, sql: &str) -> Result<Vec<Rows>, WireError> {
        self.limited(async |connection: &mut Connection| {
            connection.ready().await?;
            send_simple(connection, sql)?;
            collect(connection).await
        })
        .await
    }

    /// Runs one statement with parameters `$1`, `$2`, … given as text, NULL as none.
    ///
    /// The server infers the parameters' types; write `$1::type` where it cannot.
    pub async fn query(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Rows, WireError> {
        self.limited(async |connection: &mut Connection| {
            connection.ready().await?;
            send_extended(connection, sql, params)?;
            Ok(collect(connection).await?.pop().unwrap_or_else(Rows::empty))
        })
        .await
    }

    /// Runs a statement that must give exactly one row.
    pub async fn query_one(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Row, WireError> {
        self.query(sql, params).await?.one()
    }

    /// Runs a statement that may give one row.
    pub async fn query_opt(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Option<Row>, WireError> {
        self.query(sql, params).await?.at_most_one()
    }

    /// Runs a statement for its effect and gives the number of rows affected.
    pub async fn execute(&mut self, sql: &str, params: &[Option<&str>]) -> Result<u64, WireError> {
        Ok(self.query(sql, params).await?.affected())
    }

    /// The only value of the only row, by the simple protocol.
    pub(super) async fn one_value(&mut self, sql: &str) -> Result<String, WireError> {
        let rows = self.simple_rows(sql).await?.pop().unwrap_or_else(Rows::empty);
        let mut texts = rows.one()?.texts()?;
        let value = (texts.len() == 1).then(|| texts.pop().flatten()).flatten();
        value.ok_or_else(|| WireError::Null { column: sql.to_owned() })
    }
}

pub(super) fn send_simple(connection: &mut Connection, sql: &str) -> Result<(), WireError> {
    frontend::query(sql, &mut connection.write).map_err(misuse)?;
    connection.owed += 1;
    Ok(())
}

pub(super) fn send_extended(connection: &mut Connection, sql: &str, params: &[Option<&str>]) -> Result<(), WireError> {
    let start = connection.write.len();
    let write = &mut connection.write;
    let queued = frontend::parse("", sql, [], write).map_err(misuse).and_then(|()| {
        let serialize = |value: &Option<&str>, buf: &mut bytes::BytesMut| match value {
            Some(text) => {
                buf.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        };
        frontend::bind("", "", [], params, serialize, [], write).map_err(|error| match error {
            frontend::BindError::Conversion(error) => WireError::Misuse { what: error.to_string() },
            frontend::BindError::Serialization(error) => misuse(error),
        })?;
        frontend::describe(b'P', "", write).map_err(misuse)?;
        frontend::execute("", 0, write).map_err(misuse)
    });
    if let Err(error) = queued {
        // Half a message must not be sent.
        connection.write.truncate(start);
        return Err(error);
    }
    frontend::sync(write);
    connection.owed += 1;
    Ok(())
}

pub(super) fn misuse(error: std::io::Error) -> WireError {
    WireError::Misuse { what: format!("the statement cannot be sent: {error}") }
}

/// Reads results until the session is ready again. The first error is returned, after all was read.
async fn collect(connection: &mut Connection) -> Result<Vec<Rows>, WireError> {
    let mut results = Vec::new();
    let mut current = Rows::empty();
    let mut failed: Option<WireError> = None;
    loop {
        let message = match connection.message().await {
            Ok(Backend::Message(message)) => message,
            Ok(Backend::CopyBoth) => {
                connection.copy = CopyState::Both;
                failed.get_or_insert_with(|| copy_misuse("replication"));
                connection.ready().await?;
                return failed.map_or(Ok(results), Err);
            }
            Ok(Backend::NegotiateProtocol { .. }) => return Err(connection.protocol("a second protocol negotiation")),
            // A FATAL error is followed by the end: the error says more.
            Err(closed) => return Err(failed.unwrap_or(closed)),
        };
        match message {
            Message::RowDescription(body) => {
                current.columns = row::columns(&body).map_err(|what| connection.protocol(what))?;
            }
            Message::DataRow(body) => {
                let row = Row::new(current.columns.clone(), &body).map_err(|what| connection.protocol(what))?;
                current.rows.push(row);
            }
            Message::CommandComplete(body) => {
                current.tag = body.tag().unwrap_or_default().to_owned();
                results.push(std::mem::replace(&mut current, Rows::empty()));
            }
            Message::EmptyQueryResponse => results.push(std::mem::replace(&mut current, Rows::empty())),
            Message::ErrorResponse(body) => {
                let error = Box::new(codec::server_error(body.fields()));
                failed.get_or_insert(WireError::Server(error));
            }
            Message::CopyInResponse(_) => {
                failed.get_or_insert_with(|| copy_misuse("copy_in"));
                frontend::copy_fail("COPY FROM STDIN needs copy_in", &mut connection.write).map_err(misuse)?;
            }
            Message::CopyOutResponse(_) => {
                failed.get_or_insert_with(|| copy_misuse("copy_out"));
            }
            Message::ReadyForQuery(_) => return failed.map_or(Ok(results), Err),
            Message::ParseComplete
            | Message::BindComplete
            | Message::NoData
            | Message::CopyData(_)
            | Message::CopyDone
            | Message::PortalSuspended
            | Message::ParameterDescription(_)
            | Message::CloseComplete => {}
            _ => return Err(connection.protocol("an unexpected message in a result")),
        }
    }
}

fn copy_misuse(call: &str) -> WireError {
    WireError::Misuse { what: format!("a COPY statement was run as a query; use the call for {call}") }
}
