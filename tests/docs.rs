//! The documentation against the code: what a test can compare is not left to memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use gpu_bootstrap::error::{Code, exit};

fn doc(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The cells of a Markdown table row, without back-ticks.
fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_matches('|');
    inner.split('|').map(|c| c.trim().replace('`', "")).collect()
}

#[test]
fn every_error_code_is_documented_with_its_exit_code_and_meaning() {
    let text = doc("docs/status.md");
    let (_, text) = text.split_once("## Error codes").expect("docs/status.md has a section for error codes");
    let rows: Vec<_> =
        text.lines().filter(|l| l.starts_with("| `")).map(cells).filter(|c| c.len() == 3).collect();
    for code in Code::ALL {
        let wanted = [code.name().to_owned(), code.exit_code().to_string(), code.meaning().replace('`', "")];
        assert!(
            rows.iter().any(|row| row[..] == wanted),
            "docs/status.md lacks the row\n| `{}` | {} | {} |",
            wanted[0],
            wanted[1],
            code.meaning()
        );
    }
    for row in &rows {
        assert!(
            Code::ALL.iter().any(|c| c.name() == row[0]),
            "docs/status.md has a code that does not exist: {}",
            row[0]
        );
    }
}

#[test]
fn every_exit_code_is_documented() {
    let text = doc("docs/status.md");
    let codes = [
        exit::CONVERGED,
        exit::FAILED,
        exit::USAGE,
        exit::UNSUPPORTED,
        exit::LOCKED,
        exit::UNHEALTHY,
        exit::NOT_ALLOWED,
        exit::NOTHING_TO_RESUME,
        exit::REBOOT_NEEDED,
        exit::INTERRUPTED,
        exit::TERMINATED,
        exit::REBOOT_NEEDED_SSM,
    ];
    for code in codes {
        assert!(
            text.lines().any(|l| l.starts_with(&format!("| {code} |"))),
            "exit code {code} is not in docs/status.md"
        );
    }
}

#[test]
fn every_file_that_the_boot_table_names_exists() {
    let text = doc("docs/boot.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in
        text.split('`').skip(1).step_by(2).filter(|n| n.starts_with("src/") || n.starts_with("steps/"))
    {
        let exists = match name.split_once('*') {
            Some((prefix, _)) => {
                let (dir, start) = prefix.rsplit_once('/').unwrap();
                fs::read_dir(root.join(dir))
                    .unwrap()
                    .any(|e| e.unwrap().file_name().to_string_lossy().starts_with(start))
            }
            None => root.join(name).exists(),
        };
        assert!(exists, "docs/boot.md names {name}, which does not exist");
    }
}

#[test]
fn the_readme_installs_the_program_where_the_unit_starts_it() {
    let unit = doc("packaging/gpu-bootstrap.service");
    let program = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap().split(' ').next().unwrap();
    let dir = program.strip_suffix("gpu-bootstrap").unwrap();
    assert!(doc("README.md").contains(&format!("install -m 0755 gpu-bootstrap {dir} ")));
}

#[test]
fn every_dependency_has_a_decision() {
    let manifest: toml::Table = doc("Cargo.toml").parse().unwrap();
    let decisions = doc("docs/decisions/0002-dependencies.md");
    for section in ["dependencies", "dev-dependencies"] {
        for name in manifest[section].as_table().unwrap().keys() {
            assert!(
                decisions.contains(&format!("| `{name}` |")),
                "docs/decisions/0002-dependencies.md lacks {name}"
            );
        }
    }
}
