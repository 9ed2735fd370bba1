//! What `lspci` prints. The agent itself runs `lspci -Dnnmm`; the forms that people paste into reports (`-nn`,
//! `-n`, `-v`, none) are read as well, so that a report can be turned into a test.
//!
//! Forms with ids (`-n`, `-nn`, `-mm` with either) are read by their ids alone. Plain `lspci` has names only:
//! class and vendor are then told by the few names in `CLASS_NAMES` and `VENDOR_NAMES`, and the device id
//! stays unknown (unless `lspci` knew no name either, and printed it).

use super::pci::{Address, Function, hex, known_subsystem};

/// Names of pci.ids for the classes that decide something here.
const CLASS_NAMES: &[(&str, u16)] = &[
    ("VGA compatible controller", 0x0300),
    ("3D controller", 0x0302),
    ("Display controller", 0x0380),
    ("Bridge", 0x0680),
];

/// Names of pci.ids for the vendors that decide something here.
const VENDOR_NAMES: &[(&str, u16)] = &[
    ("NVIDIA Corporation", 0x10de),
    ("Advanced Micro Devices, Inc. [AMD/ATI]", 0x1002),
    ("Amazon.com, Inc.", 0x1d0f),
    ("Cirrus Logic", 0x1013),
    ("Habana Labs Ltd.", 0x1da3),
];

/// Reads any of the forms; lines that describe no function (and are not the details of one) are left out.
pub fn parse(text: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    for line in text.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(function) = functions.last_mut() {
                read_detail(function, line.trim());
            }
            continue;
        }
        functions.extend(parse_line(line));
    }
    functions
}

fn parse_line(line: &str) -> Option<Function> {
    let (address, rest) = line.trim_end().split_once(' ')?;
    let address = Address::parse(address)?;
    if rest.starts_with('"') { Some(machine_form(address, rest)) } else { human_form(address, rest) }
}

/// `"class" "vendor" "device" [-rREV] [-pPROGIF] "subsystem vendor" "subsystem device"`
fn machine_form(address: Address, rest: &str) -> Function {
    let fields = quoted(rest);
    let id = |n: usize| fields.get(n).and_then(|f| trailing_id(f));
    Function {
        address,
        class: id(0),
        vendor: id(1),
        device: id(2),
        subsystem: id(4).and_then(known_subsystem),
    }
}

/// `Class name [class]: Vendor and device name [vendor:device] (rev a1)`, `class: vendor:device (rev a1)`, or
/// names alone.
fn human_form(address: Address, rest: &str) -> Option<Function> {
    let (class, what) = rest.split_once(": ")?;
    let ids = last_ids(what);
    Some(Function {
        address,
        class: trailing_id(class).or_else(|| by_name(CLASS_NAMES, |name| class == name)),
        vendor: ids.map(|i| i.0).or_else(|| by_name(VENDOR_NAMES, |name| what.starts_with(name))),
        device: ids.map(|i| i.1).or_else(|| unnamed_device(what)),
        subsystem: None,
    })
}

/// Of the indented details that `-v` adds, the one that tells fractional GPUs apart.
fn read_detail(function: &mut Function, line: &str) {
    if let Some(what) = line.strip_prefix("Subsystem: ") {
        let id = last_ids(what).map(|i| i.1).or_else(|| unnamed_device(what));
        function.subsystem = id.and_then(known_subsystem);
    }
}

/// The quoted fields of a `-mm` line, with `\"` and `\\` undone; options between them are passed over.
fn quoted(text: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut chars = text.chars();
    while chars.by_ref().any(|c| c == '"') {
        let mut field = String::new();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => field.extend(chars.next()),
                c => field.push(c),
            }
        }
        fields.push(field);
    }
    fields
}

/// `0302`, or the `[0302]` at the end of `3D controller [0302]`.
fn trailing_id(text: &str) -> Option<u16> {
    let text = text.trim_end();
    let bracketed = text.strip_suffix(']').and_then(|t| t.rsplit_once('[')).map(|(_, id)| id);
    four_digits(bracketed.unwrap_or(text))
}

/// The last `[10de:2330]` of a line (names hold brackets, too), or the `10de:2330` it begins with.
fn last_ids(text: &str) -> Option<(u16, u16)> {
    let bracketed = text.rsplit('[').find_map(|part| part.split_once(']').and_then(|(ids, _)| pair(ids)));
    bracketed.or_else(|| {
        let text = text.strip_prefix("Device ").unwrap_or(text);
        pair(text.split_ascii_whitespace().next()?)
    })
}

/// The id in `Amazon.com, Inc. Device 1111`: what `lspci` prints for a device that pci.ids does not name.
fn unnamed_device(text: &str) -> Option<u16> {
    let (_, id) = text.rsplit_once("Device ")?;
    four_digits(id.split_ascii_whitespace().next()?)
}

fn pair(text: &str) -> Option<(u16, u16)> {
    let (vendor, device) = text.split_once(':')?;
    Some((four_digits(vendor)?, four_digits(device)?))
}

fn four_digits(text: &str) -> Option<u16> {
    if text.len() == 4 { u16::try_from(hex(text)?).ok() } else { None }
}

fn by_name(table: &[(&str, u16)], fits: impl Fn(&str) -> bool) -> Option<u16> {
    table.iter().find(|(name, _)| fits(name)).map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Function {
        let [function] = parse(text).try_into().unwrap();
        function
    }

    #[test]
    fn machine_form_with_and_without_options_and_subsystem() {
        let f = one(
            r#"0000:53:00.0 "3D controller [0302]" "NVIDIA Corporation [10de]" "GH100[H100 SXM5 80GB] [2330]" -ra1 -p00 "NVIDIA Corporation [10de]" "Device [16c1]""#,
        );
        assert_eq!(
            (f.class, f.vendor, f.device, f.subsystem),
            (Some(0x0302), Some(0x10de), Some(0x2330), Some(0x16c1))
        );
        let f = one(
            r#"0000:00:03.0 "VGA compatible controller [0300]" "Amazon.com, Inc. [1d0f]" "Device [1111]" -p00 "" """#,
        );
        assert_eq!(
            (f.class, f.vendor, f.device, f.subsystem),
            (Some(0x0300), Some(0x1d0f), Some(0x1111), None)
        );
    }

    #[test]
    fn machine_form_with_numbers_only_and_escaped_quotes() {
        let f = one(r#"10000:e1:00.0 "0302" "10de" "20f1" -ra1 "10de" "145f""#);
        assert_eq!(f.address.to_string(), "10000:e1:00.0");
        assert_eq!(
            (f.class, f.vendor, f.device, f.subsystem),
            (Some(0x0302), Some(0x10de), Some(0x20f1), Some(0x145f))
        );
        let f = one(r#"00:00.0 "a \"b\" [0300]" "v\\ [10de]" "d [118a]""#);
        assert_eq!((f.class, f.vendor, f.device), (Some(0x0300), Some(0x10de), Some(0x118a)));
    }

    #[test]
    fn details_belong_to_the_function_above_them() {
        let f = one(
            "00:1e.0 3D controller [0302]: NVIDIA Corporation AD104GL [L4] [10de:27b8] (rev a1)\n\tSubsystem: NVIDIA Corporation Device [10de:1733]\n\tFlags: fast devsel\n",
        );
        assert_eq!((f.device, f.subsystem), (Some(0x27b8), Some(0x1733)));
        assert!(parse("\tSubsystem: NVIDIA Corporation Device [10de:1733]\n").is_empty());
    }

    #[test]
    fn noise_is_left_out() {
        assert!(
            parse("pcilib: Cannot open /proc/bus/pci\nlspci: Cannot find any working access method.\n\n")
                .is_empty()
        );
    }
}
