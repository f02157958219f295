//! An S3 server for tests, in this process, on a free port: `s3s` checks signatures and speaks
//! the protocol, `s3s-fs` keeps the objects in a temporary directory.
//!
//! What `s3s-fs` does not do as S3 does is put right here: a conditional create is decided and
//! done under one lock, reading from a missing bucket says `NoSuchBucket`, and removing an object
//! removes the directories it leaves empty. A test can make the server answer `SlowDown`, or do
//! what is asked and then answer with an error.

use anyhow::{Context, Result};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as Connection;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A running server with one empty bucket. It ends when it is dropped.
pub struct S3Server {
    /// Its URL, without TLS: `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// The bucket that exists.
    pub bucket: String,
    /// The only access key it accepts.
    pub access_key: String,
    /// The secret of the access key.
    pub secret_key: String,
    dir: TempDir,
    behaviour: Arc<Behaviour>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Behaviour {
    requests: AtomicUsize,
    throttle: AtomicUsize,
    lose_replies: AtomicUsize,
}

impl S3Server {
    /// Starts a server. It has a thread of its own, so that it serves whatever the test does.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir().context("a directory for the S3 server")?;
        let (bucket, access_key, secret_key) = ("test-bucket", "test-access-key", "test-secret-key");
        std::fs::create_dir(dir.path().join(bucket))?;
        let behaviour = Arc::new(Behaviour::default());
        let files = FileSystem::new(dir.path()).map_err(|error| anyhow::anyhow!("s3s-fs: {error:?}"))?;
        let server =
            Server { files, root: dir.path().to_owned(), behaviour: behaviour.clone(), locks: Mutex::default() };
        let mut service = S3ServiceBuilder::new(server);
        service.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let service = service.build();

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // No block_on: a test may start the server where futures run.
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that hangs up is its own affair.
                    let _ = Connection::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(Self {
            endpoint,
            bucket: bucket.to_owned(),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            dir,
            behaviour,
            runtime: Some(runtime),
        })
    }

    /// The next `requests` requests are answered with `503 SlowDown` and nothing is done.
    pub fn throttle(&self, requests: usize) {
        self.behaviour.throttle.store(requests, Ordering::SeqCst);
    }

    /// The next `writes` creations and completions of objects are done and then answered with an error.
    pub fn lose_replies(&self, writes: usize) {
        self.behaviour.lose_replies.store(writes, Ordering::SeqCst);
    }

    /// How many requests there were.
    pub fn request_count(&self) -> usize {
        self.behaviour.requests.load(Ordering::SeqCst)
    }

    /// How many uploads in parts, or parts of them, lie about unfinished.
    pub fn unfinished_upload_count(&self) -> Result<usize> {
        let mut count = 0;
        for entry in std::fs::read_dir(self.dir.path())? {
            let name = entry?.file_name();
            count += usize::from(name.to_string_lossy().starts_with(".upload"));
        }
        Ok(count)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // A runtime must not be waited for where futures run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `s3s-fs` with what it lacks.
struct Server {
    files: FileSystem,
    root: PathBuf,
    behaviour: Arc<Behaviour>,
    /// One lock for each key that was ever created: so a condition holds until the object is there.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Server {
    fn begin(&self) -> S3Result<()> {
        self.behaviour.requests.fetch_add(1, Ordering::SeqCst);
        if take_one(&self.behaviour.throttle) {
            return Err(s3_error!(SlowDown));
        }
        Ok(())
    }

    /// After a write was done: its reply may be lost.
    fn reply<T>(&self, answer: S3Result<S3Response<T>>) -> S3Result<S3Response<T>> {
        if answer.is_ok() && take_one(&self.behaviour.lose_replies) {
            return Err(s3_error!(InternalError));
        }
        answer
    }

    fn lock_of(&self, bucket: &str, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(format!("{bucket}/{key}")).or_default().clone()
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    /// S3 has no directories; those that became empty must not stand in the way of other keys.
    fn remove_empty_dirs(&self, bucket: &str, key: &str) {
        let top = self.root.join(bucket);
        let object = top.join(key);
        for dir in object.ancestors().skip(1).take_while(|dir: &&Path| *dir != top) {
            if std::fs::remove_dir(dir).is_err() {
                break;
            }
        }
    }
}

fn take_one(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
}

#[async_trait::async_trait]
impl S3 for Server {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.begin()?;
        self.check_bucket(&req.input.bucket)?;
        let lock = self.lock_of(&req.input.bucket, &req.input.key);
        let _held = lock.lock().await;
        let answer = self.files.put_object(req).await;
        self.reply(answer)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.begin()?;
        let lock = self.lock_of(&req.input.bucket, &req.input.key);
        let _held = lock.lock().await;
        if !self.root.join(format!(".upload-{}.json", req.input.upload_id)).exists() {
            return Err(s3_error!(NoSuchUpload));
        }
        let answer = self.files.complete_multipart_upload(req).await;
        self.reply(answer)
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.begin()?;
        self.check_bucket(&req.input.bucket)?;
        self.files.create_multipart_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.begin()?;
        self.files.upload_part(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.begin()?;
        self.files.abort_multipart_upload(req).await
    }

    async fn get_object(&self, mut req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.begin()?;
        self.check_bucket(&req.input.bucket)?;
        // s3s-fs opens a directory as if it were an object.
        let file = self.root.join(&req.input.bucket).join(&req.input.key);
        let Some(size) = file.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len()) else {
            return Err(s3_error!(NoSuchKey));
        };
        // s3s-fs fails for a suffix of an empty object, and for one longer than the object.
        if let Some(Range::Suffix { length }) = req.input.range {
            if size == 0 || length == 0 {
                return Err(s3_error!(InvalidRange));
            }
            req.input.range = Some(Range::Int { first: size.saturating_sub(length), last: None });
        }
        self.files.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.begin()?;
        self.check_bucket(&req.input.bucket)?;
        if self.root.join(&req.input.bucket).join(&req.input.key).is_dir() {
            return Err(s3_error!(NoSuchKey));
        }
        self.files.head_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.begin()?;
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        self.check_bucket(&bucket)?;
        if self.root.join(&bucket).join(&key).is_dir() {
            return Ok(S3Response::new(DeleteObjectOutput::default()));
        }
        let answer = self.files.delete_object(req).await;
        self.remove_empty_dirs(&bucket, &key);
        answer
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.begin()?;
        self.files.list_objects_v2(req).await
    }
}
