//! What std would do: the entry point, the allocator, standard output, the clock, process settings.
//!
//! The functions below are the whole list of what the probe takes from the C library. `build.rs` has the same
//! list with the version of each symbol; a name that is missing there does not link.

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ffi::{c_char, c_int, c_void};
use core::fmt::{self, Write};
use core::ptr::null;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

type Main = extern "C" fn(c_int, *const *const c_char, *const *const c_char) -> c_int;

unsafe extern "C" {
    fn __libc_start_main(
        main: Main,
        argc: c_int,
        argv: *const *const c_char,
        init: *const c_void,
        fini: *const c_void,
        rtld_fini: *const c_void,
        stack_end: *const c_void,
    ) -> c_int;
    fn _exit(code: c_int) -> !;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    fn malloc(size: usize) -> *mut c_void;
    fn calloc(count: usize, size: usize) -> *mut c_void;
    fn realloc(block: *mut c_void, size: usize) -> *mut c_void;
    fn free(block: *mut c_void);
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn setgid(group: u32) -> c_int;
    fn setuid(user: u32) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
    fn strlen(text: *const c_char) -> usize;
    pub fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    pub fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    pub fn dlerror() -> *const c_char;
}

// The kernel's initial stack: argc, then argv. The register holds the dynamic linker's exit function.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    ".type _start,@function",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "mov %rdx, %rsi",
    "and $-16, %rsp",
    "call {entry}",
    "hlt",
    entry = sym entry,
    options(att_syntax)
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl _start",
    ".type _start,%function",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x1, x0",
    "mov x0, sp",
    "bl {entry}",
    "brk #1",
    entry = sym entry
);

unsafe extern "C" fn entry(stack: *const usize, rtld_fini: *const c_void) -> ! {
    // SAFETY: `stack` is what the kernel left for a new program: argc, then argv with its final null. There are
    // no constructors here, so glibc, old or new, gets none (null) to run.
    unsafe {
        let argc = *stack as c_int;
        let argv = stack.add(1).cast::<*const c_char>();
        __libc_start_main(main, argc, argv, null(), null(), rtld_fini, stack.cast());
        _exit(127)
    }
}

extern "C" fn main(argc: c_int, argv: *const *const c_char, _environment: *const *const c_char) -> c_int {
    // SAFETY: argv has argc strings that live as long as the process.
    let args: Vec<&'static str> = (0..argc as usize).map(|i| unsafe { text(*argv.add(i)) }).collect();
    let code = crate::run(&args);
    // SAFETY: ends the process. Without exit handlers: those of libcuda may hang on a broken driver.
    unsafe { _exit(code) }
}

/// A C string as text; empty for null, `?` for what is not UTF-8.
///
/// # Safety
/// `string` is null or ends with a zero byte, and stays unchanged.
pub unsafe fn text(string: *const c_char) -> &'static str {
    if string.is_null() {
        return "";
    }
    // SAFETY: by this function's own condition.
    let bytes = unsafe { core::slice::from_raw_parts(string.cast::<u8>(), strlen(string)) };
    core::str::from_utf8(bytes).unwrap_or("?")
}

/// The kernel kills this process when the agent dies.
pub fn die_with_parent() {
    const PR_SET_PDEATHSIG: c_int = 1;
    const SIGKILL: usize = 9;
    // SAFETY: sets a flag of this process. The agent has set it, too, but a change of the user clears it.
    unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) };
}

/// Gives up root for good: no groups, no way back, no set-id program helps.
pub fn become_user(user: u32) -> bool {
    const PR_SET_NO_NEW_PRIVS: c_int = 38;
    // SAFETY: there is one thread, so the C library changes the whole process.
    unsafe {
        setgroups(0, null()) == 0
            && setgid(user) == 0
            && setuid(user) == 0
            && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    }
}

/// Where records go.
static RECORDS: AtomicI32 = AtomicI32::new(1);

/// Keeps standard output for the records: what libraries print there goes to standard error, so that they can neither
/// break a record nor make one up, and what they start does not hold it open.
pub fn keep_output() {
    const F_DUPFD_CLOEXEC: c_int = 1030;
    // SAFETY: both make descriptors of this process; without room for one, the records stay where they were.
    unsafe {
        let own = fcntl(1, F_DUPFD_CLOEXEC, 3);
        if own >= 0 {
            RECORDS.store(own, Relaxed);
            dup2(2, 1);
        }
    }
}

/// The descriptor of the records.
pub fn records() -> Descriptor {
    Descriptor(RECORDS.load(Relaxed))
}

/// A file descriptor to print to.
pub struct Descriptor(pub c_int);

impl Write for Descriptor {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut rest = s.as_bytes();
        while !rest.is_empty() {
            // SAFETY: pointer and length are those of `rest`.
            let written = unsafe { write(self.0, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(written) {
                Ok(1..) => rest = &rest[written as usize..],
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

/// Milliseconds of the clock that never goes back.
pub fn milliseconds() -> f64 {
    const CLOCK_MONOTONIC: c_int = 1;
    let mut time = [0i64; 2];
    // SAFETY: `time` has the layout of timespec.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &mut time) };
    time[0] as f64 * 1e3 + time[1] as f64 / 1e6
}

struct CHeap;

/// malloc's own alignment; nothing here asks for more.
const ALIGNMENT: usize = 16;

// SAFETY: malloc and its kin, which return null on failure, as the trait wants it.
unsafe impl GlobalAlloc for CHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > ALIGNMENT {
            return core::ptr::null_mut();
        }
        unsafe { malloc(layout.size()).cast() }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() > ALIGNMENT {
            return core::ptr::null_mut();
        }
        unsafe { calloc(1, layout.size()).cast() }
    }
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        unsafe { free(block.cast()) }
    }
    unsafe fn realloc(&self, block: *mut u8, _: Layout, size: usize) -> *mut u8 {
        unsafe { realloc(block.cast(), size).cast() }
    }
}

#[global_allocator]
static HEAP: CHeap = CHeap;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let _ = writeln!(Descriptor(2), "{info}");
    // SAFETY: ends the process.
    unsafe { _exit(101) }
}

// The prebuilt `alloc` carries landing pads. With panic=abort nothing jumps there; the linker wants the names.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: ends the process.
    unsafe { _exit(102) }
}
