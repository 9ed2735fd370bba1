//! What actions share that prove something by a program of the user's and can apply nothing: the program runs as nobody, `check`
//! says `Needed` with the reason, and `apply` returns it as the error.

use super::Check;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// nobody, on every Debian and Ubuntu.
const NOBODY: &str = "65534";

/// What `check` found, for the `apply` of the same action.
struct Found<A> {
    action: A,
    error: Error,
}

/// A program and its arguments, as nobody and without new privileges.
pub(super) fn as_nobody(words: impl IntoIterator<Item = impl Into<String>>) -> Call {
    Call::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs", "--"])
        .args(words)
        .env("HOME", "/nonexistent")
}

/// What `check` says; an error is kept for `apply`.
pub(super) fn check<A: Clone + Send + 'static>(
    host: &Host,
    action: &A,
    outcome: Result<String, Error>,
) -> Check {
    match outcome {
        Ok(evidence) => Check::satisfied(evidence),
        Err(error) => {
            let why = error.message().to_owned();
            host.keep_look(Found { action: action.clone(), error });
            Check::needed(why)
        }
    }
}

/// What the `check` of this action has just found.
pub(super) fn found<A: PartialEq + 'static>(host: &Host, action: &A) -> Option<Error> {
    host.take_look::<Found<A>>().filter(|found| found.action == *action).map(|found| found.error)
}
