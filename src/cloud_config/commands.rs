//! `runcmd` and `bootcmd`: a list of commands as one shell script, as cloud-init writes it.

use super::read::Reader;
use crate::yaml::{Node, Value};

/// The script: a text is a line of shell, a list is a program with its arguments.
pub(super) fn read(reader: &mut Reader, key: &str, node: &Node) -> Option<String> {
    let mut script = "#!/bin/sh\n".to_owned();
    for command in reader.list(key, node)? {
        match &command.value {
            // An entry of comments only.
            Value::Null => {}
            Value::Text(line) => {
                script.push_str(line);
                script.push('\n');
            }
            Value::List(words) => {
                let mut quoted = Vec::new();
                for word in words {
                    match word.python() {
                        Some(text) => quoted.push(format!("'{}'", text.replace('\'', r"'\''"))),
                        None => reader.wrong(
                            word.at,
                            format!("{key}: an argument is a text, and this is {}", word.kind()),
                        ),
                    }
                }
                script.push_str(&quoted.join(" "));
                script.push('\n');
            }
            _ => reader.wrong(
                command.at,
                format!(
                    "{key}: a command is a text or a list of texts, and this is {}; put it in quotes",
                    command.kind()
                ),
            ),
        }
    }
    Some(script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    #[test]
    fn commands_become_a_script() {
        let node = parse("- echo a; echo b\n- [echo, it's, 1, yes, 0.5, ~]\n-\n- |\n  x\n").unwrap().unwrap();
        let mut reader = Reader::default();
        assert_eq!(
            read(&mut reader, "runcmd", &node).unwrap(),
            "#!/bin/sh\necho a; echo b\n'echo' 'it'\\''s' '1' 'True' '0.5' 'None'\nx\n\n"
        );
        assert_eq!(reader.problems, []);
    }

    #[test]
    fn what_is_no_command_is_named_with_its_place() {
        let node = parse("- a: b\n- [[x]]\n- 7\n").unwrap().unwrap();
        let mut reader = Reader::default();
        read(&mut reader, "runcmd", &node);
        let places: Vec<_> = reader.problems.iter().map(|problem| problem.at).collect();
        assert_eq!(places, [(1, 3), (2, 4), (3, 3)]);
    }
}
