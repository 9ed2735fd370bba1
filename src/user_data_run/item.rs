//! What a user-data asks for, as a list in the order in which it is done: cloud-init's own. Pure.

use sha2::{Digest, Sha256};

use crate::config::user_data::{self as config, NotOurs, UserData};
use crate::error::{Code, Error, Result};
use crate::text;
use crate::user_data::{Part, unsupported};

/// How often an item is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Frequency {
    /// Once, and not again on copies of the disk.
    Once,
    /// At every boot.
    Boot,
    /// Once for each instance.
    Instance,
}

impl Frequency {
    /// The word in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Boot => "per-boot",
            Self::Instance => "per-instance",
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The part's name, as a plain file name.
    pub(super) name: String,
    /// Of the part: what is changed is another item.
    pub(super) sha256: String,
    /// How often.
    pub(super) frequency: Frequency,
    /// What.
    pub(super) work: Work,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The bytes of a program that the kernel can start.
    Script(Vec<u8>),
}

/// Types of scripts, in cloud-init's order.
const SCRIPTS: [(&str, Frequency); 5] = [
    ("text/cloud-boothook", Frequency::Boot),
    ("text/x-shellscript-per-once", Frequency::Once),
    ("text/x-shellscript-per-boot", Frequency::Boot),
    ("text/x-shellscript-per-instance", Frequency::Instance),
    ("text/x-shellscript", Frequency::Instance),
];
/// What a boot hook begins with, before its own first line.
const HOOK: &[u8] = b"#cloud-boothook";

/// Every item. What cloud-init would act on and we cannot makes the whole user-data one that nothing is done of: half of it
/// could be worse than none.
pub(super) fn items(parts: &[Part]) -> Result<Vec<Item>> {
    let problems: Vec<String> = parts.iter().filter_map(refusal).collect();
    if !problems.is_empty() {
        return Err(Error::new(
            Code::UserDataInvalid,
            format!("{}; nothing of the user-data was done", problems.join("; ")),
        ));
    }
    let mut items = Vec::new();
    for (content_type, frequency) in SCRIPTS {
        let of_type = parts.iter().filter(|part| part.content_type == content_type && is_script(part));
        let mut scripts: Vec<Item> = of_type.map(|part| script(part, frequency)).collect();
        // cloud-init keeps scripts as files of one directory and runs them in the order of their names. Where two have one
        // name it loses the first; here both run.
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        items.extend(scripts);
    }
    Ok(items)
}

/// Not empty, not configuration of ours, and not our own stub, which would install the agent a second time.
fn is_script(part: &Part) -> bool {
    !part.bytes.trim_ascii().is_empty()
        && matches!(config::read(&part.bytes), Ok(UserData::NotOurs(why)) if why != NotOurs::Stub)
}

fn refusal(part: &Part) -> Option<String> {
    let what = unsupported(part)?;
    Some(format!("{} ({}): {what} is not supported", part.filename, part.content_type))
}

fn script(part: &Part, frequency: Frequency) -> Item {
    Item {
        name: file_name(&part.filename),
        sha256: text::hex(&Sha256::digest(&part.bytes)),
        frequency,
        work: Work::Script(program(&part.bytes)),
    }
}

/// As the kernel wants it: `#!` first, and lines without a carriage return if the first has one.
fn program(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.trim_ascii_start();
    if bytes.get(..HOOK.len()).is_some_and(|start| start.eq_ignore_ascii_case(HOOK)) {
        bytes = bytes[HOOK.len()..].trim_ascii_start();
    }
    let first_line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    if !first_line.ends_with(b"\r") {
        return bytes.to_vec();
    }
    let mut unix = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(text) => unix.extend([text, b"\n"].concat()),
            None => unix.extend_from_slice(line),
        }
    }
    unix
}

/// cloud-init's own rule for the files that it makes of parts: what may mean something to a path or a shell goes.
fn file_name(name: &str) -> String {
    let name: String = name
        .trim()
        .replace('/', "_")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "_-.()".contains(*c))
        .take(200)
        .collect();
    if name.trim_matches('.').is_empty() { "part".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[(&str, &str, &str)]) -> Vec<Part> {
        let part = |(content_type, name, body): &(&str, &str, &str)| {
            format!(
                "--b\nContent-Type: {content_type}\nContent-Disposition: attachment; filename=\"{name}\"\n\n{body}\n"
            )
        };
        let parts: String = parts.iter().map(part).collect();
        let text = format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n{parts}");
        crate::user_data::parts(text.as_bytes()).unwrap()
    }

    fn names(parts: &[Part]) -> Vec<String> {
        items(parts).unwrap().iter().map(|item| format!("{} {}", item.frequency.name(), item.name)).collect()
    }

    #[test]
    fn the_order_is_cloud_inits() {
        let found = message(&[
            ("text/x-shellscript", "b.sh", "#!/bin/sh\n2"),
            ("text/x-shellscript-per-boot", "z.sh", "#!/bin/sh\nz"),
            ("text/x-shellscript", "a.sh", "#!/bin/sh\n1"),
            ("text/x-shellscript-per-once", "o.sh", "#!/bin/sh\no"),
            ("text/x-shellscript-per-instance", "i.sh", "#!/bin/sh\ni"),
            ("text/cloud-boothook", "h", "#cloud-boothook\n#!/bin/sh\nh"),
        ]);
        assert_eq!(
            names(&found),
            [
                "per-boot h",
                "once o.sh",
                "per-boot z.sh",
                "per-instance i.sh",
                "per-instance a.sh",
                "per-instance b.sh"
            ]
        );
    }

    #[test]
    fn what_is_ours_or_nobodys_is_no_script() {
        let stub = format!("#!/bin/sh\n{} (version 1)\n", crate::user_data_stub::MARK);
        let found = message(&[
            ("text/x-shellscript", "stub", &stub),
            ("text/x-shellscript", "empty", " "),
            ("text/x-gpu-bootstrap", "ours", "driver.branch = \"580\""),
            ("text/x-else", "else", "#!/bin/sh"),
        ]);
        assert_eq!(names(&found), Vec::<String>::new());
    }

    #[test]
    fn what_we_cannot_do_stops_all_of_it_by_name() {
        let found = message(&[
            ("text/x-shellscript", "a.sh", "#!/bin/sh"),
            ("text/part-handler", "p.py", "#part-handler"),
            ("text/x-include-url", "urls", "#include\nhttps://a.b"),
        ]);
        let error = items(&found).unwrap_err();
        assert_eq!(error.code(), Code::UserDataInvalid);
        for words in
            ["p.py (text/part-handler)", "urls (text/x-include-url)", "nothing of the user-data was done"]
        {
            assert!(error.message().contains(words), "{error}");
        }
    }

    #[test]
    fn a_program_begins_with_its_interpreter_and_has_unix_lines() {
        assert_eq!(program(b"\n  #!/bin/sh\r\na\r\nb\rc\n"), b"#!/bin/sh\na\nb\rc\n");
        assert_eq!(program(b"#!/bin/sh\na\r\n"), b"#!/bin/sh\na\r\n");
        assert_eq!(program(b"#Cloud-BootHook\n#!/bin/sh\n"), b"#!/bin/sh\n");
    }

    #[test]
    fn names_lead_nowhere_else() {
        for (name, plain) in [
            ("a/../b.sh", "a_.._b.sh"),
            ("..", "part"),
            ("", "part"),
            ("$(x) y.sh", "(x)y.sh"),
            ("\u{fc}", "part"),
        ] {
            assert_eq!(file_name(name), plain);
        }
    }
}
