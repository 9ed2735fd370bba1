//! Sets values in a TOML text that belongs to others: comments, order and spacing of everything else stay. A text whose
//! form does not allow that (inline tables, mostly) is refused: what comes out is read again and must be exactly what
//! went in, with the one value set.

use toml::{Table, Value};

/// The text with `value` at `path`, whose last element is the key; an error says what stands in the way.
pub(super) fn set(text: &str, path: &[&str], value: &Value) -> Result<String, String> {
    let mut wanted: Table = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    if !insert(&mut wanted, path, value.clone()) {
        return Err(format!("{} is no table", path[..path.len() - 1].join(".")));
    }
    let (key, table) = path.split_last().ok_or("no key is named")?;
    let changed = write(text, table, key, value);
    match toml::from_str::<Table>(&changed) {
        Ok(found) if found == wanted => Ok(changed),
        _ => Err(format!("[{}] is written in a form that cannot be extended", header(table))),
    }
}

/// The value at `path`.
pub(super) fn get<'t>(table: &'t Table, path: &[&str]) -> Option<&'t Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(*first)?;
    if rest.is_empty() { Some(value) } else { get(value.as_table()?, rest) }
}

fn insert(table: &mut Table, path: &[&str], value: Value) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        table.insert((*first).to_owned(), value);
        return true;
    }
    let inner = table.entry(*first).or_insert_with(|| Value::Table(Table::new()));
    inner.as_table_mut().is_some_and(|inner| insert(inner, rest, value))
}

fn write(text: &str, table: &[&str], key: &str, value: &Value) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let Some(at) = lines.iter().position(|line| names(line, table)) else {
        let gap = if lines.is_empty() { "" } else { "\n" };
        return format!("{}{gap}[{}]\n{key} = {value}\n", ended(text), header(table));
    };
    let after = at + 1;
    let end = lines[after..]
        .iter()
        .position(|l| l.trim_start().starts_with('['))
        .map_or(lines.len(), |n| after + n);
    let named =
        |line: &String| line.split_once('=').is_some_and(|(k, _)| k.trim().trim_matches(['"', '\'']) == key);
    if let Some(line) = lines[after..end].iter_mut().find(|line| named(line)) {
        // A comment behind it stays; a `#` in its value makes a text that does not read as wanted, and is refused.
        let (before, old) = line.split_once('=').unwrap_or((line, ""));
        let comment = old.find('#').map(|at| format!(" {}", &old[at..])).unwrap_or_default();
        *line = format!("{}= {value}{comment}", before.trim_end().to_owned() + " ");
    } else {
        let indent = |line: &str| line[..line.len() - line.trim_start().len()].to_owned();
        let like = lines[after..end].iter().find(|line| !line.trim().is_empty());
        let indent = like.map_or_else(|| indent(&lines[at]), |line| indent(line));
        lines.insert(after, format!("{indent}{key} = {value}"));
    }
    lines.join("\n") + "\n"
}

/// Whether the line is the header of this table.
fn names(line: &str, table: &[&str]) -> bool {
    let line = line.trim();
    if !line.starts_with('[') || line.starts_with("[[") {
        return false;
    }
    let Ok(parsed) = toml::from_str::<Table>(line) else { return false };
    let mut inside = &parsed;
    for name in table {
        match inside.iter().next() {
            Some((key, Value::Table(next))) if key == name => inside = next,
            _ => return false,
        }
    }
    inside.is_empty()
}

fn header(table: &[&str]) -> String {
    let bare = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let quoted = |name: &&str| if bare(name) { (*name).to_owned() } else { format!("\"{name}\"") };
    table.iter().map(quoted).collect::<Vec<_>>().join(".")
}

fn ended(text: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGIN: &str = "io.containerd.grpc.v1.cri";

    fn on(text: &str) -> Result<String, String> {
        set(text, &["plugins", PLUGIN, "enable_cdi"], &Value::Boolean(true))
    }

    #[test]
    fn everything_else_stays_to_the_byte() {
        let text = "# by hand\nversion = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"] # the one\n    sandbox_image = \"x\" # mine\n\n    [plugins.'io.containerd.grpc.v1.cri'.cni]\n      bin_dir = '/usr/lib/cni'\n";
        let changed = on(text).unwrap();
        assert_eq!(changed, text.replace("# the one\n", "# the one\n    enable_cdi = true\n"));
        assert_eq!(on(&changed).unwrap(), changed, "twice is once");
    }

    #[test]
    fn a_table_that_is_not_there_comes_to_the_end() {
        assert_eq!(on("").unwrap(), "[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_cdi = true\n");
        // Its sub-table is there: TOML takes the table after it.
        let text = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\na = 1";
        assert_eq!(
            on(text).unwrap(),
            format!("{text}\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_cdi = true\n")
        );
    }

    #[test]
    fn another_value_is_replaced_and_its_comment_stays() {
        let text = "[plugins.\"io.containerd.grpc.v1.cri\"]\n\tenable_cdi=false   # for now\n";
        assert_eq!(
            on(text).unwrap(),
            "[plugins.\"io.containerd.grpc.v1.cri\"]\n\tenable_cdi = true # for now\n"
        );
    }

    #[test]
    fn forms_that_cannot_be_extended_are_refused() {
        for text in [
            "plugins = { \"io.containerd.grpc.v1.cri\" = { a = 1 } }\n",
            "plugins = 1\n",
            "x = \"\"\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\"\"\"\n",
            "version = \n",
        ] {
            on(text).unwrap_err();
        }
    }
}
