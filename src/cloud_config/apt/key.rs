//! Keys of repositories: given in the user-data, or named by their whole fingerprint and fetched from a key server. A key
//! that is looked for by less than that could be anybody's.

use super::super::read::{Map, Reader};
use crate::action::repository::openpgp;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fetch;

const SERVER: &str = "keyserver.ubuntu.com";
/// A key with hundreds of signatures is below 1 MB.
const MOST_BYTES: usize = 4 << 20;

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A keyring, binary.
    Given(Vec<u8>),
    /// One certificate by its fingerprint, 40 upper-case digits, from a server (`https://host`).
    Fetched { fingerprint: String, server: String },
}

/// `key`, or else `keyid` and `keyserver`, of an entry called `name`. cloud-init looks at them in that order.
pub(super) fn read(reader: &mut Reader, name: &str, map: &Map<'_>) -> Option<Key> {
    if let Some(node) = map.get("key") {
        let text = reader.text(&format!("{name}.key"), node)?;
        let keyring = openpgp::dearmour(&text).and_then(|bytes| openpgp::certificates(&bytes).map(|_| bytes));
        return match keyring {
            Ok(keyring) => Some(Key::Given(keyring)),
            Err(why) => {
                let form = "it takes what `gpg --armor --export` prints";
                reader.wrong(node.at, format!("{name}.key is no public key: {why}; {form}"));
                None
            }
        };
    }
    let node = map.get("keyid")?;
    let server = match map.get("keyserver") {
        Some(node) => {
            let text = reader.line(&format!("{name}.keyserver"), node)?;
            let url = https(&text);
            if url.is_none() {
                reader.wrong(node.at, format!("{name}.keyserver: {text:?} is no name of a server"));
            }
            url?
        }
        None => format!("https://{SERVER}"),
    };
    let fingerprint = reader.line(&format!("{name}.keyid"), node)?;
    let digits: String = fingerprint.split_whitespace().collect::<String>().to_ascii_uppercase();
    let digits = digits.strip_prefix("0X").unwrap_or(&digits).to_owned();
    if digits.len() != 40 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        reader.wrong(
            node.at,
            format!(
                "{name}.keyid: {fingerprint:?} could be anybody's key; it takes the whole fingerprint of 40 digits, in quotes, or \
                 give the key itself by `key`"
            ),
        );
        return None;
    }
    Some(Key::Fetched { fingerprint: digits, server })
}

/// The server over https, whatever protocol was named: what key servers speak besides is not encrypted.
fn https(server: &str) -> Option<String> {
    let (scheme, host) = server.split_once("://").unwrap_or(("", server));
    let host = host.trim_end_matches('/');
    // hkp's ports are those of plain http.
    let host = if scheme == "https" { host } else { host.split(':').next().unwrap_or_default() };
    let url = format!("https://{host}");
    let is_one = ["", "hkp", "hkps", "http", "https"].contains(&scheme)
        && fetch::parse(&url)
            .is_ok_and(|url| url.path() == "/" && url.query().is_none() && url.username().is_empty());
    is_one.then_some(url)
}

impl Key {
    /// The keyring's bytes.
    pub(super) async fn bytes(&self, host: &Host) -> Result<Vec<u8>> {
        let (fingerprint, server) = match self {
            Self::Given(bytes) => return Ok(bytes.clone()),
            Self::Fetched { fingerprint, server } => (fingerprint, server),
        };
        let url = format!("{server}/pks/lookup?op=get&options=mr&search=0x{fingerprint}");
        let answer = host.fetch.get(&url, MOST_BYTES).await?;
        let found = openpgp::certificates(&answer).map_err(|why| {
            Error::new(
                Code::KeyInvalid,
                format!("the answer of {server} for the key {fingerprint} cannot be read: {why}"),
            )
            .with_hint("give the key itself by `key`")
        })?;
        let fitting = found.into_iter().find(|certificate| certificate.fingerprint == *fingerprint);
        fitting.map(|certificate| certificate.bytes).ok_or_else(|| {
            Error::new(Code::KeyMismatch, format!("{server} answered with another key than {fingerprint}"))
                .with_hint("nothing was kept; compare the fingerprint with the one that the repository's owner publishes")
        })
    }

    /// What it is, for people.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Given(bytes) => {
                let found = openpgp::certificates(bytes).unwrap_or_default();
                found.into_iter().map(|certificate| certificate.fingerprint).collect::<Vec<_>>().join(", ")
            }
            Self::Fetched { fingerprint, server } => format!("{fingerprint} from {server}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_servers_are_asked_over_https_only() {
        for (server, url) in [
            ("keyserver.ubuntu.com", Some("https://keyserver.ubuntu.com")),
            ("hkp://keyserver.ubuntu.com:80", Some("https://keyserver.ubuntu.com")),
            ("hkps://keys.openpgp.org/", Some("https://keys.openpgp.org")),
            ("https://127.0.0.1:8443", Some("https://127.0.0.1:8443")),
            ("http://pgp.mit.edu:11371", Some("https://pgp.mit.edu")),
            ("ldap://x", None),
            ("", None),
            ("x/y?z", None),
            ("me@x", None),
        ] {
            assert_eq!(https(server).as_deref(), url, "{server}");
        }
    }
}
