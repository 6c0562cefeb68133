//! Findings of machines captured in guests and namespaces (`tests/machines`), as snapshots: the judgement and the text.
//! Eight were made by hand from others: `dns-race`, `every-timeout`, `expectations`, `kube-proxy`, `limit-not-applied`,
//! `refused-anyway`, `snat-exhausted`, `stale-nat`.

use std::fs;

use super::*;
use crate::doctor::explain;
use crate::doctor::facts::{ListingState, Module};
use crate::view::doctor::{Style, plain};

const MACHINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines");

pub(super) fn machine(name: &str) -> Facts {
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
fn source_nat_is_exhausted_only_where_flows_failed_and_hardly_a_port_is_left() {
    let found = |change: fn(&mut Namespace)| {
        let mut facts = machine("snat-exhausted");
        change(&mut facts.namespaces[0]);
        let findings = diagnose(&facts).findings;
        let has = |id| findings.iter().any(|finding| finding.id == id);
        (has("snat-exhausted"), has("insert-failed"))
    };
    assert_eq!(found(|_| {}), (true, false));
    assert_eq!(found(|namespace| namespace.table.translated[0].used = 7), (false, true));
    let no_failure = |namespace: &mut Namespace| {
        for stats in [&mut namespace.stats, &mut namespace.stats_after] {
            stats.insert("insert_failed".into(), 0);
        }
    };
    assert_eq!(found(no_failure), (false, false));
}

#[test]
fn entries_are_stale_where_no_rule_leads_or_no_neighbour_answers() {
    let found = |change: fn(&mut Facts)| {
        let mut facts = machine("stale-nat");
        change(&mut facts);
        let finding = diagnose(&facts).findings.into_iter().find(|finding| finding.id == "stale-nat");
        finding.map(|finding| finding.what)
    };
    let to = "10.9.0.77:53, ";
    assert!(found(|_| {}).unwrap().contains(&format!("{to}which no rule names")));
    assert_eq!(found(|facts| facts.namespaces[0].table.stale[0].unanswered = 9), None, "they were answered");
    let ruled = |facts: &mut Facts| facts.namespaces[0].table.stale[0].ruled = true;
    assert_eq!(found(ruled), None);
    let silent = |facts: &mut Facts| {
        let stale = &mut facts.namespaces[0].table.stale[0];
        (stale.ruled, stale.silent, stale.unanswered) = (true, true, 0);
    };
    assert!(found(silent).unwrap().contains(&format!("{to}a neighbour that does not answer")));
    let openvswitch = |facts: &mut Facts| {
        facts.modules.push(Module { name: "openvswitch".into(), ..Module::default() });
    };
    assert_eq!(found(openvswitch), None, "it translates without rules");
}

#[test]
fn a_machine_with_namespaces_left_out_is_not_ok() {
    let mut facts = machine("healthy");
    facts.namespaces_left_out = 76;
    let diagnosis = diagnose(&facts);
    assert_eq!(diagnosis.status, Status::Unknown);
    assert!(diagnosis.verdict.starts_with("76 of "), "{}", diagnosis.verdict);
}

#[test]
fn rules_that_were_not_read_are_told_and_those_counted_are_no_trouble() {
    let mut facts = machine("healthy");
    facts.namespaces[0].nft.left_out = 29_000;
    let found = |facts: &Facts| {
        let diagnosis = diagnose(facts);
        let finding = diagnosis.findings.into_iter().find(|finding| finding.id == "rules-left-out");
        (diagnosis.status, finding.unwrap())
    };
    let (status, finding) = found(&facts);
    assert_eq!((status, finding.status), (Status::Ok, Status::Ok));
    assert!(finding.evidence["counted"].value.to_string().contains("29000 counted only"));
    facts.namespaces[0].nft.state = ListingState::Unreadable("nft: it took too long".into());
    facts.namespaces[0].nft.cut = true;
    let (status, finding) = found(&facts);
    assert_eq!((status, finding.status), (Status::Unknown, Status::Unknown));
    assert!(
        finding.what.contains("init") && finding.what.contains("nft: it took too long"),
        "{}",
        finding.what
    );
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
            // Entries come again by themselves, from the next packets.
            let nothing_to_undo = remedy.commands.is_empty() || remedy.id == "delete-entries";
            assert!(nothing_to_undo || !remedy.undo.is_empty(), "{name}: {}", remedy.what);
        }
    }
}

#[test]
fn buckets_are_promised_where_a_command_sets_them() {
    let mut promised = 0;
    for name in names() {
        for remedy in diagnose(&machine(&name)).findings.iter().flat_map(|finding| &finding.remedies) {
            let commands: Vec<String> = remedy.commands.iter().map(ToString::to_string).collect();
            let sets = commands.iter().any(|command| command.contains("nf_conntrack_buckets="));
            let says = remedy.what.contains("buckets to ");
            assert!(!says || sets, "{name}: {} by {commands:?}", remedy.what);
            promised += u64::from(says);
        }
    }
    assert!(promised > 0);
}

#[test]
fn counts_of_a_hostile_capture_have_an_end() {
    let mut facts = machine("misleading-counters");
    let namespace = &mut facts.namespaces[0];
    namespace.count = Some(u64::MAX);
    namespace.stats.insert("chainlength".into(), 0);
    namespace.stats_after.insert("chainlength".into(), 5);
    namespace.stats.insert("insert_failed".into(), 0);
    namespace.stats_after.insert("insert_failed".into(), 5);
    let again = namespace.clone();
    facts.namespaces.push(again);
    assert!(!diagnose(&facts).findings.is_empty());
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

/// A burst that is over is a warning until somebody has dealt with it.
#[test]
fn the_past_is_told_until_it_is_dealt_with() {
    use crate::doctor::facts::KernelLog;
    let mut facts = filled(10_000, 100_000);
    facts.namespaces[0].stats = [("drop".to_owned(), 1_913), ("early_drop".to_owned(), 1_187)].into();
    let found = |facts: &Facts, id: &str| diagnose(facts).findings.iter().any(|finding| finding.id == id);
    assert!(found(&facts, "table-overflowed"), "the log may not be read");
    facts.log = Some(KernelLog { lines: 3, last_s: Some(60), whole: true, ..KernelLog::default() });
    let diagnosis = diagnose(&facts);
    assert_eq!(diagnosis.status, Status::Warning);
    let limit = diagnosis.findings[0].evidence["recommended_limit"].value.as_u64();
    assert_eq!((diagnosis.findings[0].id, limit), ("table-overflowed", Some(262_144)));

    let dealt = |written: Option<u64>, since: Option<u64>| {
        let mut facts = facts.clone();
        facts.written_ms.extend(written.map(|at| ("nf_conntrack_max".to_owned(), at)));
        facts.since_ms = since;
        !found(&facts, "table-overflowed") && found(&facts, "table-was-full")
    };
    assert!(dealt(Some(59_000), None), "the limit was set after the loss");
    assert!(!dealt(Some(61_000), None), "the limit was set before the loss");
    assert!(dealt(None, Some(59_000)) && !dealt(None, Some(61_000)));
}

/// Since 6.18 the kernel names the namespace in the log, but not the first one.
#[test]
fn the_first_namespace_has_a_time_where_others_are_named() {
    use crate::doctor::facts::KernelLog;
    let mut facts = filled(10_000, 100_000);
    facts.namespaces[0].stats = [("drop".to_owned(), 1_913)].into();
    let other = facts.namespaces[0].netns + 1;
    let log = KernelLog { lines: 3, last_s: Some(20), last_ms: Some(20_000), ..KernelLog::default() };
    facts.log = Some(KernelLog { by_netns: [(other, 20_000)].into(), unnamed_ms: Some(60_000), ..log });
    let ago = |facts: &Facts| {
        let evidence = diagnose(facts).findings[0].evidence.clone();
        evidence.get("logged_seconds_ago").and_then(|ago| ago.value.as_u64())
    };
    assert_eq!(ago(&facts), Some(60));
    facts.namespaces[0].limit_writable = false;
    assert_eq!(ago(&facts), None, "another namespace that is not named lost nothing");
}

/// Clashes are in the counter `drop` too, and a log without a line says that no table was full.
#[test]
fn other_losses_are_no_overflow() {
    use crate::doctor::facts::KernelLog;
    let mut facts = filled(10_000, 100_000);
    facts.namespaces[0].stats = [("drop".to_owned(), 40), ("insert_failed".to_owned(), 40)].into();
    let overflowed =
        |facts: &Facts| diagnose(facts).findings.iter().any(|finding| finding.id == "table-overflowed");
    assert!(!overflowed(&facts));
    facts.namespaces[0].stats.insert("drop".into(), 50);
    assert!(overflowed(&facts));
    facts.log = Some(KernelLog { whole: true, ..KernelLog::default() });
    assert!(!overflowed(&facts));
}

#[test]
fn full_expectations_are_no_full_table() {
    use crate::doctor::facts::KernelLog;
    let mut facts = filled(60_000, 100_000);
    facts.namespaces[0].sysctls.insert("nf_conntrack_expect_max".into(), 1);
    facts.log = Some(KernelLog { expectations_ms: Some(5_000), whole: true, ..KernelLog::default() });
    let ids = |facts: &Facts| -> Vec<&str> {
        let told = diagnose(facts).findings.into_iter().filter(Finding::matters);
        told.map(|finding| finding.id).filter(|id| *id != "no-source").collect()
    };
    assert_eq!(ids(&facts), ["expectations-full"]);
    facts.written_ms.insert("nf_conntrack_expect_max".into(), 1_000);
    assert!(ids(&facts).is_empty());
    facts.namespaces[0].expectations = Some(1);
    assert_eq!(ids(&facts), ["expectations-full"], "full now");
}

pub(super) fn finding<'a>(diagnosis: &'a Diagnosis, id: &str) -> Option<&'a Finding> {
    diagnosis.findings.iter().find(|finding| finding.id == id)
}

/// What is counted and in no list is a cause of its own, and a larger limit is not its first remedy.
#[test]
fn held_entries_come_before_the_limit() {
    use crate::doctor::facts::Waiting;
    let mut facts = filled(1_000, 2_000);
    let held = |facts: &mut Facts, counted: u64, held: u64| {
        facts.namespaces[0].table.counted = Some(counted);
        facts.namespaces[0].table.held = Some(held);
        facts.namespaces[0].table.total = counted - held;
        diagnose(facts)
    };
    assert!(finding(&held(&mut facts, 1_000, 15), "held-entries").is_none(), "packets on their way");
    assert_eq!(held(&mut facts, 1_000, 99).status, Status::Ok, "a side effect");
    facts.namespaces[0].waiting =
        vec![Waiting { queue: "netem".into(), device: Some("eth1".into()), packets: 1_000 }];
    let warned = held(&mut facts, 1_000, 1_000);
    let found = finding(&warned, "held-entries").unwrap();
    assert_eq!((warned.status, found.status), (Status::Warning, Status::Warning));
    assert!(found.meaning.contains("netem on eth1: 1,000 packets"), "{}", found.meaning);

    facts.namespaces[0].count = Some(2_000);
    let full = held(&mut facts, 2_000, 1_900);
    assert_eq!((full.status, full.findings[0].id), (Status::Critical, "held-entries"));
    let full = finding(&full, "table-full").unwrap();
    assert_eq!(full.remedies.last().map(|remedy| remedy.id), Some("raise-limit"));
}

/// `insert_failed` holds both; only the rest are races. The kernel's counters have what the probes came too late for.
#[test]
fn long_chains_are_no_races() {
    let mut facts = filled(40_000, 262_144);
    let namespace = &mut facts.namespaces[0];
    namespace.sysctls.insert("nf_conntrack_buckets".into(), 1_024);
    namespace.stats = [("chainlength".to_owned(), 0), ("insert_failed".to_owned(), 0)].into();
    namespace.stats_after = [("chainlength".to_owned(), 2_900), ("insert_failed".to_owned(), 2_900)].into();
    facts.live.seconds = 3.0;
    facts.live.around_s = 4.0;
    facts.live.source = Some(crate::model::SourceKind::Fexit);
    let diagnosis = diagnose(&facts);
    let chains = finding(&diagnosis, "chain-too-long").unwrap();
    assert_eq!(chains.status, Status::Warning);
    assert!(chains.what.starts_with("725 packets a second"), "{}", chains.what);
    assert!(chains.what.contains("ends at about 40,000 entries, not at 262,144"), "{}", chains.what);
    assert!(finding(&diagnosis, "insert-failed").is_none());
    facts.namespaces[0].stats_after.insert("insert_failed".into(), 2_950);
    let diagnosis = diagnose(&facts);
    assert_eq!(finding(&diagnosis, "insert-failed").unwrap().evidence["live"].value, 50);
}

/// Whatever its protocol, what fills a table has a name, and a rule where leaving it out is not too much.
#[test]
fn every_protocol_is_named() {
    use crate::doctor::facts::Group;
    let mut facts = filled(2_000, 2_000);
    facts.namespaces[0].netns = 1;
    facts.tools.nft = true;
    for (proto, name, rule) in [
        (1, "icmp", Some("icmp type '{ echo-request, echo-reply }' notrack")),
        (58, "icmpv6", Some("icmpv6 type '{ echo-request, echo-reply }' notrack")),
        (47, "gre", Some("meta l4proto 47 notrack")),
        (253, "253", Some("meta l4proto 253 notrack")),
        (17, "udp", None),
    ] {
        facts.namespaces[0].table.total = 2_000;
        facts.namespaces[0].table.groups = vec![Group {
            proto,
            state: "unreplied".into(),
            count: 2_000,
            unreplied: 2_000,
            ..Group::default()
        }];
        let diagnosis = diagnose(&facts);
        let full = finding(&diagnosis, "table-full").unwrap();
        assert!(full.what.ends_with(&format!("filled by {name}, 100 % of the entries")), "{}", full.what);
        let commands: Vec<String> =
            full.remedies.iter().flat_map(|remedy| &remedy.commands).map(ToString::to_string).collect();
        let written = commands.iter().find(|command| command.ends_with(" notrack"));
        match rule {
            Some(rule) => assert!(written.is_some_and(|command| command.ends_with(rule)), "{commands:?}"),
            None => assert!(written.is_none(), "{commands:?}"),
        }
    }
}
