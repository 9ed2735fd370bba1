//! The C library's resolver, taken out of the program. In a static binary `getaddrinfo` loads the host's NSS
//! libraries, of another glibc perhaps; every name here is resolved by hickory. The lint in `clippy.toml` keeps our
//! own code away from it; this does the same for dependencies and the standard library: they link to these
//! functions, which know no name, and 106 KB of glibc stay out of the binary.

use std::ffi::{c_char, c_int, c_void};

#[expect(unsafe_code, reason = "takes the place of the C library's function of this name")]
#[unsafe(no_mangle)]
extern "C" fn getaddrinfo(
    _node: *const c_char,
    _service: *const c_char,
    _hints: *const c_void,
    _found: *mut *mut c_void,
) -> c_int {
    nix::libc::EAI_FAIL
}

/// There is nothing to free: the function above finds nothing.
#[expect(unsafe_code, reason = "takes the place of the C library's function of this name")]
#[unsafe(no_mangle)]
extern "C" fn freeaddrinfo(_found: *mut c_void) {}
