//! Large objects: read with `lo_get`, in the form of docs/format.md section 17, and written back with `lo_put`.

use crate::DumpError;
use crate::archive::{Archive, BadArchive, Entry};
use crate::sink::Sink;
use engine::Context;
use pg_wire::Client;
use repo::dump::{PieceHash, RowSum};

/// Bytes of a large object that are asked for at a time.
const PIECE: u64 = 256 << 10;
/// Large objects of which the first piece is asked for together.
const AT_ONCE: usize = 32;

/// The OIDs that an archive's `BLOBS` entry speaks of: from 1.16 on those of the `BLOB METADATA` entry that it depends on
/// (a list, in its definition), before that all `BLOB` entries' (`dumpLO` in `src/bin/pg_dump/pg_dump.c`).
pub(crate) fn oids(archive: &Archive, blobs: &Entry) -> Result<Vec<u32>, BadArchive> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if archive.header.minor < 16 {
        let entries = archive.entries.iter().filter(|entry| entry.kind() == b"BLOB");
        let found: Option<Vec<u32>> = entries.map(|entry| number(entry.tag.as_deref()?)).collect();
        return found.ok_or_else(|| BadArchive("a large object without an OID".into()));
    }
    let metadata = blobs.dependencies.iter().filter_map(|id| archive.entry(*id));
    let Some(metadata) = metadata.into_iter().find(|entry| entry.kind() == b"BLOB METADATA") else {
        return Err(BadArchive(format!("large objects {} without metadata", blobs.label())));
    };
    let lines = metadata.definition.as_deref().unwrap_or_default().split(|byte| *byte == b'\n');
    let found: Option<Vec<u32>> = lines.filter(|line| !line.is_empty()).map(number).collect();
    found.ok_or_else(|| BadArchive(format!("large objects {} without OIDs", blobs.label())))
}

/// Those that the login may not read.
pub(crate) async fn unreadable(client: &mut Client) -> Result<Vec<u32>, DumpError> {
    let sql = "SELECT m.oid::text AS oid FROM pg_catalog.pg_largeobject_metadata m \
         WHERE NOT pg_catalog.pg_has_role(m.lomowner, 'USAGE') AND NOT EXISTS ( \
          SELECT FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT' \
           AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE'))) \
         AND pg_catalog.current_setting('lo_compat_privileges') = 'off' ORDER BY m.oid";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.into_iter().map(|row| row.get("oid")).collect::<Result<_, _>>()?)
}

/// Where large objects go as they are read.
pub(crate) trait Taker {
    /// The next large object begins.
    async fn begin(&mut self, oid: u32) -> Result<(), DumpError>;
    /// Its next bytes.
    async fn bytes(&mut self, bytes: &[u8]) -> Result<(), DumpError>;
    /// It is whole.
    async fn end(&mut self) -> Result<(), DumpError>;
}

impl Taker for Sink {
    async fn begin(&mut self, oid: u32) -> Result<(), DumpError> {
        self.write(&varint(oid.into())).await
    }

    async fn bytes(&mut self, bytes: &[u8]) -> Result<(), DumpError> {
        self.write(&varint(bytes.len() as u64)).await?;
        self.write(bytes).await
    }

    async fn end(&mut self) -> Result<(), DumpError> {
        self.write(&varint(0)).await
    }
}

/// Keeps nothing: for when only the sum is asked for.
pub(crate) struct Nowhere;

impl Taker for Nowhere {
    async fn begin(&mut self, _: u32) -> Result<(), DumpError> {
        Ok(())
    }

    async fn bytes(&mut self, _: &[u8]) -> Result<(), DumpError> {
        Ok(())
    }

    async fn end(&mut self) -> Result<(), DumpError> {
        Ok(())
    }
}

/// Reads large objects; gives their sum. An OID of which there is no large object is an error.
pub(crate) async fn dump(client: &mut Client, oids: &[u32], to: &mut impl Taker) -> Result<RowSum, DumpError> {
    let mut sum = RowSum::default();
    for some in oids.chunks(AT_ONCE) {
        let list: Vec<String> = some.iter().map(u32::to_string).collect();
        let sql = format!(
            "SELECT o.oid::text AS oid, pg_catalog.lo_get(o.oid, 0, {PIECE}) AS piece \
             FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) WITH ORDINALITY o(oid, n) ORDER BY o.n",
            list.join(",")
        );
        for row in client.query(&sql, &[]).await? {
            let oid: u32 = row.get("oid")?;
            let mut piece = from_hex(row.str("piece")?)?;
            let (mut offset, mut hash) = (0, PieceHash::of_large_object(oid));
            to.begin(oid).await?;
            while !piece.is_empty() {
                to.bytes(&piece).await?;
                hash.update(&piece);
                offset += piece.len() as u64;
                if (piece.len() as u64) < PIECE {
                    break;
                }
                let sql = format!("SELECT pg_catalog.lo_get({oid}, {offset}, {PIECE}) AS piece");
                piece = from_hex(client.query_one(&sql, &[]).await?.str("piece")?)?;
            }
            to.end().await?;
            sum.add_pieces(hash);
        }
    }
    Ok(sum)
}

/// Copies large objects from one server to another, where they are already and have nothing in them. Gives their bytes.
pub(crate) async fn relay(ctx: &Context, from: &mut Client, oids: &[u32], to: &mut Client) -> Result<u64, DumpError> {
    let mut bytes = 0;
    for oid in oids {
        let mut offset = 0;
        loop {
            let sql = format!("SELECT pg_catalog.lo_get({oid}, {offset}, {PIECE}) AS piece");
            let piece = from_hex(from.query_one(&sql, &[]).await?.str("piece")?)?;
            if !piece.is_empty() {
                put(to, *oid, offset, &piece).await?;
                ctx.progress.advance(piece.len() as u64);
            }
            offset += piece.len() as u64;
            if (piece.len() as u64) < PIECE {
                break;
            }
        }
        bytes += offset;
    }
    Ok(bytes)
}

/// What a stream of large objects says, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next large object begins.
    Begin(u32),
    /// Its next bytes.
    Bytes(Vec<u8>),
    /// It is whole.
    End,
}

/// Takes a stream of large objects apart.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    inside: bool,
}

impl Parser {
    /// Takes more of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Step>, BadArchive> {
        self.buffer.extend_from_slice(bytes);
        let (mut at, mut steps) = (0, Vec::new());
        while let Some((number, len)) = read_varint(&self.buffer[at..])? {
            if !self.inside {
                let oid = u32::try_from(number).ok().filter(|oid| *oid != 0);
                steps.push(Step::Begin(oid.ok_or_else(|| BadArchive(format!("large object {number}")))?));
                (self.inside, at) = (true, at + len);
            } else if number == 0 {
                steps.push(Step::End);
                (self.inside, at) = (false, at + len);
            } else {
                if number > 64 << 20 {
                    return Err(BadArchive(format!("a piece of a large object of {number} bytes")));
                }
                let end = at + len + number as usize;
                let Some(piece) = self.buffer.get(at + len..end) else { break };
                steps.push(Step::Bytes(piece.to_vec()));
                at = end;
            }
        }
        self.buffer.drain(..at);
        Ok(steps)
    }

    /// Whether the stream ended where it may.
    pub(crate) fn finish(self) -> Result<(), BadArchive> {
        if self.inside || !self.buffer.is_empty() {
            return Err(BadArchive("large objects that end in the middle of one".into()));
        }
        Ok(())
    }
}

/// Writes one step's bytes to the server; `offset` counts within the large object.
pub(crate) async fn put(client: &mut Client, oid: u32, offset: u64, bytes: &[u8]) -> Result<(), DumpError> {
    let sql = format!("SELECT pg_catalog.lo_put({oid}, {offset}, $1::pg_catalog.bytea)");
    client.query(&sql, &[Some(&to_hex(bytes))]).await?;
    Ok(())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn read_varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, BadArchive> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if at == 9 {
            return Err(BadArchive("a number too long".into()));
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    Ok(None)
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

/// `bytea_output` is set to hex for these sessions.
fn from_hex(text: &str) -> Result<Vec<u8>, DumpError> {
    let bad = || DumpError::Failed { reason: "the server sent a large object in an unknown form".into(), hint: None };
    let digits = text.strip_prefix("\\x").ok_or_else(bad)?.as_bytes();
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    digits.chunks(2).map(pair).collect::<Option<_>>().ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn streams_are_taken_apart(
            objects in prop::collection::vec((1u32.., prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..4)), 0..5),
            cut in 1usize..50,
        ) {
            let (mut stream, mut expect) = (Vec::new(), Vec::new());
            for (oid, pieces) in &objects {
                stream.extend(varint((*oid).into()));
                expect.push(Step::Begin(*oid));
                for piece in pieces {
                    stream.extend(varint(piece.len() as u64));
                    stream.extend(piece);
                    expect.push(Step::Bytes(piece.clone()));
                }
                stream.push(0);
                expect.push(Step::End);
            }
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for bytes in stream.chunks(cut) {
                found.extend(parser.feed(bytes).unwrap());
            }
            prop_assert_eq!(found, expect);
            prop_assert_eq!(parser.finish(), Ok(()));
            if let Some((_, rest)) = stream.split_last() {
                let mut parser = Parser::default();
                parser.feed(rest).unwrap();
                prop_assert!(parser.finish().is_err());
            }
        }

        #[test]
        fn hex_round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        }
    }
}
