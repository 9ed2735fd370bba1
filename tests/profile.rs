//! The login-shell script: what it does to PATH and `LD_LIBRARY_PATH`, in every shell that reads /etc/profile.d.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

const SHELLS: &[&[&str]] = &[&["dash", "-euc"], &["bash", "-euc"], &["busybox", "sh", "-euc"]];

/// Sources the script `times` times under `-eu` and returns PATH and `LD_LIBRARY_PATH`.
fn source(shell: &[&str], environment: &[(&str, &str)], times: usize) -> (String, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("steps/files/profile.sh");
    let line = format!(". {}; ", script.display()).repeat(times)
        + "printf '%s\\n%s\\n' \"$PATH\" \"$LD_LIBRARY_PATH\"";
    // The shell is found with the caller's PATH; what it then sees is only `environment`.
    let shell_path = String::from_utf8(Command::new("which").arg(shell[0]).output().unwrap().stdout).unwrap();
    let mut command = Command::new(shell_path.trim());
    command.args(&shell[1..]).arg(line).env_clear().envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{shell:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap(), lines.next().unwrap_or_default())
}

#[test]
fn the_toolkit_comes_first_and_sourcing_twice_adds_nothing() {
    for shell in SHELLS {
        for times in [1, 2, 3] {
            let (path, libraries) =
                source(shell, &[("PATH", "/usr/bin:/bin"), ("LD_LIBRARY_PATH", "/opt/lib")], times);
            assert_eq!(path, "/usr/local/cuda/bin:/usr/bin:/bin");
            assert_eq!(libraries, "/usr/local/cuda/lib64:/opt/lib");
        }
    }
}

#[test]
fn no_empty_element_is_ever_added() {
    for shell in SHELLS {
        for libraries in [None, Some("")] {
            let mut environment = vec![("PATH", "/usr/bin:/bin")];
            environment.extend(libraries.map(|l| ("LD_LIBRARY_PATH", l)));
            let (path, libraries) = source(shell, &environment, 2);
            for list in [path, libraries] {
                assert!(list.split(':').all(|element| !element.is_empty()), "{shell:?}: {list:?}");
            }
        }
    }
}
