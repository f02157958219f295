use super::*;
use proptest::prelude::*;

fn pairs(text: &str) -> Vec<(String, String)> {
    let file = ConfFile::parse(text);
    assert_eq!(file.errors, [], "{text}");
    file.directives
        .into_iter()
        .map(|directive| match directive.kind {
            DirectiveKind::Set { name, value } => (name, value),
            DirectiveKind::Include(path) => ("<include>".into(), path),
            DirectiveKind::IncludeIfExists(path) => ("<if exists>".into(), path),
            DirectiveKind::IncludeDir(path) => ("<dir>".into(), path),
        })
        .collect()
}

#[test]
fn lines() {
    let check = |line: &str, name: &str, value: &str| assert_eq!(pairs(line), [(name.to_owned(), value.to_owned())]);
    check("port = 5432", "port", "5432");
    check("port 5432 # comment", "port", "5432");
    check("  port=5432\r", "port", "5432");
    check("shared_buffers = 128MB", "shared_buffers", "128MB");
    check("x.y = on", "x.y", "on");
    check("a = 0x1F", "a", "0x1F");
    check("a = -1.5e-3", "a", "-1.5e-3");
    check("a = .5", "a", ".5");
    check("a = /nope".replace('/', "b/").as_str(), "a", "b/nope");
    check("a = 'it''s'", "a", "it's");
    check(r"a = 'it\'s \\ \n \101 \7'", "a", "it's \\ \n A \u{7}");
    check("a = ''", "a", "");
    check("a = '# not a comment'", "a", "# not a comment");
    check("a = 'é'", "a", "é");
    check("archive_command = 'pgkeep wal push %p'", "archive_command", "pgkeep wal push %p");
    check("Include 'x.conf'", "<include>", "x.conf");
    check("include_dir = 'conf.d'", "<dir>", "conf.d");
    check("include_if_exists 'x'", "<if exists>", "x");
    assert_eq!(pairs("\n# all\n   \t\r\n"), []);
}

#[test]
fn errors_are_collected() {
    let file = ConfFile::parse("a = 1\nb =\n= 2\nc = 1 2\nd = 'x\ne = 1.2MB\nf = /x\n1 = 2\ng = 3");
    let lines: Vec<_> = file.directives.iter().map(|directive| directive.line).collect();
    assert_eq!(lines, [1, 9]);
    assert_eq!(file.errors.len(), 7);
    assert!(file.errors[0].to_string().contains("line 2"));
    assert_eq!(ConfFile::parse(&"=\n".repeat(1000)).errors.len(), 100);
}

#[test]
fn the_last_one_counts() {
    let file = ConfFile::parse("a = 1\nA = 2\n");
    assert_eq!(file.get("a"), Some("2"));
    assert_eq!(file.get("b"), None);
}

#[test]
fn edits() {
    let text = "# Do not edit\na = 1\nb = 2\n A 'x' # why\nbroken =\n";
    assert_eq!(set(text, "a", "it's").unwrap(), "# Do not edit\nb = 2\nbroken =\na = 'it''s'\n");
    assert_eq!(set("", "a", "").unwrap(), "a = ''\n");
    assert_eq!(set("b = 1", "a", "2").unwrap(), "b = 1\na = '2'\n");
    assert_eq!(
        comment_out(text, "a", "by\nrestore"),
        "# Do not edit\n#a = 1  # by restore\nb = 2\n# A 'x' # why  # by restore\nbroken =\n"
    );
    assert_eq!(comment_out("a = 1\r\n", "a", ""), "#a = 1\r\n");
    for bad in ["", "a b", "a = 1\nb", "1a", "a.b.c", "a#", "a'"] {
        assert!(set(text, bad, "1").is_err(), "{bad}");
    }
    assert!(set(text, "a", "\0").is_err());
}

#[test]
fn values() {
    assert_eq!(parse_memory_bytes("128MB", 8192), Some(128 << 20));
    assert_eq!(parse_memory_bytes("16", 8192), Some(131_072));
    assert_eq!(parse_memory_bytes("1.5 GB", 1), Some(3 << 29));
    assert_eq!(parse_memory_bytes("1mb", 1), None);
    assert_eq!(parse_memory_bytes("-1", 1), Some(-1));
    assert_eq!(parse_time_micros("5min", 1_000_000), Some(300_000_000));
    assert_eq!(parse_time_micros("60", 1_000_000), Some(60_000_000));
    for (value, expect) in [
        ("on", Some(true)),
        ("T", Some(true)),
        ("o", None),
        ("of", Some(false)),
        ("n", Some(false)),
        ("", None),
        ("ont", None),
    ] {
        assert_eq!(parse_bool(value), expect, "{value}");
    }
}

proptest! {
    #[test]
    fn quoted_values_come_back(value in "[^\0]*", name in "[a-z_][a-z0-9_]{0,8}") {
        prop_assume!(!name.starts_with("include"));
        let text = set("x = 1\n", &name, &value).unwrap();
        let file = ConfFile::parse(&text);
        prop_assert!(file.errors.is_empty());
        prop_assert_eq!(file.get(&name), Some(value.as_str()));
    }

    #[test]
    fn never_panics(text in "([a-z.0-9x+=' \\\\é#-]{0,12}\n){0,5}.*") {
        let _ = ConfFile::parse(&text);
        let _ = comment_out(&text, "a", &text);
        let _ = parse_memory_bytes(&text, 1);
    }
}
