//! The manual pages and completions that the package carries: they name every command and every flag that `--help` does,
//! nothing that is hidden, and the shells take them.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

#[path = "../packaging/manual.rs"]
mod manual;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The program's own help for a command, such as `["user-data", "render"]`.
fn help(command: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap")).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands and flags of a help text; lines that go on are indented further.
fn told(help: &str) -> (Vec<String>, Vec<String>) {
    let (mut commands, mut flags, mut in_commands) = (Vec::new(), Vec::new(), false);
    for line in help.lines() {
        if line.ends_with(':') && !line.starts_with(' ') {
            in_commands = line == "Commands:";
        }
        let first = line.trim_start().split(' ').next().unwrap_or_default();
        if in_commands && line.starts_with("  ") && !line.starts_with("   ") {
            commands.push(first.to_owned());
        } else if line.starts_with("  ") && first.starts_with('-') && first != "-" {
            let long = line.split([' ', ',', '.']).find(|w| w.starts_with("--")).unwrap();
            flags.push(long.to_owned());
        }
    }
    (commands, flags)
}

fn page(directory: &Path, command: &[&str]) -> String {
    let name = [&["gpu-bootstrap"], command].concat().join("-");
    let path = directory.join(format!("man/{name}.1"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.replace(r"\fB", "").replace(r"\fI", "").replace(r"\fR", "").replace(r"\-", "-")
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect()
}

/// Compares a command and those below it; says how many commands there were.
fn compare(directory: &Path, completions: &[String], command: &[&str]) -> usize {
    let help = help(command);
    let (commands, flags) = told(&help);
    let page = page(directory, command);
    assert!(!flags.is_empty(), "{command:?}: {help}");
    for flag in &flags {
        assert!(words(&page).contains(&flag[..]), "{command:?}: the page lacks {flag}");
        for text in completions {
            // fish has long options without their dashes.
            let found = text.contains(&flag[..]) || text.contains(&format!("-l {}", &flag[2..]));
            assert!(found, "{command:?}: a completion lacks {flag}");
        }
    }
    let mut count = 1;
    for name in &commands {
        let full = [command, &[name]].concat();
        let other = [&["gpu-bootstrap"], &full[..]].concat().join("-");
        assert!(page.contains(&format!("{other}(1)")), "{command:?}: the page lacks {name}");
        for text in completions {
            assert!(words(text).contains(&name[..]), "{command:?}: a completion lacks {name}");
        }
        count += compare(directory, completions, &full);
    }
    count
}

fn written() -> (tempfile::TempDir, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    manual::write(directory.path()).unwrap();
    let files = ["bash/gpu-bootstrap", "zsh/_gpu-bootstrap", "fish/gpu-bootstrap.fish"];
    let texts = files.map(|f| fs::read_to_string(directory.path().join(f)).unwrap());
    (directory, texts.into())
}

#[test]
fn every_command_and_flag_of_the_help_is_in_the_manual_and_the_completions() {
    let (directory, completions) = written();
    let count = compare(directory.path(), &completions, &[]);
    assert!(count > 12, "{count} commands");
    assert_eq!(
        fs::read_dir(directory.path().join("man")).unwrap().count(),
        count,
        "a page for each, and no other"
    );
    let whole = page(directory.path(), &[]);
    for told in ["EXIT STATUS", "194 with --ssm", "another run holds the lock", "/etc/gpu-bootstrap/disabled"]
    {
        assert!(whole.contains(told), "the page lacks {told}");
    }
}

#[test]
fn what_is_hidden_is_nowhere() {
    let (directory, completions) = written();
    let mut texts = completions;
    for file in fs::read_dir(directory.path().join("man")).unwrap() {
        texts.push(fs::read_to_string(file.unwrap().path()).unwrap().replace(r"\-", "-"));
    }
    for text in &texts {
        for hidden in ["rehearse-inside", "deliver"] {
            assert!(!words(text).contains(hidden), "{hidden}");
        }
    }
}

#[test]
fn the_same_definition_gives_the_same_files() {
    let (first, second) = (written(), written());
    for part in ["man", "bash", "zsh", "fish"] {
        for file in fs::read_dir(first.0.path().join(part)).unwrap() {
            let path = file.unwrap().path();
            let other = second.0.path().join(part).join(path.file_name().unwrap());
            assert_eq!(fs::read(&path).unwrap(), fs::read(other).unwrap(), "{}", path.display());
        }
    }
}

/// bash is everywhere; the others are tried where they are.
#[test]
fn the_shells_take_their_completions() {
    let (directory, _) = written();
    for (shell, file, must) in [
        ("bash", "bash/gpu-bootstrap", true),
        ("zsh", "zsh/_gpu-bootstrap", false),
        ("fish", "fish/gpu-bootstrap.fish", false),
    ] {
        match Command::new(shell).arg("-n").arg(directory.path().join(file)).output() {
            Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}"),
            Err(e) => assert!(!must, "{shell}: {e}"),
        }
    }
}

#[test]
fn bash_completes_commands_and_flags() {
    let (directory, _) = written();
    let script = r#"
        source "$1"; shift
        [[ $(complete -p gpu-bootstrap) =~ -F\ ([^ ]+) ]]
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[*]}"
    "#;
    let complete = |line: &[&str]| {
        let file = directory.path().join("bash/gpu-bootstrap");
        let output = Command::new("bash").args(["-c", script, "bash"]).arg(file).args(line).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(complete(&["gpu-bootstrap", "re"]), "report rehearse");
    assert_eq!(complete(&["gpu-bootstrap", "user-data", "ren"]), "render");
    assert_eq!(complete(&["gpu-bootstrap", "status", "--wa"]), "--wait --watch");
    assert_eq!(complete(&["gpu-bootstrap", "device-query", "--compute", ""]).split(' ').count(), 3);
}
