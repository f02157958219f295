//! Which files wait to be archived, in PostgreSQL's order.

use pg_format::WalFileName;
use std::path::Path;

/// The files with a `.ready` mark, most urgent first: timeline histories, then by name (`ready_file_comparator` in
/// `src/backend/postmaster/pgarch.c`). None when there is no `archive_status`: then the file was not given by a server.
pub fn waiting(wal_dir: &Path) -> Vec<WalFileName> {
    let Ok(entries) = std::fs::read_dir(wal_dir.join("archive_status")) else { return Vec::new() };
    let mut names: Vec<WalFileName> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok())
        .collect();
    names.sort_by_cached_key(|name| (!matches!(name, WalFileName::History(_)), name.to_string()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_first_then_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(waiting(dir.path()).is_empty());
        let status = dir.path().join("archive_status");
        std::fs::create_dir(&status).unwrap();
        for name in [
            "000000010000000000000003.ready",
            "000000010000000000000002.partial.ready",
            "000000010000000000000001.done",
            "00000002.history.ready",
            "000000010000000000000002.ready",
            "something.ready",
        ] {
            std::fs::write(status.join(name), "").unwrap();
        }
        let names: Vec<String> = waiting(dir.path()).iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "00000002.history",
                "000000010000000000000002",
                "000000010000000000000002.partial",
                "000000010000000000000003"
            ]
        );
    }
}
