//! Reading nodes as what a key takes. What is wrong is collected with its place, so that one look shows every mistake.

use crate::yaml::{Node, Place, Problem, Value};

/// What was wrong so far.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
}

impl Reader {
    /// Notes something that is wrong.
    pub(super) fn wrong(&mut self, at: Place, text: impl Into<String>) {
        self.problems.push(Problem { at, text: text.into() });
    }

    fn takes<T>(&mut self, key: &str, what: &str, node: &Node) -> Option<T> {
        self.wrong(node.at, format!("{key} takes {what}, and this is {}", node.kind()));
        None
    }

    /// A text. A number or a switch that was not quoted is none: what YAML makes of it is seldom what was meant.
    pub(super) fn text(&mut self, key: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::Text(text) if text.contains('\0') => {
                self.wrong(node.at, format!("{key} has a zero byte in it"));
                None
            }
            Value::Text(text) => Some(text.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                let what = node.kind();
                self.wrong(
                    node.at,
                    format!("{key} takes a text, and YAML reads this as {what}; put it in quotes"),
                );
                None
            }
            _ => self.takes(key, "a text", node),
        }
    }

    /// A text of one line.
    pub(super) fn line(&mut self, key: &str, node: &Node) -> Option<String> {
        let text = self.text(key, node)?;
        if text.chars().any(char::is_control) {
            self.wrong(node.at, format!("{key} takes one line without control characters"));
            return None;
        }
        Some(text)
    }

    /// `true` or `false`, or one of the words that cloud-init takes for them.
    pub(super) fn switch(&mut self, key: &str, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Text(text) if ["true", "1", "on", "yes"].contains(&text.to_lowercase().trim()) => {
                Some(true)
            }
            Value::Text(text) if ["false", "0", "off", "no"].contains(&text.to_lowercase().trim()) => {
                Some(false)
            }
            Value::Int(1) => Some(true),
            Value::Int(0) => Some(false),
            _ => self.takes(key, "true or false", node),
        }
    }

    /// A list.
    pub(super) fn list<'a>(&mut self, key: &str, node: &'a Node) -> Option<&'a [Node]> {
        match &node.value {
            Value::List(nodes) => Some(nodes),
            _ => self.takes(key, "a list", node),
        }
    }

    /// A list of lines, or one line that stands for itself.
    pub(super) fn lines(&mut self, key: &str, node: &Node) -> Option<Vec<String>> {
        match &node.value {
            Value::Text(_) => Some(vec![self.line(key, node)?]),
            Value::List(nodes) => nodes.iter().map(|node| self.line(key, node)).collect(),
            _ => self.takes(key, "a text or a list of texts", node),
        }
    }

    /// A mapping whose keys are all among `known`; every other key is named, with those that there are.
    pub(super) fn map<'a>(&mut self, key: &str, node: &'a Node, known: &[&str]) -> Option<Map<'a>> {
        let Value::Map(entries) = &node.value else { return self.takes(key, "a mapping", node) };
        let mut found = Vec::new();
        for (name, value) in entries {
            // cloud-init takes both spellings in users, and so do people everywhere.
            let text = name.python().unwrap_or_default().replace('-', "_");
            if known.contains(&text.as_str()) {
                found.push((text, value));
            } else {
                self.wrong(
                    name.at,
                    format!("{key}.{text} is not supported; supported are {}", known.join(", ")),
                );
            }
        }
        Some(Map { at: node.at, entries: found })
    }
}

/// A mapping whose keys are known.
pub(super) struct Map<'a> {
    /// Where it begins.
    pub(super) at: Place,
    entries: Vec<(String, &'a Node)>,
}

impl<'a> Map<'a> {
    /// The value of a key that is there, and not `null`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        let (_, node) = self.entries.iter().find(|(known, _)| known == key)?;
        (node.value != Value::Null).then_some(*node)
    }
}
