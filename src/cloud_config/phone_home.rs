//! `phone_home`: a form with what the instance is, posted when everything has been done.

use std::time::Duration;

use super::Instance;
use super::read::Reader;
use super::template;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fetch;
use crate::yaml::{Node, Value};

const KEYS: [&str; 3] = ["url", "post", "tries"];
/// What can be posted, in cloud-init's order.
const FIELDS: [&str; 7] =
    ["pub_key_dsa", "pub_key_rsa", "pub_key_ecdsa", "pub_key_ed25519", "instance_id", "hostname", "fqdn"];
/// cloud-init's own: attempts, and the time between them.
const TRIES: u32 = 10;
const BETWEEN: Duration = Duration::from_secs(3);
/// With more, nobody waits for the end.
const MOST_TRIES: i64 = 1000;

/// Whom to tell what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PhoneHome {
    /// `$INSTANCE_ID` is not yet filled in.
    url: String,
    /// Of [`FIELDS`].
    fields: Vec<&'static str>,
    tries: u32,
}

pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<PhoneHome> {
    let map = reader.map("phone_home", node, &KEYS)?;
    let Some(node) = map.get("url") else {
        reader.wrong(map.at, "phone_home needs url");
        return None;
    };
    let url = reader.line("phone_home.url", node)?;
    if let Some(why) = template::problem(&url, &["INSTANCE_ID"]) {
        reader.wrong(node.at, format!("phone_home.url: {why}"));
    } else if let Err(error) = fetch::parse(&filled(&url, "i-0")) {
        reader.wrong(node.at, format!("phone_home.url: {}", error.message()));
    }
    let fields = match map.get("post") {
        None => FIELDS.to_vec(),
        Some(Node { value: Value::Text(text), .. }) if text == "all" => FIELDS.to_vec(),
        Some(node) => {
            let mut fields = Vec::new();
            for name in reader.list("phone_home.post", node).unwrap_or_default() {
                let text = name.python().unwrap_or_default();
                match FIELDS.iter().find(|known| **known == text) {
                    Some(known) => fields.push(*known),
                    None => reader.wrong(
                        name.at,
                        format!("phone_home.post: {text:?} is not known; known are {}", FIELDS.join(", ")),
                    ),
                }
            }
            fields
        }
    };
    let tries = match map.get("tries").map(|node| (node.at, &node.value)) {
        None => TRIES,
        Some((_, Value::Int(number @ 1..=MOST_TRIES))) => u32::try_from(*number).unwrap_or(TRIES),
        Some((at, _)) => {
            reader.wrong(at, format!("phone_home.tries takes a number from 1 to {MOST_TRIES}"));
            return None;
        }
    };
    Some(PhoneHome { url, fields, tries })
}

fn filled(url: &str, instance_id: &str) -> String {
    template::fill(url, |_| Some(instance_id.to_owned())).unwrap_or_default()
}

impl PhoneHome {
    /// What `user-data check` says. A path may be a secret.
    pub(super) fn sentence(&self) -> String {
        let host =
            fetch::parse(&filled(&self.url, "i-0")).ok().and_then(|url| url.host_str().map(str::to_owned));
        format!("posts {} to {}", self.fields.join(", "), host.unwrap_or_default())
    }
}

pub(super) async fn apply(host: &Host, instance: &Instance<'_>, wanted: &PhoneHome) -> Result<String> {
    let name = instance.name(&host.files).await?;
    let mut form = Vec::new();
    for field in &wanted.fields {
        let value = match *field {
            "instance_id" => Some(instance.id.to_owned()),
            "hostname" => Some(name.short.clone()),
            "fqdn" => Some(name.full.clone()),
            key => {
                let kind = key.trim_start_matches("pub_key_");
                host.files.read_text(format!("/etc/ssh/ssh_host_{kind}_key.pub"))?
            }
        };
        // cloud-init's word for what there is not.
        form.push((*field, value.unwrap_or_else(|| "N/A".into())));
    }
    let url = filled(&wanted.url, instance.id);
    host.fetch.post_form(&url, &form, wanted.tries, BETWEEN).await.map_err(|e| {
        Error::new(Code::UserDataFailed, format!("phone_home: {}", e.message()))
            .with_hint("see that the server can be reached; `gpu-bootstrap user-data run --again` tells it once more")
            .because(e.causes().join(": "))
    })?;
    Ok(wanted.sentence().replacen("posts", "posted", 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn phone_home(text: &str) -> (Option<PhoneHome>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, &parse(text).unwrap().unwrap());
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn all_is_everything_and_the_path_is_not_told() {
        let (found, problems) =
            phone_home("url: https://me:secret@host/secret/$INSTANCE_ID?secret\npost: all\n");
        assert_eq!(problems, Vec::<String>::new());
        let found = found.unwrap();
        assert_eq!((found.fields.len(), found.tries), (7, 10));
        assert!(found.sentence().ends_with(" to host"), "{}", found.sentence());
        assert_eq!(filled(&found.url, "i-1"), "https://me:secret@host/secret/i-1?secret");
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, words) in [
            ("post: all\n", "1:1 phone_home needs url"),
            ("url: host/x\n", "1:6 phone_home.url: "),
            ("url: ftp://host\n", "1:6 phone_home.url: "),
            (
                "url: http://h/$INSTANCE\n",
                "1:6 phone_home.url: $INSTANCE is not known; known are $INSTANCE_ID",
            ),
            ("url: http://h\npost: [fqnd]\n", "2:8 phone_home.post: \"fqnd\" is not known"),
            ("url: http://h\ntries: 0\n", "2:8 phone_home.tries takes a number"),
            ("url: http://h\ntries: many\n", "2:8 phone_home.tries takes a number"),
        ] {
            let (_, problems) = phone_home(text);
            assert!(problems.iter().any(|p| p.starts_with(words)), "{words}: {problems:?}");
        }
    }
}
