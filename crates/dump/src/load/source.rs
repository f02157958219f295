//! Where the data of a load come from: a dump in the repository, or another server, at one snapshot.

use crate::connection::{Server, for_reading_as};
use crate::copy::CopyTarget;
use crate::large_objects::{self, Parser, Step};
use crate::tables::join_snapshot;
use crate::{DumpError, StreamReader};
use engine::Context;
use futures::StreamExt;
use pg_wire::{Client, CopyIn};
use repo::dump::{DataKind, DumpedDatabase};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Bytes of rows in one message: small enough to stay in the processor's cache while the server takes it apart.
const MESSAGE: usize = 64 << 10;

/// The data of one entry.
#[derive(Debug, Clone)]
pub(crate) struct EntryData {
    /// The entry's dump ID.
    pub(crate) entry: i32,
    pub(crate) kind: DataKind,
    /// Loaded in this order they are the whole.
    pub(crate) parts: Vec<PartData>,
}

/// A part of it.
#[derive(Debug, Clone)]
pub(crate) struct PartData {
    pub(crate) place: Place,
    /// Rows or large objects, where it is known before.
    pub(crate) rows: Option<u64>,
    /// Plain bytes, or about so many.
    pub(crate) bytes: u64,
}

/// Where a part is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A stream of the dump.
    Stream(u32),
    /// What this COPY statement gives, of this table.
    Copy { sql: String, table: String },
    /// These large objects.
    LargeObjects(Vec<u32>),
}

/// The data of a dump's database, as they are loaded.
pub(crate) fn of_dump(database: &DumpedDatabase) -> Vec<EntryData> {
    let part = |part: &repo::dump::DumpedPart| PartData {
        place: Place::Stream(part.stream),
        rows: Some(part.rows),
        bytes: part.bytes,
    };
    let data = database.data.iter().map(|data| EntryData {
        entry: data.entry,
        kind: data.kind,
        parts: data.parts.iter().filter(|part| part.bytes > 0).map(part).collect(),
    });
    data.collect()
}

/// Where all data are.
#[derive(Clone)]
pub(crate) enum Source {
    /// In a dump.
    Dump(StreamReader),
    /// On another server.
    Server(Arc<Origin>),
}

/// A server that is read at a snapshot.
pub(crate) struct Origin {
    pub(crate) server: Server,
    pub(crate) snapshot: String,
    /// What each session does first.
    pub(crate) setup: String,
    /// The session that holds the tables; reads what others are kept from.
    pub(crate) holder: Mutex<Client>,
}

/// A worker's way to the data.
pub(crate) enum Feed {
    Dump(StreamReader),
    Server { origin: Arc<Origin>, client: Box<Client>, locked: HashSet<String> },
}

impl Source {
    /// For one worker.
    pub(crate) async fn open(&self) -> Result<Feed, DumpError> {
        match self {
            Self::Dump(reader) => Ok(Feed::Dump(reader.clone())),
            Self::Server(origin) => {
                let mut client = for_reading_as(&origin.server.conninfo, &origin.setup).await?;
                join_snapshot(&mut client, &origin.snapshot).await?;
                Ok(Feed::Server { origin: origin.clone(), client: Box::new(client), locked: HashSet::new() })
            }
        }
    }
}

/// What went into the server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fed {
    /// Rows that were sent, where they were counted.
    pub(crate) rows: Option<u64>,
    pub(crate) bytes: u64,
}

impl Feed {
    /// Sends the rows of a part into a COPY.
    pub(crate) async fn rows(
        &mut self,
        ctx: &Context,
        part: &PartData,
        copy: &mut CopyIn<'_>,
    ) -> Result<Fed, DumpError> {
        match (self, &part.place) {
            (Self::Dump(reader), Place::Stream(stream)) => {
                let mut pieces = reader.pieces(*stream);
                let mut bytes = 0;
                while let Some(piece) = pieces.next().await {
                    let piece = piece?;
                    for message in piece.chunks(MESSAGE) {
                        copy.send(message).await?;
                    }
                    bytes += piece.len() as u64;
                    ctx.progress.advance(piece.len() as u64);
                }
                Ok(Fed { rows: part.rows, bytes })
            }
            (Self::Server { origin, client, locked }, Place::Copy { sql, table }) => {
                if !locked.contains(table) && !crate::data::lock(client, table).await? {
                    return relay(ctx, &mut *origin.holder.lock().await, sql, copy).await;
                }
                locked.insert(table.clone());
                relay(ctx, client, sql, copy).await
            }
            _ => Err(elsewhere()),
        }
    }

    /// Writes the large objects of a part into the session. Gives how many there were.
    pub(crate) async fn large_objects(
        &mut self,
        ctx: &Context,
        part: &PartData,
        target: &mut Client,
    ) -> Result<Fed, DumpError> {
        match (self, &part.place) {
            (Self::Dump(reader), Place::Stream(stream)) => {
                let bad =
                    |error: crate::archive::BadArchive| DumpError::Failed { reason: error.to_string(), hint: None };
                let mut pieces = reader.pieces(*stream);
                let (mut parser, mut at, mut fed) = (Parser::default(), (0, 0), Fed::default());
                let mut count = 0;
                while let Some(piece) = pieces.next().await {
                    let piece = piece?;
                    ctx.progress.advance(piece.len() as u64);
                    fed.bytes += piece.len() as u64;
                    for step in parser.feed(&piece).map_err(bad)? {
                        match step {
                            Step::Begin(oid) => at = (oid, 0),
                            Step::Bytes(bytes) => {
                                large_objects::put(target, at.0, at.1, &bytes).await?;
                                at.1 += bytes.len() as u64;
                            }
                            Step::End => count += 1,
                        }
                    }
                }
                parser.finish().map_err(bad)?;
                Ok(Fed { rows: Some(count), ..fed })
            }
            (Self::Server { client, .. }, Place::LargeObjects(oids)) => {
                let bytes = large_objects::relay(ctx, client, oids, target).await?;
                Ok(Fed { rows: Some(oids.len() as u64), bytes })
            }
            _ => Err(elsewhere()),
        }
    }
}

fn elsewhere() -> DumpError {
    DumpError::Failed { reason: "data are looked for where they are not".into(), hint: None }
}

/// From one server to the other, many rows in a message.
async fn relay(ctx: &Context, from: &mut Client, sql: &str, copy: &mut CopyIn<'_>) -> Result<Fed, DumpError> {
    let (mut rows, mut bytes) = (0, 0);
    let mut message = Vec::with_capacity(2 * MESSAGE);
    let failed = |error: pg_wire::WireError| DumpError::Failed {
        reason: format!("the origin could not be read: {error}"),
        hint: error.hint(),
    };
    let mut stream = from.copy_out(sql).await.map_err(failed)?;
    while let Some(arrived) = stream.rows().await.map_err(failed)? {
        for row in arrived.iter() {
            message.extend_from_slice(row);
            rows += 1;
        }
        if message.len() >= MESSAGE {
            copy.send(&message).await?;
            ctx.progress.advance(message.len() as u64);
            bytes += message.len() as u64;
            message.clear();
        }
    }
    copy.send(&message).await?;
    ctx.progress.advance(message.len() as u64);
    Ok(Fed { rows: Some(rows), bytes: bytes + message.len() as u64 })
}

/// The statement that loads an entry's rows.
pub(crate) fn target(statement: &[u8]) -> Result<CopyTarget, DumpError> {
    CopyTarget::parse(statement).map_err(|error| DumpError::Failed { reason: error.to_string(), hint: None })
}
