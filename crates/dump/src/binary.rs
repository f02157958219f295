//! Rows in COPY's binary form: which tables may have them, and what is around them on the wire.
//!
//! A stream has the tuples only, as a text one has rows without `\\.`: so parts can be put together. The form is described in
//! PostgreSQL's documentation of COPY; written in `src/backend/commands/copyto.c`, read in `copyfromparse.c`.

use crate::DumpError;
use pg_wire::Client;
use std::collections::HashSet;

/// What comes before the first tuple: the signature, flags, length of an extension.
pub(crate) const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What comes after the last one, where the number of fields would be.
pub(crate) const TRAILER: [u8; 2] = [0xff; 2];

/// Core types whose binary form says all of a value and nothing that holds in one database or version only: no OIDs (`reg…`,
/// composite types), no encoding of its own (`xml`). Their OIDs are the same everywhere (`src/include/catalog/pg_type.dat`).
const TYPES: [u32; 54] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, 28, 114, 600, 601, 602, 603, 604, 628, 650, 700, 701, 718, 774, 829, 869, 1042,
    1043, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700, 2950, 3220, 3614, 3615, 3802, 3904, 3906, 3908, 3910,
    3912, 3926, 4072, 4451, 4532, 4533, 4534, 4535, 4536, 5069,
];

/// The tables of a database whose columns all have such types, or arrays of them, or are enumerations; domains are what they
/// are made of. All others are dumped as text.
pub(crate) async fn tables(client: &mut Client) -> Result<HashSet<u32>, DumpError> {
    let types = TYPES.map(|oid| oid.to_string()).join(",");
    let sql = format!(
        "WITH RECURSIVE sound(oid) AS ( \
          SELECT t.oid FROM pg_catalog.pg_type t WHERE t.oid IN ({types}) OR t.typtype = 'e' \
           OR (t.typelem IN ({types}) AND t.typlen = -1 AND t.oid < 10000 AND t.typcategory = 'A') \
          UNION SELECT d.oid FROM pg_catalog.pg_type d JOIN sound s ON d.typbasetype = s.oid WHERE d.typtype = 'd') \
         SELECT c.oid::text AS oid FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND NOT EXISTS ( \
          SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
           AND a.atttypid NOT IN (SELECT s.oid FROM sound s))"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.into_iter().map(|row| row.get("oid")).collect::<Result<_, _>>()?)
}

/// The tuple in a message of `COPY … TO STDOUT (FORMAT binary)`, if there is one: the header comes with the first tuple, the
/// trailer by itself, or both together when there are no rows.
pub(crate) fn tuple(message: &[u8]) -> Option<&[u8]> {
    let rest = message.strip_prefix(&HEADER).unwrap_or(message);
    (rest != TRAILER).then_some(rest)
}

/// Counts the tuples of a stream that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct TupleCount {
    /// Whole tuples so far.
    pub(crate) tuples: u64,
    /// Fields of this tuple that are still to come.
    fields: u16,
    /// Bytes of this field that are still to come.
    bytes: u32,
    /// A number that came in part, and how many bytes of it.
    number: u32,
    got: usize,
    within: bool,
}

impl TupleCount {
    /// The next piece.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if self.bytes > 0 {
                let now = piece.len().min(self.bytes as usize);
                (self.bytes, piece) = (self.bytes - now as u32, &piece[now..]);
            } else {
                self.number = self.number << 8 | u32::from(piece[0]);
                (self.got, piece) = (self.got + 1, &piece[1..]);
                if !self.within && self.got == 2 {
                    (self.fields, self.within) = (self.number as u16, true);
                    (self.number, self.got) = (0, 0);
                } else if self.got == 4 {
                    // -1 is NULL.
                    self.bytes = if self.number == u32::MAX { 0 } else { self.number };
                    self.fields = self.fields.saturating_sub(1);
                    (self.number, self.got) = (0, 0);
                }
            }
            if self.within && self.fields == 0 && self.bytes == 0 && self.got == 0 {
                (self.tuples, self.within) = (self.tuples + 1, false);
            }
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn is_between(&self) -> bool {
        !self.within && self.got == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart() {
        let first = [&HEADER[..], b"\0\x01\0\0\0\x01a"].concat();
        assert_eq!(tuple(&first), Some(&b"\0\x01\0\0\0\x01a"[..]));
        assert_eq!(tuple(b"\0\0"), Some(&b"\0\0"[..]), "a row without columns");
        assert_eq!(tuple(&TRAILER), None);
        assert_eq!(tuple(&[&HEADER[..], &TRAILER].concat()), None);
    }

    proptest::proptest! {
        #[test]
        fn tuples_are_counted_in_any_pieces(
            rows in proptest::collection::vec(proptest::collection::vec(proptest::option::of(0usize..9), 0..4), 0..9),
            cut in 1usize..9,
        ) {
            let mut stream = Vec::new();
            for row in &rows {
                stream.extend((row.len() as u16).to_be_bytes());
                for field in row {
                    stream.extend(field.map_or(u32::MAX, |len| len as u32).to_be_bytes());
                    stream.extend(vec![0xff; field.unwrap_or(0)]);
                }
            }
            let mut count = TupleCount::default();
            stream.chunks(cut).for_each(|piece| count.feed(piece));
            proptest::prop_assert_eq!((count.tuples, count.is_between()), (rows.len() as u64, true));
            if let Some((_, short)) = stream.split_last() {
                let mut count = TupleCount::default();
                count.feed(short);
                proptest::prop_assert!(!count.is_between());
            }
        }
    }
}
