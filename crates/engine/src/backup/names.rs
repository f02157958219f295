//! The names that numbers have while the backup is made, for people and for finding things later.

use crate::server::connect;
use crate::{Context, EngineError};
use futures::StreamExt;
use pg_wire::{Client, Conninfo};
use repo::manifest::{Collation, NameEntry};

/// Names of databases, tablespaces and relations, and the collations the databases were made with.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Ascending by key.
    pub(super) entries: Vec<NameEntry>,
    pub(super) collations: Vec<Collation>,
    pub(super) warnings: Vec<String>,
}

struct Database {
    oid: u32,
    name: String,
    connectable: bool,
}

/// A database that was dropped meanwhile needs no names, and nobody need hear of it.
async fn exists(client: &mut Client, database: u32) -> Result<bool, EngineError> {
    let sql = format!("SELECT oid::text AS oid FROM pg_database WHERE oid = {database}");
    Ok(!client.query(&sql, &[]).await?.rows.is_empty())
}

impl Names {
    /// Asks every database that can be connected to. A database that cannot be asked costs names, not the backup.
    pub(super) async fn read(ctx: &Context, client: &mut Client, conninfo: &Conninfo) -> Result<Self, EngineError> {
        let mut names = Self::default();
        let major = client.server_version_num().unwrap_or_default() / 10_000;
        let databases = names.databases(client, major).await?;
        for database in databases.iter().filter(|database| database.connectable) {
            ctx.check()?;
            let conninfo = Conninfo { dbname: database.name.clone(), ..conninfo.clone() };
            if let Err(error) = names.relations(&conninfo, database.oid).await
                && exists(client, database.oid).await?
            {
                names.warnings.push(format!("database {}: names are not noted: {error}", database.name));
            }
        }
        // Shared relations are seen from every database.
        names.entries.sort_unstable_by_key(NameEntry::key);
        names.entries.dedup_by_key(|entry| entry.key());
        Ok(names)
    }

    async fn databases(&mut self, client: &mut Client, major: u32) -> Result<Vec<Database>, EngineError> {
        let sql = "SELECT oid::text AS oid, spcname AS name FROM pg_tablespace";
        for row in client.query(sql, &[]).await? {
            self.entries.push(NameEntry {
                database: 0,
                tablespace: row.get("oid")?,
                relfilenode: 0,
                oid: 0,
                kind: 0,
                schema: String::new(),
                name: row.get("name")?,
            });
        }
        // 15 records the collation's version; 17 has a provider of its own and renames the locale's column.
        let (provider, locale, version) = match major {
            ..=14 => ("'libc'", "datcollate", "NULL"),
            15 | 16 => (
                "CASE datlocprovider WHEN 'i' THEN 'icu' ELSE 'libc' END",
                "coalesce(daticulocale, datcollate)",
                "datcollversion",
            ),
            _ => (
                "CASE datlocprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END",
                "coalesce(datlocale, datcollate)",
                "datcollversion",
            ),
        };
        let sql = format!(
            "SELECT oid::text AS oid, datname AS name, dattablespace::text AS tablespace, datallowconn AS connectable, \
             {provider} AS provider, {locale} AS locale, {version} AS version FROM pg_database ORDER BY oid"
        );
        let mut databases = Vec::new();
        for row in client.query(&sql, &[]).await? {
            let database =
                Database { oid: row.get("oid")?, name: row.get("name")?, connectable: row.bool("connectable")? };
            self.entries.push(NameEntry {
                database: database.oid,
                tablespace: row.get("tablespace")?,
                relfilenode: 0,
                oid: 0,
                kind: 0,
                schema: String::new(),
                name: database.name.clone(),
            });
            self.collations.push(Collation {
                database: database.name.clone(),
                provider: row.get("provider")?,
                locale: row.get("locale")?,
                version: row.opt_str("version")?.map(str::to_owned),
            });
            databases.push(database);
        }
        Ok(databases)
    }

    async fn relations(&mut self, conninfo: &Conninfo, database: u32) -> Result<(), EngineError> {
        let mut client = connect(conninfo).await?;
        // A relation without its own tablespace lies in the database's.
        let sql = "SELECT c.oid::text AS oid, pg_relation_filenode(c.oid)::text AS relfilenode, c.relkind::text AS kind, \
                   CASE WHEN c.relisshared THEN '0' ELSE d.oid::text END AS database, \
                   coalesce(nullif(c.reltablespace, 0), d.dattablespace)::text AS tablespace, \
                   n.nspname AS schema, c.relname AS name \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_database d \
                   WHERE d.datname = current_database() AND c.relpersistence <> 't' AND pg_relation_filenode(c.oid) IS NOT NULL";
        let mut rows = client.query_stream(sql, &[]).await?;
        while let Some(row) = rows.next().await {
            let row = row?;
            self.entries.push(NameEntry {
                database: row.get("database")?,
                tablespace: row.get("tablespace")?,
                relfilenode: row.get("relfilenode")?,
                oid: row.get("oid")?,
                kind: row.str("kind")?.bytes().next().unwrap_or(b'?'),
                schema: row.get("schema")?,
                name: row.get("name")?,
            });
        }
        drop(rows);
        // WAL tells a relation's schema by its number.
        for row in client.query("SELECT oid::text AS oid, nspname AS name FROM pg_namespace", &[]).await? {
            let oid = row.get("oid")?;
            let (schema, name) = (String::new(), row.get("name")?);
            self.entries.push(NameEntry { database, tablespace: 0, relfilenode: oid, oid, kind: b'n', schema, name });
        }
        client.close().await;
        tracing::debug!(database, "names read");
        Ok(())
    }

    /// The name of a tablespace.
    pub(super) fn tablespace(&self, oid: u32) -> Option<String> {
        let index = self.entries.binary_search_by_key(&(0, oid, 0), NameEntry::key).ok()?;
        Some(self.entries[index].name.clone())
    }

    /// The name of a relation, `schema.name`.
    pub(super) fn relation(&self, key: (u32, u32, u32)) -> Option<String> {
        let index = self.entries.binary_search_by_key(&key, NameEntry::key).ok()?;
        let entry = &self.entries[index];
        Some(format!("{}.{}", entry.schema, entry.name))
    }
}
