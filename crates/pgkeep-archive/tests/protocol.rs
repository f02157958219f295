//! The library's own half of the conversation, without a server: its lines, and a connection to something that answers
//! well, badly, late or not at all.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]
#![allow(clippy::result_large_err, clippy::large_enum_variant, reason = "as in the library")]
#![allow(dead_code, reason = "the library's files, of which each test uses a part")]

#[path = "../src/client.rs"]
mod client;
#[path = "../src/line.rs"]
mod line;

use client::{Client, Limits, Step};
use line::{Answer, Lines, Text, answer, request};
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

const NAME: &[u8] = b"000000010000000000000003";
const PATIENT: Limits = Limits { silence: Duration::from_secs(20), total: Duration::from_secs(60) };

#[test]
fn only_the_very_answer_means_durable() {
    let check = |line: &[u8], expect: Answer<'_>| assert_eq!(answer(line, NAME), expect, "{line:?}");
    check(b"DURABLE 000000010000000000000003", Answer::Durable);
    check(b"WAIT", Answer::Wait);
    check(b"FAILED no room", Answer::Failed(b"no room"));
    for other in [
        &b"DURABLE 000000010000000000000004"[..],
        b"DURABLE 000000010000000000000003 ",
        b"DURABLE 000000010000000000000003\r",
        b"DURABLE",
        b"DURABLE ",
        b"durable 000000010000000000000003",
        b"",
        b"FAILED",
        b"WAIT ",
        b"\xff\xfe",
    ] {
        check(other, Answer::Unknown);
    }
    assert_eq!(answer(b"DURABLE ", b""), Answer::Unknown);
}

#[test]
fn requests_are_one_line() {
    let said = |name: &[u8], dir: &[u8]| request(name, dir).map(|text| text.as_bytes().to_vec());
    assert_eq!(said(NAME, b"/a b").unwrap(), b"PUSH 1 000000010000000000000003 /a b\n");
    assert_eq!(said(NAME, b"/a\nPUSH 1 x /y"), None);
    assert_eq!(said(b"x y", b"/a"), None);
    assert_eq!(said(b"", b"/a"), None);
    assert_eq!(said(NAME, b""), None);
    assert!(said(NAME, &[b'/'; 1024]).is_some());
    assert_eq!(said(NAME, &[b'/'; 1300]), None);
}

#[test]
fn a_text_that_is_too_long_is_cut_and_still_ends_with_a_zero_byte() {
    let mut text = Text::<8>::new();
    assert!(!text.push(b"0123456789"));
    assert_eq!(text.as_bytes(), b"0123456");
    // SAFETY: what is being proven; the buffer is longer than what is read.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(text.as_ptr()) }.to_bytes(), b"0123456");
    let mut zero = Text::<8>::new();
    write!(zero, "a\0b").unwrap();
    assert_eq!(zero.as_bytes(), b"a");
}

#[test]
fn lines_arrive_in_any_pieces() {
    let all = b"WAIT\nDURABLE x\n\nFAILED y\n";
    for piece in 1..all.len() {
        let mut lines = Lines::new();
        let mut found: Vec<Vec<u8>> = Vec::new();
        for bytes in all.chunks(piece) {
            lines.room()[..bytes.len()].copy_from_slice(bytes);
            lines.arrived(bytes.len());
            while let Some(line) = lines.next_line() {
                found.push(line.to_vec());
            }
        }
        assert_eq!(found, [&b"WAIT"[..], b"DURABLE x", b"", b"FAILED y"], "in pieces of {piece}");
    }
    let mut lines = Lines::new();
    let room = lines.room().len();
    lines.room().fill(b'x');
    lines.arrived(room);
    assert!(lines.next_line().is_none() && lines.room().is_empty(), "a line without an end");
}

/// A place to listen, and the library's client.
struct Scene {
    _dir: tempfile::TempDir,
    listener: UnixListener,
    path: CString,
    client: Client,
}

/// What is heard of a connection.
struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn hears(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn says(&mut self, text: &[u8]) {
        self.stream.write_all(text).unwrap();
    }
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    Scene { _dir: dir, listener, path: CString::new(path.as_os_str().as_bytes()).unwrap(), client: Client::new() }
}

impl Scene {
    fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().unwrap();
        Peer { lines: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    fn begin(&mut self) {
        assert!(self.client.begin(NAME, b"/data").is_ok());
    }

    /// Steps until something comes of it.
    fn end(&mut self, limits: Limits) -> Result<(), String> {
        loop {
            match self.client.step(&self.path, limits) {
                Step::Waiting => {}
                Step::Durable => return Ok(()),
                Step::Failed(reason) => return Err(String::from_utf8_lossy(reason.as_bytes()).into_owned()),
            }
        }
    }

    /// Asks, and something else answers meanwhile.
    fn ask(&mut self, answerer: impl FnOnce(&Self) + Send) -> Result<(), String> {
        self.begin();
        let path = self.path.clone();
        let mut client = std::mem::replace(&mut self.client, Client::new());
        let (client, result) = std::thread::scope(|scope| {
            let other = scope.spawn(move || {
                let result = loop {
                    match client.step(&path, PATIENT) {
                        Step::Waiting => {}
                        Step::Durable => break Ok(()),
                        Step::Failed(reason) => break Err(String::from_utf8_lossy(reason.as_bytes()).into_owned()),
                    }
                };
                (client, result)
            });
            answerer(self);
            other.join().unwrap()
        });
        self.client = client;
        result
    }
}

#[test]
fn one_connection_for_many_files() {
    let mut scene = scene();
    let mut kept = None;
    scene
        .ask(|scene| {
            let mut peer = scene.accept();
            assert_eq!(peer.hears(), "PUSH 1 000000010000000000000003 /data\n");
            peer.says(b"WAIT\nWAIT\nDURABLE 0000000100000000");
            peer.says(b"00000003\n");
            kept = Some(peer);
        })
        .unwrap();
    let mut peer = kept.unwrap();
    scene
        .ask(|_| {
            peer.hears();
            peer.says(b"DURABLE 000000010000000000000003\n");
        })
        .unwrap();
}

#[test]
fn what_is_no_answer_is_a_failure() {
    for (said, expect) in [
        (&b"FAILED the disk is full\n"[..], "the disk is full"),
        (b"DURABLE 000000010000000000000004\n", "does not answer as"),
        (b"HTTP/1.1 400 Bad Request\n", "does not answer as"),
        (b"", "without an answer"),
        (b"WAIT\nDURABLE 000000010000000000000003", "without an answer"),
        (&[b'x'; 2000], "too long"),
    ] {
        let mut scene = scene();
        let result = scene.ask(|scene| {
            let mut peer = scene.accept();
            peer.hears();
            // The reader may have gone already.
            let _ = peer.stream.write_all(said);
        });
        let reason = result.unwrap_err();
        assert!(reason.contains(expect), "{said:?}: {reason}");
    }
}

#[test]
fn a_connection_that_ended_meanwhile_is_made_anew() {
    let mut scene = scene();
    let answered = |scene: &Scene| {
        let mut peer = scene.accept();
        peer.hears();
        peer.says(b"DURABLE 000000010000000000000003\n");
    };
    // Each time the other side closes after its answer, as when it is started anew.
    scene.ask(answered).unwrap();
    scene.ask(answered).unwrap();
    scene.ask(answered).unwrap();
}

#[test]
fn nobody_there() {
    let mut scene = scene();
    std::fs::remove_file(std::path::Path::new(std::ffi::OsStr::from_bytes(scene.path.to_bytes()))).unwrap();
    scene.begin();
    let reason = scene.end(PATIENT).unwrap_err();
    assert!(reason.contains("does not run") && reason.contains(scene.path.to_str().unwrap()), "{reason}");
    scene.path = CString::new(vec![b'/'; 200]).unwrap();
    scene.begin();
    assert!(scene.end(PATIENT).unwrap_err().contains("too long"));
}

#[test]
fn silence_has_a_limit_and_so_has_work() {
    let mut scene = scene();
    let limits = Limits { silence: Duration::from_millis(300), total: Duration::from_secs(60) };
    // Nobody even accepts.
    scene.begin();
    assert!(scene.end(limits).unwrap_err().contains("has not answered"));
    let limits = Limits { silence: Duration::from_secs(60), total: Duration::from_millis(300) };
    scene.begin();
    assert!(scene.end(limits).unwrap_err().contains("still at it"));
}

#[test]
fn a_full_queue_of_connections_does_not_block() {
    let mut scene = scene();
    // Nobody accepts: the queue fills up, and `connect` would wait for ever.
    let limits = Limits { silence: Duration::from_millis(250), total: Duration::from_secs(60) };
    let path = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(scene.path.to_bytes()));
    let mut waiting = Vec::new();
    for _ in 0..5000 {
        let socket = connect_at_once(&path);
        match socket {
            Some(socket) => waiting.push(socket),
            None => break,
        }
    }
    assert!(waiting.len() < 5000, "the queue has an end");
    scene.begin();
    assert!(scene.end(limits).unwrap_err().contains("has not answered"));
    // As soon as there is room again, it works.
    drop(waiting);
    scene
        .ask(|scene| {
            loop {
                let mut peer = scene.accept();
                if peer.hears().starts_with("PUSH") {
                    peer.says(b"DURABLE 000000010000000000000003\n");
                    break;
                }
            }
        })
        .unwrap();
}

/// A connection that is made at once, or not at all.
fn connect_at_once(path: &std::path::Path) -> Option<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).ok().map(|()| socket)
}
