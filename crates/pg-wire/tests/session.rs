//! Sessions with real servers: queries, streams, COPY, cancellation, death, replication commands.

mod common;

use bytes::Bytes;
use common::{Server, must_connect, must_fail};
use futures::StreamExt;
use pg_wire::{BaseBackupOptions, BaseBackupPart, ReplicationMessage, StandbyStatus, TransactionStatus, WireError};
use std::time::Duration;

#[tokio::test]
async fn simple_and_extended_queries() {
    let server = Server::start();
    let mut client = must_connect(&server.local("application_name=testing")).await;
    let results = client
        .simple_query("SELECT 1 AS a, NULL AS b; ; CREATE TABLE t(x int); INSERT INTO t VALUES (1),(2)")
        .await
        .unwrap();
    assert_eq!(results[0].rows, [[Some("1".to_owned()), None]]);
    assert_eq!(results[0].columns[1].name, "b");
    let tags: Vec<_> = results.iter().map(|result| result.tag.as_str()).collect();
    assert_eq!(tags, ["SELECT 1", "CREATE TABLE", "INSERT 0 2"]);
    assert_eq!(client.simple_query("").await.unwrap()[0].tag, "");

    let rows =
        client.query("SELECT x, $1::text AS note FROM t WHERE x > $2::int", &[Some("ü'"), Some("1")]).await.unwrap();
    let row = rows.one().unwrap();
    assert_eq!(row.get::<i32>("x").unwrap(), 2);
    assert_eq!(row.str("note").unwrap(), "ü'");
    assert!(matches!(row.bool("x"), Err(WireError::BadValue { .. })));
    assert!(matches!(row.str("y"), Err(WireError::NoColumn { .. })));
    let row = client.query_one("SELECT $1::text AS n, '0/16B3748'::pg_lsn AS l, true AS t", &[None]).await.unwrap();
    assert!(matches!(row.str("n"), Err(WireError::Null { .. })));
    assert_eq!(row.lsn("l").unwrap().0, 0x16B_3748);
    assert!(row.bool("t").unwrap());
    assert_eq!(client.execute("UPDATE t SET x = x", &[]).await.unwrap(), 2);
    assert!(matches!(client.query_one("SELECT 1 FROM t", &[]).await, Err(WireError::RowCount { found: 2, .. })));
    assert!(client.query_opt("SELECT 1 FROM t WHERE false", &[]).await.unwrap().is_none());
    assert_eq!(client.show("application_name").await.unwrap(), "testing");
    assert!(client.show("x; DROP TABLE t").await.is_err());
    assert_eq!(client.server_version_num().unwrap().to_string(), server.sql("SHOW server_version_num"));
}

#[tokio::test]
async fn errors_leave_the_session_usable() {
    let server = Server::start();
    let mut client = must_connect(&server.local("")).await;
    let error = client.query("SELECT 1/0", &[]).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"));
    let error = client.simple_query("SELECT nosuch").await.unwrap_err();
    let server_error = error.server_error().unwrap();
    assert_eq!((server_error.severity.as_str(), server_error.position), ("ERROR", Some(8)));
    for sql in ["COPY pg_class TO STDOUT", "CREATE TEMP TABLE c(x int); COPY c FROM STDIN"] {
        assert!(matches!(client.simple_query(sql).await, Err(WireError::Misuse { .. })), "{sql}");
    }
    assert!(matches!(client.query("SELECT 'a\0b'", &[]).await, Err(WireError::Misuse { .. })));
    assert_eq!(client.query_one("SELECT 7 AS n", &[]).await.unwrap().get::<u8>("n").unwrap(), 7);
    client.simple_query("BEGIN").await.unwrap();
    assert_eq!(client.transaction_status(), TransactionStatus::InTransaction);
    client.simple_query("rubbish").await.unwrap_err();
    assert_eq!(client.transaction_status(), TransactionStatus::Failed);
}

#[tokio::test]
async fn streams_and_abandoned_calls() {
    let server = Server::start();
    let mut client = must_connect(&server.tcp("user=trustuser")).await;
    let mut stream = client.query_stream("SELECT g FROM generate_series(1, 100000) g", &[]).await.unwrap();
    let mut sum = 0u64;
    while let Some(row) = stream.next().await {
        sum += row.unwrap().get::<u64>("g").unwrap();
    }
    assert_eq!(sum, 5_000_050_000);
    let mut stream = client.query_stream("SELECT 10 / (3 - g) AS g FROM generate_series(1, 9) g", &[]).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    let error = loop {
        match stream.next().await.expect("the error was lost") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.sqlstate(), Some("22012"));
    assert!(stream.next().await.is_none());
    // A stream dropped half-way, and a query dropped while the server works on it.
    let mut stream = client.query_stream("SELECT g FROM generate_series(1, 50000) g", &[]).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    assert_eq!(client.query_one("SELECT 1 AS n", &[]).await.unwrap().str("n").unwrap(), "1");
    let dropped =
        tokio::time::timeout(Duration::from_millis(50), client.query("SELECT pg_sleep(0.5), 'old'", &[])).await;
    assert!(dropped.is_err());
    assert_eq!(client.query_one("SELECT 2 AS n", &[]).await.unwrap().str("n").unwrap(), "2");
}

#[tokio::test]
async fn copy_in_and_out() {
    let server = Server::start();
    let mut client = must_connect(&server.local("")).await;
    client.simple_query("CREATE TABLE t(a int, b text)").await.unwrap();
    let mut copy = client.copy_in("COPY t FROM STDIN").await.unwrap();
    for i in 0..50_000 {
        copy.send(format!("{i}\tline {i}\n").as_bytes()).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 50_000);
    let mut out = client.copy_out("COPY (SELECT a FROM t ORDER BY a) TO STDOUT").await.unwrap();
    let mut bytes = Vec::new();
    let mut rows = 0;
    while let Some(arrived) = out.rows().await.unwrap() {
        arrived.iter().for_each(|row| bytes.extend_from_slice(row));
        rows += arrived.iter().count();
    }
    assert_eq!(rows, 50_000);
    assert!(out.rows().await.unwrap().is_none());
    let expected: String = (0..50_000).map(|i| format!("{i}\n")).collect();
    assert!(bytes == expected.as_bytes());
    // Dropped, aborted and broken ones leave nothing behind.
    client.copy_in("COPY t FROM STDIN").await.unwrap().send(b"1\tx\n").await.unwrap();
    client.copy_in("COPY t FROM STDIN").await.unwrap().abort("no").await.unwrap();
    let broken = futures::stream::iter([Ok(Bytes::from_static(b"1\tx\n")), Err("disk on fire")]);
    assert!(client.copy_in_stream("COPY t FROM STDIN", broken).await.unwrap_err().to_string().contains("disk on fire"));
    let mut copy = client.copy_in("COPY t FROM STDIN").await.unwrap();
    copy.send(b"rubbish\n").await.unwrap();
    assert_eq!(copy.finish().await.unwrap_err().sqlstate(), Some("22P02"));
    assert!(matches!(client.copy_out("SELECT 1").await.unwrap_err(), WireError::Misuse { .. }));
    assert_eq!(client.copy_out("COPY nosuch TO STDOUT").await.unwrap_err().sqlstate(), Some("42P01"));
    assert_eq!(client.query_one("SELECT count(*) AS n FROM t", &[]).await.unwrap().str("n").unwrap(), "50000");
}

#[tokio::test]
async fn timeouts_and_cancellation() {
    let server = Server::start();
    for settings in [server.local(""), server.tcp("user=trustuser sslmode=require")] {
        let mut client = must_connect(&settings).await;
        client.set_query_timeout(Some(Duration::from_millis(200)));
        let error = client.query("SELECT pg_sleep(600)", &[]).await.unwrap_err();
        assert!(matches!(error, WireError::QueryTimeout { .. }), "{error:?}");
        client.set_query_timeout(None);
        assert_eq!(client.query_one("SELECT 1 AS n", &[]).await.unwrap().str("n").unwrap(), "1");
        let cancel = client.cancel_token().unwrap();
        let canceller = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            cancel.cancel().await
        });
        let error = client.query("SELECT pg_sleep(600)", &[]).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("57014"));
        canceller.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_dead_connection_is_noticed_and_says_why() {
    let server = Server::start();
    let mut client = must_connect(&server.tcp("user=trustuser")).await;
    assert!(!client.is_closed());
    server.sql(&format!("SELECT pg_terminate_backend({}, 10000)", client.process_id().unwrap()));
    let error = tokio::time::timeout(Duration::from_secs(10), client.closed()).await.unwrap();
    assert!(matches!(&error, WireError::Closed { reason, .. } if reason.contains("57P01")), "{error:?}");
    assert!(client.is_closed());
    let error = client.query("SELECT 1", &[]).await.unwrap_err();
    assert!(matches!(error, WireError::Closed { .. }), "{error:?}");
    // While a statement runs, the server's own error comes first.
    let mut client = must_connect(&server.local("")).await;
    let error = client.query("SELECT pg_terminate_backend(pg_backend_pid())", &[]).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error:?}");
    assert!(client.is_closed());
    let mut client = must_connect(&server.local("")).await;
    server.pg_ctl(&["restart", "-m", "immediate", "-w"]);
    let error = client.simple_query("SELECT 1").await.unwrap_err();
    assert!(matches!(error, WireError::Closed { .. } | WireError::Server(_)), "{error:?}");
}

#[tokio::test]
async fn replication_commands() {
    let server = Server::start();
    let mut client = must_connect(&server.tcp("user=trustuser replication=true")).await;
    let system = client.identify_system().await.unwrap();
    assert_eq!(system.system_id.0.to_string(), server.sql("SELECT system_identifier FROM pg_control_system()"));
    assert_eq!((system.timeline.0, system.dbname), (1, None));
    assert_eq!(client.show("wal_level").await.unwrap(), "replica");
    assert!(client.timeline_history(pg_format::Timeline(7)).await.is_err());

    let start = pg_format::Lsn(system.xlogpos.0 & !0xff_ffff);
    let mut stream = client.start_replication(None, start, system.timeline).await.unwrap();
    server.sql("CREATE TABLE wal AS SELECT generate_series(1, 1000)");
    let end: pg_format::Lsn = server.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let mut at = start;
    while at < end {
        let message = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap().unwrap().unwrap();
        if let ReplicationMessage::XLogData { start, data, .. } = message {
            assert_eq!(start, at, "WAL comes without gaps");
            at = pg_format::Lsn(at.0 + data.len() as u64);
        }
    }
    let status = StandbyStatus { written: at, flushed: at, applied: at, sent_micros: 0, reply_requested: true };
    stream.send_status(status).await.unwrap();
    loop {
        let message = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap().unwrap().unwrap();
        if matches!(message, ReplicationMessage::Keepalive { .. }) {
            break;
        }
    }
    assert_eq!(server.sql("SELECT flush_lsn FROM pg_stat_replication"), at.to_string());
    assert_eq!(stream.finish().await.unwrap(), None);
    // The session goes on, also after a stream that was dropped, or that could not be begun.
    let _ = client.start_replication(None, at, system.timeline).await.unwrap();
    assert_eq!(client.identify_system().await.unwrap().timeline, system.timeline);
    let error = client.start_replication(Some("nosuch"), at, system.timeline).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42704"));
    client.identify_system().await.unwrap();
    let error = must_fail(&server.tcp("user=scramuser password=scramuser-secret replication=true")).await;
    assert_eq!(error.sqlstate(), Some("28000"));
    assert!(error.hint().unwrap().contains("replication"));
}

#[tokio::test]
async fn a_base_backup_is_received() {
    let server = Server::start();
    let client = must_connect(&server.tcp("user=trustuser replication=true")).await;
    let options = BaseBackupOptions {
        label: "it's a test".into(),
        fast_checkpoint: true,
        sizes: true,
        with_wal: false,
        wait_for_archive: false,
        verify_checksums: true,
        with_manifest: true,
        incremental: false,
        max_rate_kib: None,
        compression: None,
    };
    let mut backup = client.base_backup(&options).await.unwrap();
    assert!(backup.archives().iter().all(|archive| archive.tablespace.is_none() && archive.size_bytes > Some(1 << 20)));
    let (mut archive, mut manifest, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(part) = backup.next().await.unwrap() {
        match part {
            BaseBackupPart::Archive(number) => parts.push(Some(number)),
            BaseBackupPart::Manifest => parts.push(None),
            BaseBackupPart::Data(bytes) if parts == [Some(0)] => archive.extend_from_slice(&bytes),
            BaseBackupPart::Data(bytes) => manifest.extend_from_slice(&bytes),
        }
    }
    assert_eq!(parts, [Some(0), None]);
    let label = String::from_utf8_lossy(&archive[..2048]).into_owned();
    assert!(label.starts_with("backup_label") && label.contains("LABEL: it's a test"), "{label}");
    assert!(archive.len() % 512 == 0 && archive.ends_with(&[0; 1024]), "a tar file with its end");
    assert!(manifest.starts_with(b"{ \"PostgreSQL-Backup-Manifest-Version\""));
    let start = backup.start_lsn();
    let (end, mut client) = backup.finish().await.unwrap();
    assert!(end.stop_lsn > start && end.complaint.is_none(), "{end:?}");
    // The session goes on, also when one could not be begun.
    let wrong = BaseBackupOptions { max_rate_kib: Some(1), ..options };
    client.create_temporary_slot("kept").await.unwrap();
    let refused = client.base_backup(&wrong).await.unwrap_err();
    assert_eq!(refused.error.sqlstate(), Some("22003"), "{:?}", refused.error);
    let mut client = refused.client;
    client.identify_system().await.unwrap();
    assert!(client.create_temporary_slot("No \"name").await.is_err());
    assert!(client.upload_manifest(b"{}").await.is_err(), "15 does not know it");
    client.identify_system().await.unwrap();
}

#[tokio::test]
async fn a_client_can_be_used_in_a_spawned_task() {
    let server = Server::start();
    let settings = server.tcp("user=trustuser");
    let task = tokio::spawn(async move {
        let mut client = must_connect(&settings).await;
        client.set_query_timeout(Some(Duration::from_secs(60)));
        client.simple_query("SELECT 1").await.unwrap();
        client.query_stream("SELECT 1", &[]).await.unwrap().next().await.unwrap().unwrap();
        client.copy_out("COPY (SELECT 1) TO STDOUT").await.unwrap().rows().await.unwrap().unwrap();
        client.query_one("SELECT 1 AS n", &[]).await.unwrap().get::<u32>("n").unwrap()
    });
    assert_eq!(task.await.unwrap(), 1);
}
