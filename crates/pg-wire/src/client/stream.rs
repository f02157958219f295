//! Results of any size, row by row.

use super::Client;
use super::codec::{self, Backend};
use super::connection::Connection;
use super::query::send_extended;
use super::row::{self, Column, Row};
use crate::WireError;
use futures::Stream;
use postgres_protocol::message::backend::Message;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Rows as they arrive, in constant memory: the server waits when they are not read.
///
/// A `futures::Stream`. When it is dropped before its end, the next call on the client reads and drops the rest;
/// cancel the statement first where that may be much.
#[derive(Debug)]
pub struct RowStream<'a> {
    client: &'a mut Client,
    columns: Arc<[Column]>,
    failed: Option<WireError>,
    done: bool,
}

impl Client {
    /// Runs one statement with parameters as [`Client::query`] does, and streams its rows.
    ///
    /// Returns once the statement is sent; its errors come out of the stream.
    pub async fn query_stream(&mut self, sql: &str, params: &[Option<&str>]) -> Result<RowStream<'_>, WireError> {
        self.connection.ready().await?;
        send_extended(&mut self.connection, sql, params)?;
        self.connection.flush().await?;
        Ok(RowStream { client: self, columns: Arc::new([]), failed: None, done: false })
    }
}

impl RowStream<'_> {
    fn poll_row(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Row, WireError>>> {
        let connection: &mut Connection = &mut self.client.connection;
        loop {
            let message = match ready!(connection.poll_message(cx)) {
                Ok(Backend::Message(message)) => message,
                Ok(_) => return Poll::Ready(Some(Err(connection.protocol("an unexpected message in a result")))),
                Err(closed) => return Poll::Ready(Some(Err(self.failed.take().unwrap_or(closed)))),
            };
            match message {
                Message::RowDescription(body) => match row::columns(&body) {
                    Ok(columns) => self.columns = columns,
                    Err(what) => return Poll::Ready(Some(Err(connection.protocol(what)))),
                },
                Message::DataRow(body) => {
                    let row = Row::new(self.columns.clone(), &body).map_err(|what| connection.protocol(what));
                    return Poll::Ready(Some(row));
                }
                Message::ErrorResponse(body) => {
                    let error = WireError::Server(Box::new(codec::server_error(body.fields())));
                    self.failed.get_or_insert(error);
                }
                Message::ReadyForQuery(_) => {
                    self.done = true;
                    return Poll::Ready(self.failed.take().map(Err));
                }
                Message::CopyInResponse(_) | Message::CopyOutResponse(_) => {
                    let what = "a COPY statement was run as a query";
                    return Poll::Ready(Some(Err(connection.die(what.to_owned()))));
                }
                _ => {}
            }
        }
    }
}

impl Stream for RowStream<'_> {
    type Item = Result<Row, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_row(cx));
        if matches!(item, Some(Err(_)) | None) {
            self.done = true;
        }
        Poll::Ready(item)
    }
}
