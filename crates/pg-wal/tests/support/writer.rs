//! Writes WAL as `access/transam/xlog.c` lays it out, so that any record can be put at any place.
#![allow(dead_code)]

use pg_wal::PgMajor;

pub(crate) const SEGMENT: usize = 1 << 20;
pub(crate) const SYSTEM_ID: u64 = 7_000_000_000_000_000_001;

/// WAL from the start of a segment on.
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
    /// Each record's place and bytes.
    pub(crate) records: Vec<(u64, Vec<u8>)>,
    start: u64,
    page: usize,
    major: PgMajor,
    prev: u64,
    /// Bytes of the record being written that are still to come.
    remaining: usize,
    overwrites: bool,
}

impl Writer {
    pub(crate) fn new(page: usize, major: PgMajor) -> Self {
        let start = 5 * SEGMENT as u64;
        let mut writer = Self {
            bytes: Vec::new(),
            records: Vec::new(),
            start,
            page,
            major,
            prev: start - 64,
            remaining: 0,
            overwrites: false,
        };
        writer.page_header();
        writer
    }

    pub(crate) fn lsn(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn page_header(&mut self) {
        assert_eq!(self.bytes.len() % self.page, 0);
        let long = self.bytes.len().is_multiple_of(SEGMENT);
        let continues = self.remaining > 0;
        let flags = u16::from(continues) | u16::from(long) << 1 | u16::from(self.overwrites) << 3;
        let lsn = self.lsn();
        self.bytes.extend(self.major.facts().wal_page_magic.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(lsn.to_le_bytes());
        self.bytes.extend((self.remaining as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(SYSTEM_ID.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((self.page as u32).to_le_bytes());
        }
        self.overwrites = false;
    }

    fn put(&mut self, record: &[u8]) {
        let mut rest = record;
        self.remaining = rest.len();
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(self.page) {
                self.page_header();
            }
            let room = self.page - self.bytes.len() % self.page;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend(now);
            self.remaining = later.len();
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Moves over a page header that is due before the next record.
    fn at_record(&mut self) -> u64 {
        if self.bytes.len().is_multiple_of(self.page) {
            self.page_header();
        }
        self.lsn()
    }

    /// A record with this main data, of a resource manager and kind.
    pub(crate) fn record(&mut self, rmid: u8, info: u8, main: &[u8]) -> u64 {
        let mut body = Vec::new();
        if main.len() > 255 {
            body.push(254);
            body.extend((main.len() as u32).to_le_bytes());
        } else if !main.is_empty() {
            body.extend([255, main.len() as u8]);
        }
        body.extend(main);
        self.raw(rmid, info, &body)
    }

    /// A record with these bytes after its header.
    pub(crate) fn raw(&mut self, rmid: u8, info: u8, body: &[u8]) -> u64 {
        let lsn = self.at_record();
        let record = make_record(rmid, info, self.prev, body);
        self.put(&record);
        self.prev = lsn;
        self.records.push((lsn, record));
        lsn
    }

    /// A record of exactly this length, 24 to 279 or more than 284.
    pub(crate) fn of_len(&mut self, len: usize, seed: u8) -> u64 {
        let main = match len - 24 {
            0 => 0,
            body @ 2..=257 => body - 2,
            body => body.saturating_sub(5),
        };
        let data: Vec<u8> = (0..main).map(|at| (at as u8).wrapping_mul(seed | 1)).collect();
        self.record(21, 0, &data)
    }

    /// Fills up so that `room` bytes, a multiple of 8, are left in the segment.
    pub(crate) fn fill_to(&mut self, room: usize) {
        loop {
            self.at_record();
            let left = SEGMENT - self.bytes.len() % SEGMENT;
            let in_page = self.page - self.bytes.len() % self.page;
            if left == room {
                return;
            }
            assert!(left > room, "{left} {room}");
            let len = if left - room < in_page { left - room } else { in_page };
            // Three sizes cannot be made; two records together can.
            if len > 512 {
                self.of_len(256, 3)
            } else {
                self.of_len(if len > 256 { len / 16 * 8 } else { len }.max(24), 5)
            };
        }
    }

    /// Begins a record, and loses what does not fit into this page: recovery overwrites its end.
    pub(crate) fn lose(&mut self, len: usize) -> u64 {
        let lsn = self.at_record();
        let record = make_record(21, 0, self.prev, &vec![7; len - 24]);
        let room = self.page - self.bytes.len() % self.page;
        assert!(room < len);
        self.bytes.extend(&record[..room]);
        self.overwrites = true;
        self.page_header();
        let mut main = lsn.to_le_bytes().to_vec();
        main.extend(0_u64.to_le_bytes());
        self.record(0, 0xD0, &main);
        lsn
    }

    /// The segments, the last one filled with zeros.
    pub(crate) fn segments(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
        bytes.chunks(SEGMENT).map(<[u8]>::to_vec).collect()
    }
}

/// A record with its checksum.
pub(crate) fn make_record(rmid: u8, info: u8, prev: u64, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend((24 + body.len() as u32).to_le_bytes());
    record.extend(731_u32.to_le_bytes());
    record.extend(prev.to_le_bytes());
    record.extend([info, rmid, 0, 0]);
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(body);
    digest.update(&record);
    record.extend((digest.finalize() as u32).to_le_bytes());
    record.extend(body);
    record
}
