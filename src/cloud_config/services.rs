//! Which keys about services and about the end of a boot become which tasks. [`super::Keys::wishes`] puts them in order.

use super::read::Reader;
use super::{Keys, Task, Wish, apt, ca_certs, ending, hosts, ntp, passwords, phone_home, system};
use crate::yaml::Node;

impl Keys<'_> {
    /// `/etc/hosts` and certificates.
    pub(super) fn name_and_trust(&mut self) -> [Option<Wish>; 2] {
        let hosts = self.read(["manage_etc_hosts", "hostname", "fqdn"], |reader, [node, name, fqdn]| {
            // What is wrong with the name is told of the name.
            let name = system::hostname(&mut Reader::default(), [name, fqdn, None, None]);
            node.and_then(|node| hosts::read(reader, node, name))
        });
        let hosts = hosts.and_then(|(hosts, canonical)| Some(Wish { task: Task::Hosts(hosts?), canonical }));
        [hosts, self.one("ca_certs", ca_certs::read, Task::CaCerts)]
    }

    /// Passwords, and whether sshd takes them.
    pub(super) fn logins(&mut self) -> [Option<Wish>; 2] {
        let passwords = self.read(["chpasswd", "password"], |reader, [list, password]| {
            passwords::read(reader, list, password)
        });
        let passwords =
            passwords.and_then(|(found, canonical)| Some(Wish { task: Task::Passwords(found?), canonical }));
        [passwords, self.one("ssh_pwauth", passwords::read_pwauth, Task::SshPasswords)]
    }

    /// apt and the clock.
    pub(super) fn services(&mut self) -> [Option<Wish>; 2] {
        [self.one("apt", apt::read, Task::Apt), self.one("ntp", ntp::read, Task::Ntp)]
    }

    /// The lists of new sources, where no packages ask for them, and the reboot that packages may want.
    pub(super) fn around_packages(&mut self, apt: Option<&Wish>, with_packages: bool) -> [Option<Wish>; 2] {
        let lists = apt.filter(|wish| !with_packages && wish.task.changes_sources());
        let lists = lists.map(|wish| Wish { task: Task::PackageLists, canonical: wish.canonical.clone() });
        let is_on = |reader: &mut Reader, node: &Node| {
            reader.switch("package_reboot_if_required", node)?.then_some(())
        };
        let reboot = self.one("package_reboot_if_required", is_on, |()| Task::RebootIfRequired);
        [lists, reboot.filter(|_| with_packages)]
    }

    /// What comes when everything else has ended.
    pub(super) fn last(&mut self) -> [Option<Wish>; 3] {
        [
            self.one("phone_home", phone_home::read, Task::PhoneHome),
            self.one("final_message", ending::read_message, Task::FinalMessage),
            self.one("power_state", ending::read, Task::PowerState),
        ]
    }

    /// Keys that ask for what is so in any case.
    pub(super) fn notes(&mut self) -> Vec<String> {
        self.read(["ssh_deletekeys"], |reader, [node]| {
            if let Some(node) = node
                && reader.switch("ssh_deletekeys", node) == Some(false)
            {
                let why = "an instance has host keys of its own before user-data is acted on";
                reader.wrong(node.at, format!("ssh_deletekeys: false is not supported: {why}"));
            }
        });
        let log = "/var/log/gpu-bootstrap/user-data.log";
        let output = self
            .get("output")
            .map(|_| format!("output is not looked at: what scripts say goes to the journal and to {log}"));
        output.into_iter().collect()
    }
}
