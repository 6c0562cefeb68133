//! Findings of machines captured in guests and namespaces (`tests/machines`), as snapshots: the judgement and the text.
//! Two were made by hand from others, to show what no guest does: `dns-race`, `every-timeout`.

use std::fs;

use super::*;
use crate::doctor::explain;
use crate::view::doctor::{Style, plain};

const MACHINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines");

fn machine(name: &str) -> Facts {
    let text = fs::read_to_string(format!("{MACHINES}/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn names() -> Vec<String> {
    let files = fs::read_dir(MACHINES).unwrap().flatten();
    let mut names: Vec<String> =
        files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect();
    names.sort();
    names
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../../tests/machines/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn findings_of_captured_machines() {
    for name in names() {
        let diagnosis = diagnose(&machine(&name));
        snapshot(&format!("{name}.findings"), &serde_json::to_string_pretty(&diagnosis).unwrap());
    }
}

#[test]
fn text_about_captured_machines() {
    for name in names() {
        let diagnosis = diagnose(&machine(&name));
        snapshot(&name, &plain(&diagnosis, Style::default()));
        snapshot(&format!("{name}.all"), &plain(&diagnosis, Style { all: true, color: false }));
    }
}

#[test]
fn the_promised_machines_are_there() {
    let names = names();
    for wanted in
        ["healthy", "near-full", "dropping", "absent", "container", "old-kernel", "misleading-counters"]
    {
        assert!(names.iter().any(|name| name == wanted), "{wanted}");
    }
}

#[test]
fn a_quiet_machine_gets_one_line_and_exit_code_0() {
    for name in ["healthy", "absent"] {
        let diagnosis = diagnose(&machine(name));
        assert_eq!(diagnosis.status.exit_code(), 0, "{name}");
        assert_eq!(plain(&diagnosis, Style::default()).lines().count(), 1, "{name}");
    }
}

#[test]
fn every_finding_can_be_explained() {
    for name in names() {
        for finding in diagnose(&machine(&name)).findings {
            assert!(explain::find(finding.id).is_some(), "{}", finding.id);
        }
    }
}

/// The guests run what is printed for these machines, so a remedy that none of them shows would run nowhere.
#[test]
fn these_machines_print_every_remedy() {
    use std::collections::BTreeSet;
    let printed: BTreeSet<&str> = names()
        .iter()
        .flat_map(|name| diagnose(&machine(name)).findings)
        .flat_map(|finding| finding.remedies)
        .map(|remedy| remedy.id)
        .collect();
    assert_eq!(printed, crate::doctor::remedies::IDS.into());
}

#[test]
fn every_command_can_be_undone_and_has_its_price() {
    for name in names() {
        for remedy in diagnose(&machine(&name)).findings.iter().flat_map(|finding| &finding.remedies) {
            assert!(!remedy.price.is_empty(), "{name}: {}", remedy.what);
            assert!(remedy.commands.is_empty() || !remedy.undo.is_empty(), "{name}: {}", remedy.what);
        }
    }
}

/// Where nothing was counted nothing may be claimed.
#[test]
fn nothing_known_is_not_ok() {
    let facts = Facts { conntrack: Presence::Module, ..Facts::default() };
    assert_eq!(diagnose(&facts).status, Status::Unknown);
    let hidden = Facts { namespaces: vec![Namespace::default()], ..facts };
    assert_eq!(diagnose(&hidden).status, Status::Unknown);
}

/// A table of which only count and limit are known.
fn filled(count: u64, max: u64) -> Facts {
    let sysctls =
        [("nf_conntrack_max".to_owned(), max), ("nf_conntrack_buckets".to_owned(), max.next_power_of_two())];
    let namespace = Namespace {
        netns: 1,
        name: "init".into(),
        own: true,
        count: Some(count),
        count_after: Some(count),
        limit_writable: true,
        sysctls: sysctls.into(),
        ..Namespace::default()
    };
    Facts { conntrack: Presence::Module, memory: 16 << 30, namespaces: vec![namespace], ..Facts::default() }
}

#[test]
fn severity_follows_occupation() {
    for (count, status) in [
        (0, Status::Ok),
        (79_999, Status::Ok),
        (80_000, Status::Warning),
        (94_999, Status::Warning),
        (95_000, Status::Critical),
        (100_000, Status::Critical),
    ] {
        assert_eq!(diagnose(&filled(count, 100_000)).status, status, "{count}");
    }
}

#[test]
fn no_limit_is_never_full() {
    assert_eq!(diagnose(&filled(100_000, 0)).status, Status::Ok);
}

#[test]
fn the_forecast_keeps_quiet_where_it_would_mislead() {
    let growing = |before: u64, after: u64| {
        let mut facts = filled(before, 100_000);
        facts.namespaces[0].count_after = Some(after);
        facts.live.around_s = 3.0;
        diagnose(&facts).findings.iter().any(|finding| finding.id == "table-filling")
    };
    assert!(growing(55_000, 58_000), "full in 42 s");
    assert!(!growing(10_000, 13_000), "far from full: it levels off");
    assert!(!growing(55_000, 55_010), "noise");
    assert!(!growing(60_000, 55_000), "shrinks");
}

#[test]
fn the_advice_never_eats_the_memory() {
    let mut facts = filled(95_000, 100_000);
    let raised = |facts: &Facts| crate::doctor::remedies::limit::recommended(facts, &facts.namespaces[0]);
    assert_eq!(raised(&facts), Some(262_144));
    facts.memory = 1 << 29;
    assert_eq!(raised(&facts), Some(131_072), "an eighth of 512 MiB");
    facts.memory = 1 << 28;
    assert_eq!(raised(&facts), None);
}

/// Many NAT hosts have seen it: a full table yesterday, room again since somebody raised the limit.
#[test]
fn the_past_alone_is_no_alarm() {
    use crate::doctor::facts::KernelLog;
    let past = |count: u64, last_s: u64| {
        let mut facts = filled(count, 100_000);
        facts.log = Some(KernelLog { lines: 3, last_s: Some(last_s), whole: true });
        let diagnosis = diagnose(&facts);
        diagnosis.findings.iter().find(|finding| finding.id == "table-was-full").map(|finding| finding.status)
    };
    assert_eq!(past(10_000, 60), Some(Status::Ok));
    assert_eq!(past(60_000, 60), Some(Status::Warning));
    assert_eq!(past(60_000, 200_000), Some(Status::Ok));
}
