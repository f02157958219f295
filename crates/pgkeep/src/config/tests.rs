//! What is accepted, and what is said of what is not.

use super::*;

const GOOD: &str = r#"
default-cluster = "main"
state-dir = "/var/lib/pgkeep"

[repository.main]
url = "s3://bucket/pgkeep"
key-file = "/etc/pgkeep/main.key"
compression = "zstd:3"

[repository.main.options]
endpoint = "https://s3.example.org"
path-style = true

[cluster.main]
pg = "host=/var/run/postgresql"
repository = "main"
workers = 4
"#;

fn read(text: &str) -> Result<Config, CommandError> {
    parse(text, Path::new("/etc/pgkeep/pgkeep.toml"))
}

#[test]
fn a_whole_file_is_read() {
    let config = read(GOOD).unwrap();
    let (name, repository) = config.repository(None, None).unwrap();
    assert_eq!((name, repository.url.as_str()), ("main", "s3://bucket/pgkeep"));
    assert_eq!(repository.key, KeyConfig::File("/etc/pgkeep/main.key".into()));
    assert_eq!(repository.compression, Some(Compression::Zstd(3)));
    assert_eq!(repository.options["path-style"], "true");
    assert_eq!(config.cluster(None).unwrap().1.workers, Some(4));
}

#[test]
fn errors_name_line_and_nearest() {
    let check = |text: &str, line: usize, message: &str, hint: &str| {
        let error = read(text).unwrap_err();
        assert_eq!(error.kind.exit_code(), 2);
        let place = format!("/etc/pgkeep/pgkeep.toml, line {line}: ");
        assert!(error.message.starts_with(&place), "{text}: {error}");
        assert!(error.message.contains(message), "{text}: {error}");
        assert!(error.hints.join(" ").contains(hint), "{text}: {error}");
    };
    check("\ndefault-clustr = \"x\"", 2, "unknown key 'default-clustr'", "'default-cluster'");
    check("[repository.a]\nurl = \"/r\"\nkeyfile = \"/k\"", 3, "unknown key 'keyfile' in [repository.a]", "'key-file'");
    check("[repository.a]\nurl = \"/r\"\nkey_file = \"/k\"", 3, "unknown key 'key_file'", "'key-file'");
    check("[clusters.a]\npg = \"\"", 1, "unknown key 'clusters'", "'cluster'");
    check("[expire]\nkeep-last = 0", 2, "1 to 65535", "");
    check("[expire]\ngrace = \"soon\"", 2, "grace must be a time", "");
    check(
        "[cluster.a]\npg = \"\"\n[cluster.a.expire]\nkeep_last = 3",
        4,
        "unknown key 'keep_last' in [cluster.a.expire]",
        "'keep-last'",
    );
    check("[cluster.a]\npg = \"\"\nzzz = 1", 3, "unknown key 'zzz' in [cluster.a]", "known keys are: backup-age-max,");
    check("[repository.a]\nencryption = \"none\"", 1, "[repository.a] has no url", "url = ");
    check("[repository.a]\nurl = \"/r\"", 1, "does not say how it is encrypted", "key-file");
    check("\n[repository.a]\nurl = \"/r\"\nkey-file = \"/k\"\nkey-command = \"c\"", 2, "more than once", "keep one");
    check("[repository.a]\nurl = \"/r\"\nencryption = \"aes\"", 3, "the only value is \"none\"", "key-file");
    check("[repository.a]\nurl = \"/r\"\nkey-file = \"k\"", 3, "absolute path", "");
    check("[repository.a]\nurl = 5\nkey-file = \"/k\"", 2, "url must be a text", "");
    check("[repository.a]\nurl = \"/r\"\nencryption = \"none\"\ncompression = \"gzip\"", 4, "zstd:LEVEL", "");
    check(
        "[repository.a]\nurl = \"/r\"\nencryption = \"none\"\n[repository.a.options]\nend-point = \"x\"",
        5,
        "unknown key 'end-point' in [repository.a.options]",
        "'endpoint'",
    );
    check(
        "[repository.a]\nurl = \"/r\"\nencryption = \"none\"\noptions = { file-mode = \"0999\" }",
        4,
        "octal permission bits",
        "",
    );
    check("[repository]\nurl = \"/r\"", 2, "[repository] needs a name", "[repository.main]");
    check("[cluster.A]\npg = \"\"", 1, "not a valid cluster name", "");
    check("[cluster.a]\nrepository = \"x\"", 1, "[cluster.a] has no pg", "connection string");
    check("[cluster.a]\npg = \"hst=x\"", 2, "hst", "");
    check("[cluster.a]\npg = \"\"\nworkers = 0", 3, "1 to 256", "");
    for bad in ["5", "\"5\"", "\"s\"", "\"0s\"", "\"5 m\"", "\"-1h\"", "\"99999999999999d\""] {
        check(&format!("[cluster.a]\npg = \"\"\nwal-timeout = {bad}"), 3, "wal-timeout must be a time", "");
    }
    check("[cluster.a]\npg = \"\"\nfetch-cache = \"1mb\"", 3, "fetch-cache must be a size", "");
    check("[cluster.a]\npg = \"\"\npush-ahead = 5000", 3, "0 to 1024", "");
    check(
        "[cluster.a]\npg = \"\"\nrepository = \"mian\"\n[repository.main]\nurl=\"/r\"\nencryption=\"none\"",
        3,
        "there is no [repository.mian]",
        "'main'",
    );
    check("default-cluster = \"b\"\n[cluster.a]\npg = \"\"", 1, "there is no [cluster.b]", "[cluster.b]");
    check("a = \n", 1, "not TOML", "");
    check("x = 1\nx = 2", 2, "not TOML", "");
}

#[test]
fn limits_are_read_with_their_units() {
    let keys = "wal-timeout = \"10min\"\npush-ahead = 0\nfetch-ahead = 64\nfetch-cache = \"4 GB\"\nwal-lag-max = \"64kB\"\n\
         max-rate = \"50MB\"\nnice = 10\nprefer-standby = true\nmax-lag = \"30s\"";
    let config =
        read(&format!("[cluster.a]\npg = \"\"\nbackup-age-max = \"36h\"\n{keys}\n[cluster.b]\npg = \"\"")).unwrap();
    let expect = Limits {
        wal_timeout: Duration::from_secs(600),
        push_ahead: 0,
        fetch_ahead: 64,
        fetch_cache_bytes: 4 << 30,
        backup_age_max: Duration::from_secs(36 * 3600),
        wal_lag_bytes_max: 64 << 10,
        bytes_per_second_max: Some(50 << 20),
        nice: Some(10),
        prefer_standby: true,
        lag_max: LagMax { bytes: None, time: Some(Duration::from_secs(30)) },
    };
    assert_eq!((config.clusters["a"].limits, config.clusters["b"].limits), (expect, Limits::USUAL));
}

#[test]
fn a_cluster_may_have_several_repositories() {
    let repository =
        |name: &str, more: &str| format!("[repository.{name}]\nurl = \"/{name}\"\nencryption = \"none\"\n{more}");
    let two = repository("near", "") + &repository("far", "required = false\n");
    let config = read(&format!("{two}[cluster.a]\npg = \"\"\nrepository = [\"near\", \"far\"]")).unwrap();
    let cluster = config.cluster(None).unwrap().1;
    let names = |named| config.archives(named, cluster).unwrap().iter().map(|(name, _)| *name).collect::<Vec<_>>();
    assert_eq!((names(None), names(Some("far"))), (vec!["near", "far"], vec!["far"]));
    assert_eq!(config.repository(None, Some(cluster)).unwrap().0, "near", "backups go to the first one");
    assert!(config.repositories["near"].required && !config.repositories["far"].required);
    let refused = |cluster: &str, expect: &str| {
        let error = read(&format!("{two}[cluster.a]\npg = \"\"\n{cluster}")).unwrap_err();
        assert!(error.message.contains(expect), "{error}");
    };
    refused("repository = [\"near\", \"fra\"]", "there is no [repository.fra]");
    refused("repository = [\"near\", \"near\"]", "'near' twice");
    refused("repository = []", "empty list");
    refused("repository = [\"far\"]", "none of the repositories of [cluster.a] is required");
    refused("repository = \"far\"", "none of the repositories of [cluster.a] is required");
}

#[test]
fn hooks_are_said_for_all_and_for_one() {
    let text = "[hooks]\nbefore = \"a\"\non-failure = \"b\"\ntimeout = \"90s\"\n[cluster.a]\npg = \"\"\n\
                [cluster.a.hooks]\nbefore = \"c\"\nafter-import-basebackup = \"d\"\n[cluster.b]\npg = \"\"";
    let config = read(text).unwrap();
    let hooks = |name: &str| config.clusters[name].hooks.clone();
    let commands = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, command)| ((*key).to_owned(), (*command).to_owned())).collect()
    };
    let timeout = Some(Duration::from_secs(90));
    assert_eq!(hooks("b"), HooksConfig { commands: commands(&[("before", "a"), ("on-failure", "b")]), timeout });
    let own = commands(&[("after-import-basebackup", "d"), ("before", "c"), ("on-failure", "b")]);
    assert_eq!(hooks("a"), HooksConfig { commands: own, timeout });
    let error = read("[hooks]\nbefore-backups = \"x\"").unwrap_err();
    assert!(error.hints.join(" ").contains("'before-backup'"), "{error}");
}

#[test]
fn what_is_kept_is_said_for_all_and_for_one() {
    let all = "[expire]\nkeep-last = 7\nkeep-dumps = 3\ngrace = \"2d\"\n";
    let config = read(&format!(
        "{all}[cluster.a]\npg = \"\"\n[cluster.b]\npg = \"\"\n[cluster.b.expire]\ngrace = \"0\"\nkeep-dumps = 9"
    ))
    .unwrap();
    let grace = |seconds| Some(Duration::from_secs(seconds));
    let kept = |keep_dumps: u32, grace| ExpireConfig { keep_last: Some(7), keep_dumps: Some(keep_dumps), grace };
    assert_eq!(config.clusters["a"].expire, kept(3, grace(172_800)));
    assert_eq!(config.clusters["b"].expire, kept(9, grace(0)));
}

#[test]
fn which_cluster_and_repository_is_meant() {
    let one = read("[cluster.a]\npg = \"\"").unwrap();
    assert_eq!(one.cluster(None).unwrap().0, "a");
    assert_eq!(one.cluster(Some("b")).unwrap_err().kind.exit_code(), 3);
    assert!(one.repository(None, None).unwrap_err().message.contains("names no repository"));
    let two = read("[cluster.a]\npg = \"\"\n[cluster.b]\npg = \"\"").unwrap();
    let error = two.cluster(None).unwrap_err();
    assert_eq!(error.kind.exit_code(), 2);
    assert!(error.hints[0].contains("a, b"), "{error}");
    assert!(read("").unwrap().cluster(None).unwrap_err().hints[0].contains("pgkeep init"));
}

#[test]
fn init_adds_and_keeps_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/pgkeep.toml");
    let repository = RepositoryConfig {
        url: "/backup/it's \"odd\"".into(),
        key: KeyConfig::Command("pass show \"x\"".into()),
        compression: Some(Compression::Lz4),
        options: BTreeMap::from([("file-mode".into(), "0600".into())]),
        required: true,
    };
    let cluster = ClusterConfig {
        pg: "host=/s user='a b'".into(),
        repository: Some("main".into()),
        more_repositories: Vec::new(),
        workers: None,
        pgdata: None,
        snapshot: SnapshotConfig::default(),
        limits: Limits::USUAL,
        expire: ExpireConfig::default(),
        hooks: HooksConfig::default(),
    };
    let mut addition = Addition {
        repository_name: "main",
        repository: &repository,
        cluster_name: "a",
        cluster: &cluster,
        for_copies: false,
    };
    assert!(add_to_file(&path, &addition).unwrap());
    assert!(!add_to_file(&path, &addition).unwrap(), "a second time nothing changes");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "# mine\n").unwrap();
    addition.cluster_name = "b";
    assert!(add_to_file(&path, &addition).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("# mine\n"), "{text}");
    let config = load_file(&path).unwrap();
    assert_eq!(config.repositories["main"], repository);
    assert_eq!(config.clusters["a"], cluster);
    assert_eq!(config.clusters["b"], cluster);
    let other = RepositoryConfig { url: "/elsewhere".into(), ..repository.clone() };
    addition.repository = &other;
    assert!(add_to_file(&path, &addition).unwrap_err().message.contains("another url, /backup"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}
