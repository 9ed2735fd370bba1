//! Locked distributions, and whether an environment has them whole: the version, and every file that its RECORD lists in the
//! size that it lists.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Code, Error, Result};
use crate::host::files::Files;

/// A line of a requirements file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locked {
    /// Normalised name.
    pub name: String,
    /// The version.
    pub version: String,
    /// 64 hexadecimal digits.
    pub sha256: String,
    /// The wheel's size, where it is known.
    pub bytes: Option<u64>,
}

impl Locked {
    /// The line that pip gets.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={} --hash=sha256:{}\n", self.name, self.version, self.sha256)
    }
}

/// Reads a requirements file of which each line is a name, a version and one sum: nothing else would be locked.
pub(crate) fn parse(text: &str) -> Result<Vec<Locked>> {
    let mut locked = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let (line, comment) = line.split_once('#').unwrap_or((line, ""));
        if line.trim().is_empty() {
            continue;
        }
        let bytes = comment.split_whitespace().next().and_then(|word| word.parse().ok());
        locked.push(parse_line(line.trim(), bytes).ok_or_else(|| {
            Error::new(
                Code::StepInvalid,
                format!("line {} of requirements is no locked wheel: {:?}", number + 1, line.trim()),
            )
            .with_hint("write name==version --hash=sha256:64 hexadecimal digits, one wheel a line")
        })?);
    }
    if locked.is_empty() {
        return Err(Error::new(Code::StepInvalid, "requirements names no wheel"));
    }
    Ok(locked)
}

fn parse_line(line: &str, bytes: Option<u64>) -> Option<Locked> {
    let (pin, sum) = line.split_once(" --hash=sha256:")?;
    let (name, version) = pin.trim().split_once("==")?;
    let is_plain = |text: &str, more: &[u8]| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    let fits = is_plain(name, b"-_.")
        && is_plain(version, b".+!_-")
        && sum.len() == 64
        && sum.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| Locked {
        name: normal(name),
        version: version.into(),
        sha256: sum.to_ascii_lowercase(),
        bytes,
    })
}

/// A name as `PyPA`'s specification normalises it: lower case, with `-` for each run of `-`, `_` and `.`.
fn normal(name: &str) -> String {
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// The `dist-info` directories by normalised name: directory and version.
fn installed(files: &Files, site: &str) -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for directory in files.list(site)? {
        if let Some((name, version)) = directory.strip_suffix(".dist-info").and_then(|d| d.rsplit_once('-')) {
            found.entry(normal(name)).or_default().push((directory.clone(), version.to_owned()));
        }
    }
    Ok(found)
}

/// The normalised names of what is installed in `site`.
pub(super) fn names(files: &Files, site: &str) -> Result<Vec<String>> {
    Ok(installed(files, site)?.into_keys().collect())
}

/// What is missing, of another version, damaged, or was being installed; with the reason.
pub(super) fn not_whole(
    files: &Files,
    site: &str,
    locked: &[Locked],
    in_flight: &str,
) -> Result<Vec<(String, String)>> {
    let installed = installed(files, site)?;
    let in_flight: BTreeSet<_> = in_flight.lines().collect();
    let mut wrong = Vec::new();
    for wanted in locked {
        let why = if in_flight.contains(wanted.name.as_str()) {
            Some(format!("{} was being installed", wanted.name))
        } else {
            match installed.get(&wanted.name).map(Vec::as_slice) {
                None | Some([]) => Some(format!("{} {} is not installed", wanted.name, wanted.version)),
                Some([(directory, version)]) if *version == wanted.version => damage(files, site, directory)?,
                Some([(_, version), ..]) => {
                    Some(format!("{} is {version}, not {}", wanted.name, wanted.version))
                }
            }
        };
        wrong.extend(why.map(|why| (wanted.name.clone(), why)));
    }
    Ok(wrong)
}

/// What is wrong with a distribution's files, if anything is.
fn damage(files: &Files, site: &str, directory: &str) -> Result<Option<String>> {
    let Some(text) = files.read_text(format!("{site}/{directory}/RECORD"))? else {
        return Ok(Some(format!("{directory} has no RECORD")));
    };
    let mut any = false;
    for line in text.lines() {
        let Some((path, listed)) = entry(line) else { continue };
        any = true;
        // What Python compiles is listed without size, and is made anew where it is missing.
        let Some(bytes) = listed else { continue };
        let path = format!("{site}/{path}");
        match files.lstat(&path)? {
            None => return Ok(Some(format!("{path} is missing"))),
            Some(meta) if !meta.is_file() || meta.len() != bytes => {
                return Ok(Some(format!("{path} has {} bytes, not {bytes}", meta.len())));
            }
            Some(_) => {}
        }
    }
    Ok((!any).then(|| format!("{directory} has an empty RECORD")))
}

/// Path and size of a RECORD's line: CSV, in which a path with a comma or a quote stands in quotes.
fn entry(line: &str) -> Option<(String, Option<u64>)> {
    let (path, rest) = match line.strip_prefix('"') {
        Some(quoted) => {
            let end = quoted.match_indices('"').scan(false, |skip, (at, _)| {
                let doubled = quoted[at + 1..].starts_with('"') && !*skip;
                let closes = !doubled && !*skip;
                *skip = doubled;
                Some(closes.then_some(at))
            });
            let end = end.flatten().next()?;
            (quoted[..end].replace("\"\"", "\""), quoted[end + 1..].strip_prefix(',')?)
        }
        None => line.split_once(',').map(|(path, rest)| (path.to_owned(), rest))?,
    };
    let (_, size) = rest.rsplit_once(',')?;
    Some((path, size.parse().ok()))
}

/// Removes the `dist-info` of what pip could not uninstall, because its RECORD is gone or it is there twice: pip then writes
/// over the files.
pub(super) fn forget(files: &Files, site: &str, names: &BTreeSet<String>) -> Result<()> {
    for (name, directories) in installed(files, site)? {
        let twice = directories.len() > 1;
        for (directory, _) in directories {
            let path = format!("{site}/{directory}");
            let readable = |name: &str| {
                Ok::<_, Error>(
                    files.read_text(format!("{path}/{name}"))?.is_some_and(|text| !text.trim().is_empty()),
                )
            };
            if names.contains(&name) && (twice || !readable("RECORD")? || !readable("METADATA")?) {
                files.remove_tree(path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "4aadc7124afc431ac6a227a05dc8eff417b6fd8f90fc6c44d514ddfca9a6b474";

    #[test]
    fn only_locked_wheels_are_lines() {
        let text = format!(
            "# a\n\nOpt_Einsum.x==3.4.0+cu --hash=sha256:{SUM} # 71932 for: jax\nb==1 --hash=sha256:{SUM}\n"
        );
        let locked = parse(&text).unwrap();
        assert_eq!((locked[0].name.as_str(), locked[0].bytes), ("opt-einsum-x", Some(71932)));
        assert_eq!(locked[1].requirement(), format!("b==1 --hash=sha256:{SUM}\n"));
        for wrong in [
            "b",
            "b==1",
            "b>=1 --hash=sha256:SUM",
            "--index-url=https://evil",
            "-r other.txt",
            "b @ https://evil/b.whl --hash=sha256:SUM",
            "b==1 --hash=sha256:SUM --hash=sha256:SUM",
            "b==1 ; x --hash=sha256:SUM",
            "-e==1 --hash=sha256:SUM",
        ] {
            let error = parse(&wrong.replace("SUM", SUM)).unwrap_err();
            assert!(error.message().starts_with("line 1 of requirements is no locked wheel"), "{error}");
        }
        assert!(parse("# nothing\n").is_err());
    }

    #[test]
    fn records_are_csv() {
        assert_eq!(entry("a/b.py,sha256=x,12"), Some(("a/b.py".into(), Some(12))));
        assert_eq!(entry("a/__pycache__/b.pyc,,"), Some(("a/__pycache__/b.pyc".into(), None)));
        assert_eq!(entry("\"a,b\"\"c\",sha256=x,1"), Some(("a,b\"c".into(), Some(1))));
        assert_eq!(entry("\"a"), None);
    }

    #[test]
    fn a_distribution_is_whole_by_version_files_and_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        let write =
            |path: &str, text: &str| files.write(format!("/s/{path}"), text.as_bytes(), 0o644).unwrap();
        let locked = parse(&format!("My.Tool==1.0 --hash=sha256:{SUM}")).unwrap();
        let wrong = |in_flight: &str| {
            not_whole(&files, "/s", &locked, in_flight)
                .unwrap()
                .into_iter()
                .map(|(_, why)| why)
                .collect::<Vec<_>>()
        };
        assert_eq!(wrong(""), ["my-tool 1.0 is not installed"]);
        write("my_tool-1.0.dist-info/RECORD", "my_tool.py,sha256=x,3\nmy_tool-1.0.dist-info/RECORD,,\n");
        assert_eq!(wrong(""), ["/s/my_tool.py is missing"]);
        write("my_tool.py", "ab");
        assert_eq!(wrong(""), ["/s/my_tool.py has 2 bytes, not 3"]);
        write("my_tool.py", "abc");
        assert!(wrong("").is_empty());
        assert_eq!(wrong("my-tool\n"), ["my-tool was being installed"]);
        write("my_tool-0.9.dist-info/RECORD", "");
        assert_eq!(wrong(""), ["my-tool is 0.9, not 1.0"]);
        forget(&files, "/s", &BTreeSet::from(["my-tool".to_owned()])).unwrap();
        assert_eq!(files.list("/s").unwrap(), ["my_tool.py"]);
    }
}
