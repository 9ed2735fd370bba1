//! deviceQuery's text against the source of NVIDIA's sample: its format strings, read from Debian's package at test
//! time, each of them in the order of the source.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/archive.rs"]
mod archive;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::fs;

use simulated_driver::Simulated;

const SAMPLE: &str =
    "usr/share/doc/nvidia-cuda-toolkit/examples/Samples/1_Utilities/deviceQuery/deviceQuery.cpp";

/// The strings of C source, adjacent ones joined, escapes resolved.
fn strings(source: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut joined = false;
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        } else if c == '"' {
            let (text, after) = string(&rest[1..]);
            match all.last_mut().filter(|_| joined) {
                Some(last) => last.push_str(&text),
                None => all.push(text),
            }
            joined = true;
            rest = after;
        } else {
            joined &= c.is_whitespace();
            rest = &rest[c.len_utf8()..];
        }
    }
    all
}

/// A string up to its closing quote, and what stands behind it.
fn string(source: &str) -> (String, &str) {
    let mut text = String::new();
    let mut chars = source.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, &source[at + 1..]),
            '\\' => match chars.next().unwrap().1 {
                'n' => text.push('\n'),
                other => text.push(other),
            },
            c => text.push(c),
        }
    }
    panic!("a string without an end");
}

/// The literal parts of a format: what stands between conversions such as `%03d`.
fn literal_parts(format: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        parts.push(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'l' | 'z')).unwrap();
        rest = &after[end + 1..];
    }
    parts.push(rest);
    parts
}

fn is_printed_by(line: &str, format: &str) -> bool {
    let parts = literal_parts(format);
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let mut rest = match line.strip_prefix(first) {
        Some(rest) if parts.len() > 1 => rest,
        Some(rest) => return rest.is_empty(),
        None => return false,
    };
    for part in &parts[1..parts.len() - 1] {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[test]
fn every_line_of_the_sample_is_printed_in_its_order_and_format() {
    let (_work, unpacked) = archive::unpacked("bookworm", "contrib", &["nvidia-cuda-samples"]);
    let source = fs::read_to_string(unpacked.join(SAMPLE)).unwrap();
    let (_, main) = source.split_once("int main(").unwrap();
    let machine = Simulated::with(2, "H100", "")
        .file("/usr/local/cuda/version.json", "{\"cuda\":{\"name\":\"CUDA SDK\",\"version\":\"11.8.89\"}}");
    let out = machine.query(&["--text"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();

    let mut formats: Vec<String> = Vec::new();
    for format in strings(main) {
        let is_line = format.starts_with("  ") || format.starts_with("> ") || format.contains("Device %d:");
        let is_line = is_line || format.starts_with("Detected") || format.starts_with("Result = PASS");
        // Windows has a line of its own; variants for other compilers repeat a line.
        let format = format.trim_matches('\n').to_owned();
        if is_line && !format.contains("WDDM") && !formats.contains(&format) {
            formats.push(format);
        }
    }
    assert!(formats.len() >= 38, "only {} lines were found in the sample", formats.len());
    let mut lines = text.lines();
    for format in &formats {
        assert!(
            lines.any(|l| is_printed_by(l, format)),
            "{format:?} is missing, or out of order, in\n{text}"
        );
    }
    for mode in strings(main).iter().filter(|s| s.contains("::cudaSetDevice()")).enumerate() {
        let machine = Simulated::with(1, "T4", &format!("compute_mode={}", mode.0));
        let out = machine.query(&["--text", "--compute", "never"]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.lines().any(|l| l == format!("     < {} >", mode.1)), "{} is not in\n{text}", mode.1);
    }
    println!("{} lines of the sample compared", formats.len());
}
