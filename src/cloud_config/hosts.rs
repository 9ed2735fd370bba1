//! `manage_etc_hosts`: the machine's name in `/etc/hosts`.

use super::Instance;
use super::read::Reader;
use super::system::Hostname;
use crate::error::Result;
use crate::host::Host;
use crate::instance::hostname as name;
use crate::yaml::{Node, Value};

/// How much of the file is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All of it.
    Whole,
    /// The line of 127.0.1.1.
    Line,
}

/// What `/etc/hosts` is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hosts {
    extent: Extent,
    /// The name that the user-data gives.
    name: Option<Hostname>,
}

/// `None` where the file is to stay as it is.
pub(super) fn read(reader: &mut Reader, node: &Node, name: Option<Hostname>) -> Option<Hosts> {
    let extent = match &node.value {
        Value::Text(text) if text == "localhost" => Extent::Line,
        // The same as true, in an old spelling.
        Value::Text(text) if text == "template" => Extent::Whole,
        _ => reader.switch("manage_etc_hosts", node)?.then_some(Extent::Whole)?,
    };
    Some(Hosts { extent, name })
}

impl Hosts {
    pub(super) fn sentence(&self) -> String {
        match self.extent {
            Extent::Whole => "/etc/hosts is written whole, with the machine's name".into(),
            Extent::Line => "the machine's name in /etc/hosts".into(),
        }
    }

    pub(super) async fn apply(&self, host: &Host, instance: &Instance<'_>) -> Result<String> {
        let name = match self.name.as_ref().and_then(Hostname::name) {
            Some(name) => name.clone(),
            None => instance.name(&host.files).await?,
        };
        match self.extent {
            Extent::Whole => name::write_hosts(&host.files, &name)?,
            Extent::Line => name::add_to_hosts(&host.files, &name)?,
        }
        Ok(format!("/etc/hosts knows {}", name.full))
    }
}
