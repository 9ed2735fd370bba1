//! A MIME message as a tree, read as Python's `email.feedparser` does it, which cloud-init reads user-data with. It never
//! refuses anything: headers end at the first line that is none, a boundary of an outer multipart ends an inner one, a
//! multipart whose boundary never comes has no parts. [`super::parts`] calls this.

use std::collections::VecDeque;

use super::codecs::{lenient_base64, quoted_printable};
use super::headers::Headers;
use super::{MAX_DEPTH, MAX_PARTS, Refusal};

/// Number of a message in its [`Tree`].
pub(super) type Id = usize;

/// Messages by number; the first one is the root.
#[derive(Debug, Default)]
pub(super) struct Tree(Vec<Message>);

#[derive(Debug)]
struct Message {
    headers: Headers,
    /// The type of a message without a header that says it.
    default_type: &'static str,
    payload: Payload,
}

#[derive(Debug)]
enum Payload {
    Bytes(Vec<u8>),
    Messages(Vec<Id>),
}

impl Tree {
    /// One message without an encoding.
    pub(super) fn single(content_type: &str, bytes: Vec<u8>) -> Self {
        let mut tree = Self(Vec::new());
        tree.add(content_type, bytes);
        tree
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut parser = Parser {
            tree: Self(Vec::new()),
            lines: lines(bytes),
            ends: Vec::new(),
            open: Vec::new(),
            last: 0,
        };
        parser.message()?;
        Ok(parser.tree)
    }

    /// Takes in another tree; returns the number that its root has here.
    pub(super) fn absorb(&mut self, other: Self) -> Id {
        let root = self.0.len();
        for mut message in other.0 {
            if let Payload::Messages(inside) = &mut message.payload {
                for id in inside {
                    *id += root;
                }
            }
            self.0.push(message);
        }
        root
    }

    /// A message without a parent.
    pub(super) fn add(&mut self, content_type: &str, bytes: Vec<u8>) -> Id {
        let mut headers = Headers::default();
        headers.push("Content-Type".into(), content_type.into());
        self.0.push(Message { headers, default_type: "text/plain", payload: Payload::Bytes(bytes) });
        self.0.len() - 1
    }

    pub(super) fn headers(&mut self, id: Id) -> &mut Headers {
        &mut self.0[id].headers
    }

    pub(super) fn content_type(&self, id: Id) -> String {
        self.0[id].headers.content_type(self.0[id].default_type)
    }

    /// `multipart/*` only holds others.
    pub(super) fn is_container(&self, id: Id) -> bool {
        self.content_type(id).starts_with("multipart/")
    }

    /// The message, and everything in it, each before what it holds.
    pub(super) fn walk(&self, root: Id) -> Vec<Id> {
        let (mut found, mut waiting) = (Vec::new(), vec![root]);
        while let Some(id) = waiting.pop() {
            found.push(id);
            if let Payload::Messages(inside) = &self.0[id].payload {
                waiting.extend(inside.iter().rev());
            }
        }
        found
    }

    /// The bytes without their transfer encoding; none for a message that holds others.
    pub(super) fn decoded(&self, id: Id) -> Vec<u8> {
        let Payload::Bytes(bytes) = &self.0[id].payload else { return Vec::new() };
        match self.0[id].headers.get("content-transfer-encoding").unwrap_or_default().to_lowercase().as_str()
        {
            "base64" => lenient_base64(bytes),
            "quoted-printable" => quoted_printable(bytes),
            _ => bytes.clone(),
        }
    }
}

/// What ends the message that is being read, before the bytes end.
enum End {
    /// A line with a boundary of a multipart around it.
    Boundary(Vec<u8>),
    /// An empty line, in a delivery status.
    EmptyLine,
}

impl End {
    fn matches(&self, line: &[u8]) -> bool {
        match self {
            Self::Boundary(separator) => boundary(line, separator).is_some(),
            Self::EmptyLine => line.starts_with(b"\r") || line.starts_with(b"\n"),
        }
    }
}

struct Parser<'a> {
    tree: Tree,
    /// What is left. An empty line in it stands for an end that somebody looked past.
    lines: VecDeque<&'a [u8]>,
    ends: Vec<End>,
    /// The message that is being read, and those around it.
    open: Vec<Id>,
    /// The message whose last line break may belong to the boundary that follows.
    last: Id,
}

impl<'a> Parser<'a> {
    /// The next line with its line break; empty at an end.
    fn line(&mut self) -> &'a [u8] {
        match self.lines.front() {
            Some(line) if !self.ends.iter().any(|end| end.matches(line)) => {
                self.lines.pop_front().unwrap_or_default()
            }
            _ => b"",
        }
    }

    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        loop {
            match self.line() {
                b"" => return rest,
                line => rest.extend_from_slice(line),
            }
        }
    }

    /// Reads one message up to its end, and leaves it open.
    fn message(&mut self) -> Result<(), Refusal> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Refusal::TooDeep);
        }
        if self.tree.0.len() >= MAX_PARTS {
            return Err(Refusal::TooManyParts);
        }
        let id = self.tree.0.len();
        let parent = self.open.last().copied();
        let is_in_digest = parent.is_some_and(|p| self.tree.content_type(p) == "multipart/digest");
        self.tree.0.push(Message {
            headers: Headers::default(),
            default_type: if is_in_digest { "message/rfc822" } else { "text/plain" },
            payload: Payload::Bytes(Vec::new()),
        });
        if let Some(parent) = parent {
            match &mut self.tree.0[parent].payload {
                Payload::Messages(inside) => inside.push(id),
                payload @ Payload::Bytes(_) => *payload = Payload::Messages(vec![id]),
            }
        }
        self.open.push(id);
        self.last = id;

        self.headers(id);
        let content_type = self.tree.content_type(id);
        if content_type == "message/delivery-status" {
            self.delivery_status()
        } else if content_type.starts_with("message/") {
            self.message()?;
            self.open.pop();
            Ok(())
        } else if content_type.starts_with("multipart/")
            && let Some(boundary) = self.tree.0[id].headers.boundary()
        {
            self.multipart(id, &format!("--{boundary}").into_bytes())
        } else {
            self.tree.0[id].payload = Payload::Bytes(self.rest());
            Ok(())
        }
    }

    /// Reads up to the empty line, or to the first line that can be no header.
    fn headers(&mut self, id: Id) {
        let mut found = Vec::new();
        loop {
            match self.line() {
                b"" => break,
                line if is_header(line) => found.push(line),
                line if End::EmptyLine.matches(line) => break,
                line => {
                    self.lines.push_front(line);
                    break;
                }
            }
        }
        let mut current: Option<(String, String)> = None;
        for (number, line) in found.iter().enumerate() {
            let text = String::from_utf8_lossy(line);
            if line.starts_with(b" ") || line.starts_with(b"\t") {
                if let Some((_, value)) = &mut current {
                    value.push_str(&text);
                }
                continue;
            }
            self.header(id, current.take());
            if line.starts_with(b"From ") {
                // As the first line it is the envelope of a mailbox, as the last one it begins the body.
                if number > 0 && number == found.len() - 1 {
                    self.lines.push_front(line);
                }
                continue;
            }
            if let Some((name, value)) = text.split_once(':').filter(|(name, _)| !name.is_empty()) {
                current = Some((name.to_owned(), value.trim_start_matches([' ', '\t']).to_owned()));
            }
        }
        self.header(id, current);
    }

    fn header(&mut self, id: Id, header: Option<(String, String)>) {
        if let Some((name, value)) = header {
            self.tree.headers(id).push(name, value.trim_end_matches(['\r', '\n']).to_owned());
        }
    }

    /// Blocks of headers with empty lines between them, each of them a message.
    fn delivery_status(&mut self) -> Result<(), Refusal> {
        loop {
            self.ends.push(End::EmptyLine);
            self.message()?;
            self.open.pop();
            self.ends.pop();
            self.line(); // the empty line
            match self.line() {
                b"" => return Ok(()),
                line => self.lines.push_front(line),
            }
        }
    }

    fn multipart(&mut self, id: Id, separator: &[u8]) -> Result<(), Refusal> {
        let mut is_preamble = true;
        loop {
            let line = self.line();
            match boundary(line, separator) {
                _ if line.is_empty() => break,
                None => {}
                Some(Boundary::Closing) => {
                    if !is_preamble {
                        self.rest(); // the epilogue
                    }
                    break;
                }
                Some(Boundary::Opening) => {
                    is_preamble = false;
                    self.part(id, separator)?;
                }
            }
        }
        if is_preamble {
            // Without a part there is nothing that anybody looks at.
            self.rest();
        }
        Ok(())
    }

    /// One part, after its boundary.
    fn part(&mut self, multipart: Id, separator: &[u8]) -> Result<(), Refusal> {
        // Boundaries in a row are one.
        loop {
            let line = self.line();
            if boundary(line, separator).is_none() {
                self.lines.push_front(line);
                break;
            }
        }
        self.ends.push(End::Boundary(separator.to_vec()));
        self.message()?;
        if !self.tree.is_container(self.last)
            && let Payload::Bytes(bytes) = &mut self.tree.0[self.last].payload
        {
            let end = without_line_break(bytes).len();
            bytes.truncate(end);
        }
        self.ends.pop();
        self.open.pop();
        self.last = multipart;
        Ok(())
    }
}

/// Lines with their line breaks; a lone carriage return is one, too.
fn lines(bytes: &[u8]) -> VecDeque<&[u8]> {
    let mut found = VecDeque::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n')).map_or(rest.len(), |at| at + 1);
        let end = if rest[..end].ends_with(b"\r") && rest.get(end) == Some(&b'\n') { end + 1 } else { end };
        let (line, after) = rest.split_at(end);
        found.push_back(line);
        rest = after;
    }
    found
}

fn is_header(line: &[u8]) -> bool {
    let name = line.iter().take_while(|b| b.is_ascii_graphic() && **b != b':').count();
    line.starts_with(b"From ")
        || line.starts_with(b" ")
        || line.starts_with(b"\t")
        || line.get(name) == Some(&b':')
}

enum Boundary {
    Opening,
    Closing,
}

fn boundary(line: &[u8], separator: &[u8]) -> Option<Boundary> {
    let tail = line.strip_prefix(separator)?;
    let (kind, blanks) = match tail.strip_prefix(b"--") {
        Some(blanks) => (Boundary::Closing, blanks),
        None => (Boundary::Opening, tail),
    };
    without_line_break(blanks).iter().all(|b| matches!(b, b' ' | b'\t')).then_some(kind)
}

fn without_line_break(bytes: &[u8]) -> &[u8] {
    [&b"\r\n"[..], b"\n", b"\r"].iter().find_map(|end| bytes.strip_suffix(*end)).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type and text of everything that holds nothing else.
    fn leaves(message: &str) -> Vec<(String, String)> {
        let tree = Tree::parse(message.as_bytes()).unwrap();
        let ids = tree.walk(0).into_iter().filter(|id| matches!(tree.0[*id].payload, Payload::Bytes(_)));
        ids.map(|id| (tree.content_type(id), String::from_utf8(tree.decoded(id)).unwrap())).collect()
    }

    #[track_caller]
    fn has(message: &str, wanted: &[(&str, &str)]) {
        let found = leaves(message);
        let found: Vec<_> = found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(found, wanted, "{message:?}");
    }

    #[test]
    fn parts_in_order_whatever_the_line_breaks() {
        let message = "Content-Type: multipart/mixed;\n boundary=b\n\npreamble\n--b\n\nfirst\n\n--b\n--b\n\
                       Content-Type: a/b\n\nsecond\n--b--\nepilogue\n";
        has(message, &[("text/plain", "first\n"), ("a/b", "second")]);
        has(&message.replace('\n', "\r\n"), &[("text/plain", "first\r\n"), ("a/b", "second")]);
        has(&message.replace('\n', "\r"), &[("text/plain", "first\r"), ("a/b", "second")]);
    }

    #[test]
    fn headers_end_at_the_first_line_that_is_none() {
        has("MIME-Version: 1.0\n#!/bin/sh\n\nx", &[("text/plain", "#!/bin/sh\n\nx")]);
        has("Content-Type : a/b\n\nx", &[("text/plain", "Content-Type : a/b\n\nx")]);
        has("From me\nContent-Type: a/b\n\nx", &[("a/b", "x")]);
        has("Content-Type: a/b\nFrom me\n\nx", &[("a/b", "From me\nx")]);
        has(" continued\n: no name\n lost\nContent-Type: a/b;\n\tx\n\nx", &[("a/b", "x")]);
    }

    #[test]
    fn a_boundary_of_an_outer_multipart_ends_an_inner_one() {
        has(
            "Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/mixed; boundary=i\n\n--i\n\n\
             inner\n--o\n\nouter\n--o--\n",
            &[("text/plain", "inner"), ("text/plain", "outer")],
        );
    }

    #[test]
    fn messages_in_messages() {
        has(
            "Content-Type: multipart/digest; boundary=b\n\n--b\n\nContent-Type: a/b\n\nx\n--b--",
            &[("a/b", "x")],
        );
        has(
            "Content-Type: message/delivery-status\n\nA: b\n\nContent-Type: c/d\n\n",
            &[("text/plain", ""), ("c/d", "")],
        );
    }

    #[test]
    fn what_has_no_parts() {
        has("Content-Type: multipart/mixed\n\nx", &[("multipart/mixed", "x")]);
        has("Content-Type: multipart/mixed; boundary=b\n\n--bc\n-- b\n", &[("multipart/mixed", "")]);
        has("Content-Type: multipart/mixed; boundary=b\n\n--b--\n--b\n\nx", &[("multipart/mixed", "")]);
        has("Content-Type: multipart/mixed; boundary=b\n\n--b", &[("text/plain", "")]);
        has("", &[("text/plain", "")]);
    }

    #[test]
    fn depth_and_number_have_limits() {
        let deep = (0..40)
            .map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n"))
            .collect::<Vec<_>>()
            .concat();
        assert_eq!(Tree::parse(deep.as_bytes()).unwrap_err(), Refusal::TooDeep);
        let many = format!("Content-Type: multipart/mixed; boundary=b\n\n{}", "--b\n\n".repeat(MAX_PARTS));
        assert_eq!(Tree::parse(many.as_bytes()).unwrap_err(), Refusal::TooManyParts);
    }
}
