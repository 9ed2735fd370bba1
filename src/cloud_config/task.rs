//! What the keys of `#cloud-config` become: one task for what is done at once, with its name, what it will do as a sentence, and
//! the doing.

use super::apt::{self, Apt};
use super::ca_certs::{self, CaCerts};
use super::disks::{self, Disks, Growth, Mounts};
use super::ending::PowerState;
use super::hosts::Hosts;
use super::instance::Instance;
use super::keys::{self, Keys};
use super::ntp::{self, Ntp};
use super::packages::{self, Packages};
use super::passwords::{self, Passwords};
use super::phone_home::{self, PhoneHome};
use super::sshd;
use super::system::{self, Hostname};
use super::users::{self, Users};
use super::write_files::{self, WantedFile};
use crate::error::Result;
use crate::host::Host;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// A script at every boot, before all else.
    Bootcmd(String),
    /// Files.
    WriteFiles(Vec<WantedFile>),
    /// What grows.
    Growth(Growth),
    /// Partition tables and file systems.
    Disks(Disks),
    /// What is mounted, and swap.
    Mounts(Mounts),
    /// The machine's name.
    Hostname(Hostname),
    /// Groups and users.
    Users(Users),
    /// Kinds of host keys that sshd offers.
    HostKeys(Vec<String>),
    /// The machine's name in `/etc/hosts`.
    Hosts(Hosts),
    /// Certificates that the machine trusts.
    CaCerts(CaCerts),
    /// Keys of the login user.
    Keys(Keys),
    /// The locale of logins.
    Locale(String),
    /// Passwords of users.
    Passwords(Passwords),
    /// Whether sshd takes passwords.
    SshPasswords(bool),
    /// Sources and settings of apt.
    Apt(Apt),
    /// Who keeps the clock.
    Ntp(Ntp),
    /// The time zone.
    Timezone(String),
    /// Package lists of new sources, where no packages are asked for.
    PackageLists,
    /// Packages.
    Packages(Packages),
    /// A reboot, if packages asked for one.
    RebootIfRequired,
    /// Files with `defer`.
    DeferredFiles(Vec<WantedFile>),
    /// A script among the others.
    Runcmd(String),
    /// A form for somebody's server.
    PhoneHome(PhoneHome),
    /// The last word of each boot.
    FinalMessage(String),
    /// The machine goes down.
    PowerState(PowerState),
}

impl Task {
    /// The key that it is known by.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Bootcmd(_) => "bootcmd",
            Self::WriteFiles(_) => "write_files",
            Self::Growth(_) => "growpart",
            Self::Disks(_) => "disk_setup",
            Self::Mounts(_) => "mounts",
            Self::Hostname(_) => "hostname",
            Self::Users(_) => "users",
            Self::HostKeys(_) => "ssh_genkeytypes",
            Self::Hosts(_) => "manage_etc_hosts",
            Self::CaCerts(_) => "ca_certs",
            Self::Keys(_) => "ssh_authorized_keys",
            Self::Locale(_) => "locale",
            Self::Passwords(_) => "chpasswd",
            Self::SshPasswords(_) => "ssh_pwauth",
            Self::Apt(_) => "apt",
            Self::Ntp(_) => "ntp",
            Self::PackageLists => "apt (package lists)",
            Self::RebootIfRequired => "package_reboot_if_required",
            Self::PhoneHome(_) => "phone_home",
            Self::FinalMessage(_) => "final_message",
            Self::PowerState(_) => "power_state",
            Self::Timezone(_) => "timezone",
            Self::Packages(_) => "packages",
            Self::DeferredFiles(_) => "write_files (deferred)",
            Self::Runcmd(_) => "runcmd",
        }
    }

    /// What it will do.
    pub(crate) fn sentence(&self) -> String {
        let count = |script: &str| script.lines().count().saturating_sub(1);
        match self {
            Self::Bootcmd(script) => format!("runs a script of {} lines at every boot", count(script)),
            Self::Runcmd(script) => {
                format!("runs a script of {} lines once for each instance", count(script))
            }
            Self::WriteFiles(files) | Self::DeferredFiles(files) => {
                files.iter().map(WantedFile::sentence).collect::<Vec<_>>().join("; ")
            }
            Self::Growth(growth) => growth.sentence(),
            Self::Disks(disks) => disks.sentence(),
            Self::Mounts(mounts) => mounts.sentence(),
            Self::Hostname(name) => name.sentence(),
            Self::Users(users) => users.sentence(),
            Self::HostKeys(kinds) => sshd::kinds_sentence(kinds),
            Self::Hosts(hosts) => hosts.sentence(),
            Self::CaCerts(certs) => certs.sentence(),
            Self::Keys(keys) => keys.sentence(),
            Self::Passwords(passwords) => passwords.sentence(),
            Self::SshPasswords(is_on) => passwords::pwauth_sentence(*is_on),
            Self::Apt(apt) => apt.sentence(),
            Self::Ntp(ntp) => ntp.sentence(),
            Self::PackageLists => "package lists are updated".into(),
            Self::RebootIfRequired => "reboots before all scripts, if a package asked for it".into(),
            Self::PhoneHome(wanted) => wanted.sentence(),
            Self::FinalMessage(text) => format!("says {text:?} at the end of every boot"),
            Self::PowerState(state) => state.sentence(),
            Self::Locale(locale) => format!("LANG={locale} in /etc/default/locale"),
            Self::Timezone(zone) => format!("the time zone becomes {zone}"),
            Self::Packages(packages) => packages.sentence(),
        }
    }

    /// Whether new package lists are needed afterwards.
    pub(super) fn changes_sources(&self) -> bool {
        matches!(self, Self::Apt(apt) if apt.changes_sources())
    }

    /// Does it; scripts and the end of the boot are the caller's. Returns a sentence.
    pub(crate) async fn apply(&self, host: &Host, instance: &Instance<'_>) -> Result<String> {
        match self {
            Self::WriteFiles(files) | Self::DeferredFiles(files) => write_files::apply(host, files),
            Self::Growth(growth) => growth.apply(host).await,
            Self::Disks(disks) => disks::make(host, disks).await,
            Self::Mounts(mounts) => disks::mount(host, mounts).await,
            Self::Hostname(name) => name.apply(&host.files, instance).await,
            Self::HostKeys(kinds) => sshd::apply_kinds(host, kinds).await,
            Self::Hosts(hosts) => hosts.apply(host, instance).await,
            Self::CaCerts(certs) => ca_certs::apply(host, certs).await,
            Self::Users(users) => users::apply(host, users).await,
            Self::Keys(keys) => keys::apply(&host.files, instance.login_user, keys),
            Self::Passwords(found) => passwords::apply(host, instance.login_user, found).await,
            Self::SshPasswords(is_on) => passwords::apply_pwauth(host, *is_on).await,
            Self::Apt(apt) => apt::apply(host, apt).await,
            Self::Ntp(ntp) => ntp::apply(host, ntp).await,
            Self::PackageLists => apt::update(host).await,
            Self::PhoneHome(wanted) => phone_home::apply(host, instance, wanted).await,
            Self::Locale(locale) => system::apply_locale(host, locale).await,
            Self::Timezone(zone) => system::apply_timezone(&host.files, zone),
            Self::Packages(packages) => packages::apply(host, packages).await,
            Self::Bootcmd(_)
            | Self::Runcmd(_)
            | Self::RebootIfRequired
            | Self::FinalMessage(_)
            | Self::PowerState(_) => Ok(String::new()),
        }
    }
}
