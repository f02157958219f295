//! The lines of the protocol (docs/archive-library.md), as the answering side sees them. The asking side is
//! `crates/pgkeep-archive/src/line.rs`.

use pg_format::WalFileName;
use std::path::PathBuf;

/// The version of the protocol.
pub(super) const VERSION: u32 = 1;
/// A request longer than this is none.
pub(super) const REQUEST_BYTES_MAX: u64 = 4096;
/// What the other side takes as one answer, with its end.
const ANSWER_BYTES_MAX: usize = 1000;

/// The other side asks for a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) name: WalFileName,
    /// The server's data directory.
    pub(super) data_dir: PathBuf,
}

impl Request {
    /// Reads a line without its end, or says why it is none.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        use std::os::unix::ffi::OsStringExt;
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let mut word = || words.next().unwrap_or_default();
        if word() != b"PUSH" {
            return Err("a request begins with PUSH".into());
        }
        let version = String::from_utf8_lossy(word()).into_owned();
        if version != VERSION.to_string() {
            return Err(format!(
                "the archive library speaks version {version} of the protocol, this pgkeep version {VERSION}: use the \
                 library that came with this pgkeep, and restart PostgreSQL"
            ));
        }
        let text = String::from_utf8_lossy(word()).into_owned();
        let name: WalFileName = text.parse().map_err(|error| format!("{text}: {error}"))?;
        let data_dir = PathBuf::from(std::ffi::OsString::from_vec(word().to_vec()));
        if !data_dir.is_absolute() {
            return Err(format!("{}: the data directory's path must be absolute", data_dir.display()));
        }
        Ok(Self { name, data_dir })
    }

    /// Where the file lies.
    pub(super) fn wal_dir(&self) -> PathBuf {
        self.data_dir.join("pg_wal")
    }
}

/// Work goes on.
pub(super) const WAIT: &[u8] = b"WAIT\n";

/// The file is durable in the repository.
pub(super) fn durable(name: WalFileName) -> Vec<u8> {
    format!("DURABLE {name}\n").into_bytes()
}

/// It is not, and why; in one line.
pub(super) fn failed(reason: &str) -> Vec<u8> {
    let mut text: String = reason.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let end = (0..=ANSWER_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    format!("FAILED {text}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let name = "000000010000000000000003";
        let check = |line: &str| Request::parse(line.as_bytes());
        let request = check(&format!("PUSH 1 {name} /a b/data")).unwrap();
        assert_eq!(request.wal_dir(), PathBuf::from("/a b/data/pg_wal"));
        assert_eq!(request.name.to_string(), name);
        let wrong = |line: &str, word: &str| {
            let reason = check(line).unwrap_err();
            assert!(reason.contains(word), "{line}: {reason}");
        };
        wrong("", "PUSH");
        wrong(&format!("push 1 {name} /data"), "PUSH");
        wrong(&format!("PUSH 2 {name} /data"), "version 2");
        wrong("PUSH 1 ../../etc/passwd /data", "../../etc/passwd");
        wrong("PUSH 1  /data", "");
        wrong(&format!("PUSH 1 {name} data"), "absolute");
        wrong(&format!("PUSH 1 {name}"), "absolute");
    }

    #[test]
    fn answers_are_one_line_each() {
        let name: WalFileName = "00000002.history".parse().unwrap();
        assert_eq!(durable(name), b"DURABLE 00000002.history\n");
        assert_eq!(failed("no\nroom"), b"FAILED no room\n");
        let long = failed(&"ä".repeat(1000));
        assert!(long.len() < 1020 && long.ends_with("ä\n".as_bytes()));
    }
}
