//! Reading an archive as it arrives.

use super::{Archive, BadArchive, Entry, Header, Text, VERSIONS};

/// No string in a table of contents is longer.
const TEXT_MAX: i32 = 1 << 30;
const ENTRIES_MAX: i32 = 100_000_000;

/// Reads header and table of contents from bytes that arrive one after the other.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// How much of the buffer is read.
    at: usize,
    header: Option<(Header, i32)>,
    entries: Vec<Entry>,
    /// For each of them the file with its data, in a directory or tar file.
    files: Vec<Text>,
}

/// Why a step could not be done.
enum Stop {
    /// More bytes are needed.
    Short,
    Bad(String),
}

impl Reader {
    /// Takes more bytes; the archive, once its table of contents is whole.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Archive>, BadArchive> {
        self.buffer.extend_from_slice(bytes);
        loop {
            let mut cursor = Cursor { bytes: &self.buffer, at: self.at, sizes: (4, 8) };
            let step = match &self.header {
                None => head(&mut cursor).map(|found| {
                    self.header = Some(found);
                }),
                Some((header, count)) if (self.entries.len() as i32) < *count => {
                    cursor.sizes = (header.int_size, header.offset_size);
                    entry(&mut cursor, header).map(|(entry, file)| {
                        self.entries.push(entry);
                        self.files.push(file);
                    })
                }
                Some((header, _)) => {
                    let (header, entries) = (header.clone(), std::mem::take(&mut self.entries));
                    return Ok(Some(Archive { header, entries }));
                }
            };
            match step {
                Ok(()) => self.at = cursor.at,
                Err(Stop::Short) => return Ok(None),
                Err(Stop::Bad(reason)) => return Err(BadArchive(reason)),
            }
        }
    }

    /// What was taken and lies behind the table of contents, once that is whole.
    pub(crate) fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// For each entry the file with its data, in a directory or tar file.
    pub(crate) fn take_files(&mut self) -> Vec<Text> {
        std::mem::take(&mut self.files)
    }

    /// The bytes of header and table of contents, once they are whole.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.buffer.truncate(self.at);
        self.buffer
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes in an integer, and in an offset.
    sizes: (u8, u8),
}

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], Stop> {
        let end = self.at.checked_add(len).ok_or(Stop::Short)?;
        let found = self.bytes.get(self.at..end).ok_or(Stop::Short)?;
        self.at = end;
        Ok(found)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.take(1)?[0])
    }

    fn int(&mut self) -> Result<i32, Stop> {
        let negative = self.byte()? != 0;
        let size = usize::from(self.sizes.0);
        let value = self.take(size)?.iter().rev().try_fold(0u64, |value, byte| {
            value.checked_mul(256).map(|value| value + u64::from(*byte)).ok_or(Stop::Bad("a number too large".into()))
        })?;
        let value = i32::try_from(value).map_err(|_| Stop::Bad(format!("a number too large: {value}")))?;
        Ok(if negative { -value } else { value })
    }

    fn text(&mut self) -> Result<Text, Stop> {
        match self.int()? {
            len if len < 0 => Ok(None),
            len if len > TEXT_MAX => Err(Stop::Bad(format!("a text of {len} bytes"))),
            len => Ok(Some(self.take(len as usize)?.to_vec())),
        }
    }

    /// A number written as text.
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<Option<T>, Stop> {
        let Some(text) = self.text()? else { return Ok(None) };
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        number.map(Some).ok_or_else(|| Stop::Bad(format!("{what} is {:?}", String::from_utf8_lossy(&text))))
    }
}

fn head(cursor: &mut Cursor<'_>) -> Result<(Header, i32), Stop> {
    let magic = cursor.take(5)?;
    if magic != b"PGDMP" {
        return Err(Stop::Bad("it does not begin with PGDMP".into()));
    }
    let (major, minor, revision) = (cursor.byte()?, cursor.byte()?, cursor.byte()?);
    if major != 1 || !VERSIONS.contains(&minor) {
        return Err(Stop::Bad(format!("its version is {major}.{minor}, known are 1.12 to 1.16")));
    }
    let (int_size, offset_size, form) = (cursor.byte()?, cursor.byte()?, cursor.byte()?);
    if int_size == 0 || int_size > 8 || offset_size > 16 {
        return Err(Stop::Bad(format!("integers of {int_size} bytes, offsets of {offset_size}")));
    }
    cursor.sizes = (int_size, offset_size);
    let compression = if minor >= 15 { cursor.byte()?.into() } else { cursor.int()? };
    let mut created = [0; 7];
    for part in &mut created {
        *part = cursor.int()?;
    }
    let (database, server_version, tool_version) = (cursor.text()?, cursor.text()?, cursor.text()?);
    let count = cursor.int()?;
    if !(0..=ENTRIES_MAX).contains(&count) {
        return Err(Stop::Bad(format!("{count} entries")));
    }
    let header = Header {
        minor,
        revision,
        int_size,
        offset_size,
        form,
        compression,
        created,
        database,
        server_version,
        tool_version,
    };
    Ok((header, count))
}

fn entry(cursor: &mut Cursor<'_>, header: &Header) -> Result<(Entry, Text), Stop> {
    let dump_id = cursor.int()?;
    let has_data = cursor.int()? != 0;
    let catalog_oid = cursor.number("a catalog's OID")?.unwrap_or(0);
    let oid = cursor.number("an OID")?.unwrap_or(0);
    let (tag, desc) = (cursor.text()?, cursor.text()?);
    let section = cursor.int()?;
    let (definition, drop_statement, copy_statement) = (cursor.text()?, cursor.text()?, cursor.text()?);
    let (namespace, tablespace) = (cursor.text()?, cursor.text()?);
    let access_method = if header.minor >= 14 { cursor.text()? } else { None };
    let relkind = if header.minor >= 16 { cursor.int()? } else { 0 };
    let (owner, with_oids) = (cursor.text()?, cursor.text()?);
    let mut dependencies = Vec::new();
    while let Some(dependency) = cursor.number("a dependency")? {
        dependencies.push(dependency);
    }
    // What each form adds: a data offset, or the name of a file.
    let file = match header.form {
        1 => {
            let offset_size = usize::from(cursor.sizes.1);
            cursor.take(1 + offset_size)?;
            None
        }
        3 | 5 => cursor.text()?,
        other => return Err(Stop::Bad(format!("its form has the number {other}"))),
    };
    let entry = Entry {
        dump_id,
        has_data,
        catalog_oid,
        oid,
        tag,
        desc,
        section,
        definition,
        drop_statement,
        copy_statement,
        namespace,
        tablespace,
        access_method,
        relkind,
        owner,
        with_oids,
        dependencies,
    };
    Ok((entry, file))
}
