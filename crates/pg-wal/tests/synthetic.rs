//! WAL made by hand: every place a record can be split at, every end a segment can have, and bytes that are no WAL.

#![allow(clippy::unwrap_used)]

#[path = "support/writer.rs"]
mod writer;

use pg_wal::facts::UnreadableReason;
use pg_wal::{
    Event, Expected, HeadState, IndexOptions, Joined, Joiner, PgMajor, Record, RecordBody, RecordHeader, Rmgr,
    SegmentReader, WalError, index_segment, scan_segment,
};
use proptest::prelude::*;
use writer::{SEGMENT, Writer, make_record};

/// All records of consecutive segments, joined; the records that were lost.
fn read(segments: &[Vec<u8>]) -> (Vec<(u64, Vec<u8>)>, Vec<u64>) {
    let (mut records, mut lost) = (Vec::new(), Vec::new());
    let mut joiner: Option<Joiner> = None;
    for bytes in segments {
        let mut reader = SegmentReader::open(bytes, &Expected::default()).unwrap();
        let info = *reader.info();
        if let Some(mut open) = joiner.take() {
            match open.push(&info, reader.head()).unwrap() {
                Joined::More => joiner = Some(open),
                Joined::Whole => {
                    let record = open.record().unwrap();
                    records.push((record.lsn.0, record.bytes.to_vec()));
                    // The record's end is where the reader of the next segment begins.
                    let next = SegmentReader::open(bytes, &Expected::default()).unwrap().next_record().map(|r| r.lsn);
                    if let Some(next) = next {
                        let header = if record.end_lsn.0.is_multiple_of(u64::from(info.page_size)) { 24 } else { 0 };
                        assert_eq!(record.end_lsn.0 + header, next.0);
                    }
                }
                Joined::Overwritten => lost.push(open.lsn().0),
            }
        } else {
            assert!(reader.head().is_none());
        }
        while let Some(record) = reader.next_record() {
            records.push((record.lsn.0, record.bytes.to_vec()));
        }
        lost.extend(reader.overwritten().iter().map(|lsn| lsn.0));
        if let (_, Some(tail)) = reader.into_fragments() {
            joiner = Some(Joiner::new(tail, &info));
        }
    }
    (records, lost)
}

#[test]
fn records_split_at_every_place() {
    // Every room from 8 bytes on: the header is split in two ways, or whole with a bit of the body.
    for room in (8..=128).step_by(8) {
        for len in [24, 32, 100, 4000, 20_000, SEGMENT + 5, 3 * SEGMENT] {
            let mut writer = Writer::new(8192, PgMajor::V15);
            writer.fill_to(room);
            writer.of_len(len, 9);
            writer.of_len(64, 9);
            let (records, lost) = read(&writer.segments());
            assert!(records == writer.records, "room {room}, length {len}");
            assert!(lost.is_empty());
        }
    }
}

#[test]
fn ends_of_segments() {
    let check = |what: &str, edit: &dyn Fn(&mut Writer, &mut Vec<u8>), expect: Option<&str>| {
        let mut writer = Writer::new(8192, PgMajor::V15);
        for _ in 0..200 {
            writer.of_len(400, 3);
        }
        let mut segment = writer.segments().remove(0);
        edit(&mut writer, &mut segment);
        let facts = scan_segment(&segment, None).unwrap();
        let reason = facts.unreadable.as_ref().map(|unreadable| unreadable.reason.to_string());
        match (expect, &reason) {
            (None, None) => {}
            (Some(expect), Some(reason)) if reason.contains(expect) => {}
            _ => panic!("{what}: {reason:?}"),
        }
        // Whatever is read is what was written.
        assert_eq!(
            facts.records as usize,
            writer.records.iter().filter(|(lsn, _)| *lsn <= facts.last_record_lsn.map_or(0, |l| l.0)).count(),
            "{what}"
        );
    };
    let at = |writer: &Writer, number: usize| (writer.records[number].0 % SEGMENT as u64) as usize;
    check("nothing more", &|_, _| {}, Some("nothing was written"));
    check("cut off", &|w, s| s.truncate(at(w, 50) + 30), Some("end before"));
    check("cut off in a page header", &|_, s| s.truncate(3 * 8192 + 7), Some("end before"));
    check("a bit of a record", &|w, s| s[at(w, 50) + 100] ^= 1, Some("wrong checksum"));
    check("a bit of a header", &|w, s| s[at(w, 50) + 4] ^= 1, Some("wrong checksum"));
    check("the link back", &|w, s| s[at(w, 50) + 8] ^= 8, Some("points back"));
    check("the length", &|w, s| s[at(w, 50)] = 3, Some("wrong checksum"));
    check(
        "an impossible length",
        &|w, s| s[at(w, 50)..][..4].copy_from_slice(&[5, 0, 0, 0]),
        Some("impossible length"),
    );
    check("the resource manager", &|w, s| s[at(w, 50) + 17] = 99, Some("unknown resource manager"));
    check("a page of another place", &|_, s| s[8192 * 4 + 9] ^= 1, Some("says it is at"));
    check("a page of a later version", &|_, s| s[8192 * 4] = 0x18, Some("magic"));
    check("a page without its flag", &|_, s| s[8192 * 4 + 2] = 0, Some("does not continue"));
    check("a zeroed page", &|_, s| s[8192 * 4..][..8192].fill(0), Some("nothing was written"));
    check("an unknown flag", &|_, s| s[8192 * 4 + 3] = 1, Some("flags"));
    check(
        "a switch",
        &|w, s| {
            w.record(0, 0x40, &[]);
            *s = w.segments().remove(0);
        },
        None,
    );
}

#[test]
fn what_would_hide_changes_cannot_be_indexed() {
    let check = |rmid: u8, info: u8, main: &[u8], fine: bool| {
        let mut writer = Writer::new(8192, PgMajor::V15);
        writer.of_len(100, 1);
        writer.record(rmid, info, main);
        writer.of_len(100, 1);
        let (facts, index) = index_segment(&writer.segments()[0], None, &IndexOptions::usual()).unwrap();
        // The segment itself is read to its end all the same.
        assert_eq!(facts.records, 3, "{rmid} {info:#x}");
        assert_eq!(index.is_ok(), fine, "{rmid} {info:#x}: {index:?}");
    };
    let rel = [1663_u32, 5, 16384, 0].map(u32::to_le_bytes).concat();
    check(2, 0x10, &rel, true);
    check(2, 0x10, &rel[..15], false);
    check(2, 0x20, &rel, false);
    check(4, 0x20, &[5, 0, 0, 0, 200, 0, 0, 0], false);
    // A commit that names dropped files and ends before they come.
    check(1, 0x80, &[0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0], false);
    check(1, 0x00, &[0; 8], true);
    // An extension's record: with block references only, and with changes of files that only the extension knows.
    check(200, 0x10, &[1, 2, 3], true);
    check(200, 0x11, &[1, 2, 3], false);
    // A heap record without its parts.
    check(10, 0x00, &[], false);
}

#[test]
fn a_hole_in_the_middle_is_seen() {
    let mut writer = Writer::new(8192, PgMajor::V17);
    writer.fill_to(8);
    let mut segment = writer.segments().remove(0);
    assert!(scan_segment(&segment, None).unwrap().unreadable.is_some_and(|end| end.valid_pages_after == 0));
    segment[40 * 8192..41 * 8192].fill(0);
    let end = scan_segment(&segment, None).unwrap().unreadable.unwrap();
    assert_eq!(end.reason, UnreadableReason::Empty);
    assert_eq!(end.valid_pages_after, 87);
}

#[test]
fn lost_records_are_dropped() {
    // In the middle of a segment.
    let mut writer = Writer::new(8192, PgMajor::V16);
    writer.of_len(100, 1);
    let lost = writer.lose(20_000);
    writer.of_len(100, 1);
    assert_eq!(read(&writer.segments()), (writer.records.clone(), vec![lost]));
    // At its end: the next segment's first page drops the tail.
    let mut writer = Writer::new(8192, PgMajor::V16);
    writer.fill_to(16);
    let lost = writer.lose(20_000);
    writer.of_len(100, 1);
    let segments = writer.segments();
    assert_eq!(read(&segments), (writer.records.clone(), vec![lost]));
    let facts = scan_segment(&segments[1], None).unwrap();
    assert!(facts.drops_earlier_tail && facts.head.is_none());
    assert_eq!(facts.first_record_lsn.unwrap().0, 6 * SEGMENT as u64 + 40);
}

#[test]
fn fragments_of_different_records_are_not_joined() {
    let two = |len| {
        let mut writer = Writer::new(8192, PgMajor::V15);
        writer.fill_to(64);
        writer.of_len(len, 7);
        writer.segments()
    };
    let (one, other) = (two(5000), two(6000));
    let facts = |bytes: &[u8]| scan_segment(bytes, None).unwrap();
    let joiner = || Joiner::new(facts(&one[0]).tail.unwrap(), &facts(&one[0]).info);
    let next = facts(&other[1]);
    assert!(matches!(joiner().push(&next.info, next.head.as_ref()), Err(WalError::NotContinued { .. })));
    let same = facts(&one[0]);
    assert!(matches!(joiner().push(&same.info, None), Err(WalError::NotContinued { .. })));
    let mut next = facts(&one[1]);
    next.info.system_id = pg_wal::SystemId(1);
    assert!(matches!(joiner().push(&next.info, next.head.as_ref()), Err(WalError::NotContinued { .. })));
    let mut next = facts(&one[1]);
    next.head.as_mut().unwrap().bytes[3000] ^= 1;
    assert!(matches!(joiner().push(&next.info, next.head.as_ref()), Err(WalError::BadCrc { .. })));
    let next = facts(&one[1]);
    assert_eq!(next.head.as_ref().unwrap().state, HeadState::Complete);
    assert_eq!(joiner().push(&next.info, next.head.as_ref()), Ok(Joined::Whole));
}

/// Lengths that make all ways of lying across pages and segments likely.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let len = prop_oneof![
        8 => 24_usize..300,
        4 => 300_usize..3000,
        2 => 3000_usize..60_000,
        1 => 900_000_usize..2_500_000,
    ];
    prop::collection::vec(len, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn splitting_and_joining_gives_the_same(lens in lengths(), page in 10_u32..=16, major in 0_usize..5, room in 1_usize..200) {
        let mut writer = Writer::new(1 << page, PgMajor::ALL[major]);
        writer.fill_to(room.min((1 << (page - 3)) - 8) * 8);
        for len in lens {
            writer.of_len(len, len as u8);
        }
        let (records, lost) = read(&writer.segments());
        prop_assert!(records == writer.records);
        prop_assert!(lost.is_empty());
    }

    #[test]
    fn a_cut_gives_what_is_before_it(lens in prop::collection::vec(24_usize..9000, 1..20), cut in 40_usize..60_000) {
        let mut writer = Writer::new(1024, PgMajor::V15);
        for len in lens {
            writer.of_len(len, len as u8);
        }
        let cut = cut.min(writer.bytes.len());
        let mut reader = SegmentReader::open(&writer.bytes[..cut], &Expected::default()).unwrap();
        let mut records = Vec::new();
        let mut last_end = 0;
        while let Some(record) = reader.next_record() {
            records.push((record.lsn.0, record.bytes.to_vec()));
            last_end = record.end_lsn.0;
        }
        prop_assert!(writer.records.starts_with(&records));
        prop_assert!(last_end <= 5 * SEGMENT as u64 + cut as u64 + 7);
        if let Some(tail) = reader.tail() {
            let (lsn, record) = &writer.records[records.len()];
            prop_assert_eq!(tail.lsn.0, *lsn);
            prop_assert!(record.starts_with(&tail.bytes));
        }
    }

    #[test]
    fn damage_never_gives_other_records(lens in prop::collection::vec(24_usize..3000, 1..40), hits in prop::collection::vec((40_usize..40_000, 0_u8..8), 1..4)) {
        let mut writer = Writer::new(1024, PgMajor::V18);
        for len in lens {
            writer.of_len(len, len as u8);
        }
        let mut bytes = writer.bytes.clone();
        for (at, bit) in hits {
            let at = at % bytes.len();
            if at >= 40 {
                bytes[at] ^= 1 << bit;
            }
        }
        let mut reader = SegmentReader::open(&bytes, &Expected::default()).unwrap();
        while let Some(record) = reader.next_record() {
            let found = (record.lsn.0, record.bytes.to_vec());
            prop_assert!(writer.records.contains(&found));
        }
        reader.valid_pages_after_end();
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000), major in 0_usize..5) {
        let major = PgMajor::ALL[major];
        let _ = scan_segment(&bytes, None);
        let _ = RecordHeader::parse(&bytes);
        let _ = RecordBody::default().decode(pg_wal::Lsn(0), &bytes, major, 8192);
        // With a sound first page header, so that more is read.
        let mut segment = Writer::new(1024, major).bytes;
        segment.extend(&bytes);
        let _ = scan_segment(&segment, None);
        // In sound pages and records, with arbitrary parts.
        let mut writer = Writer::new(1024, major);
        writer.raw(10, 0, &bytes);
        scan_segment(&writer.bytes, None).unwrap();
    }

    #[test]
    fn arbitrary_main_data_never_panics(main in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..400), rmid in 0_u8..22, info: u8, major in 0_usize..5) {
        let mut writer = Writer::new(8192, PgMajor::ALL[major]);
        writer.record(rmid, info, &main);
        let mut reader = SegmentReader::open(&writer.bytes, &Expected::default()).unwrap();
        let record = reader.next_record().unwrap();
        prop_assert_eq!(record.main_data(), &main[..]);
        let _ = Event::of(&record);
        let _ = index_segment(&writer.bytes, None, &IndexOptions::usual()).unwrap();
    }

    #[test]
    fn arbitrary_images_never_panic(parts in prop::collection::vec(any::<u8>(), 0..300), len in 0_u16..300, hole in 0_u16..9000, gap in 0_u16..9000, flags: u8, major in 0_usize..5) {
        let mut body = vec![0, 0x10, 0, 0];
        body.extend(len.to_le_bytes());
        body.extend(hole.to_le_bytes());
        body.push(flags);
        body.extend(gap.to_le_bytes());
        body.extend(1663_u32.to_le_bytes());
        body.extend([5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0]);
        body.extend(parts.iter().cycle().take(usize::from(len)));
        let bytes = make_record(10, 0, 0, &body);
        let mut decoded = RecordBody::default();
        let major = PgMajor::ALL[major];
        if decoded.decode(pg_wal::Lsn(64), &bytes, major, 8192).is_ok() {
            let header = RecordHeader::parse(&bytes).unwrap();
            let (lsn, end_lsn, rmgr) = (pg_wal::Lsn(64), pg_wal::Lsn(128), Rmgr::Heap);
            let record = Record { lsn, end_lsn, header, rmgr, bytes: &bytes, body: &decoded, major };
            for block in record.blocks() {
                let mut page = Vec::new();
                if pg_wal::restore_block_image(&record, block, &mut page).is_ok() {
                    prop_assert_eq!(page.len(), 8192);
                }
            }
        }
    }

    #[test]
    fn pglz_unpacks_what_was_packed(pattern in prop::collection::vec(0_u8..4, 1..40), noise in prop::collection::vec(any::<u8>(), 0..100), repeat in 1_usize..200) {
        let mut plain: Vec<u8> = pattern.iter().copied().cycle().take(pattern.len() * repeat).collect();
        plain.extend(&noise);
        plain.extend(pattern.iter().copied().cycle().take(pattern.len() * repeat));
        let packed = pack(&plain);
        let mut unpacked = vec![0; plain.len()];
        prop_assert_eq!(pg_wal::pglz::decompress(&packed, &mut unpacked), Some(plain.len()));
        prop_assert!(unpacked == plain);
        // Cut off or too long, it is refused.
        prop_assert_eq!(pg_wal::pglz::decompress(&packed[..packed.len() - 1], &mut unpacked), None);
        prop_assert_eq!(pg_wal::pglz::decompress(&packed, &mut vec![0; plain.len() + 1]), None);
    }

    #[test]
    fn pglz_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), len in 0_usize..9000) {
        let _ = pg_wal::pglz::decompress(&bytes, &mut vec![0; len]);
    }
}

/// The format of `common/pg_lzcompress.c`, with the simplest search there is.
fn pack(plain: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut at = 0;
    while at < plain.len() {
        let control_at = packed.len();
        packed.push(0);
        for bit in 0..8 {
            if at == plain.len() {
                break;
            }
            let best = (1..=at.min(4095).min(300))
                .map(|distance| {
                    let len = (0..273.min(plain.len() - at))
                        .take_while(|i| plain[at + i] == plain[at + i - distance])
                        .count();
                    (len, distance)
                })
                .max_by_key(|(len, distance)| (*len, usize::MAX - distance));
            match best {
                Some((len, distance)) if len >= 3 => {
                    packed[control_at] |= 1 << bit;
                    let high = (distance >> 4 & 0xF0) as u8;
                    packed.extend([high | (len.min(18) - 3) as u8, distance as u8]);
                    if len >= 18 {
                        packed.push((len - 18) as u8);
                    }
                    at += len;
                }
                _ => {
                    packed.push(plain[at]);
                    at += 1;
                }
            }
        }
    }
    packed
}
