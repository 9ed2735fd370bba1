//! Who finds `nvcc` and the CUDA libraries once the profile step has run: login shells, ssh, sudo, cron and
//! systemd, each asked for real inside a disposable root. `docs/search-paths.md` must say what is seen here.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/root.rs"]
mod root;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use gpu_bootstrap::action::{Applied, Check};
use gpu_bootstrap::catalog::choose::{Source, Stack, Toolkit};
use gpu_bootstrap::config::Config;
use gpu_bootstrap::host::Host;
use gpu_bootstrap::{facts, plan};
use root::Root;

/// What the root needs besides the base.
const PACKAGES: &[&str] = &["cron", "login", "openssh-client", "openssh-server", "passwd", "sudo", "systemd"];
/// Where the toolkit's packages put it.
const HOME: &str = "/usr/local/cuda-11.8";
/// What the toolkit's `nvcc` prints.
const MARKER: &str = "nvcc of the toolkit";
/// The exact value where it is set at all: an empty element would mean the current directory.
const LIBRARY_PATH: &str = "/usr/local/cuda/lib64";

/// Reports what its caller's environment finds, one `seen:LABEL:KEY=VALUE` per line.
const PROBE: &str = r#"#!/bin/sh
say() { echo "seen:$label:$1"; }
yes_if() { if [ "$2" = "$3" ]; then say "$1=yes"; else say "$1=no"; fi; }
label=$1
say "path=$(printenv PATH)"
if printenv LD_LIBRARY_PATH >/dev/null; then say "library-path=$(printenv LD_LIBRARY_PATH)"; fi
yes_if nvcc "$(nvcc 2>/dev/null)" "nvcc of the toolkit"
yes_if libraries "$(/usr/local/bin/uses-foo 2>/dev/null)" 42
yes_if linker-cache "$(env -u LD_LIBRARY_PATH /usr/local/bin/uses-foo 2>/dev/null)" 42
say end=
"#;

/// Like a boot: own namespaces, a fresh `/run`, the loopback interface; then the script as process 1 of the root.
/// When it ends, every daemon that it started is gone.
const BOOT: &str = r#"
hostname machine
ip link set lo up
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/run"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$1/dev/pts"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc "$2"
"#;

/// For the scripts: `ran LABEL COMMAND …` reports whether the command, as a user would type it, ran the toolkit's nvcc.
const RAN: &str = r#"
ran() {
    label=$1; shift
    if [ "$("$@" 2>/dev/null)" = "nvcc of the toolkit" ]; then echo "ran:$label=yes"; else echo "ran:$label=no"; fi
}
"#;

/// What a process in some context sees.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    path: String,
    library_path: Option<String>,
    nvcc: bool,
    libraries: bool,
}

/// What the documentation says of it.
type Rows = BTreeMap<&'static str, Seen>;

#[tokio::test]
async fn the_documentation_says_what_each_caller_really_sees() {
    let root = machine();
    let before = login_shells(&root);
    assert!(
        before.values().all(|s| !s.nvcc && !s.libraries),
        "found before the profile step ran: {before:?}"
    );

    apply_profile_step(&root).await;

    let mut rows = login_shells(&root);
    for seen in rows.values() {
        assert!(seen.nvcc && seen.path.starts_with("/usr/local/cuda/bin:"), "{seen:?}");
        assert_eq!(seen.library_path.as_deref(), Some(LIBRARY_PATH));
    }
    rows.extend(ssh(&root));
    rows.extend(sudo(&root));
    rows.extend(cron(&root));
    rows.extend(systemd_service(&root));
    for (who, seen) in &rows {
        assert!(
            seen.path.split(':').all(|element| element.starts_with('/')),
            "{who}: PATH is {:?}",
            seen.path
        );
        assert!(seen.library_path.as_deref().is_none_or(|l| l == LIBRARY_PATH), "{who}: {seen:?}");
    }
    compare_with_documentation(&rows, root.read("/etc/os-release").contains("VERSION_CODENAME=bookworm"));
}

/// A root with a user who may use sudo, and a toolkit as its packages leave it: nothing links to it yet.
fn machine() -> Root {
    let root = Root::with(PACKAGES);
    root.run("useradd", &["--create-home", "--shell", "/bin/bash", "--password", "*", "user"]);
    root.write("/etc/sudoers.d/user", "user ALL=(ALL) NOPASSWD: ALL\n");
    root.write("/etc/hosts", "127.0.0.1 localhost machine\n");
    program(&root, &format!("{HOME}/bin/nvcc"), &format!("#!/bin/sh\necho {MARKER}\n"));
    program(&root, "/usr/local/bin/probe", PROBE);
    library_and_its_user(&root);
    // The kernel's own view is not mounted while the facts are gathered.
    root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
    root
}

fn program(root: &Root, path: &str, text: &str) {
    root.write(path, text);
    fs::set_permissions(root.at(path), fs::Permissions::from_mode(0o755)).unwrap();
}

/// `libfoo.so.1` in the toolkit, and `/usr/local/bin/uses-foo`, which prints what a function of it returns.
fn library_and_its_user(root: &Root) {
    let sources = tempfile::tempdir().unwrap();
    let (library, user) = (sources.path().join("foo.c"), sources.path().join("user.c"));
    fs::write(&library, "int foo(void) { return 42; }\n").unwrap();
    fs::write(
        &user,
        "#include <stdio.h>\nint foo(void);\nint main(void) { return printf(\"%d\\n\", foo()) < 0; }\n",
    )
    .unwrap();
    let built = root.at(&format!("{HOME}/lib64/libfoo.so.1"));
    fs::create_dir_all(built.parent().unwrap()).unwrap();
    gcc(Command::new("gcc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libfoo.so.1", "-o"])
        .arg(&built)
        .arg(&library));
    gcc(Command::new("gcc").arg("-o").arg(root.at("/usr/local/bin/uses-foo")).arg(&user).arg(&built));
}

fn gcc(command: &mut Command) {
    assert!(
        command.status().expect("gcc, which building this project needs anyway").success(),
        "{command:?}"
    );
}

/// The real step from `steps/`, filled in for this toolkit, applied as the engine does it.
async fn apply_profile_step(root: &Root) {
    let host = Host::new(root.path().to_owned());
    let facts = facts::gather(&host, None).await.unwrap();
    let plan = plan::build(&facts, &Config::default(), &stack(), &[]).unwrap();
    let step = plan.steps.iter().find(|step| step.id == "profile").expect("the plan has the profile step");
    for action in &step.actions {
        let needed = action.check(&host).await.unwrap();
        assert!(matches!(needed, Check::Needed { .. }), "{}: {needed:?}", action.describe());
        assert_eq!(action.apply(&host).await.unwrap(), Applied::Done, "{}", action.describe());
        let done = action.check(&host).await.unwrap();
        assert!(matches!(done, Check::Satisfied { .. }), "{}: {done:?}", action.describe());
    }
}

/// Nothing but a toolkit in a directory of its own.
fn stack() -> Stack {
    Stack {
        gpu_architectures: Vec::new(),
        source: Source::Distro { components: Vec::new() },
        driver: None,
        toolkits: vec![Toolkit { version: "11.8".into(), packages: Vec::new(), home: Some(HOME.into()) }],
        cudnn: None,
        cudnn_debs: Vec::new(),
        fabric_manager: None,
        expect_gpus: None,
        most_efa: None,
        gpu_memory: None,
        reasons: Vec::new(),
        unverified: Vec::new(),
    }
}

fn login_shells(root: &Root) -> Rows {
    let printed = boot(
        root,
        "
        su - user -c 'probe su'
        ran su su - user -c nvcc
        su user -c 'env -i HOME=/home/user PATH=/usr/bin:/bin bash -lc \"probe bash\"'
        su user -c 'env -i HOME=/home/user PATH=/usr/bin:/bin dash -lc \"probe dash\"'
        ",
    );
    Rows::from([("login shell", seen(&printed, &["su", "bash", "dash"]))])
}

fn ssh(root: &Root) -> Rows {
    let printed = boot(
        root,
        r#"
        mkdir -p /run/sshd
        ssh-keygen -q -N '' -t ed25519 -f /run/key
        install -d -o user -g user -m 0700 /home/user/.ssh
        install -o user -g user -m 0600 /run/key.pub /home/user/.ssh/authorized_keys
        /usr/sbin/sshd -D -E /run/sshd.log &
        host() {
            ssh -i /run/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                -o LogLevel=ERROR user@localhost "$@"
        }
        tries=0
        until host true; do
            tries=$((tries + 1))
            [ "$tries" -lt 50 ] || { cat /run/sshd.log >&2; exit 1; }
            sleep 0.1
        done
        echo 'probe prompt; nvcc; exit' | TERM=dumb host -tt
        host probe command
        ran command host nvcc
        host bash -lc "'probe login'"
        ran login host bash -lc nvcc
        ran remedy host /usr/local/cuda/bin/nvcc
        "#,
    );
    assert_eq!(ran(&printed, "remedy"), Some(true), "{printed}");
    Rows::from([
        ("ssh host, then a prompt", seen(&printed, &["prompt"])),
        ("ssh host nvcc", seen(&printed, &["command"])),
        ("ssh host bash -lc nvcc", seen(&printed, &["login"])),
    ])
}

fn sudo(root: &Root) -> Rows {
    // From a login shell that has both variables: sudo must not pass them on.
    let printed = boot(
        root,
        "
        su - user -c 'sudo probe plain; sudo -i probe login'
        ran plain su - user -c 'sudo nvcc'
        ran login su - user -c 'sudo -i nvcc'
        ran remedy su - user -c 'sudo /usr/local/cuda/bin/nvcc'
        ",
    );
    assert_eq!(ran(&printed, "remedy"), Some(true), "{printed}");
    let (plain, login) = (seen(&printed, &["plain"]), seen(&printed, &["login"]));
    assert_eq!(plain.library_path, None, "sudo let LD_LIBRARY_PATH through");
    Rows::from([("sudo nvcc", plain), ("sudo -i nvcc", login)])
}

fn cron(root: &Root) -> Rows {
    // @reboot jobs get the same environment as all others, and start at once.
    let printed = boot(
        root,
        r#"
        echo '@reboot user /usr/local/bin/probe system >/tmp/system.new && mv /tmp/system.new /tmp/system' \
            >/etc/cron.d/test
        crontab -u user - <<'END'
@reboot /usr/local/bin/probe user >/tmp/user.new && mv /tmp/user.new /tmp/user
@reboot /usr/local/cuda/bin/nvcc >/tmp/absolute.new && mv /tmp/absolute.new /tmp/absolute
PATH=/usr/local/cuda/bin:/usr/bin:/bin
@reboot nvcc >/tmp/assigned.new && mv /tmp/assigned.new /tmp/assigned
END
        cron -f &
        tries=0
        until [ -e /tmp/system ] && [ -e /tmp/user ] && [ -e /tmp/absolute ] && [ -e /tmp/assigned ]; do
            tries=$((tries + 1))
            [ "$tries" -lt 200 ] || { ls /tmp >&2; exit 1; }
            sleep 0.1
        done
        cat /tmp/system /tmp/user
        ran absolute cat /tmp/absolute
        ran assigned cat /tmp/assigned
        "#,
    );
    for remedy in ["absolute", "assigned"] {
        assert_eq!(ran(&printed, remedy), Some(true), "{remedy}: {printed}");
    }
    Rows::from([("cron job", seen(&printed, &["system", "user"]))])
}

fn systemd_service(root: &Root) -> Rows {
    // No manager runs here; it starts services with the PATH that it is built with, and says which.
    let printed = boot(
        root,
        r#"
        path=$(systemd-path search-binaries-default)
        env -i PATH="$path" probe service
        ran service env -i PATH="$path" nvcc
        ran remedy env -i PATH="$path" /usr/local/cuda/bin/nvcc
        ran assigned env -i PATH="/usr/local/cuda/bin:$path" nvcc
        "#,
    );
    for remedy in ["remedy", "assigned"] {
        assert_eq!(ran(&printed, remedy), Some(true), "{remedy}: {printed}");
    }
    Rows::from([("systemd service", seen(&printed, &["service"]))])
}

/// Runs a script as process 1 of the root, and returns what it printed.
fn boot(root: &Root, script: &str) -> String {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", "unshare", "--mount", "--pid", "--net", "--uts", "--ipc"]);
    command.args(["--fork", "--kill-child", "sh", "-euc", BOOT, "boot"]);
    command.arg(root.path()).arg(format!("{RAN}{script}"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}{errors}\nof{script}", output.status);
    text
}

/// What the probes with these labels reported. They are ways to the same thing, so they must agree, but for the
/// rest of PATH, which /etc/profile does not set on Ubuntu; the first one's is taken.
fn seen(printed: &str, labels: &[&str]) -> Seen {
    let mut all = labels.iter().map(|label| {
        let report = report(printed, label);
        assert!(report.contains_key("end"), "{label}: the probe did not run to its end:\n{printed}");
        let yes = |key: &str| report[key] == "yes";
        let seen = Seen {
            path: report["path"].to_owned(),
            library_path: report.get("library-path").map(|&l| l.to_owned()),
            nvcc: yes("nvcc"),
            libraries: yes("libraries"),
        };
        assert_eq!(seen.libraries, yes("linker-cache"), "{label}: LD_LIBRARY_PATH made a difference");
        assert!(
            ran(printed, label).is_none_or(|r| r == seen.nvcc),
            "{label}: not as the probe says:\n{printed}"
        );
        seen
    });
    let first = all.next().unwrap();
    for (other, label) in all.zip(&labels[1..]) {
        let other = Seen { path: first.path.clone(), ..other };
        assert_eq!(other, first, "{label} and {} differ", labels[0]);
    }
    first
}

/// The lines of one probe. On a terminal, other text may stand before them.
fn report<'a>(printed: &'a str, label: &str) -> BTreeMap<&'a str, &'a str> {
    let prefix = format!("seen:{label}:");
    printed.lines().filter_map(|line| line.split_once(&prefix)?.1.trim_end().split_once('=')).collect()
}

/// What `ran LABEL …` reported, if it was called.
fn ran(printed: &str, label: &str) -> Option<bool> {
    let prefix = format!("ran:{label}=");
    printed.lines().find_map(|line| line.strip_prefix(&prefix)).map(|answer| answer == "yes")
}

fn compare_with_documentation(rows: &Rows, paths_too: bool) {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/search-paths.md")).unwrap();
    let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let found = rows.iter().map(|(who, s)| (*who, vec![word(s.nvcc), word(s.libraries)])).collect();
    compare_table(&text, &["Who", "Finds nvcc", "Finds CUDA libraries"], &found);
    // The rest of PATH is each release's own; the documentation shows Debian 12's.
    if paths_too {
        let unset = || "not set".to_owned();
        let paths = rows
            .iter()
            .map(|(who, s)| (*who, vec![s.path.clone(), s.library_path.clone().unwrap_or_else(unset)]));
        compare_table(&text, &["Who", "PATH", "LD_LIBRARY_PATH"], &paths.collect());
    }
}

/// Compares these columns of the table that has them, row by row; the first column is the key.
fn compare_table(text: &str, columns: &[&str], wanted: &BTreeMap<&str, Vec<String>>) {
    let mut lines = text.lines().map(cells);
    let header = lines.find(|c| columns.iter().all(|name| c.iter().any(|cell| cell == name)));
    let header = header.unwrap_or_else(|| panic!("docs/search-paths.md has no table with {columns:?}"));
    let at: Vec<usize> =
        columns.iter().map(|name| header.iter().position(|cell| cell == name).unwrap()).collect();
    let table: Vec<Vec<String>> = lines.skip(1).take_while(|c| c.len() == header.len()).collect();
    let documented: BTreeMap<&str, Vec<String>> = table
        .iter()
        .map(|row| (row[at[0]].as_str(), at[1..].iter().map(|&i| row[i].clone()).collect()))
        .collect();
    assert_eq!(table.len(), documented.len(), "docs/search-paths.md: a caller has two rows");
    assert_eq!(&documented, wanted, "docs/search-paths.md (left) and what was seen (right), {columns:?}");
}

/// The cells of a Markdown table row, without back-ticks; none for other lines.
fn cells(line: &str) -> Vec<String> {
    let Some(inner) = line.trim().strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
        return Vec::new();
    };
    inner.split('|').map(|c| c.trim().replace('`', "")).collect()
}
