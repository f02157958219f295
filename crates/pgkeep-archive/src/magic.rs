//! The block of facts that a server compares before it uses a library: `Pg_magic_struct` in `src/include/fmgr.h`.

use std::ffi::{c_char, c_int};

/// `FMGR_ABI_EXTRA` and zero bytes.
const ABI_EXTRA: [u8; 32] = *b"PostgreSQL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The block of 18. That of 15 to 17 is the same without the last two fields.
#[repr(C)]
pub struct Magic {
    len: c_int,
    version: c_int,
    func_max_args: c_int,
    index_max_keys: c_int,
    name_data_len: c_int,
    float8_by_val: c_int,
    abi_extra: [u8; 32],
    name: *const c_char,
    library_version: *const c_char,
}

// SAFETY: the pointers are to texts that live for ever and are never written.
unsafe impl Sync for Magic {}

const fn magic(major: c_int) -> Magic {
    let len = if major >= 18 { size_of::<Magic>() } else { std::mem::offset_of!(Magic, name) };
    Magic {
        len: len as c_int,
        version: major * 100,
        // FUNC_MAX_ARGS, INDEX_MAX_KEYS, NAMEDATALEN in src/include/pg_config_manual.h; FLOAT8PASSBYVAL in src/include/c.h.
        func_max_args: 100,
        index_max_keys: 32,
        name_data_len: 64,
        float8_by_val: (size_of::<usize>() >= 8) as c_int,
        abi_extra: ABI_EXTRA,
        name: c"pgkeep_archive".as_ptr(),
        library_version: concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast(),
    }
}

static MAGIC_15: Magic = magic(15);
static MAGIC_16: Magic = magic(16);
static MAGIC_17: Magic = magic(17);
static MAGIC_18: Magic = magic(18);

/// The block for a major version. A server that is not known gets one that it refuses, naming both versions.
pub(crate) fn of(major: u32) -> &'static Magic {
    match major {
        0..=15 => &MAGIC_15,
        16 => &MAGIC_16,
        17 => &MAGIC_17,
        _ => &MAGIC_18,
    }
}
