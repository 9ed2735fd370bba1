//! What a block device holds: by what the kernel knows of it, and by its signatures.

use super::{LABEL, UNFINISHED};
use crate::error::{Code, Error, Result};
use crate::facts::instance_store::BLOCK;
use crate::host::Host;
use crate::host::exec::Call;

/// blkid's exit status where it finds no signature.
const NO_SIGNATURE: i32 = 2;

/// What a device holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// No signature, no partition, no user.
    Blank,
    /// Our file system, whole.
    Ours,
    /// Our file system, of a run that was killed while it was made.
    Unfinished,
    /// A part of our array, which the kernel has as this device; or as none.
    Member {
        /// `md127`
        array: Option<String>,
    },
    /// Something of somebody else's: how to say it after the device's name.
    Foreign(String),
}

/// Looks at a device. Nothing is changed.
pub(super) async fn holds(host: &Host, name: &str) -> Result<Holds> {
    if let Some(why) = used(host, name)? {
        return Ok(Holds::Foreign(why));
    }
    let holders = host.files.list(format!("{BLOCK}/{name}/holders"))?;
    let signatures = signatures(host, name).await?;
    let found = judge(&signatures);
    Ok(match (found, &holders[..]) {
        (found @ (Holds::Ours | Holds::Unfinished | Holds::Blank | Holds::Foreign(_)), []) => found,
        (Holds::Member { .. }, []) => Holds::Member { array: None },
        (Holds::Member { .. }, [one]) if one.starts_with("md") => Holds::Member { array: Some(one.clone()) },
        (_, holders) => Holds::Foreign(format!("is used by {}", holders.join(", "))),
    })
}

/// Partitions and swap, as the kernel has them. What is mounted has a signature, and `mkfs` refuses a device in use.
fn used(host: &Host, name: &str) -> Result<Option<String>> {
    for child in host.files.list(format!("{BLOCK}/{name}"))? {
        if host.files.exists(format!("{BLOCK}/{name}/{child}/partition"))? {
            return Ok(Some(format!("has a partition ({child})")));
        }
    }
    let swaps = host.files.read_text("/proc/swaps")?.unwrap_or_default();
    if swaps.lines().any(|line| line.split_whitespace().next() == Some(&format!("/dev/{name}"))) {
        return Ok(Some("is swap".into()));
    }
    Ok(None)
}

/// `NAME=value` lines of what libblkid finds; none where it finds nothing.
pub(crate) async fn signatures(host: &Host, name: &str) -> Result<String> {
    let device = format!("/dev/{name}");
    if !host.files.exists(&device)? {
        return Err(Error::new(
            Code::CheckUnknown,
            format!("the kernel has {name}, but there is no {device}"),
        ));
    }
    // -p reads the device itself, and no cache of an earlier reading.
    let call = Call::new("blkid").args(["-p", "-o", "export", device.as_str()]);
    let output = host.exec.output(&call).await?;
    match output.status {
        0 => Ok(output.text()),
        NO_SIGNATURE => Ok(String::new()),
        // 8: signatures that contradict each other. Whatever it is, it is not blank.
        status => Err(Error::new(
            Code::CheckUnknown,
            format!("{} ended with {status}, so nobody can tell what {device} holds", call.line()),
        )
        .because(output.tail())),
    }
}

/// The value of a name among them; nothing where it is not there.
pub(crate) fn value<'a>(signatures: &'a str, name: &str) -> &'a str {
    signatures
        .lines()
        .find_map(|l| l.strip_prefix(name).and_then(|l| l.strip_prefix('=')))
        .unwrap_or_default()
}

fn judge(signatures: &str) -> Holds {
    let value = |name: &str| value(signatures, name);
    let (kind, label) = (value("TYPE"), value("LABEL"));
    match (kind, label) {
        _ if signatures.trim().is_empty() => Holds::Blank,
        ("ext4" | "xfs", LABEL) => Holds::Ours,
        ("ext4" | "xfs", UNFINISHED) => Holds::Unfinished,
        // The array's name has its host's before it.
        ("linux_raid_member", label) if label.rsplit(':').next() == Some(LABEL) => {
            Holds::Member { array: None }
        }
        ("", _) => Holds::Foreign(format!("has a partition table ({})", value("PTTYPE"))),
        (kind, "") => Holds::Foreign(format!("has a signature ({kind})")),
        (kind, label) => Holds::Foreign(format!("has a signature ({kind}, called {label:?})")),
    }
}

/// `259:1`, the kernel's number of a device.
pub(crate) fn number(host: &Host, name: &str) -> Result<Option<String>> {
    Ok(host.files.read_text(format!("{BLOCK}/{name}/dev"))?.map(|text| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_our_label_is_ours() {
        let foreign = |why: &str| Holds::Foreign(why.into());
        for (signatures, holds) in [
            ("", Holds::Blank),
            ("DEVNAME=/dev/x\nLABEL=gpu-store\nTYPE=ext4\n", Holds::Ours),
            ("LABEL=gpu-store\nTYPE=xfs\n", Holds::Ours),
            ("LABEL=gpu-making\nTYPE=ext4\n", Holds::Unfinished),
            ("LABEL=any:gpu-store\nTYPE=linux_raid_member\n", Holds::Member { array: None }),
            (
                "LABEL=host:0\nTYPE=linux_raid_member\n",
                foreign("has a signature (linux_raid_member, called \"host:0\")"),
            ),
            ("LABEL=gpu-store\nTYPE=vfat\n", foreign("has a signature (vfat, called \"gpu-store\")")),
            ("LABEL_FATBOOT=gpu-store\nTYPE=ext4\n", foreign("has a signature (ext4)")),
            ("DEVNAME=/dev/x\nPTTYPE=gpt\n", foreign("has a partition table (gpt)")),
        ] {
            assert_eq!(judge(signatures), holds, "{signatures}");
        }
    }
}
