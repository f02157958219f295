//! `tablespace_map`: where the links of `pg_tblspc` point (`do_pg_backup_start` in
//! `src/backend/access/transam/xlog.c`, `read_tablespace_map` in `src/backend/access/transam/xlogrecovery.c`).

use crate::error::FormatError;
use crate::ids::Oid;

const WHAT: &str = "tablespace_map";

/// The tablespaces that are links. Tablespaces in place are not in the file. Paths are bytes, since file names are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// Each tablespace and its path, in the order of the file.
    pub entries: Vec<(Oid, Vec<u8>)>,
}

impl TablespaceMap {
    /// Reads the file; an empty one has no tablespaces.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut entries = Vec::new();
        let mut line = Vec::new();
        let mut index = 0;
        let mut escaped = false;
        for &byte in bytes {
            match byte {
                b'\n' | b'\r' if !escaped => {
                    if !line.is_empty() {
                        entries.push(entry(&line, index)?);
                        line.clear();
                        index += 1;
                    }
                }
                b'\\' if !escaped => escaped = true,
                _ => {
                    line.push(byte);
                    escaped = false;
                }
            }
        }
        if !line.is_empty() || escaped {
            return Err(FormatError::line(WHAT, index, "the last line is not complete"));
        }
        Ok(Self { entries })
    }

    /// The path of a tablespace.
    #[must_use]
    pub fn path_of(&self, tablespace: Oid) -> Option<&[u8]> {
        self.entries.iter().find(|(oid, _)| *oid == tablespace).map(|(_, path)| path.as_slice())
    }

    /// The file's bytes, with newlines, carriage returns and backslashes escaped.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (oid, path) in &self.entries {
            out.extend_from_slice(format!("{oid} ").as_bytes());
            for &byte in path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    out.push(b'\\');
                }
                out.push(byte);
            }
            out.push(b'\n');
        }
        out
    }
}

fn entry(line: &[u8], index: usize) -> Result<(Oid, Vec<u8>), FormatError> {
    let bad = || FormatError::line(WHAT, index, "a line is an OID, one space and a path");
    let space = line.iter().position(|&byte| byte == b' ').ok_or_else(bad)?;
    let oid = std::str::from_utf8(&line[..space]).ok().and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
    let path = line[space + 1..].to_vec();
    if path.is_empty() {
        return Err(bad());
    }
    Ok((oid, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        let check = |text: &str, expect: Option<&[(u32, &str)]>| {
            let map = TablespaceMap::parse(text.as_bytes()).ok();
            let entries = |pairs: &[(u32, &str)]| {
                pairs.iter().map(|(oid, path)| (Oid(*oid), path.as_bytes().to_vec())).collect::<Vec<_>>()
            };
            assert_eq!(map.map(|map| map.entries), expect.map(entries), "{text:?}");
        };
        check("", Some(&[]));
        check("16500 /fast\n16501 /slow disk\n", Some(&[(16500, "/fast"), (16501, "/slow disk")]));
        check("16500 /fast\r\n", Some(&[(16500, "/fast")]));
        check("16500 /a\\\nb\\\\c\n", Some(&[(16500, "/a\nb\\c")]));
        check("16500  /a\n", Some(&[(16500, " /a")]));
        for bad in ["16500 /fast", "16500\n", "16500 \n", "x /fast\n", "16500 /a\\"] {
            check(bad, None);
        }
    }

    proptest! {
        #[test]
        fn round_trip(entries in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 1..20)), 0..5)) {
            let map = TablespaceMap { entries: entries.into_iter().map(|(oid, path)| (Oid(oid), path)).collect() };
            prop_assert_eq!(TablespaceMap::parse(&map.render()), Ok(map));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = TablespaceMap::parse(&bytes);
        }
    }
}
