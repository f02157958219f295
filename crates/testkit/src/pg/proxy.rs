//! A proxy before a server's socket, which cuts, refuses and stalls connections on demand.

use super::Cluster;
use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(2);

/// Stands between a client and a server, over Unix sockets. Nothing is reordered; what was taken is passed on, or the
/// connection ends.
#[derive(Debug)]
pub struct Proxy {
    dir: PathBuf,
    port: u16,
    shared: Arc<Shared>,
    listening: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    refuses: AtomicBool,
    stalls: AtomicBool,
    /// Microseconds that each piece of data waits.
    delay_us: AtomicU64,
    live: Mutex<Vec<UnixStream>>,
    accepted: AtomicU64,
}

impl Proxy {
    /// A proxy for this server, in a directory of this name in the cluster's home.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(cluster: &Cluster, name: &str) -> Result<Self> {
        let dir = cluster.make_dir(name)?;
        let port = cluster.port();
        let path = dir.join(format!(".s.PGSQL.{port}"));
        let target = cluster.socket_dir().join(format!(".s.PGSQL.{port}"));
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        // The tests may run as another user than what connects.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let state = shared.clone();
        let listening = Some(std::thread::spawn(move || listen(&listener, &target, &state)));
        Ok(Self { dir, port, shared, listening })
    }

    /// Connection string through the proxy, as superuser, to database `postgres`.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.dir.display(), self.port)
    }

    /// Ends all connections, as a network does that breaks: without a word.
    pub fn cut(&self) {
        for stream in self.shared.live().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Lets nobody in from now on, or again.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Passes nothing on from now on, or again.
    pub fn stall(&self, stalls: bool) {
        self.shared.stalls.store(stalls, Ordering::Relaxed);
    }

    /// Holds each piece of data back for so long.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// How many connections there were.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.cut();
        if let Some(listening) = self.listening.take() {
            listening.join().ok();
        }
    }
}

impl Shared {
    fn live(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn listen(listener: &UnixListener, target: &Path, shared: &Arc<Shared>) {
    while !shared.is_over() {
        match listener.accept() {
            Ok((client, _)) if !shared.refuses.load(Ordering::Relaxed) => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                // A server that is down ends the connection.
                let _ = connect(client, target, shared);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(_) => return,
        }
    }
}

fn connect(client: UnixStream, target: &Path, shared: &Arc<Shared>) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    let server = UnixStream::connect(target)?;
    shared.live().extend([client.try_clone()?, server.try_clone()?]);
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let shared = shared.clone();
        std::thread::spawn(move || pump(from, to, &shared));
    }
    Ok(())
}

fn pump(mut from: UnixStream, mut to: UnixStream, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(Duration::from_micros(shared.delay_us.load(Ordering::Relaxed)));
        while shared.stalls.load(Ordering::Relaxed) && !shared.is_over() {
            std::thread::sleep(LOOK);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
