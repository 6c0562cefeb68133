use std::collections::BTreeMap;

use ctwatch_ebpf::{AF_INET, AF_INET6, Counters, Event, FlowType};
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::json::Json;
use super::lines::Lines;
use super::{Machine, View};
use crate::model::{Cost, Report, Sample, SourceInfo, SourceKind, Table, Tracker};

const INIT: u32 = 4_026_531_840;
const OTHER: u32 = 4_026_532_201;
pub(super) const SECOND: u64 = 1_000_000_000;
/// 2026-11-23T19:00:00Z
pub(super) const START: i128 = 1_795_460_400_000_000_000;

pub(super) fn machine() -> Machine {
    Machine { host: "web-7".into(), kernel: "6.12.117".into() }
}

fn info() -> SourceInfo {
    SourceInfo { kind: SourceKind::Kprobe, why: None, unknown: BTreeMap::new() }
}

pub(super) fn flow(netns: u32, family: u8, proto: u8) -> FlowType {
    FlowType { netns, family, proto }
}

pub(super) fn counters(parts: &[(Event, u64)]) -> Counters {
    let mut counters = Counters::default();
    for (event, count) in parts {
        counters.0[*event as usize] = *count;
    }
    counters
}

fn table(netns: u32, name: &str, count: Option<u64>, max: Option<u64>) -> Table {
    Table { netns, name: name.into(), count, max }
}

fn at(seconds: u64, rows: &[(FlowType, Counters)], tables: &[Table]) -> Sample {
    Sample {
        wall_ns: START + i128::from(seconds * SECOND),
        mono_ns: seconds * SECOND,
        rows: rows.iter().copied().collect(),
        tables: tables.to_vec(),
        lost: 0,
        cost: Some(Cost { run_ns: seconds * 2_124_200, runs: seconds * 16_340 }),
        ..Sample::default()
    }
}

/// The example of the contract.
fn flood() -> Sample {
    let counts = counters(&[
        (Event::Insert, 8120),
        (Event::ClashResolve, 3),
        (Event::DropTableFull, 97),
        (Event::DeleteTimeout, 7396),
        (Event::DeleteEarlyDrop, 412),
    ]);
    at(1, &[(flow(INIT, AF_INET, 17), counts)], &[table(INIT, "init", Some(251_003), Some(262_144))])
}

/// Everything at once, in two namespaces, one with a hostile name.
fn busy() -> Sample {
    let every = Counters(std::array::from_fn(|event| event as u64 + 1));
    let sample = at(
        10,
        &[
            (FlowType::OVERFLOW, counters(&[(Event::Insert, 2)])),
            (flow(INIT, AF_INET, 6), counters(&[(Event::Insert, 1), (Event::DeleteClosed, 20)])),
            (
                flow(INIT, AF_INET6, 136),
                counters(&[(Event::Insert, 1_234_567_890), (Event::DropNoMemory, 10_000_000)]),
            ),
            (flow(OTHER, AF_INET, 253), every),
        ],
        &[
            table(INIT, "init", Some(262_144), Some(262_144)),
            table(OTHER, "a-very-long-name\x1b[2J", Some(5), None),
        ],
    );
    Sample { own_ns: Some(91_640_000), ..sample }
}

fn report(sample: Sample) -> Report {
    Tracker::new(0).advance(sample)
}

fn lines(color: bool) -> Lines {
    Lines::new(machine(), TimeZone::UTC, color)
}

fn all_lines(samples: Vec<Sample>, info: &SourceInfo, color: bool) -> String {
    let mut view = lines(color);
    let mut tracker = Tracker::new(0);
    let mut text = view.start(info);
    let mut last = None;
    for sample in samples {
        let report = tracker.advance(sample);
        text += &view.report(&report, info);
        last = Some(report);
    }
    if let Some(last) = last {
        text += &view.end(&last, info);
    }
    text
}

#[test]
fn the_reference_names_every_event() {
    let reference = include_str!("../../../docs/reference.md");
    for event in Event::ALL {
        let group = event.group().name();
        let row = reference.lines().find(|line| line.starts_with(&format!("| `{group}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/reference.md has no row for {group}"));
        assert!(row.contains(&format!("`{}`", event.reason())), "docs/reference.md does not name {event:?}");
    }
}

#[test]
fn json_is_the_promised_object() {
    let text = Json::new(machine()).report(&report(flood()), &info());
    assert_eq!(text.lines().count(), 1);
    let promised = r#"{"time":"2026-11-23T19:00:01.000Z","elapsed_s":1.000,"host":"web-7","kernel":"6.12.117",
 "source":{"kind":"kprobe","why":null,"lost":0},
 "table":[{"netns":4026531840,"name":"init","count":251003,"max":262144}],
 "flows":[{"netns":4026531840,"family":"ipv4","proto":"udp",
   "insert":8120,"insert_netlink":0,"clash_resolve":3,"clash_reply_only":0,"early_drop":412,
   "insert_failed":{"clash":0,"chaintoolong":0,"dying":0,"other":0},
   "drop":{"table_full":97,"no_memory":0},
   "invalid":{"out_of_window":0,"bad_state":0,"bad_checksum":0,"malformed":0,"unrelated":0,"other":0},
   "delete":{"timeout":7396,"closed":0,"early_drop":412,"pressure":0,"netlink":0,"cleanup":0,"other":0,
     "tc":0,"openvswitch":0,"ipvs":0},
   "rate":{"insert":8120.0,"early_drop":412.0,"drop":97.0,"insert_failed":0.0,"invalid":0.0,"delete":7808.0},
   "total":{"insert":8120,"early_drop":412,"drop":97,"insert_failed":0,"invalid":0,"delete":7808}}],
 "top":[],
 "cost":{"cpu_pct":0.212,"events":16340,"ns_per_event":130}}"#;
    let promised: String = promised.replace("1.000,", "1.0,").lines().map(str::trim).collect();
    assert_eq!(text.trim_end(), promised, "fields, their order and their values");
}

#[test]
fn json_of_everything_at_once() {
    let text = Json::new(machine()).report(&report(busy()), &info());
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    insta::assert_json_snapshot!(value);
}

#[test]
fn json_says_unknown_and_never_zero() {
    let mut info = info();
    info.kind = SourceKind::Netlink;
    info.why = Some("kprobes are off".into());
    for event in [Event::DropTableFull, Event::DropNoMemory, Event::DeletePressure] {
        info.unknown.insert(event, "netlink does not tell".into());
    }
    let text = Json::new(machine()).report(&report(flood()), &info);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let flow = &value["flows"][0];
    assert!(flow["drop"]["table_full"].is_null() && flow["rate"]["drop"].is_null());
    assert!(flow["total"]["drop"].is_null() && flow["delete"]["pressure"].is_null());
    assert_eq!(flow["delete"]["timeout"], 7396);
    assert_eq!(flow["total"]["delete"], 7808);
    let at_least = flow["at_least"].as_array().unwrap();
    assert!(at_least.contains(&"delete".into()), "a sum of known and unknown parts is not exact: {flow}");
    assert!(!at_least.contains(&"drop".into()), "it is unknown: {flow}");
    assert!(!at_least.contains(&"insert".into()), "it is exact: {flow}");
    assert_eq!(value["source"]["unknown"]["drop.table_full"], "netlink does not tell");
    assert_eq!(value["source"]["why"], "kprobes are off");
}

#[test]
fn json_without_anything() {
    let mut empty = at(1, &[], &[]);
    empty.cost = None;
    let text = Json::new(machine()).report(&report(empty), &info());
    insta::assert_snapshot!(text);
}

#[test]
fn lines_of_a_flood() {
    let flooded = flood();
    let mut calm = flood();
    calm.mono_ns += SECOND;
    calm.wall_ns += i128::from(SECOND);
    insta::assert_snapshot!(all_lines(vec![flooded, calm], &info(), false));
}

#[test]
fn lines_of_everything_at_once() {
    let mut info = info();
    info.why = Some("no BTF for nf_conntrack".into());
    info.unknown.insert(Event::FailedDying, "not told apart from other".into());
    insta::assert_snapshot!(all_lines(vec![busy()], &info, false));
}

#[test]
fn lines_without_anything() {
    insta::assert_snapshot!(all_lines(vec![at(1, &[], &[])], &info(), false));
}

#[test]
fn a_sum_is_as_bad_in_lines_as_on_the_screen() {
    let lines = all_lines(vec![flood()], &info(), true);
    let painted = |style: &str| -> Vec<&str> {
        lines.split(style).skip(1).filter_map(|rest| rest.split('\x1b').next()).map(str::trim).collect()
    };
    // Critical (red) is what the screen shows of evictions and refusals.
    assert!(painted("\x1b[1;31m").iter().any(|text| text.starts_with("!412")), "{lines}");
    assert!(painted("\x1b[1;31m").iter().any(|text| text.starts_with("!97")), "{lines}");
    assert!(!painted("\x1b[1;33m").iter().any(|text| text.starts_with("!412")), "{lines}");
}

#[test]
fn color_adds_nothing_but_color() {
    let plain = all_lines(vec![busy(), flood()], &info(), false);
    let colored = all_lines(vec![busy(), flood()], &info(), true);
    assert!(!plain.contains('\x1b'), "not even from a namespace's name");
    assert!(colored.contains("\x1b[1;31m"));
    let mut stripped = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        stripped += before;
        rest = after.split_once('m').unwrap().1;
    }
    assert_eq!(stripped + rest, plain);
}

#[test]
fn lines_fit_in_80_columns_and_repeat_their_header() {
    let calm: Vec<Sample> = (0..50).map(|second| at(second, &[], &[])).collect();
    let text = all_lines(calm, &info(), false);
    let headers: Vec<usize> =
        text.lines().enumerate().filter(|(_, line)| line.starts_with("time")).map(|(at, _)| at).collect();
    assert_eq!(headers, [1, 22, 43]);
    for text in [text, all_lines(vec![busy(), flood()], &info(), false)] {
        // Totals are exact first: one above a million may push its line out.
        for line in text.lines().filter(|line| !line.starts_with("total    ")) {
            assert!(line.chars().count() <= 80, "{line:?}");
        }
    }
}

#[test]
fn a_table_with_room_is_never_shown_as_full() {
    let tables = [table(INIT, "init", Some(262_143), Some(262_144))];
    let text = lines(false).report(&report(at(1, &[], &tables)), &info());
    assert!(text.contains("99.9 %") && !text.contains("FULL"), "{text}");
    let tables = [table(INIT, "init", Some(262_144), Some(262_144))];
    let text = lines(false).report(&report(at(1, &[], &tables)), &info());
    assert!(text.contains("100.0 %  !FULL"), "{text}");
}

#[test]
fn missed_events_are_told_once_more_each_time_they_grow() {
    let mut samples: Vec<Sample> = (1..5).map(|second| at(second, &[], &[])).collect();
    samples[1].lost = 5;
    samples[2].lost = 5;
    samples[3].lost = 9;
    let text = all_lines(samples, &info(), false);
    let told: Vec<&str> = text.lines().filter(|line| line.contains("missed")).collect();
    assert_eq!(told.len(), 2, "{text}");
    assert!(told[0].starts_with("19:00:02 !5 ") && told[1].starts_with("19:00:04 !9 "));
    assert!(text.contains("!9 events lost"));
}

#[test]
fn namespaces_that_are_left_out_are_told_when_their_number_changes() {
    let mut samples: Vec<Sample> = (1..5).map(|second| at(second, &[], &[])).collect();
    samples[1].namespaces_left_out = 76;
    samples[2].namespaces_left_out = 76;
    let text = all_lines(samples.clone(), &info(), false);
    let told: Vec<&str> = text.lines().filter(|line| line.contains("namespaces are")).collect();
    assert_eq!(told.len(), 2, "{text}");
    assert!(told[0].starts_with("19:00:02 !76 network namespaces are not looked at"), "{text}");
    assert!(told[1].starts_with("19:00:04 all network namespaces"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&Json::new(machine()).report(&report(samples[1].clone()), &info())).unwrap();
    assert_eq!(json["source"]["namespaces_left_out"], 76);
    samples.truncate(2);
    assert!(all_lines(samples, &info(), false).trim_end().ends_with("no connection was tracked"));
}

#[test]
fn a_line_without_events_names_the_fullest_table_and_is_calm_where_that_is_not_full() {
    let tables = [
        table(INIT, "init", Some(10), Some(262_144)),
        table(OTHER, "a-name-that-is-too-long", Some(26_214_400), Some(26_214_400)),
        table(9, "nine", None, None),
    ];
    let text = lines(false).report(&report(at(1, &[], &tables)), &info());
    let line = text.lines().last().unwrap();
    assert_eq!(line, "19:00:01 idle; fullest a-name-that~ 26214400 of 26214400 entries, 100.0 %  !FULL");
    assert_eq!(line.len(), 80);
    let text = lines(false).report(&report(at(1, &[], &tables[..1])), &info());
    assert_eq!(text.lines().last().unwrap(), "19:00:01 calm; table init 10 of 262144 entries, 0.0 %");
}

proptest! {
    #[test]
    fn any_count_makes_valid_json_and_narrow_lines(
        counts in prop::array::UniformArrayStrategy::<_, [u64; Event::COUNT]>::new(
            prop_oneof![0..10u64, 0..10_000_000u64, any::<u64>()],
        ),
        mono_ns in prop_oneof![Just(0), 1..1000u64, 1..3_600_000_000_000u64],
        proto in any::<u8>(),
    ) {
        let mut sample = at(0, &[(flow(INIT, AF_INET6, proto), Counters(counts))], &[]);
        sample.mono_ns = mono_ns;
        let report = report(sample);
        let text = Json::new(machine()).report(&report, &info());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for rate in ["insert", "early_drop", "drop", "delete"] {
            prop_assert!(value["flows"][0]["rate"][rate].is_f64());
        }
        prop_assert_eq!(value["flows"][0]["total"]["insert"].as_u64(), Some(counts[0]));
        for line in lines(false).report(&report, &info()).lines() {
            prop_assert!(line.chars().count() <= 80, "{}", line);
        }
    }
}
