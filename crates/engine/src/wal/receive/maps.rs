//! Where the server's mapped catalogs lie, for who indexes the segments that are streamed: there is no data directory to
//! look into. What is known comes from the server, when the login may ask; from the newest backup; from each relation map in
//! the WAL that is received; and from the process before.
//!
//! Without it all is archived all the same, and names are missing from the index.

use super::spool::Spool;
use crate::wal::index::{MapReader, Moved, catalogs_of, may_have_map};
use crate::wal::push::{MovedCatalogs, read_map};
use crate::{Context, EngineError, blocking, server};
use pg_format::SegmentName;
use pg_wal::index::Catalog;
use pg_wal::{Expected, Oid};
use pg_wire::{Client, Conninfo, WireError};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the server may take to say it.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// How long the newest backup may take.
const BACKUP_WITHIN: Duration = Duration::from_secs(60);

/// The maps of all databases whose files are in the default tablespace, as hexadecimal. Superusers may read them, and who
/// was granted `pg_read_binary_file`.
const FILES: &str = "SELECT 0 AS database, encode(pg_read_binary_file('global/pg_filenode.map', 0, 4096, true), 'hex') AS map \
     UNION ALL SELECT oid, encode(pg_read_binary_file('base/' || oid || '/pg_filenode.map', 0, 4096, true), 'hex') \
     FROM pg_database";
/// What everyone may know, of one database.
const HERE: &str = "SELECT CASE WHEN relisshared THEN 0 ELSE d.oid END AS database, c.oid AS catalog, \
     pg_relation_filenode(c.oid) AS file FROM pg_class c, pg_database d \
     WHERE d.datname = current_database() AND c.oid IN (1259, 2615, 1262, 1213)";

/// See the module.
pub(super) struct Maps {
    spool: Spool,
    moved: MovedCatalogs,
    followed: Mutex<Followed>,
}

/// Segments that were looked through.
#[derive(Default)]
struct Followed {
    /// Those that are still in the spool.
    names: BTreeSet<SegmentName>,
    /// The last one, and who reads on from it when it had a map.
    last: Option<(SegmentName, Arc<File>)>,
    reader: Option<MapReader>,
}

impl Maps {
    /// With what the process before knew.
    pub(super) fn load(spool: Spool) -> Self {
        let moved = MovedCatalogs::default();
        moved.learn(
            spool
                .catalogs()
                .into_iter()
                .filter_map(|(database, catalog, file)| Some((Oid(database), Catalog::of_oid(Oid(catalog))?, file))),
        );
        Self { spool, moved, followed: Mutex::default() }
    }

    /// What is known, now and later.
    pub(super) fn moved(&self) -> MovedCatalogs {
        self.moved.clone()
    }

    /// Keeps what is new.
    pub(super) fn learn(&self, moved: Moved) {
        if !self.moved.learn(moved) {
            return;
        }
        let all = self.moved.all();
        let all: Vec<_> =
            all.into_iter().map(|(database, catalog, file)| (database.0, catalog.oid().0, file)).collect();
        if let Err(error) = self.spool.put_catalogs(&all) {
            tracing::info!("where catalogs lie could not be noted: {error}");
        }
    }

    /// Asks the newest backup.
    pub(super) async fn ask_backups(&self, ctx: &Context, cluster: &repo::Cluster) {
        let asked = async {
            let newest = cluster.backups().await?.into_iter().max();
            match newest {
                Some(id) => catalogs_of(ctx, cluster, id).await,
                None => Ok(Moved::new()),
            }
        };
        match tokio::time::timeout(BACKUP_WITHIN, asked).await {
            Ok(Ok(moved)) => self.learn(moved),
            Ok(Err(error)) => tracing::info!("the newest backup does not tell where catalogs lie: {error}"),
            Err(_) => tracing::info!("the newest backup does not tell in time where catalogs lie"),
        }
    }

    /// Reads what a whole segment says of it, before the segment itself and what follows are indexed.
    pub(super) async fn follow(self: &Arc<Self>, name: SegmentName, path: &Path) {
        let (this, path) = (self.clone(), path.to_owned());
        let read = blocking(move || {
            let followed = &mut *this.followed.lock().unwrap_or_else(PoisonError::into_inner);
            if !followed.names.insert(name) {
                return Ok(());
            }
            let told = this.read(followed, name, &path)?;
            this.learn(told);
            Ok(())
        });
        if let Err(error) = read.await {
            tracing::info!("{name} does not tell where catalogs lie: {error}");
        }
    }

    /// Forgets segments that are not in the spool any more.
    pub(super) fn keep_only(&self, here: &[(SegmentName, PathBuf)]) {
        let followed = &mut *self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.names.retain(|name| here.iter().any(|(other, _)| other == name));
    }

    fn read(&self, followed: &mut Followed, name: SegmentName, path: &Path) -> Result<Moved, EngineError> {
        let file = File::open(path).map_err(|error| EngineError::file(path, "opening", error))?;
        let plain = self.plain(&file, path)?;
        let has_map = may_have_map(&plain);
        let before = followed.last.replace((name, Arc::new(file)));
        let before =
            before.filter(|(before, _)| matches!(before.next(self.spool.size()), Ok(Some(next)) if next == name));
        let reader = followed.reader.take().filter(|_| before.is_some());
        if !has_map && reader.is_none() {
            return Ok(Moved::new());
        }
        let mut told = Moved::new();
        let mut reader = match (reader, before) {
            (Some(reader), _) => reader,
            (None, before) => {
                let mut reader = MapReader::default();
                // A record with a map may have begun in it.
                if let Some((before, file)) = before {
                    let plain = self.plain(&file, path)?;
                    told.extend(reader.read(before, &plain, &self.expected(before))?);
                }
                reader
            }
        };
        told.extend(reader.read(name, &plain, &self.expected(name))?);
        // Its last record may end in the next one.
        followed.reader = has_map.then_some(reader);
        Ok(told)
    }

    fn plain(&self, file: &File, path: &Path) -> Result<Vec<u8>, EngineError> {
        let mut plain = vec![0; self.spool.size().bytes() as usize];
        file.read_exact_at(&mut plain, 0).map_err(|error| EngineError::file(path, "reading", error))?;
        Ok(plain)
    }

    fn expected(&self, name: SegmentName) -> Expected {
        Expected {
            system_id: Some(self.spool.system()),
            segment_size: Some(self.spool.size().bytes() as u32),
            timeline: Some(name.timeline),
            start: name.start(self.spool.size()).ok(),
            ..Expected::default()
        }
    }
}

/// Asks the server. A login that may only replicate gets no answer, and one that is no superuser only one of its own
/// database.
pub(super) async fn ask_server(ctx: &Context, conninfo: &Conninfo) -> Moved {
    let asked = async {
        let mut client = server::connect(conninfo).await.ok()?;
        let told = match files(&mut client).await {
            Ok(told) => Ok(told),
            Err(_) => here(&mut client).await,
        };
        client.close().await;
        told.ok()
    };
    let asked = ctx.or_cancel(tokio::time::timeout(ASKED_WITHIN, asked)).await;
    asked.ok().and_then(Result::ok).flatten().unwrap_or_default()
}

async fn files(client: &mut Client) -> Result<Moved, WireError> {
    let mut moved = Moved::new();
    for row in client.query(FILES, &[]).await? {
        let Some(hex) = row.opt_str("map")? else { continue };
        let digits = hex.as_bytes().as_chunks::<2>().0.iter();
        let bytes: Vec<u8> =
            digits.filter_map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
        moved.extend(read_map(&bytes, Oid(row.get("database")?)));
    }
    Ok(moved)
}

async fn here(client: &mut Client) -> Result<Moved, WireError> {
    let mut moved = Moved::new();
    for row in client.query(HERE, &[]).await? {
        let (database, oid, file): (u32, u32, u32) = (row.get("database")?, row.get("catalog")?, row.get("file")?);
        if let Some(catalog) = Catalog::of_oid(Oid(oid)).filter(|_| oid != file) {
            moved.push((Oid(database), catalog, file));
        }
    }
    Ok(moved)
}
