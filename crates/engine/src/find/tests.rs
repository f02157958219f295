//! Names and what transactions did to them, without a server.

use super::classify::{Thresholds, hits};
use super::doubt::Doubt;
use super::fold::{Folded, RowEvent, Touched, Verb, What};
use super::names::Names;
use super::types::{EventKind, ObjectKind};
use super::walk::Done;
use pg_format::{Fork, Lsn, Timeline};
use pg_wal::index::{Catalog, ClassRow, Outcome, TupleId, XactEndFacts};
use pg_wal::{Oid, RelFileLocator, TimestampTz};
use repo::manifest::NameEntry;

const DATABASE: Oid = Oid(5);
const SCHEMA: Oid = Oid(16390);

fn entry(relfilenode: u32, oid: u32, kind: u8, schema: &str, name: &str) -> NameEntry {
    let tablespace = if kind == b'n' { 0 } else { 1663 };
    NameEntry { database: 5, tablespace, relfilenode, oid, kind, schema: schema.into(), name: name.into() }
}

fn known() -> Names {
    let mut names = Names::default();
    names.load(vec![entry(0, 0, 0, "", "shop"), entry(16400, 16400, b'r', "sales", "orders")]);
    names
}

fn row(oid: u32, name: &str, relfilenode: u32) -> ClassRow {
    ClassRow {
        oid: Oid(oid),
        name: name.into(),
        namespace: SCHEMA,
        relfilenode,
        tablespace: Oid(0),
        pages: 3,
        tuples: Some(7),
        persistence: b'p',
        kind: b'r',
    }
}

fn event(lsn: u64, verb: Verb, old: Option<ClassRow>, new: Option<ClassRow>) -> RowEvent {
    let at = TupleId { block: 0, offset: 1 };
    RowEvent { lsn: Lsn(lsn), database: DATABASE, at, verb, what: What::Class { old, new, touched: Touched::All } }
}

fn schema_event(lsn: u64, verb: Verb, old: Option<(Oid, &str)>, new: Option<(Oid, &str)>) -> RowEvent {
    let named = |row: Option<(Oid, &str)>| row.map(|(oid, name)| (oid, name.into()));
    let what = What::Named { catalog: Catalog::Namespace, old: named(old), new: named(new) };
    RowEvent { lsn: Lsn(lsn), database: DATABASE, at: TupleId { block: 0, offset: 1 }, verb, what }
}

fn file(relfilenode: u32) -> RelFileLocator {
    RelFileLocator { tablespace: Oid(1663), database: DATABASE, relfilenode }
}

/// Kind and objects of what a transaction did.
fn told(names: &mut Names, events: &[RowEvent], dropped: &[RelFileLocator]) -> Vec<(EventKind, Vec<String>)> {
    let folded = Folded::of(events, names);
    events.iter().for_each(|event| names.apply(event));
    let end = XactEndFacts {
        outcome: Outcome::Commit,
        lsn: Lsn(1000),
        time: TimestampTz(0),
        prepared: false,
        database: None,
        subxacts: Box::default(),
        dropped: dropped.into(),
    };
    let done = Done {
        xid: 700,
        end: &end,
        prepared: None,
        first: None,
        bytes: 0,
        work: &[],
        marks: &[],
        folded: (!events.is_empty()).then_some(&folded),
    };
    let thresholds = Thresholds { rows: 1000, load_rows: 1000, all: false };
    let hits = hits(&done, names, Timeline(1), &thresholds);
    hits.into_iter().map(|hit| (hit.kind, hit.objects.iter().map(ToString::to_string).collect())).collect()
}

#[test]
fn a_schema_is_known_by_a_relation_in_it() {
    let mut names = known();
    let late = || row(16500, "late", 16500);
    names.apply(&event(10, Verb::Insert, None, Some(late())));
    assert_eq!(names.object_of_file(&file(16500)).to_string(), "shop.[schema 16390].late");
    // Something is done to a relation of which a backup said where it lies.
    names.apply(&event(20, Verb::Update, Some(row(16400, "orders", 16400)), Some(row(16400, "old", 16400))));
    assert_eq!(names.object_of_file(&file(16500)).to_string(), "shop.sales.late");
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.sales.old");
    // Rows from before the names were read say nothing of them.
    let mut names = known();
    names.sure_from = Lsn(30);
    names.apply(&event(20, Verb::Update, Some(row(16400, "orders", 16400)), Some(row(16400, "orders", 16400))));
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.[schema 16390].orders");
    // A backup that names schemas needs none of this.
    names.load(vec![entry(SCHEMA.0, SCHEMA.0, b'n', "", "named")]);
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.named.orders");
}

#[test]
fn what_is_not_known_is_a_number() {
    let mut names = known();
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.sales.orders");
    names.file_made(&file(16400), Fork::Fsm);
    assert_eq!(names.object_of_file(&file(16400)).kind, ObjectKind::Table);
    names.file_made(&file(16400), Fork::Main);
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.[file 1663/5/16400]");
    names.clear(Lsn(9));
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "[database 5].[file 1663/5/16400]");
}

#[test]
fn a_new_file_is_a_truncate_a_rewrite_or_nothing() {
    let orders = || vec!["shop.sales.orders".to_owned()];
    let moved = |lsn| event(lsn, Verb::Update, Some(row(16400, "orders", 16400)), Some(row(16400, "orders", 16600)));
    assert_eq!(told(&mut known(), &[moved(10)], &[file(16400)]), [(EventKind::Truncate, orders())]);
    // The old version is not known, but a backup knows whose file it was.
    let blind = event(10, Verb::Update, None, Some(row(16400, "orders", 16600)));
    let mut names = known();
    names.load(vec![entry(SCHEMA.0, SCHEMA.0, b'n', "", "sales")]);
    assert_eq!(told(&mut names, &[blind], &[file(16400)]), [(EventKind::Truncate, orders())]);
    let passing = || row(16600, "pg_temp_16400", 16600);
    let rewrite =
        [event(5, Verb::Insert, None, Some(passing())), moved(10), event(15, Verb::Delete, Some(passing()), None)];
    assert_eq!(told(&mut known(), &rewrite, &[file(16400)]), [(EventKind::Rewrite, orders())]);
    let came_and_went = [
        event(5, Verb::Insert, None, Some(row(16700, "short", 16700))),
        event(15, Verb::Delete, Some(row(16700, "short", 16700)), None),
    ];
    assert_eq!(told(&mut known(), &came_and_went, &[file(16700)]), []);
    let passing_table = ClassRow { persistence: b't', ..row(16400, "orders", 16400) };
    assert_eq!(told(&mut known(), &[event(5, Verb::Delete, Some(passing_table), None)], &[]), []);
}

#[test]
fn a_name_of_after_is_not_one_of_before() {
    let renamed = |oid, lsn| event(lsn, Verb::Update, None, Some(row(oid, "later", oid)));
    let dropped = |oid, lsn| event(lsn, Verb::Delete, Some(row(oid, "later", oid)), None);
    // The row of before is not known: what a backup says holds, or nothing.
    let of = |oid| told(&mut known(), &[renamed(oid, 5), dropped(oid, 10)], &[file(oid)]);
    assert_eq!(of(16400), [(EventKind::Drop, vec!["shop.sales.orders".to_owned()])]);
    assert_eq!(of(16401), [(EventKind::Drop, vec!["shop.[table 16401]".to_owned()])]);
}

#[test]
fn a_drop_that_the_catalogs_do_not_tell_is_files_removed() {
    assert_eq!(
        told(&mut known(), &[], &[file(16400), file(16401)]),
        [(EventKind::FilesRemoved, vec!["shop.sales.orders".to_owned(), "shop.[file 1663/5/16401]".to_owned()])]
    );
    let unknown = event(5, Verb::Delete, None, None);
    let expected = vec!["shop.sales.orders".to_owned()];
    assert_eq!(told(&mut known(), &[unknown], &[file(16400)]), [(EventKind::FilesRemoved, expected.clone())]);
    let drop = event(5, Verb::Delete, Some(row(16400, "orders", 16400)), None);
    assert_eq!(told(&mut known(), &[drop], &[file(16400)]), [(EventKind::Drop, expected)]);
    // What PostgreSQL does to its own catalogs is no mistake of anybody's.
    assert_eq!(told(&mut known(), &[], &[file(1259)]), []);
}

#[test]
fn relations_follow_their_schema() {
    let orders = |names: &Names| names.object_of_file(&file(16400)).to_string();
    // A backup told the schema by name only.
    let mut names = known();
    names.apply(&schema_event(10, Verb::Update, Some((SCHEMA, "sales")), Some((SCHEMA, "sold"))));
    assert_eq!(orders(&names), "shop.sold.orders");
    // Which one was renamed is not known: any of them may be it.
    let mut names = known();
    names.apply(&schema_event(10, Verb::Update, None, Some((SCHEMA, "sold"))));
    assert_eq!(orders(&names), "shop.orders");
    let mut names = known();
    names.apply(&schema_event(10, Verb::Update, Some((SCHEMA, "sales")), None));
    assert_eq!(orders(&names), "shop.orders");
    assert_eq!(names.doubts.len(), 1);
    // A new database's public is called so, unless a model was changed.
    let late = ClassRow { namespace: Oid(2200), ..row(16500, "late", 16500) };
    let mut names = known();
    names.apply(&event(10, Verb::Insert, None, Some(late.clone())));
    assert_eq!(names.object_of_file(&file(16500)).to_string(), "shop.public.late");
    names.apply(&schema_event(20, Verb::Update, None, Some((Oid(2200), "private"))));
    assert_eq!(names.object_of_file(&file(16500)).to_string(), "shop.private.late");
    let mut names = known();
    names.load(vec![entry(2200, 2200, b'n', "", "private")]);
    assert!(names.schema(Oid(7), Oid(2200)).is_none());
}

#[test]
fn schemas_that_are_out_of_sight_have_no_names() {
    let mut names = known();
    names.load(vec![entry(2200, 2200, b'n', "", "public")]);
    names.lose_sight_of_schemas(Oid(5), Lsn(10));
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.orders");
    assert!(names.schema(Oid(5), Oid(2200)).is_none());
    // A backup that was made meanwhile knows how relations are called, and how schemas were called when it was made.
    let meanwhile = |names: &Names, from, to| {
        let any = |lies: &dyn Fn(&Doubt) -> bool| names.doubts.iter().any(lies);
        let (from, to) = (Lsn(from), Lsn(to));
        (any(&|it| it.lies_between(from, to, Oid(5))), any(&|it| it.schemas_lie_between(from, to, Oid(5))))
    };
    assert_eq!(meanwhile(&names, 20, 30), (false, true));
    assert_eq!(meanwhile(&names, 5, 30), (true, true));
    assert_eq!(meanwhile(&names, 5, 9), (false, false));
    names.see_schemas(Oid(7), Lsn(40));
    assert_eq!(meanwhile(&names, 50, 60), (false, true));
    names.see_schemas(Oid(5), Lsn(40));
    assert_eq!(meanwhile(&names, 50, 60), (false, false));
    assert_eq!(meanwhile(&names, 30, 60), (false, true));
}

#[test]
fn a_database_that_is_written_page_by_page_may_have_its_schemas_anywhere() {
    let public = |names: &Names| names.schema(Oid(7), Oid(2200)).is_some();
    let mut names = known();
    assert!(public(&names));
    names.database_written(Oid(7));
    assert!(!public(&names));
    let catalog = |relfilenode| RelFileLocator { tablespace: Oid(1663), database: Oid(7), relfilenode };
    names.file_made(&catalog(1259), Fork::Main);
    assert!(!public(&names));
    names.file_made(&catalog(2615), Fork::Main);
    assert!(public(&names));
}

#[test]
fn what_changed_in_an_unknown_way_loses_its_name() {
    let orders = |names: &Names| names.object_of_file(&file(16400)).to_string();
    let update = |touched, old| {
        let mut event = event(10, Verb::Update, old, None);
        event.what = match event.what {
            What::Class { old, new, .. } => What::Class { old, new, touched },
            other => other,
        };
        event
    };
    for (touched, old, expect) in [
        (Touched::Nothing, None, "shop.sales.orders"),
        // Its name stays, and the file that it had is still known to be its own.
        (Touched::File, None, "shop.sales.orders"),
        (Touched::All, None, "shop.[file 1663/5/16400]"),
        (Touched::All, Some(row(16400, "orders", 16400)), "shop.[file 1663/5/16400]"),
        (Touched::All, Some(row(16401, "other", 16401)), "shop.sales.orders"),
    ] {
        let mut names = known();
        names.apply(&update(touched, old.clone()));
        assert_eq!(orders(&names), expect, "{touched:?} {old:?}");
    }
    // What happened before the backup is in its names.
    let mut names = known();
    names.from = Lsn(20);
    names.apply(&update(Touched::All, None));
    assert_eq!(orders(&names), "shop.sales.orders");
}

#[test]
fn a_database_that_moves_or_is_copied_keeps_its_names() {
    let mut names = known();
    names.database_moved(DATABASE, Oid(1663), Oid(16399));
    let moved = RelFileLocator { tablespace: Oid(16399), ..file(16400) };
    assert_eq!(names.object_of_file(&moved).to_string(), "shop.sales.orders");
    assert_eq!(names.home(DATABASE), Some(Oid(16399)));
    let mut names = known();
    names.database_copied((DATABASE, Oid(1663)), (Oid(9), Oid(1663)));
    let copied = RelFileLocator { database: Oid(9), ..file(16400) };
    assert_eq!(names.object_of_file(&copied).label(), "sales.orders");
    assert_eq!(names.object_of_file(&file(16400)).to_string(), "shop.sales.orders");
}

#[test]
fn names_are_those_of_before_the_transaction() {
    let renamed = event(5, Verb::Update, Some(row(16400, "orders", 16400)), Some(row(16400, "gone", 16400)));
    let drop = event(15, Verb::Delete, Some(row(16400, "gone", 16400)), None);
    let expected = vec!["shop.sales.orders".to_owned()];
    assert_eq!(told(&mut known(), &[renamed.clone(), drop], &[file(16400)]), [(EventKind::Drop, expected.clone())]);
    let schema = schema_event(3, Verb::Update, Some((SCHEMA, "sales")), Some((SCHEMA, "sold")));
    let drop = event(15, Verb::Delete, Some(row(16400, "orders", 16400)), None);
    assert_eq!(told(&mut known(), &[schema, drop], &[file(16400)]), [(EventKind::Drop, expected)]);
}

#[test]
fn a_file_that_another_relation_filled_is_a_rewrite() {
    let mut names = known();
    names.load(vec![entry(16700, 16700, b'r', "repack", "table_16400")]);
    let swap = event(10, Verb::Update, Some(row(16400, "orders", 16400)), Some(row(16400, "orders", 16700)));
    let expected = vec!["shop.sales.orders".to_owned()];
    assert_eq!(told(&mut names, &[swap], &[]), [(EventKind::Rewrite, expected)]);
}

#[test]
fn large_objects_are_users_data() {
    let names = known();
    assert!(names.is_systems(&file(1259)) && !names.is_systems(&file(2613)) && !names.is_systems(&file(16400)));
    assert_eq!(names.object_of_file(&file(2613)).to_string(), "shop.pg_catalog.pg_largeobject");
}

#[test]
fn a_passing_table_gives_its_file_away_without_its_name() {
    let mut names = known();
    names.apply(&event(5, Verb::Insert, None, Some(row(16600, "pg_temp_16400", 16600))));
    assert_eq!(names.object_of_file(&file(16600)).to_string(), "shop.[file 1663/5/16600]");
    // A relation map tells where a catalog lies: what is done to it is no user's.
    names.catalog_moved(DATABASE, Oid(1259), 16700);
    assert!(names.is_systems(&file(16700)) && !names.is_systems(&file(16600)));
}
