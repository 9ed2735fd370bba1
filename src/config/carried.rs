//! Configuration that user-data puts into a file of ours: `#cloud-config` by `write_files`, a script by a here-document, our
//! own stub by its. It counts as if the file were there already, so that one user-data serves a machine with cloud-init and
//! one without. Nothing is run to find it; what a shell would have to say is a notice, and not read.

use std::collections::BTreeMap;

use super::here_document::{Document, documents};
use super::layers::{Layer, Origin};
use crate::cloud_config::{self, Task};
use crate::error::Result;
use crate::host::paths::CONFIG_DIR;
use crate::user_data::{Part, filled_in};
use crate::user_data_stub;

/// What user-data would put into files of ours.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// By the file's path.
    pub(crate) files: BTreeMap<String, Layer>,
    /// What looks like configuration and was not read, and why.
    pub(crate) notices: Vec<String>,
}

/// One file as a part writes it.
struct Found {
    path: String,
    text: Vec<u8>,
    /// In messages: the part, and the line where there is one.
    place: String,
}

/// What these parts carry. Fails where it is no UTF-8.
pub(crate) fn find(parts: &[Part]) -> Result<Carried> {
    let mut carried = Carried::default();
    let parts: Vec<_> = parts.iter().map(filled_in).collect();
    let mut found = Vec::new();
    for part in &parts {
        if part.content_type.starts_with("text/x-shellscript") {
            in_script(part, &mut found, &mut carried.notices);
        }
    }
    let configs: Vec<_> =
        parts.iter().map(|part| &**part).filter(|part| part.content_type == "text/cloud-config").collect();
    in_cloud_config(&configs, &mut found, &mut carried.notices);
    for file in &found {
        let mut others = found.iter().filter(|other| other.path == file.path);
        if let (Some(first), Some(second)) = (others.next(), others.next()) {
            let notice = format!(
                "{} is written by {} and by {}, and is not read from either",
                file.path, first.place, second.place
            );
            if !carried.notices.contains(&notice) {
                carried.notices.push(notice);
            }
            continue;
        }
        let origin = Origin::UserData(Some(format!("{} in {}", file.path, file.place)));
        carried.files.insert(file.path.clone(), Layer::from_bytes(origin, &file.text)?);
    }
    Ok(carried)
}

fn in_script(part: &Part, found: &mut Vec<Found>, notices: &mut Vec<String>) {
    let text = String::from_utf8_lossy(&part.bytes).replace("\r\n", "\n");
    if user_data_stub::is_stub(&part.bytes) {
        let path = user_data_stub::CONFIG_FILE.into();
        let config = user_data_stub::config(&text);
        found.extend(config.map(|text| Found { path, text: text.into(), place: "the stub".into() }));
        return;
    }
    for Document { line, path, text } in documents(&text, is_ours) {
        let place = format!("{}, line {line}", part.filename);
        match text {
            Ok(text) => found.push(Found { path, text: text.into(), place }),
            Err(why) => notices.push(format!("{path} in {place} is not read as configuration: {why}")),
        }
    }
}

fn in_cloud_config(parts: &[&Part], found: &mut Vec<Found>, notices: &mut Vec<String>) {
    // With a mistake in it nothing of it is done, which is said where it would be done.
    let Ok(config) = cloud_config::read(parts) else { return };
    for wish in &config.wishes {
        let (Task::WriteFiles(files) | Task::DeferredFiles(files)) = &wish.task else { continue };
        for (path, content, is_appended) in files.iter().map(cloud_config::WantedFile::written) {
            if !is_ours(path) {
                continue;
            }
            if is_appended {
                notices.push(format!(
                    "{path} in write_files is not read as configuration before it is written: append"
                ));
            } else {
                found.push(Found { path: path.into(), text: content.into(), place: "write_files".into() });
            }
        }
    }
}

/// A file that is read as configuration.
fn is_ours(path: &str) -> bool {
    let name = path.strip_prefix(CONFIG_DIR).and_then(|rest| rest.strip_prefix('/'));
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let stem = name.and_then(|name| name.strip_suffix(".toml"));
    stem.is_some_and(|stem| !stem.is_empty() && !stem.starts_with('.') && stem.bytes().all(is_plain))
}

#[cfg(test)]
mod tests {
    use crate::user_data::parts;

    fn find(user_data: &str) -> (Vec<(String, String)>, Vec<String>) {
        let carried = super::find(&parts(user_data.as_bytes()).unwrap()).unwrap();
        (carried.files.into_iter().map(|(path, layer)| (path, layer.text)).collect(), carried.notices)
    }

    #[test]
    fn files_of_write_files_are_found_however_they_are_written() {
        let (files, notices) = find(
            "#cloud-config\nwrite_files:\n- {path: /etc/gpu-bootstrap/a.toml, content: 'x = 1'}\n\
             - {path: /etc/gpu-bootstrap/b.toml, encoding: b64, content: eA==, defer: true}\n\
             - {path: /etc/gpu-bootstrap/steps.d/c.toml, content: y}\n- {path: /etc/gpu-bootstrap/.d.toml, content: y}\n\
             - {path: /etc/gpu-bootstrap/e.toml, content: y, append: true}\n- {path: /etc/f.toml, content: y}\n",
        );
        let wanted = [("/etc/gpu-bootstrap/a.toml", "x = 1"), ("/etc/gpu-bootstrap/b.toml", "x")];
        assert_eq!(files, wanted.map(|(path, text)| (path.into(), text.into())));
        assert_eq!(notices.len(), 1);
        assert!(
            notices[0].starts_with("/etc/gpu-bootstrap/e.toml in write_files is not read"),
            "{notices:?}"
        );
        assert_eq!(find("#cloud-config\nchef: x\nwrite_files: [{path: /etc/gpu-bootstrap/a.toml}]\n").0, []);
    }

    #[test]
    fn a_file_that_is_written_twice_is_read_from_neither() {
        let script = "#!/bin/sh\ncat >/etc/gpu-bootstrap/a.toml <<'E'\n1\nE\ncat >/etc/gpu-bootstrap/a.toml <<'E'\n2\nE\n\
                      cat >/etc/gpu-bootstrap/b.toml <<'E'\n3\nE\n";
        let (files, notices) = find(script);
        assert_eq!(files, [("/etc/gpu-bootstrap/b.toml".to_owned(), "3\n".to_owned())]);
        assert_eq!(
            notices,
            [
                "/etc/gpu-bootstrap/a.toml is written by part-001, line 2 and by part-001, line 5, and is not read from \
                 either"
            ]
        );
    }

    #[test]
    fn what_a_shell_would_have_to_say_is_a_notice_with_its_line() {
        let (files, notices) = find("#!/bin/sh\ncat >/etc/gpu-bootstrap/a.toml <<E\nx = \"$HOME\"\nE\n");
        assert_eq!(files, []);
        assert!(
            notices[0]
                .starts_with("/etc/gpu-bootstrap/a.toml in part-001, line 2 is not read as configuration: "),
            "{notices:?}"
        );
    }
}
