//! An asynchronous PostgreSQL client: connection strings, TLS, authentication, SQL, COPY and the replication protocol.
//!
//! What it is: everything libpq accepts as a connection string ([`conninfo`]), a [`Client`] that connects to
//! the first suitable server, runs simple and extended queries in text format, streams large results, and
//! speaks the walsender's commands. Every error says what failed, on what, and [`WireError::hint`] what to do.
//!
//! What it is not: it has no policy, never prints, never reads the environment or the home directory (the
//! caller hands them over as [`Surroundings`]), and keeps no pool.

mod client;
pub mod conninfo;
mod error;
mod secret;
mod tls;

pub use client::{
    BaseBackup, BaseBackupArchive, BaseBackupCompression, BaseBackupEnd, BaseBackupOptions, BaseBackupPart,
    BaseBackupRefused, BaseBackupTablespace, CancelToken, Client, Column, CopyBoth, CopyIn, CopyOut, CopyRows,
    IdentifySystem, QueryResult, ReplicationMessage, Row, RowStream, Rows, StandbyStatus, TimelineHistory,
    TransactionStatus,
};
pub use conninfo::{Conninfo, ConninfoError, Params, Surroundings};
pub use error::{ServerError, WireError};
pub use secret::Secret;
