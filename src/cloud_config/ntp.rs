//! `ntp`: who keeps the clock, and by which servers. The client's package is installed by apt where it is missing, so that
//! this comes after the GPUs.

use super::read::Reader;
use super::system;
use crate::error::{Code, Error, Result};
use crate::facts::os;
use crate::host::Host;
use crate::host::files::Files;
use crate::yaml::{Node, Value};

const KEYS: [&str; 4] = ["enabled", "ntp_client", "servers", "pools"];
/// Amazon's own, on every instance and without a way out.
const AMAZON: &str = "169.254.169.123";
const HEADER: &str =
    "# Written by gpu-bootstrap from user-data (ntp), whole: changes are lost on the next new instance.\n";
const TIMESYNCD_FILE: &str = "/etc/systemd/timesyncd.conf.d/gpu-bootstrap.conf";
const CHRONY_FILE: &str = "/etc/chrony/chrony.conf";
/// cloud-init's own settings besides servers.
const CHRONY: &str = "keyfile /etc/chrony/chrony.keys
driftfile /var/lib/chrony/chrony.drift
logdir /var/log/chrony
maxupdateskew 100.0
rtcsync
makestep 1 3
";
const NTP: &str = "statistics loopstats peerstats clockstats
filegen loopstats file loopstats type day enable
filegen peerstats file peerstats type day enable
filegen clockstats file clockstats type day enable
restrict -4 default kod notrap nomodify nopeer noquery limited
restrict -6 default kod notrap nomodify nopeer noquery limited
restrict 127.0.0.1
restrict ::1
restrict source notrap nomodify noquery
";

/// A program that keeps the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Chrony,
    Timesyncd,
    Ntp,
}

/// Names in cloud-init's order of preference, what shows that the client is there, and its package.
const CLIENTS: [(Client, &str, &[&str], &str); 3] = [
    (Client::Chrony, "chrony", &["/usr/sbin/chronyd"], "chrony"),
    (
        Client::Timesyncd,
        "systemd-timesyncd",
        &["/lib/systemd/systemd-timesyncd", "/usr/lib/systemd/systemd-timesyncd"],
        "systemd-timesyncd",
    ),
    (Client::Ntp, "ntp", &["/usr/sbin/ntpd"], "ntp"),
];

/// What `ntp` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ntp {
    enabled: bool,
    /// `None` is `auto`.
    client: Option<Client>,
    servers: Vec<String>,
    pools: Vec<String>,
}

pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<Ntp> {
    if let Value::Map(entries) = &node.value
        && let Some((name, _)) = entries.iter().find(|(name, _)| name.python().as_deref() == Some("config"))
    {
        reader.wrong(name.at, "ntp.config is not supported: write the client's own files by write_files");
        return None;
    }
    let map = reader.map("ntp", node, &KEYS)?;
    let names = |reader: &mut Reader, key: &str| {
        let label = format!("ntp.{key}");
        let Some(node) = map.get(key) else { return Vec::new() };
        let lines = reader.lines(&label, node).unwrap_or_default();
        for name in lines.iter().filter(|name| !is_server(name)) {
            reader.wrong(node.at, format!("{label}: {name:?} is no name or address of a server"));
        }
        lines
    };
    let client = match map.get("ntp_client") {
        None => None,
        Some(node) => {
            let wanted = reader.line("ntp.ntp_client", node)?;
            let known = CLIENTS.iter().find(|(_, name, ..)| *name == wanted).map(|(client, ..)| *client);
            if known.is_none() && wanted != "auto" {
                let supported = CLIENTS.map(|(_, name, ..)| name).join(", ");
                reader.wrong(
                    node.at,
                    format!("ntp.ntp_client {wanted:?} is not supported; supported are auto, {supported}"),
                );
            }
            known
        }
    };
    Some(Ntp {
        enabled: map.get("enabled").is_none_or(|node| reader.switch("ntp.enabled", node) != Some(false)),
        client,
        servers: names(reader, "servers"),
        pools: names(reader, "pools"),
    })
}

/// A word that means nothing but itself in the files of all three clients.
fn is_server(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_".contains(&b))
}

impl Ntp {
    /// What `user-data check` says, and what is told afterwards.
    pub(super) fn sentence(&self) -> String {
        if !self.enabled {
            return "the clock is kept as the image has it".into();
        }
        let client = self.client.map_or("the client that is there, or else chrony", |client| client.row().1);
        let names: Vec<_> = self.servers.iter().chain(&self.pools).map(String::as_str).collect();
        let by = if names.is_empty() { "the distribution's pool".into() } else { names.join(", ") };
        let note = if names.contains(&AMAZON) {
            String::new()
        } else {
            format!(" (EC2 has a server of its own at {AMAZON}, which needs no way out)")
        };
        format!("{client} keeps the clock by {by}{note}")
    }
}

impl Client {
    fn row(self) -> (&'static [&'static str], &'static str, &'static str) {
        let [chrony, timesyncd, ntp] = CLIENTS;
        let (_, name, programs, package) = match self {
            Self::Chrony => chrony,
            Self::Timesyncd => timesyncd,
            Self::Ntp => ntp,
        };
        (programs, name, package)
    }

    fn is_there(self, files: &Files) -> Result<bool> {
        for program in self.row().0 {
            if files.exists(program)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Its file, with these servers in it, and its unit.
    fn settings(
        self,
        files: &Files,
        servers: &[String],
        pools: &[String],
    ) -> Result<(&'static str, String, &'static str)> {
        let lines = |kind: &str, names: &[String]| {
            names.iter().map(|name| format!("{kind} {name} iburst\n")).collect::<Vec<_>>().concat()
        };
        let lines = lines("pool", pools) + &lines("server", servers);
        Ok(match self {
            Self::Timesyncd => {
                let names = [servers, pools].concat().join(" ");
                let time = if names.is_empty() { String::new() } else { format!("NTP={names}\n") };
                (TIMESYNCD_FILE, format!("{HEADER}[Time]\n{time}"), "systemd-timesyncd")
            }
            Self::Chrony => (CHRONY_FILE, format!("{HEADER}{lines}{CHRONY}"), "chrony"),
            // Debian 12's package ntp is NTPsec.
            Self::Ntp if files.exists("/etc/ntpsec")? => (
                "/etc/ntpsec/ntp.conf",
                format!("{HEADER}driftfile /var/lib/ntpsec/ntp.drift\n{lines}{NTP}"),
                "ntpsec",
            ),
            Self::Ntp => {
                ("/etc/ntp.conf", format!("{HEADER}driftfile /var/lib/ntp/ntp.drift\n{lines}{NTP}"), "ntp")
            }
        })
    }
}

/// Installs what is missing, writes the client's file and lets the client read it.
pub(super) async fn apply(host: &Host, ntp: &Ntp) -> Result<String> {
    if !ntp.enabled {
        return Ok(ntp.sentence());
    }
    let client = chosen(&host.files, ntp)?;
    let (_, name, package) = client.row();
    if !client.is_there(&host.files)? {
        let failed = |e: Error| {
            Error::new(Code::UserDataFailed, format!("ntp: {name} cannot be installed: {}", e.message()))
                .because(e)
        };
        host.apt().update().await.map_err(failed)?;
        host.apt().for_users(&["install"], &[package.to_owned()]).await.map_err(failed)?;
    }
    let mut pools = ntp.pools.clone();
    // A drop-in of timesyncd without servers leaves those of its own file, which are the distribution's.
    if ntp.servers.is_empty() && pools.is_empty() {
        let distribution = os::gather(host).await?.id.value;
        pools = (0..4).map(|number| format!("{number}.{distribution}.pool.ntp.org")).collect();
    }
    let (path, text, unit) = client.settings(&host.files, &ntp.servers, &pools)?;
    let before = host.files.read(path)?;
    if before.as_deref() != Some(text.as_bytes()) {
        // The package's own file stays beside it, under cloud-init's name for it.
        if let Some(before) = before.filter(|before| !before.starts_with(HEADER.as_bytes())) {
            host.files.write(format!("{path}.dist"), &before, 0o644)?;
        }
        host.files.write(path, text.as_bytes(), 0o644)?;
    }
    system::service(host, "reload-or-restart", unit).await?;
    Ok(format!(
        "{name} keeps the clock by {}",
        ntp.servers.iter().chain(&pools).cloned().collect::<Vec<_>>().join(", ")
    ))
}

fn chosen(files: &Files, ntp: &Ntp) -> Result<Client> {
    if let Some(client) = ntp.client {
        return Ok(client);
    }
    for (client, ..) in CLIENTS {
        if client.is_there(files)? {
            return Ok(client);
        }
    }
    Ok(Client::Chrony)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn ntp(text: &str) -> (Option<Ntp>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, &parse(text).unwrap().unwrap());
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn servers_and_pools_stand_in_each_clients_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        let names = |name: &str| vec![name.to_owned()];
        let of = |client: Client| client.settings(&files, &names("a"), &names("b")).unwrap();
        assert_eq!(of(Client::Timesyncd).1, format!("{HEADER}[Time]\nNTP=a b\n"));
        assert!(of(Client::Chrony).1.contains("\npool b iburst\nserver a iburst\nkeyfile "));
        assert_eq!((of(Client::Ntp).0, of(Client::Ntp).2), ("/etc/ntp.conf", "ntp"));
        files.make_dir("/etc/ntpsec", 0o755).unwrap();
        assert_eq!((of(Client::Ntp).0, of(Client::Ntp).2), ("/etc/ntpsec/ntp.conf", "ntpsec"));
    }

    #[test]
    fn the_client_is_the_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        let auto = ntp("{}").0.unwrap();
        assert_eq!(chosen(&files, &auto).unwrap(), Client::Chrony);
        files.write("/usr/sbin/ntpd", b"", 0o755).unwrap();
        assert_eq!(chosen(&files, &auto).unwrap(), Client::Ntp);
        files.write("/lib/systemd/systemd-timesyncd", b"", 0o755).unwrap();
        assert_eq!(chosen(&files, &auto).unwrap(), Client::Timesyncd);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let (_, problems) =
            ntp("ntp_client: ntpdate\nservers: [a, 'b c', -x]\npools: {}\nenabled: perhaps\n");
        for words in [
            "1:13 ntp.ntp_client \"ntpdate\" is not supported; supported are auto, chrony",
            "2:10 ntp.servers: \"b c\" is no name",
            "2:10 ntp.servers: \"-x\" is no name",
            "3:8 ntp.pools takes a text or a list",
            "4:10 ntp.enabled takes true or false",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(words)), "{words}: {problems:#?}");
        }
        assert!(ntp("config: {}").1[0].starts_with("1:1 ntp.config is not supported"));
        assert!(ntp("servers: [169.254.169.123]").0.unwrap().sentence().ends_with("by 169.254.169.123"));
    }
}
