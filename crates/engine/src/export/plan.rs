//! What is known, and refused, before a byte is written.

use super::{ExportFormat, ExportOptions, ExportTo, ExportedArchiving, ExportedWal};
use crate::restore::paths::is_plain;
use crate::restore::plan::{CONFIG_DIR, check_packs, in_tablespace};
use crate::restore::{ExistingFiles, PlannedOwner, PlannedTablespace, place};
use crate::tar::fits_name;
use crate::wal::archive::WalArchive;
use crate::{Context, EngineError, Unit};
use base64::Engine as _;
use pg_format::{Lsn, PgMajor, WalFileName};
use repo::manifest::{FileEntry, FileType, Manifest, ManifestFacts};
use std::path::PathBuf;
use store::ObjectPath;

/// Where something goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    /// Into the data directory, by its path there; empty for the directory itself.
    Data(Vec<u8>),
    /// Into a tablespace, by its OID and the path there.
    Tablespace(u32, Vec<u8>),
    /// Into `pg_wal`.
    Wal(String),
}

impl At {
    /// The place of an entry; none for what has none of its own.
    pub(super) fn of(path: &[u8], spaces: &[PlannedTablespace]) -> Result<Option<Self>, EngineError> {
        let odd = || EngineError::Failed {
            reason: format!("the manifest has an entry {:?} that cannot be exported", String::from_utf8_lossy(path)),
            hint: Some("a later version of pgkeep may have written it".into()),
        };
        if path == b"data" {
            return Ok(Some(Self::Data(Vec::new())));
        }
        if path == b"wal" || path == b"config" {
            return Ok(None);
        }
        if !is_plain(path) {
            return Err(odd());
        }
        if let Some((oid, rest)) = in_tablespace(path) {
            let space = spaces.iter().find(|space| space.oid == oid).ok_or_else(odd)?;
            if !space.in_place && !rest.is_empty() {
                return Ok(Some(Self::Tablespace(oid, rest.to_vec())));
            }
        }
        if let Some(rest) = path.strip_prefix(b"data/") {
            return Ok(Some(Self::Data(rest.to_vec())));
        }
        if let Some(rest) = path.strip_prefix(b"config/") {
            return Ok(Some(Self::Data([CONFIG_DIR.as_bytes(), b"/", rest].concat())));
        }
        let name = path.strip_prefix(b"wal/").and_then(|name| std::str::from_utf8(name).ok());
        let name = name.filter(|name| !name.contains('/')).ok_or_else(odd)?;
        Ok(Some(Self::Wal(name.to_owned())))
    }

    /// The path that `backup_manifest` has it under; none for WAL.
    pub(super) fn in_manifest(&self) -> Option<Vec<u8>> {
        match self {
            Self::Data(path) => Some(path.clone()),
            Self::Tablespace(oid, path) => Some([format!("pg_tblspc/{oid}/").as_bytes(), path].concat()),
            Self::Wal(_) => None,
        }
    }
}

/// A file of the WAL archive that goes with the export.
#[derive(Debug, Clone)]
pub(super) struct WalFile {
    pub(super) name: WalFileName,
    pub(super) object: ObjectPath,
}

/// An export, thought through.
pub(super) struct Plan {
    pub(super) facts: ManifestFacts,
    pub(super) major: u32,
    pub(super) tablespaces: Vec<PlannedTablespace>,
    pub(super) owners: Vec<PlannedOwner>,
    /// `backup_label`, byte for byte.
    pub(super) label: Option<Vec<u8>>,
    pub(super) tablespace_map: Option<Vec<u8>>,
    pub(super) wal: Vec<WalFile>,
    /// Bytes of all files.
    pub(super) bytes: u64,
    has_wal: bool,
    pub(super) notes: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    pub(super) async fn make(
        ctx: &Context,
        cluster: &repo::Cluster,
        manifest: &Manifest,
        to: &ExportTo,
        options: &ExportOptions,
    ) -> Result<Self, EngineError> {
        let facts = manifest.facts().clone();
        check_form(&facts, to, options)?;
        let (mut warnings, mut notes) = (Vec::new(), Vec::new());
        let tablespaces = place_all(&facts, to, options)?;
        let mut contents = Contents::default();
        ctx.progress.phase("reading the manifest", None, Unit::Items);
        let mut blocks = manifest.files();
        while let Some(entries) = ctx.or_cancel(blocks.next()).await?? {
            ctx.progress.advance(entries.len() as u64);
            for entry in &entries {
                contents.add(entry, &tablespaces, options.format)?;
            }
        }
        check_packs(ctx, cluster, manifest).await?;
        let wal = match options.wal {
            ExportedWal::Include if contents.wal_files == 0 => needed_wal(ctx, cluster, &facts).await?,
            ExportedWal::Include | ExportedWal::Leave => Vec::new(),
        };
        let wal_bytes = wal.len() as u64 * facts.wal_segment_size;
        check_room(to, &tablespaces, options, &contents, wal_bytes)?;
        let owners = place::resolve_owners(None, &facts.owners, &mut warnings)?;
        let decode = |what: &str, text: &Option<String>| {
            text.as_ref().map(|text| base64::engine::general_purpose::STANDARD.decode(text)).transpose().map_err(
                |error| EngineError::Failed {
                    reason: format!("backup {} is damaged: {what} in its manifest: {error}", facts.backup),
                    hint: Some("choose another backup".into()),
                },
            )
        };
        let label = decode("backup_label", &facts.backup_label)?;
        let tablespace_map = decode("tablespace_map", &facts.tablespace_map)?;
        let has_wal = contents.wal_files > 0 || !wal.is_empty();
        contents.say(&mut warnings);
        say(&facts, options, has_wal, &mut notes, &mut warnings);
        Ok(Self {
            major: facts.pg_version_num / 10_000,
            tablespaces,
            owners,
            label,
            // `pg_basebackup` has it in tar files only: in a plain directory the links are there.
            tablespace_map: tablespace_map.filter(|map| options.format == ExportFormat::Tar && !map.is_empty()),
            bytes: contents.bytes.values().sum::<u64>() + wal_bytes,
            wal,
            has_wal,
            notes,
            warnings,
            facts,
        })
    }

    /// Options that `pg_verifybackup` needs.
    pub(super) fn verify_options(&self) -> &'static str {
        if self.has_wal { "" } else { " -n" }
    }
}

fn check_form(facts: &ManifestFacts, to: &ExportTo, options: &ExportOptions) -> Result<(), EngineError> {
    let pipe = matches!(to, ExportTo::Pipe(_));
    if pipe && options.format == ExportFormat::Plain {
        return Err(EngineError::refused(
            "a plain data directory cannot be written to a pipe",
            "export to a directory, or as one tar file with `--format tar`",
        ));
    }
    if pipe && let Some(space) = facts.tablespaces.iter().find(|space| !space.in_place) {
        return Err(EngineError::refused(
            format!(
                "backup {} has tablespaces, such as {}: they are tar files of their own and do not go into one pipe",
                facts.backup, space.name
            ),
            "export to a directory",
        ));
    }
    if options.format == ExportFormat::Tar && !options.tablespaces.is_empty() {
        return Err(EngineError::refused(
            "tablespaces can be mapped in a plain export only",
            "where they go is decided when the tar files are unpacked: edit the restored tablespace_map",
        ));
    }
    if options.format == ExportFormat::Plain && options.compression != crate::tar::TarCompression::None {
        return Err(EngineError::refused("only tar files can be compressed", "use `--format tar`"));
    }
    Ok(())
}

fn place_all(
    facts: &ManifestFacts,
    to: &ExportTo,
    options: &ExportOptions,
) -> Result<Vec<PlannedTablespace>, EngineError> {
    if let ExportTo::Directory(dir) = to {
        place::check_path("the directory", dir)?;
        place::check_not_running(dir)?;
        place::check_empty("the directory", dir, ExistingFiles::Refuse)?;
        if options.format == ExportFormat::Plain {
            let spaces = place::place_tablespaces(&options.tablespaces, dir, facts)?;
            for space in spaces.iter().filter(|space| !space.in_place) {
                let what = format!("tablespace {}'s directory", space.name);
                place::check_empty(&what, &space.destination, ExistingFiles::Refuse)?;
            }
            return Ok(spaces);
        }
    }
    let as_it_was = |space: &repo::manifest::TablespaceFacts| PlannedTablespace {
        oid: space.oid,
        name: space.name.clone(),
        origin: space.location.clone(),
        destination: PathBuf::from(&space.location),
        in_place: space.in_place,
    };
    Ok(facts.tablespaces.iter().map(as_it_was).collect())
}

/// The WAL from the segment of the start to that of the stop, and the timeline's history. All of it must be there.
async fn needed_wal(
    ctx: &Context,
    cluster: &repo::Cluster,
    facts: &ManifestFacts,
) -> Result<Vec<WalFile>, EngineError> {
    ctx.progress.phase("looking for the WAL", None, Unit::Items);
    let archive = ctx.or_cancel(WalArchive::load(cluster, facts.system_id)).await??;
    let size = archive.segment_size();
    let (first, last) = (facts.start_lsn.segment_no(size), Lsn(facts.stop_lsn.0.saturating_sub(1)).segment_no(size));
    let mut files = Vec::new();
    if facts.timeline.0 > 1 {
        archive.history_of(facts.timeline)?;
        files.push(WalFile {
            name: WalFileName::History(facts.timeline),
            object: cluster.name().history(facts.system_id, facts.timeline),
        });
    }
    for number in first.0..=last.0.max(first.0) {
        let number = pg_format::XLogSegNo(number);
        let name = archive.segment_name(facts.timeline, number)?;
        if !archive.has(facts.timeline, number) {
            return Err(EngineError::refused(
                format!("WAL segment {name}, which backup {} needs, is not in the repository", facts.backup),
                "export without `--wal`, or choose another backup; `pgkeep wal status` shows the gaps",
            ));
        }
        files.push(WalFile { name: WalFileName::Segment(name), object: archive.segment_path(name)? });
    }
    Ok(files)
}

fn check_room(
    to: &ExportTo,
    spaces: &[PlannedTablespace],
    options: &ExportOptions,
    contents: &Contents,
    wal_bytes: u64,
) -> Result<(), EngineError> {
    let ExportTo::Directory(dir) = to else { return Ok(()) };
    // How small compression makes it is not known.
    if options.compression != crate::tar::TarCompression::None {
        return Ok(());
    }
    let mut needs = vec![(dir.clone(), contents.bytes.get(&None).copied().unwrap_or(0) + wal_bytes)];
    for space in spaces.iter().filter(|space| !space.in_place) {
        let bytes = contents.bytes.get(&Some(space.oid)).copied().unwrap_or(0);
        let place = if options.format == ExportFormat::Plain { &space.destination } else { dir };
        needs.push((place.clone(), bytes));
    }
    place::check_space(&place::places(&needs)?)
}

/// What the backup has in it.
#[derive(Default)]
struct Contents {
    /// By tablespace; none for the data directory.
    bytes: std::collections::BTreeMap<Option<u32>, u64>,
    wal_files: u64,
    links: Vec<String>,
}

impl Contents {
    fn add(
        &mut self,
        entry: &FileEntry,
        spaces: &[PlannedTablespace],
        format: ExportFormat,
    ) -> Result<(), EngineError> {
        let Some(at) = At::of(&entry.path, spaces)? else { return Ok(()) };
        let (space, name) = match &at {
            At::Data(path) => (None, path.as_slice()),
            At::Tablespace(oid, path) => (Some(*oid), path.as_slice()),
            At::Wal(name) => (None, name.as_bytes()),
        };
        if format == ExportFormat::Tar {
            let target = match &entry.file_type {
                FileType::Link { target } => target.as_slice(),
                FileType::Directory | FileType::File { .. } => b"",
            };
            if !fits_name(name) || !fits_name(target) {
                return Err(EngineError::refused(
                    format!(
                        "{} has a path of more than 99 bytes, which PostgreSQL's tar format cannot hold",
                        String::from_utf8_lossy(&entry.path)
                    ),
                    "export it with `--format plain`",
                ));
            }
        }
        match &entry.file_type {
            FileType::File { len, .. } => {
                *self.bytes.entry(space).or_default() += len;
                self.wal_files += u64::from(matches!(at, At::Wal(_)));
            }
            FileType::Link { .. } if !is_tablespace_link(&entry.path) && self.links.len() < 20 => {
                self.links.push(String::from_utf8_lossy(&entry.path).into_owned());
            }
            FileType::Link { .. } | FileType::Directory => {}
        }
        Ok(())
    }

    fn say(&self, warnings: &mut Vec<String>) {
        for link in self.links.iter().filter(|link| *link != "data/pg_wal") {
            warnings.push(format!("{link} is a link and was left out, as pg_basebackup does"));
        }
    }
}

pub(super) fn is_tablespace_link(path: &[u8]) -> bool {
    in_tablespace(path).is_some_and(|(_, rest)| rest.is_empty())
}

fn say(
    facts: &ManifestFacts,
    options: &ExportOptions,
    has_wal: bool,
    notes: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    if !has_wal && facts.backup_label.is_some() {
        notes.push(
            "it has no WAL: a server on it needs a restore_command that brings it (`pgkeep wal fetch`), and \
             recovery.signal; `--wal` puts what is needed into it"
                .into(),
        );
    }
    match options.archiving {
        ExportedArchiving::Off => notes.push(
            "archive_mode is off in its postgresql.auto.conf, so that it cannot push into the origin's archive".into(),
        ),
        ExportedArchiving::AsOrigin => warnings.push(
            "a server on it archives as its origin does: make sure that it does not push into the same archive".into(),
        ),
    }
    if let Some(first) = facts.config_files.first() {
        notes.push(format!(
            "configuration from outside the data directory, such as {}, is in {CONFIG_DIR}",
            first.origin
        ));
    }
    if let Some(first) = facts.damaged.first() {
        warnings.push(format!(
            "{} pages were damaged on the origin already, such as block {} of {}: they are exported as they were",
            facts.damaged.len(),
            first.block,
            first.relation.as_deref().unwrap_or(&first.path)
        ));
    }
    if PgMajor::from_number(facts.pg_version_num / 10_000).is_err() {
        warnings.push(format!("PostgreSQL {} is not known to this version of pgkeep", facts.pg_version));
    }
}
