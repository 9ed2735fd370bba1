//! `#cloud-config` without cloud-init, what is about services and about the end: the real program over scratch machines.
//! `tests/e2e/cloud-config` compares it with cloud-init itself.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};

use imds::Imds;
use imds::scripted_http::{self, Reply, Server};
use machine::{Machine, Ran, binary, ran};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";
const REPOSITORY_KEY: &str = include_str!("fixtures/keys/throw-away.asc");
const FINGERPRINT: &str = include_str!("fixtures/keys/throw-away.fingerprint");
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const FIRST_BOOT: &str = "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f";
const REPORT: &str = "/run/gpu-bootstrap/user-data.json";
const LOG: &str = "/var/log/gpu-bootstrap/user-data.log";

/// A machine with a shell, a login user, and tools that write down what they were asked.
fn image() -> Machine {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root, for chroot: start it by tests/run");
    let machine = Machine::debian12()
        .file("/dev/null", "")
        .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nadmin:x:1001:1002::/home/admin:/bin/sh\n")
        .file("/etc/group", "root:x:0:\nadmin:x:1002:\n")
        .file("/etc/hostname", "ip-10-0-0-1\n")
        .file("/proc/uptime", "12.34 1.0\n")
        .dir("/root")
        .dir("/home/admin");
    for program in ["dash", "cat", "test"] {
        machine.bring(program);
    }
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
    for name in ["shutdown", "systemctl", "apt-get", "passwd"] {
        machine.tool(name, "");
    }
    machine.tool("debconf-set-selections", "cat >>/selections");
    machine.tool("chpasswd", "cat >>/secrets");
    machine
}

fn act(machine: &Machine, user_data: &str, args: &[&str], env: &[(&str, &str)]) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, user_data).unwrap();
    let mut command = binary();
    command
        .args(["user-data", "run", "--root"])
        .arg(machine.root())
        .arg("--file")
        .arg(file.path())
        .args(args);
    if !env.iter().any(|(name, _)| *name == "AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        command.arg("--no-imds");
    }
    ran(command.envs(env.iter().copied()))
}

/// Acts on the user-data, which must exit with 0.
#[track_caller]
fn apply(machine: &Machine, user_data: &str) -> Ran {
    let ran = act(machine, user_data, &[], &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

/// Acts on it, which must be refused with all these words, and nothing done.
#[track_caller]
fn refused(user_data: &str, words: &[&str]) {
    let machine = image();
    let ran = act(&machine, user_data, &[], &[]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    for words in words {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(!machine.outside("/asked").exists());
}

fn text(machine: &Machine, path: &str) -> String {
    fs::read_to_string(machine.outside(path)).unwrap_or_default()
}

/// What programs were asked, but for the options of apt-get.
fn asked(machine: &Machine) -> Vec<String> {
    let short = |line: &str| match line.strip_prefix("apt-get ") {
        Some(rest) => {
            let command = rest.rfind(" install ").or(rest.rfind(" update")).map_or(rest, |at| &rest[at..]);
            format!("apt-get{command}")
        }
        None => line.to_owned(),
    };
    text(machine, "/asked").lines().map(short).collect()
}

fn outcome(machine: &Machine, name: &str) -> (String, String) {
    let report: serde_json::Value = serde_json::from_str(&machine.read(REPORT)).unwrap();
    let item = report["items"].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap().clone();
    (item["outcome"].as_str().unwrap().into(), item["text"].as_str().unwrap().into())
}

fn reboot(machine: &Machine) {
    fs::write(machine.outside(BOOT_ID), "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e40\n").unwrap();
}

/// How the run of this boot stands that sets up the GPUs.
fn run_is(machine: &Machine, state: &str, outcome: Option<&str>) {
    let status = serde_json::json!({
        "schema": 1, "state": state, "outcome": outcome, "boot_id": FIRST_BOOT, "started": "2026-01-02T03:04:05Z"
    });
    let path = machine.outside("/run/gpu-bootstrap/status.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, status.to_string()).unwrap();
}

#[test]
fn sources_are_files_with_their_keys_and_lists_are_updated_once_after_the_gpus() {
    let key = REPOSITORY_KEY.trim_end().replace('\n', "\n        ");
    let user_data = format!(
        "#cloud-config\napt:\n  http_proxy: http://me:secret@proxy:3128\n  conf: |\n    APT::Install-Recommends \"false\";\n\
         \x20 debconf_selections:\n    set: |\n      tzdata tzdata/Areas select Europe\n  primary: [{{arches: [default], uri: 'http://mirror/debian'}}]\n\
         \x20 preserve_sources_list: true\n  sources:\n    own.list:\n      source: 'deb [signed-by=$KEY_FILE] http://own $RELEASE main'\n      key: |\n        {key}\n\
         \x20   more:\n      source: 'deb $MIRROR $RELEASE contrib'\n    old-way:\n      key: |\n        {key}\n"
    );
    let machine = image().file("/etc/apt/sources.list", "deb http://image bookworm main\n");
    let ran = act(&machine, &user_data, &["--stage", "config"], &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(!ran.stdout.contains("secret") && !machine.read(REPORT).contains("secret"), "{ran:#?}");
    let list = "/etc/apt/sources.list.d";
    assert_eq!(
        text(&machine, &format!("{list}/own.list")),
        "deb [signed-by=/etc/apt/keyrings/own.gpg] http://own bookworm main\n"
    );
    assert_eq!(text(&machine, &format!("{list}/more.list")), "deb http://mirror/debian bookworm contrib\n");
    let ring = |path: &str| fs::read(machine.outside(path)).unwrap();
    assert_eq!(ring("/etc/apt/keyrings/own.gpg"), ring("/etc/apt/trusted.gpg.d/old-way.gpg"));
    assert!(ring("/etc/apt/keyrings/own.gpg")[0] & 0x80 != 0, "binary, as apt wants it under this name");
    assert_eq!(text(&machine, "/etc/apt/sources.list"), "deb http://image bookworm main\n");
    assert_eq!(
        text(&machine, "/etc/apt/apt.conf.d/90gpu-bootstrap-aptproxy"),
        "Acquire::http::Proxy \"http://me:secret@proxy:3128\";\n"
    );
    assert_eq!(
        text(&machine, "/etc/apt/apt.conf.d/94gpu-bootstrap-config"),
        "APT::Install-Recommends \"false\";\n"
    );
    assert_eq!(text(&machine, "/selections"), "tzdata tzdata/Areas select Europe\n");
    assert_eq!(asked(&machine), ["debconf-set-selections "], "no list is updated before the GPUs");
    apply(&machine, &user_data);
    apply(&machine, &user_data);
    assert_eq!(asked(&machine), ["debconf-set-selections ", "apt-get update"]);
}

#[test]
fn packages_update_the_lists_by_themselves() {
    let machine = image();
    apply(&machine, "#cloud-config\npackages: [x]\napt: {sources: {a: {source: 'deb http://a s c'}}}\n");
    assert_eq!(asked(&machine), ["apt-get update", "apt-get install x"]);
}

#[test]
fn a_list_of_ones_own_takes_the_place_of_the_distributions_in_either_form() {
    let machine = image()
        .file("/etc/apt/sources.list", "deb http://image bookworm main\n")
        .file("/etc/apt/sources.list.d/debian.sources", "Types: deb\n");
    apply(
        &machine,
        "#cloud-config\napt:\n  primary: [{arches: [amd64], uri: 'http://m'}]\n  disable_suites: [backports, $RELEASE-updates]\n",
    );
    let list = text(&machine, "/etc/apt/sources.list");
    let lines: Vec<_> = list.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            "deb http://m bookworm main",
            "deb-src http://m bookworm main",
            "deb http://m bookworm-security main",
            "deb-src http://m bookworm-security main"
        ]
    );
    assert!(
        list.contains("\n# suite disabled by gpu-bootstrap: deb http://m bookworm-backports main\n"),
        "{list}"
    );
    assert!(!machine.outside("/etc/apt/sources.list.d/debian.sources").exists());
    assert!(
        machine.outside("/var/lib/gpu-bootstrap/set-aside/etc__apt__sources.list.d__debian.sources").exists()
    );
}

#[test]
fn configuration_that_apt_does_not_take_is_not_written_and_the_rest_is() {
    let machine = image().file("/usr/bin/apt-config", "");
    machine.tool(
        "apt-config",
        "case $(cat \"$APT_CONFIG\") in *proxy*) ;; *) echo 'Syntax error' >&2; exit 100 ;; esac",
    );
    let user_data = "#cloud-config\napt: {conf: 'APT {', proxy: 'http://proxy', sources: {a: {source: 'deb http://a s c'}}}\n";
    let ran = act(&machine, user_data, &[], &[]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("apt does not take it") && ran.stderr.contains("Syntax error"), "{ran:#?}");
    assert!(!machine.outside("/etc/apt/apt.conf.d/94gpu-bootstrap-config").exists());
    assert!(machine.outside("/etc/apt/apt.conf.d/90gpu-bootstrap-aptproxy").exists());
    assert!(machine.outside("/etc/apt/sources.list.d/a.list").exists());
}

#[test]
fn a_key_by_its_fingerprint_is_looked_at_before_it_is_kept() {
    let (config, bundle) = scripted_http::tls();
    let server = Server::start_tls(config, |_| Reply::ok(REPOSITORY_KEY));
    let user_data = |fingerprint: &str| {
        format!(
            "#cloud-config\napt:\n  sources:\n    a.list: {{source: 'deb http://a s c', keyid: '{fingerprint}', keyserver: '{}'}}\n",
            server.url("")
        )
    };
    let bundle = bundle.path().display().to_string();
    let env = [("AWS_CA_BUNDLE", bundle.as_str())];
    let machine = image();
    let ran = act(&machine, &user_data(FINGERPRINT.trim()), &["--stage", "config"], &env);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(machine.outside("/etc/apt/trusted.gpg.d/a.gpg").exists());
    let asked: Vec<_> = server.log().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, [format!("/pks/lookup?op=get&options=mr&search=0x{}", FINGERPRINT.trim())]);

    let machine = image();
    let other = "A4B469963BF863CCA4B469963BF863CC00000000";
    let ran = act(&machine, &user_data(other), &["--stage", "config"], &env);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains(&format!("answered with another key than {other}")), "{ran:#?}");
    assert!(!machine.outside("/etc/apt/trusted.gpg.d/a.gpg").exists());
    assert!(
        !machine.outside("/etc/apt/sources.list.d/a.list").exists(),
        "a source without its key stops apt"
    );
}

#[test]
fn old_spellings_name_the_new_ones() {
    refused(
        "#cloud-config\napt_sources: []\napt_proxy: x\napt_update: true\nca-certs: {}\nssh_deletekeys: false\n",
        &[
            "(line 2, column 1): apt_sources is an old spelling; write apt.sources",
            "(line 3, column 1): apt_proxy is an old spelling; write apt.proxy",
            "apt_update is an old spelling; write package_update",
            "ca-certs is an old spelling; write ca_certs",
            "(line 6, column 17): ssh_deletekeys: false is not supported",
        ],
    );
}

#[test]
fn the_clock_is_kept_by_the_client_that_is_there() {
    let machine = image().file("/usr/lib/systemd/systemd-timesyncd", "").dir("/run/systemd/system");
    apply(&machine, "#cloud-config\nntp: {servers: [169.254.169.123], pools: [p.example]}\n");
    assert!(
        text(&machine, "/etc/systemd/timesyncd.conf.d/gpu-bootstrap.conf")
            .ends_with("\n[Time]\nNTP=169.254.169.123 p.example\n")
    );
    assert_eq!(asked(&machine), ["systemctl reload-or-restart systemd-timesyncd"]);
}

#[test]
fn a_clients_package_is_installed_where_it_is_missing_after_the_gpus() {
    let machine = image().file("/etc/chrony/chrony.conf", "pool image iburst\n");
    let user_data = "#cloud-config\nntp: {ntp_client: chrony}\n";
    assert_eq!(act(&machine, user_data, &["--stage", "config"], &[]).code, 0);
    assert_eq!(asked(&machine), Vec::<String>::new());
    apply(&machine, user_data);
    assert_eq!(asked(&machine), ["apt-get update", "apt-get install chrony"]);
    let config = text(&machine, "/etc/chrony/chrony.conf");
    assert!(
        config.contains("\npool 0.debian.pool.ntp.org iburst\n") && config.contains("\nrtcsync\n"),
        "{config}"
    );
    assert_eq!(text(&machine, "/etc/chrony/chrony.conf.dist"), "pool image iburst\n");
    let machine = image();
    apply(&machine, "#cloud-config\nntp: {enabled: false, ntp_client: chrony}\n");
    assert_eq!(asked(&machine), Vec::<String>::new());
}

#[test]
fn the_machine_goes_down_last_and_once_and_is_recorded_before() {
    let user_data = "#cloud-config\npower_state: {mode: poweroff, delay: +5, message: bye now, condition: test -e /marks}\n\
                     final_message: v $version by $datasource after $uptime s\nruncmd: [echo run >>/marks]\n";
    let machine = image();
    machine.tool("shutdown", "cat /var/lib/gpu-bootstrap/user-data.json >/recorded; echo \"$*\" >>/marks");
    let ran = apply(&machine, user_data);
    assert_eq!(text(&machine, "/marks"), "run\n-P +5 bye now\n");
    let recorded: serde_json::Value = serde_json::from_str(&machine.read("/recorded")).unwrap();
    let item =
        recorded["items"].as_array().unwrap().iter().find(|item| item["name"] == "power_state").unwrap();
    assert_eq!(item["state"], "done", "a power cut in between must not make it a loop");
    let message = format!("v gpu-bootstrap {} by EC2 after 12.34 s\n", env!("CARGO_PKG_VERSION"));
    assert!(ran.stderr.contains(&message) && machine.read(LOG).contains(&message), "{ran:#?}");
    reboot(&machine);
    let ran = apply(&machine, user_data);
    assert!(ran.stderr.contains(&message), "at every boot: {ran:#?}");
    assert_eq!(text(&machine, "/marks"), "run\n-P +5 bye now\n");
}

#[test]
fn conditions_say_yes_no_or_fail() {
    for (condition, code, goes_down, outcome_wanted) in [
        ("true", 0, true, "done"),
        ("false", 0, false, "done"),
        ("'test -e /nowhere'", 0, false, "done"),
        ("[test, -e, /etc/passwd]", 0, true, "done"),
        ("'exit 3'", 1, false, "failed"),
        ("[no-such-program]", 1, false, "failed"),
    ] {
        let machine = image();
        let user_data = format!("#cloud-config\npower_state: {{mode: reboot, condition: {condition}}}\n");
        let ran = act(&machine, &user_data, &[], &[]);
        assert_eq!(ran.code, code, "{condition}: {ran:#?}");
        assert_eq!(asked(&machine) == ["shutdown -r now"], goes_down, "{condition}: {:?}", asked(&machine));
        assert_eq!(outcome(&machine, "power_state").0, outcome_wanted, "{condition}");
    }
}

#[test]
fn the_machine_does_not_go_down_before_the_gpus_are_set_up() {
    let off = "#cloud-config\npower_state: {mode: poweroff}\n";
    let machine = image();
    run_is(&machine, "finished", Some("reboot-needed"));
    apply(&machine, off);
    assert_eq!(asked(&machine), Vec::<String>::new());
    let (state, why) = outcome(&machine, "power_state");
    assert!(state == "waiting" && why.contains("not set up before the next boot"), "{state}: {why}");
    run_is(&machine, "running", None);
    {
        let lock = fs::File::create(machine.outside("/var/lib/gpu-bootstrap/lock")).unwrap();
        let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
        apply(&machine, off);
        assert!(outcome(&machine, "power_state").1.contains("the GPUs are being set up"));
    }
    assert_eq!(asked(&machine), Vec::<String>::new());
    run_is(&machine, "finished", Some("converged"));
    apply(&machine, off);
    assert_eq!(asked(&machine), ["shutdown -P now"]);

    let machine = image();
    run_is(&machine, "finished", Some("reboot-needed"));
    apply(&machine, "#cloud-config\npower_state: {mode: reboot}\n");
    assert_eq!(asked(&machine), ["shutdown -r now"], "the reboot that the GPUs wait for");
}

#[test]
fn reports_on_their_way_are_waited_for_as_long_as_the_time_out_says() {
    let delivery = |run: &str, is_over: bool| {
        serde_json::json!({"updated": run, "run": run, "channels": [
            {"channel": "logs", "sentence": "", "sent": 0, "waiting": 1, "lost": 0, "is_over": is_over}]})
        .to_string()
    };
    let now = "2026-01-02T03:04:05Z";
    for (run, is_over, waits) in
        [(now, false, true), (now, true, false), ("2025-01-02T03:04:05Z", false, false)]
    {
        let machine = image().file("/run/gpu-bootstrap/delivery.json", &delivery(run, is_over));
        run_is(&machine, "finished", Some("converged"));
        let began = std::time::Instant::now();
        apply(&machine, "#cloud-config\npower_state: {mode: halt, timeout: 3}\n");
        assert_eq!(asked(&machine), ["shutdown -H now"]);
        assert_eq!(began.elapsed().as_secs() >= 3, waits, "{run} {is_over}: {:?}", began.elapsed());
    }
}

#[test]
fn packages_reboot_before_scripts_which_run_afterwards() {
    let user_data =
        "#cloud-config\npackages: [x]\npackage_reboot_if_required: true\nruncmd: [echo run >>/marks]\n";
    let machine = image();
    machine.tool("apt-get", "echo >/run/reboot-required");
    apply(&machine, user_data);
    assert_eq!(
        (asked(&machine).last().unwrap().as_str(), text(&machine, "/marks").as_str()),
        ("shutdown -r now packages need a reboot", "")
    );
    assert_eq!(outcome(&machine, "runcmd").0, "waiting");
    fs::remove_file(machine.outside("/run/reboot-required")).unwrap();
    reboot(&machine);
    apply(&machine, user_data);
    assert_eq!(text(&machine, "/marks"), "run\n");
    assert_eq!(asked(&machine).iter().filter(|line| line.starts_with("shutdown")).count(), 1);
    let machine = image();
    apply(&machine, user_data);
    assert!(
        !asked(&machine).iter().any(|line| line.starts_with("shutdown"))
            && text(&machine, "/marks") == "run\n"
    );
}

#[test]
fn home_is_phoned_with_a_form_until_it_is_taken() {
    let seen = AtomicUsize::new(0);
    let server = Server::start(move |_| match seen.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(503, ""),
        _ => Reply::ok(""),
    });
    let service = Imds::new()
        .item("user-data", "")
        .item("meta-data/local-hostname", "ip-10-0-0-1.ec2.internal")
        .start();
    let machine = image().file("/etc/ssh/ssh_host_ed25519_key.pub", &format!("{KEY} root@x\n"));
    let user_data = format!(
        "#cloud-config\nphone_home:\n  url: {}\n  post: [pub_key_rsa, pub_key_ed25519, instance_id, hostname, fqdn]\n  tries: 3\n",
        server.url("/secret/$INSTANCE_ID/?secret=1")
    );
    let endpoint = service.url();
    let ran = act(&machine, &user_data, &[], &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let requests = server.log();
    assert_eq!(requests.len(), 2);
    let request = &requests[1];
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("POST", "/secret/i-0123456789abcdef0/?secret=1")
    );
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    let body = String::from_utf8(request.body.clone()).unwrap();
    assert!(body.starts_with("pub_key_rsa=N%2FA&pub_key_ed25519=ssh-ed25519+AAAA"), "{body}");
    assert!(
        body.ends_with(
            "+root%40x%0A&instance_id=i-0123456789abcdef0&hostname=ip-10-0-0-1&fqdn=ip-10-0-0-1.ec2.internal"
        ),
        "{body}"
    );
    assert!(!format!("{}{}{}", ran.stdout, ran.stderr, machine.read(REPORT)).contains("secret"), "{ran:#?}");
    act(&machine, &user_data, &[], &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)]);
    assert_eq!(server.log().len(), 2, "once for each instance");
}

#[test]
fn a_home_that_does_not_answer_is_told_without_its_path() {
    let server = Server::start(|_| Reply::status(404, ""));
    let machine = image();
    let user_data = format!(
        "#cloud-config\nphone_home: {{url: '{}', tries: 1}}\nruncmd: [echo run >/marks]\n",
        server.url("/secret")
    );
    let ran = act(&machine, &user_data, &[], &[]);
    assert_eq!((ran.code, text(&machine, "/marks").as_str()), (1, "run\n"), "{ran:#?}");
    assert!(ran.stderr.contains("phone_home: 127.0.0.1 did not take the form in one attempt"), "{ran:#?}");
    assert!(ran.stderr.contains("404") && !ran.stderr.contains("secret"), "{ran:#?}");
}

#[test]
fn passwords_reach_chpasswd_by_standard_input_and_expire() {
    let user_data = "#cloud-config\nchpasswd:\n  users:\n  - {name: root, password: plain, type: text}\n  list: |\n    admin:$6$salt$hash\n";
    let machine = image();
    let ran = apply(&machine, user_data);
    assert_eq!(
        asked(&machine),
        ["chpasswd ", "chpasswd -e", "passwd --expire root", "passwd --expire admin"]
    );
    assert_eq!(text(&machine, "/secrets"), "root:plain\nadmin:$6$salt$hash\n");
    assert!(!ran.stdout.contains("plain") && !machine.read(REPORT).contains("plain"));
    let machine = image();
    apply(&machine, "#cloud-config\npassword: plain\nchpasswd: {expire: false}\n");
    assert_eq!(
        (asked(&machine), text(&machine, "/secrets").as_str()),
        (vec!["chpasswd ".to_owned()], "admin:plain\n")
    );
}

#[test]
fn sshd_takes_passwords_only_by_a_file_that_it_takes() {
    const FILE: &str = "/etc/ssh/sshd_config.d/10-gpu-bootstrap.conf";
    let include = "Include /etc/ssh/sshd_config.d/*.conf\n";
    let machine =
        image().file("/etc/ssh/sshd_config", include).file("/usr/sbin/sshd", "").dir("/run/systemd/system");
    machine.tool("sshd", "");
    apply(&machine, "#cloud-config\nssh_pwauth: true\n");
    assert!(text(&machine, FILE).ends_with("\nPasswordAuthentication yes\n"));
    assert_eq!(asked(&machine), ["sshd -t", "systemctl try-reload-or-restart ssh"]);
    machine.tool("sshd", "echo 'bad line' >&2; exit 255");
    let ran = act(&machine, "#cloud-config\nssh_pwauth: false\n", &[], &[]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(
        ran.stderr.contains("sshd does not take its configuration") && ran.stderr.contains("bad line"),
        "{ran:#?}"
    );
    assert!(
        text(&machine, FILE).ends_with("\nPasswordAuthentication yes\n"),
        "what was there before is there"
    );
    let machine = image().file("/etc/ssh/sshd_config", "# Include /etc/ssh/sshd_config.d/*.conf\n");
    let ran = act(&machine, "#cloud-config\nssh_pwauth: false\n", &[], &[]);
    assert!(ran.code == 1 && ran.stderr.contains("does not include"), "{ran:#?}");
    apply(&image(), "#cloud-config\nssh_pwauth: unchanged\n");
}

#[test]
fn sshd_offers_the_kinds_of_host_keys_that_are_asked_for_but_never_none() {
    const FILE: &str = "/etc/ssh/sshd_config.d/10-gpu-bootstrap-host-keys.conf";
    let machine = image()
        .file("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
        .file("/etc/ssh/ssh_host_ed25519_key", "");
    apply(&machine, "#cloud-config\nssh_genkeytypes: [ed25519, rsa]\n");
    assert!(
        text(&machine, FILE)
            .ends_with("\nHostKey /etc/ssh/ssh_host_ed25519_key\nHostKey /etc/ssh/ssh_host_rsa_key\n")
    );
    let before = text(&machine, FILE);
    let ran = act(&machine, "#cloud-config\nssh_genkeytypes: [rsa]\n", &[], &[]);
    assert!(ran.code == 1 && ran.stderr.contains("nobody would get in"), "{ran:#?}");
    assert_eq!(text(&machine, FILE), before);
    refused(
        "#cloud-config\nssh_genkeytypes: [dsa]\n",
        &["(line 2, column 18): ssh_genkeytypes: \"dsa\" is not supported"],
    );
    refused("#cloud-config\nssh_genkeytypes: []\n", &["nobody gets in"]);
}

#[test]
fn root_logs_in_where_it_is_not_disabled() {
    let refusal = "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,command=\"echo 'Please login as the user \\\"admin\\\" rather than the user \\\"root\\\".';echo;sleep 10;exit 142\"";
    let pair = format!("{KEY} pair #gpu-bootstrap\n");
    let machine = image();
    fs::create_dir_all(machine.outside("/root/.ssh")).unwrap();
    fs::write(machine.outside("/root/.ssh/authorized_keys"), format!("{refusal} {pair}")).unwrap();
    apply(&machine, "#cloud-config\ndisable_root: true\n");
    assert!(text(&machine, "/root/.ssh/authorized_keys").starts_with(refusal));
    apply(&machine, "#cloud-config\ndisable_root: false\n");
    assert_eq!(text(&machine, "/root/.ssh/authorized_keys"), pair);
}

#[test]
fn hosts_and_names_with_their_domain() {
    let hosts = "127.0.0.1 localhost\n10.0.0.9 friend\n";
    let machine = image().file("/etc/hosts", hosts);
    apply(
        &machine,
        "#cloud-config\nfqdn: a.b.example\nmanage_etc_hosts: localhost\nprefer_fqdn_over_hostname: true\n",
    );
    assert_eq!(text(&machine, "/etc/hostname"), "a.b.example\n");
    assert_eq!(text(&machine, "/etc/hosts"), format!("{hosts}127.0.1.1 a.b.example a # gpu-bootstrap\n"));
    apply(&machine, "#cloud-config\nmanage_etc_hosts: true\nhostname: other\n");
    let text = text(&machine, "/etc/hosts");
    assert!(
        text.contains("\n127.0.1.1 other # gpu-bootstrap\n127.0.0.1 localhost\n") && !text.contains("friend"),
        "{text}"
    );
}

#[test]
fn certificates_are_trusted_one_by_one_and_alone_if_it_is_asked_for() {
    let pem = fs::read_to_string(scripted_http::tls().1.path()).unwrap().replace('\r', "");
    let two = format!("{pem}{pem}").trim_end().replace('\n', "\n    ");
    let machine = image()
        .file("/usr/sbin/update-ca-certificates", "")
        .file("/etc/ca-certificates.conf", "# choice\na.crt\n!b.crt\n")
        .file("/usr/local/share/ca-certificates/gpu-bootstrap/07.crt", "old");
    machine.tool("update-ca-certificates", "");
    apply(
        &machine,
        &format!("#cloud-config\nca_certs:\n  remove_defaults: true\n  trusted:\n  - |\n    {two}\n"),
    );
    for name in ["00", "01"] {
        assert_eq!(
            text(&machine, &format!("/usr/local/share/ca-certificates/gpu-bootstrap/{name}.crt")),
            pem
        );
    }
    assert!(!machine.outside("/usr/local/share/ca-certificates/gpu-bootstrap/07.crt").exists());
    assert_eq!(text(&machine, "/etc/ca-certificates.conf"), "# choice\n!a.crt\n!b.crt\n");
    assert_eq!(asked(&machine), ["debconf-set-selections ", "update-ca-certificates --fresh"]);
}

#[test]
fn user_data_check_says_what_each_key_would_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        &file,
        "#cloud-config\noutput: {all: '| tee -a /var/log/x'}\nntp: {}\npower_state: {mode: reboot, delay: 2}\n\
         phone_home: {url: 'https://me:secret@h/secret', post: [fqdn]}\nssh_pwauth: no\npackages: [x]\npackage_reboot_if_required: yes\n",
    )
    .unwrap();
    let ran = ran(binary().args(["user-data", "check"]).arg(file.path()));
    assert_eq!(ran.code, 0, "{ran:#?}");
    for words in [
        "output is not looked at",
        "ssh_pwauth (per-instance): sshd does not take passwords",
        "ntp (per-instance): the client that is there, or else chrony keeps the clock by the distribution's pool (EC2 has a server",
        "package_reboot_if_required (per-instance): reboots before all scripts",
        "phone_home (per-instance): posts fqdn to h\n",
        "power_state (per-instance): reboot in 2 minutes when everything else has ended",
    ] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    assert!(!ran.stdout.contains("secret"));
}
