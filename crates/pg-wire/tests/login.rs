//! Logging in to real servers: every method of authentication, every sslmode, certificates, bad cases.

mod common;

use common::{Server, connect, must_connect, must_fail};
use pg_wire::WireError;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn every_method_of_authentication_over_every_transport() {
    let server = Server::start();
    for user in ["trustuser", "passworduser", "md5user", "scramuser"] {
        for transport in ["sslmode=disable", "sslmode=require", "sslmode=prefer channel_binding=disable"] {
            let mut client =
                must_connect(&server.tcp(&format!("user={user} password={user}-secret {transport}"))).await;
            assert_eq!(client.query_one("SELECT session_user::text AS u", &[]).await.unwrap().str("u").unwrap(), user);
            let tls = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
            assert_eq!(tls.bool("ssl").unwrap(), transport != "sslmode=disable");
            assert_eq!(client.tls_version().is_some(), transport != "sslmode=disable");
        }
        if user != "trustuser" {
            for password in ["wrong", "md5user-secretx"] {
                let error = must_fail(&server.tcp(&format!("user={user} password={password} sslmode=disable"))).await;
                assert!(matches!(error, WireError::Rejected { .. }), "{error:?}");
                assert_eq!(error.sqlstate(), Some("28P01"));
                assert!(error.hint().unwrap().contains("is wrong"), "{error}");
                assert!(!format!("{error:?} {error}").contains(password), "{error:?}");
            }
            let error = must_fail(&server.tcp(&format!("user={user} sslmode=disable"))).await;
            assert!(matches!(error, WireError::NoPassword { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn channel_binding_and_require_auth() {
    let server = Server::start();
    let scram = "user=scramuser password=scramuser-secret";
    must_connect(&server.tcp(&format!("{scram} sslmode=require channel_binding=require require_auth=scram-sha-256")))
        .await;
    must_connect(
        &server.tcp(&format!("{scram} sslmode=require channel_binding=require ssl_max_protocol_version=TLSv1.2")),
    )
    .await;
    let forbidden = [
        format!("{scram} sslmode=disable channel_binding=require"),
        "user=md5user password=md5user-secret sslmode=require channel_binding=require".to_owned(),
        "user=trustuser sslmode=require channel_binding=require".to_owned(),
        "user=md5user password=md5user-secret sslmode=disable require_auth=scram-sha-256".to_owned(),
        "user=passworduser password=passworduser-secret sslmode=disable require_auth=!password".to_owned(),
        "user=trustuser sslmode=disable require_auth=scram-sha-256".to_owned(),
        "user=trustuser sslmode=disable require_auth=!none".to_owned(),
        "user=trustuser sslmode=require sslcertmode=require".to_owned(),
    ];
    for settings in forbidden {
        let error = must_fail(&server.tcp(&settings)).await;
        assert!(matches!(error, WireError::AuthForbidden { .. }), "{settings}: {error:?}");
    }
    must_connect(&server.tcp("user=trustuser sslmode=disable require_auth=none,md5")).await;
}

#[tokio::test]
async fn refused_logins_say_what_to_do() {
    let server = Server::start();
    let error = must_fail(&server.tcp("user=nohba sslmode=disable")).await;
    assert_eq!(error.sqlstate(), Some("28000"));
    assert!(error.hint().unwrap().contains("pg_hba.conf"), "{:?}", error.hint());
    let error = must_fail(&server.local("").replace("dbname=postgres", "dbname=nosuch")).await;
    assert_eq!(error.sqlstate(), Some("3D000"));
    let error = must_fail(&server.local("user=nosuchrole")).await;
    assert_eq!(error.sqlstate(), Some("28000"));
    assert!(error.hint().unwrap().contains("nosuchrole"), "{:?}", error.hint());
    let error = must_fail(&server.tcp("user=ldapuser sslmode=disable")).await;
    let unsupported = matches!(&error, WireError::AuthUnsupported { method, .. } if method == "GSSAPI");
    assert!(unsupported, "{error:?}");
}

#[tokio::test]
async fn sslmode_against_a_server_with_tls() {
    let server = Server::start();
    let ca = server.certificates.path("ca.crt");
    let other = server.certificates.path("other-ca.crt");
    // (settings, encrypted)
    let table = [
        ("user=trustuser sslmode=disable".to_owned(), false),
        ("user=trustuser sslmode=allow".to_owned(), false),
        ("user=tlsonly sslmode=allow".to_owned(), true),
        ("user=trustuser sslmode=prefer".to_owned(), true),
        ("user=plainonly sslmode=prefer".to_owned(), false),
        ("user=trustuser sslmode=require".to_owned(), true),
        (format!("user=trustuser sslmode=verify-ca sslrootcert={ca}"), true),
        (format!("user=trustuser sslmode=verify-full sslrootcert={ca}"), true),
        // A root certificate that did not sign: prefer gives up TLS, as libpq does.
        (format!("user=trustuser sslmode=prefer sslrootcert={other}"), false),
    ];
    for (settings, encrypted) in table {
        let client = must_connect(&server.tcp(&settings)).await;
        assert_eq!(client.tls_version().is_some(), encrypted, "{settings}");
    }
    let error = must_fail(&server.tcp("user=tlsonly sslmode=disable")).await;
    assert_eq!(error.sqlstate(), Some("28000"));
    let error = must_fail(&server.tcp("user=plainonly sslmode=require")).await;
    assert_eq!(error.sqlstate(), Some("28000"));
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = must_fail(&server.tcp(&format!("user=trustuser sslmode={mode} sslrootcert={other}"))).await;
        assert!(matches!(error, WireError::TlsUntrusted { .. }), "{mode}: {error:?}");
    }
    for mode in ["verify-ca", "verify-full"] {
        let error = must_fail(&server.tcp(&format!("user=trustuser sslmode={mode} sslrootcert=/no/such/file"))).await;
        assert!(matches!(error, WireError::TlsFile { .. }), "{mode}: {error:?}");
        let error = must_fail(&server.tcp(&format!("user=trustuser sslmode={mode}"))).await;
        assert!(matches!(error, WireError::TlsConfig { .. }), "{mode}: {error:?}");
    }
    let error = must_fail(&format!(
        "hostaddr=127.0.0.1 port={} user=trustuser sslmode=verify-full sslrootcert={ca}",
        server.port
    ))
    .await;
    assert!(matches!(error, WireError::TlsConfig { .. }), "{error:?}");
    // The address is in the certificate too.
    must_connect(&format!(
        "host=127.0.0.1 port={} dbname=postgres user=trustuser sslmode=verify-full sslrootcert={ca}",
        server.port
    ))
    .await;
    let error =
        must_fail(&server.tcp(&format!("host=other.example user=trustuser sslmode=verify-full sslrootcert={ca}")))
            .await;
    let mismatch = matches!(&error, WireError::TlsHostName { expected, names, .. }
        if expected == "other.example" && names == &["localhost", "127.0.0.1"]);
    assert!(mismatch, "{error:?}");
    // This server is older than direct TLS, or has it: then it works.
    if let Err(error) = connect(&server.tcp("user=trustuser sslmode=require sslnegotiation=direct")).await {
        assert!(matches!(error, WireError::Tls { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn sslmode_against_a_server_without_tls() {
    let server = Server::start_with(|_| "ssl = off\n".to_owned());
    for mode in ["disable", "allow", "prefer"] {
        let client = must_connect(&server.tcp(&format!("user=trustuser sslmode={mode}"))).await;
        assert_eq!(client.tls_version(), None);
    }
    let ca = server.certificates.path("ca.crt");
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = must_fail(&server.tcp(&format!("user=trustuser sslmode={mode} sslrootcert={ca}"))).await;
        assert!(matches!(error, WireError::TlsRefused { sslmode, .. } if sslmode == mode), "{error:?}");
        assert!(error.hint().unwrap().contains("ssl = on"));
    }
    let error = must_fail(&server.tcp("user=nohba sslmode=allow")).await;
    assert_eq!(error.sqlstate(), Some("28000"), "{error:?}");
    // Over a socket sslmode means nothing.
    must_connect(&server.local("sslmode=require")).await;
}

#[tokio::test]
async fn certificates_of_other_kinds() {
    let cert = |name: &'static str| {
        move |_: &common::Certificates| format!("ssl = on\nssl_cert_file = '{name}.crt'\nssl_key_file = '{name}.key'\n")
    };
    let server = Server::start_with(cert("wrong-host"));
    let ca = server.certificates.path("ca.crt");
    must_connect(&server.tcp(&format!("user=trustuser sslmode=verify-ca sslrootcert={ca}"))).await;
    let error = must_fail(&server.tcp(&format!("user=trustuser sslmode=verify-full sslrootcert={ca}"))).await;
    assert!(matches!(&error, WireError::TlsHostName { names, .. } if names == &["elsewhere.example"]), "{error:?}");
    drop(server);

    let server = Server::start_with(cert("common-name"));
    let ca = server.certificates.path("ca.crt");
    must_connect(&server.tcp(&format!("user=trustuser sslmode=verify-full sslrootcert={ca}"))).await;
    drop(server);

    let server = Server::start_with(cert("self-signed"));
    let own = server.certificates.path("self-signed.crt");
    let ca = server.certificates.path("ca.crt");
    must_connect(&server.tcp(&format!("user=trustuser sslmode=verify-full sslrootcert={own}"))).await;
    let error = must_fail(&server.tcp(&format!("user=trustuser sslmode=verify-full sslrootcert={ca}"))).await;
    assert!(matches!(error, WireError::TlsUntrusted { .. }), "{error:?}");
    drop(server);

    let server = Server::start_with(cert("version-1"));
    let scram = "user=scramuser password=scramuser-secret channel_binding=require";
    must_connect(&server.tcp(&format!("{scram} sslmode=require"))).await;
}

#[tokio::test]
async fn client_certificates() {
    let server = Server::start();
    let ca = server.certificates.path("ca.crt");
    let crt = server.certificates.path("certuser.crt");
    let key = server.certificates.path("certuser.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let with = format!("sslmode=verify-full sslrootcert={ca} sslcert={crt} sslkey={key}");
    let mut client = must_connect(&server.tcp(&format!("user=certuser {with} sslcertmode=require"))).await;
    let row = client.query_one("SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
    assert_eq!(row.str("client_dn").unwrap(), "/CN=certuser");

    let error = must_fail(&server.tcp("user=certuser sslmode=require")).await;
    assert_eq!(error.sqlstate(), Some("28000"), "{error:?}");
    let error = must_fail(&server.tcp(&format!("user=certuser {with} sslcertmode=disable"))).await;
    assert_eq!(error.sqlstate(), Some("28000"), "{error:?}");
    let server_key = server.certificates.path("ca.key");
    let error = must_fail(&server.tcp(&format!("user=certuser {with} sslkey={server_key}"))).await;
    assert!(matches!(error, WireError::TlsFile { what: "client key", .. }), "{error:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = must_fail(&server.tcp(&format!("user=certuser {with}"))).await;
    assert!(matches!(&error, WireError::TlsFile { reason, .. } if reason.contains("0644")), "{error:?}");
}

#[tokio::test]
async fn servers_that_are_not_there() {
    let port = common::free_port();
    let error = must_fail(&format!("host=127.0.0.1 port={port} user=u")).await;
    assert!(matches!(error, WireError::Refused { .. }), "{error:?}");
    let error = must_fail(&format!("host=/no/such/dir port={port} user=u")).await;
    assert!(matches!(error, WireError::NoSocket { .. }), "{error:?}");
    let error = must_fail(&format!("host=@pg-wire-test port={port} user=u")).await;
    assert!(matches!(error, WireError::Refused { .. }), "{error:?}");
    let error = must_fail("host=no-such-host.invalid user=u").await;
    assert!(matches!(error, WireError::Dns { .. }), "{error:?}");
    // A server that takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = must_fail(&format!("host=127.0.0.1 port={port} user=u connect_timeout=2")).await;
    assert!(matches!(error, WireError::ConnectTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn another_service_is_no_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 100]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for mode in ["disable", "prefer"] {
        let error = must_fail(&format!("host=127.0.0.1 port={port} user=u sslmode={mode}")).await;
        assert!(matches!(error, WireError::Protocol { .. }), "{mode}: {error:?}");
    }
}
