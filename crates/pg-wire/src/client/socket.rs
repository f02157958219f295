//! Opening sockets: addresses of a host, TCP options, Unix sockets and who owns them.

use super::connection::Stream;
use super::quiet::QuietUnix;
use crate::WireError;
use crate::conninfo::{Address, Conninfo, DEFAULT_SOCKET_DIRS, Host, Keepalives, LoadBalanceHosts, ReplicationMode};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::{TcpStream, UnixStream};

/// A place to connect to, looked up.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(Vec<String>),
}

pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(Box<dyn Stream>),
}

/// Every place a host may be at.
pub(super) async fn places(host: &Host, balance: LoadBalanceHosts) -> Result<Vec<Place>, WireError> {
    let socket = |dir: &str| format!("{dir}/.s.PGSQL.{}", host.port);
    let mut places = match &host.address {
        Address::Ip(ip) => vec![Place::Tcp(SocketAddr::new(*ip, host.port))],
        Address::SocketDir(dir) => vec![Place::Unix(vec![socket(dir)])],
        Address::DefaultSocketDirs => vec![Place::Unix(DEFAULT_SOCKET_DIRS.iter().map(|dir| socket(dir)).collect())],
        Address::Name(name) => {
            let dns = |source| WireError::Dns { host: name.clone(), source };
            let found = tokio::net::lookup_host((name.as_str(), host.port)).await.map_err(dns)?;
            let mut places: Vec<Place> = Vec::new();
            for address in found {
                if !places.iter().any(|place| matches!(place, Place::Tcp(known) if *known == address)) {
                    places.push(Place::Tcp(address));
                }
            }
            if places.is_empty() {
                return Err(dns(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
            }
            places
        }
    };
    if balance == LoadBalanceHosts::Random {
        shuffle(&mut places);
    }
    Ok(places)
}

/// Puts the elements into random order (Fisher-Yates, as libpq does); unchanged if there is no randomness.
pub(super) fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let Ok(random) = getrandom::u64() else { return };
        items.swap(last, (random % (last as u64 + 1)) as usize);
    }
}

/// Opens a socket with the options asked for.
pub(super) async fn open(place: &Place, conninfo: &Conninfo, target: &str) -> Result<Socket, WireError> {
    match place {
        Place::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(|source| connect_error(target, source))?;
            stream
                .set_nodelay(true)
                .and_then(|()| keepalives(&stream, &conninfo.keepalives))
                .map_err(|source| WireError::Connect { target: target.to_owned(), source })?;
            Ok(Socket::Tcp(stream))
        }
        Place::Unix(paths) => unix(paths, conninfo).await.map(Socket::Unix),
    }
}

fn connect_error(target: &str, source: io::Error) -> WireError {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => WireError::Refused { target: target.to_owned() },
        _ => WireError::Connect { target: target.to_owned(), source },
    }
}

fn keepalives(stream: &TcpStream, keepalives: &Keepalives) -> io::Result<()> {
    use rustix::net::sockopt;
    if keepalives.enabled {
        sockopt::set_socket_keepalive(stream, true)?;
        if let Some(idle) = keepalives.idle {
            sockopt::set_tcp_keepidle(stream, idle)?;
        }
        if let Some(interval) = keepalives.interval {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(count) = keepalives.count {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = keepalives.user_timeout {
        sockopt::set_tcp_user_timeout(stream, timeout.as_millis().try_into().unwrap_or(u32::MAX))?;
    }
    Ok(())
}

/// Tries each path; the first socket that exists decides.
async fn unix(paths: &[String], conninfo: &Conninfo) -> Result<Box<dyn Stream>, WireError> {
    for path in paths {
        // A leading '@' stands for the NUL of the abstract namespace, as in src/common/ip.c.
        let real = match path.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => path.clone(),
        };
        match UnixStream::connect(&real).await {
            Ok(stream) => {
                check_peer(&stream, path, conninfo)?;
                if conninfo.replication == ReplicationMode::Off {
                    return Ok(Box::new(stream));
                }
                // Commits may wait for who is streamed to.
                let quiet = QuietUnix::new(stream).map_err(|error| connect_error(path, error))?;
                return Ok(Box::new(quiet));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // In the abstract namespace a name that nobody bound is refused.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && paths.len() > 1 => {}
            Err(error) => return Err(connect_error(path, error)),
        }
    }
    Err(WireError::NoSocket { paths: paths.iter().map(PathBuf::from).collect() })
}

/// `requirepeer`: a user name, looked up in /etc/passwd's form by the system, or a number.
fn check_peer(stream: &UnixStream, path: &str, conninfo: &Conninfo) -> Result<(), WireError> {
    let Some(wanted) = &conninfo.requirepeer else { return Ok(()) };
    let peer = |found: String| WireError::Peer { target: path.to_owned(), wanted: wanted.clone(), found };
    let uid = stream.peer_cred().map_err(|error| peer(error.to_string()))?.uid();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    match name {
        Some(name) if name == *wanted => Ok(()),
        Some(name) => Err(peer(format!("{uid} ({name})"))),
        None if wanted.parse() == Ok(uid) => Ok(()),
        None => Err(peer(uid.to_string())),
    }
}
