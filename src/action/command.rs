//! `command`: a program of the administrator's own, for what no other action makes true. An argument list, never a shell
//! line, and never without the check that says whether it is needed: a path that it makes, or a program that looks.

use std::io::ErrorKind;
use std::path::{Component, Path};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::{Call, Output};
use crate::host::fetch::redact_text;

/// Stands in an argument for the path at which the command shall make what it creates.
const OUTPUT: &str = "${output}";
/// Enough for a download or a small build; what takes longer says so.
const USUAL_TIMEOUT: u64 = 300;
/// A day: what takes longer is no step of a boot.
const LONGEST_TIMEOUT: u64 = 86_400;
/// Looking takes no time; `plan` does it, too.
const CHECK_LIMIT: Duration = Duration::from_mins(1);
/// Lines of a command's output that are passed on; of what comes after them, the number.
const LINES: usize = 200;
/// Characters of a command that are shown in a sentence.
const SHOWN: usize = 120;
/// Later exit statuses are no answer of the program's: 126 cannot be executed, 127 is not there, 128 + signal.
const LAST_ANSWER: i32 = 125;
const NOT_THERE: i32 = 127;

/// A command with its check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Written")]
pub struct Command {
    /// Program and arguments. With `creates`, `${output}` in an argument is the path to make it at.
    pub run: Vec<String>,
    /// The path that the command makes: where it exists, nothing is done. The command makes it in a directory beside
    /// it, and it is renamed into place when the command has ended with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creates: Option<String>,
    /// Program and arguments that look, and change nothing: where it ends with 0, nothing is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unless: Option<Vec<String>>,
    /// Seconds after which the command is killed, with all that it started.
    pub timeout: u64,
}

/// The same as it stands in a step file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    run: Words,
    creates: Option<String>,
    unless: Option<Words>,
    #[serde(default = "usual_timeout")]
    timeout: u64,
}

/// A shell line is understood, so that it can be refused with the mend.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    Line(String),
}

fn usual_timeout() -> u64 {
    USUAL_TIMEOUT
}

impl TryFrom<Written> for Command {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let run = words("run", written.run)?;
        let unless = written.unless.map(|unless| words("unless", unless)).transpose()?;
        let names_output = |words: &[String]| words.iter().any(|word| word.contains(OUTPUT));
        match (&written.creates, &unless) {
            (None, None) => {
                return Err(
                    "a command needs `creates` (a path that it makes) or `unless` (a program that looks): \
                            nobody could tell otherwise whether it is needed"
                        .into(),
                );
            }
            (Some(_), Some(_)) => return Err("a command has `creates` or `unless`, not both".into()),
            (Some(path), None) => {
                plain_path(path)?;
                if !names_output(&run) {
                    return Err(format!(
                        "no argument of `run` says {OUTPUT}, where the command is to make {path}; one that cannot be \
                         told needs `unless`"
                    ));
                }
            }
            (None, Some(unless)) if names_output(&run) || names_output(unless) => {
                return Err(format!("{OUTPUT} is what a command `creates`, and this one has `unless`"));
            }
            (None, Some(_)) => {}
        }
        if !(1..=LONGEST_TIMEOUT).contains(&written.timeout) {
            return Err(format!("timeout is {}; it is 1 to {LONGEST_TIMEOUT} seconds", written.timeout));
        }
        Ok(Self { run, creates: written.creates, unless, timeout: written.timeout })
    }
}

fn words(key: &str, words: Words) -> Result<Vec<String>, String> {
    match words {
        Words::Line(line) => {
            let list: Vec<_> = line.split_whitespace().map(|word| format!("{word:?}")).collect();
            Err(format!("{key} is a list of words, not a shell line: [{}]", list.join(", ")))
        }
        Words::List(list) if list.first().is_none_or(String::is_empty) => {
            Err(format!("{key} names no program"))
        }
        Words::List(list) if list.iter().any(|word| word.contains('\0')) => {
            Err(format!("a word of {key} has a NUL byte"))
        }
        Words::List(list) => Ok(list),
    }
}

fn plain_path(path: &str) -> Result<(), String> {
    let parts = || Path::new(path).components();
    let is_plain = path.starts_with('/')
        && !path.ends_with('/')
        && !path.contains(['\0', '$'])
        && parts().skip(1).all(|part| matches!(part, Component::Normal(_)))
        && parts().count() > 1;
    is_plain
        .then_some(())
        .ok_or_else(|| format!("creates is {path:?}; it is an absolute path, without `..` and `$`"))
}

impl Converge for Command {
    async fn check(&self, host: &Host) -> Result<Check> {
        if let Some(path) = &self.creates {
            return Ok(if host.files.exists(path)? {
                Check::satisfied(format!("{path} exists"))
            } else {
                Check::needed(format!("{path} does not exist"))
            });
        }
        let unless = self.unless.as_deref().unwrap_or_default();
        let shown = shown(unless);
        let output = match host.exec.output(&call(unless, CHECK_LIMIT)).await {
            Ok(output) => output,
            // It may come with the command itself.
            Err(e) if is_missing(&e) => {
                return Ok(Check::needed(format!("{shown}: there is no such program")));
            }
            Err(e) => {
                return Ok(Check::unknown(format!("{shown} gives no answer: {}", redact_text(e.message()))));
            }
        };
        Ok(match output.status {
            0 => Check::satisfied(format!("{shown} ends with 0")),
            NOT_THERE => Check::needed(format!("{shown}: there is no such program")),
            status @ 1..=LAST_ANSWER => Check::needed(format!("{shown} ends with {status}")),
            status => Check::unknown(format!("{shown} gives no answer: it ended with {status}")),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let Some(path) = &self.creates else {
            self.execute(host, &self.run).await?;
            return Ok(Applied::Done);
        };
        let room = host.files.beside(Path::new(path))?;
        let output = room.output().display().to_string();
        let words: Vec<_> = self.run.iter().map(|word| word.replace(OUTPUT, &output)).collect();
        self.execute(host, &words).await?;
        if room.publish()? {
            return Ok(Applied::Done);
        }
        Err(Error::new(
            Code::Exec,
            format!("{} ended with 0, and made nothing at {OUTPUT}", shown(&self.run)),
        )
        .with_hint(format!("see that the command makes {path} at the path that stands for {OUTPUT}")))
    }

    fn target(&self) -> Option<&str> {
        self.creates.as_deref()
    }

    fn describe(&self) -> String {
        format!("command {}", shown(&self.run))
    }
}

impl Command {
    /// Runs it to its end, passes its output on, and turns everything but 0 into an error.
    async fn execute(&self, host: &Host, words: &[String]) -> Result<()> {
        let shown = shown(&self.run);
        let mut lines = 0;
        let ended = host
            .exec
            .watch(&call(words, Duration::from_secs(self.timeout)), |_, line| {
                lines += 1;
                if lines <= LINES {
                    host.said(redact_text(line));
                }
            })
            .await;
        if lines > LINES {
            host.said(format!("… and {} lines more", lines - LINES));
        }
        match ended {
            Ok(output) if output.ok() => Ok(()),
            Ok(output) => Err(failed(&shown, &output)),
            // The message has all of the arguments.
            Err(e) => Err(e
                .causes()
                .into_iter()
                .rev()
                .fold(Error::new(e.code(), redact_text(e.message())), |error, cause| {
                    error.because(redact_text(&cause))
                })),
        }
    }
}

fn failed(shown: &str, output: &Output) -> Error {
    let hint = match output.status {
        NOT_THERE => "see that the program is installed before this step, or name it with its path",
        _ => "run the command by hand to see more; correct it or the step file, then run again",
    };
    Error::new(Code::Exec, format!("{shown} failed with status {}", output.status))
        .with_hint(hint)
        .because(redact_text(&output.tail()))
}

fn call(words: &[String], limit: Duration) -> Call {
    let (program, args) =
        words.split_first().map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
    Call::new(program).args(args).limit(limit)
}

fn is_missing(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| e.kind() == ErrorKind::NotFound)
}

/// The command in a sentence: without what may be a secret in a URL, and not too long.
fn shown(words: &[String]) -> String {
    let line = redact_text(&words.join(" "));
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Command, String> {
        toml::from_str::<Command>(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn a_command_without_a_check_or_with_a_wrong_one_is_refused() {
        for (text, why) in [
            ("run = ['make']", "needs `creates`"),
            ("run = ['make', '${output}']\ncreates = '/a'\nunless = ['b']", "not both"),
            ("run = 'make install'\nunless = ['b']", "not a shell line: [\"make\", \"install\"]"),
            ("run = ['make']\nunless = 'test -e /a'", "unless is a list of words"),
            ("run = []\nunless = ['b']", "run names no program"),
            ("run = ['']\nunless = ['b']", "run names no program"),
            ("run = ['make']\ncreates = '/a'", "says ${output}"),
            ("run = ['make', '${output}']\nunless = ['b']", "this one has `unless`"),
            ("run = ['make', '${output}']\ncreates = 'a'", "absolute path"),
            ("run = ['make', '${output}']\ncreates = '/'", "absolute path"),
            ("run = ['make', '${output}']\ncreates = '/a/../b'", "absolute path"),
            ("run = ['make', '${output}']\ncreates = '/a/'", "absolute path"),
            ("run = ['make']\nunless = ['b']\ntimeout = 0", "1 to 86400"),
            ("run = ['make']\nunless = ['b']\nshell = true", "unknown field `shell`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(parse("run = ['make']\nunless = ['b']").unwrap().timeout, USUAL_TIMEOUT);
    }

    #[test]
    fn what_is_shown_has_no_secret_and_an_end() {
        let words = ["curl", "https://user:geheim@host/x?geheim", &"y".repeat(200)].map(str::to_owned);
        let shown = shown(&words);
        assert!(
            shown.starts_with("curl https://host/x yyy") && shown.chars().count() == SHOWN + 1,
            "{shown}"
        );
    }

    async fn checked(unless: &str) -> Check {
        let command = parse(&format!("run = ['true']\nunless = {unless}")).unwrap();
        command.check(&Host::new("/".into())).await.unwrap()
    }

    #[tokio::test]
    async fn only_0_is_fine_and_no_answer_is_no_answer() {
        assert_eq!(checked("['true']").await.state(), "satisfied");
        assert_eq!(checked("['sh', '-c', 'exit 3']").await, Check::needed("sh -c exit 3 ends with 3"));
        assert_eq!(checked("['gpu-bootstrap-no-such']").await.state(), "needed");
        assert_eq!(checked("['sh', '-c', 'gpu-bootstrap-no-such']").await.state(), "needed");
        assert_eq!(checked("['sh', '-c', 'kill -9 $$']").await.state(), "unknown");
        assert_eq!(checked("['/etc/passwd']").await.state(), "unknown");
    }

    #[tokio::test]
    async fn a_command_that_makes_nothing_or_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let host = Host::new("/".into());
        for (script, why) in
            [("true", "made nothing"), ("echo half >\"$1\"; echo no >&2; exit 3", "status 3")]
        {
            let text = format!(
                "run = ['sh', '-c', '''{script}''', 'sh', '${{output}}']\ncreates = {:?}",
                path.display().to_string()
            );
            let error = parse(&text).unwrap().apply(&host).await.unwrap_err();
            assert!(error.message().contains(why), "{error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
