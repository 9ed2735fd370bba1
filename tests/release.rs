//! `packaging/release`, with a `cargo` that takes notes instead of building: what it refuses, what it asks cargo for,
//! and what it leaves in `dist/`. A real build is `packaging/release --verify`.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

const ARM_COMPILER: &str = "aarch64-linux-gnu-gcc";

/// Unpacks the dependencies' sources when it is asked to fetch. Else writes `$BINARY` (some bytes) where cargo would, and
/// its arguments and environment beside it.
const CARGO: &str = r#"#!/bin/sh
if [ "$1" = fetch ]; then mkdir -p "$CARGO_HOME/registry/src/registry-1"; exit; fi
printf '%s\n' "$*" "epoch $SOURCE_DATE_EPOCH" "cflags $CFLAGS" >>"$NOTES"
while [ "$1" != --target ]; do shift; done
mkdir -p "target/$2/release"
cp "$BINARY" "target/$2/release/gpu-bootstrap"
[ -z "$DIFFERENT" ] || echo "$PWD/main.c" >>"target/$2/release/gpu-bootstrap"
"#;

/// Has libraries for both architectures.
const RUSTC: &str = r#"#!/bin/sh
case $* in
"--print sysroot") echo "${NOTES%/*}/sysroot" ;;
*) printf 'rustc 1.0\ncommit-hash: 0123\n' ;;
esac
"#;

/// A repository with nothing but the script in it.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new() -> Self {
        let wanted = ["git", "readelf", "cc", "ld", "sha256sum", "cmp"];
        if let Some(missing) = wanted.iter().find(|p| Command::new(p).arg("--version").output().is_err()) {
            panic!("{missing} is not installed");
        }
        let repository = Self(tempfile::tempdir().unwrap());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/release");
        for dir in ["source/packaging", "bin"] {
            fs::create_dir_all(repository.path(dir)).unwrap();
        }
        fs::copy(script, repository.path("source/packaging/release")).unwrap();
        fs::write(repository.path("source/.gitignore"), "target/\n/dist/\n").unwrap();
        let compiler = "#!/bin/sh\nexec cc \"$@\"\n";
        let programs = [
            ("cargo", CARGO),
            ("rustc", RUSTC),
            (ARM_COMPILER, compiler),
            ("x86_64-linux-gnu-gcc", compiler),
        ];
        for (name, text) in programs {
            let path = repository.path("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for architecture in ["x86_64", "aarch64"] {
            fs::create_dir_all(repository.libraries(architecture)).unwrap();
        }
        for args in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "x"]] {
            assert!(repository.git(args).status.success());
        }
        repository
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    fn libraries(&self, architecture: &str) -> PathBuf {
        self.path("sysroot/lib/rustlib").join(format!("{architecture}-unknown-linux-gnu"))
    }

    fn git(&self, args: &[&str]) -> Output {
        Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@example.com"])
            .args(args)
            .current_dir(self.path("source"))
            .output()
            .unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.path("source/packaging/release"));
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("NOTES", self.path("notes")).env("DIFFERENT", "");
        command.env("BINARY", env!("CARGO_BIN_EXE_gpu-bootstrap")).env("CARGO_HOME", self.path("cargo"));
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "CFLAGS"]
        {
            command.env_remove(name);
        }
        command
    }
}

#[track_caller]
fn refused(output: &Output, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains(says), "{stderr}");
}

/// The test's own binary may name this machine's directories; a release must not. So a small static one stands in.
fn static_binary(repository: &Repository) -> PathBuf {
    let source = repository.path("main.c");
    let binary = repository.path("static");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let output = Command::new("cc").args(["-static", "-o"]).arg(&binary).arg(&source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    binary
}

#[test]
fn a_release_has_the_binary_its_sum_and_the_tools_names() {
    let repository = Repository::new();
    let binary = static_binary(&repository);
    let output = repository.command().env("BINARY", &binary).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dist = |name: &str| fs::read(repository.path("source/dist").join(name)).unwrap();
    let sums = String::from_utf8(dist("SHA256SUMS")).unwrap();
    for name in ["gpu-bootstrap-x86_64", "gpu-bootstrap-aarch64", "buildinfo"] {
        assert!(name == "buildinfo" || dist(name) == fs::read(&binary).unwrap(), "{name}");
        assert!(sums.contains(&format!("{:x}  {name}\n", Sha256::digest(dist(name)))), "{sums}");
    }
    let commit = String::from_utf8(repository.git(&["rev-parse", "HEAD"]).stdout).unwrap();
    let info = String::from_utf8(dist("buildinfo")).unwrap();
    assert!(info.starts_with(&format!("commit {commit}")) && info.contains("\nrustc "), "{info}");
    let epoch = String::from_utf8(repository.git(&["log", "-1", "--format=%ct"]).stdout).unwrap();
    let notes = fs::read_to_string(repository.path("notes")).unwrap();
    for architecture in ["x86_64", "aarch64"] {
        let target = format!("{architecture}-unknown-linux-gnu");
        assert!(notes.contains(&format!("--target {target} ")), "{notes}");
        assert!(notes.contains(&format!("--config target.{target}.rustflags=[")), "{notes}");
    }
    assert!(notes.starts_with("build --release --locked "), "{notes}");
    assert!(notes.contains(&format!("epoch {epoch}")), "{notes}");
    let source = fs::canonicalize(repository.path("source")).unwrap();
    for (flag, from) in [("--remap-path-prefix", source.display()), ("-ffile-prefix-map", source.display())] {
        assert!(notes.contains(&format!("{flag}={from}=/gpu-bootstrap")), "{notes}");
    }
    // The last one that fits counts, so the order matters.
    let cargo = repository.path("cargo").display().to_string();
    let home = notes.find(&format!("\"--remap-path-prefix={cargo}=/cargo\""));
    let registry = notes.find(&format!("\"--remap-path-prefix={cargo}/registry/src/registry-1/=\""));
    assert!(home.is_some() && home < registry, "{notes}");
}

#[test]
fn one_architecture_can_be_built_alone() {
    let repository = Repository::new();
    let binary = static_binary(&repository);
    let build = |argument: &str| repository.command().env("BINARY", &binary).arg(argument).output().unwrap();
    fs::remove_dir(repository.libraries("aarch64")).unwrap();
    refused(&build("aarch64"), "rustup target add aarch64-unknown-linux-gnu");
    fs::create_dir(repository.libraries("aarch64")).unwrap();
    let output = build("aarch64");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dist = repository.path("source/dist");
    assert!(dist.join("gpu-bootstrap-aarch64").exists() && !dist.join("gpu-bootstrap-x86_64").exists());
}

#[test]
fn a_second_build_elsewhere_is_compared() {
    let repository = Repository::new();
    let binary = static_binary(&repository);
    let mut verify = repository.command();
    verify.arg("--verify").env("BINARY", &binary);
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for architecture in ["x86_64", "aarch64"] {
        let said = format!("two builds for {architecture} in two directories are identical");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&said));
    }
    // A difference that is no path of this machine, which is another refusal.
    fs::write(repository.path("bin/cargo"), CARGO.replace("$PWD/main.c", "${#PWD}")).unwrap();
    refused(&verify.env("DIFFERENT", "1").output().unwrap(), "two builds of the same commit differ");
}

#[test]
fn what_would_make_a_wrong_binary_is_refused() {
    let repository = Repository::new();
    let binary = static_binary(&repository);
    let run = |name: &str, value: &str| {
        repository.command().env("BINARY", &binary).env(name, value).output().unwrap()
    };
    refused(&run("RUSTFLAGS", "-C opt-level=0"), "the variable RUSTFLAGS is set");
    refused(&run("CARGO_ENCODED_RUSTFLAGS", ""), "the variable CARGO_ENCODED_RUSTFLAGS is set");
    refused(&run("BINARY", "/bin/sh"), "is not static");
    refused(&run("DIFFERENT", "1"), "names a directory of this machine");
    let armed = repository.path("armed");
    fs::write(&armed, [&fs::read(&binary).unwrap()[..], b"GPU_BOOTSTRAP_FAULT_LIST"].concat()).unwrap();
    refused(&run("BINARY", armed.to_str().unwrap()), "has fault points");
    // One byte too many, behind the program's end.
    let large = repository.path("large");
    fs::copy(&binary, &large).unwrap();
    for (architecture, limit) in [("x86_64", 8_450_000), ("aarch64", 7_650_000)] {
        fs::File::options().write(true).open(&large).unwrap().set_len(limit + 1).unwrap();
        let output = repository.command().arg(architecture).env("BINARY", &large).output().unwrap();
        refused(&output, &format!("has {} bytes, more than {limit}", limit + 1));
    }
    refused(&repository.command().arg("--fast").output().unwrap(), "unknown argument --fast");
    fs::write(repository.path("source/new"), "").unwrap();
    refused(&run("X", ""), "the working tree has changes");
    assert!(!repository.path("source/dist").exists(), "a refused release leaves nothing to publish");
}
