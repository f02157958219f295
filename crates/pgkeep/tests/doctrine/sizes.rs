//! Other WAL segment sizes, kinds of sealing and compression than the usual ones.

use crate::world::{bare, load, lsn, open, protect, restore};
use std::os::unix::fs::PermissionsExt;
use testkit::load::Target;
use testkit::pg::Cluster;

struct Kind {
    segment_mb: u32,
    /// `--no-encryption`, `--passphrase-file` or `--key-command`.
    sealing: &'static str,
    compression: &'static str,
    checksums: bool,
}

const KINDS: [Kind; 3] = [
    Kind { segment_mb: 1, sealing: "--passphrase-file", compression: "lz4", checksums: true },
    Kind { segment_mb: 64, sealing: "--no-encryption", compression: "none", checksums: false },
    Kind { segment_mb: 2, sealing: "--key-command", compression: "zstd:9", checksums: true },
];

#[test]
fn unusual_sizes() {
    for kind in KINDS {
        check(&kind);
    }
}

fn check(kind: &Kind) {
    let builder = Cluster::builder(15).without_fsync().wal_segsize_mb(kind.segment_mb).checksums(kind.checksums);
    let mut site = bare(builder);
    let secret = site.dir.join("secret");
    // 64 hexadecimal digits are a passphrase too.
    std::fs::write(&secret, format!("{}\n", "0123456789abcdef".repeat(4))).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    site.cluster.user().own(&secret).unwrap();
    let (path, command) = (secret.to_string_lossy().into_owned(), format!("cat '{}'", secret.display()));
    let mut options = vec!["--compression", kind.compression, kind.sealing];
    match kind.sealing {
        "--passphrase-file" => options.push(&path),
        "--key-command" => options.push(&command),
        _ => {}
    }
    let url = format!("file://{}", site.path("repo"));
    protect(&mut site, &url, &options);
    let bytes = site.cluster.sql("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").unwrap();
    assert_eq!(bytes, (u64::from(kind.segment_mb) << 20).to_string());
    let load = load(&site.cluster);
    load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    // Several segments of the small size.
    site.cluster
        .sql("CREATE TABLE wide AS SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g")
        .unwrap();
    load.wait_for_more(30).unwrap();
    let target = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    load.wait_for_more(30).unwrap();
    site.archive();
    let ledger = load.stop();
    site.archive();
    let restored = open(&site, &restore(&site, "before", &["--lsn", &target, "--exclusive"]));
    let verdict = ledger.verify_before(&restored, Target::Lsn(lsn(&target))).unwrap();
    assert!(verdict.required >= 50 && verdict.excluded >= 25, "{} MB: {verdict:?}", kind.segment_mb);
    assert_eq!(restored.sql("SELECT count(*) FROM wide").unwrap(), "20000");
    let latest = open(&site, &restore(&site, "latest", &[]));
    ledger.verify_all(&latest).unwrap();
    site.run(&["verify", "--all", "--deep"]).expect(0);
    let shown = site.run(&["show", "latest", "--json"]).expect(0).json();
    assert_eq!(shown["backup"]["wal_segment_size"], u64::from(kind.segment_mb) << 20);
}
