//! `gpu-bootstrap user-data render`: prints a POSIX shell stub to be given to EC2 as user-data. The stub fetches the
//! agent, verifies its SHA-256, installs it with its unit and the configuration, and starts the unit without waiting:
//! user-data runs inside cloud-init, and the unit may have to wait for cloud-init. `user-data check` is
//! [`crate::config::user_data::check`].
//!
//! The stub's fixed part is `packaging/user-data-stub.sh`; what is rendered here are values and files.

use std::fmt::Write as _;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::config::layers::Layer;
use crate::config::{self, url, user_data};
use crate::error::{Code, Error, Result};

/// The comment by which a rendered stub is known again.
pub const MARK: &str = "# gpu-bootstrap user-data stub";
/// What its sum is preceded by.
const SUM: &str = "sha256 ";
/// The unit, as packages install it.
pub const UNIT: &str = include_str!("../packaging/gpu-bootstrap.service");

const FIXED_PART: &str = include_str!("../packaging/user-data-stub.sh");
/// Where packages put the agent; the unit names it.
const PACKAGED_AGENT: &str = "/usr/bin/gpu-bootstrap";
/// Where the stub puts the agent: not a package's place.
const AGENT: &str = "/usr/local/bin/gpu-bootstrap";
const UNIT_FILE: &str = "/etc/systemd/system/gpu-bootstrap.service";
/// Late in the order of names, so that it wins over files that an image brings.
pub(crate) const CONFIG_FILE: &str = "/etc/gpu-bootstrap/90-user-data.toml";

/// `user-data render`: where the agent is, for one architecture or two, and what configuration it gets.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RenderArgs {
    /// URL of the agent for amd64
    #[arg(long, value_name = "URL", requires = "sha256", required_unless_present = "url_arm64")]
    pub url: Option<String>,
    /// SHA-256 of the agent for amd64, from the release's SHA256SUMS
    #[arg(long, value_name = "SUM", requires = "url")]
    pub sha256: Option<String>,
    /// URL of the agent for arm64 (Graviton)
    #[arg(long, value_name = "URL", requires = "sha256_arm64")]
    pub url_arm64: Option<String>,
    /// SHA-256 of the agent for arm64
    #[arg(long, value_name = "SUM", requires = "url_arm64")]
    pub sha256_arm64: Option<String>,
    /// Configuration to put on the machine; checked now
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// One agent to fetch.
struct Agent {
    /// Pattern of `uname -m`.
    machines: &'static str,
    url: String,
    /// The URL without what may be secret.
    shown: String,
    sha256: String,
}

/// The stub's text. Fails with `usage` for a URL or sum that is not one, with the configuration's own error, and with
/// `config-read` when the stub would be longer than EC2 allows.
pub fn render(args: &RenderArgs) -> Result<String> {
    let agents: Vec<Agent> = [
        agent("x86_64 | amd64", args.url.as_ref(), args.sha256.as_ref(), "")?,
        agent("aarch64 | arm64", args.url_arm64.as_ref(), args.sha256_arm64.as_ref(), "-arm64")?,
    ]
    .into_iter()
    .flatten()
    .collect();
    if agents.is_empty() {
        return Err(Error::new(
            Code::Usage,
            "the stub needs --url and --sha256, or --url-arm64 and --sha256-arm64",
        ));
    }
    let config = match &args.config {
        Some(path) => {
            config::check(path)?;
            Some(Layer::from_file(path)?.text)
        }
        None => None,
    };
    let stub = assemble(&agents, config.as_deref());
    if stub.len() > user_data::MAX_BYTES {
        let message =
            format!("the stub has {} bytes, but EC2 takes {} as user-data", stub.len(), user_data::MAX_BYTES);
        return Err(Error::new(Code::ConfigRead, message)
            .with_hint("shorten the configuration: comments count, and so does a long list of packages"));
    }
    Ok(stub)
}

fn agent(
    machines: &'static str,
    url: Option<&String>,
    sha256: Option<&String>,
    suffix: &str,
) -> Result<Option<Agent>> {
    let (url, sha256) = match (url, sha256) {
        (None, None) => return Ok(None),
        (Some(url), Some(sha256)) => (url, sha256),
        _ => {
            let message = format!("--url{suffix} and --sha256{suffix} go together");
            return Err(Error::new(Code::Usage, message));
        }
    };
    let parsed = url::check(url).map_err(|why| Error::new(Code::Usage, format!("--url{suffix}: {why}")))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        let message =
            format!("--url{suffix}: a user or password in a URL can be read by every process of the machine");
        return Err(
            Error::new(Code::Usage, message).with_hint("use a URL that needs none, or a pre-signed one")
        );
    }
    config::check_sha256(sha256)
        .map_err(|why| Error::new(Code::Usage, format!("--sha256{suffix}: {why}")))?;
    let (url, shown) = (url.clone(), url::redacted(&parsed));
    Ok(Some(Agent { machines, url, shown, sha256: sha256.to_ascii_lowercase() }))
}

fn assemble(agents: &[Agent], config: Option<&str>) -> String {
    let mut out = "#!/bin/sh\n# Fetches the agent, verifies it, and starts it as a service.\n\
                   # Progress: gpu-bootstrap status --wait, or journalctl -u gpu-bootstrap\n"
        .to_owned();
    // What stands at its head is for those who edit it.
    out.extend(FIXED_PART.split_inclusive('\n').skip_while(|l| l.starts_with('#')));
    out.push_str("\ncase $(uname -m) in\n");
    for a in agents {
        let [url, shown, sum] = [&a.url, &a.shown, &a.sha256].map(|v| quote(v));
        let _ = writeln!(out, "{}) url={url} shown={shown} sum={sum} ;;", a.machines);
    }
    out.push_str("*) fail \"this stub has no agent for $(uname -m); nothing was installed\" ;;\nesac\n");
    let _ = write!(out, "agent={AGENT}\n{INSTALL_AGENT}");
    if let Some(config) = config {
        here_document(&mut out, CONFIG_FILE, config);
    }
    here_document(&mut out, UNIT_FILE, &UNIT.replace(PACKAGED_AGENT, AGENT));
    out.push_str(START);
    let mark = format!("{MARK} (version {}, {SUM}{})\n", env!("CARGO_PKG_VERSION"), sum(&out));
    out.insert_str("#!/bin/sh\n".len(), &mark);
    out
}

const INSTALL_AGENT: &str = r#"
if [ ! -x "$agent" ] || [ "$(sum_of "$agent")" != "$sum" ]; then
	temp_beside "$agent"
	download
	found=$(sum_of "$temp")
	[ "$found" = "$sum" ] || fail "sha256 of $shown is $found, expected $sum; nothing was installed"
	chmod 0755 "$temp"
	"$temp" --version >/dev/null 2>&1 || fail "the agent from $shown does not run on this machine; nothing was installed"
	keep "$agent" 0755
fi

"#;

/// A service that has finished is started again, for the configuration may be a new one; one that is at work is left
/// alone by `start`.
const START: &str = r#"
unit=gpu-bootstrap.service
systemctl daemon-reload || fail 'systemctl daemon-reload failed'
systemctl enable --quiet $unit || fail 'the service cannot be enabled'
verb=start
[ "$(systemctl is-active $unit)" != active ] || verb=restart
systemctl $verb --no-block $unit || fail 'the service cannot be started'
say 'installed and started; see gpu-bootstrap status --wait'
"#;

/// `write FILE` with `text` as its standard input, whatever is in `text`: the delimiter is quoted, so that nothing is
/// expanded, and no line of `text` is it.
fn here_document(out: &mut String, file: &str, text: &str) {
    let text = text.replace("\r\n", "\n");
    let mut delimiter = "END_OF_FILE".to_owned();
    while text.lines().any(|l| l == delimiter) {
        delimiter.push('_');
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let _ = write!(out, "write {file} <<'{delimiter}'\n{text}{end}{delimiter}\n");
}

/// Whether this is a stub as it was rendered, whatever its configuration has become. One that was changed otherwise is
/// somebody's own script.
pub fn is_stub(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes.trim_ascii_start()).replace("\r\n", "\n");
    let Some((mark, rest)) = mark(&text) else { return false };
    let said = mark.split_once(SUM).and_then(|(_, sum)| sum.get(..64));
    said.is_some_and(|said| said == sum(&rest))
}

/// Whether this was a stub once, and has been changed since.
pub(crate) fn was_stub(bytes: &[u8]) -> bool {
    mark(&String::from_utf8_lossy(bytes.trim_ascii_start())).is_some() && !is_stub(bytes)
}

/// The second line by which a stub is known, and all other lines.
fn mark(text: &str) -> Option<(&str, String)> {
    let (first, rest) = text.split_once('\n')?;
    let (mark, rest) = rest.split_once('\n')?;
    mark.starts_with(MARK).then(|| (mark, format!("{first}\n{rest}")))
}

/// SHA-256 of what is the stub's own: all but the line that says it, the configuration, which people edit in place, and the
/// line breaks at its end, which tools for MIME add and take.
fn sum(text: &str) -> String {
    let own = match config(text) {
        Some(config) => text.replacen(&format!("\n{config}"), "\n", 1),
        None => text.to_owned(),
    };
    crate::text::hex(&Sha256::digest(own.trim_end()))
}

/// The configuration in a stub, where it has one.
pub(crate) fn config(stub: &str) -> Option<String> {
    let mut lines = stub.split_inclusive('\n');
    let begin = format!("write {CONFIG_FILE} <<'");
    let delimiter =
        lines.by_ref().find_map(|line| line.strip_prefix(begin.as_str()))?.trim_end().strip_suffix('\'')?;
    Some(lines.take_while(|line| line.trim_end() != delimiter).collect())
}

/// `text` as one shell word. What comes here has no quote in it ([`url::check`]); this holds for any text.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_packaged_one_with_our_path() {
        assert_eq!(UNIT.matches(PACKAGED_AGENT).count(), 1);
        assert!(
            UNIT.replace(PACKAGED_AGENT, AGENT)
                .contains("ExecStart=/usr/local/bin/gpu-bootstrap run --boot\n")
        );
    }

    #[test]
    fn a_delimiter_in_the_text_is_avoided() {
        let mut out = String::new();
        here_document(&mut out, "/f", "END_OF_FILE\nEND_OF_FILE_\r\n$(x)");
        assert_eq!(out, "write /f <<'END_OF_FILE__'\nEND_OF_FILE\nEND_OF_FILE_\n$(x)\nEND_OF_FILE__\n");
    }

    #[test]
    fn what_a_stub_carries_is_found_again() {
        let agents = [Agent { machines: "x", url: "u".into(), shown: "u".into(), sha256: "0".into() }];
        let text = "#gpu-bootstrap\nx = \"END_OF_FILE\"\nEND_OF_FILE\n";
        assert_eq!(config(&assemble(&agents, Some(text))).as_deref(), Some(text));
        assert_eq!(config(&assemble(&agents, None)), None);
    }

    #[test]
    fn a_stub_is_known_by_its_own_text() {
        let agents = [Agent { machines: "x", url: "u".into(), shown: "u".into(), sha256: "0".into() }];
        for text in [None, Some("#gpu-bootstrap\n[driver]\nbranch = \"580\"\n"), Some("")] {
            let stub = assemble(&agents, text);
            assert!(is_stub(stub.as_bytes()) && !was_stub(stub.as_bytes()), "{stub}");
            assert!(is_stub(stub.replace('\n', "\r\n").as_bytes()), "as Windows writes it");
            let edited = stub.replace("\"580\"", "\"570\"\nflavour = \"open\"");
            assert!(is_stub(edited.as_bytes()), "people edit the configuration");
            assert!(is_stub(stub.trim_end().as_bytes()), "tools for MIME take the last line break");
            for changed in [
                stub.clone() + "echo more\n",
                stub.replacen("#!/bin/sh\n", "#!/bin/sh -x\n", 1),
                stub.replace("sha256 ", "sha257 "),
                stub.replace("url=", "url=x"),
            ] {
                assert!(!is_stub(changed.as_bytes()) && was_stub(changed.as_bytes()));
            }
        }
        let script = format!("#!/bin/sh\necho '{MARK}'\n");
        assert!(!is_stub(script.as_bytes()) && !was_stub(script.as_bytes()));
    }

    #[test]
    fn quotes_are_quoted() {
        assert_eq!(quote("a'b"), r"'a'\''b'");
    }
}
