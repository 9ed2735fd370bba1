//! `systemctl start` of our own unit from inside the run that this unit started, by a package's script or a custom command.
//! systemd adds it to the job that is under way, so that it waits for the run, and the run for it. Such a `systemctl` is
//! ended: what it asks for is happening.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;

/// Such a script is rare, and waits so much longer at most; looking takes a millisecond.
const LOOK: Duration = Duration::from_secs(5);

/// Looks for it as long as the run goes on.
pub async fn watch(host: &Host) -> Infallible {
    let own = cgroup(host, "self");
    let Some(unit) = own.as_deref().and_then(unit).filter(|_| host.files.is_machine()) else {
        return pending().await;
    };
    loop {
        tokio::time::sleep(LOOK).await;
        // Processes end while we look.
        let processes = host.files.list("/proc").unwrap_or_default();
        for pid in processes.iter().filter_map(|name| name.parse().ok()) {
            if waits(host, pid, unit) && cgroup(host, &pid.to_string()) == own {
                tracing::warn!(
                    "a program of this run started {unit}, whose start is this run, and waited for it; it was ended: use \
                     `systemctl start --no-block` there (process {pid})"
                );
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // it may be gone by now
            }
        }
    }
}

fn cgroup(host: &Host, process: &str) -> Option<String> {
    host.files.read_text(format!("/proc/{process}/cgroup")).ok().flatten()
}

/// The service to which a process belongs; `None` where somebody started it by hand.
fn unit(cgroup: &str) -> Option<&str> {
    let (_, name) = cgroup.lines().last()?.rsplit_once('/')?;
    name.ends_with(".service").then_some(name)
}

fn waits(host: &Host, pid: i32, unit: &str) -> bool {
    let line = host.files.read(format!("/proc/{pid}/cmdline")).ok().flatten().unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    waits_for(&line.split_terminator('\0').collect::<Vec<_>>(), unit)
}

/// Whether this command line is a `systemctl` that starts the unit and waits for it. `restart` is none: it ends the run.
fn waits_for(line: &[&str], unit: &str) -> bool {
    let Some((program, args)) = line.split_first() else { return false };
    let (options, words): (Vec<&str>, Vec<&str>) = args.iter().partition(|arg| arg.starts_with('-'));
    let Some((verb, units)) = words.split_first() else { return false };
    let starts = match *verb {
        "start" => true,
        "enable" | "reenable" => options.contains(&"--now"),
        _ => false,
    };
    let is_own = |name: &&str| *name == unit || Some(*name) == unit.strip_suffix(".service");
    program.rsplit('/').next() == Some("systemctl")
        && starts
        && !options.contains(&"--no-block")
        && units.iter().any(is_own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_its_own_unit_is_known() {
        for (line, waits) in [
            ("systemctl start gpu-bootstrap.service", true),
            ("/usr/bin/systemctl --quiet start other.service gpu-bootstrap", true),
            ("/bin/systemctl enable --now gpu-bootstrap.service", true),
            ("systemctl enable gpu-bootstrap.service", false),
            ("systemctl start --no-block gpu-bootstrap.service", false),
            ("systemctl restart gpu-bootstrap.service", false),
            ("systemctl start other.service", false),
            ("systemctl start gpu-bootstrap-rsa.service", false),
            ("sh start gpu-bootstrap.service", false),
            ("systemctl", false),
            ("", false),
        ] {
            let line: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(waits_for(&line, "gpu-bootstrap.service"), waits, "{line:?}");
        }
    }

    #[test]
    fn only_what_a_unit_started_has_one() {
        assert_eq!(unit("0::/system.slice/gpu-bootstrap.service\n"), Some("gpu-bootstrap.service"));
        assert_eq!(
            unit("1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n"),
            Some("a.service")
        );
        for by_hand in ["0::/user.slice/user-1000.slice/session-3.scope\n", "0::/\n", ""] {
            assert_eq!(unit(by_hand), None, "{by_hand}");
        }
    }
}
