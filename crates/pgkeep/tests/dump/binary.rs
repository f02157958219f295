//! Rows in binary form: where it is sound, and back text for text; where only text will do it is said.

use super::{as_text, same, site};
use crate::support::Site;

/// A column of each of PostgreSQL's own types that can be in a table, with odd values.
const TYPES: &str = r#"
CREATE DOMAIN public.short AS varchar(9); CREATE DOMAIN public.shorter AS public.short CHECK (VALUE <> 'no');
CREATE TABLE public.types (a bool, b bytea, c "char", d name, e int8, f int2, g int4, h text, i oid, j json, k point, l lseg,
  m path, n box, o polygon, p line, q cidr, r float4, s float8, t circle, u macaddr8, v macaddr, w inet, x char(5), y varchar(7),
  z date, aa time, ab timestamp, ac timestamptz, ad interval, ae timetz, af bit(3), ag varbit, ah numeric, ai uuid, aj pg_lsn,
  ak tsvector, al tsquery, am jsonb, an int4range, ao numrange, ap tstzrange, aq daterange, ar jsonpath, "as" int4multirange,
  at xid8, au int[], av text[][], aw public.shorter, ax app.mood, ay numeric(8,-2)[], az box[], xid xid);
INSERT INTO public.types DEFAULT VALUES;
INSERT INTO public.types VALUES (true, '\x00ff0a5c', '\200', 'name', -9223372036854775808, -32768, 2147483647, E'tab\t line\n back\\ ü \\N',
  4294967295, '{"a" : [1, null]}', '(1,-0)', '[(0,0),(1,NaN)]', '[(1,2),(3,4)]', '((1,2),(3,4))', '((0,0),(1,1),(2,0))', '{1,2,3}',
  '10.0.0.0/8', 'NaN', '1e-307', '<(1,2),3>', '08:00:2b:01:02:03:04:05', '08:00:2b:01:02:03', '::1/64', 'ab', 'abc', 'infinity',
  '24:00:00', '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999+00', '-178000000 years 3 mons -4 days 05:06:07.000008',
  '00:00:00+15:59', B'101', B'', 'NaN', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'FFFFFFFF/FFFFFFFF',
  'a:1A,2B fat', 'fat & (rat | !cat:*)', '{"b": [1.50, "\u00fc"], "a": {}}', '[1,5)', 'empty', '(,2020-01-01 00:00+00]',
  '[2020-01-01,)', '$.a[*] ? (@ > 1)', '{[1,2),[5,9)}', '18446744073709551615', '[2:3]={1,NULL}', '{{a,"b,{}"},{NULL,""}}',
  'yes', 'happy', '{1234567,100}', '{(1,1),(0,0);(2,2),(1,1)}', '7');
INSERT INTO public.types (ah, r, s, ad) VALUES ('-0.00000000000000000001', '-Infinity', 0.1, '0'), (1e1000, 1.1, '-0', '1 mon');
CREATE TABLE public.by_oid (a regclass, b regtype[]); INSERT INTO public.by_oid VALUES ('app.people', '{app.mood}');
CREATE TABLE public.composed (a app.pair); INSERT INTO public.composed VALUES ('(1,x)');
CREATE TABLE public.moods (a app.mood[]); INSERT INTO public.moods VALUES ('{sad,ok}');
CREATE TABLE public.marked (a xml, b int); INSERT INTO public.marked VALUES ('<a>ü</a>', 1);
"#;

#[test]
fn rows_in_binary_form_come_back_text_for_text() {
    let site = site();
    site.cluster.psql_db("origin", TYPES).unwrap();
    let origin = as_text(&site, "origin");
    let args = ["dump", "-d", "origin", "--copy-format", "binary", "--part-size", "1MB", "-j", "3", "--json"];
    let made = site.run(&args).expect(0).json();
    let id = made["dump"].as_str().unwrap();
    let shown = site.run(&["show", id, "--json"]).expect(0).json();
    let data = shown["dump"]["databases"][0]["data"].as_array().unwrap();
    let kind = |name: &str| data.iter().find(|data| data["name"] == name).unwrap()["kind"].as_str().unwrap().to_owned();
    for name in ["types", "big", "nothing", "events_2020", "empty", "orders"] {
        assert_eq!(kind(name), "table-binary", "{name}");
    }
    for name in ["people", "by_oid", "composed", "moods", "marked"] {
        assert_eq!(kind(name), "table", "{name}: its types' bytes say too little");
    }
    assert_eq!(
        made["databases"][0]["tables_binary"],
        data.iter().filter(|data| data["kind"] == "table-binary").count()
    );
    let said = site.run(&["show", id, "--files"]).expect(0);
    assert!(said.stdout.contains("in binary form)"), "{}", said.stdout);
    let big = data.iter().find(|data| data["name"] == "big").unwrap();
    assert!(big["parts"].as_array().unwrap().len() > 2, "{big}");
    assert_eq!(big["rows"].to_string(), site.cluster.psql_db("origin", "SELECT count(*) FROM app.big").unwrap());

    let postgres = site.cluster.conninfo();
    for (name, workers) in [("copy1", "1"), ("copy2", "4")] {
        site.run(&["load", id, "--into", &postgres, "--create", name, "-j", workers]).expect(0);
        same(name, &origin, &as_text(&site, name));
    }
    let read = site.run(&["verify", id, "--json"]).expect(0).json();
    assert_eq!(read["rows"], made["databases"][0]["rows"].as_u64().unwrap() + 3, "and three large objects: {read}");
    let deep = site.run(&["verify", id, "--deep", "--into", &postgres, "--json"]).expect(0).json();
    let deep = &deep["deep"]["databases"][0];
    assert_eq!((&deep["differences"], &deep["tables"]), (&serde_json::json!([]), &deep["tables_summed"]), "{deep}");

    // Where only text will do.
    let out = site.path("out");
    for format in ["custom", "directory", "tar", "plain"] {
        let said = site.run(&["export", id, "--to", &out, "--format", format]).expect(1);
        said.says(&["binary form", "--copy-format text"]);
    }
    assert!(!std::path::Path::new(&out).exists());
    let once = ["load", id, "--into", &postgres, "--create", "copy3", "--single-transaction"];
    site.run(&once).expect(1).says(&["binary form", "without --single-transaction"]);
    site.run(&["dump", "--copy-format", "binary", "--format", "custom", "--to", &out]).expect(2);
}

#[test]
fn older_versions_and_other_encodings_get_text() {
    let site = Site::bare();
    site.init(&[]).expect(0);
    site.cluster.sql("CREATE TABLE t AS SELECT 1 AS a, 'ü'::text AS b").unwrap();
    site.cluster.sql("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").unwrap();
    site.cluster.psql_db("latin", "CREATE TABLE t AS SELECT chr(252)::text AS b").unwrap();
    site.cluster
        .sql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        .unwrap();
    site.cluster.psql_db("bytes", r"CREATE TABLE t (b text); COPY t FROM PROGRAM 'printf ''\374\n'''").unwrap();
    let dump = |database: &str| {
        let made = site.run(&["dump", "-d", database, "--copy-format", "binary", "--json"]).expect(0).json();
        (made["dump"].as_str().unwrap().to_owned(), made["databases"][0]["tables_binary"].clone())
    };
    let postgres = site.cluster.conninfo();
    let (latin, binary) = dump("latin");
    assert_eq!(binary, 1, "its text comes as UTF-8");
    site.run(&["load", &latin, "--into", &postgres, "--create", "latin2"]).expect(0);
    let same = "SELECT ascii(b), length(b), pg_encoding_to_char(encoding) FROM t, pg_database WHERE datname = current_database()";
    assert_eq!(site.cluster.psql_db("latin2", same).unwrap(), "252|1|LATIN1");
    let (bytes, binary) = dump("bytes");
    assert_eq!(binary, 0, "bytes of no encoding stay as they are, in text");
    site.run(&["load", &bytes, "--into", &postgres, "--create", "bytes2"]).expect(0);
    assert_eq!(site.cluster.psql_db("bytes2", "SELECT encode(b::bytea, 'hex') FROM t").unwrap(), "fc");

    let (id, binary) = dump("postgres");
    assert_eq!(binary, 1);
    let older = Site::bare_on(14);
    let said = site.run(&["load", &id, "--into", &older.cluster.conninfo()]).expect(1);
    said.says(&["binary form of PostgreSQL 15", "--copy-format text"]);
}
