//! What is taken from the server: the only place that calls into PostgreSQL. Everything here has the same form in 15 to
//! 18, unless it says otherwise.
//!
//! PostgreSQL's functions may leave by `longjmp` when they fail (`ereport(ERROR)`). The frames between them and the server
//! hold nothing that must be dropped, and no lock is held while they run.

use crate::client::Message;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// `WARNING` in `src/include/utils/elog.h`.
const WARNING: c_int = 19;
/// `PGC_SIGHUP` in `src/include/utils/guc.h`.
const PGC_SIGHUP: c_int = 2;

unsafe extern "C" {
    // src/include/utils/guc.h
    fn GetConfigOption(name: *const c_char, missing_ok: bool, restrict_privileged: bool) -> *const c_char;
    fn DefineCustomStringVariable(
        name: *const c_char,
        short_desc: *const c_char,
        long_desc: *const c_char,
        value_addr: *mut *mut c_char,
        boot_value: *const c_char,
        context: c_int,
        flags: c_int,
        check_hook: *const c_void,
        assign_hook: *const c_void,
        show_hook: *const c_void,
    );
    fn MarkGUCPrefixReserved(class_name: *const c_char);
    // src/include/utils/elog.h
    fn errstart(elevel: c_int, domain: *const c_char) -> bool;
    fn errmsg_internal(fmt: *const c_char, ...) -> c_int;
    fn errhint(fmt: *const c_char, ...) -> c_int;
    fn errfinish(filename: *const c_char, lineno: c_int, funcname: *const c_char);
    // src/include/storage/procsignal.h, src/include/miscadmin.h, src/include/postmaster/interrupt.h
    fn ProcessProcSignalBarrier();
    static mut ProcSignalBarrierPending: c_int;
    static mut ShutdownRequestPending: c_int;
    static PostmasterPid: libc::pid_t;
    static DataDir: *const c_char;
}

/// The value of `pgkeep.socket`. The server owns the text and replaces it between two calls of the library.
static SOCKET: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

/// The server's major version, such as 17; zero when it does not say.
pub(crate) fn major() -> u32 {
    // SAFETY: a name that ends with a zero byte; a setting that is not there is answered with a null pointer.
    let text = unsafe { text(GetConfigOption(c"server_version_num".as_ptr(), true, false)) };
    let number = text.and_then(|text| text.to_str().ok()?.parse::<u32>().ok());
    number.map_or(0, |number| number / 10_000)
}

/// # Safety
/// A null pointer, or one to a text that ends with a zero byte and stays as it is while the result is in use.
unsafe fn text<'a>(pointer: *const c_char) -> Option<&'a CStr> {
    // SAFETY: as the caller promises.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) })
}

/// Makes `pgkeep.socket` known.
pub(crate) fn define_settings() {
    // SAFETY: texts that end with a zero byte and live for ever; a place for the value that lives for ever and is read
    // by this thread only, which is the server's; no hooks.
    unsafe {
        DefineCustomStringVariable(
            c"pgkeep.socket".as_ptr(),
            c"The Unix socket of pgkeep wal serve, which archives WAL.".as_ptr(),
            std::ptr::null(),
            SOCKET.as_ptr(),
            c"".as_ptr(),
            PGC_SIGHUP,
            0,
            std::ptr::null(),
            std::ptr::null(),
            std::ptr::null(),
        );
        MarkGUCPrefixReserved(c"pgkeep".as_ptr());
    }
}

/// The value of `pgkeep.socket`; none when it is empty. Valid until the server reads its configuration again, which it
/// does not while the library is at work.
pub(crate) fn socket<'a>() -> Option<&'a CStr> {
    // SAFETY: the server's own text for a string setting.
    unsafe { text(SOCKET.load(Ordering::Relaxed)) }.filter(|text| !text.is_empty())
}

/// The data directory, as an absolute path.
pub(crate) fn data_dir<'a>() -> Option<&'a CStr> {
    // SAFETY: set once, before the archiver is started.
    unsafe { text(DataDir) }
}

/// Writes a warning to the server's log.
pub(crate) fn warn(message: &Message, hint: Option<&CStr>) {
    // SAFETY: what `ereport(WARNING, ...)` is made of; formats and texts end with a zero byte and live until `errfinish`
    // has returned.
    unsafe {
        if errstart(WARNING, std::ptr::null()) {
            errmsg_internal(c"%s".as_ptr(), message.as_ptr());
            if let Some(hint) = hint {
                errhint(c"%s".as_ptr(), hint.as_ptr());
            }
            errfinish(c"pgkeep-archive".as_ptr(), 0, c"archive".as_ptr());
        }
    }
}

/// Says why archiving is not configured: `arch_module_check_errdetail_string` in 17 and later, else a warning.
pub(crate) fn explain(reason: &'static CStr) {
    let name = c"arch_module_check_errdetail_string";
    // SAFETY: looks for a name among those of the program; a null pointer says that there is none.
    let place: *mut *const c_char = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast();
    if place.is_null() {
        let mut message = Message::new();
        message.push(reason.to_bytes());
        warn(&message, None);
    } else {
        // SAFETY: a `char *` of the server's, which only reads the text (src/backend/postmaster/pgarch.c).
        unsafe { place.write(reason.as_ptr()) };
    }
}

/// Whether the archiver was told to end, or its server is gone.
pub(crate) fn must_stop() -> bool {
    // SAFETY: integers of the server's; the first one is written by a signal handler, so it is read anew each time.
    unsafe { (&raw const ShutdownRequestPending).read_volatile() != 0 || libc::getppid() != PostmasterPid }
}

/// Takes part in a barrier that another process waits for, as with `DROP DATABASE`.
pub(crate) fn absorb_barrier() {
    // SAFETY: an integer that a signal handler writes; the function is made for being called between two actions of a
    // process, and the archiver holds nothing that a barrier could be about.
    unsafe {
        if (&raw const ProcSignalBarrierPending).read_volatile() != 0 {
            ProcessProcSignalBarrier();
        }
    }
}

/// Whether the server's shutdown checkpoint is written: then the archiver is in its last round, and nobody but it is
/// waited for. Read from `pg_control`, since the archiver's own note of it cannot be reached (`ready_to_stop` in
/// `src/backend/postmaster/pgarch.c`).
pub(crate) fn is_shut_down() -> bool {
    use std::io::Read;
    // `state` of `ControlFileData` in src/include/catalog/pg_control.h: after system identifier and two versions.
    let mut begin = [0; 20];
    // Its working directory is the data directory.
    let read = std::fs::File::open("global/pg_control").and_then(|mut file| file.read_exact(&mut begin));
    let state = begin.last_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    // DB_SHUTDOWNED, DB_SHUTDOWNED_IN_RECOVERY
    read.is_ok() && matches!(state, 1 | 2)
}
