//! Files that say what root does, and so must be root's own: each directory on the way and the file are opened without
//! following a link, and what was opened is looked at before it is read.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::files::Files;
use crate::error::{Code, Error, Result};

/// Permission bits that let group or others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Only the owner of what lies in such a directory may rename it.
const STICKY: u32 = 0o1000;

impl Files {
    /// Name and content of the files in `dir` whose names are `wanted`, in the order of the names; none where there is no
    /// such directory. Fails (`step-untrusted`) where one of them, or a directory above it, is a link, is not root's,
    /// or may be written by group or others.
    pub fn read_trusted_dir(
        &self,
        dir: &str,
        wanted: impl Fn(&str) -> bool,
        limit: u64,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let Some((directory, above)) = self.open_way(dir)? else { return Ok(Vec::new()) };
        let mut names: Vec<_> = names(&directory, dir)?.into_iter().filter(|name| wanted(name)).collect();
        names.sort();
        // Where there is nothing to be read, nothing can come of whoever may write there.
        if let (Some(why), false) = (above, names.is_empty()) {
            return Err(why);
        }
        let read = |name: String| Ok((name.clone(), read(&directory, dir, &name, limit)?));
        names.into_iter().map(read).collect()
    }

    /// Whether nobody but root could change what lies at `paths` below `dir` between a look and its use: every file and
    /// directory is root's and may be written by nobody else, and no link is on the way. Above `dir` the sticky bit does,
    /// which keeps others from renaming what is root's (`/tmp`).
    pub(crate) fn is_roots_alone(
        &self,
        dir: &str,
        paths: impl Iterator<Item = impl AsRef<Path>>,
    ) -> Result<bool> {
        let is_roots = |path: &Path, or_sticky: u32| {
            fs::symlink_metadata(path).is_ok_and(|m| {
                m.uid() == 0 && (m.mode() & WRITABLE_BY_OTHERS == 0 || m.mode() & or_sticky != 0)
            })
        };
        let base = self.outside(dir)?;
        let above = base.ancestors().skip(1).all(|p| p.as_os_str().is_empty() || is_roots(p, STICKY));
        let mut looked_at = HashSet::new();
        let mut below = paths.map(|path| base.join(path));
        Ok(above
            && is_roots(&base, 0)
            && below.all(|path| {
                let mut way = path.ancestors().take_while(|p| *p != base);
                way.all(|p| !looked_at.insert(p.to_path_buf()) || is_roots(p, 0))
            }))
    }

    /// Opens the directory step by step; with it comes what is wrong on the way. `None` where it is not there.
    fn open_way(&self, dir: &str) -> Result<Option<(File, Option<Error>)>> {
        let mut at = self.open_dir("/")?;
        let mut path = Path::new("/").to_path_buf();
        let mut wrong = look(&at, &path)?;
        for component in Path::new(dir).components() {
            let Component::Normal(name) = component else { continue };
            path.push(name);
            at = match open(&at, name, OFlag::O_DIRECTORY) {
                Ok(file) => file,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    return Err(refused(&path, "is a link, or no directory"));
                }
                Err(errno) => return Err(Error::io("open", &path, errno.into())),
            };
            wrong = wrong.or(look(&at, &path)?);
        }
        Ok(Some((at, wrong)))
    }
}

fn names(directory: &File, dir: &str) -> Result<Vec<String>> {
    let fail = |errno: Errno| Error::io("list", dir, errno.into());
    let mut open =
        Dir::openat(directory, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    let names = open.iter().map(|entry| Ok(entry.map_err(fail)?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn read(directory: &File, dir: &str, name: &str, limit: u64) -> Result<Vec<u8>> {
    let path = Path::new(dir).join(name);
    // A pipe is not waited for.
    let file = match open(directory, OsStr::from_bytes(name.as_bytes()), OFlag::O_NONBLOCK) {
        Ok(file) => file,
        Err(Errno::ELOOP) => return Err(refused(&path, "is a link")),
        Err(errno) => return Err(Error::io("open", &path, errno.into())),
    };
    if let Some(why) = look(&file, &path)? {
        return Err(why);
    }
    if !metadata(&file, &path)?.is_file() {
        return Err(refused(&path, "is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(
            Code::StepInvalid,
            format!("{} is longer than {limit} bytes", path.display()),
        ));
    }
    Ok(bytes)
}

fn open(directory: &File, name: &OsStr, flags: OFlag) -> nix::Result<File> {
    let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty()).map(File::from)
}

fn metadata(file: &File, path: &Path) -> Result<Metadata> {
    file.metadata().map_err(|e| Error::io("stat", path, e))
}

/// Why others than root could have written what was opened, if they could.
fn look(file: &File, path: &Path) -> Result<Option<Error>> {
    let meta = metadata(file, path)?;
    let mode = meta.mode() & 0o7777;
    Ok(if meta.uid() != 0 {
        Some(refused(path, &format!("belongs to user {}, not to root", meta.uid())))
    } else if mode & WRITABLE_BY_OTHERS != 0 {
        Some(refused(path, &format!("may be written by others than root (mode {mode:04o})")))
    } else {
        None
    })
}

fn refused(path: &Path, why: &str) -> Error {
    let path = path.display();
    Error::new(Code::StepUntrusted, format!("{path} {why}, and what lies there says what root does")).with_hint(
        format!("look at what lies there; then `chown root:root {path}` and `chmod go-w {path}`, with no link on the way"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const DIR: &str = "/etc/x/steps.d";

    fn is_toml(name: &str) -> bool {
        Path::new(name).extension().is_some_and(|extension| extension == "toml")
    }

    fn read(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
        Files::new(root.into()).read_trusted_dir(DIR, is_toml, 10)
    }

    fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/x/steps.d");
        fs::create_dir_all(&dir).unwrap();
        for name in ["b.toml", "a.toml", "c.toml~"] {
            fs::write(dir.join(name), name).unwrap();
        }
        for at in ["etc", "etc/x", "etc/x/steps.d", "etc/x/steps.d/a.toml", "etc/x/steps.d/b.toml"] {
            let mode = if is_toml(at) { 0o644 } else { 0o755 };
            fs::set_permissions(root.path().join(at), fs::Permissions::from_mode(mode)).unwrap();
        }
        (root, dir)
    }

    fn names(found: Vec<(String, Vec<u8>)>) -> Vec<String> {
        found.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_is_roots_alone_is_read_in_order() {
        assert!(nix::unistd::geteuid().is_root(), "run the tests as root");
        let (root, dir) = scratch();
        assert_eq!(names(read(root.path()).unwrap()), ["a.toml", "b.toml"]);
        fs::write(dir.join("b.toml"), "longer than ten").unwrap();
        assert_eq!(read(root.path()).unwrap_err().code(), Code::StepInvalid);
        fs::remove_dir_all(dir).unwrap();
        assert!(read(root.path()).unwrap().is_empty());
    }

    #[test]
    fn what_others_could_have_written_is_refused_by_name() {
        for (at, mode) in [("", 0o777), ("etc", 0o775), ("etc/x", 0o757), ("etc/x/steps.d", 0o1777)] {
            let (root, _) = scratch();
            let path = root.path().join(at);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(root.path()).unwrap_err();
            assert_eq!(error.code(), Code::StepUntrusted);
            assert!(error.message().starts_with(&format!("/{at} may be written")), "{error}");
        }
        for (at, mode) in [("etc/x/steps.d/a.toml", 0o664), ("etc/x/steps.d/b.toml", 0o646)] {
            let (root, _) = scratch();
            fs::set_permissions(root.path().join(at), fs::Permissions::from_mode(mode)).unwrap();
            assert!(read(root.path()).unwrap_err().message().starts_with(&format!("/{at} may be written")));
        }
        for at in ["etc", "etc/x/steps.d", "etc/x/steps.d/b.toml"] {
            let (root, _) = scratch();
            chown(root.path().join(at), Some(1000), None).unwrap();
            assert!(
                read(root.path()).unwrap_err().message().starts_with(&format!("/{at} belongs to user 1000"))
            );
        }
    }

    #[test]
    fn no_link_and_no_pipe_is_followed() {
        for at in ["etc/x", "etc/x/steps.d", "etc/x/steps.d/a.toml"] {
            let (root, _) = scratch();
            let path = root.path().join(at);
            fs::rename(&path, root.path().join("moved")).unwrap();
            symlink(root.path().join("moved"), &path).unwrap();
            let error = read(root.path()).unwrap_err();
            assert!(
                error.code() == Code::StepUntrusted && error.message().contains("is a link"),
                "{at}: {error}"
            );
        }
        let (root, dir) = scratch();
        fs::remove_file(dir.join("a.toml")).unwrap();
        nix::unistd::mkfifo(&dir.join("a.toml"), Mode::S_IRUSR).unwrap();
        assert!(read(root.path()).unwrap_err().message().contains("is no regular file"));
    }

    #[test]
    fn what_only_root_could_change_is_roots_alone() {
        let alone = |root: &Path| {
            Files::new(root.into())
                .is_roots_alone("/etc/x", ["steps.d/a.toml", "steps.d/b.toml"].iter())
                .unwrap()
        };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let (root, _) = scratch();
        assert!(alone(root.path()));
        // `/tmp` above is like that; in the directory itself others could add names.
        mode(&root.path().join("etc"), 0o1777);
        assert!(alone(root.path()));
        for (at, bits) in
            [("etc", 0o777), ("etc/x", 0o1777), ("etc/x/steps.d", 0o1777), ("etc/x/steps.d/b.toml", 0o646)]
        {
            let (root, _) = scratch();
            mode(&root.path().join(at), bits);
            assert!(!alone(root.path()), "{at}");
        }
        for at in ["etc", "etc/x", "etc/x/steps.d", "etc/x/steps.d/a.toml"] {
            let (root, _) = scratch();
            chown(root.path().join(at), Some(1000), None).unwrap();
            assert!(!alone(root.path()), "{at}");
            let (root, _) = scratch();
            fs::rename(root.path().join(at), root.path().join("moved")).unwrap();
            symlink(root.path().join("moved"), root.path().join(at)).unwrap();
            assert!(at == "etc" || !alone(root.path()), "{at}");
        }
    }

    #[test]
    fn where_nothing_is_to_be_read_nothing_is_wrong() {
        let (root, dir) = scratch();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        fs::remove_file(dir.join("a.toml")).unwrap();
        fs::remove_file(dir.join("b.toml")).unwrap();
        assert!(read(root.path()).unwrap().is_empty());
    }
}
