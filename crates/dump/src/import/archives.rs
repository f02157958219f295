//! Archives of pg_dump, in their three forms.

use super::blocks::{Chunks, Codec, byte, int, oid};
use super::rows::{LargeObjects, table};
use super::{TakenArchive, TakenData, Taking, on_thread, refused};
use crate::DumpError;
use crate::archive::{Archive, Entry, Reader, Text};
use crate::sink::Sink;
use repo::dump::{DataKind, DumpObject};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// `BLK_DATA` and `BLK_BLOBS` of `pg_backup_archiver.h`.
const BLOCK_DATA: u8 = 1;
const BLOCK_BLOBS: u8 = 3;
const TAR_BLOCK: usize = 512;
const PIECE: usize = 64 << 10;

/// What kind of data an entry has.
fn kind(entry: &Entry) -> Result<DataKind, DumpError> {
    match entry.kind() {
        b"TABLE DATA" if entry.copy_statement.as_ref().is_none_or(Vec::is_empty) => Err(DumpError::refused(
            format!("the rows of {} are INSERT statements (pg_dump --inserts)", entry.label()),
            "take it in as SQL text: pg_restore --create --file=- ARCHIVE | pgkeep dump --import -",
        )),
        b"TABLE DATA" => Ok(DataKind::Table),
        b"BLOBS" => Ok(DataKind::LargeObjects),
        other => Err(refused(format!("it has data of a kind that is not known: {}", String::from_utf8_lossy(other)))),
    }
}

/// Header and table of contents, the names of data files, and what was read behind.
fn contents(input: &mut dyn Read) -> Result<(Archive, Vec<Text>, Vec<u8>), DumpError> {
    let (mut reader, mut buffer) = (Reader::default(), vec![0; PIECE]);
    loop {
        let got = input.read(&mut buffer).map_err(refused)?;
        if got == 0 {
            return Err(refused("it ends within its table of contents"));
        }
        if let Some(archive) = reader.feed(&buffer[..got]).map_err(|error| refused(error.0))? {
            let (files, rest) = (reader.take_files(), reader.rest().to_vec());
            archive.entries.iter().filter(|entry| entry.has_data).try_for_each(|entry| kind(entry).map(drop))?;
            return Ok((archive, files, rest));
        }
    }
}

/// One file: the data lie behind the table of contents.
pub(super) fn custom(taking: &Taking, input: &mut dyn Read) -> Result<TakenArchive, DumpError> {
    let (archive, _, rest) = contents(input)?;
    let mut input = Cursor::new(rest).chain(input);
    let (codec, int_size) = (Codec::of(&archive)?, archive.header.int_size);
    let by_id: HashMap<i32, usize> = archive.entries.iter().zip(0..).map(|(entry, at)| (entry.dump_id, at)).collect();
    let (mut sink, mut data) = (taking.sinks.sink(), Vec::new());
    while let Some(block) = byte(&mut input).map_err(refused)? {
        let id = int(&mut input, int_size).map_err(refused)?;
        let entry = *by_id.get(&id).ok_or_else(|| refused(format!("data of entry {id}, which there is not")))?;
        let what = archive.entries[entry].label();
        let parts = match block {
            BLOCK_DATA => {
                let mut chunks = Chunks::new(&mut input, int_size);
                let parts = table(taking, &mut sink, &mut codec.of_block(&mut chunks)?, &what)?;
                chunks.drain().map_err(refused)?;
                parts
            }
            BLOCK_BLOBS => {
                let mut objects = LargeObjects::new(taking, &mut sink);
                loop {
                    let oid = oid(&mut input, int_size).map_err(refused)?;
                    if oid == 0 {
                        break objects.finish()?;
                    }
                    let mut chunks = Chunks::new(&mut input, int_size);
                    objects.take(oid, &mut or_nothing(codec, &mut chunks)?)?;
                    chunks.drain().map_err(refused)?;
                }
            }
            other => return Err(refused(format!("a data block has the kind {other}"))),
        };
        data.push(TakenData { entry, kind: kind(&archive.entries[entry])?, parts });
    }
    let objects = taking.handle.block_on(sink.finish())?;
    Ok(TakenArchive { format: "custom", archive, data, objects })
}

/// A compressed stream, or none at all where there is not one byte: an empty large object has either.
fn or_nothing<'a>(codec: Codec, chunks: &'a mut Chunks<'_>) -> Result<Box<dyn Read + 'a>, DumpError> {
    match byte(chunks).map_err(refused)? {
        None => Ok(Box::new(io::empty())),
        Some(first) => codec.of_block(Cursor::new([first]).chain(chunks)),
    }
}

/// A tar file: `toc.dat` first, then the data in the order of the table of contents; large objects before their list.
pub(super) fn tar(taking: &Taking, input: &mut dyn Read) -> Result<TakenArchive, DumpError> {
    let mut found: Option<(Archive, HashMap<Vec<u8>, usize>)> = None;
    let (mut sink, mut data) = (taking.sinks.sink(), Vec::new());
    let mut large = Vec::new();
    while let Some((name, size)) = member(input)? {
        let mut content = Read::take(&mut *input, size);
        match &found {
            None if name == b"toc.dat" => {
                let (archive, files, _) = contents(&mut content)?;
                found = Some((archive, by_file(files)));
            }
            None => return Err(refused("its table of contents does not come first")),
            Some((archive, files)) => {
                let object = name.strip_prefix(b"blob_").and_then(|rest| rest.strip_suffix(b".dat"));
                let object = object.and_then(|oid| std::str::from_utf8(oid).ok()?.parse::<u32>().ok());
                let entry = files.get(&name).copied().or_else(|| list_of(archive, &name));
                match (object, entry) {
                    (Some(oid), _) => {
                        let mut objects = LargeObjects::new(taking, &mut sink);
                        objects.take(oid, &mut content)?;
                        large.extend(objects.finish()?);
                    }
                    (None, Some(entry)) => {
                        let (what, kind) = (archive.entries[entry].label(), kind(&archive.entries[entry])?);
                        let parts = match kind {
                            DataKind::Table | DataKind::TableBinary => table(taking, &mut sink, &mut content, &what)?,
                            // The list of those that came before.
                            DataKind::LargeObjects => std::mem::take(&mut large),
                        };
                        data.push(TakenData { entry, kind, parts });
                    }
                    // `restore.sql`, for people.
                    (None, None) => {}
                }
            }
        }
        // What was not asked for, and what fills the last block.
        let padding = size.next_multiple_of(TAR_BLOCK as u64) - size;
        let left = content.limit() + padding;
        let passed = io::copy(&mut Read::take(&mut *input, left), &mut io::sink()).map_err(refused)?;
        if passed < left {
            return Err(refused(format!("{} is cut off", String::from_utf8_lossy(&name))));
        }
    }
    let Some((archive, _)) = found else { return Err(refused("it has no table of contents")) };
    let objects = taking.handle.block_on(sink.finish())?;
    Ok(TakenArchive { format: "tar", archive, data, objects })
}

/// The entry whose large objects a list names: `blobs.toc`, or from 1.16 on `blobs_ID.toc` (`_StartLOs` in `pg_backup_tar.c`). The
/// table of contents has another name for it, of which there is no file.
fn list_of(archive: &Archive, name: &[u8]) -> Option<usize> {
    let name = std::str::from_utf8(name).ok()?.strip_prefix("blobs")?.strip_suffix(".toc")?;
    let id = match name {
        "" => None,
        id => Some(id.strip_prefix('_')?.parse::<i32>().ok()?),
    };
    let is_it = |entry: &Entry| entry.kind() == b"BLOBS" && id.is_none_or(|id| entry.dump_id == id);
    archive.entries.iter().position(is_it)
}

/// The next member's name and size; none at the end (`src/port/tar.c`).
fn member(input: &mut dyn Read) -> Result<Option<(Vec<u8>, u64)>, DumpError> {
    let mut header = [0; TAR_BLOCK];
    if let Err(error) = input.read_exact(&mut header) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(refused(error)) };
    }
    let name: Vec<u8> = header[..100].iter().copied().take_while(|byte| *byte != 0).collect();
    if name.is_empty() {
        return Ok(None);
    }
    let field = &header[124..136];
    let size = if field[0] & 0x80 != 0 {
        field[4..].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    } else {
        let text = String::from_utf8_lossy(field).into_owned();
        let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
        u64::from_str_radix(text, 8).map_err(|_| refused("a tar header without a size"))?
    };
    Ok(Some((name, size)))
}

fn by_file(files: Vec<Text>) -> HashMap<Vec<u8>, usize> {
    files.into_iter().zip(0..).filter_map(|(name, at)| Some((name.filter(|name| !name.is_empty())?, at))).collect()
}

/// A directory: a file for each table and large object, read by many at the same time.
pub(super) async fn directory(taking: &Taking, dir: &Path, workers: usize) -> Result<TakenArchive, DumpError> {
    let path = dir.join("toc.dat");
    let mut file = File::open(&path).map_err(|error| DumpError::file(&path, "reading", error))?;
    let (archive, files, _) = contents(&mut file)?;
    let mut jobs: Vec<(usize, String, u64)> = Vec::new();
    for (name, entry) in by_file(files).into_iter().filter(|(_, entry)| archive.entries[*entry].has_data) {
        let name = String::from_utf8(name).ok().filter(|name| !name.contains('/')).ok_or_else(|| {
            refused(format!("the file of {} has no name that can be", archive.entries[entry].label()))
        })?;
        let size = open(dir, &name).and_then(|(file, _)| file.metadata()).map_or(0, |meta| meta.len());
        jobs.push((entry, name, size));
    }
    jobs.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
    let workers = workers.max(1).min(jobs.len().max(1));
    let jobs = Arc::new(Mutex::new(VecDeque::from(jobs)));
    let archive = Arc::new(archive);
    let mut running = Vec::new();
    for _ in 0..workers {
        let (taking, jobs, archive, dir) = (taking.clone(), jobs.clone(), archive.clone(), dir.to_owned());
        running.push(on_thread(move || work(&taking, &dir, &archive, &jobs)));
    }
    let (mut data, mut objects) = (Vec::new(), Vec::new());
    for (some, made) in futures::future::try_join_all(running).await? {
        data.extend(some);
        objects.extend(made);
    }
    let archive = Arc::try_unwrap(archive).unwrap_or_else(|shared| (*shared).clone());
    Ok(TakenArchive { format: "directory", archive, data, objects })
}

type Jobs = Mutex<VecDeque<(usize, String, u64)>>;

fn work(
    taking: &Taking,
    dir: &Path,
    archive: &Archive,
    jobs: &Jobs,
) -> Result<(Vec<TakenData>, Vec<DumpObject>), DumpError> {
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (mut sink, mut data) = (taking.sinks.sink(), Vec::new());
    while let Some((entry, name, size)) = next() {
        let (what, kind) = (archive.entries[entry].label(), kind(&archive.entries[entry])?);
        let parts = match kind {
            DataKind::Table | DataKind::TableBinary => {
                let (file, codec) = open_or(dir, &name)?;
                table(taking, &mut sink, &mut codec.of_stream(file)?, &what)?
            }
            DataKind::LargeObjects => listed(taking, dir, &name, &mut sink)?,
        };
        taking.ctx.progress.advance(size);
        data.push(TakenData { entry, kind, parts });
    }
    let objects = taking.handle.block_on(sink.finish())?;
    Ok((data, objects))
}

/// The large objects of a list: `OID FILE` on each line.
fn listed(taking: &Taking, dir: &Path, name: &str, sink: &mut Sink) -> Result<Vec<super::TakenPart>, DumpError> {
    let (file, codec) = open_or(dir, name)?;
    let mut list = String::new();
    codec.of_stream(file)?.read_to_string(&mut list).map_err(|error| refused(format!("{name}: {error}")))?;
    let mut objects = LargeObjects::new(taking, sink);
    for line in list.lines().filter(|line| !line.is_empty()) {
        let (oid, file) = line.split_once(' ').unwrap_or((line, ""));
        let oid = oid.parse::<u32>().ok().filter(|_| !file.is_empty() && !file.contains('/'));
        let oid = oid.ok_or_else(|| refused(format!("{name}: a line is {line:?}")))?;
        let (file, codec) = open_or(dir, file)?;
        objects.take(oid, &mut codec.of_stream(file)?)?;
    }
    objects.finish()
}

/// A file of a directory, whose name bears how it is compressed (`cfopen_read` in `pg_backup_directory.c`).
fn open(dir: &Path, name: &str) -> io::Result<(File, Codec)> {
    let forms = [("", Codec::None), (".gz", Codec::Gzip), (".lz4", Codec::Lz4), (".zst", Codec::Zstd)];
    for (suffix, codec) in forms {
        match File::open(dir.join(format!("{name}{suffix}"))) {
            Ok(file) => return Ok((file, codec)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn open_or(dir: &Path, name: &str) -> Result<(File, Codec), DumpError> {
    open(dir, name).map_err(|error| DumpError::file(dir.join(name), "reading", error))
}
