//! What becomes of a part: with cloud-init on the machine, and without. The words of `user-data check`, and its JSON.

use std::fmt::Write as _;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::template::{self, TEMPLATE};
use super::{
    ARCHIVE, INCLUDES, Included, NOT_MULTIPART, PLAIN, Part, Refusal, SCRIPT, archive, filled_in, include,
    open,
};
use crate::config::user_data::{MIME_TYPE, NotOurs, UserData, read, read_each};
use crate::error::{Error, Result};

/// What a part is, and what happens with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// A noun.
    pub what: &'static str,
    /// On a machine with cloud-init.
    pub with_cloud_init: &'static str,
    /// On one where gpu-bootstrap is alone.
    pub without_cloud_init: &'static str,
}

const NOTHING: &str = "nothing happens";
const REFUSED: &str = "gpu-bootstrap does not support it, and does nothing of this user-data";
/// What cloud-init says of a type that it does not know makes its boot a degraded one, from 23.4 on.
const WARNS: &str = "cloud-init warns that it does not know it, and `cloud-init status` says degraded";
/// Type, what that is, what cloud-init does with it, and what we do.
const KNOWN: [(&str, &str, &str, &str); 12] = [
    (SCRIPT, "a script", "cloud-init runs it at the end of the instance's first boot", RUN_FOR_INSTANCE),
    (
        "text/x-shellscript-per-boot",
        "a script",
        "cloud-init runs it at the end of every boot",
        "gpu-bootstrap runs it at every boot",
    ),
    (
        "text/x-shellscript-per-instance",
        "a script",
        "cloud-init runs it at the end of the instance's first boot",
        RUN_FOR_INSTANCE,
    ),
    (
        "text/x-shellscript-per-once",
        "a script",
        "cloud-init runs it at the end of one boot, and not again on copies of the disk",
        "gpu-bootstrap runs it to its end once, and not again on copies of the disk",
    ),
    (
        "text/cloud-config",
        "#cloud-config",
        "cloud-init applies it",
        "gpu-bootstrap applies it, or refuses all of it",
    ),
    (
        "text/cloud-config-jsonp",
        "a patch of #cloud-config",
        "cloud-init applies it to what came before",
        REFUSED,
    ),
    (
        "text/cloud-config-archive",
        "an archive of parts",
        "cloud-init opens it, as far as it understands it, and each entry is a part",
        REFUSED,
    ),
    (
        "text/cloud-boothook",
        "a boot hook",
        "cloud-init runs it early in every boot",
        "gpu-bootstrap runs it at every boot, before all scripts",
    ),
    (
        "text/part-handler",
        "a part handler",
        "cloud-init loads it as Python code and hands other parts to it",
        REFUSED,
    ),
    (
        "text/jinja2",
        "a template",
        "cloud-init fills it in; what follows its first line says what it is then",
        REFUSED,
    ),
    (
        "text/x-include-url",
        "a list of URLs",
        "cloud-init downloads them at every boot, as further user-data",
        FETCHED,
    ),
    (
        "text/x-include-once-url",
        "a list of URLs",
        "cloud-init downloads them once, as further user-data",
        FETCHED,
    ),
];
const RUN_FOR_INSTANCE: &str = "gpu-bootstrap runs it to its end once for each instance";
const FETCHED: &str = "gpu-bootstrap downloads them once, by their SHA-256, as further user-data";
const IS_STUB: &str = "gpu-bootstrap reads its configuration, and does not run it";

/// What becomes of each of the parts of one user-data.
pub fn verdicts(parts: &[Part]) -> Vec<Verdict> {
    let ours = read_each(parts.iter().map(|part| part.bytes.as_slice()));
    parts.iter().zip(&ours).map(|(part, ours)| verdict(part, ours)).collect()
}

fn verdict(part: &Part, ours: &Result<UserData>) -> Verdict {
    let known = verdict_by_type(part, ours);
    // What cannot be done is said with its line where the parts are listed in their order.
    if known.without_cloud_init != NOTHING && unsupported(part).is_some() {
        return Verdict { without_cloud_init: REFUSED, ..known };
    }
    match &*filled_in(part) {
        filled if filled == part => known,
        filled => Verdict {
            what: "a template in which there is nothing to fill in",
            without_cloud_init: verdict_by_type(filled, ours).without_cloud_init,
            ..known
        },
    }
}

fn verdict_by_type(part: &Part, ours: &Result<UserData>) -> Verdict {
    let content_type = part.content_type.as_str();
    // An error is about configuration of ours that is damaged.
    if content_type == MIME_TYPE || !matches!(ours, Ok(UserData::NotOurs(_))) {
        return Verdict {
            what: "configuration of gpu-bootstrap",
            with_cloud_init: "gpu-bootstrap reads it; cloud-init warns that it does not know it, and `cloud-init status` \
                              says degraded",
            without_cloud_init: "gpu-bootstrap reads it",
        };
    }
    if part.bytes.trim_ascii().is_empty() {
        return Verdict { what: "empty", with_cloud_init: NOTHING, without_cloud_init: NOTHING };
    }
    if let Some((_, what, with_cloud_init, without_cloud_init)) =
        KNOWN.iter().find(|(known, ..)| *known == content_type)
    {
        let is_stub = matches!(ours, Ok(UserData::NotOurs(NotOurs::Stub)));
        if is_stub {
            let what = "the stub of `gpu-bootstrap user-data render`";
            return Verdict { what, with_cloud_init, without_cloud_init: IS_STUB };
        }
        return Verdict { what, with_cloud_init, without_cloud_init };
    }
    let what = if [PLAIN, NOT_MULTIPART].contains(&content_type) {
        "in no known format"
    } else {
        "of no known type"
    };
    Verdict { what, with_cloud_init: WARNS, without_cloud_init: NOTHING }
}

/// Why we do not act on a part that cloud-init would act on, and what to do.
pub(crate) fn unsupported(part: &Part) -> Option<String> {
    if part.bytes.trim_ascii().is_empty() || !matches!(read(&part.bytes), Ok(UserData::NotOurs(_))) {
        return None;
    }
    let why = match part.content_type.as_str() {
        "text/cloud-config-jsonp" => {
            "a patch of #cloud-config is not supported; write as #cloud-config what comes of it".into()
        }
        "text/part-handler" => {
            "a part handler is not supported, which is Python code of cloud-init's; what it does can be a script".into()
        }
        // One that is right was opened.
        ARCHIVE => archive::read(&part.bytes).err()?,
        TEMPLATE => format!("a template: {}", template::read(part).err()?),
        kind if INCLUDES.contains(&kind) => include::links(&part.bytes).err()?,
        _ => return None,
    };
    Some(format!("{} ({}): {why}", part.filename, part.content_type))
}

/// Every part of user-data and what becomes of it, for people.
pub fn describe(bytes: &[u8], included: &Included) -> String {
    let mut out = String::new();
    match open(bytes, included).map(|opened| opened.parts) {
        Ok(parts) => {
            for (part, verdict) in parts.iter().zip(verdicts(&parts)) {
                let Part { content_type, filename, bytes } = part;
                let _ =
                    writeln!(out, "\n{filename}: {content_type}, {} bytes: {}", bytes.len(), verdict.what);
                let _ = writeln!(out, "  with cloud-init: {}", verdict.with_cloud_init);
                let _ = writeln!(out, "  without cloud-init: {}", verdict.without_cloud_init);
            }
        }
        Err(why) => {
            let _ = writeln!(out, "\nno parts: {}", refused(why));
        }
    }
    out
}

fn refused(why: Refusal) -> String {
    if why.is_cloud_inits() {
        format!("{why}; cloud-init fails on it and does nothing of it")
    } else {
        format!("{why}; that is a limit of gpu-bootstrap's")
    }
}

#[derive(Serialize)]
struct Document<'a> {
    file: &'a str,
    bytes: usize,
    /// Whether there is configuration of ours.
    is_configuration: bool,
    problem: Option<&'a str>,
    parts: Vec<PartOfDocument<'a>>,
    /// Why there are no parts.
    refused: Option<String>,
}

#[derive(Serialize)]
struct PartOfDocument<'a> {
    content_type: &'a str,
    filename: &'a str,
    bytes: usize,
    sha256: String,
    #[serde(flatten)]
    verdict: Verdict,
}

/// The same as a JSON document, with what is wrong with the configuration.
pub fn document(file: &str, bytes: &[u8], included: &Included, problem: Option<&Error>) -> String {
    let parts = open(bytes, included).map(|opened| opened.parts);
    let found = parts.as_deref().unwrap_or_default();
    let document = Document {
        file,
        bytes: bytes.len(),
        is_configuration: !matches!(read(bytes), Ok(UserData::NotOurs(_))),
        problem: problem.map(Error::message),
        refused: parts.as_ref().err().map(|why| refused(*why)),
        parts: found.iter().zip(verdicts(found)).map(PartOfDocument::new).collect(),
    };
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n" // a document of texts and numbers
}

impl<'a> PartOfDocument<'a> {
    fn new((part, verdict): (&'a Part, Verdict)) -> Self {
        Self {
            content_type: &part.content_type,
            filename: &part.filename,
            bytes: part.bytes.len(),
            sha256: format!("{:x}", Sha256::digest(&part.bytes)),
            verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(user_data: &str) -> Verdict {
        verdicts(&super::super::parts(user_data.as_bytes()).unwrap())[0]
    }

    #[test]
    fn what_becomes_of_what() {
        for (text, what, without) in [
            ("#gpu-bootstrap\n", "configuration of gpu-bootstrap", "gpu-bootstrap reads it"),
            ("I2dwdS1ib290c3RyYXAK\n", "configuration of gpu-bootstrap", "gpu-bootstrap reads it"),
            ("#!/bin/sh\n", "a script", RUN_FOR_INSTANCE),
            ("#include\nhttps://a.b/c\n", "a list of URLs", REFUSED),
            (
                "#include\nhttps://a.b/c#sha256=2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n",
                "a list of URLs",
                FETCHED,
            ),
            ("#cloud-config-archive\n- '#!/bin/sh'\n", "a script", RUN_FOR_INSTANCE),
            ("#cloud-config-archive\na: b\n", "an archive of parts", REFUSED),
            ("## template: jinja\n#!/bin/sh\n{{ x }}\n", "a template", REFUSED),
            (
                "## template: jinja\n#!/bin/sh\n",
                "a template in which there is nothing to fill in",
                RUN_FOR_INSTANCE,
            ),
            ("#cloud-config-jsonp\n[]", "a patch of #cloud-config", REFUSED),
            ("", "empty", NOTHING),
            ("hello", "in no known format", NOTHING),
            ("MIME-Version: 1.0\nContent-Type: a/b\n\nx", "of no known type", NOTHING),
        ] {
            let found = of(text);
            assert_eq!((found.what, found.without_cloud_init), (what, without), "{text}");
        }
    }

    #[test]
    fn every_type_that_a_beginning_gives_is_known() {
        for (beginning, content_type) in super::super::BEGINNINGS {
            assert!(KNOWN.iter().any(|(known, ..)| *known == content_type), "{content_type}");
            // A list or an archive of nothing has no parts.
            let verdict = of(&format!(" {}\nx: y\n", beginning.to_uppercase()));
            assert!(verdict.without_cloud_init.starts_with("gpu-bootstrap "), "{beginning}");
        }
    }
}
