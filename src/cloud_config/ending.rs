//! The last things: `final_message`, and `power_state`, which is acted on when everything else has ended.

use std::time::Duration;

use super::read::Reader;
use super::template;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::yaml::{Node, Value};

const KEYS: [&str; 5] = ["mode", "delay", "message", "timeout", "condition"];
/// Modes, and what shutdown(8) calls them.
const MODES: [(&str, &str); 3] = [("halt", "-H"), ("poweroff", "-P"), ("reboot", "-r")];
/// What a final message may name.
const NAMES: [&str; 8] =
    ["version", "timestamp", "datasource", "uptime", "VERSION", "TIMESTAMP", "DATASOURCE", "UPTIME"];
/// cloud-init's own: how long whatever goes on is waited for, seconds.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// A condition looks at something; it is no work.
const CONDITION_LIMIT: Duration = Duration::from_mins(10);
const SHUTDOWN_LIMIT: Duration = Duration::from_mins(1);

/// `power_state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PowerState {
    /// Of [`MODES`].
    mode: &'static str,
    /// `now`, or `+` and minutes.
    delay: String,
    message: Option<String>,
    /// How long reports on their way are waited for.
    pub(crate) timeout: Duration,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Is(bool),
    /// A line of shell.
    Line(String),
    /// A program with its arguments.
    Program(Vec<String>),
}

pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<PowerState> {
    let map = reader.map("power_state", node, &KEYS)?;
    let modes = MODES.map(|(mode, _)| mode).join(", ");
    let Some(node) = map.get("mode") else {
        reader.wrong(map.at, format!("power_state needs mode: {modes}"));
        return None;
    };
    let mode = reader.line("power_state.mode", node)?;
    let known = MODES.iter().find(|(known, _)| *known == mode).map(|(known, _)| *known);
    if known.is_none() {
        reader.wrong(node.at, format!("power_state.mode is one of {modes}, and this is {mode:?}"));
    }
    let message = map.get("message").and_then(|node| {
        let message = reader.line("power_state.message", node)?;
        if message.starts_with('-') {
            reader.wrong(
                node.at,
                "power_state.message may not begin with -, which shutdown takes for an option",
            );
        }
        Some(message).filter(|message| !message.is_empty())
    });
    Some(PowerState {
        mode: known?,
        delay: map.get("delay").map_or(Some("now".into()), |node| delay(reader, node))?,
        message,
        timeout: map.get("timeout").map_or(Some(TIMEOUT), |node| timeout(reader, node))?,
        condition: map.get("condition").map_or(Some(Condition::Is(true)), |node| condition(reader, node))?,
    })
}

/// `now`, or minutes.
fn delay(reader: &mut Reader, node: &Node) -> Option<String> {
    let minutes = match &node.value {
        Value::Text(text) if text == "now" => return Some("now".into()),
        Value::Text(text) => text.strip_prefix('+').unwrap_or(text).parse::<u32>().ok(),
        Value::Int(number) => u32::try_from(*number).ok(),
        _ => None,
    };
    if minutes.is_none() {
        reader.wrong(node.at, "power_state.delay takes now, or a number of minutes such as +5");
    }
    minutes.map(|minutes| format!("+{minutes}"))
}

fn timeout(reader: &mut Reader, node: &Node) -> Option<Duration> {
    let seconds = match &node.value {
        Value::Int(number) => u32::try_from(*number).ok().map(f64::from),
        Value::Float(number) => Some(*number),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    let limit = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    if limit.is_none() {
        reader.wrong(node.at, "power_state.timeout takes a number of seconds");
    }
    limit
}

fn condition(reader: &mut Reader, node: &Node) -> Option<Condition> {
    match &node.value {
        Value::Bool(is) => Some(Condition::Is(*is)),
        Value::Text(line) if !line.trim().is_empty() => Some(Condition::Line(line.clone())),
        Value::List(words) if !words.is_empty() => {
            let words = words.iter().map(Node::python).collect::<Option<Vec<_>>>();
            if words.is_none() {
                reader.wrong(node.at, "power_state.condition: an argument is a text");
            }
            words.map(Condition::Program)
        }
        _ => {
            let what = "true, false, a line of shell or a list of a program and its arguments";
            reader.wrong(node.at, format!("power_state.condition takes {what}"));
            None
        }
    }
}

impl PowerState {
    /// What `user-data check` says.
    pub(super) fn sentence(&self) -> String {
        let delay =
            if self.delay == "now" { String::new() } else { format!(" in {} minutes", &self.delay[1..]) };
        let condition = match &self.condition {
            Condition::Is(true) => "",
            Condition::Is(false) => ", but its condition is false",
            Condition::Line(_) | Condition::Program(_) => ", if its condition is met",
        };
        format!("{}{delay} when everything else has ended{condition}", self.mode)
    }

    /// Whether the machine comes back by itself.
    pub(crate) fn is_reboot(&self) -> bool {
        self.mode == "reboot"
    }

    /// Whether it is to be done: as cloud-init has it, 0 means yes and 1 means no. Any other status is an error.
    pub(crate) async fn is_met(&self, host: &Host) -> Result<bool> {
        let call = match &self.condition {
            Condition::Is(is) => return Ok(*is),
            Condition::Line(line) => Call::new("sh").args(["-c", line]),
            Condition::Program(words) => Call::new(&words[0]).args(words[1..].iter().cloned()),
        };
        let output = host.exec.output(&call.limit(CONDITION_LIMIT)).await?;
        match output.status {
            0 => Ok(true),
            1 => Ok(false),
            status => {
                let message =
                    format!("power_state: the condition ended with status {status}, so that nothing is done");
                Err(Error::new(Code::UserDataFailed, message)
                    .with_hint("0 says yes, 1 says no; `sudo shutdown` does by hand what was not done")
                    .because(output.tail()))
            }
        }
    }

    /// Asks shutdown(8) for it.
    pub(crate) async fn shut_down(&self, host: &Host) -> Result<String> {
        let flag = MODES.iter().find(|(mode, _)| *mode == self.mode).map_or("-P", |(_, flag)| *flag);
        let words = [flag, &self.delay].into_iter().chain(self.message.as_deref());
        host.exec.run(&Call::new("shutdown").args(words).limit(SHUTDOWN_LIMIT)).await.map_err(|e| {
            Error::new(Code::UserDataFailed, format!("power_state: the {} was not accepted", self.mode))
                .with_hint("`systemctl list-jobs` and `shutdown --show` say what goes on")
                .because(e)
        })?;
        Ok(self.sentence())
    }
}

/// `final_message`, its names filled in later.
pub(super) fn read_message(reader: &mut Reader, node: &Node) -> Option<String> {
    let text = reader.text("final_message", node)?;
    if let Some(why) = template::problem(&text, &NAMES) {
        reader.wrong(node.at, format!("final_message: {why}"));
        return None;
    }
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The message as it is now.
pub(crate) fn message(host: &Host, text: &str) -> Result<String> {
    let uptime = host.files.read_text("/proc/uptime")?.unwrap_or_default();
    let uptime = uptime.split_whitespace().next().unwrap_or("unknown").to_owned();
    let now = host.clock.now().to_zoned(jiff::tz::TimeZone::UTC);
    // RFC 2822, as date(1) and mail have it.
    let timestamp = now.strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
    let value = |name: &str| {
        Some(match name.to_lowercase().as_str() {
            "version" => format!("gpu-bootstrap {}", env!("CARGO_PKG_VERSION")),
            "timestamp" => timestamp.clone(),
            "datasource" => "EC2".into(),
            "uptime" => uptime.clone(),
            _ => return None,
        })
    };
    template::fill(text, value)
        .map_err(|why| Error::new(Code::UserDataFailed, format!("final_message: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn power_state(text: &str) -> (Option<PowerState>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, &parse(text).unwrap().unwrap());
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn delays_as_people_write_them() {
        for (written, delay) in
            [("now", "now"), ("+5", "+5"), ("'+5'", "+5"), ("30", "+30"), ("'7'", "+7"), ("0", "+0")]
        {
            let (found, problems) = power_state(&format!("mode: reboot\ndelay: {written}\n"));
            assert_eq!((found.unwrap().delay.as_str(), problems.len()), (delay, 0), "{written}");
        }
        let found =
            power_state("mode: poweroff\ntimeout: 2.5\ncondition: [test, -e, /x]\ndelay: 5\n").0.unwrap();
        assert_eq!(found.timeout, Duration::from_millis(2500));
        assert_eq!(
            found.sentence(),
            "poweroff in 5 minutes when everything else has ended, if its condition is met"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, words) in [
            ("delay: now\n", "1:1 power_state needs mode: halt, poweroff, reboot"),
            ("mode: sleep\n", "1:7 power_state.mode is one of halt, poweroff, reboot"),
            ("mode: halt\ndelay: 12:30pm\n", "2:8 power_state.delay takes now"),
            ("mode: halt\ndelay: -1\n", "2:8 power_state.delay takes now"),
            ("mode: halt\ntimeout: long\n", "2:10 power_state.timeout takes a number"),
            ("mode: halt\ncondition: {}\n", "2:12 power_state.condition takes true"),
            ("mode: halt\nmessage: -c\n", "2:10 power_state.message may not begin with -"),
            ("mode: halt\nwhen: now\n", "2:1 power_state.when is not supported"),
        ] {
            let (_, problems) = power_state(text);
            assert!(problems.iter().any(|p| p.starts_with(words)), "{words}: {problems:?}");
        }
    }

    #[test]
    fn a_final_message_has_its_values() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        host.files.write("/proc/uptime", b"12.34 1.0\n", 0o644).unwrap();
        let text = message(&host, "$version after $UPTIME s by ${datasource} at $timestamp").unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.starts_with(&format!("gpu-bootstrap {version} after 12.34 s by EC2 at ")), "{text}");
        assert!(
            text.ends_with(" +0000") && jiff::fmt::rfc2822::parse(text.split_once(" at ").unwrap().1).is_ok(),
            "{text}"
        );
        let mut reader = Reader::default();
        read_message(&mut reader, &parse("'$hostname is up'").unwrap().unwrap());
        assert!(
            reader.problems[0].text.starts_with("final_message: $hostname is not known; known are $version")
        );
    }
}
