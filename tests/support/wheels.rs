//! Purpose-made wheels.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]

use super::root::Root;

/// Writes a wheel of these files, with its metadata, as any builder of wheels does; prints its SHA-256.
const MAKE_WHEEL: &str = r#"
import base64, hashlib, sys, zipfile
name, version, directory, *files = sys.argv[1:]
info, record = f"{name}-{version}.dist-info", []
path = f"{directory}/{name}-{version}-py3-none-any.whl"
with zipfile.ZipFile(path, "w") as wheel:
    def add(at, text):
        wheel.writestr(zipfile.ZipInfo(at), text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{at},sha256={digest},{len(text.encode())}")
    for at, text in zip(files[::2], files[1::2]):
        add(at, text)
    add(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-asked-for\n")
    add(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "\n".join(record + [f"{info}/RECORD,,"]) + "\n")
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"#;

/// Makes a wheel of these files in a directory of the root, by the root's own Python; its SHA-256.
pub(crate) fn make(root: &Root, dir: &str, name: &str, version: &str, files: &[(&str, &str)]) -> String {
    let mut args = vec!["-c", MAKE_WHEEL, name, version, dir];
    args.extend(files.iter().flat_map(|(path, text)| [*path, *text]));
    root.run("python3", &args).trim().to_owned()
}
