//! What apt says when it refuses a repository, turned into errors of their own.

use crate::error::{Code, Error};
use crate::host::apt::http_status;

/// Phrases of apt's messages (in the C locale), the first that occurs decides. They are the same from apt 1.6 to
/// apt 3; sqv's stand beside gpgv's.
const PHRASES: &[(&str, Code)] = &[
    ("is forbidden", Code::InsecureRedirect),
    ("NO_PUBKEY", Code::RepositoryUntrusted),
    ("Missing key", Code::RepositoryUntrusted),
    ("BADSIG", Code::IndexTampered),
    ("has been manipulated", Code::IndexTampered),
    ("Clearsigned file isn't valid", Code::IndexTampered),
    ("Hash Sum mismatch", Code::IndexTampered),
    ("Hashes of received file", Code::IndexTampered),
    ("unexpected size", Code::IndexTampered),
    ("EXPKEYSIG", Code::RepositoryUntrusted),
    ("REVKEYSIG", Code::RepositoryUntrusted),
    ("signature", Code::RepositoryUntrusted),
    ("is not bound", Code::RepositoryUntrusted),
    ("is not signed", Code::RepositoryUntrusted),
    ("Encountered a section with no Package", Code::IndexMalformed),
    ("could not be parsed", Code::IndexMalformed),
    ("Unable to parse", Code::IndexMalformed),
    ("Problem with MergeList", Code::IndexMalformed),
    ("certificate", Code::FetchDenied),
];

/// The error of a failed update of one repository, with apt's words as the cause.
pub(crate) fn explain(url: &str, error: Error) -> Error {
    let words = format!("{error}\n{}", error.causes().join("\n"));
    // These are this machine's own trouble, not the repository's.
    if matches!(error.code(), Code::AptLocked | Code::DiskFull | Code::Io) {
        return error;
    }
    if error.code() == Code::ExecTimeout {
        return Error::new(Code::ExecTimeout, format!("apt did not get the index of {url} in its time"))
            .with_hint(
                "use a nearer mirror ([source] packages), or see what slows the network down; then run again",
            )
            .because(error);
    }
    if words.contains("is not valid yet") || words.contains("is expired (invalid since") {
        let text = format!("the index of {url} has a date that does not fit this machine's clock");
        return Error::new(Code::RepositoryUntrusted, text)
            .with_hint("set the clock (compare `date -u` with the cause), then run again")
            .because(error);
    }
    if words.contains("strong enough for security") {
        let text =
            format!("the index of {url} vouches for its files by MD5 or SHA-1 only, which can be forged");
        return Error::new(Code::RepositoryUntrusted, text)
            .with_hint(
                "the repository's publisher has to mend it; a package file can be given with its sha256",
            )
            .because(error);
    }
    if let Some(status) = http_status(&words) {
        return refused(url, status).because(error);
    }
    let code =
        PHRASES.iter().find(|(phrase, _)| words.contains(phrase)).map_or(Code::Fetch, |(_, code)| *code);
    let (message, hint) = match code {
        Code::InsecureRedirect => (
            format!("{url} redirects to an unencrypted address, which apt refuses to follow"),
            "set [source] packages to the address that the repository has now",
        ),
        Code::IndexTampered => (
            format!("the index of {url} does not match its signature"),
            "a network that wants a login looks like this, and for some minutes a mirror in the middle of its \
             synchronisation; if it stays, do not trust the mirror",
        ),
        Code::RepositoryUntrusted => (
            format!("the index of {url} is not signed by the one key that is pinned for it"),
            "if the publisher has changed the key, a newer gpu-bootstrap brings it; otherwise do not trust the address",
        ),
        Code::IndexMalformed => (
            format!("apt cannot parse the index of {url}"),
            "the repository's publisher has to mend it; run again later, or use a mirror of an earlier state",
        ),
        Code::FetchDenied => (
            format!("the TLS certificate of {url} is not accepted"),
            "check the machine's clock and its ca-certificates package",
        ),
        _ => (
            format!("the index of {url} cannot be fetched"),
            "check that the address is right and that this machine may reach it (route, proxy, security group)",
        ),
    };
    Error::new(code, message).with_hint(hint).because(error)
}

/// What a server's status says, whatever apt concludes from the missing file.
fn refused(url: &str, status: u16) -> Error {
    let (code, hint) = match status {
        401 | 403 | 407 => (
            Code::FetchDenied,
            "the server, or a proxy on the way, wants a login or refuses this machine: use a mirror ([source] packages)",
        ),
        404 | 410 => (
            Code::Fetch,
            "check that the address is right; a repository that is being updated looks the same",
        ),
        _ => (
            Code::Fetch,
            "the server is busy or out of order: run again later, or use a mirror ([source] packages)",
        ),
    };
    Error::new(code, format!("the index of {url} cannot be fetched: its server answers {status}"))
        .with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_words_decide_the_code() {
        for (words, code) in [
            ("E: The repository 'x InRelease' is not signed.", Code::RepositoryUntrusted),
            (
                "W: GPG error: x InRelease: The following signatures couldn't be verified because the public key is not \
                 available: NO_PUBKEY A4B469963BF863CC",
                Code::RepositoryUntrusted,
            ),
            (
                "Sub-process /usr/bin/sqv returned an error code (1), error message is: Signing key on EB69 is not bound: \
                 No binding signature",
                Code::RepositoryUntrusted,
            ),
            ("W: GPG error: x: The following signatures were invalid: BADSIG 01", Code::IndexTampered),
            ("E: Failed to fetch x  Hash Sum mismatch", Code::IndexTampered),
            ("Redirection from https to 'http://x/' is forbidden", Code::InsecureRedirect),
            ("E: Failed to fetch x  404  Not Found", Code::Fetch),
            (
                "E: Failed to fetch x/InRelease  403  Forbidden [IP: 1 80]\nE: The repository 'x' is not signed.",
                Code::FetchDenied,
            ),
            (
                "E: Failed to fetch x/InRelease  503  Busy [IP: 1 80]\nE: The repository 'x' is not signed.",
                Code::Fetch,
            ),
            (
                "Could not connect to 127.0.0.1:1 (127.0.0.1). - connect (111: Connection refused)",
                Code::Fetch,
            ),
        ] {
            let error = explain(
                "https://repo.example.org/",
                Error::new(Code::AptFailed, "apt-get failed").because(words),
            );
            assert_eq!(error.code(), code, "{words}");
            assert!(error.causes().iter().any(|c| c == words));
        }
    }

    #[test]
    fn a_held_lock_is_not_the_repositorys_doing() {
        let error = explain("https://repo.example.org/", Error::new(Code::AptLocked, "signature"));
        assert_eq!(error.code(), Code::AptLocked);
    }
}
