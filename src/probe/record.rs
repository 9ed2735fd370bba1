//! One JSON object per line, written whole by one call: what came before a crash stays readable.

use alloc::format;
use alloc::string::String;
use core::fmt::{Display, Write};

use crate::library::Failure;
use crate::runtime::{Descriptor, milliseconds};

/// A JSON object under construction.
pub struct Object {
    json: String,
}

impl Object {
    /// `{}`
    pub fn new() -> Self {
        Self { json: String::from("{") }
    }

    fn key(&mut self, key: &str) {
        if self.json.len() > 1 {
            self.json.push(',');
        }
        quote(&mut self.json, key);
        self.json.push(':');
    }

    /// A string.
    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        quote(&mut self.json, value);
        self
    }

    /// What prints as a JSON value: a number, `true`, a finished object.
    pub fn value(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        let _ = write!(self.json, "{value}");
        self
    }

    /// A value, or null where there is none.
    pub fn option(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.value(key, value),
            None => self.value(key, "null"),
        }
    }

    /// The whole object.
    pub fn finish(mut self) -> String {
        self.json.push('}');
        self.json
    }
}

fn quote(to: &mut String, text: &str) {
    to.push('"');
    for c in text.chars() {
        match c {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(to, "\\u{:04x}", c as u32);
            }
            c => to.push(c),
        }
    }
    to.push('"');
}

/// A positive number with three decimals. By integers: what `core` needs to print a float is 12 KB of this program.
pub fn decimal(number: f64) -> String {
    let thousandths = (number * 1e3 + 0.5) as u64;
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

/// A record: an object with its stage and the time.
pub struct Record(Object);

impl Record {
    /// A record of `stage`, at this moment.
    pub fn new(stage: &str) -> Self {
        Self(Object::new().text("stage", stage).value("at_ms", decimal(milliseconds())))
    }

    /// A string.
    pub fn text(self, key: &str, value: &str) -> Self {
        Self(self.0.text(key, value))
    }

    /// What prints as a JSON value.
    pub fn value(self, key: &str, value: impl Display) -> Self {
        Self(self.0.value(key, value))
    }

    /// A value, or null where there is none.
    pub fn option(self, key: &str, value: Option<impl Display>) -> Self {
        Self(self.0.option(key, value))
    }

    /// What failed.
    pub fn error(self, failure: &Failure) -> Self {
        self.value("error", failure.json())
    }

    /// Prints it. A reader that went away is no reason to stop: it will kill this process.
    pub fn emit(self) {
        let mut line = self.0.finish();
        line.push('\n');
        let _ = Descriptor(1).write_str(&line);
    }
}

/// Says which call comes next: the last words of a process that hangs or crashes.
pub fn begin(stage: &str) {
    Record::new(&format!("{stage}.begin")).emit();
}
