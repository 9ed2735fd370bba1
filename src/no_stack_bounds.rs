//! The C library's question where a thread's stack lies, taken out of the program. The standard library asks it at the
//! start of each thread, so that an overflow of the stack is told apart from any other fault; the answer for the main
//! thread is read from `/proc/self/maps` by `sscanf`, which brings every way to read a number with it: 81 KB that
//! nothing else here uses. Without it an overflow ends the program by SIGSEGV all the same, without a sentence.

use std::ffi::{c_int, c_void};

#[expect(unsafe_code, reason = "takes the place of the C library's function of this name")]
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_thread: nix::libc::pthread_t, _attributes: *mut c_void) -> c_int {
    nix::libc::ENOSYS
}
