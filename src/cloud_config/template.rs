//! `$NAME` and `${NAME}` in a text, as cloud-init fills them in where it does not use Jinja.

/// The beginning of a text that cloud-init would give to Jinja, which is a language and stays unsupported.
const HEADER: &str = "## template:";

/// The text with each name's value in its place. A `$` with no name behind it stays.
pub(super) fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    if text.trim_start().to_lowercase().starts_with(HEADER) {
        return Err("templates of Jinja are not supported; write the text with $NAME".into());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut filled, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}')).map(|(name, _)| name);
        let name = braced.unwrap_or_else(|| &after[..after.find(|c| !is_name(c)).unwrap_or(after.len())]);
        if name.is_empty() || !name.chars().all(is_name) {
            filled.push('$');
            rest = after;
            continue;
        }
        filled.push_str(&value(name).ok_or_else(|| format!("${name} is not known"))?);
        rest = &after[name.len() + if braced.is_some() { 2 } else { 0 }..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// What is wrong with a text that may have these names; nothing where all is well.
pub(super) fn problem(text: &str, names: &[&str]) -> Option<String> {
    let known = |name: &str| names.contains(&name).then(String::new);
    let why = fill(text, known).err()?;
    Some(if why.starts_with('$') {
        let names: Vec<_> = names.iter().map(|name| format!("${name}")).collect();
        format!("{why}; known are {}", names.join(", "))
    } else {
        why
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_values_and_everything_else_stays() {
        let fill = |text: &str| fill(text, |name| (name != "NONE").then(|| format!("<{name}>")));
        for (text, filled) in [
            ("deb $MIRROR $RELEASE-updates main", "deb <MIRROR> <RELEASE>-updates main"),
            ("${A}b$C.", "<A>b<C>."),
            ("$ $$A ${} ${a b} cost: 5$", "$ $<A> ${} ${a b} cost: 5$"),
            ("", ""),
        ] {
            assert_eq!(fill(text).unwrap(), filled);
        }
        assert_eq!(fill("x $NONE").unwrap_err(), "$NONE is not known");
        assert!(fill("## template: jinja\n{{x}}").unwrap_err().contains("Jinja"));
        assert_eq!(problem("$A $B", &["A"]).unwrap(), "$B is not known; known are $A");
        assert_eq!(problem("$A", &["A"]), None);
    }
}
