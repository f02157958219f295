//! Tables of connection strings; the URIs and messages are those of PostgreSQL's src/interfaces/libpq/t/001_uri.pl.

use super::*;
use std::path::Path;

/// What a string says, in keyword order, with secrets shown.
fn said(text: &str) -> Result<String, ConninfoError> {
    let params = Params::parse(text)?;
    let shown =
        params.iter_shown().map(|(keyword, _)| format!("{keyword}={}", params.get(keyword).unwrap_or_default()));
    Ok(shown.collect::<Vec<_>>().join(" "))
}

#[test]
fn uris_of_libpq() {
    let table = [
        ("postgresql://uri-user:secret@host:12345/db", "dbname=db host=host password=secret port=12345 user=uri-user"),
        ("postgresql://uri-user@host:12345/db", "dbname=db host=host port=12345 user=uri-user"),
        ("postgresql://uri-user@host/db", "dbname=db host=host user=uri-user"),
        ("postgresql://host:12345/db", "dbname=db host=host port=12345"),
        ("postgresql://host/db", "dbname=db host=host"),
        ("postgresql://uri-user@host:12345/", "host=host port=12345 user=uri-user"),
        ("postgresql://uri-user@host/", "host=host user=uri-user"),
        ("postgresql://uri-user@", "user=uri-user"),
        ("postgresql://host:12345/", "host=host port=12345"),
        ("postgresql://host:12345", "host=host port=12345"),
        ("postgresql://host/", "host=host"),
        ("postgresql://host", "host=host"),
        ("postgresql://", ""),
        ("postgresql://?hostaddr=127.0.0.1", "hostaddr=127.0.0.1"),
        ("postgresql://example.com?hostaddr=63.1.2.4", "host=example.com hostaddr=63.1.2.4"),
        ("postgresql://%68ost/", "host=host"),
        ("postgresql://host/db?user=uri-user", "dbname=db host=host user=uri-user"),
        ("postgresql://host/db?user=uri-user&port=12345", "dbname=db host=host port=12345 user=uri-user"),
        ("postgresql://host/db?u%73er=someotheruser&port=12345", "dbname=db host=host port=12345 user=someotheruser"),
        ("postgresql://host:12345?user=uri-user", "host=host port=12345 user=uri-user"),
        ("postgresql://host?user=uri-user", "host=host user=uri-user"),
        ("postgresql://host?", "host=host"),
        ("postgresql://[::1]:12345/db", "dbname=db host=::1 port=12345"),
        ("postgresql://[::1]/db", "dbname=db host=::1"),
        ("postgresql://[2001:db8::1234]/", "host=2001:db8::1234"),
        ("postgresql://[200z:db8::1234]/", "host=200z:db8::1234"),
        ("postgresql://[::1]", "host=::1"),
        ("postgres://", ""),
        ("postgres:///", ""),
        ("postgres:///db", "dbname=db"),
        ("postgres://uri-user@/db", "dbname=db user=uri-user"),
        ("postgres://?host=/path/to/socket/dir", "host=/path/to/socket/dir"),
        ("postgres://@host", "host=host"),
        ("postgres://host:/", "host=host"),
        ("postgres://:12345/", "port=12345"),
        ("postgres://otheruser@?host=/no/such/directory", "host=/no/such/directory user=otheruser"),
        ("postgres://otheruser@/?host=/no/such/directory", "host=/no/such/directory user=otheruser"),
        ("postgres://otheruser@:12345?host=/no/such/socket", "host=/no/such/socket port=12345 user=otheruser"),
        ("postgres://otheruser@:12345/db?host=/s", "dbname=db host=/s port=12345 user=otheruser"),
        ("postgres://:12345/db?host=/s", "dbname=db host=/s port=12345"),
        ("postgres://:12345?host=/s", "host=/s port=12345"),
        ("postgres://%2Fvar%2Flib%2Fpostgresql/dbname", "dbname=dbname host=/var/lib/postgresql"),
        // Beyond that file: several hosts, empty parts, JDBC's ssl, the old requiressl.
        ("postgresql://a:1,b:2,[::1]:3/db", "dbname=db host=a,b,::1 port=1,2,3"),
        ("postgresql://a,b:2/db", "dbname=db host=a,b port=,2"),
        ("postgresql://u:p%40%2f%25@h", "host=h password=p@/% user=u"),
        ("postgresql://h?ssl=true", "host=h sslmode=require"),
        ("postgresql://h?requiressl=1", "host=h sslmode=require"),
    ];
    for (uri, expected) in table {
        assert_eq!(said(uri).as_deref(), Ok(expected), "{uri}");
    }
}

#[test]
fn bad_uris_of_libpq() {
    let unknown = |keyword: &str| ConninfoError::UnknownParameter { keyword: keyword.into(), nearest: Some("user") };
    let table = [
        ("postgresql://host/db?u%7aer=someotheruser&port=12345", unknown("uzer")),
        ("postgresql://host?uzer=", unknown("uzer")),
        ("postgre://", ConninfoError::MissingEquals { keyword: "postgre://".into() }),
        ("postgres://[::1", ConninfoError::UnclosedBracket),
        ("postgres://[]", ConninfoError::EmptyBracket),
        ("postgres://[::1]z", ConninfoError::AfterBracket { found: 'z', position: 17 }),
        ("postgresql://host?zzz", ConninfoError::NoEquals { keyword: "zzz".into() }),
        ("postgresql://host?value1&value2", ConninfoError::NoEquals { keyword: "value1".into() }),
        ("postgresql://host?key=key=value", ConninfoError::ExtraEquals { keyword: "key".into() }),
        ("postgres://host?dbname=%XXfoo", ConninfoError::BadPercent { part: "value of \"dbname\"".into() }),
        ("postgresql://a%00b", ConninfoError::PercentZero { part: "host".into() }),
        ("postgresql://%zz", ConninfoError::BadPercent { part: "host".into() }),
        ("postgresql://%1", ConninfoError::BadPercent { part: "host".into() }),
        ("postgresql://%", ConninfoError::BadPercent { part: "host".into() }),
    ];
    for (uri, expected) in table {
        assert_eq!(said(uri), Err(expected), "{uri}");
    }
}

#[test]
fn keyword_strings() {
    let table = [
        ("host=a port=1", "host=a port=1"),
        ("  host = a\tport\n=\n1 ", "host=a port=1"),
        ("dbname='a b' user='it\\'s' options='\\\\'", "dbname=a b options=\\ user=it's"),
        ("dbname=a\\ b", "dbname=a b"),
        ("dbname='' user=u", "dbname= user=u"),
        ("host=a host=b", "host=b"),
        ("dbname=a\\", "dbname=a"),
        ("dbname='a'user=u", "dbname=a user=u"),
        ("", ""),
    ];
    for (text, expected) in table {
        assert_eq!(said(text).as_deref(), Ok(expected), "{text}");
    }
    assert_eq!(said("host"), Err(ConninfoError::MissingEquals { keyword: "host".into() }));
    assert_eq!(said("host='a"), Err(ConninfoError::UnterminatedQuote));
    let unknown = said("databse=x").unwrap_err();
    assert_eq!(
        unknown,
        ConninfoError::UnknownKeyword { keyword: "databse".into(), nearest: keywords::nearest("databse") }
    );
    assert_eq!(keywords::nearest("sslmod"), Some("sslmode"));
    assert_eq!(keywords::nearest("dbnam"), Some("dbname"));
    assert_eq!(keywords::nearest("zzzzzz"), None);
}

#[test]
fn no_secret_is_shown() {
    for text in [
        "host=h password=hunter2 sslpassword=hunter2 user=u",
        "postgresql://u:hunter2@h/db",
        "postgresql://u@h/db?password=hunter2",
    ] {
        let params = Params::parse(text).unwrap();
        let resolved = params.resolve(&Surroundings::from_vars([("PGPASSWORD", "hunter2")])).unwrap();
        let shown = format!("{params} {params:?} {resolved} {resolved:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(resolved.to_string().contains("password=***"), "{resolved}");
    }
    for text in
        ["password=a hunter2", "postgre://u:hunter2@h", "postgresql://u:hunter2%zz@h", "host=h password='hunter2"]
    {
        let error = Params::parse(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let vars = Surroundings::from_vars([("PGPASSWORD", "hunter2"), ("HOME", "/x")]);
    assert!(!format!("{vars:?}").contains("hunter2"));
    assert_eq!(vars.var("HOME"), None, "only PG* is kept");
}

#[test]
fn precedence_is_string_service_environment_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("services");
    std::fs::write(
        &file,
        "# comment\n[other]\nhost=no\n[s]\nhost=from-service\nport=2\ndbname=from-service\n[t]\nport=9\n",
    )
    .unwrap();
    let vars = [
        ("PGSERVICEFILE", file.to_str().unwrap()),
        ("PGHOST", "from-env"),
        ("PGPORT", "3"),
        ("PGUSER", "from-env"),
        ("PGAPPNAME", "app"),
    ];
    let around = Surroundings::from_vars(vars);
    let got = Conninfo::parse("service=s dbname=explicit", &around).unwrap();
    assert_eq!(got.dbname, "explicit");
    assert_eq!(got.hosts[0].address, Address::Name("from-service".into()));
    assert_eq!(got.hosts[0].port, 2);
    assert_eq!(got.user, "from-env");
    assert_eq!(got.application_name(), Some("app"));
    assert_eq!(got.sslmode, SslMode::Prefer);
    let got = Conninfo::parse("", &around).unwrap();
    assert_eq!((got.hosts[0].port, got.dbname.as_str()), (3, "from-env"));
    let missing = Conninfo::parse("service=nosuch", &around).unwrap_err();
    assert!(
        matches!(&missing, ConninfoError::ServiceNotFound { service, looked_in } if service == "nosuch" && looked_in == std::slice::from_ref(&file))
    );
    let again = got.with(&[("dbname", "x")], &around).unwrap();
    assert_eq!((again.dbname.as_str(), again.hosts[0].port), ("x", 3));
    // The home directory's file, then the system's.
    std::fs::write(dir.path().join(".pg_service.conf"), "[h]\nuser=home\n").unwrap();
    let sys = dir.path().join("sys");
    std::fs::create_dir(&sys).unwrap();
    std::fs::write(sys.join("pg_service.conf"), "[h]\nuser=system\n[y]\nuser=system\n").unwrap();
    let around =
        Surroundings::from_vars([("PGSYSCONFDIR", sys.to_str().unwrap())]).with_home(dir.path()).with_user("me");
    assert_eq!(Conninfo::parse("service=h", &around).unwrap().user, "home");
    assert_eq!(Conninfo::parse("service=y", &around).unwrap().user, "system");
    assert_eq!(Conninfo::parse("", &around).unwrap().user, "me");
    assert_eq!(Conninfo::parse("", &Surroundings::none()).unwrap_err(), ConninfoError::NoUser);
}

#[test]
fn bad_service_files() {
    let check = |text: &str, line: usize| {
        let error = service::parse(text, Path::new("f"), "s", &mut Params::default()).unwrap_err();
        assert!(matches!(error, ConninfoError::ServiceSyntax { line: at, .. } if at == line), "{text:?}: {error}");
    };
    check("[s]\nhost\n", 2);
    check("[s]\n\n#\nhots=x\n", 4);
    check("[s]\nservice=t\n", 2);
    check("[s]\nldap://x\n", 2);
    assert_eq!(service::parse("[t]\nrubbish\n", Path::new("f"), "s", &mut Params::default()), Ok(false));
}

#[test]
fn passfile_lines() {
    let text = "# h:1:d:u:comment\nh:1:d:u:one\nh:*:d:u:two\n::1:5432:d:u:never\n\\:\\:1:5432:d:u:six\n*:*:*:u2:a\\:b\\\\c:rest\nlocalhost:5432:*:*:sock\n\nshort:1\n";
    let find = |host: &str, port: &str, dbname: &str, user: &str| {
        find_password(text, PassfileKey { host, port, dbname, user }).map(|secret| secret.expose().to_owned())
    };
    assert_eq!(find("h", "1", "d", "u").as_deref(), Some("one"));
    assert_eq!(find("h", "2", "d", "u").as_deref(), Some("two"));
    assert_eq!(find("::1", "5432", "d", "u").as_deref(), Some("six"));
    assert_eq!(find("x", "1", "y", "u2").as_deref(), Some("a:b\\c"));
    assert_eq!(find("localhost", "5432", "y", "z").as_deref(), Some("sock"));
    assert_eq!(find("h", "1", "d", "u1"), None);
    assert_eq!(find("H", "1", "d", "u"), None);
    assert_eq!(find("shor", "1", "d", "u"), None);
}

#[test]
fn passfile_permissions_and_hosts() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".pgpass");
    std::fs::write(&file, "a:1:d:u:pa\nb:2:d:u:pb\nlocalhost:5432:d:u:pl\n10.0.0.1:5432:d:u:pi\n").unwrap();
    let around = Surroundings::none().with_home(dir.path());
    let passwords = |text: &str| {
        let got = Conninfo::parse(&format!("{text} user=u dbname=d"), &around).unwrap();
        let found =
            got.hosts.iter().map(|host| host.password.as_ref().map(|p| p.expose().to_owned())).collect::<Vec<_>>();
        (found, got.warnings.len(), got.passfile.is_some())
    };
    let some = |text: &str| Some(text.to_owned());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(passwords("host=a,b,c port=1,2,3"), (vec![some("pa"), some("pb"), None], 0, true));
    assert_eq!(passwords("host=a port=1 password=x"), (vec![some("x")], 0, false));
    assert_eq!(passwords(""), (vec![some("pl")], 0, true));
    assert_eq!(passwords("host=/tmp"), (vec![some("pl")], 0, true));
    assert_eq!(passwords("host=/elsewhere"), (vec![None], 0, false));
    assert_eq!(passwords("hostaddr=10.0.0.1"), (vec![some("pi")], 0, true));
    for mode in [0o640, 0o604, 0o610, 0o660] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(passwords("host=a port=1"), (vec![None], 1, false), "{mode:o}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(passwords("host=a port=1"), (vec![None], 0, false));
    std::fs::create_dir(&file).unwrap();
    assert_eq!(passwords("host=a port=1"), (vec![None], 1, false));
}

#[test]
fn settings_are_checked() {
    let resolve = |text: &str| Conninfo::parse(&format!("user=u {text}"), &Surroundings::none());
    for bad in [
        "sslmode=maybe",
        "port=0",
        "port=65536",
        "port=x",
        "hostaddr=name",
        "connect_timeout=x",
        "replication=maybe",
        "target_session_attrs=best",
        "load_balance_hosts=yes",
        "channel_binding=always",
        "gssencmode=require",
        "gssencmode=x",
        "sslnegotiation=direct",
        "sslrootcert=system sslmode=require",
        "host=a,b port=1,2,3",
        "host=a hostaddr=1.1.1.1,2.2.2.2",
        "require_auth=md5,md5",
        "require_auth=md5,!password",
        "require_auth=!md5,password",
        "require_auth=x",
        "sslcertmode=x",
        "ssl_min_protocol_version=SSLv3",
        "ssl_max_protocol_version=TLSv1.1",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "keepalives_idle=x",
    ] {
        assert!(resolve(bad).is_err(), "{bad}");
    }
    let good = resolve("host=a,,/s,@abs port=1 connect_timeout=1 sslrootcert=system keepalives_idle=7").unwrap();
    let addresses: Vec<_> = good.hosts.iter().map(|host| host.address.clone()).collect();
    let (a, s, abs) = ("a".to_owned(), "/s".to_owned(), "@abs".to_owned());
    assert_eq!(
        addresses,
        [Address::Name(a), Address::DefaultSocketDirs, Address::SocketDir(s), Address::SocketDir(abs)]
    );
    assert!(good.hosts.iter().all(|host| host.port == 1));
    assert_eq!(good.connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(good.sslmode, SslMode::VerifyFull);
    assert_eq!(good.keepalives.idle, Some(Duration::from_secs(7)));
    assert_eq!(resolve("connect_timeout=0").unwrap().connect_timeout, None);
    assert_eq!(resolve("connect_timeout=-1").unwrap().connect_timeout, None);
    assert_eq!(resolve("replication=on").unwrap().replication, ReplicationMode::Physical);
    assert_eq!(resolve("host=h port=1,").unwrap_err().to_string(), "could not match 2 port numbers to 1 hosts");
    for (text, mode) in [("sslmode=disable", SslMode::Disable), ("", SslMode::VerifyFull)] {
        // PGSSLROOTCERT=system strengthens the default only.
        let around = Surroundings::from_vars([("PGSSLROOTCERT", "system"), ("PGUSER", "u")]);
        match Conninfo::parse(text, &around) {
            Ok(got) => assert_eq!(got.sslmode, mode),
            Err(error) => assert_eq!(mode, SslMode::Disable, "{error}"),
        }
    }
}

proptest::proptest! {
    #[test]
    fn parsing_never_panics(text in ".{0,80}", tail in "[%@:/?&=\\[\\],'\\\\a-f0-9 ]{0,60}") {
        let _ = Params::parse(&text);
        let _ = Params::parse(&tail);
        if let Ok(params) = Params::parse(&format!("postgresql://{tail}")) {
            let _ = params.resolve(&Surroundings::none());
        }
        let _ = service::parse(&text, Path::new("f"), "s", &mut Params::default());
        let _ = service::parse(&format!("[s]\n{tail}"), Path::new("f"), "s", &mut Params::default());
        let _ = find_password(&tail, PassfileKey { host: "a", port: "1", dbname: "b", user: "c" });
    }

    #[test]
    fn keyword_strings_round_trip(values in proptest::collection::vec("[^\0]{0,20}", 3)) {
        let mut params = Params::default();
        for (keyword, value) in ["dbname", "options", "user"].iter().zip(&values) {
            params.set(keyword, value.as_str()).unwrap();
        }
        proptest::prop_assert_eq!(Params::parse(&params.to_string()).unwrap(), params);
    }

    #[test]
    fn uris_round_trip(user in "[^\0]{1,12}", password in "[^\0]{1,12}", dbname in "[^\0]{1,12}") {
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let uri = format!("postgresql://{}:{}@h/{}", encode(&user), encode(&password), encode(&dbname));
        let params = Params::parse(&uri).unwrap();
        proptest::prop_assert_eq!(params.get("user"), Some(user.as_str()));
        proptest::prop_assert_eq!(params.get("password"), Some(password.as_str()));
        proptest::prop_assert_eq!(params.get("dbname"), Some(dbname.as_str()));
    }
}
