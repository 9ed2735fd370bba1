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
fn every_error_code_has_a_hint() {
    for code in Code::ALL {
        let hint = code.usual_hint();
        assert!(hint.len() > 10 && !hint.ends_with('.'), "{code}: {hint:?}");
        assert_eq!(gpu_bootstrap::error::Error::new(*code, "x").hint(), Some(hint), "{code}");
    }
}

/// `file.rs::name` of every test that a page names in back-ticks; files without a directory are those in tests/.
fn named_tests(page: &str) -> Vec<(String, String)> {
    let text = doc(page);
    let quoted = text.split('`').skip(1).step_by(2);
    let tests = quoted.filter_map(|q| q.split_once(".rs::"));
    tests
        .map(|(file, name)| {
            let dir = if file.starts_with("src/") { "" } else { "tests/" };
            (format!("{dir}{file}.rs"), name.to_owned())
        })
        .collect()
}

#[test]
fn every_test_that_a_page_names_exists() {
    for page in ["docs/threat-model.md", "docs/network-faults.md"] {
        let named = named_tests(page);
        assert!(named.len() > 5, "{page} names {} tests", named.len());
        for (file, name) in named {
            let text = doc(&file);
            let at = text.find(&format!("fn {name}("));
            let before = &text[..at.unwrap_or_else(|| panic!("{page}: {file} has no {name}"))];
            let attribute = before.trim_end().trim_end_matches("async").trim_end().ends_with(']');
            assert!(attribute, "{page}: {name} of {file} is no test");
        }
    }
}

#[test]
fn every_threat_has_a_test() {
    for row in
        doc("docs/threat-model.md").lines().filter(|l| l.starts_with("| ") && !l.starts_with("| Threat"))
    {
        assert!(row.contains(".rs::"), "{row}");
    }
}

#[test]
fn every_value_and_action_of_custom_steps_is_documented() {
    use gpu_bootstrap::plan::{step, values};
    let text = doc("docs/custom-steps.md");
    let section = |name: &str| {
        let (_, after) =
            text.split_once(&format!("\n## {name}\n")).unwrap_or_else(|| panic!("no section {name}"));
        after.split("\n## ").next().unwrap().to_owned()
    };
    let first_cells = |name: &str| {
        let rows: Vec<_> =
            section(name).lines().filter(|l| l.starts_with("| `")).map(|l| cells(l)[0].clone()).collect();
        rows
    };
    let named: Vec<_> = values::CUSTOM_VALUE_NAMES.iter().map(|name| format!("${{{name}}}")).collect();
    assert_eq!(first_cells("Values"), named);
    // What stands there as a step can be read as one.
    let mut examples = 0;
    for example in text.split("```toml\n").skip(1) {
        let example = example.split("```").next().unwrap();
        step::parse("example", example).unwrap();
        examples += 1;
    }
    assert!(examples >= 2);
    for kind in first_cells("Actions") {
        let source = doc(&format!("src/action/{}.rs", kind.replace('-', "_")));
        assert!(source.starts_with(&format!("//! `{kind}`:")), "{kind}");
    }
}

/// The table of `tests/mutations/run` must not rot: a mutation that cannot be applied notices nothing.
#[test]
fn every_mutation_can_be_applied_and_has_a_test() {
    let table: toml::Table = doc("tests/mutations/table.toml").parse().unwrap();
    let mutations = table["mutation"].as_array().unwrap();
    let mut names = std::collections::BTreeSet::new();
    for mutation in mutations {
        let value = |key: &str| mutation[key].as_str().unwrap();
        let name = value("name");
        assert!(names.insert(name), "{name}: twice");
        assert!(["network", "disk", "lock", "report"].contains(&value("row")), "{name}");
        assert_ne!(value("old"), value("new"), "{name}");
        let found = doc(value("file")).matches(value("old")).count();
        assert_eq!(found, 1, "{name}: its text stands {found} times in {}", value("file"));
        let (binary, test) = value("test").split_once("::").unwrap();
        let (file, function) = match binary {
            "lib" => (value("file").to_owned(), test.rsplit("::").next().unwrap()),
            binary => (format!("tests/{binary}.rs"), test),
        };
        assert!(doc(&file).contains(&format!("fn {function}(")), "{name}: {file} has no {function}");
    }
    for row in ["network", "disk", "lock", "report"] {
        assert!(mutations.iter().any(|m| m["row"].as_str() == Some(row)), "{row}");
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
