//! The environment's own pip: how it is called, and what its failures mean.

use std::time::Duration;

use super::distributions::Locked;
use super::{PythonEnvironment, TEMPORARY};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::{Call, Output};
use crate::host::fetch::redact_text;

/// A wheel from this size on is installed by itself: a second of pip's start is nothing beside its download.
const BIG: u64 = 50 << 20;
/// A gigabyte at 1 MB/s takes a quarter of an hour. pip's own patience with a silent server is shorter.
const LIMIT: Duration = Duration::from_hours(1);

/// Small wheels together, then each big one.
pub(super) fn batches<'a>(missing: &[&'a Locked]) -> Vec<Vec<&'a Locked>> {
    let is_big = |l: &&&Locked| l.bytes.is_some_and(|bytes| bytes >= BIG);
    let small: Vec<_> = missing.iter().filter(|l| !is_big(l)).copied().collect();
    let mut batches: Vec<_> = missing.iter().filter(is_big).map(|l| vec![*l]).collect();
    if !small.is_empty() {
        batches.insert(0, small);
    }
    batches
}

/// Whether the environment has a pip that runs.
pub(super) async fn works(host: &Host, environment: &PythonEnvironment) -> Result<bool> {
    let call = Call::new(&environment.interpreter()).args(["-I", "-m", "pip", "--version"]);
    Ok(host.exec.output(&call).await?.ok())
}

/// Installs these wheels, in place of what is there of them.
pub(super) async fn install(host: &Host, environment: &PythonEnvironment, batch: &[&Locked]) -> Result<()> {
    let room = environment.at(TEMPORARY);
    host.files.remove_tree(&room)?;
    host.files.make_dir(&room, 0o700)?;
    let file = format!("{room}/requirements.txt");
    let text: String = batch.iter().map(|l| l.requirement()).collect();
    host.files.write(&file, text.as_bytes(), 0o600)?;
    let wheels = environment.wheels(host);
    let output = host.exec.output(&call(environment, wheels, &room, &file)).await?;
    if output.ok() {
        return Ok(());
    }
    Err(failure(environment, wheels, &output))
}

fn call(environment: &PythonEnvironment, wheels: Option<&str>, room: &str, file: &str) -> Call {
    let call = Call::new(&environment.interpreter())
        .args(["-I", "-m", "pip", "install", "--requirement", file])
        // Nothing but these wheels: no dependency, no source archive, nothing without its sum.
        .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--force-reinstall"])
        .args(["--no-cache-dir", "--no-input", "--progress-bar", "off", "--no-warn-script-location"])
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .env("TMPDIR", room)
        .limit(LIMIT);
    if let Some(wheels) = wheels {
        return call.args(["--no-index", "--find-links", wheels]);
    }
    // By the environment, which only root can read: the URL may have a password in it.
    let call = match environment.index.as_str() {
        "" => call,
        index => call.env("PIP_INDEX_URL", index),
    };
    let call = proxies().into_iter().fold(call, |call, (name, value)| call.env(&name, value));
    match environment.index.strip_prefix("http://").and_then(|rest| rest.split(['/', '?']).next()) {
        // pip wants it said; the sums are what is trusted.
        Some(host) => call.env("PIP_TRUSTED_HOST", host.rsplit('@').next().unwrap_or(host)),
        None => call,
    }
}

/// The agent's own way out: proxies and the authorities that it was told to trust.
fn proxies() -> Vec<(String, String)> {
    const NAMES: [&str; 8] = [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ];
    let mut all: Vec<_> =
        NAMES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    let bundle = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"].iter().find_map(|name| std::env::var(name).ok());
    all.extend(bundle.map(|path| ("PIP_CERT".to_owned(), path)));
    all
}

/// What pip's words mean. It has no other codes than 0, 1 and 2.
fn failure(environment: &PythonEnvironment, wheels: Option<&str>, output: &Output) -> Error {
    let words = String::from_utf8_lossy(&output.stderr);
    let said = |what: &str| words.contains(what);
    let from = match (wheels, environment.index.as_str()) {
        (Some(wheels), _) => redact_text(wheels),
        (None, "") => "PyPI".to_owned(),
        (None, index) => redact_text(index),
    };
    let error = if said("DO NOT MATCH THE HASHES") {
        let of = mismatch(&words);
        Error::new(
            Code::ChecksumMismatch,
            format!("{of} in {from} does not have the locked SHA-256; it was not installed"),
        )
        .with_hint("replace the file by the one that the lock names, or use another index")
    } else if said("No space left on device") {
        Error::new(Code::DiskFull, format!("the disk is full below {}", environment.path))
    } else if [
        "Retrying (Retry(",
        "Max retries exceeded",
        "ConnectionError",
        "ReadTimeout",
        "Read timed out",
        "IncompleteRead",
        "ProxyError",
    ]
    .iter()
    .any(|w| said(w))
    {
        Error::new(Code::Fetch, format!("pip cannot fetch wheels from {from}"))
    } else if let Some(missing) =
        words.lines().find_map(|l| l.strip_prefix("ERROR: No matching distribution found for "))
    {
        let missing = missing.split_whitespace().next().unwrap_or_default();
        Error::new(Code::WheelMissing, format!("{from} has no wheel of {missing} that fits this machine"))
            .with_hint("add the wheel, or use an index that has it; sources are never built")
    } else {
        Error::new(Code::Exec, format!("pip failed with status {}", output.status))
            .with_hint("the causes are pip's own words; mend what they name, then run again")
    };
    error.because(redact_text(&output.tail()))
}

/// `name==version` of the first wheel with a wrong sum: pip names it in the first indented line that ends with a colon.
fn mismatch(words: &str) -> String {
    let named = words
        .lines()
        .map(str::trim)
        .find(|l| l.contains("==") && l.split_whitespace().next().is_some_and(|w| w.contains("==")));
    named.and_then(|l| l.split_whitespace().next()).map_or_else(|| "a wheel".to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(index: &str) -> PythonEnvironment {
        PythonEnvironment {
            path: "/opt/x".into(),
            python: "3.11".into(),
            requirements: String::new(),
            index: index.into(),
            wheels: String::new(),
        }
    }

    #[test]
    fn big_wheels_come_by_themselves() {
        let locked = |name: &str, bytes| Locked {
            name: name.into(),
            version: "1".into(),
            sha256: String::new(),
            bytes,
        };
        let all =
            [locked("a", Some(BIG)), locked("b", Some(5)), locked("c", None), locked("d", Some(BIG + 1))];
        let names: Vec<Vec<_>> = batches(&all.iter().collect::<Vec<_>>())
            .iter()
            .map(|batch| batch.iter().map(|l| l.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["b", "c"], vec!["a"], vec!["d"]]);
    }

    #[test]
    fn no_password_is_in_the_arguments_and_a_directory_asks_no_index() {
        let line = call(&environment("https://u:geheim@m/simple"), None, "/t", "/t/r").line();
        assert!(
            !line.contains("geheim")
                && line.contains("--require-hashes")
                && line.contains("--only-binary :all:"),
            "{line}"
        );
        let line = call(&environment("https://m/simple"), Some("/wheels"), "/t", "/t/r").line();
        assert!(line.ends_with("--no-index --find-links /wheels"), "{line}");
    }

    #[test]
    fn pips_words_have_meanings() {
        let of = |words: &str| {
            let output = Output { status: 1, stdout: Vec::new(), stderr: words.as_bytes().to_vec() };
            let error = failure(&environment("https://u:geheim@m/simple"), None, &output);
            assert!(!format!("{error:?}").contains("geheim"));
            (error.code(), error.message().to_owned())
        };
        let (code, text) = of(
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    torch==2.10.0 from https://m/t.whl:\n        Expected sha256 aa\n",
        );
        assert_eq!(code, Code::ChecksumMismatch);
        assert!(text.starts_with("torch==2.10.0 in "), "{text}");
        let (code, text) = of(
            "ERROR: Could not find a version that satisfies the requirement a==1 (from versions: none)\nERROR: No matching distribution found for a==1\n",
        );
        assert_eq!(code, Code::WheelMissing);
        assert!(text.contains("no wheel of a==1 that fits"), "{text}");
        assert_eq!(
            of("WARNING: Retrying (Retry(total=4\nERROR: No matching distribution found for a==1\n").0,
            Code::Fetch
        );
        assert_eq!(of("OSError: [Errno 28] No space left on device").0, Code::DiskFull);
        assert_eq!(of("boom").0, Code::Exec);
    }
}
