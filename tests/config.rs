//! Configuration: layers from a file tree, one clear error with place and mend for each mistake, and a reference
//! page that cannot drift from the code.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use gpu_bootstrap::config::keys::{KEYS, Key};
use gpu_bootstrap::config::layers::{self, Layer, Loaded};
use gpu_bootstrap::config::schema::{ExpectGpus, OnNoGpu, OneOrMany};
use gpu_bootstrap::config::user_data::NotOurs;
use gpu_bootstrap::config::{Config, check};
use gpu_bootstrap::error::{Code, Result};
use gpu_bootstrap::host::Host;

/// A root directory with configuration files in it.
struct Root(tempfile::TempDir);

impl Root {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for (path, bytes) in files {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        root
    }

    fn path(&self, inside: &str) -> std::path::PathBuf {
        self.0.path().join(inside.trim_start_matches('/'))
    }

    fn load(&self, user_data: Option<&[u8]>, extra: &[Layer]) -> Result<Loaded> {
        layers::load(&Host::new(self.0.path().to_path_buf()), user_data, extra)
    }
}

const A: &str = "/etc/gpu-bootstrap/a.toml";

#[test]
fn layers_merge_from_weakest_to_strongest() {
    let root = Root::new(&[
        (
            "/usr/lib/gpu-bootstrap/10-vendor.toml",
            b"driver.branch = \"535\"\npolicy.for = [\"g5.xlarge\", \"g6.xlarge\"]",
        ),
        ("/etc/gpu-bootstrap/20-b.toml", b"driver.branch = \"570\"\ndriver.flavour = \"open\""),
        ("/etc/gpu-bootstrap/10-a.toml", b"driver.branch = \"560\"\ndriver.modules = \"dkms\""),
        ("/etc/gpu-bootstrap/notes.txt", b"not toml"),
        ("/etc/gpu-bootstrap/.10-a.toml", b"not toml"),
        ("/extra.toml", b"policy.for = [\"g4dn.xlarge\"]"),
    ]);
    let extra = Layer::from_file(&root.path("/extra.toml")).unwrap();
    let user_data = b"#gpu-bootstrap\n[cuda]\ntoolkit = \"12.8\"\n[policy]\non-no-gpu = \"install\"";
    let loaded = root.load(Some(user_data), &[extra]).unwrap();
    assert_eq!(loaded.config.driver.branch, "570", "20-b comes after 10-a");
    assert_eq!(loaded.config.cuda.toolkit, OneOrMany::One("12.8".into()));
    assert_eq!(loaded.config.policy.bake_for, ["g4dn.xlarge"], "a list replaces a list");
    assert_eq!(loaded.config.policy.on_no_gpu, OnNoGpu::Install);
    assert_eq!(loaded.set_by["driver.modules"], "/etc/gpu-bootstrap/10-a.toml");
    assert_eq!(loaded.set_by["cuda.toolkit"], "user-data");
    let names: Vec<_> = loaded.layers.iter().map(|l| l.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["10-vendor.toml", "10-a.toml", "20-b.toml", "user-data", "extra.toml"]);
    assert_eq!(loaded.user_data, None);
}

#[test]
fn without_files_and_with_foreign_user_data_the_defaults_hold() {
    let root = Root::new(&[]);
    assert_eq!(root.load(None, &[]).unwrap().config, Config::default());
    let loaded = root.load(Some(b"#cloud-config\n"), &[]).unwrap();
    assert_eq!((loaded.config, loaded.user_data), (Config::default(), Some(NotOurs::CloudConfig)));
}

/// Text of a file, and what the error must say. FILE stands for the file's name, SUM for a sum.
const MISTAKES: &[(&str, Code, &str)] = &[
    // Unknown keys: the nearest name
    (
        "[driver]\nflavor = \"open\"",
        Code::ConfigUnknownKey,
        "FILE:2:1: there is no key `driver.flavor`; the key `driver.flavour` is probably meant",
    ),
    (
        "[drivers]\nbranch = \"580\"",
        Code::ConfigUnknownKey,
        "FILE:1:2: there is no key `drivers`; the table `driver` is probably meant",
    ),
    (
        "toolkit = \"12.8\"",
        Code::ConfigUnknownKey,
        "FILE:1:1: there is no key `toolkit`; the key `cuda.toolkit` is probably meant",
    ),
    (
        "[policy]\non_no_gpu = \"skip\"",
        Code::ConfigUnknownKey,
        "the key `policy.on-no-gpu` is probably meant",
    ),
    (
        "[kubernetes]\nversion = 1",
        Code::ConfigUnknownKey,
        "FILE:1:2: there is no key `kubernetes`; remove it (docs/config.md lists every key)",
    ),
    (
        "cudnn.deb = [{ url = \"https://a.b/c\", sha265 = \"\" }]",
        Code::ConfigUnknownKey,
        "there is no key `sha265` in an entry of cudnn.deb; `sha256` is probably meant",
    ),
    // Frameworks
    ("[frameworks]\npython = [\"pytorch\"]", Code::ConfigType, "frameworks.python: "),
    (
        "[frameworks]\npython = [\"torch\", \"torch\"]",
        Code::ConfigType,
        "FILE:2:20: frameworks.python: \"torch\" stands in the list twice; remove one",
    ),
    (
        "[frameworks]\npython = [\"keras\", \"tensorboard\"]",
        Code::ConfigType,
        "FILE:2:10: frameworks.python: keras computes with another framework; add \"torch\", \"tensorflow\" or \"jax\"",
    ),
    (
        "frameworks.python = \"torch\"",
        Code::ConfigType,
        "frameworks.python takes a list of \"keras\", \"torch\", \"tensorflow\", \"jax\" or \"tensorboard\", not",
    ),
    (
        "frameworks.wheels = \"wheels\"",
        Code::ConfigType,
        "frameworks.wheels: \"wheels\" is not an absolute path",
    ),
    (
        "frameworks.index = \"s3://bucket/simple\"",
        Code::ConfigType,
        "frameworks.index: s3:// is not available",
    ),
    // An image without cloud-init
    (
        "[instance]\nuser = \"Root; reboot\"",
        Code::ConfigType,
        "FILE:2:8: instance.user: \"Root; reboot\" is not \"auto\" or a user's name",
    ),
    (
        "instance.ssh_keys = true",
        Code::ConfigUnknownKey,
        "there is no key `instance.ssh_keys`; the key `instance.ssh-keys` is probably meant",
    ),
    // Who is told
    (
        "report.cloudwatch.retention-days = 31",
        Code::ConfigType,
        "report.cloudwatch.retention-days takes one of the numbers 1, 3, 5,",
    ),
    (
        "report.cloudwatch.log-group = \"aws/x\"",
        Code::ConfigType,
        "\"aws/x\" is not 1 to 512 letters, digits and . - _ / #",
    ),
    ("report.tag = \"aws:x\"", Code::ConfigType, "not beginning with \"aws:\""),
    ("report.sns = \"gpu\"", Code::ConfigType, "\"gpu\" is not an ARN such as \"arn:aws:sns:"),
    ("report.event-bus = \"a b\"", Code::ConfigType, "\"a b\" is not a name or an ARN"),
    ("report.webhook = \"ftp://a.b/c\"", Code::ConfigType, "report.webhook: "),
    (
        "report.autoscaling.on-failure = \"stop\"",
        Code::ConfigType,
        "\"stop\" is not one of the values \"continue\" or \"abandon\"",
    ),
    (
        "[report.cloudformation]\nstack = \"a\"",
        Code::ConfigType,
        "FILE:2:9: report.cloudformation.stack is of no use without report.cloudformation.resource",
    ),
    (
        "[report.autoscaling]\nhook = \"a\"",
        Code::ConfigType,
        "report.autoscaling.hook is of no use without report.autoscaling.group",
    ),
    ("source.packages = \"bundle:x\"", Code::ConfigType, "neither an absolute path"),
    ("source.packages = \"bundle:s3://UP/x\"", Code::ConfigType, "no s3://bucket/prefix"),
    ("source.bundle-sha256 = \"12\"", Code::ConfigType, "is not 64 hexadecimal digits"),
    // Versions
    (
        "[cuda]\ntoolkit = 12.10",
        Code::ConfigType,
        "FILE:2:11: cuda.toolkit: versions are strings; write \"12.10\", because 12.10 as a number is 12.1",
    ),
    (
        "[driver]\nbranch = 535.309.01",
        Code::ConfigSyntax,
        "FILE:2:10: versions are strings; write branch = \"535.309.01\"",
    ),
    (
        "driver.branch = \"58\"",
        Code::ConfigType,
        "driver.branch: \"58\" is not \"auto\", \"none\", a branch such as \"580\"",
    ),
    ("driver.branch = \"latest\"", Code::ConfigType, "\"latest\" is not \"auto\", \"none\", a branch"),
    (
        "cuda.toolkit = \"12.8.1\"",
        Code::ConfigType,
        "\"12.8.1\" is too exact; packages carry major.minor, write \"12.8\"",
    ),
    ("cuda.toolkit = \"12\"", Code::ConfigType, "\"12\" is not exact enough; write major.minor"),
    ("cuda.toolkit = []", Code::ConfigType, "the list is empty; write \"none\""),
    (
        "cuda.toolkit = [\"12.8\", \"auto\"]",
        Code::ConfigType,
        "FILE:1:25: cuda.toolkit: \"auto\" cannot stand in a list",
    ),
    (
        "cuda.toolkit = [\"12.8\", \"12.8\"]",
        Code::ConfigType,
        "FILE:1:25: cuda.toolkit: \"12.8\" stands in the list twice",
    ),
    (
        "cudnn.version = \"9\"",
        Code::ConfigType,
        "\"9\" is not \"auto\", \"none\" or a version such as \"9.8.0\"",
    ),
    // Wrong types and values
    (
        "[driver]\nflavour = \"opne\"",
        Code::ConfigType,
        "FILE:2:11: driver.flavour: \"opne\" is not one of the values \"auto\", \"open\" or \"proprietary\"; \"open\" is probably meant",
    ),
    ("policy.reboot = \"always\"", Code::ConfigType, "is not one of the values \"auto\" or \"never\""),
    (
        "driver.flavour = true",
        Code::ConfigType,
        "driver.flavour takes \"auto\", \"open\" or \"proprietary\", not true or false",
    ),
    (
        "profile.path = \"true\"",
        Code::ConfigType,
        "profile.path takes true or false; write true without quotes",
    ),
    ("profile = true", Code::ConfigType, "FILE:1:1: profile is a table, not true or false; write [profile]"),
    ("[[driver]]\nbranch = \"580\"", Code::ConfigType, "driver is a table, not a list; write [driver]"),
    ("report.cloudwatch.enabled = \"yes\"", Code::ConfigType, "takes true, false or \"auto\", not \"yes\""),
    ("report.cloudwatch.namespace = \"AWS/EC2\"", Code::ConfigType, "\"AWS/EC2\" is no namespace"),
    (
        "policy.expect-gpus = \"8\"",
        Code::ConfigType,
        "policy.expect-gpus takes \"auto\" or a number from 1; write 8 without quotes",
    ),
    ("policy.expect-gpus = \"all\"", Code::ConfigType, "takes \"auto\" or a number from 1, not \"all\""),
    ("policy.expect-gpus = 0", Code::ConfigType, "takes \"auto\" or a number from 1, not 0"),
    ("policy.expect-gpus = -1", Code::ConfigType, "takes \"auto\" or a number from 1, not -1"),
    ("policy.expect-gpus = 1.5", Code::ConfigType, "takes \"auto\" or a number from 1, not 1.5"),
    (
        "install.lock-timeout = \"10m\"",
        Code::ConfigType,
        "install.lock-timeout takes a number of seconds from 1 to 86400, not \"10m\"",
    ),
    (
        "install.lock-timeout = \"auto\"",
        Code::ConfigType,
        "a number of seconds from 1 to 86400, not \"auto\"",
    ),
    ("install.script-timeout = \"60\"", Code::ConfigType, "write 60 without quotes"),
    ("install.script-timeout = 0", Code::ConfigType, "a number of seconds from 1 to 86400, not 0"),
    ("install.script-timeout = 86401", Code::ConfigType, "a number of seconds from 1 to 86400, not 86401"),
    ("install.script-timeout = true", Code::ConfigType, "a number of seconds from 1 to 86400, not"),
    ("policy.expect-gpus = [8]", Code::ConfigType, "takes \"auto\" or a number from 1, not a list"),
    ("policy.for = \"g5.xlarge\"", Code::ConfigType, "policy.for takes a list; write [\"g5.xlarge\"]"),
    ("policy.for = [\"g5\"]", Code::ConfigType, "\"g5\" is not an instance type; write family.size"),
    (
        "[policy]\non-no-gpu = \"install\"",
        Code::ConfigType,
        "FILE:2:13: policy.on-no-gpu = \"install\" needs the instance types",
    ),
    // Sources, URLs, sums
    (
        "source.packages = \"nvida\"",
        Code::ConfigType,
        "\"nvida\" is not \"nvidia\", \"distro\", the http(s) URL of a mirror, \"bundle:/directory\" or \"bundle:s3://bucket/prefix\"; \"nvidia\" is probably meant",
    ),
    (
        "source.packages = \"ftp://a.b/c\"",
        Code::ConfigType,
        "the scheme ftp:// is not supported; use https://",
    ),
    (
        "source.packages = \"https://bücher.example/c\"",
        Code::ConfigType,
        "source.packages: a host name is written in ASCII; write this one as xn--…",
    ),
    (
        "[[cudnn.deb]]\nurl = \"https://bücher.example/c\"\nsha256 = \"SUM\"",
        Code::ConfigType,
        "FILE:2:7: cudnn.deb: a host name is written in ASCII; write this one as xn--…",
    ),
    ("source.packages = \"https://a.b/c?d\"", Code::ConfigType, "a mirror's URL has no ?"),
    ("source.packages = \"https://a.b/c [trusted=yes]\"", Code::ConfigType, "a URL cannot contain a space"),
    (
        "[[cudnn.deb]]\nurl = \"s3://b/k\"\nsha256 = \"SUM\"",
        Code::ConfigType,
        "FILE:2:7: cudnn.deb: \"s3://b/k\" is no s3://bucket/key",
    ),
    (
        "[[cudnn.deb]]\nurl = \"https://a.b/c\"\nsha256 = \"1f2e\"",
        Code::ConfigType,
        "FILE:3:10: cudnn.deb: a sha256 has 64 hexadecimal digits, and this has 4",
    ),
    (
        "[[cudnn.deb]]\nurl = \"https://a.b/c\"\nsha256 = \"sha256:SUM\"",
        Code::ConfigType,
        "'s' stands in this one",
    ),
    ("[[cudnn.deb]]\nsha256 = \"SUM\"", Code::ConfigType, "FILE:1:1: cudnn.deb: the entry has no url"),
    (
        "[[cudnn.deb]]\nurl = \"s3://bucket/c.deb\"",
        Code::ConfigType,
        "FILE:1:1: cudnn.deb: the entry has no sha256, and no signed index of a bucket is read",
    ),
    (
        "[[cudnn.deb]]\nurl = \"https://a.b/c\"\nrepository = \"https://a.b/\"",
        Code::ConfigType,
        "FILE:1:1: cudnn.deb: repository and signed-by go together",
    ),
    ("cudnn.deb = [\"https://a.b/c\"]", Code::ConfigType, "FILE:1:14: cudnn.deb takes a list of { url"),
    // Syntax
    ("[driver", Code::ConfigSyntax, "FILE:1:8: not valid TOML"),
    (
        "[driver]\nflavour = open",
        Code::ConfigSyntax,
        "FILE:2:11: text needs quotes; write flavour = \"open\"",
    ),
    ("[driver]\nbranch = \"580\"\n[driver]\n", Code::ConfigSyntax, "FILE:3:"),
    ("driver.branch = \"580", Code::ConfigSyntax, "not valid TOML"),
    ("driver:\n  branch: 580", Code::ConfigSyntax, "FILE:1:8: not valid TOML"),
    ("<html>", Code::ConfigSyntax, "not valid TOML"),
];

#[test]
fn every_mistake_has_its_error_with_place_and_mend() {
    for (text, code, says) in MISTAKES {
        let text = text.replace("SUM", &"0f".repeat(32));
        let root = Root::new(&[(A, text.as_bytes())]);
        let e = root.load(None, &[]).expect_err(&text);
        let wanted = says.replace("FILE", A);
        assert_eq!(e.code(), *code, "{text}\n{e}");
        assert!(e.message().contains(&wanted), "{text}\nsays:   {e}\nwanted: {wanted}");
        assert!(!e.message().contains('\n'), "one sentence: {e}");
        assert_eq!(e.code().exit_code(), 2);
        // The same file, looked at by `config check`, has the same error under its own name.
        let path = root.path(A);
        let checked = check(&path).expect_err(&text);
        let wanted = says.replace("FILE", &path.display().to_string());
        assert!(checked.message().contains(&wanted), "{checked}");
    }
}

#[test]
fn in_user_data_the_place_is_a_line_of_the_user_data() {
    let e = Root::new(&[]).load(Some(b"#gpu-bootstrap\n[cuda]\ntoolkit = 12.10\n"), &[]).unwrap_err();
    assert!(
        e.message().starts_with("user-data (line 3, column 11): cuda.toolkit: versions are strings"),
        "{e}"
    );
}

#[test]
fn an_error_in_one_layer_is_not_hidden_by_a_stronger_one() {
    let root = Root::new(&[
        ("/usr/lib/gpu-bootstrap/a.toml", b"driver.flavour = \"opne\""),
        (A, b"driver.flavour = \"open\""),
    ]);
    assert!(root.load(None, &[]).unwrap_err().message().starts_with("/usr/lib/gpu-bootstrap/a.toml:1:18:"));
}

#[test]
fn check_lists_every_problem_and_load_says_how_many_more() {
    let text = b"[driver]\nflavor = \"open\"\nbranch = 580\n[cuda]\ntoolkit = 12.10\n";
    let root = Root::new(&[(A, text)]);
    let e = check(&root.path(A)).unwrap_err();
    let lines: Vec<_> = e.message().lines().map(|l| l.split_once(".toml").unwrap().1).collect();
    assert_eq!(lines.len(), 3, "{e}");
    for (line, place) in lines.iter().zip([":2:1: ", ":3:10: ", ":5:11: "]) {
        assert!(line.starts_with(place), "{e}");
    }
    let hint = "2 more to mend: `gpu-bootstrap config check /etc/gpu-bootstrap/a.toml` shows all";
    assert_eq!(root.load(None, &[]).unwrap_err().hint(), Some(hint));
}

#[test]
fn files_that_are_no_text_are_named() {
    for (bytes, code, says) in [
        (
            &b"[driver]\nbranch = \"\xff\""[..],
            Code::ConfigSyntax,
            "a.toml:2:11: this is not UTF-8 text; save the file as UTF-8",
        ),
        (b"\xff\xfe[\0d\0", Code::ConfigSyntax, "a.toml: the file is UTF-16; save it as UTF-8"),
        (&vec![b'#'; (1 << 20) + 1], Code::ConfigRead, "a.toml is longer than 1048576 bytes"),
    ] {
        let e = Root::new(&[(A, bytes)]).load(None, &[]).unwrap_err();
        assert_eq!(e.code(), code);
        assert!(e.message().contains(says), "{e}");
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let e = Root::new(&[("/etc/gpu-bootstrap/a.toml/b", b"")]).load(None, &[]).unwrap_err();
    assert_eq!(
        (e.code(), e.message()),
        (Code::ConfigRead, "cannot read the configuration /etc/gpu-bootstrap/a.toml")
    );
    assert!(!e.causes().is_empty());
    let root = Root::new(&[("/etc/gpu-bootstrap/x", b"")]);
    std::os::unix::fs::symlink("/nowhere", root.path(A)).unwrap();
    assert!(root.load(None, &[]).unwrap_err().message().contains("link to a file that does not exist"));
    let e = check(Path::new("/nonexistent/a.toml")).unwrap_err();
    assert_eq!(
        (e.code(), e.message()),
        (Code::ConfigRead, "cannot read the configuration /nonexistent/a.toml")
    );
}

#[test]
fn a_windows_file_is_read_like_any_other() {
    let text = "\u{feff}[driver]\r\nbranch = \"580\"\r\n[policy]\r\nexpect-gpus = 8\r\n";
    let config = Root::new(&[(A, text.as_bytes())]).load(None, &[]).unwrap().config;
    assert_eq!((config.driver.branch.as_str(), config.policy.expect_gpus), ("580", ExpectGpus::Count(8)));
}

#[test]
fn check_shows_effective_values() {
    let root = Root::new(&[(A, b"[cuda]\ntoolkit = [\"12.8\", \"13.0\"]\n")]);
    let path = root.path(A);
    let shown = check(&path).unwrap();
    assert!(shown.starts_with(&format!("{}: ok\n", path.display())), "{shown}");
    assert!(shown.contains("\ncuda.toolkit = [\"12.8\", \"13.0\"]\n"), "{shown}");
    assert!(shown.contains("\npolicy.on-no-gpu = \"fail\"   # default\n"), "{shown}");
}

/// Every example of the reference is accepted, and changes the default.
#[test]
fn every_example_is_valid() {
    for key in KEYS {
        let beside = match key.path {
            "policy.on-no-gpu" => "policy.for = [\"g5.xlarge\"]",
            "report.cloudformation.stack" => "report.cloudformation.resource = \"a\"",
            "report.cloudformation.resource" => "report.cloudformation.stack = \"a\"",
            "report.autoscaling.group" => "report.autoscaling.hook = \"a\"",
            "report.autoscaling.hook" => "report.autoscaling.group = \"a\"",
            _ => "",
        };
        let text = format!("{} = {}\n{beside}", key.path, key.example);
        let loaded =
            Root::new(&[(A, text.as_bytes())]).load(None, &[]).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_ne!(loaded.config, Config::default(), "{text}");
    }
}

/// docs/config.md is generated: `UPDATE_DOCS=1 cargo test --test config` writes it.
#[test]
fn the_reference_page_is_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
    let wanted = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/config.md is out of date: UPDATE_DOCS=1 cargo test --test config");
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Generated from src/config/keys.rs: UPDATE_DOCS=1 cargo test --test config -->

TOML. Every key is optional. Versions are strings, because `12.10` as a number is `12.1`. A key that is not listed here
is an error, and so is a value that does not fit; the message names the file, the line, the column and the mend.

| Layer, weakest first | Where |
|---|---|
| defaults | this page |
| distribution | `/usr/lib/gpu-bootstrap/*.toml`, in the order of their names |
| administrator | `/etc/gpu-bootstrap/*.toml`, in the order of their names |
| user-data | text that begins with the line `#gpu-bootstrap`; also gzipped, base64-encoded, or as a MIME part of type \
`text/x-gpu-bootstrap` |
| command line | `--config FILE` |

A stronger layer replaces single keys; a list is replaced whole. Files whose names begin with a dot are left out.
`gpu-bootstrap config check FILE` tests a file and shows every effective value; `gpu-bootstrap user-data check FILE` does
so for user-data. User-data can be read by every process on the machine: put no secrets into it.
";

fn reference() -> String {
    let defaults = toml::Value::try_from(Config::default()).unwrap();
    let mut page = INTRODUCTION.to_owned();
    let mut table = "";
    for key in KEYS {
        let (this, name) = key.path.rsplit_once('.').unwrap();
        if this != table {
            let _ = write!(page, "\n## `[{this}]`\n");
            table = this;
        }
        page.push_str(&entry(key, name, &defaults));
    }
    page
}

fn entry(key: &Key, name: &str, defaults: &toml::Value) -> String {
    let default = key.path.split('.').fold(defaults, |t, name| &t[name]);
    format!(
        "\n### `{name}`\n\n{}\n\n- Takes: {}\n- Default: `{default}`\n- Example: `{name} = {}`\n",
        key.meaning,
        key.kind.takes(),
        key.example
    )
}
