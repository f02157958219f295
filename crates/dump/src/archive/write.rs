//! Writing header and table of contents.

use super::{Archive, ArchiveCompression, Entry, Form, Text};

/// Where an entry's data are, in the form that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It has none.
    NoData,
    /// In a custom-format archive: somewhere behind; whoever reads it looks for it.
    Unknown,
    /// In a custom-format archive: at this offset.
    At(u64),
    /// In a directory or tar file: in the file of this name.
    File(String),
}

/// `K_OFFSET_POS_NOT_SET`, `K_OFFSET_POS_SET`, `K_OFFSET_NO_DATA` of `pg_backup_archiver.h`.
const NOT_SET: u8 = 1;
const SET: u8 = 2;
const NO_DATA: u8 = 3;

/// Header and table of contents of an archive, in any form, with the entries' data where `place` says.
pub fn write(
    archive: &Archive,
    form: Form,
    compression: ArchiveCompression,
    place: impl Fn(&Entry) -> Place,
) -> Vec<u8> {
    let header = &archive.header;
    let mut out = Out { bytes: b"PGDMP".to_vec(), int_size: header.int_size, offset_size: header.offset_size };
    out.bytes.extend_from_slice(&[1, header.minor, header.revision, header.int_size, header.offset_size, form as u8]);
    let (algorithm, level) = match compression {
        ArchiveCompression::None => (0, 0),
        ArchiveCompression::Gzip(level) => (1, level),
        ArchiveCompression::Lz4 => (2, 0),
        ArchiveCompression::Zstd(level) => (3, level),
    };
    if header.minor >= 15 {
        out.bytes.push(algorithm)
    } else {
        out.int(level)
    }
    header.created.iter().for_each(|part| out.int(*part));
    [&header.database, &header.server_version, &header.tool_version].into_iter().for_each(|text| out.text(text));
    out.int(archive.entries.len() as i32);
    for entry in &archive.entries {
        out.entry(entry, header.minor);
        match (form, place(entry)) {
            (Form::Tar, Place::File(name)) => out.text(&Some(name.into_bytes())),
            (Form::Tar, _) => out.text(&Some(Vec::new())),
            (Form::Custom, Place::At(offset)) => out.offset(SET, offset),
            (Form::Custom, Place::Unknown) => out.offset(NOT_SET, 0),
            (Form::Custom, _) => out.offset(NO_DATA, 0),
        }
    }
    out.bytes
}

struct Out {
    bytes: Vec<u8>,
    int_size: u8,
    offset_size: u8,
}

impl Out {
    fn int(&mut self, value: i32) {
        self.bytes.push(u8::from(value < 0));
        let magnitude = u64::from(value.unsigned_abs()).to_le_bytes();
        self.bytes.extend_from_slice(&magnitude[..usize::from(self.int_size)]);
    }

    fn text(&mut self, text: &Text) {
        match text {
            None => self.int(-1),
            Some(text) => {
                self.int(text.len() as i32);
                self.bytes.extend_from_slice(text);
            }
        }
    }

    fn number(&mut self, number: impl ToString) {
        self.text(&Some(number.to_string().into_bytes()));
    }

    fn offset(&mut self, flag: u8, offset: u64) {
        self.bytes.push(flag);
        let mut bytes = offset.to_le_bytes().to_vec();
        bytes.resize(self.offset_size.into(), 0);
        self.bytes.extend_from_slice(&bytes);
    }

    fn entry(&mut self, entry: &Entry, minor: u8) {
        self.int(entry.dump_id);
        self.int(entry.has_data.into());
        self.number(entry.catalog_oid);
        self.number(entry.oid);
        self.text(&entry.tag);
        self.text(&entry.desc);
        self.int(entry.section);
        [&entry.definition, &entry.drop_statement, &entry.copy_statement, &entry.namespace, &entry.tablespace]
            .into_iter()
            .for_each(|text| self.text(text));
        if minor >= 14 {
            self.text(&entry.access_method);
        }
        if minor >= 16 {
            self.int(entry.relkind);
        }
        self.text(&entry.owner);
        self.text(&entry.with_oids);
        entry.dependencies.iter().for_each(|dependency| self.number(dependency));
        self.text(&None);
    }
}

/// An integer as an archive has it between its data (`WriteInt`).
pub(crate) fn put_int(out: &mut Vec<u8>, int_size: u8, value: i32) {
    let mut writer = Out { bytes: std::mem::take(out), int_size, offset_size: 8 };
    writer.int(value);
    *out = writer.bytes;
}
