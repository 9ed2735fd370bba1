//! Standard output and standard error, written without the macros that panic: a reader that went away, or a full
//! disk behind a redirection, must not end a run in the middle of its work. Used by every command that prints.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::{Code, Error, Result};

/// Prints to standard output. A reader that went away (`| head`) is no error; an answer that could not be
/// written, and would be taken for whole, is one.
pub fn out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write to", "standard output", e)),
        _ => Ok(()),
    }
}

/// A line on standard output, of work that goes on whether or not somebody takes it.
pub fn say(line: &str) {
    if let Err(error) = out(&format!("{}\n", printable(line))) {
        tracing::warn!("{error}");
    }
}

/// A document for people and programs, as it is printed and written to files.
pub fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(Code::Io, "cannot write JSON").because(e))?;
    Ok(text + "\n")
}

/// Prints a message to standard error. There is no place left to say that this failed.
pub fn err(message: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(message));
}

/// Messages quote files, programs and servers: what would steer a terminal becomes a question mark.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '?' } else { c }).collect()
}
