//! Layers, weakest first: defaults, `/usr/lib/gpu-bootstrap/*.toml`, `/etc/gpu-bootstrap/*.toml`, user-data,
//! command line. Each layer is checked on its own, so that an error names its file, line and column; then they
//! are merged key by key (a list replaces a list). `boot` calls [`load`]; `config check` calls [`check`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::keys;
use super::schema::{Config, OnNoGpu};
use super::user_data::{self, NotOurs};
use super::validate::{self, Parsed, Problem};
use crate::error::{Code, Error, Result};
use crate::host::{Host, paths};
use crate::user_data::Included;

/// Longest configuration file that is read. A configuration has some hundred bytes; this keeps `/dev/zero` out.
const MAX_BYTES: u64 = 1 << 20;

/// One layer: where it came from and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where it came from.
    pub origin: Origin,
    /// TOML.
    pub text: String,
}

/// Where a layer came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(String),
    /// User-data, or one part of it (`MIME part 2`).
    UserData(Option<String>),
}

impl Origin {
    /// The name in messages.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.clone(),
            Self::UserData(None) => "user-data".into(),
            Self::UserData(Some(part)) => format!("user-data, {part}"),
        }
    }

    /// The name with a place: `FILE:LINE:COLUMN`, or `user-data (line LINE, column COLUMN)`, as there is no file to
    /// open in an editor.
    fn at(&self, (line, column): (usize, usize)) -> String {
        match self {
            Self::File(path) => format!("{path}:{line}:{column}"),
            Self::UserData(_) => format!("{} (line {line}, column {column})", self.name()),
        }
    }
}

impl Layer {
    /// A layer from bytes that must be UTF-8.
    pub fn from_bytes(origin: Origin, bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            let message = format!("{}: the file is UTF-16; save it as UTF-8", origin.name());
            return Err(Error::new(Code::ConfigSyntax, message));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self { origin, text: text.to_owned() }),
            Err(e) => {
                let good = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
                let at = origin.at(validate::position(&good, good.len()));
                Err(Error::new(
                    Code::ConfigSyntax,
                    format!("{at}: this is not UTF-8 text; save the file as UTF-8"),
                ))
            }
        }
    }

    /// The file named on the command line (`--config FILE`), as the caller sees it, not below `--root`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let unreadable = |e| {
            Error::new(Code::ConfigRead, format!("cannot read the configuration {}", path.display()))
                .because(e)
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::from_limited(path.display().to_string(), &bytes)
    }

    fn from_limited(path: String, bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_BYTES {
            let message = format!("{path} is longer than {MAX_BYTES} bytes, which no configuration is");
            return Err(Error::new(Code::ConfigRead, message));
        }
        Self::from_bytes(Origin::File(path), bytes)
    }
}

/// The merged configuration and where it came from.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The configuration, every key filled in.
    pub config: Config,
    /// Names of the layers that took part, weakest first; the defaults are not named.
    pub layers: Vec<String>,
    /// Which layer set which key (`driver.branch` → layer name); keys left at their default are absent.
    pub set_by: BTreeMap<String, String>,
    /// Why there was no configuration in the user-data, if user-data was given and held none.
    pub user_data: Option<NotOurs>,
    /// What of the user-data looks like configuration and was not read, and why.
    pub notices: Vec<String>,
}

/// Reads the file layers, adds `user_data` and `extra` (from `--config`), and merges them.
///
/// Fails with `config-read`, `config-syntax`, `config-unknown-key` or `config-type`; the message has the place
/// and the mend.
pub fn load(host: &Host, user_data: Option<&[u8]>, extra: &[Layer]) -> Result<Loaded> {
    let mut layers = read_dir(host, paths::CONFIG_VENDOR_DIR)?;
    let mut of_administrator = read_dir(host, paths::CONFIG_DIR)?;
    let (mut not_ours, mut in_user_data, mut notices) = (None, Vec::new(), Vec::new());
    if let Some(bytes) = user_data {
        let included = Included::kept(&host.files, bytes);
        let found = user_data::find(bytes, &included)?;
        for (path, layer) in found.carried {
            // Whoever has written the file, or changed it since, has the last word.
            if !host.files.exists(&path)? {
                of_administrator.push((path, layer));
            }
        }
        (not_ours, in_user_data, notices) = (found.not_ours, found.layers, found.notices);
    }
    of_administrator.sort_by(|(a, _), (b, _)| a.cmp(b));
    layers.extend(of_administrator);
    let mut layers: Vec<_> = layers.into_iter().map(|(_, layer)| layer).collect();
    layers.extend(in_user_data);
    layers.extend_from_slice(extra);
    let loaded = merge(&layers)?;
    Ok(Loaded { user_data: not_ours, notices, ..loaded })
}

/// Checks one file over the defaults. Returns what `config check` prints: the file's name, `ok`, and the effective
/// value of every key. The error lists every problem of the file.
pub fn check(path: &Path) -> Result<String> {
    let layer = Layer::from_file(path)?;
    let name = layer.origin.name();
    check_layers(&[layer]).map(|values| format!("{name}: ok\n{values}"))
}

/// The effective value of every key, one line each, those from the defaults marked; or every problem.
pub(crate) fn check_layers(layers: &[Layer]) -> Result<String> {
    let mut lines = Vec::new();
    let mut first_code = None;
    for layer in layers {
        for problem in validate::parse(&layer.text).err().unwrap_or_default() {
            first_code.get_or_insert(problem.code);
            lines.push(sentence(layer, &problem));
        }
    }
    if let Some(code) = first_code {
        return Err(Error::new(code, lines.join("\n")));
    }
    effective(&merge(layers)?)
}

/// Every key with its value, as TOML that could be pasted.
fn effective(loaded: &Loaded) -> Result<String> {
    let internal =
        |e: toml::ser::Error| Error::new(Code::ConfigType, "cannot show the configuration").because(e);
    let tree = toml::Value::try_from(&loaded.config).map_err(internal)?;
    let mut out = String::new();
    for key in keys::KEYS {
        let Some(value) = key.path.split('.').try_fold(&tree, |t, name| t.get(name)) else { continue };
        let mark = if loaded.set_by.contains_key(key.path) { "" } else { "   # default" };
        let _ = writeln!(out, "{} = {value}{mark}", key.path);
    }
    Ok(out)
}

/// The files of a directory, each with its path, in the order of their names.
fn read_dir(host: &Host, dir: &str) -> Result<Vec<(String, Layer)>> {
    let unreadable = |path: &str, e: Error| {
        Error::new(Code::ConfigRead, format!("cannot read the configuration {path}")).because(e)
    };
    let mut layers = Vec::new();
    let names = host.files.list(dir).map_err(|e| unreadable(dir, e))?;
    // A hidden file is an editor's or our own temporary file.
    for name in
        names.iter().filter(|n| !n.starts_with('.') && Path::new(n).extension().is_some_and(|e| e == "toml"))
    {
        let path = format!("{dir}/{name}");
        let bytes = host.files.read_limited(&path, MAX_BYTES + 1).map_err(|e| unreadable(&path, e))?;
        let Some(bytes) = bytes else {
            let message =
                format!("cannot read the configuration {path}: it is a link to a file that does not exist");
            return Err(Error::new(Code::ConfigRead, message));
        };
        layers.push((path.clone(), Layer::from_limited(path, &bytes)?));
    }
    Ok(layers)
}

/// One sentence with the place.
fn sentence(layer: &Layer, problem: &Problem) -> String {
    format!("{}: {}", layer.origin.at(validate::position(&layer.text, problem.offset)), problem.text)
}

fn parse(layer: &Layer) -> Result<Parsed> {
    validate::parse(&layer.text).map_err(|problems| {
        let error = Error::new(problems[0].code, sentence(layer, &problems[0]));
        match (problems.len() - 1, &layer.origin) {
            (0, _) => error,
            (more, Origin::File(path)) => {
                error.with_hint(format!("{more} more to mend: `gpu-bootstrap config check {path}` shows all"))
            }
            (more, Origin::UserData(_)) => error
                .with_hint(format!("{more} more to mend: `gpu-bootstrap user-data check FILE` shows all")),
        }
    })
}

pub(crate) fn merge(layers: &[Layer]) -> Result<Loaded> {
    let mut merged = toml::Table::new();
    let mut set_by = BTreeMap::new();
    let mut places = BTreeMap::new();
    for layer in layers {
        let parsed = parse(layer)?;
        for (key, offset) in &parsed.offsets {
            set_by.insert(key.clone(), layer.origin.name());
            places.insert(key.clone(), (layer, *offset));
        }
        overlay(&mut merged, parsed.table);
    }
    // Every layer has passed the validator; an error here means that it and the schema disagree.
    let mut config = Config::deserialize(merged)
        .map_err(|e| Error::new(Code::ConfigType, "the merged configuration does not fit").because(e))?;
    // Sums are compared as text further on.
    config.cudnn.deb.iter_mut().for_each(|d| d.sha256.make_ascii_lowercase());
    for (key, text) in contradictions(&config) {
        if let Some((layer, offset)) = places.get(key) {
            let problem = Problem { code: Code::ConfigType, offset: *offset, text };
            return Err(Error::new(problem.code, sentence(layer, &problem)));
        }
    }
    let layers = layers.iter().map(|l| l.origin.name()).collect();
    Ok(Loaded { config, layers, set_by, user_data: None, notices: Vec::new() })
}

/// Keys that need others: the one that was written, and what it lacks.
fn contradictions(config: &Config) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if config.policy.on_no_gpu == OnNoGpu::Install && config.policy.bake_for.is_empty() {
        let text = "policy.on-no-gpu = \"install\" needs the instance types the image is for; \
                    add for = [\"g5.xlarge\"], for example";
        all.push(("policy.on-no-gpu", text.into()));
    }
    let (stack, group) = (&config.report.cloudformation, &config.report.autoscaling);
    for pair in [
        [("report.cloudformation.stack", &stack.stack), ("report.cloudformation.resource", &stack.resource)],
        [("report.autoscaling.group", &group.group), ("report.autoscaling.hook", &group.hook)],
    ] {
        let written = pair.iter().find(|(_, value)| !value.is_empty());
        let missing = pair.iter().find(|(_, value)| value.is_empty());
        if let (Some((written, _)), Some((missing, _))) = (written, missing) {
            all.push((written, format!("{written} is of no use without {missing}; set both or none")));
        }
    }
    all
}

/// Puts `over` on top of `base`: tables key by key, everything else whole.
fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, text: &str) -> Layer {
        Layer { origin: Origin::File(name.into()), text: text.into() }
    }

    #[test]
    fn later_layers_win_key_by_key_and_lists_replace() {
        let loaded = merge(&[
            layer(
                "a",
                "[cuda]\ntoolkit = [\"12.8\", \"13.0\"]\n[driver]\nbranch = \"580\"\nflavour = \"open\"",
            ),
            layer("b", "[cuda]\ntoolkit = [\"12.4\"]\n[driver]\nbranch = \"none\""),
        ])
        .unwrap();
        assert_eq!(loaded.config.cuda.toolkit, super::super::schema::OneOrMany::Many(vec!["12.4".into()]));
        assert_eq!(loaded.config.driver.branch, "none");
        assert_eq!(loaded.config.driver.flavour, super::super::schema::Flavour::Open);
        assert_eq!(loaded.set_by["driver.branch"], "b");
        assert_eq!(loaded.set_by["driver.flavour"], "a");
        assert!(!loaded.set_by.contains_key("cudnn.version"));
        assert_eq!(loaded.layers, ["a", "b"]);
    }

    #[test]
    fn no_layers_give_the_defaults() {
        assert_eq!(merge(&[]).unwrap().config, Config::default());
    }

    #[test]
    fn install_without_types_is_refused_unless_another_layer_names_them() {
        let install = layer("a.toml", "[policy]\non-no-gpu = \"install\"\n");
        let e = merge(std::slice::from_ref(&install)).unwrap_err();
        assert_eq!(e.code(), Code::ConfigType);
        assert!(e.message().starts_with("a.toml:2:13: policy.on-no-gpu"), "{e}");
        assert!(merge(&[layer("b", "policy.for = [\"g5.xlarge\"]"), install]).is_ok());
    }

    #[test]
    fn what_check_prints_can_be_pasted() {
        let text = "[cudnn]\ndeb = [{ url = \"https://example.com/x.deb\", sha256 = \"";
        let sum = "AB".repeat(32);
        let shown = check_layers(&[layer("a", &format!("{text}{sum}\" }}]\n"))]).unwrap();
        let again = merge(&[layer("b", &shown)]).unwrap();
        assert_eq!(again.config.cudnn.deb[0].sha256, "ab".repeat(32));
        assert!(shown.contains("driver.branch = \"auto\"   # default\n"), "{shown}");
    }
}
