//! Compiles the GPU probe (`src/probe/`): a dynamic program that must run on glibc 2.17 and newer, whatever glibc
//! this machine has.
//!
//! A linker takes the newest version of each symbol that it finds. So the probe is linked against stub libraries
//! that hold nothing but names, each with the version that we allow. What is not in the table does not link.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// One stub library.
struct Stub {
    /// As the linker is asked for it (`-lc`).
    name: &'static str,
    /// As the dynamic linker looks for it on the machine.
    soname: &'static str,
    /// Symbols that exist since the architecture's first glibc.
    first: &'static [&'static str],
    /// Symbols that came (or moved) with `GLIBC_2.17`.
    since_2_17: &'static [&'static str],
}

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
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-env-changed=CC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let cc = c_compiler(&target);
    let stubs = out.join("probe-stubs");
    fs::create_dir_all(&stubs).expect("OUT_DIR is writable");
    for stub in &STUBS {
        link_stub(&cc, &stubs, stub);
    }
    let probe = out.join("gpu-probe");
    run(rustc(&cc, &target).arg("-L").arg(format!("native={}", stubs.display())).arg("-o").arg(&probe));
    probe
}

/// The compiler and linker driver for C.
pub(crate) fn c_compiler(target: &str) -> String {
    let of_target = format!("CC_{}", target.replace('-', "_"));
    println!("cargo:rerun-if-env-changed={of_target}");
    env::var(of_target).or_else(|_| env::var("CC")).unwrap_or_else(|_| "cc".into())
}

/// The first glibc version of the architecture.
fn first_glibc() -> &'static str {
    match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "GLIBC_2.2.5",
        Ok("aarch64") => "GLIBC_2.17",
        other => panic!("the GPU probe has no entry point for {other:?}"),
    }
}

fn link_stub(cc: &str, dir: &Path, stub: &Stub) {
    let mut versions: Vec<(&str, Vec<&str>)> = vec![(first_glibc(), stub.first.to_vec())];
    if first_glibc() == "GLIBC_2.17" {
        versions[0].1.extend(stub.since_2_17);
    } else if !stub.since_2_17.is_empty() {
        versions.push(("GLIBC_2.17", stub.since_2_17.to_vec()));
    }
    let mut source = String::new();
    let mut map = String::new();
    for (version, symbols) in versions {
        let _ = writeln!(map, "{version} {{ global: {}; }};", symbols.join("; "));
        for symbol in symbols {
            let _ = writeln!(source, ".globl {symbol}\n.type {symbol},%function\n{symbol}:");
        }
    }
    source += ".section .note.GNU-stack,\"\",%progbits\n";
    let assembly = format!("{}.s", stub.name);
    let versions = format!("{}.map", stub.name);
    fs::write(dir.join(&assembly), source).expect("OUT_DIR is writable");
    fs::write(dir.join(&versions), map).expect("OUT_DIR is writable");
    run(Command::new(cc)
        .current_dir(dir)
        .args(["-shared", "-nostdlib", "-x", "assembler", &assembly])
        .arg(format!("-Wl,-soname,{}", stub.soname))
        .arg(format!("-Wl,--version-script,{versions}"))
        .arg("-o")
        .arg(format!("lib{}.so", stub.name)));
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

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}
