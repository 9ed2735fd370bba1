//! `report --html`: the real binary over scratch roots. The page is one whole document that loads nothing, runs nothing,
//! and shows what others wrote as text.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/json_schema.rs"]
mod json_schema;
#[path = "support/machine.rs"]
mod machine;

use std::fs;

use machine::Machine;
use serde_json::{Value, json};

const RESULT: &str = "/var/lib/gpu-bootstrap/result.json";
const NO_PACKAGES: &str =
    "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n";

/// The last result, which fits its schema.
fn result(machine: &Machine) -> Value {
    let result = serde_json::from_str(&machine.read(RESULT)).unwrap();
    json_schema::validate(&schema(), &result);
    result
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../packaging/status.schema.json")).unwrap()
}

#[test]
fn the_schema_refuses_what_does_not_belong() {
    let machine = Machine::debian12();
    machine.run(&["run"]);
    let mut result = result(&machine);
    result["error"]["hint"] = 5.into();
    assert!(std::panic::catch_unwind(|| json_schema::validate(&schema(), &result)).is_err());
}

fn page(machine: &Machine) -> String {
    let ran = machine.run(&["report", "--html"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let page = ran.stdout;
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"), "{page}");
    assert_well_formed(&page);
    for outside in ["src=", "href=", "url(", "@import", "<script", "<link", "<iframe", "<img"] {
        let found = page.find(outside);
        assert!(found.is_none(), "{outside} in the page: {}", &page[found.unwrap()..]);
    }
    assert!(page.contains("default-src 'none'"), "{page}");
    page
}

/// Every element that is opened is closed, in order.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let tag = tag.split_once('>').unwrap_or_else(|| panic!("a tag without end: {tag}")).0;
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "what is closed"),
            None if VOID.contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn before_the_first_run_there_is_nothing_to_report() {
    let ran = Machine::debian12().run(&["report", "--html"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (7, ""), "{ran:?}");
    assert!(ran.stderr.contains("[nothing-to-resume]"), "{}", ran.stderr);
    assert_eq!(Machine::debian12().run(&["report"]).code, 2, "no form was named");
}

#[test]
fn a_run_that_failed_is_shown_with_its_reason_and_what_to_do() {
    let machine = Machine::debian12();
    assert_eq!(machine.run(&["run"]).code, 3);
    let result = result(&machine);
    let page = page(&machine);
    for words in [
        "The run failed",
        "exit code 3",
        "no-gpu",
        "There is no NVIDIA GPU on this machine",
        "operating system",
    ] {
        assert!(page.contains(words), "{words:?} is not in\n{page}");
    }
    let hint = result["error"]["hint"].as_str().unwrap();
    assert!(page.contains(&hint.replace('"', "&quot;").replace('\'', "&#39;")), "{hint:?} is not in\n{page}");
}

#[test]
fn a_run_that_found_everything_as_wanted_says_so_and_when_each_step_began_is_kept() {
    let machine = Machine::debian12().t4().file("/etc/gpu-bootstrap/10-idle.toml", NO_PACKAGES);
    let ran = machine.run(&["run"]);
    let result = result(&machine);
    for step in result["steps"].as_array().unwrap().iter().filter(|s| s["state"] != "pending") {
        assert!(step["started"].is_string(), "{ran:?}\n{step:#}");
    }
    let page = page(&machine);
    for step in result["steps"].as_array().unwrap() {
        assert!(page.contains(step["title"].as_str().unwrap()), "{step:#} is not in\n{page}");
    }
}

#[test]
fn what_others_wrote_is_text() {
    let machine = Machine::debian12();
    machine.run(&["run"]);
    let hostile =
        "</title></style></pre><script>alert(1)</script><img src=x onerror=alert(2)>\u{202e}\u{1b}[31m";
    let step = json!({"id": hostile, "title": hostile, "state": hostile, "changed": true, "evidence": [hostile], "seconds": 1e300});
    let finding = json!({"check": hostile, "verdict": hostile, "evidence": hostile});
    let gpu = json!({"index": 7, "name": hostile, "pci": hostile, "verdict": "fail", "findings": [finding]});
    let status = json!({
        "gpus": {"found": 1, "expected": null, "result": hostile, "gpus": [gpu], "machine": [finding]},
        "state": "finished", "outcome": hostile, "instance_id": hostile, "instance_type": hostile, "boot_id": hostile,
        "plan_digest": hostile, "agent_version": hostile, "choices": [hostile], "notices": [hostile], "reports": [hostile],
        "started": "2026-11-26T10:00:00Z", "seconds": 0.0, "steps": [step], "reboot": hostile,
        "error": {"step": hostile, "code": hostile, "message": hostile, "causes": [hostile], "hint": hostile},
    });
    for path in [RESULT, "/run/gpu-bootstrap/status.json"] {
        fs::write(machine.root().join(path.trim_start_matches('/')), status.to_string()).unwrap();
    }
    let ran = machine.run(&["report", "--html"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_well_formed(&ran.stdout);
    assert!(!ran.stdout.contains("<script") && !ran.stdout.contains("<img"), "{}", ran.stdout);
    assert!(!ran.stdout.contains('\u{1b}') && !ran.stdout.contains('\u{202e}'), "{}", ran.stdout);
    assert!(ran.stdout.matches("&lt;script&gt;").count() >= 17, "{}", ran.stdout);
    // There is no GPU to look at here, and the run saw one.
    assert!(ran.stdout.contains("As the run saw them") && ran.stdout.contains(">GPU 7<"), "{}", ran.stdout);
}
