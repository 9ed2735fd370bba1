//! Standard output and standard error, written without the macros that panic: a reader that went away, or a full
//! disk behind a redirection, must not end a run in the middle of its work. Used by every command that prints.

use std::io::{ErrorKind, Write};

use crate::error::{Error, Result};

/// Prints to standard output. A reader that went away (`| head`) is no error; an answer that could not be
/// written, and would be taken for whole, is one.
pub fn out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write to", "standard output", e)),
        _ => Ok(()),
    }
}

/// Prints a message to standard error. There is no place left to say that this failed.
pub fn err(message: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(message));
}

/// Messages quote files, programs and servers: what would steer a terminal becomes a question mark.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '?' } else { c }).collect()
}
