//! Here-documents of a shell script, as far as they can be read without being a shell: `cat >FILE <<'EOF'` and its like. What
//! is not that plain is named and not read. Nothing is executed, expanded or guessed.

/// A here-document that is written to a file that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// Where its command stands, from 1.
    pub(super) line: usize,
    pub(super) path: String,
    /// What the file will hold, or why that cannot be told.
    pub(super) text: Result<String, String>,
}

/// Programs that pass on what they read, or have nothing to do with it.
const PLAIN_PROGRAMS: [&str; 5] = ["cat", "tee", "install", "mkdir", "sudo"];

/// A word of a command line, or what stands between words.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `>`, `>>`, `|`, `&&`, `;`, …
    Sign(String),
    Here(Here),
}

/// What `<<` begins.
#[derive(Debug, PartialEq, Eq)]
struct Here {
    delimiter: String,
    /// Quoted: the shell fills nothing in.
    is_literal: bool,
    /// `<<-`: tabs before each line go.
    is_stripped: bool,
}

/// Those that are written to a path that is `wanted`, in order.
pub(super) fn documents(script: &str, wanted: impl Fn(&str) -> bool) -> Vec<Document> {
    let lines: Vec<&str> = script.lines().collect();
    let (mut found, mut at, mut quote) = (Vec::new(), 0, None);
    while at < lines.len() {
        let (number, line) = (at + 1, lines[at]);
        let began_in_quotes = quote.is_some();
        let tokens = tokens(line, &mut quote);
        at += 1;
        let mut bodies = Vec::new();
        for here in
            tokens.iter().filter_map(|token| if let Token::Here(here) = token { Some(here) } else { None })
        {
            let ends = |line: &&str| if here.is_stripped { line.trim_start_matches('\t') } else { line } == here.delimiter;
            // Without its end it is none: 1 << 2.
            let Some(length) = lines[at..].iter().position(ends) else { continue };
            bodies.push((here, &lines[at..at + length]));
            at += length + 1;
        }
        let paths: Vec<_> = tokens
            .iter()
            .filter_map(|token| if let Token::Word(word) = token { Some(word.as_str()) } else { None })
            .filter(|word| wanted(word))
            .collect();
        if let ([path], Some((here, body))) = (&paths[..], bodies.first()) {
            let is_plain = !began_in_quotes && quote.is_none() && !line.starts_with([' ', '\t']);
            let text = why_not(&tokens, is_plain, bodies.len()).map_or_else(|| read(here, body), Err);
            found.push(Document { line: number, path: (*path).into(), text });
        }
    }
    found
}

/// Why it cannot be told what becomes of the text.
fn why_not(tokens: &[Token], is_plain: bool, documents: usize) -> Option<String> {
    if !is_plain {
        return Some("it stands inside of something, so that it may not be run at all".into());
    }
    if documents > 1 {
        return Some("its line has several here-documents".into());
    }
    let mut is_first = true;
    for (number, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign(sign) if ["|", "&&"].contains(&sign.as_str()) => is_first = true,
            Token::Sign(sign) if [">", ">|"].contains(&sign.as_str()) => {}
            Token::Sign(sign) => return Some(format!("its line has {sign}")),
            Token::Word(word) if is_first => {
                if !PLAIN_PROGRAMS.contains(&word.as_str()) {
                    return Some(format!("{word} could make another text of it"));
                }
                is_first = word == "sudo";
            }
            Token::Word(word) if ["-a", "--append"].contains(&word.as_str()) => {
                return Some("it is put behind what is there".into());
            }
            Token::Word(_) | Token::Here(_) => {}
        }
        let is_written = matches!(token, Token::Word(word) if word.contains('$') || word.contains('`'));
        if is_written && number > 0 {
            return Some("its line has something that the shell fills in".into());
        }
    }
    None
}

fn read(here: &Here, body: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    for (number, line) in body.iter().enumerate() {
        if !here.is_literal && line.contains(['$', '`', '\\']) {
            return Err(format!(
                "the shell fills in what stands in its line {}; write <<'{}'",
                number + 1,
                here.delimiter
            ));
        }
        text.push_str(if here.is_stripped { line.trim_start_matches('\t') } else { line });
        text.push('\n');
    }
    Ok(text)
}

/// The words and signs of one line; `quote` is the quotation mark that is open before it and behind it.
fn tokens(line: &str, quote: &mut Option<char>) -> Vec<Token> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if let Some(mark) = *quote {
            if c == mark {
                *quote = None;
            } else {
                word.get_or_insert_default().push(c);
            }
            rest = after;
            continue;
        }
        rest = match c {
            '\'' | '"' => {
                *quote = Some(c);
                word.get_or_insert_default();
                after
            }
            '\\' => {
                let escaped = after.chars().next();
                word.get_or_insert_default().extend(escaped);
                &after[escaped.map_or(0, char::len_utf8)..]
            }
            '#' if word.is_none() => "",
            ' ' | '\t' => {
                found.extend(word.take().map(Token::Word));
                after
            }
            '<' if rest.starts_with("<<<") => {
                found.extend(word.take().map(Token::Word));
                found.push(Token::Sign("<<<".into()));
                &rest[3..]
            }
            '<' if rest.starts_with("<<") => {
                found.extend(word.take().map(Token::Word));
                let (here, after) = here(&rest[2..]);
                found.push(Token::Here(here));
                after
            }
            '>' | '<' | '|' | '&' | ';' | '(' | ')' => {
                // The number of a file before it belongs to it.
                let number =
                    word.take().filter(|word| !word.bytes().all(|b| b.is_ascii_digit()) || !"<>".contains(c));
                found.extend(number.map(Token::Word));
                let both = [">>", ">|", ">&", "<&", "&&", "||", ";;"]
                    .into_iter()
                    .find(|sign| rest.starts_with(sign));
                let sign = both.unwrap_or(&rest[..1]);
                found.push(Token::Sign(sign.into()));
                &rest[sign.len()..]
            }
            _ => {
                word.get_or_insert_default().push(c);
                after
            }
        };
    }
    found.extend(word.take().map(Token::Word));
    found
}

/// What stands behind `<<`, and the rest of the line.
fn here(text: &str) -> (Here, &str) {
    let is_stripped = text.starts_with('-');
    let mut rest = text.strip_prefix('-').unwrap_or(text).trim_start_matches([' ', '\t']);
    let (mut delimiter, mut is_literal, mut quote) = (String::new(), false, None);
    while let Some(c) = rest.chars().next() {
        match quote {
            Some(mark) if c == mark => quote = None,
            None if "'\"".contains(c) => (quote, is_literal) = (Some(c), true),
            None if c == '\\' => is_literal = true,
            None if " \t<>|&;()".contains(c) => break,
            _ => delimiter.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    (Here { delimiter, is_literal, is_stripped }, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(script: &str) -> Vec<Document> {
        documents(script, |word| word.starts_with("/f"))
    }

    #[test]
    fn plain_ways_to_write_a_file() {
        for command in [
            "cat >/f <<'E'",
            "cat <<'E' > /f",
            "cat > \"/f\" << \"E\"",
            "cat <<\\E >|/f",
            "tee /f <<'E' >/dev/null",
            "sudo tee /f >/dev/null <<'E'",
            "cat <<'E' | sudo tee /f > /dev/null",
            "mkdir -p /x && cat >/f <<'E' # a word",
            "install -D -m 0644 /dev/stdin /f <<'E'",
            "cat >/f <<E",
            "cat >/f <<-E",
        ] {
            let script = format!("#!/bin/sh\n{command}\na = 'b'\n[c]\nE\necho\n");
            let document = Document { line: 2, path: "/f".into(), text: Ok("a = 'b'\n[c]\n".into()) };
            assert_eq!(of(&script), [document], "{command}");
        }
        assert_eq!(of("cat >/f <<-'E'\n\t\tx\n\tE\n")[0].text, Ok("x\n".into()));
        assert_eq!(of("cat >/f <<'E'\nE\n")[0].text, Ok(String::new()));
    }

    #[test]
    fn what_is_not_plain_is_named() {
        for (script, why) in [
            ("cat >>/f <<'E'\nx\nE\n", "its line has >>"),
            ("tee -a /f <<'E'\nx\nE\n", "it is put behind"),
            ("cat >/f <<E\nx\n$y\nE\n", "the shell fills in what stands in its line 2; write <<'E'"),
            ("sed s/a/b/ >/f <<'E'\nx\nE\n", "sed could make another text"),
            ("cat <<'E' | sed s/a/b/ >/f\nx\nE\n", "sed could make another text"),
            ("if x; then\n  cat >/f <<'E'\nx\nE\nfi\n", "it stands inside of something"),
            ("x || cat >/f <<'E'\nx\nE\n", "x could make"),
            ("cat >/f <<'E' || exit 1\nx\nE\n", "its line has ||"),
            ("cat >/f <<'E' <<'F'\nx\nE\ny\nF\n", "its line has several"),
            ("cat $x >/f <<'E'\nx\nE\n", "its line has something that the shell"),
        ] {
            let found = of(script);
            assert_eq!(found.len(), 1, "{script}");
            let said = found[0].text.as_ref().unwrap_err();
            assert!(said.starts_with(why), "{script}: {said}");
        }
    }

    #[test]
    fn what_is_no_here_document_of_the_script_is_none() {
        for script in [
            "cat >/x <<'E'\ncat >/f <<'F'\ny\nF\nE\n",
            "x='\ncat >/f <<E\ny\nE\n'\n",
            "# cat >/f <<'E'\nx\nE\n",
            "echo $((1 << 2)) /f\n",
            "cat >/f <<<'E'\nx\nE\n",
            "cat >/f <<'E'\nno end\n",
            "cat >/g <<'E'\nx\nE\n",
        ] {
            assert_eq!(of(script), [], "{script}");
        }
    }

    #[test]
    fn any_text_has_an_end() {
        let pieces = [
            "cat", " >/f", " <<'E'", "\n", "E", "\\", "'", "\"", "<<", "-", "|", "\u{fc}", "#", "$", "\t",
            "&",
        ];
        let mut random = crate::text::noise();
        for _ in 0..20_000 {
            let mut script = String::new();
            for _ in 0..24 {
                script.push_str(pieces[random() % pieces.len()]);
            }
            for document in of(&script) {
                assert!(document.line <= script.lines().count());
            }
        }
    }
}
