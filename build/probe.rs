//! Compiles the GPU probe (`src/probe/`): a dynamic program that must run on glibc 2.17 and newer, whatever glibc
//! this machine has.
//!
//! It is linked against [stub libraries](crate::stubs).

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::stubs::{self, Stub};

/// All that the probe may take from the C library: `runtime.rs` declares the same, and the compiler itself wants
/// the functions on memory. libpthread is named because older glibc must not load it late.
const STUBS: [Stub; 3] = [
    Stub {
        name: "c",
        soname: "libc.so.6",
        first: &[
            "__libc_start_main",
            "_exit",
            "write",
            "malloc",
            "calloc",
            "realloc",
            "free",
            "prctl",
            "setgroups",
            "setgid",
            "setuid",
            "memcpy",
            "memmove",
            "memset",
            "memcmp",
            "bcmp",
            "strlen",
        ],
        since_2_17: &["clock_gettime"],
    },
    Stub { name: "dl", soname: "libdl.so.2", first: &["dlopen", "dlsym", "dlerror"], since_2_17: &[] },
    Stub { name: "pthread", soname: "libpthread.so.0", first: &["pthread_self"], since_2_17: &[] },
];

/// Builds the probe below `out` and returns its path.
pub(crate) fn build(out: &Path) -> PathBuf {
    println!("cargo:rerun-if-changed=src/probe");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let cc = stubs::c_compiler();
    let stubs = stubs::make(&cc, &out.join("probe-stubs"), &STUBS);
    let probe = out.join("gpu-probe");
    stubs::run(
        rustc(&cc, &target).arg("-L").arg(format!("native={}", stubs.display())).arg("-o").arg(&probe),
    );
    probe
}

fn rustc(cc: &str, target: &str) -> Command {
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc.args(["--edition", "2024", "--crate-name", "gpu_probe", "--crate-type", "bin", "--target", target]);
    for option in [
        "opt-level=s",
        "panic=abort",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "target-feature=-crt-static",
        "default-linker-libraries=no",
        // Nothing unwinds.
        "link-arg=-Wl,-T,build/no-unwind-tables.ld",
        "link-args=-nostartfiles -nostdlib -Wl,-z,relro,-z,now -Wl,--no-as-needed -lpthread -ldl -lc",
    ] {
        rustc.args(["-C", option]);
    }
    // The flags of the agent's own build would make the probe static.
    rustc.arg("-C").arg(format!("linker={cc}")).arg("src/probe/main.rs");
    rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    rustc
}
