//! What NCCL and libfabric are told on this machine: for login shells, and for services (`EnvironmentFile=`). Each variable has
//! its reason beside it. Sources: aws-ofi-nccl, `doc/efa-env-var.md`; awsome-distributed-training; NCCL's documentation.
//!
//! Not set, though often seen: `FI_EFA_USE_DEVICE_RDMA` (libfabric 1.18 and later decide themselves), `FI_EFA_FORK_SAFE` (the
//! plugin sets it), `NCCL_PROTO`, `NCCL_BUFFSIZE`, `NCCL_MIN_CHANNELS` (their defaults are better), `RDMAV_*`.

use std::fmt::Write as _;

/// Where login shells find the variables.
pub const PROFILE: &str = "/etc/profile.d/gpu-bootstrap-nccl.sh";
/// Where services find them.
pub const ENVIRONMENT: &str = "/etc/default/gpu-bootstrap-nccl";

struct Variable {
    name: &'static str,
    value: &'static str,
    why: &'static str,
    /// Only with EFA.
    efa: bool,
}

const VARIABLES: [Variable; 3] = [
    Variable {
        name: "NCCL_SOCKET_IFNAME",
        value: "^lo,docker,veth",
        why: "The loopback and interfaces of containers reach no other machine; NCCL chooses among the rest.",
        efa: false,
    },
    Variable {
        name: "FI_PROVIDER",
        value: "efa",
        why: "libfabric uses EFA, or fails; without this a broken EFA becomes slow TCP without a word.",
        efa: true,
    },
    Variable {
        name: "FI_EFA_USE_HUGE_PAGE",
        value: "0",
        why: "With huge pages, forked data loaders (PyTorch's) fail with \"Cannot allocate memory\"; none need be reserved.",
        efa: true,
    },
];

fn variables(efa: bool) -> impl Iterator<Item = &'static Variable> {
    VARIABLES.iter().filter(move |v| efa || !v.efa)
}

/// The script for `/etc/profile.d`. What a user has set before stays.
pub(super) fn profile(efa: bool) -> String {
    let mut text = String::from(
        "# Written by gpu-bootstrap: what NCCL is told on this machine (docs/distributed.md).\n",
    );
    for Variable { name, value, why, .. } in variables(efa) {
        let _ = writeln!(text, "# {why}\nexport {name}=\"${{{name}-{value}}}\""); // a String takes everything
    }
    text
}

/// The file for `EnvironmentFile=`.
pub(super) fn environment(efa: bool) -> String {
    let mut text = format!(
        "# Written by gpu-bootstrap: what NCCL is told on this machine. In a service:\n#   EnvironmentFile=-{ENVIRONMENT}\n"
    );
    if efa {
        text.push_str(
            "#   LimitMEMLOCK=infinity\n# (EFA pins memory; /etc/security/limits.d is for logins only.)\n",
        );
    }
    for Variable { name, value, why, .. } in variables(efa) {
        let _ = writeln!(text, "# {why}\n{name}={value}");
    }
    text
}

/// The file for `/etc/security/limits.d`, as EFA's own package sets it.
pub(super) fn limits() -> String {
    "# Written by gpu-bootstrap: EFA pins the memory that it sends from.\n\
     * soft memlock unlimited\n* hard memlock unlimited\nroot soft memlock unlimited\nroot hard memlock unlimited\n"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_profile_and_keeps_what_was_set() {
        let show = "echo $NCCL_SOCKET_IFNAME:$FI_PROVIDER:$FI_EFA_USE_HUGE_PAGE";
        let run = |script: &str| {
            let output =
                std::process::Command::new("sh").env_clear().args(["-eu", "-c", script]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&format!("{}{show}", profile(true))), "^lo,docker,veth:efa:0\n");
        let before = format!("NCCL_SOCKET_IFNAME=ens5 FI_PROVIDER=\n{}{show}", profile(true));
        assert_eq!(run(&before), "ens5::0\n");
        assert!(!profile(false).contains("FI_") && !environment(false).contains("MEMLOCK"));
    }

    #[test]
    fn a_service_gets_plain_lines() {
        for line in environment(true).lines().filter(|l| !l.starts_with('#')) {
            let (name, value) = line.split_once('=').unwrap();
            assert!(
                name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') && !value.contains(['"', ' ', '$']),
                "{line}"
            );
        }
        assert_eq!(environment(true).lines().filter(|l| !l.starts_with('#')).count(), 3);
    }
}
