//! The resident archiver: answers PostgreSQL's archive library over a Unix socket (docs/archive-library.md).
//!
//! The library asks for one file after the other, as PostgreSQL does. Each is pushed as `wal push` pushes it, with the same
//! refusals, and the answer "durable" is given only when it is in the repository. Files that wait behind it are pushed at
//! the same time, so that the answers for them are ready when they are asked for.

mod request;
mod socket;
mod table;

pub use table::ServeCounts;

use crate::wal::push::{Destination, OutOfReach};
use crate::{Context, EngineError};
use futures::future::BoxFuture;
use request::Request;
use socket::Socket;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use table::Table;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// A server has one archiver; more than a few connections are a mistake.
const CONNECTIONS_MAX: usize = 16;
/// How often the other side is told that work goes on. It gives up after ten seconds of silence.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often it is said what was done.
const SUMMARY: Duration = Duration::from_secs(60);
/// How long the connections have to end, when told to stop.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether there is time for what nobody waits for.
const TIDY_UP: Duration = Duration::from_secs(5);

/// The cluster's repositories, opened, and those that cannot be reached now and need not have everything at once.
pub type Archives = (Vec<Destination>, Vec<OutOfReach>);

/// Opens the repositories; asked again when one was out of reach.
pub type OpenArchives = Arc<dyn Fn() -> BoxFuture<'static, Result<Archives, EngineError>> + Send + Sync>;

/// How the server works.
#[derive(Clone)]
pub struct ServeOptions {
    /// The socket's path.
    pub socket: PathBuf,
    /// The repositories that WAL goes to.
    pub open: OpenArchives,
    /// How many segments are checked and compressed at the same time.
    pub workers: usize,
    /// How many files are pushed ahead of PostgreSQL asking for them, at most.
    pub ahead: usize,
    /// Where it is noted what a repository missed.
    pub state_dir: PathBuf,
    /// What notes belong to: the repositories' URLs and the cluster's name.
    pub state_key: String,
}

/// What happens while it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServeEvent {
    /// It listens.
    Listening,
    /// An archive library has connected: the process.
    Connected(Option<i32>),
    /// What has been pushed since the start, when that is new.
    Worked(ServeCounts),
    /// A file that PostgreSQL waits for could not be pushed; it will be asked for again.
    Failed {
        /// The file.
        name: String,
        /// Why.
        reason: String,
    },
    /// The first file that could be pushed after others that could not.
    WorksAgain {
        /// The file.
        name: String,
    },
    /// Somebody connected who may not.
    Intruder(String),
}

/// Where events go. Calls come from any thread and must return at once.
pub type OnEvent = Arc<dyn Fn(ServeEvent) + Send + Sync>;

struct Server {
    ctx: Context,
    table: Arc<Table>,
    on_event: OnEvent,
    failing: AtomicBool,
}

/// Serves until told to stop.
///
/// # Errors
/// When it cannot begin: the socket cannot be made, or another process serves it.
pub async fn serve(ctx: &Context, options: ServeOptions, on_event: OnEvent) -> Result<ServeCounts, EngineError> {
    let (socket, listener) = Socket::open(&options.socket)?;
    let listener = UnixListener::from_std(listener)
        .map_err(|error| EngineError::file(&options.socket, "listening at the socket", error))?;
    let table = Arc::new(Table::new(ctx, options));
    let server = Arc::new(Server {
        ctx: ctx.clone(),
        table: table.clone(),
        on_event: on_event.clone(),
        failing: AtomicBool::new(false),
    });
    on_event(ServeEvent::Listening);
    let mut connections = JoinSet::new();
    let mut said = ServeCounts::default();
    let mut summary = tokio::time::interval(SUMMARY);
    let mut tidy_up = tokio::time::interval(TIDY_UP);
    tidy_up.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tidying = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => drop(connections.spawn(server.clone().connection(stream))),
                Err(error) => {
                    ctx.progress.warn(&format!("a connection could not be accepted: {error}"));
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_) = tidying.join_next() => {}
            _ = tidy_up.tick(), if tidying.is_empty() => {
                let table = table.clone();
                tidying.spawn(async move { table.tidy_up().await });
            }
            _ = summary.tick() => {
                let counts = table.counts();
                if counts != said {
                    said = counts;
                    on_event(ServeEvent::Worked(counts));
                }
            }
        }
    }
    drop(listener);
    drop(socket);
    // What is being pushed has heard of it, too, and says so to who waits for it.
    let farewell = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL_MAX, farewell).await;
    Ok(table.counts())
}

impl Server {
    /// One archive library, until it goes.
    async fn connection(self: Arc<Self>, stream: UnixStream) {
        let own = rustix::process::geteuid().as_raw();
        let peer = stream.peer_cred();
        let (reader, mut writer) = stream.into_split();
        match peer {
            Ok(peer) if peer.uid() == own => (self.on_event)(ServeEvent::Connected(peer.pid())),
            Ok(peer) => {
                let reason = format!("a process of user {} connected; only user {own} may", peer.uid());
                (self.on_event)(ServeEvent::Intruder(reason.clone()));
                return refuse(reader, writer, &reason).await;
            }
            Err(error) => {
                return (self.on_event)(ServeEvent::Intruder(format!("it is not known who connected: {error}")));
            }
        }
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut reader).take(request::REQUEST_BYTES_MAX);
            let read = self.ctx.or_cancel(limited.read_until(b'\n', &mut line)).await;
            if !matches!(read, Ok(Ok(1..))) {
                return;
            }
            let request = match line.strip_suffix(b"\n").map(Request::parse) {
                Some(Ok(request)) => request,
                Some(Err(reason)) => {
                    (self.on_event)(ServeEvent::Failed { name: "a request".into(), reason: reason.clone() });
                    return refuse(reader, writer, &reason).await;
                }
                // Too long, or broken off.
                None => return,
            };
            let wal_dir = request.wal_dir();
            let mut archiving = std::pin::pin!(self.table.archive(&wal_dir, request.name));
            let result = loop {
                tokio::select! {
                    biased;
                    result = &mut archiving => break result,
                    () = tokio::time::sleep(HEARTBEAT) => {
                        if writer.write_all(request::WAIT).await.is_err() {
                            // The push goes on; it is asked for again.
                            return;
                        }
                    }
                }
            };
            let answer = match &result {
                Ok(()) => request::durable(request.name),
                Err(reason) => request::failed(reason),
            };
            self.note(&request, &result);
            if writer.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    fn note(&self, request: &Request, result: &Result<(), String>) {
        let name = request.name.to_string();
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Ok(()) => {
                tracing::info!("{name}: durable");
                if was_failing {
                    (self.on_event)(ServeEvent::WorksAgain { name });
                }
            }
            Err(reason) => (self.on_event)(ServeEvent::Failed { name, reason: reason.clone() }),
        }
    }
}

/// Says why and ends the connection. What was sent and not read is read first, for a moment: else the kernel tells the
/// other side of a reset, and not what was said.
async fn refuse(reader: impl AsyncRead + Unpin, mut writer: OwnedWriteHalf, reason: &str) {
    let _ = writer.write_all(&request::failed(reason)).await;
    let _ = writer.shutdown().await;
    let mut rest = reader.take(16 * request::REQUEST_BYTES_MAX);
    let _ = tokio::time::timeout(HEARTBEAT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}
