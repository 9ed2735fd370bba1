//! What the `apt-*` actions know about repositories: pure parsers for keys, indexes, sources and preferences,
//! and the private, verified copy of a repository's index.
//!
//! Used by [`super::apt_key`], [`super::apt_distrust`], [`super::apt_index`], [`super::apt_pin`],
//! [`super::apt_source`], [`super::apt_components`] and [`super::deb`].

pub(crate) mod apart;
pub(crate) mod control;
pub(crate) mod openpgp;
pub(crate) mod packages;
pub(crate) mod preferences;
pub(crate) mod private;
pub(crate) mod refusal;
pub(crate) mod release;
pub(crate) mod sources;
pub(crate) mod sums;

use std::fmt::Write as _;

/// Whether `name` matches one of the shell-style patterns (`*` and `?`).
pub(crate) fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|p| matches(p.as_bytes(), name.as_bytes()))
}

/// Shell-style match with `*` and `?`; iterative, so that no pattern takes exponential time.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                // Let the last star take one more character, and try again from there.
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// `host/path/` of a repository: without scheme and credentials, with one trailing slash. Two URLs with the same
/// location serve the same repository, whatever the scheme.
pub(crate) fn location(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, r)| r);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit('@').next().unwrap_or(authority).to_ascii_lowercase();
    let path = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect::<Vec<_>>().join("/");
    if path.is_empty() { format!("{host}/") } else { format!("{host}/{path}/") }
}

/// The host of a URL, without credentials and port, as apt's `Pin: origin` wants it.
pub(crate) fn host_of(url: &str) -> String {
    let location = location(url);
    let authority = location.split('/').next().unwrap_or_default();
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host.to_owned(),
        _ => authority.to_owned(),
    }
}

/// The name apt gives to a URL's files in its lists directory (`URItoFileName`): without scheme and
/// credentials, `_` for `/`, and `%5f` for an underscore that was there before.
pub(crate) fn list_name(url: &str) -> String {
    let rest = url.split_once(':').map_or(url, |(_, r)| r.strip_prefix("//").unwrap_or(r));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let mut name = String::new();
    for c in format!("{host}{path}").chars() {
        match c {
            '/' => name.push('_'),
            '\\' | '|' | '{' | '}' | '[' | ']' | '<' | '>' | '"' | '^' | '~' | '_' | '=' | '!' | '@'
            | '#' | '$' | '%' | '&' | '*' => {
                let _ = write!(name, "%{:02x}", u32::from(c));
            }
            c => name.push(c),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_shell_style() {
        for (pattern, name, wanted) in [
            ("cuda-*", "cuda-toolkit-12-8", true),
            ("cuda-*", "libcuda1", false),
            ("*nccl*", "libnccl2", true),
            ("libnvidia-?-5*0", "libnvidia-x-550", true),
            ("a*b*c", "aXbXbXd", false),
            ("nvidia", "nvidia-driver", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn the_same_repository_has_one_location() {
        let one = "repo.example.org/cuda/ubuntu2204/x86_64/";
        for url in [
            "https://repo.example.org/cuda/ubuntu2204/x86_64/",
            "http://repo.example.org/cuda/ubuntu2204/x86_64",
            "https://user:secret@REPO.example.org//cuda/ubuntu2204/./x86_64/",
        ] {
            assert_eq!(location(url), one);
        }
        assert_eq!(host_of("https://u:p@repo.example.org:8443/x/"), "repo.example.org");
    }

    #[test]
    fn list_names_are_apts() {
        assert_eq!(
            list_name("https://u:p@repo.example.org/cuda/ubuntu2204/x86_64/"),
            "repo.example.org_cuda_ubuntu2204_x86%5f64_"
        );
        assert_eq!(list_name("http://127.0.0.1:8080/a/"), "127.0.0.1:8080_a_");
        assert_eq!(list_name("mirror+file:/etc/apt/mirrors/debian.list"), "_etc_apt_mirrors_debian.list");
    }
}
