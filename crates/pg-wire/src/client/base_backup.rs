//! `BASE_BACKUP`: a server's files as a stream of tar archives; and `UPLOAD_MANIFEST`, after which it sends only what
//! changed.
//!
//! Facts from PostgreSQL's `src/backend/backup/basebackup.c` and `basebackup_copy.c`. Up to 14 each archive is a COPY of
//! its own, without the two blocks of zeros that end a tar file, and options stand without brackets
//! (`src/backend/replication/repl_gram.y`).

use super::codec::{self, Backend};
use super::query::send_simple;
use super::row::{self, Column};
use super::{Client, Row};
use crate::{ServerError, WireError};
use bytes::{Buf, Bytes};
use pg_format::{Lsn, Timeline};
use postgres_protocol::message::backend::Message;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

/// The checksum of a page did not fit: said when all was sent.
const DATA_CORRUPTED: &str = "XX001";

/// What is asked of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// A text for `backup_label`.
    pub label: String,
    /// Whether the checkpoint is made at once.
    pub fast_checkpoint: bool,
    /// Whether the server adds up first how much there is.
    pub sizes: bool,
    /// Whether the WAL that it needs follows in the last archive.
    pub with_wal: bool,
    /// Whether the server waits until that WAL is archived.
    pub wait_for_archive: bool,
    /// Whether the server checks pages, and reads one again that it met in the middle of a write.
    pub verify_checksums: bool,
    /// Whether `backup_manifest` follows.
    pub with_manifest: bool,
    /// Whether only what changed since the backup of the uploaded manifest is sent; 17 and later.
    pub incremental: bool,
    /// The most that is sent in a second, in KiB: 32 to 1,048,576.
    pub max_rate_kib: Option<u32>,
    /// How the server compresses the archives; 15 and later.
    pub compression: Option<BaseBackupCompression>,
}

/// How the server compresses the archives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupCompression {
    /// `gzip`, `lz4` or `zstd`.
    pub method: String,
    /// The level; the method's own when absent.
    pub level: Option<u32>,
}

/// One archive that is going to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupArchive {
    /// The tablespace; none for the data directory, which comes last.
    pub tablespace: Option<BaseBackupTablespace>,
    /// About how many bytes it has, when that was asked for.
    pub size_bytes: Option<u64>,
}

/// A tablespace of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupTablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it lies on the server; relative to the data directory when it is in-place.
    pub location: String,
}

/// The next piece of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseBackupPart {
    /// An archive begins, by its number in [`BaseBackup::archives`]; the one before has ended.
    Archive(usize),
    /// `backup_manifest` begins; the last archive has ended.
    Manifest,
    /// Bytes of what began last.
    Data(Bytes),
}

/// Where a base backup ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupEnd {
    /// Where it becomes consistent.
    pub stop_lsn: Lsn,
    /// The timeline there.
    pub timeline: Timeline,
    /// All was sent, but pages failed the server's check of their checksums.
    pub complaint: Option<ServerError>,
}

/// A base backup that could not be begun, and the session, which goes on.
#[derive(Debug)]
pub struct BaseBackupRefused {
    /// The session.
    pub client: Client,
    /// What the server said.
    pub error: WireError,
}

/// A base backup that is being received. Dropped, it ends the session and the backup.
#[derive(Debug)]
pub struct BaseBackup {
    client: Client,
    start_lsn: Lsn,
    timeline: Timeline,
    archives: Vec<BaseBackupArchive>,
    /// Whether each archive is a COPY of its own.
    separate: bool,
    /// The number of the archive that is announced next.
    next: usize,
    /// What is announced before anything else is read.
    waiting: VecDeque<BaseBackupPart>,
    end: Option<Arc<[Column]>>,
    position: Option<(Lsn, Timeline)>,
}

impl BaseBackupOptions {
    /// The command, as a server of this version reads it.
    fn command(&self, before_15: bool) -> String {
        let label = self.label.replace('\'', "''");
        let mut words = vec![format!("LABEL '{label}'")];
        let mut set = |wanted: bool, word: &str| {
            if wanted {
                words.push(word.to_owned());
            }
        };
        set(self.sizes, "PROGRESS");
        set(self.with_wal, "WAL");
        set(true, "TABLESPACE_MAP");
        if before_15 {
            set(self.fast_checkpoint, "FAST");
            set(!self.wait_for_archive, "NOWAIT");
            set(!self.verify_checksums, "NOVERIFY_CHECKSUMS");
        } else {
            set(true, if self.fast_checkpoint { "CHECKPOINT 'fast'" } else { "CHECKPOINT 'spread'" });
            set(!self.wait_for_archive, "WAIT false");
            set(!self.verify_checksums, "VERIFY_CHECKSUMS false");
            set(true, "TARGET 'client'");
            set(self.incremental, "INCREMENTAL");
        }
        set(self.with_manifest, "MANIFEST 'yes'");
        if let Some(rate) = self.max_rate_kib {
            words.push(format!("MAX_RATE {rate}"));
        }
        if let Some(compression) = self.compression.as_ref().filter(|_| !before_15) {
            words.push(format!("COMPRESSION '{}'", compression.method.replace('\'', "''")));
            if let Some(level) = compression.level {
                words.push(format!("COMPRESSION_DETAIL 'level={level}'"));
            }
        }
        if before_15 {
            format!("BASE_BACKUP {}", words.join(" "))
        } else {
            format!("BASE_BACKUP ({})", words.join(", "))
        }
    }
}

impl Client {
    /// `BASE_BACKUP`. Returns when the checkpoint is made and the server begins to send.
    pub async fn base_backup(mut self, options: &BaseBackupOptions) -> Result<BaseBackup, Box<BaseBackupRefused>> {
        let before_15 = self.server_version_num().is_none_or(|version| version < 150_000);
        let begun = self.begin_base_backup(&options.command(before_15), before_15).await;
        match begun {
            Ok((start_lsn, timeline, archives)) => {
                let waiting = if before_15 { VecDeque::from([BaseBackupPart::Archive(0)]) } else { VecDeque::new() };
                Ok(BaseBackup {
                    client: self,
                    start_lsn,
                    timeline,
                    archives,
                    separate: before_15,
                    next: usize::from(before_15),
                    waiting,
                    end: None,
                    position: None,
                })
            }
            Err(error) => Err(Box::new(BaseBackupRefused { client: self, error })),
        }
    }

    async fn begin_base_backup(
        &mut self,
        command: &str,
        before_15: bool,
    ) -> Result<(Lsn, Timeline, Vec<BaseBackupArchive>), WireError> {
        let connection = &mut self.connection;
        connection.ready().await?;
        send_simple(connection, command)?;
        let mut columns: Arc<[Column]> = [].into();
        let mut results: Vec<Vec<Row>> = vec![Vec::new()];
        loop {
            match connection.message().await? {
                Backend::Message(Message::RowDescription(body)) => {
                    columns = row::columns(&body).map_err(|what| connection.protocol(what))?;
                }
                Backend::Message(Message::DataRow(body)) => {
                    let row = Row::new(columns.clone(), &body).map_err(|what| connection.protocol(what))?;
                    results.last_mut().expect("never empty").push(row);
                }
                Backend::Message(Message::CommandComplete(_)) => results.push(Vec::new()),
                Backend::Message(Message::CopyOutResponse(_)) => break,
                Backend::Message(Message::ErrorResponse(body)) => {
                    let error = WireError::Server(Box::new(codec::server_error(body.fields())));
                    // After a FATAL error the connection ends: the error says more.
                    let _ = connection.ready().await;
                    return Err(error);
                }
                _ => return Err(connection.protocol("an unexpected message at the start of a base backup")),
            }
        }
        let mut results = results.into_iter();
        let (start, list) = (results.next().unwrap_or_default(), results.next().unwrap_or_default());
        let Some(start) = start.first() else {
            return Err(connection.protocol("a base backup without a start position"));
        };
        let position = (start.lsn("recptr")?, start.timeline("tli")?);
        let archive = |row: &Row| -> Result<BaseBackupArchive, WireError> {
            let tablespace = match row.opt_get::<u32>("spcoid")? {
                Some(oid) => Some(BaseBackupTablespace { oid, location: row.str("spclocation")?.to_owned() }),
                None => None,
            };
            let size_bytes = row.opt_get::<u64>("size")?.map(|kib| kib << 10);
            Ok(BaseBackupArchive { tablespace, size_bytes })
        };
        let archives: Vec<_> = list.iter().map(archive).collect::<Result<_, _>>()?;
        if before_15 && archives.is_empty() {
            return Err(connection.protocol("a base backup without archives"));
        }
        Ok((position.0, position.1, archives))
    }

    /// `UPLOAD_MANIFEST`: the manifest of the backup that an incremental one is to build on; 17 and later.
    pub async fn upload_manifest(&mut self, manifest: &[u8]) -> Result<(), WireError> {
        let mut copy = self.copy_in("UPLOAD_MANIFEST").await?;
        copy.send(manifest).await?;
        copy.finish().await.map(drop)
    }

    /// Makes a physical replication slot that lasts as long as this session and keeps WAL from now on.
    pub async fn create_temporary_slot(&mut self, name: &str) -> Result<(), WireError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(WireError::Misuse { what: format!("{name:?} is no name of a replication slot") });
        }
        let mut command = String::new();
        // The form without brackets is read by every version.
        let _ = write!(command, "CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY PHYSICAL RESERVE_WAL");
        self.simple_query(&command).await.map(drop)
    }
}

impl BaseBackup {
    /// Where replay begins.
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// The timeline that it begins on.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The archives, in the order in which they come.
    pub fn archives(&self) -> &[BaseBackupArchive] {
        &self.archives
    }

    /// Whether archives lack the blocks of zeros that end a tar file.
    pub fn archives_are_unterminated(&self) -> bool {
        self.separate
    }

    /// The next piece; none when all archives have ended.
    pub async fn next(&mut self) -> Result<Option<BaseBackupPart>, WireError> {
        if let Some(part) = self.waiting.pop_front() {
            return Ok(Some(part));
        }
        loop {
            if self.end.is_some() {
                return Ok(None);
            }
            match self.client.connection.message().await? {
                Backend::Message(Message::CopyData(body)) => {
                    let data = body.into_bytes();
                    if self.separate {
                        return Ok(Some(BaseBackupPart::Data(data)));
                    }
                    if let Some(part) = self.part(data)? {
                        return Ok(Some(part));
                    }
                }
                Backend::Message(Message::CopyOutResponse(_)) => return Ok(Some(self.announce())),
                Backend::Message(Message::CopyDone) => {}
                Backend::Message(Message::RowDescription(body)) => {
                    let columns = row::columns(&body).map_err(|what| self.client.connection.protocol(what))?;
                    self.end = Some(columns);
                }
                Backend::Message(Message::ErrorResponse(body)) => {
                    let error = WireError::Server(Box::new(codec::server_error(body.fields())));
                    let _ = self.client.connection.ready().await;
                    return Err(error);
                }
                _ => return Err(self.client.connection.protocol("an unexpected message in a base backup")),
            }
        }
    }

    fn announce(&mut self) -> BaseBackupPart {
        let number = self.next;
        self.next += 1;
        if number < self.archives.len() { BaseBackupPart::Archive(number) } else { BaseBackupPart::Manifest }
    }

    /// A message of the stream that all archives share (`bbsink_copystream_begin_archive` and those after it).
    fn part(&mut self, mut data: Bytes) -> Result<Option<BaseBackupPart>, WireError> {
        if data.is_empty() {
            return Err(self.client.connection.protocol("an empty message in a base backup"));
        }
        match data.get_u8() {
            b'd' => Ok(Some(BaseBackupPart::Data(data))),
            b'n' if self.next < self.archives.len() => Ok(Some(self.announce())),
            b'n' => Err(self.client.connection.protocol("more archives than were announced")),
            b'm' => Ok(Some(BaseBackupPart::Manifest)),
            b'p' => Ok(None),
            other => {
                let what = format!("a message of unknown kind {:?} in a base backup", char::from(other));
                Err(self.client.connection.protocol(what))
            }
        }
    }

    /// The end, when all was received; and the session.
    pub async fn finish(mut self) -> Result<(BaseBackupEnd, Client), WireError> {
        while self.next().await?.is_some() {}
        let columns = self.end.take().unwrap_or_else(|| [].into());
        let mut complaint = None;
        let connection = &mut self.client.connection;
        loop {
            match connection.message().await {
                Ok(Backend::Message(Message::DataRow(body))) if self.position.is_none() => {
                    let row = Row::new(columns.clone(), &body).map_err(|what| connection.protocol(what))?;
                    self.position = Some((row.lsn("recptr")?, row.timeline("tli")?));
                }
                Ok(Backend::Message(Message::ErrorResponse(body))) => {
                    let error = codec::server_error(body.fields());
                    complaint.get_or_insert(error);
                }
                Ok(Backend::Message(Message::ReadyForQuery(_))) => break,
                Ok(_) => {}
                Err(closed) => return Err(complaint.map_or(closed, |error| WireError::Server(Box::new(error)))),
            }
        }
        if let Some(error) = complaint.take_if(|error| error.sqlstate != DATA_CORRUPTED) {
            return Err(WireError::Server(Box::new(error)));
        }
        match self.position {
            Some((stop_lsn, timeline)) => Ok((BaseBackupEnd { stop_lsn, timeline, complaint }, self.client)),
            None => Err(connection.protocol("a base backup without an end position")),
        }
    }

    /// Something that can cancel it from another task.
    pub fn cancel_token(&self) -> Option<super::CancelToken> {
        self.client.cancel_token()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_version() {
        let options = BaseBackupOptions {
            label: "it's pgkeep".into(),
            fast_checkpoint: true,
            sizes: true,
            with_wal: false,
            wait_for_archive: false,
            verify_checksums: true,
            with_manifest: false,
            incremental: false,
            max_rate_kib: Some(1024),
            compression: Some(BaseBackupCompression { method: "zstd".into(), level: Some(1) }),
        };
        assert_eq!(
            options.command(true),
            "BASE_BACKUP LABEL 'it''s pgkeep' PROGRESS TABLESPACE_MAP FAST NOWAIT MAX_RATE 1024"
        );
        assert_eq!(
            options.command(false),
            "BASE_BACKUP (LABEL 'it''s pgkeep', PROGRESS, TABLESPACE_MAP, CHECKPOINT 'fast', WAIT false, TARGET 'client', \
             MAX_RATE 1024, COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=1')"
        );
        let other = BaseBackupOptions {
            fast_checkpoint: false,
            with_wal: true,
            wait_for_archive: true,
            verify_checksums: false,
            with_manifest: true,
            incremental: true,
            max_rate_kib: None,
            compression: None,
            ..options
        };
        assert_eq!(
            other.command(false),
            "BASE_BACKUP (LABEL 'it''s pgkeep', PROGRESS, WAL, TABLESPACE_MAP, CHECKPOINT 'spread', \
             VERIFY_CHECKSUMS false, TARGET 'client', INCREMENTAL, MANIFEST 'yes')"
        );
        assert_eq!(
            other.command(true),
            "BASE_BACKUP LABEL 'it''s pgkeep' PROGRESS WAL TABLESPACE_MAP NOVERIFY_CHECKSUMS MANIFEST 'yes'"
        );
    }
}
