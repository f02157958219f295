//! PostgreSQL's `archive_library`: hands WAL files to `pgkeep wal serve` over a Unix socket, and believes only its "durable".
//!
//! One library for PostgreSQL 15 to 18. It runs in the archiver, whose crash would be the crash of the whole server: it
//! has no threads and no runtime, its texts are in buffers of fixed size, every wait has a limit, and a panic, which there
//! should not be, is caught and makes the file count as not archived. Nothing here knows what is in WAL.
//!
//! - `line`: the protocol (docs/archive-library.md); `client`: the connection;
//! - `server`: what is taken from PostgreSQL; `magic`: what it wants to know before it uses a library.

#![allow(clippy::result_large_err, clippy::large_enum_variant, reason = "texts are not put on the heap")]

mod client;
mod line;
mod magic;
mod server;

use client::{Client, Limits, Message, Step};
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use magic::Magic;

/// While the server runs.
const USUAL: Limits = Limits { silence: Duration::from_secs(10), total: Duration::from_secs(300) };
/// In the archiver's last round, when the server's end waits for it.
const LAST_ROUND: Limits = Limits { silence: Duration::from_secs(2), total: Duration::from_secs(30) };
/// What takes less than this needs no look at whether the server is being shut down.
const SOON: Duration = Duration::from_secs(1);

static CLIENT: Mutex<Client> = Mutex::new(Client::new());
/// Whether a file failed in the last round: the next ones would only cost their time, too.
static GAVE_UP: AtomicBool = AtomicBool::new(false);

/// `ArchiveModuleCallbacks` of 15 (`src/include/postmaster/pgarch.h`).
#[repr(C)]
pub struct Callbacks15 {
    check_configured: Option<extern "C" fn() -> bool>,
    archive_file: Option<unsafe extern "C" fn(*const c_char, *const c_char) -> bool>,
    shutdown: Option<extern "C" fn()>,
}

/// `ArchiveModuleCallbacks` of 16 and later (`src/include/archive/archive_module.h`).
#[repr(C)]
pub struct Callbacks16 {
    startup: Option<extern "C" fn(*mut c_void)>,
    check_configured: Option<extern "C" fn(*mut c_void) -> bool>,
    archive_file: Option<unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> bool>,
    shutdown: Option<extern "C" fn(*mut c_void)>,
}

static CALLBACKS: Callbacks16 = Callbacks16 {
    startup: None,
    check_configured: Some(check_configured),
    archive_file: Some(archive_file),
    shutdown: Some(shutdown),
};

/// Called by the server before anything else: its own facts, as of its version.
#[unsafe(no_mangle)]
pub extern "C" fn Pg_magic_func() -> *const Magic {
    magic::of(server::major())
}

/// Called by the server when it has loaded the library: settings are made known.
#[unsafe(no_mangle)]
pub extern "C" fn _PG_init() {
    server::define_settings();
}

/// Called by the archiver: gives it the callbacks. 15 passes a table to fill in and takes no result; later versions pass
/// nothing and take a table.
///
/// # Safety
/// Only a server of version 15 to 18 may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _PG_archive_module_init(table: *mut Callbacks15) -> *const Callbacks16 {
    if server::major() == 15 && !table.is_null() {
        let callbacks = Callbacks15 {
            check_configured: Some(check_configured_15),
            archive_file: Some(archive_file_15),
            shutdown: Some(shutdown_15),
        };
        // SAFETY: a server of version 15 passes its own table (`LoadArchiveLibrary` in src/backend/postmaster/pgarch.c).
        unsafe { table.write(callbacks) };
    }
    &raw const CALLBACKS
}

extern "C" fn check_configured_15() -> bool {
    check_configured(std::ptr::null_mut())
}

unsafe extern "C" fn archive_file_15(file: *const c_char, path: *const c_char) -> bool {
    // SAFETY: as the caller promises.
    unsafe { archive_file(std::ptr::null_mut(), file, path) }
}

extern "C" fn shutdown_15() {
    shutdown(std::ptr::null_mut());
}

extern "C" fn check_configured(_: *mut c_void) -> bool {
    let configured = server::socket().is_some();
    if !configured {
        server::explain(c"\"pgkeep.socket\" is not set: it names the socket of \"pgkeep wal serve\".");
    }
    configured
}

extern "C" fn shutdown(_: *mut c_void) {
    let _ = guarded(|| with_client(Client::close));
}

/// # Safety
/// The server's: `file` is a text that ends with a zero byte.
unsafe extern "C" fn archive_file(_: *mut c_void, file: *const c_char, _: *const c_char) -> bool {
    if file.is_null() {
        return false;
    }
    // SAFETY: as the caller promises.
    let name = unsafe { CStr::from_ptr(file) };
    if GAVE_UP.load(Ordering::Relaxed) && server::is_shut_down() {
        return false;
    }
    match archive(name) {
        Ok(durable) => durable,
        Err(reason) => {
            if server::is_shut_down() {
                GAVE_UP.store(true, Ordering::Relaxed);
            }
            let mut message = Message::new();
            for part in [b"WAL file \"", name.to_bytes(), b"\" was not archived: ", reason.as_bytes()] {
                message.push(part);
            }
            server::warn(
                &message,
                Some(c"PostgreSQL keeps the file and tries again. See the log of \"pgkeep wal serve\"."),
            );
            false
        }
    }
}

/// Asks for a file and waits for the answer. Between two steps the archiver looks at what else is asked of it; no lock
/// is held meanwhile.
fn archive(name: &CStr) -> Result<bool, Message> {
    let (Some(socket), Some(data_dir)) = (server::socket(), server::data_dir()) else { return Ok(false) };
    let panicked = || {
        let mut message = Message::new();
        message.push(b"a bug in the archive library (see above)");
        message
    };
    let begun = guarded(|| with_client(|client| client.begin(name.to_bytes(), data_dir.to_bytes())));
    begun.ok_or_else(panicked)??;
    loop {
        let limits = if waited() >= SOON && server::is_shut_down() { LAST_ROUND } else { USUAL };
        match guarded(|| with_client(|client| client.step(socket, limits))).ok_or_else(panicked)? {
            Step::Durable => return Ok(true),
            Step::Failed(reason) => return Err(reason),
            Step::Waiting => {}
        }
        if server::must_stop() {
            let _ = guarded(|| with_client(Client::close));
            return Ok(false);
        }
        server::absorb_barrier();
    }
}

fn waited() -> Duration {
    guarded(|| with_client(|client| client.waited())).unwrap_or_default()
}

fn with_client<T>(act: impl FnOnce(&mut Client) -> T) -> T {
    // A lock for the compiler's sake: the archiver has one thread.
    act(&mut CLIENT.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Nothing may unwind into the server.
fn guarded<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}
