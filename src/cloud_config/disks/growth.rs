//! `growpart` and `resize_rootfs`. The root grows in the early part of the boot ([`crate::instance`]), which asks here whether
//! it may; other partitions grow when the rest of the user-data is acted on, at every boot.

use super::super::read::Reader;
use super::devices::{Aliases, Name, is_partition, kernel_name};
use crate::error::{Code, Error, Result};
use crate::host::{Host, mounts};
use crate::instance::grow;
use crate::yaml::{Node, Value};

/// What may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Growth {
    /// The root's partition.
    pub(crate) partition: bool,
    /// The root's file system.
    pub(crate) file_system: bool,
    /// Even if the image says by a file that its partition is not to grow.
    pub(crate) even_if_disabled: bool,
    /// Other partitions: devices, or where they are mounted.
    others: Vec<String>,
}

impl Default for Growth {
    fn default() -> Self {
        Self { partition: true, file_system: true, even_if_disabled: false, others: Vec::new() }
    }
}

/// What the two keys say.
pub(super) fn read(reader: &mut Reader, growpart: Option<&Node>, resize: Option<&Node>) -> Growth {
    let mut growth = Growth::default();
    if let Some(node) = resize {
        // In the background is where it happens in any case: nothing but the GPUs waits for it.
        let is_background = matches!(&node.value, Value::Text(text) if text == "noblock");
        growth.file_system = is_background || reader.switch("resize_rootfs", node).unwrap_or(true);
    }
    let map = growpart
        .and_then(|node| reader.map("growpart", node, &["mode", "devices", "ignore_growroot_disabled"]));
    let Some(map) = map else { return growth };
    if let Some(node) = map.get("ignore_growroot_disabled") {
        growth.even_if_disabled = reader.switch("growpart.ignore_growroot_disabled", node) == Some(true);
    }
    let is_on = map.get("mode").is_none_or(|node| mode(reader, node));
    let devices = map.get("devices").and_then(|node| reader.lines("growpart.devices", node));
    if let Some((node, devices)) = map.get("devices").zip(devices) {
        growth.partition = devices.iter().any(|device| device == "/");
        growth.others = devices.into_iter().filter(|device| device != "/").collect();
        if let Some(odd) = growth.others.iter().find(|device| !device.starts_with('/')) {
            reader.wrong(
                node.at,
                format!("growpart.devices takes paths in /dev and mount points, and {odd:?} is neither"),
            );
        }
    }
    if !is_on {
        growth.partition = false;
        growth.others.clear();
    }
    growth
}

fn mode(reader: &mut Reader, node: &Node) -> bool {
    match &node.value {
        Value::Text(text) if ["auto", "growpart"].contains(&text.as_str()) => true,
        Value::Bool(false) => false,
        Value::Text(text) if text == "off" => false,
        _ => {
            reader.wrong(node.at, "growpart.mode takes auto, growpart or off");
            true
        }
    }
}

impl Growth {
    /// What `user-data check` says.
    pub(in crate::cloud_config) fn sentence(&self) -> String {
        let root = match (self.partition, self.file_system) {
            (true, true) => "the root grows early in the first boot",
            (true, false) => "the root's partition grows early in the first boot, its file system does not",
            (false, true) => "the root's partition stays as it is, its file system fills it",
            (false, false) => "the root stays as it is",
        };
        let others = self.others.iter().map(|other| format!("; the partition {other} grows at every boot"));
        std::iter::once(root.to_owned()).chain(others).collect()
    }

    /// Grows the other partitions.
    pub(in crate::cloud_config) async fn apply(&self, host: &Host) -> Result<String> {
        let mut told = vec![Self { others: Vec::new(), ..self.clone() }.sentence()];
        let mut failure = None;
        for other in &self.others {
            match grow_one(host, other).await {
                Ok(text) => told.push(text),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(told.join("; ")), Err)
    }
}

async fn grow_one(host: &Host, path: &str) -> Result<String> {
    let missing = || {
        Error::new(Code::UserDataFailed, format!("growpart: {path} is no partition that is there"))
            .with_hint("name a partition in /dev, or where one is mounted; `lsblk` shows them")
    };
    let kernel = if path.starts_with("/dev/") {
        let name = Name::parse(path, &Aliases::new()).map_err(|why| Error::new(Code::UserDataFailed, why))?;
        let block = match name.partition {
            Some(_) => name.source(host).await?,
            None => name.disk(host).await?,
        };
        block.map(|block| block.kernel)
    } else {
        match mounts::at(&host.files, path)? {
            Some(mount) => kernel_name(&host.files, &mount.source)?,
            None => None,
        }
    };
    let kernel = kernel.ok_or_else(missing)?;
    if !is_partition(&host.files, &kernel)? {
        return Err(missing());
    }
    let changed = grow::partition_to_its_end(host, &kernel).await?;
    Ok(format!("{path} {}", if changed { "has grown" } else { "has all that is behind it" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn growth(growpart: &str, resize: &str) -> (Growth, Vec<String>) {
        let (growpart, resize) = (parse(growpart).unwrap(), parse(resize).unwrap());
        let mut reader = Reader::default();
        let growth = read(&mut reader, growpart.as_ref(), resize.as_ref());
        (growth, reader.problems.into_iter().map(|problem| problem.text).collect())
    }

    #[test]
    fn what_may_grow() {
        for (growpart, resize, partition, file_system, others) in [
            ("", "", true, true, 0),
            ("{mode: auto}", "noblock", true, true, 0),
            ("{mode: off}", "", false, true, 0),
            ("{mode: 'off', devices: [/, /dev/sdf1]}", "false", false, false, 0),
            ("{devices: [/]}", "no", true, false, 0),
            ("{devices: [/dev/sdf1, /data]}", "true", false, true, 2),
            ("{devices: []}", "true", false, true, 0),
        ] {
            let (found, problems) = growth(growpart, resize);
            assert_eq!(problems, Vec::<String>::new(), "{growpart}");
            let seen = (found.partition, found.file_system, found.others.len());
            assert_eq!(seen, (partition, file_system, others), "{growpart} {resize}");
        }
        assert!(growth("{ignore_growroot_disabled: true}", "").0.even_if_disabled);
    }

    #[test]
    fn what_is_not_done_is_an_error() {
        for (growpart, why) in [
            ("{mode: gpart}", "auto, growpart or off"),
            ("{devices: [sdf1]}", "neither"),
            ("{device: /}", "growpart.device is not supported"),
        ] {
            let problems = growth(growpart, "").1;
            assert!(problems.len() == 1 && problems[0].contains(why), "{growpart}: {problems:?}");
        }
        assert!(growth("", "later").1[0].contains("true or false"));
    }
}
