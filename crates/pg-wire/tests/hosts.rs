//! Several hosts, kinds of servers, sockets, service file and passfile, against real servers.

mod common;

use common::{Server, conninfo, must_connect, must_fail};
use pg_wire::{Client, Conninfo, Surroundings, WireError};
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn the_first_server_that_will_do() {
    let writable = Server::start();
    let read_only = Server::start_with(|_| "default_transaction_read_only = on\n".to_owned());
    let dead = common::free_port();
    let both = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port={dead},{},{} user=trustuser dbname=postgres",
        read_only.port, writable.port
    );
    let port_of = |wanted: &str| {
        let text = format!("{both} target_session_attrs={wanted}");
        async move {
            must_connect(&text)
                .await
                .query_one("SELECT inet_server_port() AS p", &[])
                .await
                .unwrap()
                .get::<u16>("p")
                .unwrap()
        }
    };
    assert_eq!(port_of("any").await, read_only.port);
    assert_eq!(port_of("read-write").await, writable.port);
    assert_eq!(port_of("read-only").await, read_only.port);
    assert_eq!(port_of("primary").await, read_only.port);
    assert_eq!(port_of("prefer-standby").await, read_only.port);
    let error = must_fail(&format!("{both} target_session_attrs=standby")).await;
    match error {
        WireError::NoHost { errors } => {
            assert!(matches!(errors[0], WireError::Refused { .. }), "{errors:?}");
            assert!(matches!(errors[1], WireError::TargetSession { wanted: "standby", .. }), "{errors:?}");
            assert_eq!(errors.len(), 3);
        }
        other => panic!("{other:?}"),
    }
    // A refused login ends it: the other servers are not asked.
    let text = both.replace("user=trustuser", "user=nohba");
    let error = must_fail(&text).await;
    assert!(
        matches!(&error, WireError::NoHost { errors } if !matches!(errors.last(), Some(WireError::Refused { .. }))),
        "{error:?}"
    );
    read_only.make_standby();
    assert_eq!(port_of("primary").await, writable.port);
    assert_eq!(port_of("read-write").await, writable.port);
    assert_eq!(port_of("standby").await, read_only.port);
    assert_eq!(port_of("prefer-standby").await, read_only.port);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..60 {
        let mut client = must_connect(&format!("{both} load_balance_hosts=random")).await;
        seen.insert(client.query_one("SELECT inet_server_port() AS p", &[]).await.unwrap().get::<u16>("p").unwrap());
    }
    assert_eq!(seen.len(), 2, "random order reaches both");
}

#[tokio::test]
async fn socket_service_and_passfile() {
    let server = Server::start();
    let dir = server.socket_dir().replace('/', "%2F");
    must_connect(&format!("postgresql://super@{dir}:{}/postgres", server.port)).await;
    let error = must_fail(&server.local("requirepeer=nobody-of-this-name")).await;
    assert!(matches!(error, WireError::Peer { .. }), "{error:?}");

    let home = tempfile::tempdir().unwrap();
    let passfile = home.path().join(".pgpass");
    std::fs::write(&passfile, format!("localhost:{}:*:scramuser:scramuser-secret\n", server.port)).unwrap();
    let service =
        format!("[db]\nhost=localhost\nhostaddr=127.0.0.1\nport={}\nuser=scramuser\ndbname=postgres\n", server.port);
    std::fs::write(home.path().join(".pg_service.conf"), service).unwrap();
    let around = Surroundings::from_vars([("PGSERVICE", "db"), ("PGAPPNAME", "by-service")]).with_home(home.path());
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut client = Client::connect(&Conninfo::parse("", &around).unwrap()).await.unwrap();
    assert_eq!(client.show("application_name").await.unwrap(), "by-service");
    std::fs::write(&passfile, "*:*:*:scramuser:wrong\n").unwrap();
    let error = Client::connect(&Conninfo::parse("", &around).unwrap()).await.unwrap_err();
    let wrong = match &error {
        WireError::NoHost { errors } => &errors[0],
        other => other,
    };
    assert!(matches!(wrong, WireError::Rejected { passfile: Some(path), .. } if *path == passfile), "{error:?}");
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Client::connect(&Conninfo::parse("sslmode=disable", &around).unwrap()).await.unwrap_err();
    assert!(matches!(&error, WireError::NoPassword { warnings, .. } if warnings[0].contains("chmod")), "{error:?}");
}

#[tokio::test]
async fn the_same_strings_mean_the_same_to_another_client() {
    let server = Server::start();
    for text in [
        format!("postgresql://scramuser:scramuser-secret@127.0.0.1:{}/postgres?application_name=a%20b", server.port),
        format!(
            "host=127.0.0.1 port={} user=scramuser password='scramuser-secret' dbname=postgres application_name='a b'",
            server.port
        ),
    ] {
        let (theirs, connection) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await.unwrap();
        let task = tokio::spawn(connection);
        let sql = "SELECT current_database()::text, session_user::text, current_setting('application_name')";
        let row = theirs.query_one(sql, &[]).await.unwrap();
        let ours = Client::connect(&conninfo(&text).unwrap()).await.unwrap().simple_query(sql).await.unwrap();
        let row: Vec<Option<String>> = (0..3).map(|i| row.get(i)).collect();
        assert_eq!(ours[0].rows, [row]);
        drop(theirs);
        task.await.unwrap().unwrap();
    }
}
