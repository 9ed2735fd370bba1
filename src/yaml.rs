//! YAML as cloud-init reads it: the syntax by `saphyr-parser`, and what plain words mean by the rules of YAML 1.1 as `PyYAML`
//! has them (`yes` is true, `0644` is a number with base 8). Each node keeps its place. Pure; the text is whatever someone
//! pasted, so that size and depth have limits.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

/// Nodes in one document, those behind aliases counted each time: 16 KB must not become gigabytes.
const MOST_NODES: usize = 20_000;
/// Lists and mappings inside each other.
const MOST_DEPTH: usize = 64;

/// Line and column, from 1.
pub(crate) type Place = (usize, usize);

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) at: Place,
    pub(crate) text: String,
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: Place,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// Keys are unique.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// As Python's `str` writes it, which is what cloud-init makes of arguments; `None` for lists and mappings.
    pub(crate) fn python(&self) -> Option<String> {
        Some(match &self.value {
            Value::Null => "None".into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Text(text) => text.clone(),
            Value::List(_) | Value::Map(_) => return None,
        })
    }

    /// The same for the same meaning, wherever it stands and however it is written.
    pub(crate) fn canonical(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Text(text) => text.clone().into(),
            Value::List(nodes) => nodes.iter().map(Self::canonical).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, value)| (key.python().unwrap_or_default(), value.canonical()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(nodes) => nodes.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(key, value)| key.size() + value.size()).sum(),
            // An alias of a long text is as good as many of a short one.
            Value::Text(text) => text.len() / 64,
            _ => 0,
        }
    }
}

/// The one document of the text; `None` where there is none.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, Problem> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| Problem {
            at: (e.marker().line(), e.marker().col() + 1),
            text: format!("this is no YAML: {}", e.info()),
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.document)
}

/// A list or mapping that has not ended yet.
struct Open {
    at: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Node, Node)>, merged: Vec<Node>, key: Option<Node> },
}

#[derive(Default)]
struct Builder {
    document: Option<Node>,
    documents: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let at = (span.start.line(), span.start.col() + 1);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return problem(at, "a second document begins here; there may be one only");
                }
            }
            Event::Alias(anchor) => {
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return problem(at, "this alias stands inside of what it names");
                };
                self.count(node.size(), at)?;
                node.at = at;
                self.add(node, 0)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, at)?;
                let value = scalar(&text, style, tag.as_deref(), at)?;
                self.add(Node { at, value }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(at, anchor, tag.as_deref(), Content::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                let content = Content::Map { entries: Vec::new(), merged: Vec::new(), key: None };
                self.begin(at, anchor, tag.as_deref(), content)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { at, anchor, content }) = self.open.pop() {
                    let value = match content {
                        Content::List(nodes) => Value::List(nodes),
                        Content::Map { entries, merged, .. } => Value::Map(merge(entries, merged)?),
                    };
                    self.add(Node { at, value }, anchor)?;
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn count(&mut self, more: usize, at: Place) -> Result<(), Problem> {
        self.nodes += more;
        if self.nodes > MOST_NODES {
            return problem(at, &format!("there are more than {MOST_NODES} values"));
        }
        Ok(())
    }

    fn begin(
        &mut self,
        at: Place,
        anchor: usize,
        tag: Option<&Tag>,
        content: Content,
    ) -> Result<(), Problem> {
        self.count(1, at)?;
        if let Some(tag) = tag {
            return problem(at, &format!("the tag {}{} is not supported", tag.handle, tag.suffix));
        }
        if self.open.len() >= MOST_DEPTH {
            return problem(
                at,
                &format!("there are more than {MOST_DEPTH} lists and mappings inside each other"),
            );
        }
        self.open.push(Open { at, anchor, content });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        if anchor > 0 {
            self.count(node.size(), node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.document = Some(node);
            return Ok(());
        };
        match &mut parent.content {
            Content::List(nodes) => nodes.push(node),
            Content::Map { entries, merged, key } => match key.take() {
                None => {
                    if matches!(node.value, Value::List(_) | Value::Map(_)) {
                        return problem(node.at, &format!("{} cannot be a key", node.kind()));
                    }
                    let text = node.python();
                    if let Some((earlier, _)) = entries.iter().find(|(known, _)| known.python() == text) {
                        let (line, text) = (earlier.at.0, text.unwrap_or_default());
                        let words =
                            format!("{text} stands in line {line} already, and only one of them can count");
                        return problem(node.at, &words);
                    }
                    *key = Some(node);
                }
                Some(key) if key.value == Value::Text("<<".into()) => merged.push(node),
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }
}

/// What `<<` brings stands behind what the mapping has itself.
fn merge(mut entries: Vec<(Node, Node)>, merged: Vec<Node>) -> Result<Vec<(Node, Node)>, Problem> {
    for node in merged {
        let at = node.at;
        let maps = match node.value {
            Value::Map(entries) => vec![entries],
            Value::List(nodes) if nodes.iter().all(|node| matches!(node.value, Value::Map(_))) => nodes
                .into_iter()
                .filter_map(|node| if let Value::Map(entries) = node.value { Some(entries) } else { None })
                .collect(),
            _ => return problem(at, "<< takes a mapping or a list of mappings"),
        };
        for (key, value) in maps.into_iter().flatten() {
            if !entries.iter().any(|(known, _)| known.python() == key.python()) {
                entries.push((key, value));
            }
        }
    }
    Ok(entries)
}

fn problem<T>(at: Place, text: &str) -> Result<T, Problem> {
    Err(Problem { at, text: text.into() })
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Place) -> Result<Value, Problem> {
    match tag {
        None if style == ScalarStyle::Plain => Ok(plain(text)),
        None => Ok(Value::Text(text.into())),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(Value::Text(text.into())),
        Some(tag) => problem(at, &format!("the tag {}{} is not supported", tag.handle, tag.suffix)),
    }
}

/// What a word without quotes means.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    integer(text)
        .map(Value::Int)
        .or_else(|| float(text).map(Value::Float))
        .unwrap_or_else(|| Value::Text(text.into()))
}

fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = signed(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let plain = digits.replace('_', "");
    let number = if let Some(binary) = plain.strip_prefix("0b") {
        i64::from_str_radix(binary, 2).ok()?
    } else if let Some(hex) = plain.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()?
    } else if plain.len() > 1 && plain.starts_with('0') {
        i64::from_str_radix(&plain, 8).ok()?
    } else if plain.contains(':') {
        // Base 60: 1:30 is 90. Each further part is below 60.
        let mut parts = plain.split(':');
        let first: i64 = parts.next()?.parse().ok()?;
        parts.try_fold(first, |sum, part| {
            let value: i64 = part.parse().ok().filter(|v| (0..60).contains(v))?;
            if part.len() > 2 || part.starts_with('+') {
                None
            } else {
                sum.checked_mul(60)?.checked_add(value)
            }
        })?
    } else {
        plain.parse().ok()?
    };
    number.checked_mul(sign)
}

fn float(text: &str) -> Option<f64> {
    let (_, digits) = signed(text);
    let (whole, rest) = digits.split_once('.')?;
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let are_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let is_exponent = exponent.is_none_or(|e| {
        e.strip_prefix(['+', '-']).is_some_and(|e| !e.is_empty() && e.bytes().all(|b| b.is_ascii_digit()))
    });
    let begins = |s: &str| s.starts_with(|c: char| c.is_ascii_digit());
    let is_float = are_digits(whole)
        && are_digits(fraction)
        && is_exponent
        && (begins(whole) || (whole.is_empty() && begins(fraction)));
    if !is_float {
        return None;
    }
    let text = text.replace('_', "");
    text.strip_prefix('+').unwrap_or(&text).parse().ok()
}

fn signed(text: &str) -> (i64, &str) {
    match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> String {
        parse(text).unwrap().map_or("none".into(), |node| node.canonical().to_string())
    }

    fn fails(text: &str) -> (Place, String) {
        let problem = parse(text).unwrap_err();
        (problem.at, problem.text)
    }

    #[test]
    fn plain_words_mean_what_they_mean_to_pyyaml() {
        // By Python's yaml.safe_load.
        for (word, json) in [
            ("yes", "true"),
            ("Off", "false"),
            ("y", "\"y\""),
            ("~", "null"),
            ("0644", "420"),
            ("0o644", "\"0o644\""),
            ("08", "\"08\""),
            ("644", "644"),
            ("-1_000", "-1000"),
            ("0x1F", "31"),
            ("0b11", "3"),
            ("1:30", "90"),
            ("22:22:99", "\"22:22:99\""),
            ("1000:1000", "\"1000:1000\""),
            ("1.10", "1.1"),
            ("1e3", "\"1e3\""),
            ("1.0e+3", "1000.0"),
            (".5", "0.5"),
            ("1.2.3", "\"1.2.3\""),
            ("'0644'", "\"0644\""),
            ("!!str 0644", "\"0644\""),
            ("99999999999999999999", "\"99999999999999999999\""),
            ("-", "[null]"),
        ] {
            assert_eq!(super::tests::json(word), json, "{word}");
        }
    }

    #[test]
    fn anchors_merges_and_blocks() {
        assert_eq!(json("a: &x [1]\nb: *x\n"), r#"{"a":[1],"b":[1]}"#);
        assert_eq!(
            json("a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3\n"),
            r#"{"a":{"k":1,"l":2},"b":{"k":3,"l":2}}"#
        );
        assert_eq!(json("a: |\n  x\n   y\nb: >-\n  x\n  y\n"), r#"{"a":"x\n y\n","b":"x y"}"#);
        assert_eq!(json("# nothing\n"), "none");
    }

    #[test]
    fn problems_have_a_place() {
        assert_eq!(fails("a: 1\nb: [\n").0.0, 3);
        assert_eq!(fails("a: 1\n  b: 2\n").0.0, 2);
        let (at, text) = fails("a: 1\nc: 2\na: 3\n");
        assert_eq!((at, text.contains("line 1")), ((3, 1), true), "{text}");
        assert!(fails("a: 1\n---\nb: 2\n").1.contains("second document"));
        assert!(fails("a: !!binary aaaa\n").1.contains("tag"));
        assert!(fails("? [a]\n: b\n").1.contains("cannot be a key"));
        assert!(fails("a: &x [*x]\n").1.contains("inside of what it names"));
    }

    #[test]
    fn small_texts_do_not_become_large_ones() {
        let laughs = (1..12).map(|n| {
            let previous = vec![format!("*a{}", n - 1); 9].join(",");
            format!("a{n}: &a{n} [{previous}]\n")
        });
        let bomb = format!("a0: &a0 [x,x,x,x,x,x,x,x,x]\n{}", laughs.collect::<String>());
        assert!(fails(&bomb).1.contains("more than 20000"));
        let long = format!("a: &x {}\nb: [{}]\n", "x".repeat(100_000), ["*x"; 50].join(","));
        assert!(fails(&long).1.contains("more than 20000"), "the length of texts counts behind aliases");
        assert!(fails(&"[".repeat(70)).1.contains("more than 64"));
        fails(&"[".repeat(8000)); // the parser's own limit
    }

    #[test]
    fn hostile_text_never_panics() {
        let seeds = [
            "a: &x [1, 'b', \"c\\x41\"]\nb: {<<: *x, ? k : v}\n",
            "- |\n  x\n- >+2\n  y\n# z\n--- !t\n",
            "%YAML 1.2\n---\n\u{fc}: \t- x\n...\n",
        ];
        let signs = [
            "\n", " ", ":", "-", "?", "[", "]", "{", "}", ",", "&", "*", "!", "|", ">", "'", "\"", "%", "\t",
            "\u{feff}", "#", "\0",
        ];
        let mut random = crate::text::noise();
        for round in 0..20_000 {
            let mut text: Vec<char> = seeds[round % seeds.len()].chars().collect();
            for _ in 0..=random() % 8 {
                let at = random() % (text.len() + 1);
                let to = (at + random() % 2).min(text.len());
                text.splice(at..to, signs[random() % signs.len()].chars());
            }
            let _ = parse(&text.into_iter().collect::<String>()); // any answer will do
        }
    }
}
