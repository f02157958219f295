//! What the conformance suite does not show of S3: refusals, throttling, lost replies, leftovers.

#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use bytes::Bytes;
use std::time::Duration;
use store::{Created, ObjectPath, S3Options, S3Store, Secret, Store, StoreError, StoreOptions};
use testkit::s3::S3Server;

const MIB: usize = 1024 * 1024;

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

fn options(server: &S3Server) -> S3Options {
    S3Options {
        endpoint: Some(server.endpoint.clone()),
        allow_http: true,
        access_key_id: Some(server.access_key.clone()),
        secret_access_key: Some(Secret::new(&server.secret_key)),
        ..StoreOptions::standard().s3
    }
}

fn store(server: &S3Server) -> S3Store {
    S3Store::new(&server.bucket, "prefix", &options(server)).unwrap()
}

async fn calls(store: &S3Store) -> Vec<(&'static str, StoreError)> {
    let name = path("a/b");
    let mut writer = store.create(&name).await.unwrap();
    let written = match writer.write(Bytes::from(vec![7; 20 * MIB])).await {
        Ok(()) => writer.finish().await.map(drop),
        Err(error) => Err(error),
    };
    [
        ("head", store.head(&name).await.map(drop)),
        ("get", store.get(&name, 10).await.map(drop)),
        ("get_range", store.get_range(&name, 0..1).await.map(drop)),
        ("get_tail", store.get_tail(&name, 1).await.map(drop)),
        ("put", store.put(&name, "x".into()).await.map(drop)),
        ("write", written),
        ("list_level", store.list_level(None).await.map(drop)),
        ("list_page", store.list_page(None, None, 1).await.map(drop)),
        ("delete", store.delete(&name).await),
    ]
    .into_iter()
    .map(|(call, outcome)| (call, outcome.unwrap_err()))
    .collect()
}

#[tokio::test]
async fn a_missing_bucket_is_not_a_missing_object() {
    let server = S3Server::start().unwrap();
    let store = S3Store::new("no-such-bucket", "", &options(&server)).unwrap();
    for (call, error) in calls(&store).await {
        assert!(matches!(error, StoreError::Failed { .. }), "{call}: {error:?}");
        assert!(error.to_string().contains("the bucket does not exist"), "{call}: {error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_said() {
    let server = S3Server::start().unwrap();
    let wrong_secret = S3Options { secret_access_key: Some(Secret::new("wrong-secret")), ..options(&server) };
    let wrong_key = S3Options { access_key_id: Some("unknown-key".to_owned()), ..options(&server) };
    for options in [wrong_secret, wrong_key] {
        let store = S3Store::new(&server.bucket, "", &options).unwrap();
        for (call, error) in calls(&store).await {
            assert!(matches!(error, StoreError::Denied { .. }), "{call}: {error:?}");
            assert!(!error.to_string().contains("wrong-secret"), "{error}");
        }
    }
}

#[tokio::test]
async fn credentials_come_from_environment_and_profile() {
    let server = S3Server::start().unwrap();
    let none = S3Options { access_key_id: None, secret_access_key: None, ..options(&server) };
    let env =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| (name.to_string(), Secret::new(*value))).collect();
    let (key, secret) = (server.access_key.as_str(), server.secret_key.as_str());
    let file = format!(
        "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n[good]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    );
    let file = Some(Secret::new(file));
    let good = [
        S3Options {
            environment: env(&[("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)]),
            credentials_file: file.clone(),
            ..none.clone()
        },
        S3Options { credentials_file: file.clone(), profile: Some("good".to_owned()), ..none.clone() },
        S3Options { credentials_file: file.clone(), environment: env(&[("AWS_PROFILE", "good")]), ..none.clone() },
        S3Options {
            endpoint: None,
            environment: env(&[
                ("AWS_ENDPOINT_URL_S3", &server.endpoint),
                ("AWS_ACCESS_KEY_ID", key),
                ("AWS_SECRET_ACCESS_KEY", secret),
            ]),
            ..none.clone()
        },
    ];
    for options in good {
        let store = S3Store::new(&server.bucket, "", &options).unwrap();
        assert!(store.list_level(None).await.is_ok(), "{options:?}");
    }
    let wrong = S3Options { credentials_file: file.clone(), ..none.clone() };
    let store = S3Store::new(&server.bucket, "", &wrong).unwrap();
    assert!(matches!(store.list_level(None).await, Err(StoreError::Denied { .. })));
    for bad in [
        S3Options { credentials_file: file, profile: Some("absent".to_owned()), ..none.clone() },
        S3Options { access_key_id: Some("half".to_owned()), ..none.clone() },
        S3Options { environment: env(&[("AWS_SECRET_ACCESS_KEY", "half")]), ..none },
    ] {
        assert!(matches!(S3Store::new("bucket", "", &bad), Err(StoreError::BadUrl { .. })), "{bad:?}");
    }
}

#[tokio::test]
async fn throttling_is_waited_out() {
    let server = S3Server::start().unwrap();
    let store = store(&server);
    server.throttle(2);
    assert_eq!(store.put(&path("a"), "x".into()).await.unwrap(), Created::New);
    server.throttle(2);
    assert_eq!(store.get(&path("a"), 1).await.unwrap(), "x");
    server.throttle(2);
    let mut writer = store.create(&path("big")).await.unwrap();
    writer.write(Bytes::from(vec![7; 20 * MIB])).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), Created::New);
    server.throttle(1);
    assert_eq!(store.list_page(None, None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn throttling_without_end_ends_with_an_error() {
    let server = S3Server::start().unwrap();
    let options = S3Options { retries_max: 2, ..options(&server) };
    let store = S3Store::new(&server.bucket, "", &options).unwrap();
    server.throttle(1000);
    for (call, error) in calls(&store).await {
        assert!(matches!(error, StoreError::Failed { .. }), "{call}: {error:?}");
        assert!(error.to_string().contains("SlowDown") || call == "head", "{call}: {error}");
    }
}

#[tokio::test]
async fn a_lost_reply_is_an_object_that_exists() {
    let server = S3Server::start().unwrap();
    let store = store(&server);
    server.lose_replies(1);
    assert_eq!(store.put(&path("small"), "x".into()).await.unwrap(), Created::Exists);
    assert_eq!(store.get(&path("small"), 1).await.unwrap(), "x");
    server.lose_replies(1);
    let bytes = Bytes::from(vec![7; 20 * MIB]);
    let mut writer = store.create(&path("big")).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), Created::Exists);
    assert!(store.get(&path("big"), 20 * MIB as u64).await.unwrap() == bytes);
    assert_eq!(server.unfinished_upload_count().unwrap(), 0);
}

#[tokio::test]
async fn a_small_object_is_one_request() {
    let server = S3Server::start().unwrap();
    let store = store(&server);
    let mut writer = store.create(&path("a")).await.unwrap();
    for _ in 0..8 {
        writer.write(Bytes::from(vec![7; MIB])).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), Created::New);
    assert_eq!(server.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_uploads_given_up() {
    let server = S3Server::start().unwrap();
    let store = store(&server);
    let begin = || async {
        let mut writer = store.create(&path("big")).await.unwrap();
        writer.write(Bytes::from(vec![7; 40 * MIB])).await.unwrap();
        writer
    };
    let writer = begin().await;
    assert!(server.unfinished_upload_count().unwrap() > 0);
    writer.abort().await.unwrap();
    assert_eq!(server.unfinished_upload_count().unwrap(), 0);

    // One that exists meanwhile.
    let writer = begin().await;
    store.put(&path("big"), "small".into()).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), Created::Exists);
    assert_eq!(store.get(&path("big"), 5).await.unwrap(), "small");
    assert_eq!(server.unfinished_upload_count().unwrap(), 0);

    // A dropped one is removed in the background.
    drop(begin().await);
    let gone = async {
        while server.unfinished_upload_count().unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the upload is removed");
}

#[tokio::test]
async fn an_unreachable_service_is_an_error_and_not_an_absence() {
    // A port on which nobody listens: bound and not listening.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let server = S3Server::start().unwrap();
    let options = S3Options { endpoint: Some(endpoint), retries_max: 1, ..options(&server) };
    let store = S3Store::new(&server.bucket, "", &options).unwrap();
    for (call, error) in calls(&store).await {
        assert!(matches!(error, StoreError::Failed { .. }), "{call}: {error:?}");
    }
}

#[tokio::test]
async fn a_service_that_never_answers_is_given_up() {
    // Connections are accepted by the kernel and never served.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = S3Server::start().unwrap();
    let options = S3Options {
        endpoint: Some(format!("http://{}", silent.local_addr().unwrap())),
        request_time_max: Duration::from_millis(200),
        retries_max: 1,
        ..options(&server)
    };
    let store = S3Store::new(&server.bucket, "", &options).unwrap();
    for (call, error) in calls(&store).await {
        assert!(matches!(error, StoreError::Failed { .. }), "{call}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_no_s3_is_an_error() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                while socket.read(&mut request).await.is_ok_and(|len| len > 0) {
                    let body = "<html>nothing here</html>";
                    let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n", body.len());
                    // HEAD takes no body; a client that got one too many closes the connection.
                    if socket.write_all((head + body).as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let server = S3Server::start().unwrap();
    let options = S3Options { endpoint: Some(endpoint), retries_max: 1, ..options(&server) };
    let store = S3Store::new("bucket", "", &options).unwrap();
    for error in [
        store.get(&path("a"), 10).await.map(drop).unwrap_err(),
        store.head(&path("a")).await.map(drop).unwrap_err(),
        store.delete(&path("a")).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Failed { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn endpoints_and_certificates_are_checked_before_use() {
    let server = S3Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    let good = options(&server);
    for (options, expect) in [
        (S3Options { allow_http: false, ..good.clone() }, "allow-http"),
        (S3Options { endpoint: Some("s3.example.com".to_owned()), ..good.clone() }, "https://s3.example.com"),
        (S3Options { endpoint: Some("ftp://s3.example.com".to_owned()), ..good.clone() }, "scheme"),
        (S3Options { ca_file: Some(dir.path().join("absent.pem")), ..good.clone() }, "absent.pem"),
        (S3Options { ca_file: Some(empty), ..good.clone() }, "no certificate"),
    ] {
        match S3Store::new("bucket", "", &options) {
            Err(error @ StoreError::BadUrl { .. }) => assert!(error.to_string().contains(expect), "{error}"),
            other => panic!("{expect}: {other:?}"),
        }
    }
}
