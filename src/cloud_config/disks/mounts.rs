//! `mounts`, `mount_default_fields` and `swap`: lines of `/etc/fstab`, by cloud-init's rules. Lines with its mark are replaced,
//! all others stay as they are. Every line of ours has `nofail`: a disk that is missing must not stop a boot.

use super::super::read::Reader;
use super::devices::{Aliases, Name};
use super::swap::{self, Swap};
use crate::yaml::{Node, Value};

/// What cloud-init marks its lines with, and reads as its own.
const MARK: &str = "comment=cloudconfig";
const FIELDS: usize = 6;
/// Directories without which nothing could be mounted, or that the kernel fills.
const TAKEN: [&str; 11] =
    ["/", "/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"];

/// What is to be mounted, and the swap file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounts {
    pub(super) entries: Vec<Entry>,
    pub(super) swap: Option<Swap>,
}

/// A line of fstab whose device is still to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Name,
    /// `none`, or where.
    pub(super) place: String,
    pub(super) kind: String,
    pub(super) options: String,
    frequency: String,
    pass: String,
}

/// What the keys say; `None` where they ask for nothing.
pub(super) fn read(
    reader: &mut Reader,
    [mounts, defaults, swap]: [Option<&Node>; 3],
    aliases: &Aliases,
) -> Option<Mounts> {
    let defaults = default_fields(reader, defaults);
    let mut entries: Vec<Entry> = Vec::new();
    for node in mounts.and_then(|node| reader.list("mounts", node)).unwrap_or_default() {
        match entry(reader, node, &defaults, aliases) {
            Some(Wanted::Entry(entry)) => entries.push(entry),
            Some(Wanted::Nowhere(name)) => {
                entries.retain(|earlier| !name.as_ref().is_some_and(|name| name.is_same(&earlier.name)));
            }
            None => {}
        }
    }
    let swap = swap.and_then(|node| swap::read(reader, node));
    (!entries.is_empty() || swap.is_some()).then_some(Mounts { entries, swap })
}

type Fields = [Option<String>; FIELDS];

fn default_fields(reader: &mut Reader, node: Option<&Node>) -> Fields {
    // cloud-init's own wait for the network and for cloud-init.service besides, which is not here.
    let own = [None, None, Some("auto"), Some("defaults,nofail"), Some("0"), Some("2")];
    let own = own.map(|field| field.map(str::to_owned));
    let Some(node) = node else { return own };
    let Some(nodes) = reader.list("mount_default_fields", node) else { return own };
    if nodes.len() != FIELDS {
        reader.wrong(
            node.at,
            "mount_default_fields takes six fields: device, place, type, options, dump and pass",
        );
        return own;
    }
    let mut fields = nodes.iter().map(|node| field(reader, "mount_default_fields", node));
    std::array::from_fn(|_| fields.next().flatten())
}

/// A text, or a number as it stands; `None` where nothing stands.
fn field(reader: &mut Reader, key: &str, node: &Node) -> Option<String> {
    match &node.value {
        Value::Null => None,
        Value::Int(number) => Some(number.to_string()),
        _ => reader.line(key, node),
    }
}

enum Wanted {
    Entry(Entry),
    /// A device that is to be mounted nowhere: it takes earlier entries back.
    Nowhere(Option<Name>),
}

fn entry(reader: &mut Reader, node: &Node, defaults: &Fields, aliases: &Aliases) -> Option<Wanted> {
    let Value::List(nodes) = &node.value else {
        reader.wrong(
            node.at,
            format!("mounts: an entry is a list of up to six fields, and this is {}", node.kind()),
        );
        return None;
    };
    if nodes.is_empty() || nodes.len() > FIELDS {
        reader.wrong(
            node.at,
            "mounts: an entry has one to six fields: device, place, type, options, dump and pass",
        );
        return None;
    }
    let problems = reader.problems.len();
    let mut given = nodes.iter().map(|node| field(reader, "mounts", node));
    let fields: Fields = std::array::from_fn(|at| given.next().flatten().or_else(|| defaults[at].clone()));
    if reader.problems.len() > problems {
        return None;
    }
    let [device, place, kind, options, frequency, pass] = fields;
    let Some(device) = device else {
        reader.wrong(node.at, "mounts: an entry needs a device as its first field");
        return None;
    };
    let name = Name::parse(&device, aliases);
    let Some(place) = place else { return Some(Wanted::Nowhere(name.ok())) };
    let name = name.map_err(|why| reader.wrong(node.at, format!("mounts: {why}"))).ok()?;
    let kind = kind.unwrap_or_else(|| "auto".into());
    let is_swap = kind == "swap";
    if let Some(why) = wrong_place(&place, is_swap) {
        reader.wrong(node.at, format!("mounts: {place:?} {why}"));
        return None;
    }
    let [frequency, pass] = [frequency, pass].map(|number| number.unwrap_or_else(|| "0".into()));
    if [&frequency, &pass]
        .iter()
        .any(|number| number.is_empty() || number.bytes().any(|b| !b.is_ascii_digit()))
    {
        reader.wrong(
            node.at,
            format!("mounts: the last two fields are numbers, and these are {frequency:?} and {pass:?}"),
        );
        return None;
    }
    let options = unfailing(&options.unwrap_or_default());
    Some(Wanted::Entry(Entry { name, place, kind, options, frequency, pass }))
}

fn wrong_place(place: &str, is_swap: bool) -> Option<&'static str> {
    if is_swap || place == "none" {
        return None;
    }
    if !place.starts_with('/') || place.split('/').any(|part| part == ".." || part == ".") {
        return Some("is no place to mount something at: it takes an absolute path");
    }
    let place = if place == "/" { place } else { place.trim_end_matches('/') };
    let is_taken = TAKEN.contains(&place) || place.is_empty();
    is_taken.then_some("is the system's: a machine with something else there does not boot")
}

/// Options with which a boot goes on without the device.
fn unfailing(options: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in options.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let word = match word {
            "nobootwait" => "nofail", // Upstart's word for it, which mount(8) does not know
            // A unit of cloud-init's, without which systemd would not mount it.
            _ if word.contains("=cloud-init") || word.contains("=cloud-config") => continue,
            word => word,
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if words.is_empty() {
        words.push("defaults");
    }
    if !words.contains(&"nofail") && !words.contains(&"noauto") {
        words.push("nofail");
    }
    words.join(",")
}

impl Mounts {
    /// What `user-data check` says.
    pub(in crate::cloud_config) fn sentence(&self) -> String {
        let entry = |entry: &Entry| {
            let place = if entry.kind == "swap" { "used as swap" } else { entry.place.as_str() };
            let words = if entry.kind == "swap" { "is" } else { "is mounted at" };
            format!("{} {words} {place} ({})", entry.name.text, entry.options)
        };
        self.entries
            .iter()
            .map(entry)
            .chain(self.swap.as_ref().map(Swap::sentence))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl Entry {
    /// The line for a device.
    pub(super) fn line(&self, source: &str) -> String {
        let Self { place, kind, options, frequency, pass, .. } = self;
        line([source, place, kind, options, frequency, pass])
    }
}

/// The line of the swap file.
pub(super) fn swap_line(file: &str) -> String {
    line([file, "none", "swap", "sw", "0", "0"])
}

fn line([source, place, kind, options, frequency, pass]: [&str; FIELDS]) -> String {
    // fstab(5): blanks divide fields.
    let field = |text: &str| text.replace(' ', "\\040").replace('\t', "\\011");
    [&field(source), &field(place), &field(kind), &format!("{},{MARK}", field(options)), frequency, pass]
        .join("\t")
}

/// What stands in fstab besides lines of cloud-init's and ours.
pub(super) fn foreign(fstab: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = fstab.split(|b| *b == b'\n').collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines.retain(|line| !has_ours(line));
    lines
}

/// Whether a line of cloud-init's or ours is in it.
pub(super) fn has_ours(fstab: &[u8]) -> bool {
    fstab.windows(MARK.len()).any(|word| word == MARK.as_bytes())
}

/// The swap file of an earlier call, among the lines that are ours.
pub(super) fn kept_swap<'a>(fstab: &'a [u8], file: &str) -> Option<&'a [u8]> {
    let wanted = swap_line(file);
    fstab.split(|b| *b == b'\n').find(|line| *line == wanted.as_bytes())
}

/// Whether a line is about this device.
pub(super) fn names(line: &[u8], source: &str) -> bool {
    line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()) == Some(source.as_bytes())
}

/// fstab as a whole.
pub(super) fn joined(foreign: &[&[u8]], ours: &[String]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in foreign.iter().copied().chain(ours.iter().map(String::as_bytes)) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn read_from(mounts: &str, defaults: Option<&str>) -> (Vec<String>, Vec<String>) {
        let mounts = parse(mounts).unwrap();
        let defaults = defaults.and_then(|text| parse(text).unwrap());
        let mut reader = Reader::default();
        let found = read(&mut reader, [mounts.as_ref(), defaults.as_ref(), None], &Aliases::new());
        let lines = found
            .map(|m| m.entries.iter().map(|entry| entry.line(&entry.name.text)).collect())
            .unwrap_or_default();
        (lines, reader.problems.into_iter().map(|problem| problem.text).collect())
    }

    fn lines(mounts: &str) -> Vec<String> {
        let (lines, problems) = read_from(mounts, None);
        assert_eq!(problems, Vec::<String>::new());
        lines
    }

    #[test]
    fn what_is_not_said_comes_from_the_defaults() {
        assert_eq!(lines("[[sdf, /data]]"), ["sdf\t/data\tauto\tdefaults,nofail,comment=cloudconfig\t0\t2"]);
        assert_eq!(
            lines("[[LABEL=x y, '/a b', ext4, 'noatime,nofail', 1, '0']]"),
            ["LABEL=x\\040y\t/a\\040b\text4\tnoatime,nofail,comment=cloudconfig\t1\t0"]
        );
        let (found, _) =
            read_from("[[sdf, /d], [sdg, null, ~, ro]]", Some("[~, /e, xfs, defaults, '0', '0']"));
        assert_eq!(
            found,
            [
                "sdf\t/d\txfs\tdefaults,nofail,comment=cloudconfig\t0\t0",
                "sdg\t/e\txfs\tro,nofail,comment=cloudconfig\t0\t0"
            ]
        );
    }

    #[test]
    fn nothing_takes_back_what_was_said_before() {
        assert_eq!(lines("[[ephemeral0, null], [swap, null], [sdf]]"), Vec::<String>::new());
        assert_eq!(lines("[[sdf, /a], [sdg, /b], [/dev/sdf, null]]").len(), 1);
        assert_eq!(lines("[[sdf, null], [sdf, /a]]").len(), 1);
        assert_eq!(lines("[[sdf.1, /a], [sdf.2, null]]").len(), 1);
    }

    #[test]
    fn no_line_stops_a_boot() {
        for (given, made) in [
            ("", "defaults,nofail"),
            ("defaults", "defaults,nofail"),
            ("noauto", "noauto"),
            ("defaults,nobootwait", "defaults,nofail"),
            ("nofail, ro ,nofail", "nofail,ro"),
            ("defaults,nofail,x-systemd.requires=cloud-init.service,_netdev", "defaults,nofail,_netdev"),
        ] {
            assert_eq!(unfailing(given), made, "{given}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (mounts, why) in [
            ("[[sdf, /]]", "does not boot"),
            ("[[sdf, /usr/]]", "does not boot"),
            ("[[sdf, //]]", "does not boot"),
            ("[[sdf, data]]", "absolute path"),
            ("[[sdf, /a/../etc]]", "absolute path"),
            ("[[ebs0, /a]]", "name the device as it was attached"),
            ("[[sdf, /a, ext4, ro, 0, x]]", "numbers"),
            ("[[sdf, /a, ext4, yes]]", "put it in quotes"),
            ("[sdf]", "list of up to six fields"),
            ("[[1, 2, 3, 4, 5, 6, 7]]", "one to six fields"),
            ("[[null, /a]]", "needs a device"),
            ("[[sdf, \"/a\\n/dev/sdg\"]]", "control characters"),
        ] {
            let (found, problems) = read_from(mounts, None);
            assert!(
                found.is_empty() && problems.len() == 1 && problems[0].contains(why),
                "{mounts}: {problems:?}"
            );
        }
        assert!(read_from("[]", Some("[a, b]")).1[0].contains("six fields"));
    }

    #[test]
    fn lines_of_others_stay_byte_by_byte() {
        let fstab = b"# \xff static\nUUID=1 / ext4 errors=remount-ro 0 1\n\n/dev/sdb\t/mnt\tauto\tnofail,comment=cloudconfig\t0\t2\nx";
        let kept = foreign(fstab);
        assert_eq!(kept.len(), 4);
        assert_eq!(
            joined(&kept, &[swap_line("/s")]),
            b"# \xff static\nUUID=1 / ext4 errors=remount-ro 0 1\n\nx\n/s\tnone\tswap\tsw,comment=cloudconfig\t0\t0\n"
        );
        assert!(names(b"  UUID=1 / ext4", "UUID=1") && !names(b"# UUID=1", "UUID=1"));
        assert_eq!(foreign(b""), Vec::<&[u8]>::new());
    }
}
