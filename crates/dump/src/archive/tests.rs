//! Archives round trip, in every version, and damaged ones are refused.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = Text> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..20))
}

prop_compose! {
    fn entry(minor: u8)(
        dump_id in 1i32..1000, has_data: bool, catalog_oid: u32, oid: u32, section in 1i32..5,
        texts in prop::collection::vec(text(), 8), access_method in text(), relkind in 0i32..120,
        dependencies in prop::collection::vec(1i32..1000, 0..5),
    ) -> Entry {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().flatten();
        Entry {
            dump_id, has_data, catalog_oid, oid, section,
            tag: next(), desc: next(), definition: next(), drop_statement: next(), copy_statement: next(),
            namespace: next(), tablespace: next(), owner: next(), with_oids: Some(b"false".to_vec()),
            access_method: if minor >= 14 { access_method } else { None },
            relkind: if minor >= 16 { relkind } else { 0 },
            dependencies,
        }
    }
}

fn archive() -> impl Strategy<Value = Archive> {
    (12u8..=16).prop_flat_map(|minor| {
        prop::collection::vec(entry(minor), 0..6).prop_map(move |entries| Archive {
            header: Header {
                minor,
                revision: 0,
                int_size: 4,
                offset_size: 8,
                form: 1,
                compression: 0,
                created: [1, 2, 3, 4, 5, 126, -1],
                database: Some(b"db".to_vec()),
                server_version: Some(b"15.20".to_vec()),
                tool_version: Some(b"15.20".to_vec()),
            },
            entries,
        })
    })
}

proptest! {
    #[test]
    fn archives_round_trip(archive in archive(), cut in 0usize..5000) {
        let bytes = write(&archive, Form::Custom, ArchiveCompression::None, |_| Place::Unknown);
        prop_assert_eq!(&Archive::parse(&bytes).unwrap(), &archive);
        // In pieces, with data behind.
        let mut with_data = bytes.clone();
        with_data.extend_from_slice(b"\x01more");
        let cut = cut.min(bytes.len() - 1);
        let mut reader = Reader::default();
        prop_assert_eq!(reader.feed(&with_data[..cut]).unwrap(), None);
        let read = reader.feed(&with_data[cut..]).unwrap();
        prop_assert_eq!(read.as_ref(), Some(&archive));
        prop_assert_eq!(reader.into_bytes(), bytes);
        prop_assert!(Archive::parse(&with_data[..cut]).is_err());
        // The same entries as a directory's table of contents.
        let toc = write(&archive, Form::Tar, ArchiveCompression::None, |entry| Place::File(format!("{}.dat", entry.dump_id)));
        prop_assert_eq!(Archive::parse(&toc).unwrap().entries, archive.entries);
    }

    #[test]
    fn parsing_never_panics(mut bytes: Vec<u8>, minor in 12u8..=16) {
        let _ = Archive::parse(&bytes);
        bytes.splice(0..0, [b'P', b'G', b'D', b'M', b'P', 1, minor, 0, 4, 8, 1]);
        let _ = Archive::parse(&bytes);
    }
}

#[test]
fn what_is_no_archive_is_named() {
    for (bytes, word) in [
        (&b"SELECT 1;"[..], "PGDMP"),
        (b"PGDMP\x01\x0b\x00\x04\x08\x01", "1.11"),
        (b"PGDMP\x01\x11\x00\x04\x08\x01", "1.17"),
        (b"PGDMP\x01\x0e", "ends within"),
    ] {
        let error = Archive::parse(bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
