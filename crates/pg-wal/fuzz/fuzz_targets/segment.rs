//! Any bytes as a segment, and any bytes as the inside of a record: nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pg_wal::{Event, IndexBuilder, IndexOptions, Lsn, PgMajor, Record, RecordBody, RecordHeader, Rmgr};

fuzz_target!(|bytes: &[u8]| {
    let _ = pg_wal::index_segment(bytes, None, &IndexOptions::usual());
    let Some(header) = RecordHeader::parse(bytes) else { return };
    for major in PgMajor::ALL {
        let mut body = RecordBody::default();
        let Some(rmgr) = Rmgr::from_id(header.rmid, major) else { continue };
        if body.decode(Lsn(64), bytes, major, 8192).is_err() {
            continue;
        }
        let record = Record { lsn: Lsn(64), end_lsn: Lsn(128), header, rmgr, bytes, body: &body, major };
        let _ = Event::of(&record);
        let mut builder = IndexBuilder::new(&IndexOptions::usual());
        builder.add(&record);
        builder.add(&record);
        if let Ok(mut index) = builder.finish(Lsn(64), Lsn(128)) {
            index.append(index.clone());
        }
        let mut page = Vec::new();
        for block in record.blocks() {
            let _ = pg_wal::restore_block_image(&record, block, &mut page);
        }
    }
});
