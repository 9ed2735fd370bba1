//! `## template: jinja`: only a text in which there is nothing to fill in, which is then what follows its first line. Jinja is
//! a language of its own, and whatever it was written for would be another thing here.

use std::borrow::Cow;

use super::{Part, SCRIPT, type_by_beginning};

/// The type of templates.
pub(super) const TEMPLATE: &str = "text/jinja2";
const FIRST_LINE: &str = "## template: jinja";
/// What means something to jinja.
const SIGNS: [&str; 3] = ["{{", "{%", "{#"];
/// What cloud-init takes a template for.
const TYPES: [&str; 2] = ["text/cloud-config", SCRIPT];

/// A template that has nothing to fill in as the part that it is; every other part as it was.
pub(crate) fn filled_in(part: &Part) -> Cow<'_, Part> {
    match (part.content_type == TEMPLATE).then(|| read(part)) {
        Some(Ok(part)) => Cow::Owned(part),
        _ => Cow::Borrowed(part),
    }
}

/// The part that the template is, or why it cannot be one.
pub(super) fn read(part: &Part) -> Result<Part, String> {
    let text = std::str::from_utf8(&part.bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (first, body) = text.split_once('\n').unwrap_or((&text, ""));
    if !first.trim_end().eq_ignore_ascii_case(FIRST_LINE) {
        return Err(format!("its first line must be {FIRST_LINE}"));
    }
    for (number, line) in body.lines().enumerate() {
        if let Some(sign) = SIGNS.iter().find(|sign| line.contains(**sign)) {
            return Err(format!(
                "line {}: {sign} would have to be filled in; write the value, or a script that asks for it",
                number + 2
            ));
        }
    }
    let content_type = type_by_beginning(body.as_bytes()).filter(|found| TYPES.contains(found));
    let content_type = content_type.ok_or("its second line must begin with #cloud-config or #!")?;
    Ok(Part { content_type: content_type.into(), filename: part.filename.clone(), bytes: body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> Part {
        Part { content_type: TEMPLATE.into(), filename: "n".into(), bytes: text.into() }
    }

    #[test]
    fn without_anything_to_fill_in_it_is_what_follows() {
        for (text, content_type, body) in [
            (
                "## template: jinja\n#cloud-config\na: {b: 1}\n",
                "text/cloud-config",
                "#cloud-config\na: {b: 1}\n",
            ),
            ("## Template: JINJA \r\n#!/bin/sh\r\nx", SCRIPT, "#!/bin/sh\nx"),
        ] {
            let part = part(text);
            let found = filled_in(&part);
            assert_eq!(
                (found.content_type.as_str(), found.bytes.as_slice()),
                (content_type, body.as_bytes())
            );
        }
        let other = Part { content_type: SCRIPT.into(), ..part("## template: jinja\n#!/bin/sh") };
        assert_eq!(*filled_in(&other), other);
    }

    #[test]
    fn everything_else_is_refused_with_its_line() {
        for (text, words) in [
            ("## template: jinja\n#cloud-config\nhostname: {{ v1.region }}\n", "line 3: {{ would have to be"),
            ("## template: jinja\n#!/bin/sh\n{# x #}\n", "line 3: {# "),
            ("## template: jinja\n#!/bin/sh\n{% if x %}\n", "line 3: {% "),
            ("## template: jinja2\n#cloud-config\n", "its first line"),
            ("\n## template: jinja\n#cloud-config\n", "its first line"),
            ("## template: jinja\n#cloud-boothook\n", "its second line"),
            ("## template: jinja", "its second line"),
        ] {
            let part = part(text);
            assert!(read(&part).unwrap_err().starts_with(words), "{text}");
            assert_eq!(*filled_in(&part), part);
        }
    }
}
