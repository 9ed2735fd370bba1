//! Writes the manual pages and the completions of bash, zsh and fish from the command line's own definition, so that they
//! cannot say anything else than `--help`. For the package; not part of the program. `packaging/manual` starts it.
//!
//! usage: `cargo run --example manual -- DIRECTORY`

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Error};
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

const README: &str = include_str!("../README.md");
const FILES: &[(&str, &str)] = &[
    ("/etc/gpu-bootstrap/*.toml", "configuration; /usr/lib/gpu-bootstrap/*.toml is overridden by it"),
    ("/etc/gpu-bootstrap/disabled", "where it exists, the unit does nothing"),
    ("/run/gpu-bootstrap/status.json, result.json", "the current run, and the last one"),
    ("/var/lib/gpu-bootstrap/", "what is kept between runs"),
];
const BASH_HEADER: &str = "# bash completion for gpu-bootstrap; generated\n";

#[allow(dead_code, reason = "tests/manual.rs includes this file, and calls `write`")]
fn main() -> io::Result<()> {
    match std::env::args_os().skip(1).collect::<Vec<_>>().as_slice() {
        [directory] => write(Path::new(directory)),
        _ => Err(Error::other("usage: manual DIRECTORY")),
    }
}

/// `man/`, `bash/`, `zsh/` and `fish/` below `directory`, with the names under which a package installs the files.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    for part in ["man", "bash", "zsh", "fish"] {
        fs::create_dir_all(directory.join(part))?;
    }
    let mut whole = gpu_bootstrap::cli::definition();
    whole.build(); // from here on each command knows its full name
    pages(&whole, &directory.join("man"))?;
    let shells = [
        (Shell::Bash, "bash/gpu-bootstrap", BASH_HEADER),
        (Shell::Zsh, "zsh/_gpu-bootstrap", ""),
        (Shell::Fish, "fish/gpu-bootstrap.fish", ""),
    ];
    for (shell, file, header) in shells {
        let mut text = header.as_bytes().to_vec();
        clap_complete::generate(
            shell,
            &mut visible(&gpu_bootstrap::cli::definition()),
            "gpu-bootstrap",
            &mut text,
        );
        if shell == Shell::Bash {
            // clap_complete 4.6 writes a program's name that has a dash in two ways, and finds no command's flags.
            let mended = String::from_utf8_lossy(&text).replace("gpu__subcmd__bootstrap", "gpu__bootstrap");
            text = mended.into_bytes();
        }
        fs::write(directory.join(file), text)?;
    }
    Ok(())
}

/// A page for the command and one for each command below it.
fn pages(command: &clap::Command, directory: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let source = concat!("gpu-bootstrap ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).source(source).manual("gpu-bootstrap");
    let mut text = Vec::new();
    page.render(&mut text)?;
    if name == "gpu-bootstrap" {
        text.extend(section("EXIT STATUS", &exit_codes()?).into_bytes());
        let files: Vec<_> =
            FILES.iter().map(|(path, about)| ((*path).to_owned(), (*about).to_owned())).collect();
        text.extend(section("FILES", &files).into_bytes());
    }
    fs::write(directory.join(format!("{name}.1")), text)?;
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| pages(c, directory))
}

/// The same command without what is hidden: the completions' generators would offer it.
fn visible(command: &clap::Command) -> clap::Command {
    let name: &str = command.get_name().to_owned().leak(); // clap wants names that last for ever
    let mut copy = clap::Command::new(name)
        .disable_help_subcommand(true)
        .args(command.get_arguments().filter(|a| !a.is_hide_set()).cloned())
        .groups(command.get_groups().cloned())
        .subcommands(command.get_subcommands().filter(|c| !c.is_hide_set()).map(visible));
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    if command.get_version().is_some() { copy.version(env!("CARGO_PKG_VERSION")) } else { copy }
}

/// The rows of the README's table.
fn exit_codes() -> io::Result<Vec<(String, String)>> {
    let (_, table) = README
        .split_once("| Exit code | Meaning |\n|---|---|\n")
        .ok_or_else(|| Error::other("README.md has no table of exit codes"))?;
    let cells = |line: &str| {
        let (code, meaning) = line.trim_matches(['|', ' ']).split_once('|')?;
        Some((code.trim().to_owned(), meaning.replace('`', "").trim().to_owned()))
    };
    Ok(table.lines().map_while(cells).collect())
}

fn section(title: &str, entries: &[(String, String)]) -> String {
    let mut text = format!(".SH \"{title}\"\n");
    for (term, about) in entries {
        let _ = write!(text, ".TP\n\\fB{}\\fR\n{}\n", escaped(term), escaped(about));
    }
    text
}

fn escaped(text: &str) -> String {
    format!(r"\&{}", text.replace('\\', r"\e").replace('-', r"\-"))
}
