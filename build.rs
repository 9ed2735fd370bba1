//! Embeds the step files, the catalog, the GPU probe and the simulated driver, compressed, and refuses to build when a
//! step file uses an unknown value or a release build is not static.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use flate2::Compression;
use flate2::write::ZlibEncoder;

include!("src/plan/value_names.rs");

#[path = "build/probe.rs"]
mod probe;
#[path = "build/simulated_driver.rs"]
mod simulated_driver;
#[path = "build/size.rs"]
mod size;
#[path = "build/stubs.rs"]
mod stubs;

fn main() {
    println!("cargo:rerun-if-changed=steps");
    println!("cargo:rerun-if-changed=src/plan/value_names.rs");
    println!("cargo:rerun-if-env-changed=CARGO_CFG_TARGET_FEATURE");
    refuse_dynamic_release();
    size::link_arguments();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let steps = toml_files(Path::new("steps"));
    for (name, path) in &steps {
        check_values(name, &fs::read_to_string(path).expect("a step file is readable"));
    }
    write_table(&out.join("steps.rs"), "EMBEDDED", "The step files, in the order in which they run.", &steps);
    write_table(
        &out.join("catalog.rs"),
        "EMBEDDED",
        "The catalog's files.",
        &toml_files(Path::new("steps/catalog")),
    );
    let keys = files_with("asc", Path::new("steps/catalog/keys"));
    write_table(&out.join("catalog_keys.rs"), "KEYS", "The repositories' public keys.", &keys);
    println!("cargo:rustc-env=FRAMEWORK_LOCKS={}", compress(&write_locks(&out), &out).display());
    println!("cargo:rustc-env=GPU_PROBE={}", compress(&probe::build(&out), &out).display());
    println!("cargo:rustc-env=SIMULATED_DRIVER={}", compress(&simulated_driver::build(&out), &out).display());
}

/// An environment RUSTFLAGS replaces .cargo/config.toml's flags silently; a dynamic binary would then be shipped.
fn refuse_dynamic_release() {
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|f| f == "crt-static");
    let is_release = env::var("PROFILE").is_ok_and(|p| p == "release");
    assert!(
        is_static || !is_release,
        "a release build must be static: unset RUSTFLAGS, or add `-C target-feature=+crt-static` to it"
    );
}

fn toml_files(dir: &Path) -> Vec<(String, PathBuf)> {
    files_with("toml", dir)
}

fn files_with(extension: &str, dir: &Path) -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the directory exists")
        .map(|e| e.expect("the directory is readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .map(|p| (p.file_name().expect("a file has a name").to_string_lossy().into_owned(), p))
        .collect();
    files.sort();
    files
}

fn check_values(file: &str, text: &str) {
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("${") {
            let (name, tail) = after.split_once('}').unwrap_or((after, ""));
            assert!(VALUE_NAMES.contains(&name), "{file}:{}: no value is called {name}", number + 1);
            rest = tail;
        }
    }
}

/// Writes a table of names and compressed contents, which lie beside it in a directory of their own.
fn write_table(to: &Path, constant: &str, doc: &str, files: &[(String, PathBuf)]) {
    let contents = to.with_extension("");
    fs::create_dir_all(&contents).expect("OUT_DIR is writable");
    let mut code = format!("/// {doc}\npub(crate) const {constant}: &[crate::embedded::File] = &[\n");
    for (name, path) in files {
        let compressed = compress(path, &contents).display().to_string();
        let _ = writeln!(code, "    ({name:?}, include_bytes!({compressed:?})),");
    }
    code.push_str("];\n");
    fs::write(to, code).expect("OUT_DIR is writable");
}

/// Writes all locks of the frameworks as one text: each wheel once (most are in several locks), an empty line, and for each lock
/// `DEVICE-PYTHON` and the numbers of its wheels, each with whom it is for. `src/catalog/frameworks.rs` reads it.
fn write_locks(out: &Path) -> PathBuf {
    let mut wheels: Vec<String> = Vec::new();
    let mut locks = String::new();
    for (name, path) in files_with("txt", Path::new("steps/frameworks")) {
        locks.push_str(name.trim_end_matches(".txt"));
        for line in
            fs::read_to_string(path).expect("a lock is readable").lines().filter(|l| !l.starts_with('#'))
        {
            let (wheel, users) = line.split_once(" for: ").unwrap_or_else(|| panic!("{name}: {line}"));
            let number = wheels.iter().position(|known| known == wheel).unwrap_or_else(|| {
                wheels.push(wheel.to_owned());
                wheels.len() - 1
            });
            let _ = write!(locks, " {number}:{}", users.replace(' ', "+"));
        }
        locks.push('\n');
    }
    let to = out.join("locks");
    fs::write(&to, format!("{}\n\n{locks}", wheels.join("\n"))).expect("OUT_DIR is writable");
    to
}

/// Compresses `file` into `dir`, for `src/embedded.rs`, and returns where it is then.
fn compress(file: &Path, dir: &Path) -> PathBuf {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&fs::read(file).expect("the file is readable")).expect("memory takes everything");
    let name = file.file_name().expect("a file has a name").to_string_lossy();
    let to = dir.join(format!("{name}.zlib"));
    fs::write(&to, encoder.finish().expect("memory takes everything")).expect("OUT_DIR is writable");
    to
}
