//! What is read of a database before its data: its tables are held, a snapshot is taken, and pg_dump writes definitions at it.

use crate::connection::{Server, for_reading_as};
use crate::definitions::{self, Definitions};
use crate::options::setup;
use crate::tables::{self, Holder};
use crate::tools::Tools;
use crate::{DumpError, RowSecurity, Selection};
use engine::{Context, Unit};
use pg_wire::Client;
use repo::dump::Unread;
use std::collections::HashSet;

/// How often it is begun, when somebody waits to change a table.
const TRIES: u32 = 3;

/// How a server's databases are read.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) server: &'a Server,
    pub(crate) tools: &'a Tools,
    pub(crate) selection: &'a Selection,
    /// `SET ROLE` first.
    pub(crate) role: Option<&'a str>,
    pub(crate) row_security: RowSecurity,
}

/// What was read.
pub(crate) struct Read {
    pub(crate) holder: Holder,
    pub(crate) definitions: Definitions,
    /// Of definitions and data.
    pub(crate) encoding: String,
    /// What the login cannot read.
    pub(crate) unread: Vec<Unread>,
}

impl Reading<'_> {
    /// A session in a database, with its tables locked.
    pub(crate) async fn locked(&self, name: &str) -> Result<(Client, HashSet<u32>), DumpError> {
        let server = self.server.database(name)?;
        let mut client = for_reading_as(&server.conninfo, &setup(self.role, self.row_security)).await?;
        let locked = tables::lock_tables(&mut client).await?;
        Ok((client, locked))
    }

    async fn hold(&self, name: &str) -> Result<Holder, DumpError> {
        let (client, locked) = self.locked(name).await?;
        tables::snapshot(client, locked).await
    }

    /// Reads a database; `held`, when its snapshot is one of several that were taken together.
    pub(crate) async fn read(&self, name: &str, held: Option<Holder>) -> Result<Read, DumpError> {
        let tries = if held.is_some() { 1 } else { TRIES };
        let mut holder = match held {
            Some(holder) => holder,
            None => self.hold(name).await?,
        };
        let mut read = self.definitions(name, &mut holder).await;
        for _ in 1..tries {
            // Somebody waits for a table that this one holds, and pg_dump waits behind him: let him go first.
            if !read.as_ref().is_err_and(is_lock_timeout) {
                break;
            }
            self.ctx.progress.warn(&format!("{name}: somebody waits to change a table; it begins again after him"));
            holder.client.close().await;
            holder = self.hold(name).await?;
            read = self.definitions(name, &mut holder).await;
        }
        let (definitions, encoding) = read?;
        let policed = self.row_security;
        let mut unread: Vec<Unread> = holder.relations.values().filter_map(|one| one.unread(policed)).collect();
        unread.sort_by(|a, b| a.what.cmp(&b.what));
        Ok(Read { holder, definitions, encoding, unread })
    }

    /// pg_dump's definitions at the holder's snapshot, and the encoding that everything has.
    async fn definitions(&self, name: &str, holder: &mut Holder) -> Result<(Definitions, String), DumpError> {
        let server = self.server.database(name)?;
        // Everything is UTF-8, so that names of every kind can be spoken of; a database without an encoding has none.
        let sql = "SELECT pg_catalog.pg_encoding_to_char(encoding) AS encoding FROM pg_catalog.pg_database \
             WHERE datname = pg_catalog.current_database()";
        let encoding = match holder.client.query_one(sql, &[]).await?.str("encoding")? {
            own @ ("SQL_ASCII" | "MULE_INTERNAL") => own.to_owned(),
            _ => "UTF8".to_owned(),
        };
        self.ctx.progress.phase(&format!("{name}: reading definitions"), None, Unit::Items);
        let policed = self.row_security;
        let exclusions = holder.relations.values().filter_map(|relation| relation.exclusion(policed));
        let mut exclusions: Vec<String> = exclusions.collect();
        exclusions.extend(self.role.iter().map(|role| format!("--role={role}")));
        if policed == RowSecurity::WhatIsShown {
            exclusions.push("--enable-row-security".into());
        }
        exclusions.sort();
        let selection = self.selection;
        let definitions =
            definitions::read(self.ctx, self.tools, &server, &holder.snapshot, &encoding, selection, &exclusions)
                .await?;
        Ok((definitions, encoding))
    }
}

/// Whether pg_dump gave up waiting for a table (`--lock-wait-timeout` sets `statement_timeout`).
fn is_lock_timeout(error: &DumpError) -> bool {
    matches!(error, DumpError::Failed { reason, .. } if reason.contains("statement timeout"))
}
