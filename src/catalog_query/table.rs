//! Many machines on many distributions, a line each: what the golden tables of the tests hold.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::SCHEMA;
use super::answer::Answer;
use super::subject::Subject;
use crate::catalog::{Catalog, Distribution};
use crate::config::Config;

pub(super) struct Table {
    rows: Vec<(String, Vec<(Distribution, Answer)>)>,
}

impl Table {
    pub(super) fn new(
        catalog: &Catalog,
        subjects: &[Subject],
        systems: &[Distribution],
        config: &Config,
    ) -> Self {
        let answer = |subject: &Subject, system: &Distribution| {
            Answer::short(catalog, &subject.facts(system), config, subject.title())
        };
        let row = |subject: &Subject| {
            let answers = systems.iter().map(|system| (system.clone(), answer(subject, system)));
            (subject.title(), answers.collect())
        };
        Self { rows: subjects.iter().map(row).collect() }
    }

    /// A block for each machine, a line for each distribution; one line where it is the same on all of them.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for (title, answers) in &self.rows {
            let arch = answers.first().map_or("", |(_, answer)| answer.arch());
            let _ = writeln!(out, "{title}, {arch}"); // writing to a String cannot fail
            let lines: Vec<_> = answers.iter().map(|(system, answer)| (system, answer.line())).collect();
            match lines.as_slice() {
                [(_, first), rest @ ..] if !rest.is_empty() && rest.iter().all(|(_, line)| line == first) => {
                    let _ = writeln!(out, "  {:<11}  {first}", "everywhere");
                }
                lines => {
                    for (system, line) in lines {
                        let _ = writeln!(out, "  {:<11}  {line}", system.written());
                    }
                }
            }
            out.push('\n');
        }
        out
    }

    pub(super) fn document(&self) -> Value {
        let rows: Vec<_> =
            self.rows.iter().flat_map(|(_, answers)| answers).map(|(_, answer)| answer.row()).collect();
        json!({
            "schema": SCHEMA,
            "kind": "table",
            "program": concat!("gpu-bootstrap ", env!("CARGO_PKG_VERSION")),
            "rows": rows,
        })
    }
}
