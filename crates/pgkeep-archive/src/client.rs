//! One connection to `pgkeep wal serve`, kept open, and one request on it at a time. Never blocks for longer than a slice.

use crate::line::{self, Answer, Lines, NAME_BYTES_MAX, REQUEST_BYTES_MAX, Text};
use std::ffi::{CStr, c_int};
use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// So long a step may wait.
const SLICE_MS: c_int = 200;

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Without any sign of life.
    pub(crate) silence: Duration,
    /// In all.
    pub(crate) total: Duration,
}

/// A message for the server's log.
pub(crate) type Message = Text<1400>;

/// What a step came to.
pub(crate) enum Step {
    /// Not done yet: look around, and make another step.
    Waiting,
    /// The file is durable in the repository.
    Durable,
    /// It was not archived.
    Failed(Message),
}

/// A request under way.
struct Attempt {
    name: Text<NAME_BYTES_MAX>,
    request: Text<REQUEST_BYTES_MAX>,
    /// So many bytes of the request were sent.
    sent: usize,
    begun: Instant,
    heard: Instant,
    /// Whether the connection was made for this request: if not, the other side may have gone long ago.
    fresh: bool,
}

/// The connection and what is under way on it.
pub(crate) struct Client {
    connection: Option<OwnedFd>,
    lines: Lines,
    attempt: Option<Attempt>,
}

impl Client {
    pub(crate) const fn new() -> Self {
        Self { connection: None, lines: Lines::new(), attempt: None }
    }

    /// Begins to ask for a file.
    pub(crate) fn begin(&mut self, name: &[u8], data_dir: &[u8]) -> Result<(), Message> {
        if self.attempt.take().is_some() {
            // The answer to what was asked before must not be taken for this one's.
            self.close();
        }
        let mut kept = Text::new();
        let request = line::request(name, data_dir).filter(|_| kept.push(name));
        let Some(request) = request else {
            return Err(message(format_args!(
                "the path of the data directory, or the name, cannot be sent in one line"
            )));
        };
        let now = Instant::now();
        let fresh = self.connection.is_none();
        self.attempt = Some(Attempt { name: kept, request, sent: 0, begun: now, heard: now, fresh });
        Ok(())
    }

    /// How long the request has been under way.
    pub(crate) fn waited(&self) -> Duration {
        self.attempt.as_ref().map_or(Duration::ZERO, |attempt| attempt.begun.elapsed())
    }

    /// Closes the connection. The other side may go on with what it is at; nobody hears of it.
    pub(crate) fn close(&mut self) {
        self.connection = None;
        self.attempt = None;
        self.lines.clear();
    }

    /// Goes on with the request, waiting for a slice of time at most.
    pub(crate) fn step(&mut self, socket: &CStr, limits: Limits) -> Step {
        let step = self.try_step(socket).unwrap_or_else(Step::Failed);
        let step = match step {
            Step::Waiting => self.check_limits(limits),
            step => step,
        };
        match step {
            Step::Waiting => {}
            Step::Durable => self.attempt = None,
            Step::Failed(_) => self.close(),
        }
        step
    }

    fn check_limits(&self, limits: Limits) -> Step {
        let Some(attempt) = &self.attempt else { return Step::Failed(message(format_args!("nothing was asked for"))) };
        let (silent, total) = (attempt.heard.elapsed(), attempt.begun.elapsed());
        if silent >= limits.silence {
            let seconds = silent.as_secs();
            return Step::Failed(message(format_args!("pgkeep wal serve has not answered for {seconds} s")));
        }
        if total >= limits.total {
            let seconds = total.as_secs();
            return Step::Failed(message(format_args!(
                "pgkeep wal serve is still at it after {seconds} s; it will be asked again"
            )));
        }
        Step::Waiting
    }

    fn try_step(&mut self, socket: &CStr) -> Result<Step, Message> {
        let Some(attempt) = &mut self.attempt else { return Err(message(format_args!("nothing was asked for"))) };
        let connection = match &self.connection {
            Some(connection) => connection,
            None => match connect(socket) {
                Ok(connection) => {
                    check_peer(&connection)?;
                    self.lines.clear();
                    attempt.fresh = true;
                    attempt.sent = 0;
                    &*self.connection.insert(connection)
                }
                // Too many wait to be accepted.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = poll(None, 0);
                    return Ok(Step::Waiting);
                }
                Err(error) => return Err(cannot_connect(socket, &error)),
            },
        };
        let rest = attempt.request.as_bytes().get(attempt.sent..).unwrap_or_default();
        if !rest.is_empty() {
            return match send(connection, rest) {
                Ok(sent) => {
                    attempt.sent = attempt.sent.saturating_add(sent);
                    Ok(Step::Waiting)
                }
                Err(error) if is_later(&error) => {
                    let _ = poll(Some(connection), libc::POLLOUT);
                    Ok(Step::Waiting)
                }
                Err(_) => self.lost(),
            };
        }
        let _ = poll(Some(connection), libc::POLLIN);
        let room = self.lines.room();
        if room.is_empty() {
            return Err(message(format_args!("pgkeep wal serve answered with a line that is too long")));
        }
        match receive(connection, room) {
            Ok(0) => return self.lost(),
            Ok(count) => self.lines.arrived(count),
            Err(error) if is_later(&error) => return Ok(Step::Waiting),
            Err(_) => return self.lost(),
        }
        attempt.heard = Instant::now();
        while let Some(line) = self.lines.next_line() {
            match line::answer(line, attempt.name.as_bytes()) {
                Answer::Wait => {}
                Answer::Durable => return Ok(Step::Durable),
                Answer::Failed(reason) => {
                    let mut text = Message::new();
                    text.push(reason);
                    return Err(text);
                }
                Answer::Unknown => {
                    return Err(message(format_args!(
                        "what listens at the socket does not answer as pgkeep wal serve does"
                    )));
                }
            }
        }
        Ok(Step::Waiting)
    }

    /// The other side has closed the connection. One that was kept open since an earlier file is made anew, once.
    fn lost(&mut self) -> Result<Step, Message> {
        self.connection = None;
        self.lines.clear();
        match &mut self.attempt {
            Some(attempt) if !attempt.fresh => {
                attempt.sent = 0;
                Ok(Step::Waiting)
            }
            _ => Err(message(format_args!("pgkeep wal serve ended the connection without an answer"))),
        }
    }
}

fn message(text: std::fmt::Arguments<'_>) -> Message {
    let mut message = Message::new();
    let _ = message.write_fmt(text);
    message
}

fn cannot_connect(socket: &CStr, error: &io::Error) -> Message {
    let mut text = Message::new();
    text.push(match error.raw_os_error() {
        Some(libc::ENOENT | libc::ECONNREFUSED) => b"pgkeep wal serve does not run (nobody listens at ",
        _ => b"cannot connect to pgkeep wal serve (",
    });
    text.push(socket.to_bytes());
    let _ = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ECONNREFUSED) => text.write_str(")"),
        Some(libc::EACCES) => text.write_str(": permission denied)"),
        Some(libc::ENAMETOOLONG) => text.write_str(": the path is too long for a socket)"),
        Some(code) => write!(text, ": error {code})"),
        None => text.write_str(")"),
    };
    text
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Connects without waiting. On Linux a Unix socket is connected at once, or says `EAGAIN`.
fn connect(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a C structure of integers, for which zero bytes are a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    let connection = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address lives until the call returns, and has this length.
    let done = unsafe { libc::connect(connection.as_raw_fd(), (&raw const address).cast(), len) };
    if done == 0 { Ok(connection) } else { Err(io::Error::last_os_error()) }
}

/// Only a process of this user, or root, may say that WAL is durable.
fn check_peer(connection: &OwnedFd) -> Result<(), Message> {
    // SAFETY: a C structure of integers, for which zero bytes are a value.
    let mut peer: libc::ucred = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to values that live until the call returns, and `len` is the first one's length.
    let done = unsafe {
        let value = (&raw mut peer).cast();
        libc::getsockopt(connection.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, value, &raw mut len)
    };
    // SAFETY: takes no pointers, and cannot fail.
    let own = unsafe { libc::geteuid() };
    if done == 0 && (peer.uid == own || peer.uid == 0) {
        return Ok(());
    }
    let uid = peer.uid;
    Err(message(format_args!("a process of another user (uid {uid}) listens at the socket; it is not believed")))
}

fn send(connection: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a slice. No signal is raised when the other side is gone.
    let sent = unsafe {
        libc::send(connection.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn receive(connection: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a slice that may be written to.
    let count = unsafe { libc::recv(connection.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Waits for the connection, or for nothing but a slice of time. A signal ends it early.
fn poll(connection: Option<&OwnedFd>, events: libc::c_short) -> io::Result<()> {
    let fd = connection.map_or(-1, AsRawFd::as_raw_fd);
    let mut wanted = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one structure that lives until the call returns; a negative descriptor is passed over.
    let done = unsafe { libc::poll(&raw mut wanted, 1, SLICE_MS) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
