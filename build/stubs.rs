//! Stub libraries: what must run on old glibc releases is linked against them instead of this machine's.
//!
//! A linker takes the newest version of each symbol that it finds. A stub library holds nothing but names, each with
//! the version that we allow. What is not in its table does not link.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// One stub library.
pub(crate) struct Stub {
    /// As the linker is asked for it (`-lc`).
    pub(crate) name: &'static str,
    /// As the dynamic linker looks for it on the machine.
    pub(crate) soname: &'static str,
    /// Symbols that exist since the architecture's first glibc.
    pub(crate) first: &'static [&'static str],
    /// Symbols that came (or moved) with `GLIBC_2.17`.
    pub(crate) since_2_17: &'static [&'static str],
}

/// Makes the libraries in `dir` and returns it.
pub(crate) fn make(cc: &str, dir: &Path, stubs: &[Stub]) -> PathBuf {
    println!("cargo:rerun-if-changed=build");
    fs::create_dir_all(dir).expect("OUT_DIR is writable");
    for stub in stubs {
        link_stub(cc, dir, stub);
    }
    dir.to_owned()
}

/// The C compiler for the target, as the `cc` crate would choose it.
pub(crate) fn c_compiler() -> String {
    println!("cargo:rerun-if-env-changed=CC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let of_target = format!("CC_{}", target.replace('-', "_"));
    println!("cargo:rerun-if-env-changed={of_target}");
    // Cargo names the linker that `.cargo/config.toml` has for the target: another architecture's compiler.
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let given = env::var(of_target).or_else(|_| env::var("CC")).or_else(|_| env::var("RUSTC_LINKER"));
    given.unwrap_or_else(|_| "cc".into())
}

/// The first glibc version of the architecture.
fn first_glibc() -> &'static str {
    match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "GLIBC_2.2.5",
        Ok("aarch64") => "GLIBC_2.17",
        other => panic!("the first glibc of {other:?} is not known"),
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

/// Runs a compiler; what it says is the build's failure.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}
