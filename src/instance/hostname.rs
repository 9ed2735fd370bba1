//! The machine's name: `/etc/hostname`, the kernel's, and a line of ours in `/etc/hosts` where there is one. Without D-Bus,
//! which runs only later.

use super::report::Told;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::imds;

const ITEM: &str = "meta-data/local-hostname";
pub(super) const HOSTNAME: &str = "/etc/hostname";
pub(super) const HOSTS: &str = "/etc/hosts";
/// The name of a machine that has none, to systemd and to DHCP clients.
pub(super) const NEUTRAL: &str = "localhost";
/// The end of a line of ours in `/etc/hosts`.
const MARK: &str = "# gpu-bootstrap";

/// A name, and the same with its domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// Up to the first dot, as cloud-init sets it.
    pub(crate) short: String,
    /// With its domain, where it has one.
    pub(crate) full: String,
}

/// The name that EC2 gives, if it gives one.
pub(crate) struct Given(pub(crate) Option<Name>);

/// Asks for it.
pub(crate) async fn given(client: &imds::Client) -> Result<Given> {
    let Some(text) = client.get(ITEM).await? else { return Ok(Given(None)) };
    parse(&String::from_utf8_lossy(&text)).map(|name| Given(Some(name))).ok_or_else(|| {
        client.forget(ITEM);
        Error::new(Code::MetadataInvalid, format!("{} is no host name", client.url(ITEM)))
            .with_hint("see what the VPC's DHCP option set says")
    })
}

/// The first of several names, as a DHCP option set may bring them.
fn parse(text: &str) -> Option<Name> {
    let full = text.split_ascii_whitespace().next()?.trim_end_matches('.').to_ascii_lowercase();
    let short = full.split('.').next()?.to_owned();
    is_name(&full).then_some(Name { short, full })
}

/// Whether it is a host name, with a domain or without.
pub(crate) fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Gives the machine the name.
pub(crate) fn apply(files: &Files, name: &Name) -> Result<Told> {
    apply_as(files, name, &name.short)
}

/// The same; the machine calls itself `called`, which is one form of the name.
pub(crate) fn apply_as(files: &Files, name: &Name, called: &str) -> Result<Told> {
    let mut changed = false;
    if files.read_text(HOSTNAME)?.as_deref().map(str::trim) != Some(called) {
        files.write(HOSTNAME, format!("{called}\n").as_bytes(), 0o644)?;
        changed = true;
    }
    if let Some(before) = files.read(HOSTS)? {
        let hosts = hosts(&before, name);
        if hosts != before {
            files.write(HOSTS, &hosts, 0o644)?;
            changed = true;
        }
    }
    // Below another root the running kernel is somebody else's.
    if files.is_machine() && nix::unistd::gethostname().ok().as_deref() != Some(called.as_ref()) {
        nix::unistd::sethostname(called).map_err(|e| {
            Error::new(Code::Io, format!("cannot name the running system {called}"))
                .because(std::io::Error::from(e))
        })?;
        changed = true;
    }
    Ok(Told { changed, text: format!("this machine is called {called}") })
}

/// What of both files names an instance, as it is in an image.
pub(super) fn of_an_image(files: &Files) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let neutral = Name { short: NEUTRAL.into(), full: NEUTRAL.into() };
    let mut wanted = Vec::new();
    if files.read_text(HOSTNAME)?.is_some_and(|text| text.trim() != NEUTRAL) {
        wanted.push((HOSTNAME, format!("{NEUTRAL}\n").into_bytes()));
    }
    if let Some(before) = files.read(HOSTS)? {
        let hosts = hosts(&before, &neutral);
        if hosts != before {
            wanted.push((HOSTS, hosts));
        }
    }
    Ok(wanted)
}

/// Whether a line of `/etc/hosts` is ours.
pub(super) fn is_ours(line: &[u8]) -> bool {
    line.trim_ascii_end().ends_with(MARK.as_bytes())
}

/// Writes `/etc/hosts` whole: the name, and what every machine has.
pub(crate) fn write_hosts(files: &Files, name: &Name) -> Result<()> {
    let text = format!(
        "# Written by gpu-bootstrap from user-data (manage_etc_hosts), whole.\n{}127.0.0.1 localhost\n\n\
         ::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
        line(name)
    );
    files.write(HOSTS, text.as_bytes(), 0o644)
}

/// Puts the name into a line of ours of `/etc/hosts`, made where there is none; everything else stays.
pub(crate) fn add_to_hosts(files: &Files, name: &Name) -> Result<()> {
    let before = files.read(HOSTS)?.unwrap_or_default();
    let after = with_line(&before, name);
    if after == before { Ok(()) } else { files.write(HOSTS, &after, 0o644) }
}

fn with_line(before: &[u8], name: &Name) -> Vec<u8> {
    let mut after = hosts(before, name);
    if !after.split_inclusive(|b| *b == b'\n').any(is_ours) {
        if after.last().is_some_and(|b| *b != b'\n') {
            after.push(b'\n');
        }
        after.extend_from_slice(line(name).as_bytes());
    }
    after
}

/// The line of ours.
fn line(name: &Name) -> String {
    let names =
        if name.full == name.short { name.short.clone() } else { format!("{} {}", name.full, name.short) };
    format!("127.0.1.1 {names} {MARK}\n")
}

/// `/etc/hosts` with the name in lines of ours; everything else as it is.
fn hosts(before: &[u8], name: &Name) -> Vec<u8> {
    let ours = line(name);
    let lines = before.split_inclusive(|b| *b == b'\n');
    lines.flat_map(|line| if is_ours(line) { ours.as_bytes() } else { line }).copied().collect()
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some(name) = parse(&String::from_utf8_lossy(bytes)) {
        let once = hosts(bytes, &name);
        assert_eq!(hosts(&once, &name), once, "done once, there is something left to do");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_ec2_gives() {
        let name = parse("ip-172-16-34-43.ec2.internal\n").unwrap();
        assert_eq!(
            (name.short.as_str(), name.full.as_str()),
            ("ip-172-16-34-43", "ip-172-16-34-43.ec2.internal")
        );
        assert_eq!(parse("i-0123.us-east-2.compute.internal").unwrap().short, "i-0123");
        assert_eq!(parse("Node7.example.com. node7.other").unwrap().full, "node7.example.com");
        for odd in
            ["", " \n", "..", "a..b", "-a", "a-", "a_b", "a;reboot", "<html>", "\u{fc}ber", &"x".repeat(64)]
        {
            assert_eq!(parse(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn only_our_line_of_hosts_is_written() {
        let name = parse("a.b.c").unwrap();
        let theirs = "127.0.0.1 localhost\n127.0.1.1 old\n::1 ip6-localhost";
        assert_eq!(hosts(theirs.as_bytes(), &name), theirs.as_bytes());
        let before = format!("127.0.1.1 old.x old # gpu-bootstrap\n{theirs}");
        let after = format!("127.0.1.1 a.b.c a # gpu-bootstrap\n{theirs}");
        assert_eq!(hosts(before.as_bytes(), &name), after.as_bytes());
        assert_eq!(hosts(after.as_bytes(), &name), after.as_bytes());
        let added = with_line(theirs.as_bytes(), &name);
        assert_eq!(added, format!("{theirs}\n127.0.1.1 a.b.c a # gpu-bootstrap\n").as_bytes());
        assert_eq!(
            with_line(&added, &parse("x.y").unwrap()),
            format!("{theirs}\n127.0.1.1 x.y x # gpu-bootstrap\n").as_bytes()
        );
    }
}
