//! What a user-data asks for, as a list in the order in which it is done: cloud-init's own. Pure.

use sha2::{Digest, Sha256};

use crate::cloud_config::{self, Task};
use crate::config::user_data::{self as config, NotOurs, UserData};
use crate::error::{Code, Error, Result};
use crate::text;
use crate::user_data::{Part, filled_in, unsupported};
use crate::user_data_stub::was_stub;

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

/// When in a boot an item is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the GPUs are set up: what takes no time and who may log in.
    Config,
    /// After it: packages and scripts.
    Final,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The part's name, as a plain file name, or the key of `#cloud-config`.
    pub(super) name: String,
    /// Of the part, or of what stands at the key: what is changed is another item.
    pub(super) sha256: String,
    /// How often.
    pub(super) frequency: Frequency,
    /// When in a boot.
    pub(super) stage: Stage,
    /// What.
    pub(super) work: Work,
}

impl Item {
    /// Whether it may take the machine down. Then it counts as done before it is: a machine that powers itself off must
    /// not do so at every start.
    pub(super) fn may_end_the_boot(&self) -> bool {
        matches!(self.work, Work::Task(Task::PowerState(_) | Task::RebootIfRequired))
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The bytes of a program that the kernel can start.
    Script(Vec<u8>),
    /// What a key of `#cloud-config` asks for.
    Task(Task),
}

/// Types of scripts, in cloud-init's order.
const SCRIPTS: [(&str, Frequency); 4] = [
    ("text/x-shellscript-per-once", Frequency::Once),
    ("text/x-shellscript-per-boot", Frequency::Boot),
    ("text/x-shellscript-per-instance", Frequency::Instance),
    ("text/x-shellscript", Frequency::Instance),
];
/// The type of boot hooks, which come before all else.
const HOOKS: &str = "text/cloud-boothook";
const CLOUD_CONFIG: &str = "text/cloud-config";
/// What a boot hook begins with, before its own first line.
const HOOK: &[u8] = b"#cloud-boothook";

/// Every item in its order, and what a person should know. What cloud-init would act on and we cannot makes the whole
/// user-data one that nothing is done of: half of it could be worse than none.
pub(super) fn items(parts: &[Part]) -> Result<(Vec<Item>, Vec<String>)> {
    let mut problems: Vec<String> = parts.iter().filter_map(unsupported).collect();
    let parts: Vec<_> = parts.iter().map(filled_in).collect();
    let configs = parts
        .iter()
        .map(|part| &**part)
        .filter(|part| part.content_type == CLOUD_CONFIG && is_acted_on(part));
    let configs: Vec<_> = configs.collect();
    let config = cloud_config::read(&configs).unwrap_or_else(|error| {
        problems.extend(error.message().lines().map(str::to_owned));
        cloud_config::CloudConfig::default()
    });
    if !problems.is_empty() {
        let message = format!("{}\nnothing of the user-data was done", problems.join("\n"));
        return Err(Error::new(Code::UserDataInvalid, message));
    }
    let scripts_of = |content_type: &str, frequency, stage| -> Vec<Item> {
        let of_type = parts.iter().filter(|part| part.content_type == content_type && is_acted_on(part));
        of_type.map(|part| script(part, frequency, stage)).collect()
    };
    let mut items = scripts_of(HOOKS, Frequency::Boot, Stage::Config);
    let (mut runcmd, mut last) = (None, Vec::new());
    for wish in config.wishes {
        let (stage, frequency) = match &wish.task {
            Task::Bootcmd(_) | Task::Growth(_) => (Stage::Config, Frequency::Boot),
            Task::Ntp(_)
            | Task::PackageLists
            | Task::Packages(_)
            | Task::RebootIfRequired
            | Task::DeferredFiles(_)
            | Task::Runcmd(_)
            | Task::PhoneHome(_)
            | Task::PowerState(_) => (Stage::Final, Frequency::Instance),
            Task::FinalMessage(_) => (Stage::Final, Frequency::Boot),
            _ => (Stage::Config, Frequency::Instance),
        };
        let name = wish.task.name().to_owned();
        let sha256 = text::hex(&Sha256::digest(format!("{name} {}", wish.canonical)));
        let is_runcmd = matches!(wish.task, Task::Runcmd(_));
        let is_last = matches!(wish.task, Task::PhoneHome(_) | Task::FinalMessage(_) | Task::PowerState(_));
        let work = match wish.task {
            Task::Bootcmd(script) | Task::Runcmd(script) => Work::Script(script.into_bytes()),
            task => Work::Task(task),
        };
        let item = Item { name, sha256, frequency, stage, work };
        match (is_runcmd, is_last) {
            (true, _) => runcmd = Some(item),
            (_, true) => last.push(item),
            _ => items.push(item),
        }
    }
    for (content_type, frequency) in SCRIPTS {
        let mut scripts = scripts_of(content_type, frequency, Stage::Final);
        if content_type == "text/x-shellscript" {
            scripts.extend(runcmd.take());
        }
        // cloud-init keeps scripts as files of one directory, runcmd among them, and runs them in the order of their names.
        // Where two have one name it loses the first; here both run.
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        items.extend(scripts);
    }
    items.extend(last);
    let mut notes = config.notes;
    for part in parts.iter().filter(|part| was_stub(&part.bytes)) {
        notes.push(format!(
            "{} was a stub of ours and has been changed: it is run like any script",
            part.filename
        ));
    }
    Ok((items, notes))
}

/// Not empty, not configuration of ours, and not our own stub, which would install the agent a second time.
fn is_acted_on(part: &Part) -> bool {
    !part.bytes.trim_ascii().is_empty()
        && matches!(config::read(&part.bytes), Ok(UserData::NotOurs(why)) if why != NotOurs::Stub)
}

fn script(part: &Part, frequency: Frequency, stage: Stage) -> Item {
    Item {
        name: file_name(&part.filename),
        sha256: text::hex(&Sha256::digest(&part.bytes)),
        frequency,
        stage,
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
    use crate::user_data_stub::{RenderArgs, render};

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
        items(parts)
            .unwrap()
            .0
            .iter()
            .map(|item| format!("{} {}", item.frequency.name(), item.name))
            .collect()
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
    fn cloud_config_comes_first_and_runcmd_is_one_of_the_scripts() {
        let found = message(&[
            ("text/x-shellscript", "part-002", "#!/bin/sh"),
            ("text/x-shellscript", "s.sh", "#!/bin/sh"),
            (
                "text/cloud-config",
                "c",
                "#cloud-config\nruncmd: [x]\nbootcmd: [y]\npackages: [z]\nusers: []\npower_state: {mode: halt}\nfinal_message: m",
            ),
            ("text/cloud-boothook", "h", "#cloud-boothook\n#!/bin/sh\nh"),
        ]);
        let found = items(&found).unwrap().0;
        let names: Vec<_> = found.iter().map(|item| (item.name.as_str(), item.stage)).collect();
        let (config, last) = (Stage::Config, Stage::Final);
        assert_eq!(
            names,
            [
                ("h", config),
                ("bootcmd", config),
                ("users", config),
                ("packages", last),
                ("part-002", last),
                ("runcmd", last),
                ("s.sh", last),
                ("final_message", last),
                ("power_state", last)
            ]
        );
    }

    #[test]
    fn what_is_ours_or_nobodys_is_no_script() {
        let args = RenderArgs {
            url: Some("https://a.b/c".into()),
            sha256: Some("0".repeat(64)),
            ..RenderArgs::default()
        };
        let stub = render(&args).unwrap();
        let found = message(&[
            ("text/x-shellscript", "stub", &stub),
            ("text/x-shellscript", "empty", " "),
            ("text/x-gpu-bootstrap", "ours", "driver.branch = \"580\""),
            ("text/x-else", "else", "#!/bin/sh"),
        ]);
        assert_eq!(names(&found), Vec::<String>::new());
        let changed = message(&[("text/x-shellscript", "stub", &(stub + "echo more\n"))]);
        assert_eq!(names(&changed), ["per-instance stub"]);
        assert!(items(&changed).unwrap().1[0].starts_with("stub was a stub of ours and has been changed"));
    }

    #[test]
    fn a_template_with_nothing_to_fill_in_is_what_follows_its_first_line() {
        let found = message(&[
            ("text/plain", "t.sh", "## template: jinja\n#!/bin/sh\necho"),
            ("text/jinja2", "c", "## template: jinja\n#cloud-config\nruncmd: [x]"),
        ]);
        let names: Vec<_> = items(&found).unwrap().0.into_iter().map(|item| item.name).collect();
        assert_eq!(names, ["runcmd", "t.sh"]);
    }

    #[test]
    fn what_we_cannot_do_stops_all_of_it_by_name() {
        let found = message(&[
            ("text/x-shellscript", "a.sh", "#!/bin/sh"),
            ("text/part-handler", "p.py", "#part-handler"),
            ("text/x-include-url", "urls", "#include\nhttps://a.b"),
            ("text/cloud-config-archive", "archive", "- 5"),
            ("text/jinja2", "t", "## template: jinja\n#!/bin/sh\n{{ x }}"),
            ("text/cloud-config-jsonp", "j", "#cloud-config-jsonp\n[]"),
            ("text/cloud-config", "c", "#cloud-config\nchef: {}"),
        ]);
        let error = items(&found).unwrap_err();
        assert_eq!(error.code(), Code::UserDataInvalid);
        for words in [
            "p.py (text/part-handler): a part handler is not supported, ",
            "urls (text/x-include-url): line 2: https://a.b/ says nothing of what should be there; ",
            "archive (text/cloud-config-archive): line 1, column 3: ",
            "t (text/jinja2): a template: line 3: {{ would have to be filled in",
            "j (text/cloud-config-jsonp): a patch of #cloud-config is not supported",
            "c (line 2, column 1): chef is not supported",
            "nothing of the user-data was done",
        ] {
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
