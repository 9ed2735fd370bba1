//! The key pair's public keys, from the metadata service into `authorized_keys`. Lines of ours end with [`MARK`], and are
//! the only ones that are ever taken out.

use super::account::{self, Account};
use super::home::AuthorizedKeys;
use super::public_key::PublicKey;
use super::report::Told;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::imds;

/// The end of every line of ours. What follows a key is its comment, which sshd does not look at.
const MARK: &str = " #gpu-bootstrap";
const LIST: &str = "meta-data/public-keys/";
/// EC2 gives one key. Each costs a request.
const MOST: usize = 32;

/// What the metadata service offers.
pub(super) struct Offered {
    keys: Vec<PublicKey>,
    /// A sentence for each that is no key.
    odd: Vec<String>,
    /// The instance was launched with a key pair.
    has_pair: bool,
}

/// Asks for every public key. One request, and one per key.
pub(super) async fn offered(client: &imds::Client) -> Result<Offered> {
    let mut offered = Offered { keys: Vec::new(), odd: Vec::new(), has_pair: false };
    let Some(list) = client.get(LIST).await? else { return Ok(offered) };
    let list = String::from_utf8_lossy(&list);
    let indexes = indexes(&list);
    offered.has_pair = !indexes.is_empty();
    if indexes.is_empty() && !list.trim().is_empty() {
        client.forget(LIST);
        return Err(Error::new(
            Code::MetadataInvalid,
            format!("{} answered with something that is no list of keys", client.url(LIST)),
        ));
    }
    for index in indexes.into_iter().take(MOST) {
        let path = format!("{LIST}{index}/openssh-key");
        let Some(text) = client.get(&path).await? else {
            offered.odd.push(format!("{} does not exist", client.url(&path)));
            continue;
        };
        for line in String::from_utf8_lossy(&text).lines().filter(|l| !l.trim().is_empty()) {
            match PublicKey::parse(line) {
                Ok(key) => offered.keys.push(key),
                Err(why) => offered.odd.push(format!("{} was left out: {why}", client.url(&path))),
            }
        }
    }
    Ok(offered)
}

/// The numbers in a listing such as `0=my-public-key`. The name behind a number is the user's own text.
fn indexes(list: &str) -> Vec<&str> {
    let numbers = list.lines().filter_map(|line| line.trim().split_once('=')).map(|(number, _)| number);
    numbers.filter(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit())).collect()
}

/// Lets the key pair log in as the user, and tells whoever tries root whom to log in as.
pub(super) fn apply(files: &Files, user: &str, offered: &Offered) -> Result<Told> {
    // Whatever goes wrong with what was offered, what lies there may be all that lets anybody in.
    if offered.has_pair && offered.keys.is_empty() {
        return Err(Error::new(
            Code::MetadataInvalid,
            format!("the key pair has no usable public key: {}", offered.odd.join("; ")),
        )
        .with_hint("nothing was changed; launch the instance with an RSA or ED25519 key pair"));
    }
    let account = account::login(files, user)?;
    let plain: Vec<_> = offered.keys.iter().map(|key| (key, key.line())).collect();
    let (mut changed, path) = write(files, &account, &plain)?;
    let superuser = account::superuser(files)?.filter(|root| root.uid != account.uid);
    let mut text = if offered.has_pair {
        let shown: Vec<_> = offered.keys.iter().map(PublicKey::fingerprint).collect();
        format!("{} logs in by {} ({path})", account.name, shown.join(", "))
    } else {
        format!("the instance has no key pair; {path} has none of an earlier one")
    };
    if let Some(root) = superuser {
        let refusal = refusal(&account.name);
        let refused: Vec<_> =
            offered.keys.iter().map(|key| (key, format!("{refusal} {}", key.line()))).collect();
        // The user's own login is what counts, and it is there.
        match write(files, &root, &refused) {
            Ok((root_changed, _)) => changed |= root_changed,
            Err(error) => text = format!("{text}; root is not told to log in as {}: {error}", account.name),
        }
    }
    for odd in &offered.odd {
        text = format!("{text}; {odd}");
    }
    Ok(Told { changed, text })
}

/// Returns whether anything was changed, and the file's path.
fn write(files: &Files, account: &Account, keys: &[(&PublicKey, String)]) -> Result<(bool, String)> {
    let mut file = AuthorizedKeys::open(files, account)?;
    let merged = merge(file.content(), keys);
    Ok((file.write(&merged)?, file.path()))
}

/// cloud-init's own words, which scripts know: a login as root says whom to log in as, and ends.
pub(crate) fn refusal(user: &str) -> String {
    format!(
        "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,command=\"echo 'Please login as the user \\\"{user}\\\" \
         rather than the user \\\"root\\\".';echo;sleep 10;exit 142\""
    )
}

/// Every line that is not ours, as it is, and then ours; a key that a line of the user's own has already needs none.
fn merge(content: &[u8], keys: &[(&PublicKey, String)]) -> Vec<u8> {
    let mut merged = Vec::new();
    for line in content.split_inclusive(|b| *b == b'\n') {
        if !line.trim_ascii_end().ends_with(MARK.as_bytes()) {
            merged.extend_from_slice(line);
        }
    }
    let own = String::from_utf8_lossy(&merged).into_owned();
    for (index, (key, line)) in keys.iter().enumerate() {
        let bare = key.bare();
        let is_there = own.lines().any(|line| has(line, &bare));
        if is_there || keys[..index].iter().any(|(earlier, _)| earlier.bare() == bare) {
            continue;
        }
        if merged.last().is_some_and(|b| *b != b'\n') {
            merged.push(b'\n');
        }
        merged.extend_from_slice(format!("{line}{MARK}\n").as_bytes());
    }
    merged
}

/// Whether a line, with options before it or without, is for this key: words in quotes are options.
pub(crate) fn has(line: &str, bare: &str) -> bool {
    line.match_indices(bare).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + bare.len()..]);
        let is_word = |c: Option<char>| c.is_none_or(char::is_whitespace);
        !before.trim_start().starts_with('#')
            && before.matches('"').count() % 2 == 0
            && is_word(before.chars().next_back())
            && is_word(after.chars().next())
    })
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    indexes(&text);
    let keys: Vec<_> = text.lines().filter_map(|line| PublicKey::parse(line).ok()).collect();
    for key in &keys {
        assert_eq!(PublicKey::parse(&key.line()).as_ref(), Ok(key), "a key that does not print as itself");
        key.listing();
    }
    let ours: Vec<_> = keys.iter().map(|key| (key, key.line())).collect();
    let once = merge(bytes, &ours);
    assert_eq!(merge(&once, &ours), once, "done once, there is something left to do");
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";

    fn key(comment: &str) -> PublicKey {
        PublicKey::parse(&format!("{ONE} {comment}")).unwrap()
    }

    fn merged(content: &[u8], keys: &[PublicKey]) -> String {
        let keys: Vec<_> = keys.iter().map(|k| (k, k.line())).collect();
        String::from_utf8_lossy(&merge(content, &keys)).into_owned()
    }

    #[test]
    fn only_lines_of_ours_are_taken_out() {
        let theirs = b"# mine\nssh-rsa AAAA me #gpu-bootstrap-like\n\xff\xfe odd\n";
        let before = [&theirs[..], b"ssh-rsa BBBB old #gpu-bootstrap\r\n"].concat();
        let now = merged(&before, &[key("my key")]);
        assert_eq!(
            now,
            format!("{}{ONE} my key #gpu-bootstrap\n", String::from_utf8_lossy(theirs)),
            "their lines are as they were"
        );
        assert_eq!(merged(now.as_bytes(), &[key("my key")]), now, "done once, there is nothing to do");
        assert_eq!(merged(&before, &[]), String::from_utf8_lossy(theirs));
    }

    #[test]
    fn a_file_without_an_end_of_line_gets_one() {
        assert_eq!(merged(b"ssh-rsa A me", &[key("k")]), format!("ssh-rsa A me\n{ONE} k #gpu-bootstrap\n"));
    }

    #[test]
    fn a_key_that_is_there_is_not_added() {
        let own = format!("from=\"10.0.0.1\" {ONE} laptop\n");
        assert_eq!(merged(own.as_bytes(), &[key("my key")]), own);
        for other in [
            format!("#{own}"),
            format!("command=\"grep '{ONE} x'\" ssh-rsa AAAA b\n"),
            format!("sk-{ONE} b\n"),
            format!("{ONE}AAAA b\n"),
        ] {
            assert!(merged(other.as_bytes(), &[key("k")]).ends_with("k #gpu-bootstrap\n"), "{other}");
        }
        assert_eq!(merged(b"", &[key("k"), key("k")]).lines().count(), 1, "offered twice");
    }

    #[test]
    fn a_listing_cannot_lead_elsewhere() {
        assert_eq!(indexes("0=my key\n12=a=b\n"), ["0", "12"]);
        assert!(indexes("../../user-data=x\n0\n-1=x\n=x\n99999=x\n0/../1=x").is_empty());
    }

    #[test]
    fn the_refusal_is_cloud_inits() {
        assert_eq!(
            refusal("ubuntu"),
            "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,command=\"echo 'Please login as the user \
             \\\"ubuntu\\\" rather than the user \\\"root\\\".';echo;sleep 10;exit 142\""
        );
    }
}
