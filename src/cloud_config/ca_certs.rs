//! `ca_certs`: certificates that the machine trusts, by update-ca-certificates(8).

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::read::Reader;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::yaml::Node;

const KEYS: [&str; 2] = ["remove_defaults", "trusted"];
/// The administrator's, of which nothing belongs to a package.
const DIRECTORY: &str = "/usr/local/share/ca-certificates/gpu-bootstrap";
/// Which of the packages' certificates are trusted.
const CHOICE: &str = "/etc/ca-certificates.conf";
const LIMIT: Duration = Duration::from_mins(2);

/// What `ca_certs` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaCerts {
    remove_defaults: bool,
    /// One certificate each, PEM.
    trusted: Vec<String>,
}

pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<CaCerts> {
    let map = reader.map("ca_certs", node, &KEYS)?;
    let mut trusted = Vec::new();
    if let Some(node) = map.get("trusted") {
        for node in reader.list("ca_certs.trusted", node).unwrap_or_default() {
            let Some(text) = reader.text("ca_certs.trusted", node) else { continue };
            match certificates(&text) {
                Ok(found) => trusted.extend(found),
                Err(why) => {
                    let form = "it takes PEM, which begins with -----BEGIN CERTIFICATE-----";
                    reader.wrong(node.at, format!("ca_certs.trusted: this is no certificate: {why}; {form}"));
                }
            }
        }
    }
    let remove_defaults = map
        .get("remove_defaults")
        .is_some_and(|node| reader.switch("ca_certs.remove_defaults", node) == Some(true));
    Some(CaCerts { remove_defaults, trusted })
}

/// Each certificate of a text on its own: update-ca-certificates links only the first of a file.
fn certificates(text: &str) -> Result<Vec<String>, String> {
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    for block in text.split_inclusive(END).filter(|block| !block.trim().is_empty()) {
        let der = CertificateDer::from_pem_slice(block.as_bytes()).map_err(|e| e.to_string())?;
        // X.509 is a SEQUENCE with a length of two bytes.
        if !der.starts_with(&[0x30, 0x82]) {
            return Err("it holds something else".into());
        }
        let start = block.find("-----BEGIN").unwrap_or_default();
        found.push(format!("{}\n", block[start..].trim()));
    }
    if found.is_empty() { Err("it is empty".into()) } else { Ok(found) }
}

impl CaCerts {
    /// What `user-data check` says, and what is told afterwards.
    pub(super) fn sentence(&self) -> String {
        let defaults = if self.remove_defaults { ", and no other" } else { "" };
        format!("{} certificates are trusted{defaults}", self.trusted.len())
    }
}

pub(super) async fn apply(host: &Host, certs: &CaCerts) -> Result<String> {
    let files = &host.files;
    if !files.exists("/usr/sbin/update-ca-certificates")? {
        return Err(Error::new(Code::UserDataFailed, "ca_certs: there is no update-ca-certificates")
            .with_hint("install ca-certificates in the image"));
    }
    for (index, pem) in certs.trusted.iter().enumerate() {
        files.write(format!("{DIRECTORY}/{index:02}.crt"), pem.as_bytes(), 0o644)?;
    }
    // What another instance's user-data left in the image.
    for name in files.list(DIRECTORY)? {
        let number = name.strip_suffix(".crt").and_then(|number| number.parse::<usize>().ok());
        if number.is_none_or(|number| number >= certs.trusted.len()) {
            files.remove(format!("{DIRECTORY}/{name}"))?;
        }
    }
    let mut call = Call::new("update-ca-certificates").limit(LIMIT);
    if certs.remove_defaults {
        let before = files.read_text(CHOICE)?.unwrap_or_default();
        files.write(CHOICE, none_of(&before).as_bytes(), 0o644)?;
        // Those of later versions of the package, too.
        let selection = "ca-certificates ca-certificates/trust_new_crts select no\n";
        host.exec.run(&Call::new("debconf-set-selections").input(selection.into())).await?;
        call = call.args(["--fresh"]);
    }
    host.exec.run(&call).await?;
    Ok(certs.sentence())
}

/// Every certificate with a `!` before it, which is how the file says no.
fn none_of(choice: &str) -> String {
    let line = |line: &str| {
        let is_chosen = !line.is_empty() && !line.starts_with(['#', '!']);
        format!("{}{line}\n", if is_chosen { "!" } else { "" })
    };
    choice.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    #[test]
    fn certificates_are_told_from_what_is_none() {
        for (text, words) in [
            ("remove_defaults: maybe\n", "ca_certs.remove_defaults takes true or false"),
            ("trusted: [single]\n", "this is no certificate"),
            ("trusted: ['']\n", "it is empty"),
            (
                "trusted: [\"-----BEGIN CERTIFICATE-----\\naGFsbG8=\\n-----END CERTIFICATE-----\\n\"]\n",
                "it holds something else",
            ),
            ("trusted: x\n", "ca_certs.trusted takes a list"),
        ] {
            let mut reader = Reader::default();
            read(&mut reader, &parse(text).unwrap().unwrap());
            assert!(reader.problems.iter().any(|p| p.text.contains(words)), "{words}: {:?}", reader.problems);
        }
    }

    #[test]
    fn none_is_chosen() {
        assert_eq!(none_of("# x\na.crt\n!b.crt\n\n"), "# x\n!a.crt\n!b.crt\n\n");
    }
}
